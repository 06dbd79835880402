//! What the list checker remembers: transactions, live keys, acknowledgements.

use std::collections::VecDeque;
use std::fmt::Write;

use rustc_hash::FxHashMap;

use super::graph::Kind;
use super::{NO_SESSION, Op};
use crate::Time;

/// No transaction.
pub(super) const NONE: u64 = u64::MAX;
/// The writer of a value that nobody wrote, once that was reported.
pub(super) const NOBODY: u64 = u64::MAX - 1;
/// The position of a value that no list held yet.
pub(super) const NOWHERE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Committed,
    Aborted,
    /// Nothing of it has been seen yet.
    Unknown,
}

/// An operation as it is kept: a list by its length and last value, for its key knows the rest.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Append { key: u64, value: u64 },
    Read { key: u64, len: u32, last: Option<u64> },
}

/// One reason why a transaction comes before another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    pub(super) to: u64,
    pub(super) kind: Kind,
    pub(super) key: u64,
    pub(super) value: u64,
}

/// A transaction that ended. Inside the checker it goes by its number in the order of ends; `name` is the caller's.
#[derive(Debug)]
pub(super) struct Txn {
    pub(super) name: u64,
    process: u64,
    invoked: Time,
    completed: Time,
    /// Transactions from this number on began after it had ended.
    pub(super) heard: u64,
    pub(super) status: Status,
    pub(super) steps: Vec<Step>,
    /// Once committed: what it appended, by key and value.
    pub(super) appends: Vec<(u64, u64)>,
    /// Once committed: the versions of others that it read, by key and length.
    pub(super) reads: Vec<(u64, u32)>,
    /// Keys that it touched and that are live: as long as there are any, edges to it can appear.
    pub(super) live_keys: u32,
    /// Edges through keys that are gone.
    pub(super) kept: Vec<Edge>,
    pub(super) session_before: u64,
    pub(super) session_next: Vec<u64>,
    /// The last acknowledgement before it began.
    pub(super) began: u64,
    /// Its own.
    pub(super) acknowledged: u64,
    /// The operations of a transaction of unknown outcome, until it is seen.
    pub(super) held: Option<Vec<Op>>,
    muted: bool,
}

impl Txn {
    pub(super) fn new(name: u64, process: u64, invoked: Time, completed: Time, status: Status) -> Txn {
        Txn {
            name,
            process,
            invoked,
            completed,
            heard: NONE,
            status,
            steps: Vec::new(),
            appends: Vec::new(),
            reads: Vec::new(),
            live_keys: 0,
            kept: Vec::new(),
            session_before: NONE,
            session_next: Vec::new(),
            began: NONE,
            acknowledged: NONE,
            held: None,
            muted: false,
        }
    }

    /// Is it a node of the graph? Transactions of a cycle that was reported are not.
    pub(super) fn takes_part(&self) -> bool {
        self.status == Status::Committed && !self.muted
    }
}

/// What is known of a value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value {
    pub(super) writer: u64,
    /// Where it is in the order of its key.
    pub(super) pos: u32,
    /// Its transaction's last append to the key.
    pub(super) last: bool,
    /// The value that its transaction appended to the key before.
    pub(super) before: Option<u64>,
    /// The first committed reader.
    pub(super) seen_by: u64,
}

impl Default for Value {
    fn default() -> Value {
        Value { writer: NONE, pos: NOWHERE, last: true, before: None, seen_by: NONE }
    }
}

/// A live key.
#[derive(Debug, Default)]
pub(super) struct Key {
    /// The longest list that was read.
    pub(super) order: Vec<u64>,
    /// The writers of its values.
    pub(super) writers: Vec<u64>,
    pub(super) values: FxHashMap<u64, Value>,
    /// Values of committed transactions that no list holds yet.
    pub(super) unread: Vec<u64>,
    /// The readers of each version, by its length.
    pub(super) readers: Vec<Vec<u64>>,
    /// The first transaction that read a version, by its length, and replaced it.
    pub(super) updaters: FxHashMap<u32, u64>,
    /// All transactions that touched it.
    pub(super) txns: Vec<u64>,
    /// Appends that ended, however they did.
    pub(super) appends: u32,
    /// Transactions from this number on do not count.
    pub(super) retired: Option<u64>,
}

/// Transactions in the order of their ends, and acknowledgements in the order of time. Both lose their front.
#[derive(Debug, Default)]
pub(super) struct Window {
    txns: VecDeque<Option<Box<Txn>>>,
    base: u64,
    moments: VecDeque<Time>,
    moments_base: u64,
    now: Time,
}

