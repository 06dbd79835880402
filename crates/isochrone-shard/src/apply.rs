//! Application: what a committed entry does, on every replica alike.
//!
//! Depends on the replicated state and the entry, on nothing else: not on who leads, the clock, or memory of evaluation.
//! What evaluation assumed is checked again (R2): term, record, floor, closed, bounds.
//!
//! Batches. Several entries may go into one batch. The replicated state in memory runs ahead of the engine (S2), so
//! records, floor and closed of earlier entries of the batch are seen; versions are looked up in the batch first
//! ([`mvcc::put_version`]). Only commands that scan the engine (split, clear) want everything before them written: they
//! answer [`ApplyResult::Cut`].
//!
//! Broken invariants (T1, T4, T5, T8) are an [`ApplyError`]: the shard stops. They cannot be caused by a client: what a
//! faulty coordinator asks for is refused in evaluation.

use std::sync::Arc;

use isochrone_base::ids::INIT_TERM;
use isochrone_base::{Bytes, KeyRange, LogIndex, Members, NodeId, ShardId, Term, Timestamp, bank};
use isochrone_storage::{Engine, WriteBatch, mvcc};

use crate::api::{Decision, PieceId, Record};
use crate::command::{Command, Entry, LoggedPiece, find_key};
use crate::outcome::{ApplyError, ApplyResult, Outcome};
use crate::record::{APPLIED, PreparedPiece, RecordKey, Replicated, SHARD, Tombstone};
use crate::shard::{Effect, Inner, Shard, Standing};

/// Keys one `clear` entry removes, about; the rest needs another entry. Few, because commits of every shard of the
/// node wait while it is applied: 10,000 keys held them up for 150 ms, these for a few.
pub const CLEAR_KEYS_MAX: usize = 512;

/// Versions that an entry writes.
enum Versions {
    No,
    Of(LoggedPiece, Timestamp),
    OfPrepared(Arc<PreparedPiece>, Timestamp),
}

impl Replicated {
    pub(crate) fn put_shard(&self, batch: &mut WriteBatch) {
        batch.put(mvcc::state_key(self.shard, SHARD), self.encode_shard());
    }

    pub(crate) fn put_applied(&self, batch: &mut WriteBatch) {
        batch.put(mvcc::state_key(self.shard, APPLIED), self.encode_applied());
    }

    fn bury(&mut self, batch: &mut WriteBatch, key: RecordKey, tombstone: Tombstone) {
        // T10: a decided record is never prepared or decided again.
        debug_assert!(!self.tombstones.contains_key(&key), "T10: {key:?} is decided already");
        self.prepared.remove(&key);
        let forgets = bank::has("tombstone-not-kept") && tombstone.keep.is_none();
        if forgets || (tombstone.keep.is_none() && key.deadline <= self.floor) {
            // Resolved after the floor passed: from here on the floor keeps it from being prepared (T10).
            batch.delete(key.physical(self.shard));
            return;
        }
        batch.put(key.physical(self.shard), tombstone.encode());
        self.tombstones.insert(key, tombstone);
    }

    fn forget(&mut self, batch: &mut WriteBatch, key: RecordKey) {
        batch.delete(key.physical(self.shard));
        self.tombstones.remove(&key);
    }

    /// R2: is what the evaluation of a piece assumed still so?
    fn recheck(&self, piece: &LoggedPiece, key: RecordKey, p: Timestamp) -> Option<Outcome> {
        if bank::has("record-not-checked-again") {
            return None;
        }
        match self.record(key) {
            Record::None => {}
            record => return Some(Outcome::Record(record)),
        }
        if piece.deadline <= self.floor && !bank::has("deadline-not-checked") {
            return Some(Outcome::PastDeadline);
        }
        let has_validated = piece.validated.as_ref().is_none_or(|v| self.range.contains_range(v));
        if !self.range.contains(piece.find_key())
            || !piece.writes.iter().all(|w| self.range.contains(&w.key))
            || !has_validated
        {
            return Some(Outcome::Rejected("the piece is not wholly in the shard"));
        }
        if p <= self.closed && !bank::has("closed-ignored") {
            return Some(Outcome::Rejected("its timestamp is closed"));
        }
        None
    }

    /// Blocks a piece that is not there (R12, R16, R17, R18.2).
    fn block(&mut self, batch: &mut WriteBatch, id: &PieceId) -> Outcome {
        let key = RecordKey::of(id);
        match self.record(key) {
            Record::None if id.deadline <= self.floor => Outcome::PastDeadline,
            Record::None => {
                self.bury(batch, key, Tombstone { committed: None, keep: None });
                Outcome::Record(Record::Aborted)
            }
            record => Outcome::Record(record),
        }
    }
}

