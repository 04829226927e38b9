//! The invariants of the whole machine, checked after every step.

use super::is_purchase;
use super::shadow::checkout_id;
use super::workload::USERS;
use super::world::World;
use crate::sale::checkout_key::is_of_any;
use crate::sale::ids::{ItemId, SaleId, ShardId, Terms, UserId};
use crate::sale::item_state::ItemState;
use crate::sale::part::Part;
use crate::sale::product_ranges::{ProductId, ProductRanges};
use crate::sale::record::LogEvent;
use std::collections::BTreeSet;

impl World {
    /// Checks that every acknowledged purchase is durable exactly once, that quotas cover all held and bought items,
    /// that no user exceeds the limit, and that no shard counts more items than it owns.
    pub fn check(&self) {
        if self.is_refused() {
            return;
        }
        for (&(sale, item), (code, _)) in &self.shadow.bought {
            let times = self.durable().filter(|record| is_purchase(record, sale, item, *code)).count();
            assert_eq!(times, 1, "the log has {times} records of an acknowledged purchase of {item:?}");
            if self.promises_postgres() {
                let rows = self.database.tables.rows.iter();
                let times = rows.filter(|(_, _, record)| is_purchase(record, sale, item, *code)).count();
                assert_eq!(times, 1, "Postgres has {times} rows of an acknowledged purchase of {item:?}");
            }
        }
        let sales: BTreeSet<_> =
            self.shards.iter().flat_map(|shard| shard.parts().iter()).map(|part| part.terms.sale).collect();
        sales.into_iter().for_each(|sale| self.check_sale(sale));
    }

    fn check_sale(&self, sale: SaleId) {
        let (mut taken, mut live, mut is_everywhere) = (0, 0, true);
        for shard in &self.shards {
            let Some(part) = shard.parts().get(sale) else {
                is_everywhere = false;
                continue;
            };
            let counts = part.stock.counts();
            taken += part.quotas.total();
            live += u64::from(counts.held + counts.buying + counts.sold);
            assert!(counts.claiming + counts.held + counts.buying + counts.sold <= part.stock.items() as u32);
        }
        assert!(
            !is_everywhere || live <= taken,
            "{live} items of {sale:?} are held or bought, but quotas count {taken}"
        );
        let is_exact = !self.taken_over.contains(&sale);
        let limit = self.rules.schedule.terms(sale).map_or(0, |terms| terms.user_limit);
        for user in (0..USERS).map(UserId) {
            let owner = &self.shards[usize::from(self.partition.owner_of_user(user).0)];
            let taken = owner.parts().get(sale).map_or(0, |part| part.quotas.taken(user));
            assert!(!is_exact || taken <= limit, "the quota of {user:?} exceeds the limit");
            assert!(
                !is_exact || self.shadow.bought_by(user, sale) <= limit as usize,
                "{user:?} bought more than the limit"
            );
        }
    }

    /// Checks that readers see the state of every item of the open sales.
    pub fn check_item_states(&self) {
        for (id, shard) in (0..).map(ShardId).zip(&self.shards) {
            shard.parts().iter().for_each(|part| part.stock.check_free());
            for sale in shard.parts().open(self.now).map(|terms| terms.sale) {
                let stock = &shard.parts().get(sale).expect("the sale is open").stock;
                for slot in 0..stock.items() {
                    let item = self.partition.item_at(id, slot);
                    let told = self.item_states.read(sale, item);
                    assert_eq!(told, stock.state(slot).into(), "{item:?} of {sale:?}");
                }
            }
        }
    }

    /// Updates the events since which each item of the open sales has been free, and each user below the limit, without
    /// interruption.
    pub fn note_what_is_free(&mut self) {
        let (event, open) = (self.events, self.open_sales());
        self.items_free.retain(|(sale, _), _| open.iter().any(|terms| terms.sale == *sale));
        self.users_free.retain(|(sale, _), _| open.iter().any(|terms| terms.sale == *sale));
        for Terms { sale, items, user_limit, .. } in open {
            let part_at = |owner: ShardId| self.shards[usize::from(owner.0)].parts().get(sale);
            for item in (0..items).map(ItemId) {
                let slot = self.partition.slot_of(item);
                // A checkout ends a hold that is over.
                let is_free = part_at(self.partition.owner_of_item(item)).is_some_and(|part| {
                    part.stock.state(slot) == ItemState::Free || part.stock.has_ended(slot, self.now.monotonic_ms)
                });
                note(&mut self.items_free, (sale, item), is_free, event);
            }
            for user in (0..USERS).map(UserId) {
                let part = part_at(self.partition.owner_of_user(user));
                let is_free = part.is_some_and(|part| part.quotas.taken(user) < user_limit);
                note(&mut self.users_free, (sale, user), is_free, event);
            }
        }
    }

