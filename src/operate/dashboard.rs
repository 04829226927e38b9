//! The page at the root of the admin port, and the stream of samples that it lives on.
//!
//! Samples are taken once for everybody and kept for five minutes. A viewer has no queue: it is sent what is newer than
//! what it was sent last, so that one that reads slowly costs no memory, and one that does not read is cut off by the
//! kernel (see [`crate::operate::admin`]).

use crate::operate::sampler::{Sample, Sampler};
use crate::operate::status::{SaleEnded, Status};
use crate::system::clock::Clock;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use serde::Serialize;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

/// How often a sample is taken.
const SAMPLE_TIME: Duration = Duration::from_secs(1);
/// Five minutes.
const SAMPLES_KEPT: usize = 300;
/// More viewers at once are refused.
const VIEWERS_MAX: usize = 64;

/// Nothing from anywhere else, nothing written into the page, and the page in no other.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// By path.
const FILES: [(&str, &str, &str); 5] = [
    ("/", HTML, include_str!("dashboard_files/index.html")),
    ("/dashboard.css", CSS, include_str!("dashboard_files/dashboard.css")),
    ("/dashboard.js", JAVASCRIPT, include_str!("dashboard_files/dashboard.js")),
    ("/chart.js", JAVASCRIPT, include_str!("dashboard_files/chart.js")),
    ("/icon.svg", SVG, include_str!("dashboard_files/icon.svg")),
];

/// What viewers share.
struct Desk {
    status: Arc<Status>,
    about: PageFacts,
    samples: watch::Sender<Samples>,
}

/// What stays as it is while the process lives.
#[derive(Serialize)]
struct PageFacts {
    version: &'static str,
    /// When it began to serve operators, in milliseconds since the Unix epoch. Tells one process from the next.
    began_ms: u64,
    period_s: u32,
}

#[derive(Default)]
struct Samples {
    kept: VecDeque<Sample>,
    /// How many have ever been taken.
    taken: usize,
}

/// What a viewer is sent.
#[derive(Serialize)]
struct News<'a> {
    process: &'a PageFacts,
    ended: Vec<SaleEnded>,
    samples: Vec<&'a Sample>,
}

/// The page's routes, for sales of `period_s` seconds. To be called on the event loop that is to take samples.
pub fn routes(status: Arc<Status>, period_s: u32) -> Router {
    let clock = Clock::start();
    let about = PageFacts { version: env!("CARGO_PKG_VERSION"), began_ms: clock.now().unix_ms, period_s };
    let desk = Arc::new(Desk { status, about, samples: watch::Sender::default() });
    tokio::spawn(take_samples(desk.clone(), clock));
    let page = FILES.iter().fold(Router::new(), |page, (path, kind, text)| {
        let head = [
            (header::CONTENT_TYPE, *kind),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            // The next version's page may be another.
            (header::CACHE_CONTROL, "no-cache"),
        ];
        page.route(path, get(move || async move { (head, *text) }))
    });
    page.route("/events", get(events)).with_state(desk)
}

async fn take_samples(desk: Arc<Desk>, clock: Clock) {
    let mut sampler = Sampler::new(desk.status.clone(), clock.now());
    let mut ticks = interval(SAMPLE_TIME);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let sample = sampler.sample(clock.now());
        desk.samples.send_modify(|samples| {
            if samples.kept.len() == SAMPLES_KEPT {
                samples.kept.pop_front();
            }
            samples.kept.push_back(sample);
            samples.taken += 1;
        });
    }
}

/// Everything that is kept, then each sample when it is taken.
async fn events(State(desk): State<Arc<Desk>>) -> Response {
    if desk.samples.receiver_count() >= VIEWERS_MAX {
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], "There are too many viewers.\n")
            .into_response();
    }
    let mut viewer = desk.samples.subscribe();
    viewer.mark_changed();
    let news = stream::unfold((desk, viewer, 0), |(desk, mut viewer, seen)| async move {
        viewer.changed().await.ok()?;
        let (text, seen) = desk.news(&viewer.borrow_and_update(), seen);
        Some((Ok::<_, Infallible>(Event::default().data(text)), (desk, viewer, seen)))
    });
    Sse::new(news).into_response()
}

impl Desk {
    /// What is newer than the first `seen` samples, and how many it has seen then.
    fn news(&self, samples: &Samples, seen: usize) -> (String, usize) {
        let first = samples.kept.len().saturating_sub(samples.taken - seen);
        let news = News {
            process: &self.about,
            ended: self.status.sales_ended(),
            samples: samples.kept.range(first..).collect(),
        };
        (serde_json::to_string(&news).expect("numbers and names"), samples.taken)
    }
}
