//! Integration with the host: the service manager's notifications, watchdog and sockets; a shutdown that load balancers
//! notice in time; the CPU affinity of threads; and the systemd units.

use crate::harness::{Client, LONG_SALE, Server, repository_text, skipped, stampede, wait_until};
use nix::sys::ptrace;
use nix::sys::wait::WaitPidFlag;
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The service manager's end of the notification socket.
struct Manager(UnixDatagram);

impl Manager {
    /// Starts a manager and a server that notifies the manager's watchdog twice within `watchdog`.
    fn start(dir: &Path, watchdog: Duration) -> (Manager, Server) {
        let socket = dir.join("notify");
        let manager = Manager(UnixDatagram::bind(&socket).unwrap());
        manager.0.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut command = stampede(dir, &[&LONG_SALE[..], &["--shards", "2"]].concat());
        command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        let server = Server::run(&mut command);
        assert!(manager.hears().starts_with("READY=1\n"));
        (manager, server)
    }

    fn hears(&self) -> String {
        let mut message = [0; 512];
        let bytes = self.0.recv(&mut message).expect("the server sends a notification");
        String::from_utf8(message[..bytes].to_vec()).unwrap()
    }
}

/// The stopped thread of a shard, which takes no turns until `release_to`.
pub struct Stuck(nix::unistd::Pid);

impl Stuck {
    /// Stops the thread of a shard. An error means that threads cannot be stopped here.
    pub fn shard(server: &Server, shard: u16) -> nix::Result<Stuck> {
        let task = |task: fs::DirEntry| (fs::read_to_string(task.path().join("comm")).unwrap(), task.file_name());
        let tasks = fs::read_dir(format!("/proc/{}/task", server.pid().as_raw_nonzero())).unwrap();
        let name = format!("shard-{shard}\n");
        let (_, thread) = tasks.map(|entry| task(entry.unwrap())).find(|(comm, _)| *comm == name).unwrap();
        let thread = nix::unistd::Pid::from_raw(thread.to_str().unwrap().parse().unwrap());
        ptrace::seize(thread, ptrace::Options::empty())?;
        ptrace::interrupt(thread)?;
        Ok(Stuck(thread))
    }

    /// Resumes the thread.
    pub fn release_to(self) {
        nix::sys::wait::waitpid(self.0, Some(WaitPidFlag::__WALL)).unwrap();
        ptrace::detach(self.0, None).unwrap();
    }
}

#[test]
fn a_service_manager_hears_that_it_is_ready_alive_upgraded_and_at_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (manager, mut server) = Manager::start(dir.path(), Duration::from_secs(3));
    assert_eq!(server.connect().request("GET /readyz").status, 200);
    let ready = Instant::now();
    assert_eq!([manager.hears(), manager.hears()], ["WATCHDOG=1\n", "WATCHDOG=1\n"]);
    assert!(ready.elapsed() > Duration::from_millis(2500), "the interval is half of the watchdog's timeout");
    // The manager learns the new main process before the old one exits, because it accepts notifications only from the
    // main process.
    server.upgrade();
    let said = loop {
        let said = manager.hears();
        if said != "WATCHDOG=1\n" {
            break said;
        }
    };
    assert!(said.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{said}");
    assert_eq!(manager.hears(), format!("MAINPID={}\n", server.pid().as_raw_nonzero()));
    assert!(manager.hears().starts_with("READY=1\n"));
    assert_eq!(manager.hears(), "WATCHDOG=1\n");
    server.signal(Signal::TERM);
    assert!(manager.hears().starts_with("STOPPING=1\n"));
    assert!(server.end_by_itself().success());
}

/// A running process is not sufficient: if one shard takes no turns, the others cannot sell its items. The server then
/// stops notifying the watchdog.
#[test]
fn a_stuck_shard_gives_no_sign_of_life() {
    let dir = tempfile::tempdir().unwrap();
    // An idle shard takes a turn each second.
    let (manager, server) = Manager::start(dir.path(), Duration::from_secs(5));
    let stuck = match Stuck::shard(&server, 1) {
        Ok(stuck) => stuck,
        Err(error) => return skipped("a stuck shard", error),
    };
    // A notification that was due before may still have been sent. Discard it.
    assert_eq!(server.wait_for_line("a shard takes no turns any more")["shard"], 1);
    manager.0.set_nonblocking(true).unwrap();
    while manager.0.recv(&mut [0; 512]).is_ok() {}
    server.wait_for_line("a shard takes no turns any more");
    assert!(manager.0.recv(&mut [0; 512]).is_err(), "no notification while a shard is stuck");
    manager.0.set_nonblocking(false).unwrap();
    stuck.release_to();
    assert_eq!(manager.hears(), "WATCHDOG=1\n");
    server.kill();
}

