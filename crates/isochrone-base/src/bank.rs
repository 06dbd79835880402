//! The bug bank: mistakes that were made, here or elsewhere, and can be put back to see that the simulator's checkers find
//! them (`isochrone sim --bug NAME`).
//!
//! A site asks [`has`]. In a build without debug assertions, so in every release, that is `false` at compile time and
//! there is nothing to switch on ([`IN_THIS_BUILD`]); one development build serves all bugs. The switch belongs to a
//! thread: a simulated world runs on one.
//!
//! Each bug names the invariant whose checker must find it; those of the commit protocol are T1 to T13, those of the
//! simulator stand in the opening comment of `isochrone-sim`.

use std::cell::Cell;

/// Can bugs be put back in this build?
pub const IN_THIS_BUILD: bool = cfg!(debug_assertions);

/// A bug of the bank.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bug {
    /// What `--bug` is given.
    pub name: &'static str,
    /// What the code does wrong.
    pub what: &'static str,
    /// Ids of the invariants, one of which must be found broken.
    pub found_by: &'static [&'static str],
}

const fn bug(name: &'static str, what: &'static str, found_by: &'static [&'static str]) -> Bug {
    Bug { name, what, found_by }
}

/// All bugs, in the order in which they were added.
pub const BUGS: &[Bug] = &[
    bug(
        "tombstone-not-kept",
        "a resolved piece that is no anchor leaves no record",
        &["T1", "T3", "T4", "T8", "T10", "SIM2", "SIM7"],
    ),
    bug(
        "anchor-forgets-on-acks",
        "an anchor's record goes when all have acknowledged, before the floor passed",
        &["T1", "T3", "T9", "SIM3"],
    ),
    bug(
        "anchor-forgets-at-deadline",
        "an anchor's record goes with the floor, acknowledged or not",
        &["T1", "T2", "T9", "SIM7"],
    ),
    bug(
        "record-not-checked-again",
        "application does not look at record, floor and bounds again",
        &["T1", "T3", "T10", "SIM7"],
    ),
    bug("gone-is-abort", "an anchor that has forgotten is reported as ABORT", &["T3", "SIM3", "T1"]),
    bug("silence-is-abort", "an anchor that does not answer is reported as ABORT", &["T3", "SIM3"]),
    bug(
        "no-record-is-abort",
        "recovery takes an anchor without a record for aborted, before the floor",
        &["T1", "T2", "SIM2", "SIM7"],
    ),
    bug("refusal-leaves-no-record", "a refusal is final and is not logged", &["T1", "T3", "SIM3", "T8"]),
    bug(
        "recovery-trusts-its-verdict",
        "recovery resolves by its own verdict, not by the anchor's answer",
        &["T1", "SIM7"],
    ),
    bug("later-decision-wins", "a second decision at the anchor replaces the first", &["T1", "T9", "SIM3"]),
    bug(
        "resolved-before-decided",
        "the coordinator resolves pieces before the anchor has decided",
        &["T1", "SIM2", "SIM8"],
    ),
    bug(
        "probe-does-not-block",
        "a probe reads absence as abort and logs nothing",
        &["T1", "T2", "SIM2", "SIM7"],
    ),
    bug("probe-removes-a-prepare", "a probe aborts what is prepared", &["T1", "T2", "SIM2", "SIM7"]),
    bug("prepare-evaluated-again", "a repeated prepare gets a new timestamp", &["T4", "SIM7"]),
    bug(
        "one-step-commit-leaves-no-record",
        "a commit in one step leaves no record",
        &["T3", "T8", "SIM3", "CH6"],
    ),
    bug(
        "unknown-retried-under-a-new-id",
        "a commit without an answer is tried again as another transaction",
        &["T3", "T8", "SIM3"],
    ),
    bug(
        "past-deadline-is-abort",
        "a piece that came after its deadline is reported as ABORT",
        &["T3", "SIM3", "T1", "T8", "SIM2"],
    ),
    bug(
        "deadline-not-checked",
        "a prepare is accepted although the floor has passed its deadline",
        &["T1", "T3", "T8", "T10", "SIM2", "SIM7"],
    ),
    bug("floor-drops-prepares", "raising the floor drops prepares", &["T1", "T2", "SIM2", "SIM7"]),
    bug(
        "acked-although-unresolved",
        "the anchor is told that all acknowledged when some did not answer",
        &["T1", "T2", "SIM2"],
    ),
    bug(
        "one-step-pushed-after-validation",
        "a commit in one step is pushed after other shards were validated",
        &["T6"],
    ),
    bug(
        "recovery-commits-at-first-p",
        "recovery commits at the first prepare timestamp that it sees",
        &["T4", "T5", "SIM7"],
    ),
    bug("closed-ignored", "a write is not pushed above what is closed", &["T7", "SIM20"]),
    bug("recovery-commits-pushed", "recovery commits a pushed at-candidate transaction", &["T6"]),
    bug(
        "pushed-not-validated-again",
        "a pushed at-candidate transaction is not validated up to its timestamp",
        &["T6"],
    ),
    bug(
        "pushed-answered-early",
        "a pushed at-candidate transaction is reported before the anchor answers",
        &["T2", "SIM2", "SIM7", "T1"],
    ),
    bug(
        "at-max-despite-reads",
        "a transaction that read what it does not write commits at the maximum",
        &["T6"],
    ),
    bug("validated-to-candidate", "a pushed piece is validated up to its candidate only", &["T6"]),
    bug("validation-ignores-prepares", "validation passes foreign prepares", &["T5", "T6", "SIM1", "SIM2"]),
    bug(
        "validation-not-remembered",
        "validation leaves nothing in the timestamp cache",
        &["T5", "T6", "SIM1", "SIM2"],
    ),
    bug(
        "pushed-over-newer-version",
        "a write goes over a version that its reader has not seen",
        &["T6", "SIM1", "SIM2", "CH6"],
    ),
    bug(
        "lock-trusted",
        "a row that was locked is not compared when it is written",
        &["T6", "SIM1", "SIM2", "CH6"],
    ),
    bug("commit-at-own-p", "a piece commits at its own prepare timestamp", &["T1", "SIM7"]),
    bug(
        "no-low-water-mark",
        "a new leaseholder does not know how far others have read",
        &["T5", "T6", "SIM1", "SIM2", "CH3", "CH6", "SIM20"],
    ),
    bug(
        "serves-before-its-first-entry",
        "a new leader serves before it applied an entry of its term",
        &["T5", "T6", "SIM2", "SIM7", "SIM13"],
    ),
    bug(
        "reader-ignores-prepares",
        "a read passes prepares below its timestamp",
        &["T5", "T6", "SIM1", "SIM2"],
    ),
    bug(
        "reader-ignores-in-flight",
        "a read passes proposals in flight below its timestamp",
        &["T5", "T6", "SIM1", "SIM2"],
    ),
    bug("read-not-remembered", "a read leaves nothing in the timestamp cache", &["T5", "T6", "SIM1", "SIM2"]),
    bug(
        "moved-up-without-validation",
        "a reader moves its timestamp without looking at what it read before",
        &["T5", "T6", "SIM1", "SIM2"],
    ),
    bug(
        "external-readers-do-not-wait",
        "an external reader's answer leaves before what it saw is certainly in the past",
        &["CH5"],
    ),
    bug("follower-ignores-closed", "a replica answers at any timestamp", &["SIM1", "CH3"]),
    bug(
        "follower-believes-early",
        "a replica believes a closed timestamp before it has the entries that it is about",
        &["SIM1", "SIM20"],
    ),
    bug(
        "closed-above-the-read-limit",
        "a leaseholder tells others a closed timestamp that binds nobody after it",
        &["SIM1", "SIM20", "T7"],
    ),
    bug("uncertainty-ignored", "a reader has no uncertainty window", &["CH5", "CH6"]),
    bug(
        "uncertainty-ignores-prepares",
        "the uncertainty window is looked at for versions only",
        &["CH5", "CH6"],
    ),
    bug(
        "prepares-forgotten-at-start",
        "a restarted replica does not see what was prepared before",
        &["T5", "T8", "SIM1", "SIM2", "SIM7"],
    ),
    bug("acked-before-fsync", "the log reports what it has not synced", &["T2", "SIM2", "SIM4"]),
    bug("fsync-retried", "a failed sync is tried again and believed", &["T2", "SIM2", "SIM4"]),
    bug(
        "torn-middle-is-a-tail",
        "damage in the middle of the log is cut off like a torn end",
        &["T2", "SIM2", "SIM4", "SIM17"],
    ),
    bug("batch-checksum-ignored", "a batch is believed without its checksum", &["SIM4", "SIM7"]),
    bug(
        "rename-without-directory-sync",
        "a new segment's name is not durable before it is used",
        &["SIM4", "SIM8"],
    ),
    bug(
        "applied-index-apart",
        "the applied index is written apart from what was applied",
        &["SIM4", "SIM7", "SIM8"],
    ),
    bug("log-truncated-unflushed", "the log forgets what no flush holds", &["SIM4", "SIM8"]),
    bug(
        "append-acked-before-fsync",
        "a follower acknowledges entries before they are durable",
        &["SIM2", "SIM7", "SIM12", "SIM13"],
    ),
    bug(
        "leader-counts-unsynced",
        "a leader counts its own entries before they are durable",
        &["SIM2", "SIM7", "SIM12", "SIM13"],
    ),
    bug(
        "vote-not-durable",
        "term and vote are not written before the answer",
        &["SIM4", "SIM7", "SIM8", "SIM10", "SIM12"],
    ),
    bug("lease-does-not-end", "a lease once given holds until the leader hears of another one", &["SIM11"]),
    bug(
        "blank-replica-votes",
        "a replica that lost its log votes as if it had been empty",
        &["SIM2", "SIM7", "SIM12", "SIM13"],
    ),
    bug(
        "cut-log-not-doubted",
        "a replica whose log was cut votes as if nothing were missing",
        &["SIM2", "SIM7", "SIM12", "SIM13"],
    ),
    bug(
        "snapshot-without-records",
        "a snapshot of a shard leaves its records out",
        &["SIM2", "SIM6", "SIM7", "SIM14"],
    ),
    bug(
        "split-loses-records",
        "a split's right half begins without what was prepared on its keys",
        &["T1", "T2", "SIM2", "SIM7"],
    ),
    bug("wrong-clock-serves", "nobody looks at what other nodes' clocks say", &["SIM19"]),
    bug("inbox-has-no-bound", "the store loop's inbox takes every proposal, however many wait", &["SIM21"]),
    bug(
        "joint-left-with-an-old-lease",
        "old and new voters part while a lease of the old ones is left",
        &["SIM11", "T6", "SIM3", "SIM5", "CH5", "CH6"],
    ),
];

