//! The core of the store loop: all Raft groups of a node, stepped together.
//!
//! One step takes every event that is waiting, lets each group that has work produce its entries, and hands them out
//! as one log batch. Groups that have no work are not touched: their number costs memory, not time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use isochrone_base::{LogIndex, NodeId, ShardId, Term};
use isochrone_env::Random;
use raft::eraftpb::Message;
use raft::{RawNode, StateRole};
use tokio::sync::oneshot;

use crate::group::{GroupStatus, GroupStorage, to_log_entry};
use crate::inbox::{Proposal, ProposeError};
use crate::log::{GroupLog, HardState, LogBatch};
use crate::{ApplyError, CommittedEntry, NewGroup, Role, StateMachine, metrics};

/// How a store runs.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// This node.
    pub node: NodeId,
    /// Length of a tick, in milliseconds. Default 100.
    pub tick_ms: u64,
    /// Ticks without a leader before an election; each group draws from this to twice this. Default 10.
    pub election_ticks: usize,
    /// Ticks between heartbeats. Default 3.
    pub heartbeat_ticks: usize,
    /// Log batches written but not yet durable; at the bound a group's further entries wait in memory. Default 8.
    pub batches_in_flight_max: usize,
}

impl StoreConfig {
    /// The defaults for a node.
    pub fn new(node: NodeId) -> StoreConfig {
        StoreConfig { node, tick_ms: 100, election_ticks: 10, heartbeat_ticks: 3, batches_in_flight_max: 8 }
    }

    /// Says what is wrong with the settings.
    pub fn validate(&self) -> Result<(), String> {
        if self.node.0 == 0 {
            return Err("node id 0 is not a node".into());
        }
        if self.heartbeat_ticks == 0 || self.heartbeat_ticks >= self.election_ticks {
            return Err(format!(
                "heartbeat_ticks {} must be above 0 and below election_ticks {}",
                self.heartbeat_ticks, self.election_ticks
            ));
        }
        if self.tick_ms == 0 || self.batches_in_flight_max == 0 {
            return Err("tick_ms and batches_in_flight_max must be above 0".into());
        }
        Ok(())
    }
}

/// What can wake the loop.
pub enum Event {
    /// An entry for a shard's log.
    #[doc(hidden)]
    Propose(ProposalEvent),
    /// Every batch up to this number is durable, or the log has failed.
    Durable(Result<u64, String>),
    /// A message from a peer's group.
    Message(ShardId, Box<Message>),
    /// A tick has passed.
    Tick,
    /// See [`crate::Handle::truncate`].
    Truncate(Vec<(ShardId, LogIndex)>),
    /// See [`crate::Handle::status`].
    Status(oneshot::Sender<BTreeMap<ShardId, GroupStatus>>),
    /// End the loop.
    Stop,
}

/// A proposal with its way back.
pub struct ProposalEvent(pub(crate) Proposal);

impl Event {
    pub(crate) fn propose(proposal: Proposal) -> Event {
        Event::Propose(ProposalEvent(proposal))
    }
}

/// What a step wants done.
#[derive(Default)]
pub struct Output {
    /// To be written and synced, in order; then [`Event::Durable`] with its number.
    pub log: Option<(u64, LogBatch)>,
    /// To be sent, to a peer's group.
    pub messages: Vec<(NodeId, ShardId, Message)>,
    /// The loop is to end.
    pub stop: bool,
}

struct Waiting {
    term: Term,
    reply: oneshot::Sender<Result<LogIndex, ProposeError>>,
}

struct Group {
    raft: RawNode<GroupStorage>,
    role: Role,
    /// Proposals in the log and not yet applied, by index.
    waiting: BTreeMap<LogIndex, Waiting>,
    /// Readies that are in a log batch: (batch, ready, last entry, messages that may leave when it is durable).
    unpersisted: VecDeque<(u64, u64, LogIndex, Vec<Message>)>,
    applied: LogIndex,
    single_voter: bool,
}

/// All groups of a node.
pub struct Store {
    config: StoreConfig,
    groups: BTreeMap<ShardId, Group>,
    log: Arc<dyn GroupLog>,
    machine: Arc<dyn StateMachine>,
    random: Arc<dyn Random>,
    logger: slog::Logger,
    next_batch: u64,
    durable_batch: u64,
    /// Groups that may have something to do.
    active: BTreeSet<ShardId>,
    /// Which groups have readies that wait for a batch: the others are not touched when it is durable.
    persisting: BTreeMap<u64, BTreeSet<ShardId>>,
    /// Groups with more than one voter.
    ticking: usize,
    failed: Option<String>,
}

