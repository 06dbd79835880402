//! Changes of a group's members: one step at a time towards the voters that somebody wants.
//!
//!     {1 2 3}          ── add learner 4 ──▶  {1 2 3} + learner 4: a snapshot, then the log
//!     4 has caught up  ── join ───────────▶  {1 2 4} and {1 2 3}: both majorities decide
//!     L4               ── leave ──────────▶  {1 2 4}
//!
//! Each arrow is one entry of the log; it takes effect when it is applied. [`next`] is a function of what is and of what is
//! wanted, so that another leader, or another wish, goes on from wherever a change was left.
//!
//! Invariants
//!   C10  A replica whose log holds the entry of a change knows that every earlier change is committed, also after a restart:
//!        a leader proposes a change only when it has applied all earlier ones, the append that carries the entry
//!        carries that commit index, and on disk it stands in front of the entry ([`crate::LogBatch::into_records`]).
//!        Nobody campaigns before it has applied what it
//!        knows to be committed. So a candidate is at most one step from any group that could have decided without it,
//!        and majorities of two groups one step apart always share a node. That a change is committed goes to disk by itself
//!        as well: nobody starts again in need of old voters that are gone by then.
//!   L4   A lease that was given by the old voters only may outlive them. So the joint group is left only when every moment
//!        of the leader's lease was answered for by both majorities. A leader that leaves with it does not ask for that; if
//!        its predecessor had, it gives up the leadership as soon as it has applied it.
//!
//! A node that does not take part any more is not told so by Raft. It asks the leaseholder, and takes its replica away
//! ([`crate::Handle::remove`]). What it promised, voted and acknowledged stays in its log, or what the leaseholder had applied, if
//! that is more (C9; whatever the node acknowledged while it took part is in there, even if it has forgotten it). If
//! it ever comes back to the group, it does so as a blank replica that remembers so much.

use std::collections::BTreeSet;

use isochrone_base::codec::{DecodeError, Reader};
use isochrone_base::{Bytes, Members, NodeId, bank};
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};

use crate::wire::node;

/// A learner may be this many entries behind, and still become a voter.
const BEHIND_MAX: u64 = 1_000;

/// What became of a wish for other voters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// The group is as it was wished.
    Done,
    /// The next step was begun, or waits for what is said.
    UnderWay(String),
    /// This leader is not among the wished voters: somebody has to move the leadership to one of them.
    LeadElsewhere,
}

/// What the leader knows of a learner.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Learner {
    pub(crate) behind: u64,
    pub(crate) is_there: bool,
    pub(crate) gets_snapshot: bool,
}

/// What to do next.
#[derive(Debug)]
pub(crate) enum Next {
    Propose(ConfChangeV2, &'static str),
    Wait(String),
    LeadElsewhere,
    Done,
}

fn change(change_type: ConfChangeType, id: NodeId) -> ConfChangeSingle {
    ConfChangeSingle { change_type, node_id: u64::from(id.0), ..ConfChangeSingle::default() }
}

fn changes(list: Vec<ConfChangeSingle>, transition: ConfChangeTransition) -> ConfChangeV2 {
    let mut cc = ConfChangeV2 { transition, ..ConfChangeV2::default() };
    cc.changes = list.into();
    cc
}

/// The next step from `now` to `wanted`, on the leader `me`. `lease_is_joint`: L4. `learner`: what is known of one.
pub(crate) fn next(
    now: &Members,
    wanted: &BTreeSet<NodeId>,
    me: NodeId,
    lease_is_joint: bool,
    learner: impl Fn(NodeId) -> Option<Learner>,
) -> Next {
    use ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};
    if now.is_joint() {
        return if !now.voters.contains(&me) {
            Next::LeadElsewhere
        } else if lease_is_joint || bank::has("joint-left-with-an-old-lease") {
            Next::Propose(ConfChangeV2::default(), "leaving the joint group")
        } else {
            Next::Wait("both majorities have to answer for the lease".into())
        };
    }
    let voters: BTreeSet<NodeId> = now.voters.iter().copied().collect();
    if let Some(stray) = now.learners.iter().find(|l| !wanted.contains(l)) {
        return Next::Propose(
            changes(vec![change(RemoveNode, *stray)], ConfChangeTransition::Auto),
            "removing a learner",
        );
    }
    if voters == *wanted {
        return Next::Done;
    }
    // Where nobody of the voters stays, the new ones have to be there before one of them can lead.
    if !wanted.contains(&me) && !voters.is_disjoint(wanted) {
        return Next::LeadElsewhere;
    }
    for new in wanted.difference(&voters) {
        let Some(learner) = learner(*new).filter(|_| now.learners.contains(new)) else {
            return Next::Propose(
                changes(vec![change(AddLearnerNode, *new)], ConfChangeTransition::Auto),
                "adding a learner",
            );
        };
        if !learner.is_there {
            return Next::Wait(format!("node {new} was not heard of lately"));
        }
        if learner.gets_snapshot || learner.behind > BEHIND_MAX {
            return Next::Wait(format!("node {new} is being filled"));
        }
    }
    let added = wanted.difference(&voters).map(|n| change(AddNode, *n));
    let removed = voters.difference(wanted).map(|n| change(RemoveNode, *n));
    Next::Propose(
        changes(added.chain(removed).collect(), ConfChangeTransition::Explicit),
        "joining old and new voters",
    )
}