thread_local! {
    static ON: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Is this bug put back on this thread?
#[inline]
pub fn has(name: &'static str) -> bool {
    if !IN_THIS_BUILD {
        return false;
    }
    let Some(on) = ON.get() else { return false };
    debug_assert!(find(name).is_some(), "bug {name} is not in the bank");
    on == name
}

/// The bug of that name.
pub fn find(name: &str) -> Option<&'static Bug> {
    BUGS.iter().find(|b| b.name == name)
}

/// Puts a bug back on this thread, or none. No effect in a build without debug assertions.
pub fn put_back(bug: Option<&'static Bug>) {
    if IN_THIS_BUILD {
        ON.set(bug.map(|b| b.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_bug_has_its_checker() {
        let names: std::collections::BTreeSet<_> = BUGS.iter().map(|b| b.name).collect();
        assert_eq!(names.len(), BUGS.len());
        assert!(BUGS.iter().all(|b| !b.found_by.is_empty() && !b.what.is_empty()));
    }

    #[test]
    fn a_bug_is_of_one_thread() {
        let Some(bug) = BUGS.first() else { return };
        assert!(!has(bug.name));
        put_back(Some(bug));
        assert_eq!(has(bug.name), IN_THIS_BUILD);
        std::thread::scope(|s| s.spawn(|| assert!(!has(bug.name))).join().expect("no panic"));
        put_back(None);
        assert!(!has(bug.name));
    }
}
