//! Tests that run the real binary and connect to it over real sockets.
//!
//! Each module tests one subject, except the shared parts: `harness` starts servers and clients; `history` and `log`
//! check every response against the server's log; `load` is a crowd of buyers; `old_log` writes the log of earlier runs;
//! `cluster` and `proxy` run Postgres; `browser` controls Chromium; `power`, `faulty_disk` and `mountpoint` provide
//! disks; `network` provides a link whose cable can be pulled.

mod abuse;
mod admin_port;
mod browser;
mod budget;
mod catalogue;
mod clock_jumps;
mod cluster;
mod compose;
mod connection_limits;
mod container;
mod contract;
mod cors;
mod crash;
mod crowds;
mod dashboard;
mod database_faults;
mod database_schema;
mod deletions;
mod descriptors;
mod events;
mod faulty_disk;
mod front;
mod full_disk;
mod harness;
mod history;
mod hostile;
mod hosts;
mod hour;
mod isolate;
mod keep_alive;
mod load;
mod log;
mod log_in_use;
mod log_tool;
mod metrics;
mod mountpoint;
mod network;
mod old_log;
mod openapi;
mod package;
mod parent;
mod pauses;
mod persistence;
mod pooler;
mod power;
mod proxy;
mod recovery_memory;
mod repeats;
mod replication;
mod rollover;
mod rot;
mod sell_out;
mod service;
mod settings;
mod signals;
mod split_brain;
mod start_up;
mod takeover;
mod tls;
mod upgrade;
mod withdrawals;
mod write_faults;
