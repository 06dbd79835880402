//! Transactions over lists, checked online: what Elle infers, in bounded memory.
//!
//! Clients append values to lists, each value once per key, and read whole lists. A list tells the order of the writes
//! of its key, so that who overwrote whom, who read what, and who read what just before it was replaced can be read off the
//! answers (Kingsbury and Alvaro, "Elle: Inferring Isolation Anomalies from Experimental Observations", VLDB 2020). A level
//! of isolation is then a set of cycles that must not be (Adya 1999).
//!
//!     begin ──► in flight ── finish ──► window ─────────────► forgotten
//!                                       │  keys it touched are live     when all its keys are gone and
//!                                       │  or something before it is    nothing live comes before it
//!
//! Edges. `ww`: a value follows another in a list. `wr`: a list ends with the value. `rw`: a list ends just before the
//! value. A committed value that no list holds yet comes after all that are in one, so `ww` and `rw` lead to it from the
//! last known version. `process`: next committed transaction of a session. `realtime`: acknowledged before the other
//! began. On these edges a history is serializable (or strictly so) if and only if there is no cycle; the tests compare
//! the verdict with a search of all orders.
//!
//! What counts as committed: acknowledged transactions, and of those with unknown outcome the ones of which a committed
//! transaction has read a value. What aborted transactions read is not looked at.
//!
//! The window. A key is live from its first operation until it is retired, by [`AppendChecker::retire`] or by
//! `key_appends_max` appends, and all transactions that began before that have ended. A transaction stays while a key that
//! it touched is live, or while it can be reached over edges from one that stays: only then can a new edge close a cycle
//! through it. So nothing is missed, as long as the workload leaves retired keys alone. The memory is that of the transactions
//! since the first append to the oldest live key, plus the lists of the live keys.
//!
//! Hard bounds, in which something may be missed, never invented; [`Stats`] counts each. Past `window_txns_max` the oldest
//! transactions are evicted, and cycles through them go unseen. Past `live_keys_max` the key that is live for longest is retired.
//! What transactions that began after a key's retirement do with it is ignored. The caller bounds how many transactions
//! are in flight at once.
//!
//! Not seen: a transaction of unknown outcome that is seen only after one of its keys is gone lacks the edges of that key.
//! Snapshot isolation allows no two orders for two values that nobody ever read, and no order is guessed for them
//! (a lost update among them is seen); predicates (there are none in lists); what Elle does with aborted reads.
//!
//! Cost: the lists are compared once when they come in; the graph is built and searched (Tarjan) every `check_every`
//! transactions or a quarter of the window, whichever is more: a transaction is searched about four times in its life.

mod graph;
mod window;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;

use rustc_hash::FxHashMap;

use crate::intervals::Intervals;
use crate::{Anomaly, Findings, Level, Outcome, Time};
use graph::{Graph, Kind};
use window::{Edge, Key, NONE, Status, Step, Txn, Window};

/// The process of transactions that belong to no session.
pub const NO_SESSION: u64 = u64::MAX;

/// A transaction, numbered by [`AppendChecker::begin`] from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxnNo(pub u64);

/// One operation of a transaction, with its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Puts a value at the end of a list. A value goes to a key once in a run, however its transaction ends.
    Append {
        /// The list.
        key: u64,
        /// The value.
        value: u64,
    },
    /// Reads a whole list. A read that got no answer is left out.
    Read {
        /// The list.
        key: u64,
        /// What it held.
        list: Vec<u64>,
    },
}

impl Op {
    fn key(&self) -> u64 {
        match self {
            Op::Append { key, .. } | Op::Read { key, .. } => *key,
        }
    }
}

/// What to check, and how much to remember.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which anomalies are findings ([`Level::forbids`]).
    pub level: Level,
    /// A key is retired when this many appends to it have ended. The workload uses the same number or a smaller one, and
    /// counts appends when it sends them. Default 100.
    pub key_appends_max: u32,
    /// Transactions between two searches for cycles, at least. Default 256.
    pub check_every: usize,
    /// Transactions in the window, counted from the oldest one in it. Default 200,000.
    pub window_txns_max: usize,
    /// Keys live at once. Default 10,000.
    pub live_keys_max: usize,
}

