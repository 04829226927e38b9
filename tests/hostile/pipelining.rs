//! A client that sends many requests at once.

use crate::single_shard::{SingleShard, is_open};
use stampede::server::requests::REQUESTS_PER_TURN;
use stampede::server::sockets::WORK_PER_TURN;
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

/// A turn does a bounded amount of work, however many clients send however many requests, and every client has its turn.
#[test]
fn many_clients_are_served_in_turns_of_bounded_work() {
    for (clients, pipelined) in [(1500, 1), (200, 3), (40, REQUESTS_PER_TURN), (20, PIPELINED)] {
        SingleShard::run_with(clients, move |mut shard| {
            let mut open: Vec<_> = (0..clients).map(|_| shard.connect()).collect();
            open.iter_mut().for_each(|client| client.write_all(&HEAD.repeat(pipelined)).unwrap());
            let (mut counts, mut answered) = (vec![shard.turn(0)], vec![0; clients]);
            while shard.server.has_work() || counts.iter().sum::<usize>() < clients * pipelined {
                counts.push(shard.turn(1));
                // Nobody waits until others have had all their answers.
                for (client, count) in open.iter_mut().zip(&mut answered) {
                    *count += answers(client);
                }
                let waits_longest = clients * REQUESTS_PER_TURN / WORK_PER_TURN + 4;
                assert!(counts.len() < waits_longest || answered.iter().all(|count| *count > 0), "{answered:?}");
            }
            // The last connection of a turn may process all that one connection may.
            let most = WORK_PER_TURN + REQUESTS_PER_TURN;
            assert!(counts.iter().all(|count| *count <= most), "{counts:?}");
            assert!(counts.len() > clients * pipelined / most, "{counts:?}");
            answered.iter().for_each(|count| assert_eq!(*count, pipelined));
        });
    }
}
