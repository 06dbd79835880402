//! The timestamp cache of a leaseholder: up to when was a key read, and by whom (R4, R11.6).
//!
//! Points are remembered by a 64-bit hash of the key (a collision only pushes a writer), spans as segments of the key
//! space. Two generations each: new entries go into the young one; when it is full ([`POINTS_MAX`], [`SEGMENTS_MAX`])
//! the old one is dropped, **`low` rises to the highest timestamp that was in it**, and the young one becomes old.
//!
//! Invariants
//!   C1  For every read of key k at T that was recorded: `highest(k, other) >= T` for every other transaction.
//!   C2  An entry of the asking transaction at T counts as T - 1: what lies under it of others is below T, because
//!       two readers at one timestamp have no owner. So own entries never push an own prepare whose candidate is
//!       at or above its reads.
//!
//! Volatile: lost at any lease change, when `low` takes over (R1).

use std::collections::BTreeMap;
use std::ops::Bound;

use isochrone_base::{Key, KeyRange, Timestamp, TxnId};
use rustc_hash::{FxHashMap, FxHasher};

/// Points in one of the two generations; at the bound the older generation goes and `low` rises.
pub const POINTS_MAX: usize = 16_384;
/// Segments in one of the two generations; at the bound the older generation goes and `low` rises.
pub const SEGMENTS_MAX: usize = 2_048;

