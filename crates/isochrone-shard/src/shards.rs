//! The shards of a node: opening, routing by key, application.
//!
//! How the consensus layer drives it, for entries of one shard in log order, from one thread per shard:
//! [`Shards::apply_entries`] does everything. Who wants batches over several shards calls [`Shards::apply`] for each entry
//! (on [`ApplyResult::Cut`]: writes the batch, calls [`Shards::after_write`], applies the entry again), writes the batch
//! to the engine, then calls [`Shards::after_write`] for each shard in it; in that time it holds off
//! [`Shards::collect_garbage`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, RwLock};

use isochrone_base::ids::{INIT_INDEX, INIT_TERM};
use isochrone_base::{
    Bytes, Key, KeyRange, LogIndex, Members, NodeId, PieceNo, ShardId, Term, Timestamp, TxnId, keyspace,
};
use isochrone_clock::Hlc;
use isochrone_storage::mvcc::{self, Space};
use isochrone_storage::{Engine, WriteBatch};

use crate::api::{Mode, PieceRef, Record};
use crate::config::Config;
use crate::outcome::{ApplyError, ApplyResult, OpenError};
use crate::record::{APPLIED, INSTALLING, REMOVED, Replicated, SHARD};
use crate::shard::{Shard, ShardState};
use crate::snapshot::decode_mark;

/// [`Shards::apply_entries`] writes a batch when it holds this much.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// What the log layer needs to know of a shard that was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardMeta {
    /// Its id.
    pub shard: ShardId,
    /// Its keys.
    pub range: KeyRange,
    /// Counts the changes of its range and of its members.
    pub epoch: u64,
    /// Last applied index that the engine holds.
    pub applied: LogIndex,
    /// Term of that entry.
    pub applied_term: Term,
    /// The members of its group.
    pub members: Members,
    /// No replica needs its log up to here; each truncates as far as its own flushes allow.
    pub truncate_to: LogIndex,
    /// A split has just made it, and its left half is led here: no other node is nearer to leading it.
    pub campaign: bool,
}

/// A shard of a new cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewShard {
    /// Its id.
    pub shard: ShardId,
    /// Its keys.
    pub range: KeyRange,
    /// The voters of its group, itself among them.
    pub voters: Vec<NodeId>,
    /// Its log begins at the next index.
    pub applied: LogIndex,
}

/// What inspection shows of one record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordInfo {
    /// The shard it lies in.
    pub shard: ShardId,
    /// The transaction attempt.
    pub txn: TxnId,
    /// The piece.
    pub piece: PieceNo,
    /// Its state.
    pub record: Record,
    /// Its deadline.
    pub deadline: Timestamp,
    /// Candidate timestamp, where it is still known.
    pub candidate: Option<Timestamp>,
    /// Mode, where it is still known.
    pub mode: Option<Mode>,
    /// All pieces, where they are still known.
    pub pieces: Vec<PieceRef>,
    /// The anchor, where it is still known.
    pub anchor: Option<PieceNo>,
    /// Keys it writes, while it is prepared.
    pub keys: usize,
}

#[derive(Default)]
pub(crate) struct Map {
    pub(crate) by_id: BTreeMap<ShardId, Arc<Shard>>,
    /// By first key; with the first key behind.
    by_start: BTreeMap<Key, (Arc<Shard>, Key)>,
    /// Snapshots and removals under way, and those that a crash or damage interrupted: the keys whose versions nobody can trust.
    pub(crate) installing: BTreeMap<ShardId, Vec<KeyRange>>,
    /// Shards that had a replica here, which left its group.
    pub(crate) removed: BTreeSet<ShardId>,
}

impl Map {
    pub(crate) fn insert(&mut self, shard: Arc<Shard>) {
        let range = shard.range();
        self.by_id.insert(shard.id(), shard.clone());
        self.by_start.insert(range.start, (shard, range.end));
    }

    pub(crate) fn remove(&mut self, shard: ShardId) {
        self.by_id.remove(&shard);
        self.by_start.retain(|_, (s, _)| s.id() != shard);
    }

