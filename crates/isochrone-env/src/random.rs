//! SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014): small, fast,
//! good enough for timeouts, ids in simulations and tests. Not for secrets.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Random;

/// A seeded stream of numbers, usable from several threads.
#[derive(Debug)]
pub struct SplitMix64(AtomicU64);

impl SplitMix64 {
    /// A stream from a seed.
    pub fn new(seed: u64) -> SplitMix64 {
        SplitMix64(AtomicU64::new(seed))
    }

    /// A stream of its own for a named part of a run: drawing more from one part does not shift the others.
    pub fn split(seed: u64, part: &str) -> SplitMix64 {
        SplitMix64::new(seed ^ isochrone_base::hash::fnv64(part.as_bytes()).rotate_left(17))
    }

    /// A uniform number below `n` (0 for `n` = 0). The bias is below 2^-32 for the ranges used here.
    pub fn below(&self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }
}

impl Random for SplitMix64 {
    fn next_u64(&self) -> u64 {
        let mut z =
            self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
