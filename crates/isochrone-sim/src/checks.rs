//! Looks at the state of all nodes while they run. Each finding names an invariant of this crate's opening comment, or one
//! of the commit protocol (T1 to T13).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use isochrone_base::hash::Fnv64;
use isochrone_base::held::Held;
use isochrone_base::{Bytes, LogIndex, NodeId, PieceNo, ShardId, Term, Timestamp, TxnId};
use isochrone_server::Node;
use isochrone_shard::api::Record;
use isochrone_shard::command::{Command, Entry};
use isochrone_shard::{ShardMeta, ShardState};
use isochrone_storage::mvcc;

use crate::world::Found;

/// Applied entries of a shard that are remembered, to be compared with other nodes'.
const ENTRIES_KEPT: u64 = 4_000;
/// Most bytes of log read in one look, per shard and node.
const READ_BYTES_MAX: usize = 1 << 20;
/// Promises of a shard that are remembered, and writes.
const PROMISES_KEPT: usize = 64;
/// States of a shard that are remembered.
const STATES_KEPT: usize = 64;
/// SIM22. The load of a run keeps far below: what grows past it is never given back.
const HELD_BYTES_MAX: usize = 16 << 20;
/// Pieces that are remembered; at the bound the oldest are forgotten.
const PIECES_MAX: usize = 200_000;

/// What has been seen of a piece.
#[derive(Clone, Copy, Default)]
struct Piece {
    /// Where it was prepared.
    p: Option<Timestamp>,
    /// How it ended.
    end: Option<Record>,
}

/// What is closed in a shard, and written.
#[derive(Default)]
struct Told {
    /// What replicas were told to be closed, who, and what they had applied when they believed it. The newest.
    promises: VecDeque<(Timestamp, NodeId, LogIndex)>,
    /// Entries that write, and where. The newest that were compared.
    writes: BTreeMap<LogIndex, Timestamp>,
}

impl Told {
    fn promise(&mut self, shard: ShardId, promise: (Timestamp, NodeId, LogIndex)) -> Result<(), Found> {
        if self.promises.iter().any(|(closed, _, at)| *closed >= promise.0 && *at <= promise.2) {
            return Ok(());
        }
        let mut behind = self.writes.range(promise.2 + 1..);
        if let Some((index, p)) = behind.find(|(_, p)| **p <= promise.0) {
            return Err(closed_is_written(shard, (*index, *p), promise));
        }
        if self.promises.len() >= PROMISES_KEPT {
            self.promises.pop_front();
        }
        self.promises.push_back(promise);
        Ok(())
    }

    fn write(&mut self, shard: ShardId, index: LogIndex, p: Timestamp) -> Result<(), Found> {
        if let Some(promise) = self.promises.iter().find(|(closed, _, at)| index > *at && p <= *closed) {
            return Err(closed_is_written(shard, (index, p), *promise));
        }
        self.writes.insert(index, p);
        if self.writes.len() > PROMISES_KEPT {
            self.writes.pop_first();
        }
        Ok(())
    }
}

fn closed_is_written(
    shard: ShardId,
    (index, p): (LogIndex, Timestamp),
    (closed, by, at): (Timestamp, NodeId, LogIndex),
) -> Found {
    let told = format!("node {by} was told that {closed} is closed, at {at}");
    Found::new("SIM20", format!("entry {index} of shard {shard} writes at {p}; {told}"))
}

/// What one node has said. Gone with its process.
#[derive(Default)]
struct Seen {
    /// Its last timestamp.
    clock: Timestamp,
    /// Log entries of a shard were compared up to here.
    compared: BTreeMap<ShardId, LogIndex>,
    /// How far shards had applied when their records were looked at last.
    recorded: BTreeMap<ShardId, LogIndex>,
    /// Pieces that had ended here.
    ended: BTreeMap<(TxnId, PieceNo), LogIndex>,
}

