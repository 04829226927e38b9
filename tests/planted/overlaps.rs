//! The planted bugs of sales that are open at once, and of paused ones.

use crate::rules::{Bug, SIM};

/// The bugs, by subject.
pub const OVERLAPS: &[Bug] = &[
    Bug {
        what: "the log makes room for a sale only when it opens",
        file: "sale/parts.rs",
        place: "let openings = «self.prepared.iter()».chain([&self.newest]).map(|part| part.terms.opens_ms);",
        wrong: "self.prepared.range(..0)",
        caught_by: "sim::alone",
    },
    Bug {
        what: "the log makes room for one of the sales that are open together",
        file: "sale/parts.rs",
        place: "filter(move |part| «is_open(part, at_ms)»).map(items).sum();",
        wrong: "is_open(part, at_ms) && part.terms.opens_ms == at_ms",
        caught_by: "sim::alone",
    },
    Bug {
        what: "a checkout that names no sale gets an item of one of several",
        file: "sale/parts.rs",
        place: "if has_newest && «!self.overlap()» {",
        wrong: "true",
        caught_by: SIM,
    },
    Bug {
        what: "of the sales that open together, only one begins",
        file: "sale/shard.rs",
        place: "for terms in «self.rules.schedule.open_with(newest, self.newest().sale)» {",
        wrong: "self.rules.schedule.open_with(newest, SaleId(newest.sale.0.saturating_sub(1)))",
        caught_by: SIM,
    },
    Bug {
        what: "the log of a new run does not open the earlier of two sales that overlap",
        file: "sale/shard.rs",
        place: "for terms in «begun_last» {",
        wrong: "begun_last.last().copied().into_iter().collect::<Vec<_>>()",
        caught_by: SIM,
    },
    Bug {
        what: "a checkout that names its sale repeats one of another sale",
        file: "sale/owner_steps.rs",
        place: "let is_asked = «!is_named || part.terms.sale == sale»;",
        wrong: "true",
        caught_by: SIM,
    },
    Bug {
        what: "a sale that closes when another one opens is open beside it",
        file: "sale/parts.rs",
        place: "«now.unix_ms.max(self.newest.terms.opens_ms)»",
        wrong: "now.unix_ms",
        caught_by: SIM,
    },
    Bug {
        what: "the items of sales that overlap are shown in one place",
        file: "sale/sale_schedule.rs",
        place: "«other.last().closes_ms > rest[0].first.opens_ms»",
        wrong: "other.count == 0",
        caught_by: SIM,
    },
    Bug {
        what: "a paused sale grants checkouts",
        file: "sale/owner_steps.rs",
        place: "let is_paused = «part.terms.is_paused»;",
        wrong: "false",
        caught_by: SIM,
    },
    Bug {
        what: "of several open sales, subscribers follow the one that has opened last",
        file: "server/sale_events.rs",
        place: "            «self.sales[at].note(true, phase_of(terms, counts), counts, changes);»",
        wrong: "if terms.sale >= on_sale.parts.newest().terms.sale { \
                self.sales[at].note(true, phase_of(terms, counts), counts, changes); }",
        caught_by: "server::sale_events",
    },
    Bug {
        what: "subscribers are not told that a sale has closed beside another one",
        file: "server/sale_events.rs",
        place: "«known.phase != phase»",
        wrong: "false",
        caught_by: "server::sale_events",
    },
    Bug {
        what: "operators do not see the reserved items of a sale that has closed",
        file: "operate/live_sales.rs",
        place: "«sale.is_open || sale.counts.reserved > 0»",
        wrong: "sale.is_open",
        caught_by: "operate::live_sales",
    },
    Bug {
        what: "an image without a sale is fresh when another sale has opened",
        file: "server/item_pages.rs",
        place: "«next.opens_ms.min(shown.closes_ms)»",
        wrong: "shown.closes_ms",
        caught_by: "server::item_pages",
    },
    Bug {
        what: "streams of an open sale may be missing when a newer one has opened",
        file: "log/replay.rs",
        place: "Some(end_ms) => «end_ms <= self.now.unix_ms.max(newest_opens_ms)»,",
        wrong: "end_ms <= newest_opens_ms || !self.is_newest(until)",
        caught_by: "log::replay",
    },
    Bug {
        what: "a damaged stream is given up although a sale is open that is newer than another open one",
        file: "log/losses.rs",
        place: ".take_while(|((seq, _), next)| «seq == next»).last()",
        wrong: "seq == next && seq == first",
        caught_by: "log::losses",
    },
];
