//! Turns records into rows, in the format of PostgreSQL's binary COPY.
//!
//! Format: PostgreSQL manual, "COPY, Binary Format". Every field that comes from a client has a fixed width, so no
//! value of a client can make a batch invalid.

use crate::sale::record::{LogEvent, Record, SaleTimes};
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Microseconds from the Unix epoch to the epoch of PostgreSQL, 2000-01-01.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// Rows of one table, as one binary COPY message.
#[derive(Default)]
pub struct CopyRows {
    bytes: BytesMut,
    rows: u64,
}

impl CopyRows {
    /// Returns the number of rows.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    fn begin(&mut self, fields: i16) {
        if self.rows == 0 {
            // Signature, flags, length of the header's extension.
            self.bytes.put_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
        }
        self.rows += 1;
        self.bytes.put_i16(fields);
    }

    fn int8(&mut self, value: i64) {
        self.bytes.put_i32(8);
        self.bytes.put_i64(value);
    }

    fn int4(&mut self, value: u32) {
        self.bytes.put_i32(4);
        self.bytes.put_i32(value as i32);
    }

    fn int2(&mut self, value: i16) {
        self.bytes.put_i32(2);
        self.bytes.put_i16(value);
    }

    fn uuid(&mut self, value: &[u8; 16]) {
        self.bytes.put_i32(16);
        self.bytes.put_slice(value);
    }

    fn time(&mut self, unix_ms: u64) {
        self.int8(unix_ms as i64 * 1000 - POSTGRES_EPOCH_US);
    }

    fn null(&mut self) {
        self.bytes.put_i32(-1);
    }

    fn key(&mut self, key: Uuid) {
        if key.is_nil() { self.null() } else { self.uuid(key.as_bytes()) }
    }

    /// Appends the trailer, and returns the complete message.
    pub fn finish(mut self) -> Bytes {
        self.bytes.put_i16(-1);
        self.bytes.freeze()
    }
}

/// The row of a sale that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenedSale {
    /// Number of items in the stock.
    pub items: u32,
    /// Largest number of items per user.
    pub user_limit: u32,
    /// Time of the record, in milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// When the sale opens and closes.
    pub times: Option<SaleTimes>,
    /// Fingerprint of the products.
    pub products: u64,
}

/// The rows of one transaction.
#[derive(Default)]
pub struct Rows {
    /// Rows of `checkouts`.
    pub checkouts: CopyRows,
    /// Rows of `purchases`.
    pub purchases: CopyRows,
    /// Rows of `releases`.
    pub releases: CopyRows,
    /// Rows of `extensions`.
    pub extensions: CopyRows,
    /// Sales that begin, by id. Each shard has a record of it.
    pub opened: BTreeMap<u32, OpenedSale>,
    /// Ids of all sales that have a record in this transaction.
    pub sales: BTreeSet<u32>,
}

impl Rows {
    /// Adds the row of a record. A [`LogEvent::RestoredFromPostgres`] has no row.
    pub fn add(&mut self, record: &Record) {
        let (sale, at) = (i64::from(record.sale.0), record.unix_ms);
        self.sales.insert(record.sale.0);
        match record.event {
            LogEvent::SaleOpened { items, user_limit, times, products } => {
                let opened = OpenedSale { items, user_limit, unix_ms: at, times, products };
                self.opened.entry(record.sale.0).or_insert(opened);
            }
            LogEvent::Checkout { item, user, code, ttl_ms, key } => {
                let row = &mut self.checkouts;
                row.begin(8);
                row.int8(sale);
                row.int4(item.0);
                row.int8(user.0);
                row.uuid(code.as_bytes());
                row.int2(0);
                row.time(at);
                row.time(at + u64::from(ttl_ms));
                row.key(key);
            }
            LogEvent::Refused { item, user, reason } => {
                let row = &mut self.checkouts;
                row.begin(8);
                row.int8(sale);
                match item {
                    Some(item) => row.int4(item.0),
                    None => row.null(),
                }
                row.int8(user.0);
                row.null();
                row.int2(reason as i16 + 1);
                row.time(at);
                row.null();
                row.null();
            }
            LogEvent::Released { item, user, code, reason } => {
                let row = &mut self.releases;
                row.begin(6);
                row.int8(sale);
                row.int4(item.0);
                row.int8(user.0);
                row.uuid(code.as_bytes());
                row.int2(reason as i16 + 1);
                row.time(at);
            }
            LogEvent::Extended { item, user, code, by_ms } => {
                let row = &mut self.extensions;
                row.begin(6);
                row.int8(sale);
                row.int4(item.0);
                row.int8(user.0);
                row.uuid(code.as_bytes());
                row.int4(by_ms);
                row.time(at);
            }
            LogEvent::RestoredFromPostgres => {}
            LogEvent::Purchase { item, user, code, key } => {
                let row = &mut self.purchases;
                row.begin(6);
                row.int8(sale);
                row.int4(item.0);
                row.int8(user.0);
                row.uuid(code.as_bytes());
                row.time(at);
                row.key(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale::code::Code;
    use crate::sale::ids::{ItemId, SaleId, UserId};

    #[test]
    fn rows_are_laid_out_as_postgres_reads_them() {
        let mut rows = Rows::default();
        let code = Code::from_bytes([7; 16]);
        let event = LogEvent::Purchase { item: ItemId(2), user: UserId(-3), code, key: Uuid::nil() };
        rows.add(&Record { sale: SaleId(1), unix_ms: 946_684_800_001, event });
        let mut expected = b"PGCOPY\n\xff\r\n\0".to_vec();
        expected.extend([0; 8]);
        expected.extend([0, 6]);
        expected.extend([0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
        expected.extend([0, 0, 0, 4, 0, 0, 0, 2]);
        expected.extend([0, 0, 0, 8, 255, 255, 255, 255, 255, 255, 255, 253]);
        expected.extend([0, 0, 0, 16]);
        expected.extend([7; 16]);
        expected.extend([0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 3, 232]);
        expected.extend([255; 4]);
        expected.extend([255, 255]);
        assert_eq!(rows.purchases.finish(), expected);
    }
}
