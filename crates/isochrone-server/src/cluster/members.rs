//! Which nodes hold the shards: a node takes the place of another, and replicas that left their groups are removed.
//!
//!     isochrone node replace 3 4 ──▶ the wish, a system key: voters 1 2 4
//!                                        │ read once a second where the meta range is led
//!                                        ▼
//!     each shard's leader goes one step on (crate consensus, module `membership`); one that leaves moves its leadership first
//!
//! The wish outlives everybody: whoever leads the meta range next goes on with it. All shards have the same voters, but for the time
//! between. A node whose replica left its group is not told so by Raft: a replica without a leader, or one that does
//! not find itself among the members, asks the leaseholder, once a second, and is removed by its word.
//!
//! How it fails: while the new node is not there, or the shard has no quorum, nothing moves and nothing is lost; the wish can be
//! replaced by another at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use isochrone_api as api;
use isochrone_base::codec::{DecodeError, Reader, put_u64};
use isochrone_base::{LogIndex, Members, NodeId, ShardId, Term, keyspace};
use isochrone_consensus::{GroupStatus, Step};
use isochrone_txn::kv::{Error, Lock, TxnOptions};

use super::Cluster;
use super::leaders::{META_SHARD, is_ready};
use super::message::{Ask, Message, ReplicaStatus};

/// Longest wait for a leader's step.
const STEP_WAIT_MAX: Duration = Duration::from_secs(6);
/// Shards asked for in one question.
const ASKED_MAX: usize = 1_000;
/// Attempts to read or write the wish.
const ATTEMPTS_MAX: u32 = 5;

/// What a leaseholder says of its group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The shard.
    pub shard: ShardId,
    /// Its members.
    pub members: Members,
    /// The last entry applied there: its term and index.
    pub applied: (Term, LogIndex),
}

impl Message for Standing {
    fn put(&self, out: &mut Vec<u8>) {
        put_u64(out, self.shard.0);
        self.members.encode(out);
        put_u64(out, self.applied.0);
        put_u64(out, self.applied.1);
    }

    fn take(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Standing { shard: ShardId(r.u64()?), members: Members::decode(r)?, applied: (r.u64()?, r.u64()?) })
    }
}

fn decode(value: &isochrone_base::Value) -> Result<Vec<NodeId>, Error> {
    Vec::decode(value.clone()).map_err(|e| Error::Internal(format!("the wished voters: {e}")))
}

/// `old`'s place for `new`. `None`: it is so already.
fn replaced(now: &[NodeId], old: NodeId, new: NodeId) -> Result<Option<Vec<NodeId>>, String> {
    match (now.contains(&old), now.contains(&new)) {
        (true, false) => {
            let mut wish: Vec<NodeId> = now.iter().map(|n| if *n == old { new } else { *n }).collect();
            wish.sort_unstable();
            Ok(Some(wish))
        }
        (false, true) => Ok(None),
        (true, true) => Err(format!("node {new} holds the shards already; name a node that holds none")),
        (false, false) => Err(format!("node {old} holds no shards; `isochrone node ls` shows who does")),
    }
}

/// Of each shard, the account that knows most.
pub(crate) fn freshest(all: Vec<ReplicaStatus>) -> BTreeMap<ShardId, ReplicaStatus> {
    let mut known: BTreeMap<ShardId, ReplicaStatus> = BTreeMap::new();
    for r in all {
        match known.get(&r.shard) {
            Some(k) if (k.epoch, k.term, k.applied) >= (r.epoch, r.term, r.applied) => {}
            _ => drop(known.insert(r.shard, r)),
        }
    }
    known
}

impl Cluster {
    /// May this node be given leaderships, as far as was seen where the meta range is led? Not one that leaves.
    pub(super) fn may_stay(&self, node: NodeId) -> bool {
        let wished = self.wished.lock().expect("nothing panics while it is held");
        wished.as_ref().is_none_or(|wish| wish.contains(&node))
    }

    /// May this node be given leaderships, as the wish says now?
    pub(super) async fn stays(&self, node: NodeId) -> Result<bool, Error> {
        let wish = self.wish().await?;
        *self.wished.lock().expect("nothing panics while it is held") = wish;
        Ok(self.may_stay(node))
    }

    /// Who shall vote in every shard. `None`: nobody ever wished for others than the first.
    async fn wish(&self) -> Result<Option<Vec<NodeId>>, Error> {
        let store = self.store()?;
        let (backoff, options) =
            (store.coordinator().backoff(), TxnOptions { read_only: true, ..TxnOptions::default() });
        isochrone_txn::retry::retry(&*store, backoff, &options, ATTEMPTS_MAX, |mut txn| async move {
            let value = txn.get(&keyspace::wished_voters_key(), Lock::None).await?;
            txn.commit().await?;
            value.as_ref().map(decode).transpose()
        })
        .await
    }

