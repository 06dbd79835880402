//! What psql and drivers ask.

use super::*;

async fn client() -> Client {
    let db = database();
    let mut c = Client::new(&db).await;
    c.ok("create table t (id serial primary key, name varchar(20) not null default 'x', n numeric(5,2) check (n > 0)); create index tn on t (name, n desc); create table h (a int)").await;
    c
}

#[tokio::test]
async fn psql_lists() {
    let mut c = client().await;
    golden(
        &mut c,
        r#"
        > SELECT n.nspname as "Schema", c.relname as "Name", CASE c.relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'i' THEN 'index' WHEN 'S' THEN 'sequence' WHEN 't' THEN 'TOAST table' WHEN 'f' THEN 'foreign table' WHEN 'p' THEN 'partitioned table' WHEN 'I' THEN 'partitioned index' END as "Type", pg_catalog.pg_get_userbyid(c.relowner) as "Owner" FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_catalog.pg_am am ON am.oid = c.relam WHERE c.relkind IN ('r','p','') AND n.nspname <> 'pg_catalog' AND n.nspname !~ '^pg_toast' AND n.nspname <> 'information_schema' AND pg_catalog.pg_table_is_visible(c.oid) ORDER BY 1,2;
        columns: Schema|Name|Type|Owner
        public|h|table|root
        public|t|table|root
        SELECT 2
        > SELECT d.datname as "Name", pg_catalog.pg_get_userbyid(d.datdba) as "Owner", pg_catalog.pg_encoding_to_char(d.encoding) as "Encoding", d.datcollate as "Collate", d.datctype as "Ctype", d.daticulocale as "ICU Locale", CASE d.datlocprovider WHEN 'c' THEN 'libc' WHEN 'i' THEN 'icu' END AS "Locale Provider", pg_catalog.array_to_string(d.datacl, E'\n') AS "Access privileges" FROM pg_catalog.pg_database d ORDER BY 1;
        columns: Name|Owner|Encoding|Collate|Ctype|ICU Locale|Locale Provider|Access privileges
        isochrone|root|UTF8|C|C|∅|libc|∅
        SELECT 1
        > SELECT n.nspname AS "Name", pg_catalog.pg_get_userbyid(n.nspowner) AS "Owner" FROM pg_catalog.pg_namespace n WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1;
        columns: Name|Owner
        isochrone|root
        public|root
        SELECT 2
        > SELECT r.rolname, r.rolsuper, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin, r.rolconnlimit, r.rolvaliduntil, ARRAY(SELECT b.rolname FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles b ON (m.roleid = b.oid) WHERE m.member = r.oid) as memberof , r.rolreplication , r.rolbypassrls FROM pg_catalog.pg_roles r WHERE r.rolname !~ '^pg_' ORDER BY 1;
        columns: rolname|rolsuper|rolinherit|rolcreaterole|rolcreatedb|rolcanlogin|rolconnlimit|rolvaliduntil|memberof|rolreplication|rolbypassrls
        root|t|t|t|t|t|-1|∅|{}|t|t
        SELECT 1
        > SELECT n.nspname as "Schema", c.relname as "Name", c2.relname as "Table" FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_catalog.pg_am am ON am.oid = c.relam LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid LEFT JOIN pg_catalog.pg_class c2 ON i.indrelid = c2.oid WHERE c.relkind IN ('i','I','') AND n.nspname <> 'pg_catalog' AND n.nspname !~ '^pg_toast' AND n.nspname <> 'information_schema' AND pg_catalog.pg_table_is_visible(c.oid) ORDER BY 1,2;
        columns: Schema|Name|Table
        public|t_pkey|t
        public|tn|t
        SELECT 2
        "#,
    )
    .await;
}

