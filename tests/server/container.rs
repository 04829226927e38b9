//! Tests of the `Dockerfile`, and of the server under a container engine.

use crate::harness::{LONG_SALE, Server, how_many, in_repository, repository_text, skipped};
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name of the build stage, and path of the binary in its working directory.
const BUILD: &str = "build";
const BINARY: &str = "target/release/stampede";

/// One instruction of the Dockerfile.
struct Step {
    /// Name of the stage, or its base image if the stage has no name.
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

/// Returns the arguments of every such instruction, in all stages.
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
        let (_, tag) = base.split(' ').next().unwrap().split_once(':').expect("the base image has a tag");
        assert!(tag.split('-').next().unwrap().matches('.').count() > 0, "{base} has no exact version");
    }
    let last = dockerfile().into_iter().rfind(|step| step.instruction == "USER").expect("the Dockerfile sets a user");
    assert!(last.stage != BUILD && last.arguments.parse().is_ok_and(|id: u32| id > 0), "{}", last.arguments);
}

/// Runs the health check, a bash command, against the real server.
#[test]
fn the_health_check_tells_ready_from_not_ready() {
    let [check] = &arguments_of("HEALTHCHECK")[..] else { panic!("the Dockerfile has not exactly one health check") };
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
    server.wait_for_line("received a signal to stop");
    assert!(!is_healthy("PORT"), "a draining server still sells, but is not ready");
    server.kill();
    assert!(!is_healthy("PORT"), "the server has ended");
}

/// Programs of the Debian packages podman, runc and netavark.
const ENGINE: [&str; 3] = ["/usr/bin/podman", "/usr/sbin/runc", "/usr/lib/podman/netavark"];

/// The step `sandbox` of `tuning/containers/try`, or those of `STAMPEDE_CONTAINER_STEPS`: podman and runc run the server
/// with a read-only root, without capabilities and under the seccomp profile. It sells a sale, across a kill.
#[test]
fn a_sale_is_sold_under_a_container_engine() {
    if let Some(missing) = ENGINE.iter().find(|program| !Path::new(program).exists()) {
        return skipped("container engine", format!("no {missing}"));
    }
    let namespaces = Command::new("unshare").args(["--net", "--mount", "--pid", "--fork", "true"]).status();
    if !namespaces.is_ok_and(|status| status.success()) {
        return skipped("container engine", "namespaces cannot be made");
    }
    let steps = std::env::var("STAMPEDE_CONTAINER_STEPS").unwrap_or_else(|_| "sandbox".into());
    let mut engine = Command::new(in_repository("tuning/containers/try"));
    engine.args(steps.split(' ')).env("STAMPEDE", env!("CARGO_BIN_EXE_stampede"));
    // Link-time optimization takes minutes.
    let output = engine.env("CARGO_PROFILE_RELEASE_LTO", "off").output().expect("bash starts");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    println!("{text}");
    assert!(output.status.success(), "{text}");
}

/// Creates the build context in `dir`: the files of the commit, filtered by `.dockerignore`.
fn context(dir: &Path) {
    for pattern in repository_text(".dockerignore").lines().filter(|line| !line.starts_with('#')) {
        if let Some(path) = pattern.strip_prefix('!') {
            let script = r#"git archive HEAD -- "$0" | tar --extract --directory="$1""#;
            let mut archive = Command::new("bash");
            archive.args(["-o", "pipefail", "-c", script, path]).arg(dir).current_dir(in_repository("."));
            assert!(archive.status().unwrap().success(), "git archive {path}");
        } else if pattern == "*" {
            assert_eq!(fs::read_dir(dir).unwrap().count(), 0, ".dockerignore excludes everything first");
        } else {
            fs::remove_dir_all(dir.join(pattern)).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        }
    }
}

/// Runs the steps of the build stage in `dir`, with nothing from the environment but the toolchain's variables. Returns
/// the path of the binary.
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
            other => panic!("the test does not know the instruction {other}"),
        }
    }
    dir.join(BINARY)
}

/// Builds the binary STAMPEDE_IMAGE_BUILDS times. Each build takes minutes.
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
            assert!(memchr::memmem::find(&bytes, path.as_bytes()).is_none(), "the binary contains {path}");
        }
        assert!(first.get_or_insert_with(|| bytes.clone()) == &bytes, "build {number} differs from the first");
        fs::remove_dir_all(&place).unwrap();
    }
}
