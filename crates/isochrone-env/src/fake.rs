//! A world for tests and simulations: nothing in it happens by itself.
//!
//! [`MemDisk`] models a disk under a page cache. A write is volatile until `sync_data` of its file; a creation,
//! rename or removal until `sync_dir`. [`MemDisk::crash`] keeps a random subset of what was not synced, in pieces of
//! [`SECTOR_BYTES`], as a power cut does. Faults are set by operation count ([`MemDisk::fail_at`]), so that a loop
//! over k meets every I/O a piece of code makes.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::{Clock, ClockReading, Disk, DiskFile, OpenMode, Random, SplitMix64, Timer};

/// What a disk writes in one go: a torn write ends at a multiple of this.
pub const SECTOR_BYTES: usize = 512;

/// What happens at the chosen operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The operation fails with EIO; a failed `sync_data` marks its writes clean without making them durable.
    Eio,
    /// The next `sync_data` from here on fails with EIO, as with [`Fault::Eio`].
    SyncFails,
    /// Writes and creations fail with ENOSPC from here on; nothing else does.
    Enospc,
    /// The machine loses power before the operation; every operation from here on fails until [`MemDisk::crash`].
    PowerCut,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// What survives a power cut.
    durable: Vec<u8>,
    /// What a sector held before what it holds durably; as long as `durable`, or shorter.
    previous: Vec<u8>,
    /// What a running program sees.
    cached: Vec<u8>,
    /// Sectors that differ, because they were written since the last sync.
    dirty: std::collections::BTreeSet<usize>,
}

impl Inode {
    /// What a program sees of a sector becomes durable.
    fn write_back(&mut self, sector: usize) {
        let from = sector * SECTOR_BYTES;
        let to = (from + SECTOR_BYTES).min(self.cached.len());
        if from >= to {
            return;
        }
        if self.durable.len() < to {
            self.durable.resize(to, 0);
        }
        if self.previous.len() < to {
            self.previous.resize(to, 0);
        }
        self.previous[from..to].copy_from_slice(&self.durable[from..to]);
        self.durable[from..to].copy_from_slice(&self.cached[from..to]);
    }
}

#[derive(Clone, Debug, Default)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    /// Names a running program sees.
    names: BTreeMap<PathBuf, u64>,
    /// Names that survive a power cut.
    durable_names: BTreeMap<PathBuf, u64>,
    operations: u64,
    /// From which operation on, and what; one of a kind at most.
    faults: Vec<(u64, Fault)>,
    full: bool,
    /// What made an operation fail since the disk was last whole.
    failed: Option<Fault>,
    dead: bool,
}

/// A simulated file system. Cloning shares it: the disk outlives the program that crashed.
#[derive(Clone, Debug, Default)]
pub struct MemDisk(Arc<Mutex<State>>);

impl MemDisk {
    /// An empty disk.
    pub fn new() -> MemDisk {
        MemDisk::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while the disk's lock is held")
    }

