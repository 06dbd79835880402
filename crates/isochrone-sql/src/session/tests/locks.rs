//! Row locks as statements take them: modes, NOWAIT, SKIP LOCKED, what is judged again after a wait, and time limits.

use super::*;
use std::time::Duration;

async fn two() -> (Client, Client) {
    // One node of a cluster: it knows the time.
    let clock = Arc::new(TokioClock::new(1_700_000_000_000_000));
    let store = FakeStore::cluster(1, clock, Arc::new(TokioTimer)).remove(0);
    let db = database_on(store);
    let (mut a, b) = (Client::new(&db).await, Client::new(&db).await);
    a.ok("create table t (id int primary key, u int unique, n int); insert into t select g, g, 0 from generate_series(1, 5) g").await;
    a.ok("create table q (id int primary key, k int, state text); create index qk on q (k); insert into q select g, g % 3, 'new' from generate_series(1, 9) g").await;
    (a, b)
}

/// Each pair of clauses meets on one row: exactly PostgreSQL's conflicts fail.
#[tokio::test]
async fn clauses_conflict_as_in_postgresql() {
    let (mut a, mut b) = two().await;
    let clauses = ["for key share", "for share", "for no key update", "for update"];
    for (i, first) in clauses.iter().enumerate() {
        for (j, second) in clauses.iter().enumerate() {
            a.ok(&format!("begin isolation level read committed; select 1 from t where id = 1 {first}"))
                .await;
            let out = b.run(&format!("select id from t where id = 1 {second} nowait")).await;
            let refused = out.contains("ERROR 55P03 could not obtain lock on row in relation \"t\"");
            assert_eq!(refused, i + j >= 3, "{first}, {second}: {out}");
            a.ok("rollback").await;
        }
    }
}

#[tokio::test]
async fn statements_lock_as_strongly_as_they_must() {
    let (mut a, mut b) = two().await;
    for (change, share, key_share) in [
        ("update t set n = 1 where id = 1", false, true),
        ("update t set n = 1 where n = 0 and id < 2", false, true),
        ("update t set u = 77 where id = 1", false, false),
        ("update t set id = 77 where id = 1", false, false),
        ("delete from t where id = 1", false, false),
        ("insert into t values (1, 1, 1) on conflict (id) do update set n = 5", false, true),
        ("insert into t values (1, 1, 1) on conflict (id) do update set u = 55", false, false),
    ] {
        a.ok("begin isolation level read committed").await;
        a.ok(change).await;
        for (clause, granted) in [("share", share), ("key share", key_share)] {
            let out = b.run(&format!("select id from t where id = 1 for {clause} nowait")).await;
            assert_eq!(!out.contains("55P03"), granted, "{change}, {clause}: {out}");
        }
        a.ok("rollback").await;
    }
    // An upgrade of what is held, past nobody, and back with the transaction.
    a.ok("begin; select 1 from t where id = 1 for key share; select 1 from t where id = 1 for update").await;
    assert!(b.run("select 1 from t where id = 1 for key share nowait").await.contains("55P03"));
    a.ok("commit").await;
    b.ok("select 1 from t where id = 1 for update nowait").await;
}

#[tokio::test]
async fn skip_locked_takes_what_is_free() {
    for level in ["read committed", "repeatable read", "serializable"] {
        let (mut a, mut b) = two().await;
        a.ok(&format!("begin isolation level {level}")).await;
        b.ok(&format!("begin isolation level {level}")).await;
        assert_eq!(a.rows("select id from q order by id limit 2 for update skip locked").await, ["1", "2"]);
        // Only what was returned is locked.
        assert_eq!(
            b.rows("select id from q order by id for update skip locked limit 3").await,
            ["3", "4", "5"]
        );
        assert_eq!(a.rows("select id from q where k = 0 for no key update skip locked").await, ["6", "9"]);
        assert_eq!(a.rows("select id from q order by id desc for update skip locked limit 1").await, ["9"]);
        // What others do to rows that were passed, and new rows between, is no conflict.
        b.ok("delete from q where id = 3; commit").await;
        let mut c = Client::new(a.session.database()).await;
        c.ok("insert into q values (0, 0, 'new'); delete from q where id = 8").await;
        a.ok("update q set state = 'done' where id = 1").await;
        assert!(a.run("commit").await.contains("COMMIT"), "{level}");
        assert_eq!(a.rows("select id from q where state = 'done'").await, ["1"]);
    }
}

#[tokio::test]
async fn a_row_that_is_returned_and_lost_is_a_conflict() {
    let (mut a, mut b) = two().await;
    a.ok("begin; select id from q order by id for share skip locked limit 1").await;
    // Share with share; then its own change, and the other's.
    b.ok("begin; select id from q where id = 1 for share").await;
    b.ok("set lock_timeout = '20ms'").await;
    assert!(b.run("update q set state = 'x' where id = 1").await.contains("55P03"));
    b.ok("rollback").await;
    a.ok("commit").await;
    b.ok("update q set state = 'x' where id = 1").await;
}

