//! The format of the env file: one `VARIABLE=value` per line. Values are literal: no variable is replaced in them.
//!
//! | value | read as |
//! |---|---|
//! | `p$w#1` | the text up to the end of the line, or up to a blank and `#`. It has no blanks, quotes and backslashes |
//! | `'p$w #1\'` | the text between the quotes, letter by letter |
//! | `"it's \"1\""` | the text between the quotes. `\"`, `\\` and `\$` stand for their second character |
//!
//! A value that has another meaning in another program that reads such files is rather refused than guessed.

use std::collections::BTreeMap;
use thiserror::Error;

/// Error for a line that cannot be read. It does not repeat the line, which may contain a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("line {line} {problem}")]
pub struct BadLine {
    /// Number of the line, from 1.
    pub line: usize,
    problem: &'static str,
}

/// Reads the variables of an env file. If a variable is set twice, the last line counts.
///
/// # Errors
/// The first line that cannot be read.
pub fn parse(text: &str) -> Result<BTreeMap<String, String>, BadLine> {
    let mut variables = BTreeMap::new();
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = variable(line).map_err(|problem| BadLine { line: number + 1, problem })?;
        variables.insert(name.to_owned(), value);
    }
    Ok(variables)
}

/// Reads one line, without the blanks around it.
fn variable(line: &str) -> Result<(&str, String), &'static str> {
    let line = line.strip_prefix("export").filter(|rest| rest.starts_with([' ', '\t'])).unwrap_or(line);
    let (name, value) = line.split_once('=').ok_or("has no VARIABLE=value")?;
    let name = name.trim();
    let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || "_.".contains(c));
    if !is_name || name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("does not begin with the name of a variable and =");
    }
    let value = value.trim_start();
    let value = match value.chars().next() {
        Some('\'') => single_quoted(&value[1..]),
        Some('"') => double_quoted(&value[1..]),
        _ => unquoted(value),
    };
    Ok((name, value?))
}

fn unquoted(value: &str) -> Result<String, &'static str> {
    let comment = value.char_indices().find(|(at, c)| *c == '#' && (*at == 0 || value[..*at].ends_with([' ', '\t'])));
    let value = comment.map_or(value, |(at, _)| &value[..at]).trim_end();
    match value.contains(|c: char| c.is_whitespace() || "'\"\\`".contains(c)) {
        true => Err("has a value with blanks, quotes or backslashes; put the value in single quotes"),
        false => Ok(value.to_owned()),
    }
}

/// Reads a value after its opening quote.
fn single_quoted(rest: &str) -> Result<String, &'static str> {
    let (value, rest) = rest.split_once('\'').ok_or("has no closing quote")?;
    check_end(rest).map(|()| value.to_owned())
}

/// Reads a value after its opening quote.
fn double_quoted(rest: &str) -> Result<String, &'static str> {
    let mut value = String::new();
    let mut letters = rest.chars();
    loop {
        match letters.next().ok_or("has no closing quote")? {
            '"' => return check_end(letters.as_str()).map(|()| value),
            '\\' => match letters.next() {
                Some(letter @ ('"' | '\\' | '$')) => value.push(letter),
                _ => return Err("has a backslash between double quotes; use single quotes, or write \\\\"),
            },
            letter => value.push(letter),
        }
    }
}

/// Checks that only a comment follows a closing quote.
fn check_end(rest: &str) -> Result<(), &'static str> {
    let is_comment = rest.starts_with([' ', '\t']) && rest.trim_start().starts_with('#');
    if rest.trim().is_empty() || is_comment { Ok(()) } else { Err("goes on after the closing quote") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(text: &str) -> Result<String, &'static str> {
        let variables = parse(&format!("A={text}\n")).map_err(|bad| bad.problem)?;
        Ok(variables["A"].clone())
    }

    #[test]
    fn values_are_literal() {
        for (text, expected) in [
            ("5000", "5000"),
            ("", ""),
            ("''", ""),
            ("\"\"", ""),
            ("  5  ", "5"),
            ("5 # five", "5"),
            ("# nothing", ""),
            ("p#1", "p#1"),
            ("p$HOME", "p$HOME"),
            ("${HOME}$A$$", "${HOME}$A$$"),
            ("a=b=c", "a=b=c"),
            ("%2F&;|<>(){}[]*?!~^", "%2F&;|<>(){}[]*?!~^"),
            ("'p$w #1'", "p$w #1"),
            ("'a\\n\\'", "a\\n\\"),
            ("'a\"b' # c", "a\"b"),
            ("\"p$w ${A} #1\"", "p$w ${A} #1"),
            ("\"it's\"", "it's"),
            ("\"a\\\"b\\\\n\\$HOME\" # c", "a\"b\\n$HOME"),
            ("ü", "ü"),
        ] {
            assert_eq!(value(text), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_would_be_a_guess_is_refused() {
        for text in [
            "a b",
            "host=db password=x",
            "a\\b",
            "a\\$b",
            "it's",
            "a\"b\"",
            "`date`",
            "'a",
            "\"a",
            "'a'b",
            "'a''b'",
            "'a'#b",
            "\"a\" b",
            "\"a\\nb\"",
            "\"a\\",
            "\"a\\\"",
        ] {
            assert!(value(text).is_err(), "{text} is {:?}", value(text));
        }
        for line in ["A", "export", "export A", "=5", "1A=5", "A B=5", "A-B=5", "set A=5", "'A'=5"] {
            assert_eq!(parse(&format!("\n# x\n{line}\n")).map_err(|bad| bad.line), Err(3), "{line}");
        }
    }

    #[test]
    fn lines_may_have_exports_blanks_and_ends_of_other_systems() {
        let variables = parse("\u{feff}A=1\r\n\r\n  # c\r\nexport\tB = '2' \r\n export C=3\nA=4").unwrap();
        let expected = [("A", "4"), ("B", "2"), ("C", "3")].map(|(name, value)| (name.into(), value.into()));
        assert_eq!(variables, BTreeMap::from(expected));
    }

    proptest! {
        #[test]
        fn any_value_can_be_written(text in "[^\r\n]*") {
            let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
            prop_assert_eq!(value(&format!("\"{escaped}\"")), Ok(text.clone()));
            if !text.contains('\'') {
                prop_assert_eq!(value(&format!("'{text}'")), Ok(text));
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in any::<String>()) {
            let _ = parse(&text);
        }
    }
}
