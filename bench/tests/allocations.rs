//! Memory allocations per request: on the request path alone, where the count is exact, and in a whole server with
//! sockets, io_uring and a disk, where the allocations of each turn and each flush are added.
#![expect(unsafe_code, reason = "a counting allocator must implement GlobalAlloc")]

use bench::path::Crowd;
use bench::turns::{rules, sales};
use glommio::io::PollableFd;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use stampede::http::bodies::PlannedUnit;
use stampede::http::origin::Origins;
use stampede::http::receipt::Receipt;
use stampede::http::site::Site;
use stampede::log::block::{LogKind, StreamId};
use stampede::log::budget::Budget;
use stampede::log::replay::Replay;
use stampede::log::retention::Retention;
use stampede::log::writer::LogWriter;
use stampede::operate::item_states::ItemStates;
use stampede::operate::request_timer::RequestTimer;
use stampede::operate::status::{Phase, Status};
use stampede::runtime::control::Notice;
use stampede::runtime::log_pair::LogPair;
use stampede::runtime::mesh;
use stampede::runtime::shard_io::ShardIo;
use stampede::runtime::turn::TurnLoop;
use stampede::sale::code::CodeGenerator;
use stampede::sale::command::Command;
use stampede::sale::effects::Effects;
use stampede::sale::ids::{ItemId, Moment, SaleId, Seq, ShardId, Ticket, UserId};
use stampede::sale::lazy_vec::BLOCK_ITEMS;
use stampede::sale::partition::Partition;
use stampede::sale::quotas::Quotas;
use stampede::sale::rules::Rules;
use stampede::sale::sale_schedule::{PeriodicSale, SaleSchedule};
use stampede::sale::shard::{Shard, ShardEvent};
use stampede::server::admission::Admission;
use stampede::server::sockets::Server;
use stampede::system::clock::Clock;
use stampede::system::disk_ring::DiskRing;
use stampede::system::doorbell::Doorbell;
use stampede::system::{host, listener};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

const REQUESTS: usize = 10_000;
const CONNECTIONS: usize = 64;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static ALLOCATED_BYTES: AtomicU64 = AtomicU64::new(0);
thread_local! {
    static IS_COUNTED: Cell<bool> = const { Cell::new(false) };
}

/// The system allocator, which counts the allocations of the threads that set `IS_COUNTED`.
struct CountingAllocator;

#[global_allocator]
static COUNTING_ALLOCATOR: CountingAllocator = CountingAllocator;

fn note(bytes: usize) {
    if IS_COUNTED.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        ALLOCATED_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

// SAFETY: every call is forwarded unchanged to the system allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        note(bytes);
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

/// Returns the number of allocations on the counted threads while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    work();
    ALLOCATIONS.load(Ordering::SeqCst) - before
}

/// Writes a line to standard error, which the test runner does not capture.
fn say(line: &str) {
    writeln!(std::io::stderr(), "allocations: {line}").expect("standard error is open");
}

/// A single test, because the counter is global.
#[test]
fn requests_stay_within_their_allocations() {
    a_path();
    a_receipt();
    a_whole_server();
    [10_000, 1_000_000].into_iter().chain(items_from_environment()).for_each(an_hour);
    a_million_users();
}

/// No claim allocates in proportion to the number of users: at most a chunk of buckets, a chunk of entries, and the
/// pointers to the chunks.
fn a_million_users() {
    const USERS: i64 = 1_000_000;
    const CLAIM_BYTES_MAX: u64 = 64 * 1024;
    let mut quotas = Quotas::new(1, Partition::new(1).user_hash(), 0);
    IS_COUNTED.set(true);
    let bytes = (0..USERS).map(|user| allocated_bytes(|| assert!(quotas.claim(UserId(user)))));
    let (most, total) = bytes.fold((0, 0), |(most, total), bytes| (bytes.max(most), bytes + total));
    quotas.clear(1);
    let again = allocated_bytes(|| (0..USERS).for_each(|user| assert!(quotas.claim(UserId(-user)))));
    IS_COUNTED.set(false);
    say(&format!("quotas: {total} bytes for {USERS} users, at most {most} for one claim, {again} in the next sale"));
    assert!(most < CLAIM_BYTES_MAX, "one claim allocates {most} bytes");
    assert_eq!(again, 0, "the next sale uses the memory of the last one");
}

