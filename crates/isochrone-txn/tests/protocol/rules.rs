//! One test for each rule that coordinator and recovery keep, and for each mistake of section 13 that they could make
//! (named in the test's comment as "Mistake: ..").

use std::sync::Arc;
use std::time::Duration;

use isochrone_base::{Bytes, KeyRange, Timestamp};
use isochrone_env::fake::TokioClock;
use isochrone_env::{Clock, ClockReading};
use isochrone_shard::api::{self, AnchorReply, Decision, Mode, Prepared, Record, Suspect};
use isochrone_txn::Config;
use isochrone_txn::kv::{Error, Isolation, KvTxn, Lock, ScanOptions, TxnOptions};
use isochrone_txn::recovery::Outcome;
use tokio::sync::Notify;

use crate::net::{Action, Kind, Node, Reply, WALL_US, World, node, node_with_clock};

const FORWARD: ScanOptions = ScanOptions { reverse: false, rows_max: 100 };

fn begin(node: &Node, isolation: Isolation) -> Box<dyn KvTxn> {
    node.coordinator.begin(TxnOptions { isolation, ..TxnOptions::default() })
}

fn serializable(node: &Node) -> Box<dyn KvTxn> {
    begin(node, Isolation::Serializable)
}

fn put(txn: &mut Box<dyn KvTxn>, key: &[u8], value: &str) {
    txn.put(key.to_vec(), Some(Bytes::copy_from_slice(value.as_bytes()))).unwrap();
}

async fn get(txn: &mut Box<dyn KvTxn>, key: &[u8]) -> Result<Option<String>, Error> {
    Ok(txn.get(key, Lock::None).await?.map(|v| String::from_utf8(v.to_vec()).unwrap()))
}

async fn write(node: &Node, pairs: &[(&[u8], &str)]) -> Timestamp {
    let mut txn = serializable(node);
    for (k, v) in pairs {
        put(&mut txn, k, v);
    }
    let c = txn.commit().await.unwrap();
    settle().await;
    c
}

/// Lets background work run until everything waits for time.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

fn setup(cuts: &[&[u8]]) -> (Arc<World>, Node) {
    let world = World::new(cuts);
    let n = node(&world, 1, Config::default());
    (world, n)
}

fn is_serialization<T: std::fmt::Debug>(r: Result<T, Error>) -> bool {
    matches!(r, Err(Error::Serialization(_)))
}

fn suspect_of(world: &World) -> Suspect {
    let state = world.state();
    let (txn, piece, _) = state.prepares.values().next().expect("a prepare is there");
    state.suspect(*txn, *piece).unwrap()
}

// ---------------------------------------------------------------------------------------------------- reading

/// R5. Mistake: stale read after COMMIT was reported (no window).
#[tokio::test(start_paused = true)]
async fn r5_a_version_in_the_window_moves_the_snapshot_up() {
    let world = World::new(&[]);
    let writer = node(&world, 1, Config::default());
    let reader = node(&world, 2, Config { uncertainty: Duration::from_millis(500), ..Config::default() });
    let mut ser = serializable(&reader);
    let mut stale = begin(&reader, Isolation::RepeatableRead);
    let mut rc = begin(&reader, Isolation::ReadCommitted);
    assert_eq!(get(&mut ser, b"a").await, Ok(None));
    assert_eq!(get(&mut stale, b"k").await, Ok(None));
    tokio::time::advance(Duration::from_millis(10)).await;
    let c = write(&writer, &[(b"k", "new")]).await;
    rc.begin_statement();
    assert_eq!(get(&mut rc, b"k").await.unwrap().as_deref(), Some("new"));
    // What was read before is validated up to the new T: `a` is unchanged, `k` is not.
    assert_eq!(get(&mut ser, b"k").await.unwrap().as_deref(), Some("new"));
    assert!(ser.read_ts() >= c);
    let validated = world.sent(Kind::Validate);
    assert_eq!(validated[0].spans.len(), 1);
    assert_eq!(validated[0].spans[0].range, KeyRange::point(b"a"));
    assert!(validated[0].ts >= c);
    assert!(is_serialization(get(&mut stale, b"k").await));
    assert!(is_serialization(stale.commit().await));
    world.assert_clean();
}

/// R5: attempts at one statement share the window of the first, so that somebody who reads a hot row gets past it. What was
/// acknowledged before the first began is seen all the same.
#[tokio::test(start_paused = true)]
async fn r5_later_attempts_keep_to_the_window_of_the_first() {
    let world = World::new(&[]);
    let writer = node(&world, 1, Config::default());
    let reader = node(&world, 2, Config { uncertainty: Duration::from_millis(500), ..Config::default() });
    write(&writer, &[(b"k", "before")]).await;
    let first = serializable(&reader);
    let window_end = first.uncertain_to();
    assert!(window_end > first.read_ts());
    first.rollback();
    tokio::time::advance(Duration::from_millis(600)).await;
    // Without the cap a version that comes now counts as one that may have been acknowledged before.
    for (capped, written, seen) in [(false, "one", "one"), (true, "two", "one")] {
        let mut txn = serializable(&reader);
        let began = txn.read_ts();
        if capped {
            txn.cap_uncertainty(window_end);
        }
        tokio::time::advance(Duration::from_millis(10)).await;
        write(&writer, &[(b"k", written)]).await;
        let got = get(&mut txn, b"k").await.unwrap();
        assert_eq!((got.as_deref(), txn.read_ts() > began), (Some(seen), !capped));
    }
    world.assert_clean();
}

/// R5. Mistake: uncertainty window looks at versions only, not prepares. The transaction is reported as committed while
/// its prepares still stand.
#[tokio::test(start_paused = true)]
async fn r5_a_prepare_in_the_window_counts() {
    let world = World::new(&[b"m"]);
    let writer = node(&world, 1, Config::default());
    let reader = node(&world, 2, Config { uncertainty: Duration::from_millis(500), ..Config::default() });
    let mut txn = serializable(&reader);
    tokio::time::advance(Duration::from_millis(10)).await;
    let gate = Arc::new(Notify::new());
    world.script(Kind::Decide, None, 1, Action::Hold(gate.clone()));
    let mut w = serializable(&writer);
    put(&mut w, b"a", "1");
    put(&mut w, b"z", "1");
    let c = w.commit().await.unwrap();
    let read = tokio::spawn(async move {
        let got = get(&mut txn, b"z").await;
        (got, txn.read_ts())
    });
    settle().await;
    gate.notify_one();
    let (got, ts) = read.await.unwrap();
    assert_eq!(got.unwrap().as_deref(), Some("1"));
    assert!(ts >= c);
    world.assert_clean();
}

