//! What the rows of the computed tables are made of.

use isochrone_types::{Category, Datum, Error, Interval, Type};

use super::{Computed, DATABASE_OID, ROLE_OID, Rows, Source, format_type, keys, quote_ident, schema_oid};
use crate::catalog::CatalogSnapshot;
use crate::catalog::snapshot::index_oid;
use crate::descriptor::{IndexDescriptor, IndexState, SequenceDescriptor, TableDescriptor};
use crate::session::{EPOCH_2000_US, kv_error};
use crate::settings::{SERVER_VERSION, Settings};

/// Log records that `isochrone.wal` shows: the newest.
const WAL_ROWS_MAX: usize = 100_000;
const HEAP_AM: u32 = 2;
const BTREE_AM: u32 = 403;
const DEFAULT_COLLATION: u32 = 100;

pub(super) fn version() -> String {
    format!("PostgreSQL {SERVER_VERSION} on {}, 64-bit", std::env::consts::ARCH)
}

fn t(s: impl AsRef<str>) -> Datum {
    Datum::text(s)
}
fn b(v: bool) -> Datum {
    Datum::Bool(v)
}
fn o(v: u32) -> Datum {
    Datum::Oid(v)
}
fn i2(v: i16) -> Datum {
    Datum::Int2(v)
}
fn i4(v: i32) -> Datum {
    Datum::Int4(v)
}
fn i8(v: i64) -> Datum {
    Datum::Int8(v)
}
const NULL: Datum = Datum::Null;

fn visible_sequences(c: &CatalogSnapshot) -> impl Iterator<Item = &SequenceDescriptor> {
    c.sequences().map(|s| &**s).filter(|s| {
        !s.owned_by.is_some_and(|(table, column)| {
            c.table_by_oid(table)
                .is_some_and(|e| e.table.position(column).is_some_and(|at| e.table.columns[at].hidden))
        })
    })
}

fn indexes(t: &TableDescriptor) -> impl Iterator<Item = &IndexDescriptor> {
    (!t.has_row_id()).then_some(&t.primary).into_iter().chain(&t.indexes)
}

fn numbers(t: &TableDescriptor, index: &IndexDescriptor) -> Vec<Datum> {
    index.columns.iter().map(|(id, _)| i2(attnum(t, *id))).collect()
}

/// A column's number as clients see it: its id.
fn attnum(_: &TableDescriptor, id: u32) -> i16 {
    i16::try_from(id).unwrap_or(i16::MAX)
}

fn owner(s: &Source) -> Datum {
    t(&s.context.eval.session.current_user)
}

#[allow(
    clippy::too_many_arguments,
    reason = "one argument per column that differs between kinds of relations"
)]
fn class_row(
    oid: u32,
    name: &str,
    schema: &str,
    kind: &str,
    am: u32,
    rows: f32,
    has_index: bool,
    columns: usize,
    checks: usize,
) -> Vec<Datum> {
    vec![
        o(oid),
        t(name),
        o(schema_oid(schema)),
        o(0),
        o(0),
        o(ROLE_OID),
        o(am),
        o(oid),
        o(0),
        i4(0),
        Datum::Float4(rows),
        i4(0),
        o(0),
        b(has_index),
        b(false),
        t("p"),
        t(kind),
        i2(columns as i16),
        i2(checks as i16),
        b(false),
        b(false),
        b(false),
        b(false),
        b(false),
        b(true),
        t(if kind == "r" { "d" } else { "n" }),
        b(false),
        o(0),
        NULL,
        NULL,
        NULL,
        NULL,
        NULL,
    ]
}

