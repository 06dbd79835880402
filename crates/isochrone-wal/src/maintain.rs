//! Freeing old segments.
//!
//! Segments go strictly from the oldest on (W7): a record that another one outdates never outlives it. So a
//! truncation mark or the removal of a shard need not be kept for the sake of what it hides. A file goes once a
//! durable batch says that it is not needed, so that a crash at any moment finds either the file or that batch.
//! A few live records that hold back an old segment are copied to the head.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::batch::{Kind, Record};
use crate::format::{self, SegmentHeader};
use crate::index::Slot;
use crate::metrics::add;
use crate::reader;
use crate::recover;
use crate::{Error, Log};
use isochrone_base::{LogIndex, ShardId};
use isochrone_env::OpenMode;

/// The oldest segment is emptied when at most one part in this many of it is live: freeing it costs that much writing.
const SPARSE_PART: u64 = 8;
/// It is emptied in any case when the sealed segments together are less than one part in this many live: the log
/// takes at most about four times the bytes that the shards keep.
const SPARSE_ALL_PART: u64 = 4;
/// The second rule needs at least so many sealed segments.
const SEALED_MIN: usize = 4;

/// A live record of the oldest segment.
enum Live {
    Entry(ShardId, LogIndex, Slot),
    Whole(Record),
}

impl Log {
    /// Frees segments that hold nothing live any more, and copies a bounded number of live records out of the oldest
    /// one if few are left in it. Called by [`Log::append`] when there is reason to; may be called when idle,
    /// followed by [`Log::sync`]. Does nothing while appends are unsynced.
    pub fn maintain(&mut self) -> Result<(), Error> {
        self.check()?;
        if self.has_unsynced() {
            return Ok(());
        }
        self.maintain_due = false;
        let r = self.free_dead();
        self.or_poison(r)?;
        self.advance_oldest();
        if self.shared.counters.snapshot().moving_blocked > 0 {
            return Ok(());
        }
        match self.plan_moves() {
            Ok(records) if records.is_empty() => Ok(()),
            Ok(records) => {
                add(&self.shared.counters.records_moved, records.len() as u64);
                self.maintain_due = true;
                let refs: Vec<&Record> = records.iter().collect();
                let r = self.write_batch(&refs);
                self.or_poison(r)
            }
            // The log goes on; reading the entry says what is wrong with it.
            Err(Error::Damaged { .. }) => {
                add(&self.shared.counters.moving_blocked, 1);
                Ok(())
            }
            Err(e) => self.or_poison(Err(e)),
        }
    }

    fn advance_oldest(&mut self) {
        let state = self.shared.read();
        let needed = state.usage.keys().next().copied().unwrap_or(u64::MAX);
        let oldest = needed.min(self.active_generation()).max(self.oldest);
        drop(state);
        self.oldest = oldest;
    }

    /// The records to move now: none, or live ones of the oldest segment, up to the configured bytes.
    fn plan_moves(&self) -> Result<Vec<Record>, Error> {
        let mut plan = Vec::new();
        let (path, file);
        {
            let state = self.shared.read();
            let (Some(segment), Some(usage)) =
                (state.segments.get(&self.oldest), state.usage.get(&self.oldest))
            else {
                return Ok(Vec::new());
            };
            let sealed = || state.segments.range(..self.active_generation());
            let sealed_bytes: u64 = sealed().map(|(_, s)| s.bytes).sum();
            let sealed_live: u64 =
                state.usage.range(..self.active_generation()).map(|(_, u)| u.live_bytes).sum();
            let sparse = usage.live_bytes * SPARSE_PART <= segment.bytes;
            let all_sparse = sealed().count() >= SEALED_MIN && sealed_live * SPARSE_ALL_PART <= sealed_bytes;
            if self.oldest >= self.active_generation() || !(sparse || all_sparse) {
                return Ok(Vec::new());
            }
            (path, file) = (segment.path.clone(), segment.file.clone());
            let mut shards: Vec<(ShardId, u32)> = usage.live.iter().map(|(s, n)| (*s, *n)).collect();
            shards.sort_unstable();
            let mut room = self.config.rewrite_bytes_max as u64;
            for (shard, mut left) in shards {
                let Some(s) = state.shards.get(&shard) else { continue };
                if room == 0 {
                    break;
                }
                if s.mark == Some(self.oldest) {
                    plan.push(Live::Whole(Record::mark(Kind::TruncatePrefix, shard, s.first(), s.prev_term)));
                    left -= 1;
                }
                if let Some((hs, generation)) = s.hard
                    && generation == self.oldest
                {
                    plan.push(Live::Whole(Record::hard_state(shard, hs)));
                    left -= 1;
                }
                room = room.saturating_sub(2 * format::RECORD_HEADER_BYTES as u64);
                for (&index, slot) in &s.entries {
                    if left == 0 || room == 0 {
                        break;
                    }
                    if slot.generation == self.oldest {
                        plan.push(Live::Entry(shard, index, *slot));
                        room = room.saturating_sub(slot.record_bytes());
                        left -= 1;
                    }
                }
            }
        }
        plan.into_iter()
            .map(|live| match live {
                Live::Whole(record) => Ok(record),
                Live::Entry(shard, index, slot) => {
                    let mut record = reader::read_record(&*file, &path, &slot, shard, index)?;
                    record.kind = Kind::MovedEntry;
                    Ok(record)
                }
            })
            .collect()
    }

