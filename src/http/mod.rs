//! Turns bytes into requests, and outcomes into answers, pure. Never here: sockets.
//!
//! A request passes through in this order: [`connection`] collects bytes and keeps deadlines, [`head`] parses a request
//! head with the help of [`authority`], [`body`] skips a body, [`origin`] decides whether a web page may send it,
//! [`route`] turns the request into a command and later the outcome into an answer, and [`response`] renders it.
//! [`query`] reads parameters, and [`pages`] has the documents that can be asked for.
//! [`site`] says what the server offers, and [`shop`] has the page for people. [`byte_text`] writes the bytes of a connection
//! that an upgrade hands over.
//!
//! [`operation`] lists all operations with all their answers, and [`problem`] all refusals; the status codes of the
//! public port are in these two files and nowhere else. [`bodies`] and [`receipt`] have the JSON bodies, [`openapi`]
//! the description made from all of these.

pub mod authority;
pub mod bodies;
pub mod body;
pub mod byte_text;
pub mod connection;
pub mod head;
pub mod openapi;
pub mod operation;
pub mod origin;
pub mod pages;
pub mod problem;
pub mod query;
pub mod receipt;
pub mod response;
pub mod route;
pub mod shop;
pub mod site;
