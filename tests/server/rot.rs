//! Bit rot: one bit of the log is flipped, or one block cannot be read. If the records may be needed, the server refuses
//! with exit code 6 and changes nothing. If nobody needs them, it says so and sells on, and the books are right.

use crate::cluster::{Cluster, psql};
use crate::faulty_disk::{Fault, FaultyDisk, Plan};
use crate::harness::{Client, LONG_SALE, Server, copy_dir, how_many, run_to_end, skipped, wait_until};
use crate::log_tool::tool;
use crate::old_log::{Cut, OldLog, open_sale};
use stampede::log::block::{BLOCK_BYTES, LogKind};
use stampede::sale::ids::SaleId;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const SETTINGS: [&str; 10] =
    ["--shards", "2", "--items", "50", "--user-limit", "10", "--reservation-ttl", "1h", "--log-budget", "64MiB"];
/// Number of runs in the log: two of ended sales, three of the open sale.
const RUNS: u32 = 5;
/// Refused checkouts in each attempt stream of ended sales.
const OLD_ATTEMPTS: u32 = 12;

/// A data directory with several ended sales and the open one, and its database, if it has one.
struct Base {
    dir: tempfile::TempDir,
    cluster: Option<Cluster>,
    /// Codes of the items 2 and 6, which are held.
    held: [String; 2],
    /// Rows of `purchases` and of refused `checkouts`, when all records are in the database.
    rows: [u64; 2],
}

fn arguments() -> Vec<&'static str> {
    [&LONG_SALE[..], &SETTINGS].concat()
}

/// Starts a server. The database is set by a variable, so that the harness does not compare it with the log.
fn start(dir: &Path, database: Option<&str>) -> Server {
    if let Some(url) = database {
        fs::write(dir.join(".env"), format!("DATABASE_URL=\"{url}\"\n")).unwrap();
    }
    Server::start(dir, &arguments())
}

fn connect(server: &Server) -> Client {
    let mut client = server.connect();
    // The history of the requests does not begin with this server.
    client.send(b"").unwrap();
    client
}

/// Buys an item and its successor, reserves the two next ones, and is refused three times. Returns the first code.
fn sell(client: &mut Client, first: u32) -> String {
    for item in [first, first + 1] {
        let code = client.reserve(1, item);
        assert_eq!(client.purchase(&code).status, 200);
    }
    let codes = [first + 2, first + 3].map(|item| client.reserve(2, item));
    (0..3).for_each(|item| assert_eq!(client.checkout(3, first + item).status, 409));
    wait_until("attempts are durable", || {
        let shards = client.request("GET /health").json()["shards"].clone();
        shards.as_array().unwrap().iter().map(|shard| shard["attempts_durable"].as_u64().unwrap()).sum::<u64>() == 3
    });
    let [code, _] = codes;
    code
}

impl Base {
    fn new(has_database: bool) -> Base {
        let (dir, cluster) = (tempfile::tempdir().unwrap(), has_database.then(Cluster::start));
        let mut log = OldLog::new(dir.path(), 2);
        let old = |ago: u32| SaleId(open_sale().0 - ago);
        let cut = Cut { records_per_block: 3, blocks_per_segment: 4, is_sealed: true };
        for shard in 0..2 {
            let items = |round: u32| (0..10).map(move |item| 20 * round + 2 * item + u32::from(shard));
            let mut records = log.purchases(old(4), 50, items(0));
            records.extend(log.purchases(old(3), 50, items(1)));
            log.write((LogKind::Purchases, 1, shard), records.into_iter(), cut);
            log.write((LogKind::Attempts, 1, shard), OldLog::attempts(old(3), OLD_ATTEMPTS), cut);
            let records = log.purchases(old(2), 50, items(0));
            log.write((LogKind::Purchases, 2, shard), records.into_iter(), Cut { blocks_per_segment: 16, ..cut });
            log.write((LogKind::Attempts, 2, shard), OldLog::attempts(old(2), OLD_ATTEMPTS), cut);
        }
        let url = cluster.as_ref().map(Cluster::url);
        let server = start(dir.path(), url.as_deref());
        let mut client = connect(&server);
        let first = sell(&mut client, 0);
        if has_database {
            client.wait_for_postgres();
        }
        drop(client);
        server.kill();
        // The records of this run are not in the database.
        fs::remove_file(dir.path().join(".env")).unwrap_or_default();
        let server = start(dir.path(), None);
        let second = sell(&mut connect(&server), 4);
        server.kill();
        start(dir.path(), None).kill();
        Base { dir, cluster, held: [first, second], rows: [3 * 10 + 4, 4 * u64::from(OLD_ATTEMPTS) + 6] }
    }

    /// Copies the data directory and the database, and returns the URL of the database.
    fn copy(&self, to: &Path) -> Option<String> {
        copy_dir(&self.dir.path().join("."), to);
        let cluster = self.cluster.as_ref()?;
        cluster.ask("drop database if exists rot");
        cluster.ask("create database rot template postgres");
        Some(cluster.url().replace("dbname=postgres", "dbname=rot"))
    }

