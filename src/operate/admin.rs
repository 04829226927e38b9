//! The admin port: `/metrics` and the dashboard. It has its own thread, so that no shard waits for its clients.
//!
//! Its clients are not trusted with the file descriptors of the process: the number of connections is limited, and a
//! connection that makes no progress is closed. They are not trusted with the names of this port either, see
//! `host_names`.

use crate::config::fatal::Fatal;
use crate::config::settings::Config;
use crate::operate::dashboard::{self, VIEWERS_MAX};
use crate::operate::host_names::HostNames;
use crate::operate::prometheus::{self, CONTENT_TYPE};
use crate::operate::status::Status;
use crate::system::clock::Clock;
use crate::system::host::ADMIN_CONNECTIONS_MAX;
use crate::system::threads;
use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::time::sleep;

/// A connection is closed if its client sends no whole request head for this long, also between two requests. It is
/// short, so that scrapes get their turn behind many idle connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection is closed if its client acknowledges no data for this long: the client is stuck or gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a connection could not be accepted, for example because no file descriptor is left.
const ACCEPT_RETRY_TIME: Duration = Duration::from_millis(100);
/// Time between two log lines about the maximum of connections.
const FULL_LINE_TIME: Duration = Duration::from_secs(60);

// If all viewers are connected, there is still room for scrapes and for the files of the page.
const _: () = assert!(VIEWERS_MAX + 32 <= ADMIN_CONNECTIONS_MAX);

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

/// Starts the thread that serves the connections of `listener` until the process ends.
///
/// # Errors
/// [`Fatal::Host`] if the event loop or the thread cannot be created.
pub fn start(listener: TcpListener, status: Arc<Status>, clock: Clock, config: &Config) -> Result<(), Fatal> {
    let runtime = threads::event_loop()?;
    let (schedule, plan, names) = (config.rules.schedule, config.plan, HostNames::new(&config.admin_hosts));
    let serve = async move {
        listener.set_nonblocking(true)?;
        let page = dashboard::routes(status.clone(), clock.clone(), schedule, plan);
        let router = Router::new().route("/metrics", get(scrape)).with_state((status, clock)).merge(page);
        let router = router.layer(from_fn_with_state(Arc::new(names), HostNames::check));
        accept(tokio::net::TcpListener::from_std(listener)?, router).await
    };
    let run = move || {
        if let Err(error) = runtime.block_on(serve) {
            tracing::warn!(%error, "the admin port is closed");
        }
    };
    threads::spawn("admin", run).map(drop)
}

/// Accepts and serves connections for ever. If as many connections are open as are allowed, others wait in the kernel's
/// queue.
async fn accept(listener: tokio::net::TcpListener, router: Router) -> io::Result<()> {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let places = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
    let mut last_line: Option<Instant> = None;
    loop {
        if places.available_permits() == 0 && last_line.is_none_or(|last| last.elapsed() > FULL_LINE_TIME) {
            last_line = Some(Instant::now());
            let connections = ADMIN_CONNECTIONS_MAX;
            tracing::warn!(connections, "the admin port has its maximum of connections: others wait");
        }
        let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_RETRY_TIME).await;
            continue;
        };
        // Without this timeout, the server would wait forever for a client that does not read.
        let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(SEND_TIMEOUT));
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        tokio::spawn(async move {
            // An error concerns only this connection.
            let _ = connection.await;
            drop(place);
        });
    }
}

async fn scrape(
    State((status, clock)): State<(Arc<Status>, Clock)>,
) -> ([(header::HeaderName, &'static str); 1], String) {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], prometheus::text(&status, clock.now().unix_ms))
}