pub(super) fn pg_class(s: &Source) -> Rows {
    let mut out = Vec::new();
    for table in s.snapshot.tables() {
        let n = table.columns.iter().filter(|c| !c.hidden).count();
        let estimate = if table.row_estimate == 0 { -1.0 } else { table.row_estimate as f32 };
        let has_index = indexes(table).next().is_some();
        out.push(class_row(
            table.oid,
            &table.name,
            "public",
            "r",
            HEAP_AM,
            estimate,
            has_index,
            n,
            table.checks.len(),
        ));
        for i in indexes(table) {
            let oid = index_oid(table.oid, i.id);
            out.push(class_row(oid, &i.name, "public", "i", BTREE_AM, 0.0, false, i.columns.len(), 0));
        }
    }
    for q in visible_sequences(&s.snapshot) {
        out.push(class_row(q.oid, &q.name, "public", "S", 0, 1.0, false, 3, 0));
    }
    for v in s.db.virtual_tables().all() {
        let kind =
            if v.schema == "pg_catalog" && super::tables::fixed_oid(v.name).is_some() { "r" } else { "v" };
        out.push(class_row(v.oid, v.name, v.schema, kind, 0, 0.0, false, v.columns.len(), 0));
    }
    Ok(out)
}

pub(super) fn pg_namespace(_: &Source) -> Rows {
    Ok(["pg_catalog", "public", "information_schema", "isochrone"]
        .iter()
        .map(|n| vec![o(schema_oid(n)), t(n), o(ROLE_OID), NULL])
        .collect())
}

pub(super) fn pg_type(_: &Source) -> Rows {
    let mut out = Vec::new();
    let mut add = |ty: Type| {
        let array = matches!(ty, Type::Array(_));
        let len = ty.typlen();
        let by_value = !array && matches!(len, 1 | 2 | 4 | 8);
        let align = match len {
            1 => "c",
            2 => "s",
            8 => "d",
            _ => "i",
        };
        let element = match ty {
            Type::Array(e) => e.oid(),
            Type::Name => Type::InternalChar.oid(),
            _ => 0,
        };
        let collation = match ty {
            Type::Name => 950,
            _ if ty.category() == Category::String => DEFAULT_COLLATION,
            _ => 0,
        };
        let kind = if ty.category() == Category::Pseudo || ty == Type::Unknown { "p" } else { "b" };
        out.push(vec![
            o(ty.oid()),
            t(ty.name()),
            o(schema_oid("pg_catalog")),
            o(ROLE_OID),
            i2(len),
            b(by_value),
            t(kind),
            t(ty.category().letter().to_string()),
            b(ty.is_preferred()),
            b(true),
            t(","),
            o(0),
            o(0),
            o(element),
            o(ty.array_oid()),
            o(0),
            o(0),
            o(0),
            o(0),
            o(0),
            o(0),
            o(0),
            t(align),
            t(if len == -1 { "x" } else { "p" }),
            b(false),
            o(0),
            i4(-1),
            i4(0),
            o(collation),
            NULL,
            NULL,
            NULL,
        ]);
    };
    for ty in Type::all_scalar() {
        add(ty);
        if let Some(a) = ty.array_of() {
            add(a);
        }
    }
    Ok(out)
}

fn attribute(rel: u32, name: &str, ty: Type, num: i16, not_null: bool, default: bool) -> Vec<Datum> {
    let collation = if ty.category() == Category::String { DEFAULT_COLLATION } else { 0 };
    vec![
        o(rel),
        t(name),
        o(ty.oid()),
        i4(-1),
        i2(ty.typlen()),
        i2(num),
        i4(i32::from(matches!(ty, Type::Array(_)))),
        i4(-1),
        i4(ty.typmod()),
        b(false),
        t("i"),
        t(if ty.typlen() == -1 { "x" } else { "p" }),
        t(""),
        b(not_null),
        b(default),
        b(false),
        t(""),
        t(""),
        b(false),
        b(true),
        i4(0),
        o(collation),
        NULL,
        NULL,
        NULL,
        NULL,
    ]
}

pub(super) fn pg_attribute(s: &Source) -> Rows {
    let mut out = Vec::new();
    for table in s.snapshot.tables() {
        for c in table.columns.iter().filter(|c| !c.hidden) {
            let num = attnum(table, c.id);
            out.push(attribute(table.oid, &c.name, c.ty, num, c.not_null, c.default.is_some()));
        }
        for i in indexes(table) {
            for (n, (id, _)) in i.columns.iter().enumerate() {
                let Some(at) = table.position(*id) else { continue };
                let c = &table.columns[at];
                let oid = index_oid(table.oid, i.id);
                out.push(attribute(oid, &c.name, c.ty, n as i16 + 1, false, false));
            }
        }
    }
    for q in visible_sequences(&s.snapshot) {
        for (n, (name, ty)) in
            [("last_value", Type::Int8), ("log_cnt", Type::Int8), ("is_called", Type::Bool)]
                .iter()
                .enumerate()
        {
            out.push(attribute(q.oid, name, *ty, n as i16 + 1, true, false));
        }
    }
    for v in s.db.virtual_tables().all() {
        for c in &v.columns {
            out.push(attribute(v.oid, &c.name, c.ty, c.id as i16, false, false));
        }
    }
    Ok(out)
}

