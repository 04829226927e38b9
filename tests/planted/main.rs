//! Tests of the tests: a planted bug is a wrong version of a place in the sources, and a test must catch each one.
//!
//! All bugs are planted at once in a copy of the sources. Each bug has a number, and an environment variable selects
//! one bug when the tests of the copy run. So one build serves all bugs, and the sources themselves contain none of
//! them.
//!
//! The tables of bugs are `rules.rs`, `any_item.rs`, `overlaps.rs`, `products.rs`, `storage.rs` and
//! `two_machines.rs`. If a place of a table is no longer found, the source has changed: update the table.

mod any_item;
mod overlaps;
mod products;
mod rules;
mod storage;
mod two_machines;

use rules::Bug;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

/// Environment variable that selects a bug by its position in the table, from 1.
const CHOICE: &str = "STAMPEDE_PLANTED";

/// Number of seeds in which the simulator must catch a bug, the simulator's default.
const SEEDS: &str = "20000";

/// Returns all bugs.
fn bugs() -> impl Iterator<Item = &'static Bug> {
    let any_item = any_item::ANY_ITEM.iter().chain(products::PRODUCTS).chain(overlaps::OVERLAPS);
    rules::RULES.iter().chain(any_item).chain(storage::STORAGE).chain(two_machines::TWO_MACHINES)
}

#[test]
fn every_planted_bug_is_caught() {
    let copy = Copy::make();
    let tests = copy.build();
    let unharmed = run(&tests, 0, "sim::every", "300");
    assert!(unharmed.status.success(), "the copy fails without a bug: {}", text(&unharmed));
    // Most bugs need one thread, so there are as many runs at a time as CPUs.
    let numbered: Vec<(usize, &Bug)> = (1..).zip(bugs()).collect();
    let next = AtomicUsize::new(0);
    let try_bugs = || {
        let mut verdicts = Vec::new();
        while let Some((number, bug)) = numbered.get(next.fetch_add(1, Ordering::Relaxed)) {
            let lived = run(&tests, *number, bug.caught_by, SEEDS);
            let (is_caught, said) = (!lived.status.success(), text(&lived));
            let how = if is_caught { complaint(&said) } else { format!("MISSED by {}", bug.caught_by) };
            verdicts.push((*number, is_caught, format!("{}: {}: {how}\n", bug.file, bug.what)));
        }
        verdicts
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let mut verdicts = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(try_bugs)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    verdicts.sort();
    let report: String = verdicts.iter().map(|(_, _, line)| line.as_str()).collect();
    println!("{report}");
    assert!(verdicts.iter().all(|(_, is_caught, _)| *is_caught), "bugs that no test caught:\n{report}");
}

/// Returns the name of the first failed test and its message.
fn complaint(said: &str) -> String {
    let lines = || said.lines().skip_while(|line| !line.contains("panicked at "));
    let test = lines().next().and_then(|line| line.split('\'').nth(1)).expect("a failed test has a name");
    format!("{test}: {}", lines().nth(1).unwrap_or_default())
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn run(tests: &Path, number: usize, filter: &str, seeds: &str) -> Output {
    let mut command = Command::new(tests);
    command.arg(filter).env(CHOICE, number.to_string()).env("STAMPEDE_SIM_SEEDS", seeds);
    command
        .env("RUST_BACKTRACE", "0")
        .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true")
        .env_remove("STAMPEDE_SIM_FIRST")
        .output()
        .expect("the copy's tests start")
}

/// A copy of the crate that contains every bug.
struct Copy(tempfile::TempDir);

impl Copy {
    fn make() -> Copy {
        let (home, copy) = (Path::new(env!("CARGO_MANIFEST_DIR")), tempfile::tempdir().unwrap());
        for dir in ["src", "sql"] {
            copy_tree(&home.join(dir), &copy.path().join(dir));
        }
        let manifest = fs::read_to_string(home.join("Cargo.toml")).unwrap();
        let alone = manifest.replace("members = [\"bench\"]\n", "");
        fs::write(copy.path().join("Cargo.toml"), alone).unwrap();
        fs::copy(home.join("Cargo.lock"), copy.path().join("Cargo.lock")).unwrap();
        let copy = Copy(copy);
        for (number, bug) in (1..).zip(bugs()) {
            copy.edit(bug.file, |source| plant(source, number, bug));
        }
        copy.edit("lib.rs", |source| {
            format!(
                "{source}\n/// Whether this planted bug is chosen.\npub fn planted(number: usize) -> bool {{\n\
                 static CHOICE: std::sync::LazyLock<usize> = std::sync::LazyLock::new(|| \
                 std::env::var(\"{CHOICE}\").ok().and_then(|text| text.parse().ok()).unwrap_or(0));\n\
                 *CHOICE == number\n}}\n"
            )
        });
        copy
    }

    fn edit(&self, file: &str, change: impl FnOnce(&str) -> String) {
        let path = self.0.path().join("src").join(file);
        let source = fs::read_to_string(&path).unwrap();
        fs::write(&path, change(&source)).unwrap();
    }

    /// Builds the copy's unit tests in the target directory and with the profile of this test, so that no dependency is
    /// rebuilt. Returns the executable.
    fn build(&self) -> PathBuf {
        let this = env::current_exe().unwrap();
        let profile_dir = this.ancestors().nth(2).unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["test", "--lib", "--no-run", "--offline", "--message-format", "json"]);
        match profile_dir.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => {}
            Some(profile) => _ = cargo.args(["--profile", profile]),
        }
        let cargo = cargo.current_dir(self.0.path()).env("CARGO_TARGET_DIR", profile_dir.parent().unwrap());
        let built = cargo.env_remove("RUSTFLAGS").output().expect("cargo starts");
        let lines = String::from_utf8(built.stdout).unwrap();
        let messages: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let errors = messages.iter().map(|line| &line["message"]).filter(|message| message["level"] == "error");
        let errors: String = errors.filter_map(|message| message["rendered"].as_str()).collect();
        assert!(built.status.success(), "the copy does not build: {errors}{}", String::from_utf8_lossy(&built.stderr));
        let mut executables = messages.iter().filter_map(|message| message["executable"].as_str().map(PathBuf::from));
        executables.next().expect("the unit tests are an executable")
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Replaces the place of a bug by a choice between the right and the wrong version.
fn plant(source: &str, number: usize, bug: &Bug) -> String {
    let (before, rest) = bug.place.split_once('«').expect("a place contains « and »");
    let (right, after) = rest.split_once('»').expect("a place contains « and »");
    let wrong = bug.wrong;
    // Earlier bugs may be in the same file, but never in the same place.
    let found = format!("{before}{right}{after}");
    let times = source.matches(&found).count();
    assert_eq!(times, 1, "{}: {times} matches, update the table of bugs: {found}", bug.file);
    let choice = format!("if crate::planted({number}) {{ {wrong} }} else {{ {right} }}");
    let choice = if right.ends_with(';') { choice } else { format!("({choice})") };
    source.replace(&found, &format!("{before}{choice}{after}"))
}
