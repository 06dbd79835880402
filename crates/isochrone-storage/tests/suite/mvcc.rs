//! The newest-first layout against a plain list of versions, on both engines: reads at any timestamp, scans, "did
//! anything change", garbage collection, and the logical hash of two replicas that collect at different times.

use std::collections::BTreeMap;

use crate::common::{LsmRig, MemRig, Rig};
use isochrone_base::{KeyRange, Timestamp};
use isochrone_storage::mvcc::{self, GcBudget, Space};
use isochrone_storage::{Engine, Error, MemEngine, Reader, WriteBatch};
use proptest::prelude::*;

const KEYS: u8 = 8;

#[derive(Clone, Debug)]
enum Op {
    /// Versions at one timestamp, some microseconds after the last one.
    Put(u64, Vec<(u8, Option<u8>)>),
    /// The same in one batch: several versions of a key at once.
    PutMany(Vec<(u8, Option<u8>)>),
    Get(u8, u64),
    Scan(u8, u8, u64, bool),
    Changed(u8, u8, u64, u64),
    Gc {
        back: u64,
        entries: usize,
        passes: usize,
        range: (u8, u8),
    },
    Flush,
    Compact,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let write = || (0..KEYS, proptest::option::weighted(0.7, any::<u8>()));
    let back = 0u64..40;
    let op = prop_oneof![
        10 => (1u64..4, proptest::collection::vec(write(), 1..5)).prop_map(|(t, w)| Op::Put(t, w)),
        2 => proptest::collection::vec(write(), 1..8).prop_map(Op::PutMany),
        5 => (0..KEYS, back.clone()).prop_map(|(k, b)| Op::Get(k, b)),
        5 => (0..=KEYS, 0..=KEYS, back.clone(), any::<bool>()).prop_map(|(a, b, t, r)| Op::Scan(a, b, t, r)),
        5 => (0..=KEYS, 0..=KEYS, back.clone(), back.clone()).prop_map(|(a, b, t, u)| Op::Changed(a, b, t, u)),
        2 => (back, 1usize..12, 1usize..6, (0..=KEYS, 0..=KEYS))
            .prop_map(|(back, entries, passes, range)| Op::Gc { back, entries, passes, range }),
        1 => Just(Op::Flush),
        1 => Just(Op::Compact),
    ];
    proptest::collection::vec(op, 1..60)
}

/// Keys with zeros and prefixes of each other, which the escaping has to keep apart.
fn key(n: u8) -> Vec<u8> {
    let keys: [&[u8]; 8] = [b"a", b"a\0", b"a\0\x01", b"a\0\xff", b"b", b"b\0b", b"ba", b"c"];
    keys[usize::from(n)].to_vec()
}

fn range(a: u8, b: u8) -> KeyRange {
    let end = |n| if n >= KEYS { Vec::new() } else { key(n) };
    if a == KEYS {
        return KeyRange::all();
    }
    if a == b {
        return KeyRange::point(&key(a));
    }
    KeyRange::new(key(a), end(b))
}

type Model = BTreeMap<Vec<u8>, Vec<(u64, Option<Vec<u8>>)>>;

fn at(model: &Model, key: &[u8], ts: u64) -> Option<(u64, Option<Vec<u8>>)> {
    model.get(key)?.iter().rev().find(|(t, _)| *t <= ts).cloned()
}

/// What a read returns: the timestamp of a deletion below the threshold may or may not be there.
fn visible(v: Option<(u64, Option<Vec<u8>>)>) -> Option<(u64, Vec<u8>)> {
    v.and_then(|(t, v)| v.map(|v| (t, v)))
}