fn default_oid(table: u32, column: u32) -> u32 {
    (1 << 31) | ((table.wrapping_sub(16_384) & 0xf_ffff) << 11) | (column & 0x7ff)
}

pub(super) fn pg_attrdef(s: &Source) -> Rows {
    let mut out = Vec::new();
    for table in s.snapshot.tables() {
        for c in table.columns.iter().filter(|c| !c.hidden) {
            if let Some(default) = &c.default {
                out.push(vec![
                    o(default_oid(table.oid, c.id)),
                    o(table.oid),
                    i2(attnum(table, c.id)),
                    t(default),
                ]);
            }
        }
    }
    Ok(out)
}

pub(super) fn pg_index(s: &Source) -> Rows {
    let mut out = Vec::new();
    for table in s.snapshot.tables() {
        for i in indexes(table) {
            let n = i.columns.len();
            let public = i.state == IndexState::Public;
            let collations = i
                .columns
                .iter()
                .map(|(id, _)| {
                    let text = table
                        .position(*id)
                        .is_some_and(|at| table.columns[at].ty.category() == Category::String);
                    o(if text { DEFAULT_COLLATION } else { 0 })
                })
                .collect();
            let options = i.columns.iter().map(|(_, desc)| i2(if *desc { 3 } else { 0 })).collect();
            out.push(vec![
                o(index_oid(table.oid, i.id)),
                o(table.oid),
                i2(n as i16),
                i2(n as i16),
                b(i.unique),
                b(false),
                b(i.id == 0),
                b(false),
                b(true),
                b(false),
                b(public),
                b(false),
                b(true),
                b(true),
                b(false),
                Datum::array(Type::Int2, numbers(table, i)),
                Datum::array(Type::Oid, collations),
                Datum::array(Type::Oid, vec![o(0); n]),
                Datum::array(Type::Int2, options),
                NULL,
                NULL,
            ]);
        }
    }
    Ok(out)
}

/// Oid of a constraint: that of its index with another mark, or one of a check.
fn key_constraint_oid(table: u32, index: u32) -> u32 {
    index_oid(table, index) | (1 << 31)
}

fn check_constraint_oid(table: u32, n: usize) -> u32 {
    (3 << 30) | ((table.wrapping_sub(16_384) & 0x1f_ffff) << 8) | ((n as u32) & 0xff) | (1 << 29)
}

/// CREATE INDEX, as `pg_get_indexdef` says it.
pub(super) fn index_definition(table: &TableDescriptor, index: &IndexDescriptor) -> String {
    format!(
        "CREATE {}INDEX {} ON public.{} USING btree ({})",
        if index.unique { "UNIQUE " } else { "" },
        quote_ident(&index.name),
        quote_ident(&table.name),
        column_list(table, index, true)
    )
}

fn column_list(table: &TableDescriptor, index: &IndexDescriptor, direction: bool) -> String {
    let parts: Vec<String> = index
        .columns
        .iter()
        .filter_map(|(id, desc)| {
            let at = table.position(*id)?;
            let name = quote_ident(&table.columns[at].name);
            Some(if *desc && direction { format!("{name} DESC") } else { name })
        })
        .collect();
    parts.join(", ")
}

/// What `pg_get_constraintdef` says.
pub(super) fn constraint_definition(catalog: &CatalogSnapshot, oid: u32) -> Option<String> {
    for table in catalog.tables() {
        for i in indexes(table).filter(|i| i.constraint) {
            if key_constraint_oid(table.oid, i.id) == oid {
                let word = if i.id == 0 { "PRIMARY KEY" } else { "UNIQUE" };
                return Some(format!("{word} ({})", column_list(table, i, false)));
            }
        }
        for (n, check) in table.checks.iter().enumerate() {
            if check_constraint_oid(table.oid, n) == oid {
                return Some(format!("CHECK ({})", check.expr));
            }
        }
    }
    None
}

