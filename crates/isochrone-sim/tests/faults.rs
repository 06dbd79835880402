//! Every kind of trouble is seen to happen, and what it is to meet is seen to be met.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use isochrone_sim::{Fault, Options, Tuning, run_with};

/// A line of a trace: what, and its numbers.
type Event = (String, Vec<u64>);

/// Runs with these kinds only; returns how often each event was seen: its name, and its numbers.
fn events(options: Options) -> Vec<(String, Vec<u64>)> {
    let seen: Arc<Mutex<Vec<Event>>> = Arc::default();
    let sink = {
        let seen = seen.clone();
        move |line: &str| {
            let line = line.get(14..).unwrap_or_default();
            let words: Vec<&str> = line.split(' ').collect();
            let names = words.iter().take_while(|w| w.parse::<u64>().is_err()).count();
            let numbers = words[names..].iter().filter_map(|w| w.parse().ok()).collect();
            let name = words[..names].join(" ");
            if !matches!(name.as_str(), "message" | "call" | "answer" | "event") {
                seen.lock().unwrap().push((name, numbers));
            }
        }
    };
    if let Err(failure) = run_with(options.clone(), Some(Box::new(sink))) {
        panic!("{failure}\n{options}\n{}", failure.recent.join("\n"));
    }
    Arc::into_inner(seen).unwrap().into_inner().unwrap()
}

fn three_nodes(seed: u64, seconds: u64, faults: &[(Fault, u64)]) -> Options {
    Options {
        nodes: 3,
        clients: 1,
        seconds,
        accounts: 12,
        faults: faults.iter().copied().collect::<BTreeMap<_, _>>(),
        ..Options::quiet(seed)
    }
}

fn count(events: &[(String, Vec<u64>)], what: &str) -> usize {
    events.iter().filter(|(name, _)| name == what).count()
}

#[test]
fn calls_come_again() {
    let seen = events(three_nodes(1, 10, &[(Fault::CallAgain, 200), (Fault::Drop, 10)]));
    assert!(count(&seen, "call again") > 50, "{}", count(&seen, "call again"));
}

#[test]
fn shards_are_split_under_load() {
    let seen = events(three_nodes(2, 10, &[(Fault::Split, 500)]));
    let done = seen.iter().filter(|(name, numbers)| name == "split" && numbers[1] == 1).count();
    assert!(done > 5, "{done}");
}

#[test]
fn disks_fail() {
    for (fault, name) in [(Fault::Eio, "eio"), (Fault::Enospc, "enospc"), (Fault::SyncFails, "fsync-fails")] {
        let seen = events(three_nodes(3, 15, &[(fault, 300)]));
        let (failed, ended) = (count(&seen, name), count(&seen, "ended"));
        assert!(failed > 3 && ended > 2, "{name}: {failed}, of which somebody ended {ended}");
    }
}

/// Of the damage, some is refused, some cuts the log, and some is of no use.
#[test]
fn logs_rot() {
    let mut came = BTreeMap::<(String, u64), u64>::new();
    for (fault, name) in [(Fault::Rot, "rot"), (Fault::Stale, "stale"), (Fault::Misdirected, "misdirected")] {
        for seed in 4..6 {
            let tuning = Tuning { segment_bytes: 64 << 10, ..Tuning::USUAL };
            let options = Options { tuning, ..three_nodes(seed, 20, &[(fault, 1_000), (Fault::Flush, 1)]) };
            for (event, numbers) in events(options) {
                if event == name {
                    *came.entry((event, numbers[1])).or_default() += 1;
                }
            }
        }
        assert!(came.contains_key(&(name.to_string(), 1)), "{came:?}");
    }
    assert!(came.contains_key(&("rot".to_string(), 2)), "{came:?}");
    println!("{came:?}");
}

/// Shards forget how transactions ended while they still run.
#[test]
fn time_passes_within_a_run() {
    let tuning = Tuning { floor_lag_ms: 500, deadline_ms: 1_000, recover_after_ms: 50, ..Tuning::USUAL };
    let faults = [(Fault::CallAgain, 200), (Fault::Drop, 10), (Fault::Isolate, 3_000), (Fault::Kill, 3_000)];
    events(Options { tuning, ..three_nodes(7, 15, &faults) });
}

/// Reads may be old; nothing is lost, and no money is made.
#[test]
fn clocks_go_beyond_their_bound() {
    let seen = events(three_nodes(8, 15, &[(Fault::ClockBeyond, 1_000), (Fault::Kill, 3_000)]));
    assert!(count(&seen, "clock beyond") > 5);
}

/// SIM19, in runs where it has time to fail: clocks stay wrong for long, with and without restarts and lost messages. No
/// seed breaks anything but freshness.
#[test]
fn wrong_clocks_are_noticed() {
    for seed in 0..4 {
        let mut faults = vec![(Fault::ClockBeyond, 9_000)];
        if seed % 2 == 1 {
            faults.extend([(Fault::Kill, 4_000), (Fault::Drop, 10), (Fault::Isolate, 6_000)]);
        }
        let seen = events(three_nodes(100 + seed, 40, &faults));
        assert!(count(&seen, "clock beyond") > 1, "seed {seed}");
    }
}

/// Voters change all the time, also while the last change is under way; at the end the replicas are where the last wish wants
/// them, and nowhere else (SIM6).
#[test]
fn nodes_are_replaced() {
    let mut moved = 0;
    for seed in 20..22 {
        let seen = events(three_nodes(seed, 30, &[(Fault::Replace, 2_000), (Fault::Kill, 5_000)]));
        moved += seen.iter().filter(|(name, n)| name == "asked to replace" && n[2] == 1).count();
    }
    assert!(moved > 8, "{moved}");
}

/// A lost disk's node is replaced by one that is new to the cluster, one after the other, until no founder is left; everything
/// that was acknowledged is still there.
#[test]
fn disks_are_lost_for_good() {
    let seen = events(three_nodes(23, 40, &[(Fault::Wipe, 2_000), (Fault::Power, 4_000)]));
    let (wiped, filled) = (count(&seen, "wipe"), count(&seen, "place filled"));
    assert!(wiped >= 3 && filled == wiped, "{wiped} wiped, {filled} filled");
}

#[test]
fn disks_go_to_other_machines() {
    let seen =
        events(three_nodes(24, 20, &[(Fault::Swap, 1_000), (Fault::ClockStep, 1_000), (Fault::Drift, 1)]));
    assert!(count(&seen, "swap") > 4, "{}", count(&seen, "swap"));
}
