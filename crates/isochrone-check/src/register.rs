//! Linearizability of single registers, checked online in near-linear time.
//!
//! In general the question is NP-complete. It is easy when every value is written to a key at most once, for then a read
//! names its write (Gibbons and Korach, "Testing Shared Memories", SIAM J. Comput. 1997). A value's operations, its write and
//! its reads, must stand together in the order; with compare-and-set the values of a chain `a -> b -> c` must too. Call that
//! a block. Of a block only two times matter to others:
//!
//!     min_finish  the first answer of an operation in it
//!     max_start   the last call of an operation in it
//!
//! Block A must come before B when A.min_finish < B.max_start. There is an order if and only if no two blocks must each
//! come before the other, and no value in a chain has an answer before the last call of an earlier value. (A longer circle
//! holds a circle of two: take the block with the smallest min_finish in it, and whatever comes before that one.) The tests
//! compare the verdict with a search of all orders.
//!
//! Operations of unknown outcome count when their value was read, with no answer of their own; a value that nobody read
//! can be left out of any order. A compare-and-set that failed says what the value was not, which blocks cannot express:
//! report it as a read when it tells the value it found, and else as failed, which is not judged.
//!
//! Memory. Let h be the earliest call among operations in flight, or now. A block is forgotten when it must come before one
//! that has an answer earlier than h: whatever reads its values from now on was called after that answer and breaks the order,
//! and so does a read of a forgotten value. So a key costs about as many blocks as there are clients, and nothing is missed.
//! Values of unknown outcome stay, up to `unknown_max` per key; past that the oldest is forgotten, and from then on a read
//! of a value that is not known proves nothing and is counted in [`RegisterChecker::unjudged`]. [`RegisterChecker::retire`]
//! forgets a key. After the first finding a key is not judged any more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rustc_hash::FxHashMap;

use crate::{Anomaly, Findings, Time};

/// What a register holds; `None` until the first write.
pub type Content = Option<u64>;

/// An operation, numbered by [`RegisterChecker::begin`] from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpNo(pub u64);

/// What a client asks. A value is written to a key at most once in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// What does it hold?
    Read,
    /// Hold this.
    Write(u64),
    /// Hold `new` if it holds `expect`.
    Cas {
        /// What it must hold.
        expect: Content,
        /// What it then holds.
        new: u64,
    },
}

/// What a client hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It holds, or held when a compare-and-set failed, this.
    Holds(Content),
    /// The write or the compare-and-set happened.
    Done,
    /// It did not happen and never will. For a read: no answer.
    Failed,
    /// Nobody knows.
    Unknown,
}

/// Times inside are one higher, so that the initial value is written before all.
const BEGINNING: Time = 0;
const NEVER: Time = Time::MAX;
/// Values known to have failed, per key, kept to name a finding well.
const FAILED_MAX: usize = 64;

struct Written {
    start: Time,
    /// What a compare-and-set replaced.
    expect: Option<Content>,
    /// Its block, once it is known to have happened.
    block: Option<u64>,
}

#[derive(Clone, Copy)]
struct Span {
    min_finish: Time,
    max_start: Time,
}

impl Span {
    fn take(&mut self, other: Span) {
        self.min_finish = self.min_finish.min(other.min_finish);
        self.max_start = self.max_start.max(other.max_start);
    }

    fn before(&self, other: &Span) -> bool {
        self.min_finish < other.max_start
    }
}

struct Block {
    span: Span,
    /// The values of the chain that are not forgotten, first to last.
    layers: Vec<(Content, Span)>,
}

struct Register {
    values: BTreeMap<Content, Written>,
    blocks: BTreeMap<u64, Block>,
    next_block: u64,
    /// Calls in flight.
    starts: BTreeSet<(Time, u64)>,
    /// Values of unknown outcome in the order in which they became so; some have been seen since.
    unknown: VecDeque<u64>,
    failed: VecDeque<u64>,
    forgot: bool,
    broken: bool,
    retired: bool,
}

impl Register {
    fn new() -> Register {
        let span = Span { min_finish: BEGINNING, max_start: BEGINNING };
        let initial = Written { start: BEGINNING, expect: None, block: Some(0) };
        Register {
            values: BTreeMap::from([(None, initial)]),
            blocks: BTreeMap::from([(0, Block { span, layers: vec![(None, span)] })]),
            next_block: 1,
            starts: BTreeSet::new(),
            unknown: VecDeque::new(),
            failed: VecDeque::new(),
            forgot: false,
            broken: false,
            retired: false,
        }
    }
}

struct InFlight {
    key: u64,
    op: Op,
    start: Time,
}

/// The checker, for any number of keys.
pub struct RegisterChecker {
    keys: FxHashMap<u64, Register>,
    in_flight: FxHashMap<u64, InFlight>,
    next: u64,
    now: Time,
    unknown_max: usize,
    unjudged: u64,
    findings: Findings,
}

/// Why an operation fits nowhere.
struct Misfit(Anomaly, String);

