//! The rules of a sale, pure: nothing here awaits, reads a clock, draws randomness or opens a file. The same code runs
//! live, in recovery and in the simulator.
//!
//! Data passes through like this: a [`command`] of a client becomes [`message`]s between the shard that has the client
//! (the origin) and the shards that own the item and the user; [`shard`] applies each of them to the [`part`] of its
//! sale, and returns records and answers as effects.
//!
//! In reading order: [`ids`] (ids, times, terms of a sale), [`sale_schedule`] (which sale
//! comes when), [`product_ranges`] (the units of each product), [`rules`] (settings of the rules), [`partition`] (the owner
//! of each item and user), [`code`] (reservation codes), [`checkout_key`] (idempotency keys), [`command`] (commands and
//! outcomes), [`message`] (messages between shards), [`record`] (records of the log), [`item_state`] (states of an item,
//! and results), [`milliseconds`] (times in 48 bits), [`lazy_vec`] (items without memory until they are
//! written), [`slot_queue`] (queues of slots), [`product_stock`] (free items by product), [`stock`] (items and holds of one
//! sale), [`quotas`] (items per user), [`any_keys`] (items of repeatable checkouts of any item), [`part`] (all three together, for one sale), [`parts`] (the
//! sales that a shard knows), [`chunked_vec`], [`linked_queue`] and [`linear_table`] (containers that never stall a
//! turn), [`deferred`] (effects that wait for the log), [`repetitions`] (repeated checkouts that wait for a claim),
//! [`effects`] (what a shard's events cause), [`shard`] (the state machine), [`origin_steps`] and [`owner_steps`] (its
//! steps in these roles), [`published_stock`] and [`any_unit`] (the search for any free item), [`item_name`] (generated names of items).

pub mod any_keys;
pub mod any_unit;
pub mod checkout_key;
pub mod chunked_vec;
pub mod code;
pub mod command;
pub mod deferred;
pub mod effects;
pub mod ids;
pub mod item_name;
pub mod item_state;
pub mod lazy_vec;
pub mod linear_table;
pub mod linked_queue;
pub mod message;
pub mod milliseconds;
pub mod origin_steps;
pub mod owner_steps;
pub mod part;
pub mod partition;
pub mod parts;
pub mod product_ranges;
pub mod product_stock;
pub mod published_stock;
pub mod quotas;
pub mod record;
pub mod repetitions;
pub mod rules;
pub mod sale_schedule;
pub mod shard;
pub mod slot_queue;
pub mod stock;
