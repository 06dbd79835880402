//! Descriptors as bytes: what the catalog's rows hold.
//!
//! First byte: the version of the encoding ([`VERSION`]); second: the kind of descriptor. Then the fields in the
//! order of the structs, varints and length-prefixed strings of `isochrone_base::codec`. A reader that meets a version
//! or a kind it does not know refuses the row (XX001): it never guesses.

use isochrone_base::Bytes;
use isochrone_base::codec::{DecodeError, Reader, put_bytes, put_u64};
use isochrone_types::{Error, Type};

use crate::descriptor::{
    CheckDescriptor, ColumnDescriptor, IndexDescriptor, IndexState, SequenceDescriptor, TableDescriptor,
};

/// Version of the encoding written today.
pub const VERSION: u8 = 1;
const TABLE: u8 = 1;
const SEQUENCE: u8 = 2;

/// Anything the catalog stores.
#[derive(Clone, PartialEq, Debug)]
pub enum Descriptor {
    /// A table.
    Table(TableDescriptor),
    /// A sequence.
    Sequence(SequenceDescriptor),
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    put_bytes(out, s.as_bytes());
}

fn put_opt_str(out: &mut Vec<u8>, s: Option<&str>) {
    match s {
        None => out.push(0),
        Some(s) => {
            out.push(1);
            put_str(out, s);
        }
    }
}

fn put_i64(out: &mut Vec<u8>, v: i64) {
    out.extend_from_slice(&v.to_be_bytes());
}

fn put_type(out: &mut Vec<u8>, ty: Type) {
    put_u64(out, u64::from(ty.oid()));
    out.extend_from_slice(&ty.typmod().to_be_bytes());
}

fn put_index(out: &mut Vec<u8>, index: &IndexDescriptor) {
    put_u64(out, u64::from(index.id));
    put_str(out, &index.name);
    let state = match index.state {
        IndexState::Building => 2,
        IndexState::Public => 0,
    };
    out.push(u8::from(index.unique) | state | (u8::from(index.constraint) << 2));
    put_u64(out, index.columns.len() as u64);
    for (column, descending) in &index.columns {
        put_u64(out, (u64::from(*column) << 1) | u64::from(*descending));
    }
}

/// The bytes of a table.
pub fn encode_table(t: &TableDescriptor) -> Vec<u8> {
    let mut out = vec![VERSION, TABLE];
    put_u64(&mut out, u64::from(t.oid));
    put_u64(&mut out, u64::from(t.table_id));
    put_str(&mut out, &t.schema);
    put_str(&mut out, &t.name);
    put_u64(&mut out, t.version);
    put_u64(&mut out, t.columns.len() as u64);
    for c in &t.columns {
        put_u64(&mut out, u64::from(c.id));
        put_str(&mut out, &c.name);
        put_type(&mut out, c.ty);
        out.push(u8::from(c.not_null) | (u8::from(c.hidden) << 1) | (u8::from(c.missing.is_some()) << 2));
        put_opt_str(&mut out, c.default.as_deref());
        if let Some(missing) = &c.missing {
            let mut row = Vec::new();
            isochrone_types::row::encode_row(&[(c.id, missing)], &mut row);
            put_bytes(&mut out, &row);
        }
    }
    put_index(&mut out, &t.primary);
    put_u64(&mut out, t.indexes.len() as u64);
    for index in &t.indexes {
        put_index(&mut out, index);
    }
    put_u64(&mut out, t.checks.len() as u64);
    for check in &t.checks {
        put_str(&mut out, &check.name);
        put_str(&mut out, &check.expr);
    }
    put_u64(&mut out, u64::from(t.next_column_id));
    put_u64(&mut out, u64::from(t.next_index_id));
    put_u64(&mut out, t.row_estimate);
    out
}

/// The bytes of a sequence.
pub fn encode_sequence(s: &SequenceDescriptor) -> Vec<u8> {
    let mut out = vec![VERSION, SEQUENCE];
    put_u64(&mut out, u64::from(s.oid));
    put_str(&mut out, &s.schema);
    put_str(&mut out, &s.name);
    for v in [s.start, s.increment, s.min, s.max] {
        put_i64(&mut out, v);
    }
    put_u64(&mut out, u64::from(s.cache));
    match s.owned_by {
        None => out.push(0),
        Some((table, column)) => {
            out.push(1);
            put_u64(&mut out, u64::from(table));
            put_u64(&mut out, u64::from(column));
        }
    }
    out
}

fn get_str(r: &mut Reader) -> Result<String, DecodeError> {
    String::from_utf8(r.bytes()?.to_vec()).map_err(|_| DecodeError::Invalid("text"))
}

fn get_opt_str(r: &mut Reader) -> Result<Option<String>, DecodeError> {
    match r.u8()? {
        0 => Ok(None),
        1 => get_str(r).map(Some),
        _ => Err(DecodeError::Invalid("option")),
    }
}

fn get_i64(r: &mut Reader) -> Result<i64, DecodeError> {
    Ok(r.ts()?.0 as i64)
}

fn get_type(r: &mut Reader) -> Result<Type, DecodeError> {
    let oid = r.u32()?;
    let bytes = r.take(4)?;
    let typmod = i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    Type::from_oid_typmod(oid, typmod).ok_or(DecodeError::Invalid("type oid"))
}

fn get_index(r: &mut Reader) -> Result<IndexDescriptor, DecodeError> {
    let id = r.u32()?;
    let name = get_str(r)?;
    let flags = r.u8()?;
    let n = r.count(1)?;
    let mut columns = Vec::with_capacity(n);
    for _ in 0..n {
        let v = r.u64()?;
        let column = u32::try_from(v >> 1).map_err(|_| DecodeError::Invalid("column id"))?;
        columns.push((column, v & 1 == 1));
    }
    Ok(IndexDescriptor {
        id,
        name,
        unique: flags & 1 != 0,
        columns,
        state: if flags & 2 != 0 { IndexState::Building } else { IndexState::Public },
        constraint: flags & 4 != 0,
    })
}

