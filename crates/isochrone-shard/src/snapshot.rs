//! Snapshots: a shard's whole replicated state on its way to a replica that the log cannot bring up to date.
//!
//!     Shards::snapshot ── next_chunk ──▶ (network) ──▶ Staged::append .. finish ──▶ Shards::install ──▶ file removed
//!
//!     chunk   version u8 | shard | index | number | last u8 | rows | (key, value)* | CRC32C of everything before
//!     file    magic | (length u32, chunk)* | 0 u32 | length u32 | version u8, shard, index, term, members | CRC32C
//!
//! Rows are the engine's own, keys and values as they lie there: descriptor and progress first, then records, newest
//! versions, history. All of one engine snapshot, so that a chunk may be made at any time later. Numbers are varints,
//! lengths and checksums four bytes, most significant first. A snapshot is staged in a file under a name that ends in
//! `.part`, and gets its own name when it is complete and synced.
//!
//! Installing: (1) one batch removes the descriptor and sets the mark "installing", which lists the keys that are
//! doomed: the replica's old range, and the new one; (2) those keys and the records are cleared, in bounded batches;
//! (3) the rows are written; (4) one batch removes the mark and sets descriptor and progress; (5) the engine is
//! flushed. Only then may the file go.
//!
//! Invariants
//!   SN1  A snapshot is installed only where no other shard, and no other installation, covers any of its keys.
//!   SN2  An engine holds a descriptor of a shard only with everything that belongs to it. (The batches above are in
//!        order, and what a crash leaves of an engine is a prefix of its batches.)
//!   SN3  Installing starts over after a crash at any point, with the same result; where it was done it does nothing.
//!   SN4  What is staged under its own name is complete, and is read and checked once more before anything is touched.
//!
//! Removing a replica that left its group goes the same way without (3), and leaves a mark "removed" until a snapshot brings the
//! shard back.
//!
//! How it fails: [`SnapshotError`] says what the caller does. A file that has rotted, or a snapshot that SN1 refuses,
//! touches nothing. A crash or an error in the middle leaves a shard that is not there ([`Shards::interrupted`]) until
//! the same or a newer snapshot is installed.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isochrone_base::codec::{DecodeError, Reader, put_bytes, put_u64};
use isochrone_base::{Bytes, KeyRange, LogIndex, Members, ShardId, Term, bank};
use isochrone_env::{Disk, DiskFile, OpenMode};
use isochrone_storage::mvcc::{self, Space};
use isochrone_storage::{ScanIter, Snapshot, WriteBatch};

use crate::record::{APPLIED, INSTALLING, REMOVED, Replicated, SHARD};
use crate::shard::Shard;
use crate::shards::{ShardMeta, Shards};

/// Version 1 of a file's description had voters in place of members.
const META_VERSION: u8 = 2;
const VERSION: u8 = 1;
const MAGIC: &[u8] = b"isochrone snapshot 1\n";
/// Extension of a file that is complete, and of one that is not.
const COMPLETE: &str = "snap";
const PART: &str = "part";
/// Keys that one batch of an installation clears, about: commits of other shards wait while it is written.
pub const CLEAR_BATCH_KEYS: usize = 2_048;
/// Bytes of rows that one batch of an installation writes, about.
pub const FILL_BATCH_BYTES: usize = 1 << 20;
/// A chunk's smallest row: two lengths.
const ROW_BYTES_MIN: usize = 2;

/// What a snapshot is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotMeta {
    /// The shard.
    pub shard: ShardId,
    /// It holds what the entries up to this index did.
    pub index: LogIndex,
    /// The term of that entry.
    pub term: Term,
    /// The members of the group then.
    pub members: Members,
}

/// Why a snapshot could not be made, staged or installed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Nothing was touched; it may be tried again when the obstacle is gone.
    #[error("{0}")]
    Refused(String),
    /// The bytes are not what was sent: throw the snapshot away, another one is needed.
    #[error("damaged snapshot: {0}")]
    Damaged(String),
    /// The disk refused to keep the file.
    #[error("snapshot file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The engine failed: the node stops.
    #[error(transparent)]
    Storage(#[from] isochrone_storage::Error),
}

impl From<DecodeError> for SnapshotError {
    fn from(e: DecodeError) -> SnapshotError {
        SnapshotError::Damaged(e.to_string())
    }
}

