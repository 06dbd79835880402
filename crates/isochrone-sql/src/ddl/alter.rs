//! ALTER TABLE and ALTER INDEX. Several operations of one statement are applied one after the other.

use std::collections::BTreeSet;
use std::sync::Arc;

use isochrone_types::{CastContext, Datum, Error, SqlState, Type};
use sqlparser::ast::{
    AlterColumnOperation, AlterIndexOperation, AlterTable, AlterTableOperation, ColumnDef, DataType, Expr,
    Ident, ObjectName, RenameTableNameKind, TableConstraint,
};

use super::create_table::{
    Parts, WantedKey, add_checks, add_owned_sequence, add_row_id, check_expressions, make_index, quote,
};
use super::rewrite::{check_not_null, contains_null, find_row, rewrite_table};
use super::{Action, DdlContext, drop, fold, index, made_name, object_name};
use crate::bind::types::data_type;
use crate::catalog::Object;
use crate::descriptor::{IndexDescriptor, ROW_ID, TableDescriptor};

/// Functions whose value differs from row to row: such a DEFAULT cannot be computed once for all rows.
const VOLATILE: &[&str] =
    &["nextval", "random", "gen_random_uuid", "uuid_generate_v4", "clock_timestamp", "timeofday", "setval"];

fn undefined_column(table: &TableDescriptor, name: &str) -> Error {
    Error::new(
        SqlState::UNDEFINED_COLUMN,
        format!("column \"{name}\" of relation \"{}\" does not exist", table.name),
    )
}

fn column_at(table: &TableDescriptor, name: &str) -> Result<usize, Error> {
    table
        .columns
        .iter()
        .position(|c| c.name == name && !c.hidden)
        .ok_or_else(|| undefined_column(table, name))
}

/// ALTER TABLE.
pub(super) async fn run(ctx: &mut DdlContext<'_>, alter: &AlterTable) -> Result<String, Error> {
    let tag = "ALTER TABLE".to_string();
    let mut name = object_name(&alter.name)?;
    ctx.begin().await?;
    if alter.if_exists && ctx.catalog().object(&name).is_none() {
        ctx.notice("42P01", format!("relation \"{name}\" does not exist, skipping"));
        return Ok(tag);
    }
    for operation in &alter.operations {
        let table = ctx.lock_table(&name).await?;
        apply(ctx, &table, operation).await?;
        if let AlterTableOperation::RenameTable { table_name } = operation {
            let (RenameTableNameKind::As(n) | RenameTableNameKind::To(n)) = table_name;
            name = object_name(n)?;
        }
    }
    Ok(tag)
}

async fn apply(
    ctx: &mut DdlContext<'_>,
    table: &Arc<TableDescriptor>,
    operation: &AlterTableOperation,
) -> Result<(), Error> {
    match operation {
        AlterTableOperation::AddConstraint { constraint, not_valid } => {
            if *not_valid {
                return Err(Error::unsupported("NOT VALID"));
            }
            add_constraint(ctx, table, constraint).await
        }
        AlterTableOperation::AddColumn { if_not_exists, column_def, column_position, .. } => {
            if column_position.is_some() {
                return Err(Error::unsupported("a position for ADD COLUMN"));
            }
            add_column(ctx, table, *if_not_exists, column_def).await
        }
        AlterTableOperation::DropColumn { column_names, if_exists, drop_behavior, .. } => {
            let _ = drop_behavior;
            for name in column_names {
                let table = ctx.table(&table.name)?;
                drop_column(ctx, &table, &fold(name), *if_exists).await?;
            }
            Ok(())
        }
        AlterTableOperation::DropConstraint { if_exists, name, .. } => {
            drop_constraint(ctx, table, &fold(name), *if_exists).await
        }
        AlterTableOperation::DropPrimaryKey { .. } => {
            let name = table.primary.name.clone();
            drop_constraint(ctx, table, &name, false).await
        }
        AlterTableOperation::RenameTable { table_name } => {
            let (RenameTableNameKind::As(n) | RenameTableNameKind::To(n)) = table_name;
            let name = object_name(n)?;
            ctx.catalog().check_free(&name)?;
            let mut next = TableDescriptor::clone(table);
            next.name = name;
            ctx.put_table(next)
        }
        AlterTableOperation::RenameColumn { old_column_name, new_column_name } => {
            rename_column(ctx, table, old_column_name, new_column_name)
        }
        AlterTableOperation::RenameConstraint { old_name, new_name } => {
            let (old, new) = (fold(old_name), fold(new_name));
            rename_constraint(ctx, table, &old, new)
        }
        AlterTableOperation::AlterColumn { column_name, op } => {
            alter_column(ctx, table, &fold(column_name), op).await
        }
        // There is one role and one place for tables: these have nothing to change.
        AlterTableOperation::OwnerTo { .. }
        | AlterTableOperation::ReplicaIdentity { .. }
        | AlterTableOperation::SetLogged
        | AlterTableOperation::SetOptionsParens { .. } => Ok(()),
        AlterTableOperation::ValidateConstraint { name } => {
            let name = fold(name);
            if table.checks.iter().any(|c| c.name == name) {
                return Ok(());
            }
            Err(no_constraint(table, &name))
        }
        other => {
            let text = other.to_string();
            let words: Vec<&str> =
                text.split_whitespace().take_while(|w| w.chars().all(|c| c.is_ascii_uppercase())).collect();
            Err(Error::unsupported(format!("ALTER TABLE .. {}", words.join(" "))))
        }
    }
}

