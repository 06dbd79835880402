//! The order-preserving encoding of values in keys.
use crate::{Datum, Error, Result, Type};

/// Appends a value of a type so that the encodings compare as bytes as the values do: ascending with NULLs last, or
/// all of that reversed for `desc`. 54000 for values that are too long for a key.
pub fn encode_key(datum: &Datum, ty: &Type, desc: bool, out: &mut Vec<u8>) -> Result<()> {
    let _ = (datum, ty, desc, out);
    Err(Error::unsupported("key"))
}

/// Takes a value from the front of `input`; equal to what was encoded, but for what equality does not see (the
/// scale of a numeric, the parts of an interval, the sign of zero).
pub fn decode_key(ty: &Type, desc: bool, input: &mut &[u8]) -> Result<Datum> {
    let _ = (ty, desc, input);
    Err(Error::unsupported("key"))
}
