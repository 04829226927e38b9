//! The admin port: what operators and their tools read. A thread of its own, so that no shard ever waits for it.

use crate::fatal::Fatal;
use crate::metrics::{self, CONTENT_TYPE};
use crate::postgres::event_loop;
use crate::status::Status;
use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::routing::get;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

/// Listens on `address`.
///
/// # Errors
/// [`Fatal::Listen`].
pub fn listen(address: SocketAddr) -> Result<TcpListener, Fatal> {
    let refused = |error: io::Error| {
        Fatal::Listen(format!("the admin port {address}: {error}; set --admin-listen to another address"))
    };
    TcpListener::bind(address).map_err(refused)
}

/// Serves what comes to `listener`, until the process ends.
///
/// # Errors
/// [`Fatal::Host`]: no thread can be had.
pub fn start(listener: TcpListener, status: Arc<Status>) -> Result<(), Fatal> {
    let runtime = event_loop()?;
    let serve = async move {
        listener.set_nonblocking(true)?;
        let router = Router::new().route("/metrics", get(scrape)).with_state(status);
        axum::serve(tokio::net::TcpListener::from_std(listener)?, router).await
    };
    let run = move || {
        if let Err(error) = runtime.block_on(serve) {
            tracing::warn!(%error, "the admin port is closed");
        }
    };
    let thread = thread::Builder::new().name("admin".into()).spawn(run);
    thread.map(drop).map_err(|error| Fatal::Host(format!("no thread for the admin port: {error}")))
}

async fn scrape(State(status): State<Arc<Status>>) -> ([(header::HeaderName, &'static str); 1], String) {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], metrics::text(&status))
}