#[tokio::test]
async fn psql_describes_a_table() {
    let mut c = client().await;
    let oid = c
        .rows("SELECT c.oid, n.nspname, c.relname FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relname OPERATOR(pg_catalog.~) '^(t)$' COLLATE pg_catalog.default AND pg_catalog.pg_table_is_visible(c.oid) ORDER BY 2, 3")
        .await;
    assert_eq!(oid.len(), 1, "{oid:?}");
    let oid = oid[0].split('|').next().unwrap().to_string();
    let script = r#"
        > SELECT c.relchecks, c.relkind, c.relhasindex, c.relhasrules, c.relhastriggers, c.relrowsecurity, c.relforcerowsecurity, false AS relhasoids, c.relispartition, '', c.reltablespace, CASE WHEN c.reloftype = 0 THEN '' ELSE c.reloftype::pg_catalog.regtype::pg_catalog.text END, c.relpersistence, c.relreplident, am.amname FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_class tc ON (c.reltoastrelid = tc.oid) LEFT JOIN pg_catalog.pg_am am ON (c.relam = am.oid) WHERE c.oid = 'OID';
        columns: relchecks|relkind|relhasindex|relhasrules|relhastriggers|relrowsecurity|relforcerowsecurity|relhasoids|relispartition|?column?|reltablespace|reloftype|relpersistence|relreplident|amname
        1|r|t|f|f|f|f|f|f||0||p|d|heap
        SELECT 1
        > SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid, true) FROM pg_catalog.pg_attrdef d WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.atthasdef), a.attnotnull, (SELECT c.collname FROM pg_catalog.pg_collation c, pg_catalog.pg_type t WHERE c.oid = a.attcollation AND t.oid = a.atttypid AND a.attcollation <> t.typcollation) AS attcollation, a.attidentity, a.attgenerated FROM pg_catalog.pg_attribute a WHERE a.attrelid = 'OID' AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum;
        columns: attname|format_type|pg_get_expr|attnotnull|attcollation|attidentity|attgenerated
        id|integer|nextval('t_id_seq'::regclass)|t|∅||
        name|character varying(20)|'x'|t|∅||
        n|numeric(5,2)|∅|f|∅||
        SELECT 3
        > SELECT c2.relname, i.indisprimary, i.indisunique, i.indisclustered, i.indisvalid, pg_catalog.pg_get_indexdef(i.indexrelid, 0, true), pg_catalog.pg_get_constraintdef(con.oid, true), contype, condeferrable, condeferred, i.indisreplident, c2.reltablespace FROM pg_catalog.pg_class c, pg_catalog.pg_class c2, pg_catalog.pg_index i LEFT JOIN pg_catalog.pg_constraint con ON (conrelid = i.indrelid AND conindid = i.indexrelid AND contype IN ('p','u','x')) WHERE c.oid = 'OID' AND c.oid = i.indrelid AND i.indexrelid = c2.oid ORDER BY i.indisprimary DESC, c2.relname;
        columns: relname|indisprimary|indisunique|indisclustered|indisvalid|pg_get_indexdef|pg_get_constraintdef|contype|condeferrable|condeferred|indisreplident|reltablespace
        t_pkey|t|t|f|t|CREATE UNIQUE INDEX t_pkey ON public.t USING btree (id)|PRIMARY KEY (id)|p|f|f|f|0
        tn|f|f|f|t|CREATE INDEX tn ON public.t USING btree (name, n DESC)|∅|∅|∅|∅|f|0
        SELECT 2
        > SELECT r.conname, pg_catalog.pg_get_constraintdef(r.oid, true) FROM pg_catalog.pg_constraint r WHERE r.conrelid = 'OID' AND r.contype = 'c' ORDER BY 1;
        columns: conname|pg_get_constraintdef
        t_n_check|CHECK (n > 0)
        SELECT 1
        > SELECT pol.polname, pol.polpermissive, CASE WHEN pol.polroles = '{0}' THEN NULL ELSE pg_catalog.array_to_string(array(select rolname from pg_catalog.pg_roles where oid = any (pol.polroles) order by 1),',') END, pg_catalog.pg_get_expr(pol.polqual, pol.polrelid), pg_catalog.pg_get_expr(pol.polwithcheck, pol.polrelid), CASE pol.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' END AS cmd FROM pg_catalog.pg_policy pol WHERE pol.polrelid = 'OID' ORDER BY 1;
        columns: polname|polpermissive|array_to_string|pg_get_expr|pg_get_expr|cmd
        SELECT 0
        > SELECT oid, stxrelid::pg_catalog.regclass, stxnamespace::pg_catalog.regnamespace::pg_catalog.text AS nsp, stxname, pg_catalog.pg_get_statisticsobjdef_columns(oid) AS columns, 'd' = any(stxkind) AS ndist_enabled, 'f' = any(stxkind) AS deps_enabled, 'm' = any(stxkind) AS mcv_enabled, stxstattarget FROM pg_catalog.pg_statistic_ext WHERE stxrelid = 'OID' ORDER BY nsp, stxname;
        columns: oid|stxrelid|nsp|stxname|columns|ndist_enabled|deps_enabled|mcv_enabled|stxstattarget
        SELECT 0
        > SELECT pubname , NULL , NULL FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_namespace pn ON p.oid = pn.pnpubid JOIN pg_catalog.pg_class pc ON pc.relnamespace = pn.pnnspid WHERE pc.oid ='OID' and pg_catalog.pg_relation_is_publishable('OID') UNION SELECT pubname , pg_get_expr(pr.prqual, c.oid) , (CASE WHEN pr.prattrs IS NOT NULL THEN (SELECT string_agg(attname, ', ') FROM pg_catalog.generate_series(0, pg_catalog.array_upper(pr.prattrs::pg_catalog.int2[], 1)) s, pg_catalog.pg_attribute WHERE attrelid = pr.prrelid AND attnum = prattrs[s]) ELSE NULL END) FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel pr ON p.oid = pr.prpubid JOIN pg_catalog.pg_class c ON c.oid = pr.prrelid WHERE pr.prrelid = 'OID' UNION SELECT pubname , NULL , NULL FROM pg_catalog.pg_publication p WHERE p.puballtables AND pg_catalog.pg_relation_is_publishable('OID') ORDER BY 1;
        columns: pubname|?column?|?column?
        SELECT 0
        > SELECT c.oid::pg_catalog.regclass FROM pg_catalog.pg_class c, pg_catalog.pg_inherits i WHERE c.oid = i.inhparent AND i.inhrelid = 'OID' AND c.relkind != 'p' AND c.relkind != 'I' ORDER BY inhseqno;
        columns: oid
        SELECT 0
        > SELECT c.oid::pg_catalog.regclass, c.relkind, inhdetachpending, pg_catalog.pg_get_expr(c.relpartbound, c.oid) FROM pg_catalog.pg_class c, pg_catalog.pg_inherits i WHERE c.oid = i.inhrelid AND i.inhparent = 'OID' ORDER BY pg_catalog.pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT', c.oid::pg_catalog.regclass::pg_catalog.text;
        columns: oid|relkind|inhdetachpending|pg_get_expr
        SELECT 0
    "#;
    golden(&mut c, &script.replace("OID", &oid)).await;
}

