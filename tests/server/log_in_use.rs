//! `stampede log` on a log in use: the tool reads the log correctly while a server writes it, hands it over or removes
//! segments, and the tool changes and locks nothing. The tests of its reports are in `log_tool.rs`.

use crate::cluster::Cluster;
use crate::harness::{Client, LONG_SALE, Server, how_many, wait_until};
use crate::load::{Promises, buy, connect};
use crate::log_tool::{Deeds, dump, figures, start, told, tool};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Number of looks at a log that is being written. Release runs set it higher.
fn looks() -> u32 {
    how_many("STAMPEDE_LOG_LOOKS", 24)
}

/// Runs eight buyers while `looking` runs. `buyer` receives the client, its number and its turn.
fn under_load(server: &Server, buyer: impl Fn(&mut Client, u32, u32) + Sync, looking: impl FnOnce()) {
    let (is_over, address) = (AtomicBool::new(false), server.address);
    thread::scope(|scope| {
        for number in 0..8 {
            let (is_over, buyer) = (&is_over, &buyer);
            scope.spawn(move || {
                let mut client = connect(address);
                (0..)
                    .take_while(|_| !is_over.load(Ordering::Relaxed))
                    .for_each(|turn| buyer(&mut client, number, turn));
            });
        }
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(looking));
        is_over.store(true, Ordering::Relaxed);
        looked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Reserves an item, and cancels the reservation after `held`.
fn reserve_and_cancel(client: &mut Client, user: i64, item: u32, held: Duration) {
    let code = client.checkout(user, item);
    if code.status == 200 {
        thread::sleep(held);
        client.request(&format!("DELETE /checkout?code={}", code.body));
    }
}

#[test]
fn a_log_that_is_being_written_is_sound() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let url = cluster.url();
    let server = start(dir.path(), &cluster, &["--shards", "2", "--user-limit", "1"]);
    // Every user is always at the limit, so each grant requires an earlier release, which may be on the other shard.
    let buyer = |client: &mut Client, number: u32, turn| {
        reserve_and_cancel(client, i64::from(number), 1000 * number + turn % 1000, Duration::from_millis(10));
    };
    under_load(&server, buyer, || {
        let mut was_growing = false;
        for _ in 0..looks() {
            let said = told(dir.path(), &["verify", "--database-url", &url]);
            was_growing |= said.contains("A server is writing to the log.");
            told(dir.path(), &["sale", "--database-url", &url]);
        }
        assert!(was_growing, "no server was writing to the log");
    });
    assert!(server.terminate().success());
}

#[test]
fn a_log_that_loses_ended_sales_is_sound() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let url = cluster.url();
    let sales = ["--sale-period", "2s", "--log-budget", "3MiB", "--shards", "2", "--user-limit", "3"];
    let server = Server::start(dir.path(), &[&sales[..], &["--database-url", &url]].concat());
    let buyer = |client: &mut Client, number, turn| {
        let item = (number * 1250 + turn) % 10_000;
        buy(client, 1000 + i64::from(item), item, &Promises::default()).unwrap();
        reserve_and_cancel(client, 7, item, Duration::ZERO);
    };
    under_load(&server, buyer, || {
        for _ in 0..looks() {
            told(dir.path(), &["verify", "--database-url", &url]);
            told(dir.path(), &["sale", "--database-url", &url]);
            assert!(dump(dir.path(), &["--user", "7"]).iter().all(|line| line["user_id"] == 7));
        }
        // The looks may be faster than the sales. Wait until retention has removed a sale.
        let has_lost = || told(dir.path(), &["verify", "--database-url", &url]).contains("older records removed");
        wait_until("retention has removed an ended sale", has_lost);
    });
    assert!(server.terminate().success());
    let said = told(dir.path(), &["verify", "--database-url", &url]);
    assert!(said.contains("older records removed"), "nothing was removed: {said}");
    // Postgres has more records of the oldest sale than the log.
    let oldest = dump(dir.path(), &[]).iter().map(|line| line["sale_id"].as_u64().unwrap()).min().unwrap();
    let said = told(dir.path(), &["sale", &oldest.to_string(), "--database-url", &url]);
    assert!(said.contains("lacks a part of this sale") && said.contains("agree"), "{said}");
    let sold = figures(&said, "sold");
    assert!(sold[0] <= sold[1], "{said}");
}

#[test]
fn a_log_that_changes_hands_is_sound() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "2"]].concat());
    let is_over = AtomicBool::new(false);
    let address = server.address;
    thread::scope(|scope| {
        let is_over = &is_over;
        let looking = scope.spawn(|| {
            let mut looks = 0;
            while !is_over.load(Ordering::Relaxed) || looks < 3 {
                told(dir.path(), &["verify"]);
                looks += 1;
            }
        });
        scope.spawn(move || {
            let (mut client, promises) = (connect(address), Promises::default());
            for item in 0..10_000 {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                assert_eq!(buy(&mut client, i64::from(item), item, &promises).unwrap(), "200");
            }
        });
        for _ in 0..4 {
            server.upgrade();
        }
        is_over.store(true, Ordering::Relaxed);
        looking.join().expect("every look succeeds");
    });
}

/// Returns size, modification time and contents of every entry below a directory.
fn everything(dir: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let metadata = dir.metadata().unwrap();
        found.insert(dir.clone(), (0, metadata.mtime(), metadata.mtime_nsec(), Vec::new()));
        for path in fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()) {
            let metadata = path.metadata().unwrap();
            if metadata.is_dir() {
                dirs.push(path);
            } else {
                let bytes = fs::read(&path).unwrap();
                found.insert(path, (metadata.len(), metadata.mtime(), metadata.mtime_nsec(), bytes));
            }
        }
    }
    found
}

#[test]
fn nothing_is_changed_and_nothing_is_locked() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let url = cluster.url();
    let (server, mut deeds) = (start(dir.path(), &cluster, &[]), Deeds::default());
    deeds.buy(&mut server.connect(), (1, 1));
    server.kill();
    // PostgreSQL may still commit what the server has sent.
    let sessions =
        "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()";
    wait_until("the sessions of the server have ended", || cluster.count(sessions) == 0);
    // An incomplete segment, which a start removes, beside a log that is not sealed.
    fs::write(dir.path().join("log/purchases-0000000001-00000-000000009999-16.new"), "half").unwrap();
    let rows = "select (select count(*) from log_positions), (select count(*) from checkouts), epoch, run, seen_at from clusters";
    let (before, rows_before) = (everything(dir.path()), cluster.ask(rows));
    let xid = "select pg_current_snapshot()";
    let transactions = cluster.ask(xid);
    for command in [&["verify"][..], &["dump"], &["sale"]] {
        told(dir.path(), &[command, &["--database-url", &url]].concat());
    }
    assert!(everything(dir.path()) == before, "the data directory has changed");
    assert_eq!((cluster.ask(rows), cluster.ask(xid)), (rows_before, transactions), "the database was written to");
    // A server can start while the tool runs. The tool does not end, because the pipe is full.
    let server = Server::start(dir.path(), &LONG_SALE);
    let mut client = server.connect();
    for turn in 0..4000 {
        client.checkout(2, turn % 2);
    }
    assert!(server.terminate().success());
    let mut dumping = tool(dir.path(), &["dump"]).stdout(Stdio::piped()).spawn().unwrap();
    let server = Server::start(dir.path(), &LONG_SALE);
    assert_eq!(dumping.try_wait().unwrap(), None, "the tool waits for its reader");
    assert!(server.terminate().success());
    drop(dumping.stdout.take());
    assert!(dumping.wait().unwrap().success());
}
