//! Records: what the logs remember, 64 bytes each, little-endian.
//!
//! ```text
//! offset  0  u8   kind
//!         1  u8   reason (of a release or a refusal), else 0
//!         2  u16  0
//!         4  u32  item            (SaleOpened: the stock)
//!         8  u32  sale
//!        12  u32  time to live, ms (Checkout; SaleOpened: the limit per user), else 0
//!        16  i64  user
//!        24  u64  when, ms since the Unix epoch
//!        32  [16] code, else 0
//!        48  [16] idempotency key's fingerprint (Purchase), else 0
//! ```

use crate::sale::code::Code;
use crate::sale::ids::{ItemId, SaleId, Terms, UserId};
use strum::{EnumCount, VariantArray};
use uuid::Uuid;

/// Bytes of one record.
pub const RECORD_BYTES: usize = 64;

/// Records in one block of a log. The shard reserves log space in blocks, so the rules know this number;
/// `log/block.rs` asserts that it is what fits.
pub const BLOCK_RECORDS: usize = 63;

/// Why a hold ended without a purchase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, VariantArray)]
pub enum ReleaseReason {
    /// Its time was up.
    Expired,
    /// Its holder gave it back.
    Cancelled,
}

impl ReleaseReason {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            ReleaseReason::Expired => "expired",
            ReleaseReason::Cancelled => "cancelled",
        }
    }
}

/// Why a checkout was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, VariantArray)]
pub enum RefusalReason {
    /// The item is sold.
    ItemSold,
    /// Somebody holds the item.
    ItemReserved,
    /// The user has reached the limit.
    UserLimit,
}

impl RefusalReason {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            RefusalReason::ItemSold => "item-sold",
            RefusalReason::ItemReserved => "item-reserved",
            RefusalReason::UserLimit => "user-limit",
        }
    }
}

/// What happened to which item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogEvent {
    /// A sale began on this shard, or this process took it over; its terms are frozen.
    SaleOpened {
        /// The stock.
        items: u32,
        /// Items per user.
        user_limit: u32,
    },
    /// What follows was brought from Postgres, which may have lagged behind: a release may be missing, on which a
    /// later checkout of the same user rested.
    TakenOver,
    /// An item was reserved.
    Checkout {
        /// Which.
        item: ItemId,
        /// For whom.
        user: UserId,
        /// What buys it.
        code: Code,
        /// For how long, from the record's time.
        ttl_ms: u32,
    },
    /// A hold ended.
    Released {
        /// Of which item.
        item: ItemId,
        /// Whose.
        user: UserId,
        /// Its code.
        code: Code,
        /// Why.
        reason: ReleaseReason,
    },
    /// An item was bought.
    Purchase {
        /// Which.
        item: ItemId,
        /// By whom.
        user: UserId,
        /// With which code.
        code: Code,
        /// Fingerprint of the idempotency key; nil when there was none.
        key: Uuid,
    },
    /// A checkout was refused.
    Refused {
        /// Of which item.
        item: ItemId,
        /// To whom.
        user: UserId,
        /// Why.
        reason: RefusalReason,
    },
}

/// One entry of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The sale it belongs to.
    pub sale: SaleId,
    /// When, in milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// What happened.
    pub event: LogEvent,
}

/// Bytes that are no record, though their checksum was right: another version's, or a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRecord {
    /// The kind byte found.
    pub kind: u8,
    /// The reason byte found.
    pub reason: u8,
}

impl Record {
    /// The record of `terms` beginning to apply.
    pub fn sale_opened(terms: &Terms, unix_ms: u64) -> Record {
        let event = LogEvent::SaleOpened { items: terms.items, user_limit: terms.user_limit };
        Record { sale: terms.sale, unix_ms, event }
    }

