//! The rules of a sale, pure: nothing here awaits, reads a clock, draws randomness or opens a file. The same code runs
//! live, in recovery and in the simulator.
//!
//! Data passes through like this: a [`command`] of a client becomes [`message`]s between the shard that has the client
//! (the origin) and the shards that own the item and the user; [`shard`] applies each of them to [`stock`] and
//! [`quotas`], and returns records and answers as effects.
//!
//! In reading order: [`ids`] (ids, times, terms of a sale), [`partition`] (the owner of each item and user), [`code`]
//! (reservation codes), [`command`] (commands and outcomes), [`message`] (messages between shards), [`record`] (records
//! of the log), [`stock`] (states of items, holds), [`quotas`] (items per user), [`deferred`] (effects that wait for
//! the log), [`repetitions`] (repeated checkouts that wait for a claim), [`effects`] (what a shard's events cause),
//! [`shard`] (the state machine), [`item_name`] (generated names of items).

pub mod code;
pub mod command;
pub mod deferred;
pub mod effects;
pub mod ids;
pub mod item_name;
pub mod message;
pub mod partition;
pub mod quotas;
pub mod record;
pub mod repetitions;
pub mod shard;
pub mod stock;
