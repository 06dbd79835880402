//! Registers under lease changes: clients of every node read, write and swap single keys while leaderships are moved
//! gracefully and by force, and the history of each key has to be linearizable.
//!
//! What this guards: R1 and D9. A new leaseholder that serves while the old one still does, or starts below what it served,
//! shows as a stale read or as a value that was there and is gone; so does a reader that misses the window of R5. Clocks are
//! apart, inside their bound.
//!
//! What single keys cannot show is a write below a read that was served (T5): [`snapshot_over_change`] holds a snapshot over
//! one change of leaders, with the reader's clock ahead of all others.
//!
//! The check ([`linearizable`]) is the search of Wing and Gong, run forward with the operations that are under way as its
//! state (Lowe's "just-in-time linearization"): each write has a value of its own, so few orders fit what was read.
//!
//! A write without an answer (40003, or its client died) may take effect at any later time, or never. If its value was read
//! it did, before that read returned; if not, leaving it out is as good as any place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isochrone_base::{Key, NodeId};
use isochrone_env::SplitMix64;
use isochrone_server::Node;
use isochrone_txn::kv::{Error, KvStore, Lock, TxnOptions};
use tokio::sync::oneshot;

use super::{START_BALANCE, Stage, account_key, bytes, ledger_key, may_retry, number};

/// Clients on each node.
const CLIENTS: u64 = 3;
/// A node is down, or cut off, for at most this long.
const GONE_MS_MAX: u64 = 3_500;
/// Between two changes of leaders at most.
const CHANGE_EVERY_MS_MAX: u64 = 1_500;
/// All nodes are up and serve again within this time at the end.
const END_MAX: Duration = Duration::from_secs(60);
/// Operations under way on one key that the check can hold.
const OPEN_MAX: usize = 64;
/// A clock may be off by this much: half of what two may differ.
const CLOCK_OFF_US_MAX: u64 = 120_000;

/// The value of a register; 0: there is none.
pub type Value = i64;

/// Never returned.
pub const NEVER: u64 = u64::MAX;

/// One operation on one register. It took effect at some moment between its call and its return.
#[derive(Clone, Debug)]
pub struct Op {
    /// When it was called.
    pub invoked: u64,
    /// When it returned; [`NEVER`]: its outcome is not known.
    pub returned: u64,
    /// What it read, if it read.
    pub read: Option<Value>,
    /// What it wrote, if it wrote. No two operations write the same.
    pub wrote: Option<Value>,
}

/// Is there an order of the operations that fits what they read, and in which whoever returned before another one was
/// called comes first? Times that are equal say nothing. `Err` tells what does not fit.
pub fn linearizable(initial: Value, ops: &[Op]) -> Result<(), String> {
    let writers: BTreeMap<Value, usize> =
        ops.iter().enumerate().filter_map(|(i, op)| Some((op.wrote?, i))).collect();
    let mut returned: Vec<u64> = ops.iter().map(|op| op.returned).collect();
    // Writes without an answer whose value was read: they are as good as returned when that read returned. A reader may be
    // such a write itself.
    let mut again = true;
    while again {
        again = false;
        for (i, op) in ops.iter().enumerate() {
            let Some(&writer) = op.read.and_then(|v| writers.get(&v)) else { continue };
            if ops[writer].returned == NEVER && returned[i] < returned[writer] {
                (returned[writer], again) = (returned[i], true);
            }
        }
    }
    let mut events: Vec<(u64, bool, usize)> = Vec::new();
    for (i, op) in ops.iter().enumerate().filter(|(i, _)| returned[*i] != NEVER) {
        events.extend([(op.invoked, false, i), (returned[i], true, i)]);
    }
    events.sort_unstable();

    // What the register may hold, with those of the operations under way that have taken effect.
    let mut states: BTreeSet<(Value, u64)> = [(initial, 0)].into();
    let mut open: [Option<usize>; OPEN_MAX] = [None; OPEN_MAX];
    for (time, returns, i) in events {
        if !returns {
            let free = open.iter().position(Option::is_none);
            open[free.ok_or("too many operations under way")?] = Some(i);
            continue;
        }
        let slot = open.iter().position(|o| *o == Some(i)).expect("it was called before");
        let mut next = BTreeSet::new();
        let mut seen = states.clone();
        let mut todo: Vec<(Value, u64)> = states.iter().copied().collect();
        while let Some((value, done)) = todo.pop() {
            if done & (1 << slot) != 0 {
                next.insert((value, done & !(1 << slot)));
                continue;
            }
            for (p, op) in open.iter().enumerate().filter_map(|(p, o)| Some((p, &ops[(*o)?]))) {
                if done & (1 << p) == 0 && op.read.is_none_or(|v| v == value) {
                    let state = (op.wrote.unwrap_or(value), done | 1 << p);
                    if seen.insert(state) {
                        todo.push(state);
                    }
                }
            }
        }
        if next.is_empty() {
            let may: BTreeSet<Value> = states.iter().map(|(v, _)| *v).collect();
            let under_way: Vec<&Op> = open.iter().flatten().map(|o| &ops[*o]).collect();
            return Err(format!(
                "not linearizable: at {time} {:?} returned; the register held one of {may:?} before, and under way \
                 were {under_way:?}",
                ops[i]
            ));
        }
        states = next;
        open[slot] = None;
    }
    Ok(())
}