/// What has been seen of all nodes so far.
#[derive(Default)]
pub(crate) struct Checks {
    leaders: BTreeMap<(ShardId, Term), NodeId>,
    serving: BTreeMap<ShardId, (Term, NodeId)>,
    /// Highest entry that any replica had applied, and its term.
    applied: BTreeMap<ShardId, (LogIndex, Term)>,
    entries: BTreeMap<(ShardId, LogIndex), (Term, u64, NodeId)>,
    states: BTreeMap<ShardId, BTreeMap<LogIndex, (u64, NodeId)>>,
    /// What was said to be resolved, by whom, and what that replica had applied.
    resolved: BTreeMap<ShardId, (Timestamp, NodeId, LogIndex)>,
    told: BTreeMap<ShardId, Told>,
    pieces: BTreeMap<(TxnId, PieceNo), Piece>,
    commits: BTreeMap<TxnId, Record>,
    nodes: BTreeMap<NodeId, Seen>,
}

/// SIM21, SIM22.
fn held(node: NodeId, all: &[Held]) -> Result<(), Found> {
    if let Some(over) = all.iter().find(|h| !h.is_within()) {
        return Err(Found::new("SIM21", format!("node {node} holds more than it may: {over:?}")));
    }
    // What has a bound in bytes of its own may come near it: a replica that is filled by the log queues windows of it.
    let bytes: usize = all.iter().filter(|h| h.bytes_max == usize::MAX).map(|h| h.bytes).sum();
    if bytes > HELD_BYTES_MAX {
        return Err(Found::new("SIM22", format!("node {node} holds {bytes} bytes in memory: {all:?}")));
    }
    Ok(())
}

impl Checks {
    /// A node's process has begun: what the one before it said about itself does not bind it.
    pub(crate) fn forget_process(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }

    /// What can be seen cheaply. Of nodes that run and do not stand still; with what their monotonic clocks say.
    pub(crate) fn look(&mut self, nodes: &[(Arc<Node>, u64)]) -> Result<(), Found> {
        let mut serve: BTreeMap<ShardId, NodeId> = BTreeMap::new();
        for (node, now_ns) in nodes {
            let seen = self.nodes.entry(node.id).or_default();
            let last = node.clock.last();
            if last < seen.clock {
                return Err(Found::new(
                    "SIM16",
                    format!("the clock of node {} fell from {:?} to {last:?}", node.id, seen.clock),
                ));
            }
            seen.clock = last;
            let states = node.local.shards().states_light();
            key_space(node.id, &states)?;
            for state in states {
                let shard = state.shard;
                if let Some(term) = state.leads {
                    let leader = *self.leaders.entry((shard, term)).or_insert(node.id);
                    if leader != node.id {
                        return Err(Found::new(
                            "SIM10",
                            format!("nodes {leader} and {} lead shard {shard} in term {term}", node.id),
                        ));
                    }
                }
                if state.leads.is_some() && state.serving && state.lease_until_ns > *now_ns {
                    if let Some(other) = serve.insert(shard, node.id) {
                        return Err(Found::new(
                            "SIM11",
                            format!("nodes {other} and {} hold the lease of shard {shard}", node.id),
                        ));
                    }
                    self.serves(&state, node.id)?;
                }
                let promise = (state.told_closed, node.id, state.applied);
                self.told.entry(shard).or_default().promise(shard, promise)?;
                let highest = self.applied.entry(shard).or_default();
                *highest = (*highest).max((state.applied, state.applied_term));
            }
        }
        Ok(())
    }

    /// A leader that serves has applied everything that anybody had applied in earlier terms.
    fn serves(&mut self, state: &ShardState, node: NodeId) -> Result<(), Found> {
        let term = state.leads.unwrap_or_default();
        if self.serving.get(&state.shard) == Some(&(term, node)) {
            return Ok(());
        }
        self.serving.insert(state.shard, (term, node));
        let (index, in_term) = self.applied.get(&state.shard).copied().unwrap_or_default();
        if in_term < term && state.applied < index {
            return Err(Found::new(
                "SIM13",
                format!(
                    "node {node} serves shard {} in term {term} with {} entries applied; {index} had been, in term {in_term}",
                    state.shard, state.applied
                ),
            ));
        }
        Ok(())
    }

