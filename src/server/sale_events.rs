//! The sales that the subscribers of a shard follow, and their latest events, which all subscribers share.
//!
//! These are the open sales, or while none is open the one that `GET /sale` shows. Each change of them has a number. A
//! subscriber keeps only the number of the last change that it has received, so it needs the same memory for any number of
//! sales, and each event is rendered once for all subscribers.

use crate::http::bodies::{CurrentSale, Sale, SalePhase, StockEvent};
use crate::operate::shard_status::Sales;
use crate::sale::ids::Terms;
use crate::sale::sale_schedule::OPEN_MAX;
use crate::server::status_pages::{self, Facts};
use serde::Serialize;

/// Milliseconds without a change after which a subscriber gets a comment, so that no proxy closes the connection as
/// idle. Usual proxies time out after 15 s or more.
const KEEPALIVE_MS: u64 = 10_000;
/// Ended sales of which the last event is kept for the subscribers that have not received it. A subscriber that does not
/// read while more sales end does not receive the last events of the earlier ones.
const ENDED_KEPT: usize = OPEN_MAX;

/// The beginning of each stream: how many milliseconds a client waits before it reconnects.
const STREAM_START: &[u8] = b"retry: 1000\n\n";

/// What a subscriber has received.
#[derive(Clone, Copy, Debug, Default)]
pub struct SentState {
    /// Number of the last change. 0: nothing.
    change: u64,
    /// Monotonic time in ms of the last event or comment.
    at_ms: u64,
    /// The counts, if it was one sale.
    only: Option<Sales>,
}

const _: () = assert!(size_of::<SentState>() <= 32, "tens of thousands of subscribers are usual");

impl SentState {
    /// Reports whether the subscriber has received no event yet.
    pub fn is_nothing(&self) -> bool {
        self.change == 0
    }
}

/// A sale, as it was when the shard looked last.
#[derive(Debug)]
struct FollowedSale {
    terms: Terms,
    phase: Option<SalePhase>,
    counts: Sales,
    /// Whether subscribers follow the sale. Of an ended one, only its last event is kept.
    is_followed: bool,
    /// Number of the last change of anything but the counts.
    sale_change: u64,
    /// Number of the last change.
    change: u64,
    /// The events that tell the current state. They are empty until a subscriber needs them.
    sale_event: Vec<u8>,
    stock_event: Vec<u8>,
}

impl FollowedSale {
    fn new(terms: Terms) -> Self {
        let (phase, counts, is_followed, sale_change, change) = (None, Sales::default(), false, 0, 0);
        let (sale_event, stock_event) = (Vec::new(), Vec::new());
        FollowedSale { terms, phase, counts, is_followed, sale_change, change, sale_event, stock_event }
    }

    /// Notes the current state. A change gets the next number of `changes`.
    fn note(&mut self, is_followed: bool, phase: Option<SalePhase>, counts: Sales, changes: &mut u64) {
        let is_same = (self.is_followed, self.phase) == (is_followed, phase);
        if is_same && self.counts == counts {
            return;
        }
        *changes += 1;
        self.change = *changes;
        if !is_same {
            self.sale_change = *changes;
        }
        (self.is_followed, self.phase, self.counts) = (is_followed, phase, counts);
        self.sale_event.clear();
        self.stock_event.clear();
    }

    /// Returns the event for a subscriber that has received the changes up to `sent`, if it needs one.
    fn event(&mut self, sent: u64) -> Option<&[u8]> {
        let is_needed = if sent == 0 { self.is_followed } else { self.change > sent };
        if !is_needed {
            return None;
        }
        let is_whole = self.sale_change > sent;
        let event = if is_whole { &mut self.sale_event } else { &mut self.stock_event };
        if event.is_empty() {
            let sale = status_pages::sale(self.terms, self.counts);
            let Sale { sale_id, sold, reserved, available, .. } = sale;
            match is_whole {
                true => render(event, "sale", &CurrentSale { sale, phase: self.phase }),
                false => render(event, "stock", &StockEvent { sale_id, sold, reserved, available }),
            }
        }
        Some(event)
    }
}

/// Writes a server-sent event (HTML standard §9.2).
fn render(out: &mut Vec<u8>, event: &str, data: &impl Serialize) {
    for part in ["event: ", event, "\ndata: "] {
        out.extend_from_slice(part.as_bytes());
    }
    serde_json::to_writer(&mut *out, data).expect("numbers and times are JSON");
    out.extend_from_slice(b"\n\n");
}

