//! The real binary over real sockets.

mod abuse;
mod budget;
mod contract;
mod crash;
mod harness;
mod load;
mod rollover;
mod sell_out;
mod start_up;