    /// Returns the event since which one of the items of a sale, or of a product, has been free without interruption.
    pub fn any_free_since(&self, sale: SaleId, product: Option<ProductId>) -> Option<u64> {
        let products = self.rules.schedule.terms(sale).map_or(ProductRanges::NONE, |terms| terms.products);
        let is_it = |item: ItemId| product.is_none() || products.id_of(item.0) == product;
        let free = self.items_free.iter().filter(|((of, item), _)| *of == sale && is_it(*item));
        free.map(|(_, since)| *since).min()
    }

    /// Checks a machine at rest: every request is answered, the quotas equal the held and sold items, and no item is
    /// held for a client that does not have the code and cannot get it.
    pub fn check_rest(&self) {
        self.check_undelivered();
        assert!(self.pending.is_empty(), "requests without an answer: {:?}", self.pending);
        let sale = self.rules.schedule.latest(self.now.unix_ms).map_or(SaleId(0), |latest| latest.sale);
        assert!(self.shards.iter().all(|shard| shard.newest().sale >= sale), "a shard has not begun the current sale");
        for sale in self.shards[0].parts().iter().map(|part| part.terms.sale) {
            let parts: Option<Vec<&Part>> = self.shards.iter().map(|shard| shard.parts().get(sale)).collect();
            // A shard that holds no item forgets a sale before the others.
            let Some(parts) = parts else { continue };
            let counts = parts.iter().map(|part| part.stock.counts());
            assert!(
                counts.clone().all(|counts| counts.claiming + counts.buying == 0),
                "an item is still in `Claiming` or `Buying`"
            );
            let live: u32 = counts.map(|counts| counts.held + counts.sold).sum();
            let taken: u64 = parts.iter().map(|part| part.quotas.total()).sum();
            assert_eq!(u64::from(live), taken, "the quotas do not equal the held and sold items of {sale:?}");
            let known: BTreeSet<_> = parts.iter().flat_map(|part| part.any_keys.all()).collect();
            assert_eq!(known, self.any_keys_of(&parts), "the keys do not lead to the held and sold items of {sale:?}");
        }
    }

    /// Returns the users, keys and items of the holds and purchases of checkouts of any item.
    fn any_keys_of(&self, parts: &[&Part]) -> BTreeSet<(UserId, u64, ItemId)> {
        let keyed = (0..).map(ShardId).zip(parts).flat_map(|(id, part)| {
            part.stock.keyed().map(move |(user, key, slot)| (user, key, self.partition.item_at(id, slot)))
        });
        keyed.filter(|(_, key, _)| is_of_any(*key)).collect()
    }

    /// Checks that every grant of this run was delivered, was released, or was overdue and has a key with which the
    /// client repeats it.
    fn check_undelivered(&self) {
        let of_run = self.archive.iter().filter(|(key, _)| key.epoch == self.owner.run.epoch);
        let of_run = || of_run.clone().flat_map(|(_, records)| records).map(|record| record.event);
        let released = |event| if let LogEvent::Released { code, .. } = event { Some(*code.as_bytes()) } else { None };
        let released: BTreeSet<[u8; 16]> = of_run().filter_map(released).collect();
        for event in of_run() {
            if let LogEvent::Checkout { item, user, code, key, .. } = event {
                let has_end = self.shadow.codes.contains_key(code.as_bytes()) || released.contains(code.as_bytes());
                let is_repeated = self.shadow.overdue.contains(&checkout_id(item, user, key));
                assert!(has_end || is_repeated, "{item:?} is held for an answer that was not delivered");
            }
        }
    }

    /// Checks that every record that was not copied from Postgres is there exactly once and in order.
    pub fn check_database(&self) {
        for (key, records) in self.archive.iter().filter(|(key, _)| Some(**key) != self.restored_stream) {
            let rows = self.database.tables.rows.iter().filter(|(of, ..)| of == key);
            let rows: Vec<_> = rows.map(|(_, seq, record)| (*seq, *record)).collect();
            let expected: Vec<_> = (1..).zip(records.iter().copied()).collect();
            assert_eq!(rows, expected, "Postgres and the log differ in stream {key:?}");
        }
    }
}

fn note<K: Ord>(free: &mut std::collections::BTreeMap<K, u64>, key: K, is_free: bool, event: u64) {
    if is_free {
        free.entry(key).or_insert(event);
    } else {
        free.remove(&key);
    }
}
