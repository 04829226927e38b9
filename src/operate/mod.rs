//! What operators and readers see. Never here: waiting for a shard, or making a shard wait.
//!
//! Shards publish numbers of one writer each: [`counters`], [`shard_status`], [`status`] (of the whole process),
//! [`item_states`]; [`request_timer`] counts requests and their times. [`lag`] measures how far Postgres is behind.
//! Threads of the admin port read them: [`prometheus`] (`/metrics`), [`sampler`] (one sample a second), [`dashboard`] (the
//! page), [`admin`] (the port itself).

pub mod admin;
pub mod counters;
pub mod dashboard;
pub mod item_states;
pub mod lag;
pub mod prometheus;
pub mod request_timer;
pub mod sampler;
pub mod shard_status;
pub mod status;
