//! The bytes: segment header, batch header, record. `docs/formats/wal.md` describes them; all integers are
//! little-endian. Pure functions over slices: nothing here reads a file, and no input makes it panic.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use isochrone_base::{LogIndex, ShardId, Term, bank};

use crate::batch::{Kind, Record};

/// The version of the format this program writes and reads.
pub const VERSION: u32 = 1;
/// Where batches begin in a segment: appends never touch the header's page.
pub const DATA_START: u64 = 4096;
/// Bytes of a segment header.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 64;
/// Bytes of a batch header; as many zeros follow every write, so that a clean end can be told from a torn one.
pub(crate) const BATCH_HEADER_BYTES: usize = 56;
/// Bytes of a record in front of its payload.
pub const RECORD_HEADER_BYTES: usize = 36;
/// Batches begin at multiples of this.
pub(crate) const ALIGN: u64 = 8;

const SEGMENT_MAGIC: [u8; 8] = *b"ISOCHWAL";
const BATCH_MAGIC: [u8; 4] = *b"IWB1";

/// A place in the log. Positions grow with every byte written, over segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The number of the segment; never used again, while its file may be.
    pub generation: u64,
    /// Bytes from the beginning of the file.
    pub offset: u64,
}

/// What a file in the log's directory is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// A segment of the log.
    Segment(u64),
    /// A recycled file that waits for reuse, by its last generation.
    Spare(u64),
    /// A file being created; meaningless after a crash.
    New,
}

pub(crate) fn segment_name(generation: u64) -> String {
    format!("wal-{generation:016x}.seg")
}

pub(crate) fn spare_name(generation: u64) -> String {
    format!("spare-{generation:016x}.seg")
}

pub(crate) const NEW_NAME: &str = "new.seg";

pub(crate) fn parse_name(path: &Path) -> Option<Name> {
    let name = path.file_name()?.to_str()?;
    if name == NEW_NAME {
        return Some(Name::New);
    }
    let number = |s: &str| {
        let hex = s.strip_suffix(".seg")?;
        let valid = hex.len() == 16 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        valid.then(|| u64::from_str_radix(hex, 16).ok()).flatten().filter(|g| (1..u64::MAX).contains(g))
    };
    if let Some(rest) = name.strip_prefix("wal-") {
        return number(rest).map(Name::Segment);
    }
    name.strip_prefix("spare-").and_then(number).map(Name::Spare)
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}

fn set_u32(b: &mut [u8], at: usize, v: u32) {
    b[at..at + 4].copy_from_slice(&v.to_le_bytes());
}

fn set_u64(b: &mut [u8], at: usize, v: u64) {
    b[at..at + 8].copy_from_slice(&v.to_le_bytes());
}

/// The checksum state after a position: everything below a batch or record checksum depends on where it lies (W4).
fn seed(at: Position) -> u32 {
    let mut b = [0; 16];
    set_u64(&mut b, 0, at.generation);
    set_u64(&mut b, 8, at.offset);
    crc32c::crc32c(&b)
}

pub(crate) fn align(n: u64) -> u64 {
    n.next_multiple_of(ALIGN)
}

/// The first block of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub generation: u64,
    /// Length of the file; a shorter or longer one is damaged.
    pub bytes: u64,
    /// Where the segment before this one ended: all below is durable, nothing above counts (W3).
    pub prev_end: u64,
    /// The first segment that was needed when this one was made.
    pub oldest: u64,
    /// How often the log had been opened.
    pub epoch: u64,
}

