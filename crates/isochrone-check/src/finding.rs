//! What checkers report: anomalies, the levels that exclude them, findings.

use std::fmt;

/// An isolation level: what must not be seen. Each level excludes everything that the ones before it exclude.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// PL-2 (Adya 1999): no dirty writes, no dirty reads.
    ReadCommitted,
    /// One snapshot for all reads, first committer wins; sessions see their past.
    SnapshotIsolation,
    /// Equal to some serial order, which agrees with the order of every session.
    Serializable,
    /// Equal to some serial order, which agrees with the order of acknowledgements in real time.
    StrictSerializable,
}

/// Which order, beside the data, a cycle needs to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// None: reads and writes alone make the cycle.
    Data,
    /// The order of transactions in a session (a process).
    Process,
    /// The order in real time: one was acknowledged before the other began.
    Realtime,
}

/// The names of the anomalies: of Adya's thesis and of Elle (Kingsbury and Alvaro, VLDB 2020) where they have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Anomaly {
    /// A cycle of writes that follow each other (dirty write).
    G0(Via),
    /// A value written by an aborted transaction was read.
    G1a,
    /// A value that its transaction overwrote before it committed was read.
    G1b,
    /// A cycle of writes that follow each other and reads of what was written (circular information flow).
    G1c(Via),
    /// Two transactions read the same version of a key and both replaced it (P4).
    LostUpdate,
    /// A cycle with exactly one anti-dependency: read skew.
    GSingle(Via),
    /// A cycle with several anti-dependencies, no two of them next to each other: long fork and its relatives.
    GNonadjacent(Via),
    /// A cycle with anti-dependencies next to each other: write skew on items.
    G2Item(Via),
    /// A transaction did not see its own writes, or a key changed under it.
    Internal,
    /// A list holds the same value twice.
    Duplicate,
    /// Two reads of one key contradict each other about the order of its writes.
    IncompatibleOrder,
    /// A value was read that nobody wrote.
    Garbage,
    /// An acknowledged write is missing from a final state.
    Lost,
    /// A register's operations have no order that fits their answers and times.
    NotLinearizable,
    /// A write that was reported as failed is visible.
    AbortedVisible,
    /// The workload broke a promise it gave to the checker.
    Malformed,
}

impl Anomaly {
    /// The name, as the literature writes it.
    pub fn name(self) -> &'static str {
        use Anomaly::*;
        use Via::*;
        match self {
            G0(Data) => "G0",
            G0(Process) => "G0-process",
            G0(Realtime) => "G0-realtime",
            G1a => "G1a",
            G1b => "G1b",
            G1c(Data) => "G1c",
            G1c(Process) => "G1c-process",
            G1c(Realtime) => "G1c-realtime",
            LostUpdate => "lost-update",
            GSingle(Data) => "G-single",
            GSingle(Process) => "G-single-process",
            GSingle(Realtime) => "G-single-realtime",
            GNonadjacent(Data) => "G-nonadjacent",
            GNonadjacent(Process) => "G-nonadjacent-process",
            GNonadjacent(Realtime) => "G-nonadjacent-realtime",
            G2Item(Data) => "G2-item",
            G2Item(Process) => "G2-item-process",
            G2Item(Realtime) => "G2-item-realtime",
            Internal => "internal",
            Duplicate => "duplicate-elements",
            IncompatibleOrder => "incompatible-order",
            Garbage => "garbage-read",
            Lost => "lost-write",
            NotLinearizable => "not-linearizable",
            AbortedVisible => "aborted-visible",
            Malformed => "malformed-history",
        }
    }

    /// The id of the invariant that it breaks (this crate's opening comment, and the commit protocol's section 9).
    pub fn invariant(self) -> &'static str {
        use Anomaly::*;
        match self {
            G0(Via::Process) | G1c(Via::Process) | GSingle(Via::Process) => "CH4",
            GNonadjacent(Via::Process) | G2Item(Via::Process) => "CH4",
            G0(Via::Realtime) | G1c(Via::Realtime) | GSingle(Via::Realtime) => "CH5",
            GNonadjacent(Via::Realtime) | G2Item(Via::Realtime) => "CH5",
            G0(_) | G1c(_) | LostUpdate | GSingle(_) | GNonadjacent(_) | G2Item(_) => "T6",
            G1a | AbortedVisible => "T3",
            G1b => "T1",
            Internal => "CH1",
            Duplicate => "T8",
            IncompatibleOrder => "CH3",
            Garbage => "CH2",
            Lost => "T2",
            NotLinearizable => "CH6",
            Malformed => "CH7",
        }
    }
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Level {
    /// Must a database of this level exclude this?
    ///
    /// | level | excludes, beside what the levels before it exclude |
    /// |---|---|
    /// | read committed | G0, G1a, G1b, G1c, own writes unseen, duplicates, contradicting orders, garbage, loss |
    /// | snapshot isolation | lost update, G-single, G-nonadjacent, a key that changes under a transaction, `-process` of G0, G1c and these |
    /// | serializable | G2-item and its `-process` |
    /// | strict serializable | everything `-realtime` |
    pub fn forbids(self, anomaly: Anomaly) -> bool {
        use Anomaly::*;
        let (least, via) = match anomaly {
            G0(via) | G1c(via) => (Level::ReadCommitted, via),
            GSingle(via) | GNonadjacent(via) => (Level::SnapshotIsolation, via),
            G2Item(via) => (Level::Serializable, via),
            LostUpdate => (Level::SnapshotIsolation, Via::Data),
            _ => (Level::ReadCommitted, Via::Data),
        };
        let order = match via {
            Via::Data => Level::ReadCommitted,
            Via::Process => Level::SnapshotIsolation,
            Via::Realtime => Level::StrictSerializable,
        };
        self >= least.max(order)
    }
}

