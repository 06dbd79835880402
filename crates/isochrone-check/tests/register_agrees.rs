//! The register checker against a search of all orders.

mod common;

use std::collections::BTreeMap;

use common::Rng;
use isochrone_check::Anomaly;
use isochrone_check::register::{Answer, Content, Op, OpNo, RegisterChecker};

#[derive(Clone, Debug)]
struct Call {
    op: Op,
    answer: Answer,
    start: u64,
    finish: u64,
}

/// Calls and the order of begins (true) and ends (false).
#[derive(Clone, Debug, Default)]
struct History {
    calls: Vec<Call>,
    events: Vec<(bool, usize)>,
}

struct Shape {
    calls: usize,
    clients: u64,
    unknown: u64,
    cas: u64,
    stale: u64,
}

fn generate(rng: &mut Rng, shape: &Shape) -> History {
    struct Running {
        call: usize,
        effect_done: bool,
        happens: bool,
    }
    let mut h = History::default();
    let mut running: BTreeMap<u64, Running> = BTreeMap::new();
    // Operations of unknown outcome that may still happen.
    let mut late: Vec<usize> = Vec::new();
    let (mut register, mut past): (Content, Vec<Content>) = (None, vec![None]);
    let (mut clock, mut next_value) = (0, 1);
    let act = |call: &mut Call, register: &mut Content| match call.op {
        Op::Read => call.answer = Answer::Holds(*register),
        Op::Write(value) => {
            *register = Some(value);
            call.answer = Answer::Done;
        }
        Op::Cas { expect, new } if *register == expect => {
            *register = Some(new);
            call.answer = Answer::Done;
        }
        Op::Cas { .. } => call.answer = Answer::Holds(*register),
    };
    while h.calls.len() < shape.calls || !running.is_empty() {
        clock += rng.below(3);
        let client = rng.below(shape.clients);
        if !late.is_empty() && rng.chance(10) {
            let call = late.swap_remove(rng.below(late.len() as u64) as usize);
            act(&mut h.calls[call].clone(), &mut register);
            past.push(register);
            continue;
        }
        match running.get_mut(&client) {
            None if h.calls.len() == shape.calls => {}
            None => {
                let expect = past[past.len() - 1 - rng.below(past.len().min(2) as u64) as usize];
                let op = match rng.below(100) {
                    dice if dice < shape.cas => Op::Cas { expect, new: next_value },
                    dice if dice < 30 + shape.cas => Op::Write(next_value),
                    _ => Op::Read,
                };
                next_value += 1;
                let call = h.calls.len();
                h.calls.push(Call { op, answer: Answer::Unknown, start: clock, finish: 0 });
                h.events.push((true, call));
                running.insert(
                    client,
                    Running { call, effect_done: false, happens: !rng.chance(shape.unknown) },
                );
            }
            Some(r) if !r.effect_done => {
                r.effect_done = true;
                let call = &mut h.calls[r.call];
                if r.happens {
                    act(call, &mut register);
                    past.push(register);
                    if call.op == Op::Read && rng.chance(shape.stale) {
                        call.answer = Answer::Holds(past[rng.below(past.len() as u64) as usize]);
                    }
                } else if call.op == Op::Read || rng.chance(30) {
                    call.answer = Answer::Failed;
                } else {
                    late.push(r.call);
                    if rng.chance(50) {
                        act(&mut call.clone(), &mut register);
                        past.push(register);
                        late.pop();
                    }
                }
            }
            Some(_) => {
                let r = running.remove(&client).unwrap();
                h.calls[r.call].finish = clock;
                h.events.push((false, r.call));
            }
        }
    }
    h
}

fn mutate(rng: &mut Rng, h: &mut History) {
    let i = rng.below(h.calls.len() as u64) as usize;
    let answer = match h.calls[i].op {
        Op::Read => Answer::Holds(Some(1 + rng.below(h.calls.len() as u64))),
        _ => [Answer::Done, Answer::Failed, Answer::Unknown][rng.below(3) as usize],
    };
    h.calls[i].answer = answer;
}

fn feed(h: &History, checker: &mut RegisterChecker, key: u64) {
    let mut numbers: BTreeMap<usize, OpNo> = BTreeMap::new();
    for (begins, i) in &h.events {
        let call = &h.calls[*i];
        if *begins {
            numbers.insert(*i, checker.begin(key, call.op, call.start));
        } else {
            checker.finish(numbers[i], call.answer, call.finish);
        }
    }
}

