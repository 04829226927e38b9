//! The schema of the database over the years: other objects beside it, and older versions of it.

use crate::cluster::Cluster;
use crate::harness::{Client, LONG_SALE, Server};
use std::path::Path;

fn start(dir: &Path, cluster: &Cluster, more: &[&str]) -> Server {
    let url = cluster.url();
    let server = Server::start(dir, &[&LONG_SALE[..], &["--database-url", &url], more].concat());
    server.wait_for_line("the database is connected");
    server
}

/// Buys item `item`, reserves the next one and cancels it, and waits until all of it is in the database.
fn trade(client: &mut Client, item: u32) {
    let code = client.reserve(1, item);
    assert_eq!(client.purchase(&code).status, 200);
    let code = client.reserve(1, item + 1);
    assert_eq!(client.request(&format!("DELETE /checkout?code={code}")).status, 204);
    client.wait_for_postgres();
}

#[test]
fn columns_that_an_operator_adds_do_not_stop_the_rows() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster, &[]);
    trade(&mut server.connect(), 1);
    for table in ["clusters", "log_positions", "sales", "checkouts", "purchases", "releases", "extensions"] {
        cluster.ask(&format!("alter table {table} add column first_note text default 'x', add column note integer"));
    }
    cluster.ask("alter table schema_migrations add column note integer");
    trade(&mut server.connect(), 3);
    assert!(server.terminate().success());
    let server = start(dir.path(), &cluster, &[]);
    trade(&mut server.connect(), 5);
    assert!(server.terminate().success());
    assert_eq!(cluster.ask("select count(*), count(first_note) from purchases"), "3|3");
    assert_eq!(cluster.ask("select count(*), count(first_note) from releases"), "3|3");
    let empty = tempfile::tempdir().unwrap();
    let server = start(empty.path(), &cluster, &[]);
    assert_eq!(server.connect().checkout(2, 1).problem(), "item-sold");
    assert!(server.terminate().success());
}

/// Another program has tables with the names of ours, and the server does not take them for its own.
#[test]
fn tables_of_another_program_are_left_alone() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    for table in ["clusters", "log_positions", "sales", "sale_items", "checkouts", "purchases", "releases"] {
        cluster.ask(&format!("create table {table} (id integer, version integer); insert into {table} values (1, 1)"));
    }
    cluster.ask(
        "create table schema_migrations (version character varying); insert into schema_migrations values ('20260101')",
    );
    let before =
        cluster.ask("select relname, relnatts from pg_class where relnamespace = 'public'::regnamespace order by 1");
    // The directory is empty, so the server looks for a sale that it could take over.
    let server = start(dir.path(), &cluster, &[]);
    trade(&mut server.connect(), 1);
    assert!(server.terminate().success());
    assert_eq!(cluster.ask("select count(*) from stampede.purchases"), "1");
    let after =
        cluster.ask("select relname, relnatts from pg_class where relnamespace = 'public'::regnamespace order by 1");
    assert_eq!(before, after);
    assert_eq!(cluster.ask("select count(*) from public.purchases"), "1");
}
