//! Log lines on standard error. They report events of the server, not single requests.

use crate::config::settings::LogFormat;
use std::io::{IsTerminal, stderr};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Starts logging in `format`. Without a format, the lines are text on a terminal and otherwise JSON. `RUST_LOG`
/// filters the lines; its default is `info`.
pub fn start(format: Option<LogFormat>) {
    let is_terminal = stderr().is_terminal();
    let format = format.unwrap_or(if is_terminal { LogFormat::Text } else { LogFormat::Json });
    let ours = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    let lines = tracing_subscriber::fmt().with_writer(stderr).with_env_filter(ours.from_env_lossy()).with_target(false);
    match format {
        LogFormat::Text => lines.with_ansi(is_terminal).init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).init(),
    }
}
