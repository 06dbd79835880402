//! A node with sockets: what `isochrone start` runs, from the first listener to the drained end.
//!
//! Order: listeners are bound before the node opens (a port in use is the commonest mistake and costs nothing to find),
//! the cluster port answers before the node has an identity, clients are accepted when it serves. SIGTERM or SIGINT
//! drains: no new clients, transactions get a bounded time, leaderships go to other nodes, then the node closes
//! cleanly. A second signal does not wait.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use isochrone_env::Clock;
use isochrone_env::clocks::{Exact, OffsetClock, SourcedClock};
use isochrone_env::os::TokioTimer;
use isochrone_net::{Network, Transport};
use isochrone_pgwire as pgwire;
use isochrone_sql::session::Database;
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cluster::bootstrap::Bootstrap;
use crate::cluster::door::FrontDoor;
use crate::config::ServerConfig;
use crate::datadir;
use crate::http;
use crate::running::{Place, Running};

/// How long leaderships may take to go to other nodes when the server drains.
const LEADERS_DRAIN: std::time::Duration = std::time::Duration::from_secs(5);
/// How often samples of histograms are folded into their summaries.
const METRICS_FOLD_EVERY: std::time::Duration = std::time::Duration::from_secs(5);

/// The one database of a cluster.
pub const DATABASE: &str = "isochrone";

/// How long HTTP requests get to finish when the server drains, once the SQL clients are gone.
const HTTP_DRAIN: std::time::Duration = std::time::Duration::from_secs(1);

async fn listen(what: &str, flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen for {what} on {address}: choose another address with {flag}"))
}

/// The clock that the settings ask for; its source has answered once.
fn clock(config: &ServerConfig) -> Result<Arc<dyn Clock>, String> {
    let clock = Arc::new(SourcedClock::open(config.clock.clone())?);
    match &config.clock_offset_file {
        None => Ok(clock),
        Some(path) => {
            tracing::warn!(path = %path.display(), "this node's clock is wrong on purpose");
            let clock = OffsetClock::open(clock, path);
            Ok(Arc::new(clock.map_err(|e| format!("--unsafe-clock-offset-file: {e}"))?))
        }
    }
}

/// Runs a server until it is told to stop. Returns the process's exit code.
pub async fn run(config: ServerConfig) -> anyhow::Result<i32> {
    config.validate().map_err(anyhow::Error::msg)?;
    let recorder =
        PrometheusBuilder::new().install_recorder().context("cannot install the metrics recorder")?;
    isochrone_consensus::metrics::describe();
    isochrone_net::metrics::describe();
    crate::running::describe_metrics();
    let sql = listen("SQL clients", "--sql", config.sql).await?;
    let http = listen("HTTP", "--http", config.http).await?;
    let cluster = listen("other nodes", "--cluster", config.cluster).await?;
    let (sql_address, http_address) = (sql.local_addr()?, http.local_addr()?);
    let cluster_address = cluster.local_addr()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let dir = &config.node.data_dir;
    let lock = datadir::lock(dir)?;
    let listed = config.join.clone();
    let (address, sql_at) = (config.advertised(cluster_address), sql_address.to_string());
    let clock = clock(&config).map_err(anyhow::Error::msg)?;
    let mut env = isochrone_env::os::env(0).context("cannot read entropy")?;
    // A node alone is by definition right about the time.
    env.clock = Arc::new(Exact(clock.clone()));
    let bootstrap = Arc::new(Bootstrap::new(env.clone(), dir.clone(), address.clone(), listed)?);
    let door = FrontDoor::new(bootstrap.clone());
    let transport = Transport::start(cluster, door.clone(), isochrone_net::Config::default())
        .map_err(anyhow::Error::msg)?;
    if bootstrap.identity().is_none() {
        println!("waiting for \"isochrone init\": cluster={cluster_address}");
    }
    let identity = tokio::select! {
        biased;
        identity = bootstrap.wait() => identity?,
        _ = terminate.recv() => return Ok(0),
        _ = interrupt.recv() => return Ok(0),
    };
    if !identity.is_alone() {
        env.clock = clock;
    }
    bootstrap.look_around().await.map_err(anyhow::Error::msg)?;
    for (node, address) in bootstrap.peers() {
        transport.set_peer(node, &address);
    }
    let place = Place { identity, network: transport.clone(), address, sql: sql_at };
    let opened = Running::prepare(&config.node, env, lock, place).await?;
    door.open(opened.node().cluster.clone());
    let adopting = tokio::spawn({
        let bootstrap = bootstrap.clone();
        async move { bootstrap.adopt_others().await }
    });
    let running = tokio::select! {
        biased;
        running = opened.serve() => running?,
        _ = terminate.recv() => return Ok(1),
        _ = interrupt.recv() => return Ok(1),
    };
    let node = running.node().clone();
    let database = Database::new(node.store.clone(), node.env.clone(), DATABASE);
    let wire = pgwire::Config { drain: config.drain, insecure: config.insecure, ..pgwire::Config::default() };
    let server = pgwire::Server::new(wire, database, std::sync::Arc::new(TokioTimer), pgwire::os_secrets())?;

    let (stop, stopping) = watch::channel(false);
    let stopped = |mut stopping: watch::Receiver<bool>| async move {
        // An error means that the sender is gone, which also is the end.
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    let http_end = stopped(stopping.clone());
    // Samples of histograms wait in memory until somebody folds them in.
    let (folding, fold_end) = (recorder.clone(), stopped(stopping.clone()));
    tokio::spawn(async move {
        let mut fold_end = std::pin::pin!(fold_end);
        loop {
            tokio::select! {
                biased;
                () = &mut fold_end => return,
                () = tokio::time::sleep(METRICS_FOLD_EVERY) => folding.run_upkeep(),
            }
        }
    });
    let health = running.health();
    let mut http = tokio::spawn(async move { http::serve(http, health, recorder, http_end).await });
    let sql = tokio::spawn({
        let end = stopped(stopping);
        async move { server.serve(sql, end).await }
    });

    let identity = running.identity();
    println!(
        "Isochrone {}, node {} of cluster {:032x}, data in {}",
        env!("CARGO_PKG_VERSION"),
        identity.node,
        identity.cluster,
        config.node.data_dir.display()
    );
    println!("  SQL   psql -h {} -p {} -U root {DATABASE}", sql_address.ip(), sql_address.port());
    println!("  HTTP  http://{http_address}/health  http://{http_address}/metrics");
    println!("ready sql={sql_address} http={http_address} cluster={cluster_address}");

    tokio::select! {
        biased;
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("draining; a second signal does not wait");
    let _ = stop.send(true);
    let drained = async {
        let served = sql.await.context("the SQL server panicked")?;
        // An HTTP client that never ends its request does not keep the node from ending.
        let served_http = match tokio::time::timeout(HTTP_DRAIN, &mut http).await {
            Ok(ended) => ended.context("the HTTP server panicked")?,
            Err(_) => {
                http.abort();
                Ok(())
            }
        };
        adopting.abort();
        node.cluster.give_all_away(LEADERS_DRAIN).await;
        running.close().await?;
        transport.shutdown().await;
        served.context("serving SQL clients")?;
        served_http.context("serving HTTP")
    };
    tokio::select! {
        biased;
        result = drained => result.map(|()| 0),
        _ = terminate.recv() => Ok(1),
        _ = interrupt.recv() => Ok(1),
    }
}