impl Options {
    /// The defaults for a level.
    pub fn new(level: Level) -> Options {
        Options {
            level,
            key_appends_max: 100,
            check_every: 256,
            window_txns_max: 200_000,
            live_keys_max: 10_000,
        }
    }
}

/// What a checker has seen, and what it had to leave out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Transactions that ended.
    pub txns: u64,
    /// Of those, committed: acknowledged, or unknown and seen.
    pub committed: u64,
    /// Searches for cycles.
    pub searches: u64,
    /// Most transactions in the window at once.
    pub window_txns_peak: usize,
    /// Operations on retired keys, ignored.
    pub ignored_ops: u64,
    /// Transactions evicted because the window was full.
    pub evicted: u64,
    /// Keys retired because too many were live.
    pub keys_forced: u64,
}

struct InFlight {
    process: u64,
    invoked: Time,
}

/// A value that was read before anybody was known to write it.
struct Doubt {
    /// When every transaction below this number has ended, the writer is known or there is none.
    until: u64,
    key: u64,
    value: u64,
    reader: u64,
}

/// The checker. Calls come in any order that clients can see; times of `finish` should not go back (an earlier time is taken
/// as the latest one seen, which only weakens the order in real time).
pub struct AppendChecker {
    options: Options,
    next: u64,
    in_flight: BTreeMap<u64, InFlight>,
    window: Window,
    keys: FxHashMap<u64, Key>,
    /// Live keys by age, with some that are gone already.
    ages: VecDeque<u64>,
    /// Retired keys, and the first transaction that does not count for them any more.
    retiring: VecDeque<(u64, u64)>,
    gone: Intervals,
    doubts: VecDeque<Doubt>,
    /// Last acknowledged transaction of each session that has one in the window.
    sessions: FxHashMap<u64, u64>,
    since_check: usize,
    graph: Graph,
    findings: Findings,
    stats: Stats,
}

impl AppendChecker {
    /// An empty checker.
    pub fn new(options: Options) -> AppendChecker {
        AppendChecker {
            options,
            next: 0,
            in_flight: BTreeMap::new(),
            window: Window::default(),
            keys: FxHashMap::default(),
            ages: VecDeque::new(),
            retiring: VecDeque::new(),
            gone: Intervals::default(),
            doubts: VecDeque::new(),
            sessions: FxHashMap::default(),
            since_check: 0,
            graph: Graph::default(),
            findings: Findings::default(),
            stats: Stats::default(),
        }
    }

    /// A client begins a transaction. A process (session) runs one at a time; one whose transaction ended as unknown may
    /// go on, but that transaction is then in no order with the later ones.
    pub fn begin(&mut self, process: u64, invoked_at: Time) -> TxnNo {
        let no = self.next;
        self.next += 1;
        self.in_flight.insert(no, InFlight { process, invoked: invoked_at });
        TxnNo(no)
    }

    /// A transaction ended. `ops` are its operations in order: all appends that were sent, and the reads that were answered.
    /// Ignored when the transaction is not in flight.
    pub fn finish(&mut self, txn: TxnNo, outcome: Outcome, mut ops: Vec<Op>, completed_at: Time) {
        let Some(InFlight { process, invoked }) = self.in_flight.remove(&txn.0) else { return };
        self.stats.txns += 1;
        let before = ops.len();
        ops.retain(|op| self.counts(op.key(), txn.0));
        self.stats.ignored_ops += (before - ops.len()) as u64;

        let status = match outcome {
            Outcome::Committed => Status::Committed,
            Outcome::Aborted => Status::Aborted,
            Outcome::Unknown => Status::Unknown,
        };
        let sessions = self.options.level >= Level::SnapshotIsolation && process != NO_SESSION;
        let realtime = self.options.level == Level::StrictSerializable;
        let mut new = Txn::new(txn.0, process, invoked, completed_at, status);
        new.steps = steps(&ops);
        new.heard = self.next;
        if sessions {
            new.session_before = self.sessions.get(&process).copied().unwrap_or(NONE);
        }
        let no = self.window.next_no();
        if realtime {
            new.began = self.window.moment_before(invoked);
            if outcome == Outcome::Committed {
                new.acknowledged = self.window.acknowledge(completed_at);
            }
        }
        if sessions && outcome == Outcome::Committed {
            self.sessions.insert(process, no);
        }
        self.window.push(new);
        self.stats.window_txns_peak = self.stats.window_txns_peak.max(self.window.span());

        let seen = self.register(no, &ops);
        match outcome {
            Outcome::Committed => self.admit(no, ops),
            Outcome::Unknown if seen.is_some() => self.admit(no, ops),
            Outcome::Unknown => self.window.hold(no, ops),
            Outcome::Aborted => {
                if let Some((key, value, reader)) = seen {
                    self.aborted_read(key, value, no, reader);
                }
            }
        }

        self.settle_doubts();
        self.drop_keys();
        self.since_check += 1;
        if self.since_check >= self.options.check_every.max(self.window.span() / 4) {
            self.check();
        }
    }

