//! Reservation codes: UUIDs from which the item is computed.
//!
//! A code is a version 8 UUID (RFC 9562 §5.8). Of its 122 free bits, the first 26 are the *tag*,
//! `(sale mod laps) × items + item` with `laps = ⌊2^26 / items⌋`. The other 96 are random. Therefore:
//!
//! - The item and its owner are computed from the code, without a lookup.
//! - While the stock keeps its size, a code of one of the `laps / 2` sales before the current one is recognised without
//!   a lookup: 139 days of hourly sales of 10,000 items.
//! - Guessing the code of a given hold takes 2^95 attempts on average.
//!
//! A code is valid only if it equals the code stored in its slot. The tag says only which slot that is.

use crate::sale::ids::{ItemId, Terms};
use rand_chacha::{
    ChaCha12Rng,
    rand_core::{Rng, SeedableRng},
};
use std::fmt;
use uuid::Uuid;

const TAG_BITS: u32 = 26;
const RANDOM_BITS: u32 = 96;
const _: () = assert!(TAG_BITS + RANDOM_BITS == 122);

/// The largest stock, in items. With it, a tag still contains the sale modulo 4.
pub const ITEMS_MAX: u32 = 1 << 24;

/// A reservation code.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code([u8; 16]);

/// What a code refers to, seen from the current sale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// An item of the current sale.
    Item(ItemId),
    /// A sale that is over.
    EndedSale,
    /// Nothing: it is not a version 8 UUID, or its tag belongs neither to the current sale nor to the `laps / 2`
    /// sales before it.
    Unknown,
}

/// The parameters that the tags of all codes of one sale have in common.
#[derive(Clone, Copy, Debug)]
pub struct CodeSpace {
    items: u32,
    laps: u32,
    /// `sale mod laps`.
    lap: u32,
}

impl CodeSpace {
    /// Returns the parameters of the sale with these `terms`, whose stock has 1 to [`ITEMS_MAX`] items.
    pub fn new(terms: &Terms) -> Self {
        let laps = (1 << TAG_BITS) / terms.items;
        CodeSpace { items: terms.items, laps, lap: terms.sale.0 % laps }
    }
}

impl Code {
    /// The code of a slot that has not had a hold. It is not a version 8 UUID, so it leads to no item if a client
    /// presents it.
    pub const NONE: Code = Code([0; 16]);

    /// Length of a code's canonical spelling, in bytes.
    pub const TEXT_BYTES: usize = 36;

    fn new(space: &CodeSpace, item: ItemId, random: u128) -> Code {
        let tag = space.lap * space.items + item.0;
        let bits = u128::from(tag) << RANDOM_BITS | random & ((1 << RANDOM_BITS) - 1);
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

    /// Returns what this code refers to, seen from the sale of `space`.
    pub fn destination(&self, space: &CodeSpace) -> Destination {
        let word = u128::from_be_bytes(self.0);
        if word >> 76 & 0xf != 8 || word >> 62 & 0b11 != 0b10 {
            return Destination::Unknown;
        }
        let CodeSpace { items, laps, lap } = *space;
        let tag = (word >> 102) as u32;
        let of = tag / items;
        match if of <= lap { lap - of } else { lap + laps - of } {
            // Tags from `laps × items` on: no sale uses them. They exist if the stock does not divide 2^26.
            _ if of >= laps => Destination::Unknown,
            0 => Destination::Item(ItemId(tag % items)),
            behind if behind <= laps / 2 => Destination::EndedSale,
            _ => Destination::Unknown,
        }
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

    /// Mints a new code for `item` in the sale of `space`.
    pub fn mint(&mut self, space: &CodeSpace, item: ItemId) -> Code {
        let random = u128::from(self.0.next_u64()) << 32 | u128::from(self.0.next_u32());
        Code::new(space, item, random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale::ids::SaleId;
    use proptest::prelude::*;

    fn space(sale: u32, items: u32) -> CodeSpace {
        CodeSpace::new(&Terms { sale: SaleId(sale), items, user_limit: 10 })
    }

    proptest! {
        #[test]
        fn a_code_leads_back_to_its_item(sale: u32, items in 1..=ITEMS_MAX, pick: u32, seed: [u8; 32]) {
            let space = space(sale, items);
            let item = ItemId(pick % items);
            let code = CodeGenerator::new(seed).mint(&space, item);
            prop_assert_eq!(code.destination(&space), Destination::Item(item));
            let text = code.to_string();
            prop_assert_eq!(Code::parse(text.as_bytes()), Some(code));
            let uuid = Uuid::parse_str(&text).unwrap();
            prop_assert_eq!(uuid.get_version_num(), 8);
            prop_assert_eq!(uuid.get_variant(), uuid::Variant::RFC4122);
        }

        #[test]
        fn a_code_of_an_earlier_sale_is_recognised(sale in 10_000u32.., back in 1u32..3355, seed: [u8; 32]) {
            let old = space(sale - back, 10_000);
            let code = CodeGenerator::new(seed).mint(&old, ItemId(9_999));
            prop_assert_eq!(code.destination(&space(sale, 10_000)), Destination::EndedSale);
        }
    }

    #[test]
    fn tickets_beyond_the_last_lap_lead_nowhere() {
        // 2^26 = 6,710 × 10,000 + 8,864.
        for sale in [0, 6709, 6710, 500_000] {
            let beyond = Code::new(&CodeSpace { items: 10_000, laps: 6711, lap: 6710 }, ItemId(8_863), 0);
            assert_eq!(beyond.destination(&space(sale, 10_000)), Destination::Unknown, "in sale {sale}");
        }
    }

    #[test]
    fn other_uuids_lead_nowhere() {
        for text in ["00000000-0000-0000-0000-000000000000", "6ba7b810-9dad-41d1-80b4-00c04fd430c8"] {
            let code = Code::parse(text.as_bytes()).unwrap();
            assert_eq!(code.destination(&space(7, 10_000)), Destination::Unknown);
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
