//! `stampede log` on the logs of real servers: its reports on sales, on Postgres and on damage, and its arguments. The
//! tests that run it while the log is in use are in `log_in_use.rs`.

use crate::cluster::Cluster;
use crate::harness::{Client, LONG_SALE, Server, assert_refused, stampede, wait_until};
use crate::planned::{PLAN, now_s, product, sale, write};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Returns a command that runs `stampede log` on a data directory.
pub fn tool(dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stampede"));
    command.env_clear().current_dir(dir).arg("log").args(words).arg("--data-dir").arg(dir).stdin(Stdio::null());
    command
}

/// Runs `stampede log`. Returns the exit code, standard output and standard error.
fn ask(dir: &Path, words: &[&str]) -> (i32, String, String) {
    let output = tool(dir, words).output().expect("the binary starts");
    let [said, complained] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("text"));
    (output.status.code().expect("an exit code"), said, complained)
}

/// Runs `stampede log`, which must succeed without complaints. Returns standard output.
pub fn told(dir: &Path, words: &[&str]) -> String {
    let (code, said, complained) = ask(dir, words);
    assert!(code == 0 && complained.is_empty(), "{words:?}: {code}\n{said}\n{complained}");
    said
}

/// Returns the parsed lines of `log dump`.
pub fn dump(dir: &Path, words: &[&str]) -> Vec<Value> {
    let lines = told(dir, &[&["dump"], words].concat());
    lines.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Returns the figures of a line of `log sale`: that of the log and, if a database was given, that of Postgres.
pub fn figures(said: &str, name: &str) -> Vec<u64> {
    let line = said.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {said}"));
    line[name.len()..].split_whitespace().map(|figure| figure.parse().expect("a number")).collect()
}

/// Starts a server with a database and a long sale.
pub fn start(dir: &Path, cluster: &Cluster, arguments: &[&str]) -> Server {
    let url = cluster.url();
    Server::start(dir, &[&LONG_SALE[..], &["--database-url", &url], arguments].concat())
}

/// Returns the path of the first segment whose name contains `stream`.
fn segment(dir: &Path, stream: &str) -> PathBuf {
    let mut files: Vec<_> = fs::read_dir(dir.join("log")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().find(|path| path.to_str().unwrap().contains(stream)).expect("there is one")
}

/// Inverts a byte. A second call restores it.
fn spoil(path: &Path, offset: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[!byte[0]], offset).unwrap();
}

/// Actions of the buyers as `log dump` must report them, with the number of times of each.
#[derive(Default)]
pub struct Deeds(BTreeMap<(String, i64, u64, String, String), usize>);

impl Deeds {
    fn add(&mut self, event: &str, (user, item): (i64, u32), code: &str, reason: &str) {
        *self.0.entry((event.into(), user, item.into(), code.into(), reason.into())).or_default() += 1;
    }

    /// Returns the actions in lines of `log dump`. Openings of sales are not actions.
    fn of(lines: &[Value]) -> Deeds {
        let mut deeds = Deeds::default();
        for line in lines.iter().filter(|line| line["event"] != "sale-opened") {
            let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            let (user, item) = (line["user_id"].as_i64().unwrap(), line["item_id"].as_u64().unwrap() as u32);
            deeds.add(&text("event"), (user, item), &text("code"), &text("reason"));
        }
        deeds
    }

    fn count(&self, event: &str, reason: &str) -> u64 {
        let deeds = self.0.iter().filter(|((done, .., why), _)| done == event && why == reason);
        deeds.map(|(_, times)| *times as u64).sum()
    }

    fn refuse(&mut self, client: &mut Client, (user, item): (i64, u32), reason: &str) {
        assert_eq!(client.checkout(user, item).problem(), reason);
        self.add("refused", (user, item), "", reason);
    }

    fn reserve(&mut self, client: &mut Client, (user, item): (i64, u32)) -> String {
        let code = client.reserve(user, item);
        self.add("checkout", (user, item), &code, "");
        code
    }

    pub fn buy(&mut self, client: &mut Client, (user, item): (i64, u32)) {
        let code = self.reserve(client, (user, item));
        assert_eq!(client.purchase(&code).status, 200);
        self.add("purchase", (user, item), &code, "");
    }

    fn cancel(&mut self, client: &mut Client, (user, item): (i64, u32)) {
        let code = self.reserve(client, (user, item));
        assert_eq!(client.request(&format!("DELETE /checkout?code={code}")).status, 204);
        self.add("released", (user, item), &code, "cancelled");
    }
}

#[test]
fn a_sale_is_told_as_buyers_made_it() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let mut deeds = Deeds::default();
    let terms = ["--shards", "2", "--items", "30", "--user-limit", "3"];
    let server = start(dir.path(), &cluster, &[&terms[..], &["--reservation-ttl", "200ms"]].concat());
    let mut client = server.connect();
    let code = deeds.reserve(&mut client, (1, 29));
    wait_until("the hold is over", || client.sale()["reserved"] == 0);
    deeds.add("released", (1, 29), &code, "expired");
    assert!(server.terminate().success());

    let server = start(dir.path(), &cluster, &terms);
    let mut client = server.connect();
    for item in 0..8 {
        deeds.buy(&mut client, (i64::MAX - i64::from(item / 2), item));
        deeds.refuse(&mut client, (1, item), "item-sold");
    }
    let held: Vec<_> = (10..13).map(|item| deeds.reserve(&mut client, (9, item))).collect();
    deeds.refuse(&mut client, (9, 20), "user-limit");
    deeds.refuse(&mut client, (1, 10), "item-reserved");
    deeds.cancel(&mut client, (2, 15));
    deeds.cancel(&mut client, (2, 15));
    client.wait_for_postgres();
    let (said, sale) = (told(dir.path(), &["sale"]), client.sale());
    let number = |name: &str| sale[name].as_u64().unwrap();
    assert_eq!(figures(&said, "sold"), [number("sold")]);
    assert_eq!(figures(&said, "held now"), [number("reserved")]);
    assert_eq!(figures(&said, "available"), [number("available")]);
    assert!(server.terminate().success());

    let lines = dump(dir.path(), &[]);
    assert_eq!(Deeds::of(&lines).0, deeds.0);
    let place = |line: &Value| {
        let number = |name: &str| line[name].as_u64().unwrap();
        (number("epoch"), number("shard"), line["log"] == "attempts", number("seq"))
    };
    assert!(lines.is_sorted_by(|one, next| place(one) < place(next)), "the order is not the documented one");
    let opened = lines.iter().find(|line| line["event"] == "sale-opened").unwrap();
    assert_eq!((&opened["items"], &opened["user_limit"]), (&30.into(), &3.into()));

    let of_user = dump(dir.path(), &["--user", "9"]);
    assert!(of_user.len() == 4 && of_user.iter().all(|line| line["user_id"] == 9), "{of_user:?}");
    let of_code = dump(dir.path(), &["--code", &held[0]]);
    assert!(of_code.len() == 1 && of_code[0]["item_id"] == 10 && of_code[0]["expires_at"].is_string(), "{of_code:?}");
    assert_eq!(dump(dir.path(), &["--user", "2", "--item", "15"]).len(), 4);
    assert_eq!(dump(dir.path(), &["--user", "2", "--item", "16"]).len(), 0);
    assert_eq!(dump(dir.path(), &["--sale", &sale["sale_id"].to_string()]).len(), lines.len());
    assert_eq!(dump(dir.path(), &["--sale", "1"]).len(), 0);

    let said = told(dir.path(), &["sale", &sale["sale_id"].to_string(), "--database-url", &cluster.url()]);
    assert!(said.contains("agree") && said.contains("30 items, 3 for each user"), "{said}");
    let buyers = cluster.count("select count(distinct user_id) from purchases");
    for (name, expected) in [
        ("sold", 8),
        ("distinct buyers", buyers),
        ("held now", 3),
        ("available", 19),
        ("checkouts granted", deeds.count("checkout", "")),
        ("refused: item-sold", 8),
        ("refused: item-reserved", 1),
        ("refused: user-limit", 1),
        ("holds expired", 1),
        ("holds cancelled", 2),
    ] {
        assert_eq!(figures(&said, name), [expected, expected], "{name} in {said}");
    }
    let said = told(dir.path(), &["verify", "--database-url", &cluster.url()]);
    assert!(said.contains("has all records") && !said.contains("lacks"), "{said}");
    // The tool reads its settings from the same file as the server.
    fs::write(dir.path().join(".env"), format!("DATABASE_URL=\"{}\"\n", cluster.url())).unwrap();
    assert!(told(dir.path(), &["sale"]).contains("agree"));
}

