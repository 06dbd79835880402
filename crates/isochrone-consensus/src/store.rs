//! The core of the store loop: all Raft groups of a node, stepped together.
//!
//! One step takes every event that is waiting, lets each group that has work produce its entries, and hands them out
//! as one log batch. Groups that have no work are not touched: their number costs memory, not time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use isochrone_base::{INIT_INDEX, LogIndex, NodeId, ShardId};
use isochrone_env::Random;
use raft::eraftpb::Message;
use tokio::sync::oneshot;

use crate::group::{Extent, GroupStatus, GroupStorage, Shared, Slot};
use crate::held::Held;
use crate::inbox::{Inbox, Proposal, ProposeError};
use crate::lease::Terms;
use crate::log::{CONF_CHANGE, GroupLog, LogBatch};
use crate::membership::Step;
use crate::replica::{Env, LogEnd, Past, Replica, Waiting};
use crate::{ApplyError, NewGroup, OutgoingSnapshot, SnapshotMeta, StateMachine};

/// For so many election timeouts a leader or candidate speaks to a group that is not here before a blank replica is
/// made for it (CS3).
const BLANK_AFTER_TIMEOUTS: u64 = 2;
/// The same where the node log knows the shard: its group is most likely coming by itself (a split that is being applied
/// again), and a snapshot would replace a log that others may count on.
const BLANK_OVER_LOG_AFTER_TIMEOUTS: u64 = 10;
/// A missing group is forgotten when nobody has spoken to it for so many election timeouts.
const FORGOTTEN_AFTER_TIMEOUTS: u64 = 3;

/// How a store runs.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// This node.
    pub node: NodeId,
    /// Length of a tick, in milliseconds. Default 100.
    pub tick_ms: u64,
    /// Ticks without a leader before an election; each group draws from this to twice this. Default 10.
    pub election_ticks: usize,
    /// Ticks between heartbeats. Default 2.
    pub heartbeat_ticks: usize,
    /// Ticks for which a follower that answered a heartbeat votes for nobody; the lease lasts 20 % less (CS1). Shorter:
    /// a dead leader is replaced sooner; leases end sooner when answers are slow. Default 9, and at most one less
    /// than `election_ticks`.
    pub promise_ticks: usize,
    /// Log batches written but not yet durable; at the bound a group's further entries wait in memory. Default 8.
    pub batches_in_flight_max: usize,
    /// The log was cut at recovery: it may lack what was acknowledged (C9). Default no.
    pub recovering: bool,
}

impl StoreConfig {
    /// The defaults for a node.
    pub fn new(node: NodeId) -> StoreConfig {
        StoreConfig {
            node,
            tick_ms: 100,
            election_ticks: 10,
            heartbeat_ticks: 2,
            promise_ticks: 9,
            batches_in_flight_max: 8,
            recovering: false,
        }
    }

    /// Says what is wrong with the settings.
    pub fn validate(&self) -> Result<(), String> {
        if self.node.0 == 0 {
            return Err("node id 0 is not a node".into());
        }
        if self.heartbeat_ticks == 0 || self.heartbeat_ticks >= self.promise_ticks {
            return Err(format!(
                "heartbeat_ticks {} must be above 0 and below promise_ticks {}",
                self.heartbeat_ticks, self.promise_ticks
            ));
        }
        if self.promise_ticks >= self.election_ticks {
            // A follower's first tick may come at once: n ticks last at least n - 1 tick lengths.
            return Err(format!(
                "promise_ticks {} must be below election_ticks {}",
                self.promise_ticks, self.election_ticks
            ));
        }
        if self.tick_ms == 0 || self.batches_in_flight_max == 0 {
            return Err("tick_ms and batches_in_flight_max must be above 0".into());
        }
        Ok(())
    }

    fn terms(&self) -> Terms {
        let tick_ns = self.tick_ms.saturating_mul(1_000_000);
        Terms {
            tick_ns,
            promise_ns: tick_ns.saturating_mul(self.promise_ticks as u64),
            restart_ns: tick_ns.saturating_mul(self.election_ticks as u64),
        }
    }
}

