//! What a transaction has read, and up to when it knows it: the source of V and of the `seen` of its writes.
//!
//!     points   a row by its key                    k ─ seen, locked?
//!     spans    ranges that do not overlap          [start, end) ─ seen
//!     pending  the read that is under way          becomes a span if it is abandoned (R7)
//!
//! Above READ COMMITTED a transaction has one snapshot: whenever it moves up, everything is validated up to the new
//! timestamp (R5), and `base` says so for all items at once. At READ COMMITTED each item keeps the timestamp of its own read.
//!
//! Invariants
//!   S1  Every key that was read is covered by an item whose `seen` is not above the timestamp up to which it is known.
//!   S2  A locked row keeps the `seen` of the read under its lock, however often it is read later: the lock promises
//!       that it did not change since.
//!   S3  At most [`READ_SET_BYTES_MAX`] (about). Past it, neighbours are joined into wider spans with the lowest `seen`
//!       of their parts: more is validated than was read, never less.
//!   S4  A row that was written is known up to when it was read before the write; a later read is hidden by the write.

use std::collections::BTreeMap;
use std::ops::Bound;

use isochrone_base::{Key, KeyRange, Timestamp};
use isochrone_shard::api::ReadSpan;

/// Bytes of keys (and a constant for each item) a read set may hold; see S3.
pub const READ_SET_BYTES_MAX: usize = 32 << 20;
/// What an item costs beside its keys.
const ITEM_BYTES: usize = 64;
/// How many neighbours become one span.
const JOIN: usize = 64;
/// Items join only with items that share this many first bytes: the table and index.
const JOIN_PREFIX: usize = 9;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    seen: Timestamp,
    locked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    end: Key,
    seen: Timestamp,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ReadSet {
    points: BTreeMap<Key, Point>,
    spans: BTreeMap<Key, Span>,
    /// Locked points that were joined (S3).
    locked_spans: Vec<ReadSpan>,
    base: Timestamp,
    pending: Option<KeyRange>,
    bytes: usize,
    bytes_max: usize,
    joins: u64,
}

impl Default for ReadSet {
    fn default() -> ReadSet {
        ReadSet::with_bound(READ_SET_BYTES_MAX)
    }
}

fn end_after(a: &[u8], b: &[u8]) -> bool {
    match (a.is_empty(), b.is_empty()) {
        (true, b_open) => !b_open,
        (false, true) => false,
        (false, false) => a > b,
    }
}

impl ReadSet {
    fn with_bound(bytes_max: usize) -> ReadSet {
        ReadSet {
            points: BTreeMap::new(),
            spans: BTreeMap::new(),
            locked_spans: Vec::new(),
            base: Timestamp::MIN,
            pending: None,
            bytes: 0,
            bytes_max,
            joins: 0,
        }
    }

    /// How often S3 joined items.
    pub fn joins(&self) -> u64 {
        self.joins
    }

    /// A read begins. Until `point` or `span` reports its end, it counts as abandoned.
    pub fn begin(&mut self, range: KeyRange) {
        debug_assert!(self.pending.is_none(), "an abandoned read is folded in first");
        self.pending = Some(range);
    }

    /// The read under way ended without an answer that anybody used, and validation does not need it: it failed.
    pub fn forget_pending(&mut self) -> Option<KeyRange> {
        self.pending.take()
    }

    /// An abandoned read stays in V (R7). `seen`: the snapshot it ran at.
    pub fn keep_abandoned(&mut self, seen: Timestamp) {
        if let Some(range) = self.pending.take() {
            self.span(range, seen);
        }
    }

    /// A row was read.
    pub fn point(&mut self, key: Key, seen: Timestamp, locked: bool) {
        self.pending = None;
        match self.points.get_mut(&key) {
            Some(point) if point.locked => {} // S2
            Some(point) => *point = Point { seen: seen.max(point.seen), locked },
            None => {
                self.bytes += key.len() + ITEM_BYTES;
                self.points.insert(key, Point { seen, locked });
                self.keep_bound();
            }
        }
    }

    /// A row that was locked so weakly that others could change it was read under a stronger lock: what S2 says holds
    /// from there.
    pub fn relocked(&mut self, key: &[u8], seen: Timestamp) {
        if let Some(point) = self.points.get_mut(key) {
            point.seen = point.seen.max(seen);
        }
    }