impl Inner {
    /// T8: nobody else has an unresolved prepare on a key of this piece.
    fn assert_free(&self, piece: &LoggedPiece) -> Result<(), String> {
        for w in &piece.writes {
            let unresolved = |s: &Standing| match s {
                Standing::Prepared(p) => self.repl.prepared.contains_key(&p.key()),
                Standing::InFlight(_) => false,
            };
            if let Some(other) = self.standing_on(&w.key, piece.txn, unresolved) {
                return Err(format!(
                    "T8: {} and {} are both prepared on {:02x?}",
                    piece.txn,
                    other.txn(),
                    w.key
                ));
            }
        }
        Ok(())
    }
}

impl Shard {
    /// Applies a change of the group's members. Nobody waits for it.
    pub(crate) fn apply_members(
        &self,
        index: LogIndex,
        term: Term,
        members: &Members,
        batch: &mut WriteBatch,
    ) -> Result<(), ApplyError> {
        let mut g = self.lock();
        let refused = match g.retired {
            true => Some("a snapshot is taking its place".to_string()),
            false => g.stopped.clone(),
        };
        if let Some(reason) = refused {
            return Err(ApplyError { shard: self.id, index, term, reason });
        }
        if index <= g.repl.applied {
            return Ok(());
        }
        (g.repl.applied, g.repl.applied_term) = (index, term);
        g.repl.members.clone_from(members);
        // What others know of the shard is out of date.
        g.repl.epoch += 1;
        g.repl.put_shard(batch);
        g.repl.put_applied(batch);
        let effect = Effect {
            index,
            term,
            proposal: None,
            outcome: Outcome::Done,
            closed: g.repl.closed,
            resolved: None,
            created: None,
            shrunk: false,
        };
        g.pending.push_back(effect);
        Ok(())
    }

