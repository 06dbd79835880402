//! Reads of replicas and external consistency under trouble: no violation, and each mistake is found by the checker named
//! for it.

use isochrone_base::bank;
use isochrone_sim::bugs::Arena;
use isochrone_sim::{Failure, Fault, Options, run};

/// The failure of one of some runs with a mistake put back.
fn mistaken(bug: &str, runs: impl IntoIterator<Item = Options>) -> Option<Box<Failure>> {
    let bug = bank::find(bug).expect("it is in the bank");
    for options in runs {
        bank::put_back(Some(bug));
        let ended = run(options);
        bank::put_back(None);
        if let Err(failure) = ended
            && bug.found_by.contains(&failure.found.id)
        {
            return Some(failure);
        }
    }
    None
}

/// A cluster in trouble whose nodes also stand still now and then.
fn cluster(seed: u64, closed_lag_ms: u64) -> Options {
    let mut options = Options { seconds: 20, ..Options::cluster(seed) };
    options.tuning.closed_lag_ms = closed_lag_ms;
    options.faults.insert(Fault::Pause, 1_000);
    options
}

/// R24: transactions of external sessions are in the order of real time, while clocks are off, drift and are set, all
/// inside their bound. Mistake: "External: writers wait, readers do not".
#[test]
fn external_sessions_are_in_the_order_of_real_time() {
    let runs = || (1..=3).map(|seed| Arena::External.options(seed));
    for options in runs() {
        let report = run(options).unwrap_or_else(|f| panic!("{f}\n{}", f.recent.join("\n")));
        assert!(report.committed > 100, "{report:?}");
    }
    if bank::IN_THIS_BUILD {
        let more = (1..=60).map(|seed| Arena::External.options(seed));
        let found = mistaken("external-readers-do-not-wait", more).expect("it is found");
        println!("{found}");
    }
}

/// R6, T7: audits at timestamps of the past, mostly answered by replicas, add up (SIM1), and nothing is written below what
/// replicas were told (SIM20).
#[test]
fn replicas_answer_the_past_as_it_was() {
    for options in [cluster(1, 700), cluster(2, 700), cluster(3, 100)] {
        let report = run(options).unwrap_or_else(|f| panic!("{f}\n{}", f.recent.join("\n")));
        assert!(report.audits > 20, "{report:?}");
    }
    if bank::IN_THIS_BUILD {
        let found = mistaken("follower-ignores-closed", (1..=6).map(|seed| cluster(seed, 700)));
        println!("{}", found.expect("it is found"));
        // Nodes that stood still hear what is closed before they have written what came meanwhile.
        let found = mistaken("follower-believes-early", (1..=8).map(|seed| cluster(seed, 100)));
        println!("{}", found.expect("it is found"));
    }
}
