//! Load: a crowd of concurrent buyers, a record of the responses they receive, and checks of that record against the
//! server.

use crate::harness::{Client, Server};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A reservation that the server has granted to a buyer, and the known state of its purchase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    pub user: i64,
    pub item: u32,
    pub code: String,
    /// The server has acknowledged the purchase.
    pub bought: bool,
    /// The purchase was sent, but its response was 503 or never arrived: the purchase may or may not have happened.
    pub unknown: bool,
}

impl Promise {
    /// Repeats the purchase and checks the outcome: an acknowledged purchase exists, and a hold can still be bought.
    pub fn check(&mut self, client: &mut Client, when: impl Display) {
        let outcome = client.purchase(&self.code).outcome();
        match (self.bought, self.unknown, outcome.as_str()) {
            (true, _, "code-used") => {}
            (false, true, "code-used" | "200") | (false, false, "200") => self.bought = true,
            _ => panic!("{when}: {self:?} now answers {outcome}"),
        }
    }
}

/// All promises to all buyers.
#[derive(Default)]
pub struct Promises(Mutex<Vec<Promise>>);

impl Promises {
    pub fn add(&self, promise: Promise) {
        self.0.lock().expect("no buyer panics").push(promise);
    }

    pub fn take(self) -> Vec<Promise> {
        self.0.into_inner().expect("no buyer panics")
    }
}

/// Runs `buyer` on `buyers` concurrent threads. Each thread receives its number.
pub fn crowd(buyers: u32, buyer: impl Fn(u32) + Sync) {
    thread::scope(|scope| {
        let buyer = &buyer;
        let threads: Vec<_> = (0..buyers).map(|number| scope.spawn(move || buyer(number))).collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no buyer panics"));
    });
}

/// Reserves and buys one item. Returns the outcome of the last request. An error means that the connection is lost.
pub fn buy(client: &mut Client, user: i64, item: u32, promises: &Promises) -> std::io::Result<String> {
    let reserved = client.try_checkout(user, item)?;
    if reserved.status != 200 {
        return Ok(reserved.problem());
    }
    let promise = Promise { user, item, code: reserved.body, bought: false, unknown: false };
    match client.try_purchase(&promise.code) {
        Ok(bought) => {
            promises.add(Promise { bought: bought.status == 200, unknown: bought.status == 503, ..promise });
            Ok(bought.outcome())
        }
        Err(error) => {
            promises.add(Promise { unknown: true, ..promise });
            Err(error)
        }
    }
}

/// Runs `buyers` buyers over the first `items` items, sale after sale, until more than `enough` purchases are
/// acknowledged or 30 seconds have passed. Returns the number of purchases and the set of all outcomes.
pub fn buy_until(address: SocketAddr, buyers: u32, items: u32, enough: u32) -> (u32, BTreeSet<String>) {
    let (bought, outcomes) = (AtomicU32::new(0), Mutex::new(BTreeSet::new()));
    let end = Instant::now() + Duration::from_secs(30);
    crowd(buyers, |number| {
        let mut client = connect(address);
        for turn in 0.. {
            if Instant::now() > end || bought.load(Ordering::Relaxed) > enough {
                return;
            }
            let item = (turn * buyers + number) % items;
            let outcome =
                buy(&mut client, number.into(), item, &Promises::default()).expect("the server keeps running");
            bought.fetch_add(u32::from(outcome == "200"), Ordering::Relaxed);
            outcomes.lock().expect("no buyer panics").insert(outcome);
        }
    });
    (bought.into_inner(), outcomes.into_inner().expect("no buyer panics"))
}

/// Connects to a running server.
pub fn connect(address: SocketAddr) -> Client {
    Client::connect(address).expect("the server accepts connections")
}

/// Checks that no item is sold twice, no code is issued twice, and no user exceeds the limit. Returns the purchases by
/// item.
pub fn check_books(promises: &[Promise], limit: usize) -> BTreeMap<u32, &Promise> {
    let mut bought = BTreeMap::new();
    let mut of_user: BTreeMap<i64, usize> = BTreeMap::new();
    for promise in promises.iter().filter(|promise| promise.bought) {
        let other = bought.insert(promise.item, promise);
        assert_eq!(other, None, "item sold twice: {promise:?}");
        *of_user.entry(promise.user).or_default() += 1;
    }
    let codes: BTreeSet<&str> = promises.iter().map(|promise| promise.code.as_str()).collect();
    assert_eq!(codes.len(), promises.len(), "a code was issued twice");
    assert!(of_user.values().all(|&items| items <= limit), "a user exceeded the limit: {of_user:?}");
    bought
}

/// Checks every promise of the last round and every 50th promise of the earlier rounds: an acknowledged purchase
/// exists, a hold can still be bought, and no item can be bought twice. Promises before index `last` are of earlier
/// rounds.
pub fn check_survivors(server: &Server, all: &mut [Promise], last: usize, round: u32) {
    let mut client = server.connect();
    for (index, promise) in all.iter_mut().enumerate() {
        if index < last && index % 50 != round as usize % 50 {
            continue;
        }
        promise.check(&mut client, format_args!("round {round}"));
        assert_eq!(client.checkout(1, promise.item).problem(), "item-sold", "{promise:?}");
    }
}