    /// Puts aside or deletes the files below what a durable batch says is needed.
    fn free_dead(&mut self) -> Result<(), Error> {
        let mut dead = Vec::new();
        {
            let mut state = self.shared.write();
            while let Some(entry) = state.segments.first_entry() {
                if *entry.key() >= self.oldest_durable {
                    break;
                }
                dead.push(entry.remove_entry());
            }
            self.metrics.segments.set(state.segments.len() as f64);
        }
        if dead.is_empty() {
            return Ok(());
        }
        add(&self.shared.counters.segments_freed, dead.len() as u64);
        for (generation, segment) in dead {
            // Nobody can get hold of the file any more; who has it still reads from it.
            let unread = Arc::strong_count(&segment.file) == 1;
            self.put_aside(generation, segment.path, unread && segment.bytes == self.config.segment_bytes)?;
        }
        self.disk.sync_dir(&self.config.dir).map_err(|e| Error::io("sync", &self.config.dir, e))
    }

    /// The file becomes a spare if it can be used again, and is deleted if not.
    fn put_aside(&mut self, generation: u64, path: PathBuf, usable: bool) -> Result<(), Error> {
        if !usable || self.spares.len() >= self.config.segments_spare_max {
            return self.disk.remove(&path).map_err(|e| Error::io("remove", &path, e));
        }
        let spare = self.config.dir.join(format::spare_name(generation));
        self.disk.rename(&path, &spare).map_err(|e| Error::io("rename", &path, e))?;
        self.spares.push(spare);
        Ok(())
    }

    /// Sorts out the files that are not part of the log. After a crash one file may have two names, so a name goes
    /// whenever its file's header says that another name is the right one.
    pub(crate) fn clean_up(
        &mut self,
        dead: Vec<(u64, PathBuf)>,
        spares: BTreeMap<u64, PathBuf>,
        new: Option<PathBuf>,
    ) -> Result<(), Error> {
        let mut spare_generations = Vec::new();
        for path in spares.into_values().chain(new) {
            let keep = self.spare_header(&path)?.filter(|h| {
                h.bytes == self.config.segment_bytes
                    && self.spares.len() < self.config.segments_spare_max
                    && !self.shared.read().segments.contains_key(&h.generation)
                    && !spare_generations.contains(&h.generation)
                    && path.file_name().is_some_and(|n| n != format::NEW_NAME)
            });
            match keep {
                Some(h) => {
                    spare_generations.push(h.generation);
                    self.spares.push(path);
                }
                None => self.disk.remove(&path).map_err(|e| Error::io("remove", &path, e))?,
            }
        }
        for (generation, path) in dead {
            let usable = self
                .spare_header(&path)?
                .is_some_and(|h| h.bytes == self.config.segment_bytes && h.generation == generation);
            self.put_aside(generation, path, usable && !spare_generations.contains(&generation))?;
        }
        self.disk.sync_dir(&self.config.dir).map_err(|e| Error::io("sync", &self.config.dir, e))
    }

    fn spare_header(&self, path: &std::path::Path) -> Result<Option<SegmentHeader>, Error> {
        let file = self.disk.open(path, OpenMode::Read).map_err(|e| Error::io("open", path, e))?;
        let len = file.len().map_err(|e| Error::io("measure", path, e))?;
        Ok(recover::read_header(&*file, path)?.ok().filter(|h| h.bytes == len))
    }
}
