//! A client that sends many requests at once.

use crate::single_shard::{SingleShard, is_open};
use stampede::server::requests::REQUESTS_PER_TURN;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

const HEAD: &[u8] = b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n";
/// Requests of one write: as many as a connection reads ahead.
const PIPELINED: usize = 16 * 1024 / HEAD.len();

fn answers(client: &mut UnixStream) -> usize {
    let mut text = Vec::new();
    // An error means that there are no more bytes at present.
    let _ = client.read_to_end(&mut text);
    String::from_utf8(text).unwrap().matches("HTTP/1.1 200 OK").count()
}

/// Each turn answers a bounded number of requests of the connection, and the last request is answered too, whether or
/// not the client has closed its sending direction. Another client is served in the same turn.
#[test]
fn a_long_pipeline_is_served_in_parts_and_to_its_end() {
    for closes in [false, true] {
        SingleShard::run(move |mut shard| {
            let (mut greedy, mut other) = (shard.connect(), shard.connect());
            greedy.write_all(&HEAD.repeat(PIPELINED)).unwrap();
            if closes {
                greedy.shutdown(Shutdown::Write).unwrap();
            }
            other.write_all(HEAD).unwrap();
            assert_eq!(shard.turn(0), REQUESTS_PER_TURN + 1);
            assert_eq!(answers(&mut other), 1);
            let mut counts = vec![REQUESTS_PER_TURN];
            while shard.server.has_work() {
                counts.push(shard.turn(1));
                assert!(counts.len() < PIPELINED, "the shard never sleeps");
            }
            assert!(counts.iter().all(|count| *count <= REQUESTS_PER_TURN), "{counts:?}");
            assert_eq!((counts.iter().sum::<usize>(), answers(&mut greedy)), (PIPELINED, PIPELINED));
            assert_eq!(is_open(&greedy), !closes);
        });
    }
}