    /// Operations so far (writes, syncs, names; reads are not counted).
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Lets the operation with this number (counted from 0 over the disk's life) meet a fault. One of each kind may lie
    /// ahead: a second one of a kind takes the place of the first.
    pub fn fail_at(&self, operation: u64, fault: Fault) {
        let mut s = self.lock();
        s.faults.retain(|(_, other)| *other != fault);
        s.faults.push((operation, fault));
    }

    /// Takes back all faults, and gives space again to a full disk.
    pub fn heal(&self) {
        self.lock().heal();
    }

    /// Takes back the faults that lie ahead; what has failed stays so.
    pub fn disarm(&self) {
        self.lock().faults.clear();
    }

    /// Which fault made an operation fail since the last [`MemDisk::heal`] or [`MemDisk::crash`]; of several, the first. A
    /// power cut is no failure in this sense.
    pub fn failed(&self) -> Option<Fault> {
        self.lock().failed
    }

    /// Did a power cut happen that [`MemDisk::crash`] has not yet followed?
    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Power comes back: each unsynced sector and name is there or not, as `random` says.
    pub fn crash(&self, random: &SplitMix64) {
        let mut s = self.lock();
        let s = &mut *s;
        for inode in s.inodes.values_mut() {
            for sector in inode.dirty.clone() {
                if random.next_u64() & 1 == 0 {
                    continue;
                }
                inode.write_back(sector);
            }
            inode.dirty.clear();
            inode.cached = inode.durable.clone();
        }
        let all: std::collections::BTreeSet<PathBuf> =
            s.names.keys().chain(s.durable_names.keys()).cloned().collect();
        for name in all {
            let (now, then) = (s.names.get(&name).copied(), s.durable_names.get(&name).copied());
            if now != then && random.next_u64() & 1 == 0 {
                match now {
                    Some(inode) => s.durable_names.insert(name, inode),
                    None => s.durable_names.remove(&name),
                };
            }
        }
        s.names = s.durable_names.clone();
        s.dead = false;
        s.heal();
    }

    /// A disk that holds the same; what happens to either is not seen by the other.
    pub fn fork(&self) -> MemDisk {
        MemDisk(Arc::new(Mutex::new(self.lock().clone())))
    }

    /// The files that survive a power cut, and their sizes in bytes.
    pub fn durable_files(&self) -> Vec<(PathBuf, usize)> {
        let s = self.lock();
        s.durable_names.iter().map(|(path, inode)| (path.clone(), s.inodes[inode].durable.len())).collect()
    }

    /// The durable bytes of a whole sector of a file; none if it was written since, or ends before.
    pub fn sector(&self, path: &Path, sector: usize) -> Option<Vec<u8>> {
        let s = self.lock();
        let inode = &s.inodes[s.durable_names.get(path)?];
        if inode.dirty.contains(&sector) {
            return None;
        }
        let from = sector * SECTOR_BYTES;
        Some(inode.durable.get(from..from + SECTOR_BYTES)?.to_vec())
    }

    /// What a sector held before that: zeros at first.
    pub fn previous_sector(&self, path: &Path, sector: usize) -> Option<Vec<u8>> {
        let s = self.lock();
        let inode = &s.inodes[s.durable_names.get(path)?];
        let from = sector * SECTOR_BYTES;
        let known = inode.previous.len();
        let mut bytes = inode.previous[from.min(known)..(from + SECTOR_BYTES).min(known)].to_vec();
        bytes.resize(SECTOR_BYTES, 0);
        Some(bytes)
    }

    /// Replaces the durable bytes of a sector, and what a program reads there: damage, while no program runs.
    pub fn set_sector(&self, path: &Path, sector: usize, bytes: &[u8]) {
        let s = &mut *self.lock();
        let Some(inode) = s.durable_names.get(path).and_then(|inode| s.inodes.get_mut(inode)) else { return };
        let from = sector * SECTOR_BYTES;
        for image in [&mut inode.durable, &mut inode.cached] {
            if let Some(place) = image.get_mut(from..from + SECTOR_BYTES) {
                place.copy_from_slice(&bytes[..SECTOR_BYTES]);
            }
        }
    }

    /// The bytes of a file as a running program sees them; to be looked at or damaged by a test.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let s = self.lock();
        Some(s.inodes[s.names.get(path)?].cached.clone())
    }

    /// Replaces a file's bytes, durably: damage, as a test wants it. Creates the file if need be.
    pub fn set_contents(&self, path: &Path, bytes: Vec<u8>) {
        let mut s = self.lock();
        let s = &mut *s;
        let inode = *s.names.entry(path.to_path_buf()).or_insert_with(|| {
            s.next_inode += 1;
            s.next_inode
        });
        s.durable_names.insert(path.to_path_buf(), inode);
        s.inodes.insert(inode, Inode { durable: bytes.clone(), cached: bytes, ..Inode::default() });
    }
}

/// What an operation does, as far as faults tell them apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    /// Needs space.
    Writes,
    Syncs,
    Other,
}

impl State {
    fn heal(&mut self) {
        self.faults.clear();
        self.full = false;
        self.failed = None;
    }

