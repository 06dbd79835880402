//! What the log tells about itself: metrics by name, and the same numbers as a plain struct.

use std::sync::atomic::{AtomicU64, Ordering};

/// Records written, by all shards, copies for freeing old segments included. Counter.
pub const RECORDS: &str = "isochrone_wal_records_total";
/// Bytes written to segments, headers and padding included. Counter.
pub const BYTES: &str = "isochrone_wal_bytes_total";
/// Successful fdatasync calls that made batches durable. Counter.
pub const SYNCS: &str = "isochrone_wal_syncs_total";
/// Records that one sync made durable. Histogram.
pub const BATCH_RECORDS: &str = "isochrone_wal_batch_records";
/// Duration of one fdatasync, in seconds. Histogram.
pub const SYNC_SECONDS: &str = "isochrone_wal_sync_seconds";
/// Segment files in use, the active one included. Gauge.
pub const SEGMENTS: &str = "isochrone_wal_segments";

/// A snapshot of the log's counters since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records written.
    pub records: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Batches written.
    pub batches: u64,
    /// Successful syncs.
    pub syncs: u64,
    /// Segment files created from nothing.
    pub segments_created: u64,
    /// Segment files taken into use again.
    pub segments_reused: u64,
    /// Segment files that held nothing live any more and were put aside or deleted.
    pub segments_freed: u64,
    /// Live records copied to the head to free old segments.
    pub records_moved: u64,
    /// 1 after old live records could not be read back: segments are not freed any more.
    pub moving_blocked: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub records: AtomicU64,
    pub bytes: AtomicU64,
    pub batches: AtomicU64,
    pub syncs: AtomicU64,
    pub segments_created: AtomicU64,
    pub segments_reused: AtomicU64,
    pub segments_freed: AtomicU64,
    pub records_moved: AtomicU64,
    pub moving_blocked: AtomicU64,
}

/// Adds to a counter that only tells, and orders nothing.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn snapshot(&self) -> Stats {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        Stats {
            records: get(&self.records),
            bytes: get(&self.bytes),
            batches: get(&self.batches),
            syncs: get(&self.syncs),
            segments_created: get(&self.segments_created),
            segments_reused: get(&self.segments_reused),
            segments_freed: get(&self.segments_freed),
            records_moved: get(&self.records_moved),
            moving_blocked: get(&self.moving_blocked),
        }
    }
}

/// Handles to the process-wide recorder, looked up once.
pub(crate) struct Handles {
    pub records: metrics::Counter,
    pub bytes: metrics::Counter,
    pub syncs: metrics::Counter,
    pub batch_records: metrics::Histogram,
    pub sync_seconds: metrics::Histogram,
    pub segments: metrics::Gauge,
}

impl Handles {
    pub(crate) fn new() -> Handles {
        metrics::describe_counter!(RECORDS, "records written to the node log");
        metrics::describe_counter!(BYTES, metrics::Unit::Bytes, "bytes written to the node log");
        metrics::describe_counter!(SYNCS, "fdatasync calls of the node log");
        metrics::describe_histogram!(BATCH_RECORDS, "records made durable by one sync");
        metrics::describe_histogram!(SYNC_SECONDS, metrics::Unit::Seconds, "duration of one fdatasync");
        metrics::describe_gauge!(SEGMENTS, "segment files of the node log in use");
        Handles {
            records: metrics::counter!(RECORDS),
            bytes: metrics::counter!(BYTES),
            syncs: metrics::counter!(SYNCS),
            batch_records: metrics::histogram!(BATCH_RECORDS),
            sync_seconds: metrics::histogram!(SYNC_SECONDS),
            segments: metrics::gauge!(SEGMENTS),
        }
    }
}