fn run(rig: &dyn Rig, ops: Vec<Op>) {
    let engine = rig.engine();
    // A replica that never collects.
    let keeper = MemEngine::new();
    let mut model = Model::new();
    let (mut now, mut threshold) = (10u64, 0u64);
    let put = |batch: &mut WriteBatch, reader: &dyn Reader, k: &[u8], ts, v: Option<&[u8]>| {
        mvcc::put_version(batch, reader, k, Timestamp(ts), v).unwrap()
    };
    for op in ops {
        match op {
            Op::Put(..) | Op::PutMany(..) => {
                let (mut a, mut b) = (WriteBatch::new(), WriteBatch::new());
                let (step, writes, each) = match op {
                    Op::Put(step, writes) => (step, writes, false),
                    Op::PutMany(writes) => (1, writes, true),
                    _ => unreachable!(),
                };
                now += step;
                for (k, v) in writes {
                    now += u64::from(each);
                    let versions = model.entry(key(k)).or_default();
                    if versions.last().is_some_and(|(t, _)| *t == now) {
                        let refused = mvcc::put_version(&mut a, engine, &key(k), Timestamp(now), None);
                        assert!(matches!(refused, Err(Error::OutOfOrder { .. })));
                        continue;
                    }
                    let v = v.map(|v| vec![v; 40]);
                    let before = put(&mut a, engine, &key(k), now, v.as_deref());
                    let want = versions.last().map(|(t, _)| *t);
                    // A deletion may have been collected.
                    assert!(before.map(|t| t.0) == want || (before.is_none() && want <= Some(threshold)));
                    put(&mut b, &keeper, &key(k), now, v.as_deref());
                    versions.push((now, v));
                }
                engine.write(a).unwrap();
                keeper.write(b).unwrap();
            }
            Op::Get(k, back) => {
                let ts = now.saturating_sub(back).max(threshold);
                let got = mvcc::get_at(engine, &key(k), Timestamp(ts)).unwrap();
                let got = got.and_then(|v| v.value.map(|value| (v.ts.0, value.to_vec())));
                assert_eq!(got, visible(at(&model, &key(k), ts)), "{k} at {ts}");
                let newest = mvcc::newest_ts(engine, &key(k)).unwrap().map(|t| t.0);
                let want = model.get(&key(k)).map(|v| v[v.len() - 1].0);
                assert!(newest == want || (newest.is_none() && want <= Some(threshold)));
            }
            Op::Scan(a, b, back, reverse) => {
                let ts = now.saturating_sub(back).max(threshold);
                let range = range(a, b);
                let rows = mvcc::scan_at(&engine.snapshot(), &range, Timestamp(ts), reverse);
                let got: Vec<_> =
                    rows.map(|r| r.map(|r| (r.key.to_vec(), (r.ts.0, r.value.to_vec()))).unwrap()).collect();
                let mut want: Vec<_> = model
                    .keys()
                    .filter(|k| range.contains(k))
                    .filter_map(|k| Some((k.clone(), visible(at(&model, k, ts))?)))
                    .collect();
                if reverse {
                    want.reverse();
                }
                assert_eq!(got, want, "{range:?} at {ts}");
            }
            Op::Changed(a, b, x, y) => {
                let after = now.saturating_sub(x.max(y)).max(threshold);
                let upto = now.saturating_sub(x.min(y));
                let range = range(a, b);
                let got = mvcc::changed_between(engine, &range, Timestamp(after), Timestamp(upto)).unwrap();
                let mut versions = model.iter().filter(|(k, _)| range.contains(k)).flat_map(|(_, v)| v);
                let want = versions.any(|(t, _)| *t > after && *t <= upto);
                assert_eq!(got, want, "{range:?} in ({after}, {upto}]");
            }
            Op::Gc { back, entries, passes, range: (a, b) } => {
                threshold = threshold.max(now.saturating_sub(back));
                let mut resume = None;
                for _ in 0..passes {
                    let budget = GcBudget { entries, ..GcBudget::default() };
                    let done = mvcc::gc(engine, &range(a, b), Timestamp(threshold), budget, resume).unwrap();
                    assert!(done.entries <= entries);
                    assert!(done.batch.is_empty() == (done.versions == 0));
                    engine.write(done.batch).unwrap();
                    resume = done.resume;
                    if resume.is_none() {
                        break;
                    }
                }
            }
            Op::Flush => engine.flush().unwrap(),
            Op::Compact => rig.compact(),
        }
        for range in [KeyRange::all(), range(1, 5)] {
            let hash = |e: &dyn Reader| mvcc::logical_hash(e, &range, Timestamp(threshold)).unwrap();
            assert_eq!(hash(engine), hash(&keeper), "replicas differ");
        }
    }

    // When everything is old, only the values of the present are left.
    let mut resume = None;
    loop {
        let budget = GcBudget { entries: 3, ..GcBudget::default() };
        let done = mvcc::gc(engine, &KeyRange::all(), Timestamp(now), budget, resume).unwrap();
        engine.write(done.batch).unwrap();
        resume = done.resume;
        if resume.is_none() {
            break;
        }
    }
    assert_eq!(engine.scan(&Space::History.all(), false).count(), 0);
    let live = model.values().filter(|v| v[v.len() - 1].1.is_some()).count();
    assert_eq!(engine.scan(&Space::Data.all(), false).count(), live);
    let hash = |e: &dyn Reader| mvcc::logical_hash(e, &KeyRange::all(), Timestamp(now)).unwrap();
    assert_eq!(hash(engine), hash(&keeper));

    let mut batch = WriteBatch::new();
    let mut range = KeyRange::all();
    while let Some(rest) = mvcc::clear_range(&mut batch, engine, &range, 3).unwrap() {
        range.start = rest;
        engine.write(std::mem::take(&mut batch)).unwrap();
    }
    engine.write(batch).unwrap();
    assert_eq!(engine.scan(&KeyRange::all(), false).count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]
    #[test]
    fn versions_in_memory(ops in ops()) {
        run(&MemRig::new(), ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]
    #[test]
    fn versions_on_disk(ops in ops()) {
        run(&LsmRig::new(), ops);
    }
}

proptest! {
    #[test]
    fn history_keys_sort_by_key_then_newest_first(
        a in proptest::collection::vec(0u8..3, 0..5), b in proptest::collection::vec(0u8..3, 0..5), s: u64, t: u64
    ) {
        let (x, y) = (mvcc::history_key(&a, Timestamp(s)), mvcc::history_key(&b, Timestamp(t)));
        prop_assert_eq!(x.cmp(&y), a.cmp(&b).then(t.cmp(&s)));
        prop_assert_eq!(mvcc::parse_history_key(&x).unwrap(), (a.clone(), Timestamp(s)));
        let (lo, hi) = (a.clone().min(b.clone()), a.max(b));
        let range = mvcc::history_range(&KeyRange::new(lo.clone(), hi.clone()));
        prop_assert_eq!(range.contains(&mvcc::history_key(&lo, Timestamp(s))), lo < hi || hi.is_empty());
        prop_assert_eq!(range.contains(&mvcc::history_key(&hi, Timestamp(s))), hi.is_empty());
    }

    #[test]
    fn garbage_is_corruption_and_never_a_panic(bytes: Vec<u8>) {
        let _ = mvcc::parse_history_key(&bytes);
        let engine = MemEngine::new();
        let mut batch = WriteBatch::new();
        batch.put(mvcc::data_key(b"k"), bytes.clone());
        batch.put([&b"h"[..], &bytes].concat(), bytes.clone());
        engine.write(batch).unwrap();
        let well_formed = bytes.len() > 8 && (bytes[8] == 0 || (bytes[8] == 1 && bytes.len() == 9));
        match mvcc::get_newest(&engine, b"k") {
            Ok(_) => prop_assert!(well_formed),
            Err(e) => prop_assert!(!well_formed && matches!(e, Error::Corruption(_))),
        }
        let _ = mvcc::get_at(&engine, b"k", Timestamp(1));
        let _ = mvcc::gc(&engine, &KeyRange::all(), Timestamp::MAX, GcBudget::default(), None);
        let _ = mvcc::logical_hash(&engine, &KeyRange::all(), Timestamp(1));
        let _ = mvcc::changed_between(&engine, &KeyRange::all(), Timestamp(0), Timestamp(5));
        let _ = mvcc::scan_at(&engine.snapshot(), &KeyRange::all(), Timestamp(5), true).count();
    }
}

/// Whatever garbage collection left behind: what was superseded before the read's timestamp is not its answer.
#[test]
fn a_leftover_below_a_collected_deletion_stays_deleted() {
    let engine = MemEngine::new();
    let put = |ts: u64, value: Option<&[u8]>| {
        let mut batch = WriteBatch::new();
        mvcc::put_version(&mut batch, &engine, b"k", Timestamp(ts), value).unwrap();
        engine.write(batch).unwrap();
    };
    put(5, Some(b"old"));
    put(10, None);
    let mut batch = WriteBatch::new();
    batch.delete(mvcc::data_key(b"k"));
    batch.delete(mvcc::history_key(b"k", Timestamp(10)));
    engine.write(batch).unwrap();
    put(30, Some(b"new"));
    assert_eq!(mvcc::get_at(&engine, b"k", Timestamp(20)).unwrap(), None);
    assert_eq!(mvcc::scan_at(&engine.snapshot(), &KeyRange::all(), Timestamp(20), false).count(), 0);
    assert!(mvcc::get_at(&engine, b"k", Timestamp(9)).unwrap().is_some());
}

/// A reader that looks at the data space first and at the history later finds a version that moved in between.
#[test]
fn point_reads_race_with_writers() {
    let rigs: [&dyn Rig; 2] = [&MemRig::new(), &LsmRig::new()];
    for rig in rigs {
        let engine = rig.engine();
        let write = |ts: u64| {
            let mut batch = WriteBatch::new();
            mvcc::put_version(&mut batch, engine, b"k", Timestamp(ts), Some(&ts.to_be_bytes())).unwrap();
            engine.write(batch).unwrap();
        };
        write(1);
        let top = std::sync::atomic::AtomicU64::new(1);
        std::thread::scope(|s| {
            s.spawn(|| {
                for ts in 2..1_000 {
                    write(ts);
                    top.store(ts, std::sync::atomic::Ordering::SeqCst);
                }
            });
            s.spawn(|| {
                loop {
                    let ts = top.load(std::sync::atomic::Ordering::SeqCst);
                    let version = mvcc::get_at(engine, b"k", Timestamp(ts)).unwrap().unwrap();
                    assert_eq!(version.ts, Timestamp(ts));
                    assert_eq!(version.value.unwrap()[..], ts.to_be_bytes());
                    if ts == 999 {
                        break;
                    }
                }
            });
        });
    }
}
