//! The writing core: append, sync, roll over to the next segment. It has no thread and no lock that it waits for;
//! the simulator drives it directly, [`crate::writer::LogWriter`] puts a thread around it.
//!
//! What was appended is invisible to readers until [`Log::sync`] made it durable (W6). After a failed write or sync
//! the log is poisoned: nothing is written any more, and what was not yet published never is.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use isochrone_base::limits::LOG_ENTRY_BYTES_MAX;
use isochrone_base::{LogIndex, ShardId, Term, bank};
use isochrone_env::{Clock, Disk, DiskFile, OpenMode};
use rustc_hash::FxHashMap;

use crate::batch::{Batch, Kind, Record, TERM_FROM_INDEX};
use crate::format::{self, BATCH_HEADER_BYTES, BatchHeader, DATA_START, Position, SegmentHeader};
use crate::index::{Applied, Segment, State};
use crate::metrics::{Handles, Stats, add};
use crate::reader::{LogReader, Shared};
use crate::recover::{self, Tail};
use crate::{Config, Error};

/// Zeros are written in pieces of this size.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What opening found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryReport {
    /// How the log ended. A replica whose log was cut must not vote before it caught up; a single node says so.
    pub tail: Tail,
    /// Everything below was known to be durable before this opening.
    pub durable_end: Position,
    /// Where the log ended.
    pub end: Position,
    /// Segments in use.
    pub segments: u64,
    /// Whole batches read.
    pub batches: u64,
    /// Records read.
    pub records: u64,
    /// Shards with a log.
    pub shards: u64,
    /// How often this log has been opened, this time included.
    pub epoch: u64,
}

/// The segment that is written.
struct Active {
    generation: u64,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    bytes: u64,
    /// Where the next batch goes.
    offset: u64,
    /// Below, all blocks are allocated: writing there changes no metadata.
    zeroed: u64,
}

impl Active {
    fn position(&self) -> Position {
        Position { generation: self.generation, offset: self.offset }
    }
}

/// The bounds of a shard's log, unsynced appends included.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    first: LogIndex,
    last: LogIndex,
}

impl Bounds {
    const NEW: Bounds = Bounds { first: 1, last: 0 };
}

/// The node log, for its one writer.
pub struct Log {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) config: Config,
    pub(crate) shared: Arc<Shared>,
    clock: Option<Arc<dyn Clock>>,
    pub(crate) metrics: Handles,
    active: Active,
    epoch: u64,
    durable_end: Position,
    /// First segment that is needed; carried by the next batch.
    pub(crate) oldest: u64,
    /// The same, as of the last batch written, and of the last batch synced: files below the latter may go.
    oldest_written: u64,
    pub(crate) oldest_durable: u64,
    /// Written, not yet synced, in order.
    pub(crate) pending: Vec<Applied>,
    unsynced: bool,
    bounds: FxHashMap<ShardId, Bounds>,
    /// Scratch: the bounds that the batches at hand change.
    touched: FxHashMap<ShardId, Option<Bounds>>,
    /// Recycled files, by their last generation.
    pub(crate) spares: Vec<PathBuf>,
    buf: Vec<u8>,
    poisoned: Option<Arc<Error>>,
    /// Something became unneeded since the last maintenance.
    pub(crate) maintain_due: bool,
}

impl Log {
    /// Opens the log in `config.dir`, creating it if the directory is empty or absent. Reads every segment once.
    /// A torn tail is cut and reported; damage is an error and nothing is changed.
    pub fn open(disk: Arc<dyn Disk>, config: Config) -> Result<(Log, RecoveryReport), Error> {
        Log::open_telling(disk, config, &mut |_| Ok(()))
    }

