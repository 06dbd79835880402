//! The node log behind consensus: where a shard's log begins, through births, snapshots, truncations and reopening.

use std::sync::Arc;

use isochrone_base::{Bytes, INIT_INDEX, INIT_TERM, ShardId};
use isochrone_consensus::wal_log::{WalLog, to_wal_batch};
use isochrone_consensus::{GroupLog, HardState, LogBatch, LogEntry};
use isochrone_env::fake::MemDisk;
use isochrone_wal::{Config, Log};

const SHARD: ShardId = ShardId(7);

fn entries(range: std::ops::Range<u64>, term: u64) -> Vec<(ShardId, LogEntry)> {
    range.map(|index| (SHARD, LogEntry { index, term, payload: Bytes::from_static(b"x") })).collect()
}

#[test]
fn a_log_knows_where_it_begins() {
    let disk = MemDisk::new();
    let hs = HardState { term: 6, vote: 2, commit: INIT_INDEX };
    let first = INIT_INDEX + 1;
    let steps = [
        // Only a hard state: a blank replica's.
        (LogBatch { hard_states: vec![(SHARD, hs)], ..LogBatch::default() }, (1, 0), None),
        // Born, with the first entries in the same batch.
        (
            LogBatch {
                resets: vec![(SHARD, first, INIT_TERM)],
                entries: entries(first..first + 5, 6),
                hard_states: vec![(SHARD, hs)],
                ..LogBatch::default()
            },
            (first, INIT_TERM),
            Some((first, first + 4)),
        ),
        // Truncated: the entry before the first is known by its term.
        (
            LogBatch { truncate: vec![(SHARD, first + 3)], ..LogBatch::default() },
            (first + 3, 6),
            Some((first + 3, first + 4)),
        ),
        // A snapshot.
        (LogBatch { resets: vec![(SHARD, 101, 8)], ..LogBatch::default() }, (101, 8), None),
        (LogBatch { entries: entries(101..103, 9), ..LogBatch::default() }, (101, 8), Some((101, 102))),
    ];
    for (batch, begin, bounds) in steps {
        for reopened in [false, true] {
            let (mut log, _) = Log::open(Arc::new(disk.clone()), Config::new("/wal")).unwrap();
            if !reopened {
                log.append(&[to_wal_batch(batch.clone())]).unwrap();
                log.sync().unwrap();
            }
            let reader = WalLog(log.reader());
            assert_eq!((reader.begin(SHARD), reader.bounds(SHARD)), (Some(begin), bounds));
            assert_eq!(reader.hard_state(SHARD), Some(hs));
            assert_eq!(reader.begin(ShardId(8)), None);
        }
    }
}

/// The log may end in the middle of what was submitted at once: what is committed must then not be said of entries that
/// are not there, or are another leader's.
#[test]
fn a_commit_index_does_not_run_ahead_of_its_entries() {
    let (mut log, _) = Log::open(Arc::new(MemDisk::new()), Config::new("/wal")).unwrap();
    let first = INIT_INDEX + 1;
    let mut submit = |entries, commit| {
        let hard_states = vec![(SHARD, HardState { term: 6, vote: 2, commit })];
        let resets = if commit == first + 1 { vec![(SHARD, first, INIT_TERM)] } else { Vec::new() };
        log.append(&[to_wal_batch(LogBatch { resets, entries, hard_states, ..LogBatch::default() })])
            .unwrap();
        log.sync().unwrap();
        WalLog(log.reader()).hard_state(SHARD).unwrap()
    };
    let with_entries = submit(entries(first..first + 5, 6), first + 1);
    assert_eq!(with_entries, HardState { term: 6, vote: 2, commit: first - 1 });
    assert_eq!(submit(Vec::new(), first + 4).commit, first + 4, "said of entries that are there");
}
