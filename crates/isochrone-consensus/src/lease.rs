//! Leases: until when a leader may serve reads, as arithmetic (CS1, design D9).
//!
//!     leader     |--send h--|............ lease ............|
//!     follower        |--answer h--|............. promise ..............|
//!                     no vote for anybody until its end, but for one the leader itself asked for
//!
//! A heartbeat carries the moment it left, on the leader's monotonic clock; the answer carries it back. The lease
//! counts from the latest moment that a quorum has answered for, the promise from the moment of the answer, which is
//! later. The promise lasts [`Terms::promise_ns`], the lease 20 % less: that much may two monotonic clocks drift
//! apart. No clock is compared with another.
//!
//! Invariants
//!   L1  A node that answered a heartbeat votes for nobody, itself included, until its promise is over: so a new
//!       leader's quorum shares a node with the lease's quorum only when the lease is over. The one exception is an
//!       election that the leader asked for by a transfer; it gives up its lease first, and takes none in that term
//!       again (a transfer that fails ends with the leader electing itself in a new term).
//!   L2  A promise survives the replica's being replaced (a blank one by a split's). It does not survive the process:
//!       so a restarted node votes for nobody for one election timeout, except in groups that never had a leader.
//!   L3  raft-rs's own stickiness does not hold L1: a late rejection of an older pre-vote clears its leader without
//!       waiting. It stays on, as a second line.

use std::collections::BTreeMap;

use isochrone_base::{Members, NodeId};
use raft::eraftpb::{Message, MessageType};

/// Tenths of the promise that the lease lasts; the rest is for drift.
const LEASE_TENTHS: u64 = 8;

/// Lengths that follow from the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) tick_ns: u64,
    pub(crate) promise_ns: u64,
    /// After a restart nobody gets a vote for this long.
    pub(crate) restart_ns: u64,
}

impl Terms {
    pub(crate) fn lease_ns(&self) -> u64 {
        self.promise_ns / 10 * LEASE_TENTHS
    }
}

/// The leader's side of one group.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    /// By follower: the latest of our sending times that it has answered for.
    acks: BTreeMap<u64, u64>,
    /// The state machine was told so; 0: none.
    pub(crate) until_ns: u64,
    /// The last moment of it was answered for by both majorities of a joint group (L4 of the module `membership`).
    pub(crate) is_joint: bool,
}

impl Lease {
    /// A follower has answered. Returns the new end of the lease if it moved.
    pub(crate) fn ack(
        &mut self,
        from: u64,
        stamp: u64,
        me: u64,
        members: &Members,
        now: u64,
        terms: &Terms,
    ) -> Option<u64> {
        // A stamp from the future is none of ours.
        let stamp = stamp.min(now);
        let best = self.acks.entry(from).or_insert(0);
        *best = (*best).max(stamp);
        let until = joint_stamp(&self.acks, me, members, now)?.saturating_add(terms.lease_ns());
        (until > self.until_ns).then(|| {
            self.until_ns = until;
            self.is_joint = members.is_joint();
            until
        })
    }
}

/// The latest moment that every majority that is needed has answered for.
fn joint_stamp(acks: &BTreeMap<u64, u64>, me: u64, members: &Members, now: u64) -> Option<u64> {
    let ids = |list: &[NodeId]| list.iter().map(|n| u64::from(n.0)).collect::<Vec<u64>>();
    let new = quorum_stamp(acks, me, &ids(&members.voters), now)?;
    match members.is_joint() {
        true => Some(new.min(quorum_stamp(acks, me, &ids(&members.outgoing), now)?)),
        false => Some(new),
    }
}

/// The latest moment that a majority of the voters has answered for; this node answers for itself at once.
fn quorum_stamp(acks: &BTreeMap<u64, u64>, me: u64, voters: &[u64], now: u64) -> Option<u64> {
    let of = |v: &u64| if *v == me { now } else { acks.get(v).copied().unwrap_or(0) };
    let mut stamps: Vec<u64> = voters.iter().map(of).collect();
    stamps.sort_unstable_by(|a, b| b.cmp(a));
    stamps.get(voters.len() / 2).copied().filter(|s| *s > 0)
}

/// What a heartbeat carries. 0 means none, so the clock's first nanosecond is skipped.
pub(crate) fn stamp(message: &mut Message, now: u64) {
    message.context = now.max(1).to_be_bytes().to_vec().into();
}

/// The sending time in a heartbeat or its answer.
pub(crate) fn stamp_of(message: &Message) -> Option<u64> {
    matches!(message.msg_type, MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse).then_some(())?;
    Some(u64::from_be_bytes(message.context.as_ref().try_into().ok()?)).filter(|s| *s > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_quorum_answered_for_it_and_for_nothing_later(acks in proptest::collection::btree_map(1u64..6, 1u64..100, 0..5), voters in 1u64..6) {
            let voters: Vec<u64> = (1..=voters).collect();
            let answered = |at: u64| voters.iter().filter(|v| **v == 1 || acks.get(v).is_some_and(|s| *s >= at)).count();
            // Slow and obvious: the latest moment for which more than half have answered.
            let expected = (1..=100).rev().find(|at| answered(*at) > voters.len() / 2);
            prop_assert_eq!(quorum_stamp(&acks, 1, &voters, 100), expected);
        }
    }

    #[test]
    fn the_lease_counts_from_the_sending_and_never_goes_back() {
        let terms = Terms { tick_ns: 100, promise_ns: 900, restart_ns: 1_000 };
        let mut lease = Lease::default();
        let all: Members = vec![NodeId(1), NodeId(2), NodeId(3)].into();
        assert_eq!(lease.ack(2, 50, 1, &all, 500, &terms), Some(50 + 720));
        assert_eq!(lease.ack(3, 40, 1, &all, 600, &terms), None);
        assert_eq!(lease.ack(3, 90, 1, &all, 600, &terms), Some(90 + 720));
        assert_eq!(lease.ack(3, u64::MAX, 1, &all, 700, &terms), Some(700 + 720));
    }

    #[test]
    fn l4_a_lease_of_a_joint_group_needs_both_majorities() {
        let nodes = |list: &[u32]| list.iter().map(|n| NodeId(*n)).collect::<Vec<_>>();
        let terms = Terms { tick_ns: 100, promise_ns: 900, restart_ns: 1_000 };
        let joint = Members { voters: nodes(&[1, 4, 5]), outgoing: nodes(&[1, 2, 3]), learners: vec![] };
        let old = Members::from(joint.outgoing.clone());
        let mut lease = Lease::default();
        assert_eq!(lease.ack(2, 50, 1, &old, 500, &terms), Some(50 + 720));
        assert!(!lease.is_joint);
        assert_eq!(lease.ack(2, 90, 1, &joint, 500, &terms), None, "the new voters have not answered");
        assert_eq!(lease.ack(4, 40, 1, &joint, 500, &terms), None, "not beyond what the old ones gave");
        assert!(!lease.is_joint);
        assert_eq!(lease.ack(4, 80, 1, &joint, 500, &terms), Some(80 + 720));
        assert!(lease.is_joint);
    }
}
