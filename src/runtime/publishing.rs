//! What a shard publishes in each turn: the counts of its sales, the states of its items, the counters of its logs, and
//! the duration of the turn.

use crate::operate::shard_status::ShardStatus;
use crate::runtime::turn::TurnLoop;
use crate::system::clock::turn_us;
use std::sync::atomic::Ordering;

impl TurnLoop {
    /// Publishes the counters of the sales and the items that have changed.
    pub(crate) fn publish_sale(&mut self) {
        let newest = self.shard.newest().sale;
        self.shard_io.status.note_sale(newest);
        for (sale, product, counts) in self.shard.take_changed_products() {
            self.item_states.products.publish(self.shard_io.id, sale, product, counts);
        }
        let (numbers, shard) = (self.shard_io.status.shard(self.shard_io.id), &self.shard);
        let publish = |sale| numbers.publish_sales(shard.stock_to_publish(sale, None));
        for change in self.effects.changes.drain(..) {
            self.item_states.show(self.shard_io.id, change);
            if change.sale != newest {
                publish(change.sale);
            }
        }
        if newest != self.published || shard.parts().overlap() {
            // The counts of a sale that has closed may have changed since they were published last.
            self.published = newest;
            shard.parts().iter().for_each(|part| publish(part.terms.sale));
        }
        publish(newest);
    }

    /// Publishes the counters of the shard, its lanes aside.
    pub(crate) fn publish(&mut self) {
        self.publish_sale();
        let numbers = self.numbers();
        let ShardStatus { items, appended, log_room, turns, .. } = numbers;
        items.store(self.shard.stock().items() as u64, Ordering::Relaxed);
        appended.store(self.logs.purchases.appended(), Ordering::Relaxed);
        for (kind, log) in self.logs.both() {
            numbers.log(kind).flushed.store(log.flushed(), Ordering::Release);
        }
        log_room.store(self.logs.purchases.room(), Ordering::Relaxed);
        turns.store(turns.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Returns the numbers that this shard publishes.
    pub(crate) fn numbers(&self) -> &ShardStatus {
        self.shard_io.status.shard(self.shard_io.id)
    }

    /// Publishes the duration of a turn that began at `began_us`, by [`turn_us`].
    pub(crate) fn record_duration(&self, began_us: u64) {
        if !cfg!(feature = "unmetered") {
            self.numbers().turn_times.record(turn_us(self.shard_io.clock.micros()).saturating_sub(began_us));
        }
    }
}
