//! An upgrade in place: a new process takes over from the running one. Never here: the sale itself, which the new
//! process reads from the log.
//!
//! [`protocol`] is what the two processes send each other over a socket, with descriptors attached. [`successor`] is
//! the new process as the old one sees it, [`predecessor`] the old process as the new one sees it.

pub mod predecessor;
pub mod protocol;
pub mod successor;