#[test]
fn what_postgres_lacks_is_told() {
    let (mut cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster, &["--shards", "1"]);
    let (mut client, mut deeds, url) = (server.connect(), Deeds::default(), cluster.url());
    deeds.buy(&mut client, (1, 1));
    client.wait_for_postgres();
    cluster.kill();
    for item in 2..5 {
        deeds.buy(&mut client, (1, item));
    }
    let said = told(dir.path(), &["verify", "--database-url", &url]);
    assert!(said.contains("Sound") && said.contains("Postgres was not checked"), "{said}");
    let said = told(dir.path(), &["sale", "--database-url", &url]);
    assert!(said.contains("Postgres is unavailable") && figures(&said, "sold") == [4], "{said}");
    server.kill();
    cluster.go_on();
    let said = told(dir.path(), &["verify", "--database-url", &url]);
    assert!(said.contains("lacks 6 records") && said.contains("; Postgres has 3, lacks 6\n"), "{said}");
    let said = told(dir.path(), &["sale", "--database-url", &url]);
    assert!(said.contains("lacked 6 records of this sale") && said.contains("3 of them purchases"), "{said}");
    assert!(said.contains("agree") && figures(&said, "sold") == [4, 1], "{said}");
    cluster.pause();
    assert!(told(dir.path(), &["sale", "--database-url", &url]).contains("the database does not answer"));
    cluster.resume();
    assert!(start(dir.path(), &cluster, &[]).terminate().success());
    assert!(told(dir.path(), &["sale", "--database-url", &url]).contains("agree"));
}

