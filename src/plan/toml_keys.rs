//! The keys of one table of a plan. Each reading reports what is wrong with a key, and goes on.

use crate::plan::mistakes::{Mistakes, PlanText, is_invisible};
use crate::plan::plan_time::{in_units, unix_ms};
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Maximum number of characters of a name.
pub const NAME_CHARS_MAX: usize = 100;

/// A value with its place in the plan, in bytes.
#[derive(Clone, Debug)]
pub struct Placed<T> {
    /// The value.
    pub value: T,
    /// The place.
    pub at: Range<usize>,
}

/// The text of a plan, and its mistakes.
pub struct PlanSource<'a> {
    /// The text.
    pub text: &'a PlanText,
    /// The mistakes so far.
    pub mistakes: &'a Mistakes,
    /// Lines that are not TOML. Further mistakes in them, and missing keys, would only follow from that.
    pub broken: Vec<usize>,
}

impl PlanSource<'_> {
    /// Adds a mistake at this place.
    pub fn mistake(&self, at: Range<usize>, text: impl Display) {
        if !self.broken.contains(&self.text.line(at.start)) {
            self.mistakes.add(self.text, at, text.to_string());
        }
    }
}

/// A table of a plan.
pub struct TomlKeys<'a> {
    source: &'a PlanSource<'a>,
    /// What the table describes, such as `sale`.
    subject: &'static str,
    table: &'a DeTable<'a>,
    at: Range<usize>,
    /// Keys that the unknown keys may have meant. They are not missing.
    meant: Vec<String>,
}

impl<'a> TomlKeys<'a> {
    /// Takes the table of a `subject` at this place, and reports the keys that are not `known`.
    pub fn new(
        source: &'a PlanSource<'a>,
        subject: &'static str,
        table: &'a DeTable<'a>,
        at: Range<usize>,
        known: &[&str],
    ) -> Self {
        let mut meant = Vec::new();
        for key in table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            let name = key.get_ref();
            let closest = known.iter().map(|known| (strsim::jaro_winkler(known, &name.to_lowercase()), *known));
            let closest = closest.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(likeness, _)| *likeness > 0.75);
            let remedy = match closest {
                Some((_, closest)) => format!("did you mean \"{closest}\"?"),
                None => format!("a {subject} has {}", known.join(", ")),
            };
            meant.extend(closest.map(|(_, closest)| closest.to_owned()));
            source.mistake(key.span(), format_args!("unknown key \"{}\" in a {subject}; {remedy}", plain(name)));
        }
        TomlKeys { source, subject, table, at, meant }
    }

    /// Returns the place of the table.
    pub fn place(&self) -> Range<usize> {
        self.at.clone()
    }

    /// Reports a mistake of the whole table.
    pub fn mistake(&self, text: impl Display) {
        self.source.mistake(self.place(), text);
    }

    /// Reports that a key is missing.
    pub fn require(&self, key: &str) {
        if !self.has(key) && !self.meant.iter().any(|meant| meant == key) && self.source.broken.is_empty() {
            self.mistake(format_args!("this {} lacks \"{key}\"", self.subject));
        }
    }

    /// Returns whether the table has a key.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Returns the value of a key. `read` returns what is wrong with it, such as `is a string; give a number`.
    pub fn get<T>(&self, key: &str, read: impl FnOnce(&'a DeValue<'a>) -> Result<T, String>) -> Option<Placed<T>> {
        let given: &'a Spanned<DeValue<'a>> = self.table.get(key)?;
        match read(given.get_ref()) {
            Ok(value) => Some(Placed { value, at: given.span() }),
            Err(why) => {
                self.source.mistake(given.span(), format_args!("\"{key}\" {why}"));
                None
            }
        }
    }

    /// Returns a text of 1 to `chars_max` characters in one line.
    pub fn text(&self, key: &str, chars_max: usize) -> Option<Placed<String>> {
        self.get(key, |value| text(value, chars_max))
    }

    /// Returns a whole number in `range`.
    pub fn number(&self, key: &str, range: RangeInclusive<u32>) -> Option<Placed<u32>> {
        self.get(key, |value| {
            let DeValue::Integer(digits) = value else { return Err(expected(value, &whole_number(&range))) };
            let number = i64::from_str_radix(digits.as_str(), digits.radix()).ok();
            let number = number.and_then(|number| u32::try_from(number).ok()).filter(|number| range.contains(number));
            number.ok_or_else(|| format!("is {digits}; give {}", whole_number(&range)))
        })
    }

    /// Returns a time, in milliseconds since the Unix epoch.
    pub fn time(&self, key: &str) -> Option<Placed<u64>> {
        self.get(key, |value| match value {
            DeValue::Datetime(time) => unix_ms(time),
            DeValue::String(_) => Err("is a string; write the time without quotes, like 2026-12-01T18:00:00Z".into()),
            _ => Err(expected(value, "a time like 2026-12-01T18:00:00Z or 2026-12-01T18:00:00+01:00")),
        })
    }

    /// Returns a duration in `range`, in milliseconds, which is a multiple of `unit`.
    pub fn duration(&self, key: &str, range: RangeInclusive<Duration>, unit: Duration) -> Option<Placed<u64>> {
        let [least, most, unit_text] =
            [*range.start(), *range.end(), unit].map(|bound| in_units(bound.as_millis() as u64));
        let wanted =
            format!("a duration in quotes from {least} to {most} in steps of {unit_text}, like \"30s\" or \"2h\"");
        self.get(key, |value| {
            let DeValue::String(given) = value else { return Err(expected(value, &wanted)) };
            let duration = humantime::parse_duration(given).ok().filter(|duration| range.contains(duration));
            let duration = duration.filter(|duration| duration.as_nanos().is_multiple_of(unit.as_nanos()));
            let ms = duration.and_then(|duration| u64::try_from(duration.as_millis()).ok());
            ms.ok_or_else(|| format!("is \"{}\"; give {wanted}", plain(given)))
        })
    }

    /// Returns `true` or `false`.
    pub fn switch(&self, key: &str) -> Option<Placed<bool>> {
        self.get(key, |value| value.as_bool().ok_or_else(|| expected(value, "true or false, without quotes")))
    }

    /// Returns the tables that the plan writes as `[[header]]`.
    pub fn tables(&self, key: &str, header: &str) -> Vec<Placed<&'a DeTable<'a>>> {
        let wanted = format!("[[{header}]] in two pairs of brackets before each {key}");
        let list = self.get(key, |value| value.as_array().ok_or_else(|| expected(value, &wanted)));
        let list = list.iter().flat_map(|list| list.value.iter());
        let tables = list.filter_map(|entry| match entry.get_ref() {
            DeValue::Table(table) => Some(Placed { value: table, at: entry.span() }),
            other => {
                self.source.mistake(entry.span(), format_args!("this {}", expected(other, &wanted)));
                None
            }
        });
        tables.collect()
    }
}