fn no_constraint(table: &TableDescriptor, name: &str) -> Error {
    Error::new(
        SqlState::UNDEFINED_OBJECT,
        format!("constraint \"{name}\" of relation \"{}\" does not exist", table.name),
    )
}

/// A copy of the table under a fresh id, for a rewrite.
async fn fresh_copy(ctx: &mut DdlContext<'_>, table: &TableDescriptor) -> Result<TableDescriptor, Error> {
    let mut next = TableDescriptor::clone(table);
    next.table_id = ctx.fresh_table_id().await?;
    ctx.state.on_commit.push(Action::ClearTable(table.table_id));
    Ok(next)
}

async fn add_constraint(
    ctx: &mut DdlContext<'_>,
    table: &Arc<TableDescriptor>,
    constraint: &TableConstraint,
) -> Result<(), Error> {
    let mut parts = Parts::default();
    parts.constraint(constraint)?;
    for key in parts.keys.drain(..) {
        if key.primary {
            add_primary_key(ctx, table, key).await?;
        } else {
            add_unique(ctx, table, key).await?;
        }
    }
    if !parts.checks.is_empty() {
        let mut next = TableDescriptor::clone(table);
        let before = next.checks.len();
        add_checks(&mut next, parts.checks)?;
        let added: Vec<(String, String)> =
            next.checks[before..].iter().map(|c| (c.name.clone(), c.expr.clone())).collect();
        ctx.put_table(next.clone())?;
        check_expressions(ctx, &next)?;
        for (name, expr) in added {
            let sql = format!("SELECT 1 FROM public.{} WHERE NOT ({expr}) LIMIT 1", quote(&table.name));
            if !ctx.query_rows(&sql).await?.is_empty() {
                return Err(Error::new(
                    SqlState::CHECK_VIOLATION,
                    format!(
                        "check constraint \"{name}\" of relation \"{}\" is violated by some row",
                        table.name
                    ),
                )
                .with_table(table.schema.clone(), table.name.clone())
                .with_constraint(name));
            }
        }
    }
    Ok(())
}

/// ADD PRIMARY KEY: the rows move to a new id, sorted by their new key, in bounded batches.
async fn add_primary_key(
    ctx: &mut DdlContext<'_>,
    table: &Arc<TableDescriptor>,
    key: WantedKey,
) -> Result<(), Error> {
    if !table.has_row_id() {
        return Err(Error::new(
            SqlState::INVALID_TABLE_DEFINITION,
            format!("multiple primary keys for table \"{}\" are not allowed", table.name),
        ));
    }
    let name = match key.name {
        Some(name) => {
            ctx.catalog().check_free(&name)?;
            name
        }
        None => ctx.catalog().free_name(&made_name(&table.name, "", "pkey"), &[]),
    };
    let columns: Vec<(String, bool)> = key.columns.into_iter().map(|c| (c, false)).collect();
    let primary = make_index(table, 0, name, true, true, &columns)?;
    let key_at: Vec<usize> = primary.columns.iter().filter_map(|(id, _)| table.position(*id)).collect();
    let hidden = table
        .columns
        .iter()
        .position(|c| c.hidden && c.name == ROW_ID)
        .ok_or_else(|| Error::internal("a table without a primary key has no row id"))?;
    let row_id = table.columns[hidden].id;
    let mut next = fresh_copy(ctx, table).await?;
    for at in &key_at {
        next.columns[*at].not_null = true;
    }
    next.columns.remove(hidden);
    next.primary = primary;
    drop::drop_owned(ctx, table, Some(row_id))?;
    let next = Arc::new(next);
    let old = table.clone();
    let map = move |mut row: Vec<Datum>| {
        if let Some(at) = key_at.iter().find(|at| row[**at].is_null()) {
            return Err(contains_null(&old, *at));
        }
        row.remove(hidden);
        Ok(row)
    };
    let rows = rewrite_table(ctx, table, &next, &map).await?;
    let mut next = TableDescriptor::clone(&next);
    next.row_estimate = rows;
    ctx.put_table(next)
}

