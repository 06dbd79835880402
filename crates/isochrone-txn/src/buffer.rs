//! The write buffer of a transaction: what it will send at COMMIT, laid over what it reads until then (R7).
//!
//! Invariants
//!   B1  `bytes` is the sum of key and value lengths of the entries, so the bound holds after rollbacks too.
//!   B2  Rolling back to a mark restores the entries exactly as they were when the mark was taken.
//!   B3  [`WriteBuffer::overlay`] returns each key of the part it covers at most once, in the order of the scan;
//!       a key deleted here never appears, a key written here appears with the written value.
//!
//! Failure: a put past [`TXN_BUFFER_BYTES_MAX`] or of an oversized key or value changes nothing and says so.

use std::collections::BTreeMap;
use std::ops::Bound;

use isochrone_base::limits::{KEY_BYTES_MAX, TXN_BUFFER_BYTES_MAX, VALUE_BYTES_MAX};
use isochrone_base::{Bytes, Key, KeyRange, Value};

use crate::kv::{Error, Page, Savepoint, ScanOptions};

/// Undo records one transaction may hold; past it a write is refused, as with too many bytes. (Overwriting one row
/// over and over costs no buffer bytes, but each step must be undoable.)
pub const UNDO_RECORDS_MAX: usize = 16 << 20;

/// Buffered writes with an undo log.
#[derive(Debug, Default)]
pub struct WriteBuffer {
    writes: BTreeMap<Key, Option<Value>>,
    bytes: usize,
    /// What each put replaced. Kept only from the first savepoint on: a transaction without savepoints pays nothing.
    undo: Vec<(Key, Option<Option<Value>>)>,
    marked: bool,
}

fn weight(key: &[u8], value: Option<&Value>) -> usize {
    key.len() + value.map_or(0, Bytes::len)
}

impl WriteBuffer {
    /// Nothing written yet?
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Keys and values, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The write of a key, if there is one; `Some(None)` is a deletion.
    pub fn get(&self, key: &[u8]) -> Option<&Option<Value>> {
        if self.writes.is_empty() { None } else { self.writes.get(key) }
    }

    /// All writes in key order.
    pub fn writes(&self) -> &BTreeMap<Key, Option<Value>> {
        &self.writes
    }

    /// Takes all writes out.
    pub fn take(&mut self) -> BTreeMap<Key, Option<Value>> {
        self.bytes = 0;
        self.undo.clear();
        std::mem::take(&mut self.writes)
    }

    /// Buffers a write.
    pub fn put(&mut self, key: Key, value: Option<Value>) -> Result<(), Error> {
        if key.len() > KEY_BYTES_MAX {
            return Err(Error::TooLarge(format!(
                "key of {} bytes is longer than {KEY_BYTES_MAX}",
                key.len()
            )));
        }
        if let Some(v) = &value
            && v.len() > VALUE_BYTES_MAX
        {
            return Err(Error::TooLarge(format!(
                "value of {} bytes is longer than {VALUE_BYTES_MAX}",
                v.len()
            )));
        }
        let old = self.writes.get(&key).map(|v| weight(&key, v.as_ref())).unwrap_or(0);
        let bytes = self.bytes - old + weight(&key, value.as_ref());
        if bytes > TXN_BUFFER_BYTES_MAX {
            return Err(Error::TooLarge(format!(
                "transaction writes more than {TXN_BUFFER_BYTES_MAX} bytes"
            )));
        }
        if self.undo.len() >= UNDO_RECORDS_MAX {
            return Err(Error::TooLarge(format!("transaction makes more than {UNDO_RECORDS_MAX} writes")));
        }
        self.bytes = bytes;
        if self.marked {
            let old = self.writes.insert(key.clone(), value);
            self.undo.push((key, old));
        } else {
            self.writes.insert(key, value);
        }
        Ok(())
    }

    /// Marks the current state. A mark taken before anything was written is free.
    pub fn savepoint(&mut self) -> Savepoint {
        self.marked = true;
        Savepoint(self.undo.len())
    }