    /// A row that this transaction has written is about to be covered by a read, which returns that write and says nothing
    /// of what lies beneath: the row stays known as it is now (S4).
    pub fn keep_as_known(&mut self, key: &[u8]) {
        if let Some(seen) = self.seen(key) {
            self.point(key.to_vec(), seen, true);
        }
    }

    /// A range was read. Newer reads replace older ones where they overlap.
    pub fn span(&mut self, range: KeyRange, seen: Timestamp) {
        self.pending = None;
        if range.is_empty() {
            return;
        }
        if range.is_point() {
            return self.point(range.start, seen, false);
        }
        self.assign(range, seen);
        self.keep_bound();
    }

    fn remove_span(&mut self, start: &[u8]) -> Option<(Key, Span)> {
        let (start, span) = self.spans.remove_entry(start)?;
        self.bytes -= start.len() + span.end.len() + ITEM_BYTES;
        Some((start, span))
    }

    fn insert_span(&mut self, start: Key, span: Span) {
        self.bytes += start.len() + span.end.len() + ITEM_BYTES;
        self.spans.insert(start, span);
    }

    fn assign(&mut self, range: KeyRange, seen: Timestamp) {
        let seen = seen.max(self.base);
        let KeyRange { mut start, mut end } = range;
        // From the last span that starts at or before `start`, every span that overlaps or touches.
        let first = self.spans.range::<Key, _>(..=&start).next_back().map(|(k, _)| k.clone());
        let mut at = first.unwrap_or_else(|| start.clone());
        let mut rests = Vec::new();
        while let Some((s, old)) = self.spans.range::<Key, _>(&at..).next() {
            if !end.is_empty() && *s > end {
                break;
            }
            let (s, old_end, old_seen) = (s.clone(), old.end.clone(), old.seen.max(self.base));
            at = KeyRange::point(&s).end;
            let touches = old_end.is_empty() || old_end >= start;
            if !touches {
                continue;
            }
            self.remove_span(&s);
            if old_seen == seen {
                start = start.min(s);
                if end_after(&old_end, &end) {
                    end = old_end;
                }
            } else {
                if s < start {
                    rests.push((s, Span { end: start.clone(), seen: old_seen }));
                }
                if end_after(&old_end, &end) {
                    rests.push((end.clone(), Span { end: old_end, seen: old_seen }));
                }
            }
        }
        for (start, span) in rests {
            self.insert_span(start, span);
        }
        self.insert_span(start, Span { end, seen });
    }

    /// Up to when the transaction knows this row; `None`: it never read it.
    pub fn seen(&self, key: &[u8]) -> Option<Timestamp> {
        let point = self.points.get(key);
        if let Some(p) = point
            && p.locked
        {
            return Some(p.seen.max(self.base));
        }
        let locked = self.locked_spans.iter().filter(|s| s.range.contains(key)).map(|s| s.seen).min();
        if let Some(seen) = locked {
            return Some(seen.max(self.base));
        }
        let span = self.spans.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        let span = span.filter(|(_, s)| s.end.is_empty() || key < s.end.as_slice()).map(|(_, s)| s.seen);
        point.map(|p| p.seen).into_iter().chain(span).max().map(|seen| seen.max(self.base))
    }

    /// Everything that was read and is known only below `ts`, at or above `from` (READ COMMITTED: the statement's).
    pub fn stale(&self, from: Timestamp, ts: Timestamp) -> Vec<ReadSpan> {
        let mut out = self.items(|seen, _| seen >= from && seen < ts);
        let locked = self.locked_spans.iter().map(|s| self.with_base(s));
        out.extend(locked.filter(|s| s.seen >= from && s.seen < ts));
        out
    }

    /// V for SERIALIZABLE, without rows that are written: their `seen` travels with the write (R11.5).
    pub fn all_but(&self, written: impl Fn(&[u8]) -> bool) -> Vec<ReadSpan> {
        let mut out = self.items(|_, key| key.is_none_or(|k| !written(k)));
        out.extend(self.locked_spans.iter().map(|s| self.with_base(s)));
        out
    }

    /// V for the other levels: locked rows that are not written.
    pub fn locked_but(&self, written: impl Fn(&[u8]) -> bool) -> Vec<ReadSpan> {
        let points = self.points.iter().filter(|(k, p)| p.locked && !written(k));
        let mut out: Vec<ReadSpan> = points
            .map(|(k, p)| ReadSpan { range: KeyRange::point(k), seen: p.seen.max(self.base) })
            .collect();
        out.extend(self.locked_spans.iter().map(|s| self.with_base(s)));
        out
    }

