//! What a shard reads of the numbers that all shards publish.

use crate::operate::shard_status::Sales;
use crate::operate::status::Status;
use crate::sale::effects::Effects;
use crate::sale::ids::{Moment, ShardId};
use crate::sale::published_stock::PublishedStock;
use crate::sale::shard::{Shard, ShardEvent};
use std::sync::atomic::Ordering;

/// Gives the shard what all shards have published about their items of the open sale, if it needs that for a checkout of
/// any item.
pub(crate) fn note_published(shard: &mut Shard, status: &Status, now: Moment, effects: &mut Effects) {
    if !shard.needs_published() {
        return;
    }
    let sale = shard.terms().sale;
    for (id, numbers) in (0..).map(ShardId).zip(&status.shards) {
        let (Sales { sold, reserved }, next_expiry_ms) = (numbers.sales(sale), &numbers.next_expiry_ms);
        let next_expiry_ms = next_expiry_ms.load(Ordering::Relaxed);
        shard.apply(ShardEvent::Published(id, PublishedStock { sale, sold, reserved, next_expiry_ms }), now, effects);
    }
}