fn damaged<T>(why: impl Into<String>) -> Result<T, SnapshotError> {
    Err(SnapshotError::Damaged(why.into()))
}

/// A shard's state at one moment, as a source of chunks. Holds an engine snapshot: seconds, not hours.
pub struct ShardSnapshot {
    meta: SnapshotMeta,
    snapshot: Arc<dyn Snapshot>,
    /// Rows that come first.
    first: VecDeque<(Bytes, Bytes)>,
    /// What is still to be scanned.
    parts: VecDeque<KeyRange>,
    rows: Option<ScanIter>,
    number: u64,
    done: bool,
}

impl ShardSnapshot {
    /// What it is of.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    fn next_row(&mut self) -> Result<Option<(Bytes, Bytes)>, isochrone_storage::Error> {
        if let Some(row) = self.first.pop_front() {
            return Ok(Some(row));
        }
        loop {
            if let Some(row) = self.rows.as_mut().and_then(Iterator::next) {
                return row.map(Some);
            }
            let Some(part) = self.parts.pop_front() else { return Ok(None) };
            self.rows = Some(self.snapshot.scan(&part, false));
        }
    }

    /// The next chunk; `None`: that was all. It holds at least one row, and ends with the row that passes `bytes_max`.
    ///
    /// # Errors
    /// The engine failed; the snapshot is worth nothing then.
    pub fn next_chunk(&mut self, bytes_max: usize) -> Result<Option<Bytes>, String> {
        if self.done {
            return Ok(None);
        }
        let mut rows = Vec::new();
        let mut count = 0;
        while rows.len() < bytes_max.max(1) {
            let Some((key, value)) = self.next_row().map_err(|e| e.to_string())? else {
                self.done = true;
                break;
            };
            put_bytes(&mut rows, &key);
            put_bytes(&mut rows, &value);
            count += 1;
        }
        let chunk = encode_chunk(&self.meta, self.number, self.done, count, &rows);
        self.number += 1;
        Ok(Some(chunk))
    }
}

pub(crate) fn encode_chunk(meta: &SnapshotMeta, number: u64, last: bool, count: u64, rows: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(rows.len() + 64);
    out.push(VERSION);
    put_u64(&mut out, meta.shard.0);
    put_u64(&mut out, meta.index);
    put_u64(&mut out, number);
    out.push(u8::from(last));
    put_u64(&mut out, count);
    out.extend_from_slice(rows);
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_be_bytes());
    out.into()
}

struct Chunk {
    shard: ShardId,
    index: LogIndex,
    number: u64,
    last: bool,
    rows: Vec<(Bytes, Bytes)>,
}

/// Cuts the checksum off, if it fits.
fn checked(bytes: &Bytes) -> Result<Bytes, SnapshotError> {
    let Some((body, crc)) = bytes.split_last_chunk::<4>() else { return damaged("no checksum") };
    if crc32c::crc32c(body) != u32::from_be_bytes(*crc) {
        return damaged("its checksum does not fit");
    }
    Ok(bytes.slice(..body.len()))
}

fn decode_chunk(bytes: &Bytes) -> Result<Chunk, SnapshotError> {
    let mut r = Reader::new(checked(bytes)?);
    if r.u8()? != VERSION {
        return damaged("version of a chunk");
    }
    let (shard, index, number) = (ShardId(r.u64()?), r.u64()?, r.u64()?);
    let last = match r.u8()? {
        0 => false,
        1 => true,
        _ => return damaged("flag of a chunk"),
    };
    let count = r.count(ROW_BYTES_MIN)?;
    let rows = (0..count).map(|_| Ok((r.bytes()?, r.bytes()?))).collect::<Result<_, DecodeError>>()?;
    r.finish()?;
    Ok(Chunk { shard, index, number, last, rows })
}

fn encode_meta(meta: &SnapshotMeta) -> Vec<u8> {
    let mut out = vec![META_VERSION];
    put_u64(&mut out, meta.shard.0);
    put_u64(&mut out, meta.index);
    put_u64(&mut out, meta.term);
    meta.members.encode(&mut out);
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_be_bytes());
    out
}

fn decode_meta(bytes: &Bytes) -> Result<SnapshotMeta, SnapshotError> {
    let mut r = Reader::new(checked(bytes)?);
    if r.u8()? != META_VERSION {
        return damaged("version of its description");
    }
    let (shard, index, term) = (ShardId(r.u64()?), r.u64()?, r.u64()?);
    let members = Members::decode(&mut r)?;
    r.finish()?;
    Ok(SnapshotMeta { shard, index, term, members })
}

