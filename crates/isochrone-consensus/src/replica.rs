//! One replica of a group: raft-rs's node with what it does not know about: leases, doubts about its own log,
//! snapshots that are being installed, transfers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use isochrone_base::{INIT_TERM, LogIndex, Members, NodeId, ShardId, Term, bank};
use isochrone_env::Random;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, MessageType};
use raft::{CAMPAIGN_TRANSFER, INVALID_ID, RawNode, StateRole};
use tokio::sync::oneshot;

use crate::doubt::{self, Doubt, Doubters, Tally};
use crate::group::{GroupStatus, GroupStorage, Progress, Shared, to_log_entry};
use crate::inbox::ProposeError;
use crate::lease::{self, Lease, Terms};
use crate::log::{HardState, LogBatch};
use crate::membership::{self, Learner, Next, Step};
use crate::store::{Output, StoreConfig};
use crate::wire::node;
use crate::{ApplyError, CommittedEntry, Install, NewGroup, OutgoingSnapshot, Role, SnapshotMeta, metrics};

/// Elections that are tried again after a few ticks instead of a whole timeout, once a leader is known to be gone.
const HURRY_MAX: u32 = 6;
/// Ticks between such elections: from this, and below this plus [`HURRY_TICKS_SPREAD`].
const HURRY_TICKS_MIN: usize = 2;
const HURRY_TICKS_SPREAD: u64 = 5;
/// By how many ticks the replicas of a lost leader are apart in their first try, so that they do not split the vote.
const RANK_TICKS: usize = 2;
/// Bytes of entries in one message.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// Messages with entries on their way to a follower; at the bound it gets no more until it answers.
const MESSAGES_IN_FLIGHT_MAX: usize = 256;
/// Bytes of committed entries applied at a time.
const COMMITTED_BYTES_MAX: u64 = 16 << 20;
/// Bytes of entries that a leader of several voters has proposed and not seen committed; at the bound proposals hear
/// `Overloaded`.
const UNCOMMITTED_BYTES_MAX: u64 = 256 << 20;

/// What all replicas of a store share, and the time of the present step.
pub(crate) struct Env {
    pub(crate) config: StoreConfig,
    pub(crate) terms: Terms,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) shared: Shared,
    pub(crate) logger: slog::Logger,
    /// The monotonic clock at this step.
    pub(crate) now: u64,
    /// The monotonic clock at the first step.
    pub(crate) started: u64,
}

impl Env {
    pub(crate) fn me(&self) -> u64 {
        u64::from(self.config.node.0)
    }

    fn below(&self, n: u64) -> u64 {
        self.random.next_u64() % n.max(1)
    }
}

pub(crate) struct Waiting {
    pub(crate) term: Term,
    pub(crate) reply: oneshot::Sender<Result<LogIndex, ProposeError>>,
}

/// A ready that is in a log batch.
struct Unpersisted {
    batch: u64,
    ready: u64,
    /// Its first entry; `u64::MAX`: none.
    first: LogIndex,
    /// The log's last entry behind it.
    last: LogIndex,
    /// The hard state's term behind it.
    term: Term,
    /// What may leave when it is durable.
    messages: Vec<Message>,
}

/// A snapshot that Raft has accepted (C8).
struct Installing {
    meta: SnapshotMeta,
    ready: u64,
    started: bool,
    /// The acknowledgement: leaves when the snapshot is installed.
    messages: Vec<Message>,
}

struct Transfer {
    to: u64,
    term: Term,
    ticks: usize,
    reply: oneshot::Sender<Result<(), String>>,
}

/// What changes whenever raft-rs draws an election timeout.
type Shape = (Term, StateRole, u64);

/// The end of a log: term and index of its last entry. Of two logs the one with the greater end is more up to date.
pub type LogEnd = (Term, LogIndex);

/// What is known of a replica's past.
#[derive(Clone, Copy, Default)]
pub(crate) struct Past {
    /// The log may lack what was acknowledged, and nobody knows how much (C9).
    pub(crate) doubtful: bool,
    /// It acknowledged a log up to here, which it does not hold any more, or does not use: whoever gets its vote must
    /// hold at least that (C9).
    pub(crate) acknowledged: LogEnd,
}

pub(crate) struct Replica {
    shard: ShardId,
    pub(crate) raft: RawNode<GroupStorage>,
    role: Role,
    /// Proposals in the log and not yet applied, by index.
    waiting: BTreeMap<LogIndex, Waiting>,
    unpersisted: VecDeque<Unpersisted>,
    applied: LogIndex,
    pub(crate) single_voter: bool,
    /// The hard state's term that is durable.
    durable_term: Term,
    /// No leader can ever have had a promise from this replica, in any life.
    fresh: bool,
    promised_until: u64,
    lease: Lease,
    /// In this term a follower was told to take over: no lease any more (L1).
    given_up_term: Term,
    installing: Option<Installing>,
    doubt: Option<Doubt>,
    tally: Tally,
    /// Of a leader.
    doubters: Doubters,
    acknowledged: LogEnd,
    /// Led while in doubt, and has to apply what its own log held then, up to here.
    doubted_upto: LogIndex,
    /// Up to here the log may hold what the leader sends again behind a snapshot.
    kept_upto: LogIndex,
    /// No vote in this term or an earlier one: a lost end of the log may have held one.
    voted_term_max: Term,
    transfer: Option<Transfer>,
    hurry: u32,
}

