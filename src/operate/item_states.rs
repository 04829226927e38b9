//! The state of each item for readers: one word per item, written only by the shard that owns the item.
//!
//! A word contains the id of its sale, so no word has to be cleared when the next sale begins: an item whose word
//! belongs to another sale is available.

use crate::sale::effects::ItemChange;
use crate::sale::ids::{ItemId, SaleId, ShardId};
use crate::sale::item_state::Availability;
use crate::sale::part::Part;
use crate::sale::partition::Partition;
use crate::sale::shard::Inventory;
use std::sync::atomic::{AtomicU32, Ordering};

/// States of all items, readable from any thread.
#[derive(Debug)]
pub struct ItemStates {
    partition: Partition,
    /// By shard and slot: the low 30 bits of the sale's id, then two bits for the [`Availability`].
    words: Box<[Box<[AtomicU32]>]>,
}

impl ItemStates {
    /// Creates the words for sales of up to `items` items, or more if an inventory has more, and fills them from the
    /// inventories that the shards start with.
    pub fn new(partition: Partition, items: u32, inventories: &[Inventory]) -> Self {
        let items = inventories.iter().map(|inventory| inventory.open().terms.items).fold(items, u32::max);
        let shards = (0..partition.shards()).map(ShardId);
        let none = |shard| (0..partition.owned_items(shard, items)).map(|_| AtomicU32::new(0)).collect();
        let item_states = ItemStates { partition, words: shards.clone().map(none).collect() };
        for (shard, inventory) in shards.zip(inventories) {
            let (Part { terms, stock, .. }, to) = (inventory.open(), |slot| inventory.open().stock.state(slot).into());
            (0..stock.items()).for_each(|slot| {
                item_states.show(shard, ItemChange { sale: terms.sale, slot: slot as u32, to: to(slot) });
            });
        }
        item_states
    }

    /// Publishes the new state of an item, unless the word belongs to a newer sale already. Only the thread of the shard
    /// `owner` may call it.
    pub fn show(&self, owner: ShardId, ItemChange { sale, slot, to }: ItemChange) {
        let word = sale.0 << 2 | to as u32;
        // The sale that ended may have had more items than any sale from now on.
        let Some(shown) = self.words[usize::from(owner.0)].get(slot as usize) else { return };
        if shown.load(Ordering::Relaxed) >> 2 <= word >> 2 {
            shown.store(word, Ordering::Release);
        }
    }

    /// Returns the state of `item` in `sale`.
    pub fn read(&self, sale: SaleId, item: ItemId) -> Availability {
        let words = &self.words[usize::from(self.partition.owner_of_item(item).0)];
        let word = words[self.partition.slot_of(item)].load(Ordering::Acquire);
        let known = [Availability::Available, Availability::Reserved, Availability::Sold];
        known.into_iter().find(|to| word == sale.0 << 2 | *to as u32).unwrap_or(Availability::Available)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale::code::Code;
    use crate::sale::ids::UserId;
    use crate::sale::item_state::Hold;
    use crate::sale::sale_schedule::PeriodicSale;
    use uuid::Uuid;

    #[test]
    fn a_word_belongs_to_one_sale() {
        let partition = Partition::new(3);
        let item_states = ItemStates::new(partition, 10, &[]);
        let sale = SaleId(u32::MAX);
        for (item, to) in [(4, Availability::Sold), (7, Availability::Reserved), (9, Availability::Available)] {
            let (owner, slot) = (partition.owner_of_item(ItemId(item)), partition.slot_of(ItemId(item)) as u32);
            item_states.show(owner, ItemChange { sale: SaleId(5), slot, to: Availability::Sold });
            item_states.show(owner, ItemChange { sale, slot, to });
            assert_eq!(item_states.read(sale, ItemId(item)), to);
            assert_eq!(item_states.read(SaleId(5), ItemId(item)), Availability::Available);
            item_states.show(owner, ItemChange { sale: SaleId(5), slot, to: Availability::Sold });
            assert_eq!(item_states.read(sale, ItemId(item)), to, "a change of an ended sale hides the open one");
        }
        assert_eq!(item_states.read(sale, ItemId(0)), Availability::Available);
    }

    #[test]
    fn it_begins_with_what_shards_have() {
        let terms = |sale| {
            PeriodicSale { period_s: 1, items: 3, user_limit: 1, ttl_ms: 1, extension_ms: 0 }.terms(SaleId(sale))
        };
        let mut parts = vec![Part::new(terms(6), Partition::new(1), ShardId(0))];
        parts.push(Part::new(terms(7), Partition::new(1), ShardId(0)));
        let (user, code) = (UserId(1), Code::NONE);
        parts[1].stock.reserve(2, user, Uuid::nil()).unwrap();
        parts[1].stock.grant(2, Hold { user, code, expires_ms: 9, expires_unix_ms: 9 });
        let item_states = ItemStates::new(Partition::new(1), 2, &[Inventory { parts }]);
        assert_eq!(item_states.read(SaleId(7), ItemId(2)), Availability::Reserved);
        assert_eq!(item_states.read(SaleId(7), ItemId(1)), Availability::Available);
    }
}