    /// Like [`Log::open`]. `before` hears how the log ends before anything of it changes: once a torn tail is cut and
    /// written over, nothing shows that it was there. Its error ends the opening.
    pub fn open_telling(
        disk: Arc<dyn Disk>,
        config: Config,
        before: &mut dyn FnMut(&Tail) -> io::Result<()>,
    ) -> Result<(Log, RecoveryReport), Error> {
        config.validate().map_err(Error::Config)?;
        let dir = config.dir.clone();
        let io = |what, e| Error::io(what, &dir, e);
        if !disk.exists(&dir).map_err(|e| io("look for", e))? {
            disk.create_dir_all(&dir).map_err(|e| io("create", e))?;
            if let Some(parent) = dir.parent() {
                disk.sync_dir(parent).map_err(|e| io("sync the parent of", e))?;
            }
        }
        let mut state = State::default();
        let found = recover::examine(&*disk, &dir, |at, record| {
            state.apply(&Applied::new(&record, at));
        })?;
        if let Some(p) = found.problems.first() {
            return Err(Error::Damaged { file: p.file.clone(), offset: p.offset, what: p.what.clone() });
        }
        if let Some((shard, index)) = state.shards.iter().find_map(|(s, x)| Some((s, x.missing()?))) {
            let what = format!("entry {index} of shard {shard} is in no segment");
            return Err(Error::Damaged { file: dir, offset: 0, what });
        }
        before(&found.tail).map_err(|e| io("tell of the end of the log in", e))?;
        let bounds =
            state.shards.iter().map(|(s, x)| (*s, Bounds { first: x.first(), last: x.last() })).collect();
        let report = |end, segments| RecoveryReport {
            tail: found.tail.clone(),
            durable_end: found.durable_end,
            end,
            segments,
            batches: found.batches,
            records: found.records,
            shards: state.shards.len() as u64,
            epoch: found.epoch + 1,
        };
        let end = found.segments.last().map(|s| Position { generation: s.generation, offset: s.end });
        let report = report(end.unwrap_or_default(), found.segments.len() as u64);
        let mut last = None;
        for s in &found.segments {
            let mode = if Some(s.generation) == end.map(|e| e.generation) {
                OpenMode::ReadWrite
            } else {
                OpenMode::Read
            };
            let file = disk.open(&s.path, mode).map_err(|e| Error::io("open", &s.path, e))?;
            let (path, bytes) = (s.path.clone(), s.header.bytes);
            last = Some(Active {
                generation: s.generation,
                path: path.clone(),
                file: file.clone(),
                bytes,
                offset: s.end,
                zeroed: s.end,
            });
            state.segments.insert(s.generation, Segment { path, file, bytes, end: s.end });
        }
        let fresh = last.is_none();
        let active = last.unwrap_or_else(|| Active {
            generation: 0,
            path: dir.clone(),
            file: Arc::new(NoFile),
            bytes: 0,
            offset: 0,
            zeroed: 0,
        });
        let mut log = Log {
            disk,
            config,
            shared: Arc::new(Shared::new(state)),
            clock: None,
            metrics: Handles::new(),
            active,
            epoch: found.epoch + 1,
            durable_end: found.durable_end,
            oldest: found.oldest,
            oldest_written: found.oldest,
            oldest_durable: found.oldest,
            pending: Vec::new(),
            unsynced: false,
            bounds,
            touched: FxHashMap::default(),
            spares: Vec::new(),
            buf: Vec::new(),
            poisoned: None,
            maintain_due: true,
        };
        if !fresh {
            log.settle_tail()?;
        }
        // Names may have been changed by a life that did not get to sync them: what counts from here on is durable.
        log.clean_up(found.dead, found.spares, found.new)?;
        if fresh {
            log.roll(0)?;
        }
        // The first batch of an epoch is durable before anything else is written: batches that an earlier life left
        // behind the end are of an earlier epoch than this one, and are never taken for its successors (W5).
        log.write_batch(&[])?;
        log.sync()?;
        Ok((log, report))
    }

