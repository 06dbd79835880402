//! Reading a log's directory in one pass, without changing it: what is in it, where it ends, what is wrong.
//!
//! Opening a log and `wal verify` use the same pass, so that they cannot disagree.
//!
//! How the end is found (W1 to W5 in the crate's documentation):
//!
//!     sealed segment g            last segment
//!     [hdr][batch][batch]         [hdr][batch][batch] X ....... [batch?]
//!                        ^ prev_end of g+1          ^ the first place without a valid batch
//!
//! * Below `prev_end` every byte of a sealed segment was durable: what does not check out there is damage.
//! * In the last segment the log ends at X. D is the highest durable end that any batch of this segment claims, also
//!   those found behind X. X < D: damage. Otherwise what was at X was never acknowledged, or was the very last
//!   acknowledged batch and the disk lost it afterwards, which cannot be told from a torn write: the report says cut.
//! * X is a clean end if zeros stand there (every write puts zeros behind itself) and no whole batch of the latest
//!   epoch lies behind it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use isochrone_env::{Disk, DiskFile, OpenMode};

use crate::Error;
use crate::batch::Record;
use crate::format::{
    self, BATCH_HEADER_BYTES, BatchHeader, DATA_START, HeaderError, Name, NoBatch, Position, SegmentHeader,
};
use isochrone_base::bank;

/// How a log ended when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing was written behind the last whole batch.
    Clean,
    /// A torn or lost write was found; the log ends before it.
    Cut {
        /// The segment file.
        file: PathBuf,
        /// Where the log ends now.
        offset: u64,
        /// What was found there.
        what: &'static str,
    },
}

/// One thing that is wrong with a log.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The segment file.
    pub file: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// What was expected there.
    pub what: String,
}

/// The files of a log, by name.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub segments: BTreeMap<u64, PathBuf>,
    pub spares: BTreeMap<u64, PathBuf>,
    pub new: Option<PathBuf>,
}

pub(crate) fn list(disk: &dyn Disk, dir: &Path) -> Result<Listing, Error> {
    let mut out = Listing::default();
    for path in disk.list(dir).map_err(|e| Error::io("list", dir, e))? {
        match format::parse_name(&path) {
            Some(Name::Segment(g)) => drop(out.segments.insert(g, path)),
            Some(Name::Spare(g)) => drop(out.spares.insert(g, path)),
            Some(Name::New) => out.new = Some(path),
            None => {
                return Err(Error::NotALog { path, what: "its name is not that of a log segment".into() });
            }
        }
    }
    Ok(out)
}

/// A segment of the log, read.
pub(crate) struct Found {
    pub generation: u64,
    pub path: PathBuf,
    pub header: SegmentHeader,
    pub end: u64,
}

/// What the pass found.
pub(crate) struct Examination {
    pub segments: Vec<Found>,
    /// Files named as segments that are not needed any more.
    pub dead: Vec<(u64, PathBuf)>,
    pub spares: BTreeMap<u64, PathBuf>,
    pub new: Option<PathBuf>,
    pub epoch: u64,
    pub oldest: u64,
    pub durable_end: Position,
    pub tail: Tail,
    pub records: u64,
    pub batches: u64,
    pub problems: Vec<Problem>,
}

pub(crate) fn read_header(
    file: &dyn DiskFile,
    path: &Path,
) -> Result<Result<SegmentHeader, HeaderError>, Error> {
    let mut b = [0; format::SEGMENT_HEADER_BYTES];
    let bytes = file.len().map_err(|e| Error::io("measure", path, e))?;
    if bytes < b.len() as u64 {
        return Ok(Err(HeaderError::Magic));
    }
    file.read_exact_at(&mut b, 0).map_err(|e| Error::io("read", path, e))?;
    Ok(SegmentHeader::decode(&b))
}

struct Image {
    generation: u64,
    path: PathBuf,
    header: Option<SegmentHeader>,
    bytes: Bytes,
}