#[test]
fn it_goes_on_selling_until_balancers_have_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--drain-delay", "1s"]].concat());
    let mut old = server.connect();
    let code = old.reserve(1, 1);
    server.signal(Signal::TERM);
    server.wait_for_line("received a signal to stop");
    let ready = old.request("GET /readyz");
    assert!(ready.status == 503 && ready.body.contains("draining"), "{ready:?}");
    assert_eq!(old.purchase(&code).status, 200);
    let mut new = server.connect();
    new.reserve(1, 2);
    server.wait_for_line("draining");
    wait_until("the server accepts no connections", || TcpStream::connect(server.address).is_err());
    assert!(server.end_by_itself().success());
}

/// A service manager kills a service that stops for longer than its stop timeout, unless the service asks for more time
/// again and again.
#[test]
fn a_drain_longer_than_the_patience_of_the_service_manager_is_announced() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("notify");
    let manager = Manager(UnixDatagram::bind(&socket).unwrap());
    let arguments = [&LONG_SALE[..], &["--drain-delay", "12s", "--drain-timeout", "2s"]].concat();
    let server = Server::run(stampede(dir.path(), &arguments).env("NOTIFY_SOCKET", &socket));
    server.wait_for_line("serving");
    assert!(manager.hears().starts_with("READY=1\n"));
    // A request that never ends uses up the drain timeout.
    server.connect().send(b"POST /purchase?code=x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n.").unwrap();
    let began = Instant::now();
    server.signal(Signal::TERM);
    let ending = std::thread::spawn(move || server.end_by_itself().success());
    // The manager is patient for a second, and then as long as it is asked to be.
    let mut deadline = began + Duration::from_secs(1);
    let mut extensions = 0;
    while !ending.is_finished() {
        assert!(Instant::now() < deadline, "the service manager kills the server after {:?}", began.elapsed());
        manager.0.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut message = [0; 512];
        let Ok(bytes) = manager.0.recv(&mut message) else { continue };
        let message = std::str::from_utf8(&message[..bytes]).unwrap();
        if let Some(micros) = message.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC=")) {
            let asked = Duration::from_micros(micros.parse().unwrap());
            assert!(asked < Duration::from_secs(60), "a stuck server is killed in the end: {asked:?}");
            deadline = deadline.max(Instant::now() + asked);
            extensions += 1;
        }
    }
    assert!(ending.join().unwrap() && began.elapsed() > Duration::from_secs(12));
    assert!(extensions >= 3, "at the stop, during the drain, at its end: {extensions}");
}

/// Clients that connect to the service manager's socket before the server starts are served once it runs.
#[test]
fn an_inherited_socket_is_served() {
    for shards in ["1", "2"] {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        // `systemd-socket-activate` listens, and starts the server with its socket at the first connection.
        let activate = |address: SocketAddr| {
            let server = stampede(dir.path(), &[&LONG_SALE[..], &["--shards", shards]].concat());
            let mut command = Command::new("systemd-socket-activate");
            command.arg("--listen").arg(address.to_string()).arg(server.get_program()).args(server.get_args());
            command.current_dir(dir.path()).stderr(std::process::Stdio::piped());
            command
        };
        let Ok(mut child) = activate(port).spawn() else {
            return skipped("inherited sockets", "no systemd-socket-activate");
        };
        // The first request arrives before the server runs. It is answered afterwards, with 503 until recovery ends.
        wait_until("the server serves", || status(port, "/readyz") == Some(200));
        for _ in 0..20 {
            assert_eq!(status(port, "/livez"), Some(200));
        }
        // The next process takes over the socket in an upgrade.
        set_child_subreaper(Some(getpid())).unwrap();
        kill_process(Pid::from_child(&child), Signal::USR2).unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let line = said.find(|line| line.contains("handed over")).unwrap();
        assert!(child.wait().unwrap().success());
        for _ in 0..20 {
            assert_eq!(status(port, "/livez"), Some(200));
        }
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let second = Pid::from_raw(line["pid"].as_i64().unwrap() as i32).unwrap();
        kill_process(second, Signal::TERM).unwrap();
        waitpid(Some(second), WaitOptions::empty()).unwrap();
    }
}