/// The members as raft-rs has them.
pub(crate) fn conf_of(members: &Members) -> ConfState {
    let ids = |list: &[NodeId]| list.iter().map(|n| u64::from(n.0)).collect::<Vec<u64>>();
    let mut conf = ConfState { voters: ids(&members.voters), ..ConfState::default() };
    conf.voters_outgoing = ids(&members.outgoing);
    conf.learners = ids(&members.learners);
    conf
}

/// The inverse of [`conf_of`]. `None`: a kind of group that is never proposed here.
pub(crate) fn members_of(conf: &ConfState) -> Option<Members> {
    let nodes = |list: &[u64]| {
        let mut nodes: Vec<NodeId> = list.iter().map(|n| node(*n)).collect();
        nodes.sort_unstable();
        nodes
    };
    (conf.learners_next.is_empty() && !conf.auto_leave).then(|| Members {
        voters: nodes(&conf.voters),
        outgoing: nodes(&conf.voters_outgoing),
        learners: nodes(&conf.learners),
    })
}

/// What an entry makes of the members. `None`: it is none that is ever proposed here.
pub(crate) fn after(now: &Members, cc: &ConfChangeV2) -> Option<Members> {
    if cc.leave_joint() {
        return now.is_joint().then(|| Members { outgoing: Vec::new(), ..now.clone() });
    }
    let joins = cc.get_transition() == ConfChangeTransition::Explicit;
    if now.is_joint() || (!joins && cc.changes.len() != 1) {
        return None;
    }
    let mut new = now.clone();
    for c in cc.changes.iter() {
        let id = node(c.node_id);
        let was_voter = now.voters.contains(&id);
        new.learners.retain(|n| *n != id);
        match c.change_type {
            ConfChangeType::AddNode if joins => new.voters.push(id),
            ConfChangeType::AddLearnerNode if !joins && !was_voter => new.learners.push(id),
            ConfChangeType::RemoveNode if joins || !was_voter => new.voters.retain(|n| *n != id),
            _ => return None,
        }
    }
    new.voters.sort_unstable();
    new.voters.dedup();
    new.learners.sort_unstable();
    if joins {
        new.outgoing.clone_from(&now.voters);
    }
    (!new.voters.is_empty()).then_some(new)
}

