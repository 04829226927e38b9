//! Code that the benchmarks share.
//!
//! [`turns`] drives the state machine in the order of the server's turn. [`path`] drives a whole request, from its
//! bytes to the bytes of its response. Neither uses sockets or a disk, so that only Stampede's own code is measured.
//! [`fixed`] is the fixed response of the floor servers. [`history`] generates logs of any length for recovery.

pub mod fixed;
pub mod history;
pub mod path;
pub mod turns;