fn constraint_row(
    oid: u32,
    name: &str,
    kind: &str,
    table: u32,
    index: u32,
    key: Datum,
    expr: Datum,
) -> Vec<Datum> {
    vec![
        o(oid),
        t(name),
        o(schema_oid("public")),
        t(kind),
        b(false),
        b(false),
        b(true),
        o(table),
        o(0),
        o(index),
        o(0),
        o(0),
        t(" "),
        t(" "),
        t(" "),
        b(true),
        i4(0),
        b(kind != "c"),
        key,
        NULL,
        NULL,
        NULL,
        NULL,
        NULL,
        NULL,
        expr,
    ]
}

pub(super) fn pg_constraint(s: &Source) -> Rows {
    let mut out = Vec::new();
    for table in s.snapshot.tables() {
        for i in indexes(table).filter(|i| i.constraint) {
            out.push(constraint_row(
                key_constraint_oid(table.oid, i.id),
                &i.name,
                if i.id == 0 { "p" } else { "u" },
                table.oid,
                index_oid(table.oid, i.id),
                Datum::array(Type::Int2, numbers(table, i)),
                NULL,
            ));
        }
        for (n, check) in table.checks.iter().enumerate() {
            let oid = check_constraint_oid(table.oid, n);
            out.push(constraint_row(oid, &check.name, "c", table.oid, 0, NULL, t(&check.expr)));
        }
    }
    Ok(out)
}

pub(super) fn pg_database(s: &Source) -> Rows {
    Ok(vec![vec![
        o(DATABASE_OID),
        t(s.db.name()),
        o(ROLE_OID),
        i4(6),
        t("c"),
        b(false),
        b(true),
        i4(-1),
        NULL,
        NULL,
        o(1663),
        t("C"),
        t("C"),
        NULL,
        NULL,
        NULL,
    ]])
}

pub(super) fn pg_roles(s: &Source) -> Rows {
    Ok(vec![vec![
        owner(s),
        b(true),
        b(true),
        b(true),
        b(true),
        b(true),
        b(true),
        i4(-1),
        NULL,
        NULL,
        b(true),
        NULL,
        o(ROLE_OID),
    ]])
}

pub(super) fn pg_authid(s: &Source) -> Rows {
    Ok(vec![vec![o(ROLE_OID), owner(s), b(true), b(true)]])
}

pub(super) fn pg_user(s: &Source) -> Rows {
    Ok(vec![vec![owner(s), o(ROLE_OID), b(true), b(true), b(true), b(true), NULL, NULL, NULL]])
}

pub(super) fn pg_am(_: &Source) -> Rows {
    Ok(vec![vec![o(HEAP_AM), t("heap"), o(0), t("t")], vec![o(BTREE_AM), t("btree"), o(0), t("i")]])
}

pub(super) fn pg_collation(_: &Source) -> Rows {
    let row = |oid: u32, name: &str, provider: &str| {
        vec![
            o(oid),
            t(name),
            o(schema_oid("pg_catalog")),
            o(ROLE_OID),
            t(provider),
            b(true),
            i4(-1),
            t("C"),
            t("C"),
            NULL,
            NULL,
        ]
    };
    Ok(vec![row(DEFAULT_COLLATION, "default", "d"), row(950, "C", "c"), row(951, "POSIX", "c")])
}

pub(super) fn pg_tables(s: &Source) -> Rows {
    let mut out: Vec<Vec<Datum>> = s
        .snapshot
        .tables()
        .map(|x| {
            let has = indexes(x).next().is_some();
            vec![t("public"), t(&x.name), owner(s), NULL, b(has), b(false), b(false), b(false)]
        })
        .collect();
    for v in s.db.virtual_tables().all().filter(|v| super::tables::fixed_oid(v.name).is_some()) {
        let no = || b(false);
        out.push(vec![t(v.schema), t(v.name), owner(s), NULL, no(), no(), no(), no()]);
    }
    Ok(out)
}

