//! Small pieces of the store that stand alone: how a counter is written.

use isochrone_base::{Bytes, Value};

use crate::kv::Error;

/// The value of a counter: eight bytes, most significant first; an absent row is 0.
pub fn counter_value(value: Option<&Value>) -> Result<u64, Error> {
    match value {
        None => Ok(0),
        Some(bytes) => <[u8; 8]>::try_from(bytes.as_ref())
            .map(u64::from_be_bytes)
            .map_err(|_| Error::Internal(format!("a counter has {} bytes instead of 8", bytes.len()))),
    }
}

/// The inverse of [`counter_value`].
pub fn counter_bytes(n: u64) -> Value {
    Bytes::copy_from_slice(&n.to_be_bytes())
}
