//! Stampede, a flash-sale server: the map of the house.
//!
//! The files in the order in which a request travels, with the rules that never break. What is above the line
//! touches the world; what is below is pure: it never awaits, reads no clock, draws no randomness, opens nothing.
//!
//! **Start.** [`config`] turns flags and variables into validated settings. [`start`] does everything in order:
//! [`host`] asks the machine for CPUs, descriptors and io_uring; [`listener`] listens, once for each shard;
//! [`data_dir`] locks the data directory and raises the epoch; [`resume`] finds out what to go on with: [`recovery`]
//! reads the log back; a new directory may go on with a sale that Postgres knows, by [`takeover`]. Then [`supervisor`]
//! watches, hears [`notice`]s, and sees to the end. [`logging`] and [`fatal`] say what happens and why it ended,
//! [`service_manager`] hears when it is ready, alive and at its end; [`clock`] reads the clocks. [`manual`] is what the
//! binary prints instead, when it is asked for its manual page or for completions.
//!
//! **Reading a log.** [`log_command`] is `stampede log …`, and nothing starts then: a [`survey`] reads all of a log beside
//! whoever writes it, and [`books`] is what Postgres says meanwhile. [`log_verify`] tells whether the log is sound,
//! [`log_dump`] prints its records, [`log_sale`] adds up a sale and holds the two against each other. None of them takes
//! a lock or writes anything.
//!
//! **An upgrade.** The running process starts a [`successor`], for which it is the [`predecessor`]; [`handover`] is what
//! they say to each other, with descriptors along. The new one reads the log ahead and checks all that can fail while the
//! old one sells; then the old one pauses, flushes and passes its lock, listeners and clients; the new one reads what is
//! left of the log, and says that it could serve; only then the old one lets go. Up to there it can go on as if nothing
//! had happened.
//!
//! **A request.** [`server`] holds a shard's sockets: it reads bytes in batches and knows no rule of the sale;
//! [`acceptor`] lets clients in, [`client`] is one of them, [`poller`] knows which are ready. [`outside`] is all that a
//! shard's thread has besides its rules and logs. [`pump`] is the turn: wait, collect, apply, append, flush, send; *log
//! before reply* stands there, in one place. [`mesh`] carries batches of messages between shards; sending never blocks.
//! [`doorbell`] wakes who sleeps. [`purchase_log`] appends and flushes, [`segment`] makes and writes its files,
//! [`retention`] keeps them within their budget; [`logs`] holds all that a shard has of these, [`log_room`] keeps room
//! ahead in them. [`status`] holds the numbers that shards publish, [`board`] where each item stands; [`page`] and
//! [`items`] show them, [`subscribers`] hear when the numbers change. [`meter`] counts requests and takes their time,
//! in [`counters`] of one writer each. [`admin`] serves operators, [`metrics`] is what Prometheus reads, [`process`]
//! what the kernel knows of this one. [`dashboard`] is the page that people look at, [`sampler`] what it shows.
//!
//! **Postgres.** [`persistence`] is the one thread that brings every flushed record there, exactly once: from a
//! channel while it keeps up, from the files by [`log_reader`] when it does not. [`claim`] takes the database for this
//! run, if [`ownership`] finds that the two fit together. [`postgres`] has the schema and the transactions;
//! [`copy_rows`] turns records into rows. [`database_url`] says where it is, [`tls`] and [`pgpass`] what libpq would do
//! about encryption and passwords, [`lag`] how far it is behind.
//!
//! ----
//!
//! **Bytes.** [`connection`] turns bytes into requests by [`http`] and [`body`]. [`route`] turns requests into
//! commands and outcomes into responses; [`problem`] lists every refusal, [`operation`] what can be asked and every
//! answer to it; status codes are in these two files and nowhere else. [`response`] renders, [`payload`] is what bodies
//! say; [`openapi`] describes all of it to clients. [`catalogue`] makes up names, [`art`] draws images.
//!
//! **Rules.** [`shard`] is one shard's state machine: the two-owner protocol. [`waiting`] is what waits for the log.
//! [`sale`] has the rules: stock, holds, quotas. [`command`] and [`message`] are what it hears and says, [`partition`]
//! who owns what, [`code`] what buys an item, [`types`] the words.
//!
//! **The log.** [`record`] and [`block`] are its bytes. [`stream`] decides where a log ends and whether anything is
//! missing. [`replay`] brings a sale back, through the same rules that made it.
//!
//! `sim/` (tests only) lives whole worlds of shards, disks, databases and clocks from one seed each.
//!
//! Rules that never break:
//!
//! - Imports point from the top of this map to its bottom; `tests/architecture.rs` holds them to it.
//! - Nothing is shared between shards but lanes, doorbells and published numbers; with the persistence thread, a
//!   channel and a count of its bytes, once a flush. No shard takes a lock.
//! - The newest sale is one of those numbers: whoever reads a request or a message reads it then, so that no shard
//!   knows less of the hour than a client was told.
//! - An answer that promises anything leaves after its record is durable. So does the return of a quota, because
//!   another shard may write a grant that rests on it.
//! - A failed write is never tried again, and nothing is freed on its account: the process ends, recovery decides.
//! - One shard never dies alone.
//!
//! Where this departs from what one might expect, and why:
//!
//! - *Two logs a shard.* Refused attempts are most of the traffic and nobody waits for them; in a log of their own
//!   they can be dropped first, and recovery need not read them.
//! - *A stream for each run.* A process never appends to what an earlier one wrote. Recovery ends each old stream
//!   with a seal, which proves everything before it; so damage is told from a torn tail for ever after.
//! - *Lanes on credit.* Two buffers circulate in each lane. What finds no buffer waits with its sender, where the
//!   limits on connections and stock bound it, so no lane can fill and none can block.
//! - *One operation for a flush.* A direct write with `O_DSYNC` is durable when it completes: one trip through the ring
//!   instead of a write and a sync.
//! - *A takeover writes a log first.* What Postgres has of a sale becomes a stream of the new data directory, already
//!   shipped; recovery then reads it as any other, so there is one way back to a sale.
//! - *A database that was set back is healed where the log reaches.* Refusing is for what nobody could bring back.
//! - *An upgrade goes by way of the log.* The new process gets sockets and the lock from the old one, but the sale only
//!   from the log, as after any start: so two versions need agree on the log's format and a few messages, no more. The old
//!   one says where its streams end, and the new one must find just that.
//! - *One request in flight for each connection.* Pipelined ones wait in the connection: answers are in order by
//!   construction, and the table of connections is the table of requests in flight.

