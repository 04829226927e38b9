//! The schema of the database over the years: other objects beside it, and older versions of it.

use crate::cluster::{Cluster, bin, psql};
use crate::harness::{Client, LONG_SALE, Server, assert_refused, repository_text, stampede, wait_until};
use std::path::Path;
use std::process::{Command, Stdio};

fn start(dir: &Path, cluster: &Cluster, more: &[&str]) -> Server {
    let url = cluster.url();
    let server =
        Server::start(dir, &[&LONG_SALE[..], &["--database-url", &url, "--user-limit", "1000"], more].concat());
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

/// Sales of one hour. The current one has the id `NOW`.
const HOURLY: [&str; 2] = ["--sale-period", "1h"];
const NOW: &str = "floor(extract(epoch from now()) / 3600)::bigint";
/// Number of partitions of `checkouts`.
const DAYS: &str = "select count(*) from partitions where table_name = 'checkouts'";

/// A database as version 0.1.0 leaves it after ten hourly sales of 100 items, each with 100 grants and 1000 refusals.
fn fill_as_version_0_1(cluster: &Cluster) {
    cluster.ask(&repository_text("sql/0001_schema.sql"));
    for statement in [
        "create table schema_migrations (version integer primary key, applied_at timestamptz not null default now())",
        "insert into schema_migrations values (1)",
        "insert into clusters values (gen_random_uuid(), 3600, 1, gen_random_uuid(), now(), '-infinity')",
        &format!("insert into sales select {NOW} - s, 100, 10, now(), 0 from generate_series(2, 11) s"),
        "select prepare_sale(sale_id) from sales",
        "select extend_catalogue(1000) from sales",
        "insert into checkouts select sale_id, i, 7, gen_random_uuid(), 0, now(), now() from sales, generate_series(0, 99) i",
        "insert into checkouts select sale_id, i % 100, 7, null, 1, now(), null from sales, generate_series(1, 1000) i",
        "insert into purchases select sale_id, item_id, 7, code, at, null from checkouts where outcome = 0 and item_id < 60",
        "insert into releases select sale_id, item_id, 7, code, 1, at from checkouts where outcome = 0 and item_id >= 60",
        "create table old_names as select * from sale_items",
        "create table old_purchases as select * from purchases",
    ] {
        cluster.ask(statement);
    }
}

#[test]
fn a_database_of_version_0_1_is_brought_up_to_date() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    fill_as_version_0_1(&cluster);
    let files = "select string_agg(pg_relation_filenode(oid)::text, ' ' order by relname) from pg_class \
        where relname ~ '^checkouts_[0-9]+$' and reltuples <> 0";
    let before = cluster.ask(files);
    let server = start(dir.path(), &cluster, &HOURLY);
    trade(&mut server.connect(), 1);
    assert!(server.terminate().success());
    let after = cluster.ask(files);
    assert!(before.split(' ').all(|file| after.contains(file)), "the partitions stay: {before} in {after}");
    assert_eq!(cluster.count(&format!("select count(*) from checkouts where sale_id < {NOW} - 1")), 11_000);
    assert_eq!(
        cluster.count("select count(*) from purchases join public.old_purchases using (sale_id, item_id, code, at)"),
        600
    );
    assert_eq!(cluster.count("select count(*) from releases"), 401);
    assert_eq!(cluster.count("select count(*) from public.old_names natural join sale_items"), 1000);
    assert_eq!(cluster.count("select count(*) from item_status where purchased"), 601);
    // Nothing stays in the old place but the table by which version 0.1.0 refuses the database.
    let left = "select string_agg(relname, ' ' order by relname) from pg_class \
        where relnamespace = 'public'::regnamespace and relkind <> 'i'";
    assert_eq!(cluster.ask(left), "old_names old_purchases schema_migrations");
    assert_eq!(cluster.count("select count(*) from pg_proc where pronamespace = 'public'::regnamespace"), 0);
    assert!(cluster.count("select max(version) from public.schema_migrations") > 1);
    assert_eq!(cluster.ask("select to_regproc('extend_catalogue') is null, to_regproc('item_name') is null"), "t|f");
    let server = start(dir.path(), &cluster, &HOURLY);
    trade(&mut server.connect(), 3);
    assert!(server.terminate().success());
}

