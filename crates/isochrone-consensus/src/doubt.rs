//! A replica whose log may lack what it acknowledged (C9), and elections in which such replicas take part.
//!
//! A log that was cut at recovery has lost an unknown part of its end. A vote from it may help a candidate who lacks what only
//! the lost part proved, so it counts together with the votes of *all* other voters only:
//!
//!     voter in doubt ── grant, marked ──▶ candidate: held back until every voter has granted
//!     any voter ─────── grant ──────────▶ candidate in doubt: the same
//!
//! Why that is enough. Each voter grants only to a log that ends no earlier than its own. If all do, the candidate's log ends
//! no earlier than any log that is left, so it holds every committed entry that is left anywhere (the argument of Raft's
//! leader completeness, over all voters instead of a quorum).
//!
//! A lost end may have held a vote as well, at most one of the next term: the hard state of the term before was durable
//! before that term's vote was cast. So a replica in doubt neither votes nor campaigns in the term after the one that its log
//! knows; it starts at the one after that.
//!
//! It has lost promises, too: a leader whose time is over may be in the term that the log still knows. So nothing from a leader is
//! taken before it has proved that it leads *now*:
//!
//!     leader ── heartbeat ──▶ in doubt
//!            ◀── "in doubt, my number is n" ──
//!     leader: heartbeats answered by a quorum without that replica, later than this
//!            ── heartbeat with n, and where the leader's log ends ──▶ proven
//!
//! A replica that took part in a later term did so with somebody of that quorum, who would have refused. A candidate that was
//! elected by all has heard each number in the grants: it has proved it already. The number is drawn anew in each life, so
//! that what was said to an earlier one proves nothing.
//!
//! How it ends. The replica has applied everything up to where the proven leader's log ended: whatever it had acknowledged lies
//! before that, or was never committed. Or this replica is elected by all. While a voter is missing and
//! another is in doubt, a group that has lost its leader gets none: nobody can know what the missing one holds. An operator
//! who knows that it will never come back starts the others with their logs trusted ([`crate::StoreConfig::recovering`] is what
//! says otherwise).

use std::collections::{BTreeMap, BTreeSet};

use isochrone_base::{LogIndex, Term};
use raft::eraftpb::{Message, MessageType};

/// A grant's context: it counts together with all others only.
const ONLY_WITH_ALL: &[u8] = b"only with all";
/// A replica in doubt that hears of no leader for this long says so: in ticks.
const SAID_AFTER_TICKS: usize = 100;

/// What would end the doubt.
pub(crate) struct Doubt {
    /// What a leader has to repeat.
    number: u64,
    /// A leader of this term has. One of a later term was elected since.
    proven: Option<Term>,
    /// Up to here the log must be applied.
    pub(crate) target: Option<LogIndex>,
    /// Ticks without a proven leader.
    silent_ticks: usize,
}

impl Doubt {
    pub(crate) fn new(number: u64) -> Doubt {
        Doubt { number: number.max(1), proven: None, target: None, silent_ticks: 0 }
    }

    /// A tick without a leader so far. `true`: it is time to say that nobody can be elected without all voters.
    pub(crate) fn tick(&mut self) -> bool {
        self.silent_ticks += 1;
        self.silent_ticks.is_multiple_of(SAID_AFTER_TICKS)
    }

    /// A message from a leader: may it be taken?
    pub(crate) fn heard(&mut self, m: &Message) -> bool {
        if m.msg_type == MessageType::MsgHeartbeat && m.reject_hint == self.number {
            self.proven = self.proven.max(Some(m.term));
            self.target = self.target.max(Some(m.index));
        }
        let taken = self.proven.is_some_and(|term| m.term >= term);
        if taken {
            self.silent_ticks = 0;
        }
        taken
    }

    /// What a leader that has not proved itself is answered. No acknowledgement of anything: it has no stamp.
    pub(crate) fn question(&self, m: &Message) -> Message {
        let msg_type = MessageType::MsgHeartbeatResponse;
        Message { msg_type, from: m.to, to: m.from, term: m.term, ..Message::default() }
    }

    /// Says in an answer to a heartbeat that this replica is in doubt.
    pub(crate) fn sign(&self, answer: &mut Message) {
        (answer.reject, answer.reject_hint) = (true, self.number);
    }

    /// Marks a grant.
    pub(crate) fn mark(&self, grant: &mut Message) {
        grant.context = ONLY_WITH_ALL.to_vec().into();
        grant.reject_hint = self.number;
    }
}

/// The followers of a leader that are in doubt.
#[derive(Default)]
pub(crate) struct Doubters(BTreeMap<u64, Doubter>);

struct Doubter {
    number: u64,
    /// When it was heard, by the leader's clock.
    since: u64,
    /// Who answered a heartbeat that was sent later.
    answered: BTreeSet<u64>,
    proven: bool,
}

impl Doubters {
    /// A follower is in doubt.
    pub(crate) fn doubts(&mut self, follower: u64, number: u64, now: u64) {
        if self.0.get(&follower).is_none_or(|d| d.number != number) {
            let doubter = Doubter { number, since: now, answered: BTreeSet::new(), proven: false };
            self.0.insert(follower, doubter);
        }
    }

    /// A follower is not in doubt.
    pub(crate) fn trusts(&mut self, follower: u64) {
        self.0.remove(&follower);
    }

    /// A follower has answered a heartbeat that left at `stamp`. `is_quorum`: with the leader itself, which is not named.
    pub(crate) fn answered(&mut self, follower: u64, stamp: u64, is_quorum: impl Fn(&BTreeSet<u64>) -> bool) {
        for (_, d) in self.0.iter_mut().filter(|(id, d)| **id != follower && stamp > d.since) {
            d.answered.insert(follower);
            d.proven |= is_quorum(&d.answered);
        }
    }

