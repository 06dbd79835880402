//! The core driven by hand: one node, then several by exact steps. [`cluster`] drives three under a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use isochrone_base::{Bytes, INIT_INDEX, INIT_TERM, LogIndex, Members, NodeId, ShardId, Term};
use isochrone_env::SplitMix64;
use raft::eraftpb::MessageType;
use tokio::sync::oneshot;

use crate::log::{GroupLog, HardState, LogBatch, LogEntry, Record};
use crate::*;

mod cluster;
mod few;

const SHARD: ShardId = ShardId(7);

/// A log in memory: what `write` was given is durable.
#[derive(Default)]
struct MemLog(Mutex<MemLogState>);

#[derive(Default, Clone)]
struct MemLogState {
    /// Per shard: first index, the term before it, entries.
    logs: BTreeMap<ShardId, (LogIndex, Term, BTreeMap<LogIndex, LogEntry>)>,
    hard_states: BTreeMap<ShardId, HardState>,
}

impl MemLog {
    fn write(&self, batch: LogBatch) {
        batch.into_records().into_iter().for_each(|record| self.take(record));
    }

    /// As much of a batch as was written when the power went.
    fn write_some(&self, batch: LogBatch, records: usize) {
        batch.into_records().into_iter().take(records).for_each(|record| self.take(record));
    }

    fn take(&self, record: Record) {
        let mut s = self.0.lock().unwrap();
        match record {
            Record::Reset(shard, first, prev_term) => {
                s.logs.insert(shard, (first, prev_term, BTreeMap::new()));
            }
            Record::HardState(shard, hs) => _ = s.hard_states.insert(shard, hs),
            Record::Entry(shard, entry) => {
                let (first, _, log) = s.logs.entry(shard).or_insert((1, 0, BTreeMap::new()));
                let last = log.last_key_value().map_or(*first - 1, |(i, _)| *i);
                assert!(entry.index >= *first && entry.index <= last + 1, "as the node log would refuse it");
                log.split_off(&entry.index);
                log.insert(entry.index, entry);
            }
            Record::Truncate(shard, keep) => {
                let (first, prev_term, log) = s.logs.get_mut(&shard).unwrap();
                if keep > *first {
                    *prev_term = log[&(keep - 1)].term;
                    *first = keep;
                    *log = log.split_off(&keep);
                }
            }
        }
    }
}

