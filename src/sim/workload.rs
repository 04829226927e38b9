//! The commands of simulated buyers: reserve, buy, repeat with the same key, extend, cancel, guess codes.

use super::plans::named;
use super::shadow::{Promise, Shadow};
use crate::sale::code::Code;
use crate::sale::command::Command;
use crate::sale::ids::{ItemId, SaleId, UserId};
use crate::sale::sale_schedule::SaleSchedule;
use uuid::Uuid;

/// Number of users in a random world.
pub const USERS: i64 = 4;

/// Draws the command of the next buyer.
pub fn next(chance: &mut fastrand::Rng, schedule: &SaleSchedule, newest: SaleId, shadow: &Shadow) -> Command {
    let sale = named(chance, schedule, newest);
    match chance.u32(0..20) {
        // Item `items` does not exist. A third of the checkouts has no key.
        0..8 => Command::Checkout {
            sale,
            item: ItemId(chance.u32(0..=schedule.items_max())),
            user: UserId(chance.i64(0..USERS)),
            key: Uuid::from_u128(chance.u128(0..3)),
        },
        8..13 => {
            let key = Uuid::from_u128(chance.u128(0..3));
            Command::Purchase { code: some_code(chance, shadow), key }
        }
        13..15 => repeated_checkout(chance, sale.is_some(), shadow),
        15..17 => Command::Cancel { code: some_code(chance, shadow) },
        17..19 => Command::Extend { code: some_code(chance, shadow) },
        _ => Command::Purchase { code: Code::from_bytes([0x88; 16]), key: Uuid::nil() },
    }
}

/// Draws a checkout that was granted, mostly with its key, and with the name of its sale if `is_named`.
fn repeated_checkout(chance: &mut fastrand::Rng, is_named: bool, shadow: &Shadow) -> Command {
    let key = Uuid::from_u128(chance.u128(0..8));
    let code = some_code(chance, shadow);
    let Some(&Promise { sale, item, user, key: same, .. }) = shadow.codes.get(code.as_bytes()) else {
        return Command::Checkout { sale: None, item: ItemId(0), user: UserId(0), key };
    };
    Command::Checkout {
        sale: is_named.then_some(sale),
        item,
        user,
        key: if key.is_nil() { Uuid::from_u128(1) } else { same },
    }
}

/// Draws one of the codes issued so far or an invented code, each with the same probability.
fn some_code(chance: &mut fastrand::Rng, shadow: &Shadow) -> Code {
    let known = shadow.codes.len();
    let place = chance.usize(0..=known);
    let code = shadow.codes.keys().nth(place);
    code.map_or(Code::from_bytes([0x88; 16]), |bytes| Code::from_bytes(*bytes))
}
