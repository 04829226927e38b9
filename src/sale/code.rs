//! Reservation codes: UUIDs from which the sale and the item are computed.
//!
//! A code is a version 8 UUID (RFC 9562 §5.8). Its 122 free bits are, from the most significant one on: the item (24),
//! the low bits of the sale (16), and random bits (82). They do not depend on the stock or on any setting. Therefore:
//!
//! - The sale, the item and its owner are computed from the code, without a lookup.
//! - A code of one of the 2^15 sales before the newest one is recognised as such: 3.7 years of hourly sales.
//! - Guessing the code of a given hold takes 2^81 attempts on average.
//!
//! A code is valid only if it equals the code stored in its slot. The other bits say only which slot that is.

use crate::sale::ids::{ItemId, SaleId};
use rand_chacha::{
    ChaCha12Rng,
    rand_core::{Rng, SeedableRng},
};
use std::fmt;
use uuid::Uuid;

const ITEM_BITS: u32 = 24;
const SALE_BITS: u32 = 16;
const RANDOM_BITS: u32 = 82;
const _: () = assert!(ITEM_BITS + SALE_BITS + RANDOM_BITS == 122);

/// The largest stock, in items: as many as a code can tell apart.
pub const ITEMS_MAX: u32 = 1 << ITEM_BITS;

/// Number of sales before the newest one that a code tells from later ones: half of those that its bits tell apart.
pub const SALES_BACK_MAX: u16 = 1 << (SALE_BITS - 1);

/// A reservation code.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code([u8; 16]);

/// The sale and the item that a code names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodePlace {
    /// The low bits of the sale's id.
    pub sale_low: u16,
    /// The item, which the sale may not have.
    pub item: ItemId,
}

impl CodePlace {
    /// Returns whether `sale` is the sale that the code names, or one that differs from it by a multiple of 2^16.
    pub fn is_in(&self, sale: SaleId) -> bool {
        sale.0 as u16 == self.sale_low
    }

    /// Returns how many sales before `newest` the sale of the code is, modulo 2^16.
    pub fn sales_before(&self, newest: SaleId) -> u16 {
        (newest.0 as u16).wrapping_sub(self.sale_low)
    }
}

impl Code {
    /// The code of a slot that has not had a hold. It is not a version 8 UUID, so it leads to no item if a client
    /// presents it.
    pub const NONE: Code = Code([0; 16]);

    /// Length of a code's canonical spelling, in bytes.
    pub const TEXT_BYTES: usize = 36;

    fn new(sale: SaleId, item: ItemId, random: u128) -> Code {
        debug_assert!(item.0 < ITEMS_MAX, "an item number has 24 bits");
        let place = u128::from(item.0) << SALE_BITS | u128::from(sale.0 as u16);
        let bits = place << RANDOM_BITS | random & ((1 << RANDOM_BITS) - 1);
        // RFC 9562 §5.8: custom_a (48) | version (4) | custom_b (12) | variant (2) | custom_c (62).
        let custom_a = bits >> 74;
        let custom_b = bits >> 62 & 0xfff;
        let custom_c = bits & ((1 << 62) - 1);
        Code((custom_a << 80 | 8 << 76 | custom_b << 64 | 0b10 << 62 | custom_c).to_be_bytes())
    }

    /// Parses a code of 36 characters with hyphens, in upper or lower case (RFC 9562 §4). Answers have lower case.
    pub fn parse(text: &[u8]) -> Option<Code> {
        let uuid = Some(text).filter(|text| text.len() == Self::TEXT_BYTES).map(Uuid::try_parse_ascii);
        uuid?.ok().map(|uuid| Code(uuid.into_bytes()))
    }

