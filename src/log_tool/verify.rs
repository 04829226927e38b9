//! `stampede log verify`: whether a log is sound.

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
use crate::sale::shard::Rules;
use crate::system::clock::Clock;

/// Reads everything, and tells one line for each stream and a conclusion.
///
/// # Errors
/// What the server would say of it.
pub fn verify(config: &Config, told: &mut String) -> Result<(), Fatal> {
    let mut survey = LogScan::new(&config.data_dir)?;
    let mut replay = Replay::new(Partition::new(1), Clock::start().now());
    for stream in &mut survey.streams {
        stream.read(|id, seq, record| {
            if id.log == LogKind::Purchases {
                replay.add(id, seq, record);
            }
            Ok::<(), Fatal>(())
        })?;
    }
    let before = survey.records();
    let asked = PostgresView::ask(config)?;
    // What was written meanwhile: it is not less than the database has. And a grant in one stream may rest on a release
    // in another one that was read before it.
    for stream in &mut survey.streams {
        stream.read(|_, _, record| {
            if matches!(record.event, LogEvent::Released { .. }) {
                let _ = replay.record(record);
            }
            Ok::<(), Fatal>(())
        })?;
    }
    let is_growing = survey.records() > before;
    let books = asked.as_ref().and_then(|asked| asked.as_ref().ok());
    let fits = books.map_or(Ok(()), |books| books.fit(config, &survey));
    let books = books.filter(|_| fits.is_ok());
    survey.streams.iter().for_each(|stream| *told += &line(stream, books));
    let rules = Rules { period_s: survey.control.sale_period_s, ..config.rules };
    let sound = survey.judge().and_then(|()| replay.finish(&rules).map(drop).map_err(Fatal::Damaged));
    let (streams, records) = (many(survey.streams.len() as u64, "stream"), many(survey.records(), "record"));
    *told += &match &sound {
        Ok(()) => format!("Sound: {records} in {streams}, and nothing durable is missing.\n"),
        Err(why) => format!("Not sound: {why}.\n"),
    };
    if is_growing {
        *told += "A server is writing to it.\n";
    }
    *told += &match (&asked, &fits) {
        (None, _) => String::new(),
        (Some(Err(why)), _) => format!("Nothing is known of Postgres: {why}.\n"),
        (Some(Ok(_)), Err(why)) => format!("Postgres does not fit: {why}.\n"),
        (Some(Ok(books)), Ok(())) => {
            let place = &books.place;
            match survey.streams.iter().map(|stream| behind(stream, books)).sum::<Seq>() {
                0 => format!("Postgres ({place}) has all of it.\n"),
                behind => {
                    format!("Postgres ({place}) is {} behind; the log keeps what it lacks.\n", many(behind, "record"))
                }
            }
        }
    };
    sound.and(fits)
}

/// What there is to say of a stream.
fn line(stream: &ScannedStream, books: Option<&PostgresView>) -> String {
    let (end, first) = (stream.end(), stream.first());
    let (records, segments) = (many(end.records - first, "record"), many(stream.segments as u64, "segment"));
    let mut line = format!("{}: {records} in {segments}", stream.id);
    if first > 0 {
        line += &format!(", after {first} that have been removed");
    }
    line += &match (&stream.damage, end.ending) {
        (Some(damage), _) => format!(", DAMAGED: {damage}"),
        (None, Ending::Sealed) => ", sealed".into(),
        (None, Ending::Clean) => ", clean end".into(),
        (None, Ending::Torn) => ", torn end: a flush was under way, nobody was told of it".into(),
    };
    if let Some(books) = books {
        let position = known_position(books.positions(), &stream.id).unwrap_or(0);
        line += &format!("; Postgres has {position}");
        line += &match behind(stream, books) {
            0 => String::new(),
            behind => format!(", {behind} behind"),
        };
    }
    line + "\n"
}

/// How many of a stream's records the database still lacks. What retention has removed, it will not get.
fn behind(stream: &ScannedStream, books: &PostgresView) -> Seq {
    let position = known_position(books.positions(), &stream.id).unwrap_or(0);
    stream.end().records.saturating_sub(position.max(stream.first()))
}