/// R5, last sentence: a lock that waited moves T up, and what was read before must be unchanged.
#[tokio::test(start_paused = true)]
async fn r5_a_lock_that_waited_moves_up() {
    let (world, n) = setup(&[]);
    write(&n, &[(b"k", "0"), (b"other", "0")]).await;
    for (isolation, read_before, ok) in [
        (Isolation::Serializable, false, true),
        (Isolation::Serializable, true, false),
        (Isolation::RepeatableRead, true, false),
        (Isolation::ReadCommitted, true, true),
    ] {
        let mut holder = begin(&n, Isolation::ReadCommitted);
        holder.get(b"k", Lock::Exclusive).await.unwrap();
        let mut waiter = begin(&n, isolation);
        assert_eq!(get(&mut waiter, b"other").await.unwrap().as_deref(), Some("0"));
        if read_before {
            get(&mut waiter, b"k").await.unwrap();
        }
        let task = tokio::spawn(async move {
            let got = waiter.get(b"k", Lock::Exclusive).await;
            (waiter, got)
        });
        settle().await;
        put(&mut holder, b"k", "1");
        let c = holder.commit().await.unwrap();
        let (mut waiter, got) = task.await.unwrap();
        assert_eq!(got.is_ok(), ok, "{isolation:?} {read_before}: {got:?}");
        if ok {
            assert_eq!(got.unwrap().unwrap().as_ref(), b"1");
            put(&mut waiter, b"k", "0");
            assert!(waiter.commit().await.unwrap() > c);
        } else {
            drop(waiter);
            write(&n, &[(b"k", "0")]).await;
        }
        assert!(world.state().locks.is_empty());
    }
    world.assert_clean();
}

/// A row that changed since the snapshot and is locked without waiting also moves T up.
#[tokio::test(start_paused = true)]
async fn r5_a_lock_on_a_newer_row_moves_up() {
    let (world, n) = setup(&[]);
    let mut txn = begin(&n, Isolation::RepeatableRead);
    let c = write(&n, &[(b"k", "new")]).await;
    assert_eq!(txn.get(b"k", Lock::Exclusive).await.unwrap().unwrap().as_ref(), b"new");
    assert!(txn.read_ts() > c);
    world.assert_clean();
}

/// R7: own writes overlay what is read, also in pages and backwards; after a rollback to a savepoint they are gone.
#[tokio::test(start_paused = true)]
async fn r7_own_writes_are_seen() {
    let (world, n) = setup(&[b"c"]);
    write(&n, &[(b"a", "a"), (b"b", "b"), (b"d", "d")]).await;
    let mut txn = serializable(&n);
    txn.put(b"b".to_vec(), None).unwrap();
    let savepoint = txn.savepoint();
    put(&mut txn, b"c", "mine");
    put(&mut txn, b"d", "mine");
    assert_eq!(get(&mut txn, b"b").await, Ok(None));
    assert_eq!(get(&mut txn, b"d").await.unwrap().as_deref(), Some("mine"));
    for reverse in [false, true] {
        let mut keys = Vec::new();
        let mut rest = Some(KeyRange::all());
        while let Some(range) = rest {
            let page = txn.scan(&range, ScanOptions { reverse, rows_max: 1 }).await.unwrap();
            keys.extend(page.rows.iter().map(|(k, v)| [k.as_ref(), b"=", v.as_ref()].concat()));
            rest = page.rest;
        }
        let mut want = vec![b"a=a".to_vec(), b"c=mine".to_vec(), b"d=mine".to_vec()];
        if reverse {
            want.reverse();
        }
        assert_eq!(keys, want);
    }
    txn.rollback_to(savepoint);
    assert_eq!(txn.scan(&KeyRange::all(), FORWARD).await.unwrap().rows.len(), 1);
    assert_eq!(get(&mut txn, b"d").await.unwrap().as_deref(), Some("d"));
    txn.commit().await.unwrap();
    world.assert_clean();
}

/// R7: a read that is abandoned stays in V.
#[tokio::test(start_paused = true)]
async fn r7_an_abandoned_read_is_validated() {
    let (world, n) = setup(&[]);
    let mut txn = serializable(&n);
    let gate = Arc::new(Notify::new());
    world.script(Kind::Get, None, 1, Action::Hold(gate));
    tokio::select! {
        biased;
        _ = txn.get(b"k", Lock::None) => unreachable!("held"),
        () = settle() => {}
    }
    write(&n, &[(b"k", "1")]).await;
    put(&mut txn, b"x", "1");
    assert!(is_serialization(txn.commit().await));
    world.assert_clean();
}

/// R8: without writes and locks nothing is sent; locked rows are validated.
#[tokio::test(start_paused = true)]
async fn r8_read_only_transactions() {
    let (world, n) = setup(&[]);
    write(&n, &[(b"k", "1")]).await;
    let mut txn = serializable(&n);
    get(&mut txn, b"k").await.unwrap();
    world.forget_trace();
    txn.commit().await.unwrap();
    assert_eq!(world.kinds(), []);

    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        for changed in [false, true] {
            let mut txn = begin(&n, isolation);
            txn.get(b"k", Lock::Exclusive).await.unwrap();
            // The lock is lost with its leaseholder: memory proves nothing.
            world.state().locks.clear();
            if changed {
                write(&n, &[(b"k", "2")]).await;
            }
            world.forget_trace();
            let got = txn.commit().await;
            assert_eq!(world.kinds(), [Kind::Validate]);
            assert_eq!(is_serialization(got), changed);
        }
    }
    let mut txn = n.coordinator.begin(TxnOptions { read_only: true, ..TxnOptions::default() });
    assert_eq!(txn.put(b"k".to_vec(), None), Err(Error::ReadOnly));
    assert_eq!(txn.get(b"k", Lock::Exclusive).await, Err(Error::ReadOnly));
    assert_eq!(get(&mut txn, b"k").await.unwrap().as_deref(), Some("2"));
    txn.commit().await.unwrap();
    world.assert_clean();
}

// -------------------------------------------------------------------------------------------------- preparing

/// R9. Mistake: only-read shards validated after prepares left (write skew).
#[tokio::test(start_paused = true)]
async fn r9_only_read_shards_are_validated_first() {
    let (world, n) = setup(&[b"h", b"p"]);
    let mut txn = serializable(&n);
    get(&mut txn, b"z").await.unwrap();
    put(&mut txn, b"a", "1");
    put(&mut txn, b"h", "1");
    world.forget_trace();
    txn.commit().await.unwrap();
    let kinds = world.kinds();
    assert_eq!(kinds[..3], [Kind::Validate, Kind::Prepare, Kind::Prepare]);
    let prepares = world.sent(Kind::Prepare);
    assert_eq!(world.sent(Kind::Validate)[0].ts, prepares[0].body.as_ref().unwrap().candidate);
    settle().await;

    // A failed step 2 is an ABORT at once: no prepare leaves.
    let mut txn = serializable(&n);
    get(&mut txn, b"z").await.unwrap();
    write(&n, &[(b"z", "changed")]).await;
    put(&mut txn, b"a", "2");
    put(&mut txn, b"h", "2");
    world.forget_trace();
    assert!(is_serialization(txn.commit().await));
    assert_eq!(world.kinds(), [Kind::Validate]);

    // And an unreachable one: nothing was committed, and that is certain.
    let mut txn = serializable(&n);
    get(&mut txn, b"z").await.unwrap();
    put(&mut txn, b"a", "3");
    put(&mut txn, b"h", "3");
    world.forget_trace();
    world.script(Kind::Validate, None, 1_000, Action::Lose);
    assert!(matches!(txn.commit().await, Err(Error::Unavailable(_))));
    assert!(world.kinds().iter().all(|k| *k == Kind::Validate));
    assert!(world.kinds().len() <= Config::default().attempts_max as usize);
    world.assert_clean();
}

