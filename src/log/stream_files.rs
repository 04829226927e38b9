//! Reads a stream from its segment files: every record once, in order, through one buffer, however long the stream is.
//! The rules are in `stream`; this file finds the segments, reads them in pieces, and continues where it has stopped.
//!
//! A stream can be read while it is written. Then a block that was not written yet when it was read looks damaged,
//! because a later block proves that it was durable, and a file that retention removes looks missing. So the caller
//! believes a damage of such a stream only if a second pass, begun after the first, finds it at the same block.

use crate::log::block::{BLOCK_BYTES, StreamId};
use crate::log::damage::{Damage, is_of_disk};
use crate::log::segment::SegmentName;
use crate::log::stream::{End, Ending, StreamReading};
use crate::sale::ids::Seq;
use crate::sale::record::Record;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Size of the buffer through which a stream is read, in bytes. Recovery needs no other memory that grows with the log
/// but the names of its segments.
pub const READ_BUFFER_BYTES: usize = 1 << 20;

/// A stream and the state of its reading.
pub struct StreamFiles {
    id: StreamId,
    logs: PathBuf,
    reading: StreamReading,
    losses: Option<Losses>,
}

/// What damage has cost a stream.
#[derive(Clone, Debug)]
pub struct Losses {
    /// The first damage.
    pub first: Damage,
    /// Number of the block after the last damage, or [`u64::MAX`] if the stream ends with it.
    pub end: u64,
    /// Whether records after the end of the stream may be lost.
    pub is_end_unknown: bool,
}

/// The reason why a pass over a stream ended early.
pub enum Stopped<E> {
    /// The stream looks damaged.
    Damaged(Damage),
    /// A file cannot be read now, or was removed after it was listed.
    Unreadable(io::Error),
    /// The visitor has refused a record.
    Refused(E),
}

impl<E> From<io::Error> for Stopped<E> {
    fn from(error: io::Error) -> Self {
        Stopped::Unreadable(error)
    }
}

impl StreamFiles {
    /// Creates the state of a stream that was not read yet. Its segments are in the directory `logs`.
    pub fn new(logs: &Path, id: StreamId) -> StreamFiles {
        StreamFiles { id, logs: logs.to_owned(), reading: StreamReading::new(id), losses: None }
    }

    /// Returns the end of the stream, as of the last pass.
    pub fn end(&self) -> &End {
        self.reading.end()
    }

    /// Returns the number of records that were removed from the beginning of the stream, if it is known.
    pub fn first(&self) -> Option<Seq> {
        self.reading.first()
    }

    /// Returns the damage that was accepted so far.
    pub fn losses(&self) -> Option<&Losses> {
        self.losses.as_ref()
    }

    /// Returns the number of records that the accepted damage has cost, as far as it is known.
    pub fn lost(&self) -> Seq {
        self.reading.lost()
    }

    /// Reads the records that were not read before, and passes each to `visit` with its number. `names` are all
    /// segments of the stream, in order. `is_enough` is asked after each segment, and ends the pass early.
    ///
    /// # Errors
    /// The reason why the pass has ended early. After [`Stopped::Damaged`], the next pass begins at the damage, or
    /// behind it after [`StreamFiles::accept`].
    pub fn pass<E>(
        &mut self,
        names: &[SegmentName],
        is_enough: impl Fn(&End, &SegmentName) -> bool,
        mut visit: impl FnMut(Seq, &Record) -> Result<(), E>,
    ) -> Result<(), Stopped<E>> {
        // Retention has removed the segment at which the last pass has stopped.
        if names.first().is_some_and(|name| name.first_block > self.end().blocks) {
            self.reading = StreamReading::new(self.id);
        }
        self.reading.rewind();
        let (mut buffer, from) = (vec![0; READ_BUFFER_BYTES], self.end().blocks);
        for name in names.iter().filter(|name| name.end_block() > from) {
            if self.end().ending == Ending::Sealed {
                return Ok(());
            }
            self.segment(name, from, &mut buffer, &mut visit)?;
            if is_enough(self.end(), name) {
                break;
            }
        }
        let is_accepted = self.losses.as_ref().is_some_and(|losses| losses.end == u64::MAX);
        let finished = self.reading.finish().map(drop).map_err(Stopped::Damaged);
        finished.or_else(|stopped| if is_accepted { Ok(()) } else { Err(stopped) })
    }

    /// Accepts the damage that the last pass has found: the next pass continues behind it.
    pub fn accept(&mut self, damage: Damage) {
        let is_short = matches!(damage, Damage::Short { .. });
        let is_end_unknown = is_short && !self.reading.lacks_only_seal();
        if !is_short {
            self.reading.resume();
        }
        // A file that is too short is found last, and ends the stream.
        let end = if is_short { u64::MAX } else { self.end().blocks };
        let first = self.losses.take().map_or(damage, |losses| losses.first);
        self.losses = Some(Losses { first, end, is_end_unknown });
    }

