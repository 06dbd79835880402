//! `isochrone sim`: runs clusters under seeds, prints what was drawn, what was found, and how to see it again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use isochrone_base::bank::{self, Bug};
use isochrone_base::hash::Fnv64;

use crate::shrink::shrink;
use crate::workload::custom::Script;
use crate::{Failure, Fault, Level, Options, Report, Sink, Wanted, Workload, bugs, run, run_with};

/// Events shown before a finding.
const SHOWN_MAX: usize = 40;
/// After this long without the end of any seed, those that run are named: one may never end.
const QUIET: Duration = Duration::from_secs(120);
/// Stack of a thread that runs a seed: statements nest.
const STACK_BYTES: usize = 64 << 20;

/// Runs whole clusters in one thread each, under a seed that decides time, network, disks, clocks and scheduling.
///
///   isochrone sim                                  one seed of three nodes for a virtual minute
///   isochrone sim --seed 7                         the same run again, event by event
///   isochrone sim --seeds 100                      100 seeds, on all cores
///   isochrone sim --seed 7 --trace events.txt      every event of it
///   isochrone sim --seed 7 --shrink                the smallest run in which the same check fails
///   isochrone sim --workload append --faults none  lists only, and nothing goes wrong
///   isochrone sim --faults power,drop              exactly these kinds of trouble
///
/// Prints the seed and everything that was drawn from it; a check that failed, with its invariant, the events
/// before it, and the command that shows it again. The last line is the summary:
///
///   seed=S simulated_s=... ops=... faults=... violations=... trace=HASH
///
/// Exit code 0: no check failed; 1: one did; 2: the command line is wrong. What the checks are: docs/simulation.md.
#[derive(clap::Args, Debug, Clone)]
#[command(verbatim_doc_comment)]
pub struct SimArgs {
    /// The first seed.
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// How many seeds, from the first one on.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub seeds: u64,
    /// Begins no more seeds once so much CPU time was used, in seconds; with --bug all, for each bug.
    #[arg(long, value_name = "N")]
    pub cpu_seconds: Option<u64>,
    /// What clients do: names, exactly these, of bank, append, register; all: each seed picks; or a file of your own that ends
    /// in .sql (see docs/simulation.md).
    #[arg(long, value_name = "LIST", default_value = "all")]
    pub workload: String,
    /// The level of the transactions that append: serializable, external, repeatable-read, read-committed; all: each seed
    /// picks among them, but not external, where a COMMIT waits for clocks.
    #[arg(long, value_name = "LEVEL", default_value = "all")]
    pub level: String,
    /// Clients of each workload, per node; without it, each seed picks.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100))]
    pub clients: Option<u64>,
    /// Nothing goes wrong before the tables are made.
    #[arg(long)]
    pub late: bool,
    /// How many nodes: 1, or 3 and more. Where seeds replace nodes, three get one to spare.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub nodes: u32,
    /// Virtual seconds of load; setting up and the end come on top.
    #[arg(long, value_name = "VIRTUAL", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// What goes wrong: names, exactly these; all: each seed picks; all,-NAME,..: of all but these; all,NAME: also
    /// clock-beyond, which all leaves out; none.
    #[arg(long, value_name = "LIST", default_value = "all")]
    pub faults: String,
    /// Writes every event of the run to a file; one seed only.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Makes a failure smaller before it is shown.
    #[arg(long)]
    pub shrink: bool,
    /// Puts a bug of the bank back, to see that it is found; not in release builds. --bug list names them, --bug all
    /// looks for each that was ever found, --bug others for each that was not.
    #[arg(long, value_name = "NAME")]
    pub bug: Option<String>,
    /// Threads; 0: as many as there are cores.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
}

/// What a command line asks for.
struct Asked {
    wanted: Wanted,
    bug: Option<&'static Bug>,
}

/// Runs the command. Exit code 0 or 1; an error is a wrong command line.
pub fn command(args: &SimArgs) -> Result<i32> {
    if args.bug.as_deref() == Some("list") {
        for bug in bank::BUGS {
            println!("{:<34} {:<14} {}", bug.name, bug.found_by.join(","), bug.what);
        }
        return Ok(0);
    }
    match args.bug.as_deref() {
        Some("all") => return prove_bugs(args, true),
        Some("others") => return prove_bugs(args, false),
        _ => {}
    }
    let asked = read(args)?;
    println!(
        "seed {}, {} of them; {} nodes, {} virtual seconds",
        args.seed, args.seeds, args.nodes, args.seconds
    );
    if let Some(bug) = asked.bug {
        println!("with the bug {}: {}", bug.name, bug.what);
    }
    let total = if args.seeds == 1 { one(args, &asked)? } else { many(args, &asked)? };
    println!(
        "seed={} simulated_s={:.1} ops={} faults={} violations={} trace={:016x}",
        args.seed, total.simulated_s, total.ops, total.faults, total.violations, total.trace
    );
    Ok(i32::from(total.violations > 0))
}

