//! Half-open key ranges.

use crate::Key;

/// The keys `start <= key < end`. An empty `end` means "to the end of the key space".
#[derive(Clone, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub struct KeyRange {
    /// First key inside.
    pub start: Key,
    /// First key outside; empty: no upper bound.
    pub end: Key,
}

impl KeyRange {
    /// Every key there is.
    pub fn all() -> KeyRange {
        KeyRange { start: Key::new(), end: Key::new() }
    }

    /// A range from its two ends.
    pub fn new(start: impl Into<Key>, end: impl Into<Key>) -> KeyRange {
        KeyRange { start: start.into(), end: end.into() }
    }

    /// Exactly one key.
    pub fn point(key: &[u8]) -> KeyRange {
        let mut end = Vec::with_capacity(key.len() + 1);
        end.extend_from_slice(key);
        end.push(0);
        KeyRange { start: key.to_vec(), end }
    }

    /// Every key that starts with `prefix`.
    pub fn prefix(prefix: &[u8]) -> KeyRange {
        KeyRange { start: prefix.to_vec(), end: prefix_end(prefix) }
    }

    /// Is this the range of exactly one key, as [`KeyRange::point`] makes it?
    pub fn is_point(&self) -> bool {
        self.end.len() == self.start.len() + 1
            && self.end.last() == Some(&0)
            && self.end.starts_with(&self.start)
    }

    /// Holds no key.
    pub fn is_empty(&self) -> bool {
        !self.end.is_empty() && self.start >= self.end
    }

    /// Is the key inside?
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.start.as_slice() && (self.end.is_empty() || key < self.end.as_slice())
    }

    /// Is the other range wholly inside? An empty range is inside everything.
    pub fn contains_range(&self, other: &KeyRange) -> bool {
        other.is_empty()
            || (other.start >= self.start
                && (self.end.is_empty() || (!other.end.is_empty() && other.end <= self.end)))
    }

    /// Do both hold some key?
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        !self.intersect(other).is_empty()
    }

    /// The keys that both hold.
    pub fn intersect(&self, other: &KeyRange) -> KeyRange {
        let start = self.start.clone().max(other.start.clone());
        let end = match (self.end.is_empty(), other.end.is_empty()) {
            (true, _) => other.end.clone(),
            (_, true) => self.end.clone(),
            _ => self.end.clone().min(other.end.clone()),
        };
        KeyRange { start, end }
    }
}

/// The first key after every key that starts with `prefix`; empty when there is none.
pub fn prefix_end(prefix: &[u8]) -> Key {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    Key::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let all = KeyRange::all();
        let r = KeyRange::new(*b"b", *b"d");
        assert!(all.contains_range(&r) && !r.contains_range(&all));
        assert!(r.contains(b"b") && r.contains(b"czz") && !r.contains(b"d") && !r.contains(b"a"));
        assert!(KeyRange::point(b"b").is_point() && r.contains_range(&KeyRange::point(b"b")));
        assert!(!r.is_point() && !all.is_point());
        assert_eq!(all.intersect(&r), r);
        assert!(!r.overlaps(&KeyRange::new(*b"d", *b"e")) && r.overlaps(&KeyRange::new(*b"c", *b"")));
        assert_eq!(KeyRange::prefix(b"a\xff"), KeyRange::new(*b"a\xff", *b"b"));
        assert_eq!(prefix_end(b"\xff\xff"), Key::new());
    }
}
