//! The metrics of an engine: names, units, help. Filled from [`EngineStats`] by whoever exports them, so that the
//! engines themselves depend on no metrics library.

use crate::EngineStats;

/// What kind of figure a metric is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only rises while the engine is open.
    Counter,
    /// Rises and falls.
    Gauge,
}

/// One figure, by the name under which it is exported.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Exported name; the unit is its last part.
    pub name: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// One sentence.
    pub help: &'static str,
    /// Where it comes from.
    pub read: fn(&EngineStats) -> u64,
}

/// All metrics of an engine.
pub const METRICS: &[Metric] = &[
    counter("isochrone_storage_batches_total", "Batches written.", |s| s.batches),
    counter("isochrone_storage_written_bytes_total", "Bytes of keys and values written.", |s| {
        s.bytes_written
    }),
    counter("isochrone_storage_flushes_total", "Flushes done.", |s| s.flushes),
    counter("isochrone_storage_flushed_bytes_total", "Bytes of memory flushed.", |s| s.flushed_bytes),
    counter("isochrone_storage_compactions_total", "Compactions done.", |s| s.compactions),
    counter(
        "isochrone_storage_stalls_total",
        "Writes that waited because flushes or compactions were too far behind.",
        |s| s.stalls,
    ),
    gauge("isochrone_storage_l0_runs", "Sorted runs in level 0; writes wait when there are too many.", |s| {
        s.l0_runs
    }),
    gauge("isochrone_storage_tables", "Table files.", |s| s.tables),
    gauge("isochrone_storage_disk_bytes", "Bytes of table files.", |s| s.disk_bytes),
    gauge("isochrone_storage_memtable_bytes", "Bytes written but not durable in the engine.", |s| {
        s.memtable_bytes
    }),
    gauge("isochrone_storage_snapshots", "Snapshots and scans held.", |s| s.snapshots),
    gauge("isochrone_storage_poisoned", "1 after a failed flush or compaction.", |s| {
        s.poisoned.is_some() as u64
    }),
];

const fn counter(name: &'static str, help: &'static str, read: fn(&EngineStats) -> u64) -> Metric {
    Metric { name, kind: Kind::Counter, help, read }
}

const fn gauge(name: &'static str, help: &'static str, read: fn(&EngineStats) -> u64) -> Metric {
    Metric { name, kind: Kind::Gauge, help, read }
}
