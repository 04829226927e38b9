//! Log lines on standard error. They report events of the server, not single requests.
//!
//! A thread of its own writes them, so that no other thread waits for a reader that is slow, stuck or gone. It has a
//! queue of [`LINES_MAX`] lines. Lines that find the queue full, and lines that cannot be written, are dropped and
//! counted; a later line has the count.

use crate::config::output::PatientStream;
use crate::config::settings::LogFormat;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::cell::Cell;
use std::io::{self, IsTerminal, Write, stderr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Builder};
use std::time::Duration;
use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Maximum number of lines that wait to be written.
const LINES_MAX: usize = 4096;
/// How long the end of the process waits for the lines to be written.
const FLUSH_TIME: Duration = Duration::from_secs(1);

/// Error for logging that cannot start.
#[derive(Debug, Error)]
pub enum LoggingError {
    /// `RUST_LOG` cannot be read.
    #[error("RUST_LOG cannot be read; set it to error, warn, info, off or a filter like stampede=warn")]
    Filter,
    /// The thread cannot be started.
    #[error("the thread `log-lines` cannot be started: {0}")]
    Thread(#[from] io::Error),
}

/// A message to the thread that writes.
enum LineMessage {
    Line(Vec<u8>),
    /// All lines before it are written.
    Flush(Sender<()>),
}

static QUEUE: OnceLock<Sender<LineMessage>> = OnceLock::new();
/// Whether the lines are text on a terminal.
static IS_READ_BY_A_PERSON: AtomicBool = AtomicBool::new(false);
/// Number of dropped lines.
static DROPPED: AtomicU64 = AtomicU64::new(0);
/// Whether a thread ends the process. The lines of all other threads are dropped, so that its line is the last.
static IS_ENDING: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this thread ends the process.
    static ENDS: Cell<bool> = const { Cell::new(false) };
}

/// One log line, on its way to the queue.
struct LineWriter;

impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Some(queue) = QUEUE.get().filter(|_| !IS_ENDING.load(Ordering::Relaxed) || ENDS.get()) else {
            return Ok(line.len());
        };
        if queue.try_send(LineMessage::Line(line.to_vec())).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts logging in `format`. Without a format, the lines are text on a terminal and otherwise JSON. `RUST_LOG`
/// filters the lines; its default is `info`.
///
/// # Errors
/// `RUST_LOG` cannot be read, or the thread cannot be started.
pub fn start(format: Option<LogFormat>) -> Result<(), LoggingError> {
    let filter = std::env::var_os("RUST_LOG").unwrap_or_default().into_string().ok();
    let ours = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    let filter = filter.and_then(|text| ours.parse(text).ok());
    let filter = filter.ok_or(LoggingError::Filter)?;
    let is_terminal = stderr().is_terminal();
    let format = format.unwrap_or(if is_terminal { LogFormat::Text } else { LogFormat::Json });
    IS_READ_BY_A_PERSON.store(is_terminal && format == LogFormat::Text, Ordering::Relaxed);
    let (queue, lines) = bounded(LINES_MAX);
    Builder::new().name("log-lines".into()).spawn(move || write_lines(&lines))?;
    let _ = QUEUE.set(queue);
    let lines = tracing_subscriber::fmt().with_writer(|| LineWriter).with_env_filter(filter).with_target(false);
    match format {
        LogFormat::Text => lines.with_ansi(is_terminal).init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).init(),
    }
    Ok(())
}

/// Writes a text for a person, after the lines so far: only if standard error is a terminal and the format is text.
pub fn show(text: &str) {
    if IS_READ_BY_A_PERSON.load(Ordering::Relaxed) {
        // Without an error: a full queue drops the text as it drops lines.
        let _ = LineWriter.write(text.as_bytes());
    }
}

/// Writes the lines of the queue until the process ends.
fn write_lines(lines: &Receiver<LineMessage>) {
    let mut reported = 0;
    for message in lines {
        match message {
            LineMessage::Line(line) => match PatientStream(stderr()).write_all(&line) {
                Err(_) => _ = DROPPED.fetch_add(1, Ordering::Relaxed),
                Ok(()) => {
                    let dropped = DROPPED.load(Ordering::Relaxed);
                    if dropped > reported {
                        reported = dropped;
                        tracing::warn!(dropped, "log lines were dropped: standard error did not take them");
                    }
                }
            },
            LineMessage::Flush(done) => _ = done.send(()),
        }
    }
}

/// Waits until the lines so far are written, but not long.
pub fn flush() {
    let (done, is_done) = bounded(1);
    if QUEUE.get().is_some_and(|queue| queue.send_timeout(LineMessage::Flush(done), FLUSH_TIME).is_ok()) {
        let _ = is_done.recv_timeout(FLUSH_TIME);
    }
}

/// Makes this thread the one that ends the process: it writes the last line. If another thread does that already, waits
/// for the end.
pub fn begin_end() {
    if IS_ENDING.swap(true, Ordering::Relaxed) && !ENDS.get() {
        loop {
            thread::park();
        }
    }
    ENDS.set(true);
}
