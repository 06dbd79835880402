//! The library without sockets: the same engine, durable, transactional.

use isochrone::{Database, params};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_is_there_after_closing_and_after_dropping() {
    let dir = tempfile::tempdir().unwrap();
    let db = Database::open(dir.path()).await.unwrap();
    db.execute("CREATE TABLE t (id int PRIMARY KEY, name text, score float8)", &[]).await.unwrap();
    let inserted =
        db.execute("INSERT INTO t VALUES ($1, $2, $3), (2, NULL, NULL)", params![1, "ada", 1.5]).await;
    assert_eq!(inserted.unwrap(), 2);

    let mut txn = db.begin().await.unwrap();
    assert_eq!(txn.execute("UPDATE t SET name = 'grace' WHERE id = $1", params![2]).await.unwrap(), 1);
    let seen = txn.query("SELECT name FROM t WHERE id = 2", &[]).await.unwrap();
    assert_eq!(seen[0].get::<String>(0).unwrap(), "grace");
    drop(txn); // rolled back
    let rows = db.query("SELECT name FROM t WHERE id = 2", &[]).await.unwrap();
    assert_eq!(rows[0].get::<Option<String>>(0).unwrap(), None);
    assert_eq!(rows[0].get::<i64>(0).unwrap_err().sqlstate.code(), "42804");
    assert_eq!(rows[0].get::<i64>(7).unwrap_err().sqlstate.code(), "42703");

    let mut txn = db.begin().await.unwrap();
    txn.execute("UPDATE t SET score = 2.5 WHERE id = 2", &[]).await.unwrap();
    txn.commit().await.unwrap();

    let mut txn = db.begin().await.unwrap();
    txn.execute("DELETE FROM t", &[]).await.unwrap();
    assert_eq!(txn.query("SELECT 1/0", &[]).await.unwrap_err().sqlstate.code(), "22012");
    assert_eq!(txn.commit().await.unwrap_err().sqlstate.code(), "25P02", "nothing of it was committed");
    db.close().await.unwrap();

    for _ in 0..2 {
        let db = Database::open(dir.path()).await.unwrap();
        assert!(Database::open(dir.path()).await.is_err(), "one process, one opening at a time");
        let rows = db.query("SELECT id, score FROM t ORDER BY id", &[]).await.unwrap();
        let rows: Vec<(i32, f64)> = rows.iter().map(|r| (r.get(0).unwrap(), r.get(1).unwrap())).collect();
        assert_eq!(rows, [(1, 1.5), (2, 2.5)]);
        db.execute("UPDATE t SET score = score", &[]).await.unwrap();
        // Not closed: dropping must free the directory, and lose nothing.
        drop(db);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let db = Database::open(dir.path()).await.unwrap();
    for sql in ["COPY t FROM STDIN", "CREATE VIEW v AS SELECT 1", "SELECT rank() OVER () FROM pg_class"] {
        let error = db.execute(sql, &[]).await.unwrap_err();
        assert!(["0A000", "42P01"].contains(&error.sqlstate.code()), "{sql}: {error}");
    }
    assert_eq!(db.query("SELECT 1 + 1", &[]).await.unwrap()[0].get::<i32>(0).unwrap(), 2);
}
