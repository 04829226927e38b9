//! The n-th disk operation of the server fails: a write, a sync, a rename or another one. The server acknowledges
//! nothing that is not on disk and exits with the reason, and the next start recovers.

use crate::faulty_disk::{Fault, FaultyDisk, Plan};
use crate::harness::{Client, LONG_SALE, Server, how_many, skipped};
use crate::history::History;
use crate::load::{Promise, Promises, buy, check_books, crowd};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const ITEMS: u32 = 120;
const BUYERS: u32 = 3;
/// Approximate number of disk operations in one run, and of writes among them.
const OPERATIONS: u32 = 300;
const WRITES: u32 = 100;

/// Two shards with small segments, so that the server creates segments during the sale.
const SHOP: [&str; 10] =
    ["--shards", "2", "--items", "120", "--user-limit", "120", "--reservation-ttl", "1h", "--log-budget", "2MiB"];

fn arguments() -> Vec<&'static str> {
    [&LONG_SALE[..], &SHOP].concat()
}

/// Buys most items and holds every fifth, until the server is gone or no item is left. Returns whether the server is
/// gone.
fn shop(address: SocketAddr, promises: &Promises) -> bool {
    let is_gone = AtomicBool::new(false);
    crowd(BUYERS, |number| {
        let shopped = Client::connect(address).and_then(|mut client| {
            // Connect before recovery has ended, so that the test covers faults during recovery.
            while client.try_request("GET /readyz", "")?.status != 200 {
                thread::sleep(Duration::from_millis(1));
            }
            for item in (number..ITEMS).step_by(BUYERS as usize) {
                let user = i64::from(number);
                if item % 5 != 0 {
                    buy(&mut client, user, item, promises)?;
                    continue;
                }
                let reserved = client.try_checkout(user, item)?;
                if reserved.status == 200 {
                    promises.add(Promise { user, item, code: reserved.body, bought: false, unknown: false });
                }
            }
            Ok(())
        });
        is_gone.fetch_or(shopped.is_err(), Ordering::SeqCst);
    });
    is_gone.into_inner()
}

/// Checks, on the disk without the fault, that the server keeps every promise.
fn check_promises(backing: &Path, promises: &mut [Promise], what: &str) {
    let server = Server::start(backing, &arguments());
    let mut client = server.connect();
    for promise in promises.iter_mut() {
        promise.check(&mut client, what);
    }
    check_books(promises, ITEMS as usize);
    // Every promise is a purchase now. Only a checkout whose response was lost may still hold an item.
    assert!(client.sale()["sold"] == promises.len(), "{what}: {}", client.sale());
    server.kill();
}

/// Runs the server on a good disk and kills it, so that there is something to recover, then runs it on a disk with a
/// fault. Returns the exit code and the reason, if any, or `None` where nothing can be mounted.
fn live_through(plan: Plan) -> Option<(i32, String)> {
    let backing = tempfile::tempdir().unwrap();
    let promises = Promises::default();
    let server = Server::start(backing.path(), &arguments());
    let mut client = server.connect();
    for item in 0..5 {
        buy(&mut client, 1, item, &promises).unwrap();
    }
    server.kill();

    let disk = FaultyDisk::mount(backing.path(), plan);
    let disk = disk.map_err(|error| skipped("failing writes", format!("no FUSE here: {error}"))).ok()?;
    History::of(backing.path()).also_of(disk.path());
    let server = Server::spawn(disk.path(), &arguments());
    let is_gone = shop(server.address, &promises);
    let end = if is_gone || disk.has_failed() {
        assert!(disk.has_failed(), "{plan:?}: the server exited without a fault: {:?}", server.last_words());
        let (code, reason) = server.last_words();
        let places = BTreeMap::from([(4, "cannot use the data directory"), (7, "the log cannot be written")]);
        let place = places.get(&code).unwrap_or_else(|| panic!("{plan:?}: {code}: {reason}"));
        let is_explained = ["os error 5", "bytes written"].iter().any(|cause| reason.contains(cause));
        assert!(reason.contains(place) && is_explained, "{plan:?}: {reason}");
        (code, reason)
    } else {
        assert!(server.terminate().success(), "{plan:?}");
        (0, String::new())
    };
    drop(disk);
    check_promises(backing.path(), &mut promises.take(), &format!("{plan:?}"));
    Some(end)
}

/// Runs with one fault each, spread over the first `reach` operations; if there are at least `reach` runs, at every one
/// of them. Returns how the runs ended, or `None` where nothing can be mounted.
fn try_each(fault: Fault, has_direct_io: bool, reach: u32) -> Option<Vec<(i32, String)>> {
    let faults = how_many("STAMPEDE_WRITE_FAULTS", 20);
    let reach = reach.max(faults);
    (0..faults).map(|round| live_through(Plan { fault, at: 1 + round * reach / faults, has_direct_io })).collect()
}

fn check_errors(has_direct_io: bool) {
    let Some(ends) = try_each(Fault::Error, has_direct_io, OPERATIONS) else { return };
    assert!([4, 7].iter().all(|expected| ends.iter().any(|(code, _)| code == expected)), "{ends:?}");
}

#[test]
fn each_failed_write_ends_the_process_and_loses_nothing() {
    check_errors(true);
}

#[test]
fn each_failed_write_through_the_page_cache_does_too() {
    check_errors(false);
}

#[test]
fn no_short_write_is_taken_for_a_whole_one() {
    let Some(ends) = try_each(Fault::ShortWrite, true, WRITES) else { return };
    assert!(ends.iter().any(|(code, reason)| *code == 7 && reason.contains("bytes written")), "{ends:?}");
}
