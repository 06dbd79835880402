//! Joins the layers of one node, as a library; owns threads, sockets, shutdown.
//!
//!     server    sockets, drain                     (this is what `isochrone start` runs)
//!     running   a node with its threads            (what the embedded library opens)
//!     node      the layers joined, without threads (what the simulator builds)
//!     cluster   a node among others: identity, routing, liveness, snapshots, leaderships
//!     machine, services   adapters between the crates
//!     datadir, config, http
#![forbid(unsafe_code)]

pub mod cluster;
pub mod config;
pub mod datadir;
pub mod http;
mod machine;
pub mod node;
pub mod running;
mod server;
mod services;

pub use config::{NodeConfig, ServerConfig, Storage};
pub use node::{Assembled, Node, NodeParts, Tuning};
pub use running::Running;
pub use server::run;

/// Runs something that blocks (files, the engine) where it does not hold up sockets. On a runtime of one thread, which is a
/// simulation's, it runs at once: order stays a function of the seed.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    use tokio::runtime::{Handle, RuntimeFlavor};
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())
}