/// The mark "installing": the keys that are doomed.
fn encode_mark(ranges: &[KeyRange]) -> Vec<u8> {
    let mut out = vec![VERSION];
    put_u64(&mut out, ranges.len() as u64);
    for r in ranges {
        put_bytes(&mut out, &r.start);
        put_bytes(&mut out, &r.end);
    }
    out
}

pub(crate) fn decode_mark(bytes: Bytes) -> Result<Vec<KeyRange>, DecodeError> {
    let mut r = Reader::new(bytes);
    if r.u8()? != VERSION {
        return Err(DecodeError::Invalid("version of the mark of an installation"));
    }
    let ranges = (0..r.count(ROW_BYTES_MIN)?)
        .map(|_| Ok(KeyRange { start: r.key()?, end: r.key()? }))
        .collect::<Result<_, DecodeError>>()?;
    r.finish()?;
    Ok(ranges)
}

/// A snapshot that is being received.
pub struct Staged {
    disk: Arc<dyn Disk>,
    part: PathBuf,
    file: Arc<dyn DiskFile>,
    at: u64,
    shard: ShardId,
    index: LogIndex,
    next: u64,
    complete: bool,
}

impl Staged {
    /// Begins the file `<shard>-<index>` in a directory. What was received of the same snapshot before is dropped.
    ///
    /// # Errors
    /// The disk refused.
    pub fn create(
        disk: Arc<dyn Disk>,
        dir: &Path,
        shard: ShardId,
        index: LogIndex,
    ) -> Result<Staged, SnapshotError> {
        let part = dir.join(format!("{shard}-{index}.{PART}"));
        let open = || {
            disk.create_dir_all(dir)?;
            disk.sync_dir(dir.parent().unwrap_or(Path::new(".")))?;
            if disk.exists(&part)? {
                disk.remove(&part)?;
            }
            let file = disk.open(&part, OpenMode::CreateNew)?;
            file.write_all_at(MAGIC, 0)?;
            Ok(file)
        };
        let file = open().map_err(|source| SnapshotError::Io { path: part.clone(), source })?;
        let at = MAGIC.len() as u64;
        Ok(Staged { disk, part, file, at, shard, index, next: 0, complete: false })
    }

    fn io(&self, result: io::Result<()>) -> Result<(), SnapshotError> {
        result.map_err(|source| SnapshotError::Io { path: self.part.clone(), source })
    }

    /// Takes the next chunk. One that is there already is passed over: whoever sends may repeat itself.
    ///
    /// # Errors
    /// `Damaged`: not a chunk of this snapshot, or one is missing before it. `Io`: the disk refused.
    pub fn append(&mut self, chunk: &Bytes) -> Result<(), SnapshotError> {
        let found = decode_chunk(chunk)?;
        if (found.shard, found.index) != (self.shard, self.index) {
            return damaged(format!(
                "a chunk of shard {} at {} among those of {} at {}",
                found.shard, found.index, self.shard, self.index
            ));
        }
        if found.number < self.next {
            return Ok(());
        }
        if found.number > self.next || self.complete {
            return damaged(format!("chunk {} where {} was due", found.number, self.next));
        }
        let Ok(length) = u32::try_from(chunk.len()) else { return damaged("a chunk of over 4 GiB") };
        let mut out = Vec::with_capacity(chunk.len() + 4);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(chunk);
        self.io(self.file.write_all_at(&out, self.at))?;
        self.at += out.len() as u64;
        self.next += 1;
        self.complete = found.last;
        Ok(())
    }

    /// Makes the file durable under its own name, which it answers.
    ///
    /// # Errors
    /// `Damaged`: chunks are missing, or `meta` is of another snapshot. `Io`: the disk refused.
    pub fn finish(self, meta: &SnapshotMeta) -> Result<PathBuf, SnapshotError> {
        if !self.complete {
            return damaged(format!("it ends after {} chunks", self.next));
        }
        if (meta.shard, meta.index) != (self.shard, self.index) {
            return damaged("its description is of another snapshot");
        }
        let encoded = encode_meta(meta);
        let mut out = 0u32.to_be_bytes().to_vec();
        out.extend_from_slice(&(encoded.len() as u32).to_be_bytes());
        out.extend_from_slice(&encoded);
        let path = self.part.with_extension(COMPLETE);
        let close = || {
            self.file.write_all_at(&out, self.at)?;
            self.file.sync_data()?;
            self.disk.rename(&self.part, &path)?;
            self.disk.sync_dir(path.parent().unwrap_or(Path::new(".")))
        };
        self.io(close())?;
        Ok(path)
    }

