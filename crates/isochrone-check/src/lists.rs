//! The book that a workload of lists keeps: which list takes the next append, what was sent, and what the clients heard. It
//! joins [`crate::append`], which judges the transactions, and [`crate::acked`], which says whether what was acknowledged
//! is there at the end.
//!
//! A list lives in one row, as text: `,1,7,3`. There are as many lists at a time as the book has places. A list takes a
//! bounded number of appends, then the next one takes its place: rows stay small and the checker's memory bounded.
//!
//! A value says who sent it: its client's number times [`PER_CLIENT`], and a number of the client's own.

use crate::acked::Acked;
use crate::append::{AppendChecker, Op, Options, Stats, TxnNo};
use crate::{Finding, Level, Outcome, Time};

/// Keys of the lists that follow each other in one place.
pub const PER_PLACE: u64 = 1_000_000;
/// Values of one client.
pub const PER_CLIENT: u64 = 100_000_000;

/// How a book is kept.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// What the database promises.
    pub level: Level,
    /// Lists at a time.
    pub places: u64,
    /// Appends to a list before it is retired.
    pub appends_max: u32,
    /// Intervals of acknowledged values that are remembered, per client.
    pub runs_max: usize,
    /// Transactions between two searches ([`Options::check_every`]); `None`: as the checker has it.
    pub check_every: Option<usize>,
}

/// The number of the list in a place, and how many appends were sent to it.
#[derive(Clone, Copy, Default)]
struct Place {
    number: u64,
    sent: u32,
}

/// See the module.
pub struct Lists {
    checker: AppendChecker,
    acked: Acked,
    places: Vec<Place>,
    appends_max: u32,
}

impl Lists {
    /// An empty book.
    pub fn new(rules: Rules) -> Lists {
        let mut options = Options::new(rules.level);
        options.key_appends_max = 2 * rules.appends_max;
        if let Some(every) = rules.check_every {
            options.check_every = every;
        }
        Lists {
            checker: AppendChecker::new(options),
            acked: Acked::new(rules.runs_max),
            places: vec![Place::default(); rules.places as usize],
            appends_max: rules.appends_max,
        }
    }

    /// The key of the list that is in this place now.
    pub fn list(&self, place: u64) -> u64 {
        place * PER_PLACE + self.places[place as usize].number
    }

    /// The key and the value of an append that `client` is about to send to this place.
    pub fn append_to(&mut self, place: u64, client: u64) -> (u64, u64) {
        let key = self.list(place);
        let at = &mut self.places[place as usize];
        at.sent += 1;
        if at.sent == self.appends_max {
            *at = Place { number: at.number + 1, sent: 0 };
            self.checker.retire(key);
        }
        (key, client * PER_CLIENT + self.acked.send(client))
    }

    /// A transaction of `client` begins.
    pub fn begin(&mut self, client: u64, at: Time) -> TxnNo {
        self.checker.begin(client, at)
    }

    /// How it ended, with what it read and sent.
    pub fn finish(&mut self, txn: TxnNo, outcome: Outcome, ops: Vec<Op>, at: Time) {
        for op in &ops {
            if let Op::Append { value, .. } = op {
                self.acked.outcome(value / PER_CLIENT, value % PER_CLIENT, outcome);
            }
        }
        self.checker.finish(txn, outcome, ops, at);
    }

    /// Every list that the database holds when everything has come to rest: what was acknowledged is there, and what was
    /// reported as aborted is not.
    pub fn end(&mut self, rows: impl IntoIterator<Item = (u64, Vec<u64>)>, at: Time) {
        let mut present = Vec::new();
        for (key, values) in rows {
            present.extend(values.iter().map(|v| (v / PER_CLIENT, v % PER_CLIENT)));
            let place = self.places.get((key / PER_PLACE) as usize);
            if place.is_some_and(|p| p.number == key % PER_PLACE) {
                self.checker.final_read(key, values, at);
            }
        }
        present.sort_unstable();
        self.acked.verify(present);
        self.checker.end();
    }

    /// Searches the whole history once more.
    pub fn check(&mut self) {
        self.checker.check();
    }

    /// What was found since this was asked last.
    pub fn take_findings(&mut self) -> Vec<Finding> {
        let mut found = self.checker.findings().take();
        found.extend(self.acked.findings().take());
        found
    }

    /// What the checker has seen.
    pub fn stats(&self) -> Stats {
        self.checker.stats()
    }
}

/// The values of a row's list; `None` if the text is not one.
pub fn parse(text: &str) -> Option<Vec<u64>> {
    text.split(',').skip(1).map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Anomaly;

    fn book() -> Lists {
        let level = Level::Serializable;
        Lists::new(Rules { level, places: 2, appends_max: 2, runs_max: 100, check_every: None })
    }

    fn append(book: &mut Lists, client: u64, outcome: Outcome) -> (u64, u64) {
        let txn = book.begin(client, 1);
        let (key, value) = book.append_to(1, client);
        book.finish(txn, outcome, vec![Op::Append { key, value }], 2);
        (key, value)
    }

    #[test]
    fn lists_follow_each_other() {
        let mut book = book();
        let keys: Vec<u64> = (0..5).map(|_| append(&mut book, 7, Outcome::Committed).0).collect();
        let first = PER_PLACE;
        assert_eq!(keys, [first, first, first + 1, first + 1, first + 2]);
        assert_eq!((book.list(0), book.list(1)), (0, first + 2));
    }

    #[test]
    fn the_end_knows_what_must_be_there() {
        for (outcome, there, wrong) in [
            (Outcome::Committed, true, None),
            (Outcome::Committed, false, Some(Anomaly::Lost)),
            (Outcome::Unknown, true, None),
            (Outcome::Unknown, false, None),
            (Outcome::Aborted, false, None),
            (Outcome::Aborted, true, Some(Anomaly::AbortedVisible)),
        ] {
            let mut book = book();
            let (key, value) = append(&mut book, 3, outcome);
            book.end(there.then(|| (key, vec![value])), 9);
            let found: Vec<Anomaly> = book.take_findings().iter().map(|f| f.anomaly).collect();
            match wrong {
                None => assert_eq!(found, [], "{outcome:?} {there}"),
                Some(anomaly) => assert!(found.contains(&anomaly), "{outcome:?} {there}: {found:?}"),
            }
        }
    }

    #[test]
    fn lists_as_text() {
        assert_eq!(parse(""), Some(vec![]));
        assert_eq!(parse(",1,20"), Some(vec![1, 20]));
        assert_eq!(parse(",1,x"), None);
    }
}
