//! Plans of the simulated worlds: sales one after another, each with terms of its own.

use super::world::{EXTENSION_MS, PERIOD_MS, TTL_MS, USER_LIMIT};
use crate::sale::ids::{SaleId, Terms};
use crate::sale::sale_schedule::{PeriodicSale, SaleSchedule, SaleSeries};
use std::sync::LazyLock;

/// Number of different plans.
const PLANS: u64 = 16;
/// Number of sales in a plan, more than a world lives to see.
const SALES: u32 = 1_500;

static SERIES: LazyLock<Vec<Vec<SaleSeries>>> = LazyLock::new(|| (0..PLANS).map(series).collect());

/// Returns the schedule of the world of `seed`: in half of the worlds `sales`, and a plan in the others.
pub fn schedule(seed: u64, sales: PeriodicSale) -> SaleSchedule {
    let mut chance = fastrand::Rng::with_seed(seed ^ 0x91a);
    match chance.bool() {
        true => SaleSchedule::Periodic(sales),
        false => SaleSchedule::Planned(&SERIES[chance.usize(0..PLANS as usize)]),
    }
}

/// Returns sales of the length of a period, whose stock, limit and hold times change with each sale.
fn series(seed: u64) -> Vec<SaleSeries> {
    let mut chance = fastrand::Rng::with_seed(seed);
    let sale = |id| {
        let opens_ms = u64::from(id) * PERIOD_MS;
        let first = Terms {
            sale: SaleId(id),
            items: chance.u32(1..6),
            user_limit: chance.u32(1..=USER_LIMIT),
            opens_ms,
            closes_ms: opens_ms + PERIOD_MS,
            ttl_ms: chance.u32(TTL_MS / 2..=TTL_MS),
            extension_ms: [0, EXTENSION_MS][chance.usize(0..2)],
        };
        SaleSeries { first, every_ms: 0, count: 1 }
    };
    (0..SALES).map(sale).collect()
}
