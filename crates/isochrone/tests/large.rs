//! Large transactions on a real server: many rows, many shards, and more than fits.

mod common;

use common::Server;
use tokio_postgres::Client;

async fn count(client: &Client, table: &str) -> i64 {
    client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_hundred_thousand_rows_in_one_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let client = server.connect().await;
    let table = "CREATE TABLE big (id int PRIMARY KEY, tag int NOT NULL, v text); CREATE INDEX ON big (tag)";
    client.batch_execute(table).await.unwrap();
    let fill = "INSERT INTO big SELECT g, g % 100, 'row ' || g FROM generate_series(1, 100000) g";
    assert_eq!(client.execute(fill, &[]).await.unwrap(), 100_000);
    // Rolled back whole.
    client.batch_execute("BEGIN; UPDATE big SET v = 'x'; ROLLBACK").await.unwrap();
    let x = client.query_one("SELECT count(*) FROM big WHERE v = 'x'", &[]).await.unwrap();
    assert_eq!(x.get::<_, i64>(0), 0);
    assert_eq!(client.execute("UPDATE big SET tag = tag + 1000, v = 'y'", &[]).await.unwrap(), 100_000);
    let tagged = client.query_one("SELECT count(*) FROM big WHERE tag = 1042", &[]).await.unwrap();
    assert_eq!(tagged.get::<_, i64>(0), 1_000);
    server.kill();
    let server = Server::start(dir.path());
    let client = server.connect().await;
    assert_eq!(count(&client, "big WHERE v = 'y'").await, 100_000);
    assert_eq!(client.execute("DELETE FROM big", &[]).await.unwrap(), 100_000);
    assert_eq!(count(&client, "big").await, 0);
}

#[tokio::test]
async fn more_than_the_buffer_holds_is_refused_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let client = server.connect().await;
    client
        .batch_execute("CREATE TABLE wide (id int PRIMARY KEY, v text); INSERT INTO wide VALUES (0, 'kept')")
        .await
        .unwrap();
    client.batch_execute("BEGIN").await.unwrap();
    let mut refused = None;
    for id in 1..=80 {
        let row = format!("INSERT INTO wide VALUES ({id}, repeat('x', 1000000))");
        if let Err(e) = client.batch_execute(&row).await {
            refused = Some((id, e));
            break;
        }
    }
    let (id, error) = refused.expect("80 MB do not fit");
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "54000", "{error}");
    assert!(error.message().contains("67108864"), "it names the limit: {error}");
    assert!(id > 60, "64 MiB fit: {id}");
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(count(&client, "wide").await, 1);
    client.batch_execute("INSERT INTO wide VALUES (1, 'works')").await.unwrap();
}

#[tokio::test]
async fn a_hundred_shards_in_one_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let client = server.connect().await;
    client.batch_execute("CREATE TABLE many (id int PRIMARY KEY, v int NOT NULL)").await.unwrap();
    client.batch_execute("INSERT INTO many SELECT g, 0 FROM generate_series(0, 99) g").await.unwrap();
    let cuts: Vec<_> = (1..100).map(|id| format!("({id})")).collect();
    client.batch_execute(&format!("ALTER TABLE many SPLIT AT VALUES {}", cuts.join(", "))).await.unwrap();
    let shards = client.query("SHOW SHARDS FROM TABLE many", &[]).await.unwrap();
    assert_eq!(shards.len(), 100);
    for round in 1..=3 {
        assert_eq!(client.execute("UPDATE many SET v = v + 1", &[]).await.unwrap(), 100);
        let sums = client.query_one("SELECT min(v), max(v) FROM many", &[]).await.unwrap();
        assert_eq!((sums.get::<_, i32>(0), sums.get::<_, i32>(1)), (round, round));
    }
    // Killed with the update under way: all of it, or nothing.
    let update = tokio::spawn(async move { client.execute("UPDATE many SET v = v + 1", &[]).await.is_ok() });
    tokio::task::yield_now().await;
    server.kill();
    let acknowledged = update.await.unwrap();
    let server = Server::start(dir.path());
    let client = server.connect().await;
    let sums = client.query_one("SELECT min(v), max(v) FROM many", &[]).await.unwrap();
    let (min, max): (i32, i32) = (sums.get(0), sums.get(1));
    assert!(min == max && (min == 4 || (min == 3 && !acknowledged)), "{min} {max} {acknowledged}");
}