impl GroupLog for MemLog {
    fn begin(&self, shard: ShardId) -> Option<(LogIndex, Term)> {
        let s = self.0.lock().unwrap();
        if let Some((first, prev_term, _)) = s.logs.get(&shard) {
            return Some((*first, *prev_term));
        }
        s.hard_states.contains_key(&shard).then_some((1, 0))
    }
    fn bounds(&self, shard: ShardId) -> Option<(LogIndex, LogIndex)> {
        let s = self.0.lock().unwrap();
        let log = &s.logs.get(&shard)?.2;
        Some((*log.first_key_value()?.0, *log.last_key_value()?.0))
    }
    fn term(&self, shard: ShardId, index: LogIndex) -> Option<Term> {
        Some(self.0.lock().unwrap().logs.get(&shard)?.2.get(&index)?.term)
    }
    fn entries(
        &self,
        shard: ShardId,
        low: LogIndex,
        high: LogIndex,
        max: u64,
    ) -> Result<Vec<LogEntry>, String> {
        let s = self.0.lock().unwrap();
        let mut bytes = 0;
        let mut out = Vec::new();
        for index in low..high {
            let entry = s.logs[&shard].2.get(&index).ok_or(format!("no entry {index}"))?;
            bytes += entry.payload.len() as u64;
            if bytes > max && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }
    fn hard_state(&self, shard: ShardId) -> Option<HardState> {
        self.0.lock().unwrap().hard_states.get(&shard).copied()
    }
}

/// Remembers what was applied. An entry `split N` creates shard N.
#[derive(Default)]
struct Recorder {
    applied: Mutex<BTreeMap<ShardId, Vec<CommittedEntry>>>,
    roles: Mutex<Vec<(ShardId, Role)>>,
    leases: Mutex<Vec<(ShardId, Term, u64)>>,
    stopped: Mutex<Option<String>>,
    /// Snapshots that are to be installed, and what became of the others.
    installs: Mutex<Vec<(ShardId, SnapshotMeta, InstallDone)>>,
    discarded: Mutex<Vec<SnapshotMeta>>,
    removed: Mutex<Vec<ShardId>>,
}

/// Says nothing but that it is one.
struct NoChunks;

impl SnapshotSource for NoChunks {
    fn next_chunk(&mut self, _: usize) -> Result<Option<Bytes>, String> {
        Ok(None)
    }
}

impl StateMachine for Recorder {
    fn apply(&self, shard: ShardId, entries: &[CommittedEntry]) -> Result<Vec<NewGroup>, ApplyError> {
        self.applied.lock().unwrap().entry(shard).or_default().extend_from_slice(entries);
        let mut created = Vec::new();
        for entry in entries {
            if entry.payload.as_ref() == b"poison" {
                return Err(ApplyError { shard, index: entry.index, reason: "poison".into() });
            }
            if let Some(n) = entry.payload.strip_prefix(b"split ") {
                let shard = ShardId(std::str::from_utf8(n).unwrap().parse().unwrap());
                created.push(NewGroup {
                    shard,
                    members: vec![NodeId(1)].into(),
                    applied: 0,
                    applied_term: 0,
                    campaign: false,
                });
            }
        }
        Ok(created)
    }
    fn role(&self, shard: ShardId, role: Role) {
        self.roles.lock().unwrap().push((shard, role));
    }
    fn lease(&self, shard: ShardId, term: Term, until_ns: u64) {
        self.leases.lock().unwrap().push((shard, term, until_ns));
    }
    fn snapshot(&self, _: ShardId) -> Result<Box<dyn SnapshotSource>, String> {
        Ok(Box::new(NoChunks))
    }
    fn install(&self, shard: ShardId, snapshot: SnapshotMeta, done: InstallDone) {
        self.installs.lock().unwrap().push((shard, snapshot, done));
    }
    fn remove(&self, shard: ShardId, done: RemoveDone) {
        self.removed.lock().unwrap().push(shard);
        done(Ok(()));
    }
    fn discard(&self, _: ShardId, snapshot: SnapshotMeta) {
        self.discarded.lock().unwrap().push(snapshot);
    }
    fn stopped(&self, reason: &str) {
        *self.stopped.lock().unwrap() = Some(reason.to_string());
    }
}

struct Node {
    store: Store,
    log: Arc<MemLog>,
    machine: Arc<Recorder>,
    inbox: Arc<Inbox>,
    handle: Handle,
    /// Batches handed out and not yet durable.
    pending: Vec<(u64, LogBatch)>,
    snapshots: Vec<OutgoingSnapshot>,
    /// Its monotonic clock.
    now: u64,
}

impl Node {
    fn open(node: NodeId, voters: &[NodeId], log: Arc<MemLog>, applied: LogIndex, seed: u64) -> Node {
        let mut node = Node::empty(StoreConfig::new(node), log, seed);
        node.create(voters, applied);
        node
    }

    fn empty(config: StoreConfig, log: Arc<MemLog>, seed: u64) -> Node {
        let machine = Arc::new(Recorder::default());
        let random = Arc::new(SplitMix64::new(seed ^ u64::from(config.node.0)));
        let store = Store::new(config, log.clone(), machine.clone(), random).unwrap();
        let inbox = Inbox::new(Box::new(|| {}));
        let handle = Handle::new(inbox.clone());
        Node { store, log, machine, handle, inbox, pending: Vec::new(), snapshots: Vec::new(), now: 1 }
    }

    fn create(&mut self, voters: &[NodeId], applied: LogIndex) {
        let new =
            NewGroup { shard: SHARD, members: voters.into(), applied, applied_term: 0, campaign: false };
        self.store.create_group(new).unwrap();
    }

    fn single(log: Arc<MemLog>, applied: LogIndex) -> Node {
        Node::open(NodeId(1), &[NodeId(1)], log, applied, 1)
    }

    fn step(&mut self) -> BTreeMap<NodeId, Vec<(ShardId, RaftMessage)>> {
        let mut events = Vec::new();
        self.inbox.drain(&mut events);
        let mut out = Output::default();
        self.store.step(self.now, &mut events, &mut out).unwrap();
        self.pending.extend(out.log);
        self.snapshots.extend(out.snapshots);
        out.installs.into_iter().for_each(|i| i.start(&self.inbox));
        out.removals.into_iter().for_each(|r| r.start(&self.inbox));
        out.messages
    }

    /// The disk finishes everything that waits.
    fn sync(&mut self) {
        for (number, batch) in self.pending.drain(..) {
            self.log.write(batch);
            self.inbox.push(Event::Durable(Ok(number)));
        }
    }

    /// Steps and syncs until nothing is left to do (a node without peers).
    fn settle(&mut self) {
        loop {
            self.step();
            if self.pending.is_empty() && !self.store.has_work() {
                return;
            }
            self.sync();
        }
    }

