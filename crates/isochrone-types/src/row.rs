//! The encoding of a row's columns.
use crate::{Datum, Error, Result};

/// Appends a row: columns by id, ascending. NULLs are stored (so that a column that was added later, which is absent,
/// can be told from NULL).
pub fn encode_row(columns: &[(u32, &Datum)], out: &mut Vec<u8>) {
    let _ = (columns, out);
}

/// Decodes the wanted columns of a row: `wanted` has (column id, position in `into`), by ascending id. Positions whose
/// column is absent are left as they are (the caller fills in the default beforehand).
pub fn decode_row(bytes: &[u8], wanted: &[(u32, usize)], into: &mut [Datum]) -> Result<()> {
    let _ = (bytes, wanted, into);
    Err(Error::unsupported("row"))
}
