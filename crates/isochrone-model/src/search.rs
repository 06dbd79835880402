//! Breadth-first search over all states, with the shortest trace to a state that breaks an invariant.
//!
//! A state that was seen is remembered as 64 bits of hash and the number of the state it was first reached from: 20 bytes
//! each, beside the two layers of whole states. Two states with one hash would hide one of them: with n states the chance
//! is about n^2 / 2^65, one in three hundred thousand at ten million.

use std::hash::{Hash, Hasher};

use crate::invariants::{Invariant, Set};
use crate::model::{Model, Step};
use crate::state::State;

/// What a search came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// Distinct states that were reached.
    pub states: usize,
    /// Steps that were taken.
    pub steps: u64,
    /// Steps from the initial state to the last layer that was looked at.
    pub depth: usize,
    /// All states within the bounds of the configuration were reached; otherwise the search was cut.
    pub complete: bool,
    /// The first invariant that was found broken, and the shortest trace to it.
    pub broken: Option<(Invariant, Vec<(Step, State)>)>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "State({:016x})", fingerprint(self))
    }
}

/// Searches until an invariant of `watched` is broken, everything was seen, or `states_max` states were.
/// `progress` is called once a layer, with what is known so far and how many states are to be expanded next.
pub fn search(
    model: &Model,
    watched: Set,
    states_max: usize,
    progress: &mut dyn FnMut(&Report, usize),
) -> Report {
    let mut report = Report { states: 1, steps: 0, depth: 0, complete: true, broken: None };
    let initial = model.initial();
    let mut seen = Seen::new();
    seen.insert(fingerprint(&initial), 0);
    let mut layer: Vec<(u32, State)> = vec![(0, initial)];
    let mut next = Vec::new();
    let mut successors = Vec::new();
    while !layer.is_empty() {
        for (no, state) in &layer {
            model.successors(state, &mut successors);
            report.steps += successors.len() as u64;
            for (_, after) in &successors {
                let Some(new) = seen.insert(fingerprint(after), *no) else { continue };
                if let Some(t) = model.broken(after, watched) {
                    report.states = seen.hashes.len();
                    report.depth += 1;
                    report.complete = false;
                    report.broken = Some((t, trace(model, &seen, new)));
                    return report;
                }
                if seen.hashes.len() >= states_max {
                    report.states = seen.hashes.len();
                    report.complete = false;
                    return report;
                }
                next.push((new, *after));
            }
        }
        std::mem::swap(&mut layer, &mut next);
        next.clear();
        report.states = seen.hashes.len();
        if !layer.is_empty() {
            report.depth += 1;
        }
        progress(&report, layer.len());
    }
    report
}

/// Follows the parents back to the beginning, and takes the same steps again.
fn trace(model: &Model, seen: &Seen, last: u32) -> Vec<(Step, State)> {
    let mut path = Vec::new();
    let mut at = last;
    while at != 0 {
        path.push(seen.hashes[at as usize]);
        at = seen.parents[at as usize];
    }
    path.reverse();
    let mut trace: Vec<(Step, State)> = Vec::with_capacity(path.len());
    let mut state = model.initial();
    let mut successors = Vec::new();
    for hash in path {
        model.successors(&state, &mut successors);
        let step = successors.iter().find(|(_, s)| fingerprint(s) == hash);
        let step = *step.expect("the search has taken this step");
        trace.push(step);
        state = step.1;
    }
    trace
}

/// The hashes of all states by number, whence each was reached first, and a table over them (open addressing).
struct Seen {
    hashes: Vec<u64>,
    parents: Vec<u32>,
    /// Number of a state + 1; 0: free.
    table: Vec<u32>,
}

impl Seen {
    fn new() -> Seen {
        Seen { hashes: Vec::new(), parents: Vec::new(), table: vec![0; 1 << 12] }
    }

    /// The number of the state, if it is new.
    fn insert(&mut self, hash: u64, parent: u32) -> Option<u32> {
        let no = u32::try_from(self.hashes.len()).expect("fewer than 2^32 states fit the memory");
        let place = self.place(hash).ok()?;
        self.table[place] = no + 1;
        self.hashes.push(hash);
        self.parents.push(parent);
        if self.hashes.len() * 3 > self.table.len() * 2 {
            self.table = vec![0; self.table.len() * 2];
            for no in 0..self.hashes.len() {
                let place = self.place(self.hashes[no]).expect("every hash is there once");
                self.table[place] = no as u32 + 1;
            }
        }
        Some(no)
    }

    /// A free place for it, or the place where it is.
    fn place(&self, hash: u64) -> Result<usize, usize> {
        let mask = self.table.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            match self.table[at] {
                0 => return Ok(at),
                no if self.hashes[no as usize - 1] == hash => return Err(at),
                _ => at = (at + 1) & mask,
            }
        }
    }
}

/// 64 bits of a state.
pub fn fingerprint(state: &State) -> u64 {
    let mut h = Folded { a: 0x243f_6a88_85a3_08d3, b: 0x1319_8a2e_0370_7344, word: 0, bytes: 0 };
    state.hash(&mut h);
    h.finish()
}

/// Two lanes of multiply-and-fold over the bytes of a state (in the manner of wyhash). Seeded with constants: the same
/// state has the same hash in every run.
struct Folded {
    a: u64,
    b: u64,
    word: u64,
    bytes: u32,
}

fn fold(x: u64, y: u64) -> u64 {
    let wide = u128::from(x) * u128::from(y);
    (wide as u64) ^ ((wide >> 64) as u64)
}

impl Folded {
    fn mix(&mut self) {
        self.a = fold(self.a ^ self.word, 0x9e37_79b9_7f4a_7c15) ^ self.word.rotate_left(32);
        self.b = fold(self.b.wrapping_add(self.word), 0xd6e8_feb8_6659_fd93);
        (self.word, self.bytes) = (0, 0);
    }
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u8(*b));
    }

    fn write_u8(&mut self, byte: u8) {
        self.word |= u64::from(byte) << (8 * self.bytes);
        self.bytes += 1;
        if self.bytes == 8 {
            self.mix();
        }
    }

    /// Lengths of arrays, and discriminants: the former never differ, the latter are small.
    fn write_usize(&mut self, n: usize) {
        self.write_u8(n as u8);
    }

    fn write_isize(&mut self, n: isize) {
        self.write_u8(n as u8);
    }

    fn finish(&self) -> u64 {
        fold(self.a ^ self.word, self.b.rotate_left(29) ^ 0xa076_1d64_78bd_642f)
            ^ fold(self.b ^ self.word, 0xe703_7ed1_a0b4_28db)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::READER;

    #[test]
    fn every_byte_counts() {
        let base = State::default();
        let mut hashes = std::collections::BTreeSet::from([fingerprint(&base)]);
        for ts in 1..=63 {
            for k in 0..4 {
                let mut s = base;
                s.keys[k].cache = ts;
                assert!(hashes.insert(fingerprint(&s)));
                s.keys[k].served[READER] = ts;
                assert!(hashes.insert(fingerprint(&s)));
            }
            let mut s = base;
            s.shards[2].floor = ts;
            assert!(hashes.insert(fingerprint(&s)));
        }
    }

    #[test]
    fn the_table_grows() {
        let mut seen = Seen::new();
        let hash = |n: u64| fold(n + 1, 0x9e37_79b9_7f4a_7c15);
        for n in 0..20_000 {
            assert_eq!(seen.insert(hash(n), 0), Some(n as u32));
        }
        assert!((0..20_000).all(|n| seen.insert(hash(n), 0).is_none()));
    }
}
