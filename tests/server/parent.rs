//! What a parent process leaves behind: standard streams, umask, limits and open descriptors. Signals are in `signals`.

use crate::harness::{Client, LONG_SALE, Server, assert_refused, skipped, stampede, wait_until};
use rustix::fd::OwnedFd;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{fcntl_setpipe_size, pipe};
use rustix::process::{Pid, Signal, getuid, kill_process};
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Returns a command that runs the server from a shell after `preparation`, on a known address, with streams of
/// `/dev/null`.
fn after(preparation: &str, dir: &Path, arguments: &[&str]) -> (Command, SocketAddr) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = stampede(dir, &[&LONG_SALE[..], &["--listen", &address.to_string()], arguments].concat());
    let words = std::iter::once(server.get_program()).chain(server.get_args()).map(|word| word.to_str().unwrap());
    let script = format!("{preparation}\nexec {}", words.collect::<Vec<_>>().join(" "));
    let mut command = Command::new("bash");
    command.args(["-c", &script]).env_clear().current_dir(dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    (command, address)
}

fn wait_until_ready(address: SocketAddr) -> Client {
    wait_until("the server is ready", || {
        let client = TcpStream::connect(address).is_ok().then(|| Client::connect(address).unwrap());
        client.is_some_and(|mut client| client.request("GET /readyz").status == 200)
    });
    Client::connect(address).unwrap()
}

/// Stops a server with SIGTERM, which it must obey within seconds.
fn stop(mut child: Child) {
    let began = Instant::now();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

/// Starts a server, sells, upgrades, and stops it.
fn sells(mut command: Command, address: SocketAddr, what: &str) {
    let child = command.spawn().unwrap();
    let mut client = wait_until_ready(address);
    let taken = client.sale()["sold"].as_u64().unwrap() as u32;
    let code = client.reserve(1, taken);
    assert_eq!(client.purchase(&code).status, 200, "{what}");
    for signal in [Signal::USR1, Signal::PIPE] {
        kill_process(Pid::from_child(&child), signal).unwrap();
    }
    assert_eq!(client.request("GET /readyz").status, 200, "{what}");
    stop(child);
}

#[test]
fn closed_standard_streams_are_not_given_to_sockets_and_logs() {
    let dir = tempfile::tempdir().unwrap();
    for closed in 1..8 {
        let streams: Vec<_> = (0..3).filter(|stream| closed & 1 << stream != 0).collect();
        let closing: String = streams.iter().map(|stream| format!("exec {stream}>&-\n")).collect();
        let (mut command, address) = after(&closing, dir.path(), &["--user-limit", "100"]);
        let child = command.spawn().unwrap();
        let mut client = wait_until_ready(address);
        let code = client.reserve(1, closed);
        assert_eq!(client.purchase(&code).status, 200);
        for stream in 0..3 {
            let target = fs::read_link(format!("/proc/{}/fd/{stream}", child.id())).unwrap();
            assert_eq!(target, Path::new("/dev/null"), "{stream} of {streams:?}");
        }
        stop(child);
    }
}

/// Returns a pipe that takes no more bytes.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (read, write) = pipe().unwrap();
    fcntl_setfl(&write, OFlags::NONBLOCK).unwrap();
    while rustix::io::write(&write, &[b'\n'; 4096]) != Err(Errno::AGAIN) {}
    (read, write)
}

#[test]
fn standard_error_that_cannot_be_written_stops_no_sale() {
    let dir = tempfile::tempdir().unwrap();
    let started = |what: &str, stderr: Stdio| {
        let (mut command, address) = after("", dir.path(), &[]);
        command.stderr(stderr);
        sells(command, address, what);
    };
    started("no space", File::options().write(true).open("/dev/full").unwrap().into());
    started("no reader", pipe().unwrap().1.into());
    let (_reader, writer) = full_pipe();
    started("a reader that never reads, non-blocking", writer.try_clone().unwrap().into());
    fcntl_setfl(&writer, OFlags::empty()).unwrap();
    started("a reader that never reads", writer.into());
    // A limit on the size of files also holds for a file of log lines.
    let file = File::create(dir.path().join("lines")).unwrap();
    let (mut command, address) = after("ulimit -f 6000; head -c 6144000 /dev/zero >&2", dir.path(), &[]);
    command.stderr(file);
    sells(command, address, "a file of the largest size");
}

