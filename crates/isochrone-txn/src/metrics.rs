//! The metrics of the transaction layer: names, units, help. All are counters unless said otherwise.

use metrics::{Counter, Histogram, counter, describe_counter, describe_histogram, histogram};

/// Handles, looked up once.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub commits_one: Counter,
    pub commits_many: Counter,
    pub pieces: Histogram,
    pub pushed: Counter,
    pub aborts: Counter,
    pub unknown: Counter,
    pub moved_up: Counter,
    pub moved_up_failed: Counter,
    pub resent: Counter,
    pub recoveries: Counter,
    pub recoveries_committed: Counter,
    pub recoveries_aborted: Counter,
    pub recoveries_failed: Counter,
    pub recoveries_dropped: Counter,
    pub widened: Counter,
    pub broken: Counter,
    pub clock_wait: Histogram,
}

impl Metrics {
    pub fn new() -> Metrics {
        describe_counter!("isochrone_txn_commits_one_piece_total", "transactions committed in one log entry");
        describe_counter!(
            "isochrone_txn_commits_many_pieces_total",
            "transactions committed in several pieces"
        );
        describe_histogram!("isochrone_txn_pieces", "pieces of a transaction that has several");
        describe_counter!(
            "isochrone_txn_pushed_total",
            "at-candidate commits that had to be validated again (R15)"
        );
        describe_counter!(
            "isochrone_txn_aborts_total",
            "commits that ended in an abort, told to the client as such"
        );
        describe_counter!("isochrone_txn_unknown_total", "commits whose outcome could not be told (40003)");
        describe_counter!("isochrone_txn_moved_up_total", "transactions whose read timestamp moved up (R5)");
        describe_counter!(
            "isochrone_txn_moved_up_failed_total",
            "of these, how many had read something that changed"
        );
        describe_counter!("isochrone_txn_resent_total", "requests to shards sent again");
        describe_counter!("isochrone_txn_recoveries_total", "recoveries begun by this node (R18)");
        describe_counter!("isochrone_txn_recoveries_committed_total", "recoveries that ended in a commit");
        describe_counter!("isochrone_txn_recoveries_aborted_total", "recoveries that ended in an abort");
        describe_counter!("isochrone_txn_recoveries_failed_total", "recoveries that could not reach a shard");
        describe_counter!(
            "isochrone_txn_recoveries_dropped_total",
            "suspects dropped because too many recoveries ran"
        );
        describe_counter!(
            "isochrone_txn_read_sets_widened_total",
            "read sets that were too long and got wider spans"
        );
        describe_counter!(
            "isochrone_txn_broken_total",
            "answers that break an invariant of the commit protocol"
        );
        describe_histogram!(
            "isochrone_txn_clock_wait_seconds",
            "waits of external transactions for a timestamp to be past: before answers to reads and to COMMIT (R24)"
        );
        Metrics {
            commits_one: counter!("isochrone_txn_commits_one_piece_total"),
            commits_many: counter!("isochrone_txn_commits_many_pieces_total"),
            pieces: histogram!("isochrone_txn_pieces"),
            pushed: counter!("isochrone_txn_pushed_total"),
            aborts: counter!("isochrone_txn_aborts_total"),
            unknown: counter!("isochrone_txn_unknown_total"),
            moved_up: counter!("isochrone_txn_moved_up_total"),
            moved_up_failed: counter!("isochrone_txn_moved_up_failed_total"),
            resent: counter!("isochrone_txn_resent_total"),
            recoveries: counter!("isochrone_txn_recoveries_total"),
            recoveries_committed: counter!("isochrone_txn_recoveries_committed_total"),
            recoveries_aborted: counter!("isochrone_txn_recoveries_aborted_total"),
            recoveries_failed: counter!("isochrone_txn_recoveries_failed_total"),
            recoveries_dropped: counter!("isochrone_txn_recoveries_dropped_total"),
            widened: counter!("isochrone_txn_read_sets_widened_total"),
            broken: counter!("isochrone_txn_broken_total"),
            clock_wait: histogram!("isochrone_txn_clock_wait_seconds"),
        }
    }
}
