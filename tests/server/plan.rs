//! `stampede plan`: what `docs/plan.md` shows is what the binary prints.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs the binary with these words in `dir`.
fn stampede(dir: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stampede"));
    command.env_clear().current_dir(dir).args(words).stdin(Stdio::null());
    command.output().expect("the binary starts")
}

/// Returns the blocks of code of a document, each with its language.
fn blocks(document: &str) -> Vec<(&str, &str)> {
    let blocks = document.split("\n```").skip(1).step_by(2);
    blocks.map(|block| block.split_once('\n').expect("a block has lines")).collect()
}

/// Returns the blocks of `docs/plan.md` with the output of each command in the place of the shown one. Files are written,
/// commands are run, in the order of the page.
fn played(dir: &Path, page: &str) -> String {
    let mut played = page.to_owned();
    for (language, block) in blocks(page) {
        match language {
            "toml" => {
                let name = block.lines().next().unwrap().strip_prefix("# ").expect("the name of the file");
                fs::write(dir.join(name), block).unwrap();
            }
            "sh" => {
                let run = Command::new("bash").arg("-ec").arg(block).current_dir(dir).status().expect("bash starts");
                assert!(run.success(), "{block}");
            }
            "console" => {
                let mut shown = String::new();
                for line in block.lines().filter_map(|line| line.strip_prefix("$ ")) {
                    let words: Vec<_> = line.split(' ').collect();
                    assert_eq!(words[0], "stampede", "{line}");
                    let output = stampede(dir, &words[1..]);
                    let [said, complained] =
                        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
                    let is_refused = words.contains(&"wrong.toml");
                    assert_eq!(output.status.code(), Some(if is_refused { 2 } else { 0 }), "{line}: {complained}");
                    assert!(if is_refused { said.is_empty() } else { complained.is_empty() }, "{line}: {complained}");
                    shown += &format!("$ {line}\n{said}{complained}");
                }
                played =
                    played.replacen(&format!("\n```console\n{block}\n```"), &format!("\n```console\n{shown}```"), 1);
            }
            _ => {}
        }
    }
    played
}

/// With `STAMPEDE_GENERATE` set, the page is written anew.
#[test]
fn the_page_shows_what_the_command_prints() {
    let dir = tempfile::tempdir().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/plan.md");
    let page = fs::read_to_string(&path).unwrap();
    let played = played(dir.path(), &page);
    if std::env::var_os("STAMPEDE_GENERATE").is_some() {
        fs::write(&path, &played).unwrap();
    }
    assert!(page == played, "docs/plan.md shows another output; STAMPEDE_GENERATE=1 writes it:\n{played}");
}

/// Files that cannot be a plan are refused at once, by name.
#[test]
fn what_is_no_file_of_a_bearable_size_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("large.csv"), "x".repeat((16 << 20) + 1)).unwrap();
    fs::write(path("latin.toml"), b"name = \"Stra\xdfe\"\n").unwrap();
    let plan = |list: &str| {
        format!(
            "[[sale]]\nid = 1\nname = \"S\"\nopens = 2026-12-01T18:00:00Z\ncloses = 2026-12-01T19:00:00Z\nuser_limit = 1\n\
             [[sale.product]]\nid = \"x\"\nname = \"X\"\nunits_file = \"{list}\"\n"
        )
    };
    ["large.csv", "pipe", "."].iter().for_each(|list| fs::write(path(&format!("{list}.toml")), plan(list)).unwrap());
    let pipe = Command::new("mkfifo").arg(path("pipe")).status().unwrap();
    assert!(pipe.success());
    for (plan, why) in [
        ("none.toml", "none.toml cannot be read: No such file or directory"),
        (".", ". cannot be read: it is not a file"),
        ("pipe", "pipe cannot be read: it is not a file"),
        ("large.csv", "large.csv cannot be read: it is larger than 16 MiB"),
        ("latin.toml", "latin.toml:1:13: this is not UTF-8; save the file in this encoding"),
        (
            "large.csv.toml",
            "large.csv.toml:10:14: \"units_file\" is \"large.csv\", which cannot be read: it is larger than 16 MiB",
        ),
        ("pipe.toml", "pipe.toml:10:14: \"units_file\" is \"pipe\", which cannot be read: it is not a file"),
    ] {
        for command in ["check", "show"] {
            let output = stampede(dir.path(), &["plan", command, plan]);
            let complained = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.code() == Some(2) && output.stdout.is_empty(), "{plan}: {complained}");
            assert!(
                complained.starts_with("stampede: wrong plan: ") && complained.contains(why),
                "{plan}: {complained}"
            );
        }
    }
}