pub(super) fn pg_indexes(s: &Source) -> Rows {
    let mut out = Vec::new();
    for x in s.snapshot.tables() {
        for i in indexes(x) {
            out.push(vec![t("public"), t(&x.name), t(&i.name), NULL, t(index_definition(x, i))]);
        }
    }
    Ok(out)
}

fn sequence_type(q: &SequenceDescriptor) -> Type {
    match q.max {
        m if m == i64::from(i16::MAX) => Type::Int2,
        m if m == i64::from(i32::MAX) => Type::Int4,
        _ => Type::Int8,
    }
}

pub(super) fn pg_sequences(s: &Source) -> Rows {
    Ok(visible_sequences(&s.snapshot)
        .map(|q| {
            vec![
                t("public"),
                t(&q.name),
                owner(s),
                o(sequence_type(q).oid()),
                i8(q.start),
                i8(q.min),
                i8(q.max),
                i8(q.increment),
                b(false),
                i8(i64::from(q.cache)),
                NULL,
            ]
        })
        .collect())
}

pub(super) fn pg_sequence(s: &Source) -> Rows {
    Ok(visible_sequences(&s.snapshot)
        .map(|q| {
            vec![
                o(q.oid),
                o(sequence_type(q).oid()),
                i8(q.start),
                i8(q.increment),
                i8(q.max),
                i8(q.min),
                i8(i64::from(q.cache)),
                b(false),
            ]
        })
        .collect())
}

pub(super) fn pg_settings(_: &Source) -> Rows {
    // A table knows no session: these are the defaults. SHOW and current_setting() know what was set.
    Ok(Settings::default()
        .all()
        .into_iter()
        .map(|(name, value)| {
            vec![
                t(&name),
                t(&value),
                NULL,
                t("Isochrone"),
                t(""),
                NULL,
                t("user"),
                t("string"),
                t("default"),
                NULL,
                NULL,
                NULL,
                t(&value),
                t(&value),
                NULL,
                NULL,
                b(false),
            ]
        })
        .collect())
}

pub(super) fn pg_stat_activity(s: &Source) -> Rows {
    Ok(s.db
        .sessions()
        .into_iter()
        .map(|e| {
            vec![
                o(DATABASE_OID),
                t(s.db.name()),
                i4(e.pid),
                NULL,
                o(ROLE_OID),
                t(&e.user),
                t(&e.application),
                NULL,
                NULL,
                NULL,
                Datum::Timestamptz(e.started),
                NULL,
                NULL,
                NULL,
                NULL,
                NULL,
                t(e.state),
                NULL,
                NULL,
                NULL,
                t(&*e.query),
                t("client backend"),
            ]
        })
        .collect())
}

pub(super) fn pg_tablespace(_: &Source) -> Rows {
    Ok(vec![vec![o(1663), t("pg_default"), o(ROLE_OID), NULL, NULL]])
}

pub(super) fn pg_depend(s: &Source) -> Rows {
    // What ORMs look for: the sequence of a SERIAL column.
    Ok(visible_sequences(&s.snapshot)
        .filter_map(|q| {
            let (table, column) = q.owned_by?;
            let class = o(1259);
            Some(vec![class.clone(), o(q.oid), i4(0), class, o(table), i4(column as i32), t("a")])
        })
        .collect())
}

pub(super) fn pg_stat_user_tables(s: &Source) -> Rows {
    Ok(s.snapshot
        .tables()
        .map(|x| {
            let mut row = vec![o(x.oid), t("public"), t(&x.name)];
            row.extend(std::iter::repeat_n(i8(0), 7));
            row.push(i8(x.row_estimate as i64));
            row.push(i8(0));
            row
        })
        .collect())
}

pub(super) fn schemata(s: &Source) -> Rows {
    Ok(["pg_catalog", "public", "information_schema", "isochrone"]
        .iter()
        .map(|n| vec![t(s.db.name()), t(n), owner(s), NULL, NULL, NULL, NULL])
        .collect())
}

