//! CREATE TABLE. CREATE TABLE AS is split by the session: the table first, then an INSERT .. SELECT into it.

use isochrone_base::limits::COLUMNS_MAX;
use isochrone_types::{Error, SqlState, Type};
use sqlparser::ast::{
    self, ColumnDef, ColumnOption, CreateTable, CreateTableOptions, DataType, Expr, GeneratedAs, Ident,
    IndexColumn, ObjectNamePart, SequenceOptions, TableConstraint,
};

use super::{DdlContext, fold, made_name, object_name, sequence};
use crate::bind::types::data_type;
use crate::catalog::snapshot::PUBLIC;
use crate::catalog::store;
use crate::descriptor::{
    CheckDescriptor, ColumnDescriptor, IndexDescriptor, IndexState, ROW_ID, SequenceDescriptor,
    TableDescriptor,
};

/// Row ids a node takes at once: every insert needs one, and a block costs a commit.
const ROW_ID_BLOCK: u32 = 1_024;
/// Columns of an index, as in PostgreSQL.
const INDEX_COLUMNS_MAX: usize = 32;

/// The integer type of SERIAL and its kin.
pub(super) fn serial_type(ty: &DataType) -> Option<Type> {
    let DataType::Custom(name, _) = ty else { return None };
    let [ObjectNamePart::Identifier(ident)] = name.0.as_slice() else { return None };
    match ident.value.to_lowercase().as_str() {
        "serial" | "serial4" => Some(Type::Int4),
        "bigserial" | "serial8" => Some(Type::Int8),
        "smallserial" | "serial2" => Some(Type::Int2),
        _ => None,
    }
}

/// A key that a constraint asks for.
pub(super) struct WantedKey {
    pub name: Option<String>,
    pub columns: Vec<String>,
    pub primary: bool,
}

/// A column's parts, before the table exists.
#[derive(Default)]
pub(super) struct Parts {
    pub columns: Vec<ColumnDescriptor>,
    pub keys: Vec<WantedKey>,
    /// Name if given, the column it stands at, condition.
    pub checks: Vec<(Option<String>, Option<String>, String)>,
    /// Column name, its integer type, options of its sequence.
    pub sequences: Vec<(String, Type, Vec<SequenceOptions>)>,
}

/// Refuses constraints that are put off.
fn immediate(c: &Option<ast::ConstraintCharacteristics>) -> Result<(), Error> {
    match c {
        Some(c) if c.deferrable == Some(true) || c.initially == Some(ast::DeferrableInitial::Deferred) => {
            Err(Error::unsupported("deferrable constraints"))
        }
        _ => Ok(()),
    }
}

/// The columns of a constraint or index: names and direction.
pub(super) fn index_columns(columns: &[IndexColumn]) -> Result<Vec<(String, bool)>, Error> {
    if columns.len() > INDEX_COLUMNS_MAX {
        return Err(Error::new(
            SqlState::TOO_MANY_COLUMNS,
            format!("cannot use more than {INDEX_COLUMNS_MAX} columns in an index"),
        ));
    }
    let mut out = Vec::with_capacity(columns.len());
    for c in columns {
        let Expr::Identifier(ident) = &c.column.expr else {
            return Err(Error::unsupported("an index on an expression"));
        };
        let descending = c.column.options.sort == Some(ast::OrderBySort::Desc);
        if let Some(ast::OrderBySort::Using(_)) = &c.column.options.sort {
            return Err(Error::syntax("an index has no USING in its columns"));
        }
        // Ours sort NULLs last ascending and first descending, as PostgreSQL's default is.
        if c.column.options.nulls_first.is_some_and(|first| first != descending) {
            return Err(Error::unsupported("NULLS FIRST or LAST other than the default of an index"));
        }
        if let Some(class) = &c.operator_class {
            return Err(Error::unsupported(format!("operator class {class}")));
        }
        out.push((fold(ident), descending));
    }
    Ok(out)
}

fn key_names(columns: &[IndexColumn]) -> Result<Vec<String>, Error> {
    index_columns(columns)?
        .into_iter()
        .map(|(n, desc)| if desc { Err(Error::syntax("a constraint has no direction")) } else { Ok(n) })
        .collect()
}

