//! Exemplars of the latencies: for each bucket, the newest request of a sampled trace. So a graph of the latencies leads to
//! traces that another system has.

use crate::http::operation::Operation;
use crate::operate::counters::TIMES_US;
use std::array;
use std::fmt::{self, Display, Formatter};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use strum::EnumCount;

/// Number of buckets of the latencies.
const BUCKETS: usize = TIMES_US.len() + 1;

/// A request in a sampled trace, from its `traceparent` header (W3C Trace Context §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampledRequest {
    trace_id: u128,
    /// Id of the span of the client that has sent the request.
    parent_id: u64,
}

impl SampledRequest {
    /// Reads a valid `traceparent`. Returns `None` if the trace is not sampled, so that nobody could find it.
    pub fn of(traceparent: &str) -> Option<SampledRequest> {
        let mut parts = traceparent.split('-').skip(1);
        let trace_id = u128::from_str_radix(parts.next()?, 16).ok()?;
        let parent_id = u64::from_str_radix(parts.next()?, 16).ok()?;
        let flags = u8::from_str_radix(parts.next()?, 16).ok()?;
        (flags & 1 == 1).then_some(SampledRequest { trace_id, parent_id })
    }
}

/// One request as an example of the latencies in its bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exemplar {
    request: SampledRequest,
    us: u64,
    unix_ms: u64,
}

impl Display for Exemplar {
    /// Writes the exemplar as it stands at the end of the line of a bucket (OpenMetrics 1.0, "Exemplars").
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let Exemplar { request: SampledRequest { trace_id, parent_id }, us, unix_ms } = self;
        write!(formatter, " # {{trace_id=\"{trace_id:032x}\",span_id=\"{parent_id:016x}\"}} ")?;
        write!(formatter, "{} {}.{:03}", *us as f64 / 1e6, unix_ms / 1000, unix_ms % 1000)
    }
}

/// The newest exemplar of each bucket of an operation.
pub type BucketExemplars = [Option<Exemplar>; BUCKETS];

/// An exemplar that one thread writes and any thread reads: a sequence lock, whose writer never waits.
#[derive(Debug, Default)]
struct ExemplarCell {
    /// Twice the number of exemplars written so far, and one more while another is being written.
    version: AtomicU64,
    /// The trace id in two words, the parent id, the microseconds and the time.
    words: [AtomicU64; 5],
}

impl ExemplarCell {
    fn write(&self, Exemplar { request: SampledRequest { trace_id, parent_id }, us, unix_ms }: Exemplar) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        let words = [(trace_id >> 64) as u64, trace_id as u64, parent_id, us, unix_ms];
        self.words.iter().zip(words).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
        self.version.store(version + 2, Ordering::Release);
    }

    /// Returns the exemplar, or `None` if there is none or if it is being replaced.
    fn read(&self) -> Option<Exemplar> {
        let version = self.version.load(Ordering::Acquire);
        let [high, low, parent_id, us, unix_ms] = array::from_fn(|word| self.words[word].load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let is_whole = version > 0 && version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        let trace_id = u128::from(high) << 64 | u128::from(low);
        is_whole.then_some(Exemplar { request: SampledRequest { trace_id, parent_id }, us, unix_ms })
    }
}

/// The exemplars of one shard, by operation. An operation without a sampled request takes no memory.
#[derive(Debug, Default)]
pub struct Exemplars([OnceLock<Box<[ExemplarCell; BUCKETS]>>; Operation::COUNT]);

impl Exemplars {
    /// Keeps a request that took `us` microseconds in place of the one before in its bucket. Only the shard may call it.
    pub fn keep(&self, operation: Operation, request: SampledRequest, us: u64, unix_ms: u64) {
        let cells = self.0[operation as usize].get_or_init(Box::default);
        cells[TIMES_US.partition_point(|bound| *bound < us)].write(Exemplar { request, us, unix_ms });
    }

    /// Returns the exemplars of an operation.
    fn of(&self, operation: Operation) -> BucketExemplars {
        let cells = self.0[operation as usize].get();
        cells.map_or([None; BUCKETS], |cells| array::from_fn(|bucket| cells[bucket].read()))
    }
}

/// Returns the newest exemplars of an operation among those of all shards.
pub fn newest<'a>(shards: impl Iterator<Item = &'a Exemplars>, operation: Operation) -> BucketExemplars {
    shards.map(|shard| shard.of(operation)).fold([None; BUCKETS], |newest, other| {
        array::from_fn(|bucket| [newest[bucket], other[bucket]].into_iter().flatten().max_by_key(|one| one.unix_ms))
    })
}

/// The exemplars of a series of buckets, with its labels as they stand in the text.
pub struct Annotation {
    /// The labels, such as `method="POST",route="/checkout"`.
    pub labels: String,
    /// The exemplars, from the lowest bucket on.
    pub exemplars: BucketExemplars,
}

