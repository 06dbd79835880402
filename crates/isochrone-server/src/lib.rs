//! Joins the layers of one node, as a library; owns threads, sockets, shutdown.
//!
//!     server    sockets, drain                     (this is what `isochrone start` runs)
//!     running   a node with its threads            (what the embedded library opens)
//!     node      the layers joined, without threads (what the simulator builds)
//!     machine, services   adapters between the crates
//!     datadir, config, http
#![forbid(unsafe_code)]

pub mod config;
pub mod datadir;
pub mod http;
mod machine;
pub mod node;
pub mod running;
mod server;
mod services;

pub use config::{NodeConfig, ServerConfig, Storage};
pub use node::{Assembled, Node};
pub use running::Running;
pub use server::run;
