//! Who leads what: leaderships are moved by hand, spread evenly, and given away before a stop.
//!
//! A transfer is graceful (R1): the leaseholder stops serving, writes the highest timestamp it ever served into the log,
//! and only then lets Raft move the leadership. If that does not happen in time, it serves again.
//!
//! Placement is decided where the meta range is led (design D12): once a second it counts leaderships per node, and while
//! one node leads two more than another, moves one. A node that drains, or is out of service for its clock's sake (N6), gives
//! its own away, one after the other, and is given none. A shard
//! whose leader was placed by hand is left alone for [`PINNED_FOR`].

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use isochrone_api as api;
use isochrone_base::{NodeId, ShardId};
use isochrone_consensus::GroupStatus;
use isochrone_txn::kv::Error;

use super::message::Ask;
use super::{Cluster, liveness};

/// Longest wait for a transfer; past it the old leader serves again.
const TRANSFER_WAIT_MAX: Duration = Duration::from_secs(3);
/// Longest wait for another node to do a transfer.
const ASK_WAIT_MAX: Duration = Duration::from_secs(6);
/// Pause between two rounds of giving leaderships away before a stop.
const GIVE_AWAY_PAUSE: Duration = Duration::from_millis(50);
/// A leader placed by hand stays where it is for this long.
const PINNED_FOR: Duration = Duration::from_secs(300);
/// Entries that a follower may be behind and still be given the leadership.
const BEHIND_MAX: u64 = 1_000;
/// The shard whose leader places the others: it holds the meta range.
pub(super) const META_SHARD: ShardId = ShardId(1);

/// Shards whose leaders were placed by hand.
#[derive(Default)]
pub struct Pins(Mutex<BTreeMap<ShardId, u64>>);

impl Pins {
    /// From now on for a while.
    pub fn pin(&self, shard: ShardId, now_ns: u64) {
        let until = now_ns + PINNED_FOR.as_nanos() as u64;
        self.0.lock().expect("nothing panics while it is held").insert(shard, until);
    }

    fn is_pinned(&self, shard: ShardId, now_ns: u64) -> bool {
        let mut pins = self.0.lock().expect("nothing panics while it is held");
        pins.retain(|_, until| *until > now_ns);
        pins.contains_key(&shard)
    }
}

/// May this follower become the leader?
pub(super) fn is_ready(status: &GroupStatus, node: NodeId) -> bool {
    status.followers.iter().any(|f| {
        f.node == node
            && f.recently_active
            && f.pending_snapshot.is_none()
            && f.matched + BEHIND_MAX >= status.last_index
    })
}

/// One move that makes it more even: shard, from, to. `leaders`: who leads what; `nodes`: who may lead.
fn next_move(
    leaders: &BTreeMap<ShardId, NodeId>,
    nodes: &[NodeId],
    movable: impl Fn(ShardId, NodeId) -> bool,
) -> Option<(ShardId, NodeId, NodeId)> {
    let mut count: BTreeMap<NodeId, usize> = nodes.iter().map(|n| (*n, 0)).collect();
    for leader in leaders.values() {
        if let Some(n) = count.get_mut(leader) {
            *n += 1;
        }
    }
    let most = *count.iter().max_by_key(|(_, n)| **n)?.0;
    let mut few: Vec<(usize, NodeId)> = count.iter().map(|(node, n)| (*n, *node)).collect();
    few.sort_unstable();
    for (n, to) in few {
        if count[&most] < n + 2 {
            return None;
        }
        // The meta range's shard moves last: it is where placement runs.
        let of_most = || leaders.iter().filter(|(_, l)| **l == most).map(|(s, _)| *s);
        if let Some(shard) = of_most().rev().find(|s| movable(*s, to)) {
            return Some((shard, most, to));
        }
    }
    None
}

impl Cluster {
    /// Moves a leadership; this node has it.
    pub(crate) async fn transfer_here(&self, shard: ShardId, to: NodeId) -> Result<(), Error> {
        let unavailable = |e: isochrone_shard::api::Error| Error::Unavailable(e.to_string());
        let status = self.group(shard).await?;
        if to == self.identity.node {
            return Ok(());
        }
        if !status.members.voters.contains(&to) {
            return Err(Error::NoSuch(format!("node {to} has no replica of shard {shard}")));
        }
        if self.peers().get(&to).is_some_and(|p| p.news.out_of_service) {
            return Err(Error::Unavailable(format!(
                "node {to} is out of service: its clock is out of bounds"
            )));
        }
        if !is_ready(&status, to) {
            return Err(Error::Unavailable(format!("node {to} is not up to date with shard {shard}")));
        }
        self.local.hand_over(shard).await.map_err(unavailable)?;
        let moved = self.groups.transfer(shard, to);
        let result = tokio::select! {
            biased;
            answer = moved => answer.map_err(|_| "the store loop has ended".to_string()).and_then(|r| r),
            () = self.env.timer.sleep(TRANSFER_WAIT_MAX) => Err("it did not happen in time".into()),
        };
        if let Err(why) = result {
            // Harmless where the leadership has moved after all: then this node does not lead.
            let _serves_again = self.local.resume(shard).await;
            return Err(Error::Unavailable(format!("shard {shard} was not transferred to node {to}: {why}")));
        }
        Ok(())
    }

