//! The mistakes of section 13 of the commit protocol: each is put into the model, and a search must find what it breaks.

use crate::config::{Config, Txn, W, X, Y, Z};
use crate::invariants::Invariant;

/// A way to get the protocol wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mistake {
    /// A resolved participant keeps no tombstone; the anchor alone remembers.
    NoTombstone,
    /// The same, and the anchor forgets on the last acknowledgement.
    NoTombstoneAnchorForgets,
    /// The anchor forgets on acknowledgements before its floor passed.
    AnchorForgetsOnAcks,
    /// The anchor forgets at the deadline, acknowledgements missing.
    AnchorForgetsAtDeadline,
    /// Application does not check record and floor again.
    NoRecheck,
    /// Reads do not wait for a proposal in flight.
    ReadsIgnoreInFlight,
    /// An old term's proposal is applied by the new leaseholder.
    OldTermApplied,
    /// Tombstones are dropped by deadline while a slow clock still accepts the prepare.
    SlowClockAccepts,
    /// A prepare is dropped when its deadline passes.
    PrepareDropped,
    /// "Gone" is reported as ABORT.
    GoneIsAbort,
    /// "Past deadline" is reported as ABORT.
    PastDeadlineIsAbort,
    /// Recovery reads "anchor has no record" as abort before the floor.
    NoRecordIsAbort,
    /// A refusal without a record is reported as ABORT.
    UnrecordedRefusalIsAbort,
    /// The same of a commit in one step.
    UnrecordedCommit1RefusalIsAbort,
    /// The anchor is not a participant.
    AnchorTakesNoPart,
    /// A recoverer acts on its verdict, not on the anchor's reply.
    VerdictIsOutcome,
    /// A later decision overwrites the first.
    LaterDecisionWins,
    /// `commit` is sent to participants before the anchor decided.
    CommitBeforeDecision,
    /// Absence is read as abort without blocking.
    AbsenceNotBlocked,
    /// A block or probe removes a prepare.
    BlockRemovesPrepare,
    /// A repeated prepare is evaluated again.
    PrepareEvaluatedAgain,
    /// A commit in one step leaves no record.
    Commit1NoRecord,
    /// A commit in one step is pushed while other shards were validated at C.
    Commit1Pushed,
    /// Recovery commits a pushed at-candidate transaction at the maximum.
    RecoveryCommitsPushed,
    /// A pushed at-candidate transaction is committed without validating again.
    PushedNotRevalidated,
    /// V is validated again only where the shard is not written.
    RevalidatesOnlyElsewhere,
    /// A pushed transaction is reported before the anchor's reply.
    PushedReportedEarly,
    /// At-max although locked-only rows must hold.
    LockedOnlyAtMax,
    /// At-max validates only up to C.
    AtMaxValidatesToCandidate,
    /// Shards that are only read are validated after the prepares left.
    ValidatedAfterPrepares,
    /// Validation ignores foreign prepares at or below its timestamp.
    ValidationIgnoresPrepares,
    /// Validation does not raise the cache.
    ValidationNotCached,
    /// Snapshot isolation pushes over a newer version.
    SnapshotPushesOverNewer,
    /// A row that is read and written is not validated: its lock is trusted.
    LockTrusted,
    /// A new leaseholder starts without a low-water mark.
    NoLowWater,
    /// A reader ignores a prepare at or below its timestamp.
    ReaderIgnoresPrepare,
    /// A participant commits at its own p.
    OwnP,
    /// Recovery commits at the first p it sees.
    FirstP,
    /// `resolved` ignores prepares.
    ResolvedIgnoresPrepares,
    /// A prepare is not pushed above closed.
    NotAboveClosed,
    /// A merge takes the lower floor.
    MergeLowerFloor,
    /// A merge takes the lower closed.
    MergeLowerClosed,
    /// A merge takes the left cache only.
    MergeLeftCacheOnly,
    /// Resolve(abort) on `none` leaves no marker.
    ResolveLeavesNoMarker,
}