/// The server never waits for a reader of its log lines, and reports how many it has dropped.
#[test]
fn lines_that_nobody_reads_are_dropped_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (reader, writer) = full_pipe();
    fcntl_setfl(&writer, OFlags::empty()).unwrap();
    let (mut command, address) = after("", dir.path(), &[]);
    command.stderr(writer);
    let child = command.spawn().unwrap();
    drop(command);
    let mut client = wait_until_ready(address);
    for _ in 0..1500 {
        for signal in [Signal::USR1, Signal::ALARM, Signal::VTALARM, Signal::PROF, Signal::IO] {
            kill_process(Pid::from_child(&child), signal).unwrap();
        }
        thread::sleep(Duration::from_micros(500));
    }
    assert_eq!(client.request("GET /readyz").status, 200);
    let reading = thread::spawn(move || {
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        text
    });
    // The next line after room was found has the count.
    thread::sleep(Duration::from_millis(500));
    stop(child);
    let text = reading.join().unwrap();
    let line = text.lines().find(|line| line.contains("log lines were dropped")).expect("the line with the count");
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert!(line["dropped"].as_u64().unwrap() > 0, "{line}");
    assert!(text.trim_end().lines().last().unwrap().contains("\"stopped\""), "the last line is not lost");
}

/// Runs a server with a terminal as its standard streams (`script` of util-linux). Returns all lines until it was
/// stopped after it served, and the answers of the pages whose addresses it showed.
fn on_a_terminal(arguments: &str) -> (Vec<String>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let (binary, place) = (env!("CARGO_BIN_EXE_stampede"), dir.path().display());
    let line = format!(
        "echo $$ >{place}/pid; exec {binary} --data-dir {place} --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 {arguments}"
    );
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &line, "/dev/null"]).env_clear().env("SHELL", "/bin/sh").current_dir(dir.path());
    let mut script = script.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(script.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut lines: Vec<String> = Vec::new();
    let mut pages = Vec::new();
    while !lines.last().is_some_and(|line| line.contains("serving")) {
        lines.push(output.next().expect("the server serves"));
    }
    for line in &lines {
        if let Some((_, port)) = line.trim_end().trim_end_matches('/').split_once("http://localhost:") {
            pages.push(Client::connect(([127, 0, 0, 1], port.parse().unwrap()).into()).unwrap().request("GET /").body);
        }
    }
    let pid = fs::read_to_string(dir.path().join("pid")).unwrap().trim().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    lines.extend(output);
    assert!(script.wait().unwrap().success(), "{lines:?}");
    (lines, pages)
}

#[test]
fn a_terminal_shows_where_to_open_the_shop_and_the_dashboard() {
    let shows = |lines: &[String], name: &str| lines.iter().any(|line| line.trim().starts_with(name));
    let (lines, pages) = on_a_terminal("");
    assert!(shows(&lines, "Shop:") && shows(&lines, "Dashboard:"), "{lines:#?}");
    let titles = pages.iter().map(|page| page.split("<title>").nth(1).unwrap().split('<').next().unwrap());
    assert_eq!(titles.collect::<Vec<_>>(), ["Flash sale", "Stampede"], "{lines:#?}");

    let (lines, pages) = on_a_terminal("--shop off");
    assert!(!shows(&lines, "Shop:") && shows(&lines, "Dashboard:") && pages.len() == 1, "{lines:#?}");

    // A program reads these lines.
    let (lines, pages) = on_a_terminal("--log-format json");
    assert!(pages.is_empty() && lines.iter().all(|line| line.starts_with('{')), "{lines:#?}");
}

