//! Tables, indexes, sequences: made, changed, dropped.

use super::*;

#[tokio::test]
async fn a_table_lives() {
    let db = database();
    let mut c = Client::new(&db).await;
    golden(
        &mut c,
        "
        > create table t (id int primary key, name text not null default 'x', n numeric(5,2) check (n > 0), unique (name, n))
        CREATE TABLE
        > insert into t values (1, 'a', 1.5), (2, 'b', null)
        INSERT 0 2
        > insert into t (id) values (3)
        INSERT 0 1
        > select * from t order by id
        columns: id|name|n
        1|a|1.50
        2|b|∅
        3|x|∅
        SELECT 3
        > insert into t values (1, 'z', 2)
        ERROR 23505 duplicate key value violates unique constraint \"t_pkey\"
        DETAIL Key (id)=(1) already exists.
        > insert into t values (4, 'a', 1.5)
        ERROR 23505 duplicate key value violates unique constraint \"t_name_n_key\"
        DETAIL Key (name, n)=(a, 1.50) already exists.
        > create table t (a int)
        ERROR 42P07 relation \"t\" already exists
        > create table if not exists t (a int)
        CREATE TABLE
        NOTICE 42P07 relation \"t\" already exists, skipping
        > drop table t
        DROP TABLE
        > select * from t
        ERROR 42P01 relation \"t\" does not exist
        > drop table t
        ERROR 42P01 table \"t\" does not exist
        > drop table if exists t
        DROP TABLE
        NOTICE 00000 table \"t\" does not exist, skipping
        ",
    )
    .await;
}

#[tokio::test]
async fn ddl_is_transactional() {
    let db = database();
    let (mut a, mut b) = (Client::new(&db).await, Client::new(&db).await);
    a.ok("begin; create table t (a int primary key); insert into t values (1)").await;
    assert_eq!(a.rows("select * from t").await, ["1"]);
    assert!(b.run("select * from t").await.contains("42P01"));
    a.ok("rollback").await;
    assert!(a.run("select * from t").await.contains("42P01"));
    a.ok("begin; create table t (a int primary key); savepoint s; alter table t add column b int; insert into t values (1, 2); rollback to s; insert into t values (7); commit").await;
    assert_eq!(b.rows("select * from t").await, ["7"]);
    b.ok("begin; truncate t; rollback").await;
    assert_eq!(b.rows("select * from t").await, ["7"]);
    b.ok("begin; truncate t; insert into t values (8); commit").await;
    assert_eq!(a.rows("select * from t").await, ["8"]);
}

#[tokio::test]
async fn the_catalog_survives_its_cache() {
    let store = FakeStore::default();
    let db = database_on(store.clone());
    let mut c = Client::new(&db).await;
    c.ok("create table t (id bigserial primary key, v varchar(10) default 'd'); create index i on t (v desc); insert into t (v) values ('a')").await;
    drop(c);
    let db = database_on(store);
    let mut c = Client::new(&db).await;
    c.ok("insert into t default values").await;
    assert_eq!(c.rows("select v from t order by id").await, ["a", "d"]);
    assert_eq!(
        c.rows("select indexdef from pg_indexes order by 1").await,
        [
            "CREATE INDEX i ON public.t USING btree (v DESC)",
            "CREATE UNIQUE INDEX t_pkey ON public.t USING btree (id)"
        ]
    );
}

#[tokio::test]
async fn tables_without_a_primary_key() {
    let db = database();
    let mut c = Client::new(&db).await;
    c.ok("create table h (a int, b text); insert into h values (1, 'x'), (1, 'x'), (2, null)").await;
    assert_eq!(c.rows("select * from h order by a").await, ["1|x", "1|x", "2|∅"]);
    golden(
        &mut c,
        "
        > alter table h add primary key (a)
        ERROR 23505 could not create unique index \"h_pkey\"
        DETAIL Key (a)=(1) is duplicated.
        > delete from h where a = 1
        DELETE 2
        > alter table h add primary key (b)
        ERROR 23502 column \"b\" of relation \"h\" contains null values
        > alter table h add primary key (a)
        ALTER TABLE
        > insert into h values (2, 'again')
        ERROR 23505 duplicate key value violates unique constraint \"h_pkey\"
        DETAIL Key (a)=(2) already exists.
        > select * from h where a = 2
        columns: a|b
        2|∅
        SELECT 1
        > alter table h add primary key (a)
        ERROR 42P16 multiple primary keys for table \"h\" are not allowed
        > alter table h drop constraint h_pkey
        ALTER TABLE
        > insert into h values (2, 'twin')
        INSERT 0 1
        > select count(*) from h
        columns: count
        2
        SELECT 1
        ",
    )
    .await;
}

