//! Reads of versioned keys: points, scans, and "did anything change".

use std::sync::Arc;

use isochrone_base::{Bytes, KeyRange, Timestamp};

use super::{Space, Version, decode, history_between, history_range, history_upto};
use crate::{Reader, Result, ScanIter, Snapshot};

/// Keys up to this long are looked up without an allocation.
const STACK_KEY_BYTES: usize = 256;

/// Looks up the data space.
fn get_data<R: Reader + ?Sized>(reader: &R, key: &[u8]) -> Result<Option<Bytes>> {
    if key.len() < STACK_KEY_BYTES {
        let mut buf = [0u8; STACK_KEY_BYTES];
        buf[0] = Space::Data.byte();
        buf[1..=key.len()].copy_from_slice(key);
        reader.get(&buf[..=key.len()])
    } else {
        reader.get(&super::data_key(key))
    }
}

/// The newest version of a key; a deletion is a version too.
pub fn get_newest<R: Reader + ?Sized>(reader: &R, key: &[u8]) -> Result<Option<Version>> {
    match get_data(reader, key)? {
        None => Ok(None),
        Some(bytes) => {
            let (ts, value) = decode(&bytes)?;
            Ok(Some(Version { ts, value }))
        }
    }
}

/// When the newest version of a key was committed.
pub fn newest_ts<R: Reader + ?Sized>(reader: &R, key: &[u8]) -> Result<Option<Timestamp>> {
    Ok(get_newest(reader, key)?.map(|v| v.ts))
}

/// The version of a key that a read at `ts` sees; a deletion is a version too. One lookup if the newest version is at or
/// below `ts`, otherwise a seek in the history.
///
/// On an engine the two steps may see different states: a version that is superseded in between is in the history by
/// then, since it moves there in the batch that supersedes it.
pub fn get_at<R: Reader + ?Sized>(reader: &R, key: &[u8], ts: Timestamp) -> Result<Option<Version>> {
    match get_newest(reader, key)? {
        Some(newest) if newest.ts > ts => history_at(reader, key, ts),
        newest => Ok(newest),
    }
}

/// The superseded version that a read at `ts` sees.
fn history_at<R: Reader + ?Sized>(reader: &R, key: &[u8], ts: Timestamp) -> Result<Option<Version>> {
    let Some(row) = reader.scan(&history_upto(key, ts), false).next() else { return Ok(None) };
    let (physical, bytes) = row?;
    let (superseded, value) = decode(&bytes)?;
    // Invariant 3: what lies between its supersession and `ts` was a deletion that has been collected.
    if superseded <= ts {
        return Ok(None);
    }
    Ok(Some(Version { ts: history_ts(&physical)?, value }))
}

/// The timestamp at the end of a history key.
pub(super) fn history_ts(physical: &[u8]) -> Result<Timestamp> {
    match physical.split_last_chunk::<8>() {
        Some((_, ts)) => Ok(Timestamp(!u64::from_be_bytes(*ts))),
        None => Err(crate::Error::Corruption(format!("a history key of {} bytes", physical.len()))),
    }
}

/// Has the key a version, deletions included, with a timestamp in `(after, upto]`?
pub fn changed_in<R: Reader + ?Sized>(
    reader: &R,
    key: &[u8],
    after: Timestamp,
    upto: Timestamp,
) -> Result<bool> {
    match newest_ts(reader, key)? {
        Some(newest) => changed_below(reader, key, newest, after, upto),
        None => Ok(false),
    }
}

fn changed_below<R: Reader + ?Sized>(
    reader: &R,
    key: &[u8],
    newest: Timestamp,
    after: Timestamp,
    upto: Timestamp,
) -> Result<bool> {
    if newest <= after || upto <= after {
        return Ok(false);
    }
    if newest <= upto {
        return Ok(true);
    }
    reader.scan(&history_between(key, after, upto), false).next().transpose().map(|row| row.is_some())
}

/// Has any key of the range a version, deletions included, with a timestamp in `(after, upto]`? Stops at the first.
/// `after` must not be below the GC threshold. A range of one key costs one lookup (and a seek if it has a newer version).
pub fn changed_between<R: Reader + ?Sized>(
    reader: &R,
    range: &KeyRange,
    after: Timestamp,
    upto: Timestamp,
) -> Result<bool> {
    if range.is_point() {
        return changed_in(reader, &range.start, after, upto);
    }
    if range.is_empty() || upto <= after {
        return Ok(false);
    }
    for row in reader.scan(&Space::Data.range(range), false) {
        let (physical, bytes) = row?;
        let (newest, _) = decode(&bytes)?;
        if changed_below(reader, super::user_key(&physical), newest, after, upto)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A row that a scan sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The user key, a view into shared memory.
    pub key: Bytes,
    /// When its version was committed.
    pub ts: Timestamp,
    /// The value.
    pub value: Bytes,
}

/// A scan at a timestamp; after an error it ends.
pub struct MvccScan {
    snapshot: Arc<dyn Snapshot>,
    rows: Option<ScanIter>,
    ts: Timestamp,
    newer: u64,
    newest_seen: Timestamp,
}

impl MvccScan {
    /// Rows passed so far whose newest version is above the timestamp: each cost a seek.
    pub fn newer(&self) -> u64 {
        self.newer
    }

    /// The highest timestamp of a newest version passed so far, deletions and versions above the timestamp included:
    /// what a check for versions inside an uncertainty window needs (R5).
    pub fn newest_seen(&self) -> Timestamp {
        self.newest_seen
    }

    fn row(&mut self, physical: Bytes, bytes: Bytes) -> Result<Option<Row>> {
        let key = physical.slice(1..);
        let (newest, value) = decode(&bytes)?;
        self.newest_seen = self.newest_seen.max(newest);
        if newest <= self.ts {
            return Ok(value.map(|value| Row { key, ts: newest, value }));
        }
        self.newer += 1;
        let version = history_at(&*self.snapshot, &key, self.ts)?;
        Ok(version.and_then(|v| v.value.map(|value| Row { key, ts: v.ts, value })))
    }
}

impl Iterator for MvccScan {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let row = self.rows.as_mut()?.next()?;
            match row.and_then(|(physical, bytes)| self.row(physical, bytes)) {
                Ok(Some(row)) => return Some(Ok(row)),
                Ok(None) => {}
                Err(e) => {
                    self.rows = None;
                    return Some(Err(e));
                }
            }
        }
    }
}

/// The rows of a range as a read at `ts` sees them, ascending, or descending if `reverse`. Keys whose newest version is at
/// or below `ts` come straight from the data space; the history is only asked for the others, one by one.
pub fn scan_at(snapshot: &Arc<dyn Snapshot>, range: &KeyRange, ts: Timestamp, reverse: bool) -> MvccScan {
    let rows = (!range.is_empty()).then(|| snapshot.scan(&Space::Data.range(range), reverse));
    MvccScan { snapshot: snapshot.clone(), rows, ts, newer: 0, newest_seen: Timestamp::MIN }
}

/// Bytes that a range of user keys takes with its history, approximately.
pub fn approximate_bytes(engine: &dyn crate::Engine, range: &KeyRange) -> u64 {
    if range.is_empty() {
        return 0;
    }
    engine.approximate_bytes(&Space::Data.range(range)) + engine.approximate_bytes(&history_range(range))
}