impl Window {
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    pub(super) fn span(&self) -> usize {
        self.txns.len()
    }

    pub(super) fn next_no(&self) -> u64 {
        self.base + self.txns.len() as u64
    }

    pub(super) fn push(&mut self, txn: Txn) {
        self.txns.push_back(Some(Box::new(txn)));
    }

    pub(super) fn at(&self, index: usize) -> Option<&Txn> {
        self.txns.get(index)?.as_deref()
    }

    pub(super) fn get(&self, no: u64) -> Option<&Txn> {
        self.at(usize::try_from(no.checked_sub(self.base)?).ok()?)
    }

    pub(super) fn get_mut(&mut self, no: u64) -> Option<&mut Txn> {
        let index = usize::try_from(no.checked_sub(self.base)?).ok()?;
        self.txns.get_mut(index)?.as_deref_mut()
    }

    /// The node of a transaction that is still there.
    pub(super) fn index(&self, no: u64) -> Option<usize> {
        self.get(no).map(|_| (no - self.base) as usize)
    }

    /// The caller's number.
    pub(super) fn name(&self, no: u64) -> u64 {
        self.get(no).map_or(NONE, |t| t.name)
    }

    pub(super) fn mute(&mut self, no: u64) {
        if let Some(txn) = self.get_mut(no) {
            txn.muted = true;
        }
    }

    pub(super) fn hold(&mut self, no: u64, ops: Vec<Op>) {
        if let Some(txn) = self.get_mut(no) {
            txn.held = Some(ops);
        }
    }

    pub(super) fn release(&mut self, no: u64) -> Option<Vec<Op>> {
        self.get_mut(no)?.held.take()
    }

    pub(super) fn keep(&mut self, no: u64, edge: Edge) {
        if let Some(txn) = self.get_mut(no) {
            txn.kept.push(edge);
        }
    }

    /// Notes an acknowledgement and returns its number.
    pub(super) fn acknowledge(&mut self, at: Time) -> u64 {
        self.now = self.now.max(at);
        self.moments.push_back(self.now);
        self.moments_base + self.moments.len() as u64 - 1
    }

    /// The last acknowledgement before a time; one at the same time may have been later.
    pub(super) fn moment_before(&self, at: Time) -> u64 {
        match self.moments.partition_point(|m| *m < at) {
            0 => NONE,
            n => self.moments_base + n as u64 - 1,
        }
    }

    pub(super) fn moments(&self) -> usize {
        self.moments.len()
    }

    pub(super) fn moment_index(&self, moment: u64) -> Option<usize> {
        if moment == NONE { None } else { moment.checked_sub(self.moments_base).map(|m| m as usize) }
    }

    pub(super) fn remove(&mut self, index: usize) {
        self.txns[index] = None;
    }

    /// Cuts off what was removed at the front, and that many acknowledgements.
    pub(super) fn trim(&mut self, moments: usize) {
        while self.txns.front().is_some_and(Option::is_none) {
            self.txns.pop_front();
            self.base += 1;
        }
        self.moments.drain(..moments);
        self.moments_base += moments as u64;
    }

    /// Removes the oldest until no more than that many places are left; says how many transactions it cost.
    pub(super) fn evict(&mut self, txns_max: usize) -> u64 {
        let mut evicted = 0;
        while self.txns.len() > txns_max {
            evicted += u64::from(self.txns.pop_front().is_some_and(|t| t.is_some()));
            self.base += 1;
        }
        if evicted > 0 {
            // Acknowledgements before those of all that are left order none of them.
            let left = self.txns.iter().flatten().filter_map(|t| self.moment_index(t.acknowledged)).min();
            self.trim(left.unwrap_or(self.moments.len()));
        }
        evicted
    }

    /// Appends a line that says what a transaction did.
    pub(super) fn describe(&self, no: u64, text: &mut String) {
        let Some(txn) = self.get(no) else { return };
        let _ = write!(text, "\n  T{}", txn.name);
        if txn.process != NO_SESSION {
            let _ = write!(text, " process {}", txn.process);
        }
        let _ = write!(text, " [{}..{}]", txn.invoked, txn.completed);
        for step in &txn.steps {
            let _ = match step {
                Step::Append { key, value } => write!(text, "  append {key} {value}"),
                Step::Read { key, last: None, .. } => write!(text, "  read {key} []"),
                Step::Read { key, len: 1, last: Some(last) } => write!(text, "  read {key} [{last}]"),
                Step::Read { key, len, last: Some(last) } => {
                    write!(text, "  read {key} [{len} values .. {last}]")
                }
            };
        }
    }
}
