//! Several nodes by exact steps: one rule each.

use raft::eraftpb::Entry;

use super::*;

const MS: u64 = 1_000_000;
const VOTERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

/// Three nodes whose messages arrive at once, unless a node is cut off.
struct Trio {
    nodes: Vec<Node>,
    off: BTreeSet<usize>,
    rounds: u64,
    /// What was said, by whom and to whom.
    sent: Vec<(usize, NodeId, RaftMessage)>,
}

impl Trio {
    fn new(holders: usize) -> Trio {
        let open = |i: usize| {
            let mut node = Node::empty(StoreConfig::new(VOTERS[i]), Arc::default(), 11);
            if i < holders {
                node.create(&VOTERS, INIT_INDEX);
            }
            node
        };
        Trio { nodes: (0..3).map(open).collect(), off: BTreeSet::new(), rounds: 0, sent: Vec::new() }
    }

    /// Ten milliseconds.
    fn round(&mut self) {
        self.rounds += 1;
        for (i, me) in VOTERS.into_iter().enumerate() {
            let node = &mut self.nodes[i];
            node.now = self.rounds * 10 * MS;
            if self.rounds.is_multiple_of(10) {
                node.inbox.push(Event::Tick);
            }
            let messages = node.step();
            node.sync();
            for (to, messages) in messages {
                let j = to.0 as usize - 1;
                self.sent.extend(messages.iter().map(|(_, m)| (i, to, m.clone())));
                if !self.off.contains(&i) && !self.off.contains(&j) {
                    let batch = wire::encode_messages(&messages);
                    self.nodes[j].handle.deliver(me, batch).unwrap();
                }
            }
            for s in std::mem::take(&mut self.nodes[i].snapshots) {
                let j = s.to.0 as usize - 1;
                let arrives = !self.off.contains(&i) && !self.off.contains(&j);
                self.nodes[i].handle.snapshot_sent(s.shard, s.to, arrives);
                if arrives {
                    self.nodes[j].handle.snapshot_received(s.shard, s.meta, s.message);
                }
            }
        }
    }

    /// Runs until it holds; returns after how many milliseconds.
    fn until(&mut self, what: &str, mut f: impl FnMut(&mut Trio) -> bool) -> u64 {
        let from = self.rounds;
        while !f(self) {
            assert!(self.rounds - from < 3_000, "{what}");
            self.round();
        }
        (self.rounds - from) * 10
    }

    fn for_ms(&mut self, ms: u64) {
        (0..ms / 10).for_each(|_| self.round());
    }

    fn leader(&mut self) -> usize {
        self.until("a leader", |t| t.leads().is_some());
        self.leads().unwrap()
    }

    fn leads(&self) -> Option<usize> {
        (0..3).filter(|i| !self.off.contains(i)).find(|i| self.nodes[*i].leads().is_some())
    }

    fn status(&mut self, i: usize) -> GroupStatus {
        let mut status = self.nodes[i].handle.status();
        self.until("a status", |t| {
            t.round();
            true
        });
        status.try_recv().unwrap().remove(&SHARD).unwrap()
    }

    fn propose(&mut self, leader: usize, count: usize) {
        for _ in 0..count {
            let mut answer = self.nodes[leader].propose(b"x");
            self.until("an answer", |_| answer.try_recv().is_ok_and(|a| a.is_ok()));
        }
    }
}

impl Node {
    fn leads(&self) -> Option<Term> {
        match self.machine.roles.lock().unwrap().last() {
            Some((_, Role::Leader(term))) => Some(*term),
            _ => None,
        }
    }

    fn lease(&self) -> u64 {
        self.machine.leases.lock().unwrap().last().map_or(0, |(.., until)| *until)
    }

    /// Steps with one message, and returns what it says.
    fn hear(&mut self, m: RaftMessage) -> Vec<RaftMessage> {
        self.inbox.push(Event::Messages(vec![(SHARD, m)]));
        let mut said = Vec::new();
        for _ in 0..3 {
            said.extend(self.step().into_values().flatten().map(|(_, m)| m));
            self.sync();
        }
        said
    }
}

fn from(node: u64, to: u64, msg_type: MessageType, term: Term) -> RaftMessage {
    RaftMessage { msg_type, from: node, to, term, ..RaftMessage::default() }
}

#[test]
fn a_leader_sends_while_it_syncs() {
    let mut t = Trio::new(3);
    let leader = t.leader();
    t.propose(leader, 1);
    let node = &mut t.nodes[leader];
    let _answer = node.propose(b"y");
    let sent = node.step();
    assert_eq!(node.pending[0].1.entries.len(), 1, "it is not durable here");
    let entries = |m: &RaftMessage| m.msg_type == MessageType::MsgAppend && m.entries.len() == 1;
    assert_eq!(
        sent.values().flatten().filter(|(_, m)| entries(m)).count(),
        2,
        "and on its way to both followers"
    );
}

