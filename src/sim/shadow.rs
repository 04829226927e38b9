//! What must be true: every promise made to a buyer, and nothing of how the server keeps it.

use crate::sale::code::Code;
use crate::sale::ids::{ItemId, Moment, SaleId, UserId};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// A reservation that a buyer was told of.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    pub sale: SaleId,
    pub item: ItemId,
    pub user: UserId,
    /// It cannot run out before this: by the monotonic clock in this run, by the other one in later runs of this era.
    pub good_until: Moment,
    pub run: u32,
    pub era: u32,
}

/// Everything promised.
#[derive(Default)]
pub struct Shadow {
    /// By code.
    pub codes: BTreeMap<[u8; 16], Promise>,
    /// Purchases acknowledged, with the code and the key that bought.
    pub bought: BTreeMap<(SaleId, ItemId), (Code, Uuid)>,
    /// Holds acknowledged as released.
    pub released: BTreeSet<[u8; 16]>,
}

impl Shadow {
    /// What the user has bought in a sale, as far as anyone was told.
    pub fn bought_by(&self, user: UserId, sale: SaleId) -> usize {
        let codes = self.bought.iter().filter(|((of, _), _)| *of == sale).map(|(_, (code, _))| code);
        codes.filter(|code| self.codes[code.as_bytes()].user == user).count()
    }

    /// A machine is lost, and only what `is_kept` says of purchases came to the next one.
    pub fn forget(&mut self, is_kept: impl Fn(SaleId, ItemId, Code) -> bool) {
        self.bought.retain(|&(sale, item), &mut (code, _)| is_kept(sale, item, code));
        self.released.clear();
    }
}
