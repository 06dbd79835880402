//! The log inspector: files, records and their health, from outside. Never writes; works on a stopped node, and
//! (`ls`, `dump`, `follow`) on a running one.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use isochrone_base::ShardId;
use isochrone_env::Disk;
use isochrone_env::os::OsDisk;
use isochrone_shard::command;
use isochrone_wal::inspect::{self, RecordInfo};
use isochrone_wal::{Kind, Position, Tail};

use crate::table;

/// How often `follow` looks for new records.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// Looks into a node's log.
#[derive(clap::Args, Debug, Clone)]
pub struct WalArgs {
    /// What to show.
    #[command(subcommand)]
    pub command: WalCommand,
}

/// What `isochrone wal` can do.
#[derive(clap::Subcommand, Debug, Clone)]
pub enum WalCommand {
    /// Lists the segment files.
    Ls(Target),
    /// Prints every record, in log order.
    Dump(Target),
    /// Reads everything and says what is wrong; exit code 1 if anything is.
    Verify(Target),
    /// Prints records as they are written, until interrupted.
    Follow(Target),
}

/// Which log.
#[derive(clap::Args, Debug, Clone)]
pub struct Target {
    /// The node's data directory.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Only this shard's records.
    #[arg(long, value_name = "N")]
    pub shard: Option<u64>,
}

/// Runs the command. Exit code 0; 1 when `verify` found damage.
pub async fn run(args: WalArgs) -> Result<i32> {
    let (WalCommand::Ls(target)
    | WalCommand::Dump(target)
    | WalCommand::Verify(target)
    | WalCommand::Follow(target)) = &args.command;
    let dir = target.data.join("wal");
    if !OsDisk.exists(&dir)? {
        bail!(
            "{} has no log: is --data the directory that `isochrone start` was given?",
            target.data.display()
        );
    }
    let result = match &args.command {
        WalCommand::Ls(_) => ls(&dir),
        WalCommand::Dump(t) => dump(&dir, t.shard.map(ShardId)),
        WalCommand::Verify(_) => verify(&dir),
        WalCommand::Follow(t) => follow(&dir, t.shard.map(ShardId)).await,
    };
    match result {
        // `| head` closes our standard output: that is how a reader says "enough".
        Err(e) if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            Ok(0)
        }
        other => other,
    }
}

fn ls(dir: &Path) -> Result<i32> {
    let segments = inspect::segments(&OsDisk, dir).context("cannot read the log")?;
    let columns = ["file", "segment", "bytes", "used", "live"].map(String::from);
    let rows: Vec<_> = segments
        .iter()
        .map(|s| {
            let name = s.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            [name, s.generation.to_string(), s.bytes.to_string(), s.end.to_string(), s.live_bytes.to_string()]
                .map(Some)
                .to_vec()
        })
        .collect();
    io::stdout().write_all(table::render(&columns, &rows).as_bytes())?;
    Ok(0)
}

const HEADER: &str = "shard      index  term  file                      offset  kind         keys     bytes  txn                               commit_ts";

/// The word for a record: what the entry does, or what the log itself noted.
fn describe(record: &RecordInfo) -> command::Shown {
    match record.kind {
        Kind::Entry | Kind::MovedEntry => command::show(&record.payload),
        kind => command::Shown { kind: kind.name(), txn: None, commit_ts: None, keys: 0 },
    }
}

fn print(out: &mut impl Write, record: &RecordInfo) -> io::Result<()> {
    let shown = describe(record);
    writeln!(
        out,
        "{:>5} {:>10} {:>5}  {:<22} {:>9}  {:<11} {:>5} {:>9}  {:<32}  {}",
        record.shard.0,
        record.index,
        record.term,
        record.file.file_name().unwrap_or_default().to_string_lossy(),
        record.at.offset,
        shown.kind,
        shown.keys,
        record.payload.len(),
        shown.txn.map(|t| t.to_string()).unwrap_or_default(),
        shown.commit_ts.map(|t| t.to_string()).unwrap_or_default(),
    )
}

fn dump(dir: &Path, shard: Option<ShardId>) -> Result<i32> {
    let mut out = BufWriter::new(io::stdout().lock());
    writeln!(out, "{HEADER}")?;
    for record in inspect::records(&OsDisk, dir, Position::default()).context("cannot read the log")? {
        let record = record.context("cannot read the log")?;
        if shard.is_none_or(|s| s == record.shard) {
            print(&mut out, &record)?;
        }
    }
    out.flush()?;
    Ok(0)
}

fn verify(dir: &Path) -> Result<i32> {
    let found = inspect::verify(&OsDisk, dir).context("cannot read the log")?;
    println!(
        "{} segments, {} batches, {} records of {} shards; durable up to segment {} offset {}",
        found.segments.len(),
        found.batches,
        found.records,
        found.shards,
        found.durable_end.generation,
        found.durable_end.offset
    );
    match &found.tail {
        Tail::Clean => println!("tail: clean"),
        Tail::Cut { file, offset, what } => println!(
            "tail: torn at {} offset {offset} ({what}); nothing acknowledged lies there, it is cut at the next start",
            file.display()
        ),
    }
    for problem in &found.problems {
        println!("DAMAGED: {} offset {}: {}", problem.file.display(), problem.offset, problem.what);
    }
    println!("{}", if found.problems.is_empty() { "nothing wrong" } else { "the log is damaged" });
    Ok(i32::from(!found.problems.is_empty()))
}

async fn follow(dir: &Path, shard: Option<ShardId>) -> Result<i32> {
    let mut next = Position::default();
    println!("{HEADER}");
    loop {
        {
            let mut out = BufWriter::new(io::stdout().lock());
            for record in inspect::records(&OsDisk, dir, next).context("cannot read the log")? {
                // A record that cannot be read yet is one that is being written.
                let Ok(record) = record else { break };
                next = Position { generation: record.at.generation, offset: record.at.offset + 1 };
                if shard.is_none_or(|s| s == record.shard) {
                    print(&mut out, &record)?;
                }
            }
            out.flush()?;
        }
        tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => return Ok(0),
            () = tokio::time::sleep(FOLLOW_EVERY) => {}
        }
    }
}