/// The ways in which people write queues.
#[tokio::test]
async fn jobs_are_taken_in_one_statement() {
    let (mut a, mut b) = two().await;
    a.ok("begin").await;
    let take = "update q set state = 'taken' where id = (select id from q where state = 'new' order by id for update skip locked limit 1) returning id";
    assert_eq!(a.rows(take).await, ["1"]);
    assert_eq!(a.rows(take).await, ["2"]);
    assert_eq!(b.rows(take).await, ["3"]);
    let take = "delete from q where id in (select id from q where state = 'new' order by id for update skip locked limit 2) returning id";
    assert_eq!(b.rows(take).await, ["4", "5"]);
    let take = "with j as (select id from q where state = 'new' order by id for update skip locked limit 1) update q set state = 'cte' from j where q.id = j.id returning q.id";
    assert_eq!(b.rows(take).await, ["6"]);
    a.ok("rollback").await;
    assert_eq!(
        b.rows("select id, state from q order by id").await,
        ["1|new", "2|new", "3|taken", "6|cte", "7|new", "8|new", "9|new"]
    );
    b.ok("begin read only").await;
    assert!(b.run("with j as (select id from q for update) select * from j").await.contains("25006"));
    b.ok("rollback").await;
}

#[tokio::test]
async fn clauses_can_be_many() {
    let (mut a, mut b) = two().await;
    a.ok("begin; select 1 from t where id = 1 for update").await;
    // Of two clauses for one table the stronger lock and the more impatient wait hold.
    assert!(
        b.run(
            "select t.id from t, q where t.id = q.id and t.id = 1 for share of q, t for key share of t nowait"
        )
        .await
        .contains("55P03")
    );
    assert_eq!(b.rows("select t.id from t, q where t.id = q.id and t.id = 1 for update of q").await, ["1"]);
    assert_eq!(b.rows("select t.id from t, q where t.id = q.id order by t.id for share of q for update of t skip locked limit 2").await, ["2", "3"]);
    for (sql, code) in [
        ("select 1 from t for update of x", "42P01"),
        ("select 1 from t for share of public.t", "42601"),
        ("select count(*) from t for update", "0A000"),
        ("select n from t group by n for share", "0A000"),
        ("select distinct n from t for key share", "0A000"),
        ("select 1 from t union select 2 from t for update", "0A000"),
        ("values (1) for update", "0A000"),
        ("(select 1 from t) for update", "0A000"),
        ("select * from (select id + 1 as x from t) s for update", "0A000"),
        ("select 1 from t left join q on t.id = q.id for update", "0A000"),
        ("with w as (select 1) select * from w, t for update of w", "0A000"),
    ] {
        let out = b.run(sql).await;
        assert!(out.contains(&format!("ERROR {code}")), "{sql}: {out}");
    }
    assert!(
        b.run("select n from t group by n for no key update")
            .await
            .contains("FOR NO KEY UPDATE is not allowed with GROUP BY clause")
    );
    // The side that cannot be missing may be locked, and a plain subquery is its table.
    assert_eq!(
        b.rows("select t.id from t left join q on q.id = t.id + 100 where t.id = 2 for update of t").await,
        ["2"]
    );
    assert!(
        b.run("select * from (select id from t where n = 0) s where id = 1 for update nowait")
            .await
            .contains("55P03")
    );
    a.ok("rollback").await;
}

