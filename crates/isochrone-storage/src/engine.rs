//! What the layers above see of an engine: an ordered map of bytes with atomic batches, snapshots and flushes.
//!
//! Invariants, held by the conformance suite in `tests/`:
//! 1. A reader sees all of a batch or nothing of it, and what one read saw, later reads see too.
//! 2. After a crash an engine holds a prefix of the sequence of batches, at least up to the last flush that returned.
//! 3. A snapshot, and an iterator made from it, does not change while it is held.
//!
//! How it fails: an I/O error or corruption met by a flush or compaction poisons the engine: reads go on, writes go
//! on until memory is full, every later flush repeats the first error. There is no retry: after a failed fsync
//! nobody knows what the disk holds.

use std::sync::Arc;

use isochrone_base::{Bytes, KeyRange};

use crate::{Result, WriteBatch};

/// Longest physical key an engine holds, in bytes. A user key of `KEY_BYTES_MAX` escaped into the history space fits.
pub const ENGINE_KEY_BYTES_MAX: usize = 65_535;

const _: () = assert!(2 * isochrone_base::limits::KEY_BYTES_MAX + 64 < ENGINE_KEY_BYTES_MAX);

/// The rows of a scan, in the order asked for. Holds what it needs by itself: it may outlive engine and snapshot
/// handles. After an error it ends.
pub type ScanIter = Box<dyn Iterator<Item = Result<(Bytes, Bytes)>> + Send>;

/// Called on the engine's flush thread with the new [`Engine::flushed_seq`]. Must be quick and must not call the
/// engine's `flush`.
pub type FlushCallback = Box<dyn Fn(u64) + Send + Sync>;

/// Reads of physical keys: of the latest published state (an engine) or of a fixed one (a snapshot).
pub trait Reader: Send + Sync {
    /// The value of a key. The bytes may be a view into a cached block: copy what is kept for long.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;

    /// All keys of the range with their values, ascending, or descending if `reverse`. An engine scans the state
    /// that is the latest at the time of the call. Opening a scan costs microseconds: for one key use [`Reader::get`].
    fn scan(&self, range: &KeyRange, reverse: bool) -> ScanIter;
}

/// A fixed published state. Holding one keeps overwritten data in memory and on disk: seconds, not hours.
pub trait Snapshot: Reader {}

/// An ordered map of bytes with atomic batches, snapshots and flushes.
///
/// Batches are numbered from 1 in the order they become visible; the count starts again at each open. Whoever
/// truncates a log remembers pairs of ([`Engine::written_seq`], applied index) and truncates up to the applied index
/// of the last pair that [`Engine::flushed_seq`] has reached.
pub trait Engine: Reader {
    /// The latest published state, fixed.
    fn snapshot(&self) -> Arc<dyn Snapshot>;

    /// Makes all writes of the batch visible at once. Not durable by itself. Waits when flushes or compactions are
    /// too far behind (bounded debt; counted in [`EngineStats::stalls`]). An empty batch does nothing.
    ///
    /// # Errors
    /// `KeyLength`: nothing was written. `Poisoned`: there is no room and there will never be; nothing was written.
    fn write(&self, batch: WriteBatch) -> Result<()>;

    /// The number of the last batch written; 0 if none since the engine was opened.
    fn written_seq(&self) -> u64;

    /// Every batch up to this number is durable.
    fn flushed_seq(&self) -> u64;

    /// Starts making durable what is written so far, without waiting. Returns the number that
    /// [`Engine::flushed_seq`] will reach.
    fn request_flush(&self) -> Result<u64>;

    /// Waits until everything written before the call is durable.
    fn flush(&self) -> Result<()>;

    /// Registers a function to be called whenever [`Engine::flushed_seq`] rose.
    fn on_flush(&self, callback: FlushCallback);

    /// Bytes written that are not durable yet, approximately.
    fn memtable_bytes(&self) -> u64;

    /// Is it time for [`Engine::request_flush`]? An engine that is not asked begins by itself later, and in the end
    /// lets writes wait.
    fn needs_flush(&self) -> bool;

    /// Bytes that the keys of the range take, approximately: good for "is it time to split", not for accounting.
    fn approximate_bytes(&self, range: &KeyRange) -> u64;

    /// Figures for metrics.
    fn stats(&self) -> EngineStats;
}

/// Figures of an engine, since it was opened unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Batches written.
    pub batches: u64,
    /// Bytes of keys and values written.
    pub bytes_written: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Bytes in memory flushed.
    pub flushed_bytes: u64,
    /// Compactions done.
    pub compactions: u64,
    /// Writes that had to wait for a flush or compaction.
    pub stalls: u64,
    /// Sorted runs in level 0, now.
    pub l0_runs: u64,
    /// Table files, now.
    pub tables: u64,
    /// Bytes on disk, now.
    pub disk_bytes: u64,
    /// Bytes not durable yet, now.
    pub memtable_bytes: u64,
    /// Snapshots and scans held, now.
    pub snapshots: u64,
    /// Why flushes stopped, if they did.
    pub poisoned: Option<String>,
}
