//! A node with sockets: what `isochrone start` runs, from the first listener to the drained end.
//!
//! Order: listeners are bound before the node opens (a port in use is the commonest mistake and costs nothing to find),
//! clients are accepted when it serves. SIGTERM or SIGINT drains: no new clients, transactions get a bounded time,
//! then the node closes cleanly. A second signal does not wait.

use std::net::SocketAddr;

use anyhow::Context;
use isochrone_env::os::TokioTimer;
use isochrone_pgwire as pgwire;
use isochrone_sql::session::Database;
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::ServerConfig;
use crate::http;
use crate::running::Running;

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

/// Runs a server until it is told to stop. Returns the process's exit code.
pub async fn run(config: ServerConfig) -> anyhow::Result<i32> {
    config.validate().map_err(anyhow::Error::msg)?;
    let recorder =
        PrometheusBuilder::new().install_recorder().context("cannot install the metrics recorder")?;
    isochrone_consensus::metrics::describe();
    crate::running::describe_metrics();
    let sql = listen("SQL clients", "--sql", config.sql).await?;
    let http = listen("HTTP", "--http", config.http).await?;
    let (sql_address, http_address) = (sql.local_addr()?, http.local_addr()?);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let running = Running::open(&config.node).await?;
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
    println!("ready sql={sql_address} http={http_address}");

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
        running.close().await?;
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