impl Mistake {
    /// The same mistake in the code that ships: its name in the bug bank (`isochrone_base::bank`), if it is there.
    pub fn bug(self) -> Option<&'static str> {
        use Mistake::*;
        Some(match self {
            NoTombstone => "tombstone-not-kept",
            AnchorForgetsOnAcks => "anchor-forgets-on-acks",
            AnchorForgetsAtDeadline => "anchor-forgets-at-deadline",
            NoRecheck => "record-not-checked-again",
            ReadsIgnoreInFlight => "reader-ignores-in-flight",
            GoneIsAbort => "gone-is-abort",
            NoRecordIsAbort => "no-record-is-abort",
            UnrecordedRefusalIsAbort => "refusal-leaves-no-record",
            VerdictIsOutcome => "recovery-trusts-its-verdict",
            LaterDecisionWins => "later-decision-wins",
            CommitBeforeDecision => "resolved-before-decided",
            AbsenceNotBlocked => "probe-does-not-block",
            BlockRemovesPrepare => "probe-removes-a-prepare",
            PrepareEvaluatedAgain => "prepare-evaluated-again",
            Commit1NoRecord => "one-step-commit-leaves-no-record",
            RecoveryCommitsPushed => "recovery-commits-pushed",
            PushedNotRevalidated => "pushed-not-validated-again",
            PushedReportedEarly => "pushed-answered-early",
            LockedOnlyAtMax => "at-max-despite-reads",
            AtMaxValidatesToCandidate => "validated-to-candidate",
            ValidationIgnoresPrepares => "validation-ignores-prepares",
            ValidationNotCached => "validation-not-remembered",
            SnapshotPushesOverNewer => "pushed-over-newer-version",
            LockTrusted => "lock-trusted",
            NoLowWater => "no-low-water-mark",
            ReaderIgnoresPrepare => "reader-ignores-prepares",
            OwnP => "commit-at-own-p",
            _ => return None,
        })
    }
}

/// How a mistake is found.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The mistake.
    pub mistake: Mistake,
    /// What breaks, as the table of section 13 says it.
    pub breaks: &'static str,
    /// The length of the shortest trace by that table; 0: the table has none.
    pub table_steps: usize,
    /// The invariant that must catch it. Others may break on the way; they are not looked at.
    pub invariant: Invariant,
    /// The length of the shortest trace in this model.
    pub steps: usize,
    /// Where it is found. Without the mistake, this configuration holds.
    pub config: Config,
}

/// Rows of the table that this model cannot express, and why.
pub const NOT_EXPRESSED: &[(&str, &str)] = &[
    ("Uncertainty window looks at versions only, not prepares", "R5 is about clocks; there are none"),
    ("Answer before `c <= clock.latest`", "R23 is about clocks"),
    ("External: writers wait, readers do not", "R24 is about clocks"),
    ("Slot retains the log from its position only", "there are no change streams"),
    ("Own cache entries push own prepare", "costs speed only; no invariant is broken"),
];

