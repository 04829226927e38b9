//! The products of a plan in Postgres: they are there before the first purchase of their sale, whatever happens between.

use crate::cluster::{Cluster, psql};
use crate::harness::{Client, Server, repository_text, wait_until};
use crate::planned::{PLAN, now_s, product, sale, wait_for, write};
use std::fs;

/// Reserves an item of a sale, and buys it.
fn buy(client: &mut Client, sale: u32, item: u32) {
    let code = client.request(&format!("POST /checkout?user_id=7&sale_id={sale}&item_id={item}"));
    assert_eq!(code.status, 200, "{code:?}");
    assert_eq!(client.purchase(&code.body).status, 200);
}

const PRODUCTS: &str = "select sale_id, product_id, first_item_id, items, name, price, image, array_length(units, 1) \
    from products order by sale_id, first_item_id";

#[test]
fn the_products_of_a_sale_are_there_when_it_opens() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let url = cluster.url();
    let arguments = [&PLAN[..], &["--database-url", &url]].concat();
    let now = now_s();
    let opens = now + 12;
    let odd = r#"O'Brien "A\\1", {NULL} – Größe 🎫"#;
    let units = format!("units = ['NULL', {odd:?}, '\\N', '{{}}', 'A,\"1\"']");
    let named = format!(
        "[[sale.product]]\nid = \"seat\"\nname = {odd:?}\nprice = \"45,– €\"\nimage = \"/a%20b.png\"\n{units}\n"
    );
    write(
        dir.path(),
        &[
            sale(7, (now - 9, now + 3600), "user_limit = 9", &(product("a", 3) + &named)),
            sale(8, (opens, now + 3600), "user_limit = 9", &(product("b", 2) + &product("a", 4))),
        ],
    );
    let server = Server::start(dir.path(), &arguments);
    let first = format!("7|a|0|3|Product a|||\n7|seat|3|5|{odd}|45,– €|/a%20b.png|5");
    wait_until("the open sale is there", || cluster.ask(PRODUCTS) == first);
    let unit = |item: u32| cluster.ask(&format!("select unit from units where sale_id = 7 and item_id = {item}"));
    assert_eq!([3, 4, 5, 6, 7].map(unit), ["NULL", odd, "\\N", "{}", "A,\"1\""]);
    assert_eq!(cluster.ask("select count(*), count(unit) from units where sale_id = 7"), "8|5");
    let mut client = server.connect();
    buy(&mut client, 7, 4);

    // Nobody buys anything in the next one, and a server that is killed begins again.
    wait_for(opens);
    server.wait_for_line("the sale has opened");
    server.kill();
    let server = Server::start(dir.path(), &arguments);
    let both = format!("{first}\n8|b|0|2|Product b|||\n8|a|2|4|Product a|||");
    wait_until("the second sale is there", || cluster.ask(PRODUCTS) == both);
    let mut client = server.connect();
    for (sale, item) in [(7, 0), (8, 2), (8, 5)] {
        buy(&mut client, sale, item);
    }
    client.wait_for_postgres();
    assert!(server.terminate().success());
    assert_eq!(cluster.ask(PRODUCTS), both, "each is there once");
    assert_eq!(cluster.count("select count(*) from pg_publication_tables where tablename = 'products'"), 1);

    // The queries of the documentation. The latest sale is sale 8.
    let examples = repository_text("sql/examples.sql");
    let query = |word: &str| {
        let query = examples.split_inclusive(';').find(|query| query.contains(word)).unwrap();
        cluster.ask(query)
    };
    assert_eq!(query("units are sold of each product"), "8|b|Product b|2|0\n8|a|Product a|4|2");
    assert_eq!(
        query("products did a user buy"),
        format!("7|4|seat|{odd}|{odd}\n7|0|a|Product a|\n8|2|a|Product a|\n8|5|a|Product a|")
    );
    // What a later plan says changes no row.
    let renamed = fs::read_to_string(dir.path().join("shop.toml")).unwrap().replace("Product a", "Renamed");
    fs::write(dir.path().join("shop.toml"), renamed).unwrap();
    let server = Server::start(dir.path(), &arguments);
    buy(&mut server.connect(), 8, 3);
    assert!(server.terminate().success());
    assert_eq!(cluster.ask(PRODUCTS), both);
}

