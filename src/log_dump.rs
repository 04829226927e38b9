//! `stampede log dump`: records as lines of JSON.

use crate::block::StreamId;
use crate::config::Config;
use crate::fatal::Fatal;
use crate::log_command::Filter;
use crate::record::{Event, Record};
use crate::route::rfc3339;
use crate::survey::Survey;
use crate::types::{ItemId, Seq, UserId};
use serde::Serialize;
use std::io::{self, ErrorKind, Write};
use uuid::Uuid;

/// A record, as a person reads it. The time comes first: lines that are sorted are in order of time.
#[derive(Serialize)]
struct Line {
    time: String,
    epoch: u32,
    shard: u16,
    log: &'static str,
    seq: Seq,
    sale_id: u32,
    event: &'static str,
    #[serde(flatten)]
    about: About,
}

#[derive(Default, Serialize)]
struct About {
    #[serde(skip_serializing_if = "Option::is_none")]
    item_id: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    items: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_limit: Option<u32>,
}

impl Line {
    fn new(stream: &StreamId, seq: Seq, record: &Record) -> Line {
        let (event, about) = about(record);
        let (epoch, shard, log) = (stream.epoch, stream.shard, stream.log.name());
        Line { time: rfc3339(record.unix_ms), epoch, shard, log, seq, sale_id: record.sale.0, event, about }
    }
}

fn about(record: &Record) -> (&'static str, About) {
    let of = |item: ItemId, user: UserId| About { item_id: Some(item.0), user_id: Some(user.0), ..About::default() };
    match record.event {
        Event::SaleOpened { items, user_limit } => {
            ("sale-opened", About { items: Some(items), user_limit: Some(user_limit), ..About::default() })
        }
        Event::TakenOver => ("taken-over", About::default()),
        Event::Checkout { item, user, code, ttl_ms } => {
            let expires_at = Some(rfc3339(record.unix_ms.saturating_add(ttl_ms.into())));
            ("checkout", About { code: Some(code.to_string()), expires_at, ..of(item, user) })
        }
        Event::Released { item, user, code, reason } => {
            ("released", About { code: Some(code.to_string()), reason: Some(reason.name()), ..of(item, user) })
        }
        Event::Purchase { item, user, code, key } => {
            let idempotency_key = Some(key).filter(|key| !key.is_nil());
            ("purchase", About { code: Some(code.to_string()), idempotency_key, ..of(item, user) })
        }
        Event::Refused { item, user, reason } => ("refused", About { reason: Some(reason.name()), ..of(item, user) }),
    }
}

/// Why a dump has ended early.
enum Stopped {
    Fatal(Fatal),
    /// Of what it is written to.
    Output(io::Error),
}

impl From<Fatal> for Stopped {
    fn from(fatal: Fatal) -> Self {
        Stopped::Fatal(fatal)
    }
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Stopped::Output(error)
    }
}

/// Writes every record that the filter takes to `out`, as it is read.
///
/// # Errors
/// [`Fatal::DataDir`]; [`Fatal::Damaged`], after all that can be read.
pub fn dump(config: &Config, filter: &Filter, out: &mut impl Write) -> Result<(), Fatal> {
    match write_all(config, filter, out) {
        Ok(()) => Ok(()),
        // Whoever was reading has seen enough.
        Err(Stopped::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(Stopped::Output(error)) => Err(Fatal::Host(format!("standard output cannot be written: {error}"))),
        Err(Stopped::Fatal(fatal)) => Err(fatal),
    }
}

fn write_all(config: &Config, filter: &Filter, out: &mut impl Write) -> Result<(), Stopped> {
    let mut survey = Survey::new(&config.data_dir)?;
    for stream in &mut survey.streams {
        stream.read(|stream, seq, record| {
            if filter.takes(record) {
                serde_json::to_writer(&mut *out, &Line::new(stream, seq, record)).map_err(io::Error::from)?;
                out.write_all(b"\n")?;
            }
            Ok::<(), Stopped>(())
        })?;
    }
    out.flush()?;
    Ok(survey.judge()?)
}
