//! Records: the entries of the logs, 64 bytes each, little-endian.
//!
//! ```text
//! offset  0  u8   kind
//!         1  u8   reason (of a release or a refusal), else 0
//!         2  u16  0
//!         4  u32  item            (SaleOpened: the stock; Refused: 2^32 - 1 if any item was asked for)
//!         8  u32  sale
//!        12  u32  time to live, ms (Checkout; Extended: the time added; SaleOpened: the limit per user), else 0
//!        16  i64  user            (SaleOpened: the fingerprint of the products)
//!        24  u64  time, ms since the Unix epoch
//!        32  [16] code            (SaleOpened: u64 opening time, u64 closing time, ms since the Unix epoch), else 0
//!        48  [16] fingerprint of the idempotency key (Checkout, Purchase), else 0
//! ```
//!
//! Versions before 0.2 left the times and the products of a sale 0.

use crate::sale::code::Code;
use crate::sale::ids::{ItemId, SaleId, Terms, UserId};
use strum::{EnumCount, FromRepr, IntoStaticStr, VariantArray};
use uuid::Uuid;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, transmute};

/// Size of a record, in bytes.
pub const RECORD_BYTES: usize = 64;

/// Number of records that fit into one block of a log. The rules know it because a shard reserves log space in blocks;
/// `log/block.rs` asserts that it is right.
pub const BLOCK_RECORDS: usize = 63;

/// Reason why a hold ended without a purchase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, FromRepr, IntoStaticStr, VariantArray)]
#[repr(u8)]
#[strum(serialize_all = "kebab-case")]
pub enum ReleaseReason {
    /// The time of the hold was over.
    Expired,
    /// The holder cancelled.
    Cancelled,
}

impl ReleaseReason {
    /// Returns the name of the reason in metrics and in the output of `stampede log`.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// Reason why a checkout was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, FromRepr, IntoStaticStr, VariantArray)]
#[repr(u8)]
#[strum(serialize_all = "kebab-case")]
pub enum RefusalReason {
    /// The item is sold, or if the checkout asked for any item: all are.
    ItemSold,
    /// The item is claimed, held, or being bought, or if the checkout asked for any item: none is free.
    ItemReserved,
    /// The user's quota is used up.
    UserLimit,
}

impl RefusalReason {
    /// Returns the name of the reason in metrics and in the output of `stampede log`.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Returns the name of the reason if the checkout asked for any item.
    pub fn name_of_any(self) -> &'static str {
        match self {
            RefusalReason::ItemSold => "sold-out",
            RefusalReason::ItemReserved => "all-reserved",
            RefusalReason::UserLimit => self.name(),
        }
    }
}

/// Item in the record of a refused checkout that asked for any item. No item has this number.
const ANY_ITEM: u32 = u32::MAX;

/// When a sale opens and closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaleTimes {
    /// Opening time, in milliseconds since the Unix epoch.
    pub opens_ms: u64,
    /// Closing time, in milliseconds since the Unix epoch. Not 0.
    pub closes_ms: u64,
}

/// The event that a record describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogEvent {
    /// A sale began on this shard, or a new run of the server continues it. The terms are those of the whole sale.
    /// Records of the sales before it may follow, until the last of their holds has ended.
    SaleOpened {
        /// Number of items in the stock.
        items: u32,
        /// Largest number of items per user.
        user_limit: u32,
        /// When the sale opens and closes. `None` if an earlier version wrote the record.
        times: Option<SaleTimes>,
        /// Fingerprint of the products, or [`Terms::NO_PRODUCTS`].
        products: u64,
    },
    /// The records that follow were copied from Postgres, which may have lacked the latest records of the lost log. A
    /// release may be missing that a later checkout of the same user relied on, so users may exceed the limit.
    RestoredFromPostgres,
    /// An item was reserved.
    Checkout {
        /// The item.
        item: ItemId,
        /// User who holds the item.
        user: UserId,
        /// Code that buys or releases the item.
        code: Code,
        /// Duration of the hold in milliseconds, from the record's time on.
        ttl_ms: u32,
        /// Fingerprint of the idempotency key; nil if there is none, or if version 0.1 wrote the record.
        key: Uuid,
    },
    /// A hold was extended.
    Extended {
        /// The item.
        item: ItemId,
        /// User who holds the item.
        user: UserId,
        /// Code of the hold.
        code: Code,
        /// Time by which the hold lasts longer, in milliseconds.
        by_ms: u32,
    },
    /// A hold ended.
    Released {
        /// The item.
        item: ItemId,
        /// User who held the item.
        user: UserId,
        /// Code of the hold.
        code: Code,
        /// Reason for the end.
        reason: ReleaseReason,
    },
    /// An item was bought.
    Purchase {
        /// The item.
        item: ItemId,
        /// The buyer.
        user: UserId,
        /// Code of the hold.
        code: Code,
        /// Fingerprint of the idempotency key; nil if there is none.
        key: Uuid,
    },
    /// A checkout was refused.
    Refused {
        /// The requested item. `None` if the checkout asked for any item.
        item: Option<ItemId>,
        /// User who was refused.
        user: UserId,
        /// Reason for the refusal.
        reason: RefusalReason,
    },
}

