//! Signals: those that the server handles, those that nobody should send, and those that the parent process has blocked
//! or ignored.

use crate::harness::{LONG_SALE, Server, skipped, stampede, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

/// Numbers of the signals that end a process by default, but neither end this server nor start an upgrade: SIGUSR1,
/// SIGALRM, SIGSTKFLT, SIGXCPU, SIGVTALRM, SIGPROF, SIGIO, SIGPWR, and the real-time signals.
fn stray() -> impl Iterator<Item = i32> {
    [10, 14, 16, 24, 26, 27, 29, 30].into_iter().chain(34..=64)
}

/// Sends any signal, which the type [`Signal`] cannot.
fn send(server: &Server, signal: i32) {
    let command = format!("kill -{signal} {}", server.pid().as_raw_nonzero());
    assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success(), "{command}");
}

/// Returns the signals of a set in `/proc`, such as `SigBlk`.
fn set(server: &Server, name: &str) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid().as_raw_nonzero())).unwrap();
    let set = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:\t"))).unwrap();
    let bits = u64::from_str_radix(set, 16).unwrap();
    (1..=64).filter(|signal| bits & 1 << (signal - 1) != 0).collect()
}

#[test]
fn a_hangup_upgrades_and_reads_the_settings_again() {
    let dir = tempfile::tempdir().unwrap();
    let settings = |ttl: &str| fs::write(dir.path().join(".env"), format!("RESERVATION_TTL={ttl}\n")).unwrap();
    settings("1h");
    let mut server = Server::start(dir.path(), &LONG_SALE);
    let mut client = server.connect();
    let code = client.reserve(1, 1);
    for signal in [Signal::HUP, Signal::USR2] {
        settings("1ms");
        server.signal(signal);
        let pid = server.wait_for_line("handed over")["pid"].as_i64().unwrap();
        assert!(server.is_replaced_by(pid as i32).success());
        server.wait_for_line("serving");
        let before = client.sale()["available"].as_u64();
        client.reserve(2, 2);
        wait_until("the hold expires, as the new settings say", || client.sale()["available"].as_u64() == before);
    }
    assert_eq!(client.purchase(&code).status, 200);
    assert!(server.terminate().success());
}

#[test]
fn signals_that_nobody_should_send_are_named_and_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &[&LONG_SALE[..], &["--drain-delay", "1h"]].concat());
    let mut client = server.connect();
    for round in 0..2 {
        for signal in stray() {
            send(&server, signal);
            let said = server.wait_for_line("the signal is ignored");
            if signal == 10 {
                assert_eq!(said["signal"], "SIGUSR1");
            } else if signal == 64 {
                assert_eq!(said["signal"], "SIGRTMIN+30");
            }
        }
        // SIGPIPE and SIGXFSZ come from a write. A line about them could cause the next one.
        send(&server, 13);
        send(&server, 25);
        assert_eq!(client.request("GET /readyz").status, 200);
        if round == 0 {
            server.upgrade();
        }
    }
    // A server that stops ignores them too, and does not take a hangup for another signal to stop.
    server.signal(Signal::QUIT);
    assert_eq!(server.wait_for_line("received a signal to stop")["signal"], "SIGQUIT");
    send(&server, 10);
    server.wait_for_line("the signal is ignored");
    server.signal(Signal::HUP);
    assert_eq!(server.wait_for_line("the upgrade was refused")["why"], "this process is not serving");
    client.reserve(1, 1);
    assert!(server.terminate().success());
}

/// Nothing that would end a process by default is left to chance: a signal that a later kernel or test adds fails here.
#[test]
fn every_signal_is_handled_or_left_alone_on_purpose() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &LONG_SALE);
    let handled = [1, 2, 3, 12, 15, 17, 25].into_iter().chain(stray().map(|signal| signal as u32));
    let mut handled: Vec<u32> = handled.collect();
    handled.sort_unstable();
    // Rust's runtime catches SIGBUS and SIGSEGV, to report a stack overflow. The C library uses 32 and 33.
    let own =
        |name| set(&server, name).into_iter().filter(|signal| ![7, 11, 32, 33].contains(signal)).collect::<Vec<_>>();
    assert_eq!(own("SigCgt"), handled);
    assert_eq!((own("SigIgn"), own("SigBlk")), (vec![13], Vec::new()));
    server.kill();
}