    /// What was read may be in the page cache only, even marked clean by a failed sync of an earlier process: it is
    /// written again, so that the sync that follows speaks the truth about it.
    fn settle_tail(&mut self) -> Result<(), Error> {
        let a = &self.active;
        let from =
            if self.durable_end.generation == a.generation { self.durable_end.offset } else { DATA_START };
        let from = from.clamp(DATA_START, a.offset);
        let mut bytes = vec![0; (a.offset - from) as usize];
        if !bytes.is_empty() {
            a.file.read_exact_at(&mut bytes, from).map_err(|e| Error::io("read", &a.path, e))?;
            a.file.write_all_at(&bytes, from).map_err(|e| Error::io("write", &a.path, e))?;
        }
        a.file.sync_data().map_err(|e| Error::io("sync", &a.path, e))?;
        self.durable_end = a.position();
        Ok(())
    }

    /// A reader of what is durable, for any thread.
    pub fn reader(&self) -> LogReader {
        LogReader(self.shared.clone())
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Measures syncs with this clock from now on; without one, the histogram of durations stays empty.
    pub fn set_clock(&mut self, clock: Arc<dyn Clock>) {
        self.clock = Some(clock);
    }

    /// Counters since opening.
    pub fn stats(&self) -> Stats {
        self.shared.counters.snapshot()
    }

    /// Where everything below is durable.
    pub fn durable_end(&self) -> Position {
        self.durable_end
    }

    /// The failure that stopped this log, if any.
    pub fn poisoned(&self) -> Option<Arc<Error>> {
        self.poisoned.clone()
    }

    /// Fails if an earlier failure stopped the log.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.poisoned.as_ref().map_or(Ok(()), |e| Err(Error::Poisoned(e.clone())))
    }

    /// Runs an operation whose failure stops the log.
    pub(crate) fn or_poison<T>(&mut self, r: Result<T, Error>) -> Result<T, Error> {
        if let Err(e) = &r
            && self.poisoned.is_none()
        {
            self.poisoned = Some(Arc::new(e.clone()));
        }
        r
    }

    /// Writes batches, in order; durable and visible after [`Log::sync`]. All are checked before any byte is
    /// written: a refused batch ([`Error::is_refusal`]) leaves the log as it was. Any other error poisons it.
    pub fn append(&mut self, batches: &[Batch]) -> Result<(), Error> {
        self.check()?;
        if self.maintain_due && self.pending.is_empty() {
            self.maintain()?;
        }
        self.admit(batches)?;
        let r = self.append_admitted(batches);
        self.or_poison(r)
    }

    fn append_admitted(&mut self, batches: &[Batch]) -> Result<(), Error> {
        let (mut group, mut bytes): (Vec<&Record>, usize) = (Vec::new(), 0);
        for batch in batches {
            let whole = batch.bytes <= self.config.batch_bytes_max;
            if whole && bytes + batch.bytes > self.config.batch_bytes_max {
                self.write_batch(&group)?;
                (group, bytes) = (Vec::new(), 0);
            }
            for record in &batch.records {
                if bytes > 0 && bytes + record.bytes() > self.config.batch_bytes_max {
                    self.write_batch(&group)?;
                    (group, bytes) = (Vec::new(), 0);
                }
                bytes += record.bytes();
                group.push(record);
            }
        }
        if group.is_empty() { Ok(()) } else { self.write_batch(&group) }
    }

    /// Checks that every record continues its shard's log, and takes the new bounds in.
    fn admit(&mut self, batches: &[Batch]) -> Result<(), Error> {
        let mut touched = std::mem::take(&mut self.touched);
        touched.clear();
        let r = self.admit_each(batches, &mut touched);
        if r.is_ok() {
            // Each shard by itself: the order is not observed.
            for (&shard, b) in &touched {
                match b {
                    Some(b) => drop(self.bounds.insert(shard, *b)),
                    None => drop(self.bounds.remove(&shard)),
                }
            }
        }
        self.touched = touched;
        r
    }

