//! Logical replication: what other programs read as the rows commit.

use crate::cluster::Cluster;
use crate::harness::{LONG_SALE, Server};
use std::collections::BTreeMap;

/// Reads the inserts of the publication since the last call, by the messages of `pgoutput`: table and columns.
fn read_inserts(cluster: &Cluster, tables: &mut BTreeMap<u32, String>) -> Vec<(String, Vec<String>)> {
    let changes = "select encode(data, 'hex') from pg_logical_slot_get_binary_changes('reader', null, null, \
        'proto_version', '1', 'publication_names', 'stampede')";
    let mut inserts = Vec::new();
    for line in cluster.ask(changes).lines() {
        let bytes: Vec<u8> =
            (0..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap()).collect();
        let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        match bytes[0] {
            b'R' => {
                let mut names = bytes[5..].split(|byte| *byte == 0);
                let [schema, table] = [(); 2].map(|()| String::from_utf8(names.next().unwrap().to_vec()).unwrap());
                assert_eq!(schema, "stampede");
                tables.insert(number(1), table);
            }
            b'I' => {
                let (mut at, mut columns) = (8, Vec::new());
                while at < bytes.len() {
                    let length = if bytes[at] == b't' { number(at + 1) as usize + 4 } else { 0 };
                    let text = if length > 0 { &bytes[at + 5..=at + length] } else { &[] };
                    columns.push(String::from_utf8(text.to_vec()).unwrap());
                    at += 1 + length;
                }
                inserts.push((tables[&number(1)].clone(), columns));
            }
            _ => {}
        }
    }
    inserts
}

/// A reader finds each purchase exactly once, after its checkout, although the server is killed.
#[test]
fn replication_has_each_purchase_once_across_kill_9() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let url = cluster.url();
    let start = || {
        let server =
            Server::start(dir.path(), &[&LONG_SALE[..], &["--database-url", &url, "--user-limit", "1000"]].concat());
        server.wait_for_line("the database is connected");
        server
    };
    let (mut tables, mut inserts, mut bought) = (BTreeMap::new(), Vec::new(), Vec::new());
    let mut server = start();
    cluster.ask("select pg_create_logical_replication_slot('reader', 'pgoutput')");
    for round in 0..4u32 {
        let mut client = server.connect();
        for item in round * 50..round * 50 + 50 {
            let code = client.reserve(7, item);
            // Each item is released once and then bought.
            assert_eq!(client.request(&format!("DELETE /checkout?code={code}")).status, 204);
            let code = client.reserve_after_release(7, item);
            assert_eq!(client.purchase(&code).status, 200);
            assert_eq!(client.checkout(8, item).problem(), "item-sold");
            bought.push((item, code));
        }
        inserts.extend(read_inserts(&cluster, &mut tables));
        server.kill();
        server = start();
    }
    server.connect().wait_for_postgres();
    inserts.extend(read_inserts(&cluster, &mut tables));
    assert!(server.terminate().success());
    // Columns are in the order of the tables: the item is the fourth or fifth.
    let of = |table: &str, item: usize, code: usize| -> Vec<(u32, String)> {
        let rows = inserts.iter().filter(|(from, _)| from == table);
        rows.map(|(_, columns)| (columns[item].parse().unwrap(), columns[code].clone())).collect()
    };
    let mut purchases = of("purchases", 3, 4);
    purchases.sort_unstable();
    assert_eq!(purchases, bought, "each purchase is there once");
    assert_eq!((of("checkouts", 4, 6).len(), of("releases", 3, 5).len()), (400, 200), "grants only, and releases");
    for (item, code) in bought {
        let of_item = |(table, columns): &&(String, Vec<String>)| match table.as_str() {
            "checkouts" => columns[4] == item.to_string(),
            _ => columns[3] == item.to_string(),
        };
        let events: Vec<_> = inserts.iter().filter(of_item).collect();
        let place = |table: &str| events.iter().position(|(from, columns)| from == table && columns.contains(&code));
        assert!(place("checkouts") < place("purchases"), "item {item}: {events:?}");
        assert_eq!(events.len(), 4, "item {item}: {events:?}");
    }
}