#[tokio::test]
async fn drivers_start_up() {
    let mut c = client().await;
    golden(
        &mut c,
        "
        > select current_database(), current_schema(), current_user, session_user
        columns: current_database|current_schema|current_user|session_user
        isochrone|public|root|root
        SELECT 1
        > select t.oid, typarray from pg_type t join pg_namespace ns on typnamespace = ns.oid where typname = 'int4'
        columns: oid|typarray
        23|1007
        SELECT 1
        > select 't'::regclass::oid = (select oid from pg_class where relname = 't'), 't'::regclass::text as name, 11::oid::regnamespace::text as schema, 'public'::regnamespace as oid
        columns: ?column?|name|schema|oid
        t|t|pg_catalog|2200
        SELECT 1
        > select column_name, data_type, is_nullable from information_schema.columns where table_name = 't' order by ordinal_position
        columns: column_name|data_type|is_nullable
        id|integer|NO
        name|character varying|NO
        n|numeric|YES
        SELECT 3
        > select table_name from information_schema.tables where table_schema = 'public' order by 1
        columns: table_name
        h
        t
        SELECT 2
        > select has_table_privilege('t', 'select'), pg_is_in_recovery(), pg_size_pretty(123456789::bigint), to_regclass('nope') is null
        columns: has_table_privilege|pg_is_in_recovery|pg_size_pretty|?column?
        t|f|118 MB|t
        SELECT 1
        > select state, query from pg_stat_activity
        columns: state|query
        active|select state, query from pg_stat_activity
        SELECT 1
        ",
    )
    .await;
    assert!(c.rows("select version()").await[0].starts_with("PostgreSQL 15.0 (Isochrone"));
    assert!(!c.rows("select * from isochrone.wal").await.is_empty());
    assert!(!c.rows("select * from isochrone.shards").await.is_empty());
    let _ = c.rows("select * from isochrone.transactions").await;
}

/// Every computed table can be read, and its rows fit its columns.
#[tokio::test]
async fn every_table_can_be_read() {
    let mut c = client().await;
    let db = c.session.database().clone();
    let mut names: Vec<String> = Vec::new();
    for row in c
        .rows("select table_schema, table_name from information_schema.tables where table_schema <> 'public'")
        .await
    {
        names.push(row.replace('|', "."));
    }
    assert!(names.len() > 60, "{names:?}");
    for name in names {
        c.ok(&format!("select * from {name}")).await;
    }
    drop(db);
}
