//! Two pairs of servers, each with a database of its own, behind one HAProxy that routes by sale.

use crate::cluster::{Cluster, Options};
use crate::harness::{LONG_SALE, Response, Server, repository_text, skipped, wait_until};
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

/// Stock of each sale, and the limit of each user in it.
const ITEMS: u32 = 60;
const LIMIT: i64 = 3;

/// A database, and the two servers that share it. The first one sells.
struct Pair {
    database: Cluster,
    dirs: [tempfile::TempDir; 2],
    servers: Vec<Server>,
}

impl Pair {
    fn start() -> Pair {
        let (database, dirs) = (Cluster::start_with(&Options::OPEN), [(); 2].map(|()| tempfile::tempdir().unwrap()));
        let url = format!("postgres://stampede@127.0.0.1:{}/postgres", database.port);
        let (items, limit) = (ITEMS.to_string(), LIMIT.to_string());
        let rules = [
            "--items",
            &items,
            "--user-limit",
            &limit,
            "--reservation-ttl",
            "2s",
            "--shards",
            "2",
            "--ack",
            "postgres",
            "--standby",
        ];
        let arguments = [&LONG_SALE[..], &["--database-url", &url], &rules].concat();
        let spawn = |dir: &tempfile::TempDir, line| {
            let server = Server::spawn(dir.path(), &arguments);
            server.wait_for_line(line);
            server
        };
        let servers = vec![spawn(&dirs[0], "the database is connected"), spawn(&dirs[1], "standing by")];
        Pair { database, dirs, servers }
    }
}

/// HAProxy with `tuning/cluster/haproxy-pairs.cfg`, except for addresses.
struct Front {
    haproxy: Child,
    address: SocketAddr,
    /// Where keepalived asks.
    checks: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Front {
    fn start(pairs: &[Pair; 2]) -> Front {
        let dir = tempfile::tempdir().unwrap();
        let free_address = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (address, checks) = (free_address(), free_address());
        let mut text = repository_text("tuning/cluster/haproxy-pairs.cfg");
        for (documented, address) in [("bind :80\n", address), ("bind :8404\n", checks)] {
            assert_eq!(text.matches(documented).count(), 1, "{documented}");
            text = text.replace(documented, &format!("bind {address}\n"));
        }
        let servers = pairs.iter().flat_map(|pair| &pair.servers);
        for (server, documented) in servers.zip(["10.9.0.1:8080", "10.9.0.2:8080", "10.9.0.4:8080", "10.9.0.5:8080"]) {
            assert_eq!(text.matches(documented).count(), 1, "{documented}");
            text = text.replace(documented, &server.address.to_string());
        }
        let file = dir.path().join("haproxy.cfg");
        fs::write(&file, text).unwrap();
        let mut haproxy = Command::new("haproxy");
        let haproxy =
            haproxy.args(["-db", "-f"]).arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let front = Front { haproxy, address, checks, _dir: dir };
        for sale in [1, 2] {
            let is_ready = || front.ask(sale, "GET /readyz?x=1").is_some_and(|answer| answer.status == 200);
            wait_until("HAProxy sees who sells", || (0..10).all(|_| is_ready()));
        }
        front
    }

    /// Sends a request for one of the sales. Returns `None` if no answer arrives.
    fn ask(&self, sale: u32, line: &str) -> Option<Response> {
        Self::ask_at(self.address, &format!("{line}&sale_id={sale}"))
    }

    /// Sends a request on a connection of its own. Returns `None` if no answer arrives.
    fn ask_at(address: SocketAddr, line: &str) -> Option<Response> {
        let mut stream = TcpStream::connect(address).ok()?;
        let request = format!("{line} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        // HAProxy has answers of its own, so this is no request of the tests' history.
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Response { status, head: head.to_owned(), body: body.to_owned() })
    }

    /// Reserves and buys an item. Returns the status of the last request.
    fn buy(&self, sale: u32, user: i64, item: u32) -> Option<u16> {
        let reserved = self.ask(sale, &format!("POST /checkout?user_id={user}&item_id={item}"))?;
        if reserved.status != 200 {
            return Some(reserved.status);
        }
        let code = reserved.body;
        self.ask(sale, &format!("POST /purchase?code={code}")).map(|bought| bought.status)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        drop((self.haproxy.kill(), self.haproxy.wait()));
    }
}

/// The loss of a server stops its own sale only. Each sale has its own stock, and its own limit for each user.
#[test]
fn each_sale_has_a_pair() {
    if Command::new("haproxy").arg("-v").output().is_err() {
        return skipped("two pairs behind HAProxy", "no haproxy");
    }
    let mut pairs = [Pair::start(), Pair::start()];
    let front = Front::start(&pairs);
    assert_eq!(front.ask(3, "GET /sale?x=1").unwrap().status, 404, "there is no such sale");
    for sale in [1, 2] {
        for item in 0..LIMIT as u32 {
            assert_eq!(front.buy(sale, 7, item), Some(200), "sale {sale}");
        }
        let refused = front.ask(sale, "POST /checkout?user_id=7&item_id=50").unwrap();
        assert_eq!(refused.problem(), "user-limit", "sale {sale}");
    }
    pairs[0].servers.remove(0).kill();
    let mut is_back = false;
    for (user, item) in (100..).zip(LIMIT as u32..ITEMS) {
        assert_eq!(front.buy(2, user, item), Some(200), "the other sale goes on");
        is_back |= front.buy(1, user, item) == Some(200);
    }
    wait_until("the first sale goes on", || is_back || front.buy(1, 1000, ITEMS - 1) == Some(200));
    for (user, item) in (2000..).zip(0..ITEMS) {
        // A hold whose answer was lost with the server ends first.
        let is_sold = || {
            let refused = front.ask(1, &format!("POST /checkout?user_id={user}&item_id={item}"));
            refused.is_some_and(|answer| answer.body.contains("item-sold"))
        };
        wait_until("the first sale sells out", || front.buy(1, user, item) == Some(200) || is_sold());
    }
    let is_alive = || Front::ask_at(front.checks, "GET /alive").is_some_and(|answer| answer.status == 200);
    assert!(is_alive(), "a server of each pair sells");
    for pair in pairs {
        pair.servers.into_iter().for_each(|server| assert!(server.terminate().success()));
        let sold = pair.database.ask("select item_id from stampede.purchases");
        let sold: Vec<u32> = sold.lines().map(|item| item.parse().unwrap()).collect();
        assert_eq!((sold.len(), sold.iter().collect::<BTreeSet<_>>().len()), (ITEMS as usize, ITEMS as usize));
        drop(pair.dirs);
    }
    wait_until("keepalived learns that nobody sells", || !is_alive());
}
