//! Pauses of the whole process (SIGSTOP, SIGCONT): time passes while the server does not run.

use crate::harness::{LONG_SALE, Server, how_many};
use crate::load::{Promises, buy, check_books, connect, crowd};
use rustix::process::Signal;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const ITEMS: u32 = 3_000;

fn start(dir: &std::path::Path) -> Server {
    let arguments = ["--items", "3000", "--user-limit", "3000", "--shards", "3", "--reservation-ttl", "1s"];
    Server::start(dir, &[&LONG_SALE[..], &arguments].concat())
}

/// Stops the server. Returns when all its threads have stopped.
fn stop(server: &Server) {
    server.signal(Signal::STOP);
    let tasks = format!("/proc/{}/task", server.pid());
    let runs = |task: fs::DirEntry| !fs::read_to_string(task.path().join("status")).unwrap().contains("State:\tT");
    while fs::read_dir(&tasks).unwrap().flatten().any(runs) {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_server_that_is_stopped_now_and_then_tells_nobody_anything_false() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let promises = Promises::default();
    let is_over = AtomicBool::new(false);
    let address = server.address;
    thread::scope(|scope| {
        scope.spawn(|| {
            crowd(6, |number| {
                let mut client = connect(address);
                for turn in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let item = (turn * 5 + number * 7) % ITEMS;
                    let outcome =
                        buy(&mut client, i64::from(number), item, &promises).expect("the server keeps running");
                    // A pause may outlast a hold. Another buyer may then have the item.
                    let known = ["200", "item-sold", "item-reserved", "code-expired", "code-unknown"];
                    assert!(known.contains(&outcome.as_str()), "{outcome}");
                }
            });
        });
        for turn in 0..how_many("STAMPEDE_PAUSES", 12) {
            thread::sleep(Duration::from_millis(60));
            stop(&server);
            // Every fourth pause is longer than a hold.
            thread::sleep(Duration::from_millis(if turn % 4 == 3 { 1200 } else { 100 }));
            server.signal(Signal::CONT);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let promises = promises.take();
    let bought = check_books(&promises, ITEMS as usize);
    assert!(bought.len() > 100, "only {} items were sold", bought.len());
    assert_eq!(server.connect().sale()["sold"], bought.len());
    server.kill();
    let server = start(dir.path());
    let mut client = server.connect();
    assert_eq!(client.sale()["sold"], bought.len());
    bought.values().for_each(|promise| assert_eq!(client.purchase(&promise.code).problem(), "code-used"));
}

/// The server decides a request that arrives during a pause by the time after the pause.
#[test]
fn a_hold_that_runs_out_in_a_pause_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let (mut client, mut other) = (server.connect(), server.connect());
    let code = client.reserve(1, 1);
    stop(&server);
    client.send(format!("POST /purchase?code={code} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    thread::sleep(Duration::from_millis(1200));
    server.signal(Signal::CONT);
    assert_eq!(client.read().unwrap().problem(), "code-expired");
    let code = other.reserve(2, 1);
    assert_eq!(other.purchase(&code).status, 200);
    assert!(server.terminate().success());
}
