//! The text of one setting, and its conversion to a value of its type.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;
use thiserror::Error;

/// Error for an invalid setting. It names the setting, the value and the remedy.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct BadSetting(pub String);

/// Raw value with its origin, such as `--items` or `ITEMS in .env`.
pub struct RawSetting {
    /// The value.
    pub text: String,
    /// Where it is set.
    pub origin: String,
}

impl RawSetting {
    /// Returns the error that the value is not what is expected.
    pub fn bad(&self, expected: &str) -> BadSetting {
        BadSetting(format!("{} is \"{}\"; give {expected}", self.origin, self.text))
    }

    /// Parses one of the words in `expected`.
    ///
    /// # Errors
    /// The value is another word.
    pub fn choice<T: FromStr>(&self, expected: &str) -> Result<T, BadSetting> {
        self.text.parse().map_err(|_| self.bad(expected))
    }

    /// Parses a whole number.
    ///
    /// # Errors
    /// The value is not a number in `range`.
    pub fn number(&self, range: RangeInclusive<u64>) -> Result<u64, BadSetting> {
        let number = self.text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| self.bad(&format!("a whole number from {} to {}", range.start(), range.end())))
    }

    /// Parses a duration like `1h 30m`.
    ///
    /// # Errors
    /// The value is not a duration in `range`. `unit` is the unit in which the setting is used.
    pub fn duration(&self, range: RangeInclusive<Duration>, unit: &str) -> Result<Duration, BadSetting> {
        let duration = humantime::parse_duration(&self.text).ok().filter(|duration| range.contains(duration));
        duration.ok_or_else(|| {
            let bounds = [range.start(), range.end()].map(|bound| humantime::format_duration(*bound).to_string());
            self.bad(&format!("a duration from {} to {} in {unit}, like 30s or 1h", bounds[0], bounds[1]))
        })
    }

    /// Parses a number of bytes like `4GiB`.
    ///
    /// # Errors
    /// The value is not a number of bytes in `range`.
    pub fn bytes(&self, range: RangeInclusive<u64>) -> Result<u64, BadSetting> {
        let digits = self.text.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.text.len());
        let (number, unit) = self.text.split_at(digits);
        let shift = match unit.trim() {
            "" | "B" => Some(0),
            "KiB" | "K" => Some(10),
            "MiB" | "M" => Some(20),
            "GiB" | "G" => Some(30),
            "TiB" | "T" => Some(40),
            _ => None,
        };
        let bytes = number.parse::<u64>().ok().zip(shift).and_then(|(number, shift)| number.checked_mul(1 << shift));
        let good = bytes.filter(|bytes| range.contains(bytes));
        good.ok_or_else(|| self.bad("a number of bytes from 1MiB to 1024TiB, like 512MiB or 4GiB"))
    }
}

/// Formats a duration in the form of a setting, with the largest unit that divides it: `90m`, `8760h`, `250ms`.
pub fn in_one_unit(ms: u64) -> String {
    let units = [(3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];
    let exact = units.into_iter().find(|(length, _)| ms.is_multiple_of(*length) && ms > 0);
    let (length, unit) = exact.unwrap_or((1, "s"));
    format!("{}{unit}", ms / length)
}