/// The database is away when two sales open. When it is back, the plan describes one of them, which is over, otherwise.
#[test]
fn products_follow_with_a_database_that_comes_back() {
    let (mut cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let url = cluster.url();
    let arguments = [&PLAN[..], &["--database-url", &url]].concat();
    let now = now_s();
    let (opens, closes) = (now + 4, now + 8);
    let plan = |short: String| {
        [
            sale(7, (opens, closes), "user_limit = 9", &short),
            sale(8, (opens, now + 3600), "user_limit = 9", &(product("b", 2) + &product("a", 4))),
        ]
    };
    write(dir.path(), &plan(product("a", 3)));
    let server = Server::start(dir.path(), &arguments);
    server.wait_for_line("the database is connected");
    cluster.kill();
    wait_for(opens);
    let mut client = server.connect();
    wait_until("both sales are open", || client.request("GET /sales/8").json()["phase"] == "open");
    buy(&mut client, 7, 0);
    buy(&mut client, 8, 3);
    wait_for(closes);
    server.kill();
    write(dir.path(), &plan(product("other", 3)));
    let server = Server::start(dir.path(), &arguments);
    cluster.go_on();
    server.connect().wait_for_postgres();
    assert_eq!(cluster.ask(PRODUCTS), "8|b|0|2|Product b|||\n8|a|2|4|Product a|||");
    assert_eq!(cluster.ask("select sale_id, item_id from purchases order by 1"), "7|0\n8|3");
    assert!(server.terminate().success());
}

/// A database as the version before leaves it, with a sale that is open. Another machine takes the sale over.
#[test]
fn a_database_of_version_11_gets_the_products_after_a_takeover() {
    let (cluster, [dir, other]) = (Cluster::start(), [(); 2].map(|()| tempfile::tempdir().unwrap()));
    let (url, now) = (cluster.url(), now_s());
    let arguments = [&PLAN[..], &["--database-url", &url]].concat();
    let plan = [sale(7, (now - 9, now + 3600), "user_limit = 9", &(product("a", 3) + &product("b", 2)))];
    [&dir, &other].into_iter().for_each(|dir| write(dir.path(), &plan));
    let server = Server::start(dir.path(), &arguments);
    buy(&mut server.connect(), 7, 1);
    assert!(server.terminate().success());
    cluster.ask("create role writer; create role reader; grant insert, select on sales to writer");
    cluster.ask("grant select on sales to reader with grant option");
    cluster.ask("alter publication stampede drop table products; drop table products cascade");
    cluster.ask("delete from schema_migrations where version = 12");
    let server = Server::start(other.path(), &arguments);
    buy(&mut server.connect(), 7, 4);
    assert!(server.terminate().success());
    assert_eq!(cluster.ask(PRODUCTS), "7|a|0|3|Product a|||\n7|b|3|2|Product b|||");
    let may = "select string_agg(format('%s %s %s', r, p, has_table_privilege(r, t, p)), ', ') from \
        unnest(array['writer', 'reader']) r, unnest(array['insert', 'select', 'update', 'delete']) p, \
        (values ('products')) t (t)";
    let expected = "writer insert t, writer select t, writer update f, writer delete f, \
        reader insert f, reader select t, reader update f, reader delete f";
    assert_eq!(cluster.ask(may), expected);
    assert_eq!(cluster.ask("select has_table_privilege('reader', 'units', 'select with grant option')"), "t");
    // A subscriber of the earlier version does not know the table.
    assert_eq!(cluster.count("select count(*) from pg_publication_tables where tablename = 'products'"), 0);
}

/// The encoding of the database lacks a character of the plan: the purchases arrive without the products.
#[test]
fn products_that_the_database_refuses_keep_no_purchase_away() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    cluster.ask("create database latin encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0");
    let (url, now) = (cluster.url().replace("dbname=postgres", "dbname=latin"), now_s());
    let arguments = [&PLAN[..], &["--database-url", &url]].concat();
    let priced = product("a", 3) + "price = \"9 €\"\n";
    write(
        dir.path(),
        &[
            sale(7, (now - 9, now + 3600), "user_limit = 9", &priced),
            sale(8, (now - 8, now + 3600), "user_limit = 9", &product("b", 4).replace("Product", "Größe")),
        ],
    );
    let server = Server::start(dir.path(), &arguments);
    let refused = server.wait_for_line("the database refuses the products of the sale");
    assert_eq!(refused["sale"], 7);
    assert!(refused["why"].as_str().unwrap().contains("(22P05)"), "{refused}");
    let mut client = server.connect();
    (0..3).for_each(|item| buy(&mut client, 7, item));
    buy(&mut client, 8, 0);
    client.wait_for_postgres();
    assert_eq!(server.times_said("the database refuses"), 0, "once for each sale and connection");
    let ask = |query: &str| psql(&url, query).unwrap();
    let name = "select sale_id, product_id, encode(convert_to(name, 'UTF8'), 'hex') from products";
    assert_eq!(ask(name), "8|b|4772c3b6c39f652062");
    assert_eq!(ask("select count(*) from purchases"), "4");
    // A new connection tries again.
    ask("alter table products alter price type bytea using null");
    ask("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'stampede'");
    assert_eq!(client.request("POST /checkout?user_id=9&sale_id=7&item_id=0").problem(), "item-sold");
    wait_until("the products are there", || ask("select count(*) from products") == "2");
    assert!(server.terminate().success());
}