impl Store {
    /// A store without groups.
    pub fn new(
        config: StoreConfig,
        log: Arc<dyn GroupLog>,
        machine: Arc<dyn StateMachine>,
        random: Arc<dyn Random>,
    ) -> Result<Store, String> {
        config.validate()?;
        Ok(Store {
            config,
            groups: BTreeMap::new(),
            log,
            machine,
            random,
            logger: slog::Logger::root(slog::Discard, slog::o!()),
            next_batch: 1,
            durable_batch: 0,
            active: BTreeSet::new(),
            persisting: BTreeMap::new(),
            ticking: 0,
            failed: None,
        })
    }

    /// Opens a group over what the log holds for it. A group of one campaigns at once: there is nobody to wait for.
    pub fn create_group(&mut self, new: NewGroup) -> Result<(), String> {
        if self.groups.contains_key(&new.shard) {
            return Ok(()); // a split that is applied again after a restart
        }
        let storage = GroupStorage::open(new.shard, &new.voters, new.applied, self.log.clone());
        if storage.last() < new.applied {
            return Err(format!(
                "shard {}: the state machine has applied entry {}, the log ends at {}: the log lost acknowledged entries",
                new.shard,
                new.applied,
                storage.last()
            ));
        }
        if new.applied + 1 < storage.first() {
            return Err(format!(
                "shard {}: the log starts at entry {}, the state machine has applied only {}",
                new.shard,
                storage.first(),
                new.applied
            ));
        }
        let config = raft::Config {
            id: u64::from(self.config.node.0),
            election_tick: self.config.election_ticks,
            heartbeat_tick: self.config.heartbeat_ticks,
            applied: new.applied,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            check_quorum: true,
            pre_vote: true,
            max_committed_size_per_ready: 16 << 20,
            ..raft::Config::default()
        };
        let mut raft =
            RawNode::new(&config, storage, &self.logger).map_err(|e| format!("shard {}: {e}", new.shard))?;
        let single_voter = new.voters == [self.config.node];
        let term = raft.raft.term;
        if single_voter {
            raft.campaign().map_err(|e| format!("shard {}: {e}", new.shard))?;
        } else {
            draw_election_timeout(&mut raft, &self.config, &*self.random);
        }
        let group = Group {
            raft,
            role: Role::Follower(term, None),
            waiting: BTreeMap::new(),
            unpersisted: VecDeque::new(),
            applied: new.applied,
            single_voter,
        };
        self.ticking += usize::from(!single_voter);
        self.groups.insert(new.shard, group);
        self.active.insert(new.shard);
        Ok(())
    }

    /// Does some group need ticks? Groups of one do not: they have nobody to hear from.
    pub fn needs_ticks(&self) -> bool {
        self.ticking > 0
    }

    /// Has something to do even without an event. While too many batches wait for the disk it has not: the next
    /// durable mark is the event that lets it go on.
    pub fn has_work(&self) -> bool {
        !self.active.is_empty() && !self.is_held_back()
    }

    fn is_held_back(&self) -> bool {
        self.next_batch - self.durable_batch > self.config.batches_in_flight_max as u64
    }

    /// Takes what happened and says what to do. Returns an error when a state machine could not apply an entry: the
    /// caller must stop the node.
    pub fn step(&mut self, events: &mut Vec<Event>, out: &mut Output) -> Result<(), ApplyError> {
        let mut batch = LogBatch::default();
        for event in events.drain(..) {
            match event {
                Event::Propose(ProposalEvent(proposal)) => self.propose(proposal),
                Event::Durable(Ok(upto)) => self.durable(upto, out),
                Event::Durable(Err(reason)) => self.fail(&reason),
                Event::Message(shard, message) => {
                    if let Some(group) = self.groups.get_mut(&shard) {
                        // raft-rs refuses what does not fit its state (an unknown peer, a local message type):
                        // such a message is dropped, as the network might have done.
                        let term = group.raft.raft.term;
                        if let Err(error) = group.raft.step(*message) {
                            tracing::debug!(%shard, %error, "raft message dropped");
                        }
                        if group.raft.raft.term != term {
                            draw_election_timeout(&mut group.raft, &self.config, &*self.random);
                        }
                        self.active.insert(shard);
                    }
                }
                Event::Tick => {
                    for (&shard, group) in self.groups.iter_mut().filter(|(_, g)| !g.single_voter) {
                        let term = group.raft.raft.term;
                        if group.raft.tick() {
                            self.active.insert(shard);
                        }
                        if group.raft.raft.term != term {
                            draw_election_timeout(&mut group.raft, &self.config, &*self.random);
                        }
                    }
                }
                Event::Truncate(list) => {
                    for (shard, upto) in list {
                        let Some(group) = self.groups.get_mut(&shard) else { continue };
                        let upto = upto.min(group.applied);
                        if upto + 1 > group.raft.store().first() {
                            let keep = group.raft.mut_store().truncate(upto);
                            batch.truncate.push((shard, keep));
                        }
                    }
                }
                Event::Status(reply) => {
                    let _ = reply.send(self.groups.iter().map(|(s, g)| (*s, g.status())).collect());
                }
                Event::Stop => out.stop = true,
            }
        }
        self.ready(&mut batch, out)?;
        if !batch.is_empty() && self.failed.is_none() {
            out.log = Some((self.next_batch, batch));
            self.next_batch += 1;
        }
        if out.stop {
            self.abandon("the node is shutting down");
        }
        Ok(())
    }