fn get_column(r: &mut Reader) -> Result<ColumnDescriptor, Error> {
    let id = r.u32()?;
    let name = get_str(r)?;
    let ty = get_type(r)?;
    let flags = r.u8()?;
    let default = get_opt_str(r)?;
    let missing = if flags & 4 != 0 {
        let row = r.bytes()?;
        let mut into = [isochrone_types::Datum::Null];
        isochrone_types::row::decode_row(&row, &[(id, 0)], &mut into)?;
        let [value] = into;
        Some(value)
    } else {
        None
    };
    Ok(ColumnDescriptor { id, name, ty, not_null: flags & 1 != 0, default, missing, hidden: flags & 2 != 0 })
}

fn get_table(r: &mut Reader) -> Result<TableDescriptor, Error> {
    let oid = r.u32()?;
    let table_id = r.u32()?;
    let schema = get_str(r)?;
    let name = get_str(r)?;
    let version = r.u64()?;
    let columns = (0..r.count(8)?).map(|_| get_column(r)).collect::<Result<_, _>>()?;
    let primary = get_index(r)?;
    let indexes = (0..r.count(4)?).map(|_| get_index(r)).collect::<Result<_, _>>()?;
    let checks = (0..r.count(2)?)
        .map(|_| Ok(CheckDescriptor { name: get_str(r)?, expr: get_str(r)? }))
        .collect::<Result<_, DecodeError>>()?;
    Ok(TableDescriptor {
        oid,
        table_id,
        schema,
        name,
        version,
        columns,
        primary,
        indexes,
        checks,
        next_column_id: r.u32()?,
        next_index_id: r.u32()?,
        row_estimate: r.u64()?,
    })
}

fn get_sequence(r: &mut Reader) -> Result<SequenceDescriptor, DecodeError> {
    Ok(SequenceDescriptor {
        oid: r.u32()?,
        schema: get_str(r)?,
        name: get_str(r)?,
        start: get_i64(r)?,
        increment: get_i64(r)?,
        min: get_i64(r)?,
        max: get_i64(r)?,
        cache: r.u32()?,
        owned_by: match r.u8()? {
            0 => None,
            1 => Some((r.u32()?, r.u32()?)),
            _ => return Err(DecodeError::Invalid("option")),
        },
    })
}

/// The descriptor in a row of the catalog; XX001 when it is not one.
pub fn decode(bytes: Bytes) -> Result<Descriptor, Error> {
    let mut r = Reader::new(bytes);
    let (version, kind) = (r.u8()?, r.u8()?);
    if version != VERSION {
        return Err(Error::corrupted(format!("descriptor of unknown version {version}")));
    }
    let d = match kind {
        TABLE => Descriptor::Table(get_table(&mut r)?),
        SEQUENCE => Descriptor::Sequence(get_sequence(&mut r)?),
        other => return Err(Error::corrupted(format!("descriptor of unknown kind {other}"))),
    };
    r.finish()?;
    Ok(d)
}

#[cfg(test)]
mod tests {
    use super::*;
    use isochrone_types::Datum;
    use proptest::prelude::*;

    fn table() -> TableDescriptor {
        TableDescriptor {
            oid: 16384,
            table_id: 101,
            schema: "public".into(),
            name: "accounts".into(),
            version: 7,
            columns: vec![
                ColumnDescriptor {
                    id: 1,
                    name: "id".into(),
                    ty: Type::Int8,
                    not_null: true,
                    default: Some("nextval('s')".into()),
                    missing: None,
                    hidden: false,
                },
                ColumnDescriptor {
                    id: 4,
                    name: "note".into(),
                    ty: Type::Varchar(Some(10)),
                    not_null: false,
                    default: None,
                    missing: Some(Datum::text("x")),
                    hidden: true,
                },
            ],
            primary: IndexDescriptor {
                id: 0,
                name: "accounts_pkey".into(),
                unique: true,
                columns: vec![(1, true)],
                state: IndexState::Public,
                constraint: true,
            },
            indexes: vec![IndexDescriptor {
                id: 3,
                name: "i".into(),
                unique: false,
                columns: vec![(4, false), (1, false)],
                state: IndexState::Building,
                constraint: false,
            }],
            checks: vec![CheckDescriptor { name: "c".into(), expr: "id > 0".into() }],
            next_column_id: 5,
            next_index_id: 4,
            row_estimate: 12,
        }
    }

    #[test]
    fn roundtrip() {
        let t = table();
        assert_eq!(decode(encode_table(&t).into()).unwrap(), Descriptor::Table(t.clone()));
        let s = SequenceDescriptor {
            oid: 9,
            schema: "public".into(),
            name: "s".into(),
            start: -4,
            increment: -1,
            min: i64::MIN,
            max: -1,
            cache: 64,
            owned_by: Some((16384, 1)),
        };
        assert_eq!(decode(encode_sequence(&s).into()).unwrap(), Descriptor::Sequence(s));
        let bytes = encode_table(&t);
        for cut in 0..bytes.len() {
            assert!(decode(bytes[..cut].to_vec().into()).is_err(), "cut at {cut}");
        }
        let mut other = bytes.clone();
        other[0] = 99;
        assert!(decode(other.into()).is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_panic(b: Vec<u8>, at: usize, to: u8) {
            let _ = decode(b.into());
            let mut t = encode_table(&table());
            let at = at % t.len();
            t[at] = to;
            let _ = decode(t.into());
        }
    }
}