/// Reads the change in an entry. Raft writes it as protobuf, and only that: what a peer sent is read here (ADR 1).
///
///     change   1: transition   2: { 1: kind  2: node }*
pub(crate) fn decode(bytes: Bytes) -> Result<ConfChangeV2, DecodeError> {
    // Field number and wire type.
    const TRANSITION: u8 = 0x08;
    const CHANGE: u8 = 0x12;
    const KIND: u8 = 0x08;
    const NODE: u8 = 0x10;
    let mut r = Reader::new(bytes);
    let mut cc = ConfChangeV2::default();
    while r.remaining() > 0 {
        match r.u8()? {
            TRANSITION => {
                cc.transition = match r.u64()? {
                    0 => ConfChangeTransition::Auto,
                    1 => ConfChangeTransition::Implicit,
                    2 => ConfChangeTransition::Explicit,
                    _ => return Err(DecodeError::Invalid("transition of a change of members")),
                }
            }
            CHANGE => {
                let mut r = Reader::new(r.bytes()?);
                let mut one = ConfChangeSingle::default();
                while r.remaining() > 0 {
                    match r.u8()? {
                        KIND => {
                            one.change_type = match r.u64()? {
                                0 => ConfChangeType::AddNode,
                                1 => ConfChangeType::RemoveNode,
                                2 => ConfChangeType::AddLearnerNode,
                                _ => return Err(DecodeError::Invalid("kind of a change of members")),
                            }
                        }
                        NODE => one.node_id = u64::from(r.u32()?),
                        _ => return Err(DecodeError::Invalid("field of a change of members")),
                    }
                }
                cc.mut_changes().push(one);
            }
            _ => return Err(DecodeError::Invalid("field of a change of members")),
        }
    }
    Ok(cc)
}

