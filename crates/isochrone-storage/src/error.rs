//! What can go wrong in an engine. I/O errors (the disk refused) and corruption (the disk answered with something
//! that cannot be) are kept apart, because a store reacts differently: the first stops it, the second quarantines
//! what was hit.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use isochrone_base::Timestamp;
use isochrone_base::codec::DecodeError;

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an engine could not do what it was asked. Cheap to clone: a poisoned engine repeats its first error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation.
    #[error("{doing}: {source}")]
    Io {
        /// What the engine was doing.
        doing: &'static str,
        /// The operating system's answer.
        source: Arc<io::Error>,
    },
    /// Bytes on disk are not what was written there.
    #[error("storage is corrupt: {0}")]
    Corruption(String),
    /// A flush or compaction failed earlier. What was flushed before is durable, nothing more will be.
    #[error("storage stopped after a failed flush or compaction: {0}")]
    Poisoned(Arc<Error>),
    /// The directory holds something else.
    #[error("{path} is not a storage directory of isochrone: {why}")]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The directory was written by another version of the format.
    #[error("{path} has storage format {found}, this build reads format {expected}")]
    Format {
        /// The directory.
        path: PathBuf,
        /// The format it has.
        found: String,
        /// The format we read.
        expected: u32,
    },
    /// Another process (or another engine of this one) has the directory open.
    #[error("{0} is in use by another process")]
    Locked(PathBuf),
    /// A key is empty or longer than an engine can hold; nothing of the batch was written.
    #[error("key of {0} bytes, an engine holds keys of 1 to 65535 bytes")]
    KeyLength(usize),
    /// A version was added to a key that already has a version at that time or later; nothing was added.
    #[error("version at {given} of a key whose newest version is at {newest}")]
    OutOfOrder {
        /// The time of the version to be added.
        given: Timestamp,
        /// The time of the key's newest version.
        newest: Timestamp,
    },
    /// The engine is being closed.
    #[error("storage is closed")]
    Closed,
}

impl Error {
    /// An I/O error with what was being done.
    pub fn io(doing: &'static str, source: io::Error) -> Error {
        Error::Io { doing, source: Arc::new(source) }
    }
}

impl From<DecodeError> for Error {
    fn from(e: DecodeError) -> Error {
        Error::Corruption(e.to_string())
    }
}
