//! The machine: clocks, CPUs, descriptors, threads. Never here: anything of a sale.
//!
//! [`clock`] (the time of a turn), [`host`] (CPUs, limits, io_uring), [`threads`] (threads and event loops),
//! [`doorbell`] (wakes a sleeping shard), [`listener`] (listening sockets), [`proc_stats`] (CPU time, memory and
//! descriptors of this process).

pub mod clock;
pub mod doorbell;
pub mod host;
pub mod listener;
pub mod proc_stats;
pub mod threads;
