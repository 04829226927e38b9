//! The `stampede` program. It reads the settings, and then runs a command or the server.

use stampede::config::fatal::{self, Fatal};
use stampede::config::flags::SETTINGS;
use stampede::config::settings::{Config, Sources};
use stampede::config::{env_file, logging};
use stampede::log_tool::arguments::{self, LogCommand};
use stampede::log_tool::{dump, sale_report, scan, verify};
use stampede::process::supervisor::Supervisor;
use stampede::process::{manual, signals, start};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufWriter, ErrorKind, Write, stdout};

fn main() {
    signals::unblock();
    let arguments = manual::command().get_matches();
    if let Some(text) = manual::asked_for(&arguments) {
        return print!("{text}");
    }
    let (log_command, given) = arguments::asked_for(&arguments).unzip();
    let given = given.unwrap_or(&arguments);
    let flags = SETTINGS.iter().map(|setting| setting.flag);
    // A command accepts only some of the flags.
    let value = |flag: &str| given.try_get_one::<String>(flag).ok().flatten().cloned();
    let flags = flags.filter_map(|flag| Some((flag, value(flag)?))).collect();
    let config = read_settings(flags);
    let config = config.unwrap_or_else(|reason| exit_with_error(&reason));
    if let Some(command) = log_command {
        return run_log_command(&command, &config).unwrap_or_else(|reason| exit_with_error(&reason));
    }
    if arguments.get_flag("check-config") {
        return println!("{config}");
    }
    logging::start(config.log_format);
    fatal::exit_on_panic();
    let ended = signals::catch().and_then(|signals| start::start(config, signals));
    let ended = ended.and_then(|supervisor| supervisor.map_or(Ok(()), Supervisor::run));
    match ended {
        Ok(()) => tracing::info!(exit_code = 0, "stopped"),
        Err(reason) => reason.exit(),
    }
}

/// Exits before the server has started, with a line on standard error.
fn exit_with_error(reason: &Fatal) -> ! {
    // Write the line at once: in an upgrade, two processes write to the same standard error.
    let line = format!("stampede: {reason}\n");
    eprint!("{line}");
    std::process::exit(reason.exit_code());
}

/// Runs a `stampede log` command, and prints its result on standard output.
fn run_log_command(command: &LogCommand, config: &Config) -> Result<(), Fatal> {
    let (report, verdict) = match command {
        LogCommand::Dump(filter) => return dump::dump(config, filter, &mut BufWriter::new(stdout().lock())),
        LogCommand::Verify => scan::look(|report| verify::verify(config, report)),
        LogCommand::Sale(sale) => scan::look(|report| sale_report::add_up(config, *sale, report)),
    };
    // If standard output is closed, the exit code still has the result.
    let _ = stdout().write_all(report.as_bytes());
    verdict
}

/// Reads the settings from the flags, the environment and the env file.
fn read_settings(flags: BTreeMap<&'static str, String>) -> Result<Config, Fatal> {
    let environment = &|name: &str| std::env::var_os(name);
    let mut sources = Sources { flags, environment, env_file: String::new(), in_file: BTreeMap::new() };
    let invalid = |bad: stampede::config::settings::BadSetting| Fatal::Settings(bad.to_string());
    sources.env_file = sources.env_file_path().map_err(invalid)?;
    sources.in_file = read(&sources.env_file)?;
    Config::new(&sources).map_err(invalid)
}

/// Reads the variables of an env file. Only the default file `.env` may be missing.
fn read(file: &str) -> Result<BTreeMap<String, String>, Fatal> {
    match fs::read_to_string(file) {
        Ok(text) => env_file::parse(&text).map_err(|bad| Fatal::Settings(format!("--env-file {file}: {bad}"))),
        Err(error) if error.kind() == ErrorKind::NotFound && file == ".env" => Ok(BTreeMap::new()),
        Err(error) => Err(Fatal::Settings(format!("--env-file {file} cannot be read: {error}"))),
    }
}
