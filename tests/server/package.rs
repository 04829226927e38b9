//! Output that needs no running server (manual page, shell completions, errors of commands), and the parts of the
//! Debian package. `tuning/debian/try` builds and tries the package itself.

use crate::harness::{assert_refused, in_repository, repository_text, skipped};
use stampede::config::fatal::EXIT_CODES;
use stampede::config::flags::SETTINGS;
use std::fs;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_stampede")).args(arguments).output().expect("the binary starts")
}

fn printed(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the settings file of the systemd unit: all settings except those that the unit sets itself.
fn settings_file() -> String {
    let head = "# Settings of the server, one VARIABLE=value per line. `man stampede` describes them.\n\
                # `systemctl reload stampede` applies changes without refusing a client. A different LISTEN needs a\n\
                # restart, and SALE_PERIOD cannot change. The data directory is /var/lib/stampede, as set in the\n\
                # unit.\n";
    let settings = SETTINGS.iter().filter(|setting| !["data-dir", "env-file"].contains(&setting.flag));
    let lines = settings.map(|setting| {
        let (open, default) = match setting.default.strip_prefix('(') {
            Some(words) => (format!(" [default: {}]", words.trim_end_matches(')')), ""),
            None => (String::new(), setting.default),
        };
        format!("\n# {}{open}\n#{}={default}\n", setting.help, setting.variables[0])
    });
    std::iter::once(head.to_owned()).chain(lines).collect()
}

#[test]
fn generated_files_are_up_to_date() {
    for (path, text) in [
        ("stampede.1", printed(&["man"])),
        ("stampede.bash", printed(&["completions", "bash"])),
        ("stampede.zsh", printed(&["completions", "zsh"])),
        ("stampede.fish", printed(&["completions", "fish"])),
        ("stampede.env", settings_file()),
    ] {
        let file = in_repository("tuning/debian").join(path);
        if std::env::var_os("STAMPEDE_GENERATE").is_some() {
            fs::write(&file, &text).unwrap();
        }
        let is_it = fs::read_to_string(&file).is_ok_and(|written| written == text);
        let command = "STAMPEDE_GENERATE=1 cargo test --profile tests --test server package::generated";
        assert!(is_it, "{} is out of date; regenerate it with\n{command}", file.display());
    }
}

#[test]
fn the_manual_has_every_setting_and_exit_code() {
    let page = printed(&["man"]).replace("\\-", "-").replace("\\*(Aq", "'");
    for setting in SETTINGS {
        assert!(page.contains(&format!("--{}", setting.flag)), "{}", setting.flag);
        assert!(setting.variables.iter().all(|variable| page.contains(variable)), "{}", setting.flag);
    }
    for (code, meaning) in EXIT_CODES {
        assert!(page.contains(&format!("\n\\fB{code}\\fR\n{meaning}\n")), "exit code {code} in {page}");
    }
}

/// Returns the completions that bash offers after these words.
fn offered(words: &str) -> Vec<String> {
    let script = r#"eval "$1"; COMP_WORDS=($2 "$3"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _stampede stampede "$3" "${COMP_WORDS[COMP_CWORD - 1]}"; printf '%s\n' "${COMPREPLY[@]}""#;
    let (before, last) = words.rsplit_once(' ').unwrap();
    let arguments = ["-c", script, "bash", &printed(&["completions", "bash"]), before, last];
    let output = Command::new("bash").args(arguments).output().unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
}

#[test]
fn shells_complete_every_flag_and_the_words_it_takes() {
    let flags = offered("stampede --");
    for setting in SETTINGS {
        assert!(flags.contains(&format!("--{}", setting.flag)), "{} in {flags:?}", setting.flag);
    }
    assert_eq!(offered("stampede --drain-"), ["--drain-delay", "--drain-timeout"]);
    assert_eq!(offered("stampede --recover-from "), ["auto", "log", "postgres"]);
    assert_eq!(offered("stampede co"), ["completions"]);
    for shell in ["bash", "zsh", "fish"] {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        fs::write(&script, printed(&["completions", shell])).unwrap();
        match Command::new(shell).arg("-n").arg(&script).output() {
            Ok(output) => assert!(output.status.success() && output.stderr.is_empty(), "{shell}: {output:?}"),
            Err(_) => skipped("completions", format!("no {shell}")),
        }
    }
}

/// Returns what fish offers after these words, in the order of the alphabet.
fn offered_by_fish(words: &str) -> Option<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("stampede.fish"), printed(&["completions", "fish"])).unwrap();
    let script = "source stampede.fish; complete -C \"$argv[1]\"";
    let mut command = Command::new("fish");
    command.args(["--no-config", "-c", script, words]).current_dir(dir.path()).env("HOME", dir.path());
    let output = String::from_utf8(command.output().ok()?.stdout).unwrap();
    Some(output.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect())
}

