//! The catalog: descriptors stored as rows below the first user table, a cached snapshot of them per node, the locks
//! that keep transactions and DDL apart on a node (`locks`) and between nodes (`gateways`), sequences, advisory locks, and
//! defaults of settings.

pub mod advisory;
pub mod codec;
pub mod defaults;
pub mod gateways;
pub mod locks;
pub mod messages;
pub mod sequences;
pub mod snapshot;
pub mod store;
pub mod view;

pub use snapshot::{CatalogSnapshot, Object, TableEntry};
pub use view::SessionView;