impl RegisterChecker {
    /// An empty checker. `unknown_max`: values of unknown outcome kept per key; a few thousand cost little.
    pub fn new(unknown_max: usize) -> RegisterChecker {
        RegisterChecker {
            keys: FxHashMap::default(),
            in_flight: FxHashMap::default(),
            next: 0,
            now: BEGINNING,
            unknown_max,
            unjudged: 0,
            findings: Findings::default(),
        }
    }

    /// A client calls. All calls of this checker come in the order of their times.
    pub fn begin(&mut self, key: u64, op: Op, at: Time) -> OpNo {
        let start = self.tick(at);
        let no = self.next;
        self.next += 1;
        let register = self.keys.entry(key).or_insert_with(Register::new);
        register.starts.insert((start, no));
        self.in_flight.insert(no, InFlight { key, op, start });
        let (value, expect) = match op {
            Op::Read => return OpNo(no),
            Op::Write(value) => (value, None),
            Op::Cas { expect, new } => (new, Some(expect)),
        };
        let written = Written { start, expect, block: None };
        if register.values.insert(Some(value), written).is_some() && !register.broken {
            register.broken = true;
            let text = || format!("operation {no} writes {value} to key {key}, for the second time");
            self.findings.add(Anomaly::Malformed, &[no], text);
        }
        OpNo(no)
    }

    /// A client hears. Ignored when the operation is not in flight.
    pub fn finish(&mut self, op: OpNo, answer: Answer, at: Time) {
        let finish = self.tick(at);
        let Some(InFlight { key, op: asked, start }) = self.in_flight.remove(&op.0) else { return };
        let register = self.keys.get_mut(&key).expect("a key with an operation in flight is kept");
        register.starts.remove(&(start, op.0));
        if !register.broken {
            let span = Span { min_finish: finish, max_start: start };
            let judged = match register.hear(asked, answer, span) {
                Ok(Some(touched)) => register.fits(touched),
                Ok(None) => Ok(()),
                Err(misfit) => Err(misfit),
            };
            match judged {
                Ok(()) => {}
                Err(Misfit(Anomaly::Garbage, _)) if register.forgot => self.unjudged += 1,
                Err(Misfit(anomaly, why)) => {
                    register.broken = true;
                    // Which of the two it is cannot be told once the value is forgotten.
                    let anomaly =
                        if anomaly == Anomaly::Garbage { Anomaly::NotLinearizable } else { anomaly };
                    let (from, to) = (start - 1, finish - 1);
                    self.findings.add(anomaly, &[op.0], || {
                        format!("key {key}: operation {} [{from}..{to}] {asked:?} -> {answer:?}: {why}", op.0)
                    });
                }
            }
            register.forget(self.now, self.unknown_max);
        }
        if register.broken {
            register.values.clear();
            register.blocks.clear();
        }
        if register.retired && register.starts.is_empty() {
            self.keys.remove(&key);
        }
    }

    /// Nobody will use this key any more; it is forgotten when the operations in flight have ended.
    pub fn retire(&mut self, key: u64) {
        let Some(register) = self.keys.get_mut(&key) else { return };
        register.retired = true;
        if register.starts.is_empty() {
            self.keys.remove(&key);
        }
    }

    /// What was found and not yet taken.
    pub fn findings(&mut self) -> &mut Findings {
        &mut self.findings
    }

    /// Reads that could not be judged, because too many outcomes were unknown.
    pub fn unjudged(&self) -> u64 {
        self.unjudged
    }

    /// Values held for a key: the memory it costs.
    pub fn held(&self, key: u64) -> usize {
        self.keys.get(&key).map_or(0, |r| r.values.len())
    }

    fn tick(&mut self, at: Time) -> Time {
        let at = at.saturating_add(1).min(NEVER - 1);
        assert!(at >= self.now, "calls come in the order of their times");
        self.now = at;
        at
    }
}

impl Register {
    /// Takes in an answer; returns the block that changed.
    fn hear(&mut self, asked: Op, answer: Answer, span: Span) -> Result<Option<u64>, Misfit> {
        let value = match (asked, answer) {
            (_, Answer::Holds(content)) => {
                if let Op::Write(value) | Op::Cas { new: value, .. } = asked {
                    self.fail(value)?;
                }
                return self.join(content, span).map(Some);
            }
            (Op::Read, _) => return Ok(None),
            (Op::Write(value) | Op::Cas { new: value, .. }, _) => value,
        };
        match answer {
            Answer::Done => self.join(Some(value), span).map(Some),
            Answer::Failed => self.fail(value).map(|()| None),
            _ => {
                if self.values.get(&Some(value)).is_some_and(|w| w.block.is_none()) {
                    self.unknown.push_back(value);
                }
                Ok(None)
            }
        }
    }

    fn fail(&mut self, value: u64) -> Result<(), Misfit> {
        match self.values.get(&Some(value)) {
            Some(Written { block: None, .. }) => {
                self.values.remove(&Some(value));
                self.failed.push_back(value);
                if self.failed.len() > FAILED_MAX {
                    self.failed.pop_front();
                }
                Ok(())
            }
            _ => Err(Misfit(Anomaly::AbortedVisible, format!("{value} was read before its writer failed"))),
        }
    }