    /// Counts an operation; says whether it meets EIO. `PowerCut`, a full and a dead disk are errors right away.
    fn step(&mut self, operation: Operation) -> io::Result<bool> {
        if self.dead {
            return Err(io::Error::other("power is off"));
        }
        let n = self.operations;
        self.operations += 1;
        let mut eio = None;
        for fault in self.faults.extract_if(.., |(at, fault)| {
            n >= *at && (*fault != Fault::SyncFails || operation == Operation::Syncs)
        }) {
            match fault.1 {
                Fault::Eio | Fault::SyncFails => eio = Some(fault.1),
                Fault::Enospc => self.full = true,
                Fault::PowerCut => self.dead = true,
            }
        }
        if self.dead {
            return Err(io::Error::other("power is off"));
        }
        if self.full && operation == Operation::Writes {
            self.failed.get_or_insert(Fault::Enospc);
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        if let Some(fault) = eio {
            self.failed.get_or_insert(fault);
        }
        Ok(eio.is_some())
    }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

struct MemFile {
    disk: MemDisk,
    inode: u64,
    writable: bool,
}

impl MemFile {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        f(&mut self.disk.lock())
    }
}

impl DiskFile for MemFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|s| {
            if s.dead {
                return Err(io::Error::other("power is off"));
            }
            let inode = &s.inodes[&self.inode];
            let from = offset as usize;
            match inode.cached.get(from..from + buf.len()) {
                Some(bytes) => {
                    buf.copy_from_slice(bytes);
                    Ok(())
                }
                None => Err(io::ErrorKind::UnexpectedEof.into()),
            }
        })
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.with(|s| {
            if s.step(Operation::Writes)? {
                return Err(eio());
            }
            let inode = s.inodes.get_mut(&self.inode).expect("an open file has an inode");
            let (from, to) = (offset as usize, offset as usize + buf.len());
            if inode.cached.len() < to {
                inode.cached.resize(to, 0);
            }
            inode.cached[from..to].copy_from_slice(buf);
            inode.dirty.extend(from / SECTOR_BYTES..to.div_ceil(SECTOR_BYTES));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|s| {
            let eio_now = s.step(Operation::Syncs)?;
            let inode = s.inodes.get_mut(&self.inode).expect("an open file has an inode");
            if eio_now {
                // Linux: the pages are marked clean although they never reached the disk.
                inode.dirty.clear();
                return Err(eio());
            }
            if inode.dirty.is_empty() && inode.durable.len() == inode.cached.len() {
                return Ok(());
            }
            inode.durable.resize(inode.cached.len(), 0);
            for sector in std::mem::take(&mut inode.dirty) {
                inode.write_back(sector);
            }
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|s| {
            if s.step(Operation::Writes)? {
                return Err(eio());
            }
            let inode = s.inodes.get_mut(&self.inode).expect("an open file has an inode");
            inode.cached.resize(len as usize, 0);
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|s| Ok(s.inodes[&self.inode].cached.len() as u64))
    }
}

impl Disk for MemDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut s = self.lock();
        if s.dead {
            return Err(io::Error::other("power is off"));
        }
        let inode = match (s.names.get(path).copied(), mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(inode), _) => inode,
            (None, OpenMode::CreateNew) => {
                if s.step(Operation::Writes)? {
                    return Err(eio());
                }
                s.next_inode += 1;
                let inode = s.next_inode;
                s.inodes.insert(inode, Inode::default());
                s.names.insert(path.to_path_buf(), inode);
                inode
            }
            (None, _) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(MemFile { disk: self.clone(), inode, writable: mode != OpenMode::Read }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut s = self.lock();
        if s.step(Operation::Writes)? {
            return Err(eio());
        }
        let inode = s.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        s.names.insert(to.to_path_buf(), inode);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut s = self.lock();
        if s.step(Operation::Other)? {
            return Err(eio());
        }
        s.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.lock().names.keys().filter(|p| p.parent() == Some(dir)).cloned().collect())
    }

    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut s = self.lock();
        if s.step(Operation::Other)? {
            return Err(eio());
        }
        let s = &mut *s;
        s.durable_names.retain(|p, _| p.parent() != Some(dir));
        for (p, inode) in s.names.iter().filter(|(p, _)| p.parent() == Some(dir)) {
            s.durable_names.insert(p.clone(), *inode);
        }
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let s = self.lock();
        Ok(s.names.contains_key(path) || s.names.keys().any(|p| p.starts_with(path)))
    }
}

/// A clock that is set by hand.
#[derive(Debug, Default)]
pub struct ManualClock {
    wall_us: AtomicU64,
    error_us: AtomicU64,
    monotonic_ns: AtomicU64,
}

impl ManualClock {
    /// A clock that stands at this wall time.
    pub fn new(wall_us: u64) -> ManualClock {
        ManualClock { wall_us: AtomicU64::new(wall_us), ..ManualClock::default() }
    }