#[test]
fn followers_answer_heartbeats_without_their_disk_and_acknowledge_only_with_it() {
    let mut t = Trio::new(3);
    let leader = t.leader();
    t.propose(leader, 1);
    let status = t.status(leader);
    let f = (leader + 1) % 3;
    let (me, it) = (f as u64 + 1, leader as u64 + 1);
    let mut append = from(it, me, MessageType::MsgAppend, status.term);
    (append.index, append.log_term, append.commit) = (status.last_index, status.term, status.commit);
    append.entries =
        vec![Entry { index: status.last_index + 1, term: status.term, ..Entry::default() }].into();
    let mut heartbeat = from(it, me, MessageType::MsgHeartbeat, status.term);
    heartbeat.context = 9u64.to_be_bytes().to_vec().into();
    let node = &mut t.nodes[f];
    node.inbox.push(Event::Messages(vec![(SHARD, append), (SHARD, heartbeat)]));
    let said: Vec<_> = node.step().into_values().flatten().map(|(_, m)| m.msg_type).collect();
    assert_eq!(said, [MessageType::MsgHeartbeatResponse]);
    node.sync();
    let said: Vec<_> = node.step().into_values().flatten().map(|(_, m)| m.msg_type).collect();
    assert_eq!(said, [MessageType::MsgAppendResponse]);
}

#[test]
fn a_lease_counts_from_the_sending_and_ends_before_a_successor() {
    let mut t = Trio::new(3);
    let leader = t.leader();
    t.until("a lease", |t| t.nodes[leader].lease() > 0);
    t.for_ms(1_000);
    let now = t.nodes[leader].now;
    assert!(t.nodes[leader].lease() > now + 400 * MS && t.nodes[leader].lease() <= now + 720 * MS);
    t.off.insert(leader);
    let lost = t.rounds;
    let next = t.leader();
    assert!(t.nodes[next].now > t.nodes[leader].lease());
    assert!((t.rounds - lost) * 10 >= 1_000, "a timeout of its own");
    assert_eq!(t.status(leader).leader, Some(VOTERS[leader]), "it may not know, but its lease is over");
}

#[test]
fn a_lost_leader_is_replaced_within_about_a_second() {
    for seed in 0..20 {
        let mut t = Trio::new(3);
        t.for_ms(seed * 70);
        let leader = t.leader();
        t.propose(leader, 3);
        t.for_ms(500 + seed * 30);
        t.off.insert(leader);
        for i in (0..3).filter(|i| *i != leader) {
            t.nodes[i].handle.peer_lost(VOTERS[leader]);
        }
        let ms = t.until("another leader", |t| t.leads().is_some());
        assert!(ms <= 1_300, "{ms} ms");
        let next = t.leads().unwrap();
        assert!(t.nodes[next].now > t.nodes[leader].lease());
    }
}

#[test]
fn a_broken_stream_to_a_living_leader_changes_nothing() {
    let mut t = Trio::new(3);
    let leader = t.leader();
    let term = t.nodes[leader].leads();
    for _ in 0..10 {
        t.nodes[(leader + 1) % 3].handle.peer_lost(VOTERS[leader]);
        t.for_ms(330);
    }
    assert_eq!(t.nodes[leader].leads(), term);
}

#[test]
fn a_restarted_node_grants_no_vote_for_one_election_timeout() {
    let mut t = Trio::new(3);
    let leader = t.leader();
    t.propose(leader, 1);
    let f = (leader + 1) % 3;
    let log = t.nodes[f].log.clone();
    let term = t.nodes[leader].leads().unwrap();
    for (ms, votes) in [(0, 0), (990, 0), (1_010, 1)] {
        let mut node = Node::open(VOTERS[f], &VOTERS, log.clone(), INIT_INDEX, 3);
        node.now = 5_000 * MS;
        node.step();
        node.now += ms * MS;
        let mut ask = from(9, f as u64 + 1, MessageType::MsgRequestVote, term + 1);
        (ask.index, ask.log_term) = (1_000, term);
        assert_eq!(node.hear(ask).len(), votes, "{ms} ms after the start");
    }
}

#[test]
fn l3_a_late_rejection_does_not_break_a_promise() {
    let mut node = Node::open(NodeId(1), &VOTERS, Arc::default(), INIT_INDEX, 3);
    let mut heartbeat = from(2, 1, MessageType::MsgHeartbeat, 6);
    heartbeat.context = 7u64.to_be_bytes().to_vec().into();
    let said = node.hear(heartbeat.clone());
    assert_eq!(said[0].context, heartbeat.context);
    // raft-rs forgets its leader by this, and with it the leader's lease.
    let mut late = from(3, 1, MessageType::MsgRequestPreVoteResponse, 7);
    late.reject = true;
    node.hear(late);
    let mut ask = from(3, 1, MessageType::MsgRequestVote, 7);
    (ask.index, ask.log_term) = (99, 6);
    assert!(node.hear(ask.clone()).is_empty(), "the promise to node 2 holds");
    node.now += 901 * MS;
    assert_eq!(node.hear(ask).len(), 1, "and ends");
}

