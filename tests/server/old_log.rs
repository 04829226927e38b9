//! Writes the log of earlier runs into a data directory, for tests that need sales that have ended long ago, or more
//! records than a server writes during a test.

use stampede::log::block::{BLOCK_BYTES, Chain, LogKind, StreamId, StreamKey};
use stampede::log::segment::SegmentName;
use stampede::log::stream::{End, Ending};
use stampede::sale::code::CodeGenerator;
use stampede::sale::ids::{ItemId, SaleId, Terms, UserId};
use stampede::sale::record::{LogEvent, Record, RefusalReason, ReleaseReason};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use uuid::Uuid;

/// Length of a sale in seconds, as in `LONG_SALE`.
pub const PERIOD_S: u64 = 365 * 24 * 3600;

/// A data directory without a server.
pub struct OldLog {
    logs: PathBuf,
    cluster: Uuid,
    codes: CodeGenerator,
}

/// How a stream is cut into blocks and segments.
#[derive(Clone, Copy)]
pub struct Cut {
    pub records_per_block: usize,
    pub blocks_per_segment: u32,
    pub is_sealed: bool,
}

/// Returns the sale that is open now.
pub fn open_sale() -> SaleId {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    SaleId((now / PERIOD_S) as u32)
}

impl OldLog {
    /// Creates the data directory of an installation whose latest run was `epoch`.
    pub fn new(data_dir: &Path, epoch: u32) -> OldLog {
        let (logs, cluster) = (data_dir.join("log"), Uuid::from_u128(7));
        fs::create_dir_all(&logs).unwrap();
        let control = serde_json::json!({
            "format": 2, "cluster": cluster, "epoch": epoch, "sale_period_s": PERIOD_S, "longest_hold_ms": 0
        });
        fs::write(data_dir.join("control.json"), control.to_string()).unwrap();
        OldLog { logs, cluster, codes: CodeGenerator::new([9; 32]) }
    }

    /// Returns the records of a shard in a sale: the opening, then `items`, each reserved and bought by a user of its
    /// own, or reserved and released if its number is odd.
    pub fn purchases(&mut self, sale: SaleId, stock: u32, items: impl IntoIterator<Item = u32>) -> Vec<Record> {
        let unix_ms = u64::from(sale.0) * PERIOD_S * 1000 + 1;
        let opened = LogEvent::SaleOpened { items: stock, user_limit: 10, times: None, products: Terms::NO_PRODUCTS };
        let mut records = vec![Record { sale, unix_ms, event: opened }];
        for item in items {
            let (item, user) = (ItemId(item), UserId(1000 + i64::from(item)));
            let code = self.codes.mint(sale, item);
            let end = if item.0 % 2 == 0 {
                LogEvent::Purchase { item, user, code, key: Uuid::nil() }
            } else {
                LogEvent::Released { item, user, code, reason: ReleaseReason::Expired }
            };
            let checkout = LogEvent::Checkout { item, user, code, ttl_ms: 1, key: Uuid::nil() };
            records.extend([checkout, end].map(|event| Record { sale, unix_ms, event }));
        }
        records
    }

    /// Returns `count` refused checkouts of a sale.
    pub fn attempts(sale: SaleId, count: u32) -> impl Iterator<Item = Record> {
        let unix_ms = u64::from(sale.0) * PERIOD_S * 1000 + 1;
        let event = |user| LogEvent::Refused { item: Some(ItemId(0)), user, reason: RefusalReason::ItemSold };
        (0..count).map(move |user| Record { sale, unix_ms, event: event(UserId(i64::from(user))) })
    }

    /// Writes a stream. Each block is a flush of its own.
    pub fn write(&self, (log, epoch, shard): (LogKind, u32, u16), records: impl Iterator<Item = Record>, cut: Cut) {
        let stream: StreamId = StreamKey { log, epoch, shard }.of_cluster(self.cluster);
        let (mut chain, mut file) = (Chain::new(stream), None::<File>);
        let (mut records, mut left) = (records, 0);
        loop {
            let group: Vec<u8> = records.by_ref().take(cut.records_per_block).flat_map(|it| it.encode()).collect();
            if group.is_empty() && !cut.is_sealed {
                break;
            }
            if left == 0 {
                let name = SegmentName { stream, first_block: chain.blocks(), blocks: cut.blocks_per_segment };
                (file, left) = (Some(File::create_new(name.path(&self.logs)).unwrap()), cut.blocks_per_segment);
            }
            let file = file.as_mut().unwrap();
            if group.is_empty() {
                let (blocks, records, checksum) = (chain.blocks(), chain.records(), chain.checksum());
                let end = End { ending: Ending::Clean, blocks, records, checksum };
                return file.write_all(&end.seal(&stream)).unwrap();
            }
            let (mut block, flushed) = (vec![0; BLOCK_BYTES], chain.records());
            chain.extend(&mut block, &group, flushed);
            file.write_all(&block).unwrap();
            left -= 1;
        }
        if let Some(mut file) = file {
            file.write_all(&vec![0; left as usize * BLOCK_BYTES]).unwrap();
        }
    }
}
