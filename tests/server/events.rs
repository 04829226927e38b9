//! Tests of `GET /events`: the events that subscribers receive, and the limits that protect buyers from them.

use crate::harness::{LONG_SALE, Server, wait_until};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A subscriber to `GET /events`.
pub struct Listener(BufReader<TcpStream>);

impl Listener {
    pub fn connect(address: SocketAddr) -> Listener {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: shop\r\nX-Request-Id: e\r\n\r\n").unwrap();
        let mut listener = Listener(BufReader::new(stream));
        let head = listener.lines_to_an_empty_one().unwrap();
        let has = |line: &str| head.iter().any(|known| known == line);
        assert!(has("HTTP/1.1 200 OK") && has("content-type: text/event-stream"), "{head:?}");
        assert!(has("cache-control: no-store") && has("connection: close") && has("x-request-id: e"), "{head:?}");
        listener
    }

    /// Reads lines up to an empty one. Returns `None` if the connection is closed.
    fn lines_to_an_empty_one(&mut self) -> Option<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            match line.trim_end() {
                "" => return Some(lines),
                line => lines.push(line.to_owned()),
            }
        }
    }

    /// Returns the next event and its data, or `None` at the end of the stream.
    pub fn hear(&mut self) -> Option<(String, Value)> {
        loop {
            let lines = self.lines_to_an_empty_one()?;
            let field = |name| lines.iter().find_map(|line| line.strip_prefix(name));
            if let (Some(event), Some(data)) = (field("event: "), field("data: ")) {
                return Some((event.to_owned(), serde_json::from_str(data).unwrap()));
            }
        }
    }

    /// Reads events, which must all be of this kind, until `is_it` accepts the data of one. Returns that data.
    fn hear_until(&mut self, kind: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let (event, data) = self.hear().expect("the stream continues");
            assert_eq!(event, kind, "{data}");
            if is_it(&data) {
                return data;
            }
        }
    }
}

fn stands(data: &Value) -> [u64; 3] {
    ["sold", "reserved", "available"].map(|name| data[name].as_u64().unwrap())
}

#[test]
fn everybody_hears_of_every_change_on_every_shard() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "3", "--items", "10"]].concat());
    let mut client = server.connect();
    client.reserve(1, 1);
    let mut listeners: Vec<_> = (0..9).map(|_| Listener::connect(server.address)).collect();
    let sale = client.sale();
    for listener in &mut listeners {
        assert_eq!(listener.hear().unwrap(), ("sale".to_owned(), sale.clone()), "the first event equals GET /sale");
    }
    let code = client.reserve(2, 2);
    listeners.iter_mut().for_each(|listener| drop(listener.hear_until("stock", |data| stands(data) == [0, 2, 8])));
    client.purchase(&code);
    for listener in &mut listeners {
        let data = listener.hear_until("stock", |data| stands(data) == [1, 1, 8]);
        assert_eq!(data["sale_id"], sale["sale_id"]);
    }
    assert_eq!(client.request("HEAD /events").header("content-type"), Some("text/event-stream"));
    assert_eq!(server.connect().request("POST /events").header("allow"), Some("GET, HEAD"));
    // The server removes subscribers that disconnect.
    drop(listeners);
    wait_until("no subscriber is left", || server.metric("stampede_subscribers") == 0);
    assert_eq!(server.connect().sale()["sold"], 1);
}

#[test]
fn a_new_sale_is_announced() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &["--sale-period", "2s", "--shards", "2"]);
    let mut listener = Listener::connect(server.address);
    let first = listener.hear_until("sale", |_| true)["sale_id"].as_u64().unwrap();
    for next in 1..3 {
        let sale = listener.hear_until("sale", |_| true);
        assert_eq!(sale["sale_id"], first + next, "{sale}");
        assert_eq!(sale["available"], sale["items_total"]);
    }
}

#[test]
fn an_upgrade_is_not_noticed_and_a_stop_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "2"]].concat());
    let mut listeners: Vec<_> = (0..4).map(|_| Listener::connect(server.address)).collect();
    listeners.iter_mut().for_each(|listener| drop(listener.hear_until("sale", |_| true)));
    server.upgrade();
    server.connect().reserve(1, 1);
    for listener in &mut listeners {
        // The new process does not know which events the old one sent, and begins with the whole sale.
        let data = listener.hear_until("sale", |_| true);
        if stands(&data)[1] == 0 {
            listener.hear_until("stock", |data| stands(data)[1] == 1);
        }
    }
    assert!(server.terminate().success(), "the server does not wait for subscribers");
    listeners.iter_mut().for_each(|listener| assert_eq!(listener.hear(), None));
}

/// The limit counts over all shards: the kernel distributes subscribers unevenly.
#[test]
fn those_who_listen_leave_room_for_those_who_buy() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--shards", "4", "--max-connections", "16"];
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &arguments].concat());
    let _listeners: Vec<_> = (0..8).map(|_| Listener::connect(server.address)).collect();
    let refused = server.connect().request("GET /events");
    assert_eq!((refused.problem().as_str(), refused.asks_to_retry()), ("too-many-connections", true));
    let mut head = server.connect();
    head.send(b"HEAD /events HTTP/1.1\r\nHost: shop\r\n\r\n").unwrap();
    assert_eq!(head.read_head().unwrap().status, 503);
    assert!(head.is_closed(), "the response to HEAD has no body");
    server.connect().reserve(1, 1);
}
