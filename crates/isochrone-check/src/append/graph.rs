//! The dependency graph of one window, as arrays: strongly connected components, reachability, short witnesses.
//!
//! Nodes are transactions first, then moments: moment `i` is the i-th acknowledgement in the window. A transaction leads
//! to the moment of its acknowledgement, a moment to the next one and to the transactions that began between the two; so
//! the order in real time, quadratic in pairs, costs two edges per transaction.

use std::collections::VecDeque;

use crate::{Anomaly, Level, Via};

/// Why one transaction comes before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub(super) enum Kind {
    /// Its write was replaced by the other's.
    Ww = 0,
    /// Its write was read by the other.
    Wr = 1,
    /// It read a version that the other's write replaced.
    Rw = 2,
    /// It came before in the same session.
    Process = 3,
    /// It was acknowledged before the other began.
    Realtime = 4,
}

const KINDS: [Kind; 5] = [Kind::Ww, Kind::Wr, Kind::Rw, Kind::Process, Kind::Realtime];

/// Steps of all searches for one kind of witness, before the next kind is tried. A component of a sick history can hold
/// the whole window, and its shortest cycle is worth only so much time.
const WITNESS_STEPS_MAX: usize = 4_000_000;

/// Compressed rows: the edges of node `n` are `edges[starts[n]..starts[n + 1]]`.
#[derive(Default)]
pub(super) struct Graph {
    starts: Vec<u32>,
    edges: Vec<u32>,
    /// Nodes below are transactions, the others moments.
    pub(super) txns: usize,
}

/// Which cycles a search may return.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// No anti-dependency.
    NoRw,
    /// Exactly one.
    OneRw,
    /// At least one, never two next to each other.
    Apart,
    /// Any.
    Any,
}

impl Graph {
    pub(super) fn clear(&mut self, txns: usize) {
        self.starts.clear();
        self.edges.clear();
        self.starts.push(0);
        self.txns = txns;
    }

    /// Adds an edge of the node that is being written.
    pub(super) fn edge(&mut self, to: usize, kind: Kind) {
        self.edges.push((to as u32) << 3 | kind as u32);
    }

    /// The node that was being written is complete.
    pub(super) fn next_node(&mut self) {
        self.starts.push(self.edges.len() as u32);
    }

    fn nodes(&self) -> usize {
        self.starts.len() - 1
    }

    fn out(&self, node: usize) -> impl Iterator<Item = (usize, Kind)> + '_ {
        let edges = &self.edges[self.starts[node] as usize..self.starts[node + 1] as usize];
        edges.iter().map(|e| ((e >> 3) as usize, KINDS[(e & 7) as usize]))
    }

    /// Marks what can be reached from the roots, the roots included.
    pub(super) fn reach(&self, roots: impl Iterator<Item = usize>) -> Vec<bool> {
        let mut seen = vec![false; self.nodes()];
        let mut todo = Vec::new();
        for root in roots {
            seen[root] = true;
            todo.push(root);
        }
        while let Some(node) = todo.pop() {
            for (to, _) in self.out(node) {
                if !std::mem::replace(&mut seen[to], true) {
                    todo.push(to);
                }
            }
        }
        seen
    }

    /// The components that hold a forbidden cycle, each as its transactions and moments, in ascending order.
    ///
    /// With `apart`, walks never take two anti-dependencies one after the other: a cycle of such walks is what snapshot
    /// isolation excludes (Cerone and Gotsman, "Analysing Snapshot Isolation", 2018), and those with two are what it lets
    /// pass. The search then runs over pairs of a node and "the last edge was an anti-dependency". Tarjan's algorithm,
    /// with its stack in the heap.
    pub(super) fn components(&self, apart: bool) -> Vec<Vec<usize>> {
        let states = if apart { 2 } else { 1 };
        let n = self.nodes() * states;
        let (mut index, mut low) = (vec![0u32; n], vec![0u32; n]);
        let (mut stack, mut frames): (Vec<u32>, Vec<(u32, u32)>) = (Vec::new(), Vec::new());
        let mut count = 0u32;
        let mut found = Vec::new();
        const DONE: u32 = u32::MAX;
        for root in 0..n {
            if index[root] != 0 {
                continue;
            }
            count += 1;
            (index[root], low[root]) = (count, count);
            stack.push(root as u32);
            frames.push((root as u32, self.starts[root / states]));
            while let Some((v, cursor)) = frames.last_mut() {
                let (v, node) = (*v as usize, *v as usize / states);
                if *cursor < self.starts[node + 1] {
                    let edge = self.edges[*cursor as usize];
                    *cursor += 1;
                    let rw = edge & 7 == Kind::Rw as u32;
                    if apart && rw && v % 2 == 1 {
                        continue;
                    }
                    let to = (edge >> 3) as usize * states + usize::from(apart && rw);
                    if index[to] == 0 {
                        count += 1;
                        (index[to], low[to]) = (count, count);
                        stack.push(to as u32);
                        frames.push((to as u32, self.starts[to / states]));
                    } else if index[to] != DONE {
                        low[v] = low[v].min(index[to]);
                    }
                    continue;
                }
                frames.pop();
                if let Some((parent, _)) = frames.last() {
                    let parent = *parent as usize;
                    low[parent] = low[parent].min(low[v]);
                }
                if low[v] == index[v] {
                    let at = stack.iter().rposition(|s| *s as usize == v).expect("a root is on the stack");
                    for s in &stack[at..] {
                        index[*s as usize] = DONE;
                    }
                    if stack.len() - at > 1 {
                        let mut members: Vec<usize> =
                            stack[at..].iter().map(|s| *s as usize / states).collect();
                        members.sort_unstable();
                        members.dedup();
                        found.push(members);
                    }
                    stack.truncate(at);
                }
            }
        }
        found
    }

    /// A short cycle within a component that the level forbids, of the first kind there is: G0 before G1c before G-single
    /// before G-nonadjacent before G2, and all of them on data alone before those that need a session or real time.
    pub(super) fn witness(&self, members: &[usize], level: Level) -> Option<(Anomaly, Vec<(usize, Kind)>)> {
        let mut inside = vec![false; self.nodes()];
        members.iter().for_each(|m| inside[*m] = true);
        let mut search = Search::new(self, &inside);
        for steps_max in [WITNESS_STEPS_MAX, usize::MAX] {
            for via in [Via::Data, Via::Process, Via::Realtime] {
                let last = match via {
                    Via::Data => Kind::Rw,
                    Via::Process => Kind::Process,
                    Via::Realtime => Kind::Realtime,
                };
                for (anomaly, rule) in [
                    (Anomaly::G0(via), Rule::NoRw),
                    (Anomaly::G1c(via), Rule::NoRw),
                    (Anomaly::GSingle(via), Rule::OneRw),
                    (Anomaly::GNonadjacent(via), Rule::Apart),
                    (Anomaly::G2Item(via), Rule::Any),
                ] {
                    if !level.forbids(anomaly) {
                        continue;
                    }
                    let reads = !matches!(anomaly, Anomaly::G0(_));
                    let allow = |kind: Kind| kind <= last && (reads || kind != Kind::Wr);
                    if let Some(cycle) = search.shortest(members, rule, &allow, steps_max) {
                        return Some((anomaly, cycle));
                    }
                }
            }
        }
        None
    }
}