    fn with_base(&self, span: &ReadSpan) -> ReadSpan {
        ReadSpan { range: span.range.clone(), seen: span.seen.max(self.base) }
    }

    fn items(&self, keep: impl Fn(Timestamp, Option<&[u8]>) -> bool) -> Vec<ReadSpan> {
        let points = self.points.iter().map(|(k, p)| (k, p.seen.max(self.base)));
        let points = points.filter(|(k, seen)| keep(*seen, Some(k)));
        let mut out: Vec<ReadSpan> =
            points.map(|(k, seen)| ReadSpan { range: KeyRange::point(k), seen }).collect();
        let spans = self.spans.iter().map(|(start, s)| (start, &s.end, s.seen.max(self.base)));
        out.extend(spans.filter(|(_, _, seen)| keep(*seen, None)).map(|(start, end, seen)| ReadSpan {
            range: KeyRange { start: start.clone(), end: end.clone() },
            seen,
        }));
        out
    }

    /// Everything was validated up to `ts` (above READ COMMITTED).
    pub fn validated(&mut self, ts: Timestamp) {
        self.base = self.base.max(ts);
    }

    /// Everything known at or above `from` was validated up to `ts` (the statement of READ COMMITTED). Locked rows
    /// keep what they have (S2): they are validated from there anyway.
    pub fn validated_from(&mut self, from: Timestamp, ts: Timestamp) {
        for point in self.points.values_mut() {
            if point.seen >= from && !point.locked {
                point.seen = point.seen.max(ts);
            }
        }
        for span in self.spans.values_mut() {
            if span.seen >= from {
                span.seen = span.seen.max(ts);
            }
        }
    }

    /// S3.
    fn keep_bound(&mut self) {
        if self.bytes <= self.bytes_max {
            return;
        }
        self.join(true);
        if self.bytes > self.bytes_max / 2 {
            self.join(false);
        }
    }

    fn join(&mut self, same_prefix: bool) {
        self.joins += 1;
        let base = self.base;
        let mut items: Vec<(Key, Key, Timestamp)> = Vec::new();
        let mut locked: Vec<(Key, Key, Timestamp)> = Vec::new();
        for (key, p) in std::mem::take(&mut self.points) {
            let end = KeyRange::point(&key).end;
            if p.locked { &mut locked } else { &mut items }.push((key, end, p.seen.max(base)));
        }
        for (start, s) in std::mem::take(&mut self.spans) {
            items.push((start, s.end, s.seen.max(base)));
        }
        for s in std::mem::take(&mut self.locked_spans) {
            locked.push((s.range.start, s.range.end, s.seen.max(base)));
        }
        self.bytes = 0;
        for (start, end, seen) in joined(locked, same_prefix) {
            self.bytes += start.len() + end.len() + ITEM_BYTES;
            self.locked_spans.push(ReadSpan { range: KeyRange { start, end }, seen });
        }
        for (start, end, seen) in joined(items, same_prefix) {
            self.insert_span(start, Span { end, seen });
        }
    }
}