/// Returns a larger stock to try, from `STAMPEDE_HOUR_ITEMS`.
fn items_from_environment() -> Option<u32> {
    std::env::var("STAMPEDE_HOUR_ITEMS").ok().map(|items| items.parse().expect("STAMPEDE_HOUR_ITEMS is a number"))
}

/// Sales of any size follow each other without an allocation, also after sales in which each item was asked for.
fn an_hour(items: u32) {
    let rules = Rules { receipts_ms: 0, ..rules(items) };
    let mut now = Moment { monotonic_ms: 1, unix_ms: 0 };
    let (mut inventories, _) = Replay::new(Partition::new(1), rules, (0, 0), now).finish().expect("a new sale");
    let (inventory, mut effects) = (inventories.pop().expect("one was requested"), Effects::default());
    let codes = CodeGenerator::new([1; 32]);
    let mut shard = Shard::new(ShardId(0), Partition::new(1), rules, inventory, codes, now, &mut effects);
    let mut appended = 0;
    for sale in 1..5 {
        IS_COUNTED.set(true);
        let asked = allocated_bytes(|| ask_for_each_item(&mut shard, items, &mut now, &mut effects, &mut appended));
        // The first two sales get memory for their items. Each later one uses that of a forgotten sale.
        assert!(
            sale < 3 || asked < 4096,
            "{asked} bytes are allocated in the sale before sale {sale} of {items} items"
        );
        now.unix_ms = rules.schedule.terms(SaleId(sale)).expect("each period has a sale").opens_ms - 1;
        let begun = Instant::now();
        let preparing = allocated_bytes(|| shard.prepare(now));
        let prepared = begun.elapsed();
        now.unix_ms += 1;
        let begun = Instant::now();
        let opening = allocated_bytes(|| shard.apply(ShardEvent::Tick, now, &mut effects));
        let opened = begun.elapsed();
        assert_eq!((shard.newest().sale, shard.stock().items()), (SaleId(sale), items as usize));
        say(&format!(
            "sale {sale} of {items} items: {opening} bytes and {opened:?} to open, {preparing} bytes and {prepared:?} to \
             prepare"
        ));
        assert!(opening < 4096, "{opening} bytes are allocated when a sale of {items} items begins");
        assert!(preparing < 4096, "{preparing} bytes are allocated to prepare a sale of {items} items");
        IS_COUNTED.set(false);
    }
}

/// Lets a buyer reserve each item of the open sale, and all holds end.
fn ask_for_each_item(shard: &mut Shard, items: u32, now: &mut Moment, effects: &mut Effects, appended: &mut Seq) {
    let mut flush = |shard: &mut Shard, now, effects: &mut Effects| {
        *appended += effects.records.drain(..).len() as Seq;
        effects.answers.clear();
        effects.ended.clear();
        effects.changes.clear();
        shard.apply(ShardEvent::Flushed(*appended), now, effects);
        shard.apply(ShardEvent::LogRoom(u64::MAX), now, effects);
        shard.apply(ShardEvent::Tick, now, effects);
    };
    flush(shard, *now, effects);
    for item in (0..items).map(ItemId) {
        let checkout = Command::Checkout { sale: None, item, user: UserId(1), key: Uuid::nil() };
        shard.apply(ShardEvent::Command(Ticket(1), checkout), *now, effects);
        if effects.records.len() == 1024 {
            flush(shard, *now, effects);
        }
    }
    assert_eq!(shard.stock().counts().held, items, "each item is reserved");
    now.monotonic_ms += u64::from(u32::MAX);
    while shard.stock().counts().held > 0 {
        flush(shard, *now, effects);
    }
    flush(shard, *now, effects);
}