/// One broken invariant, with what shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What happened.
    pub anomaly: Anomaly,
    /// The transactions or operations that show it, in the order of the cycle if it is one.
    pub txns: Vec<u64>,
    /// A few lines for a person: the edges and their reasons, then what each transaction did.
    pub detail: String,
}

impl Finding {
    /// The id of the broken invariant.
    pub fn invariant(&self) -> &'static str {
        self.anomaly.invariant()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.invariant(), self.anomaly, self.detail)
    }
}

/// How many findings a checker holds until they are taken; more are counted and dropped, for the first ones say it all.
pub const FINDINGS_MAX: usize = 64;

/// The findings not taken yet, at most [`FINDINGS_MAX`], and how many there were in all.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    held: Vec<Finding>,
    total: u64,
}

impl Findings {
    /// Notes one; the closure that words it runs only when there is room.
    pub(crate) fn add(&mut self, anomaly: Anomaly, txns: &[u64], detail: impl FnOnce() -> String) {
        self.total += 1;
        if self.held.len() < FINDINGS_MAX {
            self.held.push(Finding { anomaly, txns: txns.to_vec(), detail: detail() });
        }
    }

    /// Those not taken yet, in the order in which they were found.
    pub fn held(&self) -> &[Finding] {
        &self.held
    }

    /// Takes them out.
    pub fn take(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.held)
    }

    /// All ever found, taken, held or dropped.
    pub fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_build_on_each_other() {
        use Level::*;
        let levels = [ReadCommitted, SnapshotIsolation, Serializable, StrictSerializable];
        let least = |a: Anomaly| levels.into_iter().find(|l| l.forbids(a)).unwrap();
        for (anomaly, level) in [
            (Anomaly::G0(Via::Data), ReadCommitted),
            (Anomaly::G1a, ReadCommitted),
            (Anomaly::G1c(Via::Data), ReadCommitted),
            (Anomaly::G1c(Via::Process), SnapshotIsolation),
            (Anomaly::LostUpdate, SnapshotIsolation),
            (Anomaly::GSingle(Via::Data), SnapshotIsolation),
            (Anomaly::GNonadjacent(Via::Process), SnapshotIsolation),
            (Anomaly::G2Item(Via::Process), Serializable),
            (Anomaly::G0(Via::Realtime), StrictSerializable),
            (Anomaly::G2Item(Via::Realtime), StrictSerializable),
        ] {
            assert_eq!(least(anomaly), level, "{anomaly}");
            assert!(levels.into_iter().filter(|l| *l >= level).all(|l| l.forbids(anomaly)), "{anomaly}");
        }
    }
}