#[test]
fn l3_only_the_leaders_own_wish_goes_before_a_promise() {
    let mut node = Node::open(NodeId(1), &VOTERS, Arc::default(), INIT_INDEX, 3);
    let mut heartbeat = from(2, 1, MessageType::MsgHeartbeat, 6);
    heartbeat.context = 7u64.to_be_bytes().to_vec().into();
    node.hear(heartbeat);
    let mut ask = from(3, 1, MessageType::MsgRequestVote, 7);
    (ask.index, ask.log_term, ask.context) = (99, 6, raft::CAMPAIGN_TRANSFER.into());
    assert_eq!(node.hear(ask).len(), 1);
}

#[test]
fn leadership_is_handed_over_and_the_lease_given_up_first() {
    let mut t = Trio::new(3);
    let leader = t.leader();
    t.propose(leader, 5);
    t.until("a lease", |t| t.nodes[leader].lease() > t.nodes[leader].now);
    let to = (leader + 1) % 3;
    let mut moved = t.nodes[leader].handle.transfer(SHARD, VOTERS[to]);
    t.round();
    assert_eq!(t.nodes[leader].lease(), 0);
    let mut answer = None;
    let ms = t.until("the hand-over", |_| {
        answer = moved.try_recv().ok();
        answer.is_some()
    });
    assert_eq!(answer, Some(Ok(())));
    assert!(ms < 200, "{ms} ms");
    assert_eq!(t.leads(), Some(to));
    t.propose(to, 1);
    for (shard, to, what) in [
        (SHARD, VOTERS[to], "leads"),
        (ShardId(9), VOTERS[to], "not on this node"),
        (SHARD, NodeId(9), "no vote"),
    ] {
        let i = t.leads().unwrap();
        let mut refused = t.nodes[i].handle.transfer(shard, to);
        t.round();
        let words = refused.try_recv().unwrap().unwrap_err();
        assert!(words.contains(what), "{words}");
    }
}

#[test]
fn a_transfer_that_fails_ends_in_a_new_term_of_the_same_leader() {
    let mut t = Trio::new(3);
    let leader = t.leader();
    t.propose(leader, 5);
    let term = t.nodes[leader].leads().unwrap();
    let to = (leader + 1) % 3;
    let mut moved = t.nodes[leader].handle.transfer(SHARD, VOTERS[to]);
    t.off.insert(to);
    t.round();
    let mut answer = None;
    t.until("an answer", |t| {
        assert!(t.nodes[leader].lease() <= t.nodes[leader].now, "no lease in the term of the transfer");
        answer = moved.try_recv().ok();
        answer.is_some()
    });
    assert!(answer.unwrap().is_err());
    t.until("a new term", |t| t.nodes[leader].leads() > Some(term));
    t.until("a lease", |t| t.nodes[leader].lease() > t.nodes[leader].now);
    t.propose(leader, 1);
    // The order to take over arrives now: it is too late.
    let late = from(leader as u64 + 1, to as u64 + 1, MessageType::MsgTimeoutNow, term);
    t.off.clear();
    t.nodes[to].inbox.push(Event::Messages(vec![(SHARD, late)]));
    t.for_ms(3_000);
    assert_eq!(t.leads(), Some(leader));
}

#[test]
fn c10_whoever_holds_a_change_knows_that_the_one_before_is_committed() {
    let log: Arc<MemLog> = Arc::default();
    let mut node = Node::open(NodeId(1), &VOTERS, log.clone(), INIT_INDEX, 3);
    let change = |index: LogIndex, bytes: &'static [u8]| {
        let mut append = from(2, 1, MessageType::MsgAppend, 6);
        (append.index, append.log_term, append.commit) = (index - 1, 6, index - 1);
        let mut entry = Entry { index, term: 6, data: Bytes::from_static(bytes), ..Entry::default() };
        entry.set_entry_type(raft::eraftpb::EntryType::EntryConfChangeV2);
        append.entries = vec![entry].into();
        append
    };
    // Learner 4; then 1, 2 and 4 with 1, 2 and 3.
    let mut learner = change(INIT_INDEX + 1, &[0x12, 4, 0x08, 2, 0x10, 4]);
    learner.log_term = INIT_TERM;
    node.hear(learner);
    let mut heartbeat = from(2, 1, MessageType::MsgHeartbeat, 6);
    (heartbeat.commit, heartbeat.context) = (INIT_INDEX + 1, 7u64.to_be_bytes().to_vec().into());
    node.hear(heartbeat);
    let mut status = node.handle.status();
    node.step();
    let status = status.try_recv().unwrap().remove(&SHARD).unwrap();
    assert_eq!((status.applied, status.members.learners), (INIT_INDEX + 1, vec![NodeId(4)]));
    node.hear(change(INIT_INDEX + 2, &[0x08, 2, 0x12, 2, 0x10, 4, 0x12, 4, 0x08, 1, 0x10, 3]));
    // It may start again with a state from before both.
    let held = log.hard_state(SHARD).unwrap();
    assert_eq!((log.bounds(SHARD).unwrap().1, held.commit), (INIT_INDEX + 2, INIT_INDEX + 1));
    // That the second is committed goes to disk by itself.
    let mut heartbeat = from(2, 1, MessageType::MsgHeartbeat, 6);
    (heartbeat.commit, heartbeat.context) = (INIT_INDEX + 2, 8u64.to_be_bytes().to_vec().into());
    node.hear(heartbeat);
    assert_eq!(log.hard_state(SHARD).unwrap().commit, INIT_INDEX + 2);
}