/// A refused checkout can be flushed before the record that opens its sale, because they are in two logs.
#[test]
fn refused_checkouts_can_arrive_before_the_opening() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let (url, now) = (cluster.url(), now_s());
    write(dir.path(), &[sale(7, (now - 9, now + 3600), "user_limit = 9", &product("a", 3))]);
    let server = Server::start(dir.path(), &[&PLAN[..], &["--database-url", &url]].concat());
    let mut client = server.connect();
    buy(&mut client, 7, 0);
    client.wait_for_postgres();
    // The database as it is before the opening has arrived, and a new connection.
    cluster.ask("create table opening as select * from sales; delete from sales; delete from products");
    cluster.ask("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'stampede'");
    let mut refuse = |refused: u64| {
        assert_eq!(client.request("POST /checkout?user_id=9&sale_id=7&item_id=0").problem(), "item-sold");
        let count = "select count(*) from checkouts where outcome = 1";
        wait_until("the refusal has arrived", || cluster.count(count) == refused);
    };
    refuse(1);
    let backend = "select pid from pg_stat_activity where application_name = 'stampede' order by backend_start limit 1";
    let connection = cluster.ask(backend);
    assert_eq!(cluster.ask(PRODUCTS), "");
    cluster.ask("insert into sales select * from opening");
    refuse(2);
    assert_eq!((cluster.ask(PRODUCTS), cluster.ask(backend)), ("7|a|0|3|Product a|||".into(), connection));
    assert!(server.terminate().success());
}

