//! A database inside a program: `cargo run --example embedded`.

use isochrone::{Database, params};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let db = Database::open(dir.path()).await?;
    db.execute(
        "CREATE TABLE accounts (id int PRIMARY KEY, owner text NOT NULL, balance bigint NOT NULL)",
        &[],
    )
    .await?;
    db.execute("INSERT INTO accounts VALUES (1, $1, 100), (2, $2, 0)", params!["ada", "grace"]).await?;

    let mut transfer = db.begin().await?;
    transfer.execute("UPDATE accounts SET balance = balance - $1 WHERE id = 1", params![30i64]).await?;
    transfer.execute("UPDATE accounts SET balance = balance + $1 WHERE id = 2", params![30i64]).await?;
    transfer.commit().await?;

    for row in db.query("SELECT owner, balance FROM accounts ORDER BY id", &[]).await? {
        println!("{:<8} {:>4}", row.get::<String>(0)?, row.get::<i64>(1)?);
    }
    db.close().await
}