/// What can wake the loop.
pub enum Event {
    /// An entry for a shard's log.
    #[doc(hidden)]
    Propose(ProposalEvent),
    /// Every batch up to this number is durable, or the log has failed.
    Durable(Result<u64, String>),
    /// Messages from peers' groups.
    Messages(Vec<(ShardId, Message)>),
    /// A tick has passed.
    Tick,
    /// See [`crate::Handle::snapshot_received`].
    SnapshotReceived(ShardId, SnapshotMeta, Box<Message>),
    /// See [`crate::Handle::snapshot_sent`].
    SnapshotSent(ShardId, NodeId, bool),
    /// What [`crate::StateMachine::install`] said.
    Installed(ShardId, Result<NewGroup, String>),
    /// See [`crate::Handle::transfer`].
    Transfer(ShardId, NodeId, oneshot::Sender<Result<(), String>>),
    /// See [`crate::Handle::change_members`].
    ChangeMembers(ShardId, Vec<NodeId>, oneshot::Sender<Result<Step, String>>),
    /// See [`crate::Handle::remove`].
    Remove(ShardId, LogEnd, oneshot::Sender<Result<(), String>>),
    /// What [`crate::StateMachine::remove`] said.
    #[doc(hidden)]
    Removed(RemovedEvent),
    /// See [`crate::Handle::unreachable`].
    Unreachable(NodeId),
    /// See [`crate::Handle::peer_lost`].
    PeerLost(NodeId),
    /// See [`crate::Handle::truncate`].
    Truncate(Vec<(ShardId, LogIndex)>),
    /// See [`crate::Handle::status`].
    Status(oneshot::Sender<BTreeMap<ShardId, GroupStatus>>),
    /// End the loop.
    Stop,
}

/// A replica whose state is gone, or not.
pub struct RemovedEvent {
    gone: Gone,
    result: Result<(), String>,
}

/// A proposal with its way back.
pub struct ProposalEvent(pub(crate) Proposal);

impl Event {
    pub(crate) fn propose(proposal: Proposal) -> Event {
        Event::Propose(ProposalEvent(proposal))
    }
}

/// A received snapshot whose log is reset and durable: to be installed.
pub struct Install {
    pub(crate) shard: ShardId,
    pub(crate) meta: SnapshotMeta,
    pub(crate) machine: Arc<dyn StateMachine>,
}

impl Install {
    /// Starts [`StateMachine::install`]; its outcome becomes an event of this inbox.
    pub fn start(self, inbox: &Arc<Inbox>) {
        let (shard, inbox) = (self.shard, inbox.clone());
        let done = Box::new(move |result| inbox.push(Event::Installed(shard, result)));
        self.machine.install(shard, self.meta, done);
    }
}

/// A replica that left its group: its state is to be removed.
pub struct Removal {
    gone: Gone,
    machine: Arc<dyn StateMachine>,
}

struct Gone {
    shard: ShardId,
    /// What the leaseholder of its group had applied.
    upto: LogEnd,
    /// Its log may have lacked what it had acknowledged.
    doubtful: bool,
    reply: oneshot::Sender<Result<(), String>>,
}

impl Removal {
    /// Starts [`StateMachine::remove`]; its outcome becomes an event of this inbox.
    pub fn start(self, inbox: &Arc<Inbox>) {
        let Removal { gone, machine } = self;
        let (shard, inbox) = (gone.shard, inbox.clone());
        let done = move |result| inbox.push(Event::Removed(RemovedEvent { gone, result }));
        machine.remove(shard, Box::new(done));
    }
}

/// What a step wants done. Messages and snapshots may leave before the batch is written.
#[derive(Default)]
pub struct Output {
    /// To be written and synced, in order; then [`Event::Durable`] with its number.
    pub log: Option<(u64, LogBatch)>,
    /// To be sent, to peers' groups.
    pub messages: BTreeMap<NodeId, Vec<(ShardId, Message)>>,
    /// To be sent, each by itself.
    pub snapshots: Vec<OutgoingSnapshot>,
    /// To be started.
    pub installs: Vec<Install>,
    /// To be started.
    pub removals: Vec<Removal>,
    /// The loop is to end.
    pub stop: bool,
    /// Places of the snapshots above, until [`Event::SnapshotSent`].
    pub(crate) slots: Vec<(ShardId, NodeId, Slot)>,
}