/// Section 1, V with SKIP LOCKED: the returned rows, not the gaps and the skipped ones. Who does not want to wait hears so
/// at once, and what is gone is given back.
#[tokio::test(start_paused = true)]
async fn r9_skip_locked_validates_what_it_returns() {
    let (world, n) = setup(&[b"m"]);
    write(&n, &[(b"a", "1"), (b"b", "1"), (b"c", "1"), (b"z", "1")]).await;
    let mut holder = serializable(&n);
    holder.get(b"a", Lock::Exclusive).await.unwrap();
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        let mut txn = begin(&n, isolation);
        let range = KeyRange::new(*b"a", *b"y");
        let options = ScanOptions { reverse: false, rows_max: 100 };
        let page = txn.peek_scan(&range, options).await.unwrap();
        assert!(page.rows.len() >= 3);
        assert!(txn.peek(b"z").await.unwrap().is_some());
        assert_eq!(txn.try_get(b"a", Lock::Exclusive).await, Err(Error::LockTimeout(Duration::ZERO)));
        assert_eq!(txn.try_get(b"nothing", Lock::Exclusive).await, Ok(None));
        assert!(!world.state().locks.contains_key(b"nothing".as_slice()));
        assert!(txn.try_get(b"b", Lock::Exclusive).await.unwrap().is_some());
        // Everything but what was returned changes meanwhile.
        write(&n, &[(b"c", "2"), (b"d", "2"), (b"nothing", "2"), (b"z", "2")]).await;
        let mut gone = serializable(&n);
        put(&mut gone, b"nothing", "");
        gone.put(b"nothing".to_vec(), None).unwrap();
        gone.commit().await.unwrap();
        settle().await;
        put(&mut txn, b"q", "1");
        world.forget_trace();
        txn.commit().await.unwrap_or_else(|e| panic!("{isolation:?}: {e}"));
        settle().await;
        let mut validated = Vec::new();
        for kind in [Kind::Commit1, Kind::Validate] {
            for sent in world.sent(kind) {
                validated.extend(sent.body.iter().flat_map(|p| p.validate.iter().map(|s| s.range.clone())));
            }
        }
        assert!(validated.iter().all(|r| *r == KeyRange::point(b"b")), "{validated:?}");
    }
    // What is returned counts.
    let mut txn = begin(&n, Isolation::ReadCommitted);
    txn.try_get(b"b", Lock::Exclusive).await.unwrap();
    world.state().locks.clear();
    write(&n, &[(b"b", "9")]).await;
    put(&mut txn, b"q", "2");
    assert!(is_serialization(txn.commit().await));
    drop(holder);
}

/// Section 1, W and V. Mistakes: row read and written not validated (lock trusted); at-max although locked-only rows
/// must hold; anchor is not a participant.
#[tokio::test(start_paused = true)]
async fn r9_what_is_written_what_is_validated_and_the_mode() {
    let (world, n) = setup(&[b"m"]);
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        // Pure read-modify-write by key: at-max, and every write says what it has seen.
        let mut txn = begin(&n, isolation);
        for key in [b"a", b"z"] {
            txn.get(key, Lock::Exclusive).await.unwrap();
            put(&mut txn, key, "1");
        }
        put(&mut txn, b"blind", "1");
        world.forget_trace();
        txn.commit().await.unwrap();
        settle().await;
        for sent in world.sent(Kind::Prepare) {
            let piece = sent.body.unwrap();
            assert_eq!(piece.mode, Mode::AtMax);
            assert!(piece.validate.is_empty());
            assert!(piece.pieces.iter().any(|p| p.piece == piece.anchor));
            assert_eq!(piece.pieces.len(), 2);
            for w in piece.writes {
                assert_eq!(w.seen.is_none(), w.key == b"blind", "{:?}", w.key);
            }
        }

        // A row that is locked and not written holds at every level; one that is only read, at SERIALIZABLE.
        let mut txn = begin(&n, isolation);
        txn.get(b"locked", Lock::Exclusive).await.unwrap();
        get(&mut txn, b"read").await.unwrap();
        put(&mut txn, b"a", "2");
        put(&mut txn, b"z", "2");
        world.forget_trace();
        txn.commit().await.unwrap();
        settle().await;
        let pieces: Vec<_> = world.sent(Kind::Prepare).into_iter().map(|s| s.body.unwrap()).collect();
        assert!(pieces.iter().all(|p| p.mode == Mode::AtCandidate));
        let mut spans: Vec<_> =
            pieces.iter().flat_map(|p| p.validate.iter().map(|s| s.range.clone())).collect();
        spans.sort();
        let mut want = vec![KeyRange::point(b"locked"), KeyRange::point(b"read")];
        want.truncate(if isolation == Isolation::Serializable { 2 } else { 1 });
        assert_eq!(spans, want);
    }
    world.assert_clean();
}

/// R11.5. Mistakes: row read and written not validated; snapshot isolation pushes over a newer version (lost update).
#[tokio::test(start_paused = true)]
async fn r11_first_committer_wins_at_every_level() {
    let (world, n) = setup(&[b"m"]);
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        for locked in [false, true] {
            let mut txn = begin(&n, isolation);
            let lock = if locked { Lock::Exclusive } else { Lock::None };
            txn.get(b"z", lock).await.unwrap();
            world.state().locks.clear();
            write(&n, &[(b"z", "theirs")]).await;
            put(&mut txn, b"a", "mine");
            put(&mut txn, b"z", "mine");
            assert!(is_serialization(txn.commit().await), "{isolation:?}");
            settle().await;
            assert!(world.state().prepares.is_empty());
        }
    }
    assert_eq!(world.value(b"a"), None);
    world.assert_clean();
}

/// SERIALIZABLE forbids write skew, REPEATABLE READ allows it; phantoms count.
#[tokio::test(start_paused = true)]
async fn serializable_validates_spans() {
    for cuts in [&[][..], &[b"m".as_slice()][..]] {
        for (isolation, ok) in [(Isolation::Serializable, false), (Isolation::RepeatableRead, true)] {
            let (world, n) = setup(cuts);
            let (mut a, mut b) = (begin(&n, isolation), begin(&n, isolation));
            assert!(a.scan(&KeyRange::all(), FORWARD).await.unwrap().rows.is_empty());
            assert!(b.scan(&KeyRange::all(), FORWARD).await.unwrap().rows.is_empty());
            put(&mut a, b"a", "1");
            put(&mut b, b"z", "1");
            a.commit().await.unwrap();
            assert_eq!(b.commit().await.is_ok(), ok, "{isolation:?} {cuts:?}");
            world.assert_clean();
        }
    }
}

