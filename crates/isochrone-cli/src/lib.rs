//! The operator's tool: an SQL shell for any PostgreSQL server, the log inspector, the commands that form and look after
//! a cluster, and the demo.
//!
//! [`local`] (nodes as processes), [`bank`] (a load that notices losses) and [`inspect`] (what a cluster tells of itself)
//! are what the demo is made of; tests of whole clusters stand on the same three.
//!
//! Nothing here is linked into the serving path. Errors are plain sentences that say what to do next; commands return
//! the process's exit code.
#![forbid(unsafe_code)]

pub mod admin;
pub mod bank;
pub mod demo;
pub mod init;
pub mod inspect;
pub mod local;
pub mod node;
pub mod sql;
pub mod table;
pub mod wal;