/// Returns the screen of an interactive zsh in which a person typed these words and the tab key twice, when it has all
/// `parts`, or after 10 seconds.
fn screen_of_zsh(words: &str, parts: &[&str]) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("_stampede"), printed(&["completions", "zsh"])).unwrap();
    // The quotes inside READY keep the echo of the command from looking like the prompt.
    let script = r#"zmodload zsh/zpty
        zpty -b shell zsh -f -i
        say() { zpty -w shell "$1" }
        say 'PROMPT= RPROMPT=; stty columns 200; unsetopt beep; bindkey -e'
        say 'fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D'
        say 'zstyle ":completion:*" insert-tab false; PROMPT=REA""DY'
        zpty -r -m shell screen '*READY*'
        zpty -n -w shell "$1"$'\t\t'
        for attempt in {1..200}; do
            sleep 0.05
            while zpty -r -t shell part; do screen+=$part; done
            missing=
            for part in "${@:2}"; do [[ $screen == *$part* ]] || missing=yes; done
            [[ -n $missing ]] || break
        done
        print -r -- "$screen""#;
    let mut command = Command::new("zsh");
    command.args(["-f", "-c", script, "zsh", words]).args(parts);
    command.current_dir(dir.path()).env("HOME", dir.path()).env("TERM", "dumb");
    Some(String::from_utf8_lossy(&command.output().ok()?.stdout).into_owned())
}

#[test]
fn fish_and_zsh_offer_the_same_words_as_bash() {
    match offered_by_fish("stampede --") {
        None => skipped("completions", "no fish"),
        Some(flags) => {
            for setting in SETTINGS {
                assert!(flags.contains(&format!("--{}", setting.flag)), "{} in {flags:?}", setting.flag);
            }
            for words in ["stampede --drain-", "stampede --recover-from ", "stampede --log-format ", "stampede co"] {
                let mut expected = offered(words);
                expected.sort_unstable();
                assert_eq!(offered_by_fish(words).unwrap(), expected, "{words}");
            }
        }
    }
    for (words, parts) in [
        ("stampede --drain-", &["--drain-delay", "--drain-timeout"][..]),
        ("stampede --recover-from ", &["auto", "log", "postgres"]),
        ("stampede log ", &["verify", "dump", "sale"]),
    ] {
        let Some(screen) = screen_of_zsh(words, parts) else { return skipped("completions", "no zsh") };
        assert!(parts.iter().all(|part| screen.contains(part)), "{words}: {screen}");
    }
}

#[test]
fn the_manual_is_typeset_without_a_warning() {
    let file = in_repository("tuning/debian/stampede.1");
    match Command::new("groff").args(["-man", "-Tascii", "-P-cbou", "-ww"]).arg(file).output() {
        Err(_) => skipped("the manual page", "no groff"),
        Ok(output) => {
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
            assert!(String::from_utf8(output.stdout).unwrap().contains("EXIT STATUS"));
        }
    }
}

#[test]
fn words_that_are_no_command_are_named() {
    let dir = tempfile::tempdir().unwrap();
    assert_refused(dir.path(), &["sell"], 2, &["sell", "--help"]);
    assert_refused(dir.path(), &["man"], 2, &["man", "--listen"]);
    for (arguments, part) in [
        (&["man", "now"][..], "'now'"),
        (&["completions"], "<SHELL>"),
        (&["completions", "tcsh"], "bash, zsh, fish"),
        (&["completions", "bash", "zsh"], "'zsh'"),
    ] {
        let output = run(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && output.stdout.is_empty() && said.contains(part), "{said}");
    }
}

#[test]
fn what_goes_into_the_package_is_there() {
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline", "--locked", "--manifest-path"];
    let metadata = Command::new(env!("CARGO")).args(arguments).arg(in_repository("Cargo.toml")).output().unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = &packages.iter().find(|package| package["name"] == "stampede").unwrap()["metadata"]["deb"];
    let assets: Vec<_> = package["assets"].as_array().unwrap().iter().map(|asset| asset[0].as_str().unwrap()).collect();
    for asset in &assets[1..] {
        assert!(in_repository(asset).is_file(), "{asset}");
    }
    assert_eq!(assets[0], "target/release/stampede");
    let units = in_repository(package["systemd-units"]["unit-scripts"].as_str().unwrap());
    assert!(units.join("stampede.service").is_file() && units.join("stampede.socket").is_file());
    let changes = repository_text(package["changelog"].as_str().unwrap());
    let latest = format!("stampede ({}-", env!("CARGO_PKG_VERSION"));
    assert!(changes.starts_with(&latest), "tuning/debian/changelog does not begin with {latest}");
}

#[test]
fn maintainer_scripts_are_sound() {
    for name in ["postinst", "prerm", "postrm"] {
        let script = in_repository("tuning/debian").join(name);
        assert!(fs::read_to_string(&script).unwrap().contains("\nset -e\n"), "{name} does not exit on an error");
        for checker in [&["sh", "-n"][..], &["shellcheck"]] {
            match Command::new(checker[0]).args(&checker[1..]).arg(&script).output() {
                Ok(output) => assert!(output.status.success(), "{name}: {output:?}"),
                Err(_) => skipped("maintainer scripts", format!("no {}", checker[0])),
            }
        }
    }
}
