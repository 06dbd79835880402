//! Reads of the past, of replicas, and what a session remembers of them.

use super::*;

async fn now(c: &mut Client) -> String {
    c.rows("select cluster_timestamp()").await.remove(0)
}

#[tokio::test]
async fn exact() {
    let db = database();
    let mut c = Client::new(&db).await;
    c.ok("create table t (a int primary key, b text); insert into t values (1, 'old'), (2, 'old')").await;
    let then = now(&mut c).await;
    c.ok("update t set b = 'new' where a = 1; delete from t where a = 2; insert into t values (3, 'new')")
        .await;
    for clause in [
        then.clone(),
        format!("'{then}'"),
        format!("with_min_timestamp({then})"), // the fake has everything here, and now
    ] {
        let rows = c.rows(&format!("select a, b from t as of system time {clause} order by a")).await;
        match clause.starts_with("with") {
            false => assert_eq!(rows, ["1|old", "2|old"], "{clause}"),
            true => assert_eq!(rows, ["1|new", "3|new"], "{clause}"),
        }
    }
    let text =
        c.rows(&format!("select cluster_logical_timestamp() from t as of system time {then} limit 1")).await;
    assert_eq!(c.rows(&format!("select count(*) from t as of system time {}", text[0])).await, ["2"]);
    assert_eq!(
        c.rows(&format!(
            "select x.b, (select count(*) from t as of system time {then}) from t x \
                         as of system time {then} where a = 1"
        ))
        .await,
        ["old|2"]
    );
    // The time of a statement ends with it, in a script, too.
    let out = c
        .run(&format!("select b from t as of system time {then} where a = 1; insert into t values (4, 'x')"))
        .await;
    Client::check("script", &out, "columns: b\nold\nSELECT 1\nINSERT 0 1");
    golden(
        &mut c,
        &format!(
            "
            > begin as of system time {then}
            BEGIN
            (InBlock)
            > select b from t where a = 1
            columns: b
            old
            SELECT 1
            (InBlock)
            > select b from t as of system time {then} where a = 1
            columns: b
            old
            SELECT 1
            (InBlock)
            > show transaction_read_only
            columns: transaction_read_only
            on
            SHOW
            (InBlock)
            > insert into t values (9, 'x')
            ERROR 25006 cannot execute INSERT in a read-only transaction
            (Failed)
            > rollback
            ROLLBACK
            > begin isolation level read committed, read only, as of system time {then}
            BEGIN
            (InBlock)
            > select count(*) from t
            columns: count
            2
            SELECT 1
            (InBlock)
            > select b from t where a = 1 for update
            columns: b
            ERROR 25006 cannot write in a read-only transaction
            (Failed)
            > rollback
            ROLLBACK
            > begin
            BEGIN
            (InBlock)
            > set transaction as of system time {then}
            SET
            (InBlock)
            > select count(*) from t
            columns: count
            2
            SELECT 1
            (InBlock)
            > set transaction as of system time {then}
            ERROR 25001 AS OF SYSTEM TIME must be set before any query
            (Failed)
            > rollback
            ROLLBACK
            > select count(*) from t
            columns: count
            3
            SELECT 1
            > begin read write as of system time {then}
            ERROR 42601 AS OF SYSTEM TIME specified with READ WRITE mode
            > insert into t select 7, b from t as of system time {then}
            ERROR 25006 cannot execute INSERT in a read-only transaction
            > begin
            BEGIN
            (InBlock)
            > select count(*) from t as of system time {then}
            columns: count
            ERROR 0A000 AS OF SYSTEM TIME in a transaction that reads at another time is not supported
            (Failed)
            > rollback
            ROLLBACK
            > set session characteristics as transaction as of system time {then}
            ERROR 0A000 AS OF SYSTEM TIME for a whole session is not supported
            > select a from t as of system time 'soon'
            ERROR 22023 AS OF SYSTEM TIME: value \"soon\" is neither timestamp, decimal, nor interval
            "
        ),
    )
    .await;
    let out = c.run("select a from t as of system time '2100-01-01'").await;
    assert!(out.contains("ERROR 22023 AS OF SYSTEM TIME: cannot specify timestamp in the future"), "{out}");
    let out = c.run(&format!("explain select a from t as of system time {then}")).await;
    assert!(out.contains("EXPLAIN"), "{out}");
    c.ok("prepare p as select count(*) from t").await;
    c.ok(&format!("prepare q as select count(*) from t as of system time {then}")).await;
    assert_eq!((c.rows("execute p").await, c.rows("execute q").await), (vec!["3".into()], vec!["2".into()]));
}