    fn propose(&mut self, p: Proposal) {
        if let Some(reason) = &self.failed {
            let _ = p.reply.send(Err(ProposeError::Stopped(reason.clone())));
            return;
        }
        let Some(group) = self.groups.get_mut(&p.shard) else {
            let _ = p.reply.send(Err(ProposeError::NotLeader(p.shard)));
            return;
        };
        let raft = &mut group.raft;
        if raft.raft.state != StateRole::Leader || raft.raft.term != p.term {
            let _ = p.reply.send(Err(ProposeError::NotLeader(p.shard)));
            return;
        }
        assert!(
            !p.payload.is_empty() && p.payload[0] != crate::log::CONF_CHANGE,
            "a command is not empty and does not look like a membership change"
        );
        match raft.propose(Vec::new(), p.payload.into()) {
            Ok(()) => {
                let index = raft.raft.raft_log.last_index();
                group.waiting.insert(index, Waiting { term: p.term, reply: p.reply });
                self.active.insert(p.shard);
            }
            Err(_) => {
                let _ = p.reply.send(Err(ProposeError::NotLeader(p.shard)));
            }
        }
    }

    fn durable(&mut self, upto: u64, out: &mut Output) {
        self.durable_batch = self.durable_batch.max(upto);
        let later = self.persisting.split_off(&(upto + 1));
        let done = std::mem::replace(&mut self.persisting, later);
        let shards: BTreeSet<ShardId> = done.into_values().flatten().collect();
        for shard in shards {
            let group = self.groups.get_mut(&shard).expect("groups stay");
            let mut last_ready = None;
            while group.unpersisted.front().is_some_and(|(batch, ..)| *batch <= upto) {
                let (_, ready, last, messages) = group.unpersisted.pop_front().expect("front was there");
                last_ready = Some((ready, last));
                out.messages.extend(messages.into_iter().map(|m| (NodeId(m.to as u32), shard, m)));
            }
            if let Some((ready, last)) = last_ready {
                group.raft.on_persist_ready(ready);
                group.raft.mut_store().trim_cache(last);
                self.active.insert(shard);
            }
        }
    }

