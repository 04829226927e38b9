//! Failures of the database: those after which the caller tries again, and final ones, which end the process.

use crate::config::fatal::Fatal;
use std::fmt;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

/// The reason why an operation on the database failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A later attempt may succeed. Whether the database has executed the operation is unknown.
    #[error("{0}")]
    Transient(Reason),
    /// No later attempt can succeed: the process ends.
    #[error(transparent)]
    Final(#[from] Fatal),
}

/// The reason of a failure after which the caller tries again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Text for operators, in one line.
    pub text: String,
    /// Whether the database has answered and refuses the operation until a person repairs something, such as a missing
    /// right. Otherwise it is not reachable, or the reason passes by itself.
    pub is_refusal: bool,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<T: Into<String>> From<T> for Reason {
    fn from(text: T) -> Reason {
        Reason { text: text.into(), is_refusal: false }
    }
}

/// Maximum number of reasons that are logged while the database is not connected.
const REASONS_MAX: usize = 16;

/// The reasons that have been logged since the database was connected last.
#[derive(Default)]
pub struct LoggedReasons(Vec<Reason>);

impl LoggedReasons {
    /// Adds a reason. Returns whether it is new, and there is room for it.
    pub fn insert(&mut self, reason: &Reason) -> bool {
        let is_new = self.0.len() < REASONS_MAX && !self.0.contains(reason);
        if is_new {
            self.0.push(reason.clone());
        }
        is_new
    }
}

impl Failure {
    /// Returns the failure for an operation that the database refuses until a person repairs something.
    pub fn refusal(text: impl Into<String>) -> Failure {
        Failure::Transient(Reason { text: text.into(), is_refusal: true })
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let text = describe(&error);
        match error.code() {
            // Positions and rows are in one transaction, so no purchase is sent twice. A duplicate means that another
            // program writes to the table.
            Some(&SqlState::UNIQUE_VIOLATION) if is_about_purchases(&error) => {
                Failure::Final(Fatal::Database(format!(
                    "this purchase exists already: {text}; find the program that wrote it, then run stampede log sale"
                )))
            }
            Some(code) if !passes(code) => Failure::refusal(text),
            _ => Failure::Transient(text.into()),
        }
    }
}

/// Returns whether a reason with this code passes without a person, or by a fail-over.
fn passes(code: &SqlState) -> bool {
    // Connections, lost transactions, resources, operators and time limits, read-only standbys.
    let is_passing_class = ["08", "40", "53", "57", "25"].iter().any(|class| code.code().starts_with(class));
    is_passing_class && *code != SqlState::DISK_FULL || *code == SqlState::LOCK_NOT_AVAILABLE
}

fn is_about_purchases(error: &Error) -> bool {
    let names = error.as_db_error().map(|error| (error.schema(), error.table().unwrap_or_default()));
    names.is_some_and(|(schema, table)| schema == Some("stampede") && table.starts_with("purchases"))
}

/// Returns the error as one line, without settings that could be secret.
fn describe(error: &Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} ({})", error.message(), error.code().code()),
        None => {
            std::error::Error::source(error).map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_logged_once_and_not_too_many() {
        let mut logged = LoggedReasons::default();
        for _ in 0..2 {
            let expected = if logged.0.is_empty() { REASONS_MAX } else { 0 };
            let new = (0..100).filter(|n: &usize| logged.insert(&Reason::from(n.to_string())));
            assert_eq!(new.count(), expected);
        }
    }

    #[test]
    fn what_needs_a_person_is_told_apart() {
        for (code, expected) in [
            ("08006", true),
            ("40001", true),
            ("53300", true),
            ("55P03", true),
            ("57P03", true),
            ("57014", true),
            ("25006", true),
            ("53100", false),
            ("42501", false),
            ("42703", false),
            ("42P01", false),
            ("42P07", false),
            ("58030", false),
            ("XX000", false),
        ] {
            assert_eq!(passes(&SqlState::from_code(code)), expected, "{code}");
        }
    }
}
