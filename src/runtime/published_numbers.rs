//! What a shard reads of the numbers that all shards publish.

use crate::operate::status::Status;
use crate::sale::effects::Effects;
use crate::sale::ids::{Moment, SaleId, ShardId};
use crate::sale::shard::{Shard, ShardEvent};

/// Gives the shard what all shards have published about their items of a sale, if it needs that for a checkout of any item.
/// `named` is the sale that the client has named.
pub(crate) fn note_published(
    shard: &mut Shard,
    named: Option<SaleId>,
    status: &Status,
    now: Moment,
    effects: &mut Effects,
) {
    let Some(sale) = shard.needs_published(named, now) else { return };
    for (id, numbers) in (0..).map(ShardId).zip(&status.shards) {
        shard.apply(ShardEvent::Published(id, numbers.published(sale)), now, effects);
    }
}