    /// The bytes of the layout above.
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut raw = RawRecord { sale: self.sale.0, unix_ms: self.unix_ms, ..RawRecord::default() };
        match self.event {
            LogEvent::SaleOpened { items, user_limit } => {
                (raw.kind, raw.item, raw.ttl_ms) = (1, items, user_limit);
            }
            LogEvent::TakenOver => raw.kind = 6,
            LogEvent::Checkout { item, user, code, ttl_ms } => {
                (raw.kind, raw.item, raw.user, raw.ttl_ms) = (2, item.0, user.0, ttl_ms);
                raw.code = *code.as_bytes();
            }
            LogEvent::Released { item, user, code, reason } => {
                (raw.kind, raw.item, raw.user) = (3, item.0, user.0);
                raw.code = *code.as_bytes();
                raw.reason = match reason {
                    ReleaseReason::Expired => 1,
                    ReleaseReason::Cancelled => 2,
                };
            }
            LogEvent::Purchase { item, user, code, key } => {
                (raw.kind, raw.item, raw.user) = (4, item.0, user.0);
                (raw.code, raw.key) = (*code.as_bytes(), key.into_bytes());
            }
            LogEvent::Refused { item, user, reason } => {
                (raw.kind, raw.item, raw.user) = (5, item.0, user.0);
                raw.reason = match reason {
                    RefusalReason::ItemSold => 1,
                    RefusalReason::ItemReserved => 2,
                    RefusalReason::UserLimit => 3,
                };
            }
        }
        raw.to_bytes()
    }

    /// Reads back what [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &[u8; RECORD_BYTES]) -> Result<Record, NoRecord> {
        let raw = RawRecord::from_bytes(bytes);
        let (item, user, code) = (ItemId(raw.item), UserId(raw.user), Code::from_bytes(raw.code));
        let event = match (raw.kind, raw.reason) {
            (1, 0) => LogEvent::SaleOpened { items: raw.item, user_limit: raw.ttl_ms },
            (2, 0) => LogEvent::Checkout { item, user, code, ttl_ms: raw.ttl_ms },
            (3, 1) => LogEvent::Released { item, user, code, reason: ReleaseReason::Expired },
            (3, 2) => LogEvent::Released { item, user, code, reason: ReleaseReason::Cancelled },
            (4, 0) => LogEvent::Purchase { item, user, code, key: Uuid::from_bytes(raw.key) },
            (5, 1) => LogEvent::Refused { item, user, reason: RefusalReason::ItemSold },
            (5, 2) => LogEvent::Refused { item, user, reason: RefusalReason::ItemReserved },
            (6, 0) => LogEvent::TakenOver,
            (5, 3) => LogEvent::Refused { item, user, reason: RefusalReason::UserLimit },
            (kind, reason) => return Err(NoRecord { kind, reason }),
        };
        Ok(Record { sale: SaleId(raw.sale), unix_ms: raw.unix_ms, event })
    }
}

/// The fields as they lie in the bytes.
#[derive(Default)]
struct RawRecord {
    kind: u8,
    reason: u8,
    item: u32,
    sale: u32,
    ttl_ms: u32,
    user: i64,
    unix_ms: u64,
    code: [u8; 16],
    key: [u8; 16],
}

impl RawRecord {
    fn to_bytes(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        (bytes[0], bytes[1]) = (self.kind, self.reason);
        bytes[4..8].copy_from_slice(&self.item.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.sale.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.ttl_ms.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.user.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.unix_ms.to_le_bytes());
        bytes[32..48].copy_from_slice(&self.code);
        bytes[48..64].copy_from_slice(&self.key);
        bytes
    }

    fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> RawRecord {
        RawRecord {
            kind: bytes[0],
            reason: bytes[1],
            item: u32::from_le_bytes(field(bytes, 4)),
            sale: u32::from_le_bytes(field(bytes, 8)),
            ttl_ms: u32::from_le_bytes(field(bytes, 12)),
            user: i64::from_le_bytes(field(bytes, 16)),
            unix_ms: u64::from_le_bytes(field(bytes, 24)),
            code: field(bytes, 32),
            key: field(bytes, 48),
        }
    }
}

/// The `N` bytes at `offset`.
pub(crate) fn field<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..offset + N].try_into().expect("the range has N bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_event() -> impl Strategy<Value = LogEvent> {
        let code = any::<[u8; 16]>().prop_map(Code::from_bytes);
        let of = (any::<u32>().prop_map(ItemId), any::<i64>().prop_map(UserId), code);
        prop_oneof![
            (any::<u32>(), any::<u32>()).prop_map(|(items, user_limit)| LogEvent::SaleOpened { items, user_limit }),
            (of.clone(), any::<u32>()).prop_map(|((item, user, code), ttl_ms)| LogEvent::Checkout {
                item,
                user,
                code,
                ttl_ms
            }),
            (of.clone(), prop_oneof![Just(ReleaseReason::Expired), Just(ReleaseReason::Cancelled)])
                .prop_map(|((item, user, code), reason)| LogEvent::Released { item, user, code, reason }),
            (of.clone(), any::<u128>()).prop_map(|((item, user, code), key)| LogEvent::Purchase {
                item,
                user,
                code,
                key: Uuid::from_u128(key)
            }),
            (
                of,
                prop_oneof![
                    Just(RefusalReason::ItemSold),
                    Just(RefusalReason::ItemReserved),
                    Just(RefusalReason::UserLimit)
                ]
            )
                .prop_map(|((item, user, _), reason)| LogEvent::Refused { item, user, reason }),
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
}
