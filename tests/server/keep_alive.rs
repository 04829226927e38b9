//! Connections that stay open: what answers say about them, and when the server closes an idle one.

use crate::harness::{Client, LONG_SALE, Response, Server};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

fn start(dir: &tempfile::TempDir, arguments: &[&str]) -> Server {
    Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "1"], arguments].concat())
}

/// Returns what an answer says about its connection.
fn connection(answer: &Response) -> (Option<&str>, Option<&str>) {
    (answer.header("connection"), answer.header("keep-alive"))
}

fn ask(client: &mut Client, request: &str) -> Response {
    client.send(request.as_bytes()).unwrap();
    client.read().unwrap()
}

#[test]
fn answers_that_keep_the_connection_state_the_idle_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, &["--items", "20", "--idle-timeout", "90500ms"]);
    let kept = (Some("keep-alive"), Some("timeout=90"));
    let closed = (Some("close"), None);
    let mut client = server.connect();
    // Answers with and without a body, from the rendered problems, from the pages, and from decided requests.
    let code = client.reserve(1, 1);
    let image = client.request("GET /items/1/image.svg");
    let known = format!("If-None-Match: {}\r\n", image.header("etag").unwrap());
    for (line, fields, status) in [
        ("GET /livez", "", 200),
        ("GET /nothing", "", 404),
        ("GET /checkout", "", 405),
        ("OPTIONS /checkout", "", 204),
        ("GET /items/1/image.svg", known.as_str(), 304),
        ("POST /checkout?item_id=1", "", 400),
        ("POST /checkout?user_id=2&item_id=1", "X-Request-Id: 7\r\n", 409),
        ("POST /checkout?user_id=2&item_id=2", "X-Request-Id: 8\r\n", 200),
        (&format!("DELETE /checkout?code={code}"), "", 204),
    ] {
        let answer = client.try_request(line, fields).unwrap();
        assert_eq!((answer.status, connection(&answer)), (status, kept), "{line}: {answer:?}");
    }
    let old = ask(&mut client, "GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!((old.status, connection(&old)), (200, kept));

    for request in [
        "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "POST /checkout?user_id=3&item_id=3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "GET /livez HTTP/1.0\r\n\r\n",
        "GET /livez HTTP/1.1\r\n\r\n",
    ] {
        let mut client = server.connect();
        let answer = ask(&mut client, request);
        assert_eq!(connection(&answer), closed, "{request}: {answer:?}");
        assert!(client.is_closed(), "{request}");
    }
    let mut listener = server.connect();
    listener.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(connection(&listener.read_head().unwrap()), closed);
}

/// What a client sends after its last request is not answered, and costs it no answer: the server closes the connection
/// only when the client has read the answer.
#[test]
fn a_client_that_sends_more_after_its_last_request_gets_its_answer() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, &[]);
    let last = ["GET /livez", "POST /checkout?user_id=3&item_id=3", "GET /no-such-page"];
    for (round, line) in last.into_iter().cycle().take(30).enumerate() {
        let mut client = server.connect();
        let more = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1 + round * 100);
        client.send(format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n{more}").as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(5));
        let answer = client.read().unwrap_or_else(|error| panic!("round {round}: {line}: {error}"));
        assert_eq!(connection(&answer).0, Some("close"), "{line}: {answer:?}");
        assert!(client.is_closed(), "{line}");
    }
}

/// The busy connection is older than the timeout when the idle ones are closed, and stays open.
#[test]
fn a_connection_is_closed_when_it_has_been_idle_for_the_idle_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir, &["--idle-timeout", "3s"]);
    let timeout = Duration::from_secs(3);
    let mut busy = server.connect();
    let (mut idle, mut silent) = (server.connect(), server.connect());
    let began = Instant::now();
    assert_eq!(idle.request("GET /livez").header("keep-alive"), Some("timeout=3"));
    thread::scope(|scope| {
        let closed = scope.spawn(|| {
            assert!(idle.is_closed());
            let after = began.elapsed();
            assert!(silent.is_closed());
            after
        });
        while !closed.is_finished() {
            assert_eq!(busy.request("GET /livez").status, 200);
            thread::sleep(Duration::from_millis(50));
        }
        let after = closed.join().unwrap();
        // The server checks about once a second. A turn can begin shortly before the request arrives.
        assert!(after > timeout - Duration::from_millis(200) && after < timeout * 4, "{after:?}");
        assert!(began.elapsed() > timeout);
    });
    assert_eq!(busy.request("GET /livez").status, 200);
}

#[test]
fn an_upgrade_changes_the_idle_timeout_of_open_connections() {
    let dir = tempfile::tempdir().unwrap();
    let set = |timeout| fs::write(dir.path().join(".env"), format!("IDLE_TIMEOUT={timeout}\n")).unwrap();
    set("1h");
    let mut server = start(&dir, &[]);
    let mut client = server.connect();
    assert_eq!(client.request("GET /livez").header("keep-alive"), Some("timeout=3600"));
    set("4s");
    server.upgrade();
    assert_eq!(client.request("GET /livez").header("keep-alive"), Some("timeout=4"));
    assert!(client.is_closed());
}
