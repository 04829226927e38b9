//! Exemplars: a real Prometheus finds the traces of slow requests behind the latencies.

use crate::harness::{Client, LONG_SALE, Server, skipped, wait_until};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

const ONE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const OTHER: &str = "0af7651916cd43dd8448eb211c80319c";
const UNSAMPLED: &str = "1af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "00f067aa0ba902b7";

struct Prometheus {
    process: Child,
    address: SocketAddr,
}

impl Prometheus {
    /// Starts a Prometheus that scrapes the server every second.
    fn start(dir: &Path, admin: SocketAddr) -> Prometheus {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let scrape = format!(
            "scrape_configs: [{{job_name: s, scrape_interval: 1s, static_configs: [{{targets: ['{admin}']}}]}}]"
        );
        std::fs::write(dir.join("prometheus.yml"), scrape).unwrap();
        let process = Command::new("prometheus")
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=metrics", "--enable-feature=exemplar-storage"])
            .arg(format!("--web.listen-address={address}"))
            .current_dir(dir)
            .stderr(Stdio::null())
            .spawn();
        Prometheus { process: process.unwrap(), address }
    }

    /// Returns what Prometheus says of the exemplars of the latencies.
    fn exemplars(&self) -> String {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let (start, end) = (now_s - 3600, now_s + 3600);
        let query =
            format!("GET /api/v1/query_exemplars?query=stampede_request_seconds_bucket&start={start}&end={end}");
        let answer = Client::connect(self.address).and_then(|mut client| client.try_request(&query, ""));
        answer.map(|answer| answer.body).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A checkout that waits for the disk, a refusal that is answered at once, and requests without a sampled trace.
#[test]
fn prometheus_finds_the_traces_behind_the_latencies() {
    if Command::new("prometheus").arg("--version").output().is_err() {
        return skipped("exemplars", "no prometheus");
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "1"]].concat());
    let mut client = server.connect();
    let mut ask = |line: &str, trace: &str, flags| {
        let traced = format!("Traceparent: 00-{trace}-{SPAN}-{flags}\r\n");
        client.try_request(line, &traced).unwrap().status
    };
    assert_eq!(ask("POST /checkout?user_id=1&item_id=1", ONE, "01"), 200);
    assert_eq!(ask("POST /checkout?user_id=1&item_id=2", UNSAMPLED, "00"), 200);
    assert_eq!(ask("GET /items/1", OTHER, "01"), 200);
    assert_eq!(client.reserve(1, 3).len(), 36);
    let prometheus = Prometheus::start(dir.path(), server.admin);
    wait_until("Prometheus has both traces", || {
        let found = prometheus.exemplars();
        [ONE, OTHER].iter().all(|trace| found.contains(trace))
    });
    let found: serde_json::Value = serde_json::from_str(&prometheus.exemplars()).unwrap();
    let mut traces: Vec<_> = found["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|series| {
            let exemplar = &series["exemplars"][0];
            assert!(exemplar["value"].as_str().unwrap().parse::<f64>().unwrap() < 10.0, "{exemplar}");
            [&series["seriesLabels"]["route"], &exemplar["labels"]["trace_id"], &exemplar["labels"]["span_id"]]
                .map(|text| text.as_str().unwrap().to_owned())
        })
        .collect();
    traces.sort();
    assert_eq!(traces, [["/checkout", ONE, SPAN], ["/items/{id}", OTHER, SPAN]]);
}