fn read(args: &SimArgs) -> Result<Asked> {
    if args.nodes == 0 || args.nodes == 2 || args.nodes > 9 {
        bail!("--nodes {}: a cluster is simulated with 1 node, or with 3 to 9", args.nodes);
    }
    if args.trace.is_some() && args.seeds > 1 {
        bail!("--trace writes one run: leave --seeds away");
    }
    let mut wanted = Wanted { clients: args.clients, late: args.late, ..Wanted::all() };
    if args.workload.ends_with(".sql") {
        let text = std::fs::read_to_string(&args.workload)
            .with_context(|| format!("cannot read {}", args.workload))?;
        let script = Script::parse(&text).map_err(|e| anyhow::anyhow!("{}: {e}", args.workload))?;
        wanted.custom = Some(Arc::new(script));
    } else if args.workload != "all" {
        (wanted.workloads, wanted.every_workload) = (BTreeSet::new(), true);
        for name in args.workload.split(',') {
            let known = Workload::ALL.iter().find(|(_, n)| *n == name).map(|(w, _)| *w);
            let names: Vec<_> = Workload::ALL.iter().map(|(_, n)| *n).collect();
            wanted.workloads.insert(
                known
                    .with_context(|| format!("--workload {name}: there are {} and all", names.join(", ")))?,
            );
        }
    }
    if args.level != "all" {
        let known = Level::ALL.iter().find(|(_, n)| *n == args.level).map(|(level, _)| *level);
        let names: Vec<_> = Level::ALL.iter().map(|(_, n)| *n).collect();
        wanted.level =
            Some(known.with_context(|| {
                format!("--level {}: there are {} and all", args.level, names.join(", "))
            })?);
    }
    match args.faults.as_str() {
        "all" => {}
        "none" => wanted.faults = BTreeSet::new(),
        list if list.starts_with("all,") => {
            for name in list.split(',').skip(1) {
                match name.strip_prefix('-') {
                    Some(name) => wanted.faults.remove(&fault(name)?),
                    None => wanted.faults.insert(fault(name)?),
                };
            }
        }
        list => {
            wanted.exactly = true;
            wanted.faults = list.split(',').map(fault).collect::<Result<_>>()?;
        }
    }
    let bug = match &args.bug {
        None => None,
        Some(_) if !bank::IN_THIS_BUILD => {
            bail!(
                "--bug: this is a release build, which has no bugs to put back; use `cargo run -- sim --bug ..`"
            )
        }
        Some(name) => {
            Some(bank::find(name).with_context(|| format!("--bug {name}: not in the bank; see --bug list"))?)
        }
    };
    Ok(Asked { wanted, bug })
}

fn fault(name: &str) -> Result<Fault> {
    let names: Vec<_> = Fault::ALL.iter().map(|(_, n)| *n).collect();
    Fault::find(name)
        .with_context(|| format!("--faults {name}: there are {}, all and none", names.join(", ")))
}

/// Sums over seeds.
#[derive(Default)]
struct Total {
    simulated_s: f64,
    ops: u64,
    faults: u64,
    violations: u64,
    trace: u64,
}

impl Total {
    fn add(&mut self, ended: &Result<Report, Box<Failure>>) {
        let (simulated, ops, faults, trace, violations) = match ended {
            Ok(r) => (r.simulated, r.ops, r.faults, r.trace, 0),
            Err(f) => (f.at, f.ops, f.faults, f.trace, 1),
        };
        self.simulated_s += simulated.as_secs_f64();
        self.ops += ops;
        self.faults += faults;
        self.violations += violations;
        // Of one seed its own; of several all of them, in their order.
        self.trace = if self.trace == 0 {
            trace
        } else {
            let mut hash = Fnv64::default();
            hash.update(&self.trace.to_be_bytes());
            hash.update(&trace.to_be_bytes());
            hash.finish()
        };
    }
}

