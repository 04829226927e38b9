//! Published numbers, and the admin port that shows them. Nothing in this folder waits for a shard or makes one wait.
//!
//! Shards publish numbers that have one writer each: [`counters`], [`shard_status`] (one shard), [`status`] (the
//! process), [`item_states`] (one word per item), [`product_numbers`] (one word per product and
//! shard). [`counts_word`] is a word with two counts. [`lease`] says until when the process is known to own the database. [`request_timer`] counts requests and measures their latency. [`lag`]
//! measures how long Postgres has been behind the log. [`exemplars`] are requests of sampled traces, as examples of the
//! latencies. The thread of the admin port reads these numbers: [`live_sales`] (the sales to show), [`prometheus`]
//! (`/metrics`), [`sampler`] (one sample per second), [`dashboard`] (the page), [`host_names`]
//! (which names the port has), [`admin`] (the port itself).

pub mod admin;
pub mod counters;
pub mod counts_word;
pub mod dashboard;
pub mod exemplars;
pub mod host_names;
pub mod item_states;
pub mod lag;
pub mod lease;
pub mod live_sales;
pub mod product_numbers;
pub mod prometheus;
pub mod request_timer;
pub mod sampler;
pub mod shard_status;
pub mod status;