    /// Writes the spelling that [`parse`](Self::parse) accepts into `buffer`, and returns it.
    pub fn write<'a>(&self, buffer: &'a mut [u8; Self::TEXT_BYTES]) -> &'a str {
        Uuid::from_bytes(self.0).hyphenated().encode_lower(buffer)
    }

    /// Returns the sale and the item that this code names. Returns `None` for a UUID of another version or variant,
    /// which is no code.
    pub fn place(&self) -> Option<CodePlace> {
        let word = u128::from_be_bytes(self.0);
        let is_code = word >> 76 & 0xf == 8 && word >> 62 & 0b11 == 0b10;
        // Both are in custom_a, which the version and the variant do not interrupt.
        is_code.then_some(CodePlace { sale_low: (word >> 88) as u16, item: ItemId((word >> 104) as u32) })
    }

    /// Returns the 16 bytes that a record contains.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Returns the code with these 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Code {
        Code(bytes)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A generator of codes. Its random bits depend only on the seed, so that a simulated run can be repeated.
pub struct CodeGenerator(ChaCha12Rng);

impl CodeGenerator {
    /// Creates a generator. `seed` must come from the operating system, except in tests.
    pub fn new(seed: [u8; 32]) -> Self {
        CodeGenerator(ChaCha12Rng::from_seed(seed))
    }

    /// Mints a new code for `item` of `sale`.
    pub fn mint(&mut self, sale: SaleId, item: ItemId) -> Code {
        let random = u128::from(self.0.next_u64()) << 32 | u128::from(self.0.next_u32());
        Code::new(sale, item, random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_code_leads_back_to_its_sale_and_item(sale: u32, item in 0..ITEMS_MAX, seed: [u8; 32]) {
            let (sale, item) = (SaleId(sale), ItemId(item));
            let code = CodeGenerator::new(seed).mint(sale, item);
            let place = code.place().unwrap();
            prop_assert!(place.is_in(sale) && place.item == item);
            let text = code.to_string();
            prop_assert_eq!(Code::parse(text.as_bytes()), Some(code));
            let uuid = Uuid::parse_str(&text).unwrap();
            prop_assert_eq!(uuid.get_version_num(), 8);
            prop_assert_eq!(uuid.get_variant(), uuid::Variant::RFC4122);
        }

        #[test]
        fn the_age_of_a_code_is_known(sale: u32, back: u16, seed: [u8; 32]) {
            let old = SaleId(sale.wrapping_sub(u32::from(back)));
            let place = CodeGenerator::new(seed).mint(old, ItemId(9_999)).place().unwrap();
            prop_assert_eq!(place.sales_before(SaleId(sale)), back);
            prop_assert_eq!(place.is_in(SaleId(sale)), back == 0);
        }
    }

    #[test]
    fn the_fields_are_pinned() {
        let code = Code::new(SaleId(0xabcd_4455), ItemId(0x11_2233), (1 << RANDOM_BITS) - 1);
        assert_eq!(code.to_string(), "11223344-55ff-8fff-bfff-ffffffffffff");
    }

    #[test]
    fn other_uuids_lead_nowhere() {
        for text in ["00000000-0000-0000-0000-000000000000", "6ba7b810-9dad-41d1-80b4-00c04fd430c8"] {
            assert_eq!(Code::parse(text.as_bytes()).unwrap().place(), None);
        }
    }

    #[test]
    fn hyphens_are_needed_and_case_is_not() {
        let lower = Code::parse(b"6ba7b810-9dad-81d1-80b4-00c04fd430c8").unwrap();
        assert_eq!(Code::parse(b"6BA7B810-9DAD-81d1-80B4-00C04FD430C8"), Some(lower));
        for text in [
            "{6ba7b810-9dad-81d1-80b4-00c04fd430c8}",
            "6ba7b8109dad81d180b400c04fd430c8",
            "urn:uuid:6ba7b810-9dad-81d1-80b4-00c04fd430c8",
            "6ba7b810-9dad-81d1-80b4-00c04fd430c",
            "",
        ] {
            assert_eq!(Code::parse(text.as_bytes()), None, "{text}");
        }
    }
}
