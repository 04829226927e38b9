//! The design rules, as tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Every file, lowest first: a file may import from those before it.
const LAYERS: &[&str] = &[
    "types",
    "partition",
    "code",
    "command",
    "message",
    "record",
    "block",
    "stream",
    "sale",
    "waiting",
    "shard",
    "board",
    "replay",
    "catalogue",
    "copy_rows",
    "ownership",
    "database_url",
    "lag",
    "art",
    "payload",
    "http",
    "body",
    "problem",
    "operation",
    "openapi",
    "response",
    "route",
    "connection",
    "fatal",
    "config",
    "log_command",
    "manual",
    "counters",
    "status",
    "items",
    "page",
    "subscribers",
    "clock",
    "meter",
    "logging",
    "segment",
    "retention",
    "purchase_log",
    "log_reader",
    "host",
    "data_dir",
    "tls",
    "pgpass",
    "postgres",
    "claim",
    "takeover",
    "doorbell",
    "mesh",
    "persistence",
    "acceptor",
    "client",
    "poller",
    "server",
    "handover",
    "logs",
    "log_room",
    "notice",
    "outside",
    "pump",
    "recovery",
    "resume",
    "survey",
    "books",
    "log_verify",
    "log_dump",
    "log_sale",
    "listener",
    "service_manager",
    "process",
    "metrics",
    "sampler",
    "dashboard",
    "admin",
    "predecessor",
    "successor",
    "supervisor",
    "start",
    "lib",
    "main",
];

/// Files that never await, read no clock, draw no randomness, open nothing.
const PURE: &[&str] = &[
    "types",
    "partition",
    "code",
    "command",
    "message",
    "record",
    "block",
    "stream",
    "sale",
    "waiting",
    "shard",
    "replay",
    "copy_rows",
    "ownership",
    "database_url",
    "lag",
    "catalogue",
    "art",
    "payload",
    "http",
    "body",
    "problem",
    "operation",
    "openapi",
    "response",
    "route",
    "connection",
    "config",
    "log_command",
    "manual",
    "retention",
];

const LINES_MAX: usize = 600;

fn sources() -> Vec<(String, String)> {
    let files =
        fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap()))
        .collect()
}

fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn every_file_has_its_layer_and_its_place_on_the_maps() {
    let files: BTreeSet<String> = sources().into_iter().map(|(name, _)| name).collect();
    let layers: BTreeSet<String> = LAYERS.iter().map(ToString::to_string).collect();
    assert_eq!(files, layers);
    let (map, readme) = (read("src/lib.rs"), read("README.md"));
    for name in files.iter().filter(|name| *name != "lib" && *name != "main") {
        assert!(map.contains(&format!("[`{name}`]")), "src/lib.rs does not name {name}");
    }
    for name in &files {
        assert!(readme.contains(&format!("`{name}.rs`")), "README.md does not name {name}.rs");
    }
}

#[test]
fn imports_point_one_way() {
    for (name, text) in sources().iter().filter(|(name, _)| name != "lib" && name != "main") {
        let layer = LAYERS.iter().position(|layer| layer == name).unwrap();
        for above in &LAYERS[layer..] {
            assert!(
                !without_tests(text).contains(&format!("crate::{above}::")),
                "{name} imports {above}, which is above it"
            );
        }
    }
}

#[test]
fn pure_files_are_pure() {
    let forbidden = [
        "async ",
        ".await",
        "glommio",
        "Instant",
        "SystemTime",
        "std::fs",
        "std::net::Tcp",
        "thread",
        "getrandom",
        "from_os_rng",
        "RandomState::",
        "HashSet",
        "tracing::",
        "rustix",
    ];
    for (name, text) in sources().iter().filter(|(name, _)| PURE.contains(&name.as_str())) {
        for word in forbidden {
            let mut rest = without_tests(text).split(word).skip(1);
            let is_word = |rest: &str| !word.ends_with("await") || !rest.starts_with(char::is_alphanumeric);
            assert!(!rest.any(is_word), "{name} mentions {word}");
        }
    }
}

/// What makes a core wait for another one stands where it happens once in a while, never once for each request: waking who
/// sleeps, a flush's chunk, a new sale, and the main thread's own business.
#[test]
fn no_request_waits_for_another_core() {
    let allowed = [
        ("doorbell", vec![".swap("]),
        ("persistence", vec!["fetch_add", "fetch_sub"]),
        ("status", vec!["fetch_max", "Mutex"]),
        ("data_dir", vec!["Mutex"]),
    ];
    for (name, text) in sources() {
        let here = allowed.iter().find(|(file, _)| *file == name).map_or(&[][..], |(_, words)| words);
        for word in ["fetch_", "compare_exchange", ".swap(", "Mutex", "RwLock"] {
            let is_allowed = |place: &str| here.iter().any(|allowed| place.starts_with(allowed));
            let text = without_tests(&text);
            let mut places = text.match_indices(word).map(|(at, _)| &text[at..]);
            assert!(places.all(is_allowed), "{name} has {word}");
        }
    }
}

#[test]
fn files_stay_readable() {
    for (name, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{name} has {lines} lines: does it do two jobs?");
    }
}

#[test]
fn the_readme_lists_every_setting_exit_code_and_problem() {
    let readme = read("README.md");
    for setting in stampede::config::SETTINGS {
        assert!(readme.contains(&format!("`--{}`", setting.flag)), "{}", setting.flag);
        for variable in setting.variables {
            assert!(readme.contains(&format!("`{variable}`")), "{variable}");
        }
    }
    for (code, meaning) in stampede::fatal::EXIT_CODES {
        let row = format!("| {code} | {meaning} |");
        assert!(readme.replace('`', "").contains(&row), "README.md and src/fatal.rs do not say the same: {row}");
    }
    for problem in stampede::problem::Problem::ALL {
        assert!(readme.contains(&format!("`{}`", problem.about().slug)), "{}", problem.about().slug);
    }
}
