//! The end of a world: everything in progress is finished, and what is left is sold.

use super::world::World;
use crate::sale::code::Code;
use crate::sale::command::Command;
use crate::sale::ids::{ItemId, Terms, UserId};
use crate::sale::item_state::ItemState;
use crate::sale::shard::ShardEvent;
use std::collections::VecDeque;
use uuid::Uuid;

impl World {
    /// Begins the newest sale on every shard.
    pub fn begin_everywhere(&mut self) {
        let sale = self.newest_sale();
        (0..self.partition.shards()).for_each(|shard| self.apply(shard, ShardEvent::Sale(sale)));
    }

    /// Delivers all messages, flushes and ships all records, then checks the machine at rest and the database.
    pub fn settle(&mut self) {
        // After the wall clock was set back, a tick alone does not bring every shard to the newest sale.
        self.begin_everywhere();
        for _ in 0..10_000 {
            while let Some(lane) = self.lanes.iter().find(|(_, lane)| !lane.is_empty()).map(|(key, _)| *key) {
                self.deliver(lane);
            }
            for shard in 0..self.partition.shards() {
                if self.logs[usize::from(shard)].flushing.is_none() {
                    let log = &self.logs[usize::from(shard)];
                    self.start_flush(shard, log.records.len() - log.flushed, 63);
                }
                if self.logs[usize::from(shard)].flushing.is_some() {
                    self.finish_flush(shard);
                }
                self.apply(shard, ShardEvent::Tick);
            }
            self.ship();
            if self.refused {
                return;
            }
            let is_shipped = self.positions.as_ref().is_some_and(|positions| {
                self.archive.iter().all(|(key, records)| positions.get(key) == Some(&(records.len() as u64)))
            });
            let is_flushed = self.logs.iter().all(|log| log.flushed == log.records.len());
            if is_shipped && is_flushed && self.lanes.values().all(VecDeque::is_empty) {
                self.check_rest();
                return self.check_database();
            }
        }
        panic!("messages, flushes or shipping do not come to an end");
    }

    /// Moves the clocks to the next sale, if none is open.
    fn wait_for_an_open_sale(&mut self) {
        if self.open_sales().is_empty() {
            let newest = self.newest_sale();
            let next = self.rules.schedule.next(newest).expect("a plan does not end in a simulated world");
            self.now.monotonic_ms += next.opens_ms - self.now.unix_ms;
            self.now.unix_ms = next.opens_ms;
            self.settle();
        }
    }

    /// Lets all holds expire, then checks that new buyers can buy every item of the open sales that is not sold yet.
    pub fn sell_out(&mut self) {
        self.now.monotonic_ms += self.rules.schedule.longest_hold_ms();
        (self.loses_answers, self.any_buyers.publishes_late) = (false, false);
        self.settle();
        if self.refused {
            return;
        }
        self.wait_for_an_open_sale();
        for terms in self.open_sales().into_iter().filter(|terms| !terms.is_paused) {
            self.sell_out_sale(terms);
        }
    }

    fn sell_out_sale(&mut self, terms: Terms) {
        let (named, key) = (Some(terms.sale), Uuid::nil());
        let by_product = self.any_buyers.chance.bool();
        for item in (0..terms.items).map(ItemId) {
            let user = UserId(1_000 + i64::from(item.0));
            let shard = item.0 as u16 % self.partition.shards();
            let command = match self.any_buyers.exist() {
                // At rest, every free item is found, in whatever order.
                true => {
                    let product = terms.products.id_of(item.0).filter(|_| by_product);
                    Command::CheckoutAny { sale: named, product, user, key }
                }
                false => Command::Checkout { sale: named, item, user, key },
            };
            self.command(shard, command);
            self.settle();
            let code = self.shadow.codes.iter().find(|(_, promise)| (promise.sale, promise.user) == (terms.sale, user));
            if let Some(code) = code.map(|(bytes, _)| Code::from_bytes(*bytes)) {
                self.command(shard, Command::Purchase { code, key: Uuid::nil() });
                self.settle();
            }
        }
        let parts = self.shards.iter().map(|shard| shard.parts().get(terms.sale).expect("the sale is open"));
        let slots = parts.flat_map(|part| (0..part.stock.items()).map(|slot| part.stock.state(slot)));
        assert!(slots.into_iter().all(|state| state == ItemState::Sold), "an item cannot be sold");
        let product = terms.products.id_of(0).filter(|_| by_product);
        self.command(0, Command::CheckoutAny { sale: named, product, user: UserId(1_000), key });
        let is_known = self.shards[0].needs_published(named, product, self.now).is_none();
        assert!(self.pending.is_empty() && is_known, "nobody learns that all is sold");
    }
}
