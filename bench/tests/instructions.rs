//! Instructions per operation on the request path, counted by callgrind and compared with a table, so that a change of
//! the cost does not go unnoticed. The figures apply to the `tests` profile, one version of the compiler and CPUs with
//! the same vector instructions. In another environment nothing is compared, and a line says why.
//!
//! `STAMPEDE_WRITE_INSTRUCTIONS=1 cargo test --profile tests --workspace --test instructions` writes the table.

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

fn count(kind: &str, operations: u64) -> u64 {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("callgrind.out");
    let mut callgrind = Command::new("valgrind");
    callgrind.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", file.display()));
    callgrind.arg(env!("CARGO_BIN_EXE_count")).args([kind, &operations.to_string()]);
    let text = output(&mut callgrind).expect("valgrind can be started");
    let line = text.lines().find_map(|line| line.split_once("Collected : "));
    line.and_then(|(_, number)| number.trim().parse().ok()).unwrap_or_else(|| panic!("no count in {text}"))
}

/// Parses the table: the line of the environment, then one figure on each line.
fn parse(table: &str) -> (String, BTreeMap<String, f64>) {
    let mut lines = table.lines().filter(|line| !line.starts_with('#'));
    let made_with = lines.next().expect("a line of the environment").to_owned();
    let figure = |line: &str| {
        let (kind, figure) = line.split_once(' ')?;
        Some((kind.to_owned(), figure.parse().ok()?))
    };
    (made_with, lines.map(|line| figure(line).expect("a kind and a figure")).collect())
}

#[test]
fn instructions_per_operation_match_the_table() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("instructions.txt");
    let writes = std::env::var_os("STAMPEDE_WRITE_INSTRUCTIONS").is_some();
    let environment = environment();
    let table = std::fs::read_to_string(&path).expect("the table exists");
    let (made_with, expected) = parse(&table);
    if let Some(reason) = other_profile() {
        return say(&format!("not compared: this is not the tests profile: {reason}"));
    }
    if made_with != environment && !writes {
        return say(&format!("not compared: the table is for {made_with}, and this is {environment}"));
    }
    if output(Command::new("valgrind").arg("--version")).is_none() {
        return say("not compared: valgrind is missing; apt-get install valgrind");
    }
    let [fewer, more] = OPERATIONS;
    let each = |kind| (count(kind, more) - count(kind, fewer)) as f64 / (more - fewer) as f64;
    let found = KINDS.map(|kind| (kind, each(kind)));
    if writes {
        let comments = table.lines().filter(|line| line.starts_with('#'));
        let mut text: String = comments.flat_map(|line| [line, "\n"]).collect();
        writeln!(text, "{environment}").expect("writing to a string cannot fail");
        for (kind, figure) in found {
            writeln!(text, "{kind} {figure:.1}").expect("writing to a string cannot fail");
        }
        return std::fs::write(&path, text).expect("the table can be written");
    }
    let mut off = String::new();
    for (kind, figure) in found {
        let change = (figure / expected[kind] - 1.0) * 100.0;
        say(&format!("{kind} {figure:.1} ({change:+.2}%)"));
        if change.abs() > TOLERANCE_PERCENT {
            write!(off, "{kind}: {figure:.1} instead of {}; ", expected[kind])
                .expect("writing to a string cannot fail");
        }
    }
    assert!(off.is_empty(), "{off}if the change is intended, write the table with STAMPEDE_WRITE_INSTRUCTIONS=1");
}
