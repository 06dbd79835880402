//! The replicated state machine of a shard: versions, records, floor, closed, timestamp cache, locks.
#![forbid(unsafe_code)]

pub mod api;
