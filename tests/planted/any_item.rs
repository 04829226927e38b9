//! The planted bugs of checkouts of any item.

use crate::rules::{Bug, SIM};

/// The bugs, by subject.
pub const ANY_ITEM: &[Bug] = &[
    Bug {
        what: "an item whose hold has ended is not among the free items",
        file: "sale/stock.rs",
        place: "self.counts.held -= 1;\n        «self.products.give_back(&mut self.slots, slot as u32);»\n        hold",
        wrong: "",
        caught_by: SIM,
    },
    Bug {
        what: "an item that a checkout names stays among the free items",
        file: "sale/stock.rs",
        place: "«self.products.take(&mut self.slots, slot as u32);»",
        wrong: "",
        caught_by: SIM,
    },
    Bug {
        what: "a sale with a pending purchase counts as sold out",
        file: "sale/any_unit.rs",
        place: "self.all_published(sale, product).map(|numbers| «u64::from(numbers.sold)»)",
        wrong: "u64::from(numbers.sold + numbers.reserved)",
        caught_by: SIM,
    },
    Bug {
        what: "a search ends at the first shard that has no free item",
        file: "sale/any_unit.rs",
        place: "match «others.find(|owner| self.may_have_free(sale, place, *owner, now))» {",
        wrong: "others.next().filter(|owner| *owner == self.id)",
        caught_by: SIM,
    },
    Bug {
        what: "a hold that is over keeps its item from a checkout of any",
        file: "sale/any_unit.rs",
        place: "let (slot, hold) = «stock.expire(now.monotonic_ms)»?;",
        wrong: "None::<(usize, crate::sale::item_state::Hold)>",
        caught_by: SIM,
    },
    Bug {
        what: "a repeated checkout of any item gets a second item",
        file: "sale/any_unit.rs",
        place: "let Some((sale, item)) = «found» else",
        wrong: "found.filter(|_| false)",
        caught_by: SIM,
    },
    Bug {
        what: "two checkouts with one key that search at the same time get two items",
        file: "sale/any_unit.rs",
        place: "if «self.repeat_key(waiter, AnyCheckout { named, product, user, key }, now, effects)» {\n            return Verdict::Repeated;",
        wrong: "false",
        caught_by: SIM,
    },
    Bug {
        what: "the keys of checkouts of any item are lost in a crash",
        file: "log/replay.rs",
        place: "«part.any_keys.note(user, short(key), item);»",
        wrong: "",
        caught_by: SIM,
    },
    Bug {
        what: "a key of an ended hold keeps its item",
        file: "sale/shard.rs",
        place: "«part.any_keys.forget(user, key, item);»",
        wrong: "let _ = (item, key);",
        caught_by: SIM,
    },
    Bug {
        what: "a repeated checkout of any item is not found after the end of its sale",
        file: "sale/any_unit.rs",
        place: "filter(|part| «named.is_none_or(|named| part.terms.sale == named)»);",
        wrong: "part.terms.sale == self.parts.newest().terms.sale",
        caught_by: SIM,
    },
    Bug {
        what: "the keys of an ended sale are forgotten before its last hold",
        file: "sale/part.rs",
        place: "let holds_ms = «if self.any_keys.is_empty() { 0 } else { self.terms.longest_hold_ms() }»;",
        wrong: "0",
        caught_by: "sale::part::",
    },
    Bug {
        what: "a search ends all holds that are over at once",
        file: "sale/any_unit.rs",
        place: "for _ in 0..«EXPIRIES_PER_SEARCH» {",
        wrong: "usize::MAX",
        caught_by: "sim::alone_searching::",
    },
    Bug {
        what: "the items of a sale are shown with the states of a later one",
        file: "server/item_pages.rs",
        place: "Some(terms) if layer.is_some() && «!is_replaced» => Ok(terms),",
        wrong: "true",
        caught_by: "server::item_pages::",
    },
];