pub(super) fn info_tables(s: &Source) -> Rows {
    let row = |schema: &str, name: &str, kind: &str| {
        let insertable = if kind == "BASE TABLE" { "YES" } else { "NO" };
        vec![
            t(s.db.name()),
            t(schema),
            t(name),
            t(kind),
            NULL,
            NULL,
            NULL,
            NULL,
            NULL,
            t(insertable),
            t("NO"),
            NULL,
        ]
    };
    let mut out: Vec<Vec<Datum>> =
        s.snapshot.tables().map(|x| row("public", &x.name, "BASE TABLE")).collect();
    out.extend(s.db.virtual_tables().all().map(|v: &std::sync::Arc<Computed>| row(v.schema, v.name, "VIEW")));
    Ok(out)
}

fn info_column(
    s: &Source,
    schema: &str,
    table: &str,
    n: usize,
    c: &crate::descriptor::ColumnDescriptor,
) -> Vec<Datum> {
    let length = match c.ty {
        Type::Varchar(Some(n)) | Type::Char(Some(n)) => i4(n as i32),
        _ => NULL,
    };
    let (precision, radix, scale) = match c.ty {
        Type::Int2 => (i4(16), i4(2), i4(0)),
        Type::Int4 => (i4(32), i4(2), i4(0)),
        Type::Int8 => (i4(64), i4(2), i4(0)),
        Type::Float4 => (i4(24), i4(2), NULL),
        Type::Float8 => (i4(53), i4(2), NULL),
        Type::Numeric(Some((p, s))) => (i4(i32::from(p)), i4(10), i4(i32::from(s))),
        Type::Numeric(None) => (NULL, i4(10), NULL),
        _ => (NULL, NULL, NULL),
    };
    let time = match c.ty {
        Type::Date => i4(0),
        Type::Time | Type::Timestamp | Type::Timestamptz | Type::Interval => i4(6),
        _ => NULL,
    };
    let data_type = if matches!(c.ty, Type::Array(_)) {
        "ARRAY".to_string()
    } else {
        format_type(c.ty.base().oid(), None)
    };
    let data_type = if data_type == "bpchar" { "character".to_string() } else { data_type };
    vec![
        t(s.db.name()),
        t(schema),
        t(table),
        t(&c.name),
        i4(n as i32),
        c.default.as_ref().map_or(NULL, t),
        t(if c.not_null { "NO" } else { "YES" }),
        t(data_type),
        length,
        NULL,
        precision,
        radix,
        scale,
        time,
        t(s.db.name()),
        t("pg_catalog"),
        t(c.ty.name()),
        t("NO"),
        t("NEVER"),
        t(if schema == "public" { "YES" } else { "NO" }),
    ]
}

pub(super) fn info_columns(s: &Source) -> Rows {
    let mut out = Vec::new();
    for x in s.snapshot.tables() {
        for (n, c) in x.columns.iter().filter(|c| !c.hidden).enumerate() {
            out.push(info_column(s, "public", &x.name, n + 1, c));
        }
    }
    for v in s.db.virtual_tables().all() {
        for (n, c) in v.columns.iter().enumerate() {
            out.push(info_column(s, v.schema, v.name, n + 1, c));
        }
    }
    Ok(out)
}

pub(super) fn info_constraints(s: &Source) -> Rows {
    let row = |table: &str, name: &str, kind: &str| {
        let db = || t(s.db.name());
        let p = || t("public");
        vec![db(), p(), t(name), db(), p(), t(table), t(kind), t("NO"), t("NO"), t("YES")]
    };
    let mut out = Vec::new();
    for x in s.snapshot.tables() {
        for i in indexes(x).filter(|i| i.constraint) {
            out.push(row(&x.name, &i.name, if i.id == 0 { "PRIMARY KEY" } else { "UNIQUE" }));
        }
        for c in &x.checks {
            out.push(row(&x.name, &c.name, "CHECK"));
        }
    }
    Ok(out)
}

