//! The kit for three machines in `tuning/cluster`: etcd, Patroni, HAProxy and keepalived around two servers.

use crate::harness::{in_repository, skipped};
use crate::network::Link;
use std::path::Path;
use std::process::Command;

/// Programs of the Debian packages patroni, etcd-server, etcd-client, haproxy and keepalived.
const PROGRAMS: [&str; 5] =
    ["/usr/bin/patroni", "/usr/bin/etcd", "/usr/bin/etcdctl", "/usr/sbin/haproxy", "/usr/sbin/keepalived"];

/// One case, or those of `STAMPEDE_KIT_CASES`. `tuning/cluster/try` sets up the kit by the commands of
/// docs/cluster.md, and checks that everything acknowledged is there, nothing is sold twice, and the limit holds.
#[test]
fn a_server_of_the_kit_is_killed_among_buyers() {
    if let Some(missing) = PROGRAMS.iter().find(|program| !Path::new(program).exists()) {
        return skipped("the kit for three machines", format!("no {missing}"));
    }
    if let Err(why) = Link::make() {
        return skipped("the kit for three machines", why);
    }
    let cases = std::env::var("STAMPEDE_KIT_CASES").unwrap_or_else(|_| "process".into());
    let mut kit = Command::new(in_repository("tuning/cluster/try"));
    kit.args(cases.split(' ')).env("STAMPEDE", env!("CARGO_BIN_EXE_stampede"));
    let output = kit.output().expect("bash starts");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    println!("{text}");
    assert!(output.status.success(), "{text}");
}
