//! What can be set about a log. Data only; disk and clock are handed in separately.

use std::path::PathBuf;

use crate::format::DATA_START;

/// Largest configurable segment: offsets inside a segment stay far below 32 bits even for an oversized one.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// Smallest configurable segment: the header block and one page of data.
pub const SEGMENT_BYTES_MIN: u64 = DATA_START + 1024;

/// Settings of one node's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The directory; nothing else may live in it.
    pub dir: PathBuf,
    /// Size of a segment file in bytes, a multiple of 512. Default 64 MiB. A record that does not fit gets a segment
    /// of its own size. May differ from run to run.
    pub segment_bytes: u64,
    /// Recycled segments kept for reuse; more are deleted. Default 4: 256 MiB at rest.
    pub segments_spare_max: usize,
    /// Most bytes of records in one batch on disk; more are cut into several, at record boundaries. One write call
    /// makes one batch. Default 4 MiB.
    pub batch_bytes_max: usize,
    /// Zeros are written (and synced) this far ahead in a segment that was never used before, in bytes. Default
    /// 8 MiB: opening an empty log stays fast, and an append rarely waits for it.
    pub preallocate_bytes: u64,
    /// Most bytes of old live records moved to the head in one call of `maintain`. Default 256 KiB.
    pub rewrite_bytes_max: usize,
}

impl Config {
    /// The defaults, in this directory.
    pub fn new(dir: impl Into<PathBuf>) -> Config {
        Config {
            dir: dir.into(),
            segment_bytes: 64 << 20,
            segments_spare_max: 4,
            batch_bytes_max: 4 << 20,
            preallocate_bytes: 8 << 20,
            rewrite_bytes_max: 256 << 10,
        }
    }

    /// Why these settings cannot be used, if so.
    pub fn validate(&self) -> Result<(), String> {
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes)
            || !self.segment_bytes.is_multiple_of(512)
        {
            return Err(format!(
                "segment_bytes {} must be a multiple of 512 between {SEGMENT_BYTES_MIN} and {SEGMENT_BYTES_MAX}",
                self.segment_bytes
            ));
        }
        if !(256..=1 << 30).contains(&self.batch_bytes_max) {
            return Err(format!("batch_bytes_max {} must lie between 256 and 2^30", self.batch_bytes_max));
        }
        if self.preallocate_bytes < 512 {
            return Err(format!("preallocate_bytes {} must be 512 or more", self.preallocate_bytes));
        }
        if self.rewrite_bytes_max == 0 {
            return Err("rewrite_bytes_max must be 1 or more: old segments could never be freed".into());
        }
        Ok(())
    }
}