/// All commands that print something, with the exit code of a success.
const COMMANDS: [&[&str]; 8] = [
    &["--help"],
    &["--version"],
    &["man"],
    &["completions", "bash"],
    &["--check-config"],
    &["log", "dump"],
    &["log", "verify"],
    &["log", "sale"],
];

fn run(dir: &Path, arguments: &[&str], stdout: impl Into<Stdio>) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stampede"));
    command.args(arguments).env_clear().env("DATA_DIR", dir).env("SALE_PERIOD", "365days").current_dir(dir);
    let output = command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
    let output = output.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn commands_end_quietly_behind_a_closed_pipe_and_with_an_error_on_a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &LONG_SALE);
    let mut client = server.connect();
    for item in 0..100 {
        client.reserve(item.into(), item);
    }
    assert!(server.terminate().success());
    for command in COMMANDS {
        assert_eq!(run(dir.path(), command, pipe().unwrap().1), (Some(0), String::new()), "{command:?} | true");
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (code, text) = run(dir.path(), command, full);
        assert_eq!(code, Some(5), "{command:?} > /dev/full: {text}");
        assert!(text.contains("standard output cannot be written") && text.lines().count() == 1, "{command:?}: {text}");
        // A pipe of one page that another process has made non-blocking loses nothing.
        let (reader, writer) = pipe().unwrap();
        fcntl_setpipe_size(&writer, 4096).unwrap();
        fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
        let reading = thread::spawn(move || {
            let (mut text, mut reader) = (Vec::new(), File::from(reader));
            let mut bytes = [0; 1000];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                text.extend_from_slice(&bytes[..count]);
                thread::sleep(Duration::from_micros(200));
            }
            text
        });
        assert_eq!(run(dir.path(), command, writer), (Some(0), String::new()), "{command:?}");
        let whole = dir.path().join("whole");
        assert_eq!(run(dir.path(), command, File::create(&whole).unwrap()).0, Some(0));
        assert!(reading.join().unwrap() == fs::read(&whole).unwrap(), "{command:?} loses output");
        // Closed streams.
        let closed = format!("exec {} {} >&- 2>&- <&-", env!("CARGO_BIN_EXE_stampede"), command.join(" "));
        let mut shell = Command::new("sh");
        shell.args(["-c", &closed]).env("DATA_DIR", dir.path()).env("SALE_PERIOD", "365days").current_dir(dir.path());
        assert_eq!(shell.status().unwrap().code(), Some(0), "{command:?}");
    }
    // An error whose message cannot be written still has its exit code.
    let closed = format!("exec {} --items none 2>/dev/full", env!("CARGO_BIN_EXE_stampede"));
    assert_eq!(Command::new("sh").args(["-c", &closed]).status().unwrap().code(), Some(2));
    let closed = format!("exec {} --no-such-flag 2>/dev/full", env!("CARGO_BIN_EXE_stampede"));
    assert_eq!(Command::new("sh").args(["-c", &closed]).status().unwrap().code(), Some(2));
}

