//! The dashboard: the page at the root of the admin port, and `/events`, the stream of samples that the page shows.
//!
//! One sample per second is taken for all viewers and kept for five minutes. A viewer has no queue: each event contains
//! the samples that are newer than the last one sent, so a slow viewer costs no memory. The kernel closes the
//! connection of a viewer that does not read (see [`crate::operate::admin`]).

use crate::operate::sampler::{Sample, Sampler};
use crate::operate::status::{EndedSale, Status};
use crate::plan::planned_sale::LoadedPlan;
use crate::sale::sale_schedule::SaleSchedule;
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

/// Time between two samples.
const SAMPLE_TIME: Duration = Duration::from_secs(1);
/// Number of samples kept: five minutes.
const SAMPLES_KEPT: usize = 300;
/// Maximum number of connected viewers; another one gets 503.
pub const VIEWERS_MAX: usize = 64;

/// Content security policy: no content from other sites, no inline scripts or styles, and no embedding in other pages.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// The page's files: path, content type, content.
const FILES: [(&str, &str, &str); 5] = [
    ("/", HTML, include_str!("dashboard_files/index.html")),
    ("/dashboard.css", CSS, include_str!("dashboard_files/dashboard.css")),
    ("/dashboard.js", JAVASCRIPT, include_str!("dashboard_files/dashboard.js")),
    ("/chart.js", JAVASCRIPT, include_str!("dashboard_files/chart.js")),
    ("/icon.svg", SVG, include_str!("dashboard_files/icon.svg")),
];

/// State shared by all viewers.
struct DashboardState {
    status: Arc<Status>,
    about: PageFacts,
    samples: watch::Sender<Samples>,
}

/// Facts about the process that do not change.
#[derive(Serialize)]
struct PageFacts {
    version: &'static str,
    /// Time at which the process began to serve the admin port, in milliseconds since the Unix epoch. The page detects
    /// a new process by it.
    began_ms: u64,
}

/// The newest samples.
#[derive(Default)]
struct Samples {
    kept: VecDeque<Sample>,
    /// Number of samples taken since the start, including those no longer kept.
    taken: usize,
}

/// Content of one event for one viewer.
#[derive(Serialize)]
struct DashboardEvent<'a> {
    process: &'a PageFacts,
    ended: Vec<EndedSale>,
    samples: Vec<&'a Sample>,
}

/// Returns the routes of the dashboard, for the sales of `schedule`, whose names are in `plan`. Starts taking samples on the
/// current event loop.
pub fn routes(status: Arc<Status>, clock: Clock, schedule: SaleSchedule, plan: Option<LoadedPlan>) -> Router {
    let about = PageFacts { version: env!("CARGO_PKG_VERSION"), began_ms: clock.now().unix_ms };
    let state = Arc::new(DashboardState { status, about, samples: watch::Sender::default() });
    let sampler = Sampler::new(state.status.clone(), schedule, plan, clock.now());
    tokio::spawn(take_samples(state.clone(), clock, sampler));
    let page = FILES.iter().fold(Router::new(), |page, (path, kind, text)| {
        let head = [
            (header::CONTENT_TYPE, *kind),
            (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            // The next version may have another page.
            (header::CACHE_CONTROL, "no-cache"),
        ];
        page.route(path, get(move || async move { (head, *text) }))
    });
    page.route("/events", get(events)).with_state(state)
}

async fn take_samples(state: Arc<DashboardState>, clock: Clock, mut sampler: Sampler) {
    let mut ticks = interval(SAMPLE_TIME);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let sample = sampler.sample(state.samples.receiver_count() > 0, clock.now());
        state.samples.send_modify(|samples| {
            if samples.kept.len() == SAMPLES_KEPT {
                samples.kept.pop_front();
            }
            samples.kept.push_back(sample);
            samples.taken += 1;
        });
    }
}

/// Streams the kept samples, then each new sample.
async fn events(State(state): State<Arc<DashboardState>>) -> Response {
    if state.samples.receiver_count() >= VIEWERS_MAX {
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], "Too many dashboards are open.\n")
            .into_response();
    }
    let mut viewer = state.samples.subscribe();
    viewer.mark_changed();
    let next_event = stream::unfold((state, viewer, 0), |(state, mut viewer, seen)| async move {
        viewer.changed().await.ok()?;
        let (text, seen) = state.next_event(&viewer.borrow_and_update(), seen);
        Some((Ok::<_, Infallible>(Event::default().data(text)), (state, viewer, seen)))
    });
    Sse::new(next_event).into_response()
}

impl DashboardState {
    /// Returns the event for a viewer that has received the first `seen` samples, and its new value of `seen`.
    fn next_event(&self, samples: &Samples, seen: usize) -> (String, usize) {
        let first = samples.kept.len().saturating_sub(samples.taken - seen);
        let next_event = DashboardEvent {
            process: &self.about,
            ended: self.status.ended_sales(),
            samples: samples.kept.range(first..).collect(),
        };
        (serde_json::to_string(&next_event).expect("numbers and names"), samples.taken)
    }
}