async fn add_unique(
    ctx: &mut DdlContext<'_>,
    table: &Arc<TableDescriptor>,
    key: WantedKey,
) -> Result<(), Error> {
    let joined = key.columns.join("_");
    let name = match key.name {
        Some(name) => {
            ctx.catalog().check_free(&name)?;
            name
        }
        None => ctx.catalog().free_name(&made_name(&table.name, &joined, "key"), &[]),
    };
    let columns: Vec<(String, bool)> = key.columns.into_iter().map(|c| (c, false)).collect();
    index::add_filled(ctx, table, name, &columns).await
}

fn mentions(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w.eq_ignore_ascii_case(word))
}

async fn add_column(
    ctx: &mut DdlContext<'_>,
    table: &Arc<TableDescriptor>,
    if_not_exists: bool,
    def: &ColumnDef,
) -> Result<(), Error> {
    let name = fold(&def.name);
    if table.position_of(&name).is_some() {
        let message = format!("column \"{name}\" of relation \"{}\" already exists", table.name);
        if if_not_exists {
            ctx.notice("42701", format!("{message}, skipping"));
            return Ok(());
        }
        return Err(Error::new(SqlState::DUPLICATE_COLUMN, message));
    }
    let mut parts = Parts::default();
    parts.column(def)?;
    let mut column = parts.columns.pop().ok_or_else(|| Error::internal("no column was made"))?;
    let volatile = !parts.sequences.is_empty()
        || column.default.as_ref().is_some_and(|d| VOLATILE.iter().any(|f| mentions(d, f)));
    let empty = !find_row(ctx, table, &|_| true).await?;
    if volatile && !empty {
        return Err(Error::unsupported(
            "ADD COLUMN with a DEFAULT that differs from row to row, on a table with rows",
        ));
    }
    let mut next = TableDescriptor::clone(table);
    column.id = next.next_column_id;
    next.next_column_id += 1;
    if let (false, Some(default)) = (empty, &column.default) {
        let rows = ctx.query_rows(&format!("SELECT CAST(({default}) AS {})", column.ty.sql_name())).await?;
        let value = rows.into_iter().next().and_then(|r| r.into_iter().next());
        column.missing = value.filter(|v| !v.is_null());
    }
    if column.not_null && column.missing.is_none() && !empty {
        return Err(Error::new(
            SqlState::NOT_NULL_VIOLATION,
            format!("column \"{name}\" of relation \"{}\" contains null values", table.name),
        ));
    }
    // The row id stays last, so that positions of visible columns match what clients count.
    let at = next.columns.iter().position(|c| c.hidden).unwrap_or(next.columns.len());
    next.columns.insert(at, column);
    for (column, ty, options) in &parts.sequences {
        add_owned_sequence(ctx, &mut next, column, *ty, options).await?;
    }
    add_checks(&mut next, parts.checks)?;
    ctx.put_table(next.clone())?;
    check_expressions(ctx, &next)?;
    for key in parts.keys {
        let table = ctx.table(&table.name)?;
        if key.primary {
            add_primary_key(ctx, &table, key).await?;
        } else {
            add_unique(ctx, &table, key).await?;
        }
    }
    Ok(())
}