/// R12. Mistake: refusal without record reported as ABORT (also for commit1): a second copy commits.
#[tokio::test(start_paused = true)]
async fn r12_an_unrecorded_refusal_is_no_abort() {
    for keys in [&[b"a".as_slice()][..], &[b"a".as_slice(), b"z".as_slice()][..]] {
        let (world, n) = setup(&[b"m"]);
        world.state().unrecorded_refusals = true;
        let kind = if keys.len() == 1 { Kind::Commit1 } else { Kind::Prepare };
        let gate = Arc::new(Notify::new());
        // The first copy is under way when the second one is refused without a record.
        world.script(kind, Some(0), 1, Action::Late(gate.clone()));
        let refusal = Reply::Prepared(Err(api::Error::Conflict("busy".to_string())));
        world.script(kind, Some(0), 1, Action::Answer(refusal));
        let mut txn = serializable(&n);
        for key in keys {
            put(&mut txn, key, "1");
        }
        let got = txn.commit().await;
        assert!(is_serialization(got));
        let decides = world.sent(Kind::Decide);
        assert_eq!(decides[0].decision, Some(Decision::Abort));
        gate.notify_one();
        settle().await;
        assert_eq!((world.value(b"a"), world.state().prepares.len()), (None, 0));
        world.assert_clean();
    }
}

/// The same, and the first copy has committed: then COMMIT is what the client hears.
#[tokio::test(start_paused = true)]
async fn r12_r19_the_anchor_knows_better_than_a_refusal() {
    let (world, n) = setup(&[]);
    world.script(Kind::Commit1, None, 1, Action::LoseAnswer);
    let refusal = Reply::Prepared(Err(api::Error::Conflict("busy".to_string())));
    world.script(Kind::Commit1, None, 1, Action::Answer(refusal));
    let mut txn = serializable(&n);
    put(&mut txn, b"a", "1");
    txn.commit().await.unwrap();
    assert_eq!(world.value(b"a").as_deref(), Some("1"));
    world.assert_clean();
}

/// R13. Mistakes: commit1 pushed while other shards were validated at C; commit1's resend.
#[tokio::test(start_paused = true)]
async fn r13_commit_in_one_piece() {
    let (world, n) = setup(&[b"m"]);
    world.script(Kind::Commit1, None, 1, Action::LoseAnswer);
    let mut txn = serializable(&n);
    get(&mut txn, b"a").await.unwrap();
    get(&mut txn, b"b").await.unwrap();
    put(&mut txn, b"a", "1");
    let c = txn.commit().await.unwrap();
    assert_eq!(world.state().rows[b"a".as_slice()].len(), 1, "a resend finds the record");
    let sent = world.sent(Kind::Commit1);
    assert_eq!((sent.len(), &sent[0].body), (2, &sent[1].body));
    let piece = sent[0].body.as_ref().unwrap();
    assert!(!piece.validated_elsewhere && piece.validate.len() == 1);
    assert_eq!(world.state().rows[b"a".as_slice()][0].0, c);

    world.assert_clean();
}

/// R13, C6: pushed while other shards were validated at C. The attempt is over; the next one validates anew.
#[tokio::test(start_paused = true)]
async fn r13_a_pushed_commit_in_one_piece_is_tried_again_with_everything_validated_anew() {
    for changed in [false, true] {
        let (world, n) = setup(&[b"m"]);
        let mut txn = serializable(&n);
        get(&mut txn, b"z").await.unwrap();
        put(&mut txn, b"a", "2");
        // Somebody reads `a` in the future: the piece is pushed above C.
        let future = n.clock.now().plus_micros(1_000);
        let who = api::ReadAs { txn: isochrone_base::TxnId(9), ts: future, uncertain_to: future };
        api::ShardClient::get(&*n.net, who, b"a").await.unwrap();
        let gate = Arc::new(Notify::new());
        world.script(Kind::Commit1, None, 1, Action::Hold(gate.clone()));
        let commit = tokio::spawn(txn.commit());
        settle().await;
        if changed {
            // Above C, and below the timestamp that the next attempt gets.
            write(&n, &[(b"z", "3")]).await;
        }
        gate.notify_one();
        let result = commit.await.unwrap();
        let mut sent = world.sent(Kind::Commit1);
        sent.retain(|s| s.body.as_ref().is_some_and(|p| p.writes[0].key == b"a"));
        let (first, second) = (sent[0].body.as_ref().unwrap(), sent.get(1).and_then(|s| s.body.as_ref()));
        assert!(first.validated_elsewhere);
        if changed {
            assert!(is_serialization(result) && second.is_none(), "no prepare left twice");
        } else {
            let (c, second) = (result.unwrap(), second.unwrap());
            assert!(c > future && second.candidate == c && second.txn != first.txn);
            assert_eq!(world.state().rows[b"a".as_slice()][0].0, c);
        }
        world.assert_clean();
    }
}

/// Every attempt has an id of its own, and a piece never changes between two copies of its message.
#[tokio::test(start_paused = true)]
async fn attempts_are_never_reused_and_pieces_never_change() {
    let (world, n) = setup(&[b"m"]);
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let mut txn = serializable(&n);
        assert!(ids.insert(txn.id()));
        put(&mut txn, b"a", "1");
        put(&mut txn, b"z", "1");
        world.forget_trace();
        world.script(Kind::Prepare, Some(1), 3, Action::LoseAnswer);
        txn.commit().await.unwrap();
        let copies: Vec<_> = world.sent(Kind::Prepare).into_iter().filter(|s| s.piece == 1).collect();
        assert_eq!(copies.len(), 4);
        assert!(copies.windows(2).all(|w| w[0].body == w[1].body));
        settle().await;
    }
    world.assert_clean();
}

/// Section 11: more writes than fit one entry become more pieces, also on one shard.
#[tokio::test(start_paused = true)]
async fn big_transactions_have_more_pieces_on_one_shard() {
    let (world, n) = setup(&[]);
    let mut txn = serializable(&n);
    let value = Bytes::from(vec![1; 20 << 20]);
    for key in [b"a", b"b", b"c"] {
        txn.put(key.to_vec(), Some(value.clone())).unwrap();
    }
    assert!(matches!(txn.put(b"d".to_vec(), Some(value.clone())), Err(Error::TooLarge(_))));
    let c = txn.commit().await.unwrap();
    settle().await;
    assert_eq!(world.sent(Kind::Prepare).len(), 3);
    for key in [b"a", b"b", b"c"] {
        assert_eq!(world.state().rows[key.as_slice()][0].0, c, "T1: one c");
    }
    world.assert_clean();
}

// ------------------------------------------------------------------------------------------------- committing

/// R14: the client hears COMMIT before the anchor is told; at-max commits at the maximum, at one c everywhere.
/// Mistake: participant commits at its own p.
#[tokio::test(start_paused = true)]
async fn r14_implicit_commit_at_the_maximum() {
    let (world, n) = setup(&[b"m"]);
    let gate = Arc::new(Notify::new());
    world.script(Kind::Decide, None, 1, Action::Hold(gate.clone()));
    let future = n.clock.now().plus_micros(5_000);
    let who = api::ReadAs { txn: isochrone_base::TxnId(9), ts: future, uncertain_to: future };
    api::ShardClient::get(&*n.net, who, b"z").await.unwrap();
    let mut txn = serializable(&n);
    txn.get(b"a", Lock::Exclusive).await.unwrap();
    put(&mut txn, b"a", "1");
    put(&mut txn, b"z", "1");
    let c = txn.commit().await.unwrap();
    assert_eq!(c, future.next());
    settle().await;
    assert_eq!(world.value(b"a"), None, "the anchor was not reached yet");
    assert_eq!(
        world.sent(Kind::Resolve),
        [],
        "Mistake: commit sent to participants before the anchor decided"
    );
    assert!(!world.state().locks.is_empty(), "locks go when the outcome is applied");
    gate.notify_one();
    settle().await;
    for key in [b"a", b"z"] {
        assert_eq!(world.state().rows[key.as_slice()][0].0, c);
    }
    assert_eq!(world.sent(Kind::Acked).len(), 1);
    assert!(world.state().locks.is_empty());
    world.assert_clean();
}