    /// Gives up: the sender is gone, or the snapshot is not wanted any more.
    ///
    /// # Errors
    /// The disk refused; the next start removes the file.
    pub fn discard(self) -> Result<(), SnapshotError> {
        self.io(self.disk.remove(&self.part))
    }
}

/// Where a complete snapshot is staged.
pub fn staged_path(dir: &Path, shard: ShardId, index: LogIndex) -> PathBuf {
    dir.join(format!("{shard}-{index}.{COMPLETE}"))
}

/// The complete files of a directory, by name. What is not complete is removed: nobody goes on with it.
///
/// # Errors
/// The disk refused.
pub fn staged_files(disk: &dyn Disk, dir: &Path) -> Result<Vec<PathBuf>, SnapshotError> {
    let list = || match disk.list(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    };
    let io = |source| SnapshotError::Io { path: dir.to_path_buf(), source };
    let (mut complete, mut removed) = (Vec::new(), false);
    for path in list().map_err(io)? {
        match path.extension().and_then(|e| e.to_str()) {
            Some(COMPLETE) => complete.push(path),
            Some(PART) => {
                disk.remove(&path).map_err(io)?;
                removed = true;
            }
            _ => {} // not ours
        }
    }
    if removed {
        disk.sync_dir(dir).map_err(io)?;
    }
    Ok(complete)
}

/// Removes a file whose snapshot is installed, or not wanted.
///
/// # Errors
/// The disk refused.
pub fn remove_staged(disk: &dyn Disk, path: &Path) -> Result<(), SnapshotError> {
    let remove = || {
        disk.remove(path)?;
        disk.sync_dir(path.parent().unwrap_or(Path::new(".")))
    };
    remove().map_err(|source| SnapshotError::Io { path: path.to_path_buf(), source })
}

/// A complete snapshot in a file, read and checked (SN4).
pub struct StagedReader {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    meta: SnapshotMeta,
    chunks: Vec<(u64, u32)>,
    range: KeyRange,
}

