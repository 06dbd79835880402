//! Accounts, transfers between them, and a ledger with a row per transfer.
//!
//! What must hold at every snapshot: the total of all balances is what it was, no balance is below zero, and each balance
//! is its opening balance plus what the ledger's rows move. The ledger holds each transfer at most once, as it was sent, and none
//! that was reported as aborted. Those that were acknowledged before a snapshot began are in it, where the database promises
//! that much (always at the end).
//!
//! Memory: one entry per transfer that is in flight, unknown or in the ledger, and [`ABORTED_MAX`] aborted ones. A row that is
//! in no entry is a finding in any case; the entry of an aborted transfer only gives it its right name. A long run keeps its
//! ledger short: it deletes rows that an audit has seen, together with the snapshot's proof that they were there, and says so
//! with [`Bank::fold`].

use std::collections::{BTreeMap, VecDeque};

use crate::{Anomaly, Findings, Outcome};

/// Aborted transfers remembered by name.
pub const ABORTED_MAX: usize = 1 << 16;

/// A row of the ledger: a transfer as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The attempt; a retry has another number.
    pub id: u64,
    /// Where the money leaves.
    pub from: u64,
    /// Where it goes.
    pub to: u64,
    /// How much.
    pub amount: i64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The n-th to be acknowledged.
    Acknowledged(u64),
    Aborted,
}

/// A point in the order of acknowledgements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

/// The checker.
pub struct Bank {
    /// Opening balances, and what folded rows have moved since.
    base: BTreeMap<u64, i64>,
    overdraft: bool,
    transfers: BTreeMap<u64, (Transfer, State)>,
    aborted: VecDeque<u64>,
    acknowledged: u64,
    findings: Findings,
}

impl Bank {
    /// A bank with its opening balances. `overdraft`: balances may be below zero.
    pub fn new(opening: impl IntoIterator<Item = (u64, i64)>, overdraft: bool) -> Bank {
        Bank {
            base: opening.into_iter().collect(),
            overdraft,
            transfers: BTreeMap::new(),
            aborted: VecDeque::new(),
            acknowledged: 0,
            findings: Findings::default(),
        }
    }

    /// A transfer is sent. Call it before its row can exist.
    pub fn sent(&mut self, transfer: Transfer) {
        if self.transfers.insert(transfer.id, (transfer, State::Open)).is_some() {
            self.findings.add(Anomaly::Malformed, &[transfer.id], || {
                format!("transfer {} is sent for the second time", transfer.id)
            });
        }
    }

    /// A transfer ended. Unknown ones may be in the ledger or not, and may still come.
    pub fn outcome(&mut self, id: u64, outcome: Outcome) {
        let Some((_, state)) = self.transfers.get_mut(&id) else { return };
        match outcome {
            Outcome::Unknown => {}
            Outcome::Committed => {
                *state = State::Acknowledged(self.acknowledged);
                self.acknowledged += 1;
            }
            Outcome::Aborted => {
                *state = State::Aborted;
                self.aborted.push_back(id);
                if self.aborted.len() > ABORTED_MAX
                    && let Some(oldest) = self.aborted.pop_front()
                {
                    self.transfers.remove(&oldest);
                }
            }
        }
    }

    /// The transfers acknowledged until now: take it before an audit begins, and the audit must show them.
    pub fn mark(&self) -> Mark {
        Mark(self.acknowledged)
    }

    /// All balances at one snapshot.
    pub fn snapshot(&mut self, balances: &BTreeMap<u64, i64>) {
        let total = |b: &BTreeMap<u64, i64>| b.values().map(|v| i128::from(*v)).sum::<i128>();
        let (is, was) = (total(balances), total(&self.base));
        if is != was {
            self.findings.add(Anomaly::TotalChanged, &[], || format!("the total is {is}, and was {was}"));
        } else if !balances.keys().eq(self.base.keys()) {
            let (is, was) = (balances.len(), self.base.len());
            self.findings.add(Anomaly::TotalChanged, &[], || {
                format!("other accounts than at first: {is}, once {was}")
            });
        }
        if !self.overdraft {
            for (account, balance) in balances.iter().filter(|(_, b)| **b < 0) {
                self.findings.add(Anomaly::Overdrawn, &[], || format!("account {account} holds {balance}"));
            }
        }
    }

    /// All balances and the whole ledger at one snapshot. `since`: what was acknowledged up to this mark is in it.
    pub fn audit(&mut self, balances: &BTreeMap<u64, i64>, ledger: &[Transfer], since: Option<Mark>) {
        self.snapshot(balances);
        let mut rows: BTreeMap<u64, u32> = BTreeMap::new();
        let mut expected = self.base.clone();
        for row in ledger {
            let id = row.id;
            let count = rows.entry(id).or_default();
            *count += 1;
            if *count == 2 {
                self.findings
                    .add(Anomaly::Duplicate, &[id], || format!("transfer {id} is in the ledger twice"));
            }
            apply(&mut expected, row);
            let (anomaly, what) = match self.transfers.get(&id) {
                None => (Anomaly::Garbage, "was not sent, or is long aborted or folded"),
                Some((sent, _)) if sent != row => (Anomaly::Garbage, "was sent otherwise"),
                Some((_, State::Aborted)) => (Anomaly::AbortedVisible, "was reported as aborted"),
                Some(_) => continue,
            };
            self.findings.add(anomaly, &[id], || format!("the ledger holds {row:?}, which {what}"));
        }
        for (account, is) in balances {
            let adds_up = expected.get(account).copied().unwrap_or_default();
            if *is != adds_up {
                self.findings.add(Anomaly::BalanceMismatch, &[], || {
                    format!("account {account} holds {is}, and by the ledger {adds_up}")
                });
            }
        }
        let Some(Mark(mark)) = since else { return };
        for (id, (transfer, state)) in &self.transfers {
            if matches!(state, State::Acknowledged(n) if *n < mark) && !rows.contains_key(id) {
                self.findings.add(Anomaly::Lost, &[*id], || {
                    format!("{transfer:?} was acknowledged and is not in the ledger")
                });
            }
        }
    }