    fn at(&self, key: &[u8]) -> Option<(&Key, &(Arc<Shard>, Key))> {
        self.by_start
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()
            .filter(|(_, (_, end))| end.is_empty() || key < end.as_slice())
    }
}

impl Shard {
    pub(crate) fn meta(&self) -> ShardMeta {
        let g = self.lock();
        ShardMeta {
            shard: self.id,
            range: g.repl.range.clone(),
            epoch: g.repl.epoch,
            applied: g.written,
            applied_term: g.repl.applied_term,
            members: self.members(&g),
            truncate_to: g.repl.truncate_to,
            campaign: false,
        }
    }
}

/// Takes in all records of a shard.
pub(crate) fn load_records(engine: &dyn Engine, repl: &mut Replicated) -> Result<(), OpenError> {
    let prefix = mvcc::record_prefix(repl.shard);
    for row in engine.scan(&KeyRange::prefix(&prefix), false) {
        let (key, value) = row?;
        // Records are kept: a copy, so that no block of the engine's cache is held.
        let value = Bytes::copy_from_slice(&value);
        repl.load_record(key.slice(prefix.len()..), value)
            .map_err(|e| OpenError::Damaged(repl.shard, e.to_string()))?;
    }
    Ok(())
}

/// See the module.
pub struct Shards {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) node: NodeId,
    pub(crate) clock: Arc<Hlc>,
    pub(crate) config: Arc<Config>,
    map: RwLock<Map>,
    /// Held while a snapshot is installed: one at a time.
    pub(crate) installs: Mutex<()>,
}

impl Shards {
    /// The shards of a new cluster: system and catalog in the first, user tables in the second (design D17), all with
    /// the same voters.
    pub fn initial(voters: &[NodeId]) -> Vec<NewShard> {
        let user = keyspace::first_user_key();
        let ranges = [KeyRange::new(Key::new(), user.clone()), KeyRange::new(user, Key::new())];
        let shard = |(id, range)| NewShard {
            shard: ShardId(id),
            range,
            voters: voters.to_vec(),
            applied: INIT_INDEX,
        };
        (1..).zip(ranges).map(shard).collect()
    }

    /// Writes the first descriptors into an empty engine.
    ///
    /// # Errors
    /// `NotEmpty` if there are shards already.
    pub fn bootstrap(engine: &dyn Engine, initial: &[NewShard]) -> Result<(), OpenError> {
        if engine.scan(&Space::State.all(), false).next().transpose()?.is_some() {
            return Err(OpenError::NotEmpty);
        }
        let mut batch = WriteBatch::new();
        for new in initial {
            let mut repl = Replicated::new(new.shard, new.range.clone());
            repl.members = new.voters.clone().into();
            (repl.applied, repl.truncate_to) = (new.applied, new.applied);
            repl.applied_term = if new.applied == 0 { 0 } else { INIT_TERM };
            repl.put_shard(&mut batch);
            repl.put_applied(&mut batch);
        }
        engine.write(batch)?;
        Ok(())
    }

