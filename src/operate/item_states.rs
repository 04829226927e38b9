//! The state of each item for readers: one word per item, written only by the shard that owns the item.
//!
//! Sales that overlap in time have layers of words of their own (see `sale_schedule`). A word contains the id of its sale,
//! so no word has to be cleared when the next sale of its layer begins: an item whose word belongs to another sale is
//! available.

use crate::operate::product_numbers::ProductNumbers;
use crate::sale::effects::ItemChange;
use crate::sale::ids::{ItemId, SaleId, ShardId};
use crate::sale::item_state::Availability;
use crate::sale::part::Part;
use crate::sale::partition::Partition;
use crate::sale::sale_schedule::SaleSchedule;
use crate::sale::shard::Inventory;
use std::sync::atomic::{AtomicU32, Ordering};

/// States of all items, readable from any thread.
#[derive(Debug)]
pub struct ItemStates {
    partition: Partition,
    schedule: SaleSchedule,
    /// By layer, shard and slot: the low 30 bits of the sale's id, then two bits for the [`Availability`].
    words: Box<[LayerWords]>,
    /// Numbers of items by product.
    pub products: ProductNumbers,
}

/// The words of one layer, by shard and slot.
type LayerWords = Box<[Box<[AtomicU32]>]>;

impl ItemStates {
    /// Creates the words for the sales of `schedule`, or more if an inventory has more items, and fills them from the
    /// inventories that the shards start with.
    pub fn new(partition: Partition, schedule: SaleSchedule, inventories: &[Inventory]) -> Self {
        let mut layers = schedule.layers();
        let known = || inventories.iter().flat_map(|inventory| &inventory.parts);
        for Part { terms, .. } in known() {
            if let Some(layer) = schedule.layer(terms.sale) {
                layers[layer] = layers[layer].max(terms.items);
            }
        }
        let shards = || (0..partition.shards()).map(ShardId);
        let of_shard = |shard, items| (0..partition.owned_items(shard, items)).map(|_| AtomicU32::new(0)).collect();
        let of_layer = |items| shards().map(|shard| of_shard(shard, items)).collect();
        let item_states = ItemStates {
            partition,
            schedule,
            words: layers.into_iter().map(of_layer).collect(),
            products: ProductNumbers::new(partition.shards(), schedule),
        };
        for (shard, inventory) in shards().zip(inventories) {
            for Part { terms, stock, .. } in &inventory.parts {
                (0..stock.items()).for_each(|slot| {
                    let to = stock.state(slot).into();
                    item_states.show(shard, ItemChange { sale: terms.sale, slot: slot as u32, to });
                });
            }
        }
        item_states
    }

    fn layer(&self, sale: SaleId) -> Option<&LayerWords> {
        self.words.get(self.schedule.layer(sale)?)
    }

    /// Publishes the new state of an item, unless the word belongs to a newer sale already. Only the thread of the shard
    /// `owner` may call it.
    pub fn show(&self, owner: ShardId, ItemChange { sale, slot, to }: ItemChange) {
        let word = sale.0 << 2 | to as u32;
        // A sale of an earlier run may have had more items than any sale from now on, or not be in the plan any more.
        let words = self.layer(sale).map(|layer| &layer[usize::from(owner.0)]);
        let Some(shown) = words.and_then(|words| words.get(slot as usize)) else { return };
        if shown.load(Ordering::Relaxed) >> 2 <= word >> 2 {
            shown.store(word, Ordering::Release);
        }
    }

    /// Returns the state of `item` in `sale`.
    pub fn read(&self, sale: SaleId, item: ItemId) -> Availability {
        let words = self.layer(sale).map(|layer| &layer[usize::from(self.partition.owner_of_item(item).0)]);
        let word = words.and_then(|words| words.get(self.partition.slot_of(item)));
        let word = word.map_or(0, |word| word.load(Ordering::Acquire));
        let known = [Availability::Available, Availability::Reserved, Availability::Sold];
        known.into_iter().find(|to| word == sale.0 << 2 | *to as u32).unwrap_or(Availability::Available)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sale::code::Code;
    use crate::sale::ids::{Terms, UserId};
    use crate::sale::item_state::Hold;
    use crate::sale::sale_schedule::{PeriodicSale, SaleSeries};
    use uuid::Uuid;

    const SALES: PeriodicSale = PeriodicSale { period_s: 1, items: 3, user_limit: 1, ttl_ms: 1, extension_ms: 0 };

    #[test]
    fn a_word_belongs_to_one_sale() {
        let partition = Partition::new(3);
        let item_states = ItemStates::new(partition, SaleSchedule::Periodic(PeriodicSale { items: 10, ..SALES }), &[]);
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
        let terms = |sale| SALES.terms(SaleId(sale));
        let mut parts = vec![Part::new(terms(6), Partition::new(1), ShardId(0))];
        parts.push(Part::new(terms(7), Partition::new(1), ShardId(0)));
        let (user, code) = (UserId(1), Code::NONE);
        parts[1].stock.reserve(2, user, Uuid::nil()).unwrap();
        parts[1].stock.grant(2, Hold { user, code, expires_ms: 9, expires_unix_ms: 9 });
        let fewer = PeriodicSale { items: 2, ..SALES };
        let item_states = ItemStates::new(Partition::new(1), SaleSchedule::Periodic(fewer), &[Inventory { parts }]);
        assert_eq!(item_states.read(SaleId(7), ItemId(2)), Availability::Reserved);
        assert_eq!(item_states.read(SaleId(7), ItemId(1)), Availability::Available);
    }

    #[test]
    fn sales_that_overlap_are_shown_side_by_side() {
        let series = |id, items| {
            let first = Terms { opens_ms: 0, closes_ms: 9, items, ..SALES.terms(SaleId(id)) };
            SaleSeries { first, every_ms: 0, count: 1, layer: 0 }
        };
        let schedule = SaleSchedule::planned(vec![series(6, 3), series(7, 1)]);
        let item_states = ItemStates::new(Partition::new(1), schedule, &[]);
        for (sale, slot, to) in [(7, 0, Availability::Sold), (6, 0, Availability::Reserved), (6, 2, Availability::Sold)]
        {
            item_states.show(ShardId(0), ItemChange { sale: SaleId(sale), slot, to });
        }
        let read = |sale, item| item_states.read(SaleId(sale), ItemId(item));
        assert_eq!([read(6, 0), read(6, 2)], [Availability::Reserved, Availability::Sold]);
        assert_eq!(
            [read(7, 0), read(7, 2), read(8, 0)],
            [Availability::Sold, Availability::Available, Availability::Available]
        );
    }
}
