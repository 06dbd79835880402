//! Where things live in the one ordered key space.
//!
//!     00 ..          system: shard descriptors (the meta range), id counters, node records, advisory locks, defaults of settings
//!     01 ii ii ii ii xx xx xx xx ..   table `i`, index `x` (0 is the primary key), then the columns
//!
//! Table ids below [`FIRST_USER_TABLE`] are the catalog's own. The system keys and the catalog start in shard 1,
//! all user tables in shard 2 (design D17: tables share a shard until size, load or SPLIT AT parts them).

use crate::{Key, KeyRange, NodeId};

/// First byte of system keys.
pub const SYSTEM: u8 = 0x00;
/// First byte of table keys.
pub const TABLE: u8 = 0x01;
/// Prefix of shard descriptors, by the start key of the shard.
pub const META: [u8; 2] = [SYSTEM, b'm'];
/// Prefix of counters (ids of tables, sequences, shards).
pub const COUNTER: [u8; 2] = [SYSTEM, b'c'];
/// Prefix of advisory locks, by class and number.
pub const ADVISORY: [u8; 2] = [SYSTEM, b'a'];
/// Prefix of defaults of settings, by name.
pub const DEFAULT: [u8; 2] = [SYSTEM, b'd'];
/// Prefix of wishes for the cluster.
pub const WISH: [u8; 2] = [SYSTEM, b'w'];
/// Prefix of the records of nodes, by node id.
pub const NODE: [u8; 2] = [SYSTEM, b'n'];
/// Table ids from here on are the users'.
pub const FIRST_USER_TABLE: u32 = 100;

/// Who shall vote in every shard.
pub fn wished_voters_key() -> Key {
    [&WISH[..], b"voters"].concat()
}

/// The common prefix of all rows of an index; index 0 is the primary key, which holds the rows themselves.
pub fn index_prefix(table: u32, index: u32) -> Key {
    let mut key = Vec::with_capacity(32);
    key.push(TABLE);
    key.extend_from_slice(&table.to_be_bytes());
    key.extend_from_slice(&index.to_be_bytes());
    key
}

/// The common prefix of a table and its indexes.
pub fn table_prefix(table: u32) -> Key {
    let mut key = vec![TABLE];
    key.extend_from_slice(&table.to_be_bytes());
    key
}

/// All keys of a table and its indexes.
pub fn table_range(table: u32) -> KeyRange {
    KeyRange::prefix(&table_prefix(table))
}

/// The table a key belongs to, if it is a table key.
pub fn table_of(key: &[u8]) -> Option<u32> {
    match key {
        [TABLE, a, b, c, d, ..] => Some(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

/// The key that parts system and catalog (shard 1) from user tables (shard 2).
pub fn first_user_key() -> Key {
    table_prefix(FIRST_USER_TABLE)
}

/// The key of the descriptor of the shard that starts at `start`.
pub fn meta_key(start: &[u8]) -> Key {
    let mut key = META.to_vec();
    key.extend_from_slice(start);
    key
}

/// The key of an advisory lock: its class (one number, or two) and its number.
pub fn advisory_key(class: u8, number: u64) -> Key {
    let mut key = ADVISORY.to_vec();
    key.push(class);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// The key of a setting's default.
pub fn default_key(setting: &str) -> Key {
    let mut key = DEFAULT.to_vec();
    key.extend_from_slice(setting.as_bytes());
    key
}

/// The key of a node's record.
pub fn node_key(node: NodeId) -> Key {
    let mut key = NODE.to_vec();
    key.extend_from_slice(&node.0.to_be_bytes());
    key
}
