//! The real binary over real sockets.

mod abuse;
mod budget;
mod clock_jumps;
mod cluster;
mod contract;
mod crash;
mod crowds;
mod database_faults;
mod descriptors;
mod faulty_disk;
mod full_disk;
mod harness;
mod history;
mod hostile;
mod load;
mod log;
mod mountpoint;
mod pauses;
mod persistence;
mod power;
mod proxy;
mod rollover;
mod sell_out;
mod start_up;
mod takeover;
mod write_faults;