/// How a leadership was changed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Change {
    /// `TRANSFER LEADER`.
    Graceful,
    /// The leader's process was killed; streams end.
    Killed,
    /// The leader's machine lost power; streams fall silent.
    PowerCut,
    /// The leader was cut off from the others.
    CutOff,
}

/// What a run came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Hash of everything that happened, in order.
    pub trace: u64,
    /// Operations that succeeded.
    pub done: usize,
    /// Writes without a known outcome.
    pub unknown: usize,
    /// How many changes, and the longest time from one to a success on every key it concerned.
    pub changes: BTreeMap<Change, (usize, Duration)>,
}

/// What clients did, by key.
struct History {
    keys: Vec<Key>,
    /// The step of the world.
    step: AtomicU64,
    ops: Mutex<Vec<(usize, Op)>>,
    /// Values that were reported as aborted (T3).
    aborted: Mutex<BTreeSet<Value>>,
}

impl History {
    fn new() -> History {
        // Two shards with two keys each, and one with one; see `Stage::open`.
        let keys = vec![account_key(2), account_key(3), account_key(4), account_key(5), ledger_key(1)];
        History { keys, step: AtomicU64::new(0), ops: Mutex::default(), aborted: Mutex::default() }
    }

    fn initial(&self, key: usize) -> Value {
        if key < 4 { START_BALANCE } else { 0 }
    }

    fn now(&self) -> u64 {
        self.step.load(Ordering::Relaxed)
    }

    fn begin(&self, key: usize, wrote: Option<Value>) -> usize {
        let mut ops = self.ops.lock().expect("one thread");
        ops.push((key, Op { invoked: self.now(), returned: NEVER, read: None, wrote }));
        ops.len() - 1
    }

    fn op(&self, i: usize, change: impl FnOnce(&mut Op)) {
        change(&mut self.ops.lock().expect("one thread")[i].1);
    }
}

async fn get(node: &Node, key: &Key, options: TxnOptions) -> Result<Value, Error> {
    let mut txn = node.store.begin(options);
    let value = txn.get(key, Lock::None).await?;
    txn.commit().await?;
    value.map_or(Ok(0), |v| number(&v).map_err(Error::Internal))
}