    /// Applies one entry: memory at once, the engine through `batch`; see [`crate::Shards::apply`].
    pub(crate) fn apply(
        &self,
        index: LogIndex,
        term: Term,
        payload: &Bytes,
        batch: &mut WriteBatch,
        here: &dyn Fn(ShardId) -> Option<KeyRange>,
    ) -> Result<ApplyResult, ApplyError> {
        let fail = |reason: String| {
            self.stop(&reason);
            ApplyError { shard: self.id, index, term, reason }
        };
        let entry = Entry::decode(payload).map_err(|e| fail(format!("unreadable entry: {e}")))?;

        let right_here = match &entry {
            Some(Entry { command: Command::Split { right, .. }, .. }) => here(*right),
            _ => None,
        };
        let mut guard = self.lock();
        let g = &mut *guard;
        if let Some(why) = g.stopped.clone() {
            return Err(ApplyError { shard: self.id, index, term, reason: why });
        }
        if g.retired {
            let reason = "a snapshot is taking its place".into();
            return Err(ApplyError { shard: self.id, index, term, reason });
        }
        if index <= g.repl.applied {
            return Ok(ApplyResult::Applied { created: None, led_here: false });
        }
        let scans = |e: &Entry| matches!(e.command, Command::Split { .. } | Command::ClearRange { .. });
        if entry.as_ref().is_some_and(scans) && !g.pending.is_empty() {
            return Ok(ApplyResult::Cut);
        }
        let mut effect = Effect {
            index,
            term,
            proposal: entry.as_ref().map(|e| (e.term, e.seq)),
            outcome: Outcome::Done,
            closed: Timestamp::MIN,
            resolved: None,
            created: None,
            shrunk: false,
        };
        let mut versions = Versions::No;
        let mut clear = None;
        g.repl.applied = index;
        g.repl.applied_term = term;
        if let Some(entry) = entry {
            if entry.term == term {
                g.repl.read_limit = match entry.command {
                    // R1: exactly what was read; what it promised beyond was not used and never will be.
                    Command::Release => entry.read_limit,
                    _ => g.repl.read_limit.max(entry.read_limit),
                };
                let done =
                    self.command(g, entry.command, batch, &mut effect, &mut versions, &mut clear, right_here);
                effect.outcome = match done {
                    Ok(outcome) => outcome,
                    Err(reason) => {
                        drop(guard);
                        return Err(fail(reason));
                    }
                };
                // Behind the command: its p was chosen above it, and p is never at or below closed.
                g.repl.closed = g.repl.closed.max(entry.closed);
            } else {
                effect.outcome = Outcome::StaleTerm;
            }
        }
        effect.closed = g.repl.closed;
        if !bank::has("applied-index-apart") || index.is_multiple_of(8) {
            g.repl.put_applied(batch);
        }
        let led_here = g.term == term && g.handing_over.is_none();
        drop(guard);

        // The engine is read outside the mutex (S1); only this thread applies.
        let engine = &*self.engine;
        match &versions {
            Versions::No => Ok(()),
            Versions::Of(piece, c) => write_versions(engine, batch, piece, *c),
            Versions::OfPrepared(p, c) => write_versions(engine, batch, &p.piece, *c),
        }
        .map_err(fail)?;
        if let Some(range) = clear {
            let rest =
                mvcc::clear_range(batch, engine, &range, CLEAR_KEYS_MAX).map_err(|e| fail(e.to_string()))?;
            effect.outcome = Outcome::Cleared { rest };
        }
        let created = effect.created.as_ref().map(|s| s.id);
        self.lock().pending.push_back(effect);
        Ok(ApplyResult::Applied { created, led_here })
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one application, borrowed apart")]
    fn command(
        &self,
        g: &mut Inner,
        command: Command,
        batch: &mut WriteBatch,
        effect: &mut Effect,
        versions: &mut Versions,
        clear: &mut Option<KeyRange>,
        right_here: Option<KeyRange>,
    ) -> Result<Outcome, String> {
        Ok(match command {
            // R13.
            Command::Commit1 { piece, p } => {
                let key = RecordKey { deadline: piece.deadline, txn: piece.txn, piece: piece.piece };
                if let Some(found) = g.repl.recheck(&piece, key, p) {
                    return Ok(found);
                }
                g.assert_free(&piece)?;
                g.repl.newest = g.repl.newest.max(p);
                if !bank::has("one-step-commit-leaves-no-record") {
                    g.repl.bury(batch, key, Tombstone { committed: Some(p), keep: None });
                }
                *versions = Versions::Of(piece, p);
                Outcome::Record(Record::Committed(p))
            }
            // R11.8.
            Command::Prepare { piece, p } => {
                let key = RecordKey { deadline: piece.deadline, txn: piece.txn, piece: piece.piece };
                if bank::has("prepare-evaluated-again")
                    && let Some(old) = g.repl.prepared.remove(&key)
                {
                    g.unprepare(&old);
                }
                if let Some(found) = g.repl.recheck(&piece, key, p) {
                    return Ok(found);
                }
                g.assert_free(&piece)?;
                g.repl.newest = g.repl.newest.max(p);
                let prepared = Arc::new(PreparedPiece { p, piece });
                batch.put(key.physical(g.repl.shard), prepared.encode());
                g.index_prepared(&prepared);
                g.repl.prepared.insert(key, prepared);
                Outcome::Record(Record::Prepared(p))
            }
            // R12: a marker never touches a prepare.
            Command::Refuse { id } | Command::Probe { id } => {
                if !g.repl.range.contains(&id.key) {
                    return Ok(Outcome::Rejected("the piece is not in the shard"));
                }
                if bank::has("probe-removes-a-prepare")
                    && let Some(prepared) = g.repl.prepared.get(&RecordKey::of(&id)).cloned()
                {
                    return g.resolve(batch, &prepared, Decision::Abort, effect, versions);
                }
                g.repl.block(batch, &id)
            }
            // R16.
            Command::Decide { id, decision } => {
                if !g.repl.range.contains(&id.key) {
                    return Ok(Outcome::Rejected("the piece is not in the shard"));
                }
                if bank::has("later-decision-wins") && g.repl.tombstones.contains_key(&RecordKey::of(&id)) {
                    g.repl.forget(batch, RecordKey::of(&id));
                    let committed = match decision {
                        Decision::Commit(c) => Some(c),
                        Decision::Abort => None,
                    };
                    g.repl.bury(batch, RecordKey::of(&id), Tombstone { committed, keep: None });
                }
                match (g.repl.prepared.get(&RecordKey::of(&id)).cloned(), decision) {
                    (Some(prepared), _) => g.resolve(batch, &prepared, decision, effect, versions)?,
                    (None, Decision::Abort) => g.repl.block(batch, &id),
                    (None, Decision::Commit(_)) => match g.repl.record(RecordKey::of(&id)) {
                        Record::None if id.deadline <= g.repl.floor => Outcome::PastDeadline,
                        Record::None => {
                            Outcome::Illegal("R16: commit of a transaction of which nothing is prepared")
                        }
                        record => Outcome::Record(record),
                    },
                }
            }
            // R17.
            Command::Resolve { id, decision } => {
                if !g.repl.range.contains(&id.key) {
                    return Ok(Outcome::Rejected("the piece is not in the shard"));
                }
                let decision = match (decision, g.repl.prepared.get(&RecordKey::of(&id))) {
                    (Decision::Commit(_), Some(own)) if bank::has("commit-at-own-p") => {
                        Decision::Commit(own.p)
                    }
                    _ => decision,
                };
                match (g.repl.prepared.get(&RecordKey::of(&id)).cloned(), decision) {
                    (Some(prepared), _) => g.resolve(batch, &prepared, decision, effect, versions)?,
                    (None, Decision::Abort) => g.repl.block(batch, &id),
                    (None, Decision::Commit(d)) => match g.repl.record(RecordKey::of(&id)) {
                        Record::Committed(c) if c != d => {
                            return Err(format!("T1: {} is committed at {c} and at {d}", id.txn));
                        }
                        Record::Aborted => {
                            return Err(format!("R17: commit at {d} of {}, aborted here", id.txn));
                        }
                        Record::None if id.deadline > g.repl.floor => {
                            Outcome::Illegal("R17: commit of a piece that is not prepared")
                        }
                        Record::None => Outcome::PastDeadline,
                        record => Outcome::Record(record),
                    },
                }
            }
            // R21.
            Command::Acked { id } => {
                let key = RecordKey::of(&id);
                let floor = g.repl.floor;
                let shard = g.repl.shard;
                if let Some(t) = g.repl.tombstones.get_mut(&key)
                    && t.keep.take().is_some()
                {
                    if key.deadline <= floor || bank::has("anchor-forgets-on-acks") {
                        g.repl.forget(batch, key);
                    } else {
                        let bytes = t.encode();
                        batch.put(key.physical(shard), bytes);
                    }
                }
                Outcome::Done
            }
            // R20.
            Command::RaiseFloor { to } => {
                if to > g.repl.floor {
                    g.repl.floor = to;
                    if bank::has("floor-drops-prepares") {
                        let kept = g.repl.prepared.split_off(&RecordKey::upto(to));
                        for (key, prepared) in std::mem::replace(&mut g.repl.prepared, kept) {
                            g.unprepare(&prepared);
                            batch.delete(key.physical(g.repl.shard));
                        }
                    }
                    let doomed: Vec<RecordKey> = g
                        .repl
                        .tombstones
                        .range(..=RecordKey::upto(to))
                        .filter(|(_, t)| t.keep.is_none() || bank::has("anchor-forgets-at-deadline"))
                        .map(|(k, _)| *k)
                        .collect();
                    for key in doomed {
                        g.repl.forget(batch, key);
                    }
                    g.repl.put_shard(batch);
                }
                Outcome::Done
            }
            Command::Lease { holder } => {
                if g.repl.holder != holder {
                    g.repl.holder = holder;
                    g.repl.put_shard(batch);
                }
                Outcome::Done
            }
            Command::Release => {
                g.repl.holder = NodeId(0);
                g.repl.put_shard(batch);
                Outcome::Done
            }
            Command::Truncate { upto } => {
                // Never past what is applied everywhere when this entry is.
                let to = upto.min(effect.index - 1);
                if to > g.repl.truncate_to {
                    g.repl.truncate_to = to;
                    g.repl.put_shard(batch);
                }
                Outcome::Done
            }
            Command::Close => Outcome::Done,
            Command::Split { at, right, born_at } => {
                if !g.repl.range.contains(&at) || at == g.repl.range.start {
                    return Ok(Outcome::Rejected("the split point is not inside the shard"));
                }
                if right == self.id {
                    return Ok(Outcome::Rejected("a shard cannot be split from itself"));
                }
                let straddles = |p: &Arc<PreparedPiece>| {
                    let side = |k: &[u8]| k < at.as_slice();
                    p.piece.writes.iter().any(|w| side(&w.key) != side(p.piece.find_key()))
                };
                if g.repl.prepared.values().any(straddles) {
                    return Ok(Outcome::Rejected("an unresolved prepare lies across the split point"));
                }
                let outside = |r: &&KeyRange| r.start < at || !g.repl.range.contains_range(r);
                if let Some(range) = right_here.as_ref().filter(outside) {
                    // Ids are never used again: this is another shard's.
                    return Err(format!("split: shard {right} is here already, with keys {range:02x?}"));
                }
                effect.created = self.split(g, batch, at, right, born_at, right_here.is_some());
                effect.shrunk = true;
                Outcome::Done
            }
            Command::ClearRange { range } => {
                *clear = Some(g.repl.range.intersect(&range));
                Outcome::Cleared { rest: None }
            }
            Command::RaiseGcThreshold { to } => {
                // Never past an unresolved prepare.
                let to = g.repl.lowest_prepared().map_or(to, |p| to.min(p.prev()));
                if to > g.repl.gc_threshold {
                    g.repl.gc_threshold = to;
                    g.repl.put_shard(batch);
                }
                Outcome::Done
            }
        })
    }

    /// Records, prepares, floor, closed and read limit go with their keys (section 11, "Splits"). A tombstone that names no key
    /// goes to both halves: where nobody asks for it, it is harmless, and goes with the floor.
    ///
    /// `is_here`: the right half came by snapshot, and is ahead of what this entry would make of it. Then the left half
    /// loses exactly what it loses on every other replica, and that is all.
    fn split(
        &self,
        g: &mut Inner,
        batch: &mut WriteBatch,
        at: Vec<u8>,
        right: ShardId,
        born_at: LogIndex,
        is_here: bool,
    ) -> Option<Arc<Shard>> {
        let left = &mut g.repl;
        let mut new = Replicated::new(right, KeyRange { start: at.clone(), end: left.range.end.clone() });
        new.members = left.members.clone();
        (new.applied, new.truncate_to) = (born_at, born_at);
        new.applied_term = if born_at == 0 { 0 } else { INIT_TERM };
        new.epoch = left.epoch + 1;
        new.floor = left.floor;
        new.gc_threshold = left.gc_threshold;
        new.closed = left.closed;
        new.read_limit = left.read_limit;
        new.newest = left.newest;
        let moved: Vec<RecordKey> = left
            .prepared
            .iter()
            .filter(|(_, p)| p.piece.find_key() >= at.as_slice())
            .map(|(k, _)| *k)
            .collect();
        for key in moved {
            let p = left.prepared.remove(&key).expect("found just now");
            batch.delete(key.physical(left.shard));
            if bank::has("split-loses-records") {
                continue;
            }
            if !is_here {
                batch.put(key.physical(right), p.encode());
            }
            new.prepared.insert(key, p);
        }
        let mut gone = Vec::new();
        for (key, t) in &left.tombstones {
            let goes_right = t.keep.as_ref().map(|s| find_key(key.piece, &s.pieces, None) >= at.as_slice());
            if goes_right != Some(false) && !is_here {
                batch.put(key.physical(right), t.encode());
                new.tombstones.insert(*key, t.clone());
            }
            if goes_right == Some(true) {
                gone.push(*key);
            }
        }
        for key in gone {
            left.forget(batch, key);
        }
        left.range.end = at.clone();
        left.epoch += 1;
        left.put_shard(batch);
        drop(g.standing.split_off(&at));
        if is_here {
            return None;
        }
        new.put_shard(batch);
        new.put_applied(batch);
        let (engine, clock, config) = (self.engine.clone(), self.clock.clone(), self.config.clone());
        Some(Arc::new(Shard::new(new, engine, clock, self.node, config)))
    }
}

impl Inner {
    /// R16, R17: a prepared piece gets its outcome.
    fn resolve(
        &mut self,
        batch: &mut WriteBatch,
        prepared: &Arc<PreparedPiece>,
        decision: Decision,
        effect: &mut Effect,
        versions: &mut Versions,
    ) -> Result<Outcome, String> {
        let committed = match decision {
            Decision::Commit(c) if c < prepared.p => {
                return Err(format!(
                    "T4: {} is committed at {c}, prepared at {}",
                    prepared.piece.txn, prepared.p
                ));
            }
            Decision::Commit(c) => {
                self.repl.newest = self.repl.newest.max(c);
                *versions = Versions::OfPrepared(prepared.clone(), c);
                Some(c)
            }
            Decision::Abort => None,
        };
        self.repl.bury(batch, prepared.key(), Tombstone { committed, keep: prepared.keep() });
        effect.resolved = Some(prepared.clone());
        Ok(Outcome::Record(committed.map_or(Record::Aborted, Record::Committed)))
    }
}

fn write_versions(
    engine: &dyn Engine,
    batch: &mut WriteBatch,
    piece: &LoggedPiece,
    c: Timestamp,
) -> Result<(), String> {
    for w in &piece.writes {
        // T5, T8: the engine refuses a version at or below the newest one.
        mvcc::put_version(batch, engine, &w.key, c, w.value.as_deref())
            .map_err(|e| format!("T5, T8: commit of {} at {c}, key {:02x?}: {e}", piece.txn, w.key))?;
    }
    Ok(())
}
