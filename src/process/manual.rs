//! The command line, the manual page and the shell completions.
//!
//! All three are generated from the table of settings, so that they have the same settings as the server.

use crate::config::fatal::EXIT_CODES;
use crate::config::flags::{self, SETTINGS};
use crate::log_tool::arguments;
use crate::process::{migration, plan_command};
use clap::builder::{PossibleValuesParser, TypedValueParser, ValueHint};
use clap::{Arg, ArgMatches, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use std::io;

const NAME: &str = "stampede";

const SIGNALS: &[(&str, &str)] = &[
    (
        "SIGTERM, SIGINT, SIGQUIT",
        "Stop in order. The server continues to sell for --drain-delay while /readyz answers 503. Then it accepts no \
         new connections, finishes requests in flight, flushes the log and persists it in Postgres, for at most \
         --drain-timeout. After a second signal, the server waits neither for requests in flight nor for Postgres.",
    ),
    (
        "SIGHUP, SIGUSR2",
        "Upgrade in place. The server starts the binary that is now at the same path, with the same arguments. The new \
         process reads the file of --env-file again, and takes over the sale, the ports and all connections. If it \
         cannot, or if it would lose the database or --ack postgres because the file is gone, the old process continues \
         to serve.",
    ),
    (
        "SIGUSR1, SIGALRM, SIGIO and others",
        "Ignored, with a log line that names the signal. The signals that report an internal error, such as SIGABRT and \
         SIGSEGV, end the process.",
    ),
];

const ENVIRONMENT: &[(&str, &str)] = &[
    ("RUST_LOG", "Level of the log lines: error, warn, info (the default), off, or a filter such as stampede=warn."),
    ("PGPASSFILE", "Password file for Postgres, in place of ~/.pgpass. It is used if the settings have no password."),
];

const FILES: &[(&str, &str)] = &[
    (
        "./data, or the path of --data-dir",
        "The data directory. log/ has the segments of the log. control.json has the id of the installation, its sale \
         period and the last known state of the database. lock is locked by the running server. set-aside-1, \
         set-aside-2, ... are logs that --recover-from postgres has moved away.",
    ),
    (".env, or the path of --env-file", "Settings, one VARIABLE=value per line; an upgrade in place reads them again."),
    ("/var/lib/stampede", "Data directory and working directory of the systemd unit."),
    ("/etc/stampede/stampede.env", "Settings of the systemd unit, in the format of .env."),
];

/// Returns the command line: the flags of the server, and the commands that print something in place of starting it.
pub fn command() -> Command {
    let shells = PossibleValuesParser::new(["bash", "zsh", "fish"]);
    let shells = shells.map(|shell| shell.parse::<Shell>().expect("it is one of these"));
    let shell = Arg::new("shell").value_name("SHELL").required(true).value_parser(shells).help("Name of the shell");
    flags::command()
        .override_usage(
            "stampede [OPTIONS]\n       \
             stampede log <verify|dump|sale> [OPTIONS]\n       \
             stampede plan <check|show> [OPTIONS] <FILE>\n       \
             stampede migrate [OPTIONS]\n       \
             stampede completions <SHELL>\n       \
             stampede man",
        )
        .help_template(
            "{about-with-newline}\n{usage-heading} {usage}\n\nOptions:\n{options}\n\n\
             Commands:\n{subcommands}{after-help}",
        )
        .args_conflicts_with_subcommands(true)
        .disable_help_subcommand(true)
        .subcommand(arguments::command())
        .subcommand(plan_command::command())
        .subcommand(migration::command())
        .subcommand(Command::new("completions").about("Print completions for a shell").arg(shell))
        .subcommand(Command::new("man").about("Print the manual page: stampede man | man -l -"))
}

/// Returns the text that the command `man` or `completions` prints, or `None` for other arguments.
pub fn asked_for(arguments: &ArgMatches) -> Option<String> {
    let text = match arguments.subcommand()? {
        ("completions", arguments) => completions(*arguments.get_one("shell").expect("clap requires the argument")),
        ("log" | "migrate" | "plan", _) => return None,
        _ => page().expect("writing to memory does not fail"),
    };
    Some(String::from_utf8(text).expect("the output is UTF-8"))
}

fn completions(shell: Shell) -> Vec<u8> {
    // The placeholder of a setting lists its possible values, such as `text|json`.
    let with_values = |command: Command, flag, value: &'static str| {
        command.mut_arg(flag, |arg| match value {
            "PATH" => arg.value_hint(ValueHint::DirPath),
            words if words.contains('|') => arg.value_parser(PossibleValuesParser::new(words.split('|'))),
            _ => arg.value_hint(ValueHint::Other),
        })
    };
    let all = |command: Command| {
        let has = |command: &Command, flag| command.get_arguments().any(|argument| argument.get_id() == flag);
        SETTINGS.iter().fold(command, |command, setting| match has(&command, setting.flag) {
            true => with_values(command, setting.flag, setting.value),
            false => command,
        })
    };
    let mut command = all(command()).mut_subcommand("log", |log| log.mut_subcommands(all));
    command = command.mut_subcommand("migrate", all);
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, NAME, &mut script);
    if shell == Shell::Fish {
        // The generated function fails at a flag whose value is still to be completed, so that fish offers files for it.
        let (fails, succeeds) = ("2>/dev/null\n    or return\n", "2>/dev/null\n    or return 0\n");
        script = String::from_utf8(script).expect("the script is UTF-8").replace(fails, succeeds).into_bytes();
    }
    script
}

fn page() -> io::Result<Vec<u8>> {
    let command = command();
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    let mut sources = Roff::new();
    sources.control("PP", []).text([roman(command.get_after_help().expect("it has one").to_string())]);
    sources.to_writer(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut built = command;
    built.build();
    let mut rest = Roff::new();
    list(&mut rest, "COMMANDS", commands(&built, "").into_iter());
    list(&mut rest, "EXIT STATUS", EXIT_CODES.iter().map(|(code, meaning)| (code.to_string(), *meaning)));
    list(&mut rest, "SIGNALS", SIGNALS.iter().copied());
    list(&mut rest, "ENVIRONMENT", ENVIRONMENT.iter().copied());
    list(&mut rest, "FILES", FILES.iter().copied());
    rest.to_writer(&mut page)?;
    Ok(page)
}

/// Returns every command with its own arguments, and its description. Settings are left out.
fn commands(command: &Command, before: &str) -> Vec<(String, String)> {
    let is_known = |argument: &&Arg| {
        argument.get_id() == "help" || SETTINGS.iter().any(|setting| setting.flag == argument.get_id())
    };
    let commands = command.get_subcommands().flat_map(|command| {
        let mut usage = format!("{before}{}", command.get_name());
        if command.has_subcommands() {
            return commands(command, &(usage + " "));
        }
        for argument in command.get_arguments().filter(|argument| !is_known(argument)) {
            usage += &if argument.is_positional() { format!(" {argument}") } else { format!(" [{argument}]") };
        }
        let about = command.get_long_about().or(command.get_about()).expect("it has one");
        let after = command.get_after_help().map_or(String::new(), |after| format!("\n\n{after}"));
        vec![(usage, format!("{about}{after}"))]
    });
    commands.collect()
}

/// Adds a section with a list of terms and their meanings.
fn list(page: &mut Roff, title: &str, terms: impl Iterator<Item = (impl Into<String>, impl Into<String>)>) {
    page.control("SH", [title]);
    for (term, meaning) in terms {
        page.control("TP", []).text([bold(term)]).text([roman(meaning)]);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_sound() {
        super::command().debug_assert();
    }
}