/// One operation. `Err`: the client ends, with the node's storage or because of a finding.
async fn operation(
    h: &History,
    node: &Node,
    key: usize,
    kind: u64,
    value: Value,
) -> Result<(), Option<String>> {
    let at = &h.keys[key];
    let op = h.begin(key, (kind >= 4).then_some(value));
    let result = match kind {
        0..4 => match get(node, at, TxnOptions { read_only: kind < 2, ..TxnOptions::default() }).await {
            Ok(found) => {
                h.op(op, |o| o.read = Some(found));
                Ok(())
            }
            Err(e) => Err(e),
        },
        4..7 => {
            let mut txn = node.store.begin(TxnOptions::default());
            match txn.put(at.clone(), Some(bytes(value))) {
                Ok(()) => txn.commit().await.map(drop),
                Err(e) => Err(e),
            }
        }
        _ => {
            let mut txn = node.store.begin(TxnOptions::default());
            let lock = if kind == 7 { Lock::Exclusive } else { Lock::None };
            match txn.get(at, lock).await.and_then(|found| {
                let found = found.map_or(Ok(0), |v| number(&v).map_err(Error::Internal))?;
                h.op(op, |o| o.read = Some(found));
                txn.put(at.clone(), Some(bytes(value)))
            }) {
                Ok(()) => txn.commit().await.map(drop),
                Err(e) => Err(e),
            }
        }
    };
    match result {
        Ok(()) => h.op(op, |o| o.returned = h.now()),
        Err(Error::Stopped(_)) => return Err(None),
        Err(Error::Unknown(_)) => {}
        Err(e) => {
            may_retry(&e).map_err(Some)?;
            // Nothing was read, nothing was written; a read in an aborted attempt counts for nothing.
            let wrote = kind >= 4;
            h.op(op, |o| (o.read, o.wrote) = (None, None));
            if wrote {
                h.aborted.lock().expect("one thread").insert(value);
            }
        }
    }
    Ok(())
}

async fn client(
    h: Arc<History>,
    values: Arc<AtomicU64>,
    node: Arc<Node>,
    random: SplitMix64,
    until: u64,
) -> Option<String> {
    while h.now() < until {
        let key = random.below(h.keys.len() as u64) as usize;
        let value = values.fetch_add(1, Ordering::Relaxed) as Value;
        match operation(&h, &node, key, random.below(10), value).await {
            Ok(()) => {}
            Err(None) => std::future::pending().await,
            Err(found) => return found,
        }
        tokio::time::sleep(Duration::from_micros(random.below(20_000))).await;
    }
    None
}

/// A change of leaders, and the keys it concerned.
struct Event {
    at: u64,
    change: Change,
    keys: Vec<usize>,
}

/// Runs clients and changes of leaders for this many virtual seconds. `Err` says what was found.
pub fn run(seed: u64, seconds: u64) -> Result<Report, String> {
    Registers::open(seed, seconds).and_then(|mut r| r.run()).map_err(|e| format!("seed {seed}: {e}"))
}

struct Registers {
    stage: Stage,
    random: SplitMix64,
    history: Arc<History>,
    values: Arc<AtomicU64>,
    until: u64,
    clients: Vec<super::Part<Option<String>>>,
    lives: u64,
    seed: u64,
    silent: bool,
    events: Vec<Event>,
}

impl Registers {
    fn open(seed: u64, seconds: u64) -> Result<Registers, String> {
        let random = SplitMix64::split(seed, "registers");
        let off = || random.below(2 * CLOCK_OFF_US_MAX) as i64 - CLOCK_OFF_US_MAX as i64;
        let silent = seed % 2 == 1;
        let stage = Stage::open(seed, silent, [off(), off(), off()])?;
        let history = History::new();
        history.step.store(stage.now().as_millis() as u64, Ordering::Relaxed);
        let until = (stage.now() + Duration::from_secs(seconds)).as_millis() as u64;
        Ok(Registers {
            stage,
            random,
            history: Arc::new(history),
            values: Arc::new(AtomicU64::new(1_000_000)),
            until,
            clients: Vec::new(),
            lives: 0,
            seed,
            silent,
            events: Vec::new(),
        })
    }

    fn step(&mut self) -> Result<(), String> {
        self.history.step.store(self.stage.now().as_millis() as u64, Ordering::Relaxed);
        self.stage.step()?;
        for client in &self.clients {
            if let Some(Some(found)) = client.take() {
                return Err(found);
            }
        }
        Ok(())
    }