/// Returns the text of the metrics with exemplars at the buckets of the histogram `metric`. The encoder takes none for a
/// histogram that it has not counted itself, so they are added to its lines.
pub fn annotate(text: &str, metric: &str, annotations: &[Annotation]) -> String {
    let mut annotated = String::with_capacity(text.len() + 128 * annotations.len());
    let start = format!("{metric}_bucket{{");
    // The buckets of a series follow each other in ascending order.
    let mut buckets = vec![0; annotations.len()];
    for line in text.lines() {
        annotated.push_str(line);
        let labels = line.strip_prefix(&start);
        let series = labels.and_then(|labels| annotations.iter().position(|series| labels.contains(&series.labels)));
        if let Some(series) = series {
            let exemplar = annotations[series].exemplars.get(buckets[series]).copied().flatten();
            buckets[series] += 1;
            annotated.extend(exemplar.map(|exemplar| exemplar.to_string()));
        }
        annotated.push('\n');
    }
    annotated
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn only_sampled_traces_are_examples() {
        let found =
            SampledRequest { trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, parent_id: 0x00f0_67aa_0ba9_02b7 };
        assert_eq!(SampledRequest::of(SAMPLED), Some(found));
        assert_eq!(SampledRequest::of(&SAMPLED.replace("-01", "-03")), Some(found));
        assert_eq!(SampledRequest::of(&SAMPLED.replace("-01", "-02")), None);
        // A later version can have further parts.
        assert_eq!(SampledRequest::of(&format!("{}-x", SAMPLED.replacen("00", "cc", 1))), Some(found));
    }

    #[test]
    fn the_newest_request_of_each_bucket_is_its_example() {
        let (one, other) = (Exemplars::default(), Exemplars::default());
        let request = SampledRequest::of(SAMPLED).unwrap();
        one.keep(Operation::Checkout, request, 60, 1_000);
        one.keep(Operation::Checkout, request, 70, 2_000);
        other.keep(Operation::Checkout, request, 100, 1_500);
        other.keep(Operation::Checkout, request, 20_000_001, 1_007);
        other.keep(Operation::Purchase, request, 1, 9);
        let shown = newest([&one, &other].into_iter(), Operation::Checkout).map(|one| one.map(|one| one.to_string()));
        let ids = "trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\",span_id=\"00f067aa0ba902b7\"";
        let expected = [(1, format!(" # {{{ids}}} 0.00007 2.000")), (17, format!(" # {{{ids}}} 20.000001 1.007"))];
        assert!((0..BUCKETS).all(|bucket| {
            shown[bucket] == expected.iter().find(|(place, _)| *place == bucket).map(|(_, text)| text.clone())
        }));
    }

    /// A scrape sees whole exemplars only, while requests come.
    #[test]
    fn no_exemplar_is_a_mixture_of_two() {
        let cell = ExemplarCell::default();
        let of = |number| Exemplar {
            request: SampledRequest { trace_id: u128::from(number) << 64 | u128::from(number), parent_id: number },
            us: number,
            unix_ms: number,
        };
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| (1..200_000).for_each(|number| cell.write(of(number))));
            let mut seen = 0;
            while !writer.is_finished() {
                if let Some(exemplar) = cell.read() {
                    assert_eq!(exemplar, of(exemplar.us));
                    seen += 1;
                }
            }
            assert!(seen > 0 || cell.read() == Some(of(199_999)));
        });
    }

    #[test]
    fn exemplars_stand_at_the_buckets_of_their_series() {
        let exemplars = Exemplars::default();
        exemplars.keep(Operation::Checkout, SampledRequest::of(SAMPLED).unwrap(), 60, 1_000);
        let labels = |route: &str| format!("method=\"POST\",route=\"{route}\"");
        let of = |operation| newest([&exemplars].into_iter(), operation);
        let series = [("/checkout", Operation::Checkout), ("/purchase", Operation::Purchase)];
        let series = series.map(|(route, of_it)| Annotation { labels: labels(route), exemplars: of(of_it) });
        let line = |name: &str, route, le: &str| format!("{name}{{{},le=\"{le}\"}} 1", labels(route));
        let text = ["/checkout", "/checkout/extend", "/purchase"].map(|route| {
            ["5e-5", "0.0001"].map(|le| line("a_seconds_bucket", route, le) + "\n").concat()
                + &line("b_bucket", route, "1")
                + "\n"
        });
        let annotated = annotate(&text.concat(), "a_seconds", &series);
        let added: Vec<_> = annotated.lines().enumerate().filter(|(_, line)| line.contains('#')).collect();
        let Some(exemplar) = of(Operation::Checkout)[1] else { panic!() };
        assert_eq!(added, [(1, &*(line("a_seconds_bucket", "/checkout", "0.0001") + &exemplar.to_string()))]);
        assert_eq!(annotated.replace(&exemplar.to_string(), ""), text.concat());
    }
}