/// Reads one segment whole. A damaged header is a problem, an unknown version or foreign file an error.
fn read_image(
    disk: &dyn Disk,
    generation: u64,
    path: &Path,
    problems: &mut Vec<Problem>,
) -> Result<Image, Error> {
    let file = disk.open(path, OpenMode::Read).map_err(|e| Error::io("open", path, e))?;
    let len = file.len().map_err(|e| Error::io("measure", path, e))?;
    let mut problem =
        |offset, what: String| problems.push(Problem { file: path.to_path_buf(), offset, what });
    let header = match read_header(&*file, path)? {
        Ok(h) if h.generation != generation => {
            problem(16, format!("header says generation {:x}", h.generation));
            None
        }
        Ok(h) => Some(h),
        Err(HeaderError::Version(version)) => {
            return Err(Error::UnknownVersion {
                path: path.to_path_buf(),
                version,
                supported: format::VERSION,
            });
        }
        Err(HeaderError::Magic) => {
            problem(0, "no segment header".into());
            None
        }
        Err(HeaderError::Checksum) => {
            problem(0, "segment header's checksum does not match".into());
            None
        }
    };
    if let Some(h) = header
        && h.bytes != len
    {
        problem(len.min(h.bytes), format!("file has {len} bytes, its header says {}", h.bytes));
    }
    // What the file system says, capped: a crafted length must not make us allocate without bound.
    let readable = usize::try_from(len.min(u64::from(u32::MAX)))
        .map_err(|e| Error::io("read", path, std::io::Error::other(e)))?;
    let mut bytes = vec![0; readable];
    file.read_exact_at(&mut bytes, 0).map_err(|e| Error::io("read", path, e))?;
    Ok(Image { generation, path: path.to_path_buf(), header, bytes: bytes.into() })
}

/// The first whole batch of this generation at or behind `from`. Payloads of whole batches are not searched.
fn resync(bytes: &[u8], generation: u64, from: u64) -> Option<(u64, BatchHeader)> {
    let mut at = format::align(from);
    loop {
        at = format::next_magic(bytes, at)?;
        if let Ok(h) = format::batch_at(bytes, generation, at) {
            return Some((at, h));
        }
        at += format::ALIGN;
    }
}

/// A batch that belongs to the log.
struct Frame {
    offset: u64,
    header: BatchHeader,
}

struct Walk {
    frames: Vec<Frame>,
    /// The first place without a batch that belongs to the log.
    end: u64,
    stop: NoBatch,
    epoch: u64,
}

/// Follows the batches from `from`; a batch of an earlier epoch than its predecessor is what an earlier life left behind (W5).
fn walk(bytes: &[u8], generation: u64, from: u64, limit: u64, mut epoch: u64) -> Walk {
    let (mut end, mut frames) = (from, Vec::new());
    let stop = loop {
        if end >= limit {
            break NoBatch::Blank;
        }
        match format::batch_at(bytes, generation, end) {
            Ok(h) if h.epoch < epoch => break NoBatch::Blank,
            Ok(h) => {
                epoch = h.epoch;
                frames.push(Frame { offset: end, header: h });
                end += h.span();
            }
            Err(stop) => break stop,
        }
    };
    Walk { frames, end, stop, epoch }
}

/// The records of one whole batch.
pub(crate) fn records_of(
    segment: &Bytes,
    generation: u64,
    offset: u64,
    header: &BatchHeader,
    mut each: impl FnMut(Position, Record),
) -> Result<u64, (u64, &'static str)> {
    let mut at = offset + BATCH_HEADER_BYTES as u64;
    let end = at + u64::from(header.body_bytes);
    for _ in 0..header.records {
        let position = Position { generation, offset: at };
        let record =
            format::get_record(&segment.slice(at as usize..end as usize), position).map_err(|w| (at, w))?;
        at += record.bytes() as u64;
        each(position, record);
    }
    if at != end {
        return Err((at, "bytes are left over behind the last record of a batch"));
    }
    Ok(u64::from(header.records))
}

