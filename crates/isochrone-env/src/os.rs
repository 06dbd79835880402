//! The real world: the operating system's files, clocks and entropy, tokio's timer.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::{Clock, ClockReading, Disk, DiskFile, Env, OpenMode, SplitMix64, Timer};

/// The operating system's world. `clock_error_us` is the clock's error bound; 0 for a cluster of one node, whose
/// clock is by definition the cluster's.
pub fn env(clock_error_us: u64) -> io::Result<Env> {
    Ok(Env {
        disk: Arc::new(OsDisk),
        clock: Arc::new(OsClock::new(clock_error_us)),
        random: Arc::new(SplitMix64::new(entropy()?)),
        timer: Arc::new(TokioTimer),
    })
}

/// 64 bits from the operating system's entropy pool.
pub fn entropy() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// `std::fs`.
#[derive(Debug)]
pub struct OsDisk;

struct OsFile(File);

impl DiskFile for OsFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

impl Disk for OsDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        match mode {
            OpenMode::Read => options.read(true),
            OpenMode::ReadWrite => options.read(true).write(true),
            OpenMode::CreateNew => options.read(true).write(true).create_new(true),
        };
        Ok(Arc::new(OsFile(options.open(path)?)))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut out = std::fs::read_dir(dir)?.map(|e| Ok(e?.path())).collect::<io::Result<Vec<_>>>()?;
        out.sort();
        Ok(out)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })?.sync_all()
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }
}

/// The system clock with a configured error bound.
#[derive(Debug)]
pub struct OsClock {
    started: Instant,
    error_us: u64,
}

impl OsClock {
    /// A clock that claims to be within `error_us` of true time.
    #[expect(clippy::disallowed_methods, reason = "this is where the ambient clock is wrapped")]
    pub fn new(error_us: u64) -> OsClock {
        OsClock { started: Instant::now(), error_us }
    }
}

impl Clock for OsClock {
    #[expect(clippy::disallowed_methods, reason = "this is where the ambient clock is wrapped")]
    fn wall(&self) -> ClockReading {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        ClockReading { now_us: now.as_micros() as u64, error_us: self.error_us }
    }
    fn monotonic_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }
}

/// `tokio::time`.
#[derive(Debug)]
pub struct TokioTimer;

impl Timer for TokioTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep(duration))
    }
}
