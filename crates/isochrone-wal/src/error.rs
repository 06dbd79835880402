//! What can go wrong, by what the caller should do.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use isochrone_base::{LogIndex, ShardId};

/// An error of the node log.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation. From `append`, `sync`, `maintain`: the log is poisoned, the store
    /// must stop acknowledging.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was tried: write, sync, rename.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// An earlier write or sync failed; nothing is written any more until the log is opened again.
    #[error("log is stopped after an earlier failure: {0}")]
    Poisoned(Arc<Error>),
    /// The log was shut down.
    #[error("log is closed")]
    Closed,
    /// Bytes that were durable are not what was written. Never repaired silently: refill the replica from its peers,
    /// or restore.
    #[error("log is damaged in {file} at offset {offset}: {what}")]
    Damaged {
        /// The segment file.
        file: PathBuf,
        /// The first bad byte, as far as known.
        offset: u64,
        /// What was expected there.
        what: String,
    },
    /// A file in the directory is not one of ours.
    #[error("{path} does not belong to a log: {what}")]
    NotALog {
        /// The file.
        path: PathBuf,
        /// How we can tell.
        what: String,
    },
    /// A segment was written by another version of this program.
    #[error("{path} has log format version {version}, this program reads version {supported}")]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// The version it says.
        version: u32,
        /// The one we read.
        supported: u32,
    },
    /// The settings cannot be used.
    #[error("log configuration: {0}")]
    Config(String),
    /// An entry does not continue its shard's log; a bug of the caller. Nothing was written.
    #[error("shard {shard}: entry {index} does not continue a log of {first}..={last}")]
    OutOfOrder {
        /// The shard.
        shard: ShardId,
        /// The entry that does not fit.
        index: LogIndex,
        /// First index of the log.
        first: LogIndex,
        /// Last index of the log.
        last: LogIndex,
    },
    /// A payload above `isochrone_base::limits::LOG_ENTRY_BYTES_MAX`. Nothing was written.
    #[error("shard {shard}: entry {index} has {bytes} bytes, at most {bytes_max} are allowed")]
    TooLarge {
        /// The shard.
        shard: ShardId,
        /// The entry.
        index: LogIndex,
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The log does not know this shard.
    #[error("shard {0} has no log on this node")]
    UnknownShard(ShardId),
    /// The entry was truncated away.
    #[error("shard {shard}: entry {index} is truncated, the log begins at {first}")]
    Compacted {
        /// The shard.
        shard: ShardId,
        /// The entry asked for.
        index: LogIndex,
        /// First index of the log.
        first: LogIndex,
    },
    /// The entry is not (durably) there yet.
    #[error("shard {shard}: entry {index} is beyond the end of the log, {last}")]
    Unavailable {
        /// The shard.
        shard: ShardId,
        /// The entry asked for.
        index: LogIndex,
        /// Last index of the log.
        last: LogIndex,
    },
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: &std::path::Path, source: io::Error) -> Error {
        Error::Io { operation, path: path.to_path_buf(), source: Arc::new(source) }
    }

    /// Is this a refusal of one request, after which the log goes on?
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Error::OutOfOrder { .. }
                | Error::TooLarge { .. }
                | Error::UnknownShard(_)
                | Error::Compacted { .. }
                | Error::Unavailable { .. }
                | Error::Config(_)
        )
    }
}
