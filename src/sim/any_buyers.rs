//! Buyers that ask for any item, and the numbers that shards publish for them.

use super::plans::{PRODUCT_IDS, product_id};
use crate::sale::checkout_key::{is_of_any, mark_any, short};
use crate::sale::command::Command;
use crate::sale::ids::{SaleId, UserId};
use crate::sale::product_ranges::{ProductId, ProductIndex};
use crate::sale::product_stock::ProductCounts;
use crate::sale::published_stock::PublishedStock;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Whether buyers ask for any item, and what shards have published.
pub struct AnyBuyers {
    /// The share of the checkouts that ask for any item, of 4.
    share: u32,
    /// Shards publish their numbers after some of their events only, as at the end of a turn.
    pub publishes_late: bool,
    /// The latest published numbers, by shard and sale.
    pub numbers: BTreeMap<(u16, SaleId), PublishedStock>,
    /// The latest published numbers of products, by shard, sale and product.
    pub products: BTreeMap<(u16, SaleId, ProductIndex), ProductCounts>,
    /// The number of checkouts so far, by user and key.
    sent: BTreeMap<(UserId, Uuid), u32>,
    pub chance: fastrand::Rng,
}

impl AnyBuyers {
    /// Creates the buyers of the world of `seed`. In half of the worlds, every item is asked for by its number.
    pub fn new(seed: u64) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed ^ 0xa11);
        let (share, publishes_late) = (chance.u32(0..8).saturating_sub(3), chance.bool());
        AnyBuyers {
            share,
            publishes_late,
            numbers: BTreeMap::new(),
            products: BTreeMap::new(),
            sent: BTreeMap::new(),
            chance,
        }
    }

    /// Returns whether some buyers ask for any item.
    pub fn exist(&self) -> bool {
        self.share > 0
    }

    /// Turns some checkouts into checkouts of any item, and the repetitions of such checkouts.
    pub fn choose(&mut self, command: Command) -> Command {
        match command {
            Command::Checkout { sale, user, key, .. }
                if is_of_any(short(key)) || self.chance.u32(0..4) < self.share =>
            {
                let (product, key) = self.choose_product(mark_any(key));
                Command::CheckoutAny { sale, product, user, key }
            }
            command => command,
        }
    }

    /// Draws a product or none for a checkout with this key, and returns it with the key for it. As with clients, the same key
    /// with another product is another key.
    fn choose_product(&mut self, key: Uuid) -> (Option<ProductId>, Uuid) {
        let number = match (key.as_u128() >> 32) as u8 {
            0 => self.chance.u32(0..2 * PRODUCT_IDS),
            // The key of a repetition has its product already.
            number => number.into(),
        };
        let product = (1..=PRODUCT_IDS).contains(&number).then(|| product_id(number));
        let is_of_product = product.is_some() && !key.is_nil();
        (product, if is_of_product { Uuid::from_u128(u128::from(number) << 32 | key.as_u128()) } else { key })
    }

    /// Notes that a command is sent.
    pub fn note_sent(&mut self, command: Command) {
        if let Command::CheckoutAny { user, key, .. } = command {
            *self.sent.entry((user, key)).or_default() += 1;
        }
    }

    /// Returns whether a command is one of several checkouts of any item with one key.
    pub fn is_repeated(&self, command: Command) -> bool {
        matches!(command, Command::CheckoutAny { user, key, .. } if !key.is_nil() && self.sent[&(user, key)] > 1)
    }

    /// Returns what a shard has published of a sale, or of a product.
    pub fn published(&self, shard: u16, sale: SaleId, product: Option<ProductIndex>) -> PublishedStock {
        let none = PublishedStock { sale, ..PublishedStock::default() };
        let of_sale = self.numbers.get(&(shard, sale)).copied().unwrap_or(none);
        let Some(index) = product else { return of_sale };
        let counts = self.products.get(&(shard, sale, index)).copied().unwrap_or_default();
        PublishedStock { product, sold: counts.sold, reserved: counts.reserved, ..of_sale }
    }
}
