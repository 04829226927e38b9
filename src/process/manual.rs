//! What can be read about the server without starting it: a page for `man`, and completions for shells.
//!
//! All of it comes from the definitions of `--help`, so that none can know a setting that another lacks.

use crate::config::fatal::EXIT_CODES;
use crate::config::flags::{self, SETTINGS};
use crate::log_tool::arguments;
use clap::builder::{PossibleValuesParser, TypedValueParser, ValueHint};
use clap::{Arg, ArgMatches, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use std::io;

const NAME: &str = "stampede";

const SIGNALS: &[(&str, &str)] = &[
    (
        "SIGTERM, SIGINT",
        "Drain and stop: after --drain-delay nobody new is let in, requests in flight are finished, the log is flushed, \
         Postgres gets the rest, all within --drain-timeout. A second one does not wait for requests in flight.",
    ),
    (
        "SIGUSR2",
        "Upgrade in place: the binary that is now at the same path is started with the same arguments, reads the file of \
         --env-file anew, and takes over the sale, the port and every connection. If it cannot, the old process goes on.",
    ),
];

const ENVIRONMENT: &[(&str, &str)] = &[
    ("RUST_LOG", "Which log lines are written, like info (the default), warn or stampede=debug."),
    ("PGPASSFILE", "Where passwords for Postgres are looked up that are not given; else in ~/.pgpass."),
];

const FILES: &[(&str, &str)] = &[
    (
        "./data, or what --data-dir says",
        "The data directory. log/ is the purchase log, in binary segments; control.json names the installation, its sale \
         period and what is known of the database; lock is held by the one server that runs on it; set-aside-1, \
         set-aside-2, ... are logs that --recover-from postgres has put away.",
    ),
    (".env, or what --env-file says", "Settings, one VARIABLE=value a line; read at the start and anew by an upgrade."),
    ("/var/lib/stampede", "The data directory and the working directory of the systemd unit."),
    ("/etc/stampede/stampede.env", "Settings for the systemd unit, in the form of .env."),
];

/// The command line: settings, or a command that prints something to read instead of starting the server.
pub fn command() -> Command {
    let shells = PossibleValuesParser::new(["bash", "zsh", "fish"]);
    let shells = shells.map(|shell| shell.parse::<Shell>().expect("it is one of these"));
    let shell = Arg::new("shell").value_name("SHELL").required(true).value_parser(shells).help("Whose completions");
    flags::command()
        .override_usage(
            "stampede [OPTIONS]\n       stampede log <verify|dump|sale> [OPTIONS]\n       stampede completions <SHELL>\n       stampede man",
        )
        .help_template("{about-with-newline}\n{usage-heading} {usage}\n\nOptions:\n{options}\n\nCommands:\n{subcommands}{after-help}")
        .args_conflicts_with_subcommands(true)
        .disable_help_subcommand(true)
        .subcommand(arguments::command())
        .subcommand(Command::new("completions").about("Print completions of these flags for a shell").arg(shell))
        .subcommand(Command::new("man").about("Print a manual page, for man -l -"))
}

/// What the arguments ask to have printed. Nothing, if they ask for a server.
pub fn asked_for(arguments: &ArgMatches) -> Option<String> {
    let text = match arguments.subcommand()? {
        ("completions", arguments) => completions(*arguments.get_one("shell").expect("it is required")),
        ("log", _) => return None,
        _ => page().expect("memory takes whatever is written to it"),
    };
    Some(String::from_utf8(text).expect("it is made of text"))
}

fn completions(shell: Shell) -> Vec<u8> {
    // The words that a setting may be are told by what stands for it in --help.
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
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, NAME, &mut script);
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

/// Every command, with what it takes besides settings, and what it does.
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

/// A section of terms and what each means.
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
