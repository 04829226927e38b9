//! Instructions of one operation on the path of a request, counted by callgrind and compared with a table, so that a
//! change that makes a request dearer says so. The figures are of the tests' profile, of one compiler, and of CPUs that
//! have the same vector instructions; where these are others, nothing is compared, and a line says why.
//!
//! `STAMPEDE_WRITE_INSTRUCTIONS=1 cargo test --profile tests --workspace --test instructions` writes the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const KINDS: [&str; 3] = ["refusal", "checkout", "purchase"];
/// Two runs of each kind: whole turns, and all that happens only now and then happens in both as often for each
/// operation.
const OPERATIONS: [u64; 2] = [8 * 1024, 24 * 1024];
/// Parts of a hundred by which a figure may be off: the C library's copying and allocating differ a little.
const TOLERANCE_PERCENT: f64 = 2.0;

/// Past what the test runner captures.
fn say(line: &str) {
    writeln!(std::io::stderr(), "instructions: {line}").expect("standard error is there");
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some([output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat())
}

/// What the figures depend on, besides the code.
fn circumstances() -> String {
    let rustc = output(Command::new("rustc").arg("--version")).expect("cargo has a compiler");
    #[cfg(target_arch = "x86_64")]
    let vectors = if std::arch::is_x86_feature_detected!("avx2") { "avx2" } else { "no avx2" };
    #[cfg(not(target_arch = "x86_64"))]
    let vectors = std::env::consts::ARCH;
    format!("{}, {vectors}", rustc.trim())
}

/// Whether this build is not what the table is of.
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

/// One figure to a line, after the line of the circumstances.
fn parse(table: &str) -> (String, BTreeMap<String, f64>) {
    let mut lines = table.lines().filter(|line| !line.starts_with('#'));
    let made_with = lines.next().expect("a line of circumstances").to_owned();
    let figure = |line: &str| {
        let (kind, figure) = line.split_once(' ')?;
        Some((kind.to_owned(), figure.parse().ok()?))
    };
    (made_with, lines.map(|line| figure(line).expect("a kind and a figure")).collect())
}

#[test]
fn no_operation_has_become_dearer_or_cheaper_unnoticed() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("instructions.txt");
    let writes = std::env::var_os("STAMPEDE_WRITE_INSTRUCTIONS").is_some();
    let circumstances = circumstances();
    let table = std::fs::read_to_string(&path).expect("the table is there");
    let (made_with, expected) = parse(&table);
    if let Some(reason) = other_profile() {
        return say(&format!("not compared, for this is not the tests' profile: {reason}"));
    }
    if made_with != circumstances && !writes {
        return say(&format!("not compared: the table is of {made_with}, and this is {circumstances}"));
    }
    if output(Command::new("valgrind").arg("--version")).is_none() {
        return say("not compared: there is no valgrind; apt-get install valgrind");
    }
    let [fewer, more] = OPERATIONS;
    let each = |kind| (count(kind, more) - count(kind, fewer)) as f64 / (more - fewer) as f64;
    let found = KINDS.map(|kind| (kind, each(kind)));
    if writes {
        let comments = table.lines().filter(|line| line.starts_with('#'));
        let mut text: String = comments.flat_map(|line| [line, "\n"]).collect();
        writeln!(text, "{circumstances}").expect("a string takes everything");
        for (kind, figure) in found {
            writeln!(text, "{kind} {figure:.1}").expect("a string takes everything");
        }
        return std::fs::write(&path, text).expect("the table can be written");
    }
    let mut off = String::new();
    for (kind, figure) in found {
        let change = (figure / expected[kind] - 1.0) * 100.0;
        say(&format!("{kind} {figure:.1} ({change:+.2}%)"));
        if change.abs() > TOLERANCE_PERCENT {
            write!(off, "{kind}: {figure:.1} instead of {}; ", expected[kind]).expect("a string takes everything");
        }
    }
    assert!(off.is_empty(), "{off}if that is meant, write the table again");
}
