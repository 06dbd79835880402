//! Transaction blocks, savepoints, settings, prepared statements, cursors.

use super::*;

#[tokio::test]
async fn blocks() {
    let db = database();
    let mut c = Client::new(&db).await;
    c.ok("create table t (a int primary key)").await;
    golden(
        &mut c,
        "
        > begin
        BEGIN
        (InBlock)
        > insert into t values (1)
        INSERT 0 1
        (InBlock)
        > select 1 / 0
        columns: ?column?
        ERROR 22012 division by zero
        (Failed)
        > select 1
        ERROR 25P02 current transaction is aborted, commands ignored until end of transaction block
        (Failed)
        > commit
        ROLLBACK
        > select count(*) from t
        columns: count
        0
        SELECT 1
        > commit
        COMMIT
        WARNING 25P01 there is no transaction in progress
        > rollback
        ROLLBACK
        WARNING 25P01 there is no transaction in progress
        > begin
        BEGIN
        (InBlock)
        > begin
        BEGIN
        WARNING 25001 there is already a transaction in progress
        (InBlock)
        > insert into t values (1)
        INSERT 0 1
        (InBlock)
        > savepoint s
        SAVEPOINT
        (InBlock)
        > insert into t values (1)
        ERROR 23505 duplicate key value violates unique constraint \"t_pkey\"
        DETAIL Key (a)=(1) already exists.
        (Failed)
        > rollback to nope
        ERROR 3B001 savepoint \"nope\" does not exist
        (Failed)
        > rollback to s
        ROLLBACK
        (InBlock)
        > insert into t values (2)
        INSERT 0 1
        (InBlock)
        > release s
        RELEASE
        (InBlock)
        > commit
        COMMIT
        > select * from t order by a
        columns: a
        1
        2
        SELECT 2
        > insert into t values (3); insert into t values (3)
        INSERT 0 1
        ERROR 23505 duplicate key value violates unique constraint \"t_pkey\"
        DETAIL Key (a)=(3) already exists.
        > select count(*) from t
        columns: count
        2
        SELECT 1
        > insert into t values (4); commit; insert into t values (4)
        INSERT 0 1
        COMMIT
        WARNING 25P01 there is no transaction in progress
        ERROR 23505 duplicate key value violates unique constraint \"t_pkey\"
        DETAIL Key (a)=(4) already exists.
        ",
    )
    .await;
}

#[tokio::test]
async fn modes() {
    let db = database();
    let mut c = Client::new(&db).await;
    c.ok("create table t (a int primary key)").await;
    golden(
        &mut c,
        "
        > begin isolation level read committed, read only
        BEGIN
        (InBlock)
        > show transaction_isolation
        columns: transaction_isolation
        read committed
        SHOW
        (InBlock)
        > insert into t values (1)
        ERROR 25006 cannot execute INSERT in a read-only transaction
        (Failed)
        > rollback
        ROLLBACK
        > show transaction isolation level
        columns: transaction_isolation
        serializable
        SHOW
        > set default_transaction_isolation = 'repeatable read'
        SET
        > begin
        BEGIN
        (InBlock)
        > select current_setting('transaction_isolation')
        columns: current_setting
        repeatable read
        SELECT 1
        (InBlock)
        > set transaction isolation level serializable
        ERROR 25001 SET TRANSACTION ISOLATION LEVEL must be called before any query
        (Failed)
        > rollback and chain
        ROLLBACK
        (InBlock)
        > rollback
        ROLLBACK
        > start transaction read only; create table u (a int)
        START TRANSACTION
        ERROR 25006 cannot execute CREATE TABLE in a read-only transaction
        (Failed)
        > rollback
        ROLLBACK
        ",
    )
    .await;
}

#[tokio::test]
async fn settings_roll_back() {
    let db = database();
    let mut c = Client::new(&db).await;
    golden(
        &mut c,
        "
        > set timezone to 'Europe/Berlin'
        SET
        > show timezone
        columns: TimeZone
        Europe/Berlin
        SHOW
        > begin; set timezone to 'UTC'; set local work_mem = '8MB'; show work_mem; rollback
        BEGIN
        SET
        SET
        columns: work_mem
        8192
        SHOW
        ROLLBACK
        > show timezone
        columns: TimeZone
        Europe/Berlin
        SHOW
        > set local work_mem = 100
        SET
        WARNING 25P01 SET LOCAL can only be used in transaction blocks
        > select set_config('application_name', 'me', false), current_setting('application_name')
        columns: set_config|current_setting
        me|me
        SELECT 1
        > show application_name
        columns: application_name
        me
        SHOW
        > set nonsense = 1
        ERROR 42704 unrecognized configuration parameter \"nonsense\"
        > set server_version = '1'
        ERROR 55P02 parameter \"server_version\" cannot be changed
        > reset timezone
        RESET
        > show time zone
        columns: TimeZone
        UTC
        SHOW
        > show server_version_num
        columns: server_version_num
        150000
        SHOW
        > discard all
        DISCARD ALL
        > show application_name
        columns: application_name

        SHOW
        ",
    )
    .await;
    let changes = c.session.take_parameter_changes();
    assert!(changes.iter().any(|(n, _)| n == "server_version"), "{changes:?}");
    c.ok("set datestyle = 'ISO, DMY'").await;
    assert_eq!(c.session.take_parameter_changes(), [("DateStyle".to_string(), "ISO, DMY".to_string())]);
}

