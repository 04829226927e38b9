//! The plan of a standby: it may change while the standby waits, and what contradicts the sales in the database is refused
//! before anything is taken over.

use crate::cluster::Cluster;
use crate::harness::{Client, Server, assert_refused, wait_until};
use crate::planned::{PLAN, now_s, product, sale, write};
use rustix::process::Signal;
use std::path::Path;

/// A database, two data directories, and the beginning of the first sale, in seconds since the Unix epoch.
struct PlannedPair {
    cluster: Cluster,
    dirs: [tempfile::TempDir; 2],
    begin: u64,
}

impl PlannedPair {
    fn new() -> PlannedPair {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        PlannedPair { cluster: Cluster::start(), dirs, begin: now_s() - 60 }
    }

    /// Returns a sale that has opened this many seconds after the first one.
    fn sale(&self, id: u32, after: u64, quantity: u32) -> String {
        sale(id, (self.begin + after, self.begin + 3600), "user_limit = 9", &product("a", quantity))
    }

    fn write(&self, place: usize, sales: &[String]) {
        write(self.dirs[place].path(), sales);
    }

    fn arguments(&self) -> Vec<String> {
        let url = self.cluster.url();
        let more = ["--standby", "--ack", "postgres", "--database-url", &url];
        PLAN.iter().chain(&more).map(ToString::to_string).collect()
    }

    fn spawn(&self, dir: &Path) -> Server {
        let arguments = self.arguments();
        Server::spawn(dir, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Starts a server that sells, and one that stands by, both with these sales.
    fn start(&self, sales: &[String]) -> (Server, Server) {
        (0..2).for_each(|place| self.write(place, sales));
        let owner = self.spawn(self.dirs[0].path());
        wait_to_sell(&owner);
        owner.wait_for_line("the database is connected");
        let standby = self.spawn(self.dirs[1].path());
        standby.wait_for_line("standing by");
        (owner, standby)
    }

    fn epoch(&self) -> u64 {
        self.cluster.count("select epoch from clusters")
    }
}

fn wait_to_sell(server: &Server) {
    wait_until("the server sells", || {
        let answer = Client::connect(server.address).and_then(|mut client| client.try_request("GET /readyz", ""));
        answer.is_ok_and(|answer| answer.status == 200)
    });
}

fn reserve(server: &Server, sale: u32, item: u32) -> String {
    let answer = server.connect().request(&format!("POST /checkout?user_id=7&sale_id={sale}&item_id={item}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

#[test]
fn a_standby_that_is_reloaded_has_the_new_plan() {
    let pair = PlannedPair::new();
    let first = pair.sale(1, 0, 3);
    let (mut owner, mut standby) = pair.start(std::slice::from_ref(&first));
    let held = reserve(&owner, 1, 1);
    owner.connect().wait_for_postgres();

    // What cannot be used is refused while the other server sells.
    for (plan, says) in [
        (first.replace("user_limit", "user_limt"), "unknown key \"user_limt\""),
        (pair.sale(1, 0, 4), "shop.toml:1: sale 1 has opened, and the log has other terms: units 3 (the plan: 4)"),
        (pair.sale(2, 30, 4), "sale 1 is missing in the plan, and by the log it is open until"),
    ] {
        pair.write(1, &[plan]);
        standby.signal(Signal::HUP);
        let refused = standby.wait_for_line("the reload was refused: this standby keeps its plan");
        assert!(refused["signal"] == "SIGHUP" && refused["why"].as_str().unwrap().contains(says), "{refused}");
        assert_eq!(standby.connect().request("GET /readyz").json()["status"], "standby");
    }
    assert_eq!(pair.epoch(), 1);

    let both = [first, pair.sale(2, 30, 4)];
    (0..2).for_each(|place| pair.write(place, &both));
    standby.signal(Signal::HUP);
    standby.wait_for_line("the plan is read again: this standby starts anew");
    standby.starts_again();
    standby.wait_for_line("standing by");
    owner.upgrade();
    let in_second = reserve(&owner, 2, 3);
    owner.connect().wait_for_postgres();
    owner.kill();
    wait_to_sell(&standby);
    for code in [held, in_second] {
        assert_eq!(standby.connect().purchase(&code).status, 200);
    }
    assert_eq!(standby.times_said("the plan has changed since it was read"), 0);
    assert_eq!(pair.cluster.ask("select sale_id, product_id, items from products order by 1"), "1|a|3\n2|a|4");
    assert!(standby.terminate().success());
}

/// The operator has changed the plan of both, and has reloaded only the server that sells.
#[test]
fn a_standby_with_an_older_plan_reads_it_again_to_take_over() {
    let pair = PlannedPair::new();
    let first = pair.sale(1, 0, 3);
    let (mut owner, mut standby) = pair.start(std::slice::from_ref(&first));
    let both = [first.clone(), pair.sale(2, 30, 4)];
    (0..2).for_each(|place| pair.write(place, &both));
    owner.upgrade();
    let code = reserve(&owner, 2, 3);
    owner.connect().wait_for_postgres();
    owner.kill();
    let changed = standby.wait_for_line("the plan has changed since it was read: this standby starts anew");
    assert!(changed["why"].as_str().unwrap().contains("sale 2 is missing in the plan"), "{changed}");
    standby.starts_again();
    wait_to_sell(&standby);
    assert_eq!(standby.connect().purchase(&code).status, 200);
    assert!(standby.terminate().success());

    // A standby whose file has the older plan as well ends, and changes nothing. The next one can take over.
    let third = tempfile::tempdir().unwrap();
    write(third.path(), &[first]);
    let epoch = pair.epoch();
    let arguments = pair.arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    assert_refused(third.path(), &arguments, 2, &["wrong plan: shop.toml: sale 2 is missing in the plan"]);
    assert_eq!((pair.epoch(), third.path().join("control.json").exists()), (epoch, false));
    write(third.path(), &both);
    let server = pair.spawn(third.path());
    wait_to_sell(&server);
    assert!(server.terminate().success());
}
