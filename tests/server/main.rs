//! The real binary over real sockets.

mod abuse;
mod budget;
mod cluster;
mod contract;
mod crash;
mod database_faults;
mod faulty_disk;
mod full_disk;
mod harness;
mod load;
mod mountpoint;
mod persistence;
mod proxy;
mod rollover;
mod sell_out;
mod start_up;
mod takeover;
mod write_faults;