/// Reads the whole log. `each` sees every record of the segments in use, in log order. What is wrong is collected,
/// except for what makes reading pointless: I/O errors, foreign files, other versions.
pub(crate) fn examine(
    disk: &dyn Disk,
    dir: &Path,
    mut each: impl FnMut(Position, Record),
) -> Result<Examination, Error> {
    let listing = list(disk, dir)?;
    let mut out = Examination {
        segments: Vec::new(),
        dead: Vec::new(),
        spares: listing.spares,
        new: listing.new,
        epoch: 0,
        oldest: 1,
        durable_end: Position::default(),
        tail: Tail::Clean,
        records: 0,
        batches: 0,
        problems: Vec::new(),
    };
    let Some((&last_generation, last_path)) = listing.segments.last_key_value() else {
        return Ok(out);
    };
    let mut last = Some(read_image(disk, last_generation, last_path, &mut out.problems)?);
    let first_generation = *listing.segments.keys().next().unwrap_or(&last_generation);
    out.oldest = oldest_of(last.as_ref().expect("just read"), first_generation);
    for g in out.oldest..last_generation {
        // Every generation from the oldest on must be there; generations are dense, so this ends early on crafted headers.
        if !listing.segments.contains_key(&g) {
            let what = "segment file is missing".into();
            out.problems.push(Problem { file: format::path_of(dir, g), offset: 0, what });
            break;
        }
    }
    let live: Vec<(u64, PathBuf)> = listing.segments.into_iter().collect();
    for (i, (generation, path)) in live.iter().enumerate() {
        if *generation < out.oldest {
            out.dead.push((*generation, path.clone()));
            continue;
        }
        let is_last = *generation == last_generation;
        let image = match is_last.then(|| last.take()).flatten() {
            Some(image) => image,
            None => read_image(disk, *generation, path, &mut out.problems)?,
        };
        // The end of a sealed segment stands in the next one's header; read from the file, it is small.
        let sealed_end = match live.get(i + 1) {
            Some((next, next_path)) if *next == generation + 1 => {
                let file =
                    disk.open(next_path, OpenMode::Read).map_err(|e| Error::io("open", next_path, e))?;
                read_header(&*file, next_path)?.ok().map(|h| h.prev_end)
            }
            _ => None,
        };
        examine_segment(image, is_last, sealed_end, &mut out, &mut each);
    }
    Ok(out)
}

/// The highest `oldest` that the last segment carries: nothing below it is needed.
fn oldest_of(image: &Image, first_generation: u64) -> u64 {
    let Some(header) = image.header else { return first_generation };
    let w = walk(&image.bytes, image.generation, DATA_START, u64::MAX, header.epoch);
    w.frames.iter().map(|f| f.header.oldest).fold(header.oldest, u64::max).min(image.generation)
}

fn examine_segment(
    image: Image,
    is_last: bool,
    sealed_end: Option<u64>,
    out: &mut Examination,
    each: &mut impl FnMut(Position, Record),
) {
    let Image { generation, path, header, bytes } = image;
    let header = header.unwrap_or(SegmentHeader {
        generation,
        bytes: bytes.len() as u64,
        prev_end: 0,
        oldest: 1,
        epoch: 0,
    });
    out.epoch = out.epoch.max(header.epoch);
    let limit = if is_last { u64::MAX } else { sealed_end.unwrap_or(u64::MAX) };
    let mut durable_end = Position { generation, offset: DATA_START };
    let mut from = DATA_START;
    let end = loop {
        let w = walk(&bytes, generation, from, limit, out.epoch);
        out.epoch = w.epoch;
        for Frame { offset, header } in &w.frames {
            durable_end = durable_end.max(header.durable_end);
            out.batches += 1;
            match records_of(&bytes, generation, *offset, header, &mut *each) {
                Ok(n) => out.records += n,
                Err((at, what)) => {
                    out.problems.push(Problem { file: path.clone(), offset: at, what: what.into() })
                }
            }
        }
        if !is_last && w.end == limit {
            break w.end;
        }
        // Everything whole behind this place, for its durable marks and to go on reporting.
        let mut next = None;
        let mut at = w.end + 1;
        while let Some((found, h)) = resync(&bytes, generation, at) {
            durable_end = durable_end.max(h.durable_end);
            if h.epoch >= out.epoch && next.is_none() {
                next = Some(found);
            }
            at = found + h.span();
        }
        let what = match w.stop {
            NoBatch::Bad(what) => what,
            NoBatch::Blank => "no batch begins here",
        };
        let here = Position { generation, offset: w.end };
        if (durable_end > here || !is_last) && !bank::has("torn-middle-is-a-tail") {
            let what = match sealed_end {
                Some(end) if !is_last => format!("{what}; all up to {end} was durable"),
                _ if is_last => format!("{what}; all up to {} was durable", durable_end.offset),
                _ => format!("{what}; the segment that follows is damaged or missing"),
            };
            // A sealed segment without a known end may end right here.
            if is_last || sealed_end.is_some() || next.is_some() {
                out.problems.push(Problem { file: path.clone(), offset: w.end, what });
            }
            match next.filter(|&n| n > w.end && n < limit) {
                Some(n) => from = n,
                None => break w.end,
            }
            continue;
        }
        if matches!(w.stop, NoBatch::Bad(_)) || next.is_some() {
            let what = if next.is_some() { "a write is missing before a whole one" } else { what };
            out.tail = Tail::Cut { file: path.clone(), offset: w.end, what };
        }
        break w.end;
    };
    out.durable_end = out.durable_end.max(durable_end);
    out.segments.push(Found { generation, path, header, end });
}
