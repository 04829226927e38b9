//! Judges the damage of purchase streams: whether the lost records may be needed. If not, the damaged segments are set
//! aside, and the run begins without them.
//!
//! The rule is that of retention: a stream may lose its beginning. So the damaged segment and all segments of the stream
//! before it are judged together. They are not needed if two conditions hold, and in doubt they are needed:
//!
//! 1. Every sale that they can have a record of is over by the clock: replay ignores its records. A stream opens sales in
//!    the order of their ids, each before its first record and once. So these sales are older than the first one that the
//!    rest of the stream opens. If the rest opens none, they are not newer than those that are open when a later run begins,
//!    which each of its streams opens with its first records. They are also older than the sale of the manifest, if the
//!    manifest does not list the stream of an earlier run. If nothing of this is known, the open sale may be concerned.
//! 2. There is no database, or it has all records up to the first one that is left.
//!
//! Damage of attempt streams is never judged: nobody needs these records.

use crate::config::fatal::Fatal;
use crate::log::block::{StreamId, StreamKey};
use crate::log::damage::Damage;
use crate::log::manifest::Manifest;
use crate::log::segment::{SegmentName, sync_dir};
use crate::log::stream::End;
use crate::log::stream_files::Losses;
use crate::sale::ids::{SaleId, Seq};
use crate::sale::record::{LogEvent, Record};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// The records that open a sale in each purchase stream, with their numbers. Records of a sale follow its opening, but
/// they can also follow the opening of the next sale.
#[derive(Default)]
pub struct Openings(BTreeMap<StreamKey, Vec<(Seq, SaleId)>>);

impl Openings {
    /// Notes a record, if it opens a sale.
    pub fn note(&mut self, key: StreamKey, seq: Seq, record: &Record) {
        if let LogEvent::SaleOpened { .. } = record.event {
            self.0.entry(key).or_default().push((seq, record.sale));
        }
    }

    /// Returns the numbers and sales of the openings in a stream, in order.
    pub fn of(&self, key: StreamKey) -> &[(Seq, SaleId)] {
        self.0.get(&key).map_or(&[], Vec::as_slice)
    }

    /// Returns the newest sale of which one of the first `last` records of a stream can be, or `None` if it can be any.
    fn newest_until(&self, key: StreamKey, last: Seq) -> Option<SaleId> {
        let next = self.of(key).iter().find(|(seq, _)| *seq > last);
        if let Some((_, next)) = next {
            return Some(SaleId(next.0.saturating_sub(1)));
        }
        let later = self.0.iter().filter(|(other, _)| other.log == key.log && other.epoch > key.epoch);
        later.filter_map(|(_, openings)| newest_at_beginning(openings)).min()
    }
}

/// Returns the newest of the sales that a stream opens with its first records. With a plan, several can be open.
fn newest_at_beginning(openings: &[(Seq, SaleId)]) -> Option<SaleId> {
    let (first, _) = openings.first()?;
    openings.iter().zip(*first..).take_while(|((seq, _), next)| seq == next).last().map(|((_, sale), _)| *sale)
}

/// What the database has of the log.
pub enum Persisted {
    /// No database is used.
    NoDatabase,
    /// The database does not answer.
    Unknown,
    /// The number of records in the database for each stream.
    Positions(BTreeMap<StreamKey, Seq>),
}

/// The damaged beginning of a purchase stream, of which no sale is needed any more.
#[derive(Clone, Debug)]
pub struct DamagedBeginning {
    /// Id of the stream.
    pub id: StreamId,
    /// Segments that the stream loses, oldest first.
    pub segments: Vec<SegmentName>,
    /// Number of records in the stream up to the end of these segments, or `None` if it is not known.
    pub last: Option<Seq>,
    damage: Damage,
}