    /// Back to a mark (B2). A mark from a later state than now changes nothing.
    pub fn rollback_to(&mut self, savepoint: Savepoint) {
        while self.undo.len() > savepoint.0 {
            let Some((key, old)) = self.undo.pop() else { break };
            if let Some(now) = self.writes.get(&key) {
                self.bytes -= weight(&key, now.as_ref());
            }
            match old {
                Some(value) => {
                    self.bytes += weight(&key, value.as_ref());
                    self.writes.insert(key, value);
                }
                None => {
                    self.writes.remove(&key);
                }
            }
        }
    }

    /// Lays the buffer over a page of committed rows: `page` answers the scan of `range`; the result holds at most
    /// `rows_max` rows and says where to go on (B3).
    pub fn overlay(&self, range: &KeyRange, page: Page, options: ScanOptions) -> Page {
        let rows_max = options.rows_max.max(1);
        let covered = covered(range, page.rest.as_ref(), options.reverse);
        if page.rows.len() <= rows_max && self.range(&covered).next().is_none() {
            return page;
        }
        let mut committed = page.rows.into_iter().peekable();
        let mut own: Box<dyn Iterator<Item = (&Key, &Option<Value>)>> = if options.reverse {
            Box::new(self.range(&covered).rev())
        } else {
            Box::new(self.range(&covered))
        };
        let mut next_own = own.next();
        let mut rows = Vec::new();
        while rows.len() < rows_max {
            let take_own = match (committed.peek(), next_own) {
                (None, None) => return Page { rows, rest: page.rest },
                (None, Some(_)) => true,
                (Some(_), None) => false,
                (Some((c, _)), Some((o, _))) => {
                    if c.as_ref() == o.as_slice() {
                        committed.next();
                        true
                    } else {
                        (o.as_slice() < c.as_ref()) != options.reverse
                    }
                }
            };
            if take_own {
                if let Some((key, value)) = next_own {
                    if let Some(value) = value {
                        rows.push((Bytes::copy_from_slice(key), value.clone()));
                    }
                    next_own = own.next();
                }
            } else if let Some(row) = committed.next() {
                rows.push(row);
            }
        }
        if committed.peek().is_none() && next_own.is_none() {
            return Page { rows, rest: page.rest };
        }
        let rest = rows.last().and_then(|(last, _)| rest_after(range, last, options.reverse));
        Page { rows, rest }
    }

    /// The writes in a range, in order.
    pub fn range(&self, range: &KeyRange) -> std::collections::btree_map::Range<'_, Key, Option<Value>> {
        range_of(&self.writes, range)
    }
}

/// The entries of a map within a key range; an inverted range is empty.
pub(crate) fn range_of<'a, V>(
    map: &'a BTreeMap<Key, V>,
    range: &KeyRange,
) -> std::collections::btree_map::Range<'a, Key, V> {
    let start = Bound::Included(range.start.as_slice());
    let end = if range.end.is_empty() {
        Bound::Unbounded
    } else {
        Bound::Excluded(range.end.as_slice().max(range.start.as_slice()))
    };
    map.range::<[u8], _>((start, end))
}

/// The part of `range` that a page with this `rest` looked at.
pub(crate) fn covered(range: &KeyRange, rest: Option<&KeyRange>, reverse: bool) -> KeyRange {
    match rest {
        None => range.clone(),
        Some(rest) if reverse => KeyRange { start: rest.end.clone(), end: range.end.clone() },
        Some(rest) => KeyRange { start: range.start.clone(), end: rest.start.clone() },
    }
}