pub(super) fn info_key_columns(s: &Source) -> Rows {
    let mut out = Vec::new();
    for x in s.snapshot.tables() {
        for i in indexes(x).filter(|i| i.constraint) {
            for (n, (id, _)) in i.columns.iter().enumerate() {
                let Some(at) = x.position(*id) else { continue };
                let db = || t(s.db.name());
                let p = || t("public");
                out.push(vec![
                    db(),
                    p(),
                    t(&i.name),
                    db(),
                    p(),
                    t(&x.name),
                    t(&x.columns[at].name),
                    i4(n as i32 + 1),
                    NULL,
                ]);
            }
        }
    }
    Ok(out)
}

pub(super) fn info_sequences(s: &Source) -> Rows {
    Ok(visible_sequences(&s.snapshot)
        .map(|q| {
            vec![
                t(s.db.name()),
                t("public"),
                t(&q.name),
                t(format_type(sequence_type(q).oid(), None)),
                t(q.start.to_string()),
                t(q.min.to_string()),
                t(q.max.to_string()),
                t(q.increment.to_string()),
                t("NO"),
            ]
        })
        .collect())
}

fn count(v: u64) -> Datum {
    i8(i64::try_from(v).unwrap_or(i64::MAX))
}

pub(super) async fn wal(s: &Source<'_>) -> Rows {
    let rows = s.context.store.wal(WAL_ROWS_MAX).await.map_err(kv_error)?;
    Ok(rows
        .into_iter()
        .map(|r| {
            vec![
                i4(r.node.0 as i32),
                count(r.shard.0),
                count(r.log_index),
                count(r.term),
                t(r.file),
                count(r.offset),
                t(r.kind),
                r.txn.map_or(NULL, |x| t(x.to_string())),
                r.commit_ts.map_or(NULL, |x| t(x.to_string())),
                i4(r.keys as i32),
                count(r.bytes),
            ]
        })
        .collect())
}

pub(super) async fn shards(s: &Source<'_>) -> Rows {
    let shards = s.context.store.shards(isochrone_base::KeyRange::all()).await.map_err(kv_error)?;
    let show = |key: &[u8]| keys::show(key, &s.snapshot, s.context.eval.settings);
    let mut out = Vec::with_capacity(shards.len());
    for x in shards {
        // Tables share shards: named is the one the shard begins in, if a table does.
        let table = isochrone_base::keyspace::table_of(&x.range.start)
            .and_then(|id| s.snapshot.table_by_key_id(id))
            .map_or(NULL, |e| t(&e.table.name));
        let replicas: Vec<String> = x.replicas.iter().map(|n| n.to_string()).collect();
        out.push(vec![
            count(x.shard.0),
            table,
            t(show(&x.range.start)),
            if x.range.end.is_empty() { t("/max") } else { t(show(&x.range.end)) },
            x.leader.map_or(NULL, |n| i4(n.0 as i32)),
            t(format!("{{{}}}", replicas.join(","))),
            count(x.first_index),
            count(x.last_index),
            count(x.bytes),
        ]);
    }
    Ok(out)
}

fn moment(ts: isochrone_base::Timestamp) -> Datum {
    Datum::Timestamptz(ts.micros() as i64 - EPOCH_2000_US)
}

fn span(micros: i64) -> Datum {
    Datum::Interval(Interval { months: 0, days: 0, micros })
}

pub(super) async fn replicas(s: &Source<'_>) -> Rows {
    let rows = s.context.store.replicas().await.map_err(kv_error)?;
    let row = |r: isochrone_txn::kv::ReplicaInfo| {
        let (shard, node) = (count(r.shard.0), i4(r.node.0 as i32));
        vec![shard, node, t(r.role), count(r.applied), count(r.lag), count(r.last_index)]
    };
    Ok(rows.into_iter().map(row).collect())
}

pub(super) async fn nodes(s: &Source<'_>) -> Rows {
    let rows = s.context.store.nodes().await.map_err(kv_error)?;
    let row = |n: isochrone_txn::kv::NodeInfo| {
        vec![
            i4(n.node.0 as i32),
            t(n.address),
            t(n.sql_address),
            Datum::Bool(n.live),
            count(n.epoch),
            n.expires.map_or(NULL, moment),
            i4(n.leaders as i32),
            i4(n.replicas as i32),
            Datum::Bool(n.draining),
            n.uptime.map_or(NULL, |d| span(i64::try_from(d.as_micros()).unwrap_or(i64::MAX))),
        ]
    };
    Ok(rows.into_iter().map(row).collect())
}

