//! What a shard reads of the numbers that all shards publish.

use crate::operate::item_states::ItemStates;
use crate::operate::status::Status;
use crate::sale::effects::Effects;
use crate::sale::ids::{Moment, SaleId, ShardId};
use crate::sale::product_ranges::{ProductId, ProductIndex};
use crate::sale::product_stock::ProductCounts;
use crate::sale::published_stock::PublishedStock;
use crate::sale::shard::{Shard, ShardEvent};

/// Gives the shard what all shards have published about their items of a sale, or of a product, if it needs that for a
/// checkout of any item. `named` is the sale that the client has named.
pub(crate) fn note_published(
    shard: &mut Shard,
    (named, product): (Option<SaleId>, Option<ProductId>),
    (status, item_states): (&Status, &ItemStates),
    now: Moment,
    effects: &mut Effects,
) {
    let Some((sale, product)) = shard.needs_published(named, product, now) else { return };
    for id in (0..status.shards.len() as u16).map(ShardId) {
        shard.apply(ShardEvent::Published(id, published(status, item_states, id, sale, product)), now, effects);
    }
}

fn published(
    status: &Status,
    item_states: &ItemStates,
    id: ShardId,
    sale: SaleId,
    product: Option<ProductIndex>,
) -> PublishedStock {
    let of_sale = status.shard(id).published(sale);
    let Some(index) = product else { return of_sale };
    let ProductCounts { sold, reserved } = item_states.products.read(id, sale, index);
    PublishedStock { product, sold, reserved, ..of_sale }
}