    /// Lets every active group go on: entries to the batch, messages out, committed entries to the state machine.
    fn ready(&mut self, batch: &mut LogBatch, out: &mut Output) -> Result<(), ApplyError> {
        let mut created = Vec::new();
        let mut held_back = BTreeSet::new();
        while let Some(shard) = self.active.pop_first() {
            if self.failed.is_some() {
                continue;
            }
            let is_held_back = self.is_held_back();
            let group = self.groups.get_mut(&shard).expect("active groups exist");
            if is_held_back {
                // Too many batches wait for the disk. Committed entries wait with them: the next durable mark, which
                // is on its way, lets everything go on.
                held_back.insert(shard);
                continue;
            }
            while group.raft.has_ready() {
                let mut ready = group.raft.ready();
                let leader_id = group.raft.raft.leader_id;
                let term = group.raft.raft.term;
                let role = if group.raft.raft.state == StateRole::Leader {
                    Role::Leader(term)
                } else {
                    Role::Follower(term, (leader_id != 0).then_some(NodeId(leader_id as u32)))
                };
                if role != group.role {
                    group.role = role;
                    self.machine.role(shard, role);
                }
                out.messages
                    .extend(ready.take_messages().into_iter().map(|m| (NodeId(m.to as u32), shard, m)));
                let entries = ready.take_entries();
                let must_sync = ready.must_sync();
                if let Some(hs) = ready.hs() {
                    let hs = HardState { term: hs.term, vote: hs.vote, commit: hs.commit };
                    group.raft.mut_store().set_hard_state(hs);
                    if must_sync {
                        batch.hard_states.push((shard, hs));
                    }
                }
                group.raft.mut_store().append(&entries);
                batch.entries.extend(entries.iter().map(|e| (shard, to_log_entry(e))));
                let persisted_messages = ready.take_persisted_messages();
                let committed = ready.take_committed_entries();
                let number = ready.number();
                group.raft.advance_append_async(ready);
                if must_sync {
                    let last = group.raft.store().last();
                    group.unpersisted.push_back((self.next_batch, number, last, persisted_messages));
                    self.persisting.entry(self.next_batch).or_default().insert(shard);
                } else if group.unpersisted.is_empty() {
                    group.raft.on_persist_ready(number);
                    out.messages
                        .extend(persisted_messages.into_iter().map(|m| (NodeId(m.to as u32), shard, m)));
                } else {
                    // In order behind the ready that is still on its way to the disk.
                    let (batch, last) =
                        group.unpersisted.back().map(|(b, _, l, _)| (*b, *l)).expect("not empty");
                    group.unpersisted.push_back((batch, number, last, persisted_messages));
                }
                if !committed.is_empty() {
                    created.extend(group.apply(shard, committed, &*self.machine)?);
                }
            }
        }
        self.active.append(&mut held_back);
        for new in created {
            let shard = new.shard;
            self.create_group(new).map_err(|reason| ApplyError { shard, index: 0, reason })?;
        }
        if self.active.iter().any(|s| self.groups[s].raft.has_ready()) && !self.is_held_back() {
            return self.ready(batch, out); // groups that were just created
        }
        Ok(())
    }

    /// The log has failed: C6.
    fn fail(&mut self, reason: &str) {
        if self.failed.is_none() {
            tracing::error!(reason, "the node log has failed; nothing more is acknowledged");
            self.failed = Some(reason.to_string());
            self.machine.stopped(reason);
        }
        self.abandon(reason);
    }

    /// Answers every proposal whose entry is in the log but not applied: nobody knows.
    fn abandon(&mut self, reason: &str) {
        for group in self.groups.values_mut() {
            for (_, waiting) in std::mem::take(&mut group.waiting) {
                let _ = waiting.reply.send(Err(ProposeError::Ambiguous(reason.to_string())));
            }
        }
    }
}

impl Group {
    fn apply(
        &mut self,
        shard: ShardId,
        committed: Vec<raft::eraftpb::Entry>,
        machine: &dyn StateMachine,
    ) -> Result<Vec<NewGroup>, ApplyError> {
        let entries: Vec<CommittedEntry> = committed
            .into_iter()
            .map(|e| CommittedEntry { index: e.index, term: e.term, payload: to_log_entry(&e).payload })
            .collect();
        let (first, last) = (entries[0].index, entries[entries.len() - 1].index);
        assert_eq!(
            first,
            self.applied + 1,
            "C5: entries of shard {shard} reach the state machine without gaps"
        );
        ::metrics::counter!(metrics::APPLIED).increment(entries.len() as u64);
        let created = machine.apply(shard, &entries)?;
        self.applied = last;
        self.raft.advance_apply_to(last);
        for entry in &entries {
            if let Some(waiting) = self.waiting.remove(&entry.index) {
                // C2: what was applied at that index is the proposer's own entry only if the term is the same.
                let answer = if waiting.term == entry.term {
                    Ok(entry.index)
                } else {
                    Err(ProposeError::NotLeader(shard))
                };
                let _ = waiting.reply.send(answer);
            }
        }
        Ok(created)
    }

    fn status(&self) -> GroupStatus {
        let raft = &self.raft.raft;
        GroupStatus {
            term: raft.term,
            leader: (raft.leader_id != 0).then_some(NodeId(raft.leader_id as u32)),
            first_index: self.raft.store().first(),
            last_index: raft.raft_log.last_index(),
            commit: raft.raft_log.committed,
            applied: self.applied,
        }
    }
}

/// raft-rs draws its election timeout from the thread's generator; a run must be a function of its seed (D3, D14).
fn draw_election_timeout(raft: &mut RawNode<GroupStorage>, config: &StoreConfig, random: &dyn Random) {
    let ticks = config.election_ticks + (random.next_u64() % config.election_ticks as u64) as usize;
    raft.raft.set_randomized_election_timeout(ticks);
}
