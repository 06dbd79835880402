//! The catalog: descriptors stored as rows below the first user table, a cached snapshot of them per node, the locks
//! that keep transactions and DDL apart, and sequences.

pub mod codec;
pub mod locks;
pub mod sequences;
pub mod snapshot;
pub mod store;
pub mod view;

pub use snapshot::{CatalogSnapshot, Object, TableEntry};
pub use view::SessionView;
