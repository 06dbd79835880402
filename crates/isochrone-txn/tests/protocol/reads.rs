//! Reads at a timestamp (R8), reads that nothing moves, external consistency (R24).

use std::sync::Arc;
use std::time::Duration;

use isochrone_base::{Bytes, KeyRange, Timestamp, bank};
use isochrone_env::fake::TokioClock;
use isochrone_env::{Clock, ClockReading};
use isochrone_txn::Config;
use isochrone_txn::kv::{ClockWaits, Error, Isolation, KvTxn, Lock, ScanOptions, Snapshot, TxnOptions};
use tokio::time::Instant;

use crate::net::{Kind, Node, WALL_US, World, node, node_with_clock};

const ERROR_US: u64 = 100_000;

/// A clock that is off, inside its bound.
struct Off(TokioClock, i64);

impl Clock for Off {
    fn wall(&self) -> ClockReading {
        ClockReading { now_us: self.0.wall().now_us.saturating_add_signed(self.1), error_us: ERROR_US }
    }

    fn monotonic_ns(&self) -> u64 {
        self.0.monotonic_ns()
    }
}

fn off_by(world: &Arc<World>, seed: u64, off_us: i64) -> Node {
    let clock = Off(TokioClock::new(WALL_US), off_us);
    node_with_clock(world, seed, Config::default(), Arc::new(clock))
}

fn external(node: &Node) -> (Box<dyn KvTxn>, ClockWaits) {
    let waits = ClockWaits::default();
    let options = TxnOptions { external: Some(waits.clone()), ..TxnOptions::default() };
    (node.coordinator.begin(options), waits)
}

fn at(node: &Node, ts: Timestamp, isolation: Isolation) -> Box<dyn KvTxn> {
    node.coordinator.begin(TxnOptions { snapshot: Snapshot::At(ts), isolation, ..TxnOptions::default() })
}

async fn get(txn: &mut Box<dyn KvTxn>, key: &[u8]) -> Option<String> {
    let value = txn.get(key, Lock::None).await.unwrap();
    value.map(|v| String::from_utf8(v.to_vec()).unwrap())
}

async fn write(node: &Node, key: &[u8], value: &'static str) -> Timestamp {
    let mut txn = node.coordinator.begin(TxnOptions::default());
    txn.put(key.to_vec(), Some(Bytes::from(value))).unwrap();
    txn.commit().await.unwrap()
}

fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "virtual time of a paused runtime")]
    Instant::now()
}

/// R8: one timestamp for all reads, at every level; no writes, no locks, nothing to validate, whatever happens meanwhile.
#[tokio::test(start_paused = true)]
async fn r8_a_snapshot_at_a_timestamp_stays() {
    let world = World::new(&[b"m"]);
    let writer = node(&world, 1, Config::default());
    let reader = node(&world, 2, Config { uncertainty: Duration::from_millis(500), ..Config::default() });
    write(&writer, b"a", "1").await;
    let then = write(&writer, b"z", "1").await;
    write(&writer, b"z", "2").await;
    for isolation in [Isolation::Serializable, Isolation::RepeatableRead, Isolation::ReadCommitted] {
        world.forget_trace();
        let mut txn = at(&reader, then, isolation);
        assert_eq!(get(&mut txn, b"z").await.as_deref(), Some("1"));
        write(&writer, b"a", "2").await;
        txn.begin_statement();
        let page = txn.scan(&KeyRange::all(), ScanOptions { reverse: false, rows_max: 10 }).await.unwrap();
        assert_eq!(page.rows.len(), 1, "the scan ends with the shard");
        assert_eq!(txn.read_ts(), then);
        assert_eq!(txn.put(b"a".to_vec(), None), Err(Error::ReadOnly));
        assert_eq!(txn.get(b"b", Lock::Exclusive).await, Err(Error::ReadOnly));
        assert_eq!(txn.commit().await, Ok(then));
        assert!(world.sent(Kind::Get).iter().all(|m| m.ts == then));
        assert!(world.kinds().iter().all(|k| matches!(k, Kind::Get | Kind::Scan | Kind::Commit1)));
        let mut txn = at(&reader, then, isolation);
        assert_eq!(get(&mut txn, b"a").await.as_deref(), Some("1"));
        write(&writer, b"a", "1").await;
        world.state().rows.get_mut(b"a".as_slice()).unwrap().truncate(1);
    }
    let future = writer.clock.latest().plus_micros(1_000_000);
    let mut txn = at(&reader, future, Isolation::Serializable);
    assert!(matches!(txn.get(b"a", Lock::None).await, Err(Error::Internal(_))));
}

