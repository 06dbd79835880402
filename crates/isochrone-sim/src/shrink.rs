//! Makes a failure small: fewer workloads, fewer kinds of trouble, fewer clients, less time, as long as the same invariant
//! breaks.
//!
//! Delta debugging by hand (Zeller and Hildebrandt, TSE 2002): what can be left out is tried one after the other, over and
//! over, until nothing more can go. Every kind of trouble has its own stream of the seed, so that what stays comes at the same
//! times.

use std::time::Duration;

use crate::{Failure, Options, Tuning, Workload, run};

/// Runs that are tried at most.
pub const TRIES_MAX: usize = 400;

/// The smallest reproduction found.
pub struct Shrunk {
    /// What to run.
    pub options: Options,
    /// How it fails.
    pub failure: Box<Failure>,
    /// Runs that it took.
    pub tries: usize,
}

/// Shrinks a run that failed; `say` hears of every step that held.
pub fn shrink(options: Options, failure: Box<Failure>, say: &mut dyn FnMut(&str)) -> Shrunk {
    let mut best = Shrunk { options, failure, tries: 0 };
    while best.tries < TRIES_MAX {
        let before = best.options.clone();
        for (what, smaller) in smaller(&best.options, best.failure.at) {
            if best.tries == TRIES_MAX || smaller == best.options || !still_smaller(&smaller, &best.options) {
                continue;
            }
            best.tries += 1;
            if let Err(failure) = run(smaller.clone())
                && failure.found.id == best.failure.found.id
            {
                say(&format!("{what}: {} still breaks, at {:?}", failure.found.id, failure.at));
                best = Shrunk { options: smaller, failure, tries: best.tries };
            }
        }
        if best.options == before {
            break;
        }
    }
    best
}

/// A candidate was made of an earlier best: it counts only if it takes nothing back.
fn still_smaller(candidate: &Options, best: &Options) -> bool {
    candidate.workloads.is_subset(&best.workloads)
        && candidate.faults.keys().all(|f| best.faults.contains_key(f))
        && candidate.seconds <= best.seconds
        && candidate.clients <= best.clients
}

pub(crate) fn smaller(options: &Options, failed_at: Duration) -> Vec<(String, Options)> {
    let mut out = Vec::new();
    let mut offer = |what: String, change: &dyn Fn(&mut Options)| {
        let mut smaller = options.clone();
        change(&mut smaller);
        out.push((what, smaller));
    };
    for fault in options.faults.keys() {
        offer(format!("without {}", fault.name()), &|o| {
            o.faults.remove(fault);
            if !o.faults.contains_key(&crate::Fault::Tuning) {
                o.tuning = Tuning::USUAL;
            }
        });
    }
    for (workload, name) in Workload::ALL {
        if options.workloads.len() > 1 && options.workloads.contains(workload) {
            offer(format!("without {name}"), &|o| _ = o.workloads.remove(workload));
        }
    }
    if options.clients > 1 {
        offer("one client".into(), &|o| o.clients = 1);
    }
    if options.early {
        offer("trouble later".into(), &|o| o.early = false);
    }
    let needed = failed_at.as_secs() + 1;
    for seconds in [options.seconds / 2, options.seconds * 3 / 4, needed] {
        if seconds > 0 && seconds < options.seconds {
            offer(format!("{seconds} seconds"), &|o| o.seconds = seconds);
        }
    }
    out
}
