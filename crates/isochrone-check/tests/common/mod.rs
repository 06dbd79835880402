//! Shared by the tests: a seeded generator, list histories, and a search of all orders.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::{BTreeMap, BTreeSet};

use isochrone_check::append::{AppendChecker, Op, Options, TxnNo};
use isochrone_check::{Anomaly, Finding, Level, Outcome};

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A transaction of a history.
#[derive(Clone, Debug)]
pub struct Txn {
    pub process: u64,
    pub invoked: u64,
    pub completed: u64,
    pub outcome: Outcome,
    pub ops: Vec<Op>,
}

#[derive(Clone, Copy, Debug)]
pub enum Event {
    Begin(usize),
    Finish(usize),
}

/// Transactions and the order in which a checker hears of them.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub txns: Vec<Txn>,
    pub events: Vec<Event>,
}

pub fn options(level: Level) -> Options {
    Options { check_every: 1, key_appends_max: 1_000_000, ..Options::new(level) }
}

impl History {
    /// Transactions given as (process, invoked, completed, outcome, ops); events in the order of time, calls first.
    pub fn of(txns: Vec<Txn>) -> History {
        let mut events: Vec<(u64, u8, Event)> = Vec::new();
        for (i, t) in txns.iter().enumerate() {
            events.push((t.invoked, 0, Event::Begin(i)));
            events.push((t.completed, 1, Event::Finish(i)));
        }
        events.sort_by_key(|e| (e.0, e.1));
        History { txns, events: events.into_iter().map(|e| e.2).collect() }
    }

    pub fn feed(&self, checker: &mut AppendChecker) {
        let mut numbers: BTreeMap<usize, TxnNo> = BTreeMap::new();
        for event in &self.events {
            match *event {
                Event::Begin(i) => {
                    numbers.insert(i, checker.begin(self.txns[i].process, self.txns[i].invoked));
                }
                Event::Finish(i) => {
                    let t = &self.txns[i];
                    checker.finish(numbers[&i], t.outcome, t.ops.clone(), t.completed);
                }
            }
        }
    }

    pub fn check_with(&self, options: Options) -> Vec<Finding> {
        let mut checker = AppendChecker::new(options);
        self.feed(&mut checker);
        checker.end();
        checker.findings().take()
    }

    pub fn check(&self, level: Level) -> Vec<Finding> {
        self.check_with(options(level))
    }

    pub fn anomalies(&self, level: Level) -> BTreeSet<Anomaly> {
        self.check(level).into_iter().map(|f| f.anomaly).collect()
    }

    /// Keys with more than one value that may be committed and that nobody read.
    pub fn guesses_needed(&self) -> bool {
        let mut unread: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        let all = || self.txns.iter().filter(|t| t.outcome != Outcome::Aborted).flat_map(|t| &t.ops);
        for op in all() {
            if let Op::Append { key, value } = op {
                unread.entry(*key).or_default().insert(*value);
            }
        }
        for op in all() {
            if let Op::Read { key, list } = op
                && let Some(values) = unread.get_mut(key)
            {
                values.retain(|v| !list.contains(v));
            }
        }
        unread.values().any(|v| v.len() > 1)
    }
}

type Lists = BTreeMap<u64, Vec<u64>>;

/// Is there any execution of the level that gives these answers? Tries every choice of unknown outcomes and every order.
pub fn possible(history: &History, level: Level) -> bool {
    let unknown: Vec<usize> =
        (0..history.txns.len()).filter(|i| history.txns[*i].outcome == Outcome::Unknown).collect();
    (0..1usize << unknown.len()).any(|choice| {
        let included: Vec<usize> = (0..history.txns.len())
            .filter(|i| match history.txns[*i].outcome {
                Outcome::Committed => true,
                Outcome::Aborted => false,
                Outcome::Unknown => {
                    let at = unknown.iter().position(|u| u == i).unwrap();
                    choice >> at & 1 == 1
                }
            })
            .collect();
        if reads_the_future(history, &included) {
            return false;
        }
        let before = |a: usize, b: usize| must_precede(history, level, a, b);
        match level {
            Level::SnapshotIsolation => snapshots(history, &included, &before),
            _ => orders(history, level, &included, &before),
        }
    })
}

