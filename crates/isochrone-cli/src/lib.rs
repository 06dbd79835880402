//! The operator's tool: an SQL shell for any PostgreSQL server, and the log inspector.
//!
//! Nothing here is linked into the serving path. Errors are plain sentences that say what to do next; commands return
//! the process's exit code.
#![forbid(unsafe_code)]

pub mod sql;
pub mod table;
pub mod wal;