    /// Opens every shard that the engine holds. The clock is moved above every timestamp found.
    ///
    /// # Errors
    /// `Storage` if the engine fails, `Damaged` if what it holds cannot be read.
    pub fn open(
        engine: Arc<dyn Engine>,
        node: NodeId,
        clock: Arc<Hlc>,
        config: Config,
    ) -> Result<Arc<Shards>, OpenError> {
        let config = Arc::new(config);
        let mut map = Map::default();
        let mut found: BTreeMap<ShardId, (Option<Bytes>, Option<Bytes>)> = BTreeMap::new();
        for row in engine.scan(&Space::State.all(), false) {
            let (key, value) = row?;
            let Some((id, name)) = key.get(1..).and_then(|k| k.split_first_chunk::<8>()) else { continue };
            let entry = found.entry(ShardId(u64::from_be_bytes(*id))).or_default();
            match name {
                n if n == SHARD => entry.0 = Some(value),
                n if n == APPLIED => entry.1 = Some(value),
                n if n == REMOVED => drop(map.removed.insert(ShardId(u64::from_be_bytes(*id)))),
                n if n == INSTALLING => {
                    let id = ShardId(u64::from_be_bytes(*id));
                    let ranges = decode_mark(value).map_err(|e| OpenError::Damaged(id, e.to_string()))?;
                    map.installing.insert(id, ranges);
                }
                _ => {}
            }
        }
        for (id, (descriptor, applied)) in found {
            // Other layers may keep state of shards that have no replica here.
            let Some(descriptor) = descriptor else { continue };
            let damaged = |e: isochrone_base::codec::DecodeError| OpenError::Damaged(id, e.to_string());
            let applied =
                applied.ok_or_else(|| OpenError::Damaged(id, "its applied index is missing".into()))?;
            let mut repl = Replicated::decode(id, descriptor, applied).map_err(damaged)?;
            load_records(&*engine, &mut repl)?;
            // Read limits only here: later they would drive the clock, and with it every commit, ahead of time.
            clock.update(repl.newest.max(repl.read_limit).max(repl.closed));
            map.insert(Arc::new(Shard::new(repl, engine.clone(), clock.clone(), node, config.clone())));
        }
        let map = RwLock::new(map);
        Ok(Arc::new(Shards { engine, node, clock, config, map, installs: Mutex::new(()) }))
    }