    fn admit_each(
        &self,
        batches: &[Batch],
        touched: &mut FxHashMap<ShardId, Option<Bounds>>,
    ) -> Result<(), Error> {
        for r in batches.iter().flat_map(|b| &b.records) {
            let slot = touched.entry(r.shard).or_insert_with(|| self.bounds.get(&r.shard).copied());
            let b = slot.unwrap_or(Bounds::NEW);
            *slot = match r.kind {
                Kind::Entry | Kind::MovedEntry => {
                    if r.index < b.first || r.index > b.last + 1 || r.index == LogIndex::MAX {
                        let (shard, index) = (r.shard, r.index);
                        return Err(Error::OutOfOrder { shard, index, first: b.first, last: b.last });
                    }
                    if r.payload.len() > LOG_ENTRY_BYTES_MAX {
                        let (shard, index, bytes) = (r.shard, r.index, r.payload.len());
                        return Err(Error::TooLarge { shard, index, bytes, bytes_max: LOG_ENTRY_BYTES_MAX });
                    }
                    Some(Bounds { first: b.first, last: r.index })
                }
                Kind::HardState => Some(b),
                Kind::TruncatePrefix if r.index <= b.first => *slot,
                Kind::TruncatePrefix => Some(Bounds { first: r.index, last: b.last.max(r.index - 1) }),
                Kind::Reset => Some(Bounds { first: r.index, last: r.index - 1 }),
                Kind::RemoveShard => None,
            };
        }
        Ok(())
    }

    /// The mark as it goes to disk; none if it would change nothing. Sees what the records before it did.
    fn resolve_mark(&self, r: &Record) -> Option<Record> {
        let (mut first, mut term_of) = (1, None);
        if let Some(s) = self.shared.read().shards.get(&r.shard) {
            first = s.first();
            term_of = s.entries.get(&(r.index - 1)).map(|e| e.term);
        }
        for p in self.pending.iter().filter(|p| p.shard == r.shard) {
            match p.kind {
                Kind::Entry if p.index < r.index => term_of = (p.index == r.index - 1).then_some(p.term),
                Kind::TruncatePrefix => first = p.index,
                Kind::Reset => (first, term_of) = (p.index, None),
                Kind::RemoveShard => (first, term_of) = (1, None),
                Kind::Entry | Kind::MovedEntry | Kind::HardState => {}
            }
        }
        if r.index <= first {
            return None;
        }
        Some(Record::mark(Kind::TruncatePrefix, r.shard, r.index, term_of.unwrap_or(TERM_UNKNOWN)))
    }

    /// Writes one batch and remembers what it did.
    pub(crate) fn write_batch(&mut self, records: &[&Record]) -> Result<(), Error> {
        let body: usize = records.iter().map(|r| r.bytes()).sum();
        let span = format::batch_span(body as u64);
        if self.active.offset + span > self.active.bytes {
            self.roll(span)?;
        }
        let (generation, offset) = (self.active.generation, self.active.offset);
        let mut buf = std::mem::take(&mut self.buf);
        buf.clear();
        buf.resize(BATCH_HEADER_BYTES, 0);
        let mut written = 0u32;
        for r in records {
            let at = Position { generation, offset: offset + buf.len() as u64 };
            let resolved;
            let record = if r.term == TERM_FROM_INDEX && r.kind == Kind::TruncatePrefix {
                let Some(mark) = self.resolve_mark(r) else { continue };
                resolved = mark;
                &resolved
            } else {
                *r
            };
            format::put_record(&mut buf, record, at);
            self.pending.push(Applied::new(record, at));
            written += 1;
        }
        let header = BatchHeader {
            body_bytes: (buf.len() - BATCH_HEADER_BYTES) as u32,
            records: written,
            epoch: self.epoch,
            durable_end: self.durable_end,
            oldest: self.oldest,
            generation,
        };
        format::seal_batch(&mut buf, &header, offset);
        let end = offset + header.span();
        assert!(end <= self.active.bytes, "a batch ends in its segment: {end} of {}", self.active.bytes);
        // Zeros behind the batch: the place where the next one would begin is blank (W5).
        let blank = (end + BATCH_HEADER_BYTES as u64).min(self.active.bytes);
        buf.resize((blank - offset) as usize, 0);
        self.preallocate(blank)?;
        let a = &mut self.active;
        a.file.write_all_at(&buf, offset).map_err(|e| Error::io("write", &a.path, e))?;
        a.offset = end;
        self.unsynced = true;
        self.oldest_written = self.oldest;
        let c = &self.shared.counters;
        add(&c.records, u64::from(written));
        add(&c.bytes, end - offset);
        add(&c.batches, 1);
        self.metrics.records.increment(u64::from(written));
        self.metrics.bytes.increment(end - offset);
        // A rare large batch does not keep its buffer.
        if buf.capacity() <= 2 * self.config.batch_bytes_max + BATCH_HEADER_BYTES {
            self.buf = buf;
        }
        Ok(())
    }