    /// Adds an operation to the block of a value.
    fn join(&mut self, content: Content, span: Span) -> Result<u64, Misfit> {
        let id = self.happened(content)?;
        let block = self.blocks.get_mut(&id).expect("a value's block is kept as long as the value");
        block.span.take(span);
        let layer = block.layers.iter_mut().find(|l| l.0 == content);
        layer.expect("a value is a layer of its block").1.take(span);
        Ok(id)
    }

    /// A value is known to have been written: it gets a block, behind the value that it replaced in a compare-and-set.
    fn happened(&mut self, content: Content) -> Result<u64, Misfit> {
        // From the value back over compare-and-sets of unknown outcome, and then forward again.
        let (mut at, mut chain) = (content, Vec::new());
        let mut id = loop {
            let Some(written) = self.values.get(&at) else { return Err(self.missing(at)) };
            if let Some(block) = written.block {
                break Some(block);
            }
            if chain.contains(&at) {
                let why = format!("compare-and-sets that each need the other, around {at:?}");
                return Err(Misfit(Anomaly::NotLinearizable, why));
            }
            chain.push(at);
            match written.expect {
                Some(expect) => at = expect,
                None => break None,
            }
        };
        while let Some(value) = chain.pop() {
            let written = self.values.get_mut(&value).expect("the chain was just walked");
            let span = Span { min_finish: NEVER, max_start: written.start };
            let block = id.unwrap_or(self.next_block);
            written.block = Some(block);
            let expect = written.expect;
            match self.blocks.get_mut(&block) {
                Some(before) => {
                    if before.layers.last().map(|l| Some(l.0)) != Some(expect) {
                        let why =
                            format!("{:?} was replaced by two compare-and-sets", expect.unwrap_or_default());
                        return Err(Misfit(Anomaly::NotLinearizable, why));
                    }
                    before.span.take(span);
                    before.layers.push((value, span));
                }
                None => {
                    self.next_block += 1;
                    self.blocks.insert(block, Block { span, layers: vec![(value, span)] });
                }
            }
            id = Some(block);
        }
        Ok(id.expect("the chain had at least one value, or ended at a block"))
    }

    fn missing(&self, content: Content) -> Misfit {
        match content {
            Some(value) if self.failed.contains(&value) => {
                Misfit(Anomaly::AbortedVisible, format!("the writer of {value} had failed"))
            }
            _ => Misfit(
                Anomaly::Garbage,
                format!("{content:?} was never written, or replaced before the call"),
            ),
        }
    }

    /// Does a block that changed still have a place among the others?
    fn fits(&self, id: u64) -> Result<(), Misfit> {
        let block = &self.blocks[&id];
        let mut latest: Option<(Content, Time)> = None;
        for (value, span) in &block.layers {
            if let Some((earlier, start)) = latest
                && span.min_finish < start
            {
                let why = format!(
                    "{value:?}, which replaced {earlier:?}, was answered before a call that still met {earlier:?}"
                );
                return Err(Misfit(Anomaly::NotLinearizable, why));
            }
            if latest.is_none_or(|(_, start)| start < span.max_start) {
                latest = Some((*value, span.max_start));
            }
        }
        for (other, b) in &self.blocks {
            if *other != id && b.span.before(&block.span) && block.span.before(&b.span) {
                let (x, y) = (block.layers.last().map(|l| l.0), b.layers.last().map(|l| l.0));
                let why = format!("of {:?} and {:?} each must come first", x.flatten(), y.flatten());
                return Err(Misfit(Anomaly::NotLinearizable, why));
            }
        }
        Ok(())
    }

    /// Forgets the values that no operation that is still to end can read.
    fn forget(&mut self, now: Time, unknown_max: usize) {
        let horizon = self.starts.first().map_or(now, |(start, _)| *start);
        // The blocks with an answer before the horizon; all but the last of them must come before one of the others.
        let answered: Vec<(u64, Span)> = self
            .blocks
            .iter()
            .filter(|(_, b)| b.span.min_finish < horizon)
            .map(|(id, b)| (*id, b.span))
            .collect();
        for (id, span) in &answered {
            if answered.iter().any(|(other, o)| other != id && span.before(o)) {
                let block = self.blocks.remove(id).expect("it was just listed");
                for (value, _) in &block.layers {
                    self.values.remove(value);
                }
            }
        }
        for block in self.blocks.values_mut() {
            let replaced = block.layers.iter().rposition(|(_, span)| span.min_finish < horizon).unwrap_or(0);
            for (value, _) in block.layers.drain(..replaced) {
                self.values.remove(&value);
            }
        }
        while self.unknown.len() > unknown_max
            && let Some(value) = self.unknown.pop_front()
        {
            if self.values.get(&Some(value)).is_some_and(|w| w.block.is_none()) {
                self.values.remove(&Some(value));
                self.forgot = true;
            }
        }
    }
}
