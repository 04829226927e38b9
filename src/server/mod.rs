//! The sockets of the public port, and its pages. Never here: the meaning of a request, which the handler decides.
//!
//! A connection passes through these files in this order: [`acceptor`] accepts it, [`admission`] decides with
//! [`addresses`] whether there is a place for it, [`newcomers`] makes the place or refuses it, [`client`] is its state,
//! [`timeouts`] its deadline, [`poller`] reports readiness, [`sockets`] holds all of them, [`requests`] reads requests
//! and passes them to the handler, [`replies`] writes answers and ends connections with [`spare_buffers`].
//! [`subscribers`] are the clients of `/events`, and [`sale_events`] is what they receive.
//!
//! Pages: [`status_pages`] (`/sale`, `/sales`, health), [`product_pages`] (`/products`), [`item_pages`] (`/items`), [`art`] (generated images).

pub mod acceptor;
pub mod addresses;
pub mod admission;
pub mod art;
pub mod client;
pub mod item_pages;
pub mod newcomers;
pub mod poller;
pub mod product_pages;
pub mod replies;
pub mod requests;
pub mod sale_events;
pub mod sockets;
pub mod spare_buffers;
pub mod status_pages;
pub mod subscribers;
pub mod timeouts;