impl Parts {
    /// Takes a column definition. The column's id is set later.
    pub fn column(&mut self, def: &ColumnDef) -> Result<(), Error> {
        let name = fold(&def.name);
        if self.columns.iter().any(|c| c.name == name) {
            return Err(duplicate_column(&name));
        }
        if name == ROW_ID || ["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"].contains(&name.as_str()) {
            return Err(Error::new(
                SqlState::DUPLICATE_COLUMN,
                format!("column name \"{name}\" conflicts with a system column name"),
            ));
        }
        let mut column = ColumnDescriptor {
            id: 0,
            name: name.clone(),
            ty: Type::Unknown,
            not_null: false,
            default: None,
            missing: None,
            hidden: false,
        };
        match serial_type(&def.data_type) {
            Some(ty) => {
                column.ty = ty;
                column.not_null = true;
                self.sequences.push((name.clone(), ty, Vec::new()));
            }
            None => column.ty = data_type(&def.data_type)?,
        }
        if matches!(column.ty, Type::Unknown | Type::Void) {
            return Err(Error::new(
                SqlState::INVALID_TABLE_DEFINITION,
                format!("column \"{name}\" has pseudo-type {}", column.ty),
            ));
        }
        let mut null = false;
        for option in &def.options {
            let constraint_name = option.name.as_ref().map(fold);
            match &option.option {
                ColumnOption::Null => null = true,
                ColumnOption::NotNull => column.not_null = true,
                ColumnOption::Default(expr) => {
                    if column.default.is_some() || self.sequences.iter().any(|(n, ..)| *n == name) {
                        return Err(Error::syntax(format!("multiple default values for column \"{name}\"")));
                    }
                    let null_default = matches!(expr, Expr::Value(v) if v.value == ast::Value::Null);
                    column.default = (!null_default).then(|| expr.to_string());
                }
                ColumnOption::PrimaryKey(c) => {
                    immediate(&c.characteristics)?;
                    column.not_null = true;
                    let columns = vec![name.clone()];
                    self.keys.push(WantedKey { name: constraint_name, columns, primary: true });
                }
                ColumnOption::Unique(c) => {
                    immediate(&c.characteristics)?;
                    let columns = vec![name.clone()];
                    self.keys.push(WantedKey { name: constraint_name, columns, primary: false });
                }
                ColumnOption::Check(c) => {
                    self.checks.push((constraint_name, Some(name.clone()), c.expr.to_string()));
                }
                ColumnOption::ForeignKey(_) => return Err(Error::unsupported("a foreign key (REFERENCES)")),
                ColumnOption::Generated { generated_as, sequence_options, generation_expr, .. } => {
                    if generation_expr.is_some() || *generated_as == GeneratedAs::ExpStored {
                        return Err(Error::unsupported("a generated column"));
                    }
                    if !column.ty.is_integer() {
                        return Err(Error::invalid_parameter(
                            "identity column type must be smallint, integer, or bigint",
                        ));
                    }
                    column.not_null = true;
                    self.sequences.push((
                        name.clone(),
                        column.ty,
                        sequence_options.clone().unwrap_or_default(),
                    ));
                }
                ColumnOption::Collation(c) => {
                    let c = c.to_string().to_lowercase().replace('"', "");
                    if !["c", "posix", "default", "pg_catalog.c", "pg_catalog.default"].contains(&c.as_str())
                    {
                        return Err(Error::unsupported(format!("collation {c}")));
                    }
                }
                other => return Err(Error::unsupported(format!("the column option {other}"))),
            }
        }
        if null && column.not_null {
            return Err(Error::syntax(format!(
                "conflicting NULL/NOT NULL declarations for column \"{name}\""
            )));
        }
        self.columns.push(column);
        Ok(())
    }

