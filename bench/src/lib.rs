//! What the measuring programs share.
//!
//! [`fixed`] is what the floors answer. [`turns`] drives the state machine as the pump does, and [`path`] a request from
//! its bytes to those of its answer, both without sockets and disk, so that nothing but Stampede is measured.
//! [`history`] makes logs of any length, for recovery to read.

pub mod fixed;
pub mod history;
pub mod path;
pub mod turns;
