//! The contents of the purchase logs in a data directory, read without changing them.

use stampede::log::block::LogKind;
use stampede::log::segment::SegmentName;
use stampede::log::stream_files::{Stopped, StreamFiles};
use stampede::sale::ids::{ItemId, SaleId, UserId};
use stampede::sale::record::{LogEvent, Record, ReleaseReason};
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::path::Path;

/// A reservation, from its checkout record to its release record. A purchased reservation has no end: `to_ms` is
/// `u64::MAX`. `expires_ms` is the end that the checkout promised, with the extension if there is one.
#[derive(Clone, Copy, Debug)]
pub struct Hold {
    pub sale: SaleId,
    pub item: ItemId,
    pub user: UserId,
    pub from_ms: u64,
    pub to_ms: u64,
    pub expires_ms: u64,
}

/// Contents of the purchase logs of all runs.
#[derive(Default)]
pub struct Log {
    /// Granted checkouts, by code.
    pub checkouts: HashMap<String, Hold>,
    pub purchases: HashMap<String, Hold>,
    pub releases: HashMap<String, (u64, ReleaseReason)>,
    /// Milliseconds by which holds were extended, by code.
    pub extensions: HashMap<String, u64>,
    pub holds_of_item: HashMap<u32, Vec<Hold>>,
    pub holds_of_user: HashMap<i64, Vec<Hold>>,
    /// Sale and Unix time in milliseconds of each purchase, by item.
    pub sold: HashMap<u32, Vec<(SaleId, u64)>>,
    /// Start of each sale, as a Unix time in milliseconds.
    sales: BTreeMap<SaleId, u64>,
    pub user_limit: u32,
    /// No record has been removed since the first run.
    pub is_whole: bool,
    /// The newest sale of which records were removed: the one in which a stream begins whose beginning was removed.
    newest_partial: Option<SaleId>,
    /// Part of the state was restored from Postgres.
    pub is_taken_over: bool,
    earliest_ms: u64,
    latest_ms: u64,
}

impl Log {
    /// Reads the purchase logs of a data directory. Returns `None` if the directory has no log.
    pub fn read(data_dir: &Path) -> Option<Log> {
        let control = std::fs::read(data_dir.join("control.json")).ok()?;
        let control: serde_json::Value = serde_json::from_slice(&control).expect("control.json is JSON");
        let cluster = control["cluster"].as_str().and_then(|id| id.parse().ok()).expect("a cluster id");
        let dir = data_dir.join("log");
        let mut streams: BTreeMap<(u32, u16), Vec<SegmentName>> = BTreeMap::new();
        for entry in std::fs::read_dir(&dir).ok()?.map(|entry| entry.expect("the directory can be listed")) {
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
            let (is_cut, records_before) = (names[0].first_block > 0, records.len());
            log.is_whole &= !is_cut;
            let visit = |_, record: &Record| {
                records.push(*record);
                Ok::<(), Infallible>(())
            };
            match StreamFiles::new(&dir, names[0].stream).pass(names, |_, _| false, visit) {
                Ok(()) => {}
                Err(Stopped::Damaged(damage)) => panic!("{damage}"),
                Err(Stopped::Unreadable(error)) => panic!("{error}"),
                Err(Stopped::Refused(never)) => match never {},
            }
            if is_cut {
                let first = records.get(records_before);
                let first = first.filter(|record| !matches!(record.event, LogEvent::SaleOpened { .. }));
                log.newest_partial = log.newest_partial.max(first.map(|record| record.sale));
            }
        }
        let epochs = streams.keys().map(|(epoch, _)| *epoch);
        log.is_whole &= epochs.min() == Some(1);
        // Streams are sorted by run. Within a run, all records of an item are in one stream. So the records of each
        // item are in order.
        records.iter().for_each(|record| log.add(record));
        log.note_holds();
        Some(log)
    }

    fn add(&mut self, &Record { sale, unix_ms, event }: &Record) {
        self.earliest_ms = if self.latest_ms == 0 { unix_ms } else { self.earliest_ms.min(unix_ms) };
        self.latest_ms = self.latest_ms.max(unix_ms);
        match event {
            LogEvent::SaleOpened { user_limit, .. } => {
                let since_ms = self.sales.entry(sale).or_insert(unix_ms);
                *since_ms = unix_ms.min(*since_ms);
                self.user_limit = if self.user_limit == 0 { user_limit } else { self.user_limit.min(user_limit) };
            }
            LogEvent::RestoredFromPostgres => self.is_taken_over = true,
            LogEvent::Checkout { item, user, code, ttl_ms, .. } => {
                let expires_ms = unix_ms + u64::from(ttl_ms);
                let hold = Hold { sale, item, user, from_ms: unix_ms, to_ms: u64::MAX, expires_ms };
                let other = self.checkouts.insert(code.to_string(), hold);
                assert!(other.is_none(), "a code was issued twice: {hold:?}");
            }
            LogEvent::Purchase { item, user, code, .. } => {
                let sold = self.sold.entry(item.0).or_default();
                assert!(sold.iter().all(|(other, _)| *other != sale), "item {item:?} was sold twice in {sale:?}");
                sold.push((sale, unix_ms));
                let hold = Hold { sale, item, user, from_ms: unix_ms, to_ms: u64::MAX, expires_ms: u64::MAX };
                self.purchases.insert(code.to_string(), hold);
            }
            LogEvent::Released { code, reason, .. } => _ = self.releases.insert(code.to_string(), (unix_ms, reason)),
            LogEvent::Extended { code, by_ms, .. } => {
                let other = self.extensions.insert(code.to_string(), u64::from(by_ms));
                assert!(other.is_none(), "a hold was extended twice");
            }
            LogEvent::Refused { .. } => panic!("a refusal in the purchase log"),
        }
    }

    fn note_holds(&mut self) {
        for (code, hold) in &mut self.checkouts {
            if let Some((unix_ms, _)) = self.releases.get(code) {
                hold.to_ms = *unix_ms;
            }
            hold.expires_ms += self.extensions.get(code).copied().unwrap_or(0);
            self.holds_of_item.entry(hold.item.0).or_default().push(*hold);
            self.holds_of_user.entry(hold.user.0).or_default().push(*hold);
        }
    }

    /// Returns the start and the end of a sale, as Unix times in milliseconds.
    pub fn span_of(&self, sale: SaleId) -> (u64, u64) {
        let next = self.sales.range(SaleId(sale.0 + 1)..).next();
        (self.sales.get(&sale).copied().unwrap_or(0), next.map_or(u64::MAX, |(_, since_ms)| *since_ms))
    }

    /// Returns whether the log has all records of this sale and of later ones.
    pub fn is_whole_since(&self, sale: SaleId) -> bool {
        self.is_whole || self.newest_partial < Some(sale)
    }

    /// Returns the newest sale and its start, as a Unix time in milliseconds.
    pub fn newest_sale(&self) -> (SaleId, u64) {
        self.sales.last_key_value().map_or((SaleId(0), 0), |(sale, since_ms)| (*sale, *since_ms))
    }

    /// Returns whether all records have timestamps in this range. If not, the server's clock was not the test's clock.
    pub fn is_timed_within(&self, from_ms: u64, to_ms: u64) -> bool {
        from_ms <= self.earliest_ms && self.latest_ms <= to_ms
    }
}
