//! The manifest: the purchase streams that recovery must find, as `control.json` lists them. Without it, a log whose
//! segments were deleted would look like a log in which nothing was sold.
//!
//! It is written twice in each run:
//!
//! 1. Before a stream of an earlier run is sealed, and before retention may remove a segment of one: the streams of
//!    earlier runs that have records of the oldest open sale or of later ones. Retention removes none of these records as
//!    long as that sale is open.
//! 2. Before the run sells: the same, and the streams of this run. They exist from then on until a later run begins.

use crate::log::block::{LogKind, StreamKey};
use crate::sale::ids::{SaleId, Seq};
use serde::{Deserialize, Serialize};

/// The purchase streams that recovery must find.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Id of the oldest sale that was open.
    sale: u32,
    /// Epoch, shard and number of records of each stream of an earlier run that has records of this sale or of later ones.
    earlier: Vec<(u32, u16, Seq)>,
    /// Epoch and number of shards of the run that has begun to sell.
    run: Option<(u32, u16)>,
}

impl Manifest {
    /// Creates the manifest of a run that does not sell yet. `open` is the oldest open sale, and `earlier` has epoch, shard
    /// and number of records of each stream of an earlier run that has records of it or of later ones.
    pub fn new(open: SaleId, earlier: Vec<(u32, u16, Seq)>) -> Manifest {
        Manifest { sale: open.0, earlier, run: None }
    }

    /// Returns this manifest with the streams of the run `epoch`, which has `shards` shards.
    pub fn with_run(self, epoch: u32, shards: u16) -> Manifest {
        Manifest { run: Some((epoch, shards)), ..self }
    }

    /// Returns the newest sale of which a stream of an earlier run can have a record, if the run that has begun to sell has
    /// found none of the sales that were open then.
    pub fn newest_of(&self, key: StreamKey) -> Option<SaleId> {
        let was_read = self.run.is_some_and(|(epoch, _)| key.epoch < epoch);
        let has_open = self.earlier.iter().any(|(epoch, shard, _)| (*epoch, *shard) == (key.epoch, key.shard));
        (was_read && !has_open).then_some(SaleId(self.sale.saturating_sub(1)))
    }

    /// Returns the first stream that is missing or too short, if any, as text. `records` returns the number of records of
    /// a stream, if it exists. `have_closed` returns whether a sale and all sales before it have closed.
    pub fn missing(
        &self,
        have_closed: impl Fn(SaleId) -> bool,
        records: impl Fn(StreamKey) -> Option<Seq>,
    ) -> Option<String> {
        let key = |epoch, shard| StreamKey { log: LogKind::Purchases, epoch, shard };
        // When the sale has closed, retention may have removed the streams of earlier runs.
        let earlier = self.earlier.iter().filter(|_| !have_closed(SaleId(self.sale)));
        let earlier = earlier.map(|(epoch, shard, last)| (key(*epoch, *shard), *last));
        // The run may have ended before its first flush.
        let of_run =
            self.run.into_iter().flat_map(|(epoch, shards)| (0..shards).map(move |shard| (key(epoch, shard), 0)));
        let lost = earlier.chain(of_run).find(|(key, least)| records(*key).is_none_or(|found| found < *least));
        lost.map(|(StreamKey { epoch, shard, .. }, least)| {
            format!(
                "the log had at least {least} purchase records of epoch {epoch}, shard {shard}, and lacks them: segments \
                 were deleted"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_must_be_there() {
        let manifest = Manifest::new(SaleId(7), vec![(2, 0, 9)]).with_run(4, 2);
        let found = |lost: Option<(u32, u16)>, short: Seq| {
            move |key: StreamKey| {
                let records = if key.epoch == 2 { short } else { 0 };
                (key.log == LogKind::Purchases && lost != Some((key.epoch, key.shard))).then_some(records)
            }
        };
        let missing =
            |closed: u32, found: &dyn Fn(StreamKey) -> Option<Seq>| manifest.missing(|sale| sale.0 <= closed, found);
        assert_eq!(missing(6, &found(None, 9)), None);
        for (lost, short) in [(Some((2, 0)), 9), (Some((4, 0)), 9), (Some((4, 1)), 9), (None, 8)] {
            assert!(missing(6, &found(lost, short)).is_some(), "{lost:?} {short}");
        }
        // When the sale has closed, retention may have removed the streams of earlier runs.
        assert_eq!(missing(7, &found(Some((2, 0)), 0)), None);
        assert!(missing(7, &found(Some((4, 1)), 0)).is_some());
        assert_eq!(Manifest::default().missing(|_| false, |_| None), None);
        let newest = |epoch, shard| manifest.newest_of(StreamKey { log: LogKind::Purchases, epoch, shard });
        assert_eq!([newest(1, 0), newest(2, 1)], [Some(SaleId(6)); 2]);
        assert_eq!([newest(2, 0), newest(4, 0), newest(5, 0)], [None; 3]);
    }
}