    /// Writes zeros up to `end` and a step ahead where the file has not been written before.
    fn preallocate(&mut self, end: u64) -> Result<(), Error> {
        let a = &mut self.active;
        if end <= a.zeroed {
            return Ok(());
        }
        let target = (end + self.config.preallocate_bytes).min(a.bytes);
        zero(&*a.file, a.zeroed, target).map_err(|e| Error::io("preallocate", &a.path, e))?;
        a.file.sync_data().map_err(|e| Error::io("sync", &a.path, e))?;
        a.zeroed = target;
        Ok(())
    }

    /// Makes everything appended durable with one fdatasync, then visible. An error poisons the log.
    pub fn sync(&mut self) -> Result<(), Error> {
        self.check()?;
        if !self.unsynced {
            return Ok(());
        }
        let started = self.clock.as_ref().map(|c| c.monotonic_ns());
        let file = &self.active.file;
        let synced = match bank::has("acked-before-fsync") {
            true => Ok(()),
            false => file.sync_data(),
        };
        let retried = synced.or_else(|e| if bank::has("fsync-retried") { file.sync_data() } else { Err(e) });
        let synced = retried.map_err(|e| Error::io("sync", &self.active.path, e));
        self.or_poison(synced)?;
        if let (Some(clock), Some(started)) = (&self.clock, started) {
            self.metrics.sync_seconds.record(clock.monotonic_ns().saturating_sub(started) as f64 / 1e9);
        }
        self.unsynced = false;
        self.durable_end = self.active.position();
        if self.oldest_durable != self.oldest_written {
            self.oldest_durable = self.oldest_written;
            self.maintain_due = true;
        }
        add(&self.shared.counters.syncs, 1);
        self.metrics.syncs.increment(1);
        self.metrics.batch_records.record(self.pending.len() as f64);
        let mut state = self.shared.write();
        for p in &self.pending {
            self.maintain_due |= state.apply(p);
        }
        if let Some(s) = state.segments.get_mut(&self.active.generation) {
            s.end = self.active.offset;
        }
        self.pending.clear();
        Ok(())
    }