/// Tries every choice of unknown outcomes and every order. Failed compare-and-sets without a value are not judged.
fn linearizable(h: &History) -> bool {
    fn go(h: &History, todo: u32, register: Content, must: u32) -> bool {
        if todo & must == 0 {
            return true;
        }
        (0..h.calls.len()).filter(|i| todo >> i & 1 == 1).any(|i| {
            let call = &h.calls[i];
            // Whatever must happen and was answered before this was called comes first.
            let waits = (0..h.calls.len())
                .any(|j| (todo & must) >> j & 1 == 1 && j != i && h.calls[j].finish < call.start);
            if waits {
                return false;
            }
            let next = match (call.op, call.answer) {
                (_, Answer::Holds(content)) if content == register => register,
                (_, Answer::Holds(_)) => return false,
                (Op::Write(value), _) => Some(value),
                (Op::Cas { expect, new }, _) if expect == register => Some(new),
                _ => return false,
            };
            go(h, todo & !(1 << i), next, must)
        })
    }
    let (mut todo, mut must) = (0, 0);
    for (i, call) in h.calls.iter().enumerate() {
        let unknown = call.answer == Answer::Unknown;
        if call.answer == Answer::Failed || (unknown && call.op == Op::Read) {
            continue;
        }
        todo |= 1 << i;
        must |= u32::from(!unknown) << i;
        // A value in hand before its writer had begun: times may be equal, but the calls came in this order.
        if let Answer::Holds(Some(value)) = call.answer {
            let writes = |c: &Call| matches!(c.op, Op::Write(v) | Op::Cas { new: v, .. } if v == value);
            let begun =
                h.calls.iter().position(writes).map(|w| h.events.iter().position(|e| *e == (true, w)));
            if begun > Some(h.events.iter().position(|e| *e == (false, i))) {
                return false;
            }
        }
    }
    go(h, todo, None, must)
}