/// A follower that catches up gets both changes at once, and hears with them that the first one is committed.
#[test]
fn c10_however_much_of_a_write_is_on_disk() {
    let change = |index: LogIndex, bytes: &'static [u8]| {
        let mut entry = Entry { index, term: 6, data: Bytes::from_static(bytes), ..Entry::default() };
        entry.set_entry_type(raft::eraftpb::EntryType::EntryConfChangeV2);
        entry
    };
    let normal = |index| Entry { index, term: 6, data: Bytes::from_static(b"data"), ..Entry::default() };
    let first = INIT_INDEX + 1;
    let mut append = from(2, 1, MessageType::MsgAppend, 6);
    (append.index, append.log_term, append.commit) = (INIT_INDEX, INIT_TERM, first + 2);
    append.entries = vec![
        normal(first),
        change(first + 1, &[0x12, 4, 0x08, 2, 0x10, 4]),
        normal(first + 2),
        normal(first + 3),
        change(first + 4, &[0x08, 2, 0x12, 2, 0x10, 4, 0x12, 4, 0x08, 1, 0x10, 3]),
    ]
    .into();
    let mut seen = Vec::new();
    for records in 0.. {
        let log: Arc<MemLog> = Arc::default();
        let mut node = Node::open(NodeId(1), &VOTERS, log.clone(), INIT_INDEX, 3);
        node.inbox.push(Event::Messages(vec![(SHARD, append.clone())]));
        node.step();
        let (_, batch) = node.pending.remove(0);
        let many = batch.clone().into_records().len();
        log.write_some(batch, records);
        let last = log.bounds(SHARD).map_or(INIT_INDEX, |(_, last)| last);
        let commit = log.hard_state(SHARD).map_or(0, |hs| hs.commit);
        assert!(commit <= last, "after {records}: {commit} of {last}");
        if last > first + 1 {
            assert!(last < first + 4 || commit > first, "after {records} the log says only {commit}");
        }
        seen.push((last, commit));
        if records == many {
            break;
        }
    }
    assert_eq!(seen.last(), Some(&(first + 4, first + 2)));
}

/// However young the group is: raft-rs counts a member that was just added as active.
#[test]
fn a_learner_that_never_answered_does_not_vote() {
    let mut t = Trio::new(3);
    t.off.insert(3);
    let leader = t.leader();
    let stays = VOTERS[(leader + 1) % 3];
    let mut said = None;
    for _ in 0..8 {
        let mut step = t.nodes[leader].handle.change_members(SHARD, vec![VOTERS[leader], stays, NodeId(4)]);
        t.for_ms(300);
        said = step.try_recv().ok();
    }
    assert_eq!(said, Some(Ok(Step::UnderWay("node 4 was not heard of lately".into()))));
    let members = t.status(leader).members;
    assert_eq!((&members.voters[..], &members.learners[..]), (&VOTERS[..], &[NodeId(4)][..]));
    assert!(!members.is_joint());
}

/// Nobody tells a learner that it was removed: it asks, once it hears nothing any more.
#[test]
fn a_learner_that_hears_nothing_knows_no_leader() {
    let mut node = Node::empty(StoreConfig::new(NodeId(4)), Arc::default(), 11);
    let members = Members { learners: vec![NodeId(4)], ..Members::from(VOTERS.to_vec()) };
    let new = NewGroup { shard: SHARD, members, applied: INIT_INDEX, applied_term: 0, campaign: false };
    node.store.create_group(new).unwrap();
    let leader = |node: &mut Node| {
        let mut status = node.handle.status();
        node.step();
        status.try_recv().unwrap()[&SHARD].leader
    };
    let mut append = from(2, 4, MessageType::MsgAppend, 6);
    (append.index, append.log_term, append.commit) = (INIT_INDEX, INIT_TERM, INIT_INDEX);
    node.hear(append.clone());
    assert_eq!(leader(&mut node), Some(NodeId(2)));
    for tick in 0..40 {
        node.now += 100 * MS;
        node.inbox.push(Event::Tick);
        node.step();
        if tick % 5 == 0 && tick < 20 {
            node.hear(append.clone());
            assert_eq!(leader(&mut node), Some(NodeId(2)), "tick {tick}");
        }
    }
    assert_eq!(leader(&mut node), None);
}