    /// Returns every place to be damaged: file, offset of the byte, and whether the shop needs the record.
    fn places(&self) -> Vec<(String, u64, bool)> {
        let mut places = Vec::new();
        for (name, bytes) in files(self.dir.path()) {
            let epoch: u32 = name.split('-').nth(1).unwrap().parse().unwrap();
            let blocks = bytes.chunks(BLOCK_BYTES).rposition(|block| block.iter().any(|byte| *byte != 0));
            let Some(last) = blocks else { continue };
            // The last run was killed, so nothing proves that its last block was durable.
            let is_needed = name.starts_with("purchases") && (3..RUNS).contains(&epoch);
            let mut blocks = vec![0, last / 2, last];
            blocks.dedup();
            // The checksum, the number of the block, and the first record, if there is one.
            let offsets = blocks.into_iter().flat_map(|block| [61, 33, 100].map(|byte| block * BLOCK_BYTES + byte));
            places.extend(offsets.map(|offset| (name.clone(), offset as u64, is_needed)));
        }
        places
    }
}

/// Returns the name and the content of each segment.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir.join("log")).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let segments = entries.filter(|path| path.extension().is_none_or(|extension| extension != "new"));
    segments.map(|path| (name(&path), fs::read(&path).unwrap())).collect()
}

fn flip(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
}

/// Checks that the server refuses and changes nothing.
fn check_refused(dir: &Path, database: Option<&str>, place: &str) {
    let before = files(dir);
    if let Some(url) = database {
        fs::write(dir.join(".env"), format!("DATABASE_URL=\"{url}\"\n")).unwrap();
    }
    for _ in 0..2 {
        let (code, text) = run_to_end(dir, &arguments());
        assert!(code == 6 && text.contains("the log is damaged, and nothing was changed"), "{place}: {code} {text}");
    }
    assert!(files(dir) == before, "{place}: a refused start changes the log");
    let output = tool(dir, &["verify"]).output().unwrap();
    assert_eq!(output.status.code(), Some(6), "{place}");
}

/// Checks that the server sells on: what is sold is sold, what is held can be bought.
fn check_serves(base: &Base, dir: &Path, database: Option<&str>, place: &str) -> usize {
    let server = start(dir, database);
    let mut client = connect(&server);
    let sale = client.sale();
    assert_eq!((&sale["sold"], &sale["reserved"]), (&4.into(), &4.into()), "{place}");
    for code in &base.held {
        assert_eq!(client.purchase(code).status, 200, "{place}");
    }
    for item in [0, 1, 4, 5] {
        assert_eq!(client.checkout(9, item).problem(), "item-sold", "{place}");
    }
    if database.is_some() {
        client.wait_for_postgres();
    }
    let lines = ["the log is damaged in ended sales", "refused attempts"].map(|text| server.times_said(text));
    drop(client);
    assert!(server.terminate().success(), "{place}");
    lines.iter().sum()
}

/// Flips one bit, and returns the number of log lines about it.
fn try_place(base: &Base, (name, offset, is_needed): &(String, u64, bool)) -> usize {
    let place = format!("{name} at {offset}, with database: {}", base.cluster.is_some());
    let dir = tempfile::tempdir().unwrap();
    let database = base.copy(dir.path());
    let before = files(dir.path());
    flip(&dir.path().join("log").join(name), *offset);
    if *is_needed {
        check_refused(dir.path(), database.as_deref(), &place);
        return 1;
    }
    let verified = tool(dir.path(), &["verify"]).output().unwrap();
    assert!(verified.status.success(), "{place}: {}", String::from_utf8_lossy(&verified.stdout));
    let lines = check_serves(base, dir.path(), database.as_deref(), &place);
    if let Some(url) = &database {
        let count = |query: &str| psql(url, query).unwrap().parse::<u64>().unwrap();
        let [purchases, attempts] = base.rows;
        assert_eq!(count("select count(*) from purchases"), purchases + 2, "{place}");
        // Four attempts more were made. A rotten block of the run whose attempts were not in the database costs some.
        let found = count("select count(*) from checkouts where outcome > 0");
        let lost = if name.starts_with("attempts-0000000004") { 3 } else { 0 };
        assert!((attempts + 4 - lost..=attempts + 4).contains(&found), "{place}: {found} of {}", attempts + 4);
    }
    // Nothing is deleted, and the next start finds nothing more to say.
    let after = files(dir.path());
    let set_aside = |name: &String| after.contains_key(name) || after.contains_key(&format!("{name}.damaged"));
    // A stream that ends before its first block is removed: the last run was killed, and its only block is torn.
    let has_records = |name: &&String| before[*name].iter().any(|byte| *byte != 0) && !name.contains("-0000000005-");
    assert!(before.keys().filter(has_records).all(set_aside), "{place}");
    let server = start(dir.path(), database.as_deref());
    assert_eq!(server.connect().sale()["sold"], 6, "{place}");
    assert_eq!(server.times_said("the log is damaged"), 0, "{place}");
    server.kill();
    assert!(tool(dir.path(), &["verify"]).output().unwrap().status.success(), "{place}");
    lines
}

