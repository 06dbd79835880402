//! PostgreSQL's wire protocol, version 3.0, server side: bytes to session commands and back.
//!
//! ```text
//! socket ─► input (frames, bounds) ─► frontend (decode) ─► connection ─► Session (the query layer, by trait)
//! socket ◄─ output (one buffer, back-pressure) ◄─ encode ◄─ sink (rows, COPY) ◄──────┘
//! ```
//!
//! [`Server`] accepts connections; each is one task that owns its socket, buffers, prepared statements and portals.
//! Nothing is shared between connections but counters, the table of cancel keys and the backend.
//!
//! Invariants
//!   P1  No byte from a client can panic this crate, or make it allocate more than that client has sent (plus a
//!       constant), or touch another connection.
//!   P2  Answers leave in the order of the messages; each message that is answered is answered once; after an error
//!       in the extended protocol nothing is answered until Sync.
//!   P3  What has been answered is written when the client may be waiting for it: before every wait for input after
//!       Sync, Flush or Query, and before a statement that makes the client wait.
//!   P4  A result of any size needs bounded memory: past [`limits::OUT_BYTES_HIGH`] the session waits for the socket.
//!   P5  Whoever holds neither process id nor secret of a connection cannot cancel its statements.
//!
//! Failure: a broken frame, a panic of the session or a failed socket ends that connection only.
//! Missing: TLS, passwords, replication connections, the function call message, protocol 3.2; EXECUTE by SQL of what
//! Parse named (DEALLOCATE works); noticing during a statement that the client has left.
#![forbid(unsafe_code)]

mod adapter;
pub mod backend;
pub mod limits;

mod cancel;
mod connection;
mod encode;
mod error;
mod extended;
mod frontend;
mod input;
pub mod metrics;
mod output;
mod server;
mod simple;
mod sink;
mod startup;

pub use backend::{Backend, ClientInfo, Session};
pub use error::Error;
pub use server::{Config, SecretSource, Server, os_secrets};

#[cfg(test)]
extern crate self as isochrone_pgwire;
#[cfg(test)]
#[path = "../tests/fake/mod.rs"]
mod fake;
#[cfg(test)]
mod writes;
