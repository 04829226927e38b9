//! Settings, and the reasons for which the process ends. Never here: I/O other than log lines and the exit.
//!
//! In reading order: [`flags`] (the table of settings, and the command line made from it), [`database_url`] (the
//! address of Postgres), [`settings`] (raw values to a validated `Config`), [`fatal`] (reasons to end, and exit codes),
//! [`logging`] (log lines on standard error).

pub mod database_url;
pub mod fatal;
pub mod flags;
pub mod logging;
pub mod settings;
