//! Plain data shared by every layer: ids, timestamps, keys, and two byte encodings.
//!
//! * [`codec`] is the compact encoding of log records and messages: varints, length-prefixed bytes, a bounded
//!   reader that never panics.
//! * [`ordered`] is the order-preserving encoding of keys: comparing two encodings as bytes gives the order of
//!   the values.
//! * [`bank`] holds the bugs that the simulator must find.
//! * [`held`] is how a layer says what its queues and tables hold.
//! * [`members`] says who takes part in a shard's group.
//! * [`keyspace`] says which system or table a key belongs to.
//!
//! This crate knows nothing of the others and does no I/O.
#![forbid(unsafe_code)]

pub mod bank;
pub mod codec;
pub mod hash;
pub mod held;
pub mod ids;
pub mod keyspace;
pub mod limits;
pub mod members;
pub mod ordered;
pub mod range;
pub mod timestamp;

pub use bytes::Bytes;
pub use ids::{INIT_INDEX, INIT_TERM, LogIndex, NodeId, PieceNo, ShardId, Term, TxnId};
pub use members::Members;
pub use range::KeyRange;
pub use timestamp::Timestamp;

/// A key of the one ordered key space. Keys compare as bytes.
pub type Key = Vec<u8>;
/// A value: cheap to clone, a view into shared memory.
pub type Value = Bytes;
