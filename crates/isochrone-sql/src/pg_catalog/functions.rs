//! Functions that know the catalog or the session. What they answer comes from the snapshot the plan was made under.

use std::sync::Arc;

use isochrone_types::{Datum, Error, EvalContext, Numeric, Type};

use super::rows::{constraint_definition, index_definition};
use super::{ROLE_OID, SessionShared, format_type, schema_name};
use crate::catalog::snapshot::index_oid;
use crate::catalog::{CatalogSnapshot, Object};
use crate::relation::{SessionCall, SessionFunction};
use crate::session::{Database, FOLLOWER_READ_LAG_US};

/// A function, and whether a plan with it is for one session only.
pub struct Found {
    /// The function.
    pub function: SessionFunction,
    /// See above.
    pub session_bound: bool,
}

fn found(
    args: Vec<Type>,
    result: Type,
    strict: bool,
    session_bound: bool,
    call: SessionCall,
) -> Option<Found> {
    Some(Found { function: SessionFunction { args, result, strict, stable: true, call }, session_bound })
}

/// The table of a name as text: possibly qualified and quoted.
pub(crate) fn resolve(catalog: &CatalogSnapshot, name: &str) -> Option<Object> {
    let mut parts = Vec::new();
    let mut current = String::new();
    let mut quoted = false;
    for c in name.trim().chars() {
        match c {
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(std::mem::take(&mut current)),
            c if quoted => current.push(c),
            c => current.extend(c.to_lowercase()),
        }
    }
    parts.push(current);
    match parts.as_slice() {
        [name] => catalog.object(name),
        [schema, name] if schema == "public" => catalog.object(name),
        _ => None,
    }
}

fn oid_of(object: Object) -> u32 {
    match object {
        Object::Table(oid) | Object::Sequence(oid) => oid,
        Object::Index(table, index) => index_oid(table, index),
    }
}

fn oid(d: &Datum) -> u32 {
    d.as_i64().and_then(|v| u32::try_from(v).ok()).unwrap_or(0)
}

/// Adds up the bytes of the shards that hold a table.
fn size_pretty(bytes: i64) -> String {
    let mut v = bytes as f64;
    for unit in ["bytes", "kB", "MB", "GB", "TB"] {
        if v.abs() < 10_240.0 || unit == "TB" {
            return format!("{} {unit}", v.round() as i64);
        }
        v /= 1_024.0;
    }
    format!("{bytes} bytes")
}