    /// Ends the active segment and begins the next, with room for a batch of `span` bytes.
    fn roll(&mut self, span: u64) -> Result<(), Error> {
        let prev_end = self.active.offset;
        if self.active.generation > 0 {
            // W3: the next header claims that all below `prev_end` is durable.
            self.active.file.sync_data().map_err(|e| Error::io("sync", &self.active.path, e))?;
            self.durable_end = self.active.position();
        }
        let generation = self.active.generation + 1;
        let needed = (DATA_START + span + BATCH_HEADER_BYTES as u64).next_multiple_of(512);
        let bytes = self.config.segment_bytes.max(needed);
        let header =
            SegmentHeader { generation, bytes, prev_end, oldest: self.oldest, epoch: self.epoch }.encode();
        let spare = if bytes == self.config.segment_bytes { self.spares.pop() } else { None };
        let reused = spare.is_some();
        let (from, file, zeroed) = match spare {
            Some(path) => {
                let file =
                    self.disk.open(&path, OpenMode::ReadWrite).map_err(|e| Error::io("open", &path, e))?;
                (path, file, bytes)
            }
            None => {
                let path = self.config.dir.join(format::NEW_NAME);
                let file =
                    self.disk.open(&path, OpenMode::CreateNew).map_err(|e| Error::io("create", &path, e))?;
                file.set_len(bytes).map_err(|e| Error::io("extend", &path, e))?;
                let zeroed = (needed + self.config.preallocate_bytes).min(bytes);
                zero(&*file, 0, zeroed).map_err(|e| Error::io("preallocate", &path, e))?;
                (path, file, zeroed)
            }
        };
        // The place of the first batch is made blank: a recycled file has old bytes there.
        let blank = [0; BATCH_HEADER_BYTES];
        file.write_all_at(&header, 0)
            .and_then(|()| file.write_all_at(&blank, DATA_START))
            .map_err(|e| Error::io("write", &from, e))?;
        file.sync_data().map_err(|e| Error::io("sync", &from, e))?;
        let path = format::path_of(&self.config.dir, generation);
        self.disk.rename(&from, &path).map_err(|e| Error::io("rename", &from, e))?;
        if !bank::has("rename-without-directory-sync") {
            self.disk.sync_dir(&self.config.dir).map_err(|e| Error::io("sync", &self.config.dir, e))?;
        }
        let counters = &self.shared.counters;
        add(if reused { &counters.segments_reused } else { &counters.segments_created }, 1);
        let mut state = self.shared.write();
        if let Some(s) = state.segments.get_mut(&self.active.generation) {
            s.end = prev_end;
        }
        state
            .segments
            .insert(generation, Segment { path: path.clone(), file: file.clone(), bytes, end: DATA_START });
        self.metrics.segments.set(state.segments.len() as f64);
        self.active = Active { generation, path, file, bytes, offset: DATA_START, zeroed };
        self.maintain_due = true;
        Ok(())
    }

    /// The generation that is written.
    pub(crate) fn active_generation(&self) -> u64 {
        self.active.generation
    }

    /// Is anything written that is not yet synced?
    pub fn has_unsynced(&self) -> bool {
        self.unsynced
    }

    /// Writes a last durable-end mark, so that damage to the last batch is found at the next opening, and syncs.
    pub fn close(mut self) -> Result<(), Error> {
        self.seal()
    }

    pub(crate) fn seal(&mut self) -> Result<(), Error> {
        self.sync()?;
        let r = self.write_batch(&[]);
        self.or_poison(r)?;
        self.sync()
    }

    /// Bounds of a shard's log with everything appended, synced or not: (first, last).
    pub fn appended_bounds(&self, shard: ShardId) -> Option<(LogIndex, LogIndex)> {
        self.bounds.get(&shard).map(|b| (b.first, b.last))
    }
}

/// The term that stands for "not known": a mark beyond the end of a log without a given term.
pub const TERM_UNKNOWN: Term = 0;

fn zero(file: &dyn DiskFile, mut from: u64, to: u64) -> std::io::Result<()> {
    while from < to {
        let n = (to - from).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..n as usize], from)?;
        from += n;
    }
    Ok(())
}

/// Stands where no segment is yet.
struct NoFile;

impl DiskFile for NoFile {
    fn read_exact_at(&self, _: &mut [u8], _: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::NotFound.into())
    }
    fn write_all_at(&self, _: &[u8], _: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::NotFound.into())
    }
    fn sync_data(&self) -> std::io::Result<()> {
        Err(std::io::ErrorKind::NotFound.into())
    }
    fn set_len(&self, _: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::NotFound.into())
    }
    fn len(&self) -> std::io::Result<u64> {
        Ok(0)
    }
}