async fn drop_column(
    ctx: &mut DdlContext<'_>,
    table: &Arc<TableDescriptor>,
    name: &str,
    if_exists: bool,
) -> Result<(), Error> {
    let at = match column_at(table, name) {
        Ok(at) => at,
        Err(_) if if_exists => {
            ctx.notice(
                "00000",
                format!("column \"{name}\" of relation \"{}\" does not exist, skipping", table.name),
            );
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    let id = table.columns[at].id;
    if table.primary.columns.iter().any(|(c, _)| *c == id) {
        return Err(Error::unsupported("dropping a column of the primary key"));
    }
    drop::drop_owned(ctx, table, Some(id))?;
    let mut next = TableDescriptor::clone(table);
    next.columns.remove(at);
    for index in next.indexes.extract_if(.., |i| i.columns.iter().any(|(c, _)| *c == id)) {
        ctx.state.on_commit.push(Action::ClearIndex(table.table_id, index.id));
    }
    next.checks.retain(|c| !mentions(&c.expr, name));
    // What rows still store under the id is never read: ids are not used again.
    ctx.put_table(next)
}

async fn drop_constraint(
    ctx: &mut DdlContext<'_>,
    table: &Arc<TableDescriptor>,
    name: &str,
    if_exists: bool,
) -> Result<(), Error> {
    if table.checks.iter().any(|c| c.name == name) {
        let mut next = TableDescriptor::clone(table);
        next.checks.retain(|c| c.name != name);
        return ctx.put_table(next);
    }
    if let Some(index) = table.indexes.iter().find(|i| i.name == name && i.constraint) {
        return drop::remove_index(ctx, table, index.id);
    }
    if table.primary.name == name && !table.has_row_id() {
        let mut next = fresh_copy(ctx, table).await?;
        add_row_id(ctx, &mut next).await?;
        // Rows get ids in the order of their old keys; the sequence goes on above them.
        let sequence = next.columns.last().map(|c| (next.oid, c.id));
        let next = Arc::new(next);
        let count = std::sync::atomic::AtomicI64::new(0);
        let map = move |mut row: Vec<Datum>| {
            row.push(Datum::Int8(count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1));
            Ok(row)
        };
        let rows = rewrite_table(ctx, table, &next, &map).await?;
        let made = ctx.catalog().sequences().find(|s| s.owned_by == sequence).cloned();
        if let Some(made) = made {
            let mut made = crate::descriptor::SequenceDescriptor::clone(&made);
            made.start = rows as i64 + 1;
            ctx.put_sequence(made)?;
        }
        return ctx.put_table(TableDescriptor::clone(&next));
    }
    if if_exists {
        ctx.notice(
            "00000",
            format!("constraint \"{name}\" of relation \"{}\" does not exist, skipping", table.name),
        );
        return Ok(());
    }
    Err(no_constraint(table, name))
}

fn rename_column(
    ctx: &mut DdlContext<'_>,
    table: &Arc<TableDescriptor>,
    old: &Ident,
    new: &Ident,
) -> Result<(), Error> {
    let (old, new) = (fold(old), fold(new));
    let at = column_at(table, &old)?;
    if table.position_of(&new).is_some() {
        return Err(Error::new(
            SqlState::DUPLICATE_COLUMN,
            format!("column \"{new}\" of relation \"{}\" already exists", table.name),
        ));
    }
    if table.checks.iter().any(|c| mentions(&c.expr, &old)) {
        return Err(Error::unsupported("renaming a column that a CHECK constraint uses"));
    }
    let mut next = TableDescriptor::clone(table);
    next.columns[at].name = new;
    ctx.put_table(next)
}

fn rename_constraint(
    ctx: &mut DdlContext<'_>,
    table: &Arc<TableDescriptor>,
    old: &str,
    new: String,
) -> Result<(), Error> {
    let mut next = TableDescriptor::clone(table);
    if let Some(check) = next.checks.iter_mut().find(|c| c.name == old) {
        check.name = new;
        return ctx.put_table(next);
    }
    ctx.catalog().check_free(&new)?;
    let found: Option<&mut IndexDescriptor> = if next.primary.name == old && !table.has_row_id() {
        Some(&mut next.primary)
    } else {
        next.indexes.iter_mut().find(|i| i.name == old && i.constraint)
    };
    match found {
        Some(index) => {
            index.name = new;
            ctx.put_table(next)
        }
        None => Err(no_constraint(table, old)),
    }
}

async fn alter_column(
    ctx: &mut DdlContext<'_>,
    table: &Arc<TableDescriptor>,
    name: &str,
    op: &AlterColumnOperation,
) -> Result<(), Error> {
    let at = column_at(table, name)?;
    let mut next = TableDescriptor::clone(table);
    match op {
        AlterColumnOperation::SetDefault { value } => {
            next.columns[at].default = Some(value.to_string());
            ctx.put_table(next.clone())?;
            check_expressions(ctx, &next)
        }
        AlterColumnOperation::DropDefault => {
            next.columns[at].default = None;
            ctx.put_table(next)
        }
        AlterColumnOperation::SetNotNull => {
            check_not_null(ctx, table, &BTreeSet::from([at])).await?;
            next.columns[at].not_null = true;
            ctx.put_table(next)
        }
        AlterColumnOperation::DropNotNull => {
            if table.primary.columns.iter().any(|(id, _)| *id == table.columns[at].id) {
                return Err(Error::new(
                    SqlState::INVALID_TABLE_DEFINITION,
                    format!("column \"{name}\" is in a primary key"),
                ));
            }
            next.columns[at].not_null = false;
            ctx.put_table(next)
        }
        AlterColumnOperation::SetDataType { data_type, using, .. } => {
            set_type(ctx, table, at, data_type, using).await
        }
        AlterColumnOperation::AddGenerated { .. } => Err(Error::unsupported("ALTER COLUMN .. ADD GENERATED")),
    }
}

/// ALTER COLUMN TYPE: a rewrite that casts, as an assignment would.
async fn set_type(
    ctx: &mut DdlContext<'_>,
    table: &Arc<TableDescriptor>,
    at: usize,
    ty: &DataType,
    using: &Option<Expr>,
) -> Result<(), Error> {
    let to = data_type(ty)?;
    let column = &table.columns[at];
    let from = column.ty;
    let mut context = CastContext::Assignment;
    if let Some(using) = using {
        // `USING col::type` says no more than an explicit cast.
        let plain = using.to_string().to_lowercase().replace(['"', ' ', '(', ')'], "");
        let shown = ty.to_string().to_lowercase().replace([' ', '(', ')'], "");
        let name = column.name.to_lowercase();
        if plain != name && plain != format!("{name}::{shown}") {
            return Err(Error::unsupported("ALTER COLUMN TYPE .. USING with an expression"));
        }
        context = CastContext::Explicit;
    }
    if !isochrone_types::cast::can_cast(&from, &to, context) {
        return Err(Error::new(
            SqlState::DATATYPE_MISMATCH,
            format!("column \"{}\" cannot be cast automatically to type {to}", column.name),
        )
        .with_hint(format!("You might need to specify \"USING {}::{to}\".", column.name)));
    }
    if table.checks.iter().any(|c| mentions(&c.expr, &column.name)) {
        return Err(Error::unsupported("changing the type of a column that a CHECK constraint uses"));
    }
    let widens = match (from, to) {
        (a, b) if a == b => true,
        (Type::Varchar(_), Type::Text | Type::Varchar(None)) => true,
        (Type::Text, Type::Varchar(None)) => true,
        (Type::Varchar(Some(a)), Type::Varchar(Some(b))) => a <= b,
        _ => false,
    };
    if widens {
        let mut next = TableDescriptor::clone(table);
        next.columns[at].ty = to;
        return ctx.put_table(next);
    }
    let mut next = fresh_copy(ctx, table).await?;
    next.columns[at].ty = to;
    if let Some(missing) = next.columns[at].missing.take() {
        next.columns[at].missing = Some(isochrone_types::cast(missing, &from, &to, context, ctx.settings)?);
    }
    let next = Arc::new(next);
    let settings = ctx.settings.clone();
    let map = move |mut row: Vec<Datum>| {
        let old = std::mem::take(&mut row[at]);
        row[at] = isochrone_types::cast(old, &from, &to, context, &settings)?;
        Ok(row)
    };
    rewrite_table(ctx, table, &next, &map).await?;
    ctx.put_table(TableDescriptor::clone(&next))?;
    check_expressions(ctx, &next)
}

/// ALTER INDEX .. RENAME TO.
pub(super) async fn alter_index(
    ctx: &mut DdlContext<'_>,
    name: &ObjectName,
    operation: &AlterIndexOperation,
) -> Result<String, Error> {
    let AlterIndexOperation::RenameIndex { index_name } = operation;
    let (old, new) = (object_name(name)?, object_name(index_name)?);
    ctx.begin().await?;
    let Some(Object::Index(oid, id)) = ctx.catalog().object(&old) else {
        return Err(Error::new(SqlState::UNDEFINED_TABLE, format!("relation \"{old}\" does not exist")));
    };
    ctx.catalog().check_free(&new)?;
    let table = match ctx.catalog().table_by_oid(oid) {
        Some(entry) => entry.table.name.clone(),
        None => return Err(Error::internal("an index without a table")),
    };
    let table = ctx.lock_table(&table).await?;
    let mut next = TableDescriptor::clone(&table);
    if id == 0 {
        next.primary.name = new;
    } else if let Some(index) = next.indexes.iter_mut().find(|i| i.id == id) {
        index.name = new;
    }
    ctx.put_table(next)?;
    Ok("ALTER INDEX".to_string())
}
