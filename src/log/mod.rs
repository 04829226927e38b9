//! The log: its bytes, its files, and recovery. Never here: decisions of the sale, which recovery replays through
//! `sale`.
//!
//! Written in this order: [`block`] (the layout of a block), [`segment`] (files), [`writer`] (append and flush),
//! [`budget`] (the disk space of all shards), [`retention`] (which segments are removed). Read in this order: [`data_dir`] (the lock and the control file),
//! [`manifest`] (the streams that must exist), [`stream`] (where
//! a stream ends, and whether anything is missing), [`replay`] (records back to a sale), [`recovery`] (all streams of a
//! data directory), [`reader`] (flushed records again, for Postgres). [`ownership`] judges whether a data directory and
//! a database fit together.

pub mod block;
pub mod budget;
pub mod data_dir;
pub mod manifest;
pub mod ownership;
pub mod reader;
pub mod recovery;
pub mod replay;
pub mod retention;
pub mod segment;
pub mod stream;
pub mod writer;
