//! The main thread: start in order, watch, end. Never here: rules.
//!
//! [`start`] starts everything; [`resume`] finds the sale to continue, in the log or in the database; [`take_over`]
//! does it beside a process that still sells, and [`standing_by`] waits for the end of another server, whose plan may
//! change meanwhile ([`standby_plan`]). Then
//! [`supervisor`] watches, and [`upgrading`] hands over to a new process. [`timekeeping`] compares the server's time with the system clock. [`signals`] and [`service_manager`] are the
//! ways in and out. [`manual`] is the manual page and shell completions,
//! [`migration`] the command that updates the schema of the database, [`plan_command`] the command that explains a plan,
//! [`plan_files`] reads the files of a plan, and [`plan_limits`] checks whether this server can run it.

pub mod manual;
pub mod migration;
pub mod plan_command;
pub mod plan_files;
pub mod plan_limits;
pub mod resume;
pub mod service_manager;
pub mod signals;
pub mod standby_plan;
pub mod standing_by;
pub mod start;
pub mod supervisor;
pub mod take_over;
pub mod timekeeping;
pub mod upgrading;
