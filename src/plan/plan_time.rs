//! Times of a plan: RFC 3339 with an offset from UTC, in whole seconds.

use std::time::{Duration, UNIX_EPOCH};
use toml::de::DeValue;
use toml::value::{Datetime, Offset};

/// Later than any time of a plan, in milliseconds since the Unix epoch: the year 10000.
pub const FOREVER_MS: u64 = 253_402_300_800_000;

/// Converts a time of a plan to milliseconds since the Unix epoch.
///
/// # Errors
/// The remedy, if it is no such time.
pub fn unix_ms(time: &Datetime) -> Result<u64, String> {
    let Some(date) = time.date else { return Err("has no date; write 2026-12-01T18:00:00+01:00".into()) };
    let Some(clock) = time.time else {
        return Err(format!("has no time of day; write {date}T18:00:00Z or {date}T18:00:00+01:00"));
    };
    let text = format!("{date}T{:02}:{:02}:{:02}", clock.hour, clock.minute, clock.second.unwrap_or(0));
    let offset_minutes = match time.offset {
        None => return Err(format!("has no offset from UTC; write {text}Z or {text}+01:00")),
        Some(Offset::Z) => 0,
        Some(Offset::Custom { minutes }) => i64::from(minutes),
    };
    if clock.nanosecond.unwrap_or(0) != 0 || clock.second == Some(60) {
        return Err("is not a whole second from 00 to 59; leave out the fraction".into());
    }
    let local = humantime::parse_rfc3339(&format!("{text}Z")).ok();
    let since_1970 = local.and_then(|local| local.duration_since(UNIX_EPOCH).ok());
    let ms = since_1970.and_then(|since| i64::try_from(since.as_millis()).ok()).map(|ms| ms - offset_minutes * 60_000);
    let ms = ms.and_then(|ms| u64::try_from(ms).ok()).filter(|ms| *ms < FOREVER_MS);
    ms.ok_or_else(|| "is not a time from 1970 to 9999".into())
}

/// Parses a time of the command line, to milliseconds since the Unix epoch.
///
/// # Errors
/// The remedy, if it is no such time.
pub fn parse(text: &str) -> Result<u64, String> {
    match DeValue::parse(text).map(|value| value.into_inner()) {
        Ok(DeValue::Datetime(time)) => unix_ms(&time).map_err(|why| format!("it {why}")),
        _ => Err("give a time like 2026-12-01T18:00:00Z or 2026-12-01T18:00:00+01:00".into()),
    }
}

/// Formats a time in UTC, with the day of the week.
pub fn in_utc(unix_ms: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    let time = UNIX_EPOCH + Duration::from_millis(unix_ms.min(FOREVER_MS - 1));
    let day = DAYS[(unix_ms / 86_400_000 % 7) as usize];
    format!("{day} {}", humantime::format_rfc3339_seconds(time))
}

/// Formats a duration with its units, such as `1h 30m`, as a plan has it. The largest unit is the day.
pub fn in_units(ms: u64) -> String {
    let (days, rest) = (ms / 86_400_000, ms % 86_400_000);
    let rest = (rest > 0 || days == 0).then(|| humantime::format_duration(Duration::from_millis(rest)).to_string());
    let days = (days > 0).then(|| format!("{days}day{}", if days == 1 { "" } else { "s" }));
    days.into_iter().chain(rest).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_subtracted() {
        assert_eq!(parse("1970-01-01T01:00:00+01:00"), Ok(0));
        assert_eq!(parse("2026-12-01T18:00:00Z"), Ok(1_796_148_000_000));
        assert_eq!(parse("2026-12-01 18:00:00-05:30"), Ok(1_796_148_000_000 + 19_800_000));
        assert_eq!(in_utc(1_796_148_000_000), "Tue 2026-12-01T18:00:00Z");
        assert_eq!(in_utc(0), "Thu 1970-01-01T00:00:00Z");
        let units = [0, 250, 5_400_000, 86_400_000, 90_000_000, 366 * 86_400_000].map(in_units);
        assert_eq!(units, ["0s", "250ms", "1h 30m", "1day", "1day 1h", "366days"]);
    }

    #[test]
    fn other_times_are_refused_with_the_remedy() {
        for (text, remedy) in [
            ("2026-12-01T18:00:00", "write 2026-12-01T18:00:00Z or 2026-12-01T18:00:00+01:00"),
            ("2026-12-01", "write 2026-12-01T18:00:00Z"),
            ("18:00:00", "has no date"),
            ("2026-12-01T18:00:00.5Z", "whole second"),
            ("1970-01-01T00:00:00+01:00", "from 1970 to 9999"),
            ("9999-12-31T23:59:59-01:00", "from 1970 to 9999"),
            ("0000-01-01T00:00:00Z", "from 1970 to 9999"),
            ("2026-12-01T18:00:60Z", "whole second"),
            ("2026-02-30T18:00:00Z", "give a time like"),
            ("tomorrow", "give a time like"),
            ("", "give a time like"),
        ] {
            let why = parse(text).expect_err(text);
            assert!(why.contains(remedy), "{text}: {why}");
        }
    }
}
