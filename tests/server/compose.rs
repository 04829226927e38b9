//! Tests of `docker-compose.yml` and `tuning/seccomp.json` that need no container engine.

use crate::harness::{LONG_SALE, Server, in_repository, repository_text, skipped, stampede};
use serde::Deserialize;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

/// Every file that the compose file mounts or names exists.
#[test]
fn every_file_that_it_names_is_there() {
    let compose = repository_text("docker-compose.yml");
    let words = compose.split_whitespace().filter(|word| word.starts_with("./") || word.starts_with("seccomp:"));
    let paths = words.map(|word| word.trim_start_matches("seccomp:").split(':').next().unwrap());
    let paths: Vec<_> = paths.collect();
    assert!(paths.len() >= 2 && paths.iter().all(|path| in_repository(path).exists()), "{paths:?}");
}

/// Validates the compose file with docker-compose, which contains the schema of the compose specification.
#[test]
fn the_compose_file_is_valid() {
    let text = repository_text("docker-compose.yml");
    let complaint = |text: &str, password: &[(&str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("docker-compose.yml"), text).unwrap();
        symlink(in_repository("tuning"), dir.path().join("tuning")).unwrap();
        let mut command = Command::new("docker-compose");
        command.args(["config", "--quiet"]).current_dir(dir.path()).env_remove("DB_PASSWORD");
        let output = command.envs(password.iter().copied()).output().ok()?;
        Some(if output.status.success() { String::new() } else { String::from_utf8(output.stderr).unwrap() })
    };
    let password = [("DB_PASSWORD", "a-password")];
    let Some(found) = complaint(&text, &password) else { return skipped("compose file", "no docker-compose") };
    assert_eq!(found, "");
    // The validation reports each of these errors.
    for (right, wrong, found) in [
        ("ulimits:", "ulimit:", "Unsupported config option"),
        ("nofile: 65536", "nofile: [65536]", "invalid type"),
        ("seccomp:tuning/", "seccomp:tunings/", "Error reading seccomp profile"),
    ] {
        let said = complaint(&text.replace(right, wrong), &password).unwrap();
        assert!(said.contains(found), "{wrong}: {said}");
    }
    let said = complaint(&text, &[]).unwrap();
    assert!(said.contains("choose one"), "the compose file must not have a default password: {said}");
}

const IO_URING: [&str; 3] = ["io_uring_setup", "io_uring_enter", "io_uring_register"];

/// A seccomp profile, with the fields of the engines' format that this profile uses.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Profile {
    default_action: String,
    architectures: Vec<String>,
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rule {
    names: Vec<String>,
    action: String,
    errno_ret: u32,
    #[serde(default)]
    args: Vec<Argument>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    value_two: u64,
    op: String,
}

#[test]
fn the_seccomp_profile_allows_io_uring_and_nothing_that_opens_the_kernel() {
    let profile: Profile = serde_json::from_str(&repository_text("tuning/seccomp.json")).unwrap();
    assert_eq!(profile.default_action, "SCMP_ACT_ALLOW");
    assert_eq!(profile.architectures, ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"], "unexpected architectures");
    assert!(profile.syscalls.iter().all(|rule| rule.action == "SCMP_ACT_ERRNO"));
    let refusal = |name: &str| profile.syscalls.iter().find(|rule| rule.names.iter().any(|each| each == name));
    assert!(IO_URING.iter().all(|name| refusal(name).is_none()));
    for name in ["mount", "ptrace", "bpf", "init_module", "kexec_load", "unshare", "setns", "keyctl", "userfaultfd"] {
        assert!(refusal(name).is_some_and(|rule| rule.errno_ret == 1 && rule.args.is_empty()), "{name}");
    }
    // `clone` must not create a user namespace either. A filter cannot read the flags of `clone3`, so that the profile
    // answers ENOSYS (38), and the C library falls back to `clone` to create threads.
    let [flags] = &refusal("clone").unwrap().args[..] else { panic!("clone has not exactly one condition") };
    let new_user = u64::from(rustix::thread::UnshareFlags::NEWUSER.bits());
    assert_eq!((flags.index, flags.op.as_str()), (0, "SCMP_CMP_MASKED_EQ"));
    assert_eq!((flags.value, flags.value_two), (new_user, new_user));
    assert_eq!(refusal("clone3").unwrap().errno_ret, 38);
}

#[test]
fn it_sells_under_the_seccomp_profile_and_says_what_it_misses_without_io_uring() {
    const PYTHON: &str = "/usr/bin/python3";
    if !Command::new(PYTHON).args(["-c", "import seccomp"]).output().is_ok_and(|output| output.status.success()) {
        return skipped("seccomp profile", "no python3-seccomp");
    }
    let under = |profile: &Path, data_dir: &Path| {
        let server = stampede(data_dir, &LONG_SALE);
        let mut command = Command::new(PYTHON);
        command.arg(in_repository("tests/server/under_seccomp.py")).arg(profile);
        command.arg(server.get_program()).args(server.get_args()).current_dir(data_dir);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let dir = tempfile::tempdir().unwrap();
    let server = Server::run(&mut under(&in_repository("tuning/seccomp.json"), dir.path()));
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid().as_raw_nonzero())).unwrap();
    assert!(status.contains("Seccomp:\t2\n"), "no filter is in force: {status}");
    server.wait_for_line("serving");
    let mut client = server.connect();
    let code = client.reserve(1, 1);
    assert_eq!(client.purchase(&code).status, 200);
    assert!(server.terminate().success());

    // Docker answers a refused system call with EPERM, podman with ENOSYS.
    for errno in [1, 38] {
        let mut profile: serde_json::Value = serde_json::from_str(&repository_text("tuning/seccomp.json")).unwrap();
        let refused = serde_json::json!({ "names": IO_URING, "action": "SCMP_ACT_ERRNO", "errnoRet": errno });
        profile["syscalls"].as_array_mut().unwrap().push(refused);
        let without = dir.path().join("without.json");
        fs::write(&without, profile.to_string()).unwrap();
        let output = under(&without, dir.path()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(5), "{said}");
        assert!(said.contains("allow io_uring in the container's seccomp profile"), "{said}");
    }
}
