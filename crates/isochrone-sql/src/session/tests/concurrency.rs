//! Sessions side by side: retries, table locks, indexes built while rows change, cancel.

use super::*;
use std::time::Duration;

#[tokio::test]
async fn single_statements_are_retried_by_the_session() {
    let db = database();
    let mut c = Client::new(&db).await;
    c.ok("create table t (id int primary key, n int); insert into t values (1, 0)").await;
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let db = db.clone();
        tasks.push(tokio::spawn(async move {
            let mut c = Client::new(&db).await;
            for _ in 0..25 {
                c.ok("update t set n = n + 1 where id = 1").await;
            }
        }));
    }
    for t in tasks {
        t.await.unwrap();
    }
    assert_eq!(c.rows("select n from t").await, ["200"]);
}

#[tokio::test]
async fn write_skew_is_refused() {
    let db = database();
    let (mut a, mut b) = (Client::new(&db).await, Client::new(&db).await);
    a.ok("create table t (id int primary key, n int); insert into t values (1, 1), (2, 1)").await;
    a.ok("begin; select sum(n) from t").await;
    b.ok("begin; select sum(n) from t").await;
    a.ok("update t set n = 0 where id = 1").await;
    b.ok("update t set n = 0 where id = 2").await;
    let (x, y) = (a.run("commit").await, b.run("commit").await);
    assert!(x.contains("COMMIT") && y.contains("40001"), "{x}{y}");
    assert_eq!(b.session.status(), TxnStatus::Idle);
    assert_eq!(b.rows("select sum(n) from t").await, ["1"]);
}

#[tokio::test]
async fn ddl_waits_for_transactions_that_use_the_table() {
    let db = database();
    let (mut a, mut b) = (Client::new(&db).await, Client::new(&db).await);
    a.ok("create table t (id int primary key, n int)").await;
    a.ok("begin; insert into t values (1, 1)").await;
    b.ok("set lock_timeout = '20ms'").await;
    assert!(b.run("alter table t add column m int default 3").await.contains("55P03"));
    b.ok("set lock_timeout = 0").await;
    let alter = tokio::spawn(async move {
        b.ok("alter table t add column m int default 3").await;
        b
    });
    tokio::task::yield_now().await;
    a.ok("insert into t values (2, 2)").await;
    a.ok("commit").await;
    let mut b = alter.await.unwrap();
    assert_eq!(b.rows("select * from t order by id").await, ["1|1|3", "2|2|3"]);
    // A transaction with an older snapshot must not use the new table.
    a.ok("create table other (x int primary key)").await;
    a.ok("begin; select * from other").await;
    b.ok("create index on t (n)").await;
    assert!(a.run("select * from t where n = 1").await.contains("40001"));
    a.ok("rollback").await;
    assert_eq!(a.rows("select id from t where n = 2").await, ["2"]);
}

#[tokio::test]
async fn an_index_is_built_while_rows_change() {
    let db = database();
    let mut c = Client::new(&db).await;
    c.ok("create table t (id int primary key, n int); insert into t select g, g from generate_series(1, 3000) g").await;
    let writer = {
        let db = db.clone();
        tokio::spawn(async move {
            let mut c = Client::new(&db).await;
            for i in 0..300 {
                let id = 1 + (i * 37) % 3000;
                c.ok(&format!("update t set n = n + 100000 where id = {id}")).await;
                if i % 10 == 0 {
                    c.ok(&format!("delete from t where id = {}", 1 + (i * 91) % 3000)).await;
                }
                tokio::task::yield_now().await;
            }
        })
    };
    c.ok("create index tn on t (n)").await;
    writer.await.unwrap();
    let by_table = c.rows("select count(*), sum(n) from t where n + 0 >= 0").await;
    let by_index = c.rows("select count(*), sum(n) from t where n >= 0").await;
    assert_eq!(by_table, by_index);
    assert!(c.run("explain select id from t where n = 5").await.contains("tn"));
    let entries = c.rows("select id from t where n = 2999").await;
    assert_eq!(entries, c.rows("select id from t where n + 0 = 2999").await);
}

#[tokio::test]
async fn concurrent_ddl_is_serialised() {
    let db = database();
    let mut tasks = Vec::new();
    for i in 0..8 {
        let db = db.clone();
        tasks.push(tokio::spawn(async move {
            let mut c = Client::new(&db).await;
            c.ok(&format!("create table t{i} (a int primary key)")).await;
            c.ok(&format!("insert into t{i} values ({i})")).await;
        }));
    }
    for t in tasks {
        t.await.unwrap();
    }
    let mut c = Client::new(&db).await;
    assert_eq!(c.rows("select count(*) from pg_tables where schemaname = 'public'").await, ["8"]);
    let (mut a, mut b) = (Client::new(&db).await, Client::new(&db).await);
    a.ok("begin; create table same (a int)").await;
    let other = tokio::spawn(async move { b.run("create table same (b int)").await });
    tokio::task::yield_now().await;
    a.ok("commit").await;
    assert!(other.await.unwrap().contains("42P07"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_can_be_broken_off() {
    let db = database();
    let mut c = Client::new(&db).await;
    c.ok("set statement_timeout = '30ms'; create table t (a int primary key)").await;
    let out = c.run("select count(*) from generate_series(1, 3000) a, generate_series(1, 3000) b, generate_series(1, 3000) d").await;
    assert!(out.contains("57014"), "{out}");
    c.ok("set statement_timeout = 0").await;
    let handle = c.session.cancel_handle();
    let run = tokio::spawn(async move {
        c.run("select count(*) from generate_series(1, 3000) a, generate_series(1, 3000) b, generate_series(1, 3000) d").await
    });
    let cancel = async {
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            handle.cancel();
        }
    };
    tokio::select! {
        biased;
        out = run => assert!(out.unwrap().contains("57014")),
        () = cancel => {}
    }
}

#[tokio::test]
async fn a_dropped_session_gives_everything_back() {
    let db = database();
    let mut a = Client::new(&db).await;
    a.ok("create table t (a int primary key); insert into t values (1)").await;
    a.ok("begin; update t set a = 2; create table u (x int)").await;
    drop(a);
    let mut b = Client::new(&db).await;
    b.ok("drop table t; create table u (y int)").await;
    assert_eq!(db.sessions().len(), 1);
}