/// Did a committed transaction end with a value in hand whose writer had not begun?
fn reads_the_future(h: &History, committed: &[usize]) -> bool {
    let at = |wanted: &dyn Fn(&Event) -> bool| h.events.iter().position(wanted).unwrap();
    committed.iter().map(|i| (*i, &h.txns[*i])).any(|(reader, t)| {
        let heard = at(&|e| matches!(e, Event::Finish(i) if *i == reader));
        t.ops.iter().any(|op| {
            let Op::Read { key, list } = op else { return false };
            list.iter().any(|v| {
                let append = Op::Append { key: *key, value: *v };
                let writer = h.txns.iter().position(|t| t.ops.contains(&append));
                writer.is_none_or(|w| at(&|e| matches!(e, Event::Begin(i) if *i == w)) > heard)
            })
        })
    })
}

fn must_precede(history: &History, level: Level, a: usize, b: usize) -> bool {
    let (x, y) = (&history.txns[a], &history.txns[b]);
    if x.outcome != Outcome::Committed {
        return false;
    }
    let heard = |i: usize| history.events.iter().position(|e| matches!(e, Event::Finish(t) if *t == i));
    let session = level >= Level::SnapshotIsolation && x.process == y.process && heard(a) < heard(b);
    session || (level == Level::StrictSerializable && x.completed < y.invoked)
}

/// One transaction after the other; at read committed, a read may return any older version.
fn orders(h: &History, level: Level, todo: &[usize], before: &dyn Fn(usize, usize) -> bool) -> bool {
    fn go(
        h: &History,
        level: Level,
        todo: &[usize],
        before: &dyn Fn(usize, usize) -> bool,
        versions: &BTreeMap<u64, Vec<Vec<u64>>>,
    ) -> bool {
        if todo.is_empty() {
            return true;
        }
        todo.iter().any(|&i| {
            if todo.iter().any(|&j| j != i && before(j, i)) {
                return false;
            }
            let mut own: Lists = BTreeMap::new();
            let empty = vec![Vec::new()];
            for op in &h.txns[i].ops {
                let versions = versions.get(&op_key(op)).unwrap_or(&empty);
                let current = versions.last().unwrap();
                match op {
                    Op::Append { key, value } => own.entry(*key).or_default().push(*value),
                    Op::Read { key, list } => {
                        let mine = own.get(key).cloned().unwrap_or_default();
                        let with_mine = |version: &Vec<u64>| [version.as_slice(), &mine].concat() == *list;
                        let any = level == Level::ReadCommitted && mine.is_empty();
                        let ok = if any { versions.iter().any(with_mine) } else { with_mine(current) };
                        if !ok {
                            return false;
                        }
                    }
                }
            }
            let mut versions = versions.clone();
            for (key, values) in own {
                let of_key = versions.entry(key).or_insert_with(|| vec![Vec::new()]);
                let next = [of_key.last().unwrap().as_slice(), &values].concat();
                of_key.push(next);
            }
            let rest: Vec<usize> = todo.iter().copied().filter(|j| *j != i).collect();
            go(h, level, &rest, before, &versions)
        })
    }
    go(h, level, todo, before, &BTreeMap::new())
}

/// Snapshots at the begin, first committer wins.
fn snapshots(h: &History, todo: &[usize], before: &dyn Fn(usize, usize) -> bool) -> bool {
    struct Open {
        txn: usize,
        written_since: BTreeSet<u64>,
    }
    fn writes(h: &History, i: usize) -> BTreeSet<u64> {
        let key = |op: &Op| matches!(op, Op::Append { .. }).then(|| op_key(op));
        h.txns[i].ops.iter().filter_map(key).collect()
    }
    fn reads_fit(h: &History, i: usize, lists: &Lists) -> bool {
        let mut lists = lists.clone();
        h.txns[i].ops.iter().all(|op| match op {
            Op::Append { key, value } => {
                lists.entry(*key).or_default().push(*value);
                true
            }
            Op::Read { key, list } => lists.get(key).map_or(&[][..], |l| l) == list.as_slice(),
        })
    }
    fn go(
        h: &History,
        todo: &[usize],
        open: &[Open],
        lists: &Lists,
        before: &dyn Fn(usize, usize) -> bool,
    ) -> bool {
        if todo.is_empty() && open.is_empty() {
            return true;
        }
        let waits =
            |i: usize| todo.iter().chain(open.iter().map(|o| &o.txn)).any(|&j| j != i && before(j, i));
        let begins = todo.iter().any(|&i| {
            if waits(i) || !reads_fit(h, i, lists) {
                return false;
            }
            let rest: Vec<usize> = todo.iter().copied().filter(|j| *j != i).collect();
            let mut opened = copy(open);
            opened.push(Open { txn: i, written_since: BTreeSet::new() });
            go(h, &rest, &opened, lists, before)
        });
        begins
            || open.iter().enumerate().any(|(at, o)| {
                let writes = writes(h, o.txn);
                if !writes.is_disjoint(&o.written_since) {
                    return false;
                }
                let mut lists = lists.clone();
                for op in &h.txns[o.txn].ops {
                    if let Op::Append { key, value } = op {
                        lists.entry(*key).or_default().push(*value);
                    }
                }
                let mut rest = copy(open);
                rest.remove(at);
                rest.iter_mut().for_each(|o| o.written_since.extend(&writes));
                go(h, todo, &rest, &lists, before)
            })
    }
    fn copy(open: &[Open]) -> Vec<Open> {
        open.iter().map(|o| Open { txn: o.txn, written_since: o.written_since.clone() }).collect()
    }
    go(h, todo, &[], &BTreeMap::new(), before)
}