#[test]
fn what_contradicts_the_log_is_named() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster, &["--shards", "2"]);
    let (mut client, mut deeds, url) = (server.connect(), Deeds::default(), cluster.url());
    for item in 0..4 {
        deeds.buy(&mut client, (5, item));
    }
    deeds.cancel(&mut client, (5, 4));
    assert!(server.terminate().success());
    assert!(told(dir.path(), &["sale", "--database-url", &url]).contains("agree"));
    let code = cluster.ask("select code from purchases where item_id = 3");
    let gone = format!("purchases that arrived in Postgres and are no longer there: 1 (item 3, user 5, code {code})");
    for (change, back, complaint) in [
        (
            "create table kept as select * from purchases where item_id = 3; delete from purchases where item_id = 3",
            "insert into purchases select * from kept",
            gone.as_str(),
        ),
        (
            "insert into purchases (sale_id, item_id, user_id, code, at) select sale_id, 77, 78, gen_random_uuid(), at from purchases where item_id = 0",
            "delete from purchases where item_id = 77",
            "purchases in Postgres that are not in the log up to the positions of Postgres: 1 (item 77, user 78",
        ),
        (
            "update purchases set user_id = 6 where item_id = 2",
            "update purchases set user_id = 5 where item_id = 2",
            "purchases with another item or user in Postgres than in the log: 1 (item 2, user 6",
        ),
        (
            "update releases set reason = 1",
            "update releases set reason = 2",
            "holds expired: 0 in the log up to the positions of Postgres, 1 in Postgres",
        ),
        (
            "update checkouts set outcome = 1 where item_id = 0",
            "update checkouts set outcome = 0 where item_id = 0",
            "checkouts granted: 5 in the log up to the positions of Postgres, 4 in Postgres",
        ),
        ("update sales set items = 7", "update sales set items = 10000", "terms: 10000 items"),
    ] {
        cluster.ask(change);
        let (code, said, complained) = ask(dir.path(), &["sale", "--database-url", &url]);
        assert!(code == 8 && said.contains(complaint), "{change}: {code}\n{said}");
        assert!(complained.starts_with("stampede: cannot use the database: it and the log contradict"), "{complained}");
        cluster.ask(back);
        told(dir.path(), &["sale", "--database-url", &url]);
    }
    // An operator has dropped the sale's partition on purpose, as `sql/0001_schema.sql` describes.
    let sale = cluster.ask("select max(sale_id) from sales");
    cluster.ask(&format!("drop table checkouts_{sale}"));
    assert!(told(dir.path(), &["sale", "--database-url", &url]).contains("agree"));
    let stranger = tempfile::tempdir().unwrap();
    assert!(Server::start(stranger.path(), &LONG_SALE).terminate().success());
    for command in ["verify", "sale"] {
        let (code, said, complained) = ask(stranger.path(), &[command, "--database-url", &url]);
        assert!(code == 8 && complained.contains("another installation") && !said.is_empty(), "{complained}\n{said}");
    }
    cluster.ask("update log_positions set position = position + 100 where log = 'purchases'");
    let (code, said, complained) = ask(dir.path(), &["verify", "--database-url", &url]);
    assert!(code == 8 && complained.contains("the data directory is older"), "{complained}");
    assert!(said.contains("Sound") && said.contains("Postgres does not fit"), "{said}");
}

