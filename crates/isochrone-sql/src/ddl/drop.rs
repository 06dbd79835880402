//! DROP and TRUNCATE. The rows of what is dropped are removed after COMMIT, in the background, in bounded steps.

use std::sync::Arc;

use isochrone_types::{Error, SqlState};
use sqlparser::ast::{ObjectName, ObjectType, Truncate, TruncateIdentityOption};

use super::{Action, DdlContext, object_name};
use crate::catalog::Object;
use crate::descriptor::TableDescriptor;

fn missing(kind: &str, name: &str) -> Error {
    let (code, what) = match kind {
        "index" => (SqlState::UNDEFINED_OBJECT, format!("index \"{name}\" does not exist")),
        kind => (SqlState::UNDEFINED_TABLE, format!("{kind} \"{name}\" does not exist")),
    };
    Error::new(code, what)
}

/// DROP TABLE, INDEX, SEQUENCE.
pub(super) async fn run(
    ctx: &mut DdlContext<'_>,
    kind: ObjectType,
    if_exists: bool,
    names: &[ObjectName],
    cascade: bool,
) -> Result<String, Error> {
    let word = match kind {
        ObjectType::Table => "table",
        ObjectType::Index => "index",
        ObjectType::Sequence => "sequence",
        other => return Err(Error::unsupported(format!("DROP {other}"))),
    };
    ctx.begin().await?;
    for name in names {
        let name = object_name(name)?;
        let found = ctx.catalog().object(&name);
        let Some(object) = found else {
            if if_exists {
                ctx.notice("00000", format!("{word} \"{name}\" does not exist, skipping"));
                continue;
            }
            return Err(missing(word, &name));
        };
        match (kind, object) {
            (ObjectType::Table, Object::Table(_)) => drop_table(ctx, &name).await?,
            (ObjectType::Index, Object::Index(oid, id)) => drop_index(ctx, oid, id).await?,
            (ObjectType::Sequence, Object::Sequence(oid)) => drop_sequence(ctx, oid, cascade).await?,
            _ => {
                return Err(Error::new(
                    SqlState::WRONG_OBJECT_TYPE,
                    format!("\"{name}\" is not {} {word}", if word == "index" { "an" } else { "a" }),
                ));
            }
        }
    }
    Ok(format!("DROP {}", word.to_uppercase()))
}

fn owned_sequences(ctx: &DdlContext<'_>, table: &TableDescriptor, column: Option<u32>) -> Vec<u32> {
    ctx.catalog()
        .sequences()
        .filter(|s| s.owned_by.is_some_and(|(t, c)| t == table.oid && column.is_none_or(|id| id == c)))
        .map(|s| s.oid)
        .collect()
}

async fn drop_table(ctx: &mut DdlContext<'_>, name: &str) -> Result<(), Error> {
    let table = ctx.lock_table(name).await?;
    drop_owned(ctx, &table, None)?;
    ctx.remove_table_row(table.oid)?;
    ctx.state.on_commit.push(Action::ClearTable(table.table_id));
    Ok(())
}

/// Drops the sequences of a table, or of one of its columns.
pub(super) fn drop_owned(
    ctx: &mut DdlContext<'_>,
    table: &TableDescriptor,
    column: Option<u32>,
) -> Result<(), Error> {
    for oid in owned_sequences(ctx, table, column) {
        ctx.remove_sequence_row(oid)?;
    }
    Ok(())
}

async fn drop_index(ctx: &mut DdlContext<'_>, oid: u32, id: u32) -> Result<(), Error> {
    let name = match ctx.catalog().table_by_oid(oid) {
        Some(entry) => entry.table.name.clone(),
        None => return Err(Error::internal("an index without a table")),
    };
    let table = ctx.lock_table(&name).await?;
    let index = table.indexes.iter().find(|i| i.id == id);
    let constraint = match index {
        None => Some(table.primary.name.clone()),
        Some(i) if i.constraint => Some(i.name.clone()),
        Some(_) => None,
    };
    if let Some(constraint) = constraint {
        return Err(Error::new(
            SqlState::DEPENDENT_OBJECTS_STILL_EXIST,
            format!(
                "cannot drop index {constraint} because constraint {constraint} on table {name} requires it"
            ),
        )
        .with_hint(format!("You can drop constraint {constraint} on table {name} instead.")));
    }
    remove_index(ctx, &table, id)
}

/// Takes an index out of a locked table.
pub(super) fn remove_index(
    ctx: &mut DdlContext<'_>,
    table: &Arc<TableDescriptor>,
    id: u32,
) -> Result<(), Error> {
    let mut next = TableDescriptor::clone(table);
    next.indexes.retain(|i| i.id != id);
    ctx.put_table(next)?;
    ctx.state.on_commit.push(Action::ClearIndex(table.table_id, id));
    Ok(())
}

async fn drop_sequence(ctx: &mut DdlContext<'_>, oid: u32, cascade: bool) -> Result<(), Error> {
    let Some(sequence) = ctx.catalog().sequence_by_oid(oid).cloned() else {
        return Err(Error::internal("a sequence is missing"));
    };
    if let Some((table_oid, column)) = sequence.owned_by {
        let found = ctx.catalog().table_by_oid(table_oid).map(|t| t.table.name.clone());
        if let Some(name) = found {
            let table = ctx.lock_table(&name).await?;
            let at = table.position(column);
            let used = at.is_some_and(|at| table.columns[at].default.is_some());
            if used && (!cascade || at.is_some_and(|at| table.columns[at].hidden)) {
                let column = at.map(|at| table.columns[at].name.as_str()).unwrap_or_default();
                return Err(Error::new(
                    SqlState::DEPENDENT_OBJECTS_STILL_EXIST,
                    format!("cannot drop sequence {} because other objects depend on it", sequence.name),
                )
                .with_detail(format!(
                    "default value for column {column} of table {name} depends on sequence {}",
                    sequence.name
                ))
                .with_hint("Use DROP ... CASCADE to drop the dependent objects too."));
            }
            if let (true, Some(at)) = (used, at) {
                let mut next = TableDescriptor::clone(&table);
                next.columns[at].default = None;
                ctx.put_table(next)?;
            }
        }
    }
    ctx.remove_sequence_row(oid)
}

/// TRUNCATE: the table gets a new id; the old rows go after COMMIT.
pub(super) async fn truncate(ctx: &mut DdlContext<'_>, truncate: &Truncate) -> Result<String, Error> {
    ctx.begin().await?;
    for target in &truncate.table_names {
        let name = object_name(&target.name)?;
        if truncate.if_exists && ctx.catalog().table(&name).is_none() {
            continue;
        }
        let table = ctx.lock_table(&name).await?;
        let mut next = TableDescriptor::clone(&table);
        next.table_id = ctx.fresh_table_id().await?;
        next.row_estimate = 0;
        // Nothing is left that a building index would have to be filled with, but its builder decides that.
        ctx.put_table(next)?;
        ctx.state.on_commit.push(Action::ClearTable(table.table_id));
        if truncate.identity == Some(TruncateIdentityOption::Restart) {
            for oid in owned_sequences(ctx, &table, None) {
                let hidden = ctx
                    .catalog()
                    .sequence_by_oid(oid)
                    .and_then(|s| s.owned_by)
                    .is_some_and(|(_, c)| table.position(c).is_some_and(|at| table.columns[at].hidden));
                if !hidden {
                    ctx.state.on_commit.push(Action::RestartSequence(oid));
                }
            }
        }
    }
    Ok("TRUNCATE TABLE".to_string())
}