    fn begin_clients(&mut self, node: NodeId) {
        for id in 0..CLIENTS {
            self.lives += 1;
            let random = SplitMix64::split(self.seed, &format!("register client {node}.{id}.{}", self.lives));
            let (h, values, until) = (self.history.clone(), self.values.clone(), self.until);
            let part = self.stage.spawn(node, |n| client(h, values, n, random, until));
            self.clients.push(part);
        }
    }

    fn keys_led_by(&self, node: NodeId) -> Vec<usize> {
        (0..self.history.keys.len()).filter(|k| self.stage.leads(node, &self.history.keys[*k])).collect()
    }

    fn run(&mut self) -> Result<Report, String> {
        let nodes = self.stage.world.nodes();
        nodes.iter().for_each(|n| self.begin_clients(*n));
        // Who is gone, until when, and whether it was killed.
        let mut gone: Option<(NodeId, u64, bool)> = None;
        let mut next_change = 0;
        let mut coming: Option<NodeId> = None;
        loop {
            let now = self.stage.now().as_millis() as u64;
            if let Some(node) = coming
                && self.stage.node(node).is_some()
            {
                self.begin_clients(node);
                coming = None;
            }
            if let Some((node, until, killed)) = gone
                && (now >= until || now >= self.until)
            {
                match killed {
                    true => {
                        self.stage.restart(node);
                        coming = Some(node);
                    }
                    false => self.stage.cut_off(node, false),
                }
                gone = None;
            }
            if now >= self.until {
                break;
            }
            if now >= next_change {
                next_change = now + 200 + self.random.below(CHANGE_EVERY_MS_MAX);
                gone = self.change(now, &nodes, gone)?;
            }
            self.step()?;
        }
        self.end(&nodes)?;
        self.stage.same_replicas()?;
        self.report()
    }

    /// A change of some leader.
    fn change(
        &mut self,
        now: u64,
        nodes: &[NodeId],
        gone: Option<(NodeId, u64, bool)>,
    ) -> Result<Option<(NodeId, u64, bool)>, String> {
        let key = self.random.below(self.history.keys.len() as u64) as usize;
        let leader = nodes.iter().copied().find(|n| self.stage.leads(*n, &self.history.keys[key]));
        let to = nodes[self.random.below(nodes.len() as u64) as usize];
        let kind = self.random.below(8);
        let lasts = 300 + self.random.below(GONE_MS_MAX);
        let Some(leader) = leader else { return Ok(gone) };
        let force = kind >= 5 && gone.is_none() && self.stage.up().len() == nodes.len();
        if !force {
            if let Some(shard) =
                self.stage.node(leader).and_then(|n| n.local.shards().of_key(&self.history.keys[key]))
            {
                let shard = shard.id();
                if to != leader {
                    let _in_the_background = self.stage.spawn(leader, |n| async move {
                        let _may_fail = n.store.transfer_leader(shard, to).await;
                    });
                    self.events.push(Event { at: now, change: Change::Graceful, keys: vec![key] });
                }
            }
            return Ok(gone);
        }
        let keys = self.keys_led_by(leader);
        let killed = kind >= 6;
        let change = match (killed, self.silent) {
            (false, _) => Change::CutOff,
            (true, false) => Change::Killed,
            (true, true) => Change::PowerCut,
        };
        self.events.push(Event { at: now, change, keys });
        match killed {
            true => self.stage.kill(leader),
            false => self.stage.cut_off(leader, true),
        }
        Ok(Some((leader, now + lasts, killed)))
    }

    /// No more changes: every client's last operation returns, and every node reads every key once more.
    fn end(&mut self, nodes: &[NodeId]) -> Result<(), String> {
        let end = self.stage.now() + END_MAX;
        while self.stage.up().len() < nodes.len() {
            self.step()?;
        }
        let mut last = Vec::new();
        for node in nodes {
            for key in 0..self.history.keys.len() {
                let h = self.history.clone();
                last.push(self.stage.spawn(*node, |n| async move {
                    loop {
                        let options = TxnOptions { read_only: true, ..TxnOptions::default() };
                        let op = h.begin(key, None);
                        match get(&n, &h.keys[key], options).await {
                            Ok(found) => {
                                h.op(op, |o| (o.read, o.returned) = (Some(found), h.now()));
                                return;
                            }
                            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                        }
                    }
                }));
            }
        }
        while !last.iter().all(super::Part::is_done) {
            if self.stage.now() > end {
                return Err(format!("keys cannot be read {END_MAX:?} after the last change"));
            }
            self.step()?;
        }
        Ok(())
    }