    /// Who shall vote in every shard: as was wished last, or who votes in the meta range.
    pub async fn wished_voters(&self) -> Result<Vec<NodeId>, Error> {
        if let Some(wish) = self.wish().await? {
            return Ok(wish);
        }
        let meta = freshest(self.services()?.replicas_of_all().await?).remove(&META_SHARD);
        let meta = meta.ok_or_else(|| Error::Unavailable("the meta range cannot be reached".into()))?;
        Ok(meta.members.voters)
    }

    /// Wishes for `new` in `old`'s place; `NoSuch` where that makes no sense. `first`: who votes when there was no wish yet.
    async fn wish_for(&self, old: NodeId, new: NodeId, first: &[NodeId]) -> Result<Vec<NodeId>, Error> {
        let store = self.store()?;
        let (backoff, options) = (store.coordinator().backoff(), TxnOptions::default());
        isochrone_txn::retry::retry(&*store, backoff, &options, ATTEMPTS_MAX, |mut txn| async move {
            let key = keyspace::wished_voters_key();
            let now = match txn.get(&key, Lock::None).await? {
                Some(value) => decode(&value)?,
                None => first.to_vec(),
            };
            let Some(wish) = replaced(&now, old, new).map_err(Error::NoSuch)? else {
                txn.rollback();
                return Ok(now);
            };
            txn.put(key, Some(wish.encode().into()))?;
            txn.commit().await?;
            Ok(wish)
        })
        .await
    }

    /// One step towards the wish, for every shard; to be called about once a second. Does nothing where the meta range is
    /// not led.
    pub async fn place_replicas(&self) -> Result<(), Error> {
        let leads = |s: std::sync::Arc<isochrone_shard::Shard>| s.leads();
        if self.identity.is_alone() || !self.local.shards().get(META_SHARD).is_some_and(leads) {
            return Ok(());
        }
        let wish = self.wish().await?;
        self.wished.lock().expect("nothing panics while it is held").clone_from(&wish);
        let Some(wish) = wish else { return Ok(()) };
        let all = freshest(self.services()?.replicas_of_all().await?);
        let wished = Members::from(wish.clone());
        let steps = all.values().filter(|r| r.members != wished).map(|r| {
            let (shard, wish) = (r.shard, wish.clone());
            async move {
                let step = match r.leader {
                    Some(leader) if leader == self.identity.node => {
                        self.change_members_here(shard, wish).await
                    }
                    Some(leader) => {
                        let ask = Ask::ChangeMembers { shard, voters: wish };
                        self.ask::<()>(leader, &ask, STEP_WAIT_MAX).await
                    }
                    None => return,
                };
                if let Err(error) = step {
                    tracing::debug!(%shard, %error, "the shard's members do not change now; tried again");
                }
            }
        });
        futures_util::future::join_all(steps).await;
        Ok(())
    }

    /// One step of a group that is led here.
    pub(crate) async fn change_members_here(&self, shard: ShardId, wish: Vec<NodeId>) -> Result<(), Error> {
        let gone = || Error::Unavailable("the store loop has ended".into());
        let step = self.groups.change_members(shard, wish.clone()).await.map_err(|_| gone())?;
        match step.map_err(Error::Unavailable)? {
            Step::Done => Ok(()),
            Step::UnderWay(what) => {
                tracing::debug!(%shard, what, "the shard's members change");
                Ok(())
            }
            Step::LeadElsewhere => {
                let status = self.groups.status().await.map_err(|_| gone())?;
                let Some(status) = status.get(&shard) else { return Ok(()) };
                let stays = |n: &&NodeId| status.members.voters.contains(n) && is_ready(status, **n);
                match wish.iter().filter(|n| **n != self.identity.node).find(stays) {
                    Some(to) => self.transfer_here(shard, *to).await,
                    None => Err(Error::Unavailable(format!("nobody can lead shard {shard} instead now"))),
                }
            }
        }
    }

    /// What this node knows of those of these groups whose lease it holds.
    pub(crate) async fn standing(&self, shards: &[ShardId]) -> Result<Vec<Standing>, Error> {
        let here = shards.iter().filter_map(|shard| self.local.shards().get(*shard));
        let known: Vec<_> = here.map(|shard| shard.state_light()).collect();
        // The leases are looked at last: so it was so at some moment since the question came.
        let status = self.groups.status().await;
        let status = status.map_err(|_| Error::Unavailable("the store loop has ended".into()))?;
        let now = self.env.clock.monotonic_ns();
        let leases = |shard| status.get(&shard).is_some_and(|s| s.leading && s.lease_until_ns > now);
        let known = known.into_iter().filter(|s| leases(s.shard));
        Ok(known
            .map(|s| Standing { shard: s.shard, members: s.members, applied: (s.applied_term, s.applied) })
            .collect())
    }