/// READ COMMITTED: after the wait the row is judged by what it is now.
#[tokio::test]
async fn what_was_waited_for_is_judged_again() {
    let (mut a, mut b) = two().await;
    let waits = [
        // What a does, what b runs meanwhile, and what b sees.
        (
            "update t set n = 9 where id = 1",
            "select id from t where n = 0 order by id limit 2 for update",
            "2\n3",
        ),
        ("update t set n = 9 where id = 1", "select id, n from t where id = 1 for share", "1|9"),
        ("delete from t where id = 1", "select id from t where id < 3 order by id for no key update", "2"),
        ("update t set n = 1 where id = 1", "update t set n = n + 10 where id = 1 returning n", "11"),
        ("update t set n = 1 where id = 1", "delete from t where n = 0 and id < 3 returning id", "2"),
        (
            "update t set n = 1 where id = 1",
            "update t set n = q.id from q where q.id = t.id and t.n = 0 and t.id < 3 returning t.id",
            "2",
        ),
        (
            "update t set u = 100 where id = 1",
            "select t.id from t join q on q.id = t.u where t.id < 3 order by 1 for update of t",
            "2",
        ),
        (
            "update t set n = 1 where id = 1",
            "select t.id from t where t.id in (select id from q) and n = 0 and id < 3 for update",
            "2",
        ),
    ];
    for (change, sql, expected) in waits {
        a.ok("begin isolation level read committed").await;
        b.ok("begin isolation level read committed").await;
        a.ok(change).await;
        let (_, out) = tokio::join!(
            async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                a.ok("commit").await;
            },
            b.rows(sql)
        );
        assert_eq!(out.join("\n"), expected, "{change}; {sql}");
        b.ok("rollback").await;
        a.ok("delete from t; insert into t select g, g, 0 from generate_series(1, 5) g").await;
    }
    // Above it, and where it cannot be told, it is a conflict.
    for (level, sql) in [
        ("repeatable read", "select id from t where id = 1 for update"),
        ("read committed", "select t.id from t left join q on q.k = t.n where t.id = 1 for update of t"),
    ] {
        a.ok("begin isolation level read committed; update t set n = 1 where id = 1").await;
        b.ok(&format!("begin isolation level {level}; select 1")).await;
        b.ok("select count(*) from q").await;
        let (_, out) = tokio::join!(
            async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                a.ok("commit").await;
            },
            b.run(sql)
        );
        assert!(out.contains("40001"), "{out}");
        b.ok("rollback").await;
        a.ok("update t set n = 0 where id = 1").await;
    }
}

#[tokio::test]
async fn deadlocks_have_their_code() {
    let (mut a, mut b) = two().await;
    a.ok("begin; select 1 from t where id = 1 for update").await;
    b.ok("begin; select 1 from t where id = 2 for update").await;
    let (x, y) = tokio::join!(a.run("select 1 from t where id = 2 for share"), async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let out = b.run("select 1 from t where id = 1 for key share").await;
        b.ok("rollback").await;
        out
    });
    assert!(y.contains("ERROR 40P01 deadlock detected") && !x.contains("ERROR"), "{x}{y}");
    a.ok("commit").await;
}

#[tokio::test]
async fn waits_end_when_the_session_says_so() {
    let (mut a, mut b) = two().await;
    a.ok("begin; select 1 from t where id = 1 for update").await;
    // In the midst of a transaction, too, and only from there on.
    b.ok("begin; select 1 from t where id = 2 for update; savepoint s; set local lock_timeout = '20ms'")
        .await;
    let out = b.run("select 1 from t where id = 1 for update").await;
    assert!(out.contains("ERROR 55P03 canceling statement due to lock timeout"), "{out}");
    b.ok("rollback to s").await;
    b.ok("set local statement_timeout = '20ms'; set local lock_timeout = 0").await;
    let out = b.run("update t set n = 1 where id = 1").await;
    assert!(out.contains("ERROR 57014 canceling statement due to statement timeout"), "{out}");
    b.ok("rollback").await;
    b.ok("set deadlock_timeout = '2s'; set statement_timeout = 0").await;
    // What gave up is not in the way of those who come after.
    a.ok("rollback").await;
    b.ok("select 1 from t where id = 1 for update nowait").await;
}

#[tokio::test]
async fn an_idle_session_ends() {
    let (mut a, _b) = two().await;
    assert!(a.session.idle_end().is_none());
    a.ok("set idle_in_transaction_session_timeout = '20ms'").await;
    assert!(a.session.idle_end().is_none(), "outside of a transaction");
    a.ok("begin").await;
    let why = a.session.idle_end().expect("it may not last for ever").await;
    assert_eq!(why.sqlstate.code(), "25P03");
    assert_eq!(why.message, "terminating connection due to idle-in-transaction timeout");
    assert!(a.run("select 1 / 0").await.contains("22012"));
    assert_eq!(a.session.idle_end().expect("a failed one, too").await.sqlstate.code(), "25P03");
    a.ok("rollback; set idle_session_timeout = '10ms'").await;
    assert_eq!(a.session.idle_end().expect("it may not last for ever").await.sqlstate.code(), "57P05");
}

#[tokio::test]
async fn locks_can_be_seen() {
    let (mut a, mut b) = two().await;
    a.ok("begin; select 1 from t where id = 1 for no key update").await;
    let seen = "select shard, node, \"table\", key, gateway, mode, granted, waiting_since is null from isochrone.locks";
    assert_eq!(b.rows(seen).await, ["1|1|t|/t/primary/1|1|FOR NO KEY UPDATE|t|t"]);
    assert_eq!(
        b.rows("select l.mode, c.relname from pg_locks l join pg_class c on c.oid = l.relation").await,
        ["FOR NO KEY UPDATE|t"]
    );
    a.ok("rollback").await;
    assert!(b.rows("select * from isochrone.locks").await.is_empty());
}
