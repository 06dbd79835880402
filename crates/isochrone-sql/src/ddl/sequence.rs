//! CREATE SEQUENCE, and the sequences of SERIAL and identity columns.

use isochrone_types::{Error, SqlState, Type};
use sqlparser::ast::{DataType, Expr, ObjectName, SequenceOptions, UnaryOperator, Value};

use super::{DdlContext, fold, object_name};
use crate::bind::types::data_type;
use crate::catalog::sequences::BLOCK;
use crate::catalog::snapshot::PUBLIC;
use crate::catalog::store;
use crate::descriptor::SequenceDescriptor;

/// The DEFAULT that draws from a sequence.
pub(super) fn nextval_of(name: &str) -> String {
    let plain = !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let shown = if plain { name.to_string() } else { format!("\"{}\"", name.replace('"', "\"\"")) };
    format!("nextval('{}'::regclass)", shown.replace('\'', "''"))
}

fn number(expr: &Expr) -> Result<i64, Error> {
    let text = match expr {
        Expr::Value(v) => match &v.value {
            Value::Number(n, _) => n.to_string(),
            _ => return Err(Error::syntax(format!("{expr} is not a number"))),
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match expr.as_ref() {
            Expr::Value(v) => match &v.value {
                Value::Number(n, _) => format!("-{n}"),
                _ => return Err(Error::syntax(format!("{expr} is not a number"))),
            },
            _ => return Err(Error::syntax(format!("{expr} is not a number"))),
        },
        _ => return Err(Error::syntax(format!("{expr} is not a number"))),
    };
    text.parse().map_err(|_| {
        Error::new(
            SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
            format!("value \"{text}\" is out of range for type bigint"),
        )
    })
}

/// A sequence with these options.
pub(super) fn descriptor(
    oid: u32,
    name: &str,
    ty: Type,
    options: &[SequenceOptions],
) -> Result<SequenceDescriptor, Error> {
    let (low, high) = match ty {
        Type::Int2 => (i64::from(i16::MIN), i64::from(i16::MAX)),
        Type::Int4 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        Type::Int8 => (i64::MIN, i64::MAX),
        _ => return Err(Error::invalid_parameter("sequence type must be smallint, integer, or bigint")),
    };
    let (mut increment, mut min, mut max, mut start, mut cache) = (1, None, None, None, BLOCK);
    for option in options {
        match option {
            SequenceOptions::IncrementBy(e, _) => increment = number(e)?,
            SequenceOptions::MinValue(e) => min = e.as_ref().map(number).transpose()?,
            SequenceOptions::MaxValue(e) => max = e.as_ref().map(number).transpose()?,
            SequenceOptions::StartWith(e, _) => start = Some(number(e)?),
            SequenceOptions::Cache(e) => {
                let n = number(e)?;
                if n < 1 {
                    return Err(Error::invalid_parameter(format!("CACHE ({n}) must be greater than zero")));
                }
                cache = u32::try_from(n).unwrap_or(u32::MAX).max(BLOCK);
            }
            SequenceOptions::Cycle(true) => return Err(Error::unsupported("a sequence with CYCLE")),
            SequenceOptions::Cycle(false) => {}
        }
    }
    if increment == 0 {
        return Err(Error::invalid_parameter("INCREMENT must not be zero"));
    }
    let min = min.unwrap_or(if increment > 0 { 1 } else { low });
    let max = max.unwrap_or(if increment > 0 { high } else { -1 });
    if min < low || max > high || min > max {
        return Err(Error::invalid_parameter(format!("MINVALUE ({min}) must be less than MAXVALUE ({max})")));
    }
    let start = start.unwrap_or(if increment > 0 { min } else { max });
    if start < min || start > max {
        return Err(Error::invalid_parameter(format!(
            "START value ({start}) cannot be outside MINVALUE ({min}) and MAXVALUE ({max})"
        )));
    }
    Ok(SequenceDescriptor {
        oid,
        schema: PUBLIC.to_string(),
        name: name.to_string(),
        start,
        increment,
        min,
        max,
        cache,
        owned_by: None,
    })
}

/// CREATE SEQUENCE.
pub(super) async fn create(
    ctx: &mut DdlContext<'_>,
    if_not_exists: bool,
    name: &ObjectName,
    ty: &Option<DataType>,
    options: &[SequenceOptions],
    owned_by: &Option<ObjectName>,
) -> Result<String, Error> {
    let name = object_name(name)?;
    let tag = "CREATE SEQUENCE".to_string();
    ctx.begin().await?;
    if let Err(e) = ctx.catalog().check_free(&name) {
        if if_not_exists {
            ctx.notice("42P07", format!("relation \"{name}\" already exists, skipping"));
            return Ok(tag);
        }
        return Err(e);
    }
    let ty = ty.as_ref().map(data_type).transpose()?.unwrap_or(Type::Int8);
    let mut sequence = descriptor(store::new_oid(ctx.store()).await?, &name, ty, options)?;
    if let Some(owner) = owned_by {
        let parts: Vec<String> = owner.0.iter().filter_map(|p| p.as_ident()).map(fold).collect();
        match parts.as_slice() {
            [none] if none == "none" => {}
            [table, column] | [_, table, column] => {
                let table = ctx.table(table)?;
                let at = table.position_of(column).ok_or_else(|| {
                    Error::new(
                        SqlState::UNDEFINED_COLUMN,
                        format!("column \"{column}\" of relation \"{}\" does not exist", table.name),
                    )
                })?;
                sequence.owned_by = Some((table.oid, table.columns[at].id));
            }
            _ => return Err(Error::syntax("invalid OWNED BY option")),
        }
    }
    ctx.put_sequence(sequence)?;
    Ok(tag)
}