    /// No transaction that begins from now on touches this key.
    pub fn retire(&mut self, key: u64) {
        let bound = self.next;
        if let Some(k) = self.keys.get_mut(&key)
            && k.retired.is_none()
        {
            k.retired = Some(bound);
            self.retiring.push_back((bound, key));
        }
        self.drop_keys();
    }

    /// The list that a key holds at the end, read when nothing else runs: every committed value is in it, or lost. Retires
    /// the key.
    pub fn final_read(&mut self, key: u64, list: Vec<u64>, at: Time) {
        let reader = self.begin(NO_SESSION, at);
        self.finish(reader, Outcome::Committed, vec![Op::Read { key, list: list.clone() }], at);
        if let Some(k) = self.keys.get(&key) {
            for &value in k.order.iter().chain(&k.unread).filter(|v| !list.contains(v)) {
                let writer = self.window.get(k.values[&value].writer);
                let Some(writer) = writer.filter(|w| w.status == Status::Committed).map(|w| w.name) else {
                    continue;
                };
                self.findings.add(Anomaly::Lost, &[writer], || {
                    format!("key {key} value {value} of T{writer}, committed, is not in {}", brief(&list))
                });
            }
        }
        self.retire(key);
    }

    /// Searches for cycles now, and forgets what cannot be in one any more.
    pub fn check(&mut self) {
        self.since_check = 0;
        self.stats.searches += 1;
        self.build();
        let level = self.options.level;
        let components = self.graph.components(level == Level::SnapshotIsolation);
        for members in &components {
            let Some((anomaly, cycle)) = self.graph.witness(members, level) else { continue };
            self.report_cycle(anomaly, &cycle);
        }
        self.forget();
        self.stats.evicted += self.window.evict(self.options.window_txns_max);
    }

    /// No more calls will come: the last search, and the verdict on values that nobody wrote.
    pub fn end(&mut self) {
        if self.in_flight.is_empty() {
            self.settle_doubts();
        }
        self.check();
    }

    /// What was found and not yet taken.
    pub fn findings(&mut self) -> &mut Findings {
        &mut self.findings
    }

    /// What was seen and left out.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Does this transaction's use of the key count? Makes the key if it is new.
    fn counts(&mut self, key: u64, txn: u64) -> bool {
        if let Some(k) = self.keys.get(&key) {
            return k.retired.is_none_or(|bound| txn < bound);
        }
        if self.gone.contains(key) {
            return false;
        }
        self.keys.insert(key, Key::default());
        self.ages.push_back(key);
        while self.keys.len() > self.options.live_keys_max
            && let Some(oldest) = self.ages.pop_front()
        {
            if oldest != key && self.keys.contains_key(&oldest) {
                self.stats.keys_forced += 1;
                // Others may still use it, unseen, so a value of unknown origin proves nothing.
                self.drop_key(oldest, false);
            } else if oldest == key {
                self.ages.push_back(key);
                break;
            }
        }
        // A crowd of keys within one transaction may have pushed out this one's neighbour; the caller's loop is over ops.
        self.keys.contains_key(&key)
    }