/// Starts a server with every signal blocked and ignored, as a careless parent process could.
fn start_numb(dir: &Path, arguments: &[&str]) -> Server {
    let numb = stampede(dir, &[&LONG_SALE[..], arguments].concat());
    let mut command = Command::new("env");
    command.args(["--ignore-signal", "--block-signal"]).arg(numb.get_program()).args(numb.get_args());
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir(dir).stderr(std::process::Stdio::piped());
    let server = Server::run(&mut command);
    server.wait_for_line("serving");
    server
}

#[test]
fn signals_that_the_parent_has_blocked_or_ignored_are_obeyed() {
    let dir = tempfile::tempdir().unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let mut server = start_numb(dir.path(), &[]);
        assert!(set(&server, "SigBlk").is_empty());
        server.signal(Signal::HUP);
        let pid = server.wait_for_line("handed over")["pid"].as_i64().unwrap();
        assert!(server.is_replaced_by(pid as i32).success(), "the exit status of the old process is known");
        server.wait_for_line("serving");
        // With SIGCHLD ignored, the exit status of the new process would be lost.
        fs::write(dir.path().join(".env"), "ITEMS=none\n").unwrap();
        // Until the old process has ended, the new one refuses the next upgrade.
        let aborted = loop {
            server.signal(Signal::HUP);
            let line = server.wait_for_one_of(&["the upgrade was aborted", "the upgrade was refused"]);
            if line["why"] != "an upgrade is in progress" {
                break line;
            }
        };
        assert_eq!(aborted["ended"], "exit status: 2");
        fs::remove_file(dir.path().join(".env")).unwrap();
        server.signal(signal);
        assert_eq!(server.end_by_itself().code(), Some(0));
    }
}

/// In a container, the end of the first process ends all others, and so does the end of the process that an init has started.
#[test]
fn an_upgrade_that_would_end_its_container_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return skipped("a container's first process", "namespaces require root");
    }
    let dir = tempfile::tempdir().unwrap();
    let children = |of: u32| -> Vec<i32> {
        let text = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap();
        text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    };
    for init in [None, Some("tini"), Some("docker-init"), Some("podman-init"), Some("supervisor")] {
        let data_dir = dir.path().join(format!("data-{init:?}"));
        let server = stampede(&data_dir, &LONG_SALE);
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        if let Some(init) = init {
            // A shell with the name of the init, which waits for the server as the init does. One with another name
            // stands for an init that outlives it.
            let path = dir.path().join(init);
            symlink("/bin/sh", &path).unwrap();
            command.arg(path).args(["-c", "\"$0\" \"$@\"; sleep 60"]);
        }
        command.arg(server.get_program()).args(server.get_args()).stdout(Stdio::null()).stderr(Stdio::piped());
        let server = Server::run(&mut command);
        server.wait_for_line("serving");
        let [mut pid] = children(server.pid().as_raw_nonzero().get() as u32)[..] else { panic!("a first process") };
        if init.is_some() {
            [pid] = children(pid as u32)[..].try_into().unwrap();
        }
        kill_process(Pid::from_raw(pid).unwrap(), Signal::USR2).unwrap();
        if init == Some("supervisor") {
            server.wait_for_line("upgrading");
            continue;
        }
        let why = server.wait_for_line("the upgrade was refused")["why"].clone();
        assert!(why.as_str().unwrap().contains("container"), "{init:?}: {why}");
        assert_eq!(server.connect().request("GET /readyz").status, 200);
    }
}
