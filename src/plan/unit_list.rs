//! Lists of units in CSV beside a plan: a line with the word `unit`, and then one unit on each line.

use crate::plan::mistakes::{Mistakes, PlanText};
use crate::plan::toml_keys::{NAME_CHARS_MAX, check_text, plain};
use csv::{ByteRecord, ReaderBuilder};
use std::collections::BTreeMap;
use std::ops::Range;

/// The first line of a list.
const HEADER: &str = "unit";

/// Returns the names of the units in a list, and reports its mistakes.
pub fn read_units(list: &PlanText, mistakes: &Mistakes) -> Vec<String> {
    let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(list.text.as_bytes());
    let (mut record, mut units, mut lines) = (ByteRecord::new(), Vec::new(), BTreeMap::new());
    let mut records = 0;
    // Reading from memory does not fail, and records of any length are allowed.
    while let Ok(true) = reader.read_byte_record(&mut record) {
        records += 1;
        let at = place(list, &record);
        let fields: Vec<&str> = record.iter().map(|field| std::str::from_utf8(field).unwrap_or_default()).collect();
        let wrong = match fields[..] {
            [header] if records == 1 && header.trim_start_matches('\u{feff}') == HEADER => continue,
            [other] if records == 1 => format!("the first line is \"{}\"; it must be the word {HEADER}", plain(other)),
            [unit] => {
                match check_text(unit, NAME_CHARS_MAX).map(|()| lines.insert(unit.to_owned(), list.line(at.start))) {
                    Ok(None) => {
                        units.push(unit.to_owned());
                        continue;
                    }
                    Ok(Some(before)) => format!("unit \"{unit}\" is in line {before} already"),
                    Err(why) => format!("this unit {why}"),
                }
            }
            // A list with several columns was exported for something else: nobody would read the rest.
            _ => format!("this line has {} columns; give one, the unit", fields.len()),
        };
        mistakes.add(list, at, wrong);
    }
    if records <= 1 {
        let end = list.text.len();
        mistakes.add(list, end..end, "this list has no unit; a product has at least one".into());
    }
    units
}

/// Returns the place of a record, in bytes.
fn place(list: &PlanText, record: &ByteRecord) -> Range<usize> {
    let start = record.position().map_or(0, |position| position.byte() as usize);
    // Empty lines before a record count as part of it.
    let rest = &list.text[list.text.floor_char_boundary(start)..];
    let start = start + rest.len() - rest.trim_start_matches(['\r', '\n']).len();
    let rest = list.text[start..].find(['\r', '\n']);
    start..rest.map_or(list.text.len(), |length| start + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<String>, Vec<String>) {
        let (list, mistakes) = (PlanText::new("seats.csv", text.into()), Mistakes::default());
        let units = read_units(&list, &mistakes);
        let report = mistakes.report().map(|report| report.mistakes).unwrap_or_default();
        (units, report.iter().map(|found| format!("{}: {}", found.line, found.text)).collect())
    }

    #[test]
    fn a_list_has_a_unit_on_each_line() {
        let units = vec!["A1".to_owned(), "Row \"B\", 2".into(), "C3".into()];
        for text in [
            "unit\nA1\n\"Row \"\"B\"\", 2\"\nC3\n",
            "unit\r\nA1\r\n\r\n\"Row \"\"B\"\", 2\"\r\nC3",
            "\u{feff}unit\nA1\n\"Row \"\"B\"\", 2\"\n\n\nC3\n\n",
        ] {
            assert_eq!(read(text), (units.clone(), vec![]), "{text:?}");
        }
    }

    #[test]
    fn each_mistake_has_its_line() {
        for (text, mistakes) in [
            ("", vec!["1: this list has no unit; a product has at least one"]),
            ("unit\n", vec!["2: this list has no unit; a product has at least one"]),
            ("seat\nA1\n", vec!["1: the first line is \"seat\"; it must be the word unit"]),
            ("unit\nA1\n\nA2\nA1\n", vec!["5: unit \"A1\" is in line 2 already"]),
            (
                "unit,row\nA1,7\n",
                vec![
                    "1: this line has 2 columns; give one, the unit",
                    "2: this line has 2 columns; give one, the unit",
                ],
            ),
            ("unit\nA1\n A2\n", vec!["3: this unit begins or ends with a blank; remove it"]),
            ("unit\n\"\"\nA2\n", vec!["2: this unit is empty; give a text of 1 to 100 characters"]),
            (
                "unit\n\"A\n1\"\n",
                vec!["2: this unit has the invisible character U+000A; give a text in one line without it"],
            ),
        ] {
            assert_eq!(read(text).1, mistakes, "{text:?}");
        }
    }
}
