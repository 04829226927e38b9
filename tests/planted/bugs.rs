//! The wrong lines.

/// A wrong version of a line.
pub struct Bug {
    /// What it does.
    pub what: &'static str,
    /// Where: in this file of `src`,
    pub file: &'static str,
    /// here, an expression or statements between « and »,
    pub place: &'static str,
    /// with this instead.
    pub wrong: &'static str,
    /// The tests that catch it: those with this in their name.
    pub caught_by: &'static str,
}

/// The simulator.
const SIM: &str = "sim::every";

/// All of them, in the order of the map.
pub const BUGS: &[Bug] = &[
    // --- the rules ---
    Bug {
        what: "an item that is sold is sold again",
        file: "sale.rs",
        place: "State::Sold => «Err(Unavailable::Sold)»,",
        wrong: "{ item.state = State::Claiming; self.counts.sold -= 1; self.counts.claiming += 1; Ok(()) }",
        caught_by: SIM,
    },
    Bug {
        what: "one item more than the limit",
        file: "sale.rs",
        place: "let granted = «*taken < self.limit»;",
        wrong: "*taken <= self.limit",
        caught_by: SIM,
    },
    Bug {
        what: "a quota is granted and not counted",
        file: "sale.rs",
        place: "«*taken += u32::from(granted);»",
        wrong: "",
        caught_by: SIM,
    },
    Bug {
        what: "a hold can be given back while its purchase is being written",
        file: "sale.rs",
        place: "State::Committing => «Cancellation::Preceded»,",
        wrong: "{ let item = &mut self.slots[slot]; item.state = State::Free; self.counts.committing -= 1; \
                Cancellation::Released(Hold { user: item.user, code, expires_ms: 0 }) }",
        caught_by: SIM,
    },
    Bug {
        what: "an old code of the item buys what another holds",
        file: "sale.rs",
        place: "let item = &self.slots[slot];\n        if «item.code != code» {\n            return Confirmation::Unknown;",
        wrong: "item.code == Code::NONE",
        caught_by: SIM,
    },
    Bug {
        what: "no key is a key, too",
        file: "sale.rs",
        place: "let same_request = «!key.is_nil() && item.key == key»;",
        wrong: "item.key == key",
        caught_by: SIM,
    },
    Bug {
        what: "a repeated purchase is answered before the first is durable",
        file: "sale.rs",
        place: "State::Committing if same_request => «Confirmation::Joined»,",
        wrong: "Confirmation::Replayed",
        caught_by: SIM,
    },
    Bug {
        what: "a hold can be bought a while after its end",
        file: "sale.rs",
        place: "State::Held if «item.expires_ms <= now_ms» => Confirmation::Expired,",
        wrong: "item.expires_ms + 50 <= now_ms",
        caught_by: "sale::",
    },
    Bug {
        what: "holds end in the order in which they began",
        file: "sale.rs",
        place: "while «after != NIL && self.slots[after as usize].expires_ms > expires_ms» {",
        wrong: "false",
        caught_by: "sale::",
    },
    // --- the protocol ---
    Bug {
        what: "a reservation is told before it is durable",
        file: "shard.rs",
        place: "«self.defer(Deferred::Answer(Waiter { origin, ticket }, outcome));»",
        wrong: "self.answer(origin, Reply::Answer { ticket, outcome }, now, effects);",
        caught_by: SIM,
    },
    Bug {
        what: "a purchase is told before it is durable",
        file: "shard.rs",
        place: "«return self.defer_purchase(Deferred::Sell { sale, item, waiter: Some(waiter) });»",
        wrong: "self.defer_purchase(Deferred::Sell { sale, item, waiter: None }); Outcome::Purchased { sale, item }",
        caught_by: SIM,
    },
    Bug {
        what: "a release is told before it is durable",
        file: "shard.rs",
        place: "«return self.defer(Deferred::Answer(waiter, Outcome::Released));»",
        wrong: "Outcome::Released",
        caught_by: SIM,
    },
    Bug {
        what: "a purchase that was promised to Postgres waits for the disk only",
        file: "shard.rs",
        place: "self.waiting.push(«self.rules.purchase_ack», self.appended, deferred);",
        wrong: "Watermark::Flushed",
        caught_by: SIM,
    },
    Bug {
        what: "a quota is given back before the release is durable",
        file: "shard.rs",
        place: "«self.defer(Deferred::GiveBack { sale, user });»",
        wrong: "let owner = self.partition.owner_of_user(user); \
                self.ask(owner, Request::Release { sale, user }, now, effects);",
        caught_by: SIM,
    },
    Bug {
        what: "an item that is being bought is called sold",
        file: "shard.rs",
        place: "Err(Unavailable::Reserved) => («Outcome::ItemReserved», Some(RefusalReason::ItemReserved)),",
        wrong: "Outcome::ItemSold { sale, item }",
        caught_by: SIM,
    },
    Bug {
        what: "a claim of the last sale counts in this one",
        file: "shard.rs",
        place: "let granted = «sale == self.terms.sale && self.quotas.claim(user)»;",
        wrong: "self.quotas.claim(user)",
        caught_by: SIM,
    },
    Bug {
        what: "a release of the last sale counts in this one",
        file: "shard.rs",
        place: "Request::Release { sale, user } => {\n                if «sale == self.terms.sale» {",
        wrong: "sale <= self.terms.sale",
        caught_by: SIM,
    },
    Bug {
        what: "a grant of the last sale reserves an item of this one",
        file: "shard.rs",
        place: "if «sale != self.terms.sale» {\n            // The slot",
        wrong: "sale == SaleId(u32::MAX)",
        caught_by: SIM,
    },
    Bug {
        what: "a purchase of the last sale sells an item of this one",
        file: "shard.rs",
        place: "if «sale == self.terms.sale» {\n                        self.stock.sell",
        wrong: "sale <= self.terms.sale",
        caught_by: SIM,
    },
    Bug {
        what: "who bought as the sale ended is never told",
        file: "shard.rs",
        place: "if let Some(waiter) = «waiter» {\n                        self.tell",
        wrong: "waiter.filter(|_| sale == self.terms.sale)",
        caught_by: SIM,
    },
    Bug {
        what: "what was sold in the last sale is still called sold",
        file: "shard.rs",
        place: "«self.known_sold = Self::nothing_sold(&self.terms);»",
        wrong: "",
        caught_by: SIM,
    },
    Bug {
        what: "readers are told that what has run out is still held",
        file: "shard.rs",
        place: "«self.note(slot, Availability::Available, effects);»",
        wrong: "",
        caught_by: SIM,
    },
    Bug {
        what: "readers are told of this sale what was true of the last one",
        file: "board.rs",
        place: "|to| «word == sale.0 << 2 | *to as u32»",
        wrong: "word & 3 == *to as u32",
        caught_by: SIM,
    },
    Bug {
        what: "an item stays claimed by a user at the limit",
        file: "shard.rs",
        place: "«self.stock.deny(slot);»",
        wrong: "",
        caught_by: SIM,
    },
    Bug {
        what: "a hold runs out and the log is not told",
        file: "shard.rs",
        place: "«self.log_release(item, hold, ReleaseReason::Expired, now, effects);»",
        wrong: "let _ = item; self.defer(Deferred::GiveBack { sale: self.terms.sale, user: hold.user });",
        caught_by: SIM,
    },
    Bug {
        what: "a new sale begins and the log is not told",
        file: "shard.rs",
        place: "«self.append(Record::sale_opened(&self.terms, now.unix_ms), effects);»",
        wrong: "",
        caught_by: SIM,
    },
    Bug {
        what: "a clock that goes back opens an old sale again",
        file: "shard.rs",
        place: "if «sale <= self.terms.sale» {\n            return;",
        wrong: "sale == self.terms.sale",
        caught_by: SIM,
    },
    Bug {
        what: "everything waits one record less than it must",
        file: "waiting.rs",
        place: "|(needs, _)| «*needs <= reached»",
        wrong: "*needs <= reached + 1",
        caught_by: SIM,
    },
    Bug {
        what: "a purchase is forgotten with its client",
        file: "waiting.rs",
        place: "waiter.take_if(|waiter| *waiter == gone);\n                    «true»",
        wrong: "waiter.is_some()",
        caught_by: SIM,
    },
    // --- recovery ---
    Bug {
        what: "recovery does not count what users have",
        file: "replay.rs",
        place: "«self.quotas(user).restore(user);»",
        wrong: "",
        caught_by: SIM,
    },
    Bug {
        what: "recovery gives a hold more time than was agreed when the clock went back",
        file: "replay.rs",
        place: "let left_ms = «ends_unix_ms.saturating_sub(self.now.unix_ms).min(u64::from(ttl_ms))»;",
        wrong: "ends_unix_ms.saturating_sub(self.now.unix_ms)",
        caught_by: SIM,
    },
    Bug {
        what: "recovery ends all holds",
        file: "replay.rs",
        place: "let expires_ms = «self.now.monotonic_ms + left_ms»;",
        wrong: "{ let _ = left_ms; self.now.monotonic_ms }",
        caught_by: SIM,
    },
    Bug {
        what: "recovery begins an older sale than the log knows",
        file: "replay.rs",
        place: "Some((terms, shards)) if «terms.sale >= current» => (terms, shards),",
        wrong: "terms.sale == current",
        caught_by: SIM,
    },
    // --- the log ---
    Bug {
        what: "the idempotency key is not written",
        file: "record.rs",
        place: "(raw.code, raw.key) = (*code.as_bytes(), «key.into_bytes()»);",
        wrong: "{ let _ = key; [0; 16] }",
        caught_by: SIM,
    },
    Bug {
        what: "user ids are cut to 32 bits",
        file: "record.rs",
        place: "Event::Checkout { item, user, code, ttl_ms } => {\n                (raw.kind, raw.item, raw.user, raw.ttl_ms) = (2, item.0, «user.0», ttl_ms);",
        wrong: "i64::from(user.0 as i32)",
        caught_by: "record::",
    },
    Bug {
        what: "checksums are not compared",
        file: "block.rs",
        place: "&& «checksum(block) == sum»;",
        wrong: "{ let _ = sum; true }",
        caught_by: SIM,
    },
    Bug {
        what: "a block may follow any other",
        file: "stream.rs",
        place: "&& «header.previous_checksum == end.checksum»;",
        wrong: "true",
        caught_by: "stream::",
    },
    Bug {
        what: "a bad block is always taken for a torn one",
        file: "stream.rs",
        place: "if «header.flushed > known» {",
        wrong: "false",
        caught_by: SIM,
    },
    Bug {
        what: "a torn block is taken for a bad one",
        file: "stream.rs",
        place: "let known = «*known.get_or_insert(header.flushed)»;",
        wrong: "known.get_or_insert(header.flushed).saturating_sub(1)",
        caught_by: SIM,
    },
    Bug {
        what: "a seal proves nothing",
        file: "stream.rs",
        place: "flushed: «self.records»,",
        wrong: "0",
        caught_by: SIM,
    },
    // --- Postgres ---
    Bug {
        what: "a database set back to before a takeover is not noticed",
        file: "ownership.rs",
        place: "_ if «is_older && memory.filled.is_some_and(is_before)» => Err(Conflict::OlderThanTheLog),",
        wrong: "{ let _ = is_before; false }",
        caught_by: SIM,
    },
    Bug {
        what: "a database that lacks records is taken for one that has them",
        file: "ownership.rs",
        place: "Ok(«at.max(first)»)",
        wrong: "end.unwrap_or(at).max(first)",
        caught_by: SIM,
    },
];
