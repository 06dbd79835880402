//! The limits we publish. Each has a unit in its name; what happens past one is said where it is enforced.

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 16 << 10;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 64 << 20;
/// Columns of a table.
pub const COLUMNS_MAX: usize = 1_600;
/// Length of one SQL statement text, in bytes.
pub const STATEMENT_BYTES_MAX: usize = 16 << 20;
/// Parameters of one statement.
pub const PARAMETERS_MAX: usize = 65_535;
/// Writes one transaction may buffer, in bytes of keys and values.
pub const TXN_BUFFER_BYTES_MAX: usize = 64 << 20;
/// Largest payload of one entry of a shard's log, in bytes: a piece larger than this is cut in several.
pub const LOG_ENTRY_BYTES_MAX: usize = 68 << 20;
/// Startup packet of a client, in bytes (PostgreSQL's constant).
pub const STARTUP_PACKET_BYTES_MAX: usize = 10_000;
/// Nesting depth of a statement: expressions, subqueries, parentheses.
pub const NESTING_DEPTH_MAX: usize = 128;

const _: () = assert!(LOG_ENTRY_BYTES_MAX > VALUE_BYTES_MAX + KEY_BYTES_MAX);