/// The hash that points are remembered by.
pub(crate) fn key_hash(key: &[u8]) -> u64 {
    use std::hash::Hasher;
    let mut h = FxHasher::default();
    h.write(key);
    h.finish()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct ReadAt {
    ts: Timestamp,
    owner: Option<TxnId>,
}

impl ReadAt {
    const NEVER: ReadAt = ReadAt { ts: Timestamp::MIN, owner: None };

    fn raise(&mut self, other: ReadAt) {
        if other.ts > self.ts {
            *self = other;
        } else if other.ts == self.ts && other.owner != self.owner {
            self.owner = None;
        }
    }

    /// C2.
    fn seen_by(self, txn: TxnId) -> Timestamp {
        if self.owner == Some(txn) { self.ts.prev() } else { self.ts }
    }
}

/// Segments of the key space: each entry holds from its key to the next entry's. Starts with one at the empty key.
#[derive(Debug, Default)]
struct Segments(BTreeMap<Key, ReadAt>);

impl Segments {
    fn at(&self, key: &[u8]) -> ReadAt {
        self.0
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()
            .map_or(ReadAt::NEVER, |(_, v)| *v)
    }

    fn cut(&mut self, key: &[u8]) {
        if !self.0.contains_key(key) {
            let v = self.at(key);
            self.0.insert(key.to_vec(), v);
        }
    }

    fn raise(&mut self, range: &KeyRange, read: ReadAt) {
        self.cut(&range.start);
        let end = if range.end.is_empty() {
            Bound::Unbounded
        } else {
            self.cut(&range.end);
            Bound::Excluded(range.end.as_slice())
        };
        for (_, v) in self.0.range_mut::<[u8], _>((Bound::Included(range.start.as_slice()), end)) {
            v.raise(read);
        }
    }

    fn highest(&self) -> Timestamp {
        self.0.values().map(|v| v.ts).max().unwrap_or(Timestamp::MIN)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct TsCache {
    low: Timestamp,
    young: FxHashMap<u64, ReadAt>,
    young_max: Timestamp,
    old: FxHashMap<u64, ReadAt>,
    old_max: Timestamp,
    young_spans: Segments,
    old_spans: Segments,
}

impl TsCache {
    /// An empty cache above which nobody has read.
    pub fn new(low: Timestamp) -> TsCache {
        TsCache { low, ..TsCache::default() }
    }

    /// Everything at or below was possibly read.
    pub fn low(&self) -> Timestamp {
        self.low
    }

    /// Reads of keys, and segments of spans.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.young.len() + self.old.len(), self.young_spans.0.len() + self.old_spans.0.len())
    }

    /// A key was read.
    pub fn record_point(&mut self, hash: u64, ts: Timestamp, txn: TxnId) {
        if ts <= self.low {
            return;
        }
        let read = ReadAt { ts, owner: Some(txn) };
        self.young.entry(hash).or_insert(read).raise(read);
        self.young_max = self.young_max.max(ts);
        if self.young.len() >= POINTS_MAX {
            self.low = self.low.max(self.old_max);
            std::mem::swap(&mut self.old, &mut self.young);
            self.young.clear();
            self.old_max = std::mem::replace(&mut self.young_max, Timestamp::MIN);
        }
    }

    /// A span was read.
    pub fn record_span(&mut self, range: &KeyRange, ts: Timestamp, txn: TxnId) {
        if ts <= self.low || range.is_empty() {
            return;
        }
        if range.is_point() {
            return self.record_point(key_hash(&range.start), ts, txn);
        }
        self.young_spans.raise(range, ReadAt { ts, owner: Some(txn) });
        if self.young_spans.0.len() >= SEGMENTS_MAX {
            let old = std::mem::replace(&mut self.old_spans, std::mem::take(&mut self.young_spans));
            self.low = self.low.max(old.highest());
        }
    }

    /// Up to when the key was read by anyone but `txn`, as far as that can be told (C1, C2); at least `low`.
    pub fn highest(&self, key: &[u8], txn: TxnId) -> Timestamp {
        let hash = key_hash(key);
        let mut ts = self.low;
        for points in [&self.young, &self.old] {
            if let Some(read) = points.get(&hash) {
                ts = ts.max(read.seen_by(txn));
            }
        }
        for spans in [&self.young_spans, &self.old_spans] {
            if !spans.0.is_empty() {
                ts = ts.max(spans.at(key).seen_by(txn));
            }
        }
        ts
    }

    /// The highest timestamp recorded for any key.
    pub fn max(&self) -> Timestamp {
        self.low
            .max(self.young_max)
            .max(self.old_max)
            .max(self.young_spans.highest())
            .max(self.old_spans.highest())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: TxnId = TxnId(1);
    const B: TxnId = TxnId(2);

    #[test]
    fn owners() {
        let mut c = TsCache::new(Timestamp(5));
        c.record_point(key_hash(b"k"), Timestamp(10), A);
        assert_eq!(c.highest(b"k", B), Timestamp(10));
        assert_eq!(c.highest(b"k", A), Timestamp(9), "own entries do not push own prepares");
        c.record_point(key_hash(b"k"), Timestamp(10), B);
        assert_eq!(c.highest(b"k", A), Timestamp(10), "two readers at one timestamp: no owner");
        assert_eq!(c.highest(b"other", A), Timestamp(5));
    }

    #[test]
    fn the_bound_raises_low() {
        let mut c = TsCache::default();
        for i in 0..(3 * POINTS_MAX as u64) {
            c.record_point(i, Timestamp(i + 1), A);
        }
        assert!(c.low() >= Timestamp(POINTS_MAX as u64) && c.young.len() + c.old.len() <= 2 * POINTS_MAX);
        let mut c = TsCache::default();
        for i in 0..(3 * SEGMENTS_MAX as u64) {
            let k = i.to_be_bytes();
            c.record_span(&KeyRange::new(k, (i + 1).to_be_bytes()), Timestamp(i + 1), A);
            assert!(c.highest(&k, B) >= Timestamp(i + 1));
        }
        assert!(c.low() > Timestamp::MIN && c.highest(&5u64.to_be_bytes(), B) >= Timestamp(6));
    }

    proptest! {
        /// Against a list of all reads (C1).
        #[test]
        fn nothing_read_is_forgotten(reads in proptest::collection::vec((0u8..20, 0u8..20, 1u64..50, 1u128..4), 0..60)) {
            let mut c = TsCache::default();
            let mut model: Vec<(KeyRange, Timestamp, TxnId)> = Vec::new();
            for (a, b, ts, txn) in reads {
                let r = if a == b { KeyRange::point(&[a]) } else { KeyRange::new([a.min(b)], [a.max(b)]) };
                c.record_span(&r, Timestamp(ts), TxnId(txn));
                model.push((r, Timestamp(ts), TxnId(txn)));
            }
            for k in 0u8..20 {
                for txn in (1..5).map(TxnId) {
                    let foreign = model.iter().filter(|m| m.0.contains(&[k]) && m.2 != txn).map(|m| m.1).max().unwrap_or_default();
                    let any = model.iter().filter(|m| m.0.contains(&[k])).map(|m| m.1).max().unwrap_or_default();
                    let got = c.highest(&[k], txn);
                    prop_assert!(got >= foreign && got <= any);
                }
            }
        }
    }
}
