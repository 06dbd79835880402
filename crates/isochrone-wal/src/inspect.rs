//! Looking at a log from outside: what files there are, every record in order, and whether anything is wrong.
//! Nothing here writes; the log may be in use by another process, whose unfinished writes then look like a torn tail.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use isochrone_base::{LogIndex, ShardId, Term};
use isochrone_env::{Disk, OpenMode};

use crate::Error;
use crate::batch::{HardState, Kind, Record};
use crate::format::{self, DATA_START, Position};
use crate::index::{Applied, Segment, State};
use crate::recover::{self, Problem, Tail};

/// A segment of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its file.
    pub file: PathBuf,
    /// Its number.
    pub generation: u64,
    /// Length of the file.
    pub bytes: u64,
    /// Where its batches end.
    pub end: u64,
    /// Bytes of records that are still needed.
    pub live_bytes: u64,
}

/// A record, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordInfo {
    /// What it is.
    pub kind: Kind,
    /// Whose it is.
    pub shard: ShardId,
    /// The entry's term; of a hard state its term; of a mark the term of the entry before.
    pub term: Term,
    /// The entry's index; of a hard state its commit index; of a mark the first index.
    pub index: LogIndex,
    /// The segment file.
    pub file: PathBuf,
    /// Segment number and byte offset.
    pub at: Position,
    /// The entry's payload; of a hard state the vote, eight bytes, least significant first.
    pub payload: Bytes,
}

impl RecordInfo {
    fn new(record: Record, file: &Path, at: Position) -> RecordInfo {
        let Record { kind, shard, term, index, payload } = record;
        RecordInfo { kind, shard, term, index, file: file.to_path_buf(), at, payload }
    }

    /// The hard state, if it is one.
    pub fn hard_state(&self) -> Option<HardState> {
        let vote = u64::from_le_bytes(self.payload.as_ref().try_into().ok()?);
        (self.kind == Kind::HardState).then_some(HardState { term: self.term, vote, commit: self.index })
    }
}

/// What `verify` found.
#[derive(Clone, Debug)]
pub struct Verification {
    /// The segments in use, oldest first.
    pub segments: Vec<SegmentInfo>,
    /// Recycled files.
    pub spares: Vec<PathBuf>,
    /// Damage, with file and offset. Empty: the log opens.
    pub problems: Vec<Problem>,
    /// How the log ends; a torn tail is cut when it is opened, and is no damage.
    pub tail: Tail,
    /// Everything below was durable.
    pub durable_end: Position,
    /// Whole batches.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Shards with a log.
    pub shards: u64,
}

/// Reads a whole log and says everything that is wrong with it. Errors are those that make reading impossible.
pub fn verify(disk: &dyn Disk, dir: &Path) -> Result<Verification, Error> {
    let mut state = State::default();
    let found = recover::examine(disk, dir, |at, record| {
        state.apply(&Applied::new(&record, at));
    })?;
    let mut problems = found.problems;
    for (shard, s) in &state.shards {
        if let Some(index) = s.missing() {
            let what = format!("entry {index} of shard {shard} is in no segment");
            problems.push(Problem { file: dir.to_path_buf(), offset: 0, what });
        }
    }
    let segments = found.segments.iter().map(|s| SegmentInfo {
        file: s.path.clone(),
        generation: s.generation,
        bytes: s.header.bytes,
        end: s.end,
        live_bytes: state.usage.get(&s.generation).map_or(0, |u| u.live_bytes),
    });
    Ok(Verification {
        segments: segments.collect(),
        spares: found.spares.into_values().collect(),
        problems,
        tail: found.tail,
        durable_end: found.durable_end,
        batches: found.batches,
        records: found.records,
        shards: state.shards.len() as u64,
    })
}

/// The segments of a log that is not open here.
pub fn segments(disk: &dyn Disk, dir: &Path) -> Result<Vec<SegmentInfo>, Error> {
    verify(disk, dir).map(|v| v.segments)
}

/// Every record of a log that is not open here, in log order, from `from` on (a position that an earlier record had:
/// that is how `wal follow` goes on). Ends quietly where the log ends; [`verify`] says whether it ends well.
pub fn records(disk: &dyn Disk, dir: &Path, from: Position) -> Result<Records, Error> {
    let mut files = VecDeque::new();
    for (generation, path) in
        recover::list(disk, dir)?.segments.into_iter().filter(|(g, _)| *g >= from.generation)
    {
        let file = disk.open(&path, OpenMode::Read).map_err(|e| Error::io("open", &path, e))?;
        let bytes = file.len().map_err(|e| Error::io("measure", &path, e))?;
        files.push_back((generation, Segment { path, file, bytes, end: bytes }));
    }
    Ok(Records { files, ready: VecDeque::new(), from })
}

/// An iterator over records. One segment is in memory at a time.
pub struct Records {
    files: VecDeque<(u64, Segment)>,
    ready: VecDeque<RecordInfo>,
    from: Position,
}

impl Records {
    pub(crate) fn of(files: VecDeque<(u64, Segment)>) -> Records {
        Records { files, ready: VecDeque::new(), from: Position::default() }
    }

    /// Leaves out what lies before this position.
    pub fn starting_at(mut self, from: Position) -> Records {
        self.files.retain(|(g, _)| *g >= from.generation);
        self.from = from;
        self
    }

    fn load(&mut self, generation: u64, segment: &Segment) -> Result<(), Error> {
        let end = usize::try_from(segment.end.min(u64::from(u32::MAX))).unwrap_or(usize::MAX);
        let mut bytes = vec![0; end];
        segment.file.read_exact_at(&mut bytes, 0).map_err(|e| Error::io("read", &segment.path, e))?;
        let bytes = Bytes::from(bytes);
        let (mut at, mut epoch) = (DATA_START, 0);
        while let Ok(header) = format::batch_at(&bytes, generation, at) {
            if header.epoch < epoch {
                break;
            }
            epoch = header.epoch;
            let (ready, from) = (&mut self.ready, self.from);
            recover::records_of(&bytes, generation, at, &header, |at, record| {
                if at >= from {
                    ready.push_back(RecordInfo::new(record, &segment.path, at));
                }
            })
            .map_err(|(offset, what)| Error::Damaged {
                file: segment.path.clone(),
                offset,
                what: what.into(),
            })?;
            at += header.span();
        }
        Ok(())
    }
}

impl Iterator for Records {
    type Item = Result<RecordInfo, Error>;

    fn next(&mut self) -> Option<Result<RecordInfo, Error>> {
        while self.ready.is_empty() {
            let (generation, segment) = self.files.pop_front()?;
            if let Err(e) = self.load(generation, &segment) {
                self.files.clear();
                return Some(Err(e));
            }
        }
        self.ready.pop_front().map(Ok)
    }
}
