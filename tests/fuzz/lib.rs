//! The targets and what they share with the tests.

#[path = "../hostile/conversation.rs"]
mod conversation;
#[path = "../hostile/second_parser.rs"]
mod second_parser;
pub mod targets;