async fn pushed(world: &World, n: &Node) -> Box<dyn KvTxn> {
    let future = n.clock.now().plus_micros(5_000);
    let who = api::ReadAs { txn: isochrone_base::TxnId(9), ts: future, uncertain_to: future };
    api::ShardClient::get(&*n.net, who, b"z").await.unwrap();
    let mut txn = serializable(n);
    get(&mut txn, b"a1").await.unwrap();
    get(&mut txn, b"h").await.unwrap();
    get(&mut txn, b"z1").await.unwrap();
    put(&mut txn, b"a", "1");
    put(&mut txn, b"z", "1");
    world.forget_trace();
    txn
}

/// R15. Mistakes: pushed at-candidate transaction committed without validating again; re-validation only where the
/// shard is not written.
#[tokio::test(start_paused = true)]
async fn r15_pushed_validates_all_again() {
    let (world, n) = setup(&[b"g", b"m"]);
    let txn = pushed(&world, &n).await;
    let c = txn.commit().await.unwrap();
    let at: Vec<_> = world.sent(Kind::Validate).into_iter().filter(|s| s.ts == c).collect();
    let mut keys: Vec<_> = at.iter().flat_map(|s| s.spans.iter().map(|s| s.range.start.clone())).collect();
    keys.sort();
    assert_eq!(keys, [b"a1".to_vec(), b"h".to_vec(), b"z1".to_vec()]);
    settle().await;

    // One of them changes between the prepares and the second validation.
    for key in [b"a1".as_slice(), b"h", b"z1"] {
        let txn = pushed(&world, &n).await;
        let gate = Arc::new(Notify::new());
        world.script(Kind::Prepare, Some(1), 1, Action::Hold(gate.clone()));
        let task = tokio::spawn(txn.commit());
        settle().await;
        // Above C, below the push.
        let mut other = serializable(&n);
        put(&mut other, key, "changed");
        if key == b"z1" {
            world.state().cache.retain(|r, _| !r.contains(b"z1"));
        }
        let other = other.commit().await.unwrap();
        gate.notify_one();
        let got = task.await.unwrap();
        assert!(is_serialization(got.clone()), "{key:?} changed at {other}: {got:?}");
        settle().await;
        assert!(world.state().prepares.is_empty());
    }
    world.assert_clean();
}

/// R15. Mistake: pushed transaction reported before the anchor's reply (recovery aborted it).
#[tokio::test(start_paused = true)]
async fn r15_pushed_is_answered_after_the_anchor() {
    let (world, n) = setup(&[b"g", b"m"]);
    let txn = pushed(&world, &n).await;
    let gate = Arc::new(Notify::new());
    world.script(Kind::Decide, None, 1, Action::Hold(gate.clone()));
    let task = tokio::spawn(txn.commit());
    settle().await;
    assert!(!task.is_finished());
    // Recovery is faster, and may not commit what only the coordinator can validate.
    // Mistake: recovery commits a pushed at-candidate transaction at the maximum.
    let other = node(&world, 7, Config::default());
    let outcome = other.recoverer.run(&suspect_of(&world)).await;
    assert_eq!(outcome, Ok(Outcome::Decided(Decision::Abort)));
    gate.notify_one();
    assert!(is_serialization(task.await.unwrap()));
    assert_eq!(world.value(b"a"), None);
    world.assert_clean();
}

/// R17, R21: acknowledged only when every piece is. Mistake: anchor forgets at the deadline, acks missing.
#[tokio::test(start_paused = true)]
async fn r21_acked_only_after_every_ack() {
    let (world, n) = setup(&[b"m"]);
    world.script(Kind::Resolve, Some(1), 1_000, Action::Lose);
    write(&n, &[(b"a", "1"), (b"z", "1")]).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(world.sent(Kind::Resolve).len() <= Config::default().attempts_max as usize);
    assert_eq!(world.sent(Kind::Acked), []);
    assert_eq!(world.state().prepares.len(), 1);
    // T11: recovery finishes it.
    world.heal();
    let outcome = n.recoverer.run(&suspect_of(&world)).await;
    assert!(matches!(outcome, Ok(Outcome::Decided(Decision::Commit(_)))));
    assert_eq!(world.value(b"z").as_deref(), Some("1"));
    assert_eq!(world.sent(Kind::Acked).len(), 1);
    world.assert_clean();
}

// --------------------------------------------------------------------------------------------------- recovery

/// Runs a commit of `a` and `z` whose node dies at the given message; returns the world and a healthy node.
async fn dead(kind: Kind, piece: Option<u32>, after: bool) -> (Arc<World>, Node) {
    let (world, n) = setup(&[b"m"]);
    world.script(kind, piece, 1, if after { Action::DieAfter } else { Action::Die });
    let mut txn = serializable(&n);
    put(&mut txn, b"a", "1");
    put(&mut txn, b"z", "1");
    tokio::select! {
        biased;
        _ = txn.commit() => {}
        () = n.net.death() => {}
    }
    settle().await;
    let healthy = node(&world, 2, Config::default());
    (world, healthy)
}

/// R18: whoever reads meets the prepare, and recovery decides; crash of the coordinator at each step.
#[tokio::test(start_paused = true)]
async fn r18_readers_recover_what_a_dead_coordinator_left() {
    for (kind, piece, after, committed) in [
        (Kind::Prepare, Some(0), false, false),
        (Kind::Prepare, Some(0), true, false),
        (Kind::Prepare, Some(1), false, false),
        (Kind::Prepare, Some(1), true, true),
        (Kind::Decide, None, false, true),
        (Kind::Decide, None, true, true),
        (Kind::Resolve, None, false, true),
        (Kind::Resolve, None, true, true),
        (Kind::Acked, None, false, true),
        (Kind::Acked, None, true, true),
    ] {
        let (world, healthy) = dead(kind, piece, after).await;
        world.set_recoverer(healthy.recoverer.clone());
        tokio::time::advance(Duration::from_millis(10)).await;
        let mut reader = serializable(&healthy);
        let want = committed.then(|| "1".to_string());
        assert_eq!(get(&mut reader, b"z").await, Ok(want.clone()), "{kind:?} {piece:?} {after}");
        assert_eq!(get(&mut reader, b"a").await, Ok(want));
        settle().await;
        assert!(world.state().prepares.is_empty(), "T11");
        world.assert_clean();
    }
}

