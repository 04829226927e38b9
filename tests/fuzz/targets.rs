//! Fuzz targets, one function each: a target takes bytes and panics if it finds a defect. cargo-fuzz runs the targets
//! with coverage (`tests/fuzz/fuzz_targets`), `cargo test` with mutations of the seeds (`tests/hostile/fuzzed.rs`).

use crate::conversation::Conversation;
use crate::second_parser;
use stampede::config::database_url::DatabaseUrl;
use stampede::http::head::parse_head;
use stampede::http::origin::Origins;
use stampede::http::route::{Route, route as find_route};
use stampede::http::site::Site;
use stampede::log::block::{self, BLOCK_BYTES, Header, LogKind, StreamId};
use stampede::log::damage::Damage;
use stampede::log::replay::Replay;
use stampede::log::stream::{self as streams, Ending, SegmentBytes, SegmentExtent, StreamReading};
use stampede::sale::code::{Code, ITEMS_MAX};
use stampede::sale::command::Command;
use stampede::sale::ids::{ItemId, Moment, SaleId, UserId};
use stampede::sale::partition::Partition;
use stampede::sale::record::{BLOCK_RECORDS, LogEvent, RECORD_BYTES, Record, RefusalReason};
use stampede::sale::rules::{Ack, Rules};
use stampede::sale::sale_schedule::{PeriodicSale, SaleSchedule};
use uuid::Uuid;

/// A fuzz target, which panics on bytes that reveal a defect.
pub type Target = fn(&[u8]);

/// All targets, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("request", request),
    ("connection", connection),
    ("route", route),
    ("stream", stream),
    ("replay", replay),
    ("database_url", database_url),
];

/// Checks that the parser's first verdict on a head stays the same whatever bytes follow, and that a second parser
/// reads the same request.
pub fn request(bytes: &[u8]) {
    let verdict = parse_head(bytes);
    let mut earlier = (0..bytes.len()).map(|length| parse_head(&bytes[..length]));
    if let Some(earlier) = earlier.find(|earlier| *earlier != Ok(None)) {
        assert_eq!(earlier, verdict);
    }
    if let Ok(Some(head)) = verdict {
        assert!(head.bytes <= bytes.len());
    }
    let clear_request_deadline = Conversation::with(bytes, []).requests;
    if let (Some(ours), Some(theirs)) = (clear_request_deadline.first(), second_parser::read(bytes)) {
        assert_eq!(*ours, theirs);
    }
}

/// Checks that requests and responses do not depend on how the bytes are cut into pieces. The first byte selects the
/// pieces.
pub fn connection(bytes: &[u8]) {
    let Some((&seed, bytes)) = bytes.split_first() else { return };
    let whole = Conversation::with(bytes, []);
    let mut chance = fastrand::Rng::with_seed(seed.into());
    let cut = match seed {
        0 => Conversation::with(bytes, std::iter::repeat_n(1, bytes.len())),
        _ => Conversation::with(
            bytes,
            std::iter::from_fn(|| Some(chance.usize(1..=usize::from(seed)))).take(bytes.len()),
        ),
    };
    assert_eq!((&cut.requests, &cut.answers), (&whole.requests, &whole.answers));
    assert_eq!((cut.is_closed(), cut.is_idle()), (whole.is_closed(), whole.is_idle()));
}

/// Checks that a query is accepted only with the canonical spelling of its values, apart from the case of codes and
/// percent encoding.
pub fn route(bytes: &[u8]) {
    let query: String = bytes.iter().map(|byte| char::from(byte % 0x80)).filter(char::is_ascii_graphic).collect();
    let ask = |line: &str| {
        let text = format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n");
        parse_head(text.as_bytes()).ok().flatten().map(|head| find_route(&head, &Origins::None, Site::default()).1)
    };
    for line in ["POST /checkout", "POST /purchase", "DELETE /checkout", "POST /checkout/extend"] {
        let Some(Route::Command(command, _)) = ask(&format!("{line}?{query}")) else { continue };
        let canonical = match command {
            Command::Checkout { sale, item, user, .. } => {
                format!("item_id={}&user_id={}{}", item.0, user.0, sale_parameter(sale))
            }
            Command::CheckoutAny { sale, user, .. } => format!("user_id={}{}", user.0, sale_parameter(sale)),
            Command::Purchase { code, .. } | Command::Cancel { code } | Command::Extend { code } => {
                format!("code={code}")
            }
        };
        let given = percent_encoding::percent_decode_str(&query).decode_utf8_lossy().to_lowercase();
        for pair in canonical.split('&') {
            let (_, value) = pair.split_once('=').expect("a pair");
            assert!(given.split('&').any(|given| given.ends_with(&format!("={value}"))), "{query} is {canonical}");
        }
        let Some(Route::Command(again, _)) = ask(&format!("{line}?{canonical}")) else { panic!("{canonical}") };
        assert_eq!(again, command);
    }
}

