//! Disks that change what they hold: bits that flip, sectors that show what they held before, writes that went to another
//! place of the file. Of the log, while its node is down.
//!
//! What the product owes (design D2): opening says that the log is damaged; or it cuts a tail that cannot be told from a torn
//! write, and says so; or what is damaged is of no use any more. Anything else is a finding (SIM17). That the last write was lost
//! whole, nothing can see; the disk does not do that here.
//!
//! Only one node at a time has lost something, and until it has caught up no other disk fails and no power goes: what only the
//! others hold, they keep. Processes, links and clocks go on failing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use isochrone_base::hash::Fnv64;
use isochrone_env::SplitMix64;
use isochrone_env::fake::{MemDisk, SECTOR_BYTES};
use isochrone_wal::{Error, Log, Position, RecoveryReport, Tail};

use crate::life::log_config;
use crate::options::{Fault, Tuning};
use crate::world::Found;

/// Sectors that are looked at until one is worth damaging.
const TRIES: usize = 16;
/// How far before the log's end its last batch is looked for.
const LAST_BYTES: u64 = 256;
/// Most bits that flip in a sector.
const BITS_MAX: u64 = 8;

/// What came of damage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rotten {
    /// No sector could be damaged in this way, or nothing in use was.
    Nothing,
    /// Opening the log refused; the good bytes are back.
    Refused,
    /// The log's end was cut off.
    Cut,
}

/// A sector as it was.
struct Sector {
    path: PathBuf,
    number: usize,
    bytes: Vec<u8>,
}

/// Damages a log. With `repair`, a log that would be cut is put right again, and counts as refused: it has no other copy.
pub(crate) fn strike(
    disk: &MemDisk,
    tuning: &Tuning,
    fault: Fault,
    random: &SplitMix64,
    repair: bool,
) -> Result<Rotten, Found> {
    // A log that does not open without damage is found where it is opened.
    let Ok((before, was)) = contents(disk, tuning) else { return Ok(Rotten::Nothing) };
    let damaged = damage(disk, fault, random, before.end);
    let restore = || damaged.iter().for_each(|s| disk.set_sector(&s.path, s.number, &s.bytes));
    let silent = |what: &str| {
        let at: Vec<_> =
            damaged.iter().map(|s| format!("{} sector {}", s.path.display(), s.number)).collect();
        Err(Found::new("SIM17", format!("{what} after {} in {}", fault.name(), at.join(", "))))
    };
    match contents(disk, tuning) {
        Err(Error::Damaged { .. } | Error::NotALog { .. } | Error::UnknownVersion { .. }) => {
            restore();
            Ok(Rotten::Refused)
        }
        Err(e) => silent(&format!("the log does not open, and not for its damage: {e}")),
        Ok((after, is)) if after.end == before.end => {
            if is == was {
                Ok(Rotten::Nothing)
            } else {
                silent("the log reads otherwise")
            }
        }
        // Behind the cut stands that what is cut off was synced: no torn write looks like that.
        Ok((after, _)) if matches!(after.tail, Tail::Cut { .. }) && after.durable_end > after.end => {
            silent(&format!(
                "the log is cut at {:?}, and knew that it was synced up to {:?}",
                after.end, after.durable_end
            ))
        }
        Ok((after, _)) if matches!(after.tail, Tail::Cut { .. }) => {
            if repair {
                restore();
                return Ok(Rotten::Refused);
            }
            Ok(Rotten::Cut)
        }
        // The last write is gone without a trace.
        Ok((after, _)) if after.end < before.end && fault != Fault::Rot => {
            restore();
            Ok(Rotten::Nothing)
        }
        Ok((after, _)) => silent(&format!("the log ends at {:?} instead of {:?}", after.end, before.end)),
    }
}

/// What a log says when it is opened: how it ends, and a hash of all that can be read. Changes nothing.
fn contents(disk: &MemDisk, tuning: &Tuning) -> Result<(RecoveryReport, u64), Error> {
    let copy = disk.fork();
    copy.heal();
    let (log, report) = Log::open(Arc::new(copy), log_config(tuning))?;
    let (reader, mut hash) = (log.reader(), Fnv64::default());
    for shard in reader.shards() {
        let (first, last) = (reader.first_index(shard)?, reader.last_index(shard)?);
        for n in [shard.0, first, last] {
            hash.update(&n.to_be_bytes());
        }
        hash.update(format!("{:?}", reader.hard_state(shard)?).as_bytes());
        for entry in reader.entries(shard, first..last + 1, usize::MAX)? {
            hash.update(&entry.term.to_be_bytes());
            hash.update(&entry.payload);
        }
    }
    Ok((report, hash.finish()))
}

/// Changes one sector or two of one file; returns them as they were.
fn damage(disk: &MemDisk, fault: Fault, random: &SplitMix64, end: Position) -> Vec<Sector> {
    let mut files: Vec<(PathBuf, usize)> = disk.durable_files();
    files.retain(|(path, bytes)| path.starts_with(Path::new("/wal")) && *bytes >= SECTOR_BYTES);
    if files.is_empty() {
        return Vec::new();
    }
    for _ in 0..TRIES {
        // One in two is where the last batch lies: only what is damaged there can be taken for a torn write.
        let last = PathBuf::from(format!("/wal/wal-{:016x}.seg", end.generation));
        let last = files.iter().find(|(path, _)| *path == last).filter(|_| random.below(2) == 0);
        let (path, bytes) = last.unwrap_or(&files[random.below(files.len() as u64) as usize]);
        let sectors = (bytes / SECTOR_BYTES) as u64;
        let (mut here, there) = (random.below(sectors) as usize, random.below(sectors) as usize);
        if last.is_some() {
            here = end.offset.saturating_sub(1 + random.below(LAST_BYTES)) as usize / SECTOR_BYTES;
        }
        let (Some(now), Some(then)) = (disk.sector(path, here), disk.previous_sector(path, here)) else {
            continue;
        };
        let was = |number, bytes| Sector { path: path.clone(), number, bytes };
        match fault {
            // Blank sectors are mostly of no use.
            Fault::Rot if now.iter().any(|b| *b != 0) => {
                let mut bytes = now.clone();
                for _ in 0..1 + random.below(BITS_MAX) {
                    let bit = random.below(8 * SECTOR_BYTES as u64) as usize;
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
                disk.set_sector(path, here, &bytes);
                return vec![was(here, now)];
            }
            Fault::Stale if now != then => {
                disk.set_sector(path, here, &then);
                return vec![was(here, now)];
            }
            // What was meant for `here` went to `there`.
            Fault::Misdirected if now != then && here != there => {
                let Some(other) = disk.sector(path, there) else { continue };
                disk.set_sector(path, there, &now);
                disk.set_sector(path, here, &then);
                return vec![was(here, now), was(there, other)];
            }
            _ => {}
        }
    }
    Vec::new()
}
