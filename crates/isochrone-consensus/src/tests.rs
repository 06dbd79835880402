//! The core driven by hand: one node, then three under a seed with lost messages and crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use isochrone_base::{Bytes, LogIndex, NodeId, ShardId, Term};
use isochrone_env::SplitMix64;
use tokio::sync::oneshot;

use crate::log::{GroupLog, HardState, LogBatch, LogEntry};
use crate::*;

const SHARD: ShardId = ShardId(7);

/// A log in memory: what `write` was given is durable.
#[derive(Default)]
struct MemLog(Mutex<MemLogState>);

#[derive(Default)]
struct MemLogState {
    entries: BTreeMap<ShardId, BTreeMap<LogIndex, LogEntry>>,
    hard_states: BTreeMap<ShardId, HardState>,
}

impl MemLog {
    fn write(&self, batch: LogBatch) {
        let mut s = self.0.lock().unwrap();
        for (shard, entry) in batch.entries {
            let log = s.entries.entry(shard).or_default();
            log.split_off(&entry.index);
            log.insert(entry.index, entry);
        }
        s.hard_states.extend(batch.hard_states);
        for (shard, first) in batch.truncate {
            let log = s.entries.entry(shard).or_default();
            *log = log.split_off(&first);
        }
    }
}

impl GroupLog for MemLog {
    fn bounds(&self, shard: ShardId) -> Option<(LogIndex, LogIndex)> {
        let s = self.0.lock().unwrap();
        let log = s.entries.get(&shard)?;
        Some((*log.first_key_value()?.0, *log.last_key_value()?.0))
    }
    fn term(&self, shard: ShardId, index: LogIndex) -> Option<Term> {
        Some(self.0.lock().unwrap().entries.get(&shard)?.get(&index)?.term)
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
            let entry = s.entries[&shard].get(&index).ok_or(format!("no entry {index}"))?;
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
    stopped: Mutex<Option<String>>,
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
                created.push(NewGroup { shard, voters: vec![NodeId(1)], applied: 0 });
            }
        }
        Ok(created)
    }
    fn role(&self, shard: ShardId, role: Role) {
        self.roles.lock().unwrap().push((shard, role));
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
}

impl Node {
    fn open(node: NodeId, voters: &[NodeId], log: Arc<MemLog>, applied: LogIndex, seed: u64) -> Node {
        let machine = Arc::new(Recorder::default());
        let random = Arc::new(SplitMix64::new(seed ^ u64::from(node.0)));
        let mut store = Store::new(StoreConfig::new(node), log.clone(), machine.clone(), random).unwrap();
        store.create_group(NewGroup { shard: SHARD, voters: voters.to_vec(), applied }).unwrap();
        let inbox = Inbox::new(Box::new(|| {}));
        Node { store, log, machine, handle: Handle::new(inbox.clone()), inbox, pending: Vec::new() }
    }

    fn single(log: Arc<MemLog>, applied: LogIndex) -> Node {
        Node::open(NodeId(1), &[NodeId(1)], log, applied, 1)
    }