    /// Notes who writes which value. Returns a value of it that was read already, with its reader.
    fn register(&mut self, no: u64, ops: &[Op]) -> Option<(u64, u64, u64)> {
        let name = self.window.name(no);
        let mut seen = None;
        for (i, op) in ops.iter().enumerate() {
            let key = op.key();
            let Some(k) = self.keys.get_mut(&key) else { continue };
            if ops[..i].iter().all(|o| o.key() != key) {
                k.txns.push(no);
                self.window.get_mut(no).expect("it was just pushed").live_keys += 1;
            }
            let Op::Append { value, .. } = *op else { continue };
            k.appends += 1;
            if k.appends >= self.options.key_appends_max && k.retired.is_none() {
                k.retired = Some(self.next);
                self.retiring.push_back((self.next, key));
            }
            let own = |o: &&Op| matches!(o, Op::Append { key: k, .. } if *k == key);
            let before = ops[..i].iter().rev().find(own);
            let last = !ops[i + 1..].iter().any(|o| own(&o));
            let v = k.values.entry(value).or_default();
            if v.writer != NONE && v.writer != window::NOBODY {
                self.findings.add(Anomaly::Malformed, &[name], || {
                    format!("key {key} value {value} is appended twice, the second time by T{name}")
                });
                continue;
            }
            v.writer = no;
            v.last = last;
            if let Some(Op::Append { value: before, .. }) = before {
                v.before = Some(*before);
            }
            if v.pos != window::NOWHERE {
                k.writers[v.pos as usize] = no;
            }
            if v.seen_by != NONE && seen.is_none() {
                seen = Some((key, value, v.seen_by));
            }
        }
        seen
    }

    /// A transaction counts as committed, and so do those of unknown outcome that it read from.
    fn admit(&mut self, no: u64, ops: Vec<Op>) {
        let mut todo = vec![(no, ops)];
        while let Some((no, ops)) = todo.pop() {
            let Some(txn) = self.window.get_mut(no) else { continue };
            let held = std::mem::replace(&mut txn.status, Status::Committed) == Status::Unknown;
            let (before, name, heard) = (txn.session_before, txn.name, txn.heard);
            if held {
                self.doubt_later_writers(no, heard, &ops);
            }
            self.stats.committed += 1;
            if let Some(before) = self.window.get_mut(before) {
                before.session_next.push(no);
            }
            for (i, op) in ops.iter().enumerate() {
                let key = op.key();
                if ops[..i].iter().any(|o| o.key() == key) {
                    continue;
                }
                let mut resolved = Vec::new();
                self.admit_key(no, name, key, &ops, &mut resolved);
                for unknown in resolved {
                    if let Some(ops) = self.window.release(unknown) {
                        todo.push((unknown, ops));
                    }
                }
            }
        }
    }

    /// The reads of a transaction that is seen late were answered when it ended: the writers must have begun by then.
    fn doubt_later_writers(&mut self, reader: u64, until: u64, ops: &[Op]) {
        for op in ops {
            let Op::Read { key, list } = op else { continue };
            let Some(k) = self.keys.get(key) else { continue };
            for value in list {
                let writer = k.values.get(value).map_or(NONE, |v| v.writer);
                if writer == NONE || self.window.get(writer).is_some_and(|w| w.name >= until) {
                    self.doubts.push_back(Doubt { until, key: *key, value: *value, reader });
                }
            }
        }
    }

