//! `stampede log`: reads a log beside a running server. Never here: a lock, a write.
//!
//! [`arguments`] is the command line, [`scan`] reads all of a log, [`postgres_view`] reads the state of the
//! database, and [`unit_names`] names the products of a plan. [`verify`] checks the log, [`dump`] prints its records, [`sale_report`] adds up one sale and compares the
//! two.

pub mod arguments;
pub mod dump;
pub mod postgres_view;
pub mod sale_report;
pub mod scan;
pub mod unit_names;
pub mod verify;