/// All groups of a node.
pub struct Store {
    env: Env,
    groups: BTreeMap<ShardId, Replica>,
    held: Held,
    next_batch: u64,
    durable_batch: u64,
    /// Groups that may have something to do.
    active: BTreeSet<ShardId>,
    /// Which groups have readies that wait for a batch: the others are not touched when it is durable.
    persisting: BTreeMap<u64, BTreeSet<ShardId>>,
    /// What groups that were just born want in the log.
    births: LogBatch,
    /// Groups with more than one voter, or none yet.
    ticking: usize,
    ticks: u64,
    /// Snapshots on their way out.
    sending: BTreeMap<(ShardId, NodeId), Slot>,
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
            env: Env {
                terms: config.terms(),
                config,
                random,
                shared: Shared { log, machine, snapshots_out: Arc::default() },
                logger: slog::Logger::root(slog::Discard, slog::o!()),
                now: 0,
                started: 0,
            },
            groups: BTreeMap::new(),
            held: Held::default(),
            next_batch: 1,
            durable_batch: 0,
            active: BTreeSet::new(),
            persisting: BTreeMap::new(),
            births: LogBatch::default(),
            ticking: 0,
            ticks: 0,
            sending: BTreeMap::new(),
            failed: None,
        })
    }

    /// Opens a group over what the log holds for it. A group of one campaigns at once: there is nobody to wait for.
    /// A blank replica is replaced. A replica of several voters whose log does not fit what was applied becomes blank
    /// (C9): its peers refill it.
    pub fn create_group(&mut self, new: NewGroup) -> Result<(), String> {
        let doubtful = self.env.config.recovering;
        self.create(new, doubtful)
    }

    fn create(&mut self, new: NewGroup, doubtful: bool) -> Result<(), String> {
        let shard = new.shard;
        if self.groups.get(&shard).is_some_and(|g| !g.is_blank()) {
            return Ok(()); // a split that is applied again after a restart, or one whose right half came by snapshot
        }
        if new.members.is_empty() {
            return Err(format!("shard {shard}: a group without voters"));
        }
        let shared = self.env.shared.clone();
        let extent = Extent::of(&*shared.log, shard);
        let whole = Past { doubtful, ..Past::default() };
        let (storage, applied, past) = if extent.is_untouched() && new.applied == INIT_INDEX {
            let storage = GroupStorage::born(shard, &new.members, shared);
            self.births.resets.push((shard, INIT_INDEX + 1, storage.base().1));
            self.births.hard_states.push((shard, storage.hard_state()));
            (storage, new.applied, whole)
        } else if new.applied <= extent.last
            && extent.first <= new.applied + 1
            && extent.is_of(&new, &*shared.log)
        {
            (GroupStorage::open(shard, &new.members, new.applied, shared), new.applied, whole)
        } else {
            let lost = extent.last < new.applied || extent.first <= new.applied + 1;
            let misfit = if extent.last < new.applied {
                format!("the log ends at {}: the log lost acknowledged entries", extent.last)
            } else if lost {
                "another entry stands there in the log: the log lost the one that replaced it".to_string()
            } else {
                format!("the log starts at entry {}", extent.first)
            };
            let applied = new.applied;
            if new.members.is_only(self.env.config.node) {
                return Err(format!(
                    "shard {shard}: the state machine has applied entry {applied}, {misfit}"
                ));
            }
            tracing::warn!(%shard, applied, misfit, "the replica has to be refilled");
            let (term, last) = extent.end(&*shared.log, shard);
            // What was applied was acknowledged, in that term or a later one.
            let past = Past { doubtful: doubtful || lost, acknowledged: (term, last.max(new.applied)) };
            (GroupStorage::blank(shard, shared), 0, past)
        };
        let mut replica = Replica::new(shard, storage, applied, past, &self.env)?;
        if replica.single_voter || new.campaign {
            replica.campaign(&self.env)?;
        }
        self.insert(shard, replica);
        Ok(())
    }

    fn insert(&mut self, shard: ShardId, mut replica: Replica) {
        self.ticking += usize::from(!replica.single_voter);
        if let Some(old) = self.groups.get(&shard) {
            // Votes of the old one that are not durable yet have not left, and will not: the log's hard state counts.
            self.ticking -= usize::from(!old.single_voter);
            replica.take_over(old);
        }
        for message in self.held.take(shard) {
            replica.message(message, &self.env);
        }
        self.groups.insert(shard, replica);
        self.active.insert(shard);
    }

    fn create_blank(&mut self, shard: ShardId, doubtful: bool) {
        let shared = self.env.shared.clone();
        let acknowledged = Extent::of(&*shared.log, shard).end(&*shared.log, shard);
        let past = Past { doubtful, acknowledged };
        match Replica::new(shard, GroupStorage::blank(shard, shared), 0, past, &self.env) {
            Ok(replica) => {
                tracing::info!(%shard, "a blank replica waits for a snapshot");
                self.insert(shard, replica);
            }
            Err(reason) => tracing::error!(%shard, reason, "no blank replica"),
        }
    }

    /// Does some group doubt its log? See [`GroupStatus::doubtful`].
    pub fn is_doubtful(&self) -> bool {
        self.groups.values().any(Replica::is_in_doubt)
    }

    /// The length of a tick.
    pub fn tick(&self) -> Duration {
        Duration::from_nanos(self.env.terms.tick_ns)
    }

    /// Does something need ticks? Groups of one do not: they have nobody to hear from.
    pub fn needs_ticks(&self) -> bool {
        self.ticking > 0 || !self.held.is_empty()
    }

    /// Has something to do even without an event. While too many batches wait for the disk it has not: the next
    /// durable mark is the event that lets it go on.
    pub fn has_work(&self) -> bool {
        (!self.active.is_empty() && !self.is_held_back()) || !self.births.is_empty()
    }

    fn is_held_back(&self) -> bool {
        self.next_batch - self.durable_batch > self.config().batches_in_flight_max as u64
    }

    fn config(&self) -> &StoreConfig {
        &self.env.config
    }

    /// Takes what happened and says what to do. `now` is the monotonic clock, read after the events were taken from
    /// the inbox (C7: an answer counts from then). Returns an error when a state machine could not apply an entry: the
    /// caller must stop the node.
    pub fn step(&mut self, now: u64, events: &mut Vec<Event>, out: &mut Output) -> Result<(), ApplyError> {
        self.env.now = self.env.now.max(now);
        if self.env.started == 0 {
            self.env.started = self.env.now.max(1);
        }
        let mut batch = LogBatch::default();
        for event in events.drain(..) {
            self.take(event, &mut batch, out);
        }
        self.ready(&mut batch, out)?;
        for (shard, to, slot) in out.slots.drain(..) {
            self.sending.insert((shard, to), slot);
        }
        if !batch.is_empty() && self.failed.is_none() {
            out.log = Some((self.next_batch, batch));
            self.next_batch += 1;
        }
        if out.stop {
            self.abandon("the node is shutting down");
        }
        Ok(())
    }

    fn take(&mut self, event: Event, batch: &mut LogBatch, out: &mut Output) {
        match event {
            Event::Propose(ProposalEvent(proposal)) => self.propose(proposal),
            // C6: behind a batch that failed nothing counts, whatever a log says of a later one.
            Event::Durable(Ok(upto)) if self.failed.is_none() => self.durable(upto, out),
            Event::Durable(Ok(_)) => {}
            Event::Durable(Err(reason)) => self.fail(&reason),
            Event::Messages(messages) => {
                for (shard, message) in messages {
                    self.message(shard, message);
                }
            }
            Event::Tick => {
                self.ticks += 1;
                for (&shard, group) in self.groups.iter_mut().filter(|(_, g)| !g.single_voter) {
                    if group.tick(&self.env) {
                        self.active.insert(shard);
                    }
                }
                self.held
                    .forget(self.ticks, FORGOTTEN_AFTER_TIMEOUTS * self.env.config.election_ticks as u64);
            }
            Event::SnapshotReceived(shard, meta, message) => {
                let env = &self.env;
                let wanted = self.groups.get_mut(&shard).is_some_and(|g| g.snapshot(&meta, *message, env));
                self.active.extend(self.groups.contains_key(&shard).then_some(shard));
                if !wanted {
                    self.env.shared.machine.discard(shard, meta);
                }
            }
            Event::SnapshotSent(shard, to, ok) => {
                self.sending.remove(&(shard, to));
                self.touch(shard, |g, _| g.report_snapshot(to, ok));
            }
            Event::Installed(shard, result) => self.installed(shard, result, out),
            Event::Transfer(shard, to, reply) => match self.groups.get_mut(&shard) {
                Some(group) => {
                    group.transfer(to, reply, &self.env);
                    self.active.insert(shard);
                }
                None => drop(reply.send(Err(format!("shard {shard} is not on this node")))),
            },
            Event::ChangeMembers(shard, wanted, reply) => {
                let answer = match self.groups.get_mut(&shard) {
                    Some(group) => {
                        self.active.insert(shard);
                        group.change_members(&wanted, &self.env)
                    }
                    None => Err(format!("shard {shard} is not on this node")),
                };
                let _ = reply.send(answer);
            }
            Event::Remove(shard, upto, reply) => self.remove(shard, upto, reply, out),
            Event::Removed(RemovedEvent { gone, result }) => {
                if result.is_ok() {
                    self.forget_entries(&gone, batch);
                }
                let _ = gone.reply.send(result);
            }
            Event::Unreachable(node) => {
                let touched = self.groups.iter_mut().filter(|(_, g)| !g.single_voter);
                let touched = touched.filter_map(|(s, g)| g.unreachable(node).then_some(*s));
                self.active.extend(touched);
            }
            Event::PeerLost(node) => {
                self.groups
                    .values_mut()
                    .filter(|g| !g.single_voter)
                    .for_each(|g| g.peer_lost(node, &self.env));
            }
            Event::Truncate(list) => {
                for (shard, upto) in list {
                    let keep = self.groups.get_mut(&shard).and_then(|g| g.truncate(upto));
                    batch.truncate.extend(keep.map(|keep| (shard, keep)));
                }
            }
            Event::Status(reply) => {
                let _ = reply.send(self.groups.iter().map(|(s, g)| (*s, g.status())).collect());
            }
            Event::Stop => out.stop = true,
        }
    }

    fn touch(&mut self, shard: ShardId, f: impl FnOnce(&mut Replica, &Env) -> bool) {
        if let Some(group) = self.groups.get_mut(&shard)
            && f(group, &self.env)
        {
            self.active.insert(shard);
        }
    }

    fn message(&mut self, shard: ShardId, message: Message) {
        if let Some(group) = self.groups.get_mut(&shard) {
            group.message(message, &self.env);
            self.active.insert(shard);
            return;
        }
        if message.to != u64::from(self.config().node.0) {
            return;
        }
        let speaking = self.held.keep(shard, message, self.ticks);
        let election = self.config().election_ticks as u64;
        if speaking < BLANK_AFTER_TIMEOUTS * election {
            return;
        }
        let is_logged = !Extent::of(&*self.env.shared.log, shard).is_untouched();
        if !is_logged || speaking >= BLANK_OVER_LOG_AFTER_TIMEOUTS * election {
            self.create_blank(shard, self.config().recovering);
        }
    }

    /// Takes a replica that is no part of its group any more away. What it promised and acknowledged stays in the log.
    fn remove(
        &mut self,
        shard: ShardId,
        upto: LogEnd,
        reply: oneshot::Sender<Result<(), String>>,
        out: &mut Output,
    ) {
        // A log that waits for whatever would make its group again: a split, a snapshot, its leader.
        let log = &self.env.shared.log;
        let extent = Extent::of(&**log, shard);
        let end = extent.end(&**log, shard);
        let is_logged = log.hard_state(shard).is_some() || !extent.is_untouched();
        if is_logged && !self.groups.contains_key(&shard) {
            self.create_blank(shard, self.config().recovering);
        }
        let refused = match self.groups.get(&shard) {
            None => "it is not on this node",
            Some(g) if g.is_installing() => "a snapshot is being installed",
            Some(g) if g.leads() => "it leads",
            Some(g) if g.waits_for_disk() => "its last entries are on their way to the disk",
            // A leader of a later time sent them: the node belongs to the group again.
            Some(_) if end > upto => "its log goes on behind the word that it left",
            Some(_) => {
                let mut old = self.groups.remove(&shard).expect("it was there");
                self.ticking -= usize::from(!old.single_voter);
                self.active.remove(&shard);
                old.abandon("the replica is removed from this node");
                tracing::info!(%shard, "the replica is no part of its group any more, and is removed");
                let gone = Gone { shard, upto, doubtful: old.is_in_doubt(), reply };
                out.removals.push(Removal { gone, machine: self.env.shared.machine.clone() });
                return;
            }
        };
        let _ = reply.send(Err(format!("the replica of shard {shard} is not removed now: {refused}")));
    }

    /// The entries of a replica that is gone are not needed; what it acknowledged, at least, stays known (C9).
    fn forget_entries(&mut self, gone: &Gone, batch: &mut LogBatch) {
        let (shard, log) = (gone.shard, &self.env.shared.log);
        if self.groups.contains_key(&shard) {
            return;
        }
        let mut hs = log.hard_state(shard).unwrap_or_default();
        if gone.doubtful {
            // A vote in the next term may have been lost: it counts as cast.
            (hs.term, hs.vote) = (hs.term + 1, self.env.me());
        }
        let (term, last) = gone.upto;
        if Extent::of(&**log, shard).end(&**log, shard) < gone.upto {
            batch.resets.push((shard, last + 1, term));
            hs.commit = last;
            if hs.term < term {
                (hs.term, hs.vote) = (term, self.env.me());
            }
            batch.hard_states.push((shard, hs));
        } else if let Some((_, last)) = log.bounds(shard) {
            batch.truncate.push((shard, last));
            batch.hard_states.push((shard, hs));
        }
    }

    fn installed(&mut self, shard: ShardId, result: Result<NewGroup, String>, out: &mut Output) {
        let Some(group) = self.groups.get_mut(&shard).filter(|g| g.is_installing()) else { return };
        match result.and_then(|new| group.installed(&new, &self.env, out)) {
            Ok(()) => drop(self.active.insert(shard)),
            Err(reason) => {
                // The log begins behind the snapshot, the state is nothing: another snapshot has to come.
                tracing::warn!(%shard, reason, "a snapshot was not installed");
                let doubtful = self.groups[&shard].is_in_doubt();
                self.create_blank(shard, doubtful);
            }
        }
    }

    fn propose(&mut self, p: Proposal) {
        if let Some(reason) = &self.failed {
            let _ = p.reply.send(Err(ProposeError::Stopped(reason.clone())));
            return;
        }
        assert!(
            !p.payload.is_empty() && p.payload[0] != CONF_CHANGE,
            "a command is not empty and does not look like a membership change"
        );
        match self.groups.get_mut(&p.shard) {
            Some(group) => {
                if group.propose(p.term, p.payload, Waiting { term: p.term, reply: p.reply }) {
                    self.active.insert(p.shard);
                }
            }
            None => drop(p.reply.send(Err(ProposeError::NotLeader(p.shard)))),
        }
    }

    fn durable(&mut self, upto: u64, out: &mut Output) {
        self.durable_batch = self.durable_batch.max(upto);
        let later = self.persisting.split_off(&(upto + 1));
        let done = std::mem::replace(&mut self.persisting, later);
        let shards: BTreeSet<ShardId> = done.into_values().flatten().collect();
        for shard in shards {
            if let Some(group) = self.groups.get_mut(&shard) {
                group.durable(upto, &self.env, out);
                self.active.insert(shard);
            }
        }
    }

    /// Lets every active group go on: entries to the batch, messages out, committed entries to the state machine.
    fn ready(&mut self, batch: &mut LogBatch, out: &mut Output) -> Result<(), ApplyError> {
        let mut held_back = BTreeSet::new();
        loop {
            self.bear(batch);
            let Some(shard) = self.active.pop_first() else { break };
            if self.failed.is_some() {
                continue;
            }
            if self.is_held_back() {
                // Too many batches wait for the disk. Committed entries wait with them: the next durable mark, which
                // is on its way, lets everything go on.
                held_back.insert(shard);
                continue;
            }
            let mut created = Vec::new();
            let group = self.groups.get_mut(&shard).expect("active groups exist");
            while group.has_ready() {
                // What a replica in doubt applies may be from before its log was cut, and so may the groups that it
                // creates: their logs were cut with its own. Asked first: what it applies now may end its doubt.
                let doubtful = group.applies_in_doubt();
                let (new, waits) = group.ready(&self.env, self.next_batch, batch, out)?;
                created.extend(new.into_iter().map(|new| (new, doubtful)));
                if waits {
                    self.persisting.entry(self.next_batch).or_default().insert(shard);
                }
            }
            for (new, doubtful) in created {
                let shard = new.shard;
                self.create(new, doubtful).map_err(|reason| ApplyError { shard, index: 0, reason })?;
            }
        }
        self.active.append(&mut held_back);
        Ok(())
    }

    /// What new groups want in the log, before any of their entries.
    fn bear(&mut self, batch: &mut LogBatch) {
        if !self.births.is_empty() {
            let births = std::mem::take(&mut self.births);
            batch.resets.extend(births.resets);
            batch.hard_states.extend(births.hard_states);
        }
    }

    /// The log has failed: C6.
    fn fail(&mut self, reason: &str) {
        if self.failed.is_none() {
            tracing::error!(reason, "the node log has failed; nothing more is acknowledged");
            self.failed = Some(reason.to_string());
            self.env.shared.machine.stopped(reason);
        }
        self.abandon(reason);
    }

    /// Answers every proposal whose entry is in the log but not applied: nobody knows.
    fn abandon(&mut self, reason: &str) {
        self.groups.values_mut().for_each(|g| g.abandon(reason));
    }
}