    /// Takes a table constraint.
    pub fn constraint(&mut self, constraint: &TableConstraint) -> Result<(), Error> {
        match constraint {
            TableConstraint::PrimaryKey(c) => {
                immediate(&c.characteristics)?;
                let name = c.name.as_ref().map(fold);
                self.keys.push(WantedKey { name, columns: key_names(&c.columns)?, primary: true });
            }
            TableConstraint::Unique(c) => {
                immediate(&c.characteristics)?;
                if c.nulls_distinct == ast::NullsDistinctOption::NotDistinct {
                    return Err(Error::unsupported("NULLS NOT DISTINCT"));
                }
                let name = c.name.as_ref().map(fold);
                self.keys.push(WantedKey { name, columns: key_names(&c.columns)?, primary: false });
            }
            TableConstraint::Check(c) => {
                self.checks.push((c.name.as_ref().map(fold), None, c.expr.to_string()));
            }
            TableConstraint::ForeignKey(_) => return Err(Error::unsupported("a foreign key (REFERENCES)")),
            TableConstraint::Exclude(_) => return Err(Error::unsupported("an exclusion constraint")),
            TableConstraint::PrimaryKeyUsingIndex(_) | TableConstraint::UniqueUsingIndex(_) => {
                return Err(Error::unsupported("a constraint USING INDEX"));
            }
            other => return Err(Error::unsupported(format!("the constraint {other}"))),
        }
        Ok(())
    }
}

pub(super) fn duplicate_column(name: &str) -> Error {
    Error::new(SqlState::DUPLICATE_COLUMN, format!("column \"{name}\" specified more than once"))
}

pub(super) fn undefined_key_column(name: &str) -> Error {
    Error::new(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" named in key does not exist"))
}

/// An index over columns of a table, by name.
pub(super) fn make_index(
    table: &TableDescriptor,
    id: u32,
    name: String,
    unique: bool,
    constraint: bool,
    columns: &[(String, bool)],
) -> Result<IndexDescriptor, Error> {
    let mut out: Vec<(u32, bool)> = Vec::with_capacity(columns.len());
    for (column, descending) in columns {
        let column = table
            .columns
            .iter()
            .find(|c| c.name == *column && !c.hidden)
            .ok_or_else(|| undefined_key_column(column))?;
        if out.iter().any(|(id, _)| *id == column.id) {
            let message = format!("column \"{}\" appears twice in key", column.name);
            return Err(Error::new(SqlState::DUPLICATE_COLUMN, message));
        }
        if !column.ty.is_ordered() {
            return Err(Error::new(
                SqlState::UNDEFINED_OBJECT,
                format!("data type {} has no default operator class for access method \"btree\"", column.ty),
            ));
        }
        out.push((column.id, *descending));
    }
    Ok(IndexDescriptor { id, name, unique, columns: out, state: IndexState::Public, constraint })
}

/// Adds the hidden row id and its sequence, and makes it the primary key.
pub(super) async fn add_row_id(ctx: &mut DdlContext<'_>, table: &mut TableDescriptor) -> Result<(), Error> {
    let name = ctx.catalog().free_name(&made_name(&table.name, ROW_ID, "seq"), &[]);
    let id = table.next_column_id;
    table.next_column_id += 1;
    ctx.put_sequence(SequenceDescriptor {
        oid: store::new_oid(ctx.store()).await?,
        schema: PUBLIC.to_string(),
        name: name.clone(),
        start: 1,
        increment: 1,
        min: 1,
        max: i64::MAX,
        cache: ROW_ID_BLOCK,
        owned_by: Some((table.oid, id)),
    })?;
    table.columns.push(ColumnDescriptor {
        id,
        name: ROW_ID.to_string(),
        ty: Type::Int8,
        not_null: true,
        default: Some(sequence::nextval_of(&name)),
        missing: None,
        hidden: true,
    });
    table.primary = IndexDescriptor {
        id: 0,
        name: made_name(&table.name, "", "pkey"),
        unique: true,
        columns: vec![(id, false)],
        state: IndexState::Public,
        constraint: false,
    };
    Ok(())
}

/// Makes the sequence of a SERIAL or identity column, and its default.
pub(super) async fn add_owned_sequence(
    ctx: &mut DdlContext<'_>,
    table: &mut TableDescriptor,
    column: &str,
    ty: Type,
    options: &[SequenceOptions],
) -> Result<(), Error> {
    let name = ctx.catalog().free_name(&made_name(&table.name, column, "seq"), &[]);
    let at = table.position_of(column).ok_or_else(|| Error::internal("a serial column is missing"))?;
    let mut sequence = sequence::descriptor(store::new_oid(ctx.store()).await?, &name, ty, options)?;
    sequence.owned_by = Some((table.oid, table.columns[at].id));
    table.columns[at].default = Some(sequence::nextval_of(&name));
    table.columns[at].not_null = true;
    ctx.put_sequence(sequence)
}

