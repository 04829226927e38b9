//! `stampede log dump`: prints records as lines of JSON.

use crate::config::fatal::Fatal;
use crate::config::output::complain;
use crate::config::settings::Config;
use crate::http::route::rfc3339;
use crate::log::block::StreamId;
use crate::log::losses::Persisted;
use crate::log_tool::arguments::Filter;
use crate::log_tool::scan::LogScan;
use crate::log_tool::unit_names::UnitNames;
use crate::plan::planned_sale::LoadedPlan;
use crate::sale::ids::{ItemId, Seq, UserId};
use crate::sale::record::{LogEvent, Record};
use crate::system::clock::Clock;
use serde::Serialize;
use std::io::{self, ErrorKind, Write};
use uuid::Uuid;

/// A line of the output. The time is the first field, so that sorting the lines by it puts them in order of time.
#[derive(Serialize)]
struct DumpLine {
    time: String,
    epoch: u32,
    shard: u16,
    log: &'static str,
    seq: Seq,
    sale_id: u32,
    event: &'static str,
    #[serde(flatten)]
    about: DumpSubject,
}

#[derive(Default, Serialize)]
struct DumpSubject {
    #[serde(skip_serializing_if = "Option::is_none")]
    item_id: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    product_id: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by_ms: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    items: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    opens_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    closes_at: Option<String>,
}

impl DumpLine {
    fn new(stream: &StreamId, seq: Seq, record: &Record, names: Option<&UnitNames>) -> DumpLine {
        let (event, mut about) = about(record);
        let unit = names.zip(about.item_id).and_then(|(names, item)| names.unit(record.sale, ItemId(item)));
        about.product_id = unit.map(|unit| unit.product.id.as_str());
        about.unit = unit.and_then(|unit| unit.name);
        let (epoch, shard, log) = (stream.epoch, stream.shard, stream.log.name());
        DumpLine { time: rfc3339(record.unix_ms), epoch, shard, log, seq, sale_id: record.sale.0, event, about }
    }
}

fn about(record: &Record) -> (&'static str, DumpSubject) {
    let of = |item: ItemId, user: UserId| DumpSubject {
        item_id: Some(item.0),
        user_id: Some(user.0),
        ..DumpSubject::default()
    };
    match record.event {
        LogEvent::SaleOpened { items, user_limit, times, .. } => {
            let [opens_at, closes_at] =
                [times.map(|times| rfc3339(times.opens_ms)), times.map(|times| rfc3339(times.closes_ms))];
            let (items, user_limit) = (Some(items), Some(user_limit));
            ("sale-opened", DumpSubject { items, user_limit, opens_at, closes_at, ..DumpSubject::default() })
        }
        LogEvent::RestoredFromPostgres => ("taken-over", DumpSubject::default()),
        LogEvent::Checkout { item, user, code, ttl_ms, key } => {
            let expires_at = Some(rfc3339(record.unix_ms.saturating_add(ttl_ms.into())));
            let (code, idempotency_key) = (Some(code.to_string()), Some(key).filter(|key| !key.is_nil()));
            ("checkout", DumpSubject { code, expires_at, idempotency_key, ..of(item, user) })
        }
        LogEvent::Extended { item, user, code, by_ms } => {
            ("extended", DumpSubject { code: Some(code.to_string()), by_ms: Some(by_ms), ..of(item, user) })
        }
        LogEvent::Released { item, user, code, reason } => {
            ("released", DumpSubject { code: Some(code.to_string()), reason: Some(reason.name()), ..of(item, user) })
        }
        LogEvent::Purchase { item, user, code, key } => {
            let idempotency_key = Some(key).filter(|key| !key.is_nil());
            ("purchase", DumpSubject { code: Some(code.to_string()), idempotency_key, ..of(item, user) })
        }
        LogEvent::Refused { item, user, reason } => {
            let name = if item.is_some() { reason.name() } else { reason.name_of_any() };
            let (item_id, user_id) = (item.map(|item| item.0), Some(user.0));
            ("refused", DumpSubject { item_id, user_id, reason: Some(name), ..DumpSubject::default() })
        }
    }
}

/// The reason why a dump ends early.
enum DumpStopped {
    /// The log cannot be read, or has lost something durable.
    Fatal(Fatal),
    /// The output cannot be written.
    Output(io::Error),
}

impl From<Fatal> for DumpStopped {
    fn from(fatal: Fatal) -> Self {
        DumpStopped::Fatal(fatal)
    }
}

impl From<io::Error> for DumpStopped {
    fn from(error: io::Error) -> Self {
        DumpStopped::Output(error)
    }
}

/// Writes every record that matches the filter to `out`, while the log is read. With a `plan`, records about an item name
/// its product and its unit. Ends without an error if the reader of `out` closes it.
///
/// # Errors
/// [`Fatal::DataDir`]: the log cannot be read. [`Fatal::Damaged`]: something durable is lost; all other records have
/// been written. [`Fatal::Host`]: `out` cannot be written.
pub fn dump(config: &Config, filter: &Filter, plan: Option<LoadedPlan>, out: &mut impl Write) -> Result<(), Fatal> {
    match write_all(config, filter, plan.map(UnitNames::new), out) {
        Ok(()) => Ok(()),
        // The reader has closed the pipe, such as `head`.
        Err(DumpStopped::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(DumpStopped::Output(error)) => Err(Fatal::Host(format!("standard output cannot be written: {error}"))),
        Err(DumpStopped::Fatal(fatal)) => Err(fatal),
    }
}

fn write_all(
    config: &Config,
    filter: &Filter,
    mut names: Option<UnitNames>,
    out: &mut impl Write,
) -> Result<(), DumpStopped> {
    let mut scan = LogScan::new(&config.data_dir)?;
    scan.read(|stream, seq, record| {
        if let Some(names) = &mut names {
            names.note(record);
        }
        if filter.takes(record) {
            let line = DumpLine::new(stream, seq, record, names.as_ref());
            serde_json::to_writer(&mut *out, &line).map_err(io::Error::from)?;
            out.write_all(b"\n")?;
        }
        Ok::<(), DumpStopped>(())
    })?;
    out.flush()?;
    if let Some(complaint) = names.and_then(|names| names.complaint()) {
        complain(&format!("stampede: {complaint}"));
    }
    // The command does not ask the database, so it cannot know whether the database has what is lost.
    scan.judge(config, Clock::start().now(), &Persisted::NoDatabase)?;
    Ok(())
}