    /// What a committed transaction did with one key.
    fn admit_key(&mut self, no: u64, name: u64, key: u64, ops: &[Op], resolved: &mut Vec<u64>) {
        let snapshot = self.options.level >= Level::SnapshotIsolation;
        let Some(k) = self.keys.get_mut(&key) else { return };
        // Its writes, as far as others have read them.
        for op in ops {
            let Op::Append { key: of, value } = *op else { continue };
            if of != key {
                continue;
            }
            let v = k.values[&value];
            if v.writer != no {
                continue; // reported as malformed
            }
            if let Some(txn) = self.window.get_mut(no) {
                txn.appends.push((key, value));
            }
            if v.pos == window::NOWHERE {
                k.unread.push(value);
                continue;
            }
            out_of_place(key, k, v.pos, &self.window, &mut self.findings);
            if !v.last {
                for reader in k.readers.get(v.pos as usize + 1).into_iter().flatten().filter(|r| **r != no) {
                    intermediate_read(key, value, name, self.window.name(*reader), &mut self.findings);
                }
            }
        }
        // Its reads. `own` are its appends so far, `base` is what was there before them.
        let (mut own, mut base): (Vec<u64>, Option<&[u64]>) = (Vec::new(), None);
        let (mut base_after_own, mut updates) = (false, false);
        for op in ops.iter().filter(|op| op.key() == key) {
            let list = match op {
                Op::Append { value, .. } => {
                    own.push(*value);
                    updates |= base.is_some() && !base_after_own;
                    continue;
                }
                Op::Read { list, .. } => list,
            };
            let Some(seen) = list.strip_suffix(own.as_slice()) else {
                self.findings.add(Anomaly::Internal, &[name], || {
                    format!("T{name} appended {own:?} to key {key} and then read {}", brief(list))
                });
                continue;
            };
            let changed = base.is_some_and(|b| b != seen) && (snapshot || base_after_own);
            if changed {
                let first = base.unwrap_or_default();
                self.findings.add(Anomaly::Internal, &[name], || {
                    format!("T{name} read key {key} first as {}, then as {}", brief(first), brief(seen))
                });
                continue;
            }
            let known = base == Some(seen);
            base = Some(seen);
            base_after_own |= !own.is_empty();
            if !take_list(no, name, key, k, list, &mut self.window, &mut self.findings, resolved, |doubt| {
                self.doubts.push_back(Doubt { until: self.next, key, value: doubt, reader: no })
            }) || known
            {
                continue;
            }
            if let Some(last) = seen.last() {
                let v = k.values[last];
                if v.writer == no {
                    self.findings.add(Anomaly::Internal, &[name], || {
                        format!("T{name} read {last} of key {key} before it appended it")
                    });
                    continue;
                }
                if !v.last
                    && let Some(writer) = self.window.get(v.writer)
                    && writer.status == Status::Committed
                {
                    intermediate_read(key, *last, writer.name, name, &mut self.findings);
                }
            }
            let len = seen.len();
            if k.readers.len() <= len {
                k.readers.resize_with(len + 1, Vec::new);
            }
            k.readers[len].push(no);
            if let Some(txn) = self.window.get_mut(no) {
                txn.reads.push((key, len as u32));
            }
        }
        // Two transactions that replace the same version: one of the updates is lost, whichever order they get.
        if let (true, true, Some(base)) = (snapshot, updates, base) {
            let other = *k.updaters.entry(base.len() as u32).or_insert(no);
            if other != no
                && let Some(first) = self.window.get(other)
            {
                let pair = [other, no];
                self.findings.add(Anomaly::LostUpdate, &[first.name, name], || {
                    let mut text = format!(
                        "T{} and T{name} both read key {key} as {} and appended to it",
                        first.name,
                        brief(base)
                    );
                    pair.iter().for_each(|t| self.window.describe(*t, &mut text));
                    text
                });
                pair.iter().for_each(|t| self.window.mute(*t));
            }
        }
    }

    fn aborted_read(&mut self, key: u64, value: u64, writer: u64, reader: u64) {
        aborted_read(key, value, writer, reader, &self.window, &mut self.findings);
    }

    /// Values without a writer whose possible writers have all ended.
    fn settle_doubts(&mut self) {
        let oldest = self.in_flight.first_key_value().map_or(self.next, |(no, _)| *no);
        while let Some(doubt) = self.doubts.front() {
            if doubt.until > oldest {
                break;
            }
            let doubt = self.doubts.pop_front().expect("it was there a moment ago");
            let Some(k) = self.keys.get_mut(&doubt.key) else { continue };
            let Some(v) = k.values.get_mut(&doubt.value) else { continue };
            // A writer that began after the read had ended is none.
            let late = self.window.get(v.writer).is_some_and(|w| w.name >= doubt.until);
            if v.writer == NONE || late {
                v.writer = window::NOBODY;
                self.garbage(doubt.key, doubt.value, doubt.reader);
            }
        }
    }

    fn garbage(&mut self, key: u64, value: u64, reader: u64) {
        let name = self.window.name(reader);
        self.findings.add(Anomaly::Garbage, &[name], || {
            format!("T{name} read {value} in key {key}; nobody appended it")
        });
    }

    /// Retired keys that no transaction in flight can touch.
    fn drop_keys(&mut self) {
        let oldest = self.in_flight.first_key_value().map_or(self.next, |(no, _)| *no);
        while let Some((bound, key)) = self.retiring.front().copied() {
            if bound > oldest {
                break;
            }
            self.retiring.pop_front();
            self.drop_key(key, true);
        }
        while self.ages.front().is_some_and(|k| !self.keys.contains_key(k)) {
            self.ages.pop_front();
        }
    }

