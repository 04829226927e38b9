//! Failures of the database: passing ones, after which the caller tries again, and final ones, which end the process.

use crate::config::fatal::Fatal;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

/// The reason why an operation on the database failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A later attempt may succeed. Whether the database has executed the operation is unknown.
    #[error("{0}")]
    Transient(String),
    /// No later attempt can succeed: the process ends.
    #[error(transparent)]
    Final(#[from] Fatal),
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
            _ => Failure::Transient(text),
        }
    }
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
