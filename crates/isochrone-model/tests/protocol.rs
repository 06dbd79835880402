//! The protocol holds within the small bounds, all of them searched to the end.

use std::collections::BTreeSet;

use isochrone_model::invariants::Set;
use isochrone_model::{Model, search, suite};

const STATES_MAX: usize = 3_000_000;

#[test]
fn small_configurations_hold() {
    for config in suite::small() {
        let model = Model::new(config, None);
        let r = search(&model, Set::ALL, STATES_MAX, &mut |_, _| {});
        let name = &model.config.name;
        if let Some((t, trace)) = &r.broken {
            panic!("{name}: {t} breaks in {} steps:\n{}", trace.len(), model.narrate(trace));
        }
        assert!(
            r.complete,
            "{name}: cut at {} states; a small configuration is to be searched to its end",
            r.states
        );
        println!("{name}: {} states, depth {}", r.states, r.depth);
    }
}

/// A model in which nothing happens holds as well: every kind of step is taken, and every client hears everything.
#[test]
fn small_configurations_reach_everything() {
    let mut kinds = BTreeSet::new();
    let mut heard = BTreeSet::new();
    for config in suite::small() {
        let model = Model::new(config, None);
        let mut layer = vec![model.initial()];
        let mut successors = Vec::new();
        // Enough to meet each kind once: a thousand states of each layer.
        for _ in 0..40 {
            let mut next = Vec::new();
            for s in layer {
                model.successors(&s, &mut successors);
                for (step, after) in &successors {
                    kinds.insert(step.kind());
                    heard.extend(after.txns.iter().map(|t| format!("{:?}", t.heard.get())));
                }
                next.extend(successors.iter().map(|(_, s)| *s));
            }
            next.sort_unstable_by_key(isochrone_model::search::fingerprint);
            next.dedup();
            next.truncate(300);
            layer = next;
        }
    }
    let all = "Acked Apply Ask Begin Close DecideAbort DecideCommit FollowerRead GiveUp HearAbort HearCommit HearPiece \
               HearRefusal Implicit Lease Merge Prepare Probe RaiseFloor Read Refuse ResolveAbort \
               ResolveCommit Revalidate Send StaleRead Validate";
    assert_eq!(kinds, all.split_whitespace().map(String::from).collect());
    assert!(heard.len() >= 4, "{heard:?}");
}
