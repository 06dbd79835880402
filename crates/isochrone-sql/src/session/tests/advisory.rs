//! Advisory locks: of one session, between sessions, between gateways, and when a gateway is lost.

use std::time::Duration;

use super::*;

async fn pause(d: Duration) {
    tokio::time::sleep(d).await;
}

fn two_gateways() -> (Vec<FakeStore>, Vec<Arc<Database>>) {
    let clock = Arc::new(TokioClock::new(1_700_000_000_000_000));
    let stores = FakeStore::cluster(2, clock, Arc::new(TokioTimer));
    let gateways = stores.iter().map(|s| database_on(s.clone())).collect();
    (stores, gateways)
}

async fn gets(c: &mut Client, what: &str) -> bool {
    c.rows(&format!("select pg_try_advisory_{what}")).await == ["t"]
}

/// Can somebody else have it now?
async fn is_free(c: &mut Client, lock: &str) -> bool {
    let got = gets(c, &format!("lock({lock})")).await;
    if got {
        c.ok(&format!("select pg_advisory_unlock({lock})")).await;
    }
    got
}

#[tokio::test(start_paused = true)]
async fn what_one_session_sees() {
    let db = database();
    let mut c = Client::new(&db).await;
    golden(
        &mut c,
        "
        > select pg_advisory_lock(7), pg_try_advisory_lock(7), pg_try_advisory_lock(7, 7)
        columns: pg_advisory_lock|pg_try_advisory_lock|pg_try_advisory_lock
        |t|t
        SELECT 1
        > select pg_advisory_unlock(7), pg_advisory_unlock(7), pg_advisory_unlock(7)
        columns: pg_advisory_unlock|pg_advisory_unlock|pg_advisory_unlock
        t|t|f
        SELECT 1
        WARNING 01000 you don't own a lock of type ExclusiveLock
        > select pg_advisory_unlock_shared(7, 7)
        columns: pg_advisory_unlock_shared
        f
        SELECT 1
        WARNING 01000 you don't own a lock of type ShareLock
        > select pg_advisory_lock(null), pg_try_advisory_lock(null, 1), pg_advisory_unlock(null)
        columns: pg_advisory_lock|pg_try_advisory_lock|pg_advisory_unlock
        \u{2205}|\u{2205}|\u{2205}
        SELECT 1
        > select pg_advisory_unlock_all()
        columns: pg_advisory_unlock_all

        SELECT 1
        > select pg_advisory_lock('x')
        ERROR 22P02 invalid input syntax for type bigint: \"x\"
        > select pg_advisory_lock()
        ERROR 42883 function pg_advisory_lock() does not exist
        > select pg_advisory_lock(1, 3000000000)
        ERROR 42883 function pg_advisory_lock(integer, bigint) does not exist
        > select pg_advisory_lock(1, 2, 3)
        ERROR 42883 function pg_advisory_lock(integer, integer, integer) does not exist
        > select count(pg_advisory_lock_shared(g)) from generate_series(1, 3) g
        columns: count
        3
        SELECT 1
        ",
    )
    .await;
    let mut other = Client::new(&db).await;
    assert!(!is_free(&mut other, "3").await);
    assert!(gets(&mut other, "lock_shared(3)").await);
    c.ok("discard all").await;
    assert!(!is_free(&mut c, "3").await, "the other one's");
    other.ok("select pg_advisory_unlock_all()").await;
    assert!(is_free(&mut c, "3").await);
}

