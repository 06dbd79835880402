//! The list of computed tables: schema, name, columns as text, and what makes the rows.
//!
//! Types PostgreSQL has and we lack are shown as their nearest kin: int2vector and oidvector as arrays, node trees,
//! access lists and xids as text.

use isochrone_types::Type;

use super::rows as r;
use super::{MakeRows, Rows, Source};
use crate::descriptor::ColumnDescriptor;

fn empty<'a>(_: &'a Source<'a>) -> isochrone_txn::kv::BoxFuture<'a, Rows> {
    Box::pin(async { Ok(Vec::new()) })
}

macro_rules! now {
    ($f:path) => {{
        fn make<'a>(s: &'a Source<'a>) -> isochrone_txn::kv::BoxFuture<'a, Rows> {
            Box::pin(async move { $f(s) })
        }
        make
    }};
}

macro_rules! later {
    ($f:path) => {{
        fn make<'a>(s: &'a Source<'a>) -> isochrone_txn::kv::BoxFuture<'a, Rows> {
            Box::pin($f(s))
        }
        make
    }};
}

const PG: &str = "pg_catalog";
const INFO: &str = "information_schema";
const OWN: &str = "isochrone";

/// Oids that clients know by heart.
pub(super) fn fixed_oid(name: &str) -> Option<u32> {
    Some(match name {
        "pg_type" => 1247,
        "pg_attribute" => 1249,
        "pg_proc" => 1255,
        "pg_class" => 1259,
        "pg_database" => 1262,
        "pg_namespace" => 2615,
        "pg_constraint" => 2606,
        "pg_attrdef" => 2604,
        "pg_index" => 2610,
        _ => return None,
    })
}

