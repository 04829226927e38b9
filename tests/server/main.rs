//! The real binary over real sockets.

mod abuse;
mod budget;
mod cluster;
mod contract;
mod crash;
mod database_faults;
mod harness;
mod hostile;
mod load;
mod persistence;
mod proxy;
mod rollover;
mod sell_out;
mod start_up;
mod takeover;