    /// Reads a segment from block `from` of the stream on, if it has that block, or else from its first block on.
    fn segment<E>(
        &mut self,
        name: &SegmentName,
        from: u64,
        buffer: &mut [u8],
        visit: &mut impl FnMut(Seq, &Record) -> Result<(), E>,
    ) -> Result<(), Stopped<E>> {
        let extent = name.extent();
        self.reading.begin(&extent).map_err(Stopped::Damaged)?;
        let mut next = from.max(name.first_block);
        let file = match File::open(name.path(&self.logs)) {
            Err(error) if is_of_disk(&error) => {
                let left = name.end_block() - next;
                return Err(Stopped::Damaged(self.reading.unreadable(&extent, next, left, error.to_string())));
            }
            opened => opened?,
        };
        let mut size = buffer.len();
        loop {
            let offset = (next - name.first_block) * BLOCK_BYTES as u64;
            let read = match read_at(&file, &mut buffer[..size], offset) {
                // Find the block that the disk has lost.
                Err(error) if is_of_disk(&error) && size > BLOCK_BYTES => {
                    size = BLOCK_BYTES;
                    continue;
                }
                Err(error) if is_of_disk(&error) => {
                    return Err(Stopped::Damaged(self.reading.unreadable(&extent, next, 1, error.to_string())));
                }
                read => read?,
            };
            let mut refused = None;
            let found = self.reading.blocks(&extent, next, &buffer[..read], |seq, record| {
                if refused.is_none() {
                    refused = visit(seq, record).err();
                }
                Ok(())
            });
            if let Some(refused) = refused {
                return Err(Stopped::Refused(refused));
            }
            found.map_err(Stopped::Damaged)?;
            if self.end().ending == Ending::Sealed {
                return Ok(());
            }
            if read < size {
                self.reading.close(&extent, offset as usize + read);
                return Ok(());
            }
            next += (size / BLOCK_BYTES) as u64;
        }
    }
}

/// Fills the buffer from a file, and returns the number of bytes read. It is smaller at the end of the file.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::sample::{PURCHASES, SampleStream};
    use std::convert::Infallible;

    /// Reads the stream and accepts all damage. Returns the state and the numbers of the records.
    fn read(sample: &SampleStream, names: &[SegmentName]) -> (StreamFiles, Vec<Seq>) {
        let (mut files, mut seqs) = (StreamFiles::new(sample.logs(), PURCHASES), Vec::new());
        loop {
            let passed = files.pass(
                names,
                |_, _| false,
                |seq, _| {
                    seqs.push(seq);
                    Ok::<(), Infallible>(())
                },
            );
            match passed {
                Ok(()) => return (files, seqs),
                Err(Stopped::Damaged(damage)) => files.accept(damage),
                Err(Stopped::Unreadable(error)) => panic!("{error}"),
                Err(Stopped::Refused(never)) => match never {},
            }
        }
    }

    /// Every block of a stream is damaged in turn. All other records are read once, and the end is found.
    #[test]
    fn reading_continues_behind_any_damage() {
        for is_sealed in [false, true] {
            for damaged in 0..10 {
                let mut sample = SampleStream::new(PURCHASES, 10);
                if is_sealed {
                    sample.seal();
                }
                sample.spoil(damaged);
                let (files, seqs) = read(&sample, &sample.names());
                let lost = damaged + 1;
                assert_eq!(seqs, (1..=10).filter(|seq| *seq != lost).collect::<Vec<_>>(), "block {damaged}");
                // Nothing proves that the last block was durable, unless there is a seal.
                let is_torn = damaged == 9 && !is_sealed;
                assert_eq!((files.losses().is_none(), files.lost()), (is_torn, u64::from(!is_torn)), "block {damaged}");
                let end = files.end();
                assert_eq!((end.blocks, end.records), if is_torn { (9, 9) } else { (10, 10) }, "block {damaged}");
                assert!(files.losses().is_none_or(|losses| losses.end == damaged + 1 && !losses.is_end_unknown));
            }
        }
    }

    #[test]
    fn a_bad_seal_costs_no_record_and_a_short_file_may() {
        let mut sample = SampleStream::new(PURCHASES, 6);
        sample.seal();
        sample.spoil(6);
        let (files, seqs) = read(&sample, &sample.names());
        let losses = files.losses().expect("the file is shorter than at its creation");
        assert_eq!((seqs.len(), losses.end, losses.is_end_unknown), (6, u64::MAX, false));
        sample.spoil(5);
        let (files, seqs) = read(&sample, &sample.names());
        assert_eq!((seqs.len(), files.losses().map(|losses| losses.is_end_unknown)), (5, Some(true)));
    }

    #[test]
    fn a_missing_segment_is_a_gap_even_before_empty_ones() {
        let sample = SampleStream::new(PURCHASES, 6);
        sample.make(8);
        let names = [0, 4, 8].map(|number| SampleStream::name(PURCHASES, number));
        assert!(read(&sample, &names).0.losses().is_none());
        let (files, seqs) = read(&sample, &[names[0], names[2]]);
        assert!(matches!(files.losses().unwrap().first, Damage::Gap { expected: 4, found: 8, .. }));
        assert_eq!(seqs, [1, 2, 3, 4]);
    }

    /// A pass stops at the end and continues there when more has been written.
    #[test]
    fn each_record_is_read_once() {
        let mut sample = SampleStream::new(PURCHASES, 3);
        let (mut files, mut seqs) = (StreamFiles::new(sample.logs(), PURCHASES), Vec::new());
        for blocks in [0, 1, 4, 0, 3] {
            sample.write(blocks);
            let passed = files.pass(
                &sample.names(),
                |_, _| false,
                |seq, _| {
                    seqs.push(seq);
                    Ok::<(), Infallible>(())
                },
            );
            assert!(passed.is_ok());
        }
        assert_eq!(seqs, (1..=11).collect::<Vec<_>>());
    }
}
