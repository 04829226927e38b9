//! PgBouncer between the server and Postgres, in the modes in which transactions work, with other clients beside.

use crate::cluster::{Cluster, psql};
use crate::harness::{LONG_SALE, Server, wait_until};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// A running PgBouncer.
struct Pooler {
    process: Child,
    _dir: tempfile::TempDir,
    url: String,
}

impl Pooler {
    fn start(cluster: &Cluster, mode: &str) -> Pooler {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (socket, number) = (cluster.socket_dir().display(), cluster.socket_port());
        let users = dir.path().join("users.txt");
        std::fs::write(&users, "\"stampede\" \"\"\n").unwrap();
        let settings = format!(
            "[databases]\npostgres = host={socket} port={number} dbname=postgres\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n\
             auth_file = {}\npool_mode = {mode}\ndefault_pool_size = 3\nmax_client_conn = 50\nignore_startup_parameters = options\n",
            users.display()
        );
        let file = dir.path().join("pgbouncer.ini");
        std::fs::write(&file, settings).unwrap();
        // PgBouncer refuses to run as root.
        let is_root = rustix::process::geteuid().is_root();
        let mut command = Command::new(if is_root { "setpriv" } else { "pgbouncer" });
        if is_root {
            let owned = Command::new("chown").args(["-R", "postgres"]).arg(dir.path()).status();
            assert!(owned.unwrap().success());
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "pgbouncer"]);
        }
        let process = command.arg("-q").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = process.expect("pgbouncer starts: apt-get install pgbouncer");
        let url = format!("postgres://stampede@127.0.0.1:{port}/postgres?sslmode=disable");
        wait_until("the pooler accepts", || psql(&url, "select 1").is_ok());
        Pooler { process, _dir: dir, url }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Every row arrives, and no other client of the pooler sees a setting or a statement of the server.
#[test]
fn a_pooler_gives_each_transaction_another_session() {
    for mode in ["transaction", "session"] {
        let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
        let pooler = Pooler::start(&cluster, mode);
        let url = pooler.url.clone();
        let common = ["--database-url", &url, "--user-limit", "1000", "--ack", "postgres"];
        let arguments = [&LONG_SALE[..], &common].concat();
        let server = Server::start(dir.path(), &arguments);
        server.wait_for_line("the database is connected");
        let (is_over, looks) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            let look = || {
                let settings = "select concat_ws(' ', current_setting('statement_timeout'), \
                    current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout'), \
                    current_setting('client_min_messages'), (select count(*) from pg_prepared_statements))";
                while !is_over.load(Ordering::Relaxed) {
                    assert_eq!(psql(&url, settings).unwrap(), "0 0 0 notice 0");
                    looks.fetch_add(1, Ordering::Relaxed);
                }
            };
            let others: Vec<_> = (0..2).map(|_| scope.spawn(look)).collect();
            let mut client = server.connect();
            for item in 0..150 {
                let code = client.reserve(1, item);
                assert_eq!(client.purchase(&code).status, 200);
            }
            client.wait_for_postgres();
            wait_until("the others have looked", || looks.load(Ordering::Relaxed) > 20);
            is_over.store(true, Ordering::Relaxed);
            others.into_iter().for_each(|other| other.join().unwrap());
        });
        assert_eq!(server.times_said("the database is"), 0, "the connection was never lost");
        assert_eq!(server.times_said("the partitions"), 0, "the maintenance uses the pooler, too");
        // A restart and the tool use the pooler, too.
        server.kill();
        let server = Server::start(dir.path(), &arguments);
        server.wait_for_line("the database is connected");
        let mut tool = Command::new(env!("CARGO_BIN_EXE_stampede"));
        tool.env_clear().args(["log", "sale", "--database-url", &url, "--data-dir"]).arg(dir.path());
        let output = tool.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(server.terminate().success());
        assert_eq!(cluster.ask("select count(*), count(distinct item_id) from purchases"), "150|150", "{mode}");
        // Another machine takes over through the pooler.
        let other = tempfile::tempdir().unwrap();
        let server = Server::start(other.path(), &arguments);
        assert_eq!(server.connect().checkout(2, 42).problem(), "item-sold");
        assert!(server.terminate().success());
    }
}

/// The pooler keeps the advisory lock of a dead server, so the other one waits for the whole patience.
#[test]
fn one_of_two_servers_takes_over_through_a_pooler() {
    let (cluster, dirs) = (Cluster::start(), [(); 2].map(|()| tempfile::tempdir().unwrap()));
    let pooler = Pooler::start(&cluster, "transaction");
    let arguments = [&LONG_SALE[..], &["--database-url", &pooler.url, "--ack", "postgres", "--standby"]].concat();
    let owner = Server::start(dirs[0].path(), &arguments);
    let standby = Server::spawn(dirs[1].path(), &arguments);
    standby.wait_for_line("standing by");
    let mut client = owner.connect();
    let code = client.reserve(1, 1);
    client.wait_for_postgres();
    drop(client);
    owner.kill();
    standby.wait_for_line("serving");
    standby.wait_for_line("the database is connected");
    assert_eq!(standby.connect().purchase(&code).status, 200);
    assert!(standby.terminate().success());
}