/// Every mistake that the model knows, in the order of the table.
pub fn findings() -> Vec<Finding> {
    use Invariant::*;
    use Mistake::*;
    let two = |name| Config::new(name, "two blind pieces", &[0, 1]).txn(Txn::at(3).writes(X.and(Y)));
    let one = |name| Config::new(name, "one blind piece", &[0]).txn(Txn::at(3).writes(X));
    let f = |mistake, breaks, table_steps, invariant, steps, config| Finding {
        mistake,
        breaks,
        table_steps,
        invariant,
        steps,
        config,
    };
    vec![
        f(
            NoTombstone,
            "late prepare is prepared again (on the page also applied twice; here its p lies above its own version)",
            7,
            T10,
            6,
            two("blind"),
        ),
        f(
            NoTombstoneAnchorForgets,
            "reported ABORT, two late prepares, recovery commits",
            10,
            T3,
            10,
            two("blind"),
        ),
        f(AnchorForgetsOnAcks, "reported ABORT although committed", 7, T3, 11, two("blind")),
        f(
            AnchorForgetsAtDeadline,
            "one participant committed, the other aborted",
            7,
            T1,
            8,
            two("blind-floors").floors(),
        ),
        f(NoRecheck, "reported ABORT, then applied", 7, T3, 13, two("blind-in-flight").in_flight(3)),
        f(
            ReadsIgnoreInFlight,
            "write below a served read",
            5,
            T5,
            4,
            one("one-in-flight-read").in_flight(1).read(X, 4),
        ),
        f(
            OldTermApplied,
            "write below a served read",
            6,
            T5,
            5,
            one("one-in-flight-lease").in_flight(1).read(X, 4).leases(1),
        ),
        f(SlowClockAccepts, "applied twice", 5, T8, 4, one("one-floors").floors()),
        f(PrepareDropped, "COMMIT reported, piece lost", 5, T2, 5, two("blind-floors").floors()),
        f(GoneIsAbort, "reported ABORT, was committed", 7, T3, 6, one("one-floors").floors()),
        f(PastDeadlineIsAbort, "reported ABORT, was committed", 6, T3, 5, one("one-floors").floors()),
        f(NoRecordIsAbort, "COMMIT reported, piece aborted", 6, T2, 6, two("blind")),
        f(
            UnrecordedRefusalIsAbort,
            "second copy commits",
            9,
            T3,
            8,
            two("blind-unrecorded").refusals().unrecorded(),
        ),
        f(
            UnrecordedCommit1RefusalIsAbort,
            "second copy commits",
            9,
            T3,
            8,
            two("one-against-two-unrecorded").txn(Txn::at(4).writes(X)).unrecorded(),
        ),
        f(
            AnchorTakesNoPart,
            "abort recorded at the anchor, transaction implicitly committed",
            7,
            T2,
            4,
            two("blind"),
        ),
        f(VerdictIsOutcome, "half committed", 8, T1, 8, two("blind")),
        f(LaterDecisionWins, "reported ABORT, committed", 6, T3, 9, two("blind")),
        f(
            CommitBeforeDecision,
            "half committed once the tombstone is gone",
            6,
            T1,
            8,
            two("blind-floors").floors(),
        ),
        f(AbsenceNotBlocked, "COMMIT reported, piece aborted", 7, T2, 6, two("blind")),
        f(BlockRemovesPrepare, "COMMIT reported, never committed", 4, T2, 5, two("blind")),
        f(
            PrepareEvaluatedAgain,
            "commit below served reads",
            6,
            T5,
            9,
            Config::new("blind-lease-reads", "two blind pieces and a read key beside one", &[0, 1, 0])
                .txn(Txn::at(3).writes(X.and(Y)))
                .leases(1)
                .read(X.and(Z), 4),
        ),
        f(Commit1NoRecord, "applied twice by a resend", 4, T8, 3, one("one")),
        f(
            Commit1Pushed,
            "write skew",
            8,
            T6,
            6,
            Config::new("one-validates-elsewhere", "commit1 with V on another shard", &[0, 1])
                .txn(Txn::at(3).writes(X).validates(Y))
                .txn(Txn::at(4).writes(Y))
                .read(X, 5),
        ),
        f(RecoveryCommitsPushed, "non-serializable", 13, T6, 10, pushed_elsewhere("pushed-elsewhere")),
        f(
            PushedNotRevalidated,
            "COMMIT reported, recovery aborts",
            6,
            T2,
            9,
            pushed_elsewhere("pushed-elsewhere"),
        ),
        f(
            RevalidatesOnlyElsewhere,
            "non-serializable",
            12,
            T6,
            9,
            Config::new("pushed-on-written-shard", "V on a shard that is written, too", &[0, 1, 2, 0])
                .txn(Txn::at(3).writes(X.and(Y)).validates(W.and(Z)))
                .txn(Txn::at(4).writes(W))
                .read(Y, 5),
        ),
        f(
            PushedReportedEarly,
            "COMMIT reported, recovery aborted",
            8,
            T2,
            8,
            pushed_elsewhere("pushed-elsewhere"),
        ),
        f(LockedOnlyAtMax, "lost lock, lost update", 10, T6, 9, pushed_elsewhere("locked-only")),
        f(
            AtMaxValidatesToCandidate,
            "lost update",
            6,
            T6,
            4,
            Config::new("locked-and-written", "a locked row is written", &[0])
                .txn(Txn::at(3).writes(X).validates(X))
                .txn(Txn::at(4).writes(X)),
        ),
        f(
            ValidatedAfterPrepares,
            "write skew",
            6,
            T6,
            8,
            Config::new("validates-elsewhere", "two pieces, V on a third shard", &[0, 1, 2])
                .txn(Txn::at(4).writes(X.and(Y)).validates(Z))
                .txn(Txn::at(3).writes(Z)),
        ),
        f(
            ValidationIgnoresPrepares,
            "write below a validated read",
            6,
            T5,
            7,
            Config::new("validates-prepared", "V where another is prepared", &[0, 1])
                .txn(Txn::at(3).writes(X.and(Y)))
                .txn(Txn::at(4).writes(X).validates(Y)),
        ),
        f(
            ValidationNotCached,
            "write below a validated read",
            6,
            T5,
            3,
            Config::new("validates-then-written", "V where another writes later", &[0, 1])
                .txn(Txn::at(4).writes(X).validates(Y))
                .txn(Txn::at(3).writes(Y)),
        ),
        f(
            SnapshotPushesOverNewer,
            "lost update",
            11,
            T6,
            7,
            Config::new("update-pushed", "snapshot isolation, read-modify-write", &[0, 1])
                .txn(Txn::at(3).updates(X).writes(Y))
                .txn(Txn::at(4).writes(X)),
        ),
        f(
            LockTrusted,
            "lost update after a lease change",
            6,
            T6,
            4,
            Config::new("update", "two read-modify-writes of one row", &[0])
                .txn(Txn::at(3).updates(X))
                .txn(Txn::at(4).updates(X)),
        ),
        f(NoLowWater, "write below a served read", 5, T5, 4, one("one-lease-read").leases(1).read(X, 4)),
        f(ReaderIgnoresPrepare, "unstable snapshot", 5, T5, 6, two("blind-read").read(X, 4)),
        f(OwnP, "two commit timestamps", 8, T1, 7, two("blind-read-anchor").read(X, 4)),
        f(FirstP, "write below a read", 6, T5, 8, two("blind-read").read(Y, 4)),
        f(ResolvedIgnoresPrepares, "stream misses a transaction", 6, T7, 6, two("blind-closed").closes(&[4])),
        f(NotAboveClosed, "stream misses a transaction", 4, T7, 3, one("one-closed").closes(&[4])),
        f(MergeLowerFloor, "COMMIT reported, piece aborted", 10, T2, 7, two("blind-merge").floors().merge()),
        f(
            MergeLowerClosed,
            "version below resolved",
            7,
            T7,
            7,
            two("blind-closed-merge").closes(&[4]).merge(),
        ),
        f(
            MergeLeftCacheOnly,
            "write below a served read",
            7,
            T5,
            8,
            two("blind-read-merge").read(Y, 4).merge(),
        ),
        f(
            ResolveLeavesNoMarker,
            "late prepare blocks rows until recovery (safe, slow): an acknowledged piece is prepared",
            0,
            T10,
            5,
            two("blind"),
        ),
    ]
}

/// Two pieces and V on a third shard, pushed by a reader; another writes V.
fn pushed_elsewhere(name: &str) -> Config {
    Config::new(name, "two pieces, V on a third shard, pushed by a reader", &[0, 1, 2])
        .txn(Txn::at(3).writes(X.and(Y)).validates(Z))
        .txn(Txn::at(4).writes(Z))
        .read(Y, 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bank_has_these_bugs() {
        for name in findings().iter().filter_map(|f| f.mistake.bug()) {
            assert!(isochrone_base::bank::find(name).is_some(), "the bug bank has no {name}");
        }
    }
}