    /// A key goes; the edges that it gave stay with its transactions. `complete`: all its writers are known.
    fn drop_key(&mut self, key: u64, complete: bool) {
        let Some(k) = self.keys.get(&key) else { return };
        let nobodys = |v: &&u64| complete && k.values[v].writer == NONE;
        let nobodys: Vec<(u64, u64)> =
            k.order.iter().filter(nobodys).map(|v| (*v, k.values[v].seen_by)).collect();
        let mut kept = Vec::new();
        for &no in &k.txns {
            let Some(txn) = self.window.get(no) else { continue };
            if txn.status == Status::Committed {
                key_edges(no, txn, key, k, &self.window, |to, kind, value| {
                    kept.push((no, Edge { to, kind, key, value }))
                });
            }
        }
        for (no, edge) in kept {
            self.window.keep(no, edge);
        }
        let k = self.keys.remove(&key).expect("it was there a moment ago");
        for no in k.txns {
            if let Some(txn) = self.window.get_mut(no) {
                txn.live_keys -= 1;
                if txn.live_keys == 0 && txn.status == Status::Unknown {
                    txn.held = None;
                }
            }
        }
        self.gone.insert(key);
        for (value, reader) in nobodys {
            self.garbage(key, value, reader);
        }
    }

    /// Writes the window's edges into the graph.
    fn build(&mut self) {
        let sessions = self.options.level >= Level::SnapshotIsolation;
        let anti = self.options.level >= Level::SnapshotIsolation;
        let (span, moments) = (self.window.span(), self.window.moments());
        let graph = &mut self.graph;
        graph.clear(span);
        // Per moment, the transactions that began right after it, as linked lists.
        let mut first_after = vec![usize::MAX; moments];
        let mut next_after = vec![usize::MAX; span];
        for (i, next) in next_after.iter_mut().enumerate() {
            let no = self.window.base() + i as u64;
            if let Some(txn) = self.window.get(no).filter(|t| t.takes_part()) {
                edges(no, txn, &self.keys, &self.window, |edge| {
                    if (anti || edge.kind != Kind::Rw)
                        && (sessions || edge.kind != Kind::Process)
                        && let Some(to) = self.window.index(edge.to)
                    {
                        graph.edge(to, edge.kind);
                    }
                });
                if let Some(moment) = self.window.moment_index(txn.acknowledged) {
                    graph.edge(span + moment, Kind::Realtime);
                }
                if let Some(moment) = self.window.moment_index(txn.began) {
                    *next = std::mem::replace(&mut first_after[moment], i);
                }
            }
            graph.next_node();
        }
        for (moment, first) in first_after.into_iter().enumerate() {
            if moment + 1 < moments {
                graph.edge(span + moment + 1, Kind::Realtime);
            }
            let mut i = first;
            while i != usize::MAX {
                graph.edge(i, Kind::Realtime);
                i = next_after[i];
            }
            graph.next_node();
        }
    }

    /// Forgets the transactions that nothing live leads to.
    fn forget(&mut self) {
        let span = self.window.span();
        let live = (0..span).filter(|i| self.window.at(*i).is_some_and(|t| t.live_keys > 0));
        let stays = self.graph.reach(live);
        for (i, stays) in stays[..span].iter().enumerate() {
            if !stays {
                self.window.remove(i);
            }
        }
        let moments = stays[span..].iter().position(|s| *s).unwrap_or(stays.len() - span);
        self.window.trim(moments);
        let window = &self.window;
        self.sessions.retain(|_, no| window.get(*no).is_some());
    }

