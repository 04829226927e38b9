//! A private PostgreSQL cluster for each test, started from the installed binaries.

use rustix::process::{Pid, Signal, kill_process};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Password of the role `stampede`, for clusters that require one.
pub const PASSWORD: &str = "open-sesame";

/// A cluster that listens on a Unix socket and trusts every client there.
pub struct Cluster {
    dir: tempfile::TempDir,
    postmaster: Option<Child>,
    namespace: Option<String>,
    /// TCP port on 127.0.0.1, or 0 if the cluster does not listen on TCP.
    pub port: u16,
}

/// Settings of a cluster that differ from the default.
#[derive(Default)]
pub struct Options<'a> {
    /// Line of `pg_hba.conf` for TCP clients, like `host all all all trust`. If it is empty, the cluster does not
    /// listen on TCP.
    pub tcp: &'a str,
    /// Network namespace in which the cluster listens on TCP, on all addresses.
    pub namespace: Option<&'a str>,
    /// TLS certificate and key of the cluster, in PEM.
    pub certificate: Option<(String, String)>,
    /// Certificate of the authority that signs the certificates of clients, in PEM.
    pub client_authority: Option<String>,
    /// Largest size of a file. A table that reaches it behaves as if the disk were full.
    pub file_bytes_max: Option<u64>,
}

impl Options<'_> {
    /// A cluster that accepts every TCP client without a password.
    pub const OPEN: Options<'static> = Options {
        tcp: "host all all all trust",
        namespace: None,
        certificate: None,
        client_authority: None,
        file_bytes_max: None,
    };
}

/// Returns the path of a program of PostgreSQL.
pub fn bin(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        versions.map(|version| version.path().join("bin").join(name)).filter(|path| path.exists()).collect();
    found.sort();
    found.pop().unwrap_or_else(|| panic!("no {name} in /usr/lib/postgresql: apt-get install postgresql"))
}

