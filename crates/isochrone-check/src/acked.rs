//! A set of elements: whatever was acknowledged is there at the end, exactly once, and nothing that was reported as aborted.
//!
//! Elements are numbered by client and, within a client, from 0 in the order in which they are sent. So a long stretch of
//! acknowledged elements is one interval, and the memory is two numbers per stretch, whatever its length: it grows with what
//! went wrong, not with the run. Elements that were neither acknowledged nor left unknown nor are in flight were aborted,
//! which needs no memory. Past `runs_max` intervals a client's elements up to its latest one are given up, and counted in
//! [`Acked::given_up`]: they may be there or not.
//!
//! The elements that are there are read in order (`ORDER BY client, number`), in a stream: [`Acked::verify`] holds nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::intervals::Intervals;
use crate::{Anomaly, Findings, Outcome};

#[derive(Default)]
struct Client {
    next: u64,
    acknowledged: Intervals,
    unknown: Intervals,
    /// Nothing is claimed of elements below.
    floor: u64,
}

/// The checker.
pub struct Acked {
    clients: BTreeMap<u64, Client>,
    in_flight: BTreeSet<(u64, u64)>,
    runs_max: usize,
    given_up: u64,
    findings: Findings,
}

impl Acked {
    /// An empty checker. `runs_max`: intervals per client; each costs about 50 bytes.
    pub fn new(runs_max: usize) -> Acked {
        Acked {
            clients: BTreeMap::new(),
            in_flight: BTreeSet::new(),
            runs_max,
            given_up: 0,
            findings: Findings::default(),
        }
    }

    /// A client sends its next element, the number of which is returned.
    pub fn send(&mut self, client: u64) -> u64 {
        let c = self.clients.entry(client).or_default();
        let number = c.next;
        c.next += 1;
        self.in_flight.insert((client, number));
        number
    }

    /// What became of it. Ignored when it is not in flight.
    pub fn outcome(&mut self, client: u64, number: u64, outcome: Outcome) {
        if !self.in_flight.remove(&(client, number)) {
            return;
        }
        let Some(c) = self.clients.get_mut(&client) else { return };
        let _new = match outcome {
            Outcome::Committed => c.acknowledged.insert(number),
            Outcome::Unknown => c.unknown.insert(number),
            Outcome::Aborted => return,
        };
        if c.acknowledged.runs() + c.unknown.runs() > self.runs_max {
            self.given_up += c.next - c.floor;
            *c = Client { next: c.next, floor: c.next, ..Client::default() };
        }
    }

    /// All elements that are there, in the order of client and number.
    pub fn verify(&mut self, present: impl IntoIterator<Item = (u64, u64)>) {
        // The next element that must be named or missed.
        let mut at = (0, 0);
        let mut last = None;
        for (client, number) in present {
            if last >= Some((client, number)) {
                let twice = last == Some((client, number));
                let anomaly = if twice { Anomaly::Duplicate } else { Anomaly::Malformed };
                let what = if twice { "is there twice" } else { "is read out of order" };
                self.findings.add(anomaly, &[client, number], || {
                    format!("element {number} of client {client} {what}")
                });
                continue;
            }
            last = Some((client, number));
            self.missed(at, (client, number));
            at = (client, number.saturating_add(1));
            let (anomaly, what) = match self.clients.get(&client) {
                Some(c)
                    if number < c.floor || c.acknowledged.contains(number) || c.unknown.contains(number) =>
                {
                    continue;
                }
                Some(_) if self.in_flight.contains(&(client, number)) => continue,
                Some(c) if number < c.next => (Anomaly::AbortedVisible, "was reported as aborted"),
                _ => (Anomaly::Garbage, "was never sent"),
            };
            self.findings
                .add(anomaly, &[client, number], || format!("element {number} of client {client} {what}"));
        }
        self.missed(at, (u64::MAX, u64::MAX));
    }

    /// Elements whose check was given up.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    /// Intervals held: the memory it costs.
    pub fn held(&self) -> usize {
        self.clients.values().map(|c| c.acknowledged.runs() + c.unknown.runs()).sum()
    }

    /// What was found and not yet taken.
    pub fn findings(&mut self) -> &mut Findings {
        &mut self.findings
    }