/// Reads a text of 1 to `chars_max` characters in one line.
///
/// # Errors
/// What is wrong with the value.
pub fn text(value: &DeValue, chars_max: usize) -> Result<String, String> {
    let DeValue::String(text) = value else {
        return Err(expected(value, &format!("a text of 1 to {chars_max} characters in quotes")));
    };
    check_text(text, chars_max).map(|()| text.clone().into_owned())
}

/// Checks a text of a plan or of a list of units.
///
/// # Errors
/// What is wrong with it.
pub fn check_text(text: &str, chars_max: usize) -> Result<(), String> {
    let chars = text.chars().count();
    if let Some(letter) = text.chars().find(|letter| is_invisible(*letter)) {
        return Err(format!("has the invisible character U+{:04X}; give a text in one line without it", letter as u32));
    }
    if text.trim().is_empty() {
        return Err(format!("is empty; give a text of 1 to {chars_max} characters"));
    }
    if text.trim() != text {
        return Err("begins or ends with a blank; remove it".into());
    }
    if chars > chars_max {
        return Err(format!("has {chars} characters; at most {chars_max} are allowed"));
    }
    Ok(())
}

/// Returns what is wrong with a value of another type than the expected one.
fn expected(value: &DeValue, wanted: &str) -> String {
    let kind = match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    format!("is {kind}; give {wanted}")
}

fn whole_number(range: &RangeInclusive<u32>) -> String {
    format!("a whole number from {} to {} without quotes", range.start(), range.end())
}

/// Returns a text of the plan for a message: in one line, and not longer than a name.
pub fn plain(text: &str) -> String {
    let visible = text.chars().map(|letter| if is_invisible(letter) { '\u{fffd}' } else { letter });
    visible.take(NAME_CHARS_MAX).collect()
}
