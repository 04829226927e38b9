//! What buyers do: reserve, buy, try again with the same key, hoard, give back, guess.

use super::shadow::Shadow;
use crate::sale::code::Code;
use crate::sale::command::Command;
use crate::sale::ids::{ItemId, UserId};
use uuid::Uuid;

pub const USERS: i64 = 4;

/// What the next buyer asks.
pub fn next(chance: &mut fastrand::Rng, items: u32, shadow: &Shadow) -> Command {
    match chance.u32(0..16) {
        // Mostly for what exists.
        0..8 => Command::Checkout { item: ItemId(chance.u32(0..=items)), user: UserId(chance.i64(0..USERS)) },
        8..13 => {
            let key = Uuid::from_u128(chance.u128(0..3));
            Command::Purchase { code: some_code(chance, shadow), key }
        }
        13..15 => Command::Cancel { code: some_code(chance, shadow) },
        _ => Command::Purchase { code: Code::from_bytes([0x88; 16]), key: Uuid::nil() },
    }
}

/// A code given out before, the latest ones more often; or an invented one.
fn some_code(chance: &mut fastrand::Rng, shadow: &Shadow) -> Code {
    let known = shadow.codes.len();
    let place = chance.usize(0..=known);
    let code = shadow.codes.keys().nth(place);
    code.map_or(Code::from_bytes([0x88; 16]), |bytes| Code::from_bytes(*bytes))
}
