//! The naive model: remembers every promise made to a buyer and checks each answer against it.

use crate::code::Code;
use crate::command::{Command, Outcome};
use crate::types::{ItemId, SaleId, UserId};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// What buyers were promised.
#[derive(Default)]
pub struct Shadow {
    /// Every code ever handed out, with its item and buyer.
    pub codes: BTreeMap<[u8; 16], (SaleId, ItemId, UserId)>,
    /// Every purchase acknowledged, with the code and the key that bought it.
    pub bought: BTreeMap<(SaleId, ItemId), (Code, Uuid)>,
    /// Holds acknowledged as released.
    released: BTreeSet<[u8; 16]>,
}

impl Shadow {
    /// Checks an answer and remembers what it promises. `sale` is the newest sale of any shard.
    pub fn answered(&mut self, command: Command, outcome: Outcome, sale: SaleId) {
        match (command, outcome) {
            (Command::Checkout { item, user }, Outcome::Reserved { code, sale: of, item: got, .. }) => {
                assert_eq!(item, got, "another item than asked for");
                // An answer may come so late that its hold is over and the item even sold: then the code buys nothing.
                let earlier = self.codes.insert(*code.as_bytes(), (of, item, user));
                assert_eq!(earlier, None, "a code given out twice");
            }
            (Command::Purchase { code, key }, Outcome::Purchased { sale: of, item }) => {
                let &(sale, promised, user) =
                    self.codes.get(code.as_bytes()).expect("an invented code bought something");
                assert_eq!((of, item), (sale, promised), "another item than reserved");
                assert!(!self.released.contains(code.as_bytes()), "a released hold was bought");
                if let Some(before) = self.bought.insert((sale, item), (code, key)) {
                    assert!(before == (code, key) && !key.is_nil(), "{item:?} sold twice, once to {user:?}");
                }
            }
            (Command::Cancel { code }, Outcome::Released) => {
                let &(sale, item, _) = self.codes.get(code.as_bytes()).expect("an invented code released something");
                assert!(self.bought.get(&(sale, item)).is_none_or(|(by, _)| *by != code), "a bought item was released");
                assert!(self.released.insert(*code.as_bytes()), "a hold was released twice");
            }
            (Command::Checkout { .. }, Outcome::ItemSold { .. } | Outcome::ItemReserved | Outcome::UserLimit) => {}
            (Command::Checkout { item, .. }, Outcome::NoSuchItem) => assert!(item.0 > 0, "item 0 always exists"),
            (Command::Purchase { code, .. } | Command::Cancel { code }, refusal) => match refusal {
                Outcome::SaleEnded => assert!(self.sale_of(code).is_none_or(|of| of < sale), "the sale goes on"),
                Outcome::CodeUsed | Outcome::CodeExpired | Outcome::CodeUnknown => {}
                other => panic!("{command:?} answered {other:?}"),
            },
            (_, other) => panic!("{command:?} answered {other:?}"),
        }
    }

    fn sale_of(&self, code: Code) -> Option<SaleId> {
        self.codes.get(code.as_bytes()).map(|&(sale, _, _)| sale)
    }

    /// What the user has bought in a sale, as far as anyone was told.
    pub fn bought_by(&self, user: UserId, sale: SaleId) -> usize {
        let codes = self.bought.iter().filter(|((of, _), _)| *of == sale).map(|(_, (code, _))| code);
        codes.filter(|code| self.codes[code.as_bytes()].2 == user).count()
    }
}
