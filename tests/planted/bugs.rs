//! The table of planted bugs.

/// A wrong version of a place in the sources.
pub struct Bug {
    /// Effect of the bug.
    pub what: &'static str,
    /// File in `src`.
    pub file: &'static str,
    /// Text of the file, with the expression or statements to replace between « and ».
    pub place: &'static str,
    /// Replacement for the marked part.
    pub wrong: &'static str,
    /// Part of the names of the tests that run. One of them must catch the bug.
    pub caught_by: &'static str,
}

/// Part of the name of the simulator's test.
const SIM: &str = "sim::every";

/// All planted bugs, by subject.
pub const BUGS: &[Bug] = &[
    // --- the rules ---
    Bug {
        what: "a sold item can be sold again",
        file: "sale/stock.rs",
        place: "ItemState::Sold => «Err(Unavailable::Sold)»,",
        wrong: "{ item.state = ItemState::Claiming; self.counts.sold -= 1; self.counts.claiming += 1; Ok(()) }",
        caught_by: SIM,
    },
    Bug {
        what: "a user can hold one item more than the limit",
        file: "sale/quotas.rs",
        place: "let granted = «*taken < self.limit»;",
        wrong: "*taken <= self.limit",
        caught_by: SIM,
    },
    Bug {
        what: "a granted claim is not counted in the user's quota",
        file: "sale/quotas.rs",
        place: "«*taken += u32::from(granted);»",
        wrong: "",
        caught_by: SIM,
    },
    Bug {
        what: "a hold can be cancelled while its purchase is being written",
        file: "sale/stock.rs",
        place: "ItemState::Buying => «Cancellation::PurchasePending»,",
        wrong: "{ let item = &mut self.slots[slot]; item.state = ItemState::Free; self.counts.buying -= 1; \
                Cancellation::Released(Hold { user: item.user, code, expires_ms: 0 }) }",
        caught_by: SIM,
    },
    Bug {
        what: "an old code of an item buys another user's hold",
        file: "sale/stock.rs",
        place: "let item = &self.slots[slot];\n        if «item.code != code» {\n            return Confirmation::Unknown;",
        wrong: "item.code == Code::NONE",
        caught_by: SIM,
    },
    Bug {
        what: "two purchases without an idempotency key count as the same request",
        file: "sale/stock.rs",
        place: "let same_request = «!key.is_nil() && item.key == key»;",
        wrong: "item.key == key",
        caught_by: SIM,
    },
    Bug {
        what: "a repeated purchase is acknowledged before the first is durable",
        file: "sale/stock.rs",
        place: "ItemState::Buying if same_request => «Confirmation::SamePurchasePending»,",
        wrong: "Confirmation::AlreadyBought",
        caught_by: SIM,
    },
    Bug {
        what: "an expired hold can still be bought for 50 ms",
        file: "sale/stock.rs",
        place: "ItemState::Held if «item.expires_ms <= now_ms» => Confirmation::Expired,",
        wrong: "item.expires_ms + 50 <= now_ms",
        caught_by: "sale::",
    },
    Bug {
        what: "holds expire in the order in which they were granted",
        file: "sale/stock.rs",
        place: "while «after != NIL && self.slots[after as usize].expires_ms > expires_ms» {",
        wrong: "false",
        caught_by: "sale::",
    },
    // --- the protocol ---
    Bug {
        what: "a checkout is acknowledged before it is durable",
        file: "sale/shard.rs",
        place: "let outcome = Outcome::Reserved { code, sale, item, expires_unix_ms };\n        «self.defer(Deferred::Answer(waiter, outcome));»",
        wrong: "self.answer(origin, Reply::Answer { ticket, outcome }, now, effects);",
        caught_by: SIM,
    },
    Bug {
        what: "a purchase is acknowledged before it is durable",
        file: "sale/shard.rs",
        place: "«return self.defer_purchase(Deferred::FinishPurchase { sale, item, waiter: Some(waiter) });»",
        wrong: "self.defer_purchase(Deferred::FinishPurchase { sale, item, waiter: None }); Outcome::Purchased { sale, item }",
        caught_by: SIM,
    },
    Bug {
        what: "a cancellation is acknowledged before it is durable",
        file: "sale/shard.rs",
        place: "«return self.defer(Deferred::Answer(waiter, Outcome::Released));»",
        wrong: "Outcome::Released",
        caught_by: SIM,
    },
    Bug {
        what: "a purchase that must wait for Postgres waits only for the disk",
        file: "sale/shard.rs",
        place: "self.waiting.push(«self.rules.purchase_ack», self.appended, deferred);",
        wrong: "Watermark::Flushed",
        caught_by: SIM,
    },
    Bug {
        what: "a quota is released before the release record is durable",
        file: "sale/shard.rs",
        place: "«self.defer(Deferred::ReturnQuota { sale, user });»",
        wrong: "let owner = self.partition.owner_of_user(user); \
                self.ask(owner, Request::Release { sale, user }, now, effects);",
        caught_by: SIM,
    },
    Bug {
        what: "a reserved item is refused as sold",
        file: "sale/shard.rs",
        place: "Err(Unavailable::Reserved) => («Outcome::ItemReserved», Some(RefusalReason::ItemReserved)),",
        wrong: "Outcome::ItemSold { sale, item }",
        caught_by: SIM,
    },
    Bug {
        what: "a claim of the previous sale counts in the current sale",
        file: "sale/shard.rs",
        place: "let granted = «checkout.sale == self.terms.sale && self.quotas.claim(checkout.user)»;",
        wrong: "self.quotas.claim(checkout.user)",
        caught_by: SIM,
    },
    Bug {
        what: "a release of the previous sale counts in the current sale",
        file: "sale/shard.rs",
        place: "Request::Release { sale, user } => {\n                if «sale == self.terms.sale» {",
        wrong: "sale <= self.terms.sale",
        caught_by: SIM,
    },
    Bug {
        what: "a grant of the previous sale reserves an item of the current sale",
        file: "sale/shard.rs",
        place: "if «sale != self.terms.sale» {\n            return self.answer(origin, Reply::SaleChanged { ticket, item, user }, now, effects);\n        }\n        let slot = self.partition.slot_of(item);\n        if !granted",
        wrong: "sale == SaleId(u32::MAX)",
        caught_by: SIM,
    },
    Bug {
        what: "a purchase of the previous sale sells an item of the current sale",
        file: "sale/shard.rs",
        place: "if «sale == self.terms.sale» {\n                        self.stock.sell",
        wrong: "sale <= self.terms.sale",
        caught_by: SIM,
    },
    Bug {
        what: "a purchase that becomes durable after the end of its sale gets no response",
        file: "sale/shard.rs",
        place: "if let Some(waiter) = «waiter» {\n                        self.answer_request",
        wrong: "waiter.filter(|_| sale == self.terms.sale)",
        caught_by: SIM,
    },
    Bug {
        what: "items sold in the previous sale stay sold in the current sale",
        file: "sale/shard.rs",
        place: "«self.known_sold = Self::nothing_sold(&self.terms);»",
        wrong: "",
        caught_by: SIM,
    },
    Bug {
        what: "readers see an item with an expired hold as still held",
        file: "sale/shard.rs",
        place: "«self.publish_change(slot, Availability::Available, effects);»\n            let item",
        wrong: "",
        caught_by: SIM,
    },
    Bug {
        what: "readers see item states of the previous sale in the current sale",
        file: "operate/item_states.rs",
        place: "|to| «word == sale.0 << 2 | *to as u32»",
        wrong: "word & 3 == *to as u32",
        caught_by: SIM,
    },
    Bug {
        what: "an item stays claimed when its user is at the limit",
        file: "sale/shard.rs",
        place: "«self.stock.deny(slot);»",
        wrong: "",
        caught_by: SIM,
    },
    Bug {
        what: "an expired hold is not logged",
        file: "sale/shard.rs",
        place: "«self.log_release(item, hold, ReleaseReason::Expired, now, effects);»",
        wrong: "let _ = item; self.defer(Deferred::ReturnQuota { sale: self.terms.sale, user: hold.user });",
        caught_by: SIM,
    },
    Bug {
        what: "the start of a new sale is not logged",
        file: "sale/shard.rs",
        place: "«self.append(Record::sale_opened(&self.terms, now.unix_ms), effects);»",
        wrong: "",
        caught_by: SIM,
    },
    Bug {
        what: "a clock that goes back reopens an earlier sale",
        file: "sale/shard.rs",
        place: "if «sale <= self.terms.sale» {\n            return;",
        wrong: "sale == self.terms.sale",
        caught_by: SIM,
    },
    Bug {
        what: "every deferred response waits for one record too few",
        file: "sale/deferred.rs",
        place: "|(needs, _)| «*needs <= reached»",
        wrong: "*needs <= reached + 1",
        caught_by: SIM,
    },
    Bug {
        what: "a purchase is dropped when its client disconnects",
        file: "sale/deferred.rs",
        place: "waiter.take_if(|waiter| *waiter == gone);\n                    «true»",
        wrong: "waiter.is_some()",
        caught_by: SIM,
    },
    // --- the clock ---
    Bug {
        what: "a step of the system clock is followed at the second look",
        file: "system/discipline.rs",
        place: "if «step.lasted_us < STEP_LASTS_US» {",
        wrong: "step.lasted_us > STEP_LASTS_US",
        caught_by: "system::discipline",
    },
    Bug {
        what: "a step that is over still counts",
        file: "system/discipline.rs",
        place: "return «self.step.take()».map(|_| ClockChange::Returned);",
        wrong: "self.step.clone()",
        caught_by: "system::discipline",
    },
    // --- recovery ---
    Bug {
        what: "recovery does not restore the quotas of users",
        file: "log/replay.rs",
        place: "«self.quotas(user).restore(user);»",
        wrong: "",
        caught_by: SIM,
    },
    Bug {
        what: "recovery extends a hold beyond its duration if the clock went back",
        file: "log/replay.rs",
        place: "let left_ms = «ends_unix_ms.saturating_sub(self.now.unix_ms).min(u64::from(ttl_ms))»;",
        wrong: "ends_unix_ms.saturating_sub(self.now.unix_ms)",
        caught_by: SIM,
    },
    Bug {
        what: "recovery lets all holds expire",
        file: "log/replay.rs",
        place: "let expires_ms = «self.now.monotonic_ms + left_ms»;",
        wrong: "{ let _ = left_ms; self.now.monotonic_ms }",
        caught_by: SIM,
    },
    Bug {
        what: "recovery opens an earlier sale than the latest one in the log",
        file: "log/replay.rs",
        place: "Some((terms, shards)) if «terms.sale >= current» => (terms, shards),",
        wrong: "terms.sale == current",
        caught_by: SIM,
    },
    // --- the log ---
    Bug {
        what: "the idempotency key is not logged",
        file: "sale/record.rs",
        place: "(raw.code, raw.key) = (*code.as_bytes(), «key.into_bytes()»);",
        wrong: "{ let _ = key; [0; 16] }",
        caught_by: SIM,
    },
    Bug {
        what: "user IDs are truncated to 32 bits",
        file: "sale/record.rs",
        place: "Event::Checkout { item, user, code, ttl_ms } => {\n                (raw.kind, raw.item, raw.user, raw.ttl_ms) = (2, item.0.into(), «user.0».into(), ttl_ms.into());",
        wrong: "i64::from(user.0 as i32)",
        caught_by: "record::",
    },
    Bug {
        what: "checksums are not verified",
        file: "log/block.rs",
        place: "&& «checksum(block) == sum»;",
        wrong: "{ let _ = sum; true }",
        caught_by: SIM,
    },
    Bug {
        what: "the checksum of the previous block is not verified",
        file: "log/stream.rs",
        place: "&& «header.previous_checksum == end.checksum»;",
        wrong: "true",
        caught_by: "stream::",
    },
    Bug {
        what: "a damaged block is always taken for a torn tail",
        file: "log/stream.rs",
        place: "if «header.flushed > known» {",
        wrong: "false",
        caught_by: SIM,
    },
    Bug {
        what: "a torn tail is taken for damage",
        file: "log/stream.rs",
        place: "let known = «*known.get_or_insert(header.flushed)»;",
        wrong: "known.get_or_insert(header.flushed).saturating_sub(1)",
        caught_by: SIM,
    },
    Bug {
        what: "a seal does not prove that earlier records were durable",
        file: "log/stream.rs",
        place: "flushed: «self.records»,",
        wrong: "0",
        caught_by: SIM,
    },
    // --- Postgres ---
    Bug {
        what: "a database restored to a state before a takeover is not detected",
        file: "log/ownership.rs",
        place: "_ if «is_older && memory.filled.is_some_and(is_before)» => Err(Conflict::OlderThanFill),",
        wrong: "{ let _ = is_before; false }",
        caught_by: SIM,
    },
    Bug {
        what: "a database that lacks records is taken for one that has them",
        file: "log/ownership.rs",
        place: "Ok(«at.max(first)»)",
        wrong: "end.unwrap_or(at).max(first)",
        caught_by: SIM,
    },
];
