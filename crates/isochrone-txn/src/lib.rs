//! Transactions: the coordinator, buffered writes, recovery by anyone.
#![forbid(unsafe_code)]

pub mod kv;
