//! Plans of the simulated worlds: sales one after another, each with terms of its own.

use super::world::{BEGIN_MS, EXTENSION_MS, PERIOD_MS, TTL_MS, USER_LIMIT};
use crate::sale::ids::{SaleId, Terms};
use crate::sale::product_ranges::{ProductId, ProductRanges, SaleProduct};
use crate::sale::sale_schedule::{PeriodicSale, SaleSchedule, SaleSeries};
use std::num::NonZeroU32;
use std::sync::LazyLock;

/// Number of different plans.
const PLANS: u64 = 16;
/// The sale that is open when a world begins.
const FIRST: u32 = (BEGIN_MS / PERIOD_MS) as u32;
/// Number of sales in a plan, more than a world lives to see.
const SALES: u32 = 1_000;
/// Number of the ids of products: as many as a sale has products at most, so that most sales lack some of them.
pub const PRODUCT_IDS: u32 = 5;

static SCHEDULES: LazyLock<Vec<SaleSchedule>> = LazyLock::new(|| (0..PLANS).map(plan).collect());

/// Returns the schedule of the world of `seed`: in half of the worlds `sales`, and a plan in the others.
pub fn schedule(seed: u64, sales: PeriodicSale) -> SaleSchedule {
    let mut chance = fastrand::Rng::with_seed(seed ^ 0x91a);
    match chance.bool() {
        true => SaleSchedule::Periodic(sales),
        false => SCHEDULES[chance.usize(0..PLANS as usize)],
    }
}

/// Returns a plan of sales that open with each period, whose stock, limit and hold times change with each sale, and some of
/// which are paused. They close when the next one opens, before, or after others have opened. In some plans no sale is
/// open at first.
fn plan(seed: u64) -> SaleSchedule {
    let mut chance = fastrand::Rng::with_seed(seed);
    let longest_ms = [0, 1, 1, 3][seed as usize % 4] * PERIOD_MS;
    let first = FIRST + u32::from(seed.is_multiple_of(3));
    let sale = |id| {
        let opens_ms = u64::from(id) * PERIOD_MS;
        let items = chance.u32(1..6);
        let first = Terms {
            sale: SaleId(id),
            items,
            user_limit: chance.u32(1..=USER_LIMIT),
            opens_ms,
            closes_ms: opens_ms + if longest_ms > 0 { chance.u64(1..=longest_ms) } else { PERIOD_MS },
            ttl_ms: chance.u32(TTL_MS / 2..=TTL_MS),
            extension_ms: [0, EXTENSION_MS][chance.usize(0..2)],
            is_paused: chance.u32(0..10) == 0,
            products: products(&mut chance, items),
        };
        SaleSeries { first, every_ms: 0, count: 1, layer: 0 }
    };
    SaleSchedule::planned((first..first + SALES).map(sale).collect())
}

/// Draws the sale that a client names, if it names one. `newest` is the newest sale that a client can have seen.
pub fn named(chance: &mut fastrand::Rng, schedule: &SaleSchedule, newest: SaleId) -> Option<SaleId> {
    match (schedule, chance.u32(0..8)) {
        (SaleSchedule::Planned(_), ahead @ 0..5) => Some(SaleId((newest.0 + 1).saturating_sub(ahead))),
        (SaleSchedule::Periodic(_), 0) => Some(SaleId(7)),
        _ => None,
    }
}

/// Returns the product id with this number, at least 1.
pub fn product_id(number: u32) -> ProductId {
    ProductId(NonZeroU32::new(number).expect("ids are numbered from 1"))
}

/// Returns products of any size with `items` units together.
fn products(chance: &mut fastrand::Rng, items: u32) -> ProductRanges {
    let mut left = items;
    let mut ids: Vec<u32> = (1..=PRODUCT_IDS).collect();
    chance.shuffle(&mut ids);
    let products = ids.into_iter().map_while(|number| {
        let units = (left > 0).then(|| chance.u32(1..=left))?;
        left -= units;
        Some(SaleProduct { id: product_id(number), name: "x", units, unit_names: &[] })
    });
    ProductRanges::new(products)
}
