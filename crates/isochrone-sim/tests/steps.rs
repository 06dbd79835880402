//! A coordinator or a leader dies at any step of a commit, and leaderships change under single-key traffic.
//!
//! Each test plays the scripts of one step: every victim, every moment of the call, back soon and back late. What is
//! checked is at the top of `isochrone_sim::script::steps`.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isochrone_sim::script::steps::{At, Back, Case, Outcome, Second, Shape, Told, VICTIMS, Victim, play};
use isochrone_sim::script::{MOMENTS, Moment, Step, registers};

use tracing_subscriber::util::SubscriberInitExt;

/// What the nodes of this thread log as errors.
#[derive(Clone, Default)]
struct Errors(Arc<Mutex<Vec<u8>>>);

impl Write for Errors {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Errors {
    /// Runs something, and adds to its findings what the nodes said of broken invariants of the commit protocol.
    fn heard<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        let errors = Errors::default();
        let writer = errors.clone();
        let listening = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::ERROR)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .set_default();
        let result = run();
        drop(listening);
        let said = String::from_utf8_lossy(&errors.0.lock().unwrap()).into_owned();
        let broken: Vec<&str> = said.lines().filter(|l| l.contains("broken invariant")).collect();
        if broken.is_empty() { result } else { Err(format!("{:?}: {}", result.err(), broken.join("\n"))) }
    }
}