pub mod acceptor;
pub mod admin;
pub mod art;
pub mod block;
pub mod board;
pub mod body;
pub mod books;
pub mod catalogue;
pub mod claim;
pub mod client;
pub mod clock;
pub mod code;
pub mod command;
pub mod config;
pub mod connection;
pub mod copy_rows;
pub mod counters;
pub mod dashboard;
pub mod data_dir;
pub mod database_url;
pub mod doorbell;
pub mod fatal;
pub mod handover;
pub mod host;
pub mod http;
pub mod items;
pub mod lag;
pub mod listener;
pub mod log_command;
pub mod log_dump;
pub mod log_reader;
pub mod log_room;
pub mod log_sale;
pub mod log_verify;
pub mod logging;
pub mod logs;
pub mod manual;
pub mod mesh;
pub mod message;
pub mod meter;
pub mod metrics;
pub mod notice;
pub mod openapi;
pub mod operation;
pub mod outside;
pub mod ownership;
pub mod page;
pub mod partition;
pub mod payload;
pub mod persistence;
pub mod pgpass;
pub mod poller;
pub mod postgres;
pub mod predecessor;
pub mod problem;
pub mod process;
pub mod pump;
pub mod purchase_log;
pub mod record;
pub mod recovery;
pub mod replay;
pub mod response;
pub mod resume;
pub mod retention;
pub mod route;
pub mod sale;
pub mod sampler;
pub mod segment;
pub mod server;
pub mod service_manager;
pub mod shard;
#[cfg(test)]
mod sim;
pub mod start;
pub mod status;
pub mod stream;
pub mod subscribers;
pub mod successor;
pub mod supervisor;
pub mod survey;
pub mod takeover;
pub mod tls;
pub mod types;
pub mod waiting;

use std::sync::atomic;
