//! The `stampede` program: settings, then everything else.

use stampede::config::fatal::{self, Fatal};
use stampede::config::flags::SETTINGS;
use stampede::config::logging;
use stampede::config::settings::{Config, Sources};

use stampede::log_tool::arguments::{self, LogCommand};
use stampede::log_tool::{dump, sale_report, scan, verify};
use stampede::process::supervisor::Supervisor;
use stampede::process::{manual, start};
use std::collections::BTreeMap;
use std::io::{BufWriter, Write, stdout};

fn main() {
    let arguments = manual::command().get_matches();
    if let Some(text) = manual::asked_for(&arguments) {
        return print!("{text}");
    }
    let (log_command, given) = arguments::asked_for(&arguments).unzip();
    let given = given.unwrap_or(&arguments);
    let flags = SETTINGS.iter().map(|setting| setting.flag);
    // Commands do not have all of them.
    let value = |flag: &str| given.try_get_one::<String>(flag).ok().flatten().cloned();
    let flags = flags.filter_map(|flag| Some((flag, value(flag)?))).collect();
    let environment = &|name: &str| std::env::var(name).ok();
    let mut sources = Sources { flags, environment, env_file: String::new(), in_file: BTreeMap::new() };
    sources.env_file = sources.which_file();
    let config = read(&sources.env_file).and_then(|in_file| {
        sources.in_file = in_file;
        Config::new(&sources).map_err(|bad| Fatal::Settings(bad.to_string()))
    });
    let config = config.unwrap_or_else(|reason| refuse(&reason));
    if let Some(command) = log_command {
        return answer(&command, &config).unwrap_or_else(|reason| refuse(&reason));
    }
    if arguments.get_flag("check-config") {
        return println!("{config}");
    }
    logging::start(config.log_format);
    fatal::exit_on_panic();
    let ended = start::start(config).and_then(|supervisor| supervisor.map_or(Ok(()), Supervisor::run));
    match ended {
        Ok(()) => tracing::info!(exit_code = 0, "stopped"),
        Err(reason) => reason.exit(),
    }
}

/// Ends before anything has begun.
fn refuse(reason: &Fatal) -> ! {
    // In one piece: in an upgrade, two processes write to one place.
    let line = format!("stampede: {reason}\n");
    eprint!("{line}");
    std::process::exit(reason.exit_code());
}

/// What the log says, on standard output.
fn answer(command: &LogCommand, config: &Config) -> Result<(), Fatal> {
    let (told, verdict) = match command {
        LogCommand::Dump(filter) => return dump::dump(config, filter, &mut BufWriter::new(stdout().lock())),
        LogCommand::Verify => scan::look(|told| verify::verify(config, told)),
        LogCommand::Sale(sale) => scan::look(|told| sale_report::add_up(config, *sale, told)),
    };
    // If nobody wants to read it, there is still the exit code.
    let _ = stdout().write_all(told.as_bytes());
    verdict
}

/// The variables in a file. One that nobody has asked for need not be there.
fn read(file: &str) -> Result<BTreeMap<String, String>, Fatal> {
    let lines = match dotenvy::from_path_iter(file) {
        Ok(lines) => lines,
        Err(error) if error.not_found() && file == ".env" => return Ok(BTreeMap::new()),
        Err(error) => return Err(Fatal::Settings(format!("--env-file {file} cannot be read: {error}"))),
    };
    let mut variables = BTreeMap::new();
    let mut place = "at its beginning".to_owned();
    for line in lines {
        // The line may hold a password: it is never repeated.
        let (name, value) = line.map_err(|_| {
            Fatal::Settings(format!("{file} has a line that cannot be read, {place}; put values with blanks in quotes"))
        })?;
        place = format!("after {name}");
        variables.insert(name, value);
    }
    Ok(variables)
}