    /// Time passes, on both clocks.
    pub fn advance(&self, duration: Duration) {
        self.wall_us.fetch_add(duration.as_micros() as u64, Ordering::Relaxed);
        self.monotonic_ns.fetch_add(duration.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Somebody sets the wall clock.
    pub fn set_wall_us(&self, wall_us: u64) {
        self.wall_us.store(wall_us, Ordering::Relaxed);
    }

    /// The error bound that readings carry.
    pub fn set_error_us(&self, error_us: u64) {
        self.error_us.store(error_us, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> ClockReading {
        ClockReading {
            now_us: self.wall_us.load(Ordering::Relaxed),
            error_us: self.error_us.load(Ordering::Relaxed),
        }
    }
    fn monotonic_ns(&self) -> u64 {
        self.monotonic_ns.load(Ordering::Relaxed)
    }
}

/// The clock of a paused tokio runtime: virtual time, which jumps to the next timer whenever everything waits.
#[derive(Debug)]
pub struct TokioClock {
    origin: tokio::time::Instant,
    wall_at_origin_us: u64,
}

impl TokioClock {
    /// Wall time `wall_us` now; must be called inside the runtime.
    #[expect(clippy::disallowed_methods, reason = "virtual time of a paused runtime")]
    pub fn new(wall_us: u64) -> TokioClock {
        TokioClock { origin: tokio::time::Instant::now(), wall_at_origin_us: wall_us }
    }
}

impl Clock for TokioClock {
    fn wall(&self) -> ClockReading {
        ClockReading { now_us: self.wall_at_origin_us + self.monotonic_ns() / 1_000, error_us: 0 }
    }
    fn monotonic_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }
}

/// A timer whose sleeps end at once; for code under test that only backs off.
#[derive(Debug)]
pub struct NoWait;

impl Timer for NoWait {
    fn sleep(&self, _duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::ready(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsynced_writes_may_vanish_and_synced_ones_do_not() {
        let (dir, path) = (Path::new("/d"), Path::new("/d/f"));
        let mut survived = 0;
        for seed in 0..64 {
            let disk = MemDisk::new();
            let f = disk.open(path, OpenMode::CreateNew).unwrap();
            f.write_all_at(b"one", 0).unwrap();
            f.sync_data().unwrap();
            disk.sync_dir(dir).unwrap();
            f.write_all_at(b"two", 0).unwrap();
            f.write_all_at(b"far", 4096).unwrap();
            disk.crash(&SplitMix64::new(seed));
            let bytes = disk.contents(path).unwrap();
            assert!(bytes.starts_with(b"one") || bytes.starts_with(b"two"));
            survived += u32::from(bytes.len() > 4096);
        }
        assert!((10..54).contains(&survived), "{survived}");
    }

    #[test]
    fn faults_of_several_kinds_lie_ahead() {
        let disk = MemDisk::new();
        let f = disk.open(Path::new("/d/f"), OpenMode::CreateNew).unwrap();
        disk.fail_at(0, Fault::SyncFails);
        disk.fail_at(2, Fault::Enospc);
        f.write_all_at(b"one", 0).unwrap();
        assert_eq!(disk.failed(), None);
        f.sync_data().unwrap_err();
        assert_eq!(disk.failed(), Some(Fault::SyncFails));
        f.sync_data().unwrap();
        assert!(f.write_all_at(b"two", 0).is_err());
        disk.heal();
        assert_eq!(disk.failed(), None);
        f.write_all_at(b"two", 0).unwrap();
    }

    #[test]
    fn a_sector_knows_what_it_held() {
        let (disk, path) = (MemDisk::new(), Path::new("/d/f"));
        let f = disk.open(path, OpenMode::CreateNew).unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        for fill in [1, 2] {
            f.write_all_at(&[fill; 2 * SECTOR_BYTES], 0).unwrap();
            assert!(disk.sector(path, 1).is_none(), "not durable yet");
            f.sync_data().unwrap();
        }
        assert_eq!(disk.sector(path, 1).unwrap(), vec![2; SECTOR_BYTES]);
        assert_eq!(disk.previous_sector(path, 1).unwrap(), vec![1; SECTOR_BYTES]);
        let other = disk.fork();
        disk.set_sector(path, 1, &[3; SECTOR_BYTES]);
        assert_eq!(disk.contents(path).unwrap()[SECTOR_BYTES], 3);
        assert_eq!(other.contents(path).unwrap()[SECTOR_BYTES], 2);
        assert_eq!(disk.sector(path, 2), None);
    }

    #[test]
    fn a_failed_sync_marks_pages_clean() {
        let disk = MemDisk::new();
        let f = disk.open(Path::new("/d/f"), OpenMode::CreateNew).unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        f.write_all_at(b"x", 0).unwrap();
        disk.fail_at(disk.operations(), Fault::Eio);
        assert!(f.sync_data().is_err());
        f.sync_data().unwrap();
        assert_eq!(disk.contents(Path::new("/d/f")).unwrap(), b"x");
        disk.crash(&SplitMix64::new(1));
        assert_ne!(disk.contents(Path::new("/d/f")).unwrap(), b"x");
    }

    #[test]
    fn power_cut_and_full_disk() {
        let disk = MemDisk::new();
        let f = disk.open(Path::new("/d/f"), OpenMode::CreateNew).unwrap();
        disk.fail_at(disk.operations(), Fault::Enospc);
        assert_eq!(f.write_all_at(b"x", 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
        disk.heal();
        f.write_all_at(b"x", 0).unwrap();
        disk.fail_at(disk.operations(), Fault::PowerCut);
        assert!(f.sync_data().is_err() && f.write_all_at(b"y", 0).is_err() && disk.is_dead());
        disk.crash(&SplitMix64::new(3));
        assert!(!disk.is_dead());
    }
}
