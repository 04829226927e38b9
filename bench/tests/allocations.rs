//! Allocations of memory for each request: on the path of a request, where they are exact, and in a whole server with
//! its sockets, its ring and its disk, where those of each turn and each flush come on top.
#![expect(unsafe_code, reason = "an allocator that counts can be had in no other way")]

use bench::path::Crowd;
use bench::turns::rules;
use glommio::LocalExecutorBuilder;
use glommio::io::PollableFd;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use stampede::block::{LogKind, StreamId};
use stampede::board::Board;
use stampede::clock::Clock;
use stampede::code::CodeGenerator;
use stampede::doorbell::Doorbell;
use stampede::logs::Logs;
use stampede::mesh;
use stampede::meter::Meter;
use stampede::notice::Notice;
use stampede::outside::Outside;
use stampede::partition::Partition;
use stampede::pump::Pump;
use stampede::purchase_log::PurchaseLog;
use stampede::replay::Replay;
use stampede::retention::Retention;
use stampede::server::Server;
use stampede::shard::{Effects, Rules, Shard};
use stampede::status::{Phase, Status};
use stampede::types::ShardId;
use stampede::{host, listener};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use uuid::Uuid;

const REQUESTS: usize = 10_000;
const CONNECTIONS: usize = 64;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
thread_local! {
    static IS_COUNTED: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator, with every allocation on the threads that are counted noted down.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn note() {
    if IS_COUNTED.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: it hands everything on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        note();
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

/// Allocations on the counted threads while `work` goes on.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    work();
    ALLOCATIONS.load(Ordering::SeqCst) - before
}

/// Past what the test runner captures.
fn say(line: &str) {
    writeln!(std::io::stderr(), "allocations: {line}").expect("standard error is there");
}

/// One test, because what is counted is counted for all of them together.
#[test]
fn requests_allocate_no_more_than_is_known() {
    a_path();
    a_whole_server();
}

fn a_path() {
    IS_COUNTED.set(true);
    let mut crowd = Crowd::new(2 * REQUESTS as u32);
    crowd.check_out(REQUESTS);
    crowd.buy(REQUESTS);
    let checkouts = allocations(|| crowd.check_out(REQUESTS));
    let purchases = allocations(|| crowd.buy(REQUESTS));
    // Until every buffer has found its size: the attempts of a flush are not always as many.
    (0..3).for_each(|_| crowd.be_refused(REQUESTS));
    let refusals = allocations(|| crowd.be_refused(REQUESTS));
    IS_COUNTED.set(false);
    say(&format!("path: {refusals}, {checkouts} and {purchases} for {REQUESTS} refusals, checkouts and purchases"));
    assert_eq!(refusals, 0, "a refusal allocates nothing");
    assert_eq!((checkouts, purchases), (0, 0), "nor does a checkout or a purchase, once its buffers have their size");
}

fn a_whole_server() {
    let dir = tempfile::tempdir().expect("a directory");
    let (address, mut listeners) = listener::listen(([127, 0, 0, 1], 0).into(), 1).expect("a port");
    let listener = listeners.pop().expect("one was asked for");
    let status = Arc::new(Status::new(Phase::Recovering, 1, false));
    let doorbells: Arc<[Doorbell]> = [Doorbell::new().expect("a descriptor")].into();
    let (notices, noticed) = crossbeam_channel::unbounded();
    let served = {
        let (status, doorbells, logs) = (status.clone(), doorbells.clone(), dir.path().to_owned());
        thread::spawn(move || serve(listener, &logs, status, &doorbells, notices))
    };
    let enter = |phase| {
        status.set_phase(phase);
        doorbells[0].ring();
    };
    while !matches!(noticed.recv().expect("the server runs"), Notice::Ready(_)) {}
    enter(Phase::Serving);

    let mut clients = Clients::connect(address);
    let codes = clients.check_out(0..REQUESTS);
    clients.buy(&codes);
    let (mut codes, mut items) = (Vec::new(), REQUESTS..2 * REQUESTS);
    let checkouts = allocations(|| codes = clients.check_out(items.by_ref()));
    let purchases = allocations(|| clients.buy(&codes));
    clients.be_refused();
    let refusals = allocations(|| clients.be_refused());
    clients.be_refused_in_a_row();
    let in_a_row = allocations(|| clients.be_refused_in_a_row());
    drop(clients);
    enter(Phase::Draining);
    while !matches!(noticed.recv().expect("the server runs"), Notice::Drained(_)) {}
    enter(Phase::Stopping);
    served.join().expect("the server ends");
    say(&format!("server: {refusals}, {checkouts} and {purchases} for {REQUESTS} refusals, checkouts and purchases"));
    say(&format!("server: {in_a_row} for {REQUESTS} refusals that come {CONNECTIONS} at a time on one connection"));
    // What allocates is the executor, in the turns while a log is being written, and how many these are is the disk's doing.
    for refusals in [refusals, in_a_row] {
        assert!(refusals < REQUESTS as u64 / 2, "flushes allocate, refusals do not: {refusals}");
    }
}

/// One shard as `start.rs` starts it.
fn serve(listener: OwnedFd, logs: &Path, status: Arc<Status>, doorbells: &Arc<[Doorbell]>, notices: Notices) {
    let placement = host::placements(1).pop().expect("one was asked for");
    let executor = LocalExecutorBuilder::new(placement).io_memory(host::IO_MEMORY).make().expect("a ring");
    executor.run(async move {
        let (id, partition, clock) = (ShardId(0), Partition::new(1), Clock::start());
        let rules = Rules { ttl_ms: 600_000, period_s: 365 * 86400, ..rules(2 * REQUESTS as u32) };
        let mesh = mesh::connect(doorbells).pop().expect("there is one shard");
        let mut server =
            Server::new(mesh.doorbell(), 1000, Meter::new(status.clone(), id, clock)).expect("a descriptor");
        server.listen(listener).expect("memory for it");
        let always_ready = eventfd(1, EventfdFlags::CLOEXEC).expect("a descriptor");
        let always_ready = PollableFd::new(always_ready).expect("a descriptor");
        let orders = crossbeam_channel::never();
        let outside = Outside { id, server, mesh, clock, status, notices, orders, always_ready };
        let (mut inventories, _) = Replay::new(partition, clock.now()).finish(&rules).expect("a new sale");
        let board = Arc::new(Board::new(partition, rules.items, &inventories));
        let inventory = inventories.pop().expect("one was asked for");
        let log = |log| {
            let stream = StreamId { cluster: Uuid::from_u128(1), epoch: 1, shard: 0, log };
            PurchaseLog::new(stream, logs, true, 1024)
        };
        let logs = Logs {
            purchases: log(LogKind::Purchases),
            attempts: log(LogKind::Attempts),
            retention: Retention::new(logs, 1 << 30, false),
            persistence: None,
        };
        let mut effects = Effects::default();
        let codes = CodeGenerator::new([1; 32]);
        let shard = Shard::new(id, partition, rules, inventory, codes, clock.now(), &mut effects);
        IS_COUNTED.set(true);
        let ended = Pump::new(outside, shard, effects, logs, board, rules.period_s).run().await;
        IS_COUNTED.set(false);
        ended.unwrap_or_else(|reason| panic!("{reason}"));
    });
}

type Notices = crossbeam_channel::Sender<Notice>;

/// Clients that all ask at once, and wait for all answers.
struct Clients(Vec<TcpStream>);

impl Clients {
    fn connect(address: SocketAddr) -> Clients {
        Clients((0..CONNECTIONS).map(|_| TcpStream::connect(address).expect("the server accepts")).collect())
    }

    /// The bodies of the answers to these requests, all of which have this status.
    fn ask(&mut self, targets: &[String], status: &str) -> Vec<String> {
        let mut bodies = Vec::new();
        for targets in targets.chunks(CONNECTIONS) {
            for (client, target) in self.0.iter_mut().zip(targets) {
                let request = format!("POST {target} HTTP/1.1\r\nHost: sale\r\n\r\n");
                client.write_all(request.as_bytes()).expect("the server reads");
            }
            for (client, _) in self.0.iter_mut().zip(targets) {
                let mut buffer = [0; 1024];
                let bytes = client.read(&mut buffer).expect("the server answers");
                let answer = String::from_utf8_lossy(&buffer[..bytes]);
                assert_eq!(answer.get(9..12), Some(status), "{answer}");
                bodies.push(answer.split_once("\r\n\r\n").expect("a whole answer").1.to_owned());
            }
        }
        bodies
    }

    fn check_out(&mut self, items: impl Iterator<Item = usize>) -> Vec<String> {
        let target = |item: usize| format!("/checkout?user_id={}&item_id={item}", item / 10);
        self.ask(&items.map(target).collect::<Vec<_>>(), "200")
    }

    fn buy(&mut self, codes: &[String]) {
        let targets: Vec<_> = codes.iter().map(|code| format!("/purchase?code={code}")).collect();
        self.ask(&targets, "200");
    }

    fn be_refused(&mut self) {
        let target = |item: usize| format!("/checkout?user_id=1&item_id={item}");
        self.ask(&(0..REQUESTS).map(target).collect::<Vec<_>>(), "409");
    }

    /// The same on one connection, so many requests in one write.
    fn be_refused_in_a_row(&mut self) {
        let request = "POST /checkout?user_id=1&item_id=0 HTTP/1.1\r\nHost: sale\r\n\r\n";
        let client = &mut self.0[0];
        for left in (0..REQUESTS).step_by(CONNECTIONS).map(|sent| REQUESTS - sent) {
            let requests = left.min(CONNECTIONS);
            client.write_all(request.repeat(requests).as_bytes()).expect("the server reads");
            let (mut answers, mut buffer) = (Vec::new(), [0; 64 * 1024]);
            while memchr::memmem::find_iter(&answers, b"item-sold\"}").count() < requests {
                let bytes = client.read(&mut buffer).expect("the server answers");
                assert!(bytes > 0, "the server hung up");
                answers.extend_from_slice(&buffer[..bytes]);
            }
        }
    }
}