/// Do these nodes, `me` among them without being named, hold every majority that is needed?
pub(crate) fn is_quorum(members: &Members, me: NodeId, answered: &BTreeSet<u64>) -> bool {
    [&members.voters, &members.outgoing].into_iter().filter(|side| !side.is_empty()).all(|side| {
        let here = side.iter().filter(|n| **n == me || answered.contains(&u64::from(n.0)));
        here.count() > side.len() / 2
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(list: &[u32]) -> Vec<NodeId> {
        list.iter().map(|n| NodeId(*n)).collect()
    }

    fn set(list: &[u32]) -> BTreeSet<NodeId> {
        nodes(list).into_iter().collect()
    }

    const READY: Learner = Learner { behind: 3, is_there: true, gets_snapshot: false };

    /// Goes on until there is nothing to do. Returns the groups on the way.
    fn walk(from: &Members, wanted: &BTreeSet<NodeId>, me: u32) -> (Vec<Members>, Next) {
        let mut way = vec![from.clone()];
        loop {
            match next(&way[way.len() - 1], wanted, NodeId(me), true, |_| Some(READY)) {
                Next::Propose(cc, _) => way.push(after(&way[way.len() - 1], &cc).unwrap()),
                end => return (way, end),
            }
        }
    }

    #[test]
    fn one_voter_takes_the_place_of_another() {
        let (way, end) = walk(&nodes(&[1, 2, 3]).into(), &set(&[1, 2, 4]), 1);
        assert!(matches!(end, Next::Done));
        let members = |voters: &[u32], outgoing: &[u32], learners: &[u32]| Members {
            voters: nodes(voters),
            outgoing: nodes(outgoing),
            learners: nodes(learners),
        };
        assert_eq!(
            way,
            [
                members(&[1, 2, 3], &[], &[]),
                members(&[1, 2, 3], &[], &[4]),
                members(&[1, 2, 4], &[1, 2, 3], &[]),
                members(&[1, 2, 4], &[], &[]),
            ]
        );
    }

    #[test]
    fn a_leader_that_goes_moves_the_leadership_first() {
        let all = Members::from(nodes(&[1, 2, 3]));
        assert!(matches!(walk(&all, &set(&[1, 2, 4]), 3).1, Next::LeadElsewhere));
        let joint = Members { voters: nodes(&[1, 2, 4]), outgoing: nodes(&[1, 2, 3]), learners: vec![] };
        assert!(matches!(walk(&joint, &set(&[1, 2, 4]), 3).1, Next::LeadElsewhere));
    }

    #[test]
    fn all_voters_at_once_are_replaced_too() {
        let (way, end) = walk(&nodes(&[1, 2, 3]).into(), &set(&[4, 5, 6]), 1);
        let joint = way.last().unwrap();
        assert!(matches!(end, Next::LeadElsewhere) && joint.is_joint());
        let (way, end) = walk(joint, &set(&[4, 5, 6]), 4);
        assert!(matches!(end, Next::Done));
        assert_eq!(way.last(), Some(&nodes(&[4, 5, 6]).into()));
    }

    #[test]
    fn what_is_not_ready_is_waited_for() {
        let all = Members { learners: nodes(&[4]), ..Members::from(nodes(&[1, 2, 3])) };
        let next_with = |learner| next(&all, &set(&[1, 2, 4]), NodeId(1), true, move |_| Some(learner));
        for learner in [
            Learner { behind: BEHIND_MAX + 1, ..READY },
            Learner { is_there: false, ..READY },
            Learner { gets_snapshot: true, ..READY },
        ] {
            assert!(matches!(next_with(learner), Next::Wait(_)), "{learner:?}");
        }
        let joint = Members { voters: nodes(&[1, 2, 4]), outgoing: nodes(&[1, 2, 3]), learners: vec![] };
        let held = next(&joint, &set(&[1, 2, 4]), NodeId(1), false, |_| None);
        assert!(matches!(held, Next::Wait(_)), "L4");
    }

    #[test]
    fn a_wish_that_changes_in_the_middle_is_followed_from_there() {
        let learning = Members { learners: nodes(&[4]), ..Members::from(nodes(&[1, 2, 3])) };
        let (way, end) = walk(&learning, &set(&[1, 2, 5]), 2);
        assert!(matches!(end, Next::Done) && way.iter().all(|m| !m.voters.contains(&NodeId(4))));
        let joint = Members { voters: nodes(&[1, 2, 4]), outgoing: nodes(&[1, 2, 3]), learners: vec![] };
        let (way, _) = walk(&joint, &set(&[1, 2, 3]), 2);
        assert_eq!(way.last(), Some(&nodes(&[1, 2, 3]).into()));
    }

    #[test]
    fn both_majorities_are_needed_in_a_joint_group() {
        let joint = Members { voters: nodes(&[1, 2, 4]), outgoing: nodes(&[1, 2, 3]), learners: nodes(&[5]) };
        let quorum = |list: &[u64]| is_quorum(&joint, NodeId(1), &list.iter().copied().collect());
        assert!(!quorum(&[4]) && !quorum(&[3]) && !quorum(&[5]));
        assert!(quorum(&[2]) && quorum(&[3, 4]));
    }

    #[test]
    fn what_raft_writes_is_read() {
        use raft::eraftpb::ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};
        let list =
            [change(AddNode, NodeId(4)), change(RemoveNode, NodeId(300)), change(AddLearnerNode, NodeId(7))];
        for transition in
            [ConfChangeTransition::Auto, ConfChangeTransition::Implicit, ConfChangeTransition::Explicit]
        {
            for n in 0..=list.len() {
                let cc = changes(list[..n].to_vec(), transition);
                let bytes = protobuf::Message::write_to_bytes(&cc).unwrap();
                assert_eq!(decode(bytes.into()), Ok(cc));
            }
        }
        for garbage in
            [&[0x08][..], &[0x08, 9], &[0x12, 4, 0x08], &[0x12, 2, 0x18, 1], &[0xff], &[0x1a, 1, 1]]
        {
            assert!(decode(Bytes::copy_from_slice(garbage)).is_err(), "{garbage:02x?}");
        }
    }

    #[test]
    fn entries_that_nobody_here_proposes_are_refused() {
        let all = Members::from(nodes(&[1, 2, 3]));
        assert_eq!(after(&all, &ConfChangeV2::default()), None, "it is not joint");
        let simple = |kind, id| changes(vec![change(kind, NodeId(id))], ConfChangeTransition::Auto);
        assert_eq!(after(&all, &simple(ConfChangeType::AddNode, 4)), None, "a voter without a joint group");
        assert_eq!(after(&all, &simple(ConfChangeType::RemoveNode, 3)), None);
        assert_eq!(after(&all, &simple(ConfChangeType::AddLearnerNode, 3)), None, "a voter made a learner");
        let implicit =
            changes(vec![change(ConfChangeType::AddNode, NodeId(4))], ConfChangeTransition::Implicit);
        assert_eq!(after(&all, &implicit), None);
    }
}