#[tokio::test]
async fn prepared_statements_and_cursors() {
    let db = database();
    let mut c = Client::new(&db).await;
    c.ok("create table t (a int primary key, b text); insert into t select g, 'v' || g from generate_series(1, 10) g").await;
    golden(
        &mut c,
        "
        > prepare p (int) as select b from t where a = $1
        PREPARE
        > execute p (3)
        columns: b
        v3
        SELECT 1
        > execute p ('4')
        columns: b
        v4
        SELECT 1
        > execute p
        columns: b
        ERROR 42601 wrong number of parameters for prepared statement
        DETAIL Expected 1 parameters but got 0.
        > prepare p as select 1
        ERROR 42P05 prepared statement \"p\" already exists
        > alter table t add column c int
        ALTER TABLE
        > execute p (5)
        columns: b
        v5
        SELECT 1
        > deallocate p
        DEALLOCATE
        > execute p (1)
        ERROR 26000 prepared statement \"p\" does not exist
        > declare c cursor for select a from t order by a
        ERROR 25P01 DECLARE CURSOR can only be used in transaction blocks
        > begin; declare c cursor for select a from t order by a
        BEGIN
        DECLARE CURSOR
        (InBlock)
        > fetch 2 from c
        columns: a
        1
        2
        FETCH 2
        (InBlock)
        > move 3 in c
        MOVE 3
        (InBlock)
        > fetch all from c
        columns: a
        6
        7
        8
        9
        10
        FETCH 5
        (InBlock)
        > fetch c
        columns: a
        FETCH 0
        (InBlock)
        > close c; commit
        CLOSE CURSOR
        COMMIT
        > fetch c
        ERROR 34000 cursor \"c\" does not exist
        > explain (costs off) select b from t where a = 1
        columns: QUERY PLAN
        Index Scan using t_pkey on t
        Index Cond: ((a = 1))
        EXPLAIN
        ",
    )
    .await;
}

#[tokio::test]
async fn the_extended_protocol() {
    let db = database();
    let mut c = Client::new(&db).await;
    c.ok("create table t (a int primary key, b text)").await;
    let s = &mut c.session;
    let insert = s.parse("insert into t values ($1, $2)", &[]).await.unwrap();
    assert_eq!(insert.params(), [Type::Int4, Type::Text]);
    assert!(insert.columns().is_none());
    let mut sink = Printer::default();
    for i in 0..10 {
        let mut p = s.bind(&insert, vec![Datum::Int4(i), Datum::text("x")]).unwrap();
        let out = assert_send(s.execute(&mut p, 0, i == 9, &mut sink)).await.unwrap();
        assert_eq!(out, Outcome::Complete("INSERT 0 1".into()));
    }
    s.sync().await.unwrap();
    let select = s.parse("select a from t order by a", &[]).await.unwrap();
    sink.columns(select.columns().unwrap()).unwrap();
    let mut p = s.bind(&select, vec![]).unwrap();
    assert_eq!(s.execute(&mut p, 4, false, &mut sink).await.unwrap(), Outcome::Suspended);
    assert_eq!(s.execute(&mut p, 4, false, &mut sink).await.unwrap(), Outcome::Suspended);
    let end = s.execute(&mut p, 4, true, &mut sink).await.unwrap();
    assert!(matches!(end, Outcome::Complete(_)), "{end:?}");
    s.sync().await.unwrap();
    assert_eq!(sink.out, "columns: a\n0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n");
    // A pipeline is one implicit transaction: an error takes back what came before it.
    let mut p = s.bind(&insert, vec![Datum::Int4(20), Datum::Null]).unwrap();
    s.execute(&mut p, 0, false, &mut sink).await.unwrap();
    let mut p = s.bind(&insert, vec![Datum::Int4(1), Datum::Null]).unwrap();
    assert_eq!(s.execute(&mut p, 0, true, &mut sink).await.unwrap_err().sqlstate.code(), "23505");
    s.sync().await.unwrap();
    assert_eq!(c.rows("select count(*) from t").await, ["10"]);
    assert!(c.session.parse("select 1; select 2", &[]).await.is_err());
    assert_eq!(c.session.parse("", &[]).await.unwrap().params(), []);
}