    fn report(&self) -> Result<Report, String> {
        let ops = self.history.ops.lock().expect("one thread");
        let aborted = self.history.aborted.lock().expect("one thread");
        for key in 0..self.history.keys.len() {
            let of_key: Vec<Op> = ops
                .iter()
                // What neither read nor wrote says nothing; a read without a return, too.
                .filter(|(k, o)| *k == key && (o.returned != NEVER || (o.wrote.is_some())))
                .map(|(_, o)| o.clone())
                .collect();
            if let Some(op) = of_key.iter().find(|o| o.read.is_some_and(|v| aborted.contains(&v))) {
                return Err(format!("T3: key {key}: {op:?} read what was reported as aborted"));
            }
            linearizable(self.history.initial(key), &of_key).map_err(|e| format!("key {key}: {e}"))?;
        }
        let mut changes: BTreeMap<Change, (usize, Duration)> = BTreeMap::new();
        for Event { at, change, keys } in &self.events {
            let first_success = |key: &usize| {
                let of_key = ops.iter().filter(|(k, o)| k == key && o.returned != NEVER && o.invoked >= *at);
                of_key.map(|(_, o)| o.returned - at).min().unwrap_or(0)
            };
            let took = Duration::from_millis(keys.iter().map(first_success).max().unwrap_or(0));
            let entry = changes.entry(*change).or_default();
            *entry = (entry.0 + 1, entry.1.max(took));
        }
        Ok(Report {
            trace: self.stage.world.hash(),
            done: ops.iter().filter(|(_, o)| o.returned != NEVER).count(),
            unknown: ops.iter().filter(|(_, o)| o.returned == NEVER && o.wrote.is_some()).count(),
            changes,
        })
    }
}

