//! `stampede log verify`: checks whether the log is sound, and whether the database fits it.

use crate::config::fatal::Fatal;
use crate::config::settings::Config;
use crate::log::block::LogKind;
use crate::log::replay::Replay;
use crate::log::stream::Ending;
use crate::log_tool::postgres_view::PostgresView;
use crate::log_tool::scan::{LogScan, ScannedStream, many};
use crate::postgres::owner_row::known_position;
use crate::sale::ids::Seq;
use crate::sale::partition::Partition;
use crate::sale::record::LogEvent;
use crate::sale::rules::Rules;
use crate::system::clock::Clock;

/// Reads the whole log, and appends one line for each stream and a conclusion to `report`.
///
/// # Errors
/// The error with which a start of the server would refuse.
pub fn verify(config: &Config, report: &mut String) -> Result<(), Fatal> {
    let mut scan = LogScan::new(&config.data_dir)?;
    let rules = Rules { period_s: scan.control.sale_period_s, ..config.rules };
    let now = Clock::start().now();
    let mut replay = Replay::new(Partition::new(1), rules, scan.control.longest_hold_ms, now);
    for stream in &mut scan.streams {
        stream.read(|id, seq, record| {
            if id.log == LogKind::Purchases {
                replay.add(id, seq, record);
            }
            Ok::<(), Fatal>(())
        })?;
    }
    let before = scan.records();
    let view_result = PostgresView::ask(config)?;
    // Read the records that were written meanwhile, for two reasons: the log then has at least the records of the
    // database, and a grant in one stream may need a release in another stream that was read before it.
    for stream in &mut scan.streams {
        stream.read(|_, _, record| {
            if matches!(record.event, LogEvent::Released { .. }) {
                let _ = replay.record(record);
            }
            Ok::<(), Fatal>(())
        })?;
    }
    let is_growing = scan.records() > before;
    let view = view_result.as_ref().and_then(|view_result| view_result.as_ref().ok());
    let fits = view.map_or(Ok(()), |view| view.fit(config, &scan));
    let view = view.filter(|_| fits.is_ok());
    scan.streams.iter().for_each(|stream| *report += &line(stream, view));
    let sound = scan.judge().and_then(|()| replay.finish().map(drop).map_err(Fatal::Damaged));
    let (streams, records) = (many(scan.streams.len() as u64, "stream"), many(scan.records(), "record"));
    *report += &match &sound {
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

/// Returns the line of a stream.
fn line(stream: &ScannedStream, view: Option<&PostgresView>) -> String {
    let (end, first) = (stream.end(), stream.first());
    let (records, segments) = (many(end.records - first, "record"), many(stream.segments as u64, "segment"));
    let mut line = format!("{}: {records} in {segments}", stream.id);
    if first > 0 {
        line += &format!(", older records removed: {first}");
    }
    line += &match (&stream.damage, end.ending) {
        (Some(damage), _) => format!(", DAMAGED: {damage}"),
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