/// One record of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Sale of the event.
    pub sale: SaleId,
    /// Time of the event, in milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// The event.
    pub event: LogEvent,
}

/// Bytes of an intact block that are not a record: another version wrote them, or a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownRecord {
    /// Kind byte found.
    pub kind: u8,
    /// Reason byte found.
    pub reason: u8,
}

impl Record {
    /// Returns the record that opens the sale with these `terms`.
    pub fn sale_opened(terms: &Terms, unix_ms: u64) -> Record {
        let &Terms { sale, items, user_limit, opens_ms, closes_ms, products, .. } = terms;
        let products = products.fingerprint();
        let times = Some(SaleTimes { opens_ms, closes_ms });
        Record { sale, unix_ms, event: LogEvent::SaleOpened { items, user_limit, times, products } }
    }

    /// Encodes the record in the layout that this module describes.
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut raw = RawRecord { sale: self.sale.0.into(), unix_ms: self.unix_ms.into(), ..RawRecord::default() };
        match self.event {
            LogEvent::SaleOpened { items, user_limit, times, products } => {
                (raw.kind, raw.item, raw.ttl_ms) = (1, items.into(), user_limit.into());
                raw.user = (products as i64).into();
                if let Some(SaleTimes { opens_ms, closes_ms }) = times {
                    raw.code = transmute!([U64::new(opens_ms), U64::new(closes_ms)]);
                }
            }
            LogEvent::RestoredFromPostgres => raw.kind = 6,
            LogEvent::Checkout { item, user, code, ttl_ms, key } => {
                (raw.kind, raw.item, raw.user, raw.ttl_ms) = (2, item.0.into(), user.0.into(), ttl_ms.into());
                (raw.code, raw.key) = (*code.as_bytes(), *key.as_bytes());
            }
            LogEvent::Extended { item, user, code, by_ms } => {
                (raw.kind, raw.item, raw.user, raw.ttl_ms) = (7, item.0.into(), user.0.into(), by_ms.into());
                raw.code = *code.as_bytes();
            }
            LogEvent::Released { item, user, code, reason } => {
                (raw.kind, raw.item, raw.user) = (3, item.0.into(), user.0.into());
                raw.code = *code.as_bytes();
                raw.reason = reason as u8 + 1;
            }
            LogEvent::Purchase { item, user, code, key } => {
                (raw.kind, raw.item, raw.user) = (4, item.0.into(), user.0.into());
                (raw.code, raw.key) = (*code.as_bytes(), key.into_bytes());
            }
            LogEvent::Refused { item, user, reason } => {
                (raw.kind, raw.user) = (5, user.0.into());
                raw.item = item.map_or(ANY_ITEM, |item| item.0).into();
                raw.reason = reason as u8 + 1;
            }
        }
        transmute!(raw)
    }

    /// Decodes the bytes that [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// [`UnknownRecord`] if the combination of kind and reason is unknown.
    pub fn decode(bytes: &[u8; RECORD_BYTES]) -> Result<Record, UnknownRecord> {
        let raw: RawRecord = transmute!(*bytes);
        let (item, user, code) = (ItemId(raw.item.get()), UserId(raw.user.get()), Code::from_bytes(raw.code));
        let key = Uuid::from_bytes(raw.key);
        let release = ReleaseReason::from_repr(raw.reason.wrapping_sub(1));
        let refusal = RefusalReason::from_repr(raw.reason.wrapping_sub(1));
        let event = match (raw.kind, raw.reason, release, refusal) {
            (1, 0, ..) => {
                let [opens_ms, closes_ms]: [U64; 2] = transmute!(raw.code);
                let times = SaleTimes { opens_ms: opens_ms.get(), closes_ms: closes_ms.get() };
                let times = Some(times).filter(|times| times.closes_ms > 0);
                let (items, user_limit, products) = (raw.item.get(), raw.ttl_ms.get(), raw.user.get() as u64);
                LogEvent::SaleOpened { items, user_limit, times, products }
            }
            (2, 0, ..) => LogEvent::Checkout { item, user, code, ttl_ms: raw.ttl_ms.get(), key },
            (3, _, Some(reason), _) => LogEvent::Released { item, user, code, reason },
            (4, 0, ..) => LogEvent::Purchase { item, user, code, key },
            (5, .., Some(reason)) => {
                LogEvent::Refused { item: Some(item).filter(|item| item.0 != ANY_ITEM), user, reason }
            }
            (6, 0, ..) => LogEvent::RestoredFromPostgres,
            (7, 0, ..) => LogEvent::Extended { item, user, code, by_ms: raw.ttl_ms.get() },
            (kind, reason, ..) => return Err(UnknownRecord { kind, reason }),
        };
        Ok(Record { sale: SaleId(raw.sale.get()), unix_ms: raw.unix_ms.get(), event })
    }
}