/// R14 and R18 do not depend on how many pieces there are: one round, and what a dead coordinator left is finished.
#[tokio::test(start_paused = true)]
async fn a_hundred_shards_take_one_round_and_recover_like_two() {
    let keys: Vec<Vec<u8>> = (0..100).map(|i| format!("k{i:03}").into_bytes()).collect();
    let cuts: Vec<&[u8]> = keys[1..].iter().map(Vec::as_slice).collect();
    let fill = |txn: &mut Box<dyn KvTxn>| keys.iter().for_each(|key| put(txn, key, "1"));
    let all_there = |world: &World| keys.iter().all(|key| world.value(key).as_deref() == Some("1"));

    let (world, n) = setup(&cuts);
    let gate = Arc::new(Notify::new());
    world.script(Kind::Prepare, None, 100, Action::Hold(gate.clone()));
    let mut txn = serializable(&n);
    fill(&mut txn);
    let commit = tokio::spawn(txn.commit());
    settle().await;
    assert_eq!(world.sent(Kind::Prepare).len(), 100, "all are under way at once");
    gate.notify_waiters();
    commit.await.unwrap().unwrap();
    assert!(world.kinds()[..100].iter().all(|kind| *kind == Kind::Prepare));
    settle().await;
    assert!(all_there(&world) && world.state().prepares.is_empty());
    world.assert_clean();

    let (world, n) = setup(&cuts);
    world.script(Kind::Decide, None, 1, Action::Die);
    let mut txn = serializable(&n);
    fill(&mut txn);
    drop(tokio::spawn(txn.commit()));
    n.net.death().await;
    let healthy = node(&world, 2, Config::default());
    world.set_recoverer(healthy.recoverer.clone());
    tokio::time::advance(Duration::from_millis(10)).await;
    let mut reader = serializable(&healthy);
    assert_eq!(get(&mut reader, &keys[50]).await.unwrap().as_deref(), Some("1"), "it was committed");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(all_there(&world) && world.state().prepares.is_empty(), "T11");
    world.assert_clean();
}

/// R18. Mistakes: absence read as abort without blocking; recovery reads "anchor has no record" as abort before the
/// floor. The coordinator's prepare to the anchor is late, recovery comes first: its probe blocks, and the prepare fails.
#[tokio::test(start_paused = true)]
async fn r18_absence_is_blocked_before_it_is_an_abort() {
    let (world, n) = setup(&[b"m"]);
    let gate = Arc::new(Notify::new());
    world.script(Kind::Prepare, Some(0), 1, Action::Hold(gate.clone()));
    let mut txn = serializable(&n);
    put(&mut txn, b"a", "1");
    put(&mut txn, b"z", "1");
    let task = tokio::spawn(txn.commit());
    settle().await;
    let other = node(&world, 7, Config::default());
    world.forget_trace();
    let outcome = other.recoverer.run(&suspect_of(&world)).await;
    assert_eq!(outcome, Ok(Outcome::Decided(Decision::Abort)));
    assert_eq!(world.sent(Kind::Probe).len(), 2, "anchor too");
    gate.notify_one();
    assert!(is_serialization(task.await.unwrap()));
    assert_eq!((world.value(b"a"), world.value(b"z")), (None, None));
    world.assert_clean();
}

/// R18.3. Mistake: recoverer acts on its verdict, not on the anchor's reply (half committed).
#[tokio::test(start_paused = true)]
async fn r18_the_anchors_answer_is_the_outcome() {
    // Verdict commit, the anchor says abort.
    let (world, n) = dead(Kind::Decide, None, false).await;
    let suspect = suspect_of(&world);
    let gate = Arc::new(Notify::new());
    world.script(Kind::Decide, None, 1, Action::Hold(gate.clone()));
    let recoverer = n.recoverer.clone();
    let s = suspect.clone();
    let task = tokio::spawn(async move { recoverer.run(&s).await });
    settle().await;
    let id = api::PieceId { txn: suspect.txn, piece: 0, key: b"a".to_vec(), deadline: suspect.deadline };
    // (The coordinator is dead: an abort proposed by it after R14 is its own mistake, here it stands for any.)
    world.state().decide(&id, Decision::Abort).unwrap();
    gate.notify_one();
    assert_eq!(task.await.unwrap(), Ok(Outcome::Decided(Decision::Abort)));
    assert_eq!((world.value(b"a"), world.value(b"z")), (None, None));
    world.assert_clean();

    // Verdict abort, the anchor says commit: it was decided between probe and decision.
    let (world, n) = dead(Kind::Decide, None, false).await;
    let suspect = suspect_of(&world);
    world.script(Kind::Probe, Some(1), 1, Action::Hold(gate.clone()));
    let c = world.state().prepares.values().map(|p| p.2).max().unwrap();
    let recoverer = n.recoverer.clone();
    let s = Suspect { mode: Mode::AtCandidate, candidate: Timestamp(1), ..suspect.clone() };
    let task = tokio::spawn(async move { recoverer.run(&s).await });
    settle().await;
    world.state().decide(&id_of(&suspect, 0), Decision::Commit(c)).unwrap();
    gate.notify_one();
    assert_eq!(task.await.unwrap(), Ok(Outcome::Decided(Decision::Commit(c))));
    assert_eq!(world.value(b"z").as_deref(), Some("1"));
    world.assert_clean();
}

fn id_of(s: &Suspect, piece: u32) -> api::PieceId {
    let key = s.pieces.iter().find(|p| p.piece == piece).unwrap().key.clone();
    api::PieceId { txn: s.txn, piece, key, deadline: s.deadline }
}

/// R18.2: a piece found committed sends the recoverer back to the anchor. Mistake: recovery at the first p seen.
#[tokio::test(start_paused = true)]
async fn r18_a_committed_piece_sends_back_to_the_anchor() {
    let (world, n) = dead(Kind::Decide, None, false).await;
    let suspect = suspect_of(&world);
    // The first question finds nothing decided, the probes find both pieces committed.
    world.script(Kind::Ask, None, 1, Action::Answer(Reply::Anchor(Ok(AnchorReply::Undecided))));
    let c = world.state().prepares.values().map(|p| p.2).max().unwrap();
    world.state().decide(&id_of(&suspect, 0), Decision::Commit(c)).unwrap();
    assert_eq!(n.recoverer.run(&suspect).await, Ok(Outcome::Decided(Decision::Commit(c))));
    assert_eq!(world.sent(Kind::Ask).len(), 2);
    world.assert_clean();
}

/// R18, gone: prepares are dropped, nothing is said of the outcome, the anchor is not acknowledged.
#[tokio::test(start_paused = true)]
async fn r18_gone_drops_prepares_only() {
    let (world, n) = dead(Kind::Prepare, Some(0), false).await;
    // Piece 1 alone is prepared, as its message would have done it; then the floor passes the deadline, and the anchor
    // can never be prepared (T12).
    let mut piece = world.sent(Kind::Prepare)[0].body.clone().unwrap();
    piece.piece = 1;
    piece.writes[0].key = piece.pieces[1].key.clone();
    world.state().prepare(piece, false).unwrap();
    let suspect = suspect_of(&world);
    world.state().raise_floor(b"", suspect.deadline);
    world.forget_trace();
    assert_eq!(n.recoverer.run(&suspect).await, Ok(Outcome::Gone));
    assert!(world.state().prepares.is_empty());
    assert_eq!(world.sent(Kind::Acked), []);
    world.assert_clean();
}