#[tokio::test]
async fn alter_table() {
    let db = database();
    let mut c = Client::new(&db).await;
    c.ok("create table t (id int primary key, a int); insert into t select g, g * 10 from generate_series(1, 3) g").await;
    golden(
        &mut c,
        "
        > alter table t add column b text default 'new', add column c int
        ALTER TABLE
        > select * from t order by id
        columns: id|a|b|c
        1|10|new|∅
        2|20|new|∅
        3|30|new|∅
        SELECT 3
        > alter table t alter column b set default 'later'
        ALTER TABLE
        > insert into t (id) values (4)
        INSERT 0 1
        > select id, b from t where id > 2 order by id
        columns: id|b
        3|new
        4|later
        SELECT 2
        > alter table t alter column a set not null
        ERROR 23502 column \"a\" of relation \"t\" contains null values
        > alter table t add column d int not null
        ERROR 23502 column \"d\" of relation \"t\" contains null values
        > alter table t rename column a to aa
        ALTER TABLE
        > alter table t rename to u
        ALTER TABLE
        > alter table u drop column b
        ALTER TABLE
        > select * from u order by id
        columns: id|aa|c
        1|10|∅
        2|20|∅
        3|30|∅
        4|∅|∅
        SELECT 4
        > alter table u add constraint positive check (aa > 10)
        ERROR 23514 check constraint \"positive\" of relation \"u\" is violated by some row
        > alter table u add constraint positive check (aa > 0)
        ALTER TABLE
        > insert into u values (9, -1)
        ERROR 23514 new row for relation \"u\" violates check constraint \"positive\"
        DETAIL Failing row contains (9, -1, null).
        > alter table u drop constraint positive
        ALTER TABLE
        > alter table u add unique (aa)
        ALTER TABLE
        > insert into u values (10, 20)
        ERROR 23505 duplicate key value violates unique constraint \"u_aa_key\"
        DETAIL Key (aa)=(20) already exists.
        > alter table u alter column aa type bigint
        ALTER TABLE
        > insert into u values (11, 5000000000)
        INSERT 0 1
        > select aa from u where aa = 5000000000
        columns: aa
        5000000000
        SELECT 1
        > alter table u drop column id
        ERROR 0A000 dropping a column of the primary key is not supported
        > alter table nope add column x int
        ERROR 42P01 relation \"nope\" does not exist
        ",
    )
    .await;
}

#[tokio::test]
async fn what_is_not_supported_says_so() {
    let db = database();
    let mut c = Client::new(&db).await;
    c.ok("create table t (a int primary key)").await;
    for (sql, feature) in [
        ("create table f (a int references t)", "foreign key"),
        ("create table f (a int, foreign key (a) references t (a))", "foreign key"),
        ("create temp table f (a int)", "temporary"),
        ("create view v as select 1", "CREATE VIEW"),
        ("create schema s", "CREATE SCHEMA"),
        ("create type e as enum ('a')", "CREATE TYPE"),
        ("create function f() returns int language sql as 'select 1'", "CREATE FUNCTION"),
        ("create trigger x before insert on t execute function f()", "CREATE TRIGGER"),
        ("create extension x", "CREATE EXTENSION"),
        ("create index on t (a) where a > 1", "partial index"),
        ("create index on t ((a + 1))", "index on an expression"),
        ("create table f (a int) partition by range (a)", "partition"),
        ("create table f (a int generated always as (1) stored)", "generated column"),
        ("comment on table t is 'x'", "COMMENT"),
        ("listen x", "LISTEN"),
        ("lock table t", "LOCK TABLE"),
        ("grant select on t to root", "GRANT"),
        ("create materialized view v as select 1", "MATERIALIZED VIEW"),
    ] {
        let out = c.run(sql).await;
        assert!(out.contains("ERROR 0A000") && out.contains(feature), "{sql}\n{out}");
    }
}

