//! A set of numbers kept as intervals: small while the numbers are dense, whatever their count.

use std::collections::BTreeMap;

/// Disjoint, non-adjacent intervals of numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Intervals {
    /// First number to last number, both inside.
    runs: BTreeMap<u64, u64>,
}

impl Intervals {
    /// Adds one number; false if it was there.
    pub(crate) fn insert(&mut self, n: u64) -> bool {
        let before = self.runs.range(..=n).next_back().map(|(a, b)| (*a, *b));
        if before.is_some_and(|(_, last)| last >= n) {
            return false;
        }
        let mut run = (n, n);
        if let Some((first, last)) = before
            && last + 1 == n
        {
            run.0 = first;
        }
        if n < u64::MAX
            && let Some(last) = self.runs.remove(&(n + 1))
        {
            run.1 = last;
        }
        self.runs.insert(run.0, run.1);
        true
    }

    /// Is the number in the set?
    pub(crate) fn contains(&self, n: u64) -> bool {
        self.runs.range(..=n).next_back().is_some_and(|(_, last)| *last >= n)
    }

    /// The smallest number of the set that is at least `n`.
    pub(crate) fn next(&self, n: u64) -> Option<u64> {
        if self.contains(n) { Some(n) } else { self.runs.range(n..).next().map(|(first, _)| *first) }
    }

    /// The last number of the interval that holds `n`; `n` itself if none does.
    pub(crate) fn last_from(&self, n: u64) -> u64 {
        self.runs.range(..=n).next_back().map_or(n, |(_, last)| (*last).max(n))
    }

    /// How many intervals there are: what the set costs.
    pub(crate) fn runs(&self) -> usize {
        self.runs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn agrees_with_a_plain_set() {
        let (mut state, mut plain, mut set) = (1u64, BTreeSet::new(), Intervals::default());
        for _ in 0..5_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let n = (state >> 33) % 400;
            if plain.len() > 300 {
                (plain, set) = Default::default();
            }
            assert_eq!(set.insert(n), plain.insert(n));
            let probe = (state >> 13) % 410;
            assert_eq!(set.contains(probe), plain.contains(&probe));
            assert_eq!(set.next(probe), plain.range(probe..).next().copied());
            let last = (probe..).take_while(|n| plain.contains(n)).last().unwrap_or(probe);
            assert_eq!(set.last_from(probe), last);
            let runs = plain.iter().filter(|n| **n == 0 || !plain.contains(&(**n - 1))).count();
            assert_eq!(set.runs(), runs);
        }
        assert!(set.insert(u64::MAX) && set.contains(u64::MAX));
    }
}
