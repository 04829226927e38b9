//! The machine: clocks, CPUs, descriptors, threads, durable writes. Never here: anything of a sale.
//!
//! [`clock`] (the time of a turn), [`discipline`] (how it follows the system clock), [`host`] (CPUs, limits, io_uring),
//! [`threads`] (threads and event loops), [`restart`] (this program, executed again), [`disk_ring`] (durable writes to
//! files), [`doorbell`] (wakes a sleeping shard), [`listener`] (listening sockets), [`proc_stats`] (CPU time, memory and
//! descriptors of this process).

pub mod clock;
pub mod discipline;
pub mod disk_ring;
pub mod doorbell;
pub mod host;
pub mod listener;
pub mod proc_stats;
pub mod restart;
pub mod threads;
