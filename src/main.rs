//! The `stampede` program. It reads the settings, and then runs a command or the server.

use stampede::config::fatal::{self, Fatal};
use stampede::config::flags::SETTINGS;
use stampede::config::settings::{Config, Sources};
use stampede::config::{env_file, logging, output};
use stampede::log_tool::arguments::{self, LogCommand};
use stampede::log_tool::{dump, sale_report, scan, verify};
use stampede::plan::planned_sale::LoadedPlan;
use stampede::process::supervisor::Supervisor;
use stampede::process::{manual, migration, plan_command, plan_files, plan_limits, signals, start};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufWriter, ErrorKind, IsTerminal, stdout};

fn main() {
    let arguments = manual::command().try_get_matches().unwrap_or_else(|error| {
        // Help and version are output. A terminal gets them with colors, as it gets errors.
        if error.use_stderr() || stdout().is_terminal() {
            error.exit()
        }
        end_command(print(&error.render().to_string()));
        std::process::exit(error.exit_code())
    });
    if let Some(text) = manual::asked_for(&arguments) {
        return end_command(print(&text));
    }
    if let Some(command) = plan_command::asked_for(&arguments) {
        return end_command(plan_command::run(&command).and_then(|text| print(&text)));
    }
    let (log_command, given) = arguments::asked_for(&arguments).unzip();
    let migrate = arguments.subcommand_matches("migrate");
    let given = given.or(migrate).unwrap_or(&arguments);
    let flags = SETTINGS.iter().map(|setting| setting.flag);
    // A command accepts only some of the flags.
    let value = |flag: &str| given.try_get_one::<String>(flag).ok().flatten().cloned();
    let flags = flags.filter_map(|flag| Some((flag, value(flag)?))).collect();
    // The commands need no plan: the log says which sales have opened.
    let needs_plan = log_command.is_none() && migrate.is_none();
    let config = read_settings(flags, needs_plan).unwrap_or_else(|reason| exit_with_error(&reason));
    if let Some(command) = log_command {
        let plan = arguments::plan_path(given).map(plan_files::load).transpose();
        return end_command(plan.and_then(|plan| run_log_command(&command, &config, plan)));
    }
    if migrate.is_some() {
        return end_command(migration::migrate(&config).and_then(|text| print(&text)));
    }
    if arguments.get_flag("check-config") {
        return end_command(print(&format!("{config}\n")));
    }
    // Before the first thread starts, because threads inherit the signal mask.
    let signals = signals::catch().unwrap_or_else(|reason| exit_with_error(&reason));
    logging::start(config.log_format).unwrap_or_else(|error| exit_with_error(&error.into()));
    fatal::exit_on_panic();
    let ended = start::start(config, signals).and_then(|supervisor| supervisor.map_or(Ok(()), Supervisor::run));
    match ended {
        Ok(()) => tracing::info!(exit_code = 0, "stopped"),
        Err(reason) => reason.exit(),
    }
    logging::flush();
}

/// Prints the output of a command.
fn print(text: &str) -> Result<(), Fatal> {
    output::print(text).map_err(unwritable)
}

fn unwritable(error: std::io::Error) -> Fatal {
    Fatal::Host(format!("standard output cannot be written: {error}"))
}

/// Ends a command.
fn end_command(result: Result<(), Fatal>) {
    result.unwrap_or_else(|reason| exit_with_error(&reason));
}

/// Exits before the server has started, with a line on standard error.
fn exit_with_error(reason: &Fatal) -> ! {
    output::complain(&format!("stampede: {reason}"));
    std::process::exit(reason.exit_code());
}

/// Runs a `stampede log` command, and prints its result on standard output. The `plan` names what was sold.
fn run_log_command(command: &LogCommand, config: &Config, plan: Option<LoadedPlan>) -> Result<(), Fatal> {
    let (report, verdict) = match command {
        LogCommand::Dump(filter) => {
            let mut out = BufWriter::new(output::standard_output().map_err(unwritable)?);
            return dump::dump(config, filter, plan, &mut out);
        }
        LogCommand::Verify => scan::look(|report| verify::verify(config, report)),
        LogCommand::Sale(sale) => scan::look(|report| sale_report::add_up(config, *sale, plan, report)),
    };
    // The verdict on the log matters more than a report that cannot be written.
    let printed = print(&report);
    verdict.and(printed)
}

/// Reads the settings from the flags, the environment and the env file, and the plan if one is set.
fn read_settings(flags: BTreeMap<&'static str, String>, needs_plan: bool) -> Result<Config, Fatal> {
    let environment = &|name: &str| std::env::var_os(name);
    let mut sources = Sources { flags, environment, env_file: String::new(), in_file: BTreeMap::new(), plan: None };
    let invalid = |bad: stampede::config::raw_setting::BadSetting| Fatal::Settings(bad.to_string());
    sources.env_file = sources.env_file_path().map_err(invalid)?;
    sources.in_file = read(&sources.env_file)?;
    if needs_plan && let Some(path) = sources.plan_path().map_err(invalid)? {
        sources.plan = Some(plan_files::load(&path)?);
    }
    let config = Config::new(&sources).map_err(invalid)?;
    plan_limits::check(&config)?;
    Ok(config)
}

/// Reads the variables of an env file. Only the default file `.env` may be missing.
fn read(file: &str) -> Result<BTreeMap<String, String>, Fatal> {
    match fs::read_to_string(file) {
        Ok(text) => env_file::parse(&text).map_err(|bad| Fatal::Settings(format!("--env-file {file}: {bad}"))),
        Err(error) if error.kind() == ErrorKind::NotFound && file == ".env" => Ok(BTreeMap::new()),
        Err(error) => Err(Fatal::Settings(format!("--env-file {file} cannot be read: {error}"))),
    }
}