    /// What costs more: logs and records.
    pub(crate) fn look_closely(&mut self, nodes: &[Arc<Node>], whole: &[Arc<Node>]) -> Result<(), Found> {
        // A log that was cut may show what had been replaced; its replica is refilled.
        for node in whole {
            self.logs(node)?;
        }
        for node in nodes {
            held(node.id, &node.held())?;
            if let Some((invariant, what)) = node.store.coordinator().broken() {
                return Err(Found::new(invariant, format!("node {}: {what}", node.id)));
            }
        }
        self.records(nodes)
    }

    /// What costs most: replicas that applied the same entries have the same rows and records.
    pub(crate) fn look_at_contents(&mut self, nodes: &[Arc<Node>]) -> Result<(), Found> {
        for node in nodes {
            let records = record_hashes(node);
            for meta in node.local.shards().list() {
                self.contents(node, &meta, records.get(&meta.shard).copied().unwrap_or_default())?;
            }
        }
        Ok(())
    }

    fn logs(&mut self, node: &Node) -> Result<(), Found> {
        for meta in node.local.shards().list() {
            let shard = meta.shard;
            let (Ok(first), Ok(last)) = (node.log.first_index(shard), node.log.last_index(shard)) else {
                continue;
            };
            let seen = self.nodes.entry(node.id).or_default();
            let compared = seen.compared.entry(shard).or_default();
            let (from, to) = (first.max(*compared + 1), last.min(meta.applied));
            if from > to {
                continue;
            }
            // A log that is truncated meanwhile, or a disk that is dying, is looked at again later.
            let Ok(found) = node.log.entries(shard, from..to + 1, READ_BYTES_MAX) else { continue };
            for entry in found {
                *compared = entry.index;
                if let Some(p) = writes_at(entry.term, &entry.payload) {
                    self.told.entry(shard).or_default().write(shard, entry.index, p)?;
                }
                let mut hash = Fnv64::default();
                hash.update(&entry.payload);
                let this = (entry.term, hash.finish(), node.id);
                let other = *self.entries.entry((shard, entry.index)).or_insert(this);
                if (other.0, other.1) != (this.0, this.1) {
                    return Err(Found::new(
                        "SIM12",
                        format!(
                            "entry {} of shard {shard} is of term {} on node {} and of term {} on node {}, or differs",
                            entry.index, other.0, other.2, this.0, node.id
                        ),
                    ));
                }
            }
            let keep_from = compared.saturating_sub(ENTRIES_KEPT);
            while let Some((&key, _)) = self.entries.range((shard, 0)..(shard, keep_from)).next() {
                self.entries.remove(&key);
            }
        }
        Ok(())
    }

