//! The rules for Prometheus and the Grafana dashboard, without a server.

use crate::harness::{in_repository, repository_text, skipped};
use std::collections::BTreeMap;
use std::process::Command;

const OBSERVE: &str = "tuning/observe";

fn text(file: &str) -> String {
    repository_text(&format!("{OBSERVE}/{file}"))
}

/// Returns the part of each line of `text` behind `key`.
fn values<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| line.trim().strip_prefix(key))
}

/// Returns how often the alerts of each name fire and are silent in the cases of `alerts-test.yml`.
fn cases(text: &str) -> BTreeMap<&str, [u32; 2]> {
    let mut cases = BTreeMap::<_, [u32; 2]>::new();
    let mut alert = None;
    for line in text.lines().map(str::trim) {
        alert = line.strip_prefix("alertname: ").or(alert);
        if let (Some(expected), Some(name)) = (line.strip_prefix("exp_alerts:"), alert) {
            cases.entry(name).or_default()[usize::from(expected == " []")] += 1;
            alert = None;
        }
    }
    cases
}

#[test]
fn each_alert_fires_in_a_case_and_is_silent_in_another() {
    let (rules, tests) = (text("alerts.yml"), text("alerts-test.yml"));
    let cases = cases(&tests);
    let names: Vec<_> = values(&rules, "- alert: ").collect();
    assert!(names.len() > 15, "{names:?}");
    for name in &names {
        let found = cases.get(name).copied().unwrap_or_default();
        assert!(
            found.iter().all(|count| *count > 0),
            "{name} fires in {} cases and is silent in {}",
            found[0],
            found[1]
        );
    }
    assert_eq!(cases.len(), names.len(), "a case names an alert that does not exist: {cases:?}");
}

/// The rules give the expected alerts, also when counters and gauges start again in a new process.
#[test]
fn prometheus_takes_its_files_and_the_alerts_fire_as_they_should() {
    let promtool = |arguments: &str| {
        let output = Command::new("promtool").args(arguments.split(' ')).current_dir(in_repository(OBSERVE)).output();
        output.map(|output| {
            let said = [&output.stdout[..], &output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&said).into_owned())
        })
    };
    if promtool("--version").is_err() {
        return skipped("Prometheus's files", "no promtool");
    }
    let rules = text("alerts.yml");
    let found = format!("{} rules found", values(&rules, "- alert: ").chain(values(&rules, "- record: ")).count());
    for (arguments, expected) in [
        ("check config prometheus.yml", "SUCCESS"),
        ("check rules --lint-fatal alerts.yml", found.as_str()),
        ("test rules alerts-test.yml", "SUCCESS"),
    ] {
        let (is_good, said) = promtool(arguments).unwrap();
        assert!(is_good && said.contains(expected), "promtool {arguments}: {said}");
    }
}

/// Each panel and each query of the dashboard follow the two variables.
#[test]
fn every_panel_follows_the_data_source_and_the_instances() {
    let dashboard: serde_json::Value = serde_json::from_str(&text("dashboard.json")).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let kinds: Vec<_> =
        variables.iter().map(|variable| ["name", "type"].map(|key| variable[key].as_str().unwrap())).collect();
    assert_eq!(kinds, [["datasource", "datasource"], ["instance", "query"]]);
    assert!(variables[1]["multi"] == true && variables[1]["includeAll"] == true);
    for panel in dashboard["panels"].as_array().unwrap() {
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let metrics = query.match_indices("stampede").chain(query.match_indices("process_")).count();
            let selected = query.matches("{instance=~\"$instance\"").count();
            assert!(metrics > 0 && metrics == selected, "{}: {query}", panel["title"]);
        }
    }
}
