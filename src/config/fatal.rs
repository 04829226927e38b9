//! Why the process ends, and the exit code that says so.
//!
//! One shard never dies alone: whatever cannot be repaired while running ends the process, and recovery decides.

use thiserror::Error;

/// A reason to end, with the sentence for the operator.
#[derive(Debug, Error)]
pub enum Fatal {
    /// A setting is wrong.
    #[error("wrong setting: {0}")]
    Settings(String),
    /// The address cannot be listened on.
    #[error("cannot listen: {0}")]
    Listen(String),
    /// The data directory cannot be used: locked, unwritable, another installation's.
    #[error("cannot use the data directory: {0}")]
    DataDir(String),
    /// The machine or container does not give what is needed: io_uring, locked memory, descriptors.
    #[error("the host does not give what is needed: {0}")]
    Host(String),
    /// The log lost something that was durable once. Restarting does not help.
    #[error(
        "the log is damaged, and nothing was changed: {0}; restore it from a copy, or, with a database, go on from there by --recover-from postgres"
    )]
    Damaged(String),
    /// The database cannot be this server's: another installation's, taken over, newer, or it holds what it must not.
    #[error("cannot use the database: {0}")]
    Database(String),
    /// The database has what the data directory lacks, or another installation's sale.
    #[error("cannot use the database: {0}")]
    DirectoryOlder(String),
    /// A write or sync of the log failed. What is on disk is unknown until recovery reads it.
    #[error("the log cannot be written: {0}")]
    LogFailed(String),
}

impl Fatal {
    /// The process's exit code. A panic exits with [`INTERNAL_ERROR`].
    pub fn exit_code(&self) -> i32 {
        match self {
            Fatal::Settings(_) => 2,
            Fatal::Listen(_) => 3,
            Fatal::DataDir(_) => 4,
            Fatal::Host(_) => 5,
            Fatal::Damaged(_) => 6,
            Fatal::LogFailed(_) => 7,
            Fatal::Database(_) | Fatal::DirectoryOlder(_) => 8,
        }
    }

    /// Ends the process at once, with one log line.
    pub fn exit(&self) -> ! {
        // Held to the end, so that no other thread has the last word.
        let _stderr = std::io::stderr().lock();
        tracing::error!(exit_code = self.exit_code(), "{self}");
        std::process::exit(self.exit_code())
    }
}

/// The exit code of a panic.
pub const INTERNAL_ERROR: i32 = 70;

/// All exit codes and their meanings, for manuals.
pub const EXIT_CODES: &[(i32, &str)] = &[
    (
        0,
        "stopped by SIGTERM or SIGINT: requests finished, log flushed, Postgres brought up to date, within --drain-timeout",
    ),
    (2, "a setting is wrong"),
    (3, "the address cannot be listened on"),
    (4, "the data directory is locked, unwritable or another installation's"),
    (5, "the host lacks something: io_uring, descriptors, locked memory"),
    (6, "the log lost something that was durable once; nothing was changed"),
    (7, "the log could not be written, or not be read back"),
    (
        8,
        "the database and the data directory do not fit together, a later run has taken the database over, or its \
         schema is newer",
    ),
    (INTERNAL_ERROR, "an internal error; please report the line"),
];

/// Makes a panic on any thread end the process, with one log line.
pub fn exit_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let _stderr = std::io::stderr().lock();
        tracing::error!(exit_code = INTERNAL_ERROR, "internal error: {panic}");
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
