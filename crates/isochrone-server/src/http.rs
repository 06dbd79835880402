//! Health and metrics over HTTP, for people and for Prometheus. Nothing here shows SQL texts or values.

use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

/// What the HTTP side asks the node.
pub trait Health: Send + Sync {
    /// `Err` says why the node does not serve.
    fn health(&self) -> Result<(), String>;
}

#[derive(Clone)]
struct Shared {
    health: Arc<dyn Health>,
    metrics: PrometheusHandle,
}

/// Serves `/health` and `/metrics` until `shutdown` resolves.
pub async fn serve(
    listener: TcpListener,
    health: Arc<dyn Health>,
    metrics: PrometheusHandle,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/health", get(health_page))
        .route("/metrics", get(metrics_page))
        .with_state(Shared { health, metrics });
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

async fn health_page(State(shared): State<Shared>) -> impl IntoResponse {
    match shared.health.health() {
        Ok(()) => (StatusCode::OK, "ok\n".to_string()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn metrics_page(State(shared): State<Shared>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], shared.metrics.render())
}
