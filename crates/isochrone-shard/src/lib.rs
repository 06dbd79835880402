//! The replicated state machine of a shard: versions, records, floor, closed, timestamp cache, locks.
//!
//!     LocalShards (service)  routes by key, waits for what stands in the way, proposes, answers: api::ShardClient
//!        │ evaluate, read                                   ▲ outcome
//!     Shard (shard, read, evaluate) ── Entry (command) ──▶ Proposer ──▶ log ──▶ Shards::apply (apply) ──▶ engine
//!
//! The specification is the commit protocol; its rule ids R.. and invariant ids T.. are cited where they are kept. This
//! crate keeps the shard's side: R1 to R6, R10 to R13, R16 to R18, R20, R21. The invariants of the code itself are S..
//! in [`mod@shard`], D.. in `read`, F.. in [`follower`], C.. in [`tscache`], L.. in [`locks`], E.. in [`command`], G.. in `handover`, SN.. in
//! [`snapshot`].
//!
//! Between nodes: [`wire`] carries requests and answers of [`api::ShardClient`], [`snapshot`] a replica's whole state.
//!
//! Missing: merges.
#![forbid(unsafe_code)]

pub mod api;
mod apply;
pub mod command;
mod config;
mod duties;
mod evaluate;
pub mod follower;
mod handover;
mod held;
pub mod locks;
mod outcome;
pub mod proposer;
mod read;
mod record;
mod service;
pub mod shard;
mod shards;
pub mod snapshot;
#[cfg(test)]
mod tests;
pub mod tscache;
pub mod wire;

pub use apply::CLEAR_KEYS_MAX;
pub use config::Config;
pub use follower::{Closed, ClosedNews};
pub use handover::{HAND_OVER_MAX, IDLE_WAIT_MAX};
pub use outcome::{ApplyError, ApplyResult, OpenError, Outcome};
pub use proposer::{Applied, ProposeError, Proposer};
pub use service::{LocalShards, Routing};
pub use shard::{Shard, ShardState};
pub use shards::{NewShard, RecordInfo, ShardMeta, Shards};
pub use snapshot::{ShardSnapshot, SnapshotError, SnapshotMeta, Staged, StagedReader};
