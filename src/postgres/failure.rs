//! Failures of the database: those that may pass, and those that end the process.

use crate::config::fatal::Fatal;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

/// Why something did not work.
#[derive(Debug)]
pub enum Failure {
    /// It may work later. What the database has done is unknown.
    Passing(String),
    /// It never will.
    Final(Fatal),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let text = describe(&error);
        match error.code() {
            // A sold item is there that must not be: something else writes here, or something was written twice.
            Some(&SqlState::UNIQUE_VIOLATION) if is_about_purchases(&error) => {
                Failure::Final(Fatal::Database(format!("a row is there already: {text}")))
            }
            _ => Failure::Passing(text),
        }
    }
}

fn is_about_purchases(error: &Error) -> bool {
    error.as_db_error().and_then(|error| error.table()) == Some("purchases")
}

/// What went wrong, in one line, without any setting that could be secret.
fn describe(error: &Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} ({})", error.message(), error.code().code()),
        None => {
            std::error::Error::source(error).map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
        }
    }
}
