//! A shard's thread: the turn, the lanes, the logs. Never here: decisions, which `sale` makes.
//!
//! [`shard_thread`] starts a shard and waits for recovery. [`turn`] is the loop: collect, apply, append, flush, send;
//! the rule "log before reply" is kept there. [`publishing`] has the numbers that a turn publishes, and
//! [`published_numbers`] those that it reads. A turn works with [`shard_io`] (sockets, lanes and clock), [`mesh`] (lanes
//! between shards) and [`log_pair`] (the shard's two logs). [`control`] is what the main thread and the shards send each
//! other.

pub mod control;
pub mod log_pair;
pub mod mesh;
pub mod published_numbers;
pub mod publishing;
pub mod shard_io;
pub mod shard_thread;
pub mod turn;
