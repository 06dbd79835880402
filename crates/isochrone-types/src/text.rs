//! The text form of values, as PostgreSQL's input and output functions read and write it.
use crate::{Datum, Error, Result, Settings, Type};

/// Reads a value from text. 22P02 and its kin when the text is no value of the type. The modifier is applied as an
/// assignment applies it (too long a varchar is 22001).
pub fn parse_text(ty: &Type, text: &str, settings: &Settings) -> Result<Datum> {
    let _ = (ty, text, settings);
    Err(Error::unsupported("text input"))
}

/// Appends the text form of a value; nothing for NULL (the caller says NULL in its own way).
pub fn write_text(datum: &Datum, ty: &Type, settings: &Settings, out: &mut Vec<u8>) {
    let _ = (datum, ty, settings, out);
}

/// The text form as a string; empty for NULL.
pub fn to_text(datum: &Datum, ty: &Type, settings: &Settings) -> String {
    let mut out = Vec::new();
    write_text(datum, ty, settings, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}
