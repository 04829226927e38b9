//! The command `stampede plan`: explains a plan, and names its mistakes.

use crate::config::fatal::Fatal;
use crate::plan::plan_moment::at_moment;
use crate::plan::plan_overview::overview;
use crate::plan::plan_time::parse;
use crate::process::plan_files;
use clap::builder::ValueHint;
use clap::{Arg, ArgMatches, Command, value_parser};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

const CHECK: &str = "\
Read a plan and print a table of its sales and a table of their products: when each sale opens and closes, in UTC, how \
long it is open, its units, its limit per user, and the duration of holds.

If the plan has mistakes, print all of them on standard error, each with file, line, column and the line itself, and exit \
with code 2. The command needs no server and no data directory, and ignores all settings.";

const SHOW: &str = "\
Read a plan and print which of its sales are over, open, paused, next or later. Of a sale that is repeated, the latest \
and the next one are listed. Mistakes are reported as by stampede plan check.";

/// A command of `stampede plan`, with the path of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanCommand {
    /// Explain the plan.
    Check(PathBuf),
    /// Print which sales are open at a time in milliseconds since the Unix epoch, or now.
    Show(PathBuf, Option<u64>),
}

/// Returns the definition of `stampede plan` for the argument parser.
pub fn command() -> Command {
    let file = Arg::new("file").value_name("FILE").required(true).value_hint(ValueHint::FilePath);
    let file = file.value_parser(value_parser!(PathBuf)).help("Path of the plan, a TOML file");
    let at = Arg::new("at").long("at").value_name("TIME").value_parser(|text: &str| parse(text));
    let at = at.help("Time for which to print the states, such as 2026-12-01T18:00:00+01:00 [default: now]");
    let check = Command::new("check").about("Explain a plan, or name its mistakes").long_about(CHECK);
    let show = Command::new("show").about("Print which sales of a plan are over, open and next").long_about(SHOW);
    Command::new("plan")
        .about("Check a plan of sales, or show what is open and next")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands([check.arg(file.clone()), show.arg(file).arg(at)])
}

/// Returns the command of `stampede plan`, or `None` if the arguments have another command or none.
pub fn asked_for(arguments: &ArgMatches) -> Option<PlanCommand> {
    let ("plan", plan) = arguments.subcommand()? else { return None };
    let (name, given) = plan.subcommand().expect("it is required");
    let file = given.get_one::<PathBuf>("file").expect("it is required").clone();
    Some(match name {
        "check" => PlanCommand::Check(file),
        _ => PlanCommand::Show(file, given.get_one("at").copied()),
    })
}

/// Runs a command. Returns its output.
///
/// # Errors
/// [`Fatal::Plan`]: the plan cannot be read, or it has mistakes.
pub fn run(command: &PlanCommand) -> Result<String, Fatal> {
    match command {
        PlanCommand::Check(file) => plan_files::read(file).map(|plan| overview(&file.display().to_string(), &plan)),
        PlanCommand::Show(file, at_ms) => {
            let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let now_ms = at_ms.unwrap_or(since_1970.as_millis() as u64);
            plan_files::read(file).map(|plan| at_moment(&plan, now_ms))
        }
    }
}
