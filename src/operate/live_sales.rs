//! The live sales, for the thread of the admin port: those that are open, and those that have closed while items are
//! reserved. Their terms are those of the log, also if the settings or the plan have changed since they opened.

use crate::operate::shard_status::Sales;
use crate::operate::status::Status;
use crate::sale::ids::Terms;
use crate::sale::sale_schedule::OPEN_MAX;

/// Live sales that are reported at most: all open ones, and of the others those that have opened last.
pub const LIVE_MAX: usize = 2 * OPEN_MAX;

/// A live sale.
#[derive(Clone, Copy, Debug)]
pub struct LiveSale {
    /// Its terms.
    pub terms: Terms,
    /// Its sold and reserved items.
    pub counts: Sales,
    /// Whether it is open.
    pub is_open: bool,
}

impl LiveSale {
    /// Returns the number of items that are neither sold nor reserved. The shards publish at different times, so the result
    /// can be off by the requests in flight.
    pub fn available(&self) -> u32 {
        self.terms.items.saturating_sub(self.counts.sold + self.counts.reserved)
    }
}

/// Returns the live sales at `unix_ms`, in the order of their openings.
pub fn live_sales(status: &Status, unix_ms: u64) -> Vec<LiveSale> {
    let begun = status.begun_sales();
    // The shards close sales by the same time: see `Parts`.
    let closing_time_ms = begun.last().map_or(unix_ms, |newest| newest.opens_ms.max(unix_ms));
    let sales = begun.into_iter().map(|terms| {
        let (counts, is_open) = (status.sales(terms.sale), !terms.has_closed(closing_time_ms));
        LiveSale { terms, counts, is_open }
    });
    let mut live: Vec<_> = sales.filter(|sale| sale.is_open || sale.counts.reserved > 0).collect();
    for _ in LIVE_MAX..live.len() {
        let oldest = live.iter().position(|sale| !sale.is_open).expect("at most OPEN_MAX sales are open");
        live.remove(oldest);
    }
    live
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::status::Phase;
    use crate::sale::ids::SaleId;
    use crate::sale::published_stock::PublishedStock;

    fn terms(id: u32, opens_ms: u64, closes_ms: u64) -> Terms {
        Terms { sale: SaleId(id), items: 10, opens_ms, closes_ms, ..Terms::NONE }
    }

    /// Returns the id, the available items and whether it is open, of each live sale.
    fn live(status: &Status, unix_ms: u64) -> Vec<(u32, u32, bool)> {
        let live = live_sales(status, unix_ms).into_iter();
        live.map(|sale| (sale.terms.sale.0, sale.available(), sale.is_open)).collect()
    }

    fn publish(status: &Status, id: u32, sold: u32, reserved: u32) {
        let published = PublishedStock { sale: SaleId(id), sold, reserved, ..PublishedStock::default() };
        status.shards[0].publish_sales(published);
    }

    #[test]
    fn open_sales_are_live_and_ended_ones_while_items_are_reserved() {
        let status = Status::new(Phase::Serving, 1, 0, false);
        assert_eq!(live(&status, 0), []);
        for (id, opens_ms, closes_ms) in [(3, 100, 900), (4, 200, 400), (5, 300, 800)] {
            status.add_begun_sale(terms(id, opens_ms, closes_ms));
        }
        publish(&status, 4, 2, 1);
        assert_eq!(live(&status, 300), [(3, 10, true), (4, 7, true), (5, 10, true)]);
        assert_eq!(live(&status, 400), [(3, 10, true), (4, 7, false), (5, 10, true)]);
        publish(&status, 4, 3, 0);
        assert_eq!(live(&status, 400), [(3, 10, true), (5, 10, true)]);
        assert_eq!(live(&status, 0), [(3, 10, true), (4, 7, true), (5, 10, true)], "the clock was set back");
        status.add_begun_sale(terms(6, 900, 1_000));
        assert_eq!(live(&status, 0), [(6, 10, true)], "a shard's clock is ahead: see `Parts`");
    }

    #[test]
    fn the_number_of_sales_is_bounded() {
        let status = Status::new(Phase::Serving, 1, 0, false);
        let ends = 10_000;
        status.add_begun_sale(terms(1, 0, ends));
        for id in 2..1_000 {
            publish(&status, id, 0, 1);
            status.add_begun_sale(terms(id, id.into(), u64::from(id) + 1));
        }
        assert!(status.begun_sales().len() < 1_000, "{}", status.begun_sales().len());
        let live = live(&status, 5_000);
        assert_eq!((live.len(), live[0].0, live[1].0, live[LIVE_MAX - 1].0), (LIVE_MAX, 1, 1_000 - 31, 999));
    }
}
