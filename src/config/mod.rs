//! Settings, and the reasons for which the process ends. Never here: I/O other than the standard streams and the exit.
//!
//! In reading order: [`flags`] (the table of settings, and the command line made from it), [`connection_string`]
//! and [`database_url`] (the address of Postgres: its syntax and its meaning), [`host_choice`] (which of its hosts comes
//! first), [`env_file`] (the format of the env file), [`raw_setting`] (the text of one setting), [`settings`] (all of them
//! to a validated `Config`), [`settings_text`] (that one as text), [`output`] (the standard streams), [`logging`] (log lines on standard error), [`fatal`]
//! (reasons to end, and exit codes).

pub mod connection_string;
pub mod database_url;
pub mod env_file;
pub mod fatal;
pub mod flags;
pub mod host_choice;
pub mod logging;
pub mod output;
pub mod raw_setting;
pub mod settings;
pub mod settings_text;
