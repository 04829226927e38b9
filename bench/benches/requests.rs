//! Requests: parsing and routing, rendering of responses, and the whole path of each kind without sockets and disk.

mod measured;

use bench::path::Crowd;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use measured::{CpuTime, briefly, cpu_time};
use stampede::http::head::parse_head;
use stampede::http::origin::Origins;
use stampede::http::response::{Responder, Style};
use stampede::http::route::{respond, route};
use stampede::http::site::Site;
use stampede::sale::code::Code;
use stampede::sale::command::Outcome;
use stampede::sale::ids::{ItemId, SaleId};
use std::hint::black_box;
use std::time::Duration;

const ITEMS: u32 = 1_000_000;

/// Request heads as clients send them.
const REQUESTS: [(&str, &str); 3] = [
    ("checkout by wrk", "POST /checkout?user_id=1234567&item_id=4321 HTTP/1.1\r\nHost: localhost:8080\r\n\r\n"),
    (
        "purchase by wrk",
        "POST /purchase?code=5217a1a2-e116-86c4-ae9f-b285fb710516 HTTP/1.1\r\nHost: localhost:8080\r\n\r\n",
    ),
    (
        "checkout by a browser",
        "POST /checkout?user_id=1234567&item_id=4321 HTTP/1.1\r\nHost: localhost:8080\r\nConnection: keep-alive\r\n\
         User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0 Safari/537.36\r\n\
         Accept: */*\r\nAccept-Language: en-GB,en;q=0.9\r\nAccept-Encoding: gzip, deflate, br\r\n\
         Origin: http://localhost:8080\r\nReferer: http://localhost:8080/\r\nContent-Length: 0\r\n\r\n",
    ),
];

fn parts(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("parse and route");
    group.throughput(Throughput::Elements(1));
    for (name, request) in REQUESTS {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let head =
                    parse_head(black_box(request).as_bytes()).expect("the head is valid").expect("the head is whole");
                black_box(route(&head, &Origins::None, Site::default()))
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("respond");
    group.throughput(Throughput::Elements(1));
    let (sale, item) = (SaleId(498_692), ItemId(4321));
    let code = Code::from_bytes([7; 16]);
    let style = Style { keep_alive: true, ..Style::default() };
    let outcomes = [
        ("refusal", Outcome::ItemSold { sale, item }, style),
        ("code", Outcome::Reserved { code, sale, item, expires_unix_ms: 0 }, style),
        ("receipt", Outcome::Purchased { sale, item }, Style { json: true, ..style }),
    ];
    let (mut responder, mut out) = (Responder::default(), Vec::new());
    for (name, outcome, style) in outcomes {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                out.clear();
                respond(black_box(outcome), style, &mut responder, &mut out);
            });
        });
    }
}

fn whole(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("whole path");
    group.throughput(Throughput::Elements(1));
    let mut crowd = Crowd::sold_out(10_000);
    group.bench_function("refusal", |bencher| {
        bencher.iter_custom(|requests| {
            let start = cpu_time();
            crowd.be_refused(requests as usize);
            cpu_time() - start
        });
    });
    let (mut crowd, mut left) = (Crowd::new(ITEMS), u64::from(ITEMS));
    group.bench_function("checkout and purchase", |bencher| {
        bencher.iter_custom(|mut pairs| {
            let mut time = Duration::ZERO;
            while pairs > 0 {
                if left == 0 {
                    (crowd, left) = (Crowd::new(ITEMS), u64::from(ITEMS));
                }
                let some = pairs.min(left);
                let start = cpu_time();
                crowd.check_out(some as usize);
                crowd.buy(some as usize);
                time += cpu_time() - start;
                pairs -= some;
                left -= some;
            }
            time
        });
    });
}

criterion_group! {
    name = benches;
    config = briefly();
    targets = parts, whole
}
criterion_main!(benches);