    fn records(&mut self, nodes: &[Arc<Node>]) -> Result<(), Found> {
        let mut fresh = Vec::new();
        for node in nodes {
            let shards = node.local.shards();
            let applied: BTreeMap<ShardId, LogIndex> =
                shards.list().into_iter().map(|m| (m.shard, m.applied)).collect();
            let seen = self.nodes.entry(node.id).or_default();
            for info in shards.records(usize::MAX) {
                let at = (info.txn, info.piece);
                let index = applied.get(&info.shard).copied().unwrap_or_default();
                let known = self.pieces.entry(at).or_default();
                let fail = |id, what: String| {
                    Err(Found::new(
                        id,
                        format!("{:?} piece {} on node {}: {what}", info.txn, info.piece, node.id),
                    ))
                };
                match info.record {
                    Record::None => {}
                    Record::Prepared(p) => {
                        if seen.ended.get(&at).is_some_and(|ended| *ended <= index) {
                            return fail("T10", format!("prepared at {p:?} after it had ended"));
                        }
                        match known.p {
                            None => {
                                known.p = Some(p);
                                // Its entry lies behind what had been applied here at the last look.
                                if let Some(behind) = seen.recorded.get(&info.shard) {
                                    fresh.push((info.shard, p, at, *behind));
                                }
                            }
                            Some(other) if other != p => {
                                return fail("T4", format!("prepared at {p:?}, and at {other:?}"));
                            }
                            Some(_) => {}
                        }
                    }
                    end @ (Record::Committed(_) | Record::Aborted) => {
                        seen.ended.entry(at).or_insert(index);
                        match known.end {
                            None => known.end = Some(end),
                            Some(other) if other != end => {
                                return fail("T1", format!("{end:?}, and {other:?}"));
                            }
                            Some(_) => {}
                        }
                        let whole = *self.commits.entry(info.txn).or_insert(end);
                        // A piece that was never prepared may be blocked after its transaction was long over.
                        let blocked = |r: &Record| *r == Record::Aborted && known.p.is_none();
                        if whole != end && !blocked(&end) && !blocked(&whole) {
                            return fail("T1", format!("{end:?}; another piece: {whole:?}"));
                        }
                    }
                }
                if let (Some(p), Some(Record::Committed(c))) = (known.p, &known.end)
                    && *c < p
                {
                    return fail("T4", format!("committed at {c:?}, below its prepare at {p:?}"));
                }
            }
        }
        for (shard, p, at, behind) in fresh {
            if let Some((resolved, by, index)) = self.resolved.get(&shard)
                && p <= *resolved
                && *index <= behind
            {
                return Err(Found::new(
                    "T7",
                    format!(
                        "{at:?} was prepared at {p:?} in shard {shard}; node {by} had said that {resolved:?} is resolved"
                    ),
                ));
            }
        }
        for node in nodes {
            for state in node.local.shards().states_light() {
                let highest = self.resolved.entry(state.shard).or_default();
                *highest = (*highest).max((state.resolved, node.id, state.applied));
                let seen = self.nodes.entry(node.id).or_default();
                seen.recorded.insert(state.shard, state.applied);
            }
        }
        while self.pieces.len() > PIECES_MAX {
            self.pieces.pop_first();
        }
        while self.commits.len() > PIECES_MAX {
            self.commits.pop_first();
        }
        Ok(())
    }

    fn contents(&mut self, node: &Node, meta: &ShardMeta, records: u64) -> Result<(), Found> {
        let states = self.states.entry(meta.shard).or_default();
        if states.get(&meta.applied).is_some_and(|(_, by)| *by == node.id) {
            return Ok(());
        }
        let hash = content_hash(node, meta, records)?;
        let (other, by) = *states.entry(meta.applied).or_insert((hash, node.id));
        if other != hash {
            return Err(Found::new(
                "SIM14",
                format!(
                    "shard {} differs between nodes {by} and {} at index {}",
                    meta.shard, node.id, meta.applied
                ),
            ));
        }
        while states.len() > STATES_KEPT {
            states.pop_first();
        }
        Ok(())
    }
}

/// The timestamp at which an entry writes or prepares, if it was evaluated in its own term.
fn writes_at(term: Term, payload: &Bytes) -> Option<Timestamp> {
    let entry = Entry::decode(payload).ok().flatten().filter(|e| e.term == term)?;
    match entry.command {
        Command::Commit1 { p, .. } | Command::Prepare { p, .. } => Some(p),
        _ => None,
    }
}

/// A hash of the records of each shard, whatever their order.
fn record_hashes(node: &Node) -> BTreeMap<ShardId, u64> {
    let mut hashes: BTreeMap<ShardId, u64> = BTreeMap::new();
    for info in node.local.shards().records(usize::MAX) {
        let (kind, ts) = match info.record {
            Record::None => (0, Timestamp::MIN),
            Record::Prepared(p) => (1, p),
            Record::Committed(c) => (2, c),
            Record::Aborted => (3, Timestamp::MIN),
        };
        let mut hash = Fnv64::default();
        hash.update(&info.txn.0.to_be_bytes());
        for n in
            [u64::from(info.piece), kind, ts.0, info.deadline.0, info.keys as u64, info.pieces.len() as u64]
        {
            hash.update(&n.to_be_bytes());
        }
        let sum = hashes.entry(info.shard).or_default();
        *sum = sum.wrapping_add(hash.finish());
    }
    hashes
}

