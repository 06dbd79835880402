//! ALTER DATABASE .. SET: defaults for every session.

use super::*;

#[tokio::test]
async fn sessions_begin_with_the_defaults_of_the_database() {
    let db = database();
    let mut a = Client::new(&db).await;
    let name = db.name().to_string();
    a.ok(&format!("alter database {name} set transaction_consistency = 'external'")).await;
    a.ok(&format!("ALTER DATABASE {name} SET lock_timeout TO '3s'")).await;
    // Who runs keeps what it has; who begins has the new one, and RESET goes back to it.
    assert!(a.run("show transaction_consistency").await.contains("causal"));
    let mut b = Client::new(&db).await;
    assert!(b.run("show transaction_consistency").await.contains("external"));
    b.ok("set transaction_consistency = 'causal'; reset transaction_consistency").await;
    assert!(b.run("show transaction_consistency").await.contains("external"));
    // Part of its transaction.
    a.ok(&format!("begin; alter database {name} reset transaction_consistency; rollback")).await;
    assert!(Client::new(&db).await.run("show transaction_consistency").await.contains("external"));
    a.ok(&format!("alter database {name} set transaction_consistency to default")).await;
    let mut c = Client::new(&db).await;
    assert!(c.run("show transaction_consistency").await.contains("causal"));
    assert!(c.run("show lock_timeout").await.contains("3s"));
    a.ok(&format!("alter database {name} reset all")).await;
    assert!(!Client::new(&db).await.run("show lock_timeout").await.contains("3s"));
    // What is refused.
    assert!(
        a.run(&format!("alter database {name} set transaction_consistency = 'weak'")).await.contains("22023")
    );
    assert!(a.run(&format!("alter database {name} set nothing_such = 1")).await.contains("42704"));
    assert!(a.run("alter database other set lock_timeout = 1").await.contains("3D000"));
    assert!(a.run(&format!("alter database {name} rename to x")).await.contains("0A000"));
}