/// READ ONLY DEFERRABLE: the first read waits until nothing can move the snapshot, and nothing does.
#[tokio::test(start_paused = true)]
async fn a_settled_snapshot_waits_and_is_never_moved() {
    let world = World::new(&[]);
    let writer = node(&world, 1, Config::default());
    let reader = node(&world, 2, Config { uncertainty: Duration::from_millis(500), ..Config::default() });
    let mut txn =
        reader.coordinator.begin(TxnOptions { snapshot: Snapshot::Settled, ..TxnOptions::default() });
    tokio::time::advance(Duration::from_millis(10)).await;
    let c = write(&writer, b"k", "1").await;
    let began = now();
    assert_eq!(get(&mut txn, b"k").await.as_deref(), Some("1"), "inside the window of who begins now");
    assert!(began.elapsed() >= Duration::from_millis(490), "{:?}", began.elapsed());
    let ts = txn.read_ts();
    assert!(ts > c);
    write(&writer, b"k", "2").await;
    write(&writer, b"l", "2").await;
    let began = now();
    assert_eq!(get(&mut txn, b"l").await, None);
    assert_eq!(get(&mut txn, b"k").await.as_deref(), Some("1"));
    assert_eq!((txn.read_ts(), began.elapsed()), (ts, Duration::ZERO));
    assert_eq!(txn.put(b"k".to_vec(), None), Err(Error::ReadOnly));
    txn.commit().await.unwrap();
    world.assert_clean();
}

/// R24, writers: C is at or above `latest`, and COMMIT is answered when `earliest` is above it; the rounds are part of the
/// wait.
#[tokio::test(start_paused = true)]
async fn r24_writers_wait() {
    for keys in [&[b"a".as_slice()][..], &[b"a".as_slice(), b"z".as_slice()][..]] {
        let world = World::new(&[b"m"]);
        let n = off_by(&world, 1, 0);
        let (mut txn, waits) = external(&n);
        for key in keys {
            txn.put(key.to_vec(), Some(Bytes::from("1"))).unwrap();
        }
        let (began, latest) = (now(), n.clock.latest());
        let c = txn.commit().await.unwrap();
        assert!(c >= latest && n.clock.earliest() > c);
        let waited = began.elapsed();
        assert!((200..210).contains(&waited.as_millis()), "{waited:?}");
        assert!(waits.commit_us() >= 200_000 && waits.reads_us() == 0);
        // R25, and R24 for its next reads: above c, and c is past already.
        let (mut next, waits) = external(&n);
        assert!(next.read_ts() > c);
        assert_eq!(get(&mut next, keys[0]).await.as_deref(), Some("1"));
        assert_eq!(waits.reads_us(), 0, "what was acknowledged costs readers nothing");
        assert!(world.state().locks.is_empty());
        world.assert_clean();
    }
}

/// R24, readers. Mistake: "External: writers wait, readers do not" (value seen, then unseen, on another node).
#[tokio::test(start_paused = true)]
async fn r24_readers_wait() {
    for mistaken in [false, true] {
        let world = World::new(&[]);
        // Two clocks that are ahead, one that is behind.
        let (writer, quick, slow) =
            (off_by(&world, 1, 90_000), off_by(&world, 2, 90_000), off_by(&world, 3, -90_000));
        let (mut txn, _) = external(&writer);
        txn.put(b"k".to_vec(), Some(Bytes::from("1"))).unwrap();
        let commit = tokio::spawn(txn.commit());
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!commit.is_finished() && world.sent(Kind::Commit1).len() == 1);
        if mistaken {
            bank::put_back(bank::BUGS.iter().find(|b| b.name == "external-readers-do-not-wait"));
        }
        // The writer has not been answered yet, and its value is seen.
        let (mut first, waits) = external(&quick);
        assert_eq!(get(&mut first, b"k").await.as_deref(), Some("1"));
        let page = first.scan(&KeyRange::all(), ScanOptions { reverse: false, rows_max: 10 }).await.unwrap();
        assert_eq!(page.rows.len(), 1);
        assert_eq!(waits.reads_us() > 0, !mistaken);
        // Who begins after that answer sees it, too, wherever.
        let (mut second, _) = external(&slow);
        assert_eq!(get(&mut second, b"k").await.is_some(), !mistaken);
        bank::put_back(None);
        commit.await.unwrap().unwrap();
        world.assert_clean();
    }
}

/// R24 at READ COMMITTED: each statement reads above everything acknowledged before it.
#[tokio::test(start_paused = true)]
async fn r24_statements_of_read_committed() {
    let world = World::new(&[]);
    let (ahead, behind) = (off_by(&world, 1, 90_000), off_by(&world, 2, -90_000));
    let options = TxnOptions {
        isolation: Isolation::ReadCommitted,
        external: Some(ClockWaits::default()),
        ..TxnOptions::default()
    };
    let mut txn = behind.coordinator.begin(options);
    assert_eq!(get(&mut txn, b"k").await, None);
    let (mut w, _) = external(&ahead);
    w.put(b"k".to_vec(), Some(Bytes::from("1"))).unwrap();
    w.commit().await.unwrap();
    txn.begin_statement();
    assert_eq!(get(&mut txn, b"k").await.as_deref(), Some("1"));
    assert_eq!(txn.get(b"k", Lock::Exclusive).await.unwrap().unwrap().as_ref(), b"1");
    txn.put(b"k".to_vec(), Some(Bytes::from("2"))).unwrap();
    txn.commit().await.unwrap();
    world.assert_clean();
}
