//! Tests that end the server by kill -9 or by a power cut, many times: nothing acknowledged is lost.

use crate::harness::{Client, LONG_SALE, Server, how_many};
use crate::load::{Promise, Promises, buy, check_books, check_survivors, crowd};
use crate::power::Disk;
use std::path::Path;
use std::time::Duration;

/// Number of items in one round. Each round has items of its own.
const ITEMS: u32 = 400;

#[test]
fn nothing_acknowledged_is_lost_to_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let slowest = live_and_die(dir.path(), how_many("STAMPEDE_KILLS", 50), Server::kill);
    assert!(slowest < Duration::from_secs(2), "the slowest restart took {slowest:?}");
}

#[test]
fn nothing_acknowledged_is_lost_to_a_power_cut() {
    let Some(disk) = Disk::mount() else { return };
    live_and_die(&disk.data(), how_many("STAMPEDE_POWER_CUTS", 10), |server| {
        disk.cut_power();
        server.kill();
        disk.power_on();
    });
}

/// Starts the server, sells, and ends it by `die`, `lives` times. Returns the duration of the slowest start.
fn live_and_die(dir: &Path, lives: u32, die: impl Fn(Server)) -> Duration {
    let items = (lives * ITEMS).to_string();
    let mut all: Vec<Promise> = Vec::new();
    let mut last = 0;
    let mut slowest = Duration::ZERO;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..lives {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let shards = (1 + random % 3).to_string();
        let arguments = ["--shards", &shards, "--items", &items, "--user-limit", "1000000", "--reservation-ttl", "1h"];
        let server = Server::start(dir, &[&LONG_SALE[..], &arguments].concat());
        slowest = slowest.max(server.start_time);
        check_survivors(&server, &mut all, last, round);
        last = all.len();

        let promises = Promises::default();
        let address = server.address;
        let die_after = Duration::from_millis(20 + random % 80);
        std::thread::scope(|scope| {
            scope.spawn(|| crowd(8, |number| shop_until_it_dies(address, round, number, ITEMS, &promises)));
            std::thread::sleep(die_after);
            die(server);
        });
        all.extend(promises.take());
    }
    check_books(&all, usize::MAX);
    let bought = all.iter().filter(|promise| promise.bought).count();
    assert!(bought as u32 > lives * 3, "only {bought} purchases in all: the server ended too early");
    slowest
}

/// Buys items until the server has ended, and leaves every fourth one as a hold. Each round has its own items, so that
/// only buyers of one round compete.
fn shop_until_it_dies(address: std::net::SocketAddr, round: u32, number: u32, items: u32, promises: &Promises) {
    let Ok(mut client) = Client::connect(address) else { return };
    for turn in 0.. {
        let item = round * items + (turn * 8 + number) % items;
        let user = i64::from(number);
        if turn % 4 == 3 {
            let Ok(reserved) = client.try_checkout(user, item) else { return };
            if reserved.status == 200 {
                promises.add(Promise { user, item, code: reserved.body, bought: false, unknown: false });
            }
        } else if buy(&mut client, user, item, promises).is_err() {
            return;
        }
    }
}