/// Returns the status of a response from a server that the harness has not started.
fn status(address: SocketAddr, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.get(9..12)?.parse().ok()
}

/// Returns the CPUs that each thread of the server may use, by the name of the thread.
fn threads(server: &Server) -> BTreeMap<String, Vec<String>> {
    let mut threads: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{}/task", server.pid().as_raw_nonzero())).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        threads.entry(field("Name:")).or_default().push(field("Cpus_allowed_list:"));
    }
    threads
}

fn on_cpus(cpus: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    set
}

#[test]
fn each_shard_stays_on_a_cpu_of_its_own() {
    let cpus = stampede::system::host::cpus();
    for mask in [cpus.clone(), cpus[cpus.len() - 1..].to_vec()] {
        // Threads and processes inherit the CPU mask of their parent.
        let server = std::thread::scope(|scope| {
            let start = || {
                sched_setaffinity(None, &on_cpus(&mask)).unwrap();
                let dir = tempfile::tempdir().unwrap();
                (Server::start(dir.path(), &LONG_SALE), dir)
            };
            scope.spawn(start).join().unwrap()
        });
        let threads = threads(&server.0);
        for (shard, cpu) in mask.iter().enumerate() {
            let allowed = &threads[&format!("shard-{shard}")];
            assert!(allowed.contains(&cpu.to_string()), "shard {shard} of {mask:?}: {allowed:?}");
        }
        assert!(
            !threads.contains_key(&format!("shard-{}", mask.len())),
            "there are as many shards as CPUs: {threads:?}"
        );
        server.0.kill();
    }
}

#[test]
fn connections_stay_on_the_cpu_where_they_arrive() {
    let cpus = stampede::system::host::cpus();
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--steering", "cpu"]].concat());
    if server.times_said("connections cannot be steered") > 0 {
        return skipped("steering", "this kernel does not support it");
    }
    let address = server.address;
    for (shard, cpu) in cpus.iter().enumerate() {
        // Over loopback, a connection arrives on the CPU of its client.
        let clients: Vec<_> = std::thread::scope(|scope| {
            let connect = || {
                sched_setaffinity(None, &on_cpus(&[*cpu])).unwrap();
                (0..16).map(|_| Client::connect(address).unwrap()).collect()
            };
            scope.spawn(connect).join().unwrap()
        });
        // A client is connected before the shard has accepted it, so wait.
        wait_until("the connections of one CPU are on its shard", || {
            server.connect().request("GET /health").json()["shards"][shard]["connections"].as_u64() >= Some(16)
        });
        drop(clients);
    }
    server.kill();
}

/// Checks the systemd units without running them.
#[test]
fn the_units_are_sound_and_tight() {
    let dir = tempfile::tempdir().unwrap();
    for unit in ["stampede.service", "stampede.socket"] {
        // The binary is not installed at the packaged path, so substitute the test's binary.
        let text = repository_text(&format!("tuning/{unit}"));
        let text = text.replace("/usr/bin/stampede", env!("CARGO_BIN_EXE_stampede"));
        fs::write(dir.path().join(unit), text).unwrap();
    }
    let analyze = |arguments: &[&str]| {
        let output = Command::new("systemd-analyze").args(arguments).current_dir(dir.path()).output();
        output.map(|output| (output.status.success(), format!("{}{}", text(&output.stdout), text(&output.stderr))))
    };
    let Ok((is_sound, said)) = analyze(&["verify", "--man=no", "./stampede.service", "./stampede.socket"]) else {
        return skipped("units", "no systemd-analyze");
    };
    let complaints: Vec<_> = said.lines().filter(|line| line.contains("stampede.")).collect();
    assert!(is_sound && complaints.is_empty(), "{said}");
    let (_, said) = analyze(&["security", "--offline=yes", "--no-pager", "./stampede.service"]).unwrap();
    let level = said.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_else(|| panic!("{said}"));
    let score: f64 = level.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    assert!(score <= 2.0, "0 is the best and 10 the worst: {level}");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