    pub(crate) fn read_map(&self) -> std::sync::RwLockReadGuard<'_, Map> {
        self.map.read().expect("nothing panics while the shard map is held")
    }

    pub(crate) fn write_map(&self) -> std::sync::RwLockWriteGuard<'_, Map> {
        self.map.write().expect("nothing panics while the shard map is held")
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// All shards, by id. The applied indexes are in the engine when this returns: who truncates logs takes them first and
    /// `Engine::written_seq` afterwards, and has a pair that holds.
    pub fn list(&self) -> Vec<ShardMeta> {
        self.all().iter().map(|s| s.meta()).collect()
    }

    /// The shards that this node leads, by id, with the terms. They may not serve yet.
    pub fn leading(&self) -> Vec<(ShardId, Term)> {
        self.all().iter().map(|s| (s.id, s.lock().term)).filter(|(_, term)| *term != 0).collect()
    }

    /// All shards, by id.
    pub(crate) fn all(&self) -> Vec<Arc<Shard>> {
        self.read_map().by_id.values().cloned().collect()
    }

    /// One shard.
    pub fn get(&self, id: ShardId) -> Option<Arc<Shard>> {
        self.read_map().by_id.get(&id).cloned()
    }

    /// The shard that a key lives on, if it has a replica here.
    pub fn of_key(&self, key: &[u8]) -> Option<Arc<Shard>> {
        self.read_map().at(key).map(|(_, (shard, _))| shard.clone())
    }

    /// The shard that the upper end of a range lives on.
    pub(crate) fn of_end(&self, range: &KeyRange) -> Option<Arc<Shard>> {
        let map = self.read_map();
        let upper =
            if range.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(range.end.as_slice()) };
        map.by_start
            .range::<[u8], _>((Bound::Unbounded, upper))
            .next_back()
            .filter(|(_, (_, end))| end.is_empty() || (!range.end.is_empty() && range.end <= *end))
            .map(|(_, (shard, _))| shard.clone())
    }

    /// The parts of a range by shard, in key order.
    pub(crate) fn cut(&self, range: &KeyRange) -> Vec<KeyRange> {
        self.ranges(range).into_iter().map(|r| r.intersect(range)).filter(|r| !r.is_empty()).collect()
    }

    /// The ranges of the shards that overlap a range, in key order.
    pub fn ranges(&self, range: &KeyRange) -> Vec<KeyRange> {
        let map = self.read_map();
        let first = map.at(&range.start).map_or_else(|| range.start.clone(), |(start, _)| start.clone());
        map.by_start
            .range(first..)
            .map(|(start, (_, end))| KeyRange { start: start.clone(), end: end.clone() })
            .take_while(|r| range.end.is_empty() || r.start < range.end || r.start == range.start)
            .collect()
    }

    /// This node leads the shard in this term. Call it before any entry of that term is applied. The shard serves once
    /// such an entry was applied (R1).
    pub fn lead(&self, shard: ShardId, term: Term) {
        if let Some(s) = self.get(shard) {
            s.lead(term);
        }
    }

    /// D9: this node, which leads the shard in this term, may serve reads while the monotonic clock is below
    /// `until_ns`; `u64::MAX`: as long as it leads (it is the only voter). The last call counts, also when it is lower.
    pub fn lease(&self, shard: ShardId, term: Term, until_ns: u64) {
        if let Some(s) = self.get(shard) {
            s.lease(term, until_ns);
        }
    }

    /// This node does not lead the shard (any more); `leader` does, as far as is known.
    pub fn follow(&self, shard: ShardId, leader: Option<NodeId>) {
        if let Some(s) = self.get(shard) {
            s.follow(leader);
        }
    }

    /// The node's log or storage has failed: every shard answers `Stopped` from now on.
    pub fn stop(&self, reason: &str) {
        for s in self.all() {
            s.stop(reason);
        }
    }

    /// Applies a committed entry: the replicated state in memory at once, the engine through `batch`, which also gets
    /// the applied index. Nothing of it is visible to readers until the batch is written and
    /// [`Shards::after_write`] called. Entries at or below the applied index are passed over. An empty payload is the
    /// first entry of a leader's term.
    ///
    /// # Errors
    /// The shard cannot go on (damage, a broken invariant): stop the node.
    pub fn apply(
        &self,
        shard: ShardId,
        index: LogIndex,
        term: Term,
        payload: &Bytes,
        batch: &mut WriteBatch,
    ) -> Result<ApplyResult, ApplyError> {
        let s = self.get(shard).ok_or_else(|| ApplyError {
            shard,
            index,
            term,
            reason: "no such shard on this node".into(),
        })?;
        s.apply(index, term, payload, batch, &|id| self.get(id).map(|s| s.range()))
    }

    /// The batch that holds the entries of this shard up to `index` is visible in the engine.
    pub fn after_write(&self, shard: ShardId, index: LogIndex) {
        let Some(s) = self.get(shard) else { return };
        let (created, shrunk) = s.after_write(index);
        if !shrunk {
            return;
        }
        let mut map = self.write_map();
        for new in created {
            map.insert(new);
        }
        map.insert(s);
    }

    /// Applies an entry that changes the members of a shard's group, and makes it visible.
    ///
    /// # Errors
    /// As [`Shards::apply_entries`].
    pub fn apply_members(
        &self,
        shard: ShardId,
        index: LogIndex,
        term: Term,
        members: &Members,
    ) -> Result<(), ApplyError> {
        let fail = |reason: String| ApplyError { shard, index, term, reason };
        let s = self.get(shard).ok_or_else(|| fail("no such shard on this node".into()))?;
        let _applying = s.applying.lock().expect("nothing panics while entries are applied");
        let mut batch = WriteBatch::new();
        s.apply_members(index, term, members, &mut batch)?;
        if batch.is_empty() {
            return Ok(());
        }
        self.engine.write(batch).map_err(|e| {
            s.stop(&e.to_string());
            fail(e.to_string())
        })?;
        self.after_write(shard, index);
        Ok(())
    }

    /// Applies entries of one shard in order, in as few batches as can be, and makes them visible. Returns the shards
    /// they created.
    ///
    /// # Errors
    /// As [`Shards::apply`]; also when the engine refuses a batch.
    pub fn apply_entries(
        &self,
        shard: ShardId,
        entries: &[(LogIndex, Term, Bytes)],
    ) -> Result<Vec<ShardMeta>, ApplyError> {
        let Some(s) = self.get(shard) else {
            let (index, term) = entries.first().map_or((0, 0), |e| (e.0, e.1));
            return Err(ApplyError { shard, index, term, reason: "no such shard on this node".into() });
        };
        let _applying = s.applying.lock().expect("nothing panics while entries are applied");
        let mut batch = WriteBatch::new();
        let mut created = Vec::new();
        let mut done = 0;
        let flush = |batch: &mut WriteBatch, index: LogIndex, term: Term| {
            if batch.is_empty() {
                return Ok(());
            }
            self.engine.write(std::mem::take(batch)).map_err(|e| {
                s.stop(&e.to_string());
                ApplyError { shard, index, term, reason: e.to_string() }
            })?;
            self.after_write(shard, index);
            Ok(())
        };
        for (index, term, payload) in entries {
            loop {
                match self.apply(shard, *index, *term, payload, &mut batch)? {
                    ApplyResult::Applied { created: new, led_here } => {
                        created.extend(new.map(|shard| (shard, led_here)));
                        break;
                    }
                    ApplyResult::Cut => flush(&mut batch, done, *term)?,
                }
            }
            done = *index;
            if batch.bytes() >= BATCH_BYTES_MAX {
                flush(&mut batch, done, *term)?;
            }
        }
        if let Some((index, term, _)) = entries.last() {
            flush(&mut batch, *index, *term)?;
        }
        let meta = |(id, campaign)| Some(ShardMeta { campaign, ..self.get(id)?.meta() });
        Ok(created.into_iter().filter_map(meta).collect())
    }

    /// One bounded pass of garbage collection below the shard's threshold; `resume` is what the pass before returned.
    /// `None`: done.
    ///
    /// # Errors
    /// The engine failed.
    pub fn collect_garbage(
        &self,
        shard: ShardId,
        resume: Option<Key>,
    ) -> Result<Option<Key>, isochrone_storage::Error> {
        let Some(s) = self.get(shard) else { return Ok(None) };
        let _applying = s.applying.lock().expect("nothing panics while entries are applied");
        let (range, threshold) = {
            let g = s.lock();
            if g.retired {
                return Ok(None);
            }
            (g.repl.range.clone(), g.repl.gc_threshold)
        };
        let progress = mvcc::gc(&*self.engine, &range, threshold, mvcc::GcBudget::default(), resume)?;
        self.engine.write(progress.batch)?;
        Ok(progress.resume)
    }

    /// The state of every shard, by id.
    pub fn states(&self) -> Vec<ShardState> {
        self.all().iter().map(|s| s.state()).collect()
    }

    /// The same without asking the engine how large they are (`bytes` is 0): for who asks often.
    pub fn states_light(&self) -> Vec<ShardState> {
        self.all().iter().map(|s| s.state_light()).collect()
    }

    /// Records, at most `max`: prepared ones first.
    pub fn records(&self, max: usize) -> Vec<RecordInfo> {
        let mut out = Vec::new();
        for s in self.all() {
            let g = s.lock();
            for p in g.repl.prepared.values().take(max - out.len()) {
                out.push(RecordInfo {
                    shard: s.id,
                    txn: p.piece.txn,
                    piece: p.piece.piece,
                    record: Record::Prepared(p.p),
                    deadline: p.piece.deadline,
                    candidate: Some(p.piece.candidate),
                    mode: Some(p.piece.mode),
                    pieces: p.piece.pieces.clone(),
                    anchor: Some(p.piece.anchor),
                    keys: p.piece.writes.len(),
                });
            }
        }
        for s in self.all() {
            let g = s.lock();
            for (key, t) in g.repl.tombstones.iter().rev().take(max - out.len()) {
                out.push(RecordInfo {
                    shard: s.id,
                    txn: key.txn,
                    piece: key.piece,
                    record: t.record(),
                    deadline: key.deadline,
                    candidate: t.keep.as_ref().map(|k| k.candidate),
                    mode: t.keep.as_ref().map(|k| k.mode),
                    pieces: t.keep.as_ref().map_or_else(Vec::new, |k| k.pieces.clone()),
                    anchor: t.keep.as_ref().map(|k| k.anchor),
                    keys: 0,
                });
            }
        }
        out
    }
}