fn try_places(has_database: bool) {
    let base = Base::new(has_database);
    let places = base.places();
    let wanted = how_many("STAMPEDE_ROT", 24) as usize;
    let step = places.len().div_ceil(wanted).max(1);
    let (mut said, mut needed) = (0, 0);
    // The places of all files, spread evenly.
    for place in places.iter().skip(step / 2).step_by(step) {
        said += try_place(&base, place);
        needed += usize::from(place.2);
    }
    println!("{} of {} places, {needed} needed, {said} lines", places.len().div_ceil(step), places.len());
    assert!(said > needed, "no damage was announced");
}

#[test]
fn only_what_is_needed_stops_the_shop() {
    try_places(false);
}

#[test]
fn only_what_is_needed_or_not_in_postgres_stops_the_shop() {
    try_places(true);
}

/// With a database that does not answer, nobody knows whether it has the records of the rotten segment.
#[test]
fn what_postgres_may_lack_is_needed() {
    let mut base = Base::new(true);
    let dir = tempfile::tempdir().unwrap();
    let database = base.copy(dir.path()).unwrap();
    let (name, offset, _) = base.places().into_iter().find(|(name, ..)| name.starts_with("purchases")).unwrap();
    flip(&dir.path().join("log").join(&name), offset);
    base.cluster.as_mut().unwrap().kill();
    fs::write(dir.path().join(".env"), format!("DATABASE_URL=\"{database}\"\n")).unwrap();
    let before = files(dir.path());
    let (code, text) = run_to_end(dir.path(), &arguments());
    assert!(code == 6 && text.contains("the database does not answer, and may lack its records"), "{code} {text}");
    assert!(files(dir.path()) == before);
    base.cluster.as_mut().unwrap().go_on();
    // Records that are not in the database are needed, even if their sale is over.
    psql(&database, "update log_positions set position = 2 where epoch = 1 and log = 'purchases'").unwrap();
    let (code, text) = run_to_end(dir.path(), &arguments());
    assert!(code == 6 && text.contains("the database lacks some of its records"), "{code} {text}");
    assert!(files(dir.path()) == before);
}

/// Disks that lose a block report an error. Attempts are lost without a stop; needed purchases are refused.
#[test]
fn a_block_that_the_disk_cannot_read_is_lost_like_a_rotten_one() {
    let base = Base::new(true);
    for (part, is_needed) in [
        ("purchases-0000000001-00000-000000000004", false),
        ("attempts-0000000001-00000-000000000000", false),
        ("attempts-0000000004-0000", false),
        ("purchases-0000000004-00001", true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let database = base.copy(dir.path());
        let plan = Plan { fault: Fault::Unreadable(part), at: 0, has_direct_io: true };
        let disk = match FaultyDisk::mount(dir.path(), plan) {
            Ok(disk) => disk,
            Err(error) => return skipped("unreadable blocks", format!("no FUSE here: {error}")),
        };
        if is_needed {
            let before = files(dir.path());
            let (code, text) = run_to_end(disk.path(), &arguments());
            assert!(code == 4 && text.contains("cannot be read: Input/output error"), "{part}: {code} {text}");
            assert!(files(dir.path()) == before, "{part}");
            continue;
        }
        let lines = check_serves(&base, disk.path(), database.as_deref(), part);
        // Attempts of the first run are in the database already, so nobody needs the block.
        assert_eq!(lines > 0, !part.starts_with("attempts-0000000001"), "{part}");
        assert!(disk.has_failed(), "{part}");
        drop(disk);
        assert!(tool(dir.path(), &["verify"]).output().unwrap().status.success(), "{part}");
    }
}

/// The new process of an upgrade applies the same rules, and the old one continues to serve if it must.
#[test]
fn an_upgrade_loses_no_more_than_a_start() {
    let base = Base::new(false);
    for (name, is_upgraded) in
        [("purchases-0000000001", true), ("attempts-0000000004", true), ("purchases-0000000004", false)]
    {
        let dir = tempfile::tempdir().unwrap();
        base.copy(dir.path());
        let mut server = start(dir.path(), None);
        let file = files(dir.path()).into_keys().find(|file| file.starts_with(name)).unwrap();
        flip(&dir.path().join("log").join(&file), 100);
        if is_upgraded {
            server.upgrade();
            if name.starts_with("purchases") {
                server.wait_for_line("the log is damaged in ended sales");
                assert!(dir.path().join(format!("log/{file}.damaged")).exists());
            }
        } else {
            server.signal(rustix::process::Signal::USR2);
            server.wait_for_line("the upgrade was aborted");
            assert!(dir.path().join("log").join(&file).exists());
            // Mend the file, so that the harness can compare the log with the answers.
            flip(&dir.path().join("log").join(&file), 100);
        }
        let mut client = connect(&server);
        assert_eq!(client.purchase(&base.held[0]).status, 200, "{name}");
        assert_eq!(client.checkout(9, 0).problem(), "item-sold", "{name}");
        drop(client);
        assert!(server.terminate().success());
    }
}
