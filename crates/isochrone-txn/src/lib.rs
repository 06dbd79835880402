//! Transactions: the coordinator, buffered writes, recovery by anyone.
//!
//!     kv          the face to the query layer: KvStore, KvTxn
//!     store       that face on a node: transactions, bulk writes, counters
//!     txn         a transaction: reads at a snapshot, read set, write buffer
//!     commit      COMMIT: pieces, prepares, decision, what the client hears
//!     recovery    R18, for transactions whose coordinator is silent
//!     coordinator what they share; requests to shards, repeated within bounds
//!     retry       pauses, and transactions repeated by the server
//!     fake        a store in memory, for tests of the layers above
//!
//! The specification is the commit protocol: its rules R1 to R25 and invariants T1 to T13 are cited where they are
//! kept. This crate sees shards through [`isochrone_shard::api::ShardClient`] only: it knows nothing of logs, leases,
//! storage or the network.
#![forbid(unsafe_code)]

pub mod buffer;
mod commit;
pub mod config;
pub mod coordinator;
pub mod fake;
pub mod kv;
mod metrics;
mod readset;
pub mod recovery;
pub mod retry;
pub mod store;
mod txn;

pub use commit::PIECE_BYTES_MAX;
pub use config::Config;
pub use coordinator::Coordinator;
pub use readset::READ_SET_BYTES_MAX;
pub use recovery::{RecoverInBackground, Recoverer};
pub use store::{NodeServices, Store};
pub use txn::LOCKS_MAX;