/// The followed sales of one shard, and the last ones that have ended, in the order of their openings.
#[derive(Debug, Default)]
pub struct SaleEvents {
    sales: Vec<FollowedSale>,
    /// Number of the last change.
    changes: u64,
}

impl SaleEvents {
    /// Notes the current state of the sales.
    pub fn update(&mut self, facts: &Facts<'_>) {
        let (Some(on_sale), status, changes) = (&facts.sale, facts.status, &mut self.changes) else { return };
        let phase_of = |terms, counts| on_sale.has_plan().then(|| status_pages::phase_of(on_sale, terms, counts));
        let open = || on_sale.parts.open(on_sale.now).copied();
        let shown = open().next().is_none().then(|| on_sale.terms());
        for terms in open().chain(shown) {
            let counts = status.sales(terms.sale);
            let place = self.sales.binary_search_by_key(&terms.sale, |known| known.terms.sale);
            let at = place.unwrap_or_else(|at| {
                self.sales.insert(at, FollowedSale::new(terms));
                at
            });
            self.sales[at].note(true, phase_of(terms, counts), counts, changes);
        }
        self.sales.retain_mut(|known| {
            let (terms, phase) = (known.terms, known.phase);
            if !known.is_followed || on_sale.is_open(terms.sale) || shown == Some(terms) {
                return true;
            }
            let counts = status.sales(terms.sale);
            known.note(false, phase_of(terms, counts), counts, changes);
            // Without a plan there are no phases: the event of the next sale says that this one has ended.
            known.phase != phase
        });
        self.forget_ended();
    }

    fn forget_ended(&mut self) {
        loop {
            let ended = self.sales.iter().filter(|known| !known.is_followed);
            if ended.clone().count() <= ENDED_KEPT {
                return;
            }
            let oldest = ended.map(|known| known.change).min();
            self.sales.retain(|known| known.is_followed || Some(known.change) != oldest);
        }
    }

