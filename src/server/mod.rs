//! The sockets of the public port, and its pages. Never here: the meaning of a request, which the handler decides.
//!
//! A connection passes through these files in this order: [`acceptor`] accepts it, [`client`] is its state, [`poller`]
//! reports readiness, [`sockets`] holds all of them, [`requests`] reads requests and passes them to the handler,
//! [`replies`] writes answers and ends connections. [`subscribers`] are the clients of `/events`.
//!
//! Pages: [`status_pages`] (`/sale`, health), [`item_pages`] (`/items`), [`art`] (generated images).

pub mod acceptor;
pub mod art;
pub mod client;
pub mod item_pages;
pub mod poller;
pub mod replies;
pub mod requests;
pub mod sockets;
pub mod status_pages;
pub mod subscribers;
