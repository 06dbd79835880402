//! Deadlocks over several nodes: transactions that wait for each other's row locks in the memory of several leaseholders.
//!
//!     this node's table            gateway of B           leaseholder of k2        gateway of C ...
//!     A waits for k1, held by B ──▶ B waits for k2 ──────▶ k2 is held by C ──────▶ C waits for k1 ──▶ A: a cycle
//!
//! A cycle within one node is refused when it would be closed (L2). What is left is looked for from the side that
//! waits: a node whose table has waits that are [`LOOK_AFTER`] old follows their edges, a level of all of them at a time.
//! The gateway of a transaction says what it waits for, the node that it asked for the lock says who stands in its way.
//! There is no place where the whole graph is kept, and nobody looks while nobody waits.
//!
//! Invariants
//!   V1  One of a cycle gives way: the one with the highest transaction id, whoever finds the cycle and however often.
//!   V2  No victim without a deadlock. A cycle that was found is asked for a second time, edge by edge. Each wait has a
//!       ticket; a lock is held until its transaction ends. So an edge that was there both times under one ticket was
//!       there all the time between, and all edges of the cycle were there at one moment, between the two rounds.
//!   V3  Nothing is remembered from round to round: what a lost message hides, the next round finds.
//!
//! First come edges to holders of locks. Only when a wait is [`LOOK_AROUND_AFTER`] old those to earlier waiters count, too: a
//! cycle that runs through the queue alone exists only where modes differ, and among the waiters of one row the
//! shorter cycle through its holder should be the one that is broken.
//!
//! Time: a deadlock is broken about [`LOOK_AFTER`] + [`LOOK_EVERY`] + four exchanges per edge between nodes after it closed,
//! well within a second in one region.
//!
//! Bounds: [`TXNS_MAX`] transactions and [`LEVELS_MAX`] edges in one round, [`ASK_WAIT_MAX`] for one answer. A deadlock
//! beyond them ends with `lock_timeout`. Known gap: a wait of a read or a prepare for a foreign prepare is no edge; it is
//! bounded by recovery (R18).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use isochrone_base::{NodeId, Timestamp, TxnId};
use isochrone_shard::locks::Owner;

use super::Cluster;
use super::message::{Ask, HeldLock, InTheWay, Wait};

/// Waits younger than this are left alone: nearly all end by themselves.
pub const LOOK_AFTER: Duration = Duration::from_millis(200);
/// From this age on edges to earlier waiters are followed as well.
pub const LOOK_AROUND_AFTER: Duration = Duration::from_millis(400);
/// Between two rounds, while somebody waits.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A wait older than this is looked at in every [`SELDOM`]th round only: what closes a cycle is a young one.
pub const YOUNG: Duration = Duration::from_secs(3);
/// See [`YOUNG`].
pub const SELDOM: u64 = 10;
/// Transactions looked at in one round.
pub const TXNS_MAX: usize = 4_096;
/// Edges from a wait that are followed.
pub const LEVELS_MAX: usize = 32;
/// Longest wait for one node's answer.
pub const ASK_WAIT_MAX: Duration = Duration::from_millis(500);
/// Obstacles told in one answer.
const TOLD_MAX: usize = 50_000;
/// Cycles broken in one round; the others follow in the next.
const CYCLES_MAX: usize = 64;

/// One transaction's wait, and who stands in its way.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Edge {
    gateway: NodeId,
    /// Where it waits.
    node: NodeId,
    way: InTheWay,
}

impl Edge {
    fn obstacles(&self, around: bool) -> impl Iterator<Item = &Owner> {
        self.way.holders.iter().chain(self.way.earlier.iter().take(if around { usize::MAX } else { 0 }))
    }
}

type Graph = BTreeMap<TxnId, Edge>;

/// A shortest way from `start` back to it, as the transactions on it in the order of waiting; `None`: there is none.
fn cycle(graph: &Graph, start: TxnId, around: bool) -> Option<Vec<TxnId>> {
    let mut came_from: BTreeMap<TxnId, TxnId> = BTreeMap::new();
    let mut level = vec![start];
    while !level.is_empty() {
        let mut next = Vec::new();
        for at in level {
            for to in graph.get(&at).into_iter().flat_map(|e| e.obstacles(around)) {
                if to.txn == start {
                    let mut way = vec![at];
                    while let Some(from) = came_from.get(way.last().expect("it begins with one")) {
                        way.push(*from);
                    }
                    way.reverse();
                    return Some(way);
                }
                if graph.contains_key(&to.txn) && !came_from.contains_key(&to.txn) {
                    came_from.insert(to.txn, at);
                    next.push(to.txn);
                }
            }
        }
        level = next;
    }
    None
}

