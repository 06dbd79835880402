//! Versioned keys, newest version first (design D5).
//!
//! The newest version of a key lies under the key itself, so a read of the present is one lookup and a scan of it
//! wades through nothing. When a version is superseded it moves, in the batch that adds its successor, to the history
//! space, and notes there when it was superseded.
//!
//! Invariants:
//! 1. Versions of a key arrive in ascending order of their timestamps ([`put_version`] refuses others).
//! 2. A key with a version in the history has one in the data space, until [`gc`] has removed a deletion; `gc`
//!    removes the history below a deletion before the deletion.
//! 3. A history entry is the answer for timestamps in `[ts, superseded)` and for no others. So whatever `gc` left
//!    behind, nothing deleted comes back.
//! 4. A deletion has a marker in the history, under its own timestamp and with `superseded == ts`, which stands for
//!    no time at all: `gc`, which reads the history only, finds deletions by it. When the deletion is superseded, its
//!    ordinary entry replaces the marker.
//!
//! Reads at timestamps below the GC threshold are the caller's to refuse (commit-protocol.md, section 11): the answer
//! would be wrong. Bytes that are no version are `Corruption`.
//!
//! Missing: a read far in the past over keys that changed since costs one seek per such key.

mod gc;
mod keys;
mod read;

pub use gc::{GcBudget, GcProgress, gc, logical_hash};
pub use keys::{
    Space, data_key, history_between, history_key, history_prefix, history_range, history_upto, lock_key,
    lock_range, parse_history_key, record_key, record_prefix, state_key, state_prefix, user_key,
};
pub use read::{
    MvccScan, Row, approximate_bytes, changed_between, changed_in, get_at, get_newest, newest_ts, scan_at,
};

use isochrone_base::{Bytes, Key, KeyRange, Timestamp};

use crate::{Error, Reader, Result, WriteBatch};

/// Bytes before the value: commit or supersession timestamp, flags.
const HEADER_BYTES: usize = 9;
const FLAG_VALUE: u8 = 0;
const FLAG_TOMBSTONE: u8 = 1;

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// When it was committed.
    pub ts: Timestamp,
    /// The value; `None`: the key was deleted.
    pub value: Option<Bytes>,
}

/// Timestamp (of the commit in the data space, of the supersession in the history), flags, value.
fn encode(ts: Timestamp, value: Option<&[u8]>) -> Bytes {
    let mut out = Vec::with_capacity(HEADER_BYTES + value.map_or(0, <[u8]>::len));
    out.extend_from_slice(&ts.0.to_be_bytes());
    match value {
        Some(value) => {
            out.push(FLAG_VALUE);
            out.extend_from_slice(value);
        }
        None => out.push(FLAG_TOMBSTONE),
    }
    out.into()
}

fn decode(bytes: &Bytes) -> Result<(Timestamp, Option<Bytes>)> {
    let Some((ts, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(Error::Corruption(format!("a version of {} bytes", bytes.len())));
    };
    let value = match rest {
        [FLAG_VALUE, ..] => Some(bytes.slice(HEADER_BYTES..)),
        [FLAG_TOMBSTONE] => None,
        _ => return Err(Error::Corruption(format!("a version with flags {:?}", rest.first()))),
    };
    Ok((Timestamp(u64::from_be_bytes(*ts)), value))
}

/// Adds a version to a key: looks up the newest one (in the batch first, then in `reader`) and continues as
/// [`put_version_over`]. Returns the timestamp of the version that was the newest, if any.
///
/// `reader` must show everything written before the batch; nothing else may write versions of the key meanwhile.
///
/// # Errors
/// `OutOfOrder`: the key has a version at `ts` or later; the batch is unchanged.
pub fn put_version<R: Reader + ?Sized>(
    batch: &mut WriteBatch,
    reader: &R,
    key: &[u8],
    ts: Timestamp,
    value: Option<&[u8]>,
) -> Result<Option<Timestamp>> {
    let newest = match batch.get(&data_key(key)) {
        Some(Some(bytes)) => {
            let (ts, value) = decode(bytes)?;
            Some(Version { ts, value })
        }
        Some(None) => None,
        None => get_newest(reader, key)?,
    };
    put_version_over(batch, key, newest.as_ref(), ts, value)?;
    Ok(newest.map(|v| v.ts))
}

/// Adds a version to a key whose newest version the caller has read: moves that one to the history and puts the new
/// one in its place. `None` as value deletes the key.
///
/// # Errors
/// `OutOfOrder`: `newest` is at `ts` or later; the batch is unchanged.
pub fn put_version_over(
    batch: &mut WriteBatch,
    key: &[u8],
    newest: Option<&Version>,
    ts: Timestamp,
    value: Option<&[u8]>,
) -> Result<()> {
    if let Some(newest) = newest {
        if newest.ts >= ts {
            return Err(Error::OutOfOrder { given: ts, newest: newest.ts });
        }
        batch.put(history_key(key, newest.ts), encode(ts, newest.value.as_deref()));
    }
    if value.is_none() {
        // The marker of invariant 4.
        batch.put(history_key(key, ts), encode(ts, None));
    }
    batch.put(data_key(key), encode(ts, value));
    Ok(())
}

/// Removes everything about a range of keys (all versions, prepared writes), at most about twice `keys` physical keys at
/// a time: for dropped tables and for clearing before a snapshot is installed. Returns the key to go on from, `None` when
/// nothing is left. Going on from there matters: whoever starts at the front again wades through what was removed.
pub fn clear_range<R: Reader + ?Sized>(
    batch: &mut WriteBatch,
    reader: &R,
    range: &KeyRange,
    keys: usize,
) -> Result<Option<Key>> {
    let mut newest = Vec::new();
    let mut rest = None;
    for row in reader.scan(&Space::Data.range(range), false) {
        let physical = row?.0;
        if newest.len() == keys {
            rest = Some(user_key(&physical).to_vec());
            break;
        }
        newest.push(physical.to_vec());
    }
    // Older versions first: while some are left, their key stays, and is met again.
    let part =
        KeyRange { start: range.start.clone(), end: rest.clone().unwrap_or_else(|| range.end.clone()) };
    let mut left = keys;
    for physical in [history_range(&part), lock_range(&part)] {
        for row in reader.scan(&physical, false) {
            if left == 0 {
                return Ok(Some(part.start));
            }
            batch.delete(row?.0.to_vec());
            left -= 1;
        }
    }
    for physical in newest {
        batch.delete(physical);
    }
    Ok(rest)
}
