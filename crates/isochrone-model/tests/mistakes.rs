//! Every mistake is found by its invariant; without it, the same configuration holds.

use std::collections::BTreeSet;

use isochrone_model::invariants::Set;
use isochrone_model::mistake::{Finding, NOT_EXPRESSED, findings};
use isochrone_model::{Model, search};

const STATES_MAX: usize = 1_000_000;

#[test]
fn every_mistake_is_found() {
    let mut wrong = Vec::new();
    println!("mistake, invariant: steps here / steps in the protocol's table");
    for Finding { mistake, invariant, steps, table_steps, config, .. } in findings() {
        let model = Model::new(config, Some(mistake));
        let r = search(&model, Set::one(invariant), STATES_MAX, &mut |_, _| {});
        let found = r.broken.as_ref().map(|(_, trace)| trace.len());
        println!("{mistake}, {invariant}: {found:?} / {table_steps}");
        if found != Some(steps) {
            let trace = r.broken.map_or(String::new(), |(_, trace)| model.narrate(&trace));
            wrong.push(format!("{mistake} breaks {invariant} in {found:?} steps, expected {steps}\n{trace}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// [`isochrone_model::Config::eager`] leaves out states, and no violation.
#[test]
fn facts_that_are_known_at_once_hide_nothing() {
    for Finding { mistake, invariant, steps, config, .. } in findings() {
        let model = Model::new(config.eager(), Some(mistake));
        let r = search(&model, Set::one(invariant), STATES_MAX, &mut |_, _| {});
        let (_, trace) = r.broken.unwrap_or_else(|| panic!("{mistake} is not found"));
        assert!(trace.len() <= steps, "{mistake}: {} steps, {steps} without", trace.len());
    }
}

#[test]
fn without_the_mistakes_the_same_configurations_hold() {
    let mut done = BTreeSet::new();
    for Finding { mistake, config, .. } in findings() {
        if !done.insert(format!("{config:?}")) {
            continue;
        }
        let model = Model::new(config, None);
        let r = search(&model, Set::ALL, STATES_MAX, &mut |_, _| {});
        if let Some((t, trace)) = &r.broken {
            panic!("{mistake}'s configuration: {t} breaks without it:\n{}", model.narrate(trace));
        }
        assert!(r.complete, "{mistake}'s configuration is too large: {} states", r.states);
    }
}

/// `docs/model.md` has a row for every mistake.
#[test]
fn the_page_says_the_same() {
    let page = include_str!("../../../docs/model.md");
    for Finding { mistake, invariant, steps, table_steps, config, .. } in findings() {
        let name = &config.name;
        let table = if table_steps == 0 { "-".to_string() } else { table_steps.to_string() };
        let row = format!("| `{mistake}` | {name} | {invariant} | {steps} | {table} |");
        assert!(page.contains(&row), "docs/model.md lacks the row {row}");
    }
    for (row, _) in NOT_EXPRESSED {
        assert!(page.contains(row), "docs/model.md lacks {row:?}");
    }
}

#[test]
fn a_trace_reads_as_a_story() {
    let finding = findings().into_iter().find(|f| f.mistake.to_string() == "NoRecordIsAbort").unwrap();
    let model = Model::new(finding.config, Some(finding.mistake));
    let (_, trace) = search(&model, Set::one(finding.invariant), STATES_MAX, &mut |_, _| {}).broken.unwrap();
    let story = model.narrate(&trace);
    let lines: Vec<&str> = story.lines().map(str::trim).collect();
    assert_eq!(lines.len(), trace.len());
    assert!(lines[0].starts_with("1. A's prepares leave, C = 3 (R9.3)"), "{story}");
    assert!(
        story.contains("a recoverer asks A's anchor (R18.1)") && story.contains("answers no record"),
        "{story}"
    );
    assert!(story.contains("CLIENT A HEARS COMMIT AT 3"), "{story}");
    assert!(lines.last().unwrap().contains("A.1 gets a resolve(abort) (R17)"), "{story}");
}

/// No invariant is idle: some mistake breaks it.
#[test]
fn every_invariant_can_break() {
    for invariant in isochrone_model::invariants::ALL {
        let by = findings().into_iter().find(|f| {
            let model = Model::new(f.config.clone(), Some(f.mistake));
            search(&model, Set::one(invariant), STATES_MAX, &mut |_, _| {}).broken.is_some()
        });
        println!("{invariant}: {:?}", by.as_ref().map(|f| f.mistake));
        assert!(by.is_some(), "no mistake breaks {invariant}");
    }
}
