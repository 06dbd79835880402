//! The table of round trips in `docs/consistency.md`.

use std::time::Duration;

use isochrone_sim::script::round_trips::{Cost, ROUND_TRIP, Statement, external_commit, measure};

#[test]
fn one_quorum_round_for_every_commit() {
    use Statement::*;
    for (remote, expected) in [
        (
            false,
            [
                (PointRead, 0, 0),
                (Write, 0, 1),
                (PastRead, 0, 0),
                (OneShard, 0, 1),
                (Shards(2), 0, 1),
                (Shards(10), 0, 1),
                (Shards(100), 0, 1),
            ],
        ),
        // One more to the leader; a statement that reads or locks asks it, too.
        (
            true,
            [
                (PointRead, 1, 0),
                (Write, 0, 2),
                (PastRead, 0, 0),
                (OneShard, 4, 2),
                (Shards(2), 0, 2),
                (Shards(10), 0, 2),
                (Shards(100), 0, 2),
            ],
        ),
    ] {
        let costs = measure(1, remote).unwrap();
        println!("remote: {remote}: {costs:?}");
        let expected: Vec<_> =
            expected.map(|(statement, statements, commit)| (statement, Cost { statements, commit })).into();
        assert_eq!(costs, expected, "remote: {remote}");
    }
}

/// R24: the clock is waited for while the prepares are under way, not behind them.
#[test]
fn commit_wait_overlaps_with_the_round() {
    let took = external_commit(1).unwrap();
    println!("{took:?}");
    let clock = Duration::from_millis(250);
    assert!(took >= clock && took < clock + ROUND_TRIP / 2, "{took:?}");
}