/// What is left of `range` behind the row with key `last`; `None` when nothing is.
pub(crate) fn rest_after(range: &KeyRange, last: &[u8], reverse: bool) -> Option<KeyRange> {
    let rest = if reverse {
        if last.is_empty() {
            return None;
        }
        KeyRange { start: range.start.clone(), end: last.to_vec() }
    } else {
        KeyRange { start: KeyRange::point(last).end, end: range.end.clone() }
    };
    (!rest.is_empty()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page_of(
        map: &BTreeMap<Key, Value>,
        range: &KeyRange,
        reverse: bool,
        rows_max: usize,
        stop: usize,
    ) -> Page {
        let mut rows: Vec<(Bytes, Value)> =
            range_of(map, range).map(|(k, v)| (Bytes::copy_from_slice(k), v.clone())).collect();
        if reverse {
            rows.reverse();
        }
        let n = rows_max.min(stop.max(1));
        if rows.len() <= n {
            return Page { rows, rest: None };
        }
        rows.truncate(n);
        let rest = rest_after(range, &rows[n - 1].0, reverse);
        Page { rows, rest }
    }

    proptest! {
        /// B3 and R7: paging through the overlay in either direction gives what a plain map gives.
        #[test]
        fn overlay_equals_a_map(
            committed in proptest::collection::btree_map(proptest::collection::vec(0u8..4, 0..3), 0u8..9, 0..12),
            own in proptest::collection::vec((proptest::collection::vec(0u8..4, 0..3), proptest::option::of(0u8..9)), 0..12),
            start in proptest::collection::vec(0u8..4, 0..3),
            end in proptest::collection::vec(0u8..4, 0..3),
            reverse: bool,
            rows_max in 1usize..5,
            stop in 1usize..5,
        ) {
            let committed: BTreeMap<Key, Value> = committed.into_iter().map(|(k, v)| (k, Bytes::from(vec![v]))).collect();
            let mut model = committed.clone();
            let mut buffer = WriteBuffer::default();
            for (key, value) in own {
                let value = value.map(|v| Bytes::from(vec![v, 1]));
                buffer.put(key.clone(), value.clone()).unwrap();
                match value {
                    Some(v) => model.insert(key, v),
                    None => model.remove(&key),
                };
            }
            let range = KeyRange { start, end };
            let mut want: Vec<(Key, Value)> = range_of(&model, &range).map(|(k, v)| (k.clone(), v.clone())).collect();
            if reverse {
                want.reverse();
            }
            let mut got = Vec::new();
            let mut rest = Some(range);
            while let Some(r) = rest {
                let page = page_of(&committed, &r, reverse, rows_max, stop);
                let out = buffer.overlay(&r, page, ScanOptions { reverse, rows_max });
                prop_assert!(out.rows.len() <= rows_max);
                got.extend(out.rows.into_iter().map(|(k, v)| (k.to_vec(), v)));
                rest = out.rest;
            }
            prop_assert_eq!(got, want);
        }

        /// B1, B2: rollback restores entries and bytes.
        #[test]
        fn rollback_restores(
            before in proptest::collection::vec((0u8..4, proptest::option::of(0usize..5)), 0..8),
            after in proptest::collection::vec((0u8..4, proptest::option::of(0usize..5)), 0..8),
        ) {
            let mut buffer = WriteBuffer::default();
            for (k, v) in before {
                buffer.put(vec![k], v.map(|n| Bytes::from(vec![0; n]))).unwrap();
            }
            let (writes, bytes) = (buffer.writes.clone(), buffer.bytes);
            let mark = buffer.savepoint();
            for (k, v) in after {
                buffer.put(vec![k], v.map(|n| Bytes::from(vec![1; n]))).unwrap();
                let sum: usize = buffer.writes.iter().map(|(k, v)| weight(k, v.as_ref())).sum();
                prop_assert_eq!(buffer.bytes, sum);
            }
            buffer.rollback_to(mark);
            prop_assert_eq!(&buffer.writes, &writes);
            prop_assert_eq!(buffer.bytes, bytes);
        }
    }

    #[test]
    fn bounds_change_nothing() {
        let mut buffer = WriteBuffer::default();
        let big = Bytes::from(vec![0; VALUE_BYTES_MAX]);
        assert!(matches!(buffer.put(vec![0; KEY_BYTES_MAX + 1], None), Err(Error::TooLarge(_))));
        assert!(matches!(buffer.put(b"k".to_vec(), Some(big)), Err(Error::TooLarge(_))));
        assert_eq!((buffer.bytes(), buffer.is_empty()), (0, true));
    }
}