/// A row for each product, also of many units.
#[test]
fn a_million_units_are_a_thousand_rows() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let (url, now) = (cluster.url(), now_s());
    let list: String = (0..200_000).map(|seat| format!("row-{}-seat-{seat}\n", seat / 100)).collect();
    fs::write(dir.path().join("seats.csv"), format!("unit\n{list}")).unwrap();
    let seats = "[[sale.product]]\nid = \"seat\"\nname = \"Seat\"\nunits_file = \"seats.csv\"\n";
    let products: String = (0..999).map(|number| product(&format!("p{number}"), 801)).collect();
    write(dir.path(), &[sale(7, (now - 9, now + 3600), "user_limit = 9", &(products + seats))]);
    let server = Server::start(dir.path(), &[&PLAN[..], &["--database-url", &url, "--ack", "postgres"]].concat());
    let mut client = server.connect();
    for item in [0, 999 * 801 + 123_456] {
        buy(&mut client, 7, item);
    }
    assert_eq!(cluster.ask("select count(*), sum(items), count(units) from products"), "1000|1000199|1");
    let sold = "select u.product_id, u.unit from purchases p join units u using (sale_id, item_id) \
        where sale_id = 7 order by item_id";
    assert_eq!(cluster.ask(sold), "p0|\nseat|row-1234-seat-123456");
    assert!(server.terminate().success());
}

/// The rows of a sale and its products are dropped together, and nothing of a sale that is open or was open lately.
#[test]
fn products_are_dropped_with_their_sale() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let (url, now, day) = (cluster.url(), now_s(), 86_400);
    let arguments = [&PLAN[..], &["--database-url", &url]].concat();
    let long = sale(50, (now - 60 * day, now + day), "user_limit = 9", &product("long", 3));
    write(
        dir.path(),
        &[
            long,
            sale(60, (now - 20 * day, now - 19 * day), "user_limit = 9", &product("over", 3)),
            sale(70, (now - 9, now + day), "user_limit = 9", &product("short", 3)),
        ],
    );
    let server = Server::start(dir.path(), &arguments);
    (50..=70).step_by(20).for_each(|sale| buy(&mut server.connect(), sale, 0));
    assert!(server.terminate().success());
    // Sales of earlier plans: 30 and 31 share their partitions; 40 was open until an hour ago.
    for (sale, first, until, closed) in [(20, 20, 21, 30 * day), (30, 30, 32, 30 * day), (31, 30, 32, 30 * day)] {
        add_sale(&cluster, sale, (first, until), now - closed);
    }
    let keeping = [&arguments[..], &["--keep-sales", "1day"]].concat();
    let server = Server::start(dir.path(), &keeping);
    let sales = "select string_agg(sale_id::text, ' ' order by sale_id) from products";
    wait_until("what is over is dropped", || cluster.ask(sales) == "50 70");
    let partitions = "select string_agg(first_sale::text, ' ' order by first_sale) from partitions \
        where table_name = 'purchases' and first_sale < 70";
    assert_eq!(cluster.ask(partitions), "50");
    assert!(server.terminate().success());

    // A sale is needed by its row, also if the plan does not have it any more, and so are all later ones.
    add_sale(&cluster, 30, (30, 31), now - 30 * day);
    add_sale(&cluster, 40, (40, 41), now - 3600);
    let server = Server::start(dir.path(), &keeping);
    wait_until("what is over is dropped", || cluster.ask(sales) == "40 50 70");
    assert_eq!(cluster.ask(partitions), "40 50");
    assert!(server.terminate().success());
}

/// Adds a sale with one product and one refused checkout, in partitions of the sales from `first` to before `until`.
fn add_sale(cluster: &Cluster, sale: u32, (first, until): (u32, u32), closed_s: u64) {
    for statement in [
        format!("select prepare_sales({sale}, {first}, {until})"),
        format!(
            "insert into sales (sale_id, items, user_limit, opened_at, opens_at, closes_at) select {sale}, 3, 9, at, at, \
             to_timestamp({closed_s}) from to_timestamp({closed_s} - 60) at on conflict do nothing"
        ),
        format!(
            "insert into products (sale_id, product_id, first_item_id, items, name) values ({sale}, 'x', 0, 3, 'X')"
        ),
    ] {
        cluster.ask(&statement);
    }
}
