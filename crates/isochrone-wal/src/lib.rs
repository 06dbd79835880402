//! The node log: many shard logs in one sequence of segments, one fsync for all that wait (design D2).
//!
//!     segment 7 (sealed)                  segment 8 (active)
//!     [hdr][batch][batch][batch]| stale   [hdr][batch][batch] ~torn~
//!                               ^ prev_end in the next header      ^ end
//!
//! A [`Batch`] holds records of any number of shards. [`Log::append`] writes, [`Log::sync`] makes durable and
//! visible; [`writer::LogWriter`] does both for many threads at once (group commit); [`LogReader`] reads from any
//! thread; [`inspect`] looks at a log from outside. The bytes are described in `docs/formats/wal.md`.
//!
//! Invariants
//!   W1  Shard indexes are contiguous: from a shard's first to its last index every entry is there, exactly once.
//!   W2  Everything below a durable-end mark was durable when the mark was written: a bad byte there is damage, an
//!       error, never cut. What is acknowledged survives power loss.
//!   W3  A segment is synced before its successor is made; the successor's header says where it ended. Only the last
//!       segment can have a torn tail.
//!   W4  Every checksum covers the position (generation, offset): a stale or misplaced block is never read as new.
//!   W5  Epochs (one per opening) never fall along the log, and the first batch of an epoch is durable before
//!       another is written: what an earlier life left behind its cut end is never read as part of the log.
//!   W6  Readers see what is durable, and nothing of a write or sync that failed.
//!   W7  Segments are freed from the oldest on, after a durable batch said so: no record outlives one that outdates
//!       it, and the latest hard state and truncation mark of every shard are never lost.
//!
//! Failure: after a failed write or sync the log is poisoned ([`Error::Poisoned`]); nothing is retried and
//! acknowledged. A torn tail is cut and reported in [`RecoveryReport`]; damage is reported and nothing is changed.
//!
//! Known gaps: damage to the very last batch, before any later one or an orderly shutdown marked it durable, cannot
//! be told from a torn write (it is cut, and reported as a cut); the loss of whole newest segment files is not noticed
//! here (the engine's applied index is above the log's end then). The index of live entries is in memory: its size is
//! bounded by truncation, which is the owner's duty. Two processes on one directory are kept apart by the server.
//! Not here: deciding what to truncate (`storage`, `consensus`), refilling a damaged replica.
#![forbid(unsafe_code)]

mod batch;
mod config;
mod error;
mod format;
mod index;
pub mod inspect;
mod log;
mod maintain;
pub mod metrics;
mod reader;
mod recover;
pub mod writer;

pub use batch::{Batch, HardState, Kind};
pub use config::{Config, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
pub use error::Error;
pub use format::{DATA_START, Position, RECORD_HEADER_BYTES, VERSION};
pub use log::{Log, RecoveryReport, TERM_UNKNOWN};
pub use metrics::Stats;
pub use reader::{Entry, EntryPosition, LogReader};
pub use recover::{Problem, Tail};