pub fn op_key(op: &Op) -> u64 {
    match op {
        Op::Append { key, .. } | Op::Read { key, .. } => *key,
    }
}

/// How the imagined database of [`generate`] treats transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each takes effect at one instant.
    Atomic,
    /// Reads come from a snapshot, writes go in at the commit, nobody is stopped.
    Snapshot,
    /// Every operation works on the current state.
    Mess,
}

/// What histories are made of.
#[derive(Clone, Debug)]
pub struct Shape {
    pub txns: usize,
    pub processes: u64,
    pub keys: u64,
    pub ops_max: u64,
    pub mode: Mode,
    /// Percent of transactions that abort, and whose outcome is unknown.
    pub aborted: u64,
    pub unknown: u64,
    /// A key is replaced by a new one after that many appends; 0: never.
    pub appends_per_key: u64,
    /// Percent of atomic transactions that read an old state.
    pub stale: u64,
    /// Percent of histories that end with a read of everything.
    pub final_read: u64,
}

/// Runs processes in a random interleaving against an imagined database.
pub fn generate(rng: &mut Rng, shape: &Shape) -> History {
    struct Running {
        txn: usize,
        plan: Vec<Op>,
        at: usize,
        snapshot: Lists,
        commits: bool,
        effect_done: bool,
    }
    let mut h = History::default();
    let (mut lists, mut old): (Lists, Vec<Lists>) = (Lists::new(), vec![Lists::new()]);
    let mut running: BTreeMap<u64, Running> = BTreeMap::new();
    let mut slots: Vec<(u64, u64)> = (0..shape.keys).map(|k| (k, 0)).collect();
    let (mut next_key, mut next_value, mut clock, mut begun) = (shape.keys, 1, 10, 0);
    let run = |plan: &mut [Op], lists: &mut Lists| {
        for op in plan {
            match op {
                Op::Append { key, value } => lists.entry(*key).or_default().push(*value),
                Op::Read { key, list } => *list = lists.get(key).cloned().unwrap_or_default(),
            }
        }
    };
    while begun < shape.txns || !running.is_empty() {
        clock += rng.below(3);
        let process = rng.below(shape.processes);
        let Some(r) = running.get_mut(&process) else {
            if begun == shape.txns {
                continue;
            }
            let mut plan = Vec::new();
            for _ in 0..1 + rng.below(shape.ops_max) {
                let slot = rng.below(shape.keys) as usize;
                if rng.chance(50) {
                    let (key, count) = &mut slots[slot];
                    plan.push(Op::Append { key: *key, value: next_value });
                    next_value += 1;
                    *count += 1;
                    if shape.appends_per_key > 0 && *count == shape.appends_per_key {
                        (*key, *count) = (next_key, 0);
                        next_key += 1;
                    }
                } else {
                    plan.push(Op::Read { key: slots[slot].0, list: Vec::new() });
                }
            }
            let (txn, dice) = (h.txns.len(), rng.below(100));
            let outcome = if dice < shape.aborted {
                Outcome::Aborted
            } else if dice < shape.aborted + shape.unknown {
                Outcome::Unknown
            } else {
                Outcome::Committed
            };
            let commits = match outcome {
                Outcome::Committed => true,
                Outcome::Aborted => false,
                Outcome::Unknown => rng.chance(50),
            };
            h.txns.push(Txn { process, invoked: clock, completed: 0, outcome, ops: Vec::new() });
            h.events.push(Event::Begin(txn));
            begun += 1;
            let snapshot = if shape.mode == Mode::Snapshot { lists.clone() } else { Lists::new() };
            running.insert(process, Running { txn, plan, at: 0, snapshot, commits, effect_done: false });
            continue;
        };
        match shape.mode {
            Mode::Mess if r.at < r.plan.len() => {
                let at = r.at;
                run(&mut r.plan[at..=at], &mut lists);
                r.at += 1;
                continue;
            }
            Mode::Atomic if !r.effect_done => {
                r.effect_done = true;
                if rng.chance(shape.stale) {
                    let mut back = old[rng.below(old.len() as u64) as usize].clone();
                    run(&mut r.plan, &mut back);
                    if r.commits {
                        let mut blind = r.plan.clone();
                        run(&mut blind, &mut lists);
                    }
                } else if r.commits {
                    run(&mut r.plan, &mut lists);
                } else {
                    run(&mut r.plan, &mut lists);
                    for op in &r.plan {
                        if let Op::Append { key, .. } = op {
                            lists.get_mut(key).unwrap().pop();
                        }
                    }
                }
                if shape.stale > 0 {
                    old.push(lists.clone());
                }
                continue;
            }
            Mode::Snapshot if !r.effect_done => {
                r.effect_done = true;
                run(&mut r.plan, &mut r.snapshot);
                if r.commits {
                    run(&mut r.plan.clone(), &mut lists);
                }
                continue;
            }
            _ => {}
        }
        let r = running.remove(&process).unwrap();
        h.txns[r.txn].ops = r.plan;
        h.txns[r.txn].completed = clock;
        h.events.push(Event::Finish(r.txn));
    }
    if rng.chance(shape.final_read) {
        let i = h.txns.len();
        let keys: BTreeSet<u64> = h.txns.iter().flat_map(|t| &t.ops).map(op_key).collect();
        let ops = keys
            .into_iter()
            .map(|key| Op::Read { key, list: lists.get(&key).cloned().unwrap_or_default() })
            .collect();
        let (invoked, completed) = (clock + 1, clock + 2);
        h.txns.push(Txn { process: shape.processes, invoked, completed, outcome: Outcome::Committed, ops });
        h.events.extend([Event::Begin(i), Event::Finish(i)]);
    }
    h
}