    /// Removes replicas of groups that this node is no part of any more; to be called about once a second.
    pub async fn retire_replicas(&self) {
        if self.identity.is_alone() {
            return;
        }
        let (Ok(status), Ok(services)) = (self.groups.status().await, self.services()) else { return };
        let me = self.identity.node;
        let belongs = |g: &GroupStatus| g.leading || (g.leader.is_some() && g.members.contains(me));
        // A log without a group would wait for ever for what makes the group again.
        let removed = self.local.shards().removed();
        let unclear = services.logged().into_iter().filter(|shard| !removed.contains(shard));
        let unclear: BTreeSet<ShardId> = unclear.chain(status.keys().copied()).collect();
        let unclear: Vec<ShardId> =
            unclear.into_iter().filter(|shard| !status.get(shard).is_some_and(belongs)).collect();
        if unclear.is_empty() {
            return;
        }
        let asked = unclear.chunks(ASKED_MAX).map(|shards| {
            let ask = Ask::Standing { shards: shards.to_vec() };
            services.ask_all::<Vec<Standing>>(ask)
        });
        let mut words: BTreeMap<ShardId, Standing> = BTreeMap::new();
        for (_, answer) in futures_util::future::join_all(asked).await.into_iter().flatten() {
            for word in answer {
                if words.get(&word.shard).is_none_or(|w| w.applied < word.applied) {
                    words.insert(word.shard, word);
                }
            }
        }
        words.retain(|_, word| !word.members.contains(me));
        if words.is_empty() {
            return;
        }
        // From now on this node has to ask for these keys elsewhere.
        if let Ok(all) = services.replicas_of_all().await {
            self.router.hear(all.into_iter().filter(|r| !r.members.contains(me)).collect());
        }
        for (shard, word) in words {
            // Refused if more has come since than the word knows of.
            if let Ok(Err(why)) = self.groups.remove(shard, word.applied).await {
                tracing::debug!(%shard, why, "a replica that left its group stays for now");
            }
        }
    }

    /// `isochrone node replace`: one look, asked for again and again.
    pub(crate) async fn replace_step(&self, old: NodeId, new: NodeId) -> api::Response {
        match self.replace(old, new).await {
            Ok(0) => api::Response::Replaced,
            Ok(shards_left) => api::Response::Replacing { shards_left },
            // Asking again may help.
            Err(error @ Error::Unavailable(_)) => {
                tracing::info!(%error, "no progress with replacing a node");
                api::Response::Replacing { shards_left: u32::MAX }
            }
            Err(error) => api::Response::Error { message: error.to_string() },
        }
    }

    /// Gives `old`'s place to `new`, wherever it has not been given yet. Says how many shards are still to move; asking again is
    /// right. `NoSuch`: that makes no sense.
    pub async fn replace(&self, old: NodeId, new: NodeId) -> Result<u32, Error> {
        if self.identity.is_alone() {
            let why = "the shards of a node that is alone cannot be moved yet";
            return Err(Error::NoSuch(why.into()));
        }
        if !self.live().contains(&new) {
            return Err(Error::NoSuch(format!(
                "node {new} cannot be reached; start it with --join first (`isochrone node ls` shows who is there)"
            )));
        }
        let all = freshest(self.services()?.replicas_of_all().await?);
        let Some(meta) = all.get(&META_SHARD) else {
            return Err(Error::Unavailable("the meta range cannot be reached".into()));
        };
        let wished = Members::from(self.wish_for(old, new, &meta.members.voters).await?);
        Ok(all.values().filter(|r| r.members != wished).count() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_to_a_node_that_has_none() {
        let nodes = |list: &[u32]| list.iter().map(|n| NodeId(*n)).collect::<Vec<_>>();
        let replaced = |now: &[u32], old, new| replaced(&nodes(now), NodeId(old), NodeId(new));
        assert_eq!(replaced(&[1, 2, 3], 2, 4), Ok(Some(nodes(&[1, 3, 4]))));
        assert_eq!(replaced(&[1, 3, 4], 2, 4), Ok(None));
        assert!(replaced(&[1, 2, 3], 2, 3).is_err() && replaced(&[1, 2, 3], 4, 5).is_err());
    }
}