    fn report_cycle(&mut self, anomaly: Anomaly, cycle: &[(usize, Kind)]) {
        let mut cycle: Vec<(u64, Kind)> =
            cycle.iter().map(|(i, kind)| (self.window.base() + *i as u64, *kind)).collect();
        // The one that began first goes first.
        let first = (0..cycle.len()).min_by_key(|i| self.window.name(cycle[*i].0)).unwrap_or(0);
        cycle.rotate_left(first);
        let names: Vec<u64> = cycle.iter().map(|(no, _)| self.window.name(*no)).collect();
        let reasons: Vec<Option<Edge>> = (0..cycle.len())
            .map(|i| {
                let (from, kind) = cycle[i];
                let (to, _) = cycle[(i + 1) % cycle.len()];
                let mut reason = None;
                let txn = self.window.get(from)?;
                edges(from, txn, &self.keys, &self.window, |e| {
                    if e.to == to && e.kind == kind && reason.is_none() {
                        reason = Some(e);
                    }
                });
                reason
            })
            .collect();
        let same_key = matches!(&reasons[..], [Some(a), Some(b)] if a.key == b.key);
        let lost = same_key && anomaly == Anomaly::GSingle(crate::Via::Data);
        let lost = lost && cycle.iter().any(|(_, kind)| *kind == Kind::Ww);
        let anomaly = if lost { Anomaly::LostUpdate } else { anomaly };
        let window = &self.window;
        self.findings.add(anomaly, &names, || {
            let mut text = String::new();
            for (i, (_, kind)) in cycle.iter().enumerate() {
                let _ = write!(text, "T{} -", names[i]);
                let _ = match (&reasons[i], kind) {
                    (Some(e), Kind::Ww) => write!(text, "ww key {} before {}", e.key, e.value),
                    (Some(e), Kind::Wr) => write!(text, "wr key {} value {}", e.key, e.value),
                    (Some(e), Kind::Rw) => write!(text, "rw key {} before {}", e.key, e.value),
                    (_, Kind::Process) => write!(text, "process"),
                    _ => write!(text, "realtime"),
                };
                text.push_str("-> ");
            }
            let _ = write!(text, "T{}", names[0]);
            cycle.iter().for_each(|(no, _)| window.describe(*no, &mut text));
            text
        });
        // One finding per cycle: its transactions take no part in further searches.
        cycle.iter().for_each(|(no, _)| self.window.mute(*no));
    }
}

/// What a transaction did, short enough to keep.
fn steps(ops: &[Op]) -> Vec<Step> {
    ops.iter()
        .map(|op| match op {
            Op::Append { key, value } => Step::Append { key: *key, value: *value },
            Op::Read { key, list } => {
                Step::Read { key: *key, len: list.len() as u32, last: list.last().copied() }
            }
        })
        .collect()
}

/// A list, its last eight values at most.
fn brief(list: &[u64]) -> String {
    let from = list.len().saturating_sub(8);
    let values: Vec<String> = list[from..].iter().map(u64::to_string).collect();
    let dots = if from > 0 { format!("{from} values .. ") } else { String::new() };
    format!("[{dots}{}]", values.join(" "))
}

fn intermediate_read(key: u64, value: u64, writer: u64, reader: u64, findings: &mut Findings) {
    findings.add(Anomaly::G1b, &[writer, reader], || {
        format!("T{reader} read key {key} up to {value}, after which T{writer} appended more")
    });
}

fn aborted_read(key: u64, value: u64, writer: u64, reader: u64, window: &Window, findings: &mut Findings) {
    let names = [window.name(writer), window.name(reader)];
    findings.add(Anomaly::G1a, &names, || {
        let mut text =
            format!("T{} read {value} of key {key}, which T{} appended and aborted", names[1], names[0]);
        window.describe(writer, &mut text);
        window.describe(reader, &mut text);
        text
    });
}

/// The value at a position follows the value that its transaction appended before, or that one is after it or missing.
/// (That others' values are in between shows as a cycle.)
fn out_of_place(key: u64, k: &Key, pos: u32, window: &Window, findings: &mut Findings) {
    let value = k.order[pos as usize];
    let v = k.values[&value];
    let Some(before) = v.before else { return };
    if k.values.get(&before).is_none_or(|b| b.pos == window::NOWHERE || b.pos > pos) {
        let name = window.name(v.writer);
        findings.add(Anomaly::IncompatibleOrder, &[name], || {
            format!("T{name} appended {before} and then {value} to key {key}, which has {value} without {before} before it")
        });
    }
}