impl Replica {
    pub(crate) fn new(
        shard: ShardId,
        storage: GroupStorage,
        applied: LogIndex,
        past: Past,
        env: &Env,
    ) -> Result<Replica, String> {
        let election = env.config.election_ticks;
        let single_voter = storage.members().is_only(env.config.node);
        let config = raft::Config {
            id: env.me(),
            election_tick: election,
            heartbeat_tick: env.config.heartbeat_ticks,
            // We draw from one to two timeouts; the rest is room for waiting out a promise.
            max_election_tick: 4 * election,
            applied,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: MESSAGES_IN_FLIGHT_MAX,
            max_uncommitted_size: if single_voter { raft::NO_LIMIT } else { UNCOMMITTED_BYTES_MAX },
            check_quorum: true,
            pre_vote: true,
            max_committed_size_per_ready: COMMITTED_BYTES_MAX,
            ..raft::Config::default()
        };
        let hs = storage.hard_state();
        // A log that begins behind a snapshot is empty as well, and had leaders.
        let (base, base_term) = storage.base();
        let is_new = storage.last() == base && base_term <= INIT_TERM && hs.vote == 0 && hs.term <= base_term;
        let fresh = is_new && !past.doubtful;
        let durable_term = env.shared.log.hard_state(shard).map_or(0, |hs| hs.term);
        let raft = RawNode::new(&config, storage, &env.logger).map_err(|e| format!("shard {shard}: {e}"))?;
        let term = raft.raft.term;
        let doubt = (!single_voter && past.doubtful).then(|| Doubt::new(env.random.next_u64()));
        let mut replica = Replica {
            shard,
            raft,
            role: Role::Follower(term, None),
            waiting: BTreeMap::new(),
            unpersisted: VecDeque::new(),
            applied,
            single_voter,
            durable_term,
            fresh,
            promised_until: 0,
            lease: Lease::default(),
            given_up_term: 0,
            installing: None,
            // A vote may have been lost with the log's end, at most in the next term.
            doubted_upto: 0,
            kept_upto: 0,
            voted_term_max: if doubt.is_some() { term + 1 } else { 0 },
            doubt,
            tally: Tally::default(),
            doubters: Doubters::default(),
            acknowledged: past.acknowledged,
            transfer: None,
            hurry: if fresh { 0 } else { HURRY_MAX },
        };
        replica.draw_timeout(env);
        Ok(replica)
    }

    /// What a replica that this one replaces has promised (L2), and doubted.
    pub(crate) fn take_over(&mut self, old: &Replica) {
        self.promised_until = self.promised_until.max(old.promised_until);
        self.voted_term_max = self.voted_term_max.max(old.voted_term_max);
        self.acknowledged = self.acknowledged.max(old.acknowledged);
    }

    /// The log holds everything that this replica is known to have acknowledged.
    fn holds_acknowledged(&self) -> bool {
        let log = &self.raft.raft.raft_log;
        self.acknowledged == (0, 0) || (log.last_term(), log.last_index()) >= self.acknowledged
    }

    /// Holds nothing: only a snapshot can fill it.
    pub(crate) fn is_blank(&self) -> bool {
        self.raft.store().members().is_empty() && self.installing.is_none()
    }

    /// It may have lost what it acknowledged: it neither leads without an election nor is given leadership.
    fn lacks_acknowledged(&self) -> bool {
        self.doubt.is_some() || !self.holds_acknowledged()
    }

    /// The voters without this one.
    fn others(&self, env: &Env) -> BTreeSet<u64> {
        let voting = self.raft.store().members().voting();
        voting.into_iter().map(|n| u64::from(n.0)).filter(|v| *v != env.me()).collect()
    }