/// The partitions of three days are made without a record, and those that are missing when a record arrives. A table
/// that is there and not attached is attached.
#[test]
fn partitions_are_made_ahead_and_when_they_are_missing() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster, &HOURLY);
    wait_until("three days are there", || cluster.count(DAYS) == 3);
    let days = "select table_name, sum(until_sale - first_sale) from partitions group by 1 order by 1";
    assert_eq!(cluster.ask(days), "checkouts|72\nextensions|72\npurchases|72\nreleases|72");
    let mut client = server.connect();
    trade(&mut client, 1);
    let today = format!(
        "select partition from partitions where table_name = 'purchases' and {NOW} between first_sale and until_sale - 1"
    );
    let purchases = cluster.ask(&today);
    cluster.ask(&format!("alter table purchases detach partition {purchases}"));
    trade(&mut client, 3);
    assert_eq!(cluster.count("select count(*) from purchases"), 2, "the table that was there is attached");
    for table in ["purchases", "releases", "extensions", "checkouts"] {
        let today = cluster.ask(&today.replace("'purchases'", &format!("'{table}'")));
        cluster.ask(&format!("drop table {today}"));
    }
    trade(&mut client, 5);
    assert_eq!(cluster.ask("select (select count(*) from purchases), (select count(*) from releases)"), "1|1");
    // Only the refused checkouts are missing.
    let refused = "select refused from partitions where refused is not null order by first_sale limit 1";
    cluster.ask(&format!("drop table {}", cluster.ask(refused)));
    assert_eq!(client.checkout(2, 5).problem(), "item-sold");
    // No client waits for the flush of a refusal.
    wait_until("the refusal has arrived", || cluster.count("select count(*) from checkouts where outcome > 0") == 1);
    // Not an orderly stop, which would compare the log with the rows that are dropped here.
    server.kill();
}

#[test]
fn four_hundred_days_fit_in_the_default_lock_table() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster, &HOURLY);
    wait_until("three days are there", || cluster.count(DAYS) == 3);
    trade(&mut server.connect(), 1);
    assert!(server.terminate().success());
    for days in 0..40 {
        let (first, last) = (days * 10 + 1, days * 10 + 10);
        cluster.ask(&format!("select prepare_sale({NOW} - 24 * day) from generate_series({first}, {last}) day"));
    }
    assert_eq!(cluster.count(DAYS), 403);
    let dump = Command::new(bin("pg_dump")).args(["-d", &cluster.url()]).output().unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let examples = repository_text("sql/examples.sql");
    cluster.ask(&format!("begin; {examples} commit"));
    let mut read = Vec::new();
    for query in examples.split_inclusive(';').filter(|query| query.contains("select")) {
        let plan = cluster.ask(&format!("explain (analyze, costs off, timing off, summary off) {query}"));
        let is_read = |line: &&str| {
            line.contains("loops=")
                && line.contains(" on ")
                && !line.contains("Bitmap Index")
                && !line.contains("never executed")
        };
        let partitions = ["checkouts_", "purchases_", "releases_", "extensions_"];
        let is_partition = |line: &&str| partitions.iter().any(|name| line.contains(name));
        read.push(plan.lines().filter(is_read).filter(is_partition).count());
    }
    // The sale; 48 sales and those to come; an item; products; their buyers; the granted and the refused checkouts; none.
    assert!(read.iter().zip([1, 6, 1, 1, 6, 2, 0]).all(|(read, most)| *read <= most), "{read:?}");
    assert!(read[0] > 0 && read[5] > 0, "{read:?}");
}

/// Fills the day of the sale that was open `days` ago with a grant, a refusal and a purchase.
fn fill_day(cluster: &Cluster, days: u32) {
    let sale = format!("{NOW} - 24 * {days}");
    for statement in [
        "select prepare_sale(SALE)",
        "insert into sales values (SALE, 9, 9, now())",
        "insert into checkouts (sale_id, user_id, at, expires_at, item_id, outcome, code) \
            values (SALE, 1, now(), now(), 1, 0, gen_random_uuid()), (SALE, 1, now(), null, 1, 1, null)",
        "insert into purchases select sale_id, user_id, at, item_id, code from checkouts where sale_id = SALE and outcome = 0",
    ] {
        cluster.ask(&statement.replace("SALE", &sale));
    }
}

/// A reader delays the drop of old partitions, and the rows of buyers do not wait for it.
#[test]
fn old_days_are_dropped_beside_a_reader() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster, &HOURLY);
    trade(&mut server.connect(), 1);
    assert!(server.terminate().success());
    [500, 40, 10].into_iter().for_each(|days| fill_day(&cluster, days));
    // What a crash and an operator have left.
    let leave = |name: &str| cluster.ask(&format!("create table {name} (like purchases)"));
    ["purchases_1", "purchases_2"].into_iter().for_each(|name| _ = leave(name));
    cluster.ask("comment on table purchases_1 is 'Stampede drops this table'");
    let mut reader = Command::new(bin("psql"));
    reader.args(["-d", &cluster.url(), "-c", "begin; select count(*) from stampede.checkouts; select pg_sleep(600)"]);
    let mut reader = reader.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let sleeps = "from pg_stat_activity where query like 'begin;%pg_sleep(600)' and wait_event = 'PgSleep'";
    wait_until("the reader has read", || cluster.count(&format!("select count(*) {sleeps}")) == 1);
    let server =
        start(dir.path(), &cluster, &[&HOURLY[..], &["--keep-sales", "400d", "--keep-attempts", "30d"]].concat());
    let detaches =
        "select count(*) from pg_stat_activity where query like 'alter table % concurrently' and state = 'active'";
    wait_until("the drop waits for the reader", || cluster.count(detaches) == 1);
    trade(&mut server.connect(), 3);
    assert_eq!(cluster.count(detaches), 1);
    assert_eq!(cluster.count(&format!("select count(pg_terminate_backend(pid)) {sleeps}")), 1);
    reader.wait().unwrap();
    let dropped = |kind| format!("stampede_postgres_partitions_dropped_total{{kind=\"{kind}\"}}");
    // The last partition, by name, is the one of the refused checkouts.
    wait_until("old days are dropped", || crate::metrics::scrape(server.admin)[&dropped("attempts")] == 1.0);
    assert_eq!(crate::metrics::scrape(server.admin)[&dropped("sales")], 4.0);
    let kept = format!(
        "select ({NOW} - sale_id + 23) / 24, count(*), count(*) filter (where outcome > 0) from checkouts \
        where sale_id < {NOW} - 24 group by 1 order by 1"
    );
    assert_eq!(cluster.ask(&kept), "10|2|1\n40|1|0");
    assert_eq!(cluster.ask("select to_regclass('purchases_1') is null, to_regclass('purchases_2') is null"), "t|f");
    // Not an orderly stop, which would compare the log with the rows that this test has made.
    server.kill();
}

