//! The outside world as a handful of traits, handed in from above (design D14).
//!
//! Everything that decides is written against [`Disk`], [`Clock`], [`Random`] and [`Timer`]; the real ones are in
//! [`os`], the simulated ones (a disk that loses unsynced writes in a crash, a clock that is set by hand, a seeded
//! generator) in [`fake`]. The simulator runs the code that ships on the fakes.
#![deny(unsafe_code)]

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub mod clocks;
pub mod fake;
mod kernel;
pub mod os;
pub mod random;

pub use random::SplitMix64;

/// An open file. All calls may come from several threads.
pub trait DiskFile: Send + Sync {
    /// Fills `buf` from `offset`; `UnexpectedEof` when the file ends before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `buf` at `offset`. Durable only after [`DiskFile::sync_data`].
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Makes every write that returned before durable (fdatasync). After an error nothing may be assumed of what
    /// was written since the last success, and a later success does not repair it.
    fn sync_data(&self) -> io::Result<()>;
    /// Sets the length; new bytes read as zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Is the file empty?
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// How [`Disk::open`] treats a file that is, or is not, there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// Must exist; reading only.
    Read,
    /// Must exist; reading and writing.
    ReadWrite,
    /// Must not exist; created empty.
    CreateNew,
}

/// A file system. Names become durable with [`Disk::sync_dir`], contents with [`DiskFile::sync_data`].
pub trait Disk: Send + Sync {
    /// Opens or creates a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// Gives a file another name in the same file system, replacing what had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Creates a directory and its parents; fine if it is there.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in this directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Is there a file or directory of that name?
    fn exists(&self, path: &Path) -> io::Result<bool>;
}

/// Reads a whole (small) file.
pub fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let mut out = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
    file.read_exact_at(&mut out, 0)?;
    Ok(out)
}

/// Replaces a small file atomically and durably: a new file beside it, synced, renamed over it, directory synced. Files of
/// different names may be replaced at the same time, the same one not.
pub fn replace_file(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    // The whole name goes before it: `a.id` and `a.peers` must not meet in one `a.tmp`.
    let mut tmp = path.as_os_str().to_owned();
    tmp.push(".tmp");
    let tmp = PathBuf::from(tmp);
    if disk.exists(&tmp)? {
        disk.remove(&tmp)?;
    }
    let file = disk.open(&tmp, OpenMode::CreateNew)?;
    file.write_all_at(bytes, 0)?;
    file.sync_data()?;
    disk.rename(&tmp, path)?;
    disk.sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// What a clock can know: true time lies between the two, in microseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClockReading {
    /// The clock's own best guess.
    pub now_us: u64,
    /// How far the guess can be off, either way.
    pub error_us: u64,
}

/// How a clock knows what it says, for operators, and for who must not use a clock that knows too little.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClockState {
    /// Where the error bound comes from: `fixed`, `ntp`, `clockbound`.
    pub source: &'static str,
    /// The error bound now, either way. It grows while the source says nothing.
    pub error_us: u64,
    /// Why the source says nothing now.
    pub trouble: Option<String>,
}

/// Time, as seen by one node.
pub trait Clock: Send + Sync {
    /// Wall-clock time with its error bound. May step in either direction.
    fn wall(&self) -> ClockReading;
    /// Nanoseconds since some fixed moment of this process; never goes back.
    fn monotonic_ns(&self) -> u64;
    /// What stands behind the readings.
    fn state(&self) -> ClockState {
        ClockState { source: "fixed", error_us: self.wall().error_us, trouble: None }
    }
}

/// A source of random numbers. In a simulation, one stream per component, all from the seed.
pub trait Random: Send + Sync {
    /// 64 uniform bits.
    fn next_u64(&self) -> u64;
    /// 128 uniform bits: transaction ids.
    fn next_u128(&self) -> u128 {
        (u128::from(self.next_u64()) << 64) | u128::from(self.next_u64())
    }
}

/// Waits for asynchronous code.
pub trait Timer: Send + Sync {
    /// Resolves after `duration` of this world's time.
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// The outside world of one node. Cloning shares it.
#[derive(Clone)]
pub struct Env {
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// Waiting.
    pub timer: Arc<dyn Timer>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_side_by_side_are_replaced_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let replace = |name: &str| {
            for i in 0..100 {
                let path = dir.path().join(name);
                let text = format!("{name} {i}");
                replace_file(&os::OsDisk, &path, text.as_bytes()).unwrap();
                assert_eq!(read_file(&os::OsDisk, &path).unwrap(), text.as_bytes());
            }
        };
        std::thread::scope(|s| {
            s.spawn(|| replace("a.id"));
            s.spawn(|| replace("a.peers"));
        });
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left over");
    }
}