pub(super) async fn clocks(s: &Source<'_>) -> Rows {
    let rows = s.context.store.clocks().await.map_err(kv_error)?;
    let us = |n: u64| span(i64::try_from(n).unwrap_or(i64::MAX));
    let row = |c: isochrone_txn::kv::ClockInfo| {
        vec![
            i4(c.node.0 as i32),
            t(c.source),
            us(c.error_us),
            c.peer.map_or(NULL, |n| i4(n.0 as i32)),
            c.offset_us.map_or(NULL, span),
            c.offset_error_us.map_or(NULL, us),
            b(c.in_service),
            c.reason.map_or(NULL, t),
        ]
    };
    Ok(rows.into_iter().map(row).collect())
}

/// Those of the whole cluster, as far as its nodes answer.
pub(super) async fn transactions(s: &Source<'_>) -> Rows {
    let rows = s.context.store.transactions().await.map_err(kv_error)?;
    let now = s.context.store.now();
    Ok(rows
        .into_iter()
        .map(|x| {
            let age = |since: isochrone_base::Timestamp| now.micros().saturating_sub(since.micros()) as i64;
            vec![
                t(x.txn.to_string()),
                t(x.state),
                i4(x.pieces as i32),
                x.anchor.map_or(NULL, |a| count(a.0)),
                x.started.map_or(NULL, moment),
                x.started.map_or(NULL, |ts| span(age(ts))),
            ]
        })
        .collect::<Vec<_>>())
    .map_err(|e: Error| e)
}

fn lock_table<'s>(s: &'s Source<'_>, key: &[u8]) -> Option<&'s crate::catalog::TableEntry> {
    isochrone_base::keyspace::table_of(key).and_then(|id| s.snapshot.table_by_key_id(id))
}

/// Row locks in the memory of all leaseholders, held and waited for.
pub(super) async fn locks(s: &Source<'_>) -> Rows {
    let rows = s.context.store.locks().await.map_err(kv_error)?;
    let now = s.context.store.now();
    let row = |l: isochrone_txn::kv::LockRow| {
        let waited = |since: isochrone_base::Timestamp| now.micros().saturating_sub(since.micros()) as i64;
        vec![
            l.shard.map_or(NULL, |s| count(s.0)),
            i4(l.node.0 as i32),
            lock_table(s, &l.key).map_or(NULL, |e| t(&e.table.name)),
            t(keys::show(&l.key, &s.snapshot, s.context.eval.settings)),
            t(l.txn.to_string()),
            i4(l.gateway.0 as i32),
            t(mode_words(l.mode)),
            Datum::Bool(l.waiting_since.is_none()),
            l.waiting_since.map_or(NULL, moment),
            l.waiting_since.map_or(NULL, |ts| span(waited(ts))),
        ]
    };
    Ok(rows.into_iter().map(row).collect())
}

fn mode_words(mode: isochrone_txn::kv::LockMode) -> &'static str {
    use isochrone_txn::kv::LockMode;
    match mode {
        LockMode::KeyShare => "FOR KEY SHARE",
        LockMode::Share => "FOR SHARE",
        LockMode::NoKeyUpdate => "FOR NO KEY UPDATE",
        LockMode::Update => "FOR UPDATE",
    }
}

/// The same as far as PostgreSQL's view has room for it: no transaction here has a number of 32 bits.
pub(super) async fn pg_locks(s: &Source<'_>) -> Rows {
    let rows = s.context.store.locks().await.map_err(kv_error)?;
    let row = |l: isochrone_txn::kv::LockRow| {
        let mut row = vec![NULL; 16];
        row[0] = t("tuple");
        row[2] = lock_table(s, &l.key).map_or(NULL, |e| o(e.table.oid));
        row[10] = t(l.txn.to_string());
        row[12] = t(mode_words(l.mode));
        row[13] = Datum::Bool(l.waiting_since.is_none());
        row[14] = Datum::Bool(false);
        row[15] = l.waiting_since.map_or(NULL, moment);
        row
    };
    Ok(rows.into_iter().map(row).collect())
}