    /// The workload has deleted these rows of the ledger, which an audit had found in order, and that has committed. Rows
    /// that are not known are left alone.
    pub fn fold(&mut self, ids: impl IntoIterator<Item = u64>) {
        for id in ids {
            if let Some((transfer, _)) = self.transfers.remove(&id) {
                apply(&mut self.base, &transfer);
            }
        }
    }

    /// Transfers held: the memory it costs.
    pub fn held(&self) -> usize {
        self.transfers.len()
    }

    /// What was found and not yet taken.
    pub fn findings(&mut self) -> &mut Findings {
        &mut self.findings
    }
}

/// Moves the money. An account that does not exist gets a balance, which no snapshot shows.
fn apply(balances: &mut BTreeMap<u64, i64>, row: &Transfer) {
    let from = balances.entry(row.from).or_default();
    *from = from.wrapping_sub(row.amount);
    let to = balances.entry(row.to).or_default();
    *to = to.wrapping_add(row.amount);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(id: u64, from: u64, to: u64, amount: i64) -> Transfer {
        Transfer { id, from, to, amount }
    }

    /// Transfers 1 (acknowledged), 2 (aborted), 3 (unknown), 4 (in flight), each of 10 from account 1 to account 2.
    fn bank() -> Bank {
        let mut bank = Bank::new([(1, 100), (2, 0)], false);
        for id in 1..=4 {
            bank.sent(transfer(id, 1, 2, 10));
        }
        bank.outcome(1, Outcome::Committed);
        bank.outcome(2, Outcome::Aborted);
        bank.outcome(3, Outcome::Unknown);
        bank
    }

    fn found(bank: &mut Bank) -> Vec<Anomaly> {
        bank.findings().take().into_iter().map(|f| f.anomaly).collect()
    }

    fn balances(one: i64, two: i64) -> BTreeMap<u64, i64> {
        BTreeMap::from([(1, one), (2, two)])
    }

    #[test]
    fn whatever_may_be_is_no_finding() {
        let mut bank = bank();
        let mark = bank.mark();
        for more in [vec![], vec![3], vec![4], vec![3, 4]] {
            let rows: Vec<Transfer> = [1].iter().chain(&more).map(|id| transfer(*id, 1, 2, 10)).collect();
            let moved = 10 * rows.len() as i64;
            bank.audit(&balances(100 - moved, moved), &rows, Some(mark));
            assert_eq!(found(&mut bank), []);
        }
        // A stale snapshot, where that is allowed.
        bank.audit(&balances(100, 0), &[], None);
        assert_eq!(found(&mut bank), []);
    }

    #[test]
    fn each_wrong_is_found() {
        let mut bank = bank();
        let mark = bank.mark();
        bank.snapshot(&balances(100, 1));
        assert_eq!(found(&mut bank), [Anomaly::TotalChanged]);
        bank.snapshot(&BTreeMap::from([(1, 100)]));
        assert_eq!(found(&mut bank), [Anomaly::TotalChanged]);
        bank.snapshot(&balances(-5, 105));
        assert_eq!(found(&mut bank), [Anomaly::Overdrawn]);
        bank.audit(&balances(100, 0), &[], Some(mark));
        assert_eq!(found(&mut bank), [Anomaly::Lost]);
        let row = transfer(1, 1, 2, 10);
        bank.audit(&balances(80, 20), &[row, row], Some(mark));
        assert_eq!(found(&mut bank), [Anomaly::Duplicate]);
        bank.audit(&balances(80, 20), &[row, transfer(2, 1, 2, 10)], Some(mark));
        assert_eq!(found(&mut bank), [Anomaly::AbortedVisible]);
        bank.audit(&balances(80, 20), &[row, transfer(9, 1, 2, 10)], Some(mark));
        assert_eq!(found(&mut bank), [Anomaly::Garbage]);
        bank.audit(&balances(89, 11), &[transfer(1, 1, 2, 11)], Some(mark));
        assert_eq!(found(&mut bank), [Anomaly::Garbage]);
        bank.audit(&balances(85, 15), &[row], Some(mark));
        assert_eq!(found(&mut bank), [Anomaly::BalanceMismatch, Anomaly::BalanceMismatch]);
    }

    #[test]
    fn folded_rows_stay_counted_and_must_not_come_back() {
        let mut bank = bank();
        bank.fold([1]);
        assert_eq!(bank.held(), 3);
        let mark = bank.mark();
        bank.audit(&balances(90, 10), &[], Some(mark));
        assert_eq!(found(&mut bank), []);
        bank.audit(&balances(80, 20), &[transfer(1, 1, 2, 10)], Some(mark));
        assert_eq!(found(&mut bank), [Anomaly::Garbage]);
    }

    #[test]
    fn aborted_transfers_are_bounded() {
        let mut bank = Bank::new([(1, 100), (2, 0)], false);
        for id in 0..2 * ABORTED_MAX as u64 {
            bank.sent(transfer(id, 1, 2, 1));
            bank.outcome(id, Outcome::Aborted);
        }
        assert_eq!(bank.held(), ABORTED_MAX);
        bank.audit(&balances(99, 1), &[transfer(5, 1, 2, 1)], None);
        assert_eq!(found(&mut bank), [Anomaly::Garbage]);
    }
}
