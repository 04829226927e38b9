//! A private PostgreSQL for each test, from the installed binaries.

use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running cluster on a Unix socket.
pub struct Cluster {
    dir: tempfile::TempDir,
    postmaster: Option<Child>,
}

fn bin(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        versions.map(|version| version.path().join("bin").join(name)).filter(|path| path.exists()).collect();
    found.sort();
    found.pop().unwrap_or_else(|| panic!("no {name} in /usr/lib/postgresql: apt-get install postgresql"))
}

/// Postgres refuses to run as root.
fn command(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

impl Cluster {
    pub fn start() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        if rustix::process::geteuid().is_root() {
            let owned = Command::new("chown").arg("postgres").arg(dir.path()).status().unwrap();
            assert!(owned.success());
        }
        let made = command(&bin("initdb"))
            .args(["-U", "stampede", "-A", "trust", "--no-sync", "-D"])
            .arg(dir.path().join("data"))
            .stdout(Stdio::null())
            .status();
        assert!(made.unwrap().success());
        let mut cluster = Cluster { dir, postmaster: None };
        cluster.go_on();
        cluster
    }

    /// Starts it again, after `kill`.
    pub fn go_on(&mut self) {
        let end = Instant::now() + Duration::from_secs(30);
        let mut postmaster = self.spawn();
        while self.psql("select 1").is_err() {
            let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < end, "the cluster does not start: {}", log());
            std::thread::sleep(Duration::from_millis(50));
            // It refuses to start while a process of the one before is still dying.
            if postmaster.try_wait().unwrap().is_some() {
                postmaster = self.spawn();
            }
        }
        self.postmaster = Some(postmaster);
    }

    fn spawn(&self) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut postgres = command(&bin("postgres"));
        // What is tried here is the death of processes, not of the machine.
        postgres.args(["-h", "", "-c", "fsync=off", "-c", "shared_buffers=32MB", "-k"]).arg(self.dir.path());
        postgres.arg("-D").arg(self.dir.path().join("data")).stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    pub fn url(&self) -> String {
        format!("host={} user=stampede dbname=postgres", self.dir.path().display())
    }

    fn psql(&self, query: &str) -> Result<String, String> {
        let mut psql = Command::new(bin("psql"));
        let output = psql
            .arg("-h")
            .arg(self.dir.path())
            .args(["-U", "stampede", "-d", "postgres", "-At", "-c", query])
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// What psql prints, bare.
    pub fn ask(&self, query: &str) -> String {
        self.psql(query).unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    pub fn count(&self, query: &str) -> u64 {
        self.ask(query).parse().unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    fn pids(&self) -> Vec<Pid> {
        let postmaster = self.postmaster.as_ref().expect("it runs").id();
        let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        std::iter::once(postmaster as i32).chain(children).filter_map(Pid::from_raw).collect()
    }

    fn signal(&self, signal: Signal) {
        // A child may have ended by itself.
        self.pids().into_iter().for_each(|pid| _ = kill_process(pid, signal));
    }

    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.postmaster.take().expect("it runs").wait().unwrap();
    }

    /// Copies everything it has, between `kill` and `go_on`.
    pub fn save(&self, name: &str) {
        assert!(self.postmaster.is_none(), "it is running");
        self.copy("data", name);
    }

    /// Goes back to what `save` copied, between `kill` and `go_on`.
    pub fn restore(&self, name: &str) {
        assert!(self.postmaster.is_none(), "it is running");
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
        self.copy(name, "data");
    }

    fn copy(&self, from: &str, to: &str) {
        let paths = [from, to].map(|name| self.dir.path().join(name));
        assert!(Command::new("cp").arg("-a").args(paths).status().unwrap().success());
    }

    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.postmaster.is_some() {
            self.resume();
            self.kill();
        }
    }
}
