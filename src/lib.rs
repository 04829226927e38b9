//! Stampede
pub mod block;
pub mod code;
pub mod message;
pub mod partition;
pub mod record;
pub mod replay;
pub mod sale;
pub mod shard;
#[cfg(test)]
mod sim;
pub mod stream;
pub mod types;
