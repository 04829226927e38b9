//! The fuzz targets, and the modules that they share with the tests.

#[path = "../hostile/conversation.rs"]
mod conversation;
#[path = "../hostile/second_parser.rs"]
mod second_parser;
pub mod targets;
