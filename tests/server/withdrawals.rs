//! A thousand clients disconnect while their purchases wait for a database that does not answer.

use crate::cluster::Cluster;
use crate::harness::{Client, LONG_SALE, Server, wait_until};
use crate::metrics::{scrape, sum};

const BUYERS: u32 = 1_000;

fn buy_line(code: &str) -> String {
    format!("POST /purchase?code={code} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

/// Each withdrawal is one message, to the shard that has the purchase, and none if that is the client's own shard. The
/// purchases stay, and a client that repeats one takes over its answer.
#[test]
fn each_client_that_is_gone_costs_one_message() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let (items, url) = (BUYERS.to_string(), cluster.url());
    let arguments = ["--items", &items, "--user-limit", &items, "--shards", "4", "--database-url", &url];
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &arguments, &["--ack", "postgres"]].concat());
    server.wait_for_line("the database is connected");
    let reserve = |item| {
        let mut client = server.connect();
        let code = client.reserve(1, item);
        (client, code)
    };
    let mut buyers: Vec<(Client, String)> = (0..BUYERS).map(reserve).collect();
    server.connect().wait_for_postgres();
    let messages = || sum(&scrape(server.admin), "stampede_lane_messages_total", "");
    let durable = || sum(&scrape(server.admin), "stampede_log_records_durable_total", "purchases");
    let of_checkouts = messages();
    cluster.pause();
    buyers.iter_mut().for_each(|(client, code)| client.send(buy_line(code).as_bytes()).unwrap());
    // One opening of the sale for each shard, the checkouts and the purchases.
    wait_until("all purchases are in the log", || durable() == f64::from(4 + 2 * BUYERS));
    let of_purchases = messages() - of_checkouts;
    assert!((0.5..0.9).contains(&(of_purchases / f64::from(BUYERS))), "{of_purchases} of {BUYERS} go to another shard");
    let code = buyers[0].1.clone();
    drop(buyers);
    let connections = || sum(&scrape(server.admin), "stampede_connections", "");
    wait_until("the server knows that all clients are gone", || connections() == 0.0);
    let of_withdrawals = || messages() - of_checkouts - of_purchases;
    wait_until("the owners know, too", || of_withdrawals() >= of_purchases);
    // The new client is on any shard, so its purchase and the answer are two messages or none.
    let mut repetition = server.connect();
    repetition.send(buy_line(&code).as_bytes()).unwrap();
    cluster.resume();
    assert_eq!(repetition.read().unwrap().status, 200, "the repetition takes over the answer");
    repetition.wait_for_postgres();
    let more = of_withdrawals() - of_purchases;
    assert!(more == 0.0 || more == 2.0, "{of_purchases} withdrawals are {} messages", of_purchases + more);
    assert_eq!(repetition.sale()["sold"], BUYERS);
    assert_eq!(cluster.count("select count(*) from purchases"), u64::from(BUYERS));
}