/// C9. A learner lost power before its snapshot was in, and was removed meanwhile: nothing makes its group again.
#[test]
fn a_log_without_a_group_is_removed_and_remembers_what_it_may_have_said() {
    let voted = HardState { term: 5, vote: 2, commit: 0 };
    let logs = [
        LogBatch { hard_states: vec![(SHARD, voted)], ..LogBatch::default() },
        LogBatch { hard_states: vec![(SHARD, voted)], resets: vec![(SHARD, 12, 5)], ..LogBatch::default() },
    ];
    for batch in logs {
        let log: Arc<MemLog> = Arc::default();
        log.write(batch);
        let mut node =
            Node::empty(StoreConfig { recovering: true, ..StoreConfig::new(NodeId(4)) }, log.clone(), 11);
        let mut answer = node.handle.remove(SHARD, (7, 20));
        (0..3).for_each(|_| node.settle());
        assert_eq!(answer.try_recv().unwrap(), Ok(()));
        assert_eq!(log.begin(SHARD), Some((21, 7)));
        assert!(log.hard_state(SHARD).unwrap().term >= 7);
        let mut status = node.handle.status();
        node.step();
        assert!(status.try_recv().unwrap().is_empty() && !node.store.is_doubtful());
        // Of a shard that it knows nothing of, there is nothing to remove.
        let mut answer = node.handle.remove(ShardId(99), (7, 20));
        node.settle();
        assert!(answer.try_recv().unwrap().is_err());
    }
}

/// The word that a node left its group may be old: meanwhile it has a place in it again.
#[test]
fn a_replica_that_heard_more_than_the_word_knows_of_is_not_removed() {
    let mut t = Trio::new(3);
    let leader = t.leader();
    t.propose(leader, 5);
    t.for_ms(500);
    let follower = (leader + 1) % 3;
    let log = t.nodes[follower].log.clone();
    let (_, last) = log.bounds(SHARD).unwrap();
    let end = (log.term(SHARD, last).unwrap(), last);
    for (word, is_removed) in [((end.0, end.1 - 1), false), ((end.0 - 1, end.1 + 9), false), (end, true)] {
        let mut answer = t.nodes[follower].handle.remove(SHARD, word);
        t.for_ms(100);
        assert_eq!(answer.try_recv().unwrap().is_ok(), is_removed, "{word:?} of {end:?}");
        assert_eq!(t.nodes[follower].machine.removed.lock().unwrap().is_empty(), !is_removed);
    }
}

#[test]
fn messages_wait_for_a_group_that_a_split_creates_a_moment_later() {
    let mut t = Trio::new(0);
    let new = |campaign| NewGroup {
        shard: SHARD,
        members: VOTERS.to_vec().into(),
        applied: INIT_INDEX,
        applied_term: 0,
        campaign,
    };
    t.nodes[0].store.create_group(new(true)).unwrap();
    t.for_ms(50);
    assert_eq!(t.leads(), None);
    t.nodes[1].store.create_group(new(false)).unwrap();
    let ms = t.until("the right half's leader", |t| t.nodes[0].leads().is_some());
    assert!(ms <= 100, "{ms} ms: its call for votes was kept");
    t.propose(0, 3);
    t.for_ms(500);
    assert!(!t.nodes[2].machine.roles.lock().unwrap().iter().any(|(s, _)| *s == SHARD), "not yet");
    t.nodes[2].store.create_group(new(false)).unwrap();
    t.until("the third follows", |t| t.nodes[2].applied().len() == 3);
    assert!(t.nodes[2].machine.installs.lock().unwrap().is_empty(), "without a snapshot");
}

#[test]
fn a_blank_replica_is_made_after_a_while_and_filled_by_a_snapshot() {
    let mut t = Trio::new(2);
    let leader = t.leader();
    t.propose(leader, 20);
    let ms = t.until("an install", |t| !t.nodes[2].machine.installs.lock().unwrap().is_empty());
    assert!(ms >= 1_000, "{ms} ms: its own split may come");
    let (shard, meta, done) = t.nodes[2].machine.installs.lock().unwrap().pop().unwrap();
    assert_eq!((meta.index, &meta.members.voters[..]), (INIT_INDEX + 21, &VOTERS[..]));
    assert_eq!(
        t.nodes[2].log.begin(SHARD),
        Some((meta.index + 1, meta.term)),
        "the log is reset and durable"
    );
    // Until it is installed the replica says nothing, and applies nothing.
    t.propose(leader, 3);
    t.sent.clear();
    t.for_ms(1_000);
    assert!(!t.sent.iter().any(|(i, ..)| *i == 2));
    assert!(t.status(2).installing && t.nodes[2].applied().is_empty());
    let progress = t.status(leader).followers.into_iter().find(|f| f.node == VOTERS[2]).unwrap();
    assert_eq!(progress.matched, 0, "C8");
    let members = meta.members.clone();
    done(Ok(NewGroup { shard, members, applied: meta.index, applied_term: 0, campaign: false }));
    t.until("the rest by the log", |t| t.nodes[2].applied().len() == 3);
    // The snapshot was of index 21; a restart goes on behind it.
    let log = t.nodes[2].log.clone();
    let mut again = Node::open(VOTERS[2], &VOTERS, log, meta.index, 3);
    again.step();
    assert!(
        again
            .store
            .create_group(NewGroup {
                shard,
                members: VOTERS.to_vec().into(),
                applied: meta.index,
                applied_term: 0,
                campaign: false
            })
            .is_ok()
    );
}

