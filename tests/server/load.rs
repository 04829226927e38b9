//! A crowd of buyers, and what each was told.

use crate::harness::{Client, Server};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::thread;

/// What a buyer was promised about an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    pub user: i64,
    pub item: u32,
    pub code: String,
    /// The purchase was acknowledged.
    pub bought: bool,
    /// A purchase was sent, and its answer never came, or was that nobody knows: it may or may not have happened.
    pub unknown: bool,
}

/// Every promise made to anyone.
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

/// Runs `buyer` on `buyers` threads at once, each with its number.
pub fn crowd(buyers: u32, buyer: impl Fn(u32) + Sync) {
    thread::scope(|scope| {
        let buyer = &buyer;
        let threads: Vec<_> = (0..buyers).map(|number| scope.spawn(move || buyer(number))).collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no buyer panics"));
    });
}

/// Reserves and buys one item; says what came of it. An error means that the server is gone.
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

/// A connection, tried for as long as a restart may take.
pub fn connect(address: SocketAddr) -> Client {
    Client::connect(address).expect("the server accepts")
}

/// No item twice, no code twice, nobody over the limit. Returns what was bought, by item.
pub fn check_books(promises: &[Promise], limit: usize) -> BTreeMap<u32, &Promise> {
    let mut bought = BTreeMap::new();
    let mut of_user: BTreeMap<i64, usize> = BTreeMap::new();
    for promise in promises.iter().filter(|promise| promise.bought) {
        let other = bought.insert(promise.item, promise);
        assert_eq!(other, None, "sold twice: {promise:?}");
        *of_user.entry(promise.user).or_default() += 1;
    }
    let codes: BTreeSet<&str> = promises.iter().map(|promise| promise.code.as_str()).collect();
    assert_eq!(codes.len(), promises.len(), "a code was given out twice");
    assert!(of_user.values().all(|&items| items <= limit), "somebody bought too much: {of_user:?}");
    bought
}

/// Every purchase acknowledged in the last round, and every 50th of those before, is there; every hold can still be
/// bought, nothing can be bought twice. Promises before `last` are of earlier rounds.
pub fn check_survivors(server: &Server, all: &mut [Promise], last: usize, round: u32) {
    let mut client = server.connect();
    for (index, promise) in all.iter_mut().enumerate() {
        if index < last && index % 50 != round as usize % 50 {
            continue;
        }
        let outcome = client.purchase(&promise.code).outcome();
        match (promise.bought, promise.unknown, outcome.as_str()) {
            (true, _, "code-used") => {}
            (false, true, "code-used" | "200") | (false, false, "200") => promise.bought = true,
            _ => panic!("round {round}: {promise:?} now answers {outcome}"),
        }
        assert_eq!(client.checkout(1, promise.item).problem(), "item-sold", "{promise:?}");
    }
}