/// A receipt is written without an allocation, also one of a plan.
fn a_receipt() {
    let unit = PlannedUnit { product_id: Some("balcony"), unit: Some("Row \"A\", seat 1") };
    let mut out = Vec::with_capacity(1024);
    IS_COUNTED.set(true);
    let receipt = allocations(|| Receipt::new(SaleId(1), ItemId(2), unit).write(&mut out));
    IS_COUNTED.set(false);
    assert_eq!(receipt, 0, "a receipt allocates nothing");
}

/// Returns the number of bytes that the counted threads allocate while `work` runs.
fn allocated_bytes(work: impl FnOnce()) -> u64 {
    let before = ALLOCATED_BYTES.load(Ordering::SeqCst);
    work();
    ALLOCATED_BYTES.load(Ordering::SeqCst) - before
}

fn a_path() {
    IS_COUNTED.set(true);
    let mut crowd = Crowd::new(2 * REQUESTS as u32);
    crowd.check_out(REQUESTS);
    crowd.buy(REQUESTS);
    let checkouts = allocations(|| crowd.check_out(REQUESTS));
    let purchases = allocations(|| crowd.buy(REQUESTS));
    // Repeated until the buffers have their final size, because the number of attempts in a flush varies.
    (0..3).for_each(|_| crowd.be_refused(REQUESTS));
    let refusals = allocations(|| crowd.be_refused(REQUESTS));
    IS_COUNTED.set(false);
    say(&format!("path: {refusals}, {checkouts} and {purchases} for {REQUESTS} refusals, checkouts and purchases"));
    assert_eq!(refusals, 0, "a refusal allocates nothing");
    let blocks = REQUESTS.div_ceil(BLOCK_ITEMS) as u64;
    assert!(checkouts <= blocks, "checkouts allocate only memory for their items, a block at a time");
    assert_eq!(purchases, 0, "purchases allocate nothing once the buffers have their final size");
}

fn a_whole_server() {
    let dir = tempfile::tempdir().expect("a directory");
    let (address, mut listeners) = listener::listen(([127, 0, 0, 1], 0).into(), 1, false).expect("a port");
    let listener = listeners.pop().expect("one was requested");
    let status = Arc::new(Status::new(Phase::Recovering, 1, 1 << 30, false));
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

    let mut clients = HttpClients::connect(address);
    let codes = clients.check_out(0..REQUESTS);
    clients.buy(&codes);
    let (mut codes, mut items) = (Vec::new(), REQUESTS..2 * REQUESTS);
    let checkouts = allocations(|| codes = clients.check_out(items.by_ref()));
    let purchases = allocations(|| clients.buy(&codes));
    let refusals = fewest_allocations(|| clients.be_refused());
    let in_a_row = fewest_allocations(|| clients.be_refused_in_a_row());
    drop(clients);
    enter(Phase::Draining);
    while !matches!(noticed.recv().expect("the server runs"), Notice::Drained(_)) {}
    enter(Phase::Stopping);
    served.join().expect("the server ends");
    say(&format!("server: {checkouts} and {purchases} for {REQUESTS} checkouts and purchases"));
    say(&format!("server: {refusals} for {CONNECTIONS} refusals, {in_a_row} if they arrive on one connection"));
    for refusals in [refusals, in_a_row] {
        assert!(refusals < CONNECTIONS as u64 / 2, "refusals allocate: {refusals} for {CONNECTIONS}");
    }
}

/// Returns the fewest allocations of many rounds. The executor allocates while a log is written, for as long as the disk
/// takes, so only the rounds without a flush show what the requests allocate.
fn fewest_allocations(mut round: impl FnMut()) -> u64 {
    (0..REQUESTS / CONNECTIONS).map(|_| allocations(&mut round)).min().expect("there are several rounds")
}