    /// The replica was elected with these marked grants, by all.
    pub(crate) fn elected(&mut self, grants: &[(u64, u64)]) {
        self.0.clear();
        for (follower, number) in grants {
            let doubter =
                Doubter { number: *number, since: u64::MAX, answered: BTreeSet::new(), proven: true };
            self.0.insert(*follower, doubter);
        }
    }

    /// No leader any more.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Says in a heartbeat, if it is so, that this leader is one; its log ends at `last`.
    pub(crate) fn prove(&self, heartbeat: &mut Message, last: LogIndex) {
        if let Some(d) = self.0.get(&heartbeat.to).filter(|d| d.proven) {
            (heartbeat.reject_hint, heartbeat.index) = (d.number, last);
        }
    }
}

/// Is it an answer that grants a vote, or would?
pub(crate) fn is_grant(m: &Message) -> bool {
    matches!(m.msg_type, MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse)
        && !m.reject
}

/// The grants of one round of an election.
#[derive(Default)]
pub(crate) struct Tally {
    round: (Term, MessageType),
    granted: BTreeSet<u64>,
    held: Vec<Message>,
    marked: Vec<(u64, u64)>,
}

impl Tally {
    /// Takes a grant, and gives back those that count now. `others`: the voters without the candidate.
    pub(crate) fn count(&mut self, m: Message, in_doubt: bool, others: &BTreeSet<u64>) -> Vec<Message> {
        let round = (m.term, m.msg_type);
        if self.round != round {
            *self = Tally { round, ..Tally::default() };
        }
        self.granted.insert(m.from);
        let mut counts = Vec::new();
        if in_doubt || *m.context == *ONLY_WITH_ALL {
            self.held.retain(|h| h.from != m.from);
            self.held.push(m);
        } else {
            counts.push(m);
        }
        if self.granted.is_superset(others) {
            self.marked =
                self.held.iter().filter(|m| m.reject_hint != 0).map(|m| (m.from, m.reject_hint)).collect();
            counts.append(&mut self.held);
        }
        counts
    }

    /// The marked grants that counted in the election of this term, and their numbers.
    pub(crate) fn marked(&self, term: Term) -> &[(u64, u64)] {
        if self.round == (term, MessageType::MsgRequestVoteResponse) { &self.marked } else { &[] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(from: u64, term: Term, msg_type: MessageType, marked: bool) -> Message {
        let mut m = Message { msg_type, from, term, ..Message::default() };
        if marked {
            Doubt::new(7 * from).mark(&mut m);
        }
        m
    }

    #[test]
    fn marked_grants_count_with_all_others_only() {
        use MessageType::{MsgRequestPreVoteResponse as Pre, MsgRequestVoteResponse as Vote};
        let others = BTreeSet::from([2, 3]);
        let mut tally = Tally::default();
        let mut count = |m: Message, in_doubt| -> Vec<u64> {
            tally.count(m, in_doubt, &others).into_iter().map(|m| m.from).collect()
        };
        assert_eq!(count(grant(2, 5, Vote, true), false), []);
        assert_eq!(count(grant(2, 5, Vote, true), false), [], "twice the same");
        assert_eq!(count(grant(3, 5, Vote, false), false), [3, 2]);
        // Another round begins from nothing.
        assert_eq!(count(grant(3, 6, Pre, true), false), []);
        assert_eq!(count(grant(2, 6, Vote, true), false), []);
        assert_eq!(count(grant(3, 6, Vote, true), false), [2, 3]);
        // A candidate in doubt needs everybody.
        assert_eq!(count(grant(3, 7, Vote, false), true), []);
        assert_eq!(count(grant(2, 7, Vote, false), true), [3, 2]);
        // Without doubts nothing is held.
        assert_eq!(count(grant(3, 8, Vote, false), false), [3]);
        assert!(tally.marked(8).is_empty());
    }

    #[test]
    fn a_leader_is_one_when_a_quorum_without_the_doubter_says_so_later() {
        let heartbeat = |doubters: &Doubters| {
            let mut m = Message { msg_type: MessageType::MsgHeartbeat, to: 3, term: 5, ..Message::default() };
            doubters.prove(&mut m, 40);
            m
        };
        let (mut doubters, mut doubt) = (Doubters::default(), Doubt::new(9));
        let two = |answered: &BTreeSet<u64>| !answered.is_empty();
        assert!(!doubt.heard(&heartbeat(&doubters)));
        doubters.doubts(3, 9, 100);
        doubters.answered(3, 101, two);
        doubters.answered(2, 100, two);
        assert!(!doubt.heard(&heartbeat(&doubters)), "not by itself, and not by what left before");
        doubters.doubts(3, 9, 200);
        doubters.answered(2, 101, two);
        let proof = heartbeat(&doubters);
        assert!(doubt.heard(&proof) && doubt.target == Some(40));
        assert!(!Doubt::new(8).heard(&proof), "said to an earlier life");
        let append = |term| Message { msg_type: MessageType::MsgAppend, term, ..Message::default() };
        assert!(doubt.heard(&append(5)) && doubt.heard(&append(6)) && !doubt.heard(&append(4)));
        // Elected by all: proved by that.
        let mut tally = Tally::default();
        tally.count(grant(2, 5, MessageType::MsgRequestVoteResponse, true), false, &BTreeSet::from([2, 3]));
        tally.count(grant(3, 5, MessageType::MsgRequestVoteResponse, true), false, &BTreeSet::from([2, 3]));
        doubters.elected(tally.marked(5));
        assert!(Doubt::new(21).heard(&heartbeat(&doubters)) && tally.marked(4).is_empty());
        doubters.trusts(3);
        assert_eq!(heartbeat(&doubters).reject_hint, 0);
    }
}