impl DamagedBeginning {
    /// Judges the damage of the stream `id` by its sales, and takes the damaged beginning out of `names`. `end` is the
    /// end of the stream. Returns `None` if the damaged segments do not exist any more.
    ///
    /// # Errors
    /// The reason to end the process, if a sale may be needed or a file cannot be read.
    pub fn judge(
        (logs, id): (&Path, StreamId),
        (losses, end): (&Losses, &End),
        names: &mut Vec<SegmentName>,
        (openings, manifest): (&Openings, &Manifest),
        is_over: impl Fn(SaleId) -> bool,
    ) -> Result<Option<DamagedBeginning>, Fatal> {
        let damage = losses.first.clone();
        let is_lost = |name: &SegmentName| name.first_block < losses.end;
        let segments: Vec<_> = names.iter().copied().filter(is_lost).collect();
        if segments.is_empty() {
            return Ok(None);
        }
        names.retain(|name| !is_lost(name));
        let next = names.first().map(|name| name.records_before(logs)).transpose();
        let next = next.map_err(|error| Fatal::DataDir(format!("{}: {error}", logs.display())))?.flatten();
        let last = next.unwrap_or(end.records);
        let newest = [openings.newest_until(id.key(), last), manifest.newest_of(id.key())].into_iter().flatten().min();
        match newest {
            Some(newest) if is_over(newest) => {
                let last = Some(last).filter(|_| !losses.is_end_unknown);
                Ok(Some(DamagedBeginning { id, segments, last, damage }))
            }
            _ => Err(damage.fatal(logs)),
        }
    }

    /// Checks that the database has the records of the damaged segments, if there is one.
    ///
    /// # Errors
    /// The reason to end the process, if it may lack one.
    pub fn require_persisted(&self, logs: &Path, persisted: &Persisted) -> Result<(), Fatal> {
        let why = match persisted {
            Persisted::NoDatabase => return Ok(()),
            Persisted::Unknown => "its sales are over, but the database does not answer, and may lack its records",
            Persisted::Positions(positions) => {
                let position = positions.get(&self.id.key()).copied().unwrap_or(0);
                if self.last.is_some_and(|last| position >= last) {
                    return Ok(());
                }
                "its sales are over, but the database lacks some of its records"
            }
        };
        Err(match self.damage.fatal(logs) {
            Fatal::Damaged(damage) => Fatal::Damaged(format!("{damage}; {why}")),
            other => other,
        })
    }

    /// Returns the damage as text, with the number of segments.
    pub fn describe(&self) -> String {
        format!("{} ({} segments of ended sales)", self.damage, self.segments.len())
    }

