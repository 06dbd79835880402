//! The query layer: catalog, binding, planning, execution, sessions (design D13).
//!
//! A statement's way: `session` splits and classifies the text; `bind` turns the parser's tree into typed
//! expressions, once; `plan` chooses lookups, scans, joins; `exec` pulls column batches through the plan against a
//! [`isochrone_txn::kv::KvTxn`]; rows leave through a [`face::RowSink`].
//!
//! The parser's tree (`sqlparser`) stops in this crate.
#![forbid(unsafe_code)]

pub mod bind;
pub mod catalog;
pub mod copy;
pub mod ddl;
pub mod descriptor;
pub mod exec;
pub mod face;
pub mod parse;
mod parse_locks;
pub mod pg_catalog;
pub mod plan;
pub mod relation;
pub mod rows;
pub mod session;
pub mod settings;
