//! The log: its bytes, its files, and recovery. Never here: decisions of the sale, which recovery replays through
//! `sale`.
//!
//! Written in this order: [`block`] (the layout of a block), [`segment`] (files), [`writer`] (append and flush),
//! [`budget`] (the disk space of all shards), [`retention`] (which segments are removed). Read in this order:
//! [`data_dir`] (the lock and the control file), [`manifest`] (the streams that must exist), [`stream`] (where a stream
//! ends, and whether anything is missing), [`damage`] (what can be wrong with it), [`stream_files`] (a stream on disk,
//! piece by piece), [`opened_sales`] (the sales that have opened, beside the schedule), [`replay`] (records back to a sale), [`losses`] (whether lost records are needed), [`recovery`] (all
//! streams of a data directory), [`reader`] (flushed records again, for Postgres). [`ownership`] judges whether a data
//! directory and a database fit together. [`set_aside`] moves a log away that is not needed. [`sample`] writes streams for
//! the unit tests.

pub mod block;
pub mod budget;
pub mod damage;
pub mod data_dir;
pub mod losses;
pub mod manifest;
pub mod opened_sales;
pub mod ownership;
pub mod reader;
pub mod recovery;
pub mod replay;
pub mod retention;
#[cfg(test)]
pub mod sample;
pub mod segment;
pub mod set_aside;
pub mod stream;
pub mod stream_files;
pub mod writer;