pub(super) const TABLES: &[(&str, &str, &str, MakeRows)] = &[
    (
        PG,
        "pg_class",
        "oid oid, relname name, relnamespace oid, reltype oid, reloftype oid, relowner oid, relam oid, relfilenode oid, reltablespace oid, relpages int4, reltuples float4, relallvisible int4, reltoastrelid oid, relhasindex bool, relisshared bool, relpersistence char, relkind char, relnatts int2, relchecks int2, relhasrules bool, relhastriggers bool, relhassubclass bool, relrowsecurity bool, relforcerowsecurity bool, relispopulated bool, relreplident char, relispartition bool, relrewrite oid, relfrozenxid text, relminmxid text, relacl text[], reloptions text[], relpartbound text",
        now!(r::pg_class),
    ),
    (PG, "pg_namespace", "oid oid, nspname name, nspowner oid, nspacl text[]", now!(r::pg_namespace)),
    (
        PG,
        "pg_type",
        "oid oid, typname name, typnamespace oid, typowner oid, typlen int2, typbyval bool, typtype char, typcategory char, typispreferred bool, typisdefined bool, typdelim char, typrelid oid, typsubscript regproc, typelem oid, typarray oid, typinput regproc, typoutput regproc, typreceive regproc, typsend regproc, typmodin regproc, typmodout regproc, typanalyze regproc, typalign char, typstorage char, typnotnull bool, typbasetype oid, typtypmod int4, typndims int4, typcollation oid, typdefaultbin text, typdefault text, typacl text[]",
        now!(r::pg_type),
    ),
    (
        PG,
        "pg_attribute",
        "attrelid oid, attname name, atttypid oid, attstattarget int4, attlen int2, attnum int2, attndims int4, attcacheoff int4, atttypmod int4, attbyval bool, attalign char, attstorage char, attcompression char, attnotnull bool, atthasdef bool, atthasmissing bool, attidentity char, attgenerated char, attisdropped bool, attislocal bool, attinhcount int4, attcollation oid, attacl text[], attoptions text[], attfdwoptions text[], attmissingval text",
        now!(r::pg_attribute),
    ),
    (PG, "pg_attrdef", "oid oid, adrelid oid, adnum int2, adbin text", now!(r::pg_attrdef)),
    (
        PG,
        "pg_index",
        "indexrelid oid, indrelid oid, indnatts int2, indnkeyatts int2, indisunique bool, indnullsnotdistinct bool, indisprimary bool, indisexclusion bool, indimmediate bool, indisclustered bool, indisvalid bool, indcheckxmin bool, indisready bool, indislive bool, indisreplident bool, indkey int2[], indcollation oid[], indclass oid[], indoption int2[], indexprs text, indpred text",
        now!(r::pg_index),
    ),
    (
        PG,
        "pg_constraint",
        "oid oid, conname name, connamespace oid, contype char, condeferrable bool, condeferred bool, convalidated bool, conrelid oid, contypid oid, conindid oid, conparentid oid, confrelid oid, confupdtype char, confdeltype char, confmatchtype char, conislocal bool, coninhcount int4, connoinherit bool, conkey int2[], confkey int2[], conpfeqop oid[], conppeqop oid[], conffeqop oid[], confdelsetcols int2[], conexclop oid[], conbin text",
        now!(r::pg_constraint),
    ),
    (
        PG,
        "pg_database",
        "oid oid, datname name, datdba oid, encoding int4, datlocprovider char, datistemplate bool, datallowconn bool, datconnlimit int4, datfrozenxid text, datminmxid text, dattablespace oid, datcollate text, datctype text, daticulocale text, datcollversion text, datacl text[]",
        now!(r::pg_database),
    ),
    (
        PG,
        "pg_roles",
        "rolname name, rolsuper bool, rolinherit bool, rolcreaterole bool, rolcreatedb bool, rolcanlogin bool, rolreplication bool, rolconnlimit int4, rolpassword text, rolvaliduntil timestamptz, rolbypassrls bool, rolconfig text[], oid oid",
        now!(r::pg_roles),
    ),
    (PG, "pg_authid", "oid oid, rolname name, rolsuper bool, rolcanlogin bool", now!(r::pg_authid)),
    (
        PG,
        "pg_user",
        "usename name, usesysid oid, usecreatedb bool, usesuper bool, userepl bool, usebypassrls bool, passwd text, valuntil timestamptz, useconfig text[]",
        now!(r::pg_user),
    ),
    (PG, "pg_auth_members", "roleid oid, member oid, grantor oid, admin_option bool", empty),
    (PG, "pg_am", "oid oid, amname name, amhandler regproc, amtype char", now!(r::pg_am)),
    (
        PG,
        "pg_collation",
        "oid oid, collname name, collnamespace oid, collowner oid, collprovider char, collisdeterministic bool, collencoding int4, collcollate text, collctype text, colliculocale text, collversion text",
        now!(r::pg_collation),
    ),
    (
        PG,
        "pg_tables",
        "schemaname name, tablename name, tableowner name, tablespace name, hasindexes bool, hasrules bool, hastriggers bool, rowsecurity bool",
        now!(r::pg_tables),
    ),
    (
        PG,
        "pg_indexes",
        "schemaname name, tablename name, indexname name, tablespace name, indexdef text",
        now!(r::pg_indexes),
    ),
    (
        PG,
        "pg_sequences",
        "schemaname name, sequencename name, sequenceowner name, data_type regtype, start_value int8, min_value int8, max_value int8, increment_by int8, cycle bool, cache_size int8, last_value int8",
        now!(r::pg_sequences),
    ),
    (
        PG,
        "pg_sequence",
        "seqrelid oid, seqtypid oid, seqstart int8, seqincrement int8, seqmax int8, seqmin int8, seqcache int8, seqcycle bool",
        now!(r::pg_sequence),
    ),
    (
        PG,
        "pg_settings",
        "name text, setting text, unit text, category text, short_desc text, extra_desc text, context text, vartype text, source text, min_val text, max_val text, enumvals text[], boot_val text, reset_val text, sourcefile text, sourceline int4, pending_restart bool",
        now!(r::pg_settings),
    ),
    (
        PG,
        "pg_stat_activity",
        "datid oid, datname name, pid int4, leader_pid int4, usesysid oid, usename name, application_name text, client_addr text, client_hostname text, client_port int4, backend_start timestamptz, xact_start timestamptz, query_start timestamptz, state_change timestamptz, wait_event_type text, wait_event text, state text, backend_xid text, backend_xmin text, query_id int8, query text, backend_type text",
        now!(r::pg_stat_activity),
    ),
    (
        PG,
        "pg_tablespace",
        "oid oid, spcname name, spcowner oid, spcacl text[], spcoptions text[]",
        now!(r::pg_tablespace),
    ),
    (PG, "pg_views", "schemaname name, viewname name, viewowner name, definition text", empty),
    (
        PG,
        "pg_matviews",
        "schemaname name, matviewname name, matviewowner name, tablespace name, hasindexes bool, ispopulated bool, definition text",
        empty,
    ),
    (
        PG,
        "pg_proc",
        "oid oid, proname name, pronamespace oid, proowner oid, prolang oid, procost float4, prorows float4, provariadic oid, prosupport regproc, prokind char, prosecdef bool, proleakproof bool, proisstrict bool, proretset bool, provolatile char, proparallel char, pronargs int2, pronargdefaults int2, prorettype oid, proargtypes oid[], proallargtypes oid[], proargmodes text[], proargnames text[], proargdefaults text, protrftypes oid[], prosrc text, probin text, prosqlbody text, proconfig text[], proacl text[]",
        empty,
    ),
    (
        PG,
        "pg_language",
        "oid oid, lanname name, lanowner oid, lanispl bool, lanpltrusted bool, lanplcallfoid oid, laninline oid, lanvalidator oid, lanacl text[]",
        empty,
    ),
    (
        PG,
        "pg_operator",
        "oid oid, oprname name, oprnamespace oid, oprowner oid, oprkind char, oprcanmerge bool, oprcanhash bool, oprleft oid, oprright oid, oprresult oid, oprcom oid, oprnegate oid, oprcode regproc, oprrest regproc, oprjoin regproc",
        empty,
    ),
    (
        PG,
        "pg_opclass",
        "oid oid, opcmethod oid, opcname name, opcnamespace oid, opcowner oid, opcfamily oid, opcintype oid, opcdefault bool, opckeytype oid",
        empty,
    ),
    (PG, "pg_opfamily", "oid oid, opfmethod oid, opfname name, opfnamespace oid, opfowner oid", empty),
    (
        PG,
        "pg_cast",
        "oid oid, castsource oid, casttarget oid, castfunc oid, castcontext char, castmethod char",
        empty,
    ),
    (PG, "pg_aggregate", "aggfnoid regproc, aggkind char, aggnumdirectargs int2", empty),
    (PG, "pg_description", "objoid oid, classoid oid, objsubid int4, description text", empty),
    (PG, "pg_shdescription", "objoid oid, classoid oid, description text", empty),
    (
        PG,
        "pg_depend",
        "classid oid, objid oid, objsubid int4, refclassid oid, refobjid oid, refobjsubid int4, deptype char",
        now!(r::pg_depend),
    ),
    (
        PG,
        "pg_shdepend",
        "dbid oid, classid oid, objid oid, objsubid int4, refclassid oid, refobjid oid, deptype char",
        empty,
    ),
    (PG, "pg_inherits", "inhrelid oid, inhparent oid, inhseqno int4, inhdetachpending bool", empty),
    (
        PG,
        "pg_partitioned_table",
        "partrelid oid, partstrat char, partnatts int2, partdefid oid, partattrs int2[], partclass oid[], partcollation oid[], partexprs text",
        empty,
    ),
    (
        PG,
        "pg_policy",
        "oid oid, polname name, polrelid oid, polcmd char, polpermissive bool, polroles oid[], polqual text, polwithcheck text",
        empty,
    ),
    (
        PG,
        "pg_policies",
        "schemaname name, tablename name, policyname name, permissive text, roles name[], cmd text, qual text, with_check text",
        empty,
    ),
    (
        PG,
        "pg_publication",
        "oid oid, pubname name, pubowner oid, puballtables bool, pubinsert bool, pubupdate bool, pubdelete bool, pubtruncate bool, pubviaroot bool",
        empty,
    ),
    (PG, "pg_publication_rel", "oid oid, prpubid oid, prrelid oid, prqual text, prattrs int2[]", empty),
    (PG, "pg_publication_namespace", "oid oid, pnpubid oid, pnnspid oid", empty),
    (
        PG,
        "pg_publication_tables",
        "pubname name, schemaname name, tablename name, attnames name[], rowfilter text",
        empty,
    ),
    (
        PG,
        "pg_subscription",
        "oid oid, subdbid oid, subname name, subowner oid, subenabled bool, subconninfo text, subslotname name, subpublications text[]",
        empty,
    ),
    (
        PG,
        "pg_statistic_ext",
        "oid oid, stxrelid oid, stxname name, stxnamespace oid, stxowner oid, stxstattarget int4, stxkeys int2[], stxkind text[], stxexprs text",
        empty,
    ),
    (
        PG,
        "pg_stats",
        "schemaname name, tablename name, attname name, inherited bool, null_frac float4, avg_width int4, n_distinct float4",
        empty,
    ),
    (
        PG,
        "pg_trigger",
        "oid oid, tgrelid oid, tgparentid oid, tgname name, tgfoid oid, tgtype int2, tgenabled char, tgisinternal bool, tgconstrrelid oid, tgconstrindid oid, tgconstraint oid, tgdeferrable bool, tginitdeferred bool, tgnargs int2, tgattr int2[], tgargs bytea, tgqual text, tgoldtable name, tgnewtable name",
        empty,
    ),
    (
        PG,
        "pg_event_trigger",
        "oid oid, evtname name, evtevent name, evtowner oid, evtfoid oid, evtenabled char, evttags text[]",
        empty,
    ),
    (
        PG,
        "pg_rewrite",
        "oid oid, rulename name, ev_class oid, ev_type char, ev_enabled char, is_instead bool, ev_qual text, ev_action text",
        empty,
    ),
    (PG, "pg_rules", "schemaname name, tablename name, rulename name, definition text", empty),
    (PG, "pg_enum", "oid oid, enumtypid oid, enumsortorder float4, enumlabel name", empty),
    (
        PG,
        "pg_range",
        "rngtypid oid, rngsubtype oid, rngmultitypid oid, rngcollation oid, rngsubopc oid, rngcanonical regproc, rngsubdiff regproc",
        empty,
    ),
    (
        PG,
        "pg_extension",
        "oid oid, extname name, extowner oid, extnamespace oid, extrelocatable bool, extversion text, extconfig oid[], extcondition text[]",
        empty,
    ),
    (
        PG,
        "pg_available_extensions",
        "name name, default_version text, installed_version text, comment text",
        empty,
    ),
    (PG, "pg_foreign_table", "ftrelid oid, ftserver oid, ftoptions text[]", empty),
    (
        PG,
        "pg_foreign_server",
        "oid oid, srvname name, srvowner oid, srvfdw oid, srvtype text, srvversion text, srvacl text[], srvoptions text[]",
        empty,
    ),
    (
        PG,
        "pg_foreign_data_wrapper",
        "oid oid, fdwname name, fdwowner oid, fdwhandler oid, fdwvalidator oid, fdwacl text[], fdwoptions text[]",
        empty,
    ),
    (PG, "pg_user_mapping", "oid oid, umuser oid, umserver oid, umoptions text[]", empty),
    (
        PG,
        "pg_default_acl",
        "oid oid, defaclrole oid, defaclnamespace oid, defaclobjtype char, defaclacl text[]",
        empty,
    ),
    (PG, "pg_db_role_setting", "setdatabase oid, setrole oid, setconfig text[]", empty),
    (PG, "pg_largeobject_metadata", "oid oid, lomowner oid, lomacl text[]", empty),
    (
        PG,
        "pg_locks",
        "locktype text, database oid, relation oid, page int4, tuple int2, virtualxid text, transactionid text, classid oid, objid oid, objsubid int2, virtualtransaction text, pid int4, mode text, granted bool, fastpath bool, waitstart timestamptz",
        later!(r::pg_locks),
    ),
    (
        PG,
        "pg_prepared_xacts",
        "transaction text, gid text, prepared timestamptz, owner name, database name",
        empty,
    ),
    (
        PG,
        "pg_replication_slots",
        "slot_name name, plugin name, slot_type text, datoid oid, database name, temporary bool, active bool, active_pid int4, restart_lsn text, confirmed_flush_lsn text",
        empty,
    ),
    (
        PG,
        "pg_stat_replication",
        "pid int4, usesysid oid, usename name, application_name text, state text, sync_state text",
        empty,
    ),
    (
        PG,
        "pg_stat_user_tables",
        "relid oid, schemaname name, relname name, seq_scan int8, seq_tup_read int8, idx_scan int8, idx_tup_fetch int8, n_tup_ins int8, n_tup_upd int8, n_tup_del int8, n_live_tup int8, n_dead_tup int8",
        now!(r::pg_stat_user_tables),
    ),
    (PG, "pg_timezone_names", "name text, abbrev text, utc_offset interval, is_dst bool", empty),
    (PG, "pg_ts_config", "oid oid, cfgname name, cfgnamespace oid, cfgowner oid, cfgparser oid", empty),
    (
        PG,
        "pg_ts_dict",
        "oid oid, dictname name, dictnamespace oid, dictowner oid, dicttemplate oid, dictinitoption text",
        empty,
    ),
    (
        PG,
        "pg_conversion",
        "oid oid, conname name, connamespace oid, conowner oid, conforencoding int4, contoencoding int4, conproc regproc, condefault bool",
        empty,
    ),
    (
        INFO,
        "schemata",
        "catalog_name name, schema_name name, schema_owner name, default_character_set_catalog name, default_character_set_schema name, default_character_set_name name, sql_path text",
        now!(r::schemata),
    ),
    (
        INFO,
        "tables",
        "table_catalog name, table_schema name, table_name name, table_type text, self_referencing_column_name name, reference_generation text, user_defined_type_catalog name, user_defined_type_schema name, user_defined_type_name name, is_insertable_into text, is_typed text, commit_action text",
        now!(r::info_tables),
    ),
    (
        INFO,
        "columns",
        "table_catalog name, table_schema name, table_name name, column_name name, ordinal_position int4, column_default text, is_nullable text, data_type text, character_maximum_length int4, character_octet_length int4, numeric_precision int4, numeric_precision_radix int4, numeric_scale int4, datetime_precision int4, udt_catalog name, udt_schema name, udt_name name, is_identity text, is_generated text, is_updatable text",
        now!(r::info_columns),
    ),
    (
        INFO,
        "table_constraints",
        "constraint_catalog name, constraint_schema name, constraint_name name, table_catalog name, table_schema name, table_name name, constraint_type text, is_deferrable text, initially_deferred text, enforced text",
        now!(r::info_constraints),
    ),
    (
        INFO,
        "key_column_usage",
        "constraint_catalog name, constraint_schema name, constraint_name name, table_catalog name, table_schema name, table_name name, column_name name, ordinal_position int4, position_in_unique_constraint int4",
        now!(r::info_key_columns),
    ),
    (
        INFO,
        "referential_constraints",
        "constraint_catalog name, constraint_schema name, constraint_name name, unique_constraint_catalog name, unique_constraint_schema name, unique_constraint_name name, match_option text, update_rule text, delete_rule text",
        empty,
    ),
    (
        INFO,
        "constraint_column_usage",
        "table_catalog name, table_schema name, table_name name, column_name name, constraint_catalog name, constraint_schema name, constraint_name name",
        empty,
    ),
    (
        INFO,
        "sequences",
        "sequence_catalog name, sequence_schema name, sequence_name name, data_type text, start_value text, minimum_value text, maximum_value text, increment text, cycle_option text",
        now!(r::info_sequences),
    ),
    (
        INFO,
        "views",
        "table_catalog name, table_schema name, table_name name, view_definition text, check_option text, is_updatable text",
        empty,
    ),
    (
        INFO,
        "routines",
        "specific_name name, routine_catalog name, routine_schema name, routine_name name, routine_type text, data_type text",
        empty,
    ),
    (
        INFO,
        "triggers",
        "trigger_catalog name, trigger_schema name, trigger_name name, event_manipulation text, event_object_table name",
        empty,
    ),
    (
        OWN,
        "wal",
        "node int4, shard int8, log_index int8, term int8, file text, offset int8, kind text, txn text, commit_ts text, keys int4, bytes int8",
        later!(r::wal),
    ),
    (
        OWN,
        "shards",
        "shard int8, table text, start_key text, end_key text, leader int4, replicas text, first_index int8, last_index int8, bytes int8",
        later!(r::shards),
    ),
    (
        OWN,
        "transactions",
        "txn text, state text, pieces int4, anchor int8, started timestamptz, age interval",
        later!(r::transactions),
    ),
    (
        OWN,
        "locks",
        "shard int8, node int4, table text, key text, txn text, gateway int4, mode text, granted bool, waiting_since timestamptz, waited interval",
        later!(r::locks),
    ),
    (
        OWN,
        "replicas",
        "shard int8, node int4, role text, applied int8, lag int8, last_index int8",
        later!(r::replicas),
    ),
    (
        OWN,
        "nodes",
        "node int4, address text, sql_address text, live bool, epoch int8, expires timestamptz, leaders int4, replicas int4, draining bool, uptime interval",
        later!(r::nodes),
    ),
    (
        OWN,
        "clocks",
        "node int4, source text, error interval, peer int4, clock_offset interval, offset_error interval, in_service bool, reason text",
        later!(r::clocks),
    ),
];

fn ty(name: &str) -> Type {
    if let Some(element) = name.strip_suffix("[]") {
        return ty(element).array_of().expect("the element types of the list have arrays");
    }
    match name {
        "char" => Type::InternalChar,
        other => Type::from_sql_name(other).expect("the types of the list exist"),
    }
}

/// The columns of a line of the list.
pub(super) fn columns(text: &str) -> Vec<ColumnDescriptor> {
    text.split(", ")
        .enumerate()
        .map(|(i, column)| {
            let (name, t) = column.split_once(' ').expect("each column has a name and a type");
            ColumnDescriptor {
                id: i as u32 + 1,
                name: name.to_string(),
                ty: ty(t),
                not_null: false,
                default: None,
                missing: None,
                hidden: false,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_parses() {
        for (_, name, text, _) in TABLES {
            assert!(!columns(text).is_empty(), "{name}");
        }
    }
}