/// Why a segment header was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    Magic,
    Version(u32),
    Checksum,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut b = [0; SEGMENT_HEADER_BYTES];
        b[..8].copy_from_slice(&SEGMENT_MAGIC);
        set_u32(&mut b, 8, VERSION);
        set_u64(&mut b, 16, self.generation);
        set_u64(&mut b, 24, self.bytes);
        set_u64(&mut b, 32, self.prev_end);
        set_u64(&mut b, 40, self.oldest);
        set_u64(&mut b, 48, self.epoch);
        let crc = crc32c::crc32c(&b);
        set_u32(&mut b, 12, crc);
        b
    }

    pub(crate) fn decode(b: &[u8]) -> Result<SegmentHeader, HeaderError> {
        if b.len() < SEGMENT_HEADER_BYTES || b[..8] != SEGMENT_MAGIC {
            return Err(HeaderError::Magic);
        }
        let mut copy = [0; SEGMENT_HEADER_BYTES];
        copy.copy_from_slice(&b[..SEGMENT_HEADER_BYTES]);
        set_u32(&mut copy, 12, 0);
        let version = u32_at(b, 8);
        let whole = u32_at(b, 12) == crc32c::crc32c(&copy);
        match (whole, version) {
            // A future version may checksum in another way; a flipped bit in the version is damage either way.
            (_, v) if v != VERSION => Err(HeaderError::Version(v)),
            (false, _) => Err(HeaderError::Checksum),
            (true, _) => Ok(SegmentHeader {
                generation: u64_at(b, 16),
                bytes: u64_at(b, 24),
                prev_end: u64_at(b, 32),
                oldest: u64_at(b, 40),
                epoch: u64_at(b, 48),
            }),
        }
    }
}

/// What stands in front of the records of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub body_bytes: u32,
    pub records: u32,
    /// How often the log had been opened, counting this time: never falls along the log (W5).
    pub epoch: u64,
    /// Everything below was durable before this batch was written (W2).
    pub durable_end: Position,
    /// Segments below this one are not needed once this batch is durable.
    pub oldest: u64,
    pub generation: u64,
}

impl BatchHeader {
    /// Bytes of the batch on disk, up to where the next may begin.
    pub(crate) fn span(&self) -> u64 {
        batch_span(u64::from(self.body_bytes))
    }
}

/// Bytes on disk of a batch with that many bytes of records.
pub(crate) fn batch_span(body_bytes: u64) -> u64 {
    align(BATCH_HEADER_BYTES as u64 + body_bytes)
}

/// Writes the header into the first bytes of `buf`, whose rest is the body.
pub(crate) fn seal_batch(buf: &mut [u8], header: &BatchHeader, offset: u64) {
    buf[..4].copy_from_slice(&BATCH_MAGIC);
    set_u32(buf, 8, header.body_bytes);
    set_u32(buf, 12, header.records);
    set_u64(buf, 16, header.epoch);
    set_u64(buf, 24, header.durable_end.generation);
    set_u64(buf, 32, header.durable_end.offset);
    set_u64(buf, 40, header.oldest);
    set_u64(buf, 48, header.generation);
    let at = Position { generation: header.generation, offset };
    let crc = crc32c::crc32c_append(seed(at), &buf[8..]);
    set_u32(buf, 4, crc);
}

/// Why there is no batch at some place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoBatch {
    /// Zeros, or no room for a header: nothing was ever written here.
    Blank,
    /// Something else.
    Bad(&'static str),
}

/// The next place, from the aligned `offset` on, where a batch might begin: its magic is there.
pub(crate) fn next_magic(segment: &[u8], offset: u64) -> Option<u64> {
    let rest = segment.get(usize::try_from(offset).ok()?..)?;
    let at = rest.chunks_exact(ALIGN as usize).position(|c| c[..4] == BATCH_MAGIC)?;
    Some(offset + at as u64 * ALIGN)
}