/// A table that has changed since is not read with today's columns.
#[tokio::test]
async fn the_schema_of_then() {
    let db = database();
    let mut c = Client::new(&db).await;
    let before = now(&mut c).await;
    c.ok("create table t (a int primary key); create table u (a int primary key)").await;
    c.ok("insert into t values (1); insert into u values (1)").await;
    let then = now(&mut c).await;
    c.ok("alter table t add column b int default 5").await;
    let refused = |table: &str| {
        format!("ERROR 0A000 reading table \"{table}\" as of before its last change by DDL is not supported")
    };
    let out = c.run(&format!("select a from t as of system time {then}")).await;
    assert!(out.contains(&refused("t")), "{out}");
    assert_eq!(c.rows(&format!("select a from u as of system time {then}")).await, ["1"]);
    let out = c.run(&format!("select a from u as of system time {before}")).await;
    assert!(out.contains(&refused("u")), "{out}");
    // A gateway that begins later, and has not seen the change, knows the same.
    db.catalog().mark_doubtful();
    let later = database_over(db.store().clone());
    let mut c = Client::new(&later).await;
    assert_eq!(c.rows(&format!("select a from u as of system time {then}")).await, ["1"]);
    let out = c.run(&format!("select a from t as of system time {then}")).await;
    assert!(out.contains(&refused("t")), "{out}");
}

/// A store whose node has everything up to a moment.
#[tokio::test]
async fn fresh_enough() {
    let store = FakeStore::default();
    let db = database_on(store.clone());
    let mut c = Client::new(&db).await;
    c.ok("create table t (a int primary key); insert into t values (1)").await;
    let then = now(&mut c).await;
    let mut other = Client::new(&db).await;
    other.ok("insert into t values (2)").await;
    store.keep_here_until(then.parse().map(isochrone_base::Timestamp).unwrap());
    assert_eq!(c.rows("show read_freshness").await, ["strong"]);
    assert_eq!(c.rows("select count(*) from t").await, ["2"]);
    c.ok("set read_freshness = any").await;
    assert_eq!(c.rows("select count(*) from t").await, ["1"]);
    assert_eq!(c.rows("select count(*) from t as of system time with_max_staleness('1h')").await, ["1"]);
    c.ok("set read_freshness = bounded('1h')").await;
    assert_eq!(c.rows("show read_freshness").await, ["bounded(1h)"]);
    assert_eq!(c.rows("select count(*) from t").await, ["1"]);
    c.ok("set read_freshness = 'bounded(0ms)'").await;
    assert_eq!(c.rows("select count(*) from t").await, ["2"], "nothing here is so new");
    c.ok("set read_freshness = any").await;
    // Statements that lock or write, and blocks that may, are not concerned; nor do they end a script's transaction.
    assert_eq!(c.rows("select count(*) from (select a from t for update) x").await, ["2"]);
    c.ok("begin").await;
    assert_eq!(c.rows("select count(*) from t").await, ["2"]);
    c.ok("commit; begin read only").await;
    assert_eq!(c.rows("select count(*) from t").await, ["1"]);
    c.ok("commit").await;
    // What the session wrote itself it sees (R25).
    c.ok("insert into t values (3)").await;
    assert_eq!(c.rows("select count(*) from t").await, ["3"]);
    assert_eq!(other.rows("select count(*) from t").await, ["3"]);
    assert!(c.run("set read_freshness = sometimes").await.contains("ERROR 22023"));
}