#[test]
fn an_installation_that_fails_leaves_a_blank_replica_that_gets_another_snapshot() {
    let mut t = Trio::new(2);
    let leader = t.leader();
    t.propose(leader, 5);
    for _ in 0..2 {
        t.until("an install", |t| !t.nodes[2].machine.installs.lock().unwrap().is_empty());
        let (.., done) = t.nodes[2].machine.installs.lock().unwrap().pop().unwrap();
        done(Err("another shard covers its keys".into()));
        t.round();
        assert!(t.status(2).members.is_empty());
        t.propose(leader, 2);
    }
    t.until("an install", |t| !t.nodes[2].machine.installs.lock().unwrap().is_empty());
    let (shard, meta, done) = t.nodes[2].machine.installs.lock().unwrap().pop().unwrap();
    done(Ok(NewGroup {
        shard,
        members: VOTERS.to_vec().into(),
        applied: meta.index,
        applied_term: 0,
        campaign: false,
    }));
    t.propose(leader, 1);
    t.until("it follows", |t| !t.nodes[2].applied().is_empty());
}

#[test]
fn a_follower_behind_a_truncated_log_gets_a_snapshot_and_nobody_else_does() {
    let mut t = Trio::new(3);
    let leader = t.leader();
    t.propose(leader, 3);
    let behind = (leader + 1) % 3;
    t.off.insert(behind);
    t.propose(leader, 30);
    t.nodes[leader].handle.truncate(vec![(SHARD, INIT_INDEX + 1_000)]);
    t.for_ms(300);
    assert!(t.status(leader).first_index > INIT_INDEX + 30);
    t.off.clear();
    t.until("an install", |t| !t.nodes[behind].machine.installs.lock().unwrap().is_empty());
    assert!(t.nodes[(leader + 2) % 3].machine.installs.lock().unwrap().is_empty());
}

#[test]
fn a_snapshot_that_raft_does_not_want_is_discarded() {
    let mut t = Trio::new(3);
    let leader = t.leader();
    t.propose(leader, 3);
    t.for_ms(500);
    let status = t.status(leader);
    let f = (leader + 1) % 3;
    let meta = SnapshotMeta { index: INIT_INDEX + 2, term: status.term, members: VOTERS.to_vec().into() };
    let mut m = from(leader as u64 + 1, f as u64 + 1, MessageType::MsgSnapshot, status.term);
    m.set_snapshot(meta.to_raft());
    t.nodes[f].handle.snapshot_received(SHARD, meta.clone(), m.clone());
    t.nodes[f].handle.snapshot_received(ShardId(99), meta.clone(), m);
    t.round();
    assert_eq!(*t.nodes[f].machine.discarded.lock().unwrap(), [meta.clone(), meta]);
    assert!(t.nodes[f].machine.installs.lock().unwrap().is_empty());
}

/// C9: a replica that is filled by a snapshot keeps the end of its log, which it acknowledged: also when it stops after it was
/// sent a part of that end once more.
#[test]
fn c9_what_was_acknowledged_outlives_a_snapshot_and_what_is_sent_again() {
    let log: Arc<MemLog> = Arc::default();
    let entry = |index| LogEntry { index, term: 5, payload: Bytes::from_static(b"data") };
    log.write(LogBatch {
        resets: vec![(SHARD, 50, 4)],
        entries: (50..=100).map(|i| (SHARD, entry(i))).collect(),
        hard_states: vec![(SHARD, HardState { term: 5, vote: 0, commit: 60 })],
        ..LogBatch::default()
    });
    let mut node = Node::empty(StoreConfig::new(NodeId(3)), log.clone(), 7);
    let members: Members = VOTERS.to_vec().into();
    let new = |applied, applied_term| NewGroup {
        shard: SHARD,
        members: members.clone(),
        applied,
        applied_term,
        campaign: false,
    };
    // What it had applied ends before the log begins: it is blank, and its log is whole.
    node.store.create_group(new(20, 4)).unwrap();
    let meta = SnapshotMeta { index: 90, term: 5, members: members.clone() };
    let mut m = from(1, 3, MessageType::MsgSnapshot, 5);
    m.set_snapshot(meta.to_raft());
    node.handle.snapshot_received(SHARD, meta, m);
    (0..3).for_each(|_| node.settle());
    let (.., done) = node.machine.installs.lock().unwrap().pop().unwrap();
    done(Ok(new(90, 5)));
    (0..3).for_each(|_| node.settle());
    assert_eq!(log.bounds(SHARD), Some((90, 100)));
    let append = |from_index: u64, to: u64, term| {
        let mut append = from(1, 3, MessageType::MsgAppend, term);
        (append.index, append.log_term, append.commit) = (from_index - 1, 5, 90);
        let entries = from_index..=to;
        append.entries = entries
            .map(|index| Entry { index, term, data: Bytes::from_static(b"data"), ..Entry::default() })
            .collect::<Vec<_>>()
            .into();
        append
    };
    node.hear(append(91, 95, 5));
    assert_eq!(log.bounds(SHARD), Some((90, 100)), "the rest of its end is still there");
    let mut status = node.handle.status();
    node.step();
    assert_eq!(status.try_recv().unwrap()[&SHARD].last_index, 95);
    // What stands there by another leader is written.
    node.hear(append(96, 97, 6));
    assert_eq!((log.bounds(SHARD), log.term(SHARD, 97)), (Some((90, 97)), Some(6)));
}