/// Changes one answer of a history.
pub fn mutate(rng: &mut Rng, h: &mut History) {
    let reads: Vec<(usize, usize)> = (0..h.txns.len())
        .flat_map(|t| (0..h.txns[t].ops.len()).map(move |o| (t, o)))
        .filter(|(t, o)| matches!(h.txns[*t].ops[*o], Op::Read { .. }))
        .collect();
    let dice = rng.below(10);
    if dice == 0 || reads.is_empty() {
        let t = rng.below(h.txns.len() as u64) as usize;
        h.txns[t].outcome = [Outcome::Aborted, Outcome::Committed][rng.below(2) as usize];
        return;
    }
    let (t, o) = reads[rng.below(reads.len() as u64) as usize];
    let key = op_key(&h.txns[t].ops[o]);
    let appends = h.txns.iter().flat_map(|t| &t.ops);
    let values: Vec<u64> = appends
        .filter_map(|op| match op {
            Op::Append { key: k, value } if *k == key => Some(*value),
            _ => None,
        })
        .collect();
    let Op::Read { list, .. } = &mut h.txns[t].ops[o] else { unreachable!() };
    let len = list.len() as u64;
    match dice {
        1..=3 => drop(list.pop()),
        4 if len > 0 => drop(list.remove(rng.below(len) as usize)),
        5 if len > 1 => {
            let at = rng.below(len - 1) as usize;
            list.swap(at, at + 1);
        }
        6 | 7 if !values.is_empty() => list.push(values[rng.below(values.len() as u64) as usize]),
        8 if len > 0 => list.push(list[rng.below(len) as usize]),
        _ => list.truncate(rng.below(len + 1) as usize),
    }
}