#[test]
fn a_sale_that_was_taken_over_agrees() {
    let (cluster, dir, other) = (Cluster::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = start(dir.path(), &cluster, &[]);
    let (mut client, mut deeds, url) = (server.connect(), Deeds::default(), cluster.url());
    deeds.buy(&mut client, (1, 1));
    deeds.reserve(&mut client, (1, 2));
    deeds.cancel(&mut client, (1, 3));
    deeds.refuse(&mut client, (2, 1), "item-sold");
    assert!(server.terminate().success());
    let server = start(other.path(), &cluster, &[]);
    deeds.buy(&mut server.connect(), (2, 4));
    assert!(server.terminate().success());
    let said = told(other.path(), &["sale", "--database-url", &url]);
    assert!(said.contains("the sale was taken over from Postgres") && said.contains("agree"), "{said}");
    assert_eq!((figures(&said, "sold"), figures(&said, "holds cancelled")), (vec![2, 2], vec![1, 1]), "{said}");
    assert!(told(other.path(), &["verify", "--database-url", &url]).contains("has all records"));
    // The old data directory lacks the purchases since the takeover.
    let (code, _, complained) = ask(dir.path(), &["sale", "--database-url", &url]);
    assert!(code == 8 && complained.contains("another run of this installation has taken it over"), "{complained}");
    cluster.ask("delete from purchases where item_id = 1");
    assert_eq!(ask(other.path(), &["sale", "--database-url", &url]).0, 8);
}

/// The tool finds damage and reports it in the same words as the server.
#[test]
fn damage_is_found_and_told_as_the_server_would() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[&LONG_SALE[..], &["--shards", "1"]].concat());
    let (mut client, mut deeds) = (server.connect(), Deeds::default());
    for item in 0..5 {
        deeds.buy(&mut client, (1, item));
        deeds.refuse(&mut client, (2, item), "item-sold");
    }
    wait_until("attempts are durable", || client.request("GET /health").json()["shards"][0]["attempts_durable"] == 5);
    server.kill();
    let purchases = segment(dir.path(), "purchases-0000000001");
    spoil(&purchases, 4096 + 100);
    let (code, said, complained) = ask(dir.path(), &["verify"]);
    assert_eq!(code, 6, "{said}{complained}");
    assert!(said.contains("DAMAGED: block 1 at byte 4096 of purchases-0000000001"), "{said}");
    assert_refused(dir.path(), &LONG_SALE, 6, &[complained.trim().strip_prefix("stampede: ").unwrap()]);
    let (code, said, _) = ask(dir.path(), &["dump"]);
    assert_eq!((code, said.lines().filter(|line| line.contains("attempts")).count()), (6, 5), "{said}");
    assert_eq!(ask(dir.path(), &["sale"]).0, 6);
    spoil(&purchases, 4096 + 100);
    told(dir.path(), &["verify"]);
    // A torn tail: the process died while it wrote the block, so no client has received a response to these records.
    let bytes = fs::read(&purchases).unwrap();
    let end = bytes.chunks(4096).position(|block| block.iter().all(|byte| *byte == 0)).unwrap() as u64 * 4096;
    spoil(&purchases, end + 2000);
    let said = told(dir.path(), &["verify"]);
    assert!(said.contains("torn end") && said.contains("Sound"), "{said}");
    assert_eq!(Deeds::of(&dump(dir.path(), &[])).0, deeds.0);
    // Each stream that is left is valid, but the stream of one run is missing.
    let server = Server::start(dir.path(), &LONG_SALE);
    let code = deeds.reserve(&mut server.connect(), (3, 9));
    server.kill();
    let server = Server::start(dir.path(), &LONG_SALE);
    assert_eq!(server.connect().purchase(&code).status, 200);
    assert!(server.terminate().success());
    told(dir.path(), &["verify"]);
    let attempts = segment(dir.path(), "attempts-0000000001");
    spoil(&attempts, 200);
    // Nobody needs an attempt, so the server starts.
    let said = told(dir.path(), &["verify"]);
    assert!(said.contains("DAMAGED: block 0 at byte 0 of attempts-0000000001") && said.contains("Sound"), "{said}");
    let lost = 5 - told(dir.path(), &["dump"]).lines().filter(|line| line.contains("attempts")).count();
    assert!(
        lost > 0 && said.contains(&format!("Not needed: attempts of epoch 1, shard 0 lacks {lost} record")),
        "{said}"
    );
    spoil(&attempts, 200);
    let saved = tempfile::tempdir().unwrap();
    let run = format!("purchases-{:010}", dump(dir.path(), &["--code", &code])[0]["epoch"].as_u64().unwrap());
    let lost: Vec<_> = fs::read_dir(dir.path().join("log")).unwrap().map(|entry| entry.unwrap()).collect();
    for entry in lost.iter().filter(|entry| entry.file_name().to_str().unwrap().starts_with(&run)) {
        fs::rename(entry.path(), saved.path().join(entry.file_name())).unwrap();
    }
    let (code, said, complained) = ask(dir.path(), &["verify"]);
    assert!(
        code == 6 && said.contains("Not sound") && complained.contains("segments were deleted"),
        "{said}{complained}"
    );
    assert_refused(dir.path(), &LONG_SALE, 6, &[complained.trim().strip_prefix("stampede: ").unwrap()]);
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &LONG_SALE);
    let mut client = server.connect();
    for turn in 0..4000 {
        client.checkout(2, turn % 2);
    }
    assert!(server.terminate().success());
    let mut child = tool(dir.path(), &["dump"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["event"], "sale-opened");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    for command in ["verify", "sale"] {
        // The tool begins to write after its reader has closed the pipe.
        let mut child = tool(dir.path(), &[command]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{command}: {output:?}");
    }
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = tool(dir.path(), &["dump"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let complained = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(5) && complained.contains("No space left"), "{complained}");
}

#[test]
fn a_data_directory_without_a_log_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["verify", "dump", "sale"] {
        let missing = ask(&dir.path().join("."), &[command, "--data-dir", "nowhere"]);
        // The last `--data-dir` takes effect. That directory exists and is empty.
        assert!(missing.0 == 4 && missing.2.contains("has no log; set --data-dir"), "{missing:?}");
        let output = Command::new(env!("CARGO_BIN_EXE_stampede"))
            .env_clear()
            .env("DATA_DIR", "nowhere")
            .current_dir(dir.path())
            .args(["log", command])
            .output()
            .unwrap();
        let complained = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(4) && output.stdout.is_empty(), "{complained}");
        assert!(complained.contains("nowhere is not a directory") && complained.contains("--data-dir"), "{complained}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the tool creates nothing");
    assert!(Server::start(dir.path(), &LONG_SALE).terminate().success());
    fs::rename(dir.path().join("control.json"), dir.path().join("kept")).unwrap();
    let (code, _, complained) = ask(dir.path(), &["verify"]);
    assert!(code == 4 && complained.contains("no control.json"), "{complained}");
    fs::write(
        dir.path().join("control.json"),
        fs::read_to_string(dir.path().join("kept")).unwrap().replace("\"epoch\": 1", "\"epoch\": 0"),
    )
    .unwrap();
    let (code, _, complained) = ask(dir.path(), &["verify"]);
    assert!(code == 4 && complained.contains("control.json is older than purchases-0000000001"), "{complained}");
}

#[test]
fn wrong_arguments_are_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Server::start(dir.path(), &LONG_SALE).terminate().success());
    for (words, part) in [
        (&["dump", "--user", "many"][..], "--user <USER>"),
        (&["dump", "--user", "-1"], "-1"),
        (&["dump", "--item", "4294967296"], "--item <ITEM>"),
        (&["dump", "--code", "5217a1a2e11686c4ae9fb285fb710516"], "36 characters"),
        (&["dump", "7"], "'7'"),
        (&["sale", "last"], "'last'"),
        (&["sale", "3"], "the log has no sale 3"),
        (&["verify", "--items", "3"], "--items"),
        (&["verify", "--database-url", "mysql://x"], "--database-url"),
        (&["verify", "--env-file", "none.env"], "none.env"),
        (&["mend"], "mend"),
    ] {
        let (code, said, complained) = ask(dir.path(), words);
        assert!(code == 2 && said.is_empty() && complained.contains(part), "{words:?}: {code} {said}{complained}");
    }
    let output = stampede(dir.path(), &["log", "verify"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "the tool refuses the settings of a server");
    let output = Command::new(env!("CARGO_BIN_EXE_stampede")).arg("log").output().unwrap();
    let help = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && ["verify", "dump", "sale"].iter().all(|it| help.contains(it)), "{help}");
    for (command, parts) in [
        ("verify", &["Exit code 0", "--data-dir", "DATABASE_URL"][..]),
        ("dump", &["idempotency_key", "--code", "in order of time"]),
        ("sale", &["the latest in the log", "contradict", "--env-file"]),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_stampede")).args(["log", command, "--help"]).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && parts.iter().all(|part| help.contains(part)), "{help}");
    }
}