fn seeds(default: u64) -> u64 {
    std::env::var("ISOCHRONE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// What the scripts of a test came to.
struct Table {
    name: String,
    played: Vec<(Case, Outcome)>,
    failed: Vec<String>,
}

impl Table {
    fn new(name: impl Into<String>) -> Table {
        Table { name: name.into(), played: Vec::new(), failed: Vec::new() }
    }

    /// Under one seed; `ISOCHRONE_SEEDS=n` plays more of them.
    fn play(&mut self, case: Case) {
        for seed in 1..=seeds(1) {
            let case = Case { seed, ..case };
            match Errors::heard(|| play(&case)) {
                Ok(outcome) => self.played.push((case, outcome)),
                Err(e) => self.failed.push(format!("{case:?}: {e}")),
            }
        }
    }

    /// Prints the longest times by victim, and fails if a script did.
    fn end(self) -> Vec<(Case, Outcome)> {
        let mut longest: BTreeMap<String, [Duration; 3]> = BTreeMap::new();
        for (case, o) in &self.played {
            let victim = case.second.map_or(case.victim, |s| s.victim);
            let entry = longest.entry(format!("{victim:?}, {:?}", case.back)).or_default();
            for (max, took) in entry.iter_mut().zip([o.prepares_gone, o.written_again, o.told_after]) {
                *max = (*max).max(took);
            }
        }
        println!(
            "{}: {} scripts; longest until prepares gone, rows written, client told:",
            self.name,
            self.played.len()
        );
        for (victim, [gone, written, told]) in longest {
            println!("  {victim:<18} {gone:>8.1?} {written:>8.1?} {told:>8.1?}");
        }
        assert!(
            self.failed.is_empty(),
            "{} of {}:\n{}",
            self.failed.len(),
            self.name,
            self.failed.join("\n")
        );
        self.played
    }
}

fn each_victim_and_moment(shape: Shape, step: Step) -> Vec<(Case, Outcome)> {
    let mut table = Table::new(format!("{step:?} of {shape:?}"));
    for victim in VICTIMS {
        for moment in MOMENTS {
            for back in [Back::Soon, Back::Late] {
                table.play(Case::new(shape, At::Step(step, moment), victim, back));
            }
        }
    }
    table.end()
}

#[test]
fn validate() {
    each_victim_and_moment(Shape::ReadElsewhere, Step::Validate);
}

#[test]
fn commit1() {
    each_victim_and_moment(Shape::OnePiece, Step::Commit1);
}

#[test]
fn prepare_at_the_anchor() {
    each_victim_and_moment(Shape::TwoPieces, Step::PrepareAnchor);
}

#[test]
fn prepare_at_the_other_piece() {
    each_victim_and_moment(Shape::TwoPieces, Step::PrepareOther);
}

#[test]
fn prepare_after_validation() {
    each_victim_and_moment(Shape::ReadElsewhere, Step::PrepareAnchor);
    each_victim_and_moment(Shape::ReadElsewhere, Step::PrepareOther);
}

/// From the last prepare on a transaction is committed (R14), whoever dies.
fn all_there(played: Vec<(Case, Outcome)>) {
    for (case, outcome) in played {
        assert!(outcome.there, "R14: {case:?}: {outcome:?}");
    }
}

#[test]
fn decide() {
    all_there(each_victim_and_moment(Shape::TwoPieces, Step::Decide));
}

#[test]
fn decide_at_the_candidate() {
    all_there(each_victim_and_moment(Shape::ReadElsewhere, Step::Decide));
}

#[test]
fn resolve() {
    all_there(each_victim_and_moment(Shape::TwoPieces, Step::ResolveOther));
}

#[test]
fn acked() {
    all_there(each_victim_and_moment(Shape::TwoPieces, Step::Acked));
}

#[test]
fn validate_a_pushed_transaction() {
    for (case, outcome) in each_victim_and_moment(Shape::Pushed, Step::Validate) {
        // Only the coordinator can validate: without it recovery aborts. Heard: its decision is on the way.
        let before_decision = !matches!(case.at, At::Step(_, Moment::Heard));
        if case.victim == Victim::Coordinator && before_decision {
            assert!(!outcome.there, "{case:?}: {outcome:?}");
        }
    }
}

#[test]
fn decide_a_pushed_transaction() {
    for (case, outcome) in each_victim_and_moment(Shape::Pushed, Step::Decide) {
        if case.victim == Victim::Coordinator {
            let decided = !matches!(case.at, At::Step(_, Moment::Sent));
            assert_eq!(outcome.there, decided, "R15: {case:?}: {outcome:?}");
        }
    }
}

#[test]
fn decide_an_abort() {
    none_there(each_victim_and_moment(Shape::Refused, Step::Decide));
}

#[test]
fn resolve_an_abort() {
    none_there(each_victim_and_moment(Shape::Refused, Step::ResolveOther));
}

#[test]
fn acked_abort() {
    none_there(each_victim_and_moment(Shape::Refused, Step::Acked));
}

fn none_there(played: Vec<(Case, Outcome)>) {
    for (case, outcome) in played {
        assert!(!outcome.there, "R12: {case:?}: {outcome:?}");
    }
}

/// The coordinator leads pieces itself: what it does for itself crosses no network, but what it logs does. It dies when it
/// is about to send its n-th message, for every n.
fn at_every_message(nodes: [u32; 3], shape: Shape, messages: u64) {
    let mut table = Table::new(format!("every message of {shape:?}, coordinator and leaders {nodes:?}"));
    for n in 0..messages {
        let case = Case::new(shape, At::Message(n), Victim::Coordinator, Back::Soon);
        table.play(Case { nodes, ..case });
    }
    let played = table.end();
    // The first messages are too early for a commit, and before the last one everything was over.
    let (first, last) = (&played[0].1, &played[played.len() - 1].1);
    assert!(!first.there, "{first:?}");
    assert!(last.there && last.told == Told::Committed && last.prepares_gone == Duration::ZERO, "{last:?}");
}

#[test]
fn every_message_of_a_coordinator_with_the_anchor() {
    at_every_message([1, 1, 2], Shape::TwoPieces, 40);
}

#[test]
fn every_message_of_a_coordinator_with_the_other_piece() {
    at_every_message([2, 1, 2], Shape::TwoPieces, 40);
}

#[test]
fn every_message_of_a_coordinator_with_both() {
    at_every_message([1, 1, 1], Shape::TwoPieces, 40);
}

#[test]
fn every_message_of_one_piece() {
    at_every_message([1, 1, 2], Shape::OnePiece, 15);
}

/// A leader dies when it is about to send its n-th message: between the appends to its two followers, for one.
fn leader_at_every_message(victim: Victim) {
    let mut table = Table::new(format!("every message of the leader of {victim:?}"));
    for n in 0..30 {
        table.play(Case::new(Shape::TwoPieces, At::Message(n), victim, Back::Soon));
    }
    let played = table.end();
    let last = &played[played.len() - 1].1;
    assert!(last.there && last.told == Told::Committed && last.prepares_gone == Duration::ZERO, "{last:?}");
}

#[test]
fn every_message_of_the_anchors_leader() {
    leader_at_every_message(Victim::Anchor);
}

#[test]
fn every_message_of_the_other_pieces_leader() {
    leader_at_every_message(Victim::Other);
}

/// Both leaders are gone for longer than a coordinator waits. It gives up, asks the anchor for an abort (R19), and says what
/// it knows (R22).
#[test]
fn the_coordinator_gives_up() {
    let mut table = Table::new("both leaders gone");
    let steps = [
        (Shape::OnePiece, Step::Commit1),
        (Shape::TwoPieces, Step::PrepareAnchor),
        (Shape::TwoPieces, Step::PrepareOther),
        (Shape::TwoPieces, Step::Decide),
        (Shape::ReadElsewhere, Step::Validate),
        (Shape::Pushed, Step::Validate),
        (Shape::Pushed, Step::Decide),
        (Shape::Refused, Step::Decide),
    ];
    for (shape, step) in steps {
        for victim in [Victim::Anchor, Victim::Other] {
            for moment in MOMENTS {
                table.play(Case::new(shape, At::Step(step, moment), victim, Back::BothLater));
            }
        }
    }
    let played = table.end();
    let told = |t: Told| played.iter().filter(|(_, o)| o.told == t).count();
    let counts = [Told::Committed, Told::Aborted, Told::Unknown].map(told);
    println!("committed, aborted, unknown: {counts:?}");
    assert!(counts.iter().all(|n| *n > 0), "committed, aborted, unknown: {counts:?}");
}

/// The coordinator has died, and then the recoverer dies, or the leader that it talks to.
fn recovery(step: Step) {
    let mut table = Table::new(format!("{step:?} of recovery"));
    // All is prepared: committed. Pushed, and not validated: aborted.
    for (shape, first) in [(Shape::TwoPieces, Step::Decide), (Shape::Pushed, Step::Validate)] {
        for victim in [Victim::Other, Victim::Anchor] {
            for moment in MOMENTS {
                let at = At::Step(first, Moment::Sent);
                let case = Case::new(shape, at, Victim::Coordinator, Back::Soon);
                table.play(Case { second: Some(Second { step, moment, victim }), ..case });
            }
        }
    }
    for (case, outcome) in table.end() {
        assert_eq!(outcome.there, case.shape == Shape::TwoPieces, "R18: {case:?}: {outcome:?}");
    }
}

#[test]
fn recovery_asks() {
    recovery(Step::Ask);
}

#[test]
fn recovery_probes() {
    recovery(Step::ProbeAnchor);
}

#[test]
fn recovery_decides() {
    recovery(Step::Decide);
}

#[test]
fn recovery_resolves() {
    recovery(Step::ResolveAnchor);
}

#[test]
fn recovery_acknowledges() {
    recovery(Step::Acked);
}

/// No case passes by not happening.
#[test]
fn a_step_that_does_not_come_fails() {
    let at = At::Step(Step::Commit1, Moment::Sent);
    let error = play(&Case::new(Shape::TwoPieces, at, Victim::Anchor, Back::Soon)).unwrap_err();
    assert!(error.contains("ST1: the step was never reached"), "{error}");
}

#[test]
fn a_script_is_a_run() {
    let case =
        Case::new(Shape::TwoPieces, At::Step(Step::Decide, Moment::Received), Victim::Anchor, Back::Soon);
    assert_eq!(play(&case).unwrap(), play(&case).unwrap(), "SIM5");
}

/// 20 seeds; `ISOCHRONE_SEEDS=n` runs more of them.
#[test]
fn registers_are_linearizable_while_leaders_change() {
    let n = seeds(20);
    let mut longest: BTreeMap<registers::Change, (usize, Duration)> = BTreeMap::new();
    let (mut failed, mut done) = (Vec::new(), 0);
    for seed in 1..=n {
        match Errors::heard(|| registers::run(seed, 15)) {
            Ok(report) => {
                done += report.done;
                for (change, (count, took)) in report.changes {
                    let entry = longest.entry(change).or_default();
                    *entry = (entry.0 + count, entry.1.max(took));
                }
            }
            Err(e) => failed.push(e),
        }
    }
    println!("{done} operations; changes and the longest time to a success: {longest:?}");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(done as u64 > 1_000 * n, "{done} operations");
    assert!(longest.len() == 4, "every kind of change: {longest:?}");
}

#[test]
fn a_seed_is_a_run_of_registers() {
    assert_eq!(registers::run(7, 5).unwrap(), registers::run(7, 5).unwrap(), "SIM5");
}

#[test]
fn a_snapshot_stays_over_a_change_of_leaders() {
    use registers::Change::{CutOff, Graceful, Killed, PowerCut};
    let mut only_r1 = 0;
    for change in [Graceful, Killed, PowerCut, CutOff] {
        for wait in (0..500).step_by(50) {
            only_r1 +=
                u32::from(registers::snapshot_over_change(change, Duration::from_millis(wait)).unwrap());
        }
    }
    assert!(only_r1 >= 4, "the writer's clock was behind the snapshot {only_r1} times");
}