impl StagedReader {
    /// Opens a file and reads all of it once.
    ///
    /// # Errors
    /// `Damaged`: it is not a complete snapshot. `Io`: the disk refused.
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<StagedReader, SnapshotError> {
        let io = |source| SnapshotError::Io { path: path.to_path_buf(), source };
        let file = disk.open(path, OpenMode::Read).map_err(io)?;
        let length = file.len().map_err(io)?;
        let read = |at: u64, n: u64| read_at(&*file, path, length, at, n);
        let word = |at: u64| {
            let bytes = read(at, 4)?;
            Ok::<u32, SnapshotError>(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        if read(0, MAGIC.len() as u64)? != MAGIC {
            return damaged("it does not begin like a snapshot");
        }
        let mut at = MAGIC.len() as u64;
        let mut chunks = Vec::new();
        let mut rows = Checked::default();
        let mut last = false;
        loop {
            let n = word(at)?;
            at += 4;
            if n == 0 {
                break;
            }
            let chunk = decode_chunk(&read(at, u64::from(n))?)?;
            if last || chunk.number != chunks.len() as u64 {
                return damaged(format!("chunk {} in place {}", chunk.number, chunks.len()));
            }
            for (key, value) in &chunk.rows {
                rows.take(chunk.shard, key, value)?;
            }
            last = chunk.last;
            chunks.push((at, n));
            at += u64::from(n);
        }
        let n = u64::from(word(at)?);
        let meta = decode_meta(&read(at + 4, n)?)?;
        if at + 4 + n != length || !last {
            return damaged("it is not complete");
        }
        let repl = rows.finish()?;
        let described = (repl.shard, repl.applied, repl.applied_term, &repl.members);
        if described != (meta.shard, meta.index, meta.term, &meta.members) {
            return damaged(format!("it holds {described:?} and is described as {meta:?}"));
        }
        Ok(StagedReader { path: path.to_path_buf(), file, meta, chunks, range: repl.range })
    }

    /// What it is of.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// The keys of the shard then.
    pub fn range(&self) -> &KeyRange {
        &self.range
    }

    fn chunk(&self, (at, n): (u64, u32)) -> Result<Chunk, SnapshotError> {
        decode_chunk(&read_at(&*self.file, &self.path, at + u64::from(n), at, u64::from(n))?)
    }
}

/// Reads no more than a file of this length holds.
fn read_at(file: &dyn DiskFile, path: &Path, length: u64, at: u64, n: u64) -> Result<Bytes, SnapshotError> {
    if at.checked_add(n).is_none_or(|end| end > length) {
        return damaged("it ends too early");
    }
    let mut out = vec![0; usize::try_from(n).map_err(|_| SnapshotError::Damaged("length".into()))?];
    file.read_exact_at(&mut out, at)
        .map_err(|source| SnapshotError::Io { path: path.to_path_buf(), source })?;
    Ok(out.into())
}

/// Looks at every row before any is installed.
#[derive(Default)]
struct Checked {
    descriptor: Option<Bytes>,
    repl: Option<Replicated>,
}

impl Checked {
    fn take(&mut self, shard: ShardId, key: &Bytes, value: &Bytes) -> Result<(), SnapshotError> {
        let Some(repl) = &mut self.repl else {
            match self.descriptor.take() {
                None if *key == mvcc::state_key(shard, SHARD) => self.descriptor = Some(value.clone()),
                Some(descriptor) if *key == mvcc::state_key(shard, APPLIED) => {
                    self.repl = Some(Replicated::decode(shard, descriptor, value.clone())?);
                }
                _ => return damaged("it does not begin with the shard's descriptor"),
            }
            return Ok(());
        };
        if repl.shard != shard {
            return damaged("it holds two shards");
        }
        if key.len() > isochrone_storage::ENGINE_KEY_BYTES_MAX {
            return damaged(format!("a key of {} bytes", key.len()));
        }
        let prefix = mvcc::record_prefix(shard);
        let inside = match key.first() {
            Some(b) if *b == Space::Data.byte() => repl.range.contains(mvcc::user_key(key)),
            Some(b) if *b == Space::History.byte() => repl.range.contains(&mvcc::parse_history_key(key)?.0),
            Some(_) if key.starts_with(&prefix) => {
                // Kept: a copy, so that the chunk is not.
                repl.load_record(key.slice(prefix.len()..), Bytes::copy_from_slice(value))?;
                true
            }
            _ => false,
        };
        match inside {
            true => Ok(()),
            false => damaged(format!("key {key:02x?} does not belong to shard {shard}")),
        }
    }

    fn finish(self) -> Result<Replicated, SnapshotError> {
        self.repl.ok_or_else(|| SnapshotError::Damaged("it is empty".into()))
    }
}

impl Shards {
    /// The state of a shard after everything applied so far. To be called between applications of its entries: then
    /// its index is the group's applied index.
    ///
    /// # Errors
    /// `Refused`: there is no such replica. `Storage`: the engine failed.
    pub fn snapshot(&self, shard: ShardId) -> Result<ShardSnapshot, SnapshotError> {
        let s = self.get(shard);
        let s = s.ok_or_else(|| SnapshotError::Refused(format!("shard {shard} is not on this node")))?;
        let snapshot = {
            let _between = s.applying.lock().expect("nothing panics while entries are applied");
            self.engine.snapshot()
        };
        let state = |name| {
            let value = snapshot.get(&mvcc::state_key(shard, name))?;
            value.ok_or_else(|| SnapshotError::Refused(format!("shard {shard} is not complete here")))
        };
        let mut repl = Replicated::decode(shard, state(SHARD)?, state(APPLIED)?)?;
        if repl.members.is_empty() {
            repl.members = vec![self.node].into();
        }
        let first = [(SHARD, repl.encode_shard()), (APPLIED, repl.encode_applied())]
            .map(|(name, value)| (mvcc::state_key(shard, name).into(), value.into()));
        let mut parts = VecDeque::from([
            KeyRange::prefix(&mvcc::record_prefix(shard)),
            Space::Data.range(&repl.range),
            mvcc::history_range(&repl.range),
        ]);
        if bank::has("snapshot-without-records") {
            parts.pop_front();
        }
        Ok(ShardSnapshot {
            meta: SnapshotMeta { shard, index: repl.applied, term: repl.applied_term, members: repl.members },
            snapshot,
            first: first.into(),
            parts,
            rows: None,
            number: 0,
            done: false,
        })
    }

    /// Shards whose installation was interrupted, and that are not here until a snapshot of them is installed.
    pub fn interrupted(&self) -> Vec<ShardId> {
        self.read_map().installing.keys().copied().collect()
    }

    /// Puts a snapshot in the place of this node's replica of its shard, if there is one (see the module). Meanwhile the
    /// shard is not here; nothing of it must be applied. Blocks. Where the replica holds as much already, nothing
    /// happens. When this returns, the engine's flush holds it, and the file may be removed.
    ///
    /// # Errors
    /// See [`SnapshotError`]. `Refused`: SN1.
    pub fn install(&self, staged: &StagedReader) -> Result<ShardMeta, SnapshotError> {
        self.install_in_batches(staged, CLEAR_BATCH_KEYS, FILL_BATCH_BYTES)
    }

    pub(crate) fn install_in_batches(
        &self,
        staged: &StagedReader,
        clear_keys: usize,
        fill_bytes: usize,
    ) -> Result<ShardMeta, SnapshotError> {
        let _one = self.installs.lock().expect("nothing panics while a snapshot is installed");
        let shard = staged.meta.shard;
        let doomed = match self.claim(staged)? {
            Claim::Done(meta) => return Ok(meta),
            Claim::Doomed(ranges) => ranges,
        };
        let mut batch = WriteBatch::new();
        batch.delete(mvcc::state_key(shard, SHARD));
        batch.delete(mvcc::state_key(shard, APPLIED));
        batch.put(mvcc::state_key(shard, INSTALLING), encode_mark(&doomed));
        self.engine.write(batch)?;
        self.clear(shard, &doomed, clear_keys)?;
        let mut repl = self.fill(staged, fill_bytes)?;

        let mut batch = WriteBatch::new();
        batch.delete(mvcc::state_key(shard, INSTALLING));
        batch.delete(mvcc::state_key(shard, REMOVED));
        repl.put_shard(&mut batch);
        repl.put_applied(&mut batch);
        self.engine.write(batch)?;
        self.engine.flush()?;

        crate::shards::load_records(&*self.engine, &mut repl).map_err(|e| match e {
            crate::OpenError::Storage(e) => SnapshotError::Storage(e),
            e => SnapshotError::Damaged(e.to_string()),
        })?;
        self.clock.update(repl.newest);
        let (engine, clock, config) = (self.engine.clone(), self.clock.clone(), self.config.clone());
        let new = Arc::new(Shard::new(repl, engine, clock, self.node, config));
        let meta = new.meta();
        new.lock().left = true; // what stands in the lock table is the old replica's
        let mut map = self.write_map();
        map.installing.remove(&shard);
        map.removed.remove(&shard);
        map.insert(new);
        Ok(meta)
    }

    /// Removes the replica of a shard that left its group, if there is one, and remembers that it did. Nothing of it must
    /// be applied any more. Blocks. When this returns, the engine's flush holds it.
    ///
    /// # Errors
    /// `Storage`: the engine failed.
    pub fn remove(&self, shard: ShardId) -> Result<(), SnapshotError> {
        let _one = self.installs.lock().expect("nothing panics while a snapshot is installed");
        let (old, doomed) = {
            let mut map = self.write_map();
            let old = map.by_id.get(&shard).cloned();
            let mut doomed = map.installing.get(&shard).cloned().unwrap_or_default();
            doomed.extend(old.as_ref().map(|s| s.range()));
            map.installing.insert(shard, doomed.clone());
            map.removed.insert(shard);
            map.remove(shard);
            (old, doomed)
        };
        if let Some(old) = old {
            old.retire();
        }
        let mut batch = WriteBatch::new();
        batch.delete(mvcc::state_key(shard, SHARD));
        batch.delete(mvcc::state_key(shard, APPLIED));
        batch.put(mvcc::state_key(shard, REMOVED), vec![VERSION]);
        batch.put(mvcc::state_key(shard, INSTALLING), encode_mark(&doomed));
        self.engine.write(batch)?;
        self.clear(shard, &doomed, CLEAR_BATCH_KEYS)?;
        let mut batch = WriteBatch::new();
        batch.delete(mvcc::state_key(shard, INSTALLING));
        self.engine.write(batch)?;
        self.engine.flush()?;
        self.write_map().installing.remove(&shard);
        Ok(())
    }

    /// Shards that had a replica here, which left its group.
    pub fn removed(&self) -> Vec<ShardId> {
        self.read_map().removed.iter().copied().collect()
    }

    /// Goes on with removals that a crash interrupted. Blocks.
    ///
    /// # Errors
    /// `Storage`: the engine failed.
    pub fn finish_removals(&self) -> Result<(), SnapshotError> {
        let half: Vec<ShardId> = {
            let map = self.read_map();
            map.removed.iter().filter(|s| map.installing.contains_key(s)).copied().collect()
        };
        half.into_iter().try_for_each(|shard| self.remove(shard))
    }

    /// SN1, and takes the present replica out of everybody's sight.
    fn claim(&self, staged: &StagedReader) -> Result<Claim, SnapshotError> {
        let shard = staged.meta.shard;
        let mut map = self.write_map();
        let old = map.by_id.get(&shard).cloned();
        if let Some(meta) = old.as_ref().map(|s| s.meta()).filter(|m| m.applied >= staged.meta.index) {
            return Ok(Claim::Done(meta));
        }
        let mut doomed = map.installing.get(&shard).cloned().unwrap_or_default();
        doomed.extend(old.as_ref().map(|s| s.range()));
        doomed.push(staged.range.clone());
        doomed.sort_unstable();
        doomed.dedup();
        for (other, s) in map.by_id.iter().filter(|(id, _)| **id != shard) {
            let range = s.range();
            if doomed.iter().any(|d| d.overlaps(&range)) {
                return Err(SnapshotError::Refused(format!(
                    "SN1: keys {:02x?} of the snapshot of shard {shard} are covered by shard {other}: {range:02x?}",
                    staged.range
                )));
            }
        }
        for (other, ranges) in map.installing.iter().filter(|(id, _)| **id != shard) {
            if ranges.iter().any(|r| doomed.iter().any(|d| d.overlaps(r))) {
                return Err(SnapshotError::Refused(format!(
                    "SN1: keys of the snapshot of shard {shard} are in the unfinished one of shard {other}"
                )));
            }
        }
        map.installing.insert(shard, doomed.clone());
        map.remove(shard);
        drop(map);
        if let Some(old) = old {
            old.retire();
        }
        Ok(Claim::Doomed(doomed))
    }

    fn clear(&self, shard: ShardId, doomed: &[KeyRange], keys: usize) -> Result<(), SnapshotError> {
        for range in doomed {
            let mut part = range.clone();
            loop {
                let mut batch = WriteBatch::new();
                let rest = mvcc::clear_range(&mut batch, &*self.engine, &part, keys)?;
                self.engine.write(batch)?;
                let Some(rest) = rest else { break };
                part.start = rest;
            }
        }
        let mut batch = WriteBatch::new();
        for row in self.engine.scan(&KeyRange::prefix(&mvcc::record_prefix(shard)), false) {
            batch.delete(row?.0.to_vec());
            if batch.len() >= keys {
                self.engine.write(std::mem::take(&mut batch))?;
            }
        }
        self.engine.write(batch)?;
        Ok(())
    }

    /// Writes all rows but descriptor and progress, which it answers.
    fn fill(&self, staged: &StagedReader, bytes: usize) -> Result<Replicated, SnapshotError> {
        let shard = staged.meta.shard;
        let state = mvcc::state_prefix(shard);
        let (mut descriptor, mut applied) = (None, None);
        let mut batch = WriteBatch::new();
        for at in &staged.chunks {
            for (key, value) in staged.chunk(*at)?.rows {
                match key.strip_prefix(state.as_slice()) {
                    Some(SHARD) => descriptor = Some(value),
                    Some(APPLIED) => applied = Some(value),
                    Some(_) => return damaged("it has changed since it was checked"),
                    // A copy, so that no row keeps its whole chunk in memory.
                    None => batch.put(key.to_vec(), Bytes::copy_from_slice(&value)),
                }
                if batch.bytes() >= bytes {
                    self.engine.write(std::mem::take(&mut batch))?;
                }
            }
        }
        self.engine.write(batch)?;
        match (descriptor, applied) {
            (Some(descriptor), Some(applied)) => Ok(Replicated::decode(shard, descriptor, applied)?),
            _ => damaged("it has changed since it was checked"),
        }
    }
}

/// What a snapshot finds.
enum Claim {
    /// The replica is as far already.
    Done(ShardMeta),
    /// Keys to be cleared.
    Doomed(Vec<KeyRange>),
}
