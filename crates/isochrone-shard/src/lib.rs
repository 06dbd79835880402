//! The replicated state machine of a shard: versions, records, floor, closed, timestamp cache, locks.
//!
//!     LocalShards (service)  routes by key, waits for what stands in the way, proposes, answers: api::ShardClient
//!        │ evaluate, read                                   ▲ outcome
//!     Shard (shard, read, evaluate) ── Entry (command) ──▶ Proposer ──▶ log ──▶ Shards::apply (apply) ──▶ engine
//!
//! The specification is the commit protocol; its rule ids R.. and invariant ids T.. are cited where they are kept. This
//! crate keeps the shard's side: R1 to R5, R10 to R13, R16 to R18, R20, R21. The invariants of the code itself are S..
//! in [`mod@shard`], D.. in `read`, C.. in [`tscache`], L.. in [`locks`], E.. in [`command`].
//!
//! Missing: reads of followers (R6), merges, snapshots between nodes, a graceful transfer that writes the true highest read
//! as the limit, lock expiry for gateways of other nodes.
#![forbid(unsafe_code)]

pub mod api;
mod apply;
pub mod command;
mod config;
mod duties;
mod evaluate;
pub mod locks;
mod outcome;
pub mod proposer;
mod read;
mod record;
mod service;
pub mod shard;
mod shards;
#[cfg(test)]
mod tests;
pub mod tscache;

pub use apply::CLEAR_KEYS_MAX;
pub use config::Config;
pub use outcome::{ApplyError, ApplyResult, OpenError, Outcome};
pub use proposer::{Applied, ProposeError, Proposer};
pub use service::LocalShards;
pub use shard::{Shard, ShardState};
pub use shards::{RecordInfo, ShardMeta, Shards};
