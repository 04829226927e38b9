//! Stampede, a flash-sale server. A tour of the folders, from the top to the bottom; each imports only from below it.
//!
//! | floor | folder | contains | must not contain |
//! |---|---|---|---|
//! | 10 | `main.rs` | settings, exit code | logic |
//! | 9 | `process/` | start in order, watch, end | rules |
//! | 8 | `runtime/` | a shard's thread: the turn, the lanes, the logs | decisions |
//! | 8 | `log_tool/` | `stampede log` | a lock, a write |
//! | 8 | `sim/` | simulated worlds from a seed, in tests only | real time |
//! | 7 | `server/` | sockets and pages of the public port | the meaning of a request |
//! | 7 | `postgres/` | every record in Postgres, exactly once | rules |
//! | 6 | `upgrade/` | two processes, one sale | the sale itself: it passes through the log |
//! | 6 | `operate/` | what operators and readers see | waiting for a shard, or making one wait |
//! | 5 | `log/` | bytes of the log, files, recovery | decisions of the sale |
//! | 4 | `system/` | clocks, CPUs, descriptors, threads, durable writes | anything of a sale |
//! | 3 | `http/` | bytes to requests, outcomes to answers, pure | sockets |
//! | 3 | `config/` | settings, reasons to end | I/O except log lines and the exit |
//! | 2 | `plan/` | what is sold when: the file of a plan and its mistakes, pure | a file, a clock |
//! | 1 | `sale/` | the rules, pure | anything else |
//!
//! Each folder's `mod.rs` is its map. A request travels `server` → `http` → `runtime` → `sale` → `runtime` → `log`, and its
//! answer leaves by `http` and `server` after the flush. `docs/architecture.md` has the tour with its reasons, the
//! invariants and the glossary; `tests/architecture.rs` enforces what this table says.

pub mod config;
pub mod http;
pub mod log;
pub mod log_tool;
pub mod operate;
pub mod plan;
pub mod postgres;
pub mod process;
pub mod runtime;
pub mod sale;
pub mod server;
#[cfg(test)]
mod sim;
pub mod system;
pub mod upgrade;

use std::sync::atomic;