/// Names for the check constraints of a table, and their descriptors.
pub(super) fn add_checks(
    table: &mut TableDescriptor,
    checks: Vec<(Option<String>, Option<String>, String)>,
) -> Result<(), Error> {
    for (name, column, expr) in checks {
        let taken = |n: &str| table.checks.iter().any(|c| c.name == n);
        let name = match name {
            Some(n) if taken(&n) => {
                return Err(Error::new(
                    SqlState::DUPLICATE_OBJECT,
                    format!("constraint \"{n}\" for relation \"{}\" already exists", table.name),
                ));
            }
            Some(n) => n,
            None => {
                let base = made_name(&table.name, column.as_deref().unwrap_or(""), "check");
                if taken(&base) {
                    (1u64..)
                        .map(|i| format!("{base}{i}"))
                        .find(|n| !taken(n))
                        .expect("some number is not taken")
                } else {
                    base
                }
            }
        };
        table.checks.push(CheckDescriptor { name, expr });
    }
    Ok(())
}

pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Prepares defaults and checks once, so that a wrong one is refused now and not by the first INSERT.
pub(super) fn check_expressions(ctx: &DdlContext<'_>, table: &TableDescriptor) -> Result<(), Error> {
    let catalog = ctx.catalog();
    for c in table.columns.iter().filter(|c| !c.hidden) {
        if let Some(default) = &c.default {
            (ctx.check)(&catalog, &format!("SELECT ({default})")).map_err(|mut e| {
                e.position = None;
                if e.sqlstate == SqlState::UNDEFINED_COLUMN {
                    Error::unsupported("a column reference in a DEFAULT expression")
                } else {
                    e
                }
            })?;
        }
    }
    for check in &table.checks {
        let sql = format!("SELECT 1 FROM public.{} WHERE ({})", quote(&table.name), check.expr);
        (ctx.check)(&catalog, &sql).map_err(|mut e| {
            e.position = None;
            e
        })?;
    }
    Ok(())
}

fn refuse(create: &CreateTable) -> Result<(), Error> {
    let checks = [
        (create.temporary, "a temporary table"),
        (create.external, "CREATE EXTERNAL TABLE"),
        (create.or_replace, "CREATE OR REPLACE TABLE"),
        (create.inherits.is_some(), "INHERITS"),
        (create.partition_by.is_some() || create.partition_of.is_some(), "a partitioned table"),
        (create.like.is_some(), "CREATE TABLE .. LIKE"),
        (create.on_commit.is_some(), "ON COMMIT"),
    ];
    if let Some((_, what)) = checks.iter().find(|(is, _)| *is) {
        return Err(Error::unsupported(what));
    }
    if let CreateTableOptions::With(options) = &create.table_options {
        for option in options {
            let text = option.to_string().to_lowercase();
            // Storage parameters of a heap that we do not have change nothing.
            let known =
                ["fillfactor", "autovacuum_", "toast", "parallel_workers", "log_autovacuum", "vacuum_"];
            if !known.iter().any(|k| text.starts_with(k)) {
                return Err(Error::invalid_parameter(format!("unrecognized parameter \"{text}\"")));
            }
        }
    }
    Ok(())
}

/// CREATE TABLE.
pub(super) async fn run(ctx: &mut DdlContext<'_>, create: &CreateTable) -> Result<String, Error> {
    refuse(create)?;
    let name = object_name(&create.name)?;
    let mut parts = Parts::default();
    for def in &create.columns {
        parts.column(def)?;
    }
    for constraint in &create.constraints {
        parts.constraint(constraint)?;
    }
    create_from_parts(ctx, name, parts, create.if_not_exists).await?;
    Ok("CREATE TABLE".to_string())
}