#[tokio::test]
async fn sequences_and_serials() {
    let db = database();
    let mut c = Client::new(&db).await;
    golden(
        &mut c,
        "
        > create table t (id serial primary key, g int generated by default as identity (start with 10 increment by 5), v text)
        CREATE TABLE
        > insert into t (v) values ('a'), ('b') returning id, g
        columns: id|g
        1|10
        2|15
        INSERT 0 2
        > select currval('t_id_seq'), lastval() >= 1
        columns: currval|?column?
        2|t
        SELECT 1
        > select setval('t_id_seq', 100)
        columns: setval
        100
        SELECT 1
        > insert into t (v) values ('c') returning id
        columns: id
        101
        INSERT 0 1
        > create sequence s minvalue 1 maxvalue 2
        CREATE SEQUENCE
        > select nextval('s')
        columns: nextval
        1
        SELECT 1
        > select nextval('s')
        columns: nextval
        2
        SELECT 1
        > select nextval('s')
        columns: nextval
        ERROR 2200H nextval: reached maximum value of sequence \"s\" (2)
        > drop sequence t_id_seq
        ERROR 2BP01 cannot drop sequence t_id_seq because other objects depend on it
        DETAIL default value for column id of table t depends on sequence t_id_seq
        > truncate t restart identity
        TRUNCATE TABLE
        > insert into t (v) values ('d') returning id
        columns: id
        1
        INSERT 0 1
        > drop table t
        DROP TABLE
        > select nextval('t_id_seq')
        ERROR 42P01 relation \"t_id_seq\" does not exist
        ",
    )
    .await;
    let mut other = Client::new(&db).await;
    c.ok("create sequence shared").await;
    let a = c.rows("select nextval('shared')").await;
    let b = other.rows("select nextval('shared')").await;
    assert_ne!(a, b);
    assert!(Client::new(&db).await.run("select currval('shared')").await.contains("55000"));
}

#[tokio::test]
async fn indexes() {
    let db = database();
    let mut c = Client::new(&db).await;
    c.ok("create table t (id int primary key, a int, b text); insert into t select g, g % 10, 'v' || g from generate_series(1, 5000) g").await;
    golden(
        &mut c,
        "
        > create index on t (a, b)
        CREATE INDEX
        > create unique index ub on t (b)
        CREATE INDEX
        > create unique index ua on t (a)
        ERROR 23505 could not create unique index \"ua\"
        DETAIL Key (a)=(1) is duplicated.
        > select id from t where b = 'v4321'
        columns: id
        4321
        SELECT 1
        > select count(*) from t where a = 3
        columns: count
        500
        SELECT 1
        > insert into t values (6000, 1, 'v1')
        ERROR 23505 duplicate key value violates unique constraint \"ub\"
        DETAIL Key (b)=(v1) already exists.
        > begin; create index later on t (b desc, a); insert into t values (7000, 77, 'zz'); select id from t where b = 'zz'; rollback
        BEGIN
        CREATE INDEX
        INSERT 0 1
        columns: id
        7000
        SELECT 1
        ROLLBACK
        > select indexname from pg_indexes where tablename = 't' order by 1
        columns: indexname
        t_a_b_idx
        t_pkey
        ub
        SELECT 3
        > create index if not exists ub on t (a)
        CREATE INDEX
        NOTICE 42P07 relation \"ub\" already exists, skipping
        > drop index ub, t_a_b_idx
        DROP INDEX
        > drop index t_pkey
        ERROR 2BP01 cannot drop index t_pkey because constraint t_pkey on table t requires it
        > create index on t (nope)
        ERROR 42703 column \"nope\" does not exist
        > begin; create index concurrently x on t (a); rollback
        BEGIN
        ERROR 25001 CREATE INDEX CONCURRENTLY cannot run inside a transaction block
        (Failed)
        > rollback
        ROLLBACK
        ",
    )
    .await;
}

#[tokio::test]
async fn create_table_as_and_shards() {
    let db = database();
    let mut c = Client::new(&db).await;
    golden(
        &mut c,
        "
        > create table src (id int primary key, v text)
        CREATE TABLE
        > insert into src values (1, 'a'), (2, 'b')
        INSERT 0 2
        > create table dst as select id * 2 as double, v from src
        SELECT 2
        > select * from dst order by 1
        columns: double|v
        2|a
        4|b
        SELECT 2
        > alter table src split at values (1000), (2000)
        ALTER TABLE
        > show shards from table src
        columns: shard|start_key|end_key|leader|replicas|first_index|last_index|bytes
        2|/src|/src/primary/1000|1|{1}|1|9|38
        3|/src/primary/1000|/src/primary/2000|1|{1}|1|9|0
        4|/src/primary/2000|/max|1|{1}|1|9|52
        SHOW SHARDS
        ",
    )
    .await;
}

#[tokio::test]
async fn index_ids_never_come_back() {
    let db = database();
    let mut c = Client::new(&db).await;
    c.ok("create table t (id int primary key, n int, unique (n)); insert into t select g, g from generate_series(1, 6000) g").await;
    let ids = || {
        let catalog = db.catalog().current();
        catalog.table("t").unwrap().table.indexes.iter().map(|i| i.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(), [1]);
    // Its entries were written in bulk, and are removed some time after the rollback.
    c.ok("begin; create index i on t (n); rollback; create index i on t (n)").await;
    assert_eq!(ids(), [1, 3]);
    c.ok("alter table t add unique (n, id)").await;
    assert_eq!(ids(), [1, 3, 4]);
    assert_eq!(c.rows("select count(*) from t where n > 0").await, ["6000"]);
}
