//! Searches the model: `cargo run --release -p isochrone-model -- --list`.

use std::process::ExitCode;

use isochrone_env::Clock;
use isochrone_env::os::OsClock;
use isochrone_model::invariants::{Invariant, Set};
use isochrone_model::mistake::{Finding, NOT_EXPRESSED, findings};
use isochrone_model::{Config, Mistake, Model, Report, search, suite};

const USAGE: &str = "\
usage: isochrone-model [--config NAME|small|all] [--states N] [--mistake NAME|all] [--list]

Searches the commit protocol breadth first. Exit code 1: an invariant is broken, or a mistake is not found.

  --config NAME   one configuration, the small ones, or all (default: small)
  --states N      give up a configuration after so many distinct states (default: 10000000, about 1 GB)
  --mistake NAME  with this mistake, in the configuration given, or in its own; all: every mistake in its own
  --list          names of configurations and mistakes
";

const STATES_MAX: usize = 10_000_000;

struct Args {
    config: Option<String>,
    states: usize,
    mistake: Option<String>,
    list: bool,
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut out = Args { config: None, states: STATES_MAX, mistake: None, list: false };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--config" => out.config = Some(value()?),
            "--mistake" => out.mistake = Some(value()?),
            "--states" => {
                let n = value()?;
                let parsed = n.replace('_', "").parse().ok().filter(|n| *n > 0 && *n < u32::MAX as usize);
                out.states = parsed.ok_or_else(|| format!("--states {n} is not a number of states"))?;
            }
            "--list" => out.list = true,
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(out)
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(e) => {
            eprintln!("{e}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<bool, String> {
    if args.list {
        list();
        return Ok(true);
    }
    match args.mistake.as_deref() {
        Some("all") => Ok(all_mistakes(args.states)),
        Some(name) => one_mistake(name, args),
        None => Ok(correct(&configs(args.config.as_deref().unwrap_or("small"))?, args.states)),
    }
}

fn list() {
    println!("configurations:");
    for (which, configs) in [("small", suite::small()), ("large", suite::large())] {
        for c in configs {
            println!("  {:<28} {which}: {}", c.name, c.about);
        }
    }
    println!("mistakes:");
    for f in findings() {
        let bug = f.mistake.bug().map_or(String::new(), |bug| format!(" (bug bank: {bug})"));
        println!("  {:<34} {}{bug}", f.mistake.to_string(), f.breaks);
    }
    println!("mistakes that the model cannot express:");
    for (row, why) in NOT_EXPRESSED {
        println!("  {row}: {why}");
    }
}

fn configs(name: &str) -> Result<Vec<Config>, String> {
    let (small, large) = (suite::small(), suite::large());
    let all = || small.iter().chain(&large);
    match name {
        "small" => Ok(small),
        "all" => Ok(all().cloned().collect()),
        name => {
            let found = all().find(|c| c.name == name).cloned();
            Ok(vec![found.ok_or_else(|| format!("no configuration is called {name}; see --list"))?])
        }
    }
}

/// A search with its progress on stderr, and its seconds.
fn timed(model: &Model, watched: Set, states_max: usize) -> (Report, f64) {
    let clock = OsClock::new(0);
    let mut shown = 0.0;
    let report = search(model, watched, states_max, &mut |r, next| {
        if seconds(&clock) - shown >= 5.0 {
            shown = seconds(&clock);
            let name = &model.config.name;
            eprintln!("{name}: depth {}, {} states, {next} to expand", r.depth, r.states);
        }
    });
    (report, seconds(&clock))
}

/// Since the clock was made.
fn seconds(clock: &OsClock) -> f64 {
    clock.monotonic_ns() as f64 / 1e9
}

fn correct(configs: &[Config], states_max: usize) -> bool {
    let mut ok = true;
    println!(
        "{:<28} {:>10} {:>6} {:>9} {:>8}  verdict",
        "configuration", "states", "depth", "complete", "seconds"
    );
    for config in configs {
        let model = Model::new(config.clone(), None);
        let (r, seconds) = timed(&model, Set::ALL, states_max);
        let complete = if r.complete { "yes" } else { "cut" };
        let verdict = match &r.broken {
            None => "holds".to_string(),
            Some((t, _)) => format!("{t} IS BROKEN"),
        };
        println!(
            "{:<28} {:>10} {:>6} {complete:>9} {seconds:>8.1}  {verdict}",
            config.name, r.states, r.depth
        );
        if let Some((t, trace)) = &r.broken {
            println!("{t} breaks in {} steps:\n{}", trace.len(), model.narrate(trace));
            ok = false;
        }
    }
    ok
}

fn one_mistake(name: &str, args: &Args) -> Result<bool, String> {
    let finding = findings().into_iter().find(|f| f.mistake.to_string().eq_ignore_ascii_case(name));
    let finding = finding.ok_or_else(|| format!("no mistake is called {name}; see --list"))?;
    let (config, watched) = match args.config.as_deref() {
        Some(name) => (configs(name)?.swap_remove(0), Set::ALL),
        None => (finding.config.clone(), Set::one(finding.invariant)),
    };
    let model = Model::new(config, Some(finding.mistake));
    let (r, seconds) = timed(&model, watched, args.states);
    println!("{}: {}", finding.mistake, finding.breaks);
    match &r.broken {
        Some((t, trace)) => {
            println!("{t} breaks in {} steps ({} states, {seconds:.1} s):", trace.len(), r.states);
            print!("{}", model.narrate(trace));
        }
        None => println!("not found in {} states, {seconds:.1} s", r.states),
    }
    // A mistake is a violation, looked for and found.
    Ok(r.broken.is_none())
}

fn all_mistakes(states_max: usize) -> bool {
    let mut ok = true;
    println!(
        "{:<34} {:<28} {:>9} {:>5} {:>5} {:>9} {:>8}",
        "mistake", "configuration", "invariant", "steps", "table", "states", "seconds"
    );
    for Finding { mistake, table_steps, invariant, config, .. } in findings() {
        let model = Model::new(config, Some(mistake));
        let (r, seconds) = timed(&model, Set::one(invariant), states_max);
        let steps = r.broken.as_ref().map_or("none".to_string(), |(_, trace)| trace.len().to_string());
        let table = if table_steps == 0 { "-".to_string() } else { table_steps.to_string() };
        let (mistake, config, invariant): (Mistake, _, Invariant) = (mistake, &model.config.name, invariant);
        println!(
            "{:<34} {config:<28} {:>9} {steps:>5} {table:>5} {:>9} {seconds:>8.2}",
            mistake.to_string(),
            invariant.to_string(),
            r.states
        );
        ok &= r.broken.is_some();
    }
    ok
}
