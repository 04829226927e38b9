//! Instructions per operation on the request path, counted by callgrind and compared with a table, so that a change of
//! the cost does not go unnoticed. The table has figures of the `tests` profile, and of the release profile, which is shipped
//! and differs by link-time optimization. They apply to one version of the compiler and CPUs with the same vector
//! instructions. In another environment nothing is compared, and a line says why.
//!
//! `STAMPEDE_RELEASE_COUNT` names the program `count` of the release profile (`cargo build --release -p bench`). Without it,
//! its figures are not compared. `STAMPEDE_WRITE_INSTRUCTIONS=1 cargo test --profile tests --workspace --test instructions`
//! writes the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const KINDS: [&str; 3] = ["refusal", "checkout", "purchase"];
/// Operations of the two runs of each kind. Both are whole turns, so that periodic work, such as a flush of attempts,
/// is the same for each operation.
const OPERATIONS: [u64; 2] = [8 * 1024, 24 * 1024];
/// Tolerance in percent. The copying and allocating functions of C libraries differ a little.
const TOLERANCE_PERCENT: f64 = 2.0;
/// Instructions of a checkout across 64 shards at most, over those across 2: with batches of 64 messages, and of one.
const GROWTH_MAX: f64 = 1.1;
const SPREAD_MAX: f64 = 2.5;

/// Writes a line to standard error, which the test runner does not capture.
fn say(line: &str) {
    writeln!(std::io::stderr(), "instructions: {line}").expect("standard error is open");
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some([output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat())
}

/// Returns the environment that the figures depend on: the compiler and the vector instructions.
fn environment() -> String {
    let rustc = output(Command::new("rustc").arg("--version")).expect("cargo has a compiler");
    #[cfg(target_arch = "x86_64")]
    let vectors = if std::arch::is_x86_feature_detected!("avx2") { "avx2" } else { "no avx2" };
    #[cfg(not(target_arch = "x86_64"))]
    let vectors = std::env::consts::ARCH;
    format!("{}, {vectors}", rustc.trim())
}

/// Returns the reason why this build does not have the table's profile, or `None` if it has.
fn other_profile() -> Option<String> {
    let changes = |name: &String| name.starts_with("CARGO_PROFILE_") || name.ends_with("RUSTFLAGS");
    let variables = || std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let profile = Path::new(env!("CARGO_BIN_EXE_count")).parent().expect("a directory");
    if profile.ends_with("tests") { variables().find(changes) } else { Some(profile.display().to_string()) }
}

/// Returns whether valgrind is missing, and says so.
fn lacks_valgrind() -> bool {
    let is_missing = output(Command::new("valgrind").arg("--version")).is_none();
    if is_missing {
        say("not compared: valgrind is missing; apt-get install valgrind");
    }
    is_missing
}

/// Returns the instructions of one operation.
fn each(program: &Path, arguments: &[&str]) -> f64 {
    let [fewer, more] = OPERATIONS;
    (count(program, arguments, more) - count(program, arguments, fewer)) as f64 / (more - fewer) as f64
}

fn count(program: &Path, arguments: &[&str], operations: u64) -> u64 {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("callgrind.out");
    let mut callgrind = Command::new("valgrind");
    callgrind.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", file.display()));
    callgrind.arg(program).args(arguments).arg(operations.to_string());
    let text = output(&mut callgrind).expect("valgrind can be started");
    let line = text.lines().find_map(|line| line.split_once("Collected : "));
    line.and_then(|(_, number)| number.trim().parse().ok()).unwrap_or_else(|| panic!("no count in {text}"))
}

/// Parses the table: the line of the environment, then one figure on each line.
fn parse(table: &str) -> (String, BTreeMap<String, f64>) {
    let mut lines = table.lines().filter(|line| !line.starts_with('#'));
    let made_with = lines.next().expect("a line of the environment").to_owned();
    let figure = |line: &str| {
        let (name, figure) = line.rsplit_once(' ')?;
        Some((name.to_owned(), figure.parse().ok()?))
    };
    (made_with, lines.map(|line| figure(line).expect("a profile, a kind and a figure")).collect())
}

#[test]
fn instructions_per_operation_match_the_table() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("instructions.txt");
    let writes = std::env::var_os("STAMPEDE_WRITE_INSTRUCTIONS").is_some();
    let environment = environment();
    let table = std::fs::read_to_string(&path).expect("the table exists");
    let (made_with, mut expected) = parse(&table);
    if let Some(reason) = other_profile() {
        return say(&format!("not compared: this is not the tests profile: {reason}"));
    }
    if made_with != environment && !writes {
        return say(&format!("not compared: the table is for {made_with}, and this is {environment}"));
    }
    if lacks_valgrind() {
        return;
    }
    let release = std::env::var_os("STAMPEDE_RELEASE_COUNT").map(|path| ("release", PathBuf::from(path)));
    let mut off = String::new();
    for (profile, program) in [("tests", env!("CARGO_BIN_EXE_count").into())].into_iter().chain(release) {
        for kind in KINDS {
            let figure = each(&program, &[kind]);
            let name = format!("{profile} {kind}");
            let before = match expected.insert(name.clone(), figure) {
                Some(before) => before,
                None if writes => figure,
                None => panic!("the table has no {name}"),
            };
            let change = (figure / before - 1.0) * 100.0;
            say(&format!("{name} {figure:.1} ({change:+.2}%)"));
            if change.abs() > TOLERANCE_PERCENT {
                write!(off, "{name}: {figure:.1} instead of {before}; ").expect("writing to a string cannot fail");
            }
        }
    }
    if writes {
        let comments = table.lines().filter(|line| line.starts_with('#'));
        let figures = expected.iter().map(|(name, figure)| format!("{name} {figure:.1}"));
        let lines = comments.map(str::to_owned).chain([environment]).chain(figures);
        let text: String = lines.map(|line| line + "\n").collect();
        return std::fs::write(&path, text).expect("the table can be written");
    }
    assert!(off.is_empty(), "{off}if the change is intended, write the table with STAMPEDE_WRITE_INSTRUCTIONS=1");
}

/// The work for a checkout that crosses shards does not grow with the number of shards. If a shard asks all others in one
/// turn, its batches have one message each, and the work for a batch shows.
#[test]
fn instructions_do_not_grow_with_the_shards() {
    if lacks_valgrind() {
        return;
    }
    let program = Path::new(env!("CARGO_BIN_EXE_count"));
    let across = |shards, asked| each(program, &["--shards", shards, "--asked", asked, "crossing"]);
    let [of_two, one_of_64, all_of_64] = [across("2", "1"), across("64", "1"), across("64", "63")];
    say(&format!("a checkout across 2 shards {of_two:.1}; of 64, to one other {one_of_64:.1}, to all {all_of_64:.1}"));
    assert!(one_of_64 < of_two * GROWTH_MAX, "{one_of_64:.1} instructions with 64 shards, {of_two:.1} with 2");
    assert!(all_of_64 < of_two * SPREAD_MAX, "{all_of_64:.1} instructions to 63 shards, {of_two:.1} to one");
}