/// The batch at `offset` of a segment, if there is a whole one.
pub(crate) fn batch_at(segment: &[u8], generation: u64, offset: u64) -> Result<BatchHeader, NoBatch> {
    let at = usize::try_from(offset).unwrap_or(usize::MAX);
    let Some(b) = segment.get(at..).filter(|b| b.len() >= BATCH_HEADER_BYTES) else {
        return Err(NoBatch::Blank);
    };
    if b[..BATCH_HEADER_BYTES].iter().all(|&x| x == 0) {
        return Err(NoBatch::Blank);
    }
    if b[..4] != BATCH_MAGIC {
        return Err(NoBatch::Bad("no batch begins here"));
    }
    let header = BatchHeader {
        body_bytes: u32_at(b, 8),
        records: u32_at(b, 12),
        epoch: u64_at(b, 16),
        durable_end: Position { generation: u64_at(b, 24), offset: u64_at(b, 32) },
        oldest: u64_at(b, 40),
        generation: u64_at(b, 48),
    };
    if header.generation != generation {
        return Err(NoBatch::Bad("batch of another generation"));
    }
    let end = BATCH_HEADER_BYTES as u64 + u64::from(header.body_bytes);
    if end > b.len() as u64 {
        return Err(NoBatch::Bad("batch is longer than its segment"));
    }
    let here = Position { generation, offset };
    let crc = crc32c::crc32c_append(seed(here), &b[8..end as usize]);
    if crc != u32_at(b, 4) && !bank::has("batch-checksum-ignored") {
        return Err(NoBatch::Bad("batch checksum does not match"));
    }
    Ok(header)
}

/// Appends a record whose first byte will lie at `at`.
pub(crate) fn put_record(buf: &mut Vec<u8>, record: &Record, at: Position) {
    let start = buf.len();
    buf.extend_from_slice(&[0; 4]);
    buf.extend_from_slice(&(record.payload.len() as u32).to_le_bytes());
    buf.extend_from_slice(&[record.kind as u8, 0, 0, 0]);
    buf.extend_from_slice(&record.shard.0.to_le_bytes());
    buf.extend_from_slice(&record.term.to_le_bytes());
    buf.extend_from_slice(&record.index.to_le_bytes());
    buf.extend_from_slice(&record.payload);
    let crc = crc32c::crc32c_append(seed(at), &buf[start + 4..]);
    set_u32(buf, start, crc);
}

/// The record at the front of `bytes`, which lies at `at`. The payload is a view into `bytes`.
pub(crate) fn get_record(bytes: &Bytes, at: Position) -> Result<Record, &'static str> {
    if bytes.len() < RECORD_HEADER_BYTES {
        return Err("record is cut short");
    }
    let payload_bytes = u32_at(bytes, 4) as usize;
    let Some(end) = RECORD_HEADER_BYTES.checked_add(payload_bytes).filter(|&e| e <= bytes.len()) else {
        return Err("record is longer than its batch");
    };
    if crc32c::crc32c_append(seed(at), &bytes[4..end]) != u32_at(bytes, 0) {
        return Err("record checksum does not match");
    }
    let kind = Kind::from_u8(bytes[8]).ok_or("record has an unknown kind")?;
    if bytes[9..12] != [0, 0, 0] {
        return Err("reserved bytes of a record are not zero");
    }
    let shard = ShardId(u64_at(bytes, 12));
    let (term, index): (Term, LogIndex) = (u64_at(bytes, 20), u64_at(bytes, 28));
    let shape = match kind {
        Kind::Entry | Kind::MovedEntry => (1..u64::MAX).contains(&index),
        Kind::HardState => payload_bytes == 8,
        Kind::TruncatePrefix | Kind::Reset => payload_bytes == 0 && index >= 1,
        Kind::RemoveShard => payload_bytes == 0,
    };
    if !shape {
        return Err("record's fields do not fit its kind");
    }
    Ok(Record { kind, shard, term, index, payload: bytes.slice(RECORD_HEADER_BYTES..end) })
}

/// The vote in a hard state's payload.
pub(crate) fn vote_of(record: &Record) -> u64 {
    if record.payload.len() == 8 { u64_at(&record.payload, 0) } else { 0 }
}

pub(crate) fn path_of(dir: &Path, generation: u64) -> PathBuf {
    dir.join(segment_name(generation))
}

#[cfg(test)]
mod tests;
