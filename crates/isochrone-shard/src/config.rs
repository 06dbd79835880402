//! The times that a shard lives by. All are about speed and how soon things are cleaned up; none is needed for safety.

use std::time::Duration;

use isochrone_base::LogIndex;
use isochrone_base::ids::INIT_INDEX;

/// Settings of a node's shards.
#[derive(Clone, Debug)]
pub struct Config {
    /// How far ahead of the clock the read limit of a lease is set. Default 300 ms (R1: at most that).
    pub lease_ahead: Duration,
    /// A prepare older than this is suspected (R18). Default 1 s.
    pub recover_after: Duration,
    /// Longest wait of a prepare for a foreign one on its keys before it refuses (R11.4). Default 250 ms.
    pub prepare_wait_max: Duration,
    /// Longest wait of a read, or a one-step commit, for a prepare in its way. Default 30 s.
    pub read_wait_max: Duration,
    /// Longest wait for this node to serve a shard (start, change of leadership, split). Default 5 s.
    pub serve_wait_max: Duration,
    /// How far behind the clock the floor follows (R20). Default 60 s.
    pub floor_lag: Duration,
    /// How far behind the clock the closed timestamp follows. Default 700 ms: with the way to other nodes, what they know is
    /// at most a second old.
    pub closed_lag: Duration,
    /// How long after the last write, or the last read at a replica, timestamps of a shard with several replicas are
    /// closed as time goes on, at about one entry a second. Default 10 s.
    pub closed_keep: Duration,
    /// An idle shard's closed timestamp is written when it would rise by at least this. Default 1 s.
    pub close_step: Duration,
    /// Tombstones of a shard above which the floor follows at `floor_lag_crowded`. Default 200,000 (about 20 MB).
    pub tombstones_crowded: usize,
    /// See `tombstones_crowded`. Default 5 s.
    pub floor_lag_crowded: Duration,
    /// The right half of a split begins its log behind this index. Default [`INIT_INDEX`]; 0 only under a log layer
    /// that cannot begin anywhere but at the first index.
    pub born_at: LogIndex,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            lease_ahead: Duration::from_millis(300),
            recover_after: Duration::from_secs(1),
            prepare_wait_max: Duration::from_millis(250),
            read_wait_max: Duration::from_secs(30),
            serve_wait_max: Duration::from_secs(5),
            floor_lag: Duration::from_secs(60),
            closed_lag: Duration::from_millis(700),
            closed_keep: Duration::from_secs(10),
            close_step: Duration::from_secs(1),
            tombstones_crowded: 200_000,
            floor_lag_crowded: Duration::from_secs(5),
            born_at: INIT_INDEX,
        }
    }
}

/// A duration in microseconds.
pub(crate) fn us(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}
