//! `Dockerfile`, as far as it can be tried without an engine.

use crate::harness::{LONG_SALE, Server, how_many, in_repository, repository_text, skipped};
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The stage that makes the binary, and where it leaves it, in its working directory.
const BUILD: &str = "build";
const BINARY: &str = "target/release/stampede";

/// An instruction of the Dockerfile.
struct Step {
    /// The stage's name, or its base.
    stage: String,
    instruction: String,
    arguments: String,
}

fn dockerfile() -> Vec<Step> {
    let text = repository_text("Dockerfile");
    let lines: String = text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    let mut stage = String::new();
    let steps = lines.replace("\\\n", "");
    let steps = steps.lines().filter_map(|line| line.split_once(' ')).map(|(instruction, arguments)| {
        if instruction == "FROM" {
            stage = arguments.split(' ').next_back().unwrap().to_owned();
        }
        Step { stage: stage.clone(), instruction: instruction.to_owned(), arguments: arguments.trim().to_owned() }
    });
    steps.collect()
}

/// The arguments of every such instruction, in all stages.
fn arguments_of(instruction: &str) -> Vec<String> {
    let steps = dockerfile().into_iter().filter(|step| step.instruction == instruction);
    steps.map(|step| step.arguments).collect()
}

#[test]
fn everything_that_is_copied_is_there() {
    let copies = arguments_of("COPY");
    for copy in &copies {
        let words: Vec<_> = copy.split_whitespace().collect();
        match words[0].strip_prefix("--from=") {
            Some(stage) => assert!(dockerfile().iter().any(|step| step.stage == stage), "no stage {stage}"),
            None => assert!(words[..words.len() - 1].iter().all(|source| in_repository(source).exists()), "{copy}"),
        }
    }
    assert!(copies.iter().any(|copy| copy.starts_with(&format!("--from={BUILD} /src/{BINARY} "))), "{copies:?}");
    let named = repository_text(".dockerignore");
    let named: Vec<_> = named.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert!(!named.is_empty() && named.iter().all(|path| in_repository(path).exists()), "{named:?}");
}

#[test]
fn bases_have_versions_and_nobody_is_root() {
    for base in arguments_of("FROM") {
        let (_, tag) = base.split(' ').next().unwrap().split_once(':').expect("a tag");
        assert!(tag.split('-').next().unwrap().matches('.').count() > 0, "{base} is another one next month");
    }
    let last = dockerfile().into_iter().rfind(|step| step.instruction == "USER").expect("a user");
    assert!(last.stage != BUILD && last.arguments.parse().is_ok_and(|id: u32| id > 0), "{}", last.arguments);
}

/// The health check, in bash, against the real server.
#[test]
fn the_health_check_tells_ready_from_not_ready() {
    let [check] = &arguments_of("HEALTHCHECK")[..] else { panic!("not one health check") };
    let (_, check) = check.split_once("CMD ").unwrap();
    let check: Vec<String> = serde_json::from_str(check).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--drain-delay", "1h"]].concat());
    let port = server.address.port().to_string();
    let is_healthy = |variable: &str| {
        let mut command = Command::new(&check[0]);
        command.args(&check[1..]).env_remove("PORT").env_remove("APP_PORT").env(variable, &port);
        command.output().unwrap().status.success()
    };
    assert!(is_healthy("PORT") && is_healthy("APP_PORT"));
    server.signal(Signal::TERM);
    server.wait_for_line("told to stop");
    assert!(!is_healthy("PORT"), "it still sells, but nobody new is to come");
    server.kill();
    assert!(!is_healthy("PORT"), "there is nobody");
}

/// What the engine would send to the build: the commit, without what .dockerignore names.
fn context(dir: &Path) {
    for pattern in repository_text(".dockerignore").lines().filter(|line| !line.starts_with('#')) {
        if let Some(path) = pattern.strip_prefix('!') {
            let script = r#"git archive HEAD -- "$0" | tar --extract --directory="$1""#;
            let mut archive = Command::new("bash");
            archive.args(["-o", "pipefail", "-c", script, path]).arg(dir).current_dir(in_repository("."));
            assert!(archive.status().unwrap().success(), "git archive {path}");
        } else if pattern == "*" {
            assert_eq!(fs::read_dir(dir).unwrap().count(), 0, "first nothing, then what is named");
        } else {
            fs::remove_dir_all(dir.join(pattern)).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        }
    }
}

/// Runs the steps of the build stage in `dir`, free of the settings of whoever runs the tests; returns the binary.
fn build(dir: &Path) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    for step in dockerfile().iter().filter(|step| step.stage == BUILD) {
        match step.instruction.as_str() {
            "FROM" | "WORKDIR" => {}
            "COPY" => context(dir),
            "RUN" => {
                let mut run = Command::new("nice");
                run.args(["-n", "19", "sh", "-c", &step.arguments]).env_clear().current_dir(dir);
                let kept = ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"];
                run.envs(kept.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
                assert!(run.status().unwrap().success(), "{}", step.arguments);
            }
            other => panic!("{other} is not known here"),
        }
    }
    dir.join(BINARY)
}

/// As often as STAMPEDE_IMAGE_BUILDS says: minutes each.
#[test]
fn every_build_gives_the_same_binary() {
    let builds = how_many("STAMPEDE_IMAGE_BUILDS", 0);
    if builds == 0 {
        return skipped("the image's build", "it takes minutes; set STAMPEDE_IMAGE_BUILDS=2");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut first: Option<Vec<u8>> = None;
    for number in 1..=builds {
        let place = dir.path().join("another/directory".repeat(number as usize));
        let binary = build(&place);
        let version = Command::new(&binary).arg("--version").output().unwrap();
        assert_eq!(version.stdout, format!("stampede {}\n", env!("CARGO_PKG_VERSION")).into_bytes());
        let bytes = fs::read(&binary).unwrap();
        let home = std::env::var("CARGO_HOME").unwrap_or_else(|_| std::env::var("HOME").unwrap() + "/.cargo");
        for path in [dir.path().to_str().unwrap(), &home] {
            assert!(memchr::memmem::find(&bytes, path.as_bytes()).is_none(), "{path} is in it");
        }
        assert!(first.get_or_insert_with(|| bytes.clone()) == &bytes, "build {number} is another binary");
        fs::remove_dir_all(&place).unwrap();
    }
}
