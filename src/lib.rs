//! Stampede, a flash-sale server. A tour of the folders, from the top to the bottom; each imports only from below it.
//!
//! | floor | folder | contains | must not contain |
//! |---|---|---|---|
//! | 9 | `main.rs` | settings, exit code | logic |
//! | 8 | `process/` | start in order, watch, end | rules |
//! | 7 | `runtime/` | a shard's thread: the turn, the lanes, the logs | decisions |
//! | 7 | `log_tool/` | `stampede log` | a lock, a write |
//! | 7 | `sim/` | simulated worlds from a seed, in tests only | real time |
//! | 6 | `server/` | sockets and pages of the public port | the meaning of a request |
//! | 6 | `postgres/` | every record in Postgres, exactly once | rules |
//! | 5 | `upgrade/` | two processes, one sale | the sale itself: it passes through the log |
//! | 5 | `operate/` | what operators and readers see | waiting for a shard, or making one wait |
//! | 4 | `log/` | bytes of the log, files, recovery | decisions of the sale |
//! | 3 | `system/` | clocks, CPUs, descriptors, threads | anything of a sale |
//! | 2 | `http/` | bytes to requests, outcomes to answers, pure | sockets |
//! | 2 | `config/` | settings, reasons to end | I/O except log lines and the exit |
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
