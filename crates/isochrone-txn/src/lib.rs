//! Transactions: the coordinator, buffered writes, recovery by anyone.
#![forbid(unsafe_code)]

pub mod buffer;
pub mod fake;
pub mod kv;
mod store;