#[test]
fn verdicts_are_those_of_a_search_of_all_orders() {
    let seeds = std::env::var("CHECK_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(40_000);
    let (mut good, mut bad) = (0, 0);
    for seed in 0..seeds {
        let mut rng = Rng(seed);
        let shape = Shape {
            calls: 2 + rng.below(7) as usize,
            clients: 1 + rng.below(4),
            unknown: rng.below(40),
            cas: [0, 20, 60][rng.below(3) as usize],
            stale: [0, 20][rng.below(2) as usize],
        };
        let mut h = generate(&mut rng, &shape);
        if rng.chance(40) {
            mutate(&mut rng, &mut h);
        }
        let mut checker = RegisterChecker::new(100);
        feed(&h, &mut checker, 1);
        let found = checker.findings().take();
        let linearizable = linearizable(&h);
        assert_eq!(found.is_empty(), linearizable, "seed {seed}: {found:#?}\n{:#?}", h.calls);
        good += u64::from(linearizable);
        bad += u64::from(!linearizable);
    }
    println!("{good} linearizable, {bad} not");
    assert!(good > seeds / 10 && bad > seeds / 10);
}

#[test]
fn long_runs_cost_little_and_are_never_flagged() {
    for seed in 0..20 {
        let mut rng = Rng(seed);
        let shape = Shape { calls: 5_000, clients: 8, unknown: [0, 2][seed as usize % 2], cas: 20, stale: 0 };
        let h = generate(&mut rng, &shape);
        let unknown = h.calls.iter().filter(|c| c.answer == Answer::Unknown).count();
        let mut checker = RegisterChecker::new(10_000);
        feed(&h, &mut checker, 1);
        assert_eq!(checker.findings().take(), [], "seed {seed}");
        assert!(checker.held(1) <= unknown + 40, "seed {seed}: {} with {unknown} unknown", checker.held(1));
        checker.retire(1);
        assert_eq!(checker.held(1), 0);
    }
}

#[test]
fn a_stale_read_late_in_a_long_run_is_found() {
    for seed in 0..50 {
        let mut rng = Rng(seed);
        let shape = Shape { calls: 2_000, clients: 4, unknown: 1, cas: 20, stale: 0 };
        let mut h = generate(&mut rng, &shape);
        let i = 1_000 + rng.below(900) as usize;
        let Some(read) = (i..2_000).find(|i| h.calls[*i].op == Op::Read) else { continue };
        let start = h.calls[read].start;
        // The value of a write that had been replaced and read over by then.
        let Some(old) = h.calls[..read - 200].iter().rev().find_map(|c| match (c.op, c.answer) {
            (Op::Write(value), Answer::Done) if c.finish < start => Some(value),
            _ => None,
        }) else {
            continue;
        };
        h.calls[read].answer = Answer::Holds(Some(old));
        let mut checker = RegisterChecker::new(10_000);
        feed(&h, &mut checker, 1);
        let found = checker.findings().take();
        assert_eq!(found.first().map(|f| f.anomaly), Some(Anomaly::NotLinearizable), "seed {seed}");
    }
}

fn run(calls: &[(Op, Answer, u64, u64)]) -> Option<(Anomaly, &'static str)> {
    let mut h = History::default();
    for (i, (op, answer, start, finish)) in calls.iter().enumerate() {
        h.calls.push(Call { op: *op, answer: *answer, start: *start, finish: *finish });
        h.events.extend([(true, i), (false, i)]);
    }
    h.events
        .sort_by_key(|(begins, i)| if *begins { (h.calls[*i].start, 0) } else { (h.calls[*i].finish, 1) });
    let mut checker = RegisterChecker::new(100);
    feed(&h, &mut checker, 1);
    checker.findings().take().first().map(|f| (f.anomaly, f.invariant()))
}

#[test]
fn by_hand() {
    let read = |v| (Op::Read, Answer::Holds(v));
    let write = |v| (Op::Write(v), Answer::Done);
    let at = |(op, answer): (Op, Answer), start, finish| (op, answer, start, finish);
    let bad = Some((Anomaly::NotLinearizable, "CH6"));
    // A read beside two writes may return either, but not back and forth.
    assert_eq!(run(&[at(write(1), 0, 9), at(write(2), 0, 9), at(read(Some(1)), 10, 11)]), None);
    let both = [at(write(1), 0, 9), at(write(2), 0, 9), at(read(Some(1)), 10, 11), at(read(Some(2)), 12, 13)];
    assert_eq!(run(&both), bad);
    // A write that was acknowledged is seen by later calls.
    assert_eq!(run(&[at(write(1), 0, 1), at(read(None), 2, 3)]), bad);
    assert_eq!(run(&[at(write(1), 0, 2), at(read(None), 2, 3)]), None);
    // An unknown write may happen late, but once.
    let unknown = (Op::Write(1), Answer::Unknown);
    let late = [at(unknown, 0, 1), at(write(2), 2, 3), at(read(Some(2)), 4, 5), at(read(Some(1)), 6, 7)];
    assert_eq!(run(&late), None);
    assert_eq!(run(&[&late[..], &[at(read(Some(2)), 8, 9)]].concat()), bad);
    // A failed write is never seen, whichever is heard first.
    let visible = Some((Anomaly::AbortedVisible, "T3"));
    let failed = (Op::Write(1), Answer::Failed);
    assert_eq!(run(&[at(failed, 0, 1), at(read(Some(1)), 2, 3)]), visible);
    assert_eq!(run(&[at(failed, 0, 5), at(read(Some(1)), 2, 3)]), visible);
    // One value is replaced by one compare-and-set only.
    let cas = |expect, new| (Op::Cas { expect, new }, Answer::Done);
    assert_eq!(run(&[at(cas(None, 1), 0, 9), at(cas(Some(1), 2), 0, 9)]), None);
    assert_eq!(run(&[at(write(1), 0, 9), at(cas(Some(1), 2), 0, 9), at(cas(Some(1), 3), 0, 9)]), bad);
    // Nothing comes between a compare-and-set and the write that it met.
    let between = [at(write(1), 0, 1), at(write(3), 2, 3), at(cas(Some(1), 2), 4, 5)];
    assert_eq!(run(&between), bad);
    assert_eq!(run(&[at(write(1), 0, 1), at(read(Some(7)), 2, 3)]), bad);
    assert_eq!(run(&[at(write(1), 0, 1), at(write(1), 2, 3)]).unwrap().0, Anomaly::Malformed);
}

#[test]
fn past_the_bound_on_unknown_outcomes_nothing_is_invented() {
    let mut checker = RegisterChecker::new(2);
    let mut at = 0;
    let mut call = |checker: &mut RegisterChecker, op, answer| {
        let no = checker.begin(1, op, at);
        checker.finish(no, answer, at + 1);
        at += 2;
    };
    for value in 1..=5 {
        call(&mut checker, Op::Write(value), Answer::Unknown);
    }
    call(&mut checker, Op::Read, Answer::Holds(Some(1)));
    call(&mut checker, Op::Read, Answer::Holds(Some(5)));
    assert_eq!((checker.findings().take(), checker.unjudged()), (vec![], 1));
    // The last two of unknown outcome, and the initial value until the next call shows that nothing can read it.
    assert_eq!(checker.held(1), 3);
}
