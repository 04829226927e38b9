//! Checks every answer against what was asked, when, and what was promised before.

use super::shadow::{Promise, Shadow};
use crate::code::Code;
use crate::command::{Command, Outcome};
use crate::types::{ItemId, SaleId, UserId};

/// A request, and the world when it was made.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub shard: u16,
    pub command: Command,
    pub at_ms: u64,
    /// How much had happened.
    pub event: u64,
}

/// The world when an answer comes.
pub struct Now<'a> {
    /// The newest sale of any shard.
    pub sale: SaleId,
    pub at_ms: u64,
    pub run: u32,
    pub ttl_ms: u64,
    /// Whether a purchase of this item of this sale is durable.
    pub is_sold: &'a dyn Fn(SaleId, ItemId) -> bool,
    /// Whether a buyer gave back what this code holds, durably or not, heard of or not.
    pub is_cancelled: &'a dyn Fn(Code) -> bool,
    /// Since which event the item, or the user's quota, has been free without a break.
    pub item_free_since: Option<u64>,
    pub user_free_since: Option<u64>,
}

/// Checks an answer, and remembers what it promises.
pub fn audit(shadow: &mut Shadow, asked: Asked, outcome: Outcome, now: &Now<'_>) {
    let Asked { command, at_ms, event, .. } = asked;
    match (command, outcome) {
        (Command::Checkout { item, user }, Outcome::Reserved { code, sale, item: got, .. }) => {
            assert_eq!(item, got, "another item than asked for");
            // The hold began after it was asked for. An answer may come so late that it is over already.
            let promise = Promise { sale, item, user, good_until_ms: at_ms + now.ttl_ms, run: now.run };
            let earlier = shadow.codes.insert(*code.as_bytes(), promise);
            assert!(earlier.is_none(), "a code given out twice");
        }
        (Command::Checkout { item, .. }, Outcome::ItemSold { sale, item: of }) => {
            assert!(item == of && (now.is_sold)(sale, item), "{item:?} is called sold and is not");
        }
        (Command::Checkout { item, .. }, Outcome::ItemReserved) => {
            assert!(now.item_free_since.is_none_or(|since| since > event), "{item:?} was free all the time");
        }
        (Command::Checkout { user, .. }, Outcome::UserLimit) => {
            assert!(now.user_free_since.is_none_or(|since| since > event), "{user:?} was below the limit all the time");
        }
        (Command::Checkout { item, .. }, Outcome::NoSuchItem) => assert!(item.0 > 0, "item 0 always exists"),
        (Command::Purchase { code, key }, Outcome::Purchased { sale, item }) => {
            let &Promise { sale: of, item: promised, user, .. } =
                shadow.codes.get(code.as_bytes()).expect("an invented code bought something");
            assert_eq!((sale, item), (of, promised), "another item than reserved");
            assert!(!shadow.released.contains(code.as_bytes()), "a released hold was bought");
            assert!((now.is_sold)(sale, item), "acknowledged before it is durable");
            if let Some(before) = shadow.bought.insert((sale, item), (code, key)) {
                assert!(before == (code, key) && !key.is_nil(), "{item:?} sold twice, once to {user:?}");
            }
        }
        (Command::Cancel { code }, Outcome::Released) => {
            let &Promise { sale, item, .. } =
                shadow.codes.get(code.as_bytes()).expect("an invented code released something");
            assert!(shadow.bought.get(&(sale, item)).is_none_or(|(by, _)| *by != code), "a bought item was released");
            assert!(shadow.released.insert(*code.as_bytes()), "a hold was released twice");
        }
        (Command::Purchase { code, .. } | Command::Cancel { code }, refusal) => refused(shadow, code, refusal, now),
        (_, other) => panic!("{command:?} answered {other:?}"),
    }
}

fn refused(shadow: &Shadow, code: Code, refusal: Outcome, now: &Now<'_>) {
    let promise = shadow.codes.get(code.as_bytes());
    match refusal {
        Outcome::SaleEnded => assert!(promise.is_none_or(|promise| promise.sale < now.sale), "the sale goes on"),
        Outcome::CodeExpired => {
            let is_early = |promise: &Promise| promise.run == now.run && now.at_ms < promise.good_until_ms;
            let is_kept = promise.is_some_and(is_early) && !(now.is_cancelled)(code);
            assert!(!is_kept, "a hold was shortened");
        }
        Outcome::CodeUsed => {
            let is_sold = promise.is_none_or(|promise| (now.is_sold)(promise.sale, promise.item));
            assert!(is_sold, "a code is called used, and its item is not sold");
        }
        Outcome::CodeUnknown => {}
        other => panic!("{code:?} answered {other:?}"),
    }
}

/// The user who asks for an item, if one does.
pub fn user_of(command: &Command) -> Option<UserId> {
    match command {
        Command::Checkout { user, .. } => Some(*user),
        _ => None,
    }
}