    async fn status(&self) -> Result<BTreeMap<ShardId, GroupStatus>, Error> {
        self.groups.status().await.map_err(|_| Error::Unavailable("the store loop has ended".into()))
    }

    async fn group(&self, shard: ShardId) -> Result<GroupStatus, Error> {
        let status = self.status().await?.remove(&shard);
        status.ok_or_else(|| Error::Unavailable(format!("shard {shard} has no replica here")))
    }

    /// Moves a leadership, wherever it is, because somebody asks for it.
    pub(crate) async fn transfer(&self, shard: ShardId, to: NodeId) -> Result<(), Error> {
        let leader = self.leader_of(shard).await?;
        self.pin_everywhere(shard).await;
        if leader == to {
            return Ok(());
        }
        self.move_leader(shard, leader, to).await
    }

    async fn leader_of(&self, shard: ShardId) -> Result<NodeId, Error> {
        let no_shard = || Error::NoSuch(format!("shard {shard} does not exist"));
        let services = self.services()?;
        let all = services.replicas_anywhere().await?;
        let mut of_shard = all.into_iter().filter(|r| r.shard == shard).peekable();
        of_shard.peek().ok_or_else(no_shard)?;
        let leader = of_shard.max_by_key(|r| r.term).and_then(|r| r.leader);
        leader.ok_or_else(|| Error::Unavailable(format!("shard {shard} has no leader now; try again")))
    }

    async fn move_leader(&self, shard: ShardId, from: NodeId, to: NodeId) -> Result<(), Error> {
        if from == self.identity.node {
            return self.transfer_here(shard, to).await;
        }
        self.ask(from, &Ask::Transfer { shard, to }, ASK_WAIT_MAX).await
    }

    async fn pin_everywhere(&self, shard: ShardId) {
        self.pins.pin(shard, self.env.clock.monotonic_ns());
        let ask = Ask::Pin { shard };
        let told = self.live().into_iter().filter(|n| *n != self.identity.node);
        let told = told.map(|node| self.ask::<()>(node, &ask, TRANSFER_WAIT_MAX));
        // Who does not hear it may move the leader again: a nuisance, no harm.
        let _heard = futures_util::future::join_all(told).await;
    }

    /// One step of placement; to be called about once a second.
    pub async fn place_leaders(&self) -> Result<(), Error> {
        let status = self.status().await?;
        let (me, now_ns) = (self.identity.node, self.env.clock.monotonic_ns());
        let peers = self.peers();
        let draining = |n: &NodeId| peers.get(n).is_some_and(|p| p.news.draining || p.news.out_of_service);
        let mut nodes: Vec<NodeId> = self.live().into_iter().filter(|n| !draining(n)).collect();
        if self.liveness.draining() || self.clocks.is_out() {
            nodes.retain(|n| *n != me);
            return self.give_one_away(&status, &nodes).await;
        }
        if status.get(&META_SHARD).and_then(|s| s.leader) != Some(me) {
            return Ok(());
        }
        let several = status.iter().filter(|(_, s)| s.members.voters.len() > 1);
        let leaders: BTreeMap<ShardId, NodeId> =
            several.clone().filter_map(|(shard, s)| Some((*shard, s.leader?))).collect();
        nodes.retain(|n| self.may_stay(*n) && several.clone().any(|(_, s)| s.members.voters.contains(n)));
        let movable = |shard: ShardId, to: NodeId| {
            let s = &status[&shard];
            let ready = s.leader != Some(me) || is_ready(s, to); // elsewhere, its leader looks
            s.members.voters.contains(&to) && ready && !self.pins.is_pinned(shard, now_ns)
        };
        match next_move(&leaders, &nodes, movable) {
            None => Ok(()),
            // What was known of the wish may be from before this node led the meta range last.
            Some((_, _, to)) if !self.stays(to).await? => Ok(()),
            Some((shard, from, to)) => {
                tracing::info!(%shard, %from, %to, "moving a leadership to spread them evenly");
                self.move_leader(shard, from, to).await
            }
        }
    }

    async fn give_one_away(
        &self,
        status: &BTreeMap<ShardId, GroupStatus>,
        nodes: &[NodeId],
    ) -> Result<(), Error> {
        let mut result = Ok(());
        for (shard, s) in status.iter().filter(|(_, s)| s.leader == Some(self.identity.node)) {
            if let Some(to) = nodes.iter().find(|n| s.members.voters.contains(n) && is_ready(s, **n)) {
                // One that does not move yet keeps none of the others.
                result = result.and(self.transfer_here(*shard, *to).await);
            }
        }
        result
    }