/// raft-rs pull request 557: a rejection that was late lets a probing follower's next index fall to its match index or
/// below. It costs entries sent twice; it must not cost more.
#[test]
fn a_late_rejection_of_a_probe_only_sends_entries_again() {
    let mut t = Trio::new(3);
    let leader = t.leader();
    t.propose(leader, 20);
    t.for_ms(300);
    let status = t.status(leader);
    let f = VOTERS.iter().position(|v| *v == status.followers[0].node).unwrap();
    let matched = status.followers[0].matched;
    assert_eq!(matched, status.last_index);
    t.nodes[leader].handle.unreachable(VOTERS[f]);
    let mut late = from(f as u64 + 1, leader as u64 + 1, MessageType::MsgAppendResponse, status.term);
    (late.index, late.reject, late.reject_hint, late.log_term) = (matched, true, INIT_INDEX + 3, status.term);
    t.nodes[leader].inbox.push(Event::Messages(vec![(SHARD, late)]));
    let said = t.nodes[leader].step();
    let again =
        said[&VOTERS[f]].iter().map(|(_, m)| m).find(|m| m.msg_type == MessageType::MsgAppend).unwrap();
    assert_eq!(again.index, INIT_INDEX + 3, "it does fall: when raft-rs is fixed, this line has to go");
    t.propose(leader, 5);
    t.until("it follows", |t| t.nodes[f].applied().len() == 25);
    assert!((0..3).all(|i| t.nodes[i].machine.installs.lock().unwrap().is_empty()));
    assert_eq!(t.leads(), Some(leader));
}

#[test]
fn c9_a_cut_log_keeps_a_replica_from_voting_until_it_is_whole_again() {
    let mut t = Trio::new(3);
    let leader = t.leader();
    t.propose(leader, 10);
    t.for_ms(300);
    let f = (leader + 1) % 3;
    let log = t.nodes[f].log.clone();
    let whole = log.bounds(SHARD).unwrap().1;
    log.0.lock().unwrap().logs.get_mut(&SHARD).unwrap().2.split_off(&(whole - 3));
    let config = StoreConfig { recovering: true, ..StoreConfig::new(VOTERS[f]) };
    let now = t.nodes[f].now;
    t.nodes[f] = Node::empty(config, log.clone(), 5);
    t.nodes[f].now = now;
    t.nodes[f].create(&VOTERS, INIT_INDEX);
    let term = t.nodes[leader].leads().unwrap();
    // Heartbeats commit what the leader believes it holds: beyond its end.
    t.off.insert(leader);
    t.for_ms(1_500);
    let other = (leader + 2) % 3;
    let mut ask = from(other as u64 + 1, f as u64 + 1, MessageType::MsgRequestVote, term + 9);
    (ask.index, ask.log_term) = (1_000, term + 8);
    t.nodes[f].inbox.push(Event::Messages(vec![(SHARD, ask.clone())]));
    t.sent.clear();
    t.round();
    t.round();
    let mut grants = t.sent.iter().filter(|(i, _, m)| *i == f && doubt::is_grant(m)).map(|(.., m)| m);
    assert!(grants.next().is_some_and(|m| !m.context.is_empty()), "with all others only");
    assert_eq!(t.leads(), None);
    assert!(t.status(f).doubtful);
    t.off.clear();
    let leader = t.leader();
    t.until("whole again", |t| {
        t.propose(leader, 1);
        log.bounds(SHARD).unwrap().1 > whole
    });
    t.for_ms(300);
    let status = t.status(f);
    assert!(!status.doubtful && status.votes);
}

/// Starts a node again whose log lacks its last `lost` entries.
fn cut(t: &mut Trio, i: usize, lost: u64) {
    let log = t.nodes[i].log.clone();
    let last = log.bounds(SHARD).unwrap().1;
    log.0.lock().unwrap().logs.get_mut(&SHARD).unwrap().2.split_off(&(last + 1 - lost));
    let config = StoreConfig { recovering: true, ..StoreConfig::new(VOTERS[i]) };
    let now = t.nodes[i].now;
    t.nodes[i] = Node::empty(config, log, 5 + i as u64);
    t.nodes[i].now = now;
    t.nodes[i].create(&VOTERS, INIT_INDEX);
}