/// Returns all paths below `dir` that other users have rights on.
fn open_to_others(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut paths = vec![dir.to_owned()];
    while let Some(path) = paths.pop() {
        let metadata = fs::metadata(&path).unwrap();
        if metadata.permissions().mode() & 0o077 != 0 {
            found.push(path.clone());
        }
        if metadata.is_dir() {
            paths.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found
}

/// Whatever the umask is, the files with live codes belong to the user of the process alone, also those that an upgrade
/// makes.
#[test]
fn nobody_else_can_read_the_codes_whatever_the_umask_is() {
    for umask in ["000", "022", "077", "777"] {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("new/data");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let (mut command, address) =
            after(&format!("umask {umask}"), dir.path(), &["--data-dir", data.to_str().unwrap()]);
        command.stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut client = wait_until_ready(address);
        client.reserve(1, 1);
        assert_eq!(open_to_others(&data), [""; 0].map(PathBuf::from), "umask {umask}");
        assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(data.join("control.json")).unwrap().permissions().mode() & 0o777, 0o600);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_directory_that_is_open_to_others_is_tightened_or_refused() {
    let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let line = "other users had access to the codes in this directory";
    let dir = tempfile::tempdir().unwrap();
    let (data, logs) = (dir.path().to_owned(), dir.path().join("log"));
    // As an earlier version has made them.
    fs::create_dir(&logs).unwrap();
    for loose in [0o755, 0o2775, 0o777, 0o701] {
        [&data, &logs].iter().for_each(|path| set(path, loose));
        let server = Server::start(&data, &LONG_SALE);
        assert_eq!((server.times_said(line), mode(&data)), (1, loose & !0o077));
        server.kill();
    }
    let server = Server::start(&data, &LONG_SALE);
    assert_eq!(server.times_said(line), 0, "it is said once");
    server.kill();
    if !getuid().is_root() {
        return skipped("a data directory of another user", "this user cannot make one");
    }
    // A directory for all users, and one that belongs to another user: the log in it is protected.
    for (owner, loose) in [(0, 0o1777), (12345, 0o2775)] {
        chown(&data, Some(owner), None).unwrap();
        [&data, &logs].iter().for_each(|path| set(path, loose & !0o1000));
        set(&data, loose);
        let server = Server::start(&data, &LONG_SALE);
        assert_eq!((server.times_said(line), mode(&data), mode(&logs) & 0o077), (1, loose, 0));
        server.kill();
    }
    chown(&logs, Some(12345), None).unwrap();
    set(&logs, 0o755);
    let refusal = ["other users can read the codes in", "chmod go="];
    assert_refused(&data, &LONG_SALE, 4, &refusal);
}

#[test]
fn limits_that_are_too_low_are_named_and_others_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    for (limit, part) in [
        ("ulimit -f 0", "LimitFSIZE"),
        ("ulimit -f 100", "LimitFSIZE"),
        ("ulimit -v 30000", "LimitAS"),
        ("ulimit -v 100000", "LimitAS"),
        ("ulimit -v 250000", "LimitAS"),
        ("ulimit -d 20000", "LimitDATA"),
        ("ulimit -n 100", "LimitNOFILE"),
        ("ulimit -l 64", "LimitMEMLOCK"),
    ] {
        let (mut command, _) = after(limit, dir.path(), &["--shards", "2"]);
        let output = command.stderr(Stdio::piped()).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(5) && text.contains(part), "{limit}: {:?} {text}", output.status);
    }
    for limit in
        ["ulimit -f 5000", "ulimit -v 400000", "ulimit -d 120000", "ulimit -c 0", "ulimit -s 256", "ulimit -t 600"]
    {
        let (command, address) = after(limit, dir.path(), &["--shards", "2", "--user-limit", "100"]);
        sells(command, address, limit);
    }
}

/// Descriptors that a parent process has left open are not there for connections.
#[test]
fn descriptors_that_the_parent_has_left_open_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let connections = |preparation: &str| {
        let (mut command, _) = after(&format!("ulimit -n 700; {preparation}"), dir.path(), &["--shards", "1"]);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines.find_map(|line| line.ok().filter(|line| line.contains("max_connections"))).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        serde_json::from_str::<serde_json::Value>(&line).unwrap()["max_connections"].as_u64().unwrap()
    };
    let left_open = "for n in {10..209}; do eval \"exec $n</dev/null\"; done";
    // The shell and the server open and close some themselves meanwhile.
    let fewer = connections("") - connections(left_open);
    assert!((190..=210).contains(&fewer), "{fewer}");
}
