//! The planted bugs of two machines on one database.

use crate::rules::Bug;

/// Part of the name of the simulator's test of pairs.
const PAIR: &str = "sim::pair::every";

/// The bugs, by subject.
pub const TWO_MACHINES: &[Bug] = &[
    Bug {
        what: "the owner answers without a lease",
        file: "operate/lease.rs",
        place: "«now_us >= self.until_us()»",
        wrong: "{ let _ = now_us; false }",
        caught_by: PAIR,
    },
    Bug {
        what: "the lease does not end earlier when the connection to the database is lost",
        file: "operate/lease.rs",
        place: "«self.until_us.store(until_us.min(self.until_us()), Ordering::Release);»",
        wrong: "let _ = until_us;",
        caught_by: PAIR,
    },
    Bug {
        what: "two standbys take over from each other for ever",
        file: "postgres/owner_watch.rs",
        place: "} else if «self.pair.is_none() || self.seen_running == id» {",
        wrong: "{ let _ = id; true }",
        caught_by: PAIR,
    },
    Bug {
        what: "a claim that has vanished with its primary keeps the server from starting",
        file: "postgres/claim.rs",
        place: "match «first_found.filter(is_before)» {",
        wrong: "first_found.filter(is_before).filter(|_| false)",
        caught_by: PAIR,
    },
    Bug {
        what: "a quota is given back when the release is flushed, before it is replicated",
        file: "sale/shard.rs",
        place: "«self.defer_hold(Deferred::ReturnQuota { sale, item, user, key });»",
        wrong: "self.waiting.push(Watermark::Flushed, self.appended, Deferred::ReturnQuota { sale, item, user, key });",
        caught_by: PAIR,
    },
    Bug {
        what: "a primary that confirms no commit is used for ever",
        file: "config/host_choice.rs",
        place: "if «before + 1 < SESSIONS» {",
        wrong: "{ let _ = (before, SESSIONS, hosts); true }",
        caught_by: "host_choice::",
    },
    // --- what is modelled ---
    Bug {
        what: "a takeover does not raise the epoch in the transaction that reads",
        file: "sim/pair_database.rs",
        place: "let owner = «Owner { cluster: CLUSTER, run }»;",
        wrong: "found.owner",
        caught_by: PAIR,
    },
    Bug {
        what: "a takeover reads before the transactions of the old owner have ended",
        file: "sim/replicated_postgres.rs",
        place: "if «!is_free» {",
        wrong: "!is_free && !matches!(statement, Statement::Lock)",
        caught_by: PAIR,
    },
    Bug {
        what: "a takeover trusts rows that are not replicated",
        file: "sim/pair_database.rs",
        place: "(Task::TakeOver(_, Some((owner, records))), DatabaseReply::Committed { counts }) if «counts» => {",
        wrong: "{ let _ = counts; true }",
        caught_by: PAIR,
    },
    Bug {
        what: "a claim trusts rows that are not replicated",
        file: "sim/pair_database.rs",
        place: "(Task::Claim(positions), DatabaseReply::Committed { counts }) if «counts» => {",
        wrong: "{ let _ = counts; true }",
        caught_by: PAIR,
    },
    Bug {
        what: "a promise is acknowledged after a commit that is not replicated",
        file: "sim/pair_database.rs",
        place: "(Task::Report(rows), DatabaseReply::Committed { counts }) if «counts» => {",
        wrong: "{ let _ = counts; true }",
        caught_by: PAIR,
    },
];