    fn applied(&self) -> Vec<Bytes> {
        let applied = self.machine.applied.lock().unwrap();
        let entries = applied.get(&SHARD).into_iter().flatten();
        entries.map(|e| e.payload.clone()).filter(|p| !p.is_empty()).collect()
    }

    fn term(&self) -> Term {
        match self.machine.roles.lock().unwrap().last() {
            Some((_, Role::Leader(term))) => *term,
            other => panic!("not the leader: {other:?}"),
        }
    }

    fn propose(&self, payload: &'static [u8]) -> oneshot::Receiver<Result<LogIndex, ProposeError>> {
        self.handle.propose(SHARD, self.term(), Bytes::from_static(payload))
    }
}

#[test]
fn c1_c2_nothing_is_applied_or_answered_before_it_is_durable() {
    let mut node = Node::single(Arc::default(), 0);
    node.settle();
    let mut answer = node.propose(b"one");
    node.step();
    node.step();
    assert!(node.applied().is_empty() && answer.try_recv().is_err());
    node.settle();
    assert_eq!(node.applied(), ["one"]);
    assert_eq!(answer.try_recv().unwrap(), Ok(2));
}

#[test]
fn many_proposals_become_one_batch() {
    let mut node = Node::single(Arc::default(), 0);
    node.settle();
    let answers: Vec<_> = (0..100).map(|_| node.propose(b"x")).collect();
    node.step();
    assert_eq!(node.pending.len(), 1);
    assert_eq!(node.pending[0].1.entries.len(), 100);
    node.settle();
    let indexes: Vec<_> = answers.into_iter().map(|mut a| a.try_recv().unwrap().unwrap()).collect();
    assert_eq!(indexes, (2..102).collect::<Vec<_>>());
}

#[test]
fn c3_a_proposal_for_another_term_or_shard_is_in_no_log() {
    let mut node = Node::single(Arc::default(), 0);
    node.settle();
    let mut wrong_term = node.handle.propose(SHARD, node.term() + 1, Bytes::from_static(b"x"));
    let mut wrong_shard = node.handle.propose(ShardId(99), node.term(), Bytes::from_static(b"x"));
    node.settle();
    assert_eq!(wrong_term.try_recv().unwrap(), Err(ProposeError::NotLeader(SHARD)));
    assert_eq!(wrong_shard.try_recv().unwrap(), Err(ProposeError::NotLeader(ShardId(99))));
    assert!(node.applied().is_empty());
}

#[test]
fn c6_after_the_log_failed_nothing_is_acknowledged() {
    let mut node = Node::single(Arc::default(), 0);
    node.settle();
    let mut in_flight = node.propose(b"in flight");
    node.step();
    node.inbox.push(Event::Durable(Err("EIO".into())));
    let mut queued = node.propose(b"queued");
    node.step();
    assert!(matches!(in_flight.try_recv().unwrap(), Err(ProposeError::Ambiguous(_))));
    assert!(matches!(queued.try_recv().unwrap(), Err(ProposeError::Stopped(_))));
    assert_eq!(node.machine.stopped.lock().unwrap().as_deref(), Some("EIO"));
    node.inbox.push(Event::Durable(Ok(9)));
    node.step();
    assert!(node.applied().is_empty());
}

#[test]
fn a_restart_applies_the_rest_of_the_log_again() {
    let log = Arc::new(MemLog::default());
    let mut node = Node::single(log.clone(), 0);
    node.settle();
    for payload in [b"a", b"b", b"c"] {
        node.propose(payload);
    }
    node.settle();
    let term = node.term();
    drop(node);
    // The engine's last flush held index 2 ("a").
    let mut node = Node::single(log, 2);
    node.settle();
    assert_eq!(node.applied(), ["b", "c"]);
    assert!(node.term() > term, "a new life has a new term");
}

#[test]
fn truncation_keeps_what_is_not_applied_and_survives_a_restart() {
    let log = Arc::new(MemLog::default());
    let mut node = Node::single(log.clone(), 0);
    node.settle();
    for _ in 0..10 {
        node.propose(b"x");
    }
    node.settle();
    node.handle.truncate(vec![(SHARD, 8), (ShardId(99), 5)]);
    node.settle();
    assert_eq!(log.bounds(SHARD), Some((8, 11)), "the entry at the truncated index stays for its term");
    let mut node = Node::single(log.clone(), 9);
    node.settle();
    assert_eq!(node.applied().len(), 2);
    node.handle.truncate(vec![(SHARD, 1_000)]);
    node.settle();
    assert_eq!(log.bounds(SHARD), Some((12, 12)));
    let mut node = Node::single(log, 12);
    node.settle();
    node.propose(b"y");
    node.settle();
    assert_eq!(node.applied(), ["y"]);
}

#[test]
fn a_log_that_lost_what_was_applied_is_refused() {
    let machine = Arc::new(Recorder::default());
    let random = Arc::new(SplitMix64::new(1));
    let log = Arc::new(MemLog::default());
    let mut store = Store::new(StoreConfig::new(NodeId(1)), log, machine, random).unwrap();
    let refused = store.create_group(NewGroup {
        shard: SHARD,
        members: vec![NodeId(1)].into(),
        applied: 3,
        applied_term: 0,
        campaign: false,
    });
    assert!(refused.unwrap_err().contains("lost acknowledged entries"));
}

#[test]
fn a_split_creates_a_group_that_leads_at_once() {
    let mut node = Node::single(Arc::default(), 0);
    node.settle();
    node.propose(b"split 8");
    node.settle();
    let mut answer = node.handle.propose(ShardId(8), 1, Bytes::from_static(b"hello"));
    node.settle();
    assert_eq!(answer.try_recv().unwrap(), Ok(2));
    let mut status = node.handle.status();
    node.settle();
    assert_eq!(status.try_recv().unwrap()[&ShardId(8)].applied, 2);
}

#[test]
fn a_single_voter_holds_the_lease_for_ever_right_after_its_role() {
    let mut node = Node::single(Arc::default(), 0);
    node.settle();
    assert_eq!(*node.machine.leases.lock().unwrap(), [(SHARD, 1, u64::MAX)]);
    assert!(!node.store.needs_ticks());
}

#[test]
fn a_group_is_born_behind_an_imagined_entry_and_reopens_there() {
    let log = Arc::new(MemLog::default());
    let mut node = Node::single(log.clone(), INIT_INDEX);
    node.settle();
    assert_eq!(log.begin(SHARD), Some((INIT_INDEX + 1, INIT_TERM)));
    node.propose(b"a");
    node.settle();
    assert_eq!(log.bounds(SHARD), Some((INIT_INDEX + 1, INIT_INDEX + 2)));
    assert_eq!(node.term(), INIT_TERM + 1);
    // The engine may still be at the birth, or beyond.
    for applied in [INIT_INDEX, INIT_INDEX + 1, INIT_INDEX + 2] {
        let mut node = Node::single(log.clone(), applied);
        node.settle();
        assert_eq!(node.applied().len() as u64, u64::from(applied < INIT_INDEX + 2));
    }
    // A birth that the log never heard of is repeated.
    let mut node = Node::single(Arc::default(), INIT_INDEX);
    node.settle();
    assert_eq!(node.term(), INIT_TERM + 1);
}

#[test]
fn peers_messages_are_bounded_and_only_from_their_sender() {
    let node = Node::single(Arc::default(), 0);
    let message =
        RaftMessage { msg_type: MessageType::MsgHeartbeat, from: 2, to: 1, term: 9, ..Default::default() };
    let batch = wire::encode_messages(&vec![(SHARD, message); 1_000]);
    assert!(node.handle.deliver(NodeId(3), batch.clone()).is_err());
    assert!(node.handle.deliver(NodeId(2), batch.slice(1..)).is_err());
    for _ in 0..100 {
        node.handle.deliver(NodeId(2), batch.clone()).unwrap();
    }
    let mut events = Vec::new();
    node.inbox.drain(&mut events);
    let waiting: usize = events.iter().map(|e| if let Event::Messages(m) = e { m.len() } else { 0 }).sum();
    assert_eq!(waiting, inbox::MESSAGES_MAX / 1_000 * 1_000);
}

#[test]
fn a_state_machine_that_cannot_apply_stops_the_node() {
    let mut node = Node::single(Arc::default(), 0);
    node.settle();
    let mut answer = node.propose(b"poison");
    node.step();
    node.sync();
    let mut events = Vec::new();
    node.inbox.drain(&mut events);
    assert_eq!(node.store.step(1, &mut events, &mut Output::default()).unwrap_err().reason, "poison");
    drop(node);
    assert!(answer.try_recv().is_err(), "never acknowledged");
}

#[test]
fn too_many_batches_in_flight_hold_new_ones_back_without_spinning() {
    let mut node = Node::single(Arc::default(), 0);
    node.settle();
    for _ in 0..20 {
        node.propose(b"x");
        node.step();
    }
    assert!(node.pending.len() <= 9, "{}", node.pending.len());
    assert!(!node.store.has_work());
    node.settle();
    assert_eq!(node.applied().len(), 20);
}