#[tokio::test(start_paused = true)]
async fn transactions_and_savepoints() {
    let db = database();
    let (mut a, mut b) = (Client::new(&db).await, Client::new(&db).await);
    // Of the session: a rollback leaves it, and it counts.
    a.ok("begin; select pg_advisory_lock(1); select pg_advisory_lock(1); rollback").await;
    assert!(!is_free(&mut b, "1").await);
    a.ok("select pg_advisory_unlock(1)").await;
    assert!(!is_free(&mut b, "1").await, "twice");
    a.ok("select pg_advisory_unlock(1)").await;
    assert!(is_free(&mut b, "1").await);
    // Of the transaction: until its end, whichever; one statement is one.
    for end in ["commit", "rollback"] {
        a.ok("begin; select pg_advisory_xact_lock(2), pg_advisory_xact_lock_shared(3)").await;
        assert!(!is_free(&mut b, "2").await && !is_free(&mut b, "3").await);
        assert!(gets(&mut b, "xact_lock_shared(3)").await);
        assert!(a.run("select pg_advisory_unlock(2)").await.contains("WARNING"), "not the session's");
        a.ok(end).await;
        assert!(is_free(&mut b, "2").await && is_free(&mut b, "3").await, "{end}");
    }
    a.ok("select pg_advisory_xact_lock(2)").await;
    assert!(is_free(&mut b, "2").await);
    // A statement that fails ends the transaction's, and not the session's.
    a.ok("begin; select pg_advisory_lock(5), pg_advisory_xact_lock(6)").await;
    assert!(a.run("select 1/0").await.contains("22012"));
    assert!(!is_free(&mut b, "5").await && is_free(&mut b, "6").await);
    a.ok("rollback; select pg_advisory_unlock_all()").await;
    // Savepoints.
    a.ok("begin; select pg_advisory_xact_lock(10); savepoint s; select pg_advisory_xact_lock(11), pg_advisory_xact_lock(10)")
        .await;
    a.ok("rollback to s").await;
    assert!(!is_free(&mut b, "10").await && is_free(&mut b, "11").await);
    a.ok("commit").await;
    assert!(is_free(&mut b, "10").await);
    // Both, and from shared to exclusive.
    a.ok("select pg_advisory_lock_shared(20), pg_advisory_lock(20); select pg_advisory_unlock(20)").await;
    assert!(!is_free(&mut b, "20").await && gets(&mut b, "lock_shared(20)").await);
    assert!(!gets(&mut a, "lock(20)").await, "the other one shares it");
    // The end of a session.
    drop(a);
    drop(b);
    pause(Duration::from_millis(10)).await;
    assert!(is_free(&mut Client::new(&db).await, "20").await);
}

#[tokio::test(start_paused = true)]
async fn waits_end() {
    for far in [false, true] {
        let (_stores, gateways) = two_gateways();
        let (mut a, mut b) =
            (Client::new(&gateways[0]).await, Client::new(&gateways[usize::from(far)]).await);
        a.ok("select pg_advisory_lock(1)").await;
        b.ok("set lock_timeout = '300ms'").await;
        assert!(b.run("select pg_advisory_lock(1)").await.contains("ERROR 55P03"));
        b.ok("set lock_timeout = 0; set statement_timeout = '300ms'").await;
        let out = b.run("select pg_advisory_lock(1)").await;
        assert!(out.contains("ERROR 57014") && out.contains("statement timeout"), "{out}");
        b.ok("set statement_timeout = 0").await;
        let cancel = b.session.cancel_handle();
        let waiting = tokio::spawn(async move {
            let out = b.run("select pg_advisory_lock(1)").await;
            (b, out)
        });
        pause(Duration::from_millis(500)).await;
        cancel.cancel();
        let (mut b, out) = waiting.await.unwrap();
        assert!(out.contains("ERROR 57014") && out.contains("user request"), "{out}");
        // Nothing is left of what was given up.
        a.ok("select pg_advisory_unlock(1)").await;
        pause(Duration::from_secs(1)).await;
        assert!(is_free(&mut a, "1").await);
        // And one that gets it.
        a.ok("select pg_advisory_lock(1)").await;
        let waiting = tokio::spawn(async move {
            b.ok("select pg_advisory_lock(1)").await;
            b
        });
        pause(Duration::from_secs(5)).await;
        assert!(!waiting.is_finished());
        a.ok("select pg_advisory_unlock(1)").await;
        let _b = tokio::time::timeout(Duration::from_secs(1), waiting).await.unwrap().unwrap();
        assert!(!is_free(&mut a, "1").await);
    }
}