    /// Before a stop: gives every leadership away that others can take, within bounds.
    pub async fn give_all_away(&self, wait_max: Duration) {
        self.liveness.set_draining();
        let given = async {
            while self.led() > 0 && self.live().len() > 1 {
                self.exchange_news().await;
                if let Err(error) = self.place_leaders().await {
                    tracing::debug!(%error, "a leadership was not given away yet");
                }
                self.env.timer.sleep(GIVE_AWAY_PAUSE).await;
            }
        };
        tokio::select! {
            biased;
            () = given => {}
            () = self.env.timer.sleep(wait_max) => {}
        }
    }

    /// `isochrone node ls`.
    pub(crate) async fn node_rows(&self) -> api::Response {
        // Dead nodes are in the records only; without a quorum what was read last has to do.
        let records = tokio::select! {
            biased;
            read = self.liveness.records() => read.map_or_else(|_| self.liveness.known(), |(_, r)| r),
            () = self.env.timer.sleep(TRANSFER_WAIT_MAX) => self.liveness.known(),
        };
        let mut rows: BTreeMap<NodeId, api::NodeRow> = BTreeMap::new();
        for r in records {
            rows.insert(r.node, row(r.node, r.address, r.sql));
        }
        let mine = self.news();
        rows.entry(mine.node).or_insert_with(|| row(mine.node, self.address.clone(), mine.sql.clone()));
        let live = self.live();
        let mut news: Vec<_> = self.peers().into_values().map(|p| p.news).collect();
        news.push(mine);
        for n in news {
            let address =
                n.peers.iter().find(|p| p.node == n.node).map_or(String::new(), |p| p.address.clone());
            let row = rows.entry(n.node).or_insert_with(|| row(n.node, address, n.sql.clone()));
            if live.contains(&n.node) {
                row.state = if n.draining { api::NodeState::Draining } else { api::NodeState::Live };
                (row.leaders, row.replicas) = (n.leaders, n.replicas);
            }
        }
        api::Response::Nodes(rows.into_values().collect())
    }

    /// `isochrone node drain`: one step, asked for again and again.
    pub(crate) async fn drain_step(&self, node: NodeId) -> api::Response {
        let error = |message: String| api::Response::Error { message };
        let leaders_left = if node == self.identity.node {
            self.liveness.set_draining();
            self.led() as u32
        } else {
            if !self.live().contains(&node) {
                return error(format!("node {node} cannot be reached; `isochrone node ls` shows who can"));
            }
            match self.ask::<()>(node, &Ask::Drain, ASK_WAIT_MAX).await {
                Ok(()) => {}
                Err(e) => return error(e.to_string()),
            }
            self.exchange_news().await;
            self.peers().get(&node).map_or(0, |p| p.news.leaders)
        };
        if self.identity.is_alone() && node == self.identity.node {
            return error("this is the only node with shards: nobody can take them over".into());
        }
        if leaders_left > 0 { api::Response::Draining { leaders_left } } else { api::Response::Drained }
    }
}

fn row(node: NodeId, address: String, sql: String) -> api::NodeRow {
    api::NodeRow { node, address, sql, state: api::NodeState::Dead, leaders: 0, replicas: 0 }
}

/// Renewals of this node's own lease go on while others are asked about theirs.
const _: () = assert!(liveness::RENEW_EVERY.as_millis() < TRANSFER_WAIT_MAX.as_millis());

#[cfg(test)]
mod tests {
    use super::*;

    fn leaders(list: &[(u64, u32)]) -> BTreeMap<ShardId, NodeId> {
        list.iter().map(|(s, n)| (ShardId(*s), NodeId(*n))).collect()
    }

    #[test]
    fn leaderships_are_spread() {
        let nodes = [NodeId(1), NodeId(2), NodeId(3)];
        let mut l = leaders(&[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]);
        let mut moves = 0;
        while let Some((shard, from, to)) = next_move(&l, &nodes, |_, _| true) {
            assert_eq!(l.insert(shard, to), Some(from));
            moves += 1;
        }
        assert_eq!(moves, 3);
        assert_eq!(l[&ShardId(1)], NodeId(1), "the meta range's shard moves last");
        for n in nodes {
            assert!(l.values().filter(|x| **x == n).count() <= 2);
        }
    }

    #[test]
    fn what_cannot_be_moved_stays() {
        let nodes = [NodeId(1), NodeId(2), NodeId(3)];
        let l = leaders(&[(1, 1), (2, 1), (3, 1)]);
        assert_eq!(next_move(&l, &nodes, |_, _| false), None);
        // Node 2 cannot take anything, node 3 can.
        let (_, _, to) = next_move(&l, &nodes, |_, to| to == NodeId(3)).unwrap();
        assert_eq!(to, NodeId(3));
        // A leader that is not among the nodes counts for nobody.
        assert_eq!(next_move(&leaders(&[(1, 9), (2, 9)]), &nodes, |_, _| true), None);
    }

    #[test]
    fn pins_end() {
        let pins = Pins::default();
        pins.pin(ShardId(3), 5);
        assert!(pins.is_pinned(ShardId(3), 6) && !pins.is_pinned(ShardId(4), 6));
        assert!(!pins.is_pinned(ShardId(3), 6 + PINNED_FOR.as_nanos() as u64));
    }
}