    /// Renames the segments so that they are not read and not counted any more, the oldest first, with one log line.
    ///
    /// # Errors
    /// An I/O error if a file cannot be renamed. The call can be repeated.
    pub fn set_aside(&self, logs: &Path) -> io::Result<()> {
        let (segments, damage) = (self.segments.len(), &self.damage);
        self.segments.iter().try_for_each(|name| name.set_aside(logs))?;
        sync_dir(logs)?;
        let first = self.segments[0].file_name();
        let last = self.segments[segments - 1].file_name();
        tracing::warn!(
            %damage, segments, first, last,
            "the log is damaged in ended sales that nobody needs: these segments are renamed to *.damaged and not read \
             again; check the disk, then delete them"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::block::LogKind;
    use crate::log::sample::{PURCHASES, SampleStream};
    use crate::log::stream_files::{Stopped, StreamFiles};
    use crate::sale::ids::Terms;
    use std::convert::Infallible;

    /// Reads a stream and judges its damage. Sales up to `over` are over. `later` has the sales with which a later run begins.
    fn judge(sample: &SampleStream, over: u32, later: Option<u32>) -> Result<Option<DamagedBeginning>, Fatal> {
        judge_with(sample, over, later.as_slice(), &Manifest::default())
    }

    fn judge_with(
        sample: &SampleStream,
        over: u32,
        later: &[u32],
        manifest: &Manifest,
    ) -> Result<Option<DamagedBeginning>, Fatal> {
        let (mut files, mut openings) = (StreamFiles::new(sample.logs(), PURCHASES), Openings::default());
        let mut names = sample.names();
        while let Err(stopped) = files.pass(
            &names,
            |_, _| false,
            |seq, record| {
                openings.note(PURCHASES.key(), seq, record);
                Ok::<(), Infallible>(())
            },
        ) {
            let Stopped::Damaged(damage) = stopped else { panic!("the files can be read") };
            files.accept(damage);
        }
        for (seq, sale) in (1..).zip(later.iter().copied()) {
            let event = LogEvent::SaleOpened { items: 1, user_limit: 1, times: None, products: Terms::NO_PRODUCTS };
            let opened = Record { sale: SaleId(sale), unix_ms: 0, event };
            openings.note(StreamKey { log: LogKind::Purchases, epoch: 2, shard: 3 }, seq, &opened);
        }
        let Some(losses) = files.losses() else { return Ok(None) };
        let place = (sample.logs(), PURCHASES);
        let known = (&openings, manifest);
        DamagedBeginning::judge(place, (losses, files.end()), &mut names, known, |sale| sale.0 <= over)
    }

    /// Returns a stream with the sales 5, 6 and 7, each opened in the first block of a segment.
    fn sales() -> SampleStream {
        let mut sample = SampleStream::new(PURCHASES, 0);
        for sale in [5, 6, 7] {
            sample.open(sale);
            sample.write(3);
        }
        sample.seal();
        sample
    }

    #[test]
    fn a_segment_is_needed_until_the_sales_before_the_next_opening_are_over() {
        for (block, over, is_needed, last) in [
            (0, 4, true, 0),
            (0, 5, false, 4),
            (3, 5, false, 4),
            (5, 5, true, 0),
            (4, 6, false, 8),
            // Nothing in the stream follows, so the open sale may be concerned.
            (9, 6, true, 0),
            (9, 99, true, 0),
        ] {
            let sample = sales();
            sample.spoil(block);
            match judge(&sample, over, None) {
                Ok(Some(beginning)) => {
                    assert!(!is_needed, "block {block}, sale {over}");
                    assert_eq!((beginning.last, beginning.segments.len() as u64), (Some(last), last / 4), "{block}");
                }
                other => assert!(is_needed && matches!(other, Err(Fatal::Damaged(_))), "block {block}, sale {over}"),
            }
        }
    }

    #[test]
    fn a_later_run_bounds_the_sales_of_a_stream() {
        for (block, segments) in [(9, 3), (12, 4)] {
            let sample = sales();
            sample.spoil(block);
            assert!(judge(&sample, 7, Some(8)).is_err(), "the later run may have continued sale 8");
            let beginning = judge(&sample, 8, Some(8)).unwrap().expect("the segments exist");
            assert_eq!((beginning.segments.len(), beginning.last), (segments, Some(12)), "block {block}");
        }
    }

    /// Sale 9 is open beside sale 8, and longer.
    #[test]
    fn a_later_run_may_have_continued_each_of_the_sales_with_which_it_begins() {
        let sample = sales();
        sample.spoil(9);
        let judge = |over| judge_with(&sample, over, &[8, 9], &Manifest::default());
        assert!(judge(8).is_err());
        assert!(judge(9).unwrap().is_some());
    }

    #[test]
    fn the_manifest_bounds_the_sales_of_a_stream_that_it_does_not_list() {
        let sample = sales();
        sample.spoil(9);
        let listed = Manifest::new(SaleId(8), vec![(PURCHASES.epoch, PURCHASES.shard, 12)]).with_run(2, 1);
        let unlisted = Manifest::new(SaleId(8), vec![]).with_run(2, 1);
        for (manifest, over, is_needed) in [(&listed, 7, true), (&unlisted, 6, true), (&unlisted, 7, false)] {
            assert_eq!(judge_with(&sample, over, &[8], manifest).is_err(), is_needed, "{over}");
        }
    }

    #[test]
    fn records_that_the_database_may_lack_are_needed() {
        let sample = sales();
        sample.spoil(1);
        let beginning = judge(&sample, 6, None).unwrap().expect("the segments exist");
        let positions = |position| Persisted::Positions(BTreeMap::from([(PURCHASES.key(), position)]));
        for (persisted, is_needed) in [
            (Persisted::NoDatabase, false),
            (Persisted::Unknown, true),
            (positions(3), true),
            (positions(4), false),
            (Persisted::Positions(BTreeMap::new()), true),
        ] {
            assert_eq!(beginning.require_persisted(sample.logs(), &persisted).is_err(), is_needed);
        }
        let before = sample.names();
        beginning.set_aside(sample.logs()).unwrap();
        beginning.set_aside(sample.logs()).expect("the call can be repeated");
        assert_eq!(sample.names(), before[1..]);
    }
}
