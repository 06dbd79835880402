//! The `isochrone` binary: one program for server, shell and inspection.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use isochrone_cli::{demo, init, node, sql, wal};
use isochrone_server::{ServerConfig, Storage};
use isochrone_sim::command::SimArgs;

/// Isochrone, a distributed SQL database that speaks PostgreSQL's wire protocol.
///
/// Try it:
///   isochrone start --data ./data        starts a database
///   isochrone sql                        opens a shell on it, as psql would
///   isochrone wal dump --data ./data     shows every record of its log
///   isochrone demo                       runs a cluster of three for half a minute and kills one
///   isochrone sim --seeds 10             runs simulated clusters through whatever can go wrong
///   isochrone init --help                says how to start a cluster of your own
#[derive(Parser)]
#[command(name = "isochrone", version, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Start(StartArgs),
    Init(init::InitArgs),
    Node(node::NodeArgs),
    Demo(demo::DemoArgs),
    /// An SQL shell.
    Sql(sql::SqlArgs),
    /// Looks into a node's log.
    Wal(wal::WalArgs),
    Sim(SimArgs),
}

#[derive(Clone, Copy, ValueEnum)]
enum StorageArg {
    /// An LSM tree in the data directory.
    Lsm,
    /// Memory, rebuilt from the log at every start. For tests and small data.
    Memory,
}

/// Starts a node; without --join it is a complete database by itself.
///
///   isochrone start                                      in ./isochrone-data, SQL on 127.0.0.1:5433
///   isochrone start --data /var/lib/isochrone            somewhere else
///   isochrone start --data b --sql 127.0.0.1:5434 --http 127.0.0.1:8434 \
///     --cluster 127.0.0.1:7434 --join 127.0.0.1:7433,127.0.0.1:7434,127.0.0.1:7435
///                                                        one of three; see isochrone init --help
///
/// Says "ready sql=.. http=.. cluster=.." on standard output when it serves; a node of a cluster
/// that is not initialised yet says first that it waits for "isochrone init". SIGTERM or Ctrl-C lets
/// transactions finish, a second one does not.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
struct StartArgs {
    /// Everything the node keeps is in this directory; created if it is not there.
    #[arg(long, value_name = "DIR", default_value = "isochrone-data")]
    data: PathBuf,
    /// Where SQL clients connect.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5433")]
    sql: SocketAddr,
    /// Where other nodes, and `isochrone init` and `isochrone node`, connect.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7433")]
    cluster: SocketAddr,
    /// Where /health and /metrics are served.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8433")]
    http: SocketAddr,
    /// What other nodes are told to connect to, where that is not what --cluster says.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// The cluster addresses of some nodes, itself included or not; harmless on restart.
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',')]
    join: Vec<String>,
    /// Where this node stands, for placement (reserved).
    #[arg(long, value_name = "KEY=VALUE,...")]
    locality: Option<String>,
    /// Allow addresses other than loopback, although nothing is encrypted or authenticated yet.
    #[arg(long)]
    insecure: bool,
    /// How this node knows how wrong its clock can be: fixed:DURATION (clocks of two nodes differ by at most that), ntp (what
    /// the kernel says that chronyd, ntpd or systemd-timesyncd achieve), or clockbound (AWS ClockBound's daemon).
    #[arg(long, value_name = "SOURCE", default_value = "fixed:250ms")]
    clock: isochrone_server::config::Source,
    /// Serve while this node's clock can be wrong by at most this, either way; 125ms is the most.
    #[arg(long, value_name = "DURATION", default_value = "125ms", value_parser = isochrone_server::config::duration)]
    clock_error_max: std::time::Duration,
    /// For tests: the wall clock is off by the milliseconds in this file, which is read again and again. Needs --insecure.
    #[arg(long, value_name = "FILE", hide = true)]
    unsafe_clock_offset_file: Option<PathBuf>,
    /// Where rows live.
    #[arg(long, value_enum, default_value = "lsm")]
    storage: StorageArg,
    /// Trust a log whose end was cut when it was opened: its replicas vote although they may have lost what they had
    /// acknowledged. Only when another node is lost for good and shards find no leader without it.
    #[arg(long)]
    trust_cut_log: bool,
    /// The log is flushed out of and truncated above this size.
    #[arg(long, value_name = "BYTES", hide = true)]
    wal_bytes_max: Option<u64>,
    /// End, as if killed, when standard input ends: for programs whose nodes must not outlive them.
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("isochrone: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<i32> {
    match command {
        Command::Start(args) => start(args),
        Command::Init(args) => current_thread()?.block_on(init::run(args)),
        Command::Node(args) => current_thread()?.block_on(node::run(args)),
        Command::Demo(args) => current_thread()?.block_on(demo::run(args)),
        Command::Sql(args) => current_thread()?.block_on(sql::run(args)),
        Command::Wal(args) => current_thread()?.block_on(wal::run(args)),
        Command::Sim(args) => simulate(&args),
    }
}

/// What simulated nodes log is shown only where it is asked for: there are many of them.
fn simulate(args: &SimArgs) -> anyhow::Result<i32> {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("ISOCHRONE_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    }
    isochrone_sim::command::command(args).or_else(|error| {
        eprintln!("isochrone: {error:#}");
        Ok(2)
    })
}

fn current_thread() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn start(args: StartArgs) -> anyhow::Result<i32> {
    if let Some(locality) = &args.locality {
        for pair in locality.split(',') {
            if pair.split_once('=').is_none_or(|(k, v)| k.is_empty() || v.is_empty()) {
                anyhow::bail!("--locality {locality}: expected KEY=VALUE,KEY=VALUE");
            }
        }
    }
    let filter = tracing_subscriber::EnvFilter::try_from_env("ISOCHRONE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    if args.stop_with_stdin {
        stop_with_stdin().context("cannot watch standard input")?;
    }
    let mut config = ServerConfig::new(args.data);
    config.sql = args.sql;
    config.http = args.http;
    config.cluster = args.cluster;
    config.advertise = args.advertise;
    config.join = args.join;
    config.insecure = args.insecure;
    config.node.trust_cut_log = args.trust_cut_log;
    config.clock = args.clock;
    config.clock_offset_file = args.unsafe_clock_offset_file;
    config.node.clock_error_max = args.clock_error_max;
    config.node.storage = match args.storage {
        StorageArg::Lsm => Storage::Lsm,
        StorageArg::Memory => Storage::Memory,
    };
    if let Some(bytes) = args.wal_bytes_max {
        config.node.wal_bytes_max = bytes;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("gateway")
        .thread_stack_size(isochrone_sql::parse::STACK_BYTES_MIN)
        .build()?;
    let code = runtime.block_on(isochrone_server::run(config))?;
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(code)
}

/// Nobody is left who could stop us in order: what was acknowledged is durable without that.
fn stop_with_stdin() -> std::io::Result<()> {
    let watch = || {
        // Whatever comes is dropped; an error is an end as well.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        std::process::exit(1);
    };
    std::thread::Builder::new().name("stdin".into()).spawn(watch).map(|_| ())
}