/// Every bug of the bank that was found before, or that was not, and a table of what became of it.
fn prove_bugs(args: &SimArgs, known: bool) -> Result<i32> {
    if !bank::IN_THIS_BUILD {
        bail!(
            "--bug: this is a release build, which has no bugs to put back; use `cargo run -- sim --bug all`"
        );
    }
    println!("| bug | found by | CPU s | runs | where | without it |");
    println!("|---|---|---|---|---|---|");
    let next = AtomicU64::new(0);
    let asked: Vec<_> = bank::BUGS.iter().filter(|b| bugs::is_known(b) == known).collect();
    let cpu_max = args.cpu_seconds.map_or(bugs::CPU_MAX, Duration::from_secs);
    let (sender, verdicts) = mpsc::sync_channel(1);
    let mut cpu = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        for _ in 0..threads(args) {
            let (next, sender, asked) = (&next, sender.clone(), &asked);
            let work = move || {
                while let Some(bug) = asked.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    if sender.send(bugs::prove(bug, cpu_max)).is_err() {
                        return;
                    }
                }
            };
            std::thread::Builder::new()
                .name("sim".into())
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, work)?;
        }
        drop(sender);
        for v in verdicts {
            let by = v.found.as_ref().map_or("NOT FOUND".to_string(), |f| f.found.id.to_string());
            let clean = if v.not_clean.is_some() { "NOT CLEAN" } else { "clean" };
            let named = if v.holds() { "" } else { " (!)" };
            let (name, s, runs) = (v.bug.name, v.cpu.as_secs_f64(), v.tries);
            println!("| {name} | {by}{named} | {s:.1} | {runs} | {:?} {} | {clean} |", v.place.0, v.place.1);
            cpu.push((v.holds(), s));
        }
        Ok(())
    })?;
    let mut found: Vec<f64> = cpu.iter().filter(|(holds, _)| *holds).map(|(_, s)| *s).collect();
    found.sort_by(f64::total_cmp);
    println!(
        "{} of {} bugs found by a checker named for them; CPU seconds: median {:.1}, most {:.1}",
        found.len(),
        cpu.len(),
        found.get(found.len() / 2).unwrap_or(&0.0),
        found.last().unwrap_or(&0.0)
    );
    Ok(i32::from(found.len() < cpu.len()))
}

fn threads(args: &SimArgs) -> usize {
    match args.threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    }
}

/// A thread of its own: with a stack that deep statements need, and the bug put back there.
fn on_a_thread<T: Send>(bug: Option<&'static Bug>, work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let run = move || {
            bank::put_back(bug);
            work()
        };
        let thread = std::thread::Builder::new()
            .name("sim".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, run)?;
        thread.join().map_err(|_| anyhow::anyhow!("the simulator panicked"))
    })
}

fn one(args: &SimArgs, asked: &Asked) -> Result<Total> {
    let options = Options::draw(args.seed, args.nodes, args.seconds, &asked.wanted);
    println!("{options}");
    let sink = match &args.trace {
        None => None,
        Some(path) => {
            let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            let mut out = BufWriter::new(file);
            let sink: Sink = Box::new(move |line| {
                // A trace that cannot be written is missed by its reader, not by the run.
                let _ = writeln!(out, "{line}");
            });
            Some(sink)
        }
    };
    let ended = on_a_thread(asked.bug, || run_with(options.clone(), sink))?;
    let mut total = Total::default();
    total.add(&ended);
    match ended {
        Ok(report) => println!(
            "{} transactions committed, {} aborted, {} of unknown outcome; {} ends of nodes, {} partitions",
            report.committed, report.aborted, report.unknown, report.crashes, report.partitions
        ),
        Err(failure) => show(args, asked, options, failure)?,
    }
    Ok(total)
}

fn show(args: &SimArgs, asked: &Asked, options: Options, failure: Box<Failure>) -> Result<()> {
    let (options, failure) = if args.shrink {
        println!("{failure}\nshrinking ...");
        let shrunk = on_a_thread(asked.bug, || shrink(options, failure, &mut |step| println!("  {step}")))?;
        println!("smallest after {} runs:\n{}", shrunk.tries, shrunk.options);
        (shrunk.options, shrunk.failure)
    } else {
        (options, failure)
    };
    println!("\nwhat led to it (seconds, event, numbers):");
    for line in &failure.recent[failure.recent.len().saturating_sub(SHOWN_MAX)..] {
        println!("{line}");
    }
    println!("\nVIOLATION of {}: {failure}\n", failure.found.id);
    println!("see it again: isochrone sim {}", again(args, &options));
    let smaller = if args.shrink { "" } else { "; make it smaller: add --shrink" };
    println!("every event of it: add --trace FILE{smaller}");
    Ok(())
}

/// The arguments that show a run again.
fn again(args: &SimArgs, options: &Options) -> String {
    let mut args = args.clone();
    let joined = |names: Vec<&str>, or: &str| if names.is_empty() { or.to_string() } else { names.join(",") };
    if args.shrink {
        // As small as it was made: what it has, name by name.
        args.faults = joined(options.faults.keys().map(|f| f.name()).collect(), "none");
        if options.custom.is_none() {
            args.workload = joined(options.workloads.iter().map(|w| w.name()).collect(), "all");
        }
        (args.seconds, args.clients, args.late) = (options.seconds, Some(options.clients), !options.early);
    }
    let mut out = format!("--seed {}", options.seed);
    if args.nodes != 3 {
        out += &format!(" --nodes {}", args.nodes);
    }
    if args.seconds != 60 {
        out += &format!(" --seconds {}", args.seconds);
    }
    for (flag, value) in
        [("--workload", &args.workload), ("--level", &args.level), ("--faults", &args.faults)]
    {
        if value != "all" {
            out += &format!(" {flag} {value}");
        }
    }
    if let Some(clients) = args.clients {
        out += &format!(" --clients {clients}");
    }
    if args.late {
        out += " --late";
    }
    if let Some(bug) = &args.bug {
        out += &format!(" --bug {bug}");
    }
    out
}