/// The log knows a fingerprint of the products. A plan that has it names them, and any other plan names nothing.
#[test]
fn a_plan_names_the_products_of_its_sales() {
    let (cluster, dir, now) = (Cluster::start(), tempfile::tempdir().unwrap(), now_s());
    let url = cluster.url();
    let seats = "[[sale.product]]\nid = \"seat\"\nname = \"Seat\"\nunits = [\"Row 1\", \"Row \\\"2\\\"\"]\n";
    let plan = |first: String| {
        let of_7 = product("a", 3) + &first;
        let times = (now - 9, now + 3600);
        [sale(7, times, "user_limit = 9", &of_7), sale(8, times, "user_limit = 9", &product("b", 2))]
    };
    write(dir.path(), &plan(seats.to_owned()));
    let server = Server::start(dir.path(), &[&PLAN[..], &["--database-url", &url]].concat());
    let mut client = server.connect();
    let mut reserve =
        |sale: u32, item: u32| client.request(&format!("POST /checkout?user_id=5&sale_id={sale}&item_id={item}")).body;
    let (sold, _, _) = (reserve(7, 4), reserve(7, 0), reserve(8, 1));
    assert_eq!(client.purchase(&sold).status, 200);
    assert_eq!(client.request("POST /checkout?user_id=6&sale_id=7&item_id=4").problem(), "item-sold");
    assert!(server.terminate().success());

    let unnamed = told(dir.path(), &["dump"]);
    assert!(!unnamed.contains("product_id") && !unnamed.contains("\"unit\""), "{unnamed}");
    let with_variable = tool(dir.path(), &["dump"]).env("PLAN", "shop.toml").output().unwrap();
    assert_eq!(with_variable.stdout, unnamed.as_bytes(), "the variable of the server has no effect");
    let named = ["dump", "--plan", "shop.toml"];
    let mut units = Vec::new();
    let (mut lines, plain) = (dump(dir.path(), &named[1..]), dump(dir.path(), &[]));
    for line in &mut lines {
        let fields = line.as_object_mut().unwrap();
        let mut text = |name| fields.remove(name).map(|text| text.as_str().unwrap().to_owned());
        let (product, unit) = (text("product_id"), text("unit"));
        if let Some(item) = line["item_id"].as_u64() {
            let of = (line["event"].as_str().unwrap().to_owned(), line["sale_id"].as_u64().unwrap(), item);
            units.push((of, product.unwrap(), unit));
        }
    }
    assert_eq!(lines, plain, "the rest is the same");
    units.sort();
    let row = |event: &str, sale, item, product: &str, unit: Option<&str>| {
        ((event.to_owned(), sale, item), product.to_owned(), unit.map(str::to_owned))
    };
    let seat = Some("Row \"2\"");
    let expected = [
        row("checkout", 7, 0, "a", None),
        row("checkout", 7, 4, "seat", seat),
        row("checkout", 8, 1, "b", None),
        row("purchase", 7, 4, "seat", seat),
        row("refused", 7, 4, "seat", seat),
    ];
    assert_eq!(units, expected);
    let report = told(dir.path(), &["sale", "7"]);
    let by_product = told(dir.path(), &["sale", "7", "--plan", "shop.toml"]);
    let table = "\nproduct  items  sold in the log\na        3      0\nseat     2      1\n\n";
    assert_eq!(by_product.replace(table, ""), report);
    assert!(by_product.contains(table), "{by_product}");
    let compared = ["sale", "7", "--plan", "shop.toml", "--database-url", &url];
    let with_postgres = "\nproduct  items  sold in the log  in Postgres\na        3      0                0\n\
        seat     2      1                1\n\n";
    assert!(told(dir.path(), &compared).contains(with_postgres));
    cluster.ask("delete from purchases");
    let (code, said, _) = ask(dir.path(), &compared);
    assert!(code == 8 && said.contains("no longer there: 1 (item 4 (seat, Row \"2\"), user 5, code "), "{said}");

    // The plan has other products than were sold in one of the sales.
    write(dir.path(), &plan(product("seat", 3)));
    let (code, said, complained) = ask(dir.path(), &named);
    assert!(code == 0 && said.contains("\"product_id\":\"b\"") && !said.contains("\"product_id\":\"seat\""), "{said}");
    assert_eq!(complained, "stampede: shop.toml has other products than were sold, so none are named: sale 7\n");
    let (code, said, _) = ask(dir.path(), &["sale", "7", "--plan", "shop.toml"]);
    assert!(
        code == 0 && said.contains("No product is added up: shop.toml has other products than were sold"),
        "{said}"
    );
    let (code, _, complained) = ask(dir.path(), &["dump", "--plan", "none.toml"]);
    assert!(code == 2 && complained.contains("wrong plan: none.toml cannot be read"), "{complained}");
}