    /// Writes the events that a subscriber has not received, or a comment after [`KEEPALIVE_MS`] without one.
    pub fn write(&mut self, sent: &mut SentState, now_ms: u64, out: &mut Vec<u8>) {
        let before = out.len();
        let only = if let [only] = &self.sales[..] { Some(only.counts) } else { None };
        // Counts that have changed and changed back are no news.
        let is_back = only.is_some() && only == sent.only && self.sales[0].sale_change <= sent.change;
        if sent.change != self.changes && !is_back {
            if sent.is_nothing() {
                out.extend_from_slice(STREAM_START);
            }
            for event in self.sales.iter_mut().filter_map(|known| known.event(sent.change)) {
                out.extend_from_slice(event);
            }
            (sent.change, sent.only) = (self.changes, only);
        } else if !sent.is_nothing() && now_ms >= sent.at_ms + KEEPALIVE_MS {
            out.extend_from_slice(b":\n\n");
        }
        if out.len() > before {
            sent.at_ms = now_ms;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::item_states::ItemStates;
    use crate::operate::status::{Phase, Status};
    use crate::sale::ids::{Moment, SaleId, ShardId};
    use crate::sale::part::Part;
    use crate::sale::partition::Partition;
    use crate::sale::parts::Parts;
    use crate::sale::published_stock::PublishedStock;
    use crate::sale::sale_schedule::{PeriodicSale, SaleSchedule, SaleSeries};
    use crate::server::item_pages::OnSale;

    const SALES: PeriodicSale = PeriodicSale { period_s: 3600, items: 10, user_limit: 2, ttl_ms: 1, extension_ms: 0 };
    const SCHEDULE: SaleSchedule = SaleSchedule::Periodic(SALES);

    /// A shard with subscribers.
    struct Followed {
        status: Status,
        item_states: ItemStates,
        schedule: SaleSchedule,
        events: SaleEvents,
    }

    impl Followed {
        fn new(schedule: SaleSchedule) -> Self {
            let status = Status::new(Phase::Serving, 1, 0, false);
            let item_states = ItemStates::new(Partition::new(1), schedule, &[]);
            Followed { status, item_states, schedule, events: SaleEvents::default() }
        }

        fn count(&self, sale: u32, sold: u32, reserved: u32) {
            let sale = SaleId(sale);
            self.status.shards[0].publish_sales(PublishedStock { sale, sold, reserved, ..PublishedStock::default() });
        }

        /// Looks at the sales at this time. The shard has begun those up to `newest`.
        fn look(&mut self, newest: u32, unix_ms: u64) {
            let begun = (0..=newest).filter_map(|sale| self.schedule.terms(SaleId(sale)));
            let begun: Vec<_> = begun.filter(|terms| terms.opens_ms <= unix_ms).collect();
            let part = |terms: &Terms| Part::empty(*terms, Partition::new(1), ShardId(0));
            let begun = if begun.is_empty() { vec![Terms::NONE] } else { begun };
            let parts = Parts::new(ShardId(0), Partition::new(1), begun.iter().map(part).collect());
            let (now, schedule) = (Moment { monotonic_ms: unix_ms, unix_ms }, self.schedule);
            let sale = Some(OnSale { parts: &parts, item_states: &self.item_states, schedule, now });
            self.events.update(&Facts { status: &self.status, sale, known: None });
        }

        fn hear(&mut self, sent: &mut SentState, now_ms: u64) -> String {
            let mut out = Vec::new();
            self.events.write(sent, now_ms, &mut out);
            String::from_utf8(out).unwrap()
        }
    }

    fn stock(sale: u32, sold: u32, reserved: u32, available: u32) -> String {
        let counts = format!("\"sold\":{sold},\"reserved\":{reserved},\"available\":{available}");
        format!("event: stock\ndata: {{\"sale_id\":{sale},{counts}}}\n\n")
    }

    /// Returns the sale, the phase and the counts of each event of a text.
    fn told(text: &str) -> Vec<(&str, u32, String, [u32; 2])> {
        let event = |event: &'_ str| {
            let (_, data) = event.split_once("data: ").unwrap();
            let data: serde_json::Value = serde_json::from_str(data).unwrap();
            let number = |name: &str| data[name].as_u64().unwrap() as u32;
            let phase = data["phase"].as_str().unwrap_or_default().to_owned();
            (number("sale_id"), phase, [number("sold"), number("reserved")])
        };
        let events = text.split("event: ").skip(1);
        events
            .map(|text| {
                let (kind, (sale, phase, counts)) = (text.lines().next().unwrap(), event(text));
                (kind, sale, phase, counts)
            })
            .collect()
    }

    #[test]
    fn each_hears_what_is_new_to_it_and_signs_of_life() {
        let (mut shard, mut sent) = (Followed::new(SCHEDULE), SentState::default());
        let mut hear = |sale: u32, sold, now_ms| {
            shard.count(sale, sold, 1);
            shard.look(sale, u64::from(sale) * 3_600_000);
            shard.hear(&mut sent, now_ms)
        };
        let first = hear(7, 2, 1000);
        assert_eq!(
            first,
            "retry: 1000\n\nevent: sale\ndata: {\"sale_id\":7,\"starts_at\":\"1970-01-01T07:00:00.000Z\",\
             \"ends_at\":\"1970-01-01T08:00:00.000Z\",\"items_total\":10,\"sold\":2,\"reserved\":1,\"available\":7,\
             \"user_limit\":2}\n\n"
        );
        assert_eq!(hear(7, 2, 10_999), "");
        assert_eq!(hear(7, 2, 11_000), ":\n\n");
        assert_eq!(hear(7, 3, 16_500), stock(7, 3, 1, 6));
        assert_eq!(hear(7, 3, 26_499), "");
        let next = hear(8, 3, 26_500);
        assert!(next.starts_with("event: sale\ndata: {\"sale_id\":8,") && next.ends_with("}\n\n"), "{next}");
    }

    /// Another subscriber made the shard look while the counts were different.
    #[test]
    fn counts_that_change_back_are_no_news() {
        let (mut shard, mut sent) = (Followed::new(SCHEDULE), SentState::default());
        let now_ms = 7 * 3_600_000;
        shard.look(7, now_ms);
        shard.hear(&mut sent, 1);
        for (sold, heard) in [(1, false), (0, true)] {
            shard.count(7, sold, 0);
            shard.look(7, now_ms);
            if heard {
                assert_eq!(shard.hear(&mut sent, 2), "");
            }
        }
        assert_eq!(shard.hear(&mut sent, 10_001), ":\n\n");
        shard.count(7, 1, 0);
        shard.look(7, now_ms);
        assert_eq!(shard.hear(&mut sent, 10_002), stock(7, 1, 0, 9));
    }

    fn series(id: u32, opens_ms: u64, closes_ms: u64) -> SaleSeries {
        let first = Terms { opens_ms, closes_ms, ..SALES.terms(SaleId(id)) };
        SaleSeries { first, every_ms: 0, count: 1, layer: 0 }
    }

    #[test]
    fn every_open_sale_is_followed_to_its_end() {
        let planned = vec![series(3, 100, 900), series(4, 200, 400), series(5, 300, 800), series(9, 2_000, 3_000)];
        let (mut shard, mut sent) = (Followed::new(SaleSchedule::planned(planned)), SentState::default());
        let mut hear = |changes: &[(u32, u32, u32)], now_ms| {
            changes.iter().for_each(|&(sale, sold, reserved)| shard.count(sale, sold, reserved));
            shard.look(9, now_ms);
            let text = shard.hear(&mut sent, now_ms);
            // A subscriber that comes now hears the same of the followed sales, and nothing of ended ones.
            (text, shard.hear(&mut SentState::default(), now_ms))
        };
        let sale = |id, phase: &str, counts| ("sale", id, phase.to_owned(), counts);
        let (text, _) = hear(&[], 50);
        assert_eq!(told(&text), [sale(3, "next", [0, 0])]);
        let (text, first) = hear(&[(3, 1, 0)], 300);
        let open = [sale(3, "open", [1, 0]), sale(4, "open", [0, 0]), sale(5, "open", [0, 0])];
        assert_eq!(told(&text), open);
        assert_eq!(first, format!("retry: 1000\n\n{text}"));
        assert_eq!(hear(&[(3, 1, 1), (5, 2, 0)], 310).0, [stock(3, 1, 1, 8), stock(5, 2, 0, 8)].concat());
        assert_eq!(hear(&[], 320).0, "");

        // Sale 4 closes while an item is held. Its end is told once, and later changes of its counts are not.
        let (text, first) = hear(&[(4, 0, 2), (5, 3, 0)], 400);
        assert_eq!(told(&text), [sale(4, "closing", [0, 2]), ("stock", 5, String::new(), [3, 0])]);
        assert_eq!(told(&first), [sale(3, "open", [1, 1]), sale(5, "open", [3, 0])]);
        assert_eq!(hear(&[(4, 2, 0)], 410).0, "");

        // The last ones close, and the next one is told.
        let (text, first) = hear(&[(3, 2, 0)], 1_000);
        assert_eq!(told(&text), [sale(3, "closed", [2, 0]), sale(5, "closed", [3, 0]), sale(9, "next", [0, 0])]);
        assert_eq!(told(&first), [sale(9, "next", [0, 0])]);
        assert_eq!(told(&hear(&[(9, 0, 1)], 2_500).0), [sale(9, "open", [0, 1])]);
        assert_eq!(told(&hear(&[], 3_000).0), [sale(9, "closing", [0, 1])], "no sale follows, so it stays");
        assert_eq!(told(&hear(&[(9, 1, 0)], 3_500).0), [sale(9, "closed", [1, 0])]);
    }

    #[test]
    fn the_ends_of_a_bounded_number_of_sales_are_kept() {
        const SHORT: u64 = 2 * ENDED_KEPT as u64;
        let short = (0..SHORT).map(|number| series(10 + number as u32, 10 * number, 10 * number + 10));
        let long = series(1, 0, 10_000);
        let schedule = SaleSchedule::planned([long].into_iter().chain(short).collect());
        let (mut shard, mut sent) = (Followed::new(schedule), SentState::default());
        shard.look(1, 0);
        shard.hear(&mut sent, 0);
        (0..SHORT).for_each(|number| shard.look(100, 10 * number));
        assert_eq!(shard.events.sales.len(), ENDED_KEPT + 2);
        let text = shard.hear(&mut sent, 1_000);
        let told: Vec<_> = told(&text).into_iter().map(|(_, sale, phase, _)| (sale, phase)).collect();
        let ended = SHORT as u32 - 1 - ENDED_KEPT as u32..SHORT as u32 - 1;
        let ended = ended.map(|number| (10 + number, "closed".to_owned()));
        let open = (10 + SHORT as u32 - 1, "open".to_owned());
        assert_eq!(told, ended.chain([open]).collect::<Vec<_>>());
        assert!(text.len() < 16 * 1024, "{} bytes wait for a client that does not read", text.len());
    }
}