/// Fits a list into the order of its key. False if it does not fit, which is reported.
#[expect(clippy::too_many_arguments, reason = "the parts of the checker that one key's list touches")]
fn take_list(
    no: u64,
    name: u64,
    key: u64,
    k: &mut Key,
    list: &[u64],
    window: &mut Window,
    findings: &mut Findings,
    resolved: &mut Vec<u64>,
    mut doubt: impl FnMut(u64),
) -> bool {
    let known = k.order.len().min(list.len());
    let agrees = list[..known] == k.order[..known];
    let twice = if agrees {
        let new = &list[known..];
        let old = |v: &u64| k.values.get(v).is_some_and(|v| v.pos != window::NOWHERE);
        new.iter().enumerate().find(|(i, v)| new[..*i].contains(v) || old(v)).map(|(_, v)| *v)
    } else {
        let mut sorted = list.to_vec();
        sorted.sort_unstable();
        sorted.windows(2).find(|w| w[0] == w[1]).map(|w| w[0])
    };
    if let Some(twice) = twice {
        findings.add(Anomaly::Duplicate, &[name], || {
            format!("T{name} read {twice} twice in key {key}: {}", brief(list))
        });
        return false;
    }
    if !agrees {
        let at = (0..known).find(|i| list[*i] != k.order[*i]).unwrap_or(0);
        findings.add(Anomaly::IncompatibleOrder, &[name], || {
            let order = brief(&k.order[..(at + 2).min(k.order.len())]);
            let here = brief(&list[..(at + 2).min(list.len())]);
            format!("T{name} read key {key} as {here}.. where others had read {order}..")
        });
        return false;
    }
    for &value in &list[known..] {
        let pos = k.order.len() as u32;
        let v = k.values.entry(value).or_default();
        v.pos = pos;
        v.seen_by = no;
        let v = *v;
        k.order.push(value);
        k.writers.push(v.writer);
        if v.writer == NONE {
            doubt(value);
            continue;
        }
        match window.get(v.writer).map(|t| t.status) {
            Some(Status::Committed) => {
                k.unread.retain(|u| *u != value);
                out_of_place(key, k, pos, window, findings);
            }
            Some(Status::Unknown) => resolved.push(v.writer),
            Some(Status::Aborted) => aborted_read(key, value, v.writer, no, window, findings),
            None => {}
        }
    }
    true
}

/// The edges that start at a transaction: those of live keys, those kept from keys that are gone, and its session's.
fn edges(no: u64, txn: &Txn, keys: &FxHashMap<u64, Key>, window: &Window, mut found: impl FnMut(Edge)) {
    // Operations on one key stand together in both lists.
    let mut last = None;
    let written = |key: u64| txn.appends.iter().any(|a| a.0 == key);
    let read = txn.reads.iter().map(|r| r.0).filter(|key| !written(*key));
    for key in txn.appends.iter().map(|a| a.0).chain(read) {
        if last != Some(key)
            && let Some(k) = keys.get(&key)
        {
            key_edges(no, txn, key, k, window, |to, kind, value| found(Edge { to, kind, key, value }));
        }
        last = Some(key);
    }
    txn.kept.iter().for_each(|e| found(*e));
    for &to in &txn.session_next {
        found(Edge { to, kind: Kind::Process, key: 0, value: 0 });
    }
}

/// The edges that a transaction has through one key.
fn key_edges(no: u64, txn: &Txn, key: u64, k: &Key, window: &Window, mut found: impl FnMut(u64, Kind, u64)) {
    let mut to = |to: u64, kind: Kind, value: u64| {
        if to != no && window.get(to).is_some_and(Txn::takes_part) {
            found(to, kind, value);
        }
    };
    let follow = |to: &mut dyn FnMut(u64, Kind, u64), pos: usize, kind: Kind| match k.order.get(pos) {
        Some(value) => to(k.writers[pos], kind, *value),
        None => k.unread.iter().for_each(|u| to(k.values[u].writer, kind, *u)),
    };
    for &(_, value) in txn.appends.iter().filter(|a| a.0 == key) {
        let pos = k.values[&value].pos;
        if pos == window::NOWHERE {
            continue;
        }
        follow(&mut to, pos as usize + 1, Kind::Ww);
        for &reader in k.readers.get(pos as usize + 1).into_iter().flatten() {
            to(reader, Kind::Wr, value);
        }
    }
    for &(_, len) in txn.reads.iter().filter(|r| r.0 == key) {
        follow(&mut to, len as usize, Kind::Rw);
    }
}
