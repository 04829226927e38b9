//! Settings that are neither altered nor ignored in silence: values of the env file, variables that are not text, and
//! settings that an upgrade would lose.

use crate::cluster::Cluster;
use crate::harness::{LONG_SALE, Server, run_to_end, stampede};
use rustix::process::Signal;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Returns the value of a setting that `--check-config` prints.
fn checked(dir: &Path, env_file: &str, setting: &str) -> Result<String, String> {
    fs::write(dir.join(".env"), env_file).unwrap();
    let mut command = stampede(dir, &["--check-config"]);
    let output = command.env("HOME", "/home/other").env("x", "replaced").output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(&format!("{setting} = "))).map(str::to_owned);
    match output.status.code() {
        Some(0) => Ok(value.unwrap()),
        Some(2) => Err(text),
        code => panic!("{code:?} {text}"),
    }
}

#[test]
fn values_of_the_env_file_are_literal() {
    let dir = tempfile::tempdir().unwrap();
    let user = |line: &str| checked(dir.path(), &format!("x=y\nDB_HOST=h\nDB_USER={line}\n"), "database");
    for name in ["a$x", "$x", "${x}", "a$$", "$HOME", "a#b"] {
        assert_eq!(user(name), Ok(format!("{name}@h:5432/stampede")));
    }
    for name in ["a$x #1", "${HOME} \\n", "it\"s\\"] {
        assert_eq!(user(&format!("'{name}' # a user")), Ok(format!("{name}@h:5432/stampede")));
    }
    assert_eq!(user("\"a $x \\\"b\\\\ \\$c\""), Ok("a $x \"b\\ $c@h:5432/stampede".into()));
    for bad in ["a secret", "secret\\", "'secret", "\"sec\\ret\"", "'secret'x", "s\"ecret"] {
        let refusal = user(bad).unwrap_err();
        assert!(refusal.contains("--env-file .env: line 3 ") && !refusal.contains("secret"), "{refusal}");
    }
    fs::write(dir.path().join(".env"), b"ITEMS=\xff").unwrap();
    let (code, text) = run_to_end(dir.path(), &["--check-config"]);
    assert!(code == 2 && text.contains("--env-file .env cannot be read"), "{text}");
}

/// A variable that is not UTF-8 does not count as unset: another directory would be sold from, and another database
/// used.
#[test]
fn variables_that_are_not_text_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bad = OsStr::from_bytes(b"/srv/shop-\xff");
    let run = |name: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_stampede"));
        let output = command.args(arguments).env_clear().env(name, bad).current_dir(dir.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for name in ["DATA_DIR", "DATABASE_URL", "DB_HOST", "ACK", "ENV_FILE", "ITEMS", "PORT"] {
        for arguments in [&[][..], &["--check-config"], &["log", "verify"]] {
            let (code, text) = run(name, arguments);
            assert!(code == Some(2) && text.contains(&format!("{name} is not UTF-8")), "{name} {arguments:?}: {text}");
        }
    }
    let (code, text) = run("RUST_LOG", &[]);
    assert!(code == Some(2) && text.contains("RUST_LOG cannot be read"), "{text}");
    let output = stampede(dir.path(), &[]).arg("--data-dir").arg(bad).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(!dir.path().join("data").exists(), "nothing was made");
}

/// Starts a server with settings from `.env`.
fn start(dir: &Path, env_file: &str) -> Server {
    fs::write(dir.join(".env"), env_file).unwrap();
    let server = Server::start(dir, &LONG_SALE);
    if env_file.contains("DATABASE_URL") {
        server.wait_for_line("the database is connected");
    }
    server
}

/// Tries an upgrade that must be refused with a line that contains `why`. Then the server still sells, as before.
fn refuses(server: &Server, why: &str) {
    server.forget_lines();
    server.signal(Signal::HUP);
    let said = server.wait_for_one_of(&["wrong setting", "handed over"])["message"].as_str().unwrap().to_owned();
    assert!(said.contains(why) && said.contains("or restart the server"), "{said}");
    assert_eq!(server.wait_for_line("the upgrade was aborted")["ended"], "exit status: 2");
    assert_eq!(server.connect().request("GET /readyz").status, 200);
}

#[test]
fn an_upgrade_without_the_env_file_of_the_start_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(".env");
    let mut server = start(dir.path(), "USER_LIMIT=3\n");
    for empty in ["", "\n", "# USER_LIMIT=3\n"] {
        fs::write(&file, empty).unwrap();
        refuses(&server, "--env-file .env is missing or empty");
    }
    fs::remove_file(&file).unwrap();
    refuses(&server, "--env-file .env is missing or empty");
    fs::write(&file, "ITEMS=5000\n").unwrap();
    server.upgrade();
    assert!(server.terminate().success());
    // A server that has started without a file can be upgraded without it, and with it.
    fs::remove_file(&file).unwrap();
    let mut server = Server::start(dir.path(), &LONG_SALE);
    server.upgrade();
    fs::write(&file, "ITEMS=6000\n").unwrap();
    server.upgrade();
    assert!(server.terminate().success());
}

#[test]
fn an_upgrade_that_would_lose_the_database_or_the_ack_is_refused() {
    let cluster = Cluster::start();
    let dir = tempfile::tempdir().unwrap();
    let database = format!("DATABASE_URL='{}'\n", cluster.url());
    let write = |text: String| fs::write(dir.path().join(".env"), text).unwrap();
    let mut server = start(dir.path(), &format!("{database}ACK=postgres\n"));
    write("ACK=local\n".into());
    refuses(&server, "the running server has a database and the new settings have none");
    write("DATABASE_URL=\nITEMS=5\n".into());
    refuses(&server, "the running server has a database and the new settings have none");
    write(database.clone());
    refuses(&server, "the new settings do not set --ack");
    write(format!("{database}ACK=\n"));
    refuses(&server, "the new settings do not set --ack");
    // Said explicitly, it is allowed. Then nothing is lost by leaving it out.
    for settings in ["ACK=local\n", "", "ACK=postgres\n"] {
        write(format!("{database}{settings}"));
        server.upgrade();
        server.wait_for_line("the database is connected");
    }
    let mut client = server.connect();
    let code = client.reserve(1, 1);
    assert_eq!(client.purchase(&code).status, 200);
    assert!(server.terminate().success());
}