    fn step(&mut self) -> Vec<(NodeId, ShardId, RaftMessage)> {
        let mut events = Vec::new();
        self.inbox.drain(&mut events);
        let mut out = Output::default();
        self.store.step(&mut events, &mut out).unwrap();
        self.pending.extend(out.log);
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
    let refused = store.create_group(NewGroup { shard: SHARD, voters: vec![NodeId(1)], applied: 3 });
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
fn a_state_machine_that_cannot_apply_stops_the_node() {
    let mut node = Node::single(Arc::default(), 0);
    node.settle();
    let mut answer = node.propose(b"poison");
    node.step();
    node.sync();
    let mut events = Vec::new();
    node.inbox.drain(&mut events);
    assert_eq!(node.store.step(&mut events, &mut Output::default()).unwrap_err().reason, "poison");
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

/// Three nodes under a seed: messages are lost, delayed and repeated, disks are slow, nodes crash and come back with
/// what was durable. Afterwards everything heals.
#[expect(clippy::needless_range_loop, reason = "a node's number is also its address in the network")]
fn three_nodes(seed: u64) {
    let random = SplitMix64::new(seed);
    let voters = [NodeId(1), NodeId(2), NodeId(3)];
    let logs: Vec<Arc<MemLog>> = (0..3).map(|_| Arc::default()).collect();
    let open = |i: usize, life: u64| Node::open(voters[i], &voters, logs[i].clone(), 0, seed ^ (life << 32));
    let mut nodes: Vec<Node> = (0..3).map(|i| open(i, 0)).collect();
    let mut network: Vec<(usize, ShardId, RaftMessage)> = Vec::new();
    let mut acknowledged: BTreeSet<Bytes> = BTreeSet::new();
    let mut asked = Vec::new();
    let mut leaders: BTreeMap<Term, usize> = BTreeMap::new();
    // Histories of earlier lives: applied prefixes must agree with each other.
    let mut histories: Vec<Vec<CommittedEntry>> = Vec::new();
    let mut counter = 0u64;
    for round in 0..3_000u64 {
        let chaos = round < 2_000;
        for i in 0..3 {
            if random.below(3) == 0 {
                nodes[i].inbox.push(Event::Tick);
            }
            if chaos && random.below(400) == 0 {
                let applied = nodes[i].machine.applied.lock().unwrap().remove(&SHARD).unwrap_or_default();
                histories.push(applied);
                nodes[i] = open(i, round);
            }
            network.extend(nodes[i].step().into_iter().map(|(to, s, m)| (to.0 as usize - 1, s, m)));
            if !chaos || random.below(2) == 0 {
                nodes[i].sync();
            }
            for &(_, role) in nodes[i].machine.roles.lock().unwrap().iter() {
                if let Role::Leader(term) = role {
                    assert_eq!(*leaders.entry(term).or_insert(i), i, "election safety, seed {seed}");
                }
            }
            let role = nodes[i].machine.roles.lock().unwrap().last().copied();
            if let Some((_, Role::Leader(term))) = role
                && random.below(4) == 0
            {
                counter += 1;
                let payload = Bytes::from(format!("{counter}"));
                asked.push((payload.clone(), nodes[i].handle.propose(SHARD, term, payload)));
            }
        }
        asked.retain_mut(|(payload, answer)| match answer.try_recv() {
            Ok(Ok(_)) => {
                acknowledged.insert(payload.clone());
                false
            }
            Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => false,
            Err(oneshot::error::TryRecvError::Empty) => true,
        });
        let mut n = network.len();
        while n > 0 {
            n -= 1;
            match if chaos { random.below(10) } else { 9 } {
                0 => drop(network.swap_remove(n)),
                1 | 2 => {}
                3 => {
                    let (to, shard, message) = network[n].clone();
                    nodes[to].inbox.push(Event::Message(shard, Box::new(message)));
                }
                _ => {
                    let (to, shard, message) = network.remove(n);
                    nodes[to].inbox.push(Event::Message(shard, Box::new(message)));
                }
            }
        }
    }
    histories.extend(nodes.iter().map(|n| n.machine.applied.lock().unwrap()[&SHARD].clone()));
    let longest = histories.iter().max_by_key(|h| h.len()).unwrap().clone();
    for history in &histories {
        assert!(longest.starts_with(history), "log matching, seed {seed}");
    }
    let everywhere: BTreeSet<Bytes> = longest.iter().map(|e| e.payload.clone()).collect();
    assert!(acknowledged.is_subset(&everywhere), "acknowledged entries present, seed {seed}");
    assert!(acknowledged.len() > 100, "progress, seed {seed}: {}", acknowledged.len());
    for node in &nodes {
        let applied = node.machine.applied.lock().unwrap()[&SHARD].len();
        assert!(applied + 50 > longest.len(), "all replicas catch up, seed {seed}");
    }
}

#[test]
fn three_nodes_agree_whatever_the_network_does() {
    for seed in 0..8 {
        three_nodes(seed);
    }
}