/// Breadth-first searches over one component, with their scratch memory.
struct Search<'a> {
    graph: &'a Graph,
    inside: &'a [bool],
    /// Per node and "last edge was an anti-dependency": the round that saw it, the state before, the edge.
    seen: Vec<(u32, u32, Kind)>,
    round: u32,
}

impl<'a> Search<'a> {
    fn new(graph: &'a Graph, inside: &'a [bool]) -> Search<'a> {
        Search { graph, inside, seen: vec![(0, 0, Kind::Ww); graph.nodes() * 2], round: 0 }
    }

    fn shortest(
        &mut self,
        members: &[usize],
        rule: Rule,
        allow: &dyn Fn(Kind) -> bool,
        steps_max: usize,
    ) -> Option<Vec<(usize, Kind)>> {
        let mut best: Option<Vec<(usize, Kind)>> = None;
        let mut steps = 0;
        for &start in members.iter().filter(|m| **m < self.graph.txns) {
            if steps > steps_max || best.as_ref().is_some_and(|b| b.len() == 2) {
                break;
            }
            let found = self.from(start, rule, allow, &mut steps);
            if let Some(found) = found
                && best.as_ref().is_none_or(|b| found.len() < b.len())
            {
                best = Some(found);
            }
        }
        best
    }

    /// A short cycle through `start`. Rules that want an anti-dependency take it as the first edge; then the last one is
    /// none, and a walk that comes back with one goes on. Steps between moments cost nothing, so that the length is counted
    /// in transactions.
    fn from(
        &mut self,
        start: usize,
        rule: Rule,
        allow: &dyn Fn(Kind) -> bool,
        steps: &mut usize,
    ) -> Option<Vec<(usize, Kind)>> {
        self.round += 1;
        let txns = self.graph.txns;
        let mut queue = VecDeque::from([start * 2]);
        while let Some(state) = queue.pop_front() {
            let (node, after_rw) = (state / 2, state % 2 == 1);
            let first = state == start * 2;
            for (to, kind) in self.graph.out(node) {
                *steps += 1;
                let rw = kind == Kind::Rw;
                let allowed = self.inside[to]
                    && allow(kind)
                    && match rule {
                        Rule::NoRw => !rw,
                        Rule::OneRw => rw == first,
                        Rule::Apart => (!first || rw) && !(rw && after_rw),
                        Rule::Any => true,
                    };
                if !allowed {
                    continue;
                }
                if to == start && !(rw && rule == Rule::Apart) {
                    return Some(self.path(start, state, kind));
                }
                let next = to * 2 + usize::from(rw && rule == Rule::Apart);
                if self.seen[next].0 == self.round {
                    continue;
                }
                self.seen[next] = (self.round, state as u32, kind);
                if node >= txns { queue.push_front(next) } else { queue.push_back(next) }
            }
        }
        None
    }

    /// The cycle that ends with an edge from `state` back to `start`, without the moments on the way.
    fn path(&self, start: usize, mut state: usize, mut kind: Kind) -> Vec<(usize, Kind)> {
        let mut path = Vec::new();
        loop {
            let node = state / 2;
            if node < self.graph.txns {
                path.push((node, kind));
            }
            if state == start * 2 {
                break;
            }
            let (_, before, by) = self.seen[state];
            kind = by;
            state = before as usize;
        }
        path.reverse();
        path
    }
}