/// The cycles through `starts`, each without who gives way for an earlier one. `bool`: follow edges to earlier waiters.
fn cycles(mut graph: Graph, starts: &[(TxnId, bool)]) -> Vec<Vec<TxnId>> {
    let mut out = Vec::new();
    for around in [false, true] {
        for (start, old) in starts {
            if out.len() < CYCLES_MAX
                && (!around || *old)
                && let Some(found) = cycle(&graph, *start, around)
            {
                if let Some(victim) = found.iter().max() {
                    graph.remove(victim);
                }
                out.push(found);
            }
        }
    }
    out
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

impl Cluster {
    /// Who stands in the way of these waiters here.
    pub(crate) fn in_the_way(&self, waits: &[HeldLock]) -> Vec<InTheWay> {
        let mut told = 0;
        let mut out = Vec::new();
        for lock in waits {
            if told >= TOLD_MAX {
                break;
            }
            if let Some(o) = self.local.locks().obstacles(lock.txn, &lock.key) {
                told += 1 + o.holders.len() + o.earlier.len();
                out.push(InTheWay {
                    lock: lock.clone(),
                    ticket: o.ticket,
                    holders: o.holders,
                    earlier: o.earlier,
                });
            }
        }
        out
    }

    /// A wait here ends for the sake of others.
    pub(crate) fn gives_way(&self, lock: &HeldLock, ticket: u64) {
        if self.local.locks().give_way(lock.txn, &lock.key, ticket) {
            tracing::info!(txn = %lock.txn, "a deadlock over several nodes was broken");
        }
    }

    async fn waits_at(&self, node: NodeId, txns: Vec<TxnId>) -> Vec<Wait> {
        if node == self.identity.node {
            return self.router.waits(&txns);
        }
        self.ask(node, &Ask::Waits { txns }, ASK_WAIT_MAX).await.unwrap_or_default()
    }

    async fn ways_at(&self, node: NodeId, waits: Vec<HeldLock>) -> (NodeId, Vec<InTheWay>) {
        if node == self.identity.node {
            return (node, self.in_the_way(&waits));
        }
        (node, self.ask(node, &Ask::InTheWay { waits }, ASK_WAIT_MAX).await.unwrap_or_default())
    }

    /// The waits of these transactions, as their gateways and leaseholders tell now.
    async fn edges_of(&self, txns: &BTreeMap<TxnId, NodeId>) -> Graph {
        let mut by_gateway: BTreeMap<NodeId, Vec<TxnId>> = BTreeMap::new();
        for (txn, gateway) in txns {
            by_gateway.entry(*gateway).or_default().push(*txn);
        }
        let waits = join_all(by_gateway.into_iter().map(|(node, txns)| self.waits_at(node, txns))).await;
        let mut by_node: BTreeMap<NodeId, Vec<HeldLock>> = BTreeMap::new();
        for wait in waits.into_iter().flatten() {
            by_node.entry(wait.node).or_default().push(wait.lock);
        }
        let ways = join_all(by_node.into_iter().map(|(node, waits)| self.ways_at(node, waits))).await;
        let mut graph = Graph::new();
        for (node, ways) in ways {
            for way in ways {
                if let Some(gateway) = txns.get(&way.lock.txn) {
                    graph.entry(way.lock.txn).or_insert(Edge { gateway: *gateway, node, way });
                }
            }
        }
        graph
    }

    /// V2: is every edge of the cycle there still, under the same ticket?
    async fn is_there_still(&self, graph: &Graph, cycle: &[TxnId]) -> bool {
        let members = cycle.iter().filter_map(|t| Some((*t, graph.get(t)?.gateway))).collect();
        let now = self.edges_of(&members).await;
        cycle.iter().zip(cycle.iter().cycle().skip(1)).all(|(from, to)| {
            let (Some(was), Some(is)) = (graph.get(from), now.get(from)) else { return false };
            (was.node, &was.way.lock, was.way.ticket) == (is.node, &is.way.lock, is.way.ticket)
                && is.obstacles(true).any(|o| o.txn == *to)
        })
    }

    /// One round: looks for deadlocks that waits at this node are part of, and breaks them. To be called every
    /// [`LOOK_EVERY`] while somebody waits; `round` counts the calls. Returns how many it broke.
    pub async fn break_deadlocks(&self, round: u64) -> usize {
        let now = self.clock.latest();
        let before = |age: Duration| Timestamp::from_micros(now.micros().saturating_sub(micros(age)));
        let mut waiting = self.local.locks().waiting(before(LOOK_AFTER));
        if !round.is_multiple_of(SELDOM) {
            waiting.retain(|(_, _, since)| *since > before(YOUNG));
        }
        waiting.truncate(TXNS_MAX);
        let mut graph = Graph::new();
        let mut starts = Vec::new();
        for (owner, key, since) in waiting {
            let lock = HeldLock { txn: owner.txn, key };
            if let Some(way) = self.in_the_way(std::slice::from_ref(&lock)).pop() {
                starts.push((owner.txn, since <= before(LOOK_AROUND_AFTER)));
                graph.entry(owner.txn).or_insert(Edge {
                    gateway: owner.gateway,
                    node: self.identity.node,
                    way,
                });
            }
        }
        let around = starts.iter().any(|(_, old)| *old);
        let mut asked: BTreeSet<TxnId> = graph.keys().copied().collect();
        let mut ends: Vec<TxnId> = graph.keys().copied().collect();
        for _ in 0..LEVELS_MAX {
            let mut next: BTreeMap<TxnId, NodeId> = BTreeMap::new();
            for o in ends.iter().filter_map(|t| graph.get(t)).flat_map(|e| e.obstacles(around)) {
                if asked.len() < TXNS_MAX && asked.insert(o.txn) {
                    next.insert(o.txn, o.gateway);
                }
            }
            if next.is_empty() {
                break;
            }
            let found = self.edges_of(&next).await;
            ends = found.keys().copied().collect();
            graph.extend(found);
        }
        let mut broken = 0;
        for cycle in cycles(graph.clone(), &starts) {
            let Some(victim) = cycle.iter().max() else { continue };
            if !self.is_there_still(&graph, &cycle).await {
                continue;
            }
            let edge = &graph[victim];
            tracing::info!(%victim, members = cycle.len(), "a deadlock over several nodes");
            broken += 1;
            let (lock, ticket) = (edge.way.lock.clone(), edge.way.ticket);
            if edge.node == self.identity.node {
                self.gives_way(&lock, ticket);
            } else {
                // Lost: found again in the next round.
                let _told = self.ask::<()>(edge.node, &Ask::GiveWay { lock, ticket }, ASK_WAIT_MAX).await;
            }
        }
        broken
    }

    /// Breaks deadlocks for as long as it is polled. Costs nothing while nobody waits.
    pub async fn watch_deadlocks(&self) {
        for round in 0.. {
            self.local.locks().contended().await;
            self.env.timer.sleep(LOOK_EVERY).await;
            self.break_deadlocks(round).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(n: u128) -> Owner {
        Owner { txn: TxnId(n), gateway: NodeId(1) }
    }

    fn graph(edges: &[(u128, &[u128], &[u128])]) -> Graph {
        let edge = |(from, holders, earlier): &(u128, &[u128], &[u128])| {
            let way = InTheWay {
                lock: HeldLock { txn: TxnId(*from), key: b"k".to_vec() },
                ticket: 1,
                holders: holders.iter().map(|n| owner(*n)).collect(),
                earlier: earlier.iter().map(|n| owner(*n)).collect(),
            };
            (TxnId(*from), Edge { gateway: NodeId(1), node: NodeId(1), way })
        };
        edges.iter().map(edge).collect()
    }

    fn found(edges: &[(u128, &[u128], &[u128])], starts: &[u128], old: bool) -> Vec<Vec<u128>> {
        let starts: Vec<(TxnId, bool)> = starts.iter().map(|n| (TxnId(*n), old)).collect();
        let cycles = cycles(graph(edges), &starts);
        cycles.into_iter().map(|c| c.into_iter().map(|t| t.0).collect()).collect()
    }

    #[test]
    fn the_shortest_cycle_through_a_wait_is_found() {
        assert_eq!(found(&[(1, &[2], &[]), (2, &[1], &[])], &[1], false), [[1, 2]]);
        assert_eq!(found(&[(1, &[2], &[]), (2, &[3], &[]), (3, &[1], &[])], &[2], false), [[2, 3, 1]]);
        assert_eq!(
            found(&[(1, &[2, 5], &[]), (2, &[3], &[]), (5, &[1], &[]), (3, &[1], &[])], &[1], false),
            [[1, 5]]
        );
        // A cycle that it leads to is not its own.
        assert!(found(&[(1, &[2], &[]), (2, &[3], &[]), (3, &[2], &[])], &[1], false).is_empty());
        assert!(found(&[(1, &[2], &[]), (2, &[3], &[])], &[1, 2], true).is_empty());
    }

    #[test]
    fn one_gives_way_for_all_cycles_that_it_is_in() {
        // Two found by different starts, one victim: 9 is in both.
        let edges: &[(u128, &[u128], &[u128])] = &[(1, &[9], &[]), (2, &[9], &[]), (9, &[1, 2], &[])];
        assert_eq!(found(edges, &[1, 2, 9], true), [[1, 9]]);
    }

    #[test]
    fn the_queue_counts_later_and_not_where_a_holder_is_to_blame() {
        // 1 holds the row that 7 and 5 wait for, and waits for 5.
        let edges: &[(u128, &[u128], &[u128])] = &[(7, &[1], &[]), (5, &[1], &[7]), (1, &[5], &[])];
        assert_eq!(found(edges, &[1, 5, 7], true), [[1, 5]]);
        // Through the queue alone: 3 shares the row with 4's and waits behind 8, which wants it alone.
        let edges: &[(u128, &[u128], &[u128])] = &[(8, &[4], &[]), (3, &[], &[8]), (4, &[3], &[])];
        assert!(found(edges, &[3, 8], false).is_empty());
        assert_eq!(found(edges, &[3, 8], true), [[3, 8, 4]]);
    }
}
