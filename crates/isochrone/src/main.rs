//! The `isochrone` binary: one program for server, shell and inspection.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use isochrone_cli::{sql, wal};
use isochrone_server::{ServerConfig, Storage};

/// Isochrone, a distributed SQL database that speaks PostgreSQL's wire protocol.
///
/// Try it:
///   isochrone start --data ./data        starts a database
///   isochrone sql                        opens a shell on it, as psql would
///   isochrone wal dump --data ./data     shows every record of its log
#[derive(Parser)]
#[command(name = "isochrone", version, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts a node; without --join it is a complete database by itself.
    Start(StartArgs),
    /// Makes the first three nodes a cluster (not available yet).
    Init(Rest),
    /// Runs a temporary cluster on this machine (not available yet).
    Demo(Rest),
    /// An SQL shell.
    Sql(sql::SqlArgs),
    /// Looks into a node's log.
    Wal(wal::WalArgs),
}

#[derive(Clone, Copy, ValueEnum)]
enum StorageArg {
    /// An LSM tree in the data directory.
    Lsm,
    /// Memory, rebuilt from the log at every start. For tests and small data.
    Memory,
}

#[derive(clap::Args)]
struct StartArgs {
    /// Everything the node keeps is in this directory; created if it is not there.
    #[arg(long, value_name = "DIR", default_value = "isochrone-data")]
    data: PathBuf,
    /// Where SQL clients connect.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5433")]
    sql: SocketAddr,
    /// Where other nodes connect (reserved: a node has no peers yet).
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7433")]
    cluster: SocketAddr,
    /// Where /health and /metrics are served.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8433")]
    http: SocketAddr,
    /// The cluster addresses of some nodes (not available yet).
    #[arg(long, value_name = "HOST:PORT,...")]
    join: Option<String>,
    /// Where this node stands, for placement (reserved).
    #[arg(long, value_name = "KEY=VALUE,...")]
    locality: Option<String>,
    /// Allow addresses other than loopback, although nothing is encrypted or authenticated yet.
    #[arg(long)]
    insecure: bool,
    /// Where rows live.
    #[arg(long, value_enum, default_value = "lsm")]
    storage: StorageArg,
}

/// Arguments of a command that is not there yet: taken, so that the answer is about the command.
#[derive(clap::Args)]
struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _rest: Vec<String>,
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
        Command::Init(_) | Command::Demo(_) => {
            anyhow::bail!("clusters of several nodes are not available yet; see docs/status.md")
        }
        Command::Sql(args) => current_thread()?.block_on(sql::run(args)),
        Command::Wal(args) => current_thread()?.block_on(wal::run(args)),
    }
}

fn current_thread() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn start(args: StartArgs) -> anyhow::Result<i32> {
    if args.join.is_some() {
        anyhow::bail!("--join: clusters of several nodes are not available yet; see docs/status.md");
    }
    if !args.cluster.ip().is_loopback() && !args.insecure {
        anyhow::bail!(
            "--cluster {} is not a loopback address: add --insecure if this network is yours",
            args.cluster
        );
    }
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
    let mut config = ServerConfig::new(args.data);
    config.sql = args.sql;
    config.http = args.http;
    config.insecure = args.insecure;
    config.node.storage = match args.storage {
        StorageArg::Lsm => Storage::Lsm,
        StorageArg::Memory => Storage::Memory,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("gateway")
        .thread_stack_size(isochrone_sql::parse::STACK_BYTES_MIN)
        .build()?;
    let code = runtime.block_on(isochrone_server::run(config))?;
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(code)
}