/// Sessions that are cancelled at any moment of a claim leave nothing behind.
#[tokio::test(start_paused = true)]
async fn a_claim_nobody_waits_for_is_given_back() {
    let db = database();
    let mut other = Client::new(&db).await;
    for polls in 0..40 {
        let mut c = Client::new(&db).await;
        let script = c.session.script("select pg_advisory_lock(1)").unwrap();
        let mut printer = Printer::default();
        {
            let step = script.into_iter().next().unwrap();
            let mut running = Box::pin(c.session.step(step, true, &mut printer));
            for _ in 0..polls {
                let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(running.as_mut().poll(cx)));
                if polled.await.is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        drop(c);
        pause(Duration::from_secs(1)).await;
        assert!(is_free(&mut other, "1").await, "given up after {polls} steps");
    }
}

#[tokio::test(start_paused = true)]
async fn a_circle_is_broken() {
    let db = database();
    let (mut a, mut b) = (Client::new(&db).await, Client::new(&db).await);
    a.ok("select pg_advisory_lock(1)").await;
    b.ok("select pg_advisory_lock(2)").await;
    let waiting = tokio::spawn(async move {
        let out = a.run("select pg_advisory_lock(2)").await;
        (a, out)
    });
    pause(Duration::from_millis(50)).await;
    let out = b.run("select pg_advisory_lock(1)").await;
    let broken = out.contains("ERROR 40P01");
    if broken {
        b.ok("select pg_advisory_unlock_all()").await;
    }
    let (_a, other) = waiting.await.unwrap();
    assert!(broken != other.contains("ERROR 40P01"), "{out}{other}");
}

#[tokio::test(start_paused = true)]
async fn many_sessions_at_two_gateways_count_without_a_gap() {
    let (_stores, gateways) = two_gateways();
    let mut c = Client::new(&gateways[0]).await;
    c.ok("create table t (id int primary key, n int); insert into t values (1, 0)").await;
    let mut tasks = Vec::new();
    for i in 0..8 {
        let db = gateways[i % 2].clone();
        tasks.push(tokio::spawn(async move {
            let mut c = Client::new(&db).await;
            for _ in 0..10 {
                // Read and written apart: only the lock keeps others from coming in between.
                c.ok("select pg_advisory_lock(4, -2)").await;
                let n: i32 = c.rows("select n from t").await[0].parse().unwrap();
                tokio::task::yield_now().await;
                c.ok(&format!("update t set n = {} where id = 1", n + 1)).await;
                c.ok("select pg_advisory_unlock(4, -2)").await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(c.rows("select n from t").await, ["80"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_gateway_loses_its_locks_and_its_sessions_hear_of_it() {
    let (stores, gateways) = two_gateways();
    let (mut a, mut b) = (Client::new(&gateways[0]).await, Client::new(&gateways[1]).await);
    let (mut bare, mut waits) = (Client::new(&gateways[0]).await, Client::new(&gateways[0]).await);
    a.ok("create table t (id int primary key)").await;
    a.ok("select pg_advisory_lock(1); begin; insert into t values (1)").await;
    bare.ok("select pg_advisory_lock(2); select pg_advisory_unlock(2)").await;
    waits.ok("select pg_advisory_lock(3)").await;
    assert!(!is_free(&mut b, "1").await);
    stores[0].set_reachable(false);
    assert!(!is_free(&mut b, "1").await, "its lease still runs");
    b.ok("select pg_advisory_lock(1); insert into t values (2)").await;
    assert!(is_free(&mut b, "3").await);
    // What it does in its transaction comes to nothing, also after it is back.
    stores[0].set_reachable(true);
    let out = a.run("commit").await;
    assert!(out.contains("ERROR 57P01"), "{out}");
    assert!(a.run("select 1").await.contains("ERROR 57P01"));
    assert!(a.run("rollback").await.contains("ERROR 57P01"));
    assert!(waits.run("select pg_advisory_unlock(3)").await.contains("ERROR 57P01"));
    bare.ok("select pg_advisory_lock(2)").await;
    assert_eq!(bare.rows("select id from t").await, ["2"]);
    assert!(!is_free(&mut bare, "1").await);
    b.ok("select pg_advisory_unlock(1)").await;
    drop((a, waits));
    pause(Duration::from_secs(1)).await;
    for lock in ["1", "3"] {
        assert!(is_free(&mut bare, lock).await && is_free(&mut b, lock).await);
    }
}

/// A gateway that starts again does not know the sessions of its last life.
#[tokio::test(start_paused = true)]
async fn a_restart_ends_all_claims() {
    let store = FakeStore::default();
    let db = database_on(store.clone());
    let mut c = Client::new(&db).await;
    c.ok("select pg_advisory_lock(1)").await;
    let again = database_on(store);
    // With the same seed its first session would have the same id: the second one has not.
    let _first = Client::new(&again).await;
    let mut next = Client::new(&again).await;
    assert!(is_free(&mut next, "1").await);
}