/// A reader on node 3, whose clock is ahead by all that the bound allows, reads a key that node 1 leads; the leadership
/// changes; a gateway whose clock is behind writes the key; the reader reads again. T5: the write is above the read, and
/// the snapshot has not changed.
///
/// `wait`: before all that. What nodes have heard of each other's clocks hides the difference for a part of the time.
/// Returns whether the writer's clock was still below the snapshot, so that only R1 kept them apart.
pub fn snapshot_over_change(change: Change, wait: Duration) -> Result<bool, String> {
    let (old, new, reader) = (NodeId(1), NodeId(2), NodeId(3));
    let off = CLOCK_OFF_US_MAX as i64;
    let mut stage = Stage::open(1, change == Change::PowerCut, [-off, -off, off])?;
    let key = account_key(2);
    stage.place(&[(key.clone(), old)])?;
    let shard = stage.shard_of(&key)?;
    stage.wait(wait)?;

    let (has_read, mut reads) = oneshot::channel();
    let (go, may_read) = oneshot::channel::<()>();
    let again = stage.spawn(reader, |n| {
        let key = key.clone();
        async move {
            let mut txn = n.store.begin(TxnOptions { read_only: true, ..TxnOptions::default() });
            let first = txn.get(&key, Lock::None).await?;
            let _listens = has_read.send(txn.read_ts());
            let _never_dropped = may_read.await;
            let second = txn.get(&key, Lock::None).await?;
            Ok::<_, Error>((first, second))
        }
    });
    let mut read_ts = None;
    stage.until(END_MAX, "the key is read", |_| {
        read_ts = read_ts.or(reads.try_recv().ok());
        read_ts.is_some()
    })?;
    let read_ts = read_ts.expect("the loop ends with it");

    match change {
        Change::Graceful => {
            let moved = stage.play(old, "a leadership moves", |n| async move {
                // Entries that close timestamps come at any time: who is to take over may be behind by one.
                while let Err(e) = n.store.transfer_leader(shard, new).await {
                    super::may_retry(&e)?;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Ok::<(), String>(())
            })?;
            moved?;
        }
        Change::Killed | Change::PowerCut => stage.kill(old),
        Change::CutOff => stage.cut_off(old, true),
    }
    let (below, written_at) = stage.play(new, "the key is written", |n| {
        let key = key.clone();
        async move {
            let below = n.store.now() < read_ts;
            loop {
                let mut txn = n.store.begin(TxnOptions::default());
                txn.put(key.clone(), Some(bytes(1))).map_err(|e| e.to_string())?;
                match txn.commit().await {
                    Ok(ts) => break Ok::<_, String>((below, ts)),
                    Err(e) => may_retry(&e)?,
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    })??;
    if written_at <= read_ts {
        return Err(format!("{change:?}: T5: read at {read_ts}, and later written at {written_at}"));
    }
    let _waits = go.send(());
    stage.until(END_MAX, "the key is read again", |_| again.is_done())?;
    match again.take().expect("it is done") {
        Ok((first, second)) if first != second => {
            Err(format!("{change:?}: T5: at {read_ts} the key was {first:?}, and then {second:?}"))
        }
        Ok(_) => Ok(below),
        // The write is inside the window of R5, and what was read has changed since.
        Err(e) => may_retry(&e).map(|()| below),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(invoked: u64, returned: u64, read: Option<Value>, wrote: Option<Value>) -> Op {
        Op { invoked, returned, read, wrote }
    }

    #[test]
    fn what_is_linearizable_passes() {
        // One after the other.
        linearizable(0, &[op(1, 2, None, Some(5)), op(3, 4, Some(5), Some(6)), op(5, 6, Some(6), None)])
            .unwrap();
        // A read beside a write sees either; two of them in order.
        linearizable(0, &[op(1, 9, None, Some(5)), op(2, 3, Some(0), None), op(4, 5, Some(5), None)])
            .unwrap();
        // The same moment says nothing.
        linearizable(0, &[op(1, 2, None, Some(5)), op(2, 3, Some(0), None)]).unwrap();
        // A write that nobody saw is hidden under another one.
        linearizable(0, &[op(1, 4, None, Some(5)), op(1, 5, None, Some(6)), op(6, 7, Some(5), None)])
            .unwrap();
        // No answer: late, or never.
        linearizable(0, &[op(1, NEVER, None, Some(5)), op(2, 3, Some(0), None), op(4, 5, Some(5), None)])
            .unwrap();
        linearizable(0, &[op(1, NEVER, None, Some(5)), op(2, 3, Some(0), None)]).unwrap();
        // Its value was read only by another one without an answer, whose value was read.
        let chain = [
            op(1, NEVER, None, Some(5)),
            op(2, NEVER, Some(5), Some(6)),
            op(3, 4, Some(0), None),
            op(5, 6, Some(6), None),
        ];
        linearizable(0, &chain).unwrap();
    }

    #[test]
    fn what_is_not_is_found() {
        let bad: [(&str, Vec<Op>); 7] = [
            ("a stale read", vec![op(1, 2, None, Some(5)), op(3, 4, Some(0), None)]),
            (
                "seen, then unseen",
                vec![op(1, 9, None, Some(5)), op(2, 3, Some(5), None), op(4, 5, Some(0), None)],
            ),
            (
                "a lost update",
                vec![op(1, 9, Some(0), Some(5)), op(1, 9, Some(0), Some(6)), op(10, 11, Some(6), None)],
            ),
            ("from nowhere", vec![op(1, 2, Some(7), None)]),
            ("from the future", vec![op(1, 2, Some(5), None), op(3, 4, None, Some(5))]),
            ("a lost write", vec![op(1, 2, None, Some(5)), op(3, 4, None, Some(6)), op(5, 6, Some(5), None)]),
            (
                "no answer, read, then gone",
                vec![op(1, NEVER, None, Some(5)), op(2, 3, Some(5), None), op(4, 5, Some(0), None)],
            ),
        ];
        for (what, ops) in bad {
            assert!(linearizable(0, &ops).is_err(), "{what}");
        }
    }
}