/// Runs a query with psql. Returns the output, unaligned and without headers, or the error.
pub fn psql(url: &str, query: &str) -> Result<String, String> {
    let mut psql = Command::new(bin("psql"));
    psql.env("PGOPTIONS", "-c search_path=stampede,public").args(["-d", url, "-At", "-c", query]);
    let output = psql.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// Returns a command that does not run as root, because Postgres refuses to.
fn command(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

/// Gives a file to the user that runs the cluster, with access for no other user.
fn own(path: &Path) {
    let mode = if path.is_dir() { 0o700 } else { 0o600 };
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    if rustix::process::geteuid().is_root() {
        assert!(Command::new("chown").arg("postgres").arg(path).status().unwrap().success());
    }
}

impl Cluster {
    pub fn start() -> Cluster {
        Self::start_with(&Options::default())
    }

    pub fn start_with(options: &Options<'_>) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            std::fs::write(dir.path().join(path), text).unwrap();
            own(&dir.path().join(path));
        };
        own(dir.path());
        write("password", PASSWORD);
        let made = command(&bin("initdb"))
            .args(["-U", "stampede", "-A", "trust", "--wal-segsize=1", "--no-sync", "--pwfile"])
            .arg(dir.path().join("password"))
            .arg("-D")
            .arg(dir.path().join("data"))
            .stdout(Stdio::null())
            .status();
        assert!(made.unwrap().success());
        // Tests kill processes, not machines. The search path lacks the schema of the server, which has to name it.
        let mut settings =
            "fsync = off\nshared_buffers = 32MB\nsearch_path = 'public'\nwal_level = logical\n".to_owned();
        let mut port = 0;
        if options.tcp.is_empty() {
            settings += "listen_addresses = ''\n";
        } else {
            // Another process may take the port before Postgres binds it. Then Postgres does not start, and the test
            // fails.
            port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let address = if options.namespace.is_some() { "*" } else { "127.0.0.1" };
            settings += &format!("listen_addresses = '{address}'\nport = {port}\n");
            write("data/pg_hba.conf", &format!("local all,replication all trust\n{}\n", options.tcp));
        }
        if let Some((certificate, key)) = &options.certificate {
            write("data/server.crt", certificate);
            write("data/server.key", key);
            settings += "ssl = on\n";
        }
        if let Some(authority) = &options.client_authority {
            write("data/clients.crt", authority);
            settings += "ssl_ca_file = 'clients.crt'\n";
        }
        write("data/postgresql.auto.conf", &settings);
        let mut cluster = Cluster { dir, postmaster: None, namespace: options.namespace.map(str::to_owned), port };
        cluster.go_on();
        if let Some(bytes) = options.file_bytes_max {
            cluster.limit_files(&bytes.to_string());
        }
        cluster
    }

    /// Starts a standby of this cluster, which listens on TCP as this cluster does.
    pub fn standby(&self) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        own(dir.path());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut copy = command(&bin("pg_basebackup"));
        copy.args(["-R", "-c", "fast", "--no-sync", "-U", "stampede", "-p", &self.socket_port().to_string(), "-h"]);
        let copied = copy.arg(self.dir.path()).arg("-D").arg(dir.path().join("data")).status().unwrap();
        assert!(copied.success());
        let file = std::fs::File::options().append(true).open(dir.path().join("data/postgresql.auto.conf"));
        writeln!(file.unwrap(), "port = {port}").unwrap();
        let mut standby = Cluster { dir, postmaster: None, namespace: None, port };
        standby.go_on();
        standby
    }

    /// Directory of the Unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Sets the largest size of a file in bytes, or "unlimited", for every present and later process of the cluster.
    pub fn limit_files(&self, bytes: &str) {
        for pid in self.pids() {
            let pid = pid.as_raw_nonzero().to_string();
            // The hard limit stays unchanged, so that the soft limit can be raised again without privileges. A child
            // may have ended already; the error is ignored.
            let limit = format!("--fsize={bytes}:");
            command(Path::new("prlimit")).args(["--pid", &pid, &limit]).stderr(Stdio::null()).status().unwrap();
        }
    }

    /// Starts the cluster, at first or after `kill`, and waits until it accepts queries.
    pub fn go_on(&mut self) {
        let end = Instant::now() + Duration::from_secs(30);
        let mut postmaster = self.spawn();
        while self.psql("select 1").is_err() {
            let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < end, "the cluster does not start: {}", log());
            std::thread::sleep(Duration::from_millis(50));
            // Postgres refuses to start while a process of the killed cluster still exists: try again.
            if postmaster.try_wait().unwrap().is_some() {
                postmaster = self.spawn();
            }
        }
        self.postmaster = Some(postmaster);
    }

    fn spawn(&self) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut postgres = command(&bin("postgres"));
        if let Some(namespace) = &self.namespace {
            // `ip netns exec` becomes the program, so the process id stays that of Postgres.
            let inner = postgres;
            postgres = Command::new("ip");
            postgres.args(["netns", "exec", namespace]).arg(inner.get_program()).args(inner.get_args());
        }
        postgres.arg("-k").arg(self.dir.path()).arg("-D").arg(self.dir.path().join("data"));
        postgres.stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    pub fn url(&self) -> String {
        format!("host={} port={} user=stampede dbname=postgres", self.dir.path().display(), self.socket_port())
    }

    pub fn socket_port(&self) -> u16 {
        if self.port == 0 { 5432 } else { self.port }
    }

    fn psql(&self, query: &str) -> Result<String, String> {
        psql(&self.url(), query)
    }

    /// Runs a query, and returns the output of psql, unaligned and without headers.
    pub fn ask(&self, query: &str) -> String {
        self.psql(query).unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    pub fn count(&self, query: &str) -> u64 {
        self.ask(query).parse().unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    fn pids(&self) -> Vec<Pid> {
        let postmaster = self.postmaster.as_ref().expect("the cluster is running").id();
        let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        std::iter::once(postmaster as i32).chain(children).filter_map(Pid::from_raw).collect()
    }

    fn signal(&self, signal: Signal) {
        // A child may have ended already; the error is ignored.
        self.pids().into_iter().for_each(|pid| _ = kill_process(pid, signal));
    }

    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.postmaster.take().expect("the cluster is running").wait().unwrap();
    }

    /// Copies the data directory, between `kill` and `go_on`.
    pub fn save(&self, name: &str) {
        assert!(self.postmaster.is_none(), "the cluster is running");
        self.copy("data", name);
    }

    /// Restores the data directory from the copy of `save`, between `kill` and `go_on`.
    pub fn restore(&self, name: &str) {
        assert!(self.postmaster.is_none(), "the cluster is running");
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
