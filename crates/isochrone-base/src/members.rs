//! Who takes part in a shard's group, while its membership is changed and while it is not.
//!
//!     {1 2 3}  ──add 4──▶  {1 2 3} + learner 4  ──▶  {1 2 4} and {1 2 3} both  ──▶  {1 2 4}
//!
//! A learner gets the log and has no vote. In between, elections and commits need a majority of the new voters and one of the
//! old ("joint consensus": Ongaro, "Consensus: Bridging Theory and Practice", 2014, section 4.3).

use std::fmt;

use crate::NodeId;
use crate::codec::{DecodeError, Reader, put_u64};

/// Nodes of one group. Each list is in ascending order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Members {
    /// The voters.
    pub voters: Vec<NodeId>,
    /// The voters of before, while both majorities are needed; else none.
    pub outgoing: Vec<NodeId>,
    /// Nodes that get the log and do not vote.
    pub learners: Vec<NodeId>,
}

impl From<Vec<NodeId>> for Members {
    fn from(mut voters: Vec<NodeId>) -> Members {
        voters.sort_unstable();
        voters.dedup();
        Members { voters, ..Members::default() }
    }
}

impl From<&[NodeId]> for Members {
    fn from(voters: &[NodeId]) -> Members {
        Members::from(voters.to_vec())
    }
}

/// `1 2 4`, `1 2 4 (before: 1 2 3)`, `1 2 3 (to come: 4)`.
impl fmt::Display for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |nodes: &[NodeId]| nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(" ");
        f.write_str(&list(&self.voters))?;
        for (what, nodes) in [("before", &self.outgoing), ("to come", &self.learners)] {
            if !nodes.is_empty() {
                write!(f, " ({what}: {})", list(nodes))?;
            }
        }
        Ok(())
    }
}

impl Members {
    /// Nobody: the replica does not know its group.
    pub fn is_empty(&self) -> bool {
        self.voters.is_empty()
    }

    /// Are two majorities needed?
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Voters only: no change is under way.
    pub fn is_settled(&self) -> bool {
        self.outgoing.is_empty() && self.learners.is_empty()
    }

    /// Everybody who votes, of now and of before.
    pub fn voting(&self) -> Vec<NodeId> {
        if !self.is_joint() {
            return self.voters.clone();
        }
        let mut all = [&self.voters[..], &self.outgoing].concat();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Everybody.
    pub fn all(&self) -> Vec<NodeId> {
        let mut all = [&self.voters[..], &self.outgoing, &self.learners].concat();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Does this node take part?
    pub fn contains(&self, node: NodeId) -> bool {
        [&self.voters, &self.outgoing, &self.learners].iter().any(|list| list.contains(&node))
    }

    /// Is this node, by itself, all there is?
    pub fn is_only(&self, node: NodeId) -> bool {
        self.voters == [node] && self.outgoing.is_empty() && self.learners.is_empty()
    }

    /// Appends the three lists.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for list in [&self.voters, &self.outgoing, &self.learners] {
            put_u64(out, list.len() as u64);
            list.iter().for_each(|n| put_u64(out, u64::from(n.0)));
        }
    }

    /// The inverse of [`Members::encode`].
    ///
    /// # Errors
    /// The bytes are not three lists of nodes.
    pub fn decode(r: &mut Reader) -> Result<Members, DecodeError> {
        let mut list = || -> Result<Vec<NodeId>, DecodeError> {
            (0..r.count(1)?).map(|_| Ok(NodeId(r.u32()?))).collect()
        };
        Ok(Members { voters: list()?, outgoing: list()?, learners: list()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(list: &[u32]) -> Vec<NodeId> {
        list.iter().map(|n| NodeId(*n)).collect()
    }

    #[test]
    fn everybody_is_counted_once() {
        let m = Members { voters: nodes(&[1, 2, 4]), outgoing: nodes(&[1, 2, 3]), learners: nodes(&[5]) };
        assert_eq!((m.voting(), m.all()), (nodes(&[1, 2, 3, 4]), nodes(&[1, 2, 3, 4, 5])));
        assert!(m.is_joint() && m.contains(NodeId(3)) && m.contains(NodeId(5)) && !m.contains(NodeId(6)));
        assert!(Members::from(nodes(&[2])).is_only(NodeId(2)) && !m.is_only(NodeId(1)));
    }

    #[test]
    fn bytes_roundtrip() {
        let m = Members { voters: nodes(&[1, 300]), outgoing: nodes(&[]), learners: nodes(&[u32::MAX]) };
        let mut out = Vec::new();
        m.encode(&mut out);
        let mut r = Reader::new(out.into());
        assert_eq!(Members::decode(&mut r), Ok(m));
        assert_eq!(r.finish(), Ok(()));
        assert!(Members::decode(&mut Reader::new(vec![9, 1].into())).is_err());
    }
}
