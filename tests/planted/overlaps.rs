//! The planted bugs of sales that are open at once, and of paused ones.

use crate::rules::{Bug, SIM};

/// The bugs, by subject.
pub const OVERLAPS: &[Bug] = &[
    Bug {
        what: "the log makes room for a sale only when it opens",
        file: "sale/parts.rs",
        place: "let parts = «self.prepared.iter()».chain([&self.newest]);",
        wrong: "self.prepared.range(..0)",
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
];