/// One flight per transaction and node, a bounded number of flights, and none left behind.
#[tokio::test(start_paused = true)]
async fn r18_one_flight_per_transaction() {
    use isochrone_shard::api::Recover;
    let (world, n) = dead(Kind::Decide, None, false).await;
    let suspect = suspect_of(&world);
    let background = isochrone_txn::RecoverInBackground(n.recoverer.clone());
    for _ in 0..5 {
        background.recover(suspect.clone());
    }
    assert_eq!(n.recoverer.in_flight(), 1);
    for i in 0..1_000u128 {
        background.recover(Suspect { txn: isochrone_base::TxnId(i), ..suspect.clone() });
    }
    assert_eq!(n.recoverer.in_flight(), Config::default().recoveries_max);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(n.recoverer.in_flight(), 0);
    assert!(world.state().prepares.is_empty());
    world.assert_clean();
}

// --------------------------------------------------------------------------------------- giving up, answering

/// R19: a dropped commit goes on; so does one that was never polled.
#[tokio::test(start_paused = true)]
async fn r19_a_dropped_commit_goes_on() {
    let (world, n) = setup(&[b"m"]);
    let gate = Arc::new(Notify::new());
    world.script(Kind::Prepare, Some(1), 1, Action::Hold(gate.clone()));
    let mut txn = serializable(&n);
    txn.get(b"a", Lock::Exclusive).await.unwrap();
    put(&mut txn, b"a", "1");
    put(&mut txn, b"z", "1");
    tokio::select! {
        biased;
        _ = txn.commit() => unreachable!("held"),
        () = settle() => {}
    }
    gate.notify_one();
    settle().await;
    assert_eq!(world.value(b"z").as_deref(), Some("1"));
    assert!(world.state().locks.is_empty());
    let mut txn = serializable(&n);
    put(&mut txn, b"b", "1");
    drop(txn.commit());
    settle().await;
    assert_eq!(world.value(b"b").as_deref(), Some("1"));
    // A transaction dropped before COMMIT is rolled back, locks and all.
    let mut txn = serializable(&n);
    txn.get(b"c", Lock::Exclusive).await.unwrap();
    put(&mut txn, b"c", "1");
    txn.rollback();
    assert!(world.state().locks.is_empty());
    assert_eq!(world.value(b"c"), None);
    world.assert_clean();
}

/// R19: lost prepares end in `decide(abort)` at the anchor, within bounds, and nothing is left.
#[tokio::test(start_paused = true)]
async fn r19_lost_prepares_abort() {
    let (world, n) = setup(&[b"m"]);
    world.script(Kind::Prepare, Some(1), 1_000, Action::Lose);
    let mut txn = serializable(&n);
    put(&mut txn, b"a", "1");
    put(&mut txn, b"z", "1");
    let got = txn.commit().await;
    assert!(matches!(got, Err(Error::Unavailable(_))), "{got:?}");
    assert_eq!(world.sent(Kind::Decide)[0].decision, Some(Decision::Abort));
    settle().await;
    assert!(world.state().prepares.is_empty());
    // Silence counts as lost.
    world.heal();
    world.script(Kind::Prepare, Some(1), 1_000, Action::Hold(Arc::new(Notify::new())));
    let mut txn = serializable(&n);
    put(&mut txn, b"a", "1");
    put(&mut txn, b"z", "1");
    assert!(matches!(txn.commit().await, Err(Error::Unavailable(_))));
    world.assert_clean();
}

/// Section 11, routing: a shard is split between plan and prepare; pieces are fixed, so the attempt gives up.
#[tokio::test(start_paused = true)]
async fn a_split_during_the_commit_gives_up() {
    for (keys, kind) in [(&[b"a", b"c"][..], Kind::Commit1), (&[b"a", b"c", b"z"][..], Kind::Prepare)] {
        let (world, n) = setup(&[b"m"]);
        let gate = Arc::new(Notify::new());
        world.script(kind, Some(0), 1, Action::Hold(gate.clone()));
        let mut txn = serializable(&n);
        for key in keys {
            put(&mut txn, *key, "1");
        }
        let task = tokio::spawn(txn.commit());
        settle().await;
        world.state().cuts.insert(b"b".to_vec());
        gate.notify_one();
        assert!(is_serialization(task.await.unwrap()));
        settle().await;
        assert_eq!((world.value(b"a"), world.state().prepares.len()), (None, 0));
        write(&n, &keys.iter().map(|k| (k.as_slice(), "2")).collect::<Vec<_>>()).await;
        assert_eq!(world.value(b"c").as_deref(), Some("2"));
        world.assert_clean();
    }
}

/// R10 across a split: validation is cut again and goes on.
#[tokio::test(start_paused = true)]
async fn validation_follows_a_split() {
    let (world, n) = setup(&[b"m"]);
    let mut txn = serializable(&n);
    txn.scan(&KeyRange::new(*b"a", *b"l"), FORWARD).await.unwrap();
    put(&mut txn, b"z", "1");
    let gate = Arc::new(Notify::new());
    world.script(Kind::Validate, None, 1, Action::Hold(gate.clone()));
    let task = tokio::spawn(txn.commit());
    settle().await;
    world.state().cuts.insert(b"b".to_vec());
    gate.notify_one();
    task.await.unwrap().unwrap();
    world.assert_clean();
}

/// R22. Mistake: `gone` or "past deadline" reported as ABORT.
#[tokio::test(start_paused = true)]
async fn r22_what_is_not_certain_is_unknown() {
    let past = || Action::Answer(Reply::Prepared(Ok(Prepared::PastDeadline)));
    let anchor = |a| Action::Answer(Reply::Anchor(Ok(a)));
    for keys in [&[b"a".as_slice()][..], &[b"a".as_slice(), b"z".as_slice()][..]] {
        let kind = if keys.len() == 1 { Kind::Commit1 } else { Kind::Prepare };
        let refused = || Action::Answer(Reply::Prepared(Ok(Prepared::Refused("no".to_string()))));
        let cases = [
            // (the piece's answer, the anchor's answer, is ABORT said)
            (past(), Some(anchor(AnchorReply::Gone)), false),
            (past(), None, true), // the anchor writes `aborted`
            (past(), Some(Action::Lose), false),
            (Action::Lose, Some(anchor(AnchorReply::Gone)), false),
            (Action::Lose, Some(Action::Lose), false),
            (Action::LoseAnswer, Some(Action::Lose), false),
            (refused(), Some(Action::Lose), true), // final (R12)
            (refused(), Some(anchor(AnchorReply::Gone)), true),
            (refused(), Some(anchor(AnchorReply::Decided(Decision::Abort))), true),
        ];
        for (i, (piece, decide, abort)) in cases.into_iter().enumerate() {
            let (world, n) = setup(&[b"m"]);
            world.script(kind, Some(0), 1_000, piece);
            if let Some(decide) = decide {
                world.script(Kind::Decide, None, 1_000, decide);
            }
            let mut txn = serializable(&n);
            for key in keys {
                put(&mut txn, key, "1");
            }
            let got = txn.commit().await;
            assert_eq!(is_serialization(got.clone()), abort, "case {i}: {got:?}");
            assert_eq!(matches!(got, Err(Error::Unknown(_))), !abort, "case {i}: {got:?}");
            assert!(world.state().locks.is_empty());
            world.assert_clean();
        }
    }
}