    /// Reports the acknowledged elements from `from` until before `until`, a stretch at a time.
    fn missed(&mut self, from: (u64, u64), until: (u64, u64)) {
        for (&client, c) in self.clients.range(from.0..=until.0) {
            let mut at = if client == from.0 { from.1 } else { 0 };
            let end = if client == until.0 { until.1 } else { u64::MAX };
            while let Some(first) = c.acknowledged.next(at).filter(|n| *n < end) {
                let last = c.acknowledged.last_from(first).min(end - 1);
                self.findings.add(Anomaly::Lost, &[client, first], || {
                    format!(
                        "elements {first} to {last} of client {client} were acknowledged and are not there"
                    )
                });
                at = last + 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Client 7: elements 0 to 9, of which 3 aborted, 5 is unknown, 9 in flight. Client 8: 0 and 1 acknowledged.
    fn acked() -> Acked {
        let mut acked = Acked::new(100);
        for number in 0..10 {
            assert_eq!(acked.send(7), number);
        }
        for number in 0..9 {
            let outcome = match number {
                3 => Outcome::Aborted,
                5 => Outcome::Unknown,
                _ => Outcome::Committed,
            };
            acked.outcome(7, number, outcome);
        }
        for number in 0..2 {
            acked.send(8);
            acked.outcome(8, number, Outcome::Committed);
        }
        acked
    }

    fn verify(acked: &mut Acked, seven: &[u64], eight: &[u64]) -> Vec<(Anomaly, Vec<u64>)> {
        acked.verify(seven.iter().map(|n| (7, *n)).chain(eight.iter().map(|n| (8, *n))));
        acked.findings().take().into_iter().map(|f| (f.anomaly, f.txns)).collect()
    }

    #[test]
    fn what_was_acknowledged_is_there_and_what_was_aborted_is_not() {
        let mut acked = acked();
        let seven = [0, 1, 2, 4, 6, 7, 8];
        assert_eq!(verify(&mut acked, &seven, &[0, 1]), []);
        assert_eq!(verify(&mut acked, &[0, 1, 2, 4, 5, 6, 7, 8, 9], &[0, 1]), []);
        let lost = |client, number| (Anomaly::Lost, vec![client, number]);
        assert_eq!(verify(&mut acked, &[0, 4, 6, 7, 8], &[0, 1]), [lost(7, 1)]);
        assert_eq!(verify(&mut acked, &seven, &[]), [lost(8, 0)]);
        assert_eq!(verify(&mut acked, &[], &[1]), [lost(7, 0), lost(7, 4), lost(7, 6), lost(8, 0)]);
        assert_eq!(verify(&mut acked, &[], &[0, 1]).len(), 3);
        let visible = (Anomaly::AbortedVisible, vec![7, 3]);
        assert_eq!(verify(&mut acked, &[0, 1, 2, 3, 4, 6, 7, 8], &[0, 1]), [visible]);
        assert_eq!(verify(&mut acked, &seven, &[0, 1, 1]), [(Anomaly::Duplicate, vec![8, 1])]);
        assert_eq!(verify(&mut acked, &seven, &[0, 1, 2]), [(Anomaly::Garbage, vec![8, 2])]);
        assert_eq!(verify(&mut acked, &seven, &[1, 0, 2])[0], lost(8, 0));
    }

    #[test]
    fn memory_follows_the_exceptions() {
        let mut acked = Acked::new(1_000);
        for i in 0..100_000u64 {
            let number = acked.send(1);
            let outcome = if i % 1_000 == 999 { Outcome::Unknown } else { Outcome::Committed };
            acked.outcome(1, number, outcome);
        }
        assert_eq!(acked.held(), 200);
        let mut acked = Acked::new(10);
        for i in 0..100u64 {
            let number = acked.send(1);
            acked.outcome(1, number, if i % 2 == 0 { Outcome::Aborted } else { Outcome::Committed });
        }
        assert!(acked.held() <= 10 && acked.given_up() > 80);
        acked.verify([(1, 0)]);
        assert!(
            acked
                .findings()
                .take()
                .iter()
                .all(|f| f.anomaly == Anomaly::Lost && f.txns[1] >= acked.given_up())
        );
    }
}