/// The newest versions of a shard, and its records.
fn content_hash(node: &Node, meta: &ShardMeta, records: u64) -> Result<u64, Found> {
    let mut hash = Fnv64::default();
    hash.update(&records.to_be_bytes());
    for row in mvcc::scan_at(&node.engine.snapshot(), &meta.range, Timestamp::MAX, false) {
        let row = row.map_err(|e| e.to_string())?;
        hash.update(&row.key);
        hash.update(&row.value);
    }
    Ok(hash.finish())
}

/// No key belongs to two shards.
fn key_space(node: NodeId, states: &[ShardState]) -> Result<(), Found> {
    let mut ranges: Vec<_> = states.iter().map(|s| (&s.range.start, &s.range.end, s.shard)).collect();
    ranges.sort();
    for pair in ranges.windows(2) {
        let ((_, end, a), (start, _, b)) = (pair[0], pair[1]);
        if end.is_empty() || end > start {
            return Err(Found::new("SIM15", format!("shards {a} and {b} overlap on node {node}")));
        }
    }
    Ok(())
}

/// When nothing goes on any more: all replicas are the same, and every key belongs to a shard.
pub(crate) fn at_the_end(nodes: &[Arc<Node>]) -> Result<(), Found> {
    let mut first: BTreeMap<ShardId, (NodeId, u64)> = BTreeMap::new();
    for node in nodes {
        let mut metas = node.local.shards().list();
        let records = record_hashes(node);
        for meta in &metas {
            let hash = content_hash(node, meta, records.get(&meta.shard).copied().unwrap_or_default())?;
            let (by, other) = *first.entry(meta.shard).or_insert((node.id, hash));
            if other != hash {
                return Err(Found::new(
                    "SIM6",
                    format!("shard {} differs between nodes {by} and {}", meta.shard, node.id),
                ));
            }
        }
        metas.sort_by(|a, b| a.range.start.cmp(&b.range.start));
        let whole = metas.first().is_some_and(|m| m.range.start.is_empty())
            && metas.last().is_some_and(|m| m.range.end.is_empty())
            && metas.windows(2).all(|pair| pair[0].range.end == pair[1].range.start);
        if !metas.is_empty() && !whole {
            return Err(Found::new("SIM15", format!("the shards of node {} leave gaps", node.id)));
        }
    }
    Ok(())
}

/// Have all replicas applied the same, are they where the groups' members are, and are these the same in all groups?
pub(crate) fn level(nodes: &[Arc<Node>]) -> bool {
    let mut holders: BTreeMap<ShardId, Vec<NodeId>> = BTreeMap::new();
    let mut first: BTreeMap<ShardId, ShardState> = BTreeMap::new();
    for node in nodes {
        for state in node.local.shards().states_light() {
            holders.entry(state.shard).or_default().push(node.id);
            let one = first.entry(state.shard).or_insert_with(|| state.clone());
            if (&one.members, one.applied) != (&state.members, state.applied) {
                return false;
            }
        }
    }
    let voters = first.values().next().map(|s| &s.members.voters);
    first.values().all(|s| {
        s.members.is_settled() && Some(&s.members.voters) == voters && holders.get(&s.shard) == voters
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_in_memory_is_found() {
        let table = |entries, max, bytes| Held::counted("a.table", entries, max, bytes);
        let id = |all: &[Held]| held(NodeId(1), all).err().map(|f| f.id);
        assert_eq!(id(&[table(3, 3, 100)]), None);
        assert_eq!(id(&[table(4, 3, 100)]), Some("SIM21"));
        assert_eq!(id(&[Held { bytes_max: 399, ..table(4, 9, 100) }]), Some("SIM21"));
        let half = table(1, usize::MAX, HELD_BYTES_MAX / 2 + 1);
        assert_eq!(id(&[half]), None);
        assert_eq!(id(&[half, half]), Some("SIM22"));
        assert_eq!(id(&[half, Held { bytes_max: HELD_BYTES_MAX, ..half }]), None);
    }
}