/// The layout of a record.
#[derive(Default, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
struct RawRecord {
    kind: u8,
    reason: u8,
    reserved: U16,
    item: U32,
    sale: U32,
    ttl_ms: U32,
    user: I64,
    unix_ms: U64,
    code: [u8; 16],
    key: [u8; 16],
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_event() -> impl Strategy<Value = LogEvent> {
        let code = any::<[u8; 16]>().prop_map(Code::from_bytes);
        let times = (any::<u64>(), 1..=u64::MAX).prop_map(|(opens_ms, closes_ms)| SaleTimes { opens_ms, closes_ms });
        let times = prop::option::of(times);
        let of = (any::<u32>().prop_map(ItemId), any::<i64>().prop_map(UserId), code);
        prop_oneof![
            (any::<u32>(), any::<u32>(), times, any::<u64>()).prop_map(|(items, user_limit, times, products)| {
                LogEvent::SaleOpened { items, user_limit, times, products }
            }),
            (of.clone(), any::<u32>(), any::<u128>()).prop_map(|((item, user, code), ttl_ms, key)| {
                LogEvent::Checkout { item, user, code, ttl_ms, key: Uuid::from_u128(key) }
            }),
            (of.clone(), any::<u32>()).prop_map(|((item, user, code), by_ms)| LogEvent::Extended {
                item,
                user,
                code,
                by_ms
            }),
            (of.clone(), prop::sample::select(ReleaseReason::VARIANTS))
                .prop_map(|((item, user, code), reason)| LogEvent::Released { item, user, code, reason }),
            (of.clone(), any::<u128>()).prop_map(|((item, user, code), key)| LogEvent::Purchase {
                item,
                user,
                code,
                key: Uuid::from_u128(key)
            }),
            (of, prop::sample::select(RefusalReason::VARIANTS)).prop_map(|((item, user, _), reason)| {
                LogEvent::Refused { item: (item.0 % 4 == 0).then_some(item), user, reason }
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_record_is_read_back(sale: u32, unix_ms: u64, event in any_event()) {
            let record = Record { sale: SaleId(sale), unix_ms, event };
            prop_assert_eq!(Record::decode(&record.encode()), Ok(record));
        }

        #[test]
        fn any_bytes_are_a_record_or_an_error(bytes in prop::array::uniform32(any::<[u8; 2]>())) {
            let _ = Record::decode(bytes.as_flattened().try_into().unwrap());
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let event = LogEvent::Purchase {
            item: ItemId(0x0403_0201),
            user: UserId(0x0807_0605_0403_0201),
            code: Code::from_bytes([0xcc; 16]),
            key: Uuid::from_bytes([0xee; 16]),
        };
        let record = Record { sale: SaleId(0x0d0c_0b0a), unix_ms: 0x1716_1514_1312_1110, event };
        let mut expected = vec![4, 0, 0, 0, 1, 2, 3, 4, 0x0a, 0x0b, 0x0c, 0x0d, 0, 0, 0, 0];
        expected.extend([1, 2, 3, 4, 5, 6, 7, 8, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17]);
        expected.extend([0xcc; 16]);
        expected.extend([0xee; 16]);
        assert_eq!(record.encode().as_slice(), expected);
    }

    #[test]
    fn the_layout_of_an_opening_is_pinned() {
        let times = Some(SaleTimes { opens_ms: 0x0807_0605_0403_0201, closes_ms: 0x2827_2625_2423_2221 });
        let event = LogEvent::SaleOpened { items: 0x0403_0201, user_limit: 7, times, products: 0xf8f7_f6f5_f4f3_f2f1 };
        let mut expected = vec![1, 0, 0, 0, 1, 2, 3, 4, 9, 0, 0, 0, 7, 0, 0, 0];
        expected.extend([0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 5, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([1, 2, 3, 4, 5, 6, 7, 8, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28]);
        expected.extend([0; 16]);
        assert_eq!(Record { sale: SaleId(9), unix_ms: 5, event }.encode().as_slice(), expected);
        // A record of version 0.1 has neither times nor products.
        expected[16..24].fill(0);
        expected[32..48].fill(0);
        let old = LogEvent::SaleOpened { items: 0x0403_0201, user_limit: 7, times: None, products: Terms::NO_PRODUCTS };
        assert_eq!(Record::decode(expected.as_slice().try_into().unwrap()).unwrap().event, old);
    }
}