    /// Nobody knows how much is lacking.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.doubt.is_some()
    }

    /// May what it applies next be from before its log was cut, and what it creates have been cut as well? Also where an election
    /// has ended the doubt about its own log.
    pub(crate) fn applies_in_doubt(&self) -> bool {
        self.is_in_doubt() || self.applied < self.doubted_upto
    }

    pub(crate) fn has_ready(&self) -> bool {
        self.installing.is_none() && self.raft.has_ready()
    }

    fn is_leader(&self) -> bool {
        self.raft.raft.state == StateRole::Leader
    }

    fn shape(&self) -> Shape {
        let raft = &self.raft.raft;
        (raft.term, raft.state, raft.leader_id)
    }

    /// Campaigns at once; a group of one leads by that.
    pub(crate) fn campaign(&mut self, env: &Env) -> Result<(), String> {
        if !self.single_voter && (!self.fresh || self.lacks_acknowledged() || self.is_blank()) {
            return Ok(()); // it may have promised: it takes its turn
        }
        if !self.raft.store().members().voters.contains(&env.config.node) {
            return Ok(()); // a split behind the entry by which this node left
        }
        let shape = self.shape();
        self.raft.campaign().map_err(|e| format!("shard {}: {e}", self.shard))?;
        self.hurry = HURRY_MAX;
        self.drawn_again(shape, env);
        if !self.single_voter {
            self.try_again_soon(env);
        }
        Ok(())
    }

    /// raft-rs draws its election timeout from the thread's generator whenever it resets; a run must be a function of
    /// its seed (D3, D14). Every reset changes the shape.
    fn drawn_again(&mut self, before: Shape, env: &Env) {
        if self.shape() != before {
            self.draw_timeout(env);
        }
    }

    fn draw_timeout(&mut self, env: &Env) {
        let ticks = env.config.election_ticks + env.below(env.config.election_ticks as u64) as usize;
        self.raft.raft.set_randomized_election_timeout(ticks);
    }

    fn try_again_soon(&mut self, env: &Env) {
        if self.hurry > 0 && matches!(self.raft.raft.state, StateRole::PreCandidate | StateRole::Candidate) {
            self.hurry -= 1;
            let ticks = HURRY_TICKS_MIN + env.below(HURRY_TICKS_SPREAD) as usize;
            let timeout = self.raft.raft.randomized_election_timeout();
            self.raft.raft.election_elapsed = timeout.saturating_sub(ticks);
        }
    }

    /// When this replica may vote, as far as promises go.
    fn may_vote_at(&self, env: &Env) -> u64 {
        let restart = if self.fresh { 0 } else { env.started.saturating_add(env.terms.restart_ns) };
        self.promised_until.max(restart)
    }

    /// No leader was heard of for an election timeout.
    fn is_overdue(&self) -> bool {
        let raft = &self.raft.raft;
        raft.election_elapsed + 1 >= raft.randomized_election_timeout()
    }

    pub(crate) fn tick(&mut self, env: &Env) -> bool {
        if self.installing.is_some() {
            return false;
        }
        if let Some(doubt) = &mut self.doubt
            && doubt.tick()
        {
            tracing::warn!(
                shard = %self.shard,
                "no leader, and the end of this replica's log was cut: its vote counts only with those of all other voters"
            );
        }
        let raft = &self.raft.raft;
        if raft.state != StateRole::Leader && self.is_overdue() {
            if !self.holds_acknowledged() || env.now < self.may_vote_at(env) {
                return false; // L1: it would vote for itself
            }
            if raft.term < self.voted_term_max {
                // It may have voted in that term, and lost it: its own campaign comes in the next.
                let (shape, elapsed) = (self.shape(), raft.election_elapsed);
                self.raft.raft.become_follower(self.voted_term_max, INVALID_ID);
                self.drawn_again(shape, env);
                self.raft.raft.election_elapsed =
                    elapsed.min(self.raft.raft.randomized_election_timeout() - 1);
            }
        }
        let shape = self.shape();
        let mut active = self.raft.tick();
        self.drawn_again(shape, env);
        if active {
            self.try_again_soon(env);
        }
        active |= self.tick_transfer(env);
        active
    }

    /// Takes a message for this group.
    pub(crate) fn message(&mut self, mut m: Message, env: &Env) {
        use MessageType::*;
        // While a snapshot is installed nothing is heard, as if the network had lost it. Snapshots come by themselves.
        if m.to != env.me() || self.installing.is_some() || m.msg_type == MsgSnapshot {
            return;
        }
        let asks_for_vote = matches!(m.msg_type, MsgRequestVote | MsgRequestPreVote);
        let forgets = bank::has("blank-replica-votes");
        if asks_for_vote && !forgets && (m.log_term, m.index) < self.acknowledged {
            return;
        }
        if m.msg_type == MsgTimeoutNow
            && (self.lacks_acknowledged() || self.raft.raft.term < self.voted_term_max)
        {
            return;
        }
        if m.msg_type == MsgRequestVote && m.term <= self.voted_term_max {
            return;
        }
        if asks_for_vote && m.context != CAMPAIGN_TRANSFER && env.now < self.may_vote_at(env) {
            return;
        }
        let leads = matches!(m.msg_type, MsgAppend | MsgHeartbeat) && m.term >= self.raft.raft.term;
        if let Some(doubt) = self.doubt.as_mut().filter(|_| leads)
            && !doubt.heard(&m)
        {
            let question = doubt.question(&m);
            if m.msg_type == MsgHeartbeat {
                self.raft.raft.msgs.push(question);
                self.raft.raft.election_elapsed = 0; // somebody leads, or will soon hear that he does not
            }
            return;
        }
        let doubts = m.msg_type == MsgHeartbeatResponse && m.reject;
        if m.msg_type == MsgHeartbeatResponse && self.is_leader() && m.term == self.raft.raft.term {
            match doubts {
                true => self.doubters.doubts(m.from, m.reject_hint, env.now),
                false => self.doubters.trusts(m.from),
            }
            if doubts && m.context.is_empty() {
                return; // it acknowledges nothing
            }
        }
        if m.msg_type == MsgHeartbeat {
            // The leader counts on what we acknowledged, and we may have lost that: what stands in its place in a log
            // that was cut may be older. An append that fits commits as well.
            let log = &self.raft.raft.raft_log;
            m.commit = m.commit.min(if self.doubt.is_some() { log.committed } else { log.last_index() });
        }
        let (kind, from, term, stamp) = (m.msg_type, m.from, m.term, lease::stamp_of(&m));
        let shape = self.shape();
        // raft-rs refuses what does not fit its state (an unknown peer, a local message type): such a message is
        // dropped, as the network might have done.
        let led = self.is_leader();
        let counted = match doubt::is_grant(&m) {
            true => self.tally.count(m, self.doubt.is_some(), &self.others(env)),
            false => vec![m],
        };
        for m in counted {
            if let Err(error) = self.raft.step(m) {
                tracing::debug!(shard = %self.shard, %error, "raft message dropped");
            }
        }
        if let Some(doubt) = self.doubt.as_ref().filter(|_| asks_for_vote && !forgets) {
            self.raft.raft.msgs.iter_mut().filter(|m| doubt::is_grant(m)).for_each(|m| doubt.mark(m));
        }
        if !led && self.is_leader() {
            self.doubters.elected(self.tally.marked(term));
        }
        self.drawn_again(shape, env);
        if leads && self.raft.raft.term == term {
            self.hurry = 0;
        }
        match (kind, stamp) {
            (MsgHeartbeat, Some(_)) if self.raft.raft.term == term => {
                self.promised_until = self.promised_until.max(env.now.saturating_add(env.terms.promise_ns));
            }
            (MsgHeartbeatResponse, Some(stamp)) if self.raft.raft.term == term => {
                if doubts {
                    self.follower_in_doubt(from);
                }
                self.acked(from, stamp, env)
            }
            _ => {}
        }
    }

    /// A follower says that it may lack what it had acknowledged. While something is under way to it, it will hear by that
    /// where its log and this one part; in an idle group it is sent an append by itself.
    fn follower_in_doubt(&mut self, from: u64) {
        let raft = &mut self.raft.raft;
        let level = raft.prs().get(from).is_some_and(|p| p.matched == raft.raft_log.last_index());
        if raft.state == StateRole::Leader && level {
            // raft-rs takes a rejection of what it knows to be there seriously only while it probes.
            self.raft.report_unreachable(from);
            self.raft.raft.send_append(from);
        }
    }

    /// A follower has answered a heartbeat that left at `stamp`.
    fn acked(&mut self, from: u64, stamp: u64, env: &Env) {
        let term = self.raft.raft.term;
        if self.role != Role::Leader(term) || !self.is_leader() {
            return;
        }
        let (members, me) = (self.raft.store().members(), env.config.node);
        self.doubters.answered(from, stamp, |answered| membership::is_quorum(members, me, answered));
        if self.transfer.is_some() || self.given_up_term == term {
            return;
        }
        if let Some(until) = self.lease.ack(from, stamp, env.me(), members, env.now, &env.terms) {
            env.shared.machine.lease(self.shard, term, until);
        }
    }

    /// A snapshot has arrived. Returns whether Raft wants it.
    pub(crate) fn snapshot(&mut self, meta: &SnapshotMeta, m: Message, env: &Env) -> bool {
        let sent = SnapshotMeta::of_raft(m.get_snapshot());
        if m.to != env.me()
            || m.msg_type != MessageType::MsgSnapshot
            || sent != *meta
            || self.installing.is_some()
            || self.raft.snap().is_some()
            || !meta.members.contains(env.config.node)
        {
            return false;
        }
        if self.doubt.as_mut().is_some_and(|doubt| !doubt.heard(&m)) {
            return false;
        }
        let shape = self.shape();
        if let Err(error) = self.raft.step(m) {
            tracing::debug!(shard = %self.shard, %error, "snapshot dropped");
        }
        self.drawn_again(shape, env);
        self.raft.snap().is_some_and(|s| s.get_metadata().index == meta.index)
    }

    pub(crate) fn propose(&mut self, term: Term, payload: isochrone_base::Bytes, waiting: Waiting) -> bool {
        let refused = if !self.is_leader() || self.raft.raft.term != term {
            ProposeError::NotLeader(self.shard)
        } else {
            match self.raft.propose(Vec::new(), payload.into()) {
                Ok(()) => {
                    self.waiting.insert(self.raft.raft.raft_log.last_index(), waiting);
                    return true;
                }
                // Too much is uncommitted; or leadership is being handed over.
                Err(_) if self.raft.raft.lead_transferee.is_none() => ProposeError::Overloaded,
                Err(_) => ProposeError::NotLeader(self.shard),
            }
        };
        let _ = waiting.reply.send(Err(refused));
        false
    }

    /// Raft needs nothing at or below `upto`, at most what was applied. Returns what the log must keep.
    pub(crate) fn truncate(&mut self, upto: LogIndex) -> Option<LogIndex> {
        if self.installing.is_some() || self.is_blank() {
            return None;
        }
        let upto = upto.min(self.applied);
        self.raft.mut_store().truncate(upto)
    }

    /// Log batches up to this one are durable.
    pub(crate) fn durable(&mut self, upto: u64, env: &Env, out: &mut Output) {
        let mut last_ready = None;
        while self.unpersisted.front().is_some_and(|u| u.batch <= upto) {
            let done = self.unpersisted.pop_front().expect("front was there");
            last_ready = Some((done.ready, done.last));
            self.durable_term = self.durable_term.max(done.term);
            self.send(done.messages, env, out);
        }
        let Some((ready, last)) = last_ready else { return };
        self.raft.on_persist_ready(ready);
        // What a later batch writes anew is not in the log yet.
        let behind = self.unpersisted.iter().map(|u| u.first - 1).min().unwrap_or(LogIndex::MAX);
        self.raft.mut_store().trim_cache(last.min(behind));
        if let Some(installing) = &mut self.installing
            && !installing.started
            && installing.ready <= ready
        {
            installing.started = true;
            let meta = installing.meta.clone();
            out.installs.push(Install { shard: self.shard, meta, machine: env.shared.machine.clone() });
        }
    }

    /// The snapshot is installed, if it is the one that is waited for.
    pub(crate) fn installed(&mut self, new: &NewGroup, env: &Env, out: &mut Output) -> Result<(), String> {
        let Some(installing) = self.installing.take_if(|i| i.started) else {
            return Err("no snapshot was being installed".into());
        };
        let index = installing.meta.index;
        if new.applied != index || new.shard != self.shard {
            return Err(format!("shard {} was installed up to {}, not {index}", new.shard, new.applied));
        }
        self.applied = index;
        self.raft.mut_store().set_applied(index);
        self.raft.advance_apply_to(index);
        self.send(installing.messages, env, out);
        self.role = Role::Follower(0, None);
        self.tell_role(env);
        Ok(())
    }

    pub(crate) fn is_installing(&self) -> bool {
        self.installing.is_some()
    }

    pub(crate) fn leads(&self) -> bool {
        self.is_leader()
    }

    /// Are batches under way that hold something of this replica?
    pub(crate) fn waits_for_disk(&self) -> bool {
        !self.unpersisted.is_empty()
    }

    /// Takes what Raft has ready: entries to the batch, messages out, committed entries to the state machine. Returns
    /// the groups that these created, and whether something waits for the batch.
    pub(crate) fn ready(
        &mut self,
        env: &Env,
        number: u64,
        batch: &mut LogBatch,
        out: &mut Output,
    ) -> Result<(Vec<NewGroup>, bool), ApplyError> {
        self.tell_role(env);
        let mut ready = self.raft.ready();
        self.send(ready.take_messages(), env, out);
        let (must_sync, ready_number) = (ready.must_sync(), ready.number());
        let mut messages = ready.take_persisted_messages();
        if !ready.snapshot().is_empty() {
            let meta = SnapshotMeta::of_raft(ready.snapshot());
            // What the log is told in this batch of the time before is outdated.
            batch.entries.retain(|(s, _)| *s != self.shard);
            batch.truncate.retain(|(s, _)| *s != self.shard);
            batch.resets.retain(|(s, ..)| *s != self.shard);
            // A blank replica over a log that goes on behind the snapshot keeps that end: it acknowledged it.
            let log = &env.shared.log;
            let goes_on =
                self.acknowledged.1 > meta.index && log.term(self.shard, meta.index) == Some(meta.term);
            if goes_on {
                batch.truncate.push((self.shard, meta.index));
                self.kept_upto = self.acknowledged.1;
            } else {
                self.kept_upto = 0;
                batch.resets.push((self.shard, meta.index + 1, meta.term));
            }
            self.raft.mut_store().reset(&meta);
            self.abandon("its entry was replaced by a snapshot");
            ::metrics::counter!(metrics::SNAPSHOTS_IN).increment(1);
            let messages = std::mem::take(&mut messages);
            self.installing = Some(Installing { meta, ready: ready_number, started: false, messages });
        }
        let hs = self.raft.raft.hard_state();
        let hs = HardState { term: hs.term, vote: hs.vote, commit: hs.commit };
        // C10: with a change of members goes what is known to be committed. And so does that it is committed itself: a replica that
        // starts again must not need voters any more that are gone for good by then.
        let is_change = |e: &Entry| e.get_entry_type() != EntryType::EntryNormal;
        let changes = ready.entries().iter().any(is_change);
        let settles = ready.committed_entries().iter().any(is_change);
        if ready.hs().is_some() || self.installing.is_some() || changes || settles {
            self.raft.mut_store().set_hard_state(hs);
            if (must_sync || settles) && !bank::has("vote-not-durable") {
                batch.hard_states.push((self.shard, hs));
            }
        }
        let entries = ready.take_entries();
        self.raft.mut_store().append(&entries);
        let new = self.not_kept(&entries, env);
        if new < entries.len() {
            batch.entries.extend(entries[new..].iter().map(|e| (self.shard, to_log_entry(e))));
        } else if !entries.is_empty() {
            batch.hard_states.push((self.shard, hs)); // what waits for the disk waits for a batch
        }
        let first = entries.first().map_or(LogIndex::MAX, |e| e.index);
        let committed = ready.take_committed_entries();
        self.raft.advance_append_async(ready);
        // An answer to a heartbeat says nothing about the log: it does not wait for the disk once the term is durable,
        // so that a slow disk does not cost the leader its lease.
        let durable_term = self.durable_term;
        let at_once = |m: &Message| {
            (m.msg_type == MessageType::MsgHeartbeatResponse && m.term == durable_term)
                || (m.msg_type == MessageType::MsgAppendResponse && bank::has("append-acked-before-fsync"))
        };
        if must_sync || !self.unpersisted.is_empty() {
            let (now, later): (Vec<_>, Vec<_>) = messages.into_iter().partition(at_once);
            self.send(now, env, out);
            messages = later;
        }
        let last = self.raft.store().last();
        let unpersisted = |batch, messages| Unpersisted {
            batch,
            ready: ready_number,
            first,
            last,
            term: hs.term,
            messages,
        };
        if must_sync && bank::has("leader-counts-unsynced") && self.is_leader() {
            self.unpersisted.push_back(unpersisted(number, messages));
            self.raft.on_persist_ready(ready_number);
        } else if must_sync {
            self.unpersisted.push_back(unpersisted(number, messages));
        } else if let Some(before) = self.unpersisted.back().map(|u| u.batch) {
            // In order behind the ready that is still on its way to the disk.
            self.unpersisted.push_back(unpersisted(before, messages));
        } else {
            self.raft.on_persist_ready(ready_number);
            self.send(messages, env, out);
        }
        let created = if committed.is_empty() { Vec::new() } else { self.apply(committed, env)? };
        if let Some(Doubt { target: Some(upto), .. }) = self.doubt
            && self.applied >= upto
        {
            let term = self.raft.raft.term;
            tracing::info!(shard = %self.shard, term, upto, "the log holds again what it may have lost");
            // A vote may have been lost with it, at most in the next term: the one before was durable before it began.
            self.voted_term_max = self.voted_term_max.max(term + 1);
            self.doubt = None;
        }
        Ok((created, must_sync))
    }

    /// How many of these the log holds already: a replica that was filled keeps the end of its log, and is sent it once more.
    /// Written again, the first of them would take the rest away.
    fn not_kept(&mut self, entries: &[Entry], env: &Env) -> usize {
        let log = &env.shared.log;
        let is_kept = |e: &&Entry| e.index <= self.kept_upto && log.term(self.shard, e.index) == Some(e.term);
        let kept = entries.iter().take_while(is_kept).count();
        if kept < entries.len() {
            self.kept_upto = 0;
        }
        kept
    }

    fn apply(&mut self, committed: Vec<Entry>, env: &Env) -> Result<Vec<NewGroup>, ApplyError> {
        let shard = self.shard;
        let mut members = None;
        let mut changes = Vec::new();
        let mut entries = Vec::with_capacity(committed.len());
        for e in committed {
            let change = self.change_in(&e, members.as_ref().unwrap_or(self.raft.store().members()))?;
            let changed = change.map(|(change, new)| {
                changes.push(change);
                members = Some(new.clone());
                new
            });
            let payload = to_log_entry(&e).payload;
            entries.push(CommittedEntry { index: e.index, term: e.term, payload, members: changed });
        }
        let (first, last) = (entries[0].index, entries[entries.len() - 1].index);
        assert_eq!(
            first,
            self.applied + 1,
            "C5: entries of shard {shard} reach the state machine without gaps"
        );
        ::metrics::counter!(metrics::APPLIED).increment(entries.len() as u64);
        let created = env.shared.machine.apply(shard, &entries)?;
        self.applied = last;
        self.raft.mut_store().set_applied(last);
        // Behind the state machine: what Raft says because of it may need a snapshot, which shall know it.
        if let Some(members) = members {
            self.raft.mut_store().set_members(members);
        }
        let mut in_raft = None;
        for change in &changes {
            let conf = self.raft.apply_conf_change(change);
            let conf = conf.map_err(|e| ApplyError { shard, index: last, reason: e.to_string() })?;
            in_raft = membership::members_of(&conf);
        }
        assert!(
            changes.is_empty() || in_raft.as_ref() == Some(self.raft.store().members()),
            "raft-rs makes {in_raft:?} of a change of members to {:?}",
            self.raft.store().members()
        );
        self.raft.advance_apply_to(last);
        let outside = !changes.is_empty() && !self.raft.store().members().voting().contains(&env.config.node);
        if outside && self.raft.raft.state != StateRole::Follower {
            // It leads, or asks for votes, with the entry in its log by which it leaves: its part is done.
            let shape = self.shape();
            let term = self.raft.raft.term;
            self.raft.raft.become_follower(term, INVALID_ID);
            self.drawn_again(shape, env);
            self.tell_role(env);
        }
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

    /// The change of members that an entry is, and what it makes of them.
    fn change_in(&self, e: &Entry, now: &Members) -> Result<Option<(ConfChangeV2, Members)>, ApplyError> {
        if e.get_entry_type() == EntryType::EntryNormal {
            return Ok(None);
        }
        let fail = |reason: String| ApplyError { shard: self.shard, index: e.index, reason };
        let change = membership::decode(e.data.clone()).map_err(|error| fail(error.to_string()))?;
        let new = membership::after(now, &change);
        let new =
            new.ok_or_else(|| fail(format!("{change:?} is no change of {now:?} that is ever proposed")))?;
        tracing::info!(shard = %self.shard, index = e.index, ?new, "the group's members change");
        Ok(Some((change, new)))
    }

    /// Goes on towards other voters; one step at most (C10).
    pub(crate) fn change_members(&mut self, wanted: &[NodeId], env: &Env) -> Result<Step, String> {
        let raft = &self.raft.raft;
        let term = raft.term;
        if self.role != Role::Leader(term) || !self.is_leader() {
            return Err("this node does not lead the shard".into());
        }
        if self.single_voter || wanted.len() < 2 {
            return Err(
                "the voters of a group of one cannot be changed yet, nor can a group become one of one"
                    .into(),
            );
        }
        if raft.has_pending_conf() || !raft.commit_to_current_term() {
            return Ok(Step::UnderWay("the last change is not applied yet".into()));
        }
        if self.transfer.is_some() {
            return Ok(Step::UnderWay("the leadership is being moved".into()));
        }
        let last = raft.raft_log.last_index();
        let learner = |n: NodeId| {
            raft.prs().get(u64::from(n.0)).map(|p| Learner {
                behind: last - p.matched.min(last),
                // One that was just added counts as active before it has said anything.
                is_there: p.recent_active && p.matched > 0,
                gets_snapshot: p.pending_snapshot != 0,
            })
        };
        let wanted = wanted.iter().copied().collect();
        let members = self.raft.store().members();
        match membership::next(members, &wanted, env.config.node, self.lease.is_joint, learner) {
            Next::Done => Ok(Step::Done),
            Next::LeadElsewhere => Ok(Step::LeadElsewhere),
            Next::Wait(why) => Ok(Step::UnderWay(why)),
            Next::Propose(change, what) => {
                tracing::info!(shard = %self.shard, ?members, ?wanted, what, "a change of the group's members");
                match self.raft.propose_conf_change(Vec::new(), change) {
                    Ok(()) => Ok(Step::UnderWay(what.into())),
                    Err(error) => Ok(Step::UnderWay(format!("{what}: {error}; it is tried again"))),
                }
            }
        }
    }

    /// Tells the state machine who leads, if that is new. Before any message or entry of the new role.
    fn tell_role(&mut self, env: &Env) {
        if self.raft.store().members().is_empty() || self.installing.is_some() {
            return;
        }
        let raft = &self.raft.raft;
        let role = if raft.state == StateRole::Leader {
            Role::Leader(raft.term)
        } else {
            Role::Follower(raft.term, (raft.leader_id != INVALID_ID).then_some(node(raft.leader_id)))
        };
        if role == self.role {
            return;
        }
        tracing::debug!(node = %env.config.node, shard = %self.shard, ?role, last = self.raft.raft.raft_log.last_index(), "role");
        self.role = role;
        self.lease = Lease::default();
        env.shared.machine.role(self.shard, role);
        if !matches!(role, Role::Leader(_)) {
            self.doubters.clear();
        }
        if let Role::Leader(term) = role {
            ::metrics::counter!(metrics::ELECTIONS_WON).increment(1);
            if self.doubt.take().is_some() {
                self.doubted_upto = self.raft.raft.raft_log.last_index();
                tracing::info!(shard = %self.shard, "all voters agree that this log lacks nothing that is left");
            }
            self.hurry = 0;
            if self.single_voter {
                self.lease.until_ns = u64::MAX;
                env.shared.machine.lease(self.shard, term, u64::MAX);
            } else {
                self.raft.ping(); // the first lease need not wait for a tick
            }
        }
        let (term, leader) = match role {
            Role::Leader(term) => (term, Some(env.me())),
            Role::Follower(term, leader) => (term, leader.map(|n| u64::from(n.0))),
        };
        if let Some(leader) = leader
            && let Some(transfer) = self.transfer.take_if(|t| t.term < term)
        {
            let took_over = leader == transfer.to;
            let answer = if took_over { Ok(()) } else { Err(format!("node {leader} leads now")) };
            let _ = transfer.reply.send(answer);
        }
    }

    /// Sends messages, now.
    fn send(&mut self, messages: Vec<Message>, env: &Env, out: &mut Output) {
        for mut m in messages {
            let to = node(m.to);
            match m.msg_type {
                MessageType::MsgHeartbeat => {
                    lease::stamp(&mut m, env.now);
                    self.doubters.prove(&mut m, self.raft.raft.raft_log.last_index());
                }
                MessageType::MsgHeartbeatResponse => {
                    if let Some(doubt) = &self.doubt {
                        doubt.sign(&mut m);
                    }
                }
                MessageType::MsgTimeoutNow => {
                    if self.transfer.as_ref().is_none_or(|t| t.term != m.term) {
                        continue; // given up meanwhile: the lease may be back
                    }
                    self.given_up_term = m.term;
                }
                MessageType::MsgSnapshot => {
                    let Some(begun) = self.raft.mut_store().take_begun(m.to) else { continue };
                    ::metrics::counter!(metrics::SNAPSHOTS_OUT).increment(1);
                    tracing::info!(shard = %self.shard, %to, index = begun.meta.index, "sending a snapshot");
                    out.slots.push((self.shard, to, begun.slot));
                    out.snapshots.push(OutgoingSnapshot {
                        to,
                        shard: self.shard,
                        meta: begun.meta,
                        message: m,
                        source: begun.source,
                    });
                    continue;
                }
                _ => {}
            }
            out.messages.entry(to).or_default().push((self.shard, m));
        }
    }

    /// Hands leadership over. The lease is given up before anybody else may hear of it.
    pub(crate) fn transfer(&mut self, to: NodeId, reply: oneshot::Sender<Result<(), String>>, env: &Env) {
        let (to, term) = (u64::from(to.0), self.raft.raft.term);
        let follower = self.raft.raft.prs().get(to);
        let refused = if self.role != Role::Leader(term) || !self.is_leader() {
            "this node does not lead the shard"
        } else if to == env.me() {
            "this node leads the shard already"
        } else if self.transfer.is_some() {
            "leadership of the shard is being transferred already"
        } else if !self.raft.store().members().voters.contains(&node(to)) || follower.is_none() {
            "that node has no vote in the shard"
        } else if follower.is_some_and(|p| !p.recent_active) {
            "that node was not heard of lately"
        } else {
            self.lease = Lease::default();
            env.shared.machine.lease(self.shard, term, 0);
            self.transfer = Some(Transfer { to, term, ticks: 0, reply });
            self.raft.transfer_leader(to);
            return;
        };
        let _ = reply.send(Err(refused.into()));
    }

    /// raft-rs gives a transfer up after one election timeout.
    fn tick_transfer(&mut self, env: &Env) -> bool {
        let patience = 3 * env.config.election_ticks;
        let Some(transfer) = &mut self.transfer else { return false };
        transfer.ticks += 1;
        let raft = &self.raft.raft;
        let leads_still = raft.state == StateRole::Leader && raft.term == transfer.term;
        if (!leads_still || raft.lead_transferee.is_some()) && transfer.ticks <= patience {
            return false;
        }
        let transfer = self.transfer.take().expect("it is there");
        let _ = transfer.reply.send(Err(format!("node {} did not take over in time", transfer.to)));
        if leads_still && self.given_up_term == transfer.term {
            self.elect_anew(env);
        }
        true
    }

    /// The follower that was told to take over did not, but may still try: in this term there is no lease any more
    /// (L1). So this leader asks for votes, by its own leave, in a new term, in which the follower cannot win.
    fn elect_anew(&mut self, env: &Env) {
        let shape = self.shape();
        let raft = &mut self.raft.raft;
        let term = raft.term;
        raft.become_follower(term, INVALID_ID);
        let me = env.me();
        let message =
            Message { msg_type: MessageType::MsgTimeoutNow, from: me, to: me, ..Message::default() };
        if let Err(error) = raft.step(message) {
            tracing::debug!(shard = %self.shard, %error, "no election");
        }
        self.hurry = HURRY_MAX;
        self.drawn_again(shape, env);
        self.try_again_soon(env);
    }

    pub(crate) fn unreachable(&mut self, node: NodeId) -> bool {
        let leads = self.is_leader();
        if leads {
            self.raft.report_unreachable(u64::from(node.0));
        }
        leads
    }

    /// The stream to the leader's node broke. The next election begins as soon as the promise to it is over.
    pub(crate) fn peer_lost(&mut self, node: NodeId, env: &Env) {
        let lost = u64::from(node.0);
        if self.raft.raft.leader_id != lost
            || self.raft.raft.state != StateRole::Follower
            || self.installing.is_some()
            || self.is_blank()
        {
            return;
        }
        let wait_ns = self.may_vote_at(env).saturating_sub(env.now);
        let wait = wait_ns.div_ceil(env.terms.tick_ns.max(1)) as usize;
        // The voters that are left take turns, another one first for every shard.
        let voters = &self.raft.store().members().voters;
        let left: Vec<NodeId> = voters.iter().copied().filter(|v| *v != node).collect();
        let count = left.len().max(1);
        let mine = left.iter().position(|v| *v == env.config.node).unwrap_or(0);
        let rank = (mine + (self.shard.0 % count as u64) as usize) % count;
        let election = env.config.election_ticks;
        let ticks = (wait + 1 + rank * RANK_TICKS).min(3 * election - 1);
        // raft-rs honours a leader for one election timeout; our promise is what counts (L1, L3).
        self.raft.raft.set_randomized_election_timeout(election + ticks);
        self.raft.raft.election_elapsed = election;
        self.hurry = HURRY_MAX;
    }

    pub(crate) fn report_snapshot(&mut self, to: NodeId, ok: bool) -> bool {
        let leads = self.is_leader();
        if leads {
            let status = if ok { raft::SnapshotStatus::Finish } else { raft::SnapshotStatus::Failure };
            self.raft.report_snapshot(u64::from(to.0), status);
        }
        leads
    }

    /// Answers every proposal whose entry is in the log but not applied: nobody knows.
    pub(crate) fn abandon(&mut self, reason: &str) {
        for (_, waiting) in std::mem::take(&mut self.waiting) {
            let _ = waiting.reply.send(Err(ProposeError::Ambiguous(reason.to_string())));
        }
    }

    pub(crate) fn status(&self) -> GroupStatus {
        let raft = &self.raft.raft;
        let leading = raft.state == StateRole::Leader;
        let mut followers = Vec::new();
        if leading {
            let others = self.raft.store().members().all().into_iter().filter(|n| u64::from(n.0) != raft.id);
            for (node, p) in others.filter_map(|n| Some((n, raft.prs().get(u64::from(n.0))?))) {
                followers.push(Progress {
                    node,
                    matched: p.matched,
                    next: p.next_idx,
                    recently_active: p.recent_active,
                    pending_snapshot: (p.pending_snapshot != 0).then_some(p.pending_snapshot),
                });
            }
        }
        GroupStatus {
            term: raft.term,
            // A learner never campaigns, and would know a leader for ever who does not know it any more.
            leader: (raft.leader_id != INVALID_ID && (leading || !self.is_overdue()))
                .then_some(node(raft.leader_id)),
            leading,
            members: self.raft.store().members().clone(),
            first_index: self.raft.store().first(),
            last_index: raft.raft_log.last_index(),
            commit: raft.raft_log.committed,
            applied: self.applied,
            followers,
            lease_until_ns: if leading { self.lease.until_ns } else { 0 },
            installing: self.installing.is_some(),
            doubtful: self.applies_in_doubt(),
            votes: self.doubt.is_none() && self.installing.is_none(),
        }
    }
}
