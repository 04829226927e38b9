//! The admin port: `/metrics` and the dashboard. It has its own thread, so that no shard waits for its clients.

use crate::config::fatal::Fatal;
use crate::operate::dashboard;
use crate::operate::prometheus::{self, CONTENT_TYPE};
use crate::operate::status::Status;
use crate::system::clock::Clock;
use crate::system::threads;
use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::routing::get;
use axum::serve::ListenerExt;
use socket2::SockRef;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

/// A connection is closed if its client acknowledges no data for this long: the client is stuck or gone.
const VIEWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Listens on `address`.
///
/// # Errors
/// [`Fatal::Listen`] if the address cannot be bound.
pub fn listen(address: SocketAddr) -> Result<TcpListener, Fatal> {
    let refused = |error: io::Error| {
        Fatal::Listen(format!("the admin port {address}: {error}; set --admin-listen to another address"))
    };
    TcpListener::bind(address).map_err(refused)
}

/// Starts the thread that serves the connections of `listener` until the process ends. Sales last `period_s` seconds.
///
/// # Errors
/// [`Fatal::Host`] if the event loop or the thread cannot be created.
pub fn start(listener: TcpListener, status: Arc<Status>, clock: Clock, period_s: u32) -> Result<(), Fatal> {
    let runtime = threads::event_loop()?;
    let serve = async move {
        listener.set_nonblocking(true)?;
        let page = dashboard::routes(status.clone(), clock, period_s);
        let router = Router::new().route("/metrics", get(scrape)).with_state(status).merge(page);
        let listener = tokio::net::TcpListener::from_std(listener)?.tap_io(|stream| {
            // Without this timeout, the server would wait forever for a client that does not read.
            let _ = SockRef::from(&*stream).set_tcp_user_timeout(Some(VIEWER_TIMEOUT));
        });
        axum::serve(listener, router).await
    };
    let run = move || {
        if let Err(error) = runtime.block_on(serve) {
            tracing::warn!(%error, "the admin port is closed");
        }
    };
    threads::spawn("admin", run).map(drop)
}

async fn scrape(State(status): State<Arc<Status>>) -> ([(header::HeaderName, &'static str); 1], String) {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], prometheus::text(&status))
}