/// Joins up to [`JOIN`] neighbours each into one span with the lowest `seen`. The results do not overlap.
fn joined(mut items: Vec<(Key, Key, Timestamp)>, same_prefix: bool) -> Vec<(Key, Key, Timestamp)> {
    items.sort_unstable();
    let prefix = |key: &Key| key.get(..JOIN_PREFIX.min(key.len())).unwrap_or_default().to_vec();
    let mut out: Vec<(Key, Key, Timestamp)> = Vec::new();
    let mut count = 0;
    for (start, end, seen) in items {
        if let Some((last_start, last_end, last_seen)) = out.last_mut() {
            let overlaps = last_end.is_empty() || start < *last_end;
            let near = count < JOIN && (!same_prefix || prefix(last_start) == prefix(&start));
            if overlaps || near {
                if end_after(&end, last_end) {
                    *last_end = end;
                }
                *last_seen = seen.min(*last_seen);
                count += 1;
                continue;
            }
        }
        out.push((start, end, seen));
        count = 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ts(n: u64) -> Timestamp {
        Timestamp(n)
    }

    proptest! {
        /// S1 and S3 against a map of every key: `seen` is what the newest read says while there is room, and never
        /// above it when there is not.
        #[test]
        fn equals_a_map_of_keys(
            reads in proptest::collection::vec((0u8..20, 0u8..22, any::<bool>()), 1..60),
            bytes_max in prop_oneof![Just(READ_SET_BYTES_MAX), Just(600usize)],
        ) {
            let mut set = ReadSet::with_bound(bytes_max);
            let mut model: BTreeMap<u8, Timestamp> = BTreeMap::new();
            for (i, (a, b, point)) in reads.into_iter().enumerate() {
                let seen = ts(10 + i as u64 / 3);
                if point {
                    set.point(vec![a], seen, false);
                    model.insert(a, seen);
                } else {
                    let end = if b >= 20 { vec![] } else { vec![b] };
                    let range = KeyRange { start: vec![a], end };
                    for k in (0..20).filter(|k| range.contains(&[*k])) {
                        model.insert(k, seen);
                    }
                    set.span(range, seen);
                }
                prop_assert!(set.bytes <= bytes_max.max(700) , "{}", set.bytes);
                for k in 0..20u8 {
                    let got = set.seen(&[k]);
                    if set.joins() == 0 {
                        prop_assert_eq!(got, model.get(&k).copied(), "key {}", k);
                    } else if let Some(want) = model.get(&k) {
                        prop_assert!(got.is_some_and(|got| got <= *want), "key {} {:?} {:?}", k, got, want);
                    }
                    let in_v = set.all_but(|_| false);
                    if model.contains_key(&k) {
                        prop_assert!(in_v.iter().any(|s| s.range.contains(&[k]) && s.seen <= model[&k]));
                    }
                }
                let bytes: usize = set.points.keys().map(|k| k.len() + ITEM_BYTES).sum::<usize>()
                    + set.spans.iter().map(|(k, s)| k.len() + s.end.len() + ITEM_BYTES).sum::<usize>()
                    + set.locked_spans.iter().map(|s| s.range.start.len() + s.range.end.len() + ITEM_BYTES).sum::<usize>();
                prop_assert_eq!(bytes, set.bytes);
            }
        }
    }

    #[test]
    fn pages_of_a_scan_become_one_span() {
        let mut set = ReadSet::default();
        for i in 0..100u8 {
            set.span(KeyRange::new(vec![i], vec![i + 1]), ts(5));
        }
        assert_eq!(set.spans.len(), 1);
        for i in (0..100u8).rev() {
            set.span(KeyRange::new(vec![1, i], vec![1, i + 1]), ts(5));
        }
        assert_eq!(set.spans.len(), 1);
        set.span(KeyRange::all(), ts(6));
        assert_eq!(set.all_but(|_| false), [ReadSpan { range: KeyRange::all(), seen: ts(6) }]);
    }

    #[test]
    fn locked_rows_keep_what_was_seen_under_the_lock() {
        let mut set = ReadSet::default();
        set.point(b"k".to_vec(), ts(5), true);
        set.point(b"k".to_vec(), ts(9), false);
        set.span(KeyRange::all(), ts(10));
        assert_eq!(set.seen(b"k"), Some(ts(5)));
        assert_eq!(set.locked_but(|_| false).len(), 1);
        assert_eq!(set.locked_but(|k| k == b"k").len(), 0);
        set.validated(ts(11));
        assert_eq!(set.seen(b"k"), Some(ts(11)));
    }

    #[test]
    fn a_written_row_is_known_as_before_the_write() {
        let mut set = ReadSet::default();
        set.point(b"k".to_vec(), ts(5), false);
        set.keep_as_known(b"k");
        set.keep_as_known(b"never read");
        set.span(KeyRange::all(), ts(9));
        assert_eq!(set.seen(b"k"), Some(ts(5)));
        assert_eq!(set.seen(b"never read"), Some(ts(9)));
    }

    #[test]
    fn an_abandoned_read_stays() {
        let mut set = ReadSet::default();
        set.begin(KeyRange::new(*b"a", *b"c"));
        assert_eq!(set.seen(b"b"), None);
        set.keep_abandoned(ts(3));
        assert_eq!(set.seen(b"b"), Some(ts(3)));
    }

    #[test]
    fn locked_rows_survive_joining() {
        let mut set = ReadSet::with_bound(1_000);
        for i in 0..200u8 {
            set.point(vec![i], ts(u64::from(i) + 1), true);
        }
        assert!(set.joins() > 0);
        for i in 0..200u8 {
            assert!(set.seen(&[i]).unwrap() <= ts(u64::from(i) + 1));
            assert!(set.locked_but(|_| false).iter().any(|s| s.range.contains(&[i])));
        }
    }
}
