//! Physical keys: which space something lies in, and how. Specified in `docs/formats/storage.md`.
//!
//!     d key                          newest version of a user key
//!     h escaped(key) !ts             superseded versions, newest first
//!     l key ..                       lock space: prepared writes
//!     r shard txn ..                 transaction records
//!     a shard name                   applied index and other state of a shard
//!
//! Shard ids and timestamps are eight bytes, most significant first.

use isochrone_base::{Key, KeyRange, ShardId, Timestamp, codec::DecodeError, ordered, range::prefix_end};

/// First byte of physical keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Space {
    /// State of a shard: applied index and the like.
    State = b'a',
    /// Newest versions.
    Data = b'd',
    /// Superseded versions.
    History = b'h',
    /// Prepared writes.
    Lock = b'l',
    /// Transaction records.
    Record = b'r',
}

impl Space {
    /// The first byte.
    pub fn byte(self) -> u8 {
        self as u8
    }

    /// Every key of the space.
    pub fn all(self) -> KeyRange {
        KeyRange::prefix(&[self.byte()])
    }

    /// The keys of a space that holds user keys as they are (data, lock): a range of user keys, moved there.
    pub fn range(self, range: &KeyRange) -> KeyRange {
        let end = match range.end.is_empty() {
            true => prefix_end(&[self.byte()]),
            false => prefixed(self, &range.end),
        };
        KeyRange { start: prefixed(self, &range.start), end }
    }
}

fn prefixed(space: Space, rest: &[u8]) -> Key {
    let mut key = Vec::with_capacity(1 + rest.len());
    key.push(space.byte());
    key.extend_from_slice(rest);
    key
}

/// Where the newest version of a user key is.
pub fn data_key(key: &[u8]) -> Key {
    prefixed(Space::Data, key)
}

/// The user key of a data or lock key.
pub fn user_key(physical: &[u8]) -> &[u8] {
    physical.get(1..).unwrap_or_default()
}

/// What all superseded versions of a user key begin with.
pub fn history_prefix(key: &[u8]) -> Key {
    let mut out = Vec::with_capacity(key.len() + 16);
    out.push(Space::History.byte());
    ordered::put_bytes(&mut out, key);
    out
}

/// Where a superseded version is. Ascending physical keys are descending timestamps.
pub fn history_key(key: &[u8], ts: Timestamp) -> Key {
    let mut out = history_prefix(key);
    out.extend_from_slice(&(!ts.0).to_be_bytes());
    out
}

/// The superseded versions of a user key with timestamps in `(after, upto]`, newest first.
pub fn history_between(key: &[u8], after: Timestamp, upto: Timestamp) -> KeyRange {
    KeyRange { start: history_key(key, upto), end: history_key(key, after) }
}

/// The superseded versions of a user key with timestamps up to and including `upto`, newest first.
pub fn history_upto(key: &[u8], upto: Timestamp) -> KeyRange {
    KeyRange { start: history_key(key, upto), end: prefix_end(&history_prefix(key)) }
}

/// The superseded versions of all user keys of a range.
pub fn history_range(range: &KeyRange) -> KeyRange {
    let end = match range.end.is_empty() {
        true => prefix_end(&[Space::History.byte()]),
        false => history_prefix(&range.end),
    };
    KeyRange { start: history_prefix(&range.start), end }
}

/// The user key and timestamp of a history key.
pub fn parse_history_key(physical: &[u8]) -> Result<(Key, Timestamp), DecodeError> {
    let mut rest = match physical {
        [b, rest @ ..] if *b == Space::History.byte() => rest,
        _ => return Err(DecodeError::Invalid("history key")),
    };
    let key = ordered::take_bytes(&mut rest)?;
    let ts = ordered::take_u64(&mut rest)?;
    match rest.len() {
        0 => Ok((key, Timestamp(!ts))),
        n => Err(DecodeError::Trailing(n)),
    }
}

/// Where the prepared write on a user key is. At most one transaction has a prepare on a key, so the key is enough.
pub fn lock_key(key: &[u8]) -> Key {
    prefixed(Space::Lock, key)
}

/// The prepared writes on a range of user keys.
pub fn lock_range(range: &KeyRange) -> KeyRange {
    Space::Lock.range(range)
}

/// What all records of a shard begin with.
pub fn record_prefix(shard: ShardId) -> Key {
    prefixed(Space::Record, &shard.0.to_be_bytes())
}

/// A record of a shard, in the order of `suffix` (which the shard layer builds, for example deadline, txn, piece).
pub fn record_key(shard: ShardId, suffix: &[u8]) -> Key {
    let mut key = record_prefix(shard);
    key.extend_from_slice(suffix);
    key
}

/// What all state of a shard begins with.
pub fn state_prefix(shard: ShardId) -> Key {
    prefixed(Space::State, &shard.0.to_be_bytes())
}

/// A named piece of a shard's state.
pub fn state_key(shard: ShardId, name: &[u8]) -> Key {
    let mut key = state_prefix(shard);
    key.extend_from_slice(name);
    key
}
