//! Start and shutdown, and the messages of a refused start.

use crate::harness::{LONG_SALE, Server, assert_refused, run_to_end, stampede};
use std::fs;
use std::path::Path;

#[test]
fn help_teaches_and_settings_can_be_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (code, help) = run_to_end(dir.path(), &["--help"]);
    assert_eq!(code, 0);
    for setting in stampede::config::flags::SETTINGS {
        assert!(help.contains(&format!("--{}", setting.flag)), "{}", setting.flag);
        assert!(setting.variables.iter().all(|variable| help.contains(variable)), "{}", setting.flag);
    }
    assert_eq!(run_to_end(dir.path(), &["--version"]), (0, format!("stampede {}\n", env!("CARGO_PKG_VERSION"))));
    fs::write(dir.path().join(".env"), "ITEMS=77\n").unwrap();
    let (code, settings) = run_to_end(dir.path(), &["--check-config", "--user-limit", "3"]);
    assert_eq!(code, 0, "{settings}");
    assert!(settings.contains("items = 77\nuser-limit = 3\nsale-period = 1h\n"), "{settings}");
    fs::write(dir.path().join("shop.env"), "ITEMS=78\n").unwrap();
    let (_, settings) = run_to_end(dir.path(), &["--check-config", "--env-file", "shop.env"]);
    assert!(settings.contains("items = 78\n") && settings.contains("env-file = shop.env\n"), "{settings}");
}

#[test]
fn wrong_settings_are_named() {
    let dir = tempfile::tempdir().unwrap();
    assert_refused(dir.path(), &["--items", "none"], 2, &["--items", "none", "whole number"]);
    assert_refused(dir.path(), &["--check-config", "--shards", "0"], 2, &["--shards", "1 to 256"]);
    let long = ["--check-config", "--sale-period", "1s", "--reservation-ttl", "257s"];
    assert_refused(dir.path(), &long, 2, &["--reservation-ttl", "256 sale periods"]);
    let text = ["--idle-timeout is \"75\"; give a duration from 1s to 1h in milliseconds, like 30s or 1h"];
    assert_refused(dir.path(), &["--idle-timeout", "75"], 2, &text);
    assert_refused(dir.path(), &["--shards", "8", "--log-budget", "2MiB"], 2, &["--log-budget", "8MiB"]);
    assert_refused(dir.path(), &["--no-such-flag"], 2, &["--no-such-flag", "--help"]);
    fs::write(dir.path().join(".env"), "ITEMS=5\nDATABASE_URL=host=db password=secret\n").unwrap();
    let (code, text) = run_to_end(dir.path(), &["--check-config"]);
    assert!(code == 2 && text.contains("--env-file .env: line 2 ") && !text.contains("secret"), "{text}");
    assert_refused(dir.path(), &["--env-file", "none.env"], 2, &["--env-file none.env", "No such file"]);
    fs::write(dir.path().join("shop.env"), "ITEMS=0\n").unwrap();
    assert_refused(dir.path(), &["--env-file", "shop.env"], 2, &["ITEMS in shop.env is \"0\""]);
}

#[test]
fn a_port_in_use_is_named() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(dir.path(), &LONG_SALE);
    let listen = server.address.to_string();
    assert_refused(other.path(), &["--listen", &listen], 3, &[&listen, "in use", "--listen"]);
    assert_refused(other.path(), &["--listen", "192.0.2.1:80"], 3, &["192.0.2.1:80", "not an address of this machine"]);
}

#[test]
fn a_data_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &LONG_SALE);
    assert_refused(dir.path(), &LONG_SALE, 4, &["is locked", "--data-dir"]);
    assert!(server.terminate().success());
    assert_refused(dir.path(), &["--sale-period", "1h"], 4, &["--sale-period 8760h"]);
    let file = dir.path().join("a-file");
    fs::write(&file, "").unwrap();
    assert_refused(dir.path(), &["--data-dir", file.to_str().unwrap()], 4, &["a-file", "--data-dir"]);
}

#[test]
fn too_few_descriptors_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    assert_refused(
        dir.path(),
        &["--max-connections", "9999999"],
        5,
        &["descriptors", "LimitNOFILE", "--max-connections"],
    );
}

/// Starts the server from a shell with this `ulimit` command. Returns the exit code and standard error.
fn run_limited(dir: &Path, limit: &str) -> (i32, String) {
    let server = stampede(dir, &[]);
    let words: Vec<_> =
        std::iter::once(server.get_program()).chain(server.get_args()).map(|word| word.to_str().unwrap()).collect();
    let script = format!("{limit} && exec {}", words.join(" "));
    let output = std::process::Command::new("sh").args(["-c", &script]).env_clear().current_dir(dir).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn limits_of_the_host_are_named_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    for (limit, part) in [("ulimit -l 64", "LimitMEMLOCK"), ("ulimit -n 100", "LimitNOFILE")] {
        let (code, text) = run_limited(dir.path(), limit);
        assert!(code == 5 && text.contains(part), "{limit}: {code}: {text}");
    }
}

#[test]
fn a_damaged_log_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "1"]].concat());
    let mut client = server.connect();
    for item in 0..5 {
        let code = client.reserve(1, item);
        assert_eq!(client.purchase(&code).status, 200);
    }
    server.kill();
    let segments = || fs::read_dir(dir.path().join("log")).unwrap().map(|entry| entry.unwrap().path());
    let log =
        segments().find(|path| path.to_str().unwrap().contains("purchases-0000000001-00000-000000000000")).unwrap();
    let good = fs::read(&log).unwrap();
    let mut bad = good.clone();
    bad[4096 + 100] ^= 1;
    fs::write(&log, &bad).unwrap();
    for _ in 0..2 {
        assert_refused(dir.path(), &LONG_SALE, 6, &["block 1 at byte 4096", "purchases-0000000001", "once durable"]);
        assert_eq!(fs::read(&log).unwrap(), bad);
    }
    fs::write(&log, &good).unwrap();
    let server = Server::start(dir.path(), &LONG_SALE);
    assert_eq!(server.connect().sale()["sold"], 5);
}

#[test]
fn a_signal_drains_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "2"]].concat());
        let mut client = server.connect();
        let mut idle = server.connect();
        let sold = client.sale()["sold"].as_u64().unwrap();
        let code = client.reserve(1, sold as u32);
        // A request in flight: its body is not complete.
        client
            .send(format!("POST /purchase?code={code} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n.").as_bytes())
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        server.signal(signal);
        server.wait_for_line("draining");
        assert!(idle.is_closed(), "an idle connection is closed");
        client.send(b".").unwrap();
        let bought = client.read().unwrap();
        assert_eq!((bought.status, bought.header("connection")), (200, Some("close")));
        assert!(client.is_closed());
        server.wait_for_line("stopped");
        assert_eq!(server.terminate().code(), Some(0));
        let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "3"]].concat());
        assert_eq!(server.connect().sale()["sold"], sold + 1);
        assert!(server.terminate().success());
    }
}

#[test]
fn a_client_that_never_finishes_does_not_hold_up_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--drain-timeout", "500ms"]].concat());
    let mut client = server.connect();
    client.send(b"POST /purchase?code=x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n.").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(server.terminate().success());
}

/// A shutdown waits for segments that are being created.
#[test]
fn a_server_can_be_stopped_as_soon_as_it_serves() {
    for _ in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--items", "60000"]].concat());
        assert_eq!(server.terminate().code(), Some(0));
    }
}