fn many(args: &SimArgs, asked: &Asked) -> Result<Total> {
    let threads = threads(args);
    let next = AtomicU64::new(0);
    let used_ns = AtomicU64::new(0);
    let budget_ns = args.cpu_seconds.map_or(u64::MAX, |s| s.saturating_mul(1_000_000_000));
    let (sender, ended) = mpsc::sync_channel::<(u64, Result<Report, Box<Failure>>)>(threads);
    let mut total = Total::default();
    let running: Mutex<BTreeMap<u64, Options>> = Mutex::default();
    std::thread::scope(|scope| -> Result<()> {
        for _ in 0..threads.min(usize::try_from(args.seeds).unwrap_or(threads)) {
            let (next, used_ns, running, sender) = (&next, &used_ns, &running, sender.clone());
            let lock = || running.lock().expect("nothing panics while it is held");
            let work = move || {
                bank::put_back(asked.bug);
                let mut before = bugs::cpu_time();
                loop {
                    let now = bugs::cpu_time();
                    let used = (now - before).as_nanos() as u64;
                    before = now;
                    if used_ns.fetch_add(used, Ordering::Relaxed) + used > budget_ns {
                        return;
                    }
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= args.seeds {
                        return;
                    }
                    let seed = args.seed.wrapping_add(n);
                    let options = Options::draw(seed, args.nodes, args.seconds, &asked.wanted);
                    lock().insert(seed, options.clone());
                    let result = run(options);
                    lock().remove(&seed);
                    if sender.send((n, result)).is_err() {
                        return;
                    }
                }
            };
            std::thread::Builder::new()
                .name("sim".into())
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, work)?;
        }
        drop(sender);
        // Added up in the order of seeds, whatever the order in which they end.
        let mut waiting = BTreeMap::new();
        let (mut added, mut quiet) = (0, Duration::ZERO);
        loop {
            let (n, result) = match ended.recv_timeout(QUIET) {
                Ok(next) => next,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    quiet += QUIET;
                    eprintln!("no seed has ended for {quiet:?}; these run:");
                    for options in running.lock().expect("nothing panics while it is held").values() {
                        eprintln!("  isochrone sim {}", again(args, options));
                    }
                    continue;
                }
            };
            quiet = Duration::ZERO;
            if let Err(failure) = &result {
                let options = Options::draw(failure.seed, args.nodes, args.seconds, &asked.wanted);
                println!("VIOLATION of {}: {failure}", failure.found.id);
                println!("{options}\nsee it again: isochrone sim {}", again(args, &options));
            }
            waiting.insert(n, result);
            while let Some(result) = waiting.remove(&added) {
                total.add(&result);
                added += 1;
                if added.is_multiple_of((args.seeds / 20).max(1)) && added < args.seeds {
                    eprintln!("{added} of {} seeds, {} violations", args.seeds, total.violations);
                }
            }
        }
        println!("{added} seeds, {:.1} CPU seconds", used_ns.load(Ordering::Relaxed) as f64 / 1e9);
        Ok(())
    })?;
    Ok(total)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::shrink::smaller;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: SimArgs,
    }

    fn parse(line: &str) -> SimArgs {
        Line::try_parse_from(["sim"].into_iter().chain(line.split(' '))).unwrap().args
    }

    /// Whatever a run was made into, the line that is printed is that run.
    #[test]
    fn what_is_printed_shows_the_run_again() {
        for line in [
            "--shrink",
            "--shrink --workload append,bank --level external",
            "--shrink --faults drop,kill --nodes 5",
        ] {
            for seed in 1..20 {
                let args = SimArgs { seed, ..parse(line) };
                let drawn = Options::draw(seed, args.nodes, args.seconds, &read(&args).unwrap().wanted);
                let at = Duration::from_secs(20);
                let once = smaller(&drawn, at).into_iter().map(|(_, o)| o);
                let twice = once.clone().flat_map(|o| smaller(&o, at)).map(|(_, o)| o);
                for options in [drawn.clone()].into_iter().chain(once).chain(twice) {
                    let line = again(&args, &options);
                    let args = parse(&line);
                    let drawn =
                        Options::draw(args.seed, args.nodes, args.seconds, &read(&args).unwrap().wanted);
                    assert_eq!(drawn, options, "{line}");
                }
            }
        }
    }
}