fn sale_parameter(sale: Option<SaleId>) -> String {
    sale.map(|sale| format!("&sale_id={}", sale.0)).unwrap_or_default()
}

const STREAM: StreamId = StreamId { cluster: Uuid::from_u128(1), epoch: 2, shard: 3, log: LogKind::Purchases };
/// Upper bound of the first block numbers of fuzzed segments.
const FAR: u64 = block::COUNT_MAX / 2;
/// Number of blocks in a segment of the fuzzed streams.
const SEGMENT_BLOCKS: usize = 3;
/// Maximum number of blocks in a fuzzed stream.
const BLOCKS_MAX: usize = 12;

/// The fuzzer's bytes as a sequence of choices. When the bytes are used up, every choice is zero.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let (taken, rest) = self.0.split_at(N.min(self.0.len()));
        bytes[..taken.len()].copy_from_slice(taken);
        self.0 = rest;
        bytes
    }

    fn byte(&mut self) -> u8 {
        let [byte] = self.take();
        byte
    }

    fn number(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

/// Reads streams of blocks with good checksums and arbitrary content, of good chains with wrong links, and of torn and
/// foreign blocks. Checks that the reader accepts or refuses the stream, that an accepted stream, once sealed as by
/// recovery, is read the same again, and that reading can continue behind all damage of a refused one.
pub fn stream(bytes: &[u8]) {
    let segments = segments(&mut Choices(bytes));
    resume(&segments);
    let read = |segments: &[SegmentBytes]| {
        let mut seqs = Vec::new();
        let end = streams::read(&STREAM, segments, |seq, _| {
            seqs.push(seq);
            Ok(())
        });
        (end, seqs)
    };
    let (Ok(end), seqs) = read(&segments) else { return };
    assert!(seqs.windows(2).all(|pair| pair[1] == pair[0] + 1));
    assert!(seqs.last().is_none_or(|last| *last == end.records));
    if end.ending == Ending::Sealed {
        return;
    }
    let mut sealed: Vec<SegmentBytes> =
        segments.into_iter().filter(|segment| segment.first_block <= end.blocks).collect();
    let Some(last) = sealed.last_mut() else { return };
    let kept = (end.blocks - last.first_block) as usize * BLOCK_BYTES;
    last.bytes.truncate(kept);
    last.bytes.extend(end.seal(&STREAM));
    last.made_blocks = (last.bytes.len() / BLOCK_BYTES) as u64;
    let (again, same) = read(&sealed);
    let again = again.expect("a sealed stream is valid");
    assert_eq!((again.ending, again.blocks, again.records, same), (Ending::Sealed, end.blocks, end.records, seqs));
}

/// Continues behind every damage, and checks that each record is read once, in order, or counted as lost.
fn resume(segments: &[SegmentBytes]) {
    let (mut reading, mut seqs) = (StreamReading::new(STREAM), Vec::new());
    loop {
        let from = reading.end().blocks;
        let left = segments.iter().filter(|segment| segment.first_block + segment.made_blocks > from);
        let read = left.into_iter().try_for_each(|SegmentBytes { first_block, made_blocks, bytes, name }| {
            let segment = SegmentExtent { first_block: *first_block, made_blocks: *made_blocks, name: name.clone() };
            reading.begin(&segment)?;
            let read_before = (from.saturating_sub(*first_block) as usize).saturating_mul(BLOCK_BYTES).min(bytes.len());
            reading.blocks(&segment, from.max(*first_block), &bytes[read_before..], |seq, _| {
                seqs.push(seq);
                Ok(())
            })?;
            reading.close(&segment, bytes.len());
            Ok::<(), Damage>(())
        });
        if read.is_ok() {
            break;
        }
        reading.resume();
        assert!(reading.end().blocks > from, "reading does not advance");
    }
    assert!(seqs.is_sorted_by(|one, next| one < next));
    let records = reading.end().records - reading.first().unwrap_or(0);
    assert_eq!(seqs.len() as u64 + reading.lost(), records);
}

/// Returns the segments that the choices describe.
fn segments(choices: &mut Choices<'_>) -> Vec<SegmentBytes> {
    let event = LogEvent::Refused { item: Some(ItemId(1)), user: UserId(2), reason: RefusalReason::ItemSold };
    let record = Record { sale: SaleId(1), unix_ms: 1, event }.encode();
    let first_block = match choices.byte() {
        255 => choices.number() % FAR,
        few => u64::from(few / 64),
    };
    let mut segments: Vec<SegmentBytes> = Vec::new();
    let (mut number, mut records, mut checksum) = (first_block, 0u64, 0);
    for _ in 0..BLOCKS_MAX {
        if choices.0.is_empty() {
            break;
        }
        let choice = choices.take::<2>();
        let is = |bit: u8| u16::from_le_bytes(choice) >> bit & 1 == 1;
        let full = segments.last().is_none_or(|segment| segment.bytes.len() == SEGMENT_BLOCKS * BLOCK_BYTES);
        if full || is(8) {
            // Segments never overlap, but some may be missing.
            let next = segments.last().map_or(number, |segment| segment.first_block + SEGMENT_BLOCKS as u64);
            let gap = if is(9) { choices.number() % FAR } else { 0 };
            number = if next + gap < FAR { next + gap } else { next };
            let made_blocks = if is(10) { choices.number() % (1 << 32) } else { SEGMENT_BLOCKS as u64 };
            segments.push(SegmentBytes { first_block: number, made_blocks, bytes: Vec::new(), name: "segment".into() });
        }
        let mut block = vec![0; BLOCK_BYTES];
        if is(0) {
            let header = Header {
                records: choices.byte(),
                seals: is(1),
                number: if is(2) { choices.number() } else { number },
                records_before: if is(3) { choices.number() } else { records },
                flushed: if is(4) { choices.number() } else { records },
                previous_checksum: if is(5) { choices.number() as u32 } else { checksum },
            };
            for place in block::records_mut(&mut block).chunks_mut(RECORD_BYTES).take(header.records.into()) {
                place.copy_from_slice(&record);
            }
            if is(6) {
                block::records_mut(&mut block)[..RECORD_BYTES].copy_from_slice(&choices.take::<RECORD_BYTES>());
            }
            let stream = StreamId { shard: if is(11) { 4 } else { STREAM.shard }, ..STREAM };
            checksum = block::finish(&mut block, &stream, &header);
            records = header.records_before.saturating_add(header.records.min(BLOCK_RECORDS as u8).into());
        }
        if is(7) {
            let place = usize::from(u16::from_le_bytes(choices.take())) % BLOCK_BYTES;
            block[place] ^= choices.byte();
        }
        if is(12) {
            block.truncate(usize::from(u16::from_le_bytes(choices.take())) % BLOCK_BYTES);
        }
        number += 1;
        segments.last_mut().expect("a segment exists").bytes.extend(block);
    }
    // Segment files are created at their full length.
    for segment in &mut segments {
        if !segment.bytes.is_empty() && segment.bytes.len().is_multiple_of(BLOCK_BYTES) {
            segment.bytes.resize(SEGMENT_BLOCKS * BLOCK_BYTES, 0);
        }
    }
    segments
}

/// Maximum number of items in a fuzzed sale, to keep a run cheap. Numbers beyond `ITEMS_MAX` are left unchanged.
const ITEMS: u32 = 64;

/// Checks that any records in any order are replayed or refused one by one, and that the result is a consistent sale.
pub fn replay(bytes: &[u8]) {
    let now = Moment { monotonic_ms: 1_000, unix_ms: 3_600_000 * 500 };
    let sales = PeriodicSale { period_s: 3600, items: ITEMS, user_limit: 10, ttl_ms: 100, extension_ms: 0 };
    let rules = Rules { schedule: SaleSchedule::Periodic(sales), receipts_ms: 3_600_000, ack: Ack::Local };
    let Some((&shards, bytes)) = bytes.split_first() else { return };
    let mut replay = Replay::new(Partition::new(u16::from(shards % 8) + 1), rules, (100, 3600), now);
    for bytes in bytes.as_chunks::<RECORD_BYTES>().0 {
        let Ok(mut record) = Record::decode(bytes) else { continue };
        if let LogEvent::SaleOpened { items, .. } = &mut record.event
            && *items <= ITEMS_MAX
        {
            *items %= ITEMS + 1;
        }
        // Recovery continues after a contradiction, which may concern a sale that is no longer relevant.
        let _ = replay.record(&record);
    }
    let Ok((inventories, found)) = replay.finish() else { return };
    let terms = inventories[0].newest().terms;
    assert!(found.sold + found.held <= terms.items && terms.items <= ITEMS);
    assert!(inventories.iter().all(|inventory| inventory.newest().terms == terms));
    assert!(inventories.iter().all(|inventory| inventory.parts.len() == inventories[0].parts.len()));
    let _ = Code::from_bytes([0x8f; 16]).place();
}

/// Checks that any text is a database URL or an error, and that the place of a URL has the documented form.
pub fn database_url(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(url) = DatabaseUrl::parse(text) {
        for host in &url.hosts {
            let [name, port, database, user] = url.parts(host);
            assert_eq!(url.place_of(host), format!("{user}@{name}:{port}/{database}"));
        }
        assert!(!url.hosts.is_empty());
    }
}