/// The function of that name, if it is one of these.
pub fn find(
    name: &str,
    args: &[Type],
    catalog: &Arc<CatalogSnapshot>,
    db: &Arc<Database>,
    shared: &Arc<SessionShared>,
) -> Option<Found> {
    use Type::{Bool, Int4, Int8, Name, Oid, Text};
    let n = args.len();
    let constant = |args: Vec<Type>, result: Type, value: Datum| {
        found(args, result, false, false, Arc::new(move |_, _| Ok(value.clone())))
    };
    match (name, n) {
        ("version", 0) => constant(vec![], Text, super::rows::version().into()),
        ("current_database" | "current_catalog", 0) => {
            found(vec![], Name, false, false, Arc::new(|_, c| Ok(Datum::text(&c.session.current_database))))
        }
        ("current_schema", 0) => found(
            vec![],
            Name,
            false,
            false,
            Arc::new(|_, c| {
                let s = &c.session.current_schema;
                Ok(if s.is_empty() { Datum::Null } else { Datum::text(s) })
            }),
        ),
        ("current_user" | "user" | "current_role", 0) => {
            found(vec![], Name, false, false, Arc::new(|_, c| Ok(Datum::text(&c.session.current_user))))
        }
        ("session_user", 0) => {
            found(vec![], Name, false, false, Arc::new(|_, c| Ok(Datum::text(&c.session.session_user))))
        }
        ("current_schemas", 1) => found(
            vec![Bool],
            Name.array_of()?,
            true,
            false,
            Arc::new(|a, c| {
                let mut items = Vec::new();
                if a[0].is_true() {
                    items.push(Datum::text("pg_catalog"));
                }
                if !c.session.current_schema.is_empty() {
                    items.push(Datum::text(&c.session.current_schema));
                }
                Ok(Datum::array(Type::Name, items))
            }),
        ),
        ("pg_backend_pid", 0) => {
            let shared = shared.clone();
            found(vec![], Int4, false, true, Arc::new(move |_, _| Ok(Datum::Int4(shared.pid))))
        }
        ("pg_is_in_recovery" | "pg_is_wal_replay_paused", 0) => constant(vec![], Bool, Datum::Bool(false)),
        ("pg_postmaster_start_time" | "pg_conf_load_time", 0) => {
            constant(vec![], Type::Timestamptz, Datum::Timestamptz(db.started()))
        }
        ("txid_current" | "pg_current_xact_id", 0) => {
            let db = db.clone();
            found(
                vec![],
                Int8,
                false,
                false,
                Arc::new(move |_, _| Ok(Datum::Int8(db.store().now().0 as i64))),
            )
        }
        // What the statement reads at, in the two forms that AS OF SYSTEM TIME takes.
        ("cluster_timestamp", 0) => {
            let shared = shared.clone();
            let call =
                Arc::new(move |_: &[Datum], _: &EvalContext| Ok(Datum::Int8(shared.snapshot().0 as i64)));
            found(vec![], Int8, false, true, call)
        }
        ("cluster_logical_timestamp", 0) => {
            let shared = shared.clone();
            let call = Arc::new(move |_: &[Datum], _: &EvalContext| {
                Numeric::parse(&shared.snapshot().to_string()).map(Datum::from)
            });
            found(vec![], Type::Numeric(None), false, true, call)
        }
        ("follower_read_timestamp", 0) => found(
            vec![],
            Type::Timestamptz,
            false,
            false,
            Arc::new(|_, c| Ok(Datum::Timestamptz(c.statement_time - FOLLOWER_READ_LAG_US as i64))),
        ),
        ("inet_server_addr" | "inet_client_addr", 0) => constant(vec![], Text, Datum::Null),
        ("inet_server_port" | "inet_client_port", 0) => constant(vec![], Int4, Datum::Null),
        ("current_setting", 1 | 2) => {
            let shared = shared.clone();
            let types = if n == 1 { vec![Text] } else { vec![Text, Bool] };
            found(
                types,
                Text,
                true,
                true,
                Arc::new(move |a, _| {
                    let name = a[0].as_str().unwrap_or_default();
                    match shared.get(name)? {
                        Some(v) => Ok(v.into()),
                        None if a.get(1).is_some_and(Datum::is_true) => Ok(Datum::Null),
                        None => Err(Error::new(
                            isochrone_types::SqlState::UNDEFINED_OBJECT,
                            format!("unrecognized configuration parameter \"{name}\""),
                        )),
                    }
                }),
            )
        }
        ("set_config", 3) => {
            let shared = shared.clone();
            let mut f = found(
                vec![Text, Text, Bool],
                Text,
                false,
                true,
                Arc::new(move |a, _| {
                    let name = a[0].as_str().ok_or_else(|| {
                        Error::new(
                            isochrone_types::SqlState::NULL_VALUE_NOT_ALLOWED,
                            "SET requires parameter name",
                        )
                    })?;
                    shared.set(name, a[1].as_str().unwrap_or_default(), a[2].is_true()).map(Datum::from)
                }),
            )?;
            f.function.stable = false;
            Some(f)
        }
        ("pg_table_is_visible", 1) => {
            let catalog = catalog.clone();
            let db = db.clone();
            let call = move |a: &[Datum], _: &EvalContext| {
                let oid = oid(&a[0]);
                let user = catalog.table_by_oid(oid).is_some()
                    || catalog.sequence_by_oid(oid).is_some()
                    || catalog.index_by_oid(oid).is_some();
                let system = db.virtual_tables().all().any(|t| t.oid == oid && t.schema == "pg_catalog");
                Ok(Datum::Bool(user || system))
            };
            found(vec![Oid], Bool, true, false, Arc::new(call))
        }
        (
            "pg_type_is_visible"
            | "pg_function_is_visible"
            | "pg_operator_is_visible"
            | "pg_collation_is_visible"
            | "pg_opclass_is_visible"
            | "pg_statistics_obj_is_visible"
            | "pg_ts_config_is_visible",
            1,
        ) => constant(vec![Oid], Bool, Datum::Bool(true)),
        ("pg_relation_is_publishable", 1) => constant(vec![Type::Regclass], Bool, Datum::Bool(true)),
        ("pg_get_userbyid", 1) => found(
            vec![Oid],
            Name,
            true,
            false,
            Arc::new(|a, c| {
                let id = oid(&a[0]);
                Ok(if id == ROLE_OID {
                    Datum::text(&c.session.current_user)
                } else {
                    format!("unknown (OID={id})").into()
                })
            }),
        ),
        ("format_type", 2) => found(
            vec![Oid, Int4],
            Text,
            false,
            false,
            Arc::new(|a, _| {
                if a[0].is_null() {
                    return Ok(Datum::Null);
                }
                let typmod = a[1].as_i64().and_then(|v| i32::try_from(v).ok());
                Ok(format_type(oid(&a[0]), typmod).into())
            }),
        ),
        ("pg_get_expr", 2 | 3) => {
            let types = if n == 2 { vec![Text, Oid] } else { vec![Text, Oid, Bool] };
            found(types, Text, true, false, Arc::new(|a, _| Ok(a[0].clone())))
        }
        ("pg_get_indexdef", 1 | 3) => {
            let catalog = catalog.clone();
            let types = if n == 1 { vec![Oid] } else { vec![Oid, Int4, Bool] };
            found(
                types,
                Text,
                true,
                false,
                Arc::new(move |a, _| {
                    let Some((table, index)) = catalog.index_by_oid(oid(&a[0])) else {
                        return Ok(Datum::Null);
                    };
                    let column = a.get(1).and_then(Datum::as_i64).unwrap_or(0);
                    if column > 0 {
                        let id = index.columns.get(column as usize - 1).map(|(id, _)| *id);
                        let at = id.and_then(|id| table.position(id));
                        return Ok(
                            at.map_or(Datum::Null, |at| super::quote_ident(&table.columns[at].name).into())
                        );
                    }
                    Ok(index_definition(table, index).into())
                }),
            )
        }
        ("pg_get_constraintdef", 1 | 2) => {
            let catalog = catalog.clone();
            let types = if n == 1 { vec![Oid] } else { vec![Oid, Bool] };
            found(
                types,
                Text,
                true,
                false,
                Arc::new(move |a, _| {
                    Ok(constraint_definition(&catalog, oid(&a[0])).map_or(Datum::Null, Datum::from))
                }),
            )
        }
        ("pg_get_serial_sequence", 2) => {
            let catalog = catalog.clone();
            found(
                vec![Text, Text],
                Text,
                true,
                false,
                Arc::new(move |a, _| {
                    let Some(Object::Table(t)) = resolve(&catalog, a[0].as_str().unwrap_or_default()) else {
                        return Ok(Datum::Null);
                    };
                    let column = a[1].as_str().unwrap_or_default();
                    let id = catalog
                        .table_by_oid(t)
                        .and_then(|e| e.table.position_of(column).map(|at| e.table.columns[at].id));
                    let sequence = catalog
                        .sequences()
                        .find(|s| s.owned_by.is_some() && s.owned_by == id.map(|c| (t, c)));
                    Ok(sequence
                        .map_or(Datum::Null, |s| format!("public.{}", super::quote_ident(&s.name)).into()))
                }),
            )
        }
        ("obj_description", 1 | 2) => {
            let types = if n == 1 { vec![Oid] } else { vec![Oid, Name] };
            constant(types, Text, Datum::Null)
        }
        ("col_description", 2) => constant(vec![Oid, Int4], Text, Datum::Null),
        ("shobj_description", 2) => constant(vec![Oid, Name], Text, Datum::Null),
        ("pg_encoding_to_char", 1) => found(
            vec![Int4],
            Name,
            true,
            false,
            Arc::new(|a, _| Ok(Datum::text(if a[0].as_i64() == Some(6) { "UTF8" } else { "" }))),
        ),
        ("pg_char_to_encoding", 1) => constant(vec![Name], Int4, Datum::Int4(6)),
        ("pg_client_encoding", 0) => constant(vec![], Name, Datum::text("UTF8")),
        ("getdatabaseencoding", 0) => constant(vec![], Name, Datum::text("UTF8")),
        (
            "pg_relation_size"
            | "pg_total_relation_size"
            | "pg_table_size"
            | "pg_indexes_size"
            | "pg_database_size"
            | "pg_tablespace_size",
            1 | 2,
        ) => {
            // Sizes are of shards, which tables share: no table has one of its own.
            let types = if n == 1 { vec![Oid] } else { vec![Oid, Text] };
            constant(types, Int8, Datum::Int8(0))
        }
        ("pg_size_pretty", 1) => found(
            vec![Int8],
            Text,
            true,
            false,
            Arc::new(|a, _| Ok(size_pretty(a[0].as_i64().unwrap_or(0)).into())),
        ),
        ("to_regclass", 1) => {
            let catalog = catalog.clone();
            found(
                vec![Text],
                Type::Regclass,
                true,
                false,
                Arc::new(move |a, _| {
                    let found = resolve(&catalog, a[0].as_str().unwrap_or_default());
                    Ok(found.map_or(Datum::Null, |o| Datum::Oid(oid_of(o))))
                }),
            )
        }
        ("to_regtype", 1) => found(
            vec![Text],
            Type::Regtype,
            true,
            false,
            Arc::new(|a, _| {
                let ty = Type::from_sql_name(a[0].as_str().unwrap_or_default());
                Ok(ty.map_or(Datum::Null, |t| Datum::Oid(t.oid())))
            }),
        ),
        ("to_regrole", 1) => found(
            vec![Text],
            Oid,
            true,
            false,
            Arc::new(|a, c| {
                let known = a[0].as_str() == Some(c.session.current_user.as_str());
                Ok(if known { Datum::Oid(ROLE_OID) } else { Datum::Null })
            }),
        ),
        ("to_regnamespace", 1) => found(
            vec![Text],
            Oid,
            true,
            false,
            Arc::new(|a, _| {
                let name = a[0].as_str().unwrap_or_default();
                let known = ["pg_catalog", "public", "information_schema", "isochrone"].contains(&name);
                Ok(if known { Datum::Oid(super::schema_oid(name)) } else { Datum::Null })
            }),
        ),
        // The two that a cast between regclass and text needs from the catalog.
        ("regclass", 1) if args[0].is_string() || args[0] == Type::Unknown => {
            let (catalog, db) = (catalog.clone(), db.clone());
            found(
                vec![Text],
                Type::Regclass,
                true,
                false,
                Arc::new(move |a, _| {
                    let name = a[0].as_str().unwrap_or_default();
                    if let Ok(n) = name.parse::<u32>() {
                        return Ok(Datum::Oid(n));
                    }
                    let bare = name.strip_prefix("pg_catalog.").unwrap_or(name);
                    let system = || db.virtual_tables().all().find(|t| t.name == bare).map(|t| t.oid);
                    match resolve(&catalog, name).map(oid_of).or_else(system) {
                        Some(o) => Ok(Datum::Oid(o)),
                        None => Err(Error::new(
                            isochrone_types::SqlState::UNDEFINED_TABLE,
                            format!("relation \"{name}\" does not exist"),
                        )),
                    }
                }),
            )
        }
        ("regclass_out", 1) => {
            let (catalog, db) = (catalog.clone(), db.clone());
            found(
                vec![Oid],
                Text,
                true,
                false,
                Arc::new(move |a, _| {
                    let id = oid(&a[0]);
                    let name = catalog
                        .table_by_oid(id)
                        .map(|e| e.table.name.clone())
                        .or_else(|| catalog.sequence_by_oid(id).map(|s| s.name.clone()))
                        .or_else(|| catalog.index_by_oid(id).map(|(_, i)| i.name.clone()))
                        .or_else(|| {
                            db.virtual_tables().all().find(|t| t.oid == id).map(|t| t.name.to_string())
                        });
                    Ok(match name {
                        Some(name) => super::quote_ident(&name).into(),
                        None if id == 0 => Datum::text("-"),
                        None => id.to_string().into(),
                    })
                }),
            )
        }
        ("regnamespace_out", 1) => found(
            vec![Oid],
            Text,
            true,
            false,
            Arc::new(|a, _| {
                let id = oid(&a[0]);
                Ok(schema_name(id).map_or_else(|| id.to_string().into(), Datum::text))
            }),
        ),
        (
            "pg_get_viewdef"
            | "pg_get_ruledef"
            | "pg_get_triggerdef"
            | "pg_get_functiondef"
            | "pg_get_statisticsobjdef_columns"
            | "pg_get_statisticsobjdef"
            | "pg_get_partkeydef"
            | "pg_get_function_result"
            | "pg_get_function_arguments"
            | "pg_get_function_identity_arguments",
            1,
        ) => constant(vec![Oid], Text, Datum::Null),
        ("pg_get_viewdef" | "pg_get_triggerdef" | "pg_get_ruledef", 2) => {
            constant(vec![Oid, Bool], Text, Datum::Null)
        }
        ("pg_stat_get_numscans" | "pg_stat_get_live_tuples", 1) => constant(vec![Oid], Int8, Datum::Int8(0)),
        ("pg_my_temp_schema", 0) => constant(vec![], Oid, Datum::Oid(0)),
        ("pg_is_other_temp_schema", 1) => constant(vec![Oid], Bool, Datum::Bool(false)),
        ("pg_tablespace_location", 1) => constant(vec![Oid], Text, Datum::text("")),
        ("pg_cancel_backend" | "pg_terminate_backend", 1) => {
            let db = db.clone();
            let mut f = found(
                vec![Int4],
                Bool,
                true,
                true,
                Arc::new(move |a, _| {
                    let pid = a[0].as_i64().and_then(|p| i32::try_from(p).ok()).unwrap_or(0);
                    Ok(Datum::Bool(db.cancel(pid)))
                }),
            )?;
            f.function.stable = false;
            Some(f)
        }
        (name, 1..=3)
            if name.starts_with("has_") && name.ends_with("_privilege") || name == "pg_has_role" =>
        {
            constant(vec![Text; n], Bool, Datum::Bool(true))
        }
        ("row_security_active", 1) => constant(vec![Oid], Bool, Datum::Bool(false)),
        _ => None,
    }
}