/// Runs `stampede migrate`. Returns the exit code and the output.
fn migrate(dir: &Path, url: &str) -> (Option<i32>, String) {
    let mut command = Command::new(stampede(dir, &[]).get_program());
    let output = command.env_clear().current_dir(dir).args(["migrate", "--database-url", url]).output().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn a_server_needs_no_right_over_the_schema() {
    let (cluster, dir, empty) = (Cluster::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(migrate(dir.path(), &cluster.url()), (Some(0), "the schema was updated from version 0 to 12\n".into()));
    assert_eq!(migrate(dir.path(), &cluster.url()), (Some(0), "the schema has version 12 already\n".into()));
    let documented = repository_text("docs/postgres.md");
    let grants = documented.split("```sql\n").find(|block| block.starts_with("create role shop")).unwrap();
    cluster.ask(grants.split("```").next().unwrap());
    let url = cluster.url().replace("user=stampede", "user=shop");
    let arguments = [&HOURLY[..], &["--database-url", &url]].concat();
    let server = Server::start(dir.path(), &arguments);
    trade(&mut server.connect(), 1);
    wait_until("three days are there", || cluster.count(DAYS) == 3);
    assert!(server.terminate().success());
    let server = Server::start(empty.path(), &arguments);
    assert_eq!(server.connect().checkout(2, 1).problem(), "item-sold");
    trade(&mut server.connect(), 3);
    assert!(server.terminate().success());
    for refused in
        ["drop table stampede.purchases", "delete from stampede.purchases", "update stampede.sales set items = 1"]
    {
        assert!(
            psql(&url, refused).unwrap_err().contains("must be owner")
                || psql(&url, refused).unwrap_err().contains("denied")
        );
    }
    // A role that had the right in version 10 of the schema keeps it.
    cluster.ask("drop function stampede.prepare_sales; drop table stampede.products cascade");
    cluster.ask("grant execute on function stampede.prepare_sale to shop");
    cluster.ask("delete from schema_migrations where version >= 11");
    assert_eq!(migrate(dir.path(), &cluster.url()), (Some(0), "the schema was updated from version 10 to 12\n".into()));
    let may = "select has_function_privilege('shop', 'stampede.prepare_sales(bigint, bigint, bigint)', 'execute'), \
        has_function_privilege('shop', 'stampede.prepare_partition(text, bigint, bigint, bigint)', 'execute')";
    assert_eq!(cluster.ask(may).trim(), "t|f");
}

/// Neither a server that does not own the database nor the command changes the schema of a server that is running.
#[test]
fn the_schema_of_a_running_server_is_not_changed() {
    let (cluster, dir, other) = (Cluster::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert!(Server::start(other.path(), &HOURLY).terminate().success());
    let server = start(dir.path(), &cluster, &HOURLY);
    trade(&mut server.connect(), 1);
    assert!(server.terminate().success());
    cluster.ask("drop publication stampede; drop table products cascade");
    cluster.ask("delete from schema_migrations where version >= 7");
    // A server of the earlier version reports.
    cluster.ask("update clusters set seen_at = now()");
    let url = cluster.url();
    let (code, text) = migrate(dir.path(), &url);
    assert!(code == Some(8) && text.contains("a server has reported"), "{code:?}: {text}");
    let arguments = [&HOURLY[..], &["--database-url", &url]].concat();
    assert_refused(other.path(), &arguments, 8, &["another installation"]);
    assert_eq!(cluster.count("select max(version) from schema_migrations"), 6);
    // The next run of the same installation does.
    let server = start(dir.path(), &cluster, &HOURLY);
    trade(&mut server.connect(), 3);
    assert!(server.terminate().success());
    assert_eq!(cluster.count("select max(version) from schema_migrations"), 12);
    assert_eq!(cluster.count("select count(*) from pg_publication"), 1);
}
