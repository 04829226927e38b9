//! The `stampede` program: settings, then everything else.

use stampede::config::{self, Config, SETTINGS, Sources};
use stampede::fatal::{self, Fatal};
use stampede::supervisor::Supervisor;
use stampede::{logging, start};
use std::collections::BTreeMap;

fn main() {
    let arguments = config::command().get_matches();
    let flags = SETTINGS.iter().map(|setting| setting.flag);
    let flags = flags.filter_map(|flag| Some((flag, arguments.get_one::<String>(flag)?.clone()))).collect();
    let sources = dotenv().map(|dotenv| Sources { flags, environment: &|name| std::env::var(name).ok(), dotenv });
    let config = sources.and_then(|sources| Config::new(&sources).map_err(|bad| Fatal::Settings(bad.to_string())));
    let config = config.unwrap_or_else(|reason| {
        // In one piece: in an upgrade, two processes write to one place.
        let line = format!("stampede: {reason}\n");
        eprint!("{line}");
        std::process::exit(reason.exit_code());
    });
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

/// The variables in `.env`, if there is one.
fn dotenv() -> Result<BTreeMap<String, String>, Fatal> {
    let mut variables = BTreeMap::new();
    let mut place = "at its beginning".to_owned();
    for line in dotenvy::dotenv_iter().into_iter().flatten() {
        // The line may hold a password: it is never repeated.
        let (name, value) = line.map_err(|_| {
            Fatal::Settings(format!(".env has a line that cannot be read, {place}; put values with blanks in quotes"))
        })?;
        place = format!("after {name}");
        variables.insert(name, value);
    }
    Ok(variables)
}
