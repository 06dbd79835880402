//! A sample of the bug bank: each bug that is put back is found by a checker named for it, and not without it.

use isochrone_base::bank;
use isochrone_env::{SplitMix64, os};
use isochrone_sim::bugs::{CPU_MAX, SEEDS, prove};

/// Bugs that one run of the tests looks for; `ISOCHRONE_BUGS=n` more of them, up to all.
const SAMPLE: usize = 8;

#[test]
fn a_sample_is_found() {
    if !bank::IN_THIS_BUILD {
        println!("skipped: a release build has no bugs to put back");
        return;
    }
    let n = std::env::var("ISOCHRONE_BUGS").ok().and_then(|n| n.parse().ok()).unwrap_or(SAMPLE);
    let random = SplitMix64::new(os::entropy().unwrap());
    let mut left: Vec<_> = SEEDS.iter().filter_map(|(name, ..)| bank::find(name)).collect();
    let mut wrong = Vec::new();
    for _ in 0..n.min(left.len()) {
        let bug = left.swap_remove(random.below(left.len() as u64) as usize);
        let verdict = prove(bug, CPU_MAX);
        let found = verdict.found.as_ref().map_or("nothing".to_string(), |f| f.to_string());
        println!(
            "{}: {:.1} CPU s, {} runs, {:?}: {found}",
            bug.name,
            verdict.cpu.as_secs_f64(),
            verdict.tries,
            verdict.place
        );
        if let Some(failure) = &verdict.not_clean {
            wrong.push(format!("{} or not: {failure}", bug.name));
        } else if !verdict.holds() {
            wrong.push(format!("{} is not found by {:?}: {found}", bug.name, bug.found_by));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_known_place_is_of_a_bug() {
    for (name, ..) in SEEDS {
        assert!(bank::find(name).is_some(), "{name}");
    }
}

/// SIM19 among others only ever looks at clocks that are right: here it is shown to find one that is not.
#[test]
fn a_wrong_clock_that_serves_is_found() {
    if bank::IN_THIS_BUILD {
        let verdict = prove(bank::find("wrong-clock-serves").unwrap(), CPU_MAX);
        let found = verdict.found.as_ref().map(|f| f.to_string());
        println!("{:?}, {} runs: {found:?}", verdict.place, verdict.tries);
        assert!(verdict.holds(), "{found:?}, and without it {:?}", verdict.not_clean);
    }
}
