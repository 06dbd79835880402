//! The bounds of a connection. What happens at each is said beside it.

pub use isochrone_base::limits::{
    PARAMETERS_MAX, STARTUP_PACKET_BYTES_MAX, STATEMENT_BYTES_MAX, VALUE_BYTES_MAX,
};

/// Largest body of an ordinary small message (PostgreSQL's constant), in bytes. Past it the connection ends: 08P01.
pub const SMALL_FRAME_BYTES_MAX: usize = 10_000;
/// Largest body of Query and Parse: a statement, its name, its parameter types. Past it the connection ends: 54000.
/// A statement longer than [`STATEMENT_BYTES_MAX`] that fits in the frame is refused alone.
pub const STATEMENT_FRAME_BYTES_MAX: usize = STATEMENT_BYTES_MAX + (1 << 20);
/// Largest body of Bind and CopyData: one value of the greatest length and what is around it. Past it the connection
/// ends: 54000.
pub const DATA_FRAME_BYTES_MAX: usize = VALUE_BYTES_MAX + (1 << 20);
/// Prepared statements with names, per connection. Past it Parse fails: 54000.
pub const STATEMENTS_MAX: usize = 8_192;
/// Portals with names, per connection. Past it Bind fails: 54000.
pub const PORTALS_MAX: usize = 1_024;
/// Texts of prepared statements with names, per connection, in bytes. Past it Parse fails: 54000.
pub const STATEMENTS_BYTES_MAX: usize = 64 << 20;
/// Parameters of portals with names, per connection, in bytes as received. Past it Bind fails: 54000.
pub const PORTALS_BYTES_MAX: usize = 128 << 20;
/// Longest name of a statement or portal, in bytes. Past it Parse or Bind fails: 42622.
pub const NAME_BYTES_MAX: usize = 4_096;
/// Answers collected before they are written although the client has not asked yet, in bytes. Past it the session
/// waits for the socket.
pub const OUT_BYTES_HIGH: usize = 64 << 10;
/// Buffer capacity that an idle connection keeps, in bytes, for each direction.
pub const IDLE_BYTES: usize = 4 << 10;
/// Largest amount read from the socket at once, in bytes.
pub const READ_BYTES_MAX: usize = 64 << 10;
/// Largest answer, one row with its frame, in bytes: its length is a 32-bit signed number. Past it: 54000.
pub const ROW_BYTES_MAX: usize = 1 << 30;

const _: () = assert!(DATA_FRAME_BYTES_MAX < ROW_BYTES_MAX && ROW_BYTES_MAX < i32::MAX as usize);
const _: () = assert!(IDLE_BYTES < READ_BYTES_MAX);
// The longest statement and the largest Bind can be given names.
const _: () = assert!(STATEMENTS_BYTES_MAX > STATEMENT_BYTES_MAX && PORTALS_BYTES_MAX > DATA_FRAME_BYTES_MAX);
