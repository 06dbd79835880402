//! Removing what no read above the threshold can see, and comparing what is left.

use isochrone_base::hash::Fnv64;
use isochrone_base::{Bytes, Key, KeyRange, Timestamp};

use super::{
    Space, data_key, decode, get_newest, history_prefix, history_range, parse_history_key, user_key,
};
use crate::{Reader, Result, WriteBatch};

/// How much one pass of [`gc`] may do.
#[derive(Clone, Copy, Debug)]
pub struct GcBudget {
    /// History entries looked at. Default 10,000: some tens of milliseconds.
    pub entries: usize,
    /// Bytes of keys and values dropped. Default 4 MiB.
    pub bytes: u64,
}

impl Default for GcBudget {
    fn default() -> GcBudget {
        GcBudget { entries: 10_000, bytes: 4 << 20 }
    }
}

/// What one pass of [`gc`] did.
#[derive(Clone, Debug, Default)]
pub struct GcProgress {
    /// To be written by the caller.
    pub batch: WriteBatch,
    /// Where the next pass goes on; `None`: the range is done.
    pub resume: Option<Key>,
    /// History entries looked at.
    pub entries: usize,
    /// Versions dropped: superseded ones and deletions.
    pub versions: u64,
    /// Bytes of keys and values dropped.
    pub bytes: u64,
}

/// One pass of garbage collection over a range of user keys: finds history entries superseded at or below the threshold,
/// and deletions at or below it that have nothing left below them. It walks the history backwards (oldest version of
/// a key first, invariant 2), within the budget, and goes on at `resume` of the pass before.
///
/// It costs a read of the range's whole history, whether or not there is something to drop.
///
/// The caller writes the batch before it writes any version into the range (a key could get a new version where a
/// deletion is being removed); running it where the shard's entries are applied gives that.
pub fn gc<R: Reader + ?Sized>(
    reader: &R,
    range: &KeyRange,
    threshold: Timestamp,
    budget: GcBudget,
    resume: Option<Key>,
) -> Result<GcProgress> {
    let mut done = GcProgress::default();
    if range.is_empty() {
        return Ok(done);
    }
    let mut history = history_range(range);
    if let Some(resume) = resume {
        history.end = resume;
    }
    for row in reader.scan(&history, true) {
        let (physical, bytes) = row?;
        if done.entries == budget.entries || done.bytes >= budget.bytes {
            // Everything from the last entry looked at upwards is done; this one is not.
            let mut after = physical.to_vec();
            after.push(0);
            done.resume = Some(after);
            break;
        }
        done.entries += 1;
        let (superseded, value) = decode(&bytes)?;
        if superseded > threshold {
            continue;
        }
        let (key, ts) = parse_history_key(&physical)?;
        // A marker and nothing else is superseded when it begins (invariant 4).
        if superseded == ts && value.is_none() {
            let newest = get_newest(reader, &key)?;
            if newest.is_some_and(|v| v.ts == ts && v.value.is_none()) {
                done.bytes += (key.len() + 1 + bytes.len()) as u64;
                done.batch.delete(data_key(&key));
            }
        }
        done.versions += 1;
        done.bytes += (physical.len() + bytes.len()) as u64;
        done.batch.delete(physical.to_vec());
    }
    Ok(done)
}

/// A hash of what reads of the range at or above the threshold can see, and nothing else: two replicas that applied the same
/// entries have the same hash, however far their garbage collection went. Linear in the size of the range; works on
/// one state (a snapshot, or an engine that nothing writes to).
pub fn logical_hash<R: Reader + ?Sized>(reader: &R, range: &KeyRange, threshold: Timestamp) -> Result<u64> {
    let mut hash = Fnv64::default();
    if range.is_empty() {
        return Ok(hash.finish());
    }
    for row in reader.scan(&Space::Data.range(range), false) {
        let (physical, bytes) = row?;
        let key = user_key(&physical);
        let (newest, value) = decode(&bytes)?;
        hash_version(&mut hash, threshold, key, newest, &value);
        if newest <= threshold {
            continue;
        }
        for row in reader.scan(&KeyRange::prefix(&history_prefix(key)), false) {
            let (physical, bytes) = row?;
            let (superseded, value) = decode(&bytes)?;
            if superseded <= threshold {
                // Everything older was superseded earlier. (A deletion's marker says the same of itself only.)
                break;
            }
            let ts = super::read::history_ts(&physical)?;
            if superseded > ts {
                hash_version(&mut hash, threshold, key, ts, &value);
            }
        }
    }
    Ok(hash.finish())
}

/// A deletion at or below the threshold looks to every read like a key that never was.
fn hash_version(hash: &mut Fnv64, threshold: Timestamp, key: &[u8], ts: Timestamp, value: &Option<Bytes>) {
    if ts <= threshold && value.is_none() {
        return;
    }
    hash.update(&(key.len() as u64).to_be_bytes());
    hash.update(key);
    hash.update(&ts.0.to_be_bytes());
    match value {
        Some(value) => {
            hash.update(&(value.len() as u64).to_be_bytes());
            hash.update(value);
        }
        None => hash.update(&u64::MAX.to_be_bytes()),
    }
}