/// R16, R19. Mistake: later decision overwrites the first. The decision to commit is lost on its way back, the
/// coordinator gives up, and the anchor tells it that it committed.
#[tokio::test(start_paused = true)]
async fn r19_the_first_decision_stands() {
    let (world, n) = setup(&[b"g", b"m"]);
    let txn = pushed(&world, &n).await;
    let attempts = Config::default().attempts_max;
    world.script(Kind::Decide, None, attempts, Action::LoseAnswer);
    let c = txn.commit().await.unwrap();
    let decisions: Vec<_> = world.sent(Kind::Decide).into_iter().map(|s| s.decision.unwrap()).collect();
    assert_eq!(decisions.last(), Some(&Decision::Abort));
    settle().await;
    for key in [b"a", b"z"] {
        assert_eq!(world.state().rows[key.as_slice()][0].0, c);
    }
    world.assert_clean();
}

/// R23, R25. Mistake: answer before `c <= clock.latest` (a push over closed lies in the future).
#[tokio::test(start_paused = true)]
async fn r23_r25_the_answer_waits_for_the_clock() {
    for keys in [&[b"a".as_slice()][..], &[b"a".as_slice(), b"z".as_slice()][..]] {
        let (world, n) = setup(&[b"m"]);
        let closed = n.clock.now().plus_micros(200_000);
        world.state().closed.insert(Vec::new(), closed);
        let mut txn = serializable(&n);
        for key in keys {
            put(&mut txn, key, "1");
        }
        let c = txn.commit().await.unwrap();
        assert!(c > closed);
        assert!(c.micros() <= n.clock.latest().micros());
        assert!(serializable(&n).read_ts() > c, "R25");
        world.assert_clean();
    }
}

/// A clock with an error bound: the answer need not wait for what is already inside the bound.
#[tokio::test(start_paused = true)]
async fn r23_counts_the_clocks_error() {
    struct Wide(TokioClock);
    impl Clock for Wide {
        fn wall(&self) -> ClockReading {
            ClockReading { error_us: 250_000, ..self.0.wall() }
        }
        fn monotonic_ns(&self) -> u64 {
            self.0.monotonic_ns()
        }
    }
    let world = World::new(&[]);
    let n = node_with_clock(&world, 1, Config::default(), Arc::new(Wide(TokioClock::new(WALL_US))));
    let before = n.clock.earliest();
    world.state().closed.insert(Vec::new(), n.clock.now().plus_micros(200_000));
    let mut txn = serializable(&n);
    put(&mut txn, b"a", "1");
    txn.commit().await.unwrap();
    assert_eq!(n.clock.earliest(), before, "no time passed");
    world.assert_clean();
}

/// R11.6: a commit timestamp above the validity of the schema is refused.
#[tokio::test(start_paused = true)]
async fn max_ts_bounds_the_commit() {
    let (world, n) = setup(&[b"m"]);
    let max_ts = n.clock.now().plus_micros(10);
    for keys in [&[b"a".as_slice()][..], &[b"a".as_slice(), b"z".as_slice()][..]] {
        let mut txn = n.coordinator.begin(TxnOptions { max_ts, ..TxnOptions::default() });
        for key in keys {
            put(&mut txn, key, "1");
        }
        world.state().closed.insert(Vec::new(), max_ts);
        assert!(is_serialization(txn.commit().await));
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    let mut txn = n.coordinator.begin(TxnOptions { max_ts, ..TxnOptions::default() });
    put(&mut txn, b"a", "1");
    world.forget_trace();
    assert!(is_serialization(txn.commit().await));
    assert_eq!(world.kinds(), []);
    world.assert_clean();
}

/// R11.5 at READ COMMITTED: a later statement that reads over the transaction's own write does not learn what lies beneath.
#[tokio::test(start_paused = true)]
async fn a_write_stays_based_on_what_its_statement_read() {
    let (world, n) = setup(&[]);
    let mut txn = begin(&n, Isolation::ReadCommitted);
    assert_eq!(get(&mut txn, b"k").await.unwrap(), None);
    put(&mut txn, b"k", "mine");
    write(&n, &[(b"k", "theirs")]).await;
    txn.begin_statement();
    let page = txn.scan(&KeyRange::all(), ScanOptions { reverse: false, rows_max: 10 }).await.unwrap();
    assert_eq!(page.rows.len(), 1, "its own row");
    assert!(is_serialization(txn.commit().await));
    assert_eq!(world.value(b"k").as_deref(), Some("theirs"));
    world.assert_clean();
}

/// Locks: a cycle is broken, a bounded wait ends and leaves the transaction usable, errors before COMMIT stick.
#[tokio::test(start_paused = true)]
async fn locks_end() {
    let (world, n) = setup(&[]);
    let mut a = begin(&n, Isolation::ReadCommitted);
    a.get(b"x", Lock::Exclusive).await.unwrap();
    let options = TxnOptions { lock_wait_max: Duration::from_millis(50), ..TxnOptions::default() };
    let mut b = n.coordinator.begin(options);
    b.get(b"y", Lock::Exclusive).await.unwrap();
    assert_eq!(b.get(b"x", Lock::Exclusive).await, Err(Error::LockTimeout(Duration::from_millis(50))));
    put(&mut b, b"y", "b");
    let mut c = begin(&n, Isolation::ReadCommitted);
    c.get(b"z", Lock::Exclusive).await.unwrap();
    let task = tokio::spawn(async move {
        let got = c.get(b"x", Lock::Exclusive).await;
        (c, got)
    });
    settle().await;
    assert_eq!(a.get(b"z", Lock::Exclusive).await, Err(Error::Deadlock));
    assert_eq!(a.commit().await, Err(Error::Deadlock));
    let (c, got) = task.await.unwrap();
    assert_eq!(got, Ok(None));
    c.commit().await.unwrap();
    b.commit().await.unwrap();
    assert_eq!(world.value(b"y").as_deref(), Some("b"));
    assert!(world.state().locks.is_empty());
    world.assert_clean();
}

/// Reads outlive a leaderless moment, and give up within bounds; then nothing can be committed.
#[tokio::test(start_paused = true)]
async fn reads_are_repeated_within_bounds() {
    let (world, n) = setup(&[]);
    write(&n, &[(b"k", "1")]).await;
    let not_served = || Action::Answer(Reply::Fail(api::Error::NotServed("election".to_string())));
    world.script(Kind::Get, None, 5, not_served());
    let mut txn = serializable(&n);
    assert_eq!(get(&mut txn, b"k").await.unwrap().as_deref(), Some("1"));
    world.script(Kind::Get, None, 1_000, not_served());
    assert!(matches!(get(&mut txn, b"k").await, Err(Error::Unavailable(_))));
    put(&mut txn, b"k", "2");
    assert!(matches!(txn.commit().await, Err(Error::Unavailable(_))));
    assert_eq!(world.value(b"k").as_deref(), Some("1"));
}

/// The model itself: what it must catch, it catches.
#[tokio::test(start_paused = true)]
async fn the_model_sees_a_resolve_without_a_decision() {
    let (world, _n) = dead(Kind::Decide, None, false).await;
    let suspect = suspect_of(&world);
    world.state().resolve(&id_of(&suspect, 1), Decision::Commit(Timestamp::MAX));
    assert!(world.state().violations[0].starts_with("C3"));
    let probed = world.state().probe(&id_of(&suspect, 0));
    assert!(matches!(probed, Record::Prepared(_)), "a probe never touches a prepare");
}
