//! A client that sends requests and does not read the answers.

use crate::single_shard::SingleShard;
use stampede::http::connection::ConnectionSnapshot;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// Time limit for a client to read something, in ms.
const WRITE_MS: u64 = 30_000;
/// Interval of the turns, in ms.
const TURN_MS: u64 = 1_000;

/// Returns the time in ms until the server disconnects a client that has this many bytes of answers to read.
/// `act` is what the client does before each turn.
fn time_to_disconnect(output_bytes: usize, mut act: impl FnMut(&mut UnixStream, u64) + Send + 'static) -> u64 {
    SingleShard::run(move |mut shard| {
        let output = vec![b'.'; output_bytes];
        let mut client = shard.adopt(Some(ConnectionSnapshot { output, ..ConnectionSnapshot::default() }));
        let mut times = (0..1_000_000).step_by(TURN_MS as usize);
        let disconnected = times.find(|ms| {
            act(&mut client, *ms);
            shard.turn(*ms);
            shard.server.connections() == 0
        });
        disconnected.expect("the server never disconnects the client")
    })
}

#[test]
fn requests_do_not_extend_the_time_to_read_answers() {
    // The output has room for more answers, so each request is processed.
    let send = |client: &mut UnixStream, _| {
        client.write_all(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    };
    assert_eq!(time_to_disconnect(10 * 1024, send), WRITE_MS);
    assert_eq!(time_to_disconnect(10 * 1024, |_, _| {}), WRITE_MS);
}

#[test]
fn the_time_begins_again_when_the_client_reads() {
    const READS_UNTIL_MS: u64 = 200_000;
    let read_slowly = |client: &mut UnixStream, ms: u64| {
        if ms.is_multiple_of(20_000) && ms <= READS_UNTIL_MS {
            // As much as the kernel holds, so that the server can write again.
            while client.read(&mut [0; 64 * 1024]).is_ok() {}
        }
    };
    assert_eq!(time_to_disconnect(8 << 20, read_slowly), READS_UNTIL_MS + WRITE_MS);
}
