//! The engine the upper layers see: atomic batches, snapshots, versioned keys.
//!
//! * [`Engine`] is an ordered map of bytes with atomic batches and snapshots, and flushes instead of a log: the log
//!   of the shards is the log (design D1, D4). [`LsmEngine`] keeps it in a directory, [`MemEngine`] in memory with a
//!   flushed image to fall back to in a simulated crash. Both pass one conformance suite.
//! * [`mvcc`] lays versioned keys out in an engine, newest version first (design D5). It is the only place that knows
//!   the physical prefixes. The bytes are specified in `docs/formats/storage.md`.
//!
//! Invariants: see [`engine`] and [`mvcc`]. Failure: an engine never retries a failed flush; it is poisoned and says
//! why.
//!
//! Missing: range tombstones (a range is removed key by key), a compaction filter for old versions
//! ([`mvcc::gc`] removes them by ordinary batches), compression.
#![forbid(unsafe_code)]

mod batch;
pub mod engine;
mod error;
mod lsm;
mod mem;
pub mod metrics;
pub mod mvcc;

pub use batch::WriteBatch;
pub use engine::{ENGINE_KEY_BYTES_MAX, Engine, EngineStats, FlushCallback, Reader, ScanIter, Snapshot};
pub use error::{Error, Result};
pub use lsm::{L0_RUNS_MAX, LsmConfig, LsmEngine, MEMTABLE_BYTES_MIN};
pub use mem::MemEngine;