#[test]
fn c9_replicas_in_doubt_elect_who_holds_all_that_is_left_once_all_are_there() {
    for longest in 0..3 {
        let mut t = Trio::new(3);
        let leader = t.leader();
        t.propose(leader, 10);
        t.for_ms(300);
        let last = t.status(leader).last_index;
        for i in 0..3 {
            cut(&mut t, i, if i == longest { 1 } else { 3 });
        }
        // Who is missing may hold more.
        t.off.insert(longest);
        t.for_ms(20_000);
        assert_eq!(t.leads(), None);
        t.off.clear();
        assert_eq!(t.leader(), longest);
        t.propose(longest, 1);
        t.for_ms(1_000);
        for i in 0..3 {
            let status = t.status(i);
            assert!(!status.doubtful && status.votes, "{i}");
            // Its first entry of the new term, and one more.
            assert_eq!(status.last_index, last - 1 + 2);
        }
        // From here on two are enough.
        t.off.insert(longest);
        let next = t.leader();
        t.propose(next, 1);
    }
}

#[test]
fn c9_a_doubt_about_an_idle_group_ends() {
    for lost in [0, 2] {
        let mut t = Trio::new(3);
        let leader = t.leader();
        t.propose(leader, 10);
        t.for_ms(300);
        let last = t.status(leader).last_index;
        let f = (leader + 1) % 3;
        cut(&mut t, f, lost);
        t.for_ms(1_000);
        let status = t.status(f);
        assert_eq!((status.doubtful, status.last_index, t.leads()), (false, last, Some(leader)));
    }
}

/// A log that was cut shows again an entry that had been replaced, at the index that was applied.
#[test]
fn c9_a_log_whose_entry_is_not_the_one_that_was_applied_is_refilled() {
    let mut t = Trio::new(3);
    let leader = t.leader();
    t.propose(leader, 3);
    t.for_ms(300);
    let f = (leader + 1) % 3;
    let (last, term) = (t.status(f).last_index, t.status(f).term);
    for (applied_term, fits) in [(0, true), (term, true), (term + 1, false)] {
        let config = StoreConfig { recovering: true, ..StoreConfig::new(VOTERS[f]) };
        let (log, now) = (t.nodes[f].log.clone(), t.nodes[f].now);
        t.nodes[f] = Node::empty(config, log, 5);
        t.nodes[f].now = now;
        let members = VOTERS.to_vec().into();
        let new = NewGroup { shard: SHARD, members, applied: last, applied_term, campaign: false };
        t.nodes[f].store.create_group(new).unwrap();
        assert_eq!(t.status(f).members.is_empty(), !fits, "blank");
    }
    t.until("a snapshot comes", |t| !t.nodes[f].machine.installs.lock().unwrap().is_empty());
}

#[test]
fn c9_one_in_doubt_and_the_two_others_need_nobody() {
    let mut t = Trio::new(3);
    let leader = t.leader();
    t.propose(leader, 10);
    t.for_ms(300);
    let (f, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cut(&mut t, f, 2);
    t.off.insert(leader);
    t.for_ms(5_000);
    assert_eq!(t.leads(), None, "one is missing, one in doubt");
    t.off.clear();
    t.off.insert(f);
    let new = t.leader();
    t.propose(new, 1);
    t.off.clear();
    t.off.insert(new);
    // The doubt has not ended: f was not heard by a leader yet.
    t.for_ms(5_000);
    assert_eq!(t.leads(), None, "{other}");
    t.off.clear();
    t.leader();
    t.until("whole again", |t| !t.status(f).doubtful);
}

#[test]
fn proposals_during_a_transfer_and_after_a_lost_leadership_are_in_no_log() {
    let mut t = Trio::new(3);
    let leader = t.leader();
    t.propose(leader, 1);
    let to = (leader + 1) % 3;
    t.off.insert(to);
    let _moved = t.nodes[leader].handle.transfer(SHARD, VOTERS[to]);
    let mut refused = t.nodes[leader].propose(b"during");
    t.round();
    assert_eq!(refused.try_recv().unwrap(), Err(ProposeError::NotLeader(SHARD)));
}

/// A log may refuse one batch and write the next.
#[test]
fn c6_no_acknowledgement_leaves_behind_a_batch_that_failed() {
    for fails in [false, true] {
        let mut node = Node::open(NodeId(1), &VOTERS, Arc::default(), INIT_INDEX, 3);
        let mut append = from(2, 1, MessageType::MsgAppend, 6);
        (append.index, append.log_term, append.commit) = (INIT_INDEX, INIT_TERM, INIT_INDEX);
        append.entries = vec![Entry {
            index: INIT_INDEX + 1,
            term: 6,
            data: Bytes::from_static(b"x"),
            ..Entry::default()
        }]
        .into();
        node.inbox.push(Event::Messages(vec![(SHARD, append)]));
        node.step();
        let number = node.pending[0].0;
        if fails {
            node.inbox.push(Event::Durable(Err("refused".into())));
            node.step();
        }
        node.inbox.push(Event::Durable(Ok(number + 1)));
        let sent = node.step();
        let acknowledges = |m: &RaftMessage| m.msg_type == MessageType::MsgAppendResponse;
        assert_eq!(sent.values().flatten().any(|(_, m)| acknowledges(m)), !fails);
    }
}
