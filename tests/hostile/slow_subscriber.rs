//! A subscriber to the events of the sale that does not read them.

use crate::single_shard::server;
use glommio::{LocalExecutorBuilder, Placement};
use stampede::http::connection::ConnectionSnapshot;
use stampede::operate::item_states::ItemStates;
use stampede::operate::status::{Phase, Status};
use stampede::sale::ids::{Moment, SaleId, ShardId};
use stampede::sale::part::Part;
use stampede::sale::partition::Partition;
use stampede::sale::parts::Parts;
use stampede::sale::published_stock::PublishedStock;
use stampede::sale::sale_schedule::{PeriodicSale, SaleSchedule};
use stampede::server::item_pages::OnSale;
use stampede::server::status_pages::Facts;
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

const SALE: SaleId = SaleId(7);
const SALES: PeriodicSale = PeriodicSale { period_s: 3600, items: 100, user_limit: 1, ttl_ms: 1, extension_ms: 0 };
/// Bytes of pending output, more than the kernel buffers for a client that does not read.
const BEFORE: usize = 8 << 20;

fn after(ms: u64) -> Moment {
    Moment { monotonic_ms: 1 + ms, unix_ms: 1 + ms }
}

/// Returns the text that the subscriber receives if it begins to read `until_ms` after the first of many changes, and
/// whether the server has disconnected it.
fn told_by_then(until_ms: u64) -> (String, bool) {
    let run = async move {
        let status = Arc::new(Status::new(Phase::Serving, 1, 0, false));
        let item_states = ItemStates::new(Partition::new(1), SaleSchedule::Periodic(SALES), &[]);
        let parts = Parts::new(
            ShardId(0),
            Partition::new(1),
            vec![Part::empty(SALES.terms(SALE), Partition::new(1), ShardId(0))],
        );
        let mut server = server(&status, 4);
        let (mut client, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        client.set_nonblocking(true).unwrap();
        let midway = ConnectionSnapshot { listens: true, output: vec![b'.'; BEFORE], ..ConnectionSnapshot::default() };
        server.adopt(socket.into(), Some(midway), after(0));
        let mut turn = |sold, ms| {
            let now = after(ms);
            let published = PublishedStock { sale: SALE, sold, reserved: 0, ..PublishedStock::default() };
            status.shards[0].publish_sales(published);
            server.poll(0);
            server.serve(now, &mut |_, _, _, _, _| panic!("the subscriber sends no request"));
            let (parts, item_states) = (&parts, &item_states);
            let sale = OnSale { parts, item_states, schedule: SaleSchedule::Periodic(SALES), now };
            let facts = Facts { status: &status, sale: Some(sale), known: None };
            server.send_events(&facts, now);
            server.write_replies(now);
            server.sweep(now);
            server.connections()
        };
        let changes = (0..=until_ms).step_by(1000);
        for ms in changes {
            turn((ms / 1000) as u32, ms);
        }
        let (mut heard, mut ended) = (Vec::new(), false);
        let mut piece = vec![0; 1 << 16];
        // Read for five seconds of the test's time, which is longer than the output needs.
        for ms in until_ms..until_ms + 5000 {
            turn((until_ms / 1000) as u32, ms);
            loop {
                match client.read(&mut piece) {
                    Ok(0) => {
                        ended = true;
                        break;
                    }
                    Ok(bytes) => heard.extend_from_slice(&piece[..bytes]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        let text = String::from_utf8(heard).unwrap();
        (text.trim_start_matches('.').to_owned(), ended)
    };
    LocalExecutorBuilder::new(Placement::Unbound).make().unwrap().run(run)
}

#[test]
fn it_hears_the_first_news_and_then_the_last() {
    let (heard, ended) = told_by_then(20_000);
    assert!(!ended);
    let events: Vec<_> = heard.split("event: ").skip(1).collect();
    assert_eq!(events.len(), 2, "changes in between are not kept: {heard}");
    assert!(events[0].starts_with("sale\n") && events[0].contains("\"sold\":0,"), "{heard}");
    assert_eq!(events[1], "stock\ndata: {\"sale_id\":7,\"sold\":20,\"reserved\":0,\"available\":80}\n\n");
}

#[test]
fn it_is_let_go_of_if_it_never_reads() {
    let (heard, ended) = told_by_then(32_000);
    assert!(ended && heard.is_empty(), "{heard}");
}