/// Runs one shard, started as in the server.
fn serve(listener: OwnedFd, logs: &Path, status: Arc<Status>, doorbells: &Arc<[Doorbell]>, notices: Notices) {
    let placement = host::placements(1).pop().expect("one was requested");
    let executor = host::executor(placement).expect("a ring");
    executor.run(async move {
        let (id, partition, clock) = (ShardId(0), Partition::new(1), Clock::start());
        let sales = PeriodicSale { ttl_ms: 600_000, period_s: 365 * 86400, ..sales(2 * REQUESTS as u32) };
        let rules = Rules { schedule: SaleSchedule::Periodic(sales), ..rules(0) };
        let mesh = mesh::connect(doorbells).pop().expect("there is one shard");
        let request_timer = RequestTimer::new(status.clone(), id, clock.clone());
        let idle_timeout = Duration::from_secs(75);
        let admission = Admission::new(id, status.clone(), doorbells.clone(), 1000, None);
        let mut server =
            Server::new(admission, request_timer, Origins::None, Site::default(), idle_timeout).expect("a descriptor");
        server.listen(listener).expect("the listener can be registered");
        let always_ready = eventfd(1, EventfdFlags::CLOEXEC).expect("a descriptor");
        let always_ready = PollableFd::new(always_ready).expect("a descriptor");
        let orders = crossbeam_channel::never();
        let outside = ShardIo { id, server, mesh, clock: clock.clone(), status, notices, orders, always_ready };
        let (mut inventories, _) = Replay::new(partition, rules, (0, 0), clock.now()).finish().expect("a new sale");
        let item_states = Arc::new(ItemStates::new(partition, rules.schedule, &inventories));
        let inventory = inventories.pop().expect("one was requested");
        let log = |log| {
            let stream = StreamId { cluster: Uuid::from_u128(1), epoch: 1, shard: 0, log };
            LogWriter::new(stream, logs, true, 1024)
        };
        let ring = DiskRing::new().expect("a ring");
        outside.server.wake_by(&ring).expect("a descriptor");
        let retention = Retention::new(logs, Arc::new(Budget::new(1 << 30, 1)), false);
        let logs = LogPair::new(ring, log(LogKind::Purchases), log(LogKind::Attempts), retention, None);
        let mut effects = Effects::default();
        let codes = CodeGenerator::new([1; 32]);
        let shard = Shard::new(id, partition, rules, inventory, codes, clock.now(), &mut effects);
        IS_COUNTED.set(true);
        let ended = TurnLoop::new(outside, shard, effects, logs, item_states).run().await;
        IS_COUNTED.set(false);
        ended.unwrap_or_else(|reason| panic!("{reason}"));
    });
}

type Notices = crossbeam_channel::Sender<Notice>;

/// Clients that send their requests together and wait for all responses.
struct HttpClients(Vec<TcpStream>);

impl HttpClients {
    fn connect(address: SocketAddr) -> HttpClients {
        HttpClients((0..CONNECTIONS).map(|_| TcpStream::connect(address).expect("the server accepts")).collect())
    }

    /// Sends these requests, checks that each response has this status, and returns the bodies.
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
        self.ask(&(0..CONNECTIONS).map(target).collect::<Vec<_>>(), "409");
    }

    /// Sends as many requests in one write on one connection.
    fn be_refused_in_a_row(&mut self) {
        let request = "POST /checkout?user_id=1&item_id=0 HTTP/1.1\r\nHost: sale\r\n\r\n";
        let client = &mut self.0[0];
        client.write_all(request.repeat(CONNECTIONS).as_bytes()).expect("the server reads");
        let (mut answers, mut buffer) = (Vec::new(), [0; 64 * 1024]);
        while memchr::memmem::find_iter(&answers, b"item-sold\"}").count() < CONNECTIONS {
            let bytes = client.read(&mut buffer).expect("the server answers");
            assert!(bytes > 0, "the server closed the connection");
            answers.extend_from_slice(&buffer[..bytes]);
        }
    }
}
