//! The reasons for which the process ends, and their exit codes.
//!
//! An error on one shard ends the whole process, if the running process cannot repair it. The next start then recovers
//! from the log.

use crate::config::logging::{self, LoggingError};
use thiserror::Error;

/// Reason for which the process ends, with a message for the operator.
#[derive(Debug, Error)]
pub enum Fatal {
    /// A setting or an argument is invalid.
    #[error("wrong setting: {0}")]
    Settings(String),
    /// The plan of the sales is invalid, or cannot be read.
    #[error("wrong plan: {0}")]
    Plan(String),
    /// A port cannot be opened.
    #[error("cannot listen: {0}")]
    Listen(String),
    /// The data directory cannot be used: it is locked, cannot be read or written, or does not match the settings.
    #[error("cannot use the data directory: {0}")]
    DataDir(String),
    /// The machine or the container does not provide a required resource: io_uring, locked memory, descriptors.
    #[error("a required resource is not available: {0}")]
    Host(String),
    /// Records that were durable and may be needed are missing from the log. A restart does not help.
    #[error(
        "the log is damaged, and nothing was changed: {0}; restore the data directory from a backup, or restore the \
         sale from the database with --recover-from postgres"
    )]
    Damaged(String),
    /// The database cannot be used: another server uses it, it contradicts the log, or its schema is newer.
    #[error("cannot use the database: {0}")]
    Database(String),
    /// The database has records that the data directory lacks, or the sale of another installation.
    /// `--recover-from postgres` resolves this contradiction.
    #[error("cannot use the database: {0}")]
    DirectoryOlder(String),
    /// A write, a flush or a read of the log failed. The content of the disk is unknown until the next recovery.
    #[error("the log cannot be written or read: {0}")]
    LogFailed(String),
}

impl Fatal {
    /// Returns the exit code of the process. The exit code of a panic is [`INTERNAL_ERROR`].
    pub fn exit_code(&self) -> i32 {
        match self {
            Fatal::Settings(_) | Fatal::Plan(_) => 2,
            Fatal::Listen(_) => 3,
            Fatal::DataDir(_) => 4,
            Fatal::Host(_) => 5,
            Fatal::Damaged(_) => 6,
            Fatal::LogFailed(_) => 7,
            Fatal::Database(_) | Fatal::DirectoryOlder(_) => 8,
        }
    }

    /// Exits the process at once, with one log line.
    pub fn exit(&self) -> ! {
        logging::begin_end();
        tracing::error!(exit_code = self.exit_code(), "{self}");
        logging::flush();
        std::process::exit(self.exit_code())
    }
}

impl From<LoggingError> for Fatal {
    fn from(error: LoggingError) -> Fatal {
        match error {
            LoggingError::Filter => Fatal::Settings(error.to_string()),
            LoggingError::Thread(_) => Fatal::Host(error.to_string()),
        }
    }
}

/// Exit code of a panic.
pub const INTERNAL_ERROR: i32 = 70;

/// Every exit code with its meaning, for the manual page. `docs/operations.md` has the same table.
pub const EXIT_CODES: &[(i32, &str)] = &[
    (0, "stopped by SIGTERM, SIGINT or SIGQUIT, replaced by an upgrade in place, or a command succeeded"),
    (2, "a setting, an argument or the plan is invalid"),
    (3, "cannot listen on the address of --listen or --admin-listen"),
    (4, "the data directory is locked, cannot be read or written, or does not match the settings"),
    (5, "the host lacks a required resource, such as io_uring, descriptors or locked memory"),
    (6, "the log is damaged: records that were durable and may be needed are missing; nothing was changed"),
    (7, "the log could not be written or read"),
    (
        8,
        "the database cannot be used: it contradicts the data directory, another server uses it or has taken it over, \
         or its schema is newer",
    ),
    (INTERNAL_ERROR, "internal error; please report the message"),
];

/// Installs a hook that makes a panic on any thread end the process, with one log line.
pub fn exit_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        logging::begin_end();
        tracing::error!(exit_code = INTERNAL_ERROR, "internal error: {panic}");
        logging::flush();
        std::process::exit(INTERNAL_ERROR);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_code_has_its_meaning() {
        let reasons = [
            Fatal::Settings,
            Fatal::Plan,
            Fatal::Listen,
            Fatal::DataDir,
            Fatal::Host,
            Fatal::Damaged,
            Fatal::Database,
            Fatal::DirectoryOlder,
            Fatal::LogFailed,
        ];
        for code in reasons.map(|reason| reason(String::new()).exit_code()) {
            assert_eq!(EXIT_CODES.iter().filter(|(listed, _)| *listed == code).count(), 1, "{code}");
        }
    }
}
