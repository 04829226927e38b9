//! Turns records into rows, in the format of PostgreSQL's binary COPY.
//!
//! Format: PostgreSQL manual, "COPY, Binary Format". Every field that comes from a client has a fixed width, so no
//! value of a client can make a batch invalid. Texts come from the plan only.

use crate::plan::planned_sale::{Product, Units};
use crate::sale::ids::SaleId;
use crate::sale::record::{LogEvent, Record, SaleTimes};
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Microseconds from the Unix epoch to the epoch of PostgreSQL, 2000-01-01.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// Object id of the type `text`, in the array of names.
const TEXT_TYPE: u32 = 25;

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

    fn text(&mut self, text: Option<&str>) {
        match text {
            Some(text) => {
                self.bytes.put_i32(text.len() as i32);
                self.bytes.put_slice(text.as_bytes());
            }
            None => self.null(),
        }
    }

    /// Format: `array_recv` of PostgreSQL: dimensions, whether it has nulls, type, length, first index, elements.
    fn texts(&mut self, texts: &[String]) {
        let bytes = 20 + texts.iter().map(|text| 4 + text.len()).sum::<usize>();
        self.bytes.reserve(4 + bytes);
        self.bytes.put_i32(bytes as i32);
        [1, 0, TEXT_TYPE, texts.len() as u32, 1].into_iter().for_each(|number| self.bytes.put_u32(number));
        texts.iter().for_each(|text| self.text(Some(text)));
    }

    /// Adds the row of a product of a sale.
    pub fn add_product(&mut self, sale: SaleId, product: &Product) {
        self.begin(8);
        self.int8(sale.0.into());
        self.text(Some(&product.id));
        self.int4(product.first);
        self.int4(product.units.count());
        self.text(Some(&product.name));
        self.text(product.price.as_deref());
        self.text(product.image.as_deref());
        match &product.units {
            Units::Quantity(_) => self.null(),
            Units::Named(names) => self.texts(names),
        }
    }

    /// Returns the bytes so far. The message goes on with those that follow.
    pub fn take(&mut self) -> Bytes {
        self.bytes.split().freeze()
    }

    /// Appends the trailer, and returns the complete message, or the rest of it.
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
    use crate::sale::ids::{ItemId, UserId};
    use crate::sale::product_ranges::ProductId;

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

    #[test]
    fn a_product_is_laid_out_as_postgres_reads_it() {
        let product = |units| Product {
            id: "a".into(),
            name: "Ä".into(),
            image: None,
            price: Some("9".into()),
            units,
            first: 7,
            number: ProductId::FIRST,
        };
        let mut rows = CopyRows::default();
        rows.add_product(SaleId(3), &product(Units::Named(vec!["A1".into(), "B".into()])));
        let first = rows.take();
        rows.add_product(SaleId(3), &product(Units::Quantity(5)));
        let mut expected = b"PGCOPY\n\xff\r\n\0".to_vec();
        expected.extend([0; 8]);
        let row = |items: u8, units: &[u8]| {
            let fields = [
                &[0, 8, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, b'a'][..],
                &[0, 0, 0, 4, 0, 0, 0, 7, 0, 0, 0, 4, 0, 0, 0, items],
                &[0, 0, 0, 2, 0xc3, 0x84, 0, 0, 0, 1, b'9', 255, 255, 255, 255],
                units,
            ];
            fields.concat()
        };
        let of_array = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 25, 0, 0, 0, 2, 0, 0, 0, 1];
        let names = [0, 0, 0, 2, b'A', b'1', 0, 0, 0, 1, b'B'];
        expected.extend(row(2, &[&[0, 0, 0, 31], &of_array[..], &names].concat()));
        assert_eq!(first, expected);
        assert_eq!(rows.finish(), [row(5, &[255; 4]), vec![255, 255]].concat());
    }
}
