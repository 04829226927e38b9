//! The simulator, in tests only: production shards with fake lanes, fake logs and fake clocks, driven in any
//! order. `shadow.rs` is the naive model that every answer is held against.

mod shadow;
mod world;

use crate::waiting::Watermark;
use proptest::prelude::*;
use world::{Step, World};

fn any_step(shards: u16, items: u32) -> impl Strategy<Value = Step> {
    let shard = 0..shards;
    prop_oneof![
        8 => (shard.clone(), 0..items + 1, 0i64..4).prop_map(|(shard, item, user)| Step::Checkout { shard, item, user }),
        6 => (shard.clone(), any::<prop::sample::Index>(), 0u8..3).prop_map(|(shard, pick, key)| Step::Purchase { shard, pick, key }),
        2 => (shard.clone(), any::<prop::sample::Index>()).prop_map(|(shard, pick)| Step::Cancel { shard, pick }),
        30 => any::<prop::sample::Index>().prop_map(|pick| Step::Deliver { pick }),
        8 => shard.clone().prop_map(|shard| Step::Flush { shard }),
        8 => shard.prop_map(|shard| Step::Persist { shard }),
        2 => any::<prop::sample::Index>().prop_map(|pick| Step::GiveUp { pick }),
        3 => (0u64..60).prop_map(|ms| Step::Wait { ms }),
        1 => (900u64..1500).prop_map(|ms| Step::Wait { ms }),
        1 => (1u16..5, any::<u64>()).prop_map(|(shards, keep)| Step::Crash { shards, keep }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("STAMPEDE_SIM_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(2_000)
    ))]

    /// Any interleaving of buyers, deliveries, flushes, time, rollovers and crashes keeps every promise.
    #[test]
    fn every_interleaving_keeps_the_promises(
        (shards, items, is_local, steps) in (1u16..5, 1u32..6, any::<bool>()).prop_flat_map(|(shards, items, is_local)| {
            (Just(shards), Just(items), Just(is_local), prop::collection::vec(any_step(shards, items), 1..200))
        })
    ) {
        let ack = if is_local { Watermark::Flushed } else { Watermark::Persisted };
        let mut world = World::new(shards, items, ack);
        for step in steps {
            world.step(step);
            world.check();
        }
        world.settle();
        world.sell_out();
    }
}
