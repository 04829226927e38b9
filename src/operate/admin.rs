//! The admin port: what operators and their tools read. A thread of its own, so that no shard ever waits for it.

use crate::config::fatal::Fatal;
use crate::operate::dashboard;
use crate::operate::prometheus::{self, CONTENT_TYPE};
use crate::operate::status::Status;
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

/// Who has taken nothing for so long is cut off: a reader that does not read, or is no more.
const PATIENCE: Duration = Duration::from_secs(10);

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

/// Serves what comes to `listener`, until the process ends. Sales last `period_s` seconds.
///
/// # Errors
/// [`Fatal::Host`]: no thread can be had.
pub fn start(listener: TcpListener, status: Arc<Status>, period_s: u32) -> Result<(), Fatal> {
    let runtime = threads::event_loop()?;
    let serve = async move {
        listener.set_nonblocking(true)?;
        let page = dashboard::routes(status.clone(), period_s);
        let router = Router::new().route("/metrics", get(scrape)).with_state(status).merge(page);
        let listener = tokio::net::TcpListener::from_std(listener)?.tap_io(|stream| {
            // Without it, who does not read is waited for until the end of time.
            let _ = SockRef::from(&*stream).set_tcp_user_timeout(Some(PATIENCE));
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