/// Makes the table. False: it exists already, and that is fine.
pub(super) async fn create_from_parts(
    ctx: &mut DdlContext<'_>,
    name: String,
    parts: Parts,
    if_not_exists: bool,
) -> Result<bool, Error> {
    if parts.columns.len() > COLUMNS_MAX {
        return Err(Error::new(
            SqlState::TOO_MANY_COLUMNS,
            format!("tables can have at most {COLUMNS_MAX} columns"),
        ));
    }
    ctx.begin().await?;
    if let Err(e) = ctx.catalog().check_free(&name) {
        if if_not_exists {
            ctx.notice("42P07", format!("relation \"{name}\" already exists, skipping"));
            return Ok(false);
        }
        return Err(e);
    }
    let oid = store::new_oid(ctx.store()).await?;
    ctx.state.made.insert(oid);
    let table_id = ctx.fresh_table_id().await?;
    let no_key = IndexDescriptor {
        id: 0,
        name: String::new(),
        unique: true,
        columns: Vec::new(),
        state: IndexState::Public,
        constraint: true,
    };
    let mut table = TableDescriptor {
        oid,
        table_id,
        schema: PUBLIC.to_string(),
        name,
        version: 0,
        next_column_id: parts.columns.len() as u32 + 1,
        columns: parts.columns,
        primary: no_key,
        indexes: Vec::new(),
        checks: Vec::new(),
        next_index_id: 1,
        row_estimate: 0,
    };
    for (i, c) in table.columns.iter_mut().enumerate() {
        c.id = i as u32 + 1;
    }
    for (column, ty, options) in &parts.sequences {
        add_owned_sequence(ctx, &mut table, column, *ty, options).await?;
    }
    let mut has_primary = false;
    let mut names: Vec<String> = vec![table.name.clone()];
    for key in parts.keys {
        add_key(ctx, &mut table, key, &mut has_primary, &mut names)?;
    }
    if !has_primary {
        add_row_id(ctx, &mut table).await?;
    }
    add_checks(&mut table, parts.checks)?;
    ctx.put_table(table.clone())?;
    check_expressions(ctx, &table)?;
    Ok(true)
}

fn add_key(
    ctx: &DdlContext<'_>,
    table: &mut TableDescriptor,
    key: WantedKey,
    has_primary: &mut bool,
    names: &mut Vec<String>,
) -> Result<(), Error> {
    let columns: Vec<(String, bool)> = key.columns.into_iter().map(|c| (c, false)).collect();
    let name = match key.name {
        Some(n) => {
            ctx.catalog().check_free(&n)?;
            if names.contains(&n) {
                return Err(Error::new(
                    SqlState::DUPLICATE_TABLE,
                    format!("relation \"{n}\" already exists"),
                ));
            }
            n
        }
        None if key.primary => ctx.catalog().free_name(&made_name(&table.name, "", "pkey"), names),
        None => {
            let joined = columns.iter().map(|(c, _)| c.as_str()).collect::<Vec<_>>().join("_");
            ctx.catalog().free_name(&made_name(&table.name, &joined, "key"), names)
        }
    };
    names.push(name.clone());
    if key.primary {
        if *has_primary {
            return Err(Error::new(
                SqlState::INVALID_TABLE_DEFINITION,
                format!("multiple primary keys for table \"{}\" are not allowed", table.name),
            ));
        }
        *has_primary = true;
        table.primary = make_index(table, 0, name, true, true, &columns)?;
        for (id, _) in table.primary.columns.clone() {
            if let Some(at) = table.position(id) {
                table.columns[at].not_null = true;
            }
        }
    } else {
        let index = make_index(table, table.next_index_id, name, true, true, &columns)?;
        if !table.indexes.iter().any(|i| i.columns == index.columns && i.constraint) {
            table.next_index_id += 1;
            table.indexes.push(index);
        }
    }
    Ok(())
}

/// The CREATE TABLE that CREATE TABLE AS means: columns with names and types.
pub async fn create_as(
    ctx: &mut DdlContext<'_>,
    create: &CreateTable,
    columns: Vec<(String, Type)>,
) -> Result<bool, Error> {
    refuse(create)?;
    let given: Vec<&Ident> = create.columns.iter().map(|c| &c.name).collect();
    if given.len() > columns.len() {
        return Err(Error::syntax("too many column names were specified"));
    }
    let mut parts = Parts::default();
    for (i, (name, ty)) in columns.into_iter().enumerate() {
        let name = given.get(i).map_or(name, |g| fold(g));
        if parts.columns.iter().any(|c| c.name == name) {
            return Err(duplicate_column(&name));
        }
        let ty = if ty == Type::Unknown { Type::Text } else { ty };
        parts.columns.push(ColumnDescriptor {
            id: 0,
            name,
            ty,
            not_null: false,
            default: None,
            missing: None,
            hidden: false,
        });
    }
    let name = object_name(&create.name)?;
    create_from_parts(ctx, name, parts, create.if_not_exists).await
}
