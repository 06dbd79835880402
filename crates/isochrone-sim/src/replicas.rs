//! Which replicas are where, as far as was seen: what decides whether a disk may be lost, and who is a majority.

use std::collections::{BTreeMap, BTreeSet};

use isochrone_base::{LogIndex, Members, NodeId, ShardId};
use isochrone_server::Node;

/// What was seen of a replica.
struct Replica {
    applied: LogIndex,
    members: Members,
}

/// Of each node, what it had when it was seen last.
#[derive(Default)]
pub(crate) struct Replicas(BTreeMap<NodeId, BTreeMap<ShardId, Replica>>);

impl Replicas {
    /// Looks at a node.
    pub(crate) fn see(&mut self, node: &Node) {
        let states = node.local.shards().states_light();
        let here = states.into_iter().map(|s| (s.shard, Replica { applied: s.applied, members: s.members }));
        self.0.insert(node.id, here.collect());
    }

    /// A node's disk is gone.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.0.remove(&node);
    }

    /// Has this node any?
    pub(crate) fn has_some(&self, node: NodeId) -> bool {
        self.0.get(&node).is_some_and(|all| !all.is_empty())
    }

    /// The members of every shard, as whoever had applied most has them.
    pub(crate) fn groups(&self) -> BTreeMap<ShardId, &Members> {
        let mut all: BTreeMap<ShardId, &Replica> = BTreeMap::new();
        for (shard, replica) in self.0.values().flatten() {
            let best = all.entry(*shard).or_insert(replica);
            if best.applied < replica.applied {
                *best = replica;
            }
        }
        all.into_iter().map(|(shard, replica)| (shard, &replica.members)).collect()
    }

    /// Is no change of a shard's members under way, and do all of them, but for one, know of the last?
    pub(crate) fn is_settled(&self, shard: ShardId, members: &Members, but: Option<NodeId>) -> bool {
        let knows = |n: &NodeId| {
            let replica = self.0.get(n).and_then(|all| all.get(&shard));
            replica.is_some_and(|replica| replica.members == *members)
        };
        members.is_settled() && members.voters.iter().filter(|n| Some(**n) != but).all(knows)
    }

    /// Does nobody belong to a group any more whose disk is gone, and has everybody a replica who does?
    pub(crate) fn are_complete_without(&self, gone: NodeId) -> bool {
        let mut groups = self.groups().into_iter();
        groups.all(|(shard, members)| !members.contains(gone) && self.is_settled(shard, members, None))
    }

    /// Has every shard these voters, with nothing under way?
    pub(crate) fn have_all(&self, voters: &[NodeId]) -> bool {
        self.groups().values().all(|members| members.is_settled() && members.voters == voters)
    }

    /// Everybody who votes somewhere.
    pub(crate) fn voting(&self) -> BTreeSet<NodeId> {
        self.groups().values().flat_map(|members| members.voting()).collect()
    }

    /// Are these, with the replicas that they have, a majority of every shard that anybody has? In a joint group of both sides.
    pub(crate) fn have_a_majority(&self, nodes: &BTreeSet<NodeId>) -> bool {
        self.groups().into_iter().all(|(shard, members)| {
            let has = |n: &NodeId| self.0.get(n).is_some_and(|all| all.contains_key(&shard));
            let holders: BTreeSet<NodeId> = nodes.iter().copied().filter(has).collect();
            is_majority(&holders, &members.voters)
                && (!members.is_joint() || is_majority(&holders, &members.outgoing))
        })
    }
}

/// Are these most of those?
pub(crate) fn is_majority(these: &BTreeSet<NodeId>, of: &[NodeId]) -> bool {
    of.iter().filter(|n| these.contains(n)).count() > of.len() / 2
}
