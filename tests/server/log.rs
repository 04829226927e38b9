//! What the log of a data directory remembers, read without changing it.

use stampede::block::LogKind;
use stampede::record::{Event, Record, ReleaseReason};
use stampede::segment::SegmentName;
use stampede::stream;
use stampede::types::{ItemId, SaleId, UserId};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// A reservation, from its record to the record of its end. One that was bought never ends.
#[derive(Clone, Copy, Debug)]
pub struct Hold {
    pub sale: SaleId,
    pub item: ItemId,
    pub user: UserId,
    pub from_ms: u64,
    pub to_ms: u64,
}

/// The purchase logs of all runs.
#[derive(Default)]
pub struct Log {
    /// By code.
    pub checkouts: HashMap<String, Hold>,
    pub purchases: HashMap<String, Hold>,
    pub releases: HashMap<String, (u64, ReleaseReason)>,
    pub holds_of_item: HashMap<u32, Vec<Hold>>,
    pub holds_of_user: HashMap<i64, Vec<Hold>>,
    /// When each item was sold, in which sales.
    pub sold: HashMap<u32, Vec<(SaleId, u64)>>,
    /// When each sale began.
    sales: BTreeMap<SaleId, u64>,
    pub user_limit: u32,
    /// Nothing has been removed since the first run.
    pub is_whole: bool,
    /// Some of it came from Postgres.
    pub is_taken_over: bool,
    earliest_ms: u64,
    latest_ms: u64,
}

impl Log {
    /// Reads it, if there is one.
    pub fn read(data_dir: &Path) -> Option<Log> {
        let control = std::fs::read(data_dir.join("control.json")).ok()?;
        let control: serde_json::Value = serde_json::from_slice(&control).expect("it is JSON");
        let cluster = control["cluster"].as_str().and_then(|id| id.parse().ok()).expect("a cluster id");
        let dir = data_dir.join("log");
        let mut streams: BTreeMap<(u32, u16), Vec<SegmentName>> = BTreeMap::new();
        for entry in std::fs::read_dir(&dir).ok()?.map(|entry| entry.expect("it can be listed")) {
            let name = entry.file_name();
            if let Some(name) = name.to_str().and_then(|name| SegmentName::parse(name, cluster))
                && name.stream.log == LogKind::Purchases
            {
                streams.entry((name.stream.epoch, name.stream.shard)).or_default().push(name);
            }
        }
        let mut log = Log { is_whole: !data_dir.join("set-aside-1").exists(), ..Log::default() };
        let mut records = Vec::new();
        for names in streams.values_mut() {
            names.sort_by_key(|name| name.first_block);
            log.is_whole &= names[0].first_block == 0;
            let segments: Vec<_> = names.iter().map(|name| name.read(&dir).expect("it can be read")).collect();
            let visit = |_, record: &Record| {
                records.push(*record);
                Ok(())
            };
            stream::read(&names[0].stream, &segments, visit).unwrap_or_else(|damage| panic!("{damage}"));
        }
        let epochs = streams.keys().map(|(epoch, _)| *epoch);
        log.is_whole &= epochs.min() == Some(1);
        // Streams are in order of runs; within one, all of an item is in one stream.
        records.iter().for_each(|record| log.add(record));
        log.note_holds();
        Some(log)
    }

    fn add(&mut self, &Record { sale, unix_ms, event }: &Record) {
        self.earliest_ms = if self.latest_ms == 0 { unix_ms } else { self.earliest_ms.min(unix_ms) };
        self.latest_ms = self.latest_ms.max(unix_ms);
        match event {
            Event::SaleOpened { user_limit, .. } => {
                let since_ms = self.sales.entry(sale).or_insert(unix_ms);
                *since_ms = unix_ms.min(*since_ms);
                self.user_limit = user_limit;
            }
            Event::TakenOver => self.is_taken_over = true,
            Event::Checkout { item, user, code, .. } => {
                let hold = Hold { sale, item, user, from_ms: unix_ms, to_ms: u64::MAX };
                let other = self.checkouts.insert(code.to_string(), hold);
                assert!(other.is_none(), "a code was given out twice: {hold:?}");
            }
            Event::Purchase { item, user, code, .. } => {
                let sold = self.sold.entry(item.0).or_default();
                assert!(sold.iter().all(|(other, _)| *other != sale), "item {item:?} was sold twice in {sale:?}");
                sold.push((sale, unix_ms));
                let hold = Hold { sale, item, user, from_ms: unix_ms, to_ms: u64::MAX };
                self.purchases.insert(code.to_string(), hold);
            }
            Event::Released { code, reason, .. } => _ = self.releases.insert(code.to_string(), (unix_ms, reason)),
            Event::Refused { .. } => panic!("a refusal in the log of purchases"),
        }
    }

    fn note_holds(&mut self) {
        for (code, hold) in &mut self.checkouts {
            if let Some((unix_ms, _)) = self.releases.get(code) {
                hold.to_ms = *unix_ms;
            }
            self.holds_of_item.entry(hold.item.0).or_default().push(*hold);
            self.holds_of_user.entry(hold.user.0).or_default().push(*hold);
        }
    }

    /// From when to when a sale was the current one.
    pub fn span_of(&self, sale: SaleId) -> (u64, u64) {
        let next = self.sales.range(SaleId(sale.0 + 1)..).next();
        (self.sales.get(&sale).copied().unwrap_or(0), next.map_or(u64::MAX, |(_, since_ms)| *since_ms))
    }

    pub fn newest_sale_since_ms(&self) -> u64 {
        self.sales.last_key_value().map_or(0, |(_, since_ms)| *since_ms)
    }

    /// Whether all records are of this time: else the server's clock was not ours.
    pub fn is_timed_within(&self, from_ms: u64, to_ms: u64) -> bool {
        from_ms <= self.earliest_ms && self.latest_ms <= to_ms
    }
}
