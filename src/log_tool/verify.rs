//! `stampede log verify`: checks whether the log is sound, and whether the database fits it.

use crate::config::fatal::Fatal;
use crate::config::settings::Config;
use crate::log::block::LogKind;
use crate::log::losses::DamagedBeginning;
use crate::log::replay::Replay;
use crate::log::stream::Ending;
use crate::log_tool::postgres_view::PostgresView;
use crate::log_tool::scan::{LogScan, ScannedStream, many};
use crate::postgres::owner_row::known_position;
use crate::sale::ids::Seq;
use crate::sale::partition::Partition;
use crate::sale::record::LogEvent;
use crate::system::clock::Clock;

/// Reads the whole log, and appends one line for each stream and a conclusion to `report`.
///
/// # Errors
/// The error with which a start of the server would refuse.
pub fn verify(config: &Config, report: &mut String) -> Result<(), Fatal> {
    let mut scan = LogScan::new(&config.data_dir)?;
    let rules = config.rules.with_period(scan.control.sale_period_s);
    let now = Clock::start().now();
    let mut replay =
        Replay::new(Partition::new(1), rules, (scan.control.longest_hold_ms, scan.control.sale_period_s), now);
    scan.read(|id, seq, record| {
        if id.log == LogKind::Purchases {
            replay.add(id, seq, record);
        }
        Ok::<(), Fatal>(())
    })?;
    let before = scan.records();
    let view_result = PostgresView::ask(config)?;
    // Read the records that were written meanwhile, for two reasons: the log then has at least the records of the
    // database, and a grant in one stream may need a release in another stream that was read before it.
    scan.read(|_, _, record| {
        if matches!(record.event, LogEvent::Released { .. }) {
            let _ = replay.record(record);
        }
        Ok::<(), Fatal>(())
    })?;
    let is_growing = scan.records() > before;
    let view = view_result.as_ref().and_then(|view_result| view_result.as_ref().ok());
    let judged = scan.judge(config, now, &PostgresView::persisted(config, view));
    let damaged = judged.as_deref().unwrap_or_default();
    let fits = view.map_or(Ok(()), |view| view.fit(config, &scan, damaged));
    let view = view.filter(|_| fits.is_ok());
    scan.streams.iter().for_each(|stream| *report += &line(stream, view));
    *report += &not_needed(&scan, damaged);
    let sound = judged.and_then(|_| replay.finish().map(drop).map_err(Fatal::Damaged));
    let (streams, records) = (many(scan.streams.len() as u64, "stream"), many(scan.records(), "record"));
    *report += &match &sound {
        Ok(()) if scan.streams.iter().any(|stream| stream.losses().is_some()) => {
            format!("Sound: {records} in {streams}, and nothing that is needed is missing.\n")
        }
        Ok(()) => format!("Sound: {records} in {streams}, and nothing durable is missing.\n"),
        Err(why) => format!("Not sound: {why}.\n"),
    };
    if is_growing {
        *report += "A server is writing to the log.\n";
    }
    *report += &match (&view_result, &fits) {
        (None, _) => String::new(),
        (Some(Err(why)), _) => format!("Postgres was not checked: {why}.\n"),
        (Some(Ok(_)), Err(why)) => format!("Postgres does not fit the log: {why}.\n"),
        (Some(Ok(view)), Ok(())) => {
            let place = &view.place;
            match scan.streams.iter().map(|stream| behind(stream, view)).sum::<Seq>() {
                0 => format!("Postgres ({place}) has all records.\n"),
                behind => {
                    format!("Postgres ({place}) lacks {}; the log still has them.\n", many(behind, "record"))
                }
            }
        }
    };
    sound.and(fits)
}

/// Returns a line for each damage that does not stop a start, and one for the segments that a start has set aside.
fn not_needed(scan: &LogScan, damaged: &[DamagedBeginning]) -> String {
    let mut lines: String = damaged
        .iter()
        .map(|beginning| format!("Not needed: {}; the next start renames them to *.damaged.\n", beginning.describe()))
        .collect();
    let attempts = scan.streams.iter().filter(|stream| stream.id.log == LogKind::Attempts);
    for (stream, losses) in attempts.filter_map(|stream| Some((stream, stream.losses()?))) {
        let (id, lost, damage) = (stream.id, many(stream.lost(), "record"), &losses.first);
        lines += &format!("Not needed: {id} lacks {lost}, because {damage}.\n");
    }
    if let Some(first) = scan.set_aside.first() {
        let files = many(scan.set_aside.len() as u64, "file");
        lines += &format!("Set aside by an earlier start, and not needed: {files}, from {first} on.\n");
    }
    lines
}

/// Returns the line of a stream.
fn line(stream: &ScannedStream, view: Option<&PostgresView>) -> String {
    let (end, first) = (stream.end(), stream.first());
    let records = many(end.records - first - stream.lost(), "record");
    let segments = many(stream.names.len() as u64, "segment");
    let mut line = format!("{}: {records} in {segments}", stream.id);
    if first > 0 {
        line += &format!(", older records removed: {first}");
    }
    line += &match (stream.losses(), end.ending) {
        (Some(losses), _) => format!(", DAMAGED: {}", losses.first),
        (None, Ending::Sealed) => ", sealed".into(),
        (None, Ending::Clean) => ", clean end".into(),
        (None, Ending::Torn) => ", torn end: the last flush is incomplete and was never acknowledged".into(),
    };
    if let Some(view) = view {
        let position = known_position(view.positions(), &stream.id).unwrap_or(0);
        line += &format!("; Postgres has {position}");
        line += &match behind(stream, view) {
            0 => String::new(),
            behind => format!(", lacks {behind}"),
        };
    }
    line + "\n"
}

/// Returns the number of a stream's records that the database lacks and the log still has.
fn behind(stream: &ScannedStream, view: &PostgresView) -> Seq {
    let position = known_position(view.positions(), &stream.id).unwrap_or(0);
    stream.end().records.saturating_sub(position.max(stream.first()))
}
