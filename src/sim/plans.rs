//! Plans of the simulated worlds: sales one after another, each with terms of its own.

use super::world::{BEGIN_MS, EXTENSION_MS, PERIOD_MS, TTL_MS, USER_LIMIT};
use crate::sale::ids::{SaleId, Terms};
use crate::sale::sale_schedule::{PeriodicSale, SaleSchedule, SaleSeries};
use std::sync::LazyLock;

/// Number of different plans.
const PLANS: u64 = 16;
/// The sale that is open when a world begins.
const FIRST: u32 = (BEGIN_MS / PERIOD_MS) as u32;
/// Number of sales in a plan, more than a world lives to see.
const SALES: u32 = 1_000;

static SERIES: LazyLock<Vec<Vec<SaleSeries>>> = LazyLock::new(|| (0..PLANS).map(series).collect());

/// Returns the schedule of the world of `seed`: in half of the worlds `sales`, and a plan in the others.
pub fn schedule(seed: u64, sales: PeriodicSale) -> SaleSchedule {
    let mut chance = fastrand::Rng::with_seed(seed ^ 0x91a);
    match chance.bool() {
        true => SaleSchedule::Periodic(sales),
        false => SaleSchedule::Planned(&SERIES[chance.usize(0..PLANS as usize)]),
    }
}

/// Returns sales that begin with each period, whose stock, limit and hold times change with each sale. Those of every other
/// plan close at any time before the next one opens, and in some plans no sale is open at first.
fn series(seed: u64) -> Vec<SaleSeries> {
    let mut chance = fastrand::Rng::with_seed(seed);
    let (has_gaps, first) = (seed.is_multiple_of(2), FIRST + u32::from(seed.is_multiple_of(4)));
    let sale = |id| {
        let opens_ms = u64::from(id) * PERIOD_MS;
        let first = Terms {
            sale: SaleId(id),
            items: chance.u32(1..6),
            user_limit: chance.u32(1..=USER_LIMIT),
            opens_ms,
            closes_ms: opens_ms + if has_gaps { chance.u64(1..=PERIOD_MS) } else { PERIOD_MS },
            ttl_ms: chance.u32(TTL_MS / 2..=TTL_MS),
            extension_ms: [0, EXTENSION_MS][chance.usize(0..2)],
            products: chance.u64(..),
        };
        SaleSeries { first, every_ms: 0, count: 1 }
    };
    (first..first + SALES).map(sale).collect()
}
