//! The conformance suite of [`Engine`]: both engines against a `BTreeMap`, through batches, scans, snapshots, flushes,
//! compactions, crashes and reopenings; readers against a writer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::common::{LsmRig, MemRig, Rig};
use isochrone_base::{Bytes, KeyRange};
use isochrone_storage::{Error, Reader, Snapshot, WriteBatch};
use proptest::prelude::*;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Clone, Debug)]
enum Op {
    Batch(Vec<(u8, Option<u8>)>),
    Get(u8),
    Scan(u8, u8, bool),
    Snapshot,
    DropSnapshot(usize),
    RequestFlush,
    Flush,
    Compact,
    Crash,
}

const KEYS: u8 = 12;
/// Every batch writes its number to all of these: they must never disagree.
const COUNTERS: [&[u8]; 3] = [b"a-counter", b"k05-counter", b"z-counter"];

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let write = (0..KEYS, proptest::option::weighted(0.7, any::<u8>()));
    let op = prop_oneof![
        10 => proptest::collection::vec(write, 0..8).prop_map(Op::Batch),
        4 => (0..KEYS).prop_map(Op::Get),
        4 => (0..=KEYS, 0..=KEYS, any::<bool>()).prop_map(|(a, b, r)| Op::Scan(a, b, r)),
        2 => Just(Op::Snapshot),
        1 => any::<usize>().prop_map(Op::DropSnapshot),
        1 => Just(Op::RequestFlush),
        1 => Just(Op::Flush),
        1 => Just(Op::Compact),
        1 => Just(Op::Crash),
    ];
    proptest::collection::vec(op, 1..60)
}

fn key(n: u8) -> Vec<u8> {
    format!("k{n:02}").into_bytes()
}

fn value(n: u8) -> Vec<u8> {
    vec![n; 10 + usize::from(n) * 8]
}

/// `KEYS` as an end means: no end.
fn range(a: u8, b: u8) -> KeyRange {
    KeyRange::new(key(a), if b == KEYS { Vec::new() } else { key(b) })
}

fn scan(reader: &dyn Reader, range: &KeyRange, reverse: bool) -> Vec<(Vec<u8>, Vec<u8>)> {
    reader.scan(range, reverse).map(|r| r.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap()).collect()
}

fn check_all(reader: &dyn Reader, model: &Model) {
    let want: Vec<_> = model.clone().into_iter().collect();
    assert_eq!(scan(reader, &KeyRange::all(), false), want);
    let mut back = scan(reader, &KeyRange::all(), true);
    back.reverse();
    assert_eq!(back, want);
    for n in 0..KEYS {
        assert_eq!(reader.get(&key(n)).unwrap().as_deref(), model.get(&key(n)).map(Vec::as_slice));
    }
}

fn run(rig: &mut dyn Rig, ops: Vec<Op>) {
    // The state after each batch; at least the first `durable` survive a crash.
    let mut states = vec![Model::new()];
    let mut durable = 0;
    let mut snapshots: Vec<(Arc<dyn Snapshot>, usize)> = Vec::new();
    // Number of the batch that was the last one when the engine was opened.
    let mut base = rig.engine().written_seq() as usize;
    let mut opened = 0;
    for op in ops {
        let last = states.len() - 1;
        match op {
            Op::Batch(writes) => {
                let mut batch = WriteBatch::new();
                let mut next = states[last].clone();
                for (k, v) in writes {
                    match v {
                        Some(v) => {
                            batch.put(key(k), value(v));
                            next.insert(key(k), value(v));
                        }
                        None => {
                            batch.delete(key(k));
                            next.remove(&key(k));
                        }
                    }
                }
                for c in COUNTERS {
                    let n = (states.len() as u32).to_be_bytes();
                    batch.put(c, n.to_vec());
                    next.insert(c.to_vec(), n.to_vec());
                }
                rig.engine().write(batch).unwrap();
                states.push(next);
                assert_eq!(rig.engine().written_seq() as usize - base, states.len() - 1 - opened);
            }
            Op::Get(k) => {
                let got = rig.engine().get(&key(k)).unwrap();
                assert_eq!(got.as_deref(), states[last].get(&key(k)).map(Vec::as_slice));
            }
            Op::Scan(a, b, reverse) => {
                let range = range(a, b);
                let mut want: Vec<_> =
                    states[last].clone().into_iter().filter(|(k, _)| range.contains(k)).collect();
                if reverse {
                    want.reverse();
                }
                assert_eq!(scan(rig.engine(), &range, reverse), want);
            }
            Op::Snapshot => snapshots.push((rig.engine().snapshot(), last)),
            Op::DropSnapshot(n) => {
                if !snapshots.is_empty() {
                    let (snapshot, at) = snapshots.swap_remove(n % snapshots.len());
                    check_all(&*snapshot, &states[at]);
                }
            }
            Op::RequestFlush => {
                rig.engine().request_flush().unwrap();
            }
            Op::Flush => {
                rig.engine().flush().unwrap();
                durable = last;
                assert_eq!(rig.engine().flushed_seq(), rig.engine().written_seq());
            }
            Op::Compact => rig.compact(),
            Op::Crash => {
                snapshots.clear();
                durable =
                    durable.max(opened + rig.engine().flushed_seq().saturating_sub(base as u64) as usize);
                rig.crash();
                let found = |c: &[u8]| match rig.engine().get(c).unwrap() {
                    Some(n) => u32::from_be_bytes(n[..].try_into().unwrap()) as usize,
                    None => 0,
                };
                let at = found(COUNTERS[0]);
                assert!(COUNTERS.iter().all(|c| found(c) == at), "a batch in parts");
                assert!((durable..=last).contains(&at), "{at} not in {durable}..={last}");
                check_all(rig.engine(), &states[at]);
                states.truncate(at + 1);
                (durable, opened, base) = (at, at, rig.engine().written_seq() as usize);
            }
        }
    }
    check_all(rig.engine(), states.last().unwrap());
    for (snapshot, at) in &snapshots {
        check_all(&**snapshot, &states[*at]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn memory_engine_is_a_map(ops in ops()) {
        run(&mut MemRig::new(), ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn disk_engine_is_a_map(ops in ops()) {
        run(&mut LsmRig::new(), ops);
    }
}

/// One writer, two readers, memtables of a few batches: no reader ever sees part of a batch or goes back.
fn readers_see_whole_batches(rig: &dyn Rig, batches: u64) {
    const WIDTH: u32 = 16;
    let engine = rig.engine();
    let done = AtomicBool::new(false);
    let started = AtomicU64::new(0);
    let row = |i: u32| format!("row{i:02}").into_bytes();
    let number = |v: &[u8]| u64::from_be_bytes(v[..8].try_into().unwrap());
    std::thread::scope(|s| {
        s.spawn(|| {
            for n in 1..=batches {
                started.store(n, Ordering::SeqCst);
                let mut batch = WriteBatch::new();
                for i in 0..WIDTH {
                    let mut v = n.to_be_bytes().to_vec();
                    v.resize(100, 0);
                    batch.put(row(i), v);
                }
                engine.write(batch).unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        for reverse in [false, true] {
            let (done, started, row, number) = (&done, &started, &row, &number);
            s.spawn(move || {
                let mut least = 0;
                while !done.load(Ordering::SeqCst) {
                    let snapshot = engine.snapshot();
                    let rows = scan(&*snapshot, &KeyRange::all(), reverse);
                    assert!(rows.is_empty() || rows.len() == WIDTH as usize);
                    for (_, v) in &rows {
                        assert_eq!(number(v), number(&rows[0].1), "part of a batch");
                    }
                    let seen = rows.first().map_or(0, |r| number(&r.1));
                    assert!(seen >= least, "went back");
                    least = seen;
                    for i in 0..WIDTH {
                        let n = engine.get(&row(i)).unwrap().map_or(0, |v| number(&v));
                        assert!(n >= least, "went back");
                        least = n;
                    }
                    assert!(least <= started.load(Ordering::SeqCst));
                    let again = snapshot.get(&row(3)).unwrap().map_or(0, |v| number(&v));
                    assert_eq!(again, seen, "a snapshot changed");
                }
            });
        }
    });
}

#[test]
fn readers_see_whole_batches_in_memory() {
    readers_see_whole_batches(&MemRig::new(), 5_000);
}

#[test]
fn readers_see_whole_batches_on_disk() {
    let rig = LsmRig::new();
    readers_see_whole_batches(&rig, 3_000);
    let stats = rig.engine().stats();
    assert!(stats.flushes > 5 && stats.compactions > 0, "{stats:?}");
    assert_eq!(stats.snapshots, 0);
}

#[test]
fn callbacks_tell_what_is_durable() {
    let rigs: [&dyn Rig; 2] = [&MemRig::new(), &LsmRig::new()];
    for rig in rigs {
        let (sender, receiver) = std::sync::mpsc::channel();
        let engine = rig.engine();
        engine.on_flush(Box::new(move |n| sender.send(n).unwrap()));
        for n in 0..3u8 {
            let mut batch = WriteBatch::new();
            batch.put([n], vec![n]);
            engine.write(batch).unwrap();
        }
        assert_eq!((engine.written_seq(), engine.flushed_seq()), (3, 0));
        assert!(engine.memtable_bytes() > 0);
        assert_eq!(engine.request_flush().unwrap(), 3);
        assert_eq!(receiver.recv().unwrap(), 3);
        assert_eq!(engine.flushed_seq(), 3);
        assert_eq!(engine.memtable_bytes(), 0);
        engine.flush().unwrap();
        assert_eq!(engine.request_flush().unwrap(), 3);
    }
}

#[test]
fn impossible_keys_are_refused_and_write_nothing() {
    let rigs: [&dyn Rig; 2] = [&MemRig::new(), &LsmRig::new()];
    for rig in rigs {
        for bad in [Vec::new(), vec![1; 65_536]] {
            let mut batch = WriteBatch::new();
            batch.put(*b"good", vec![1]);
            batch.put(bad, Bytes::new());
            assert!(matches!(rig.engine().write(batch), Err(Error::KeyLength(_))));
        }
        assert_eq!(rig.engine().get(b"good").unwrap(), None);
        assert_eq!(rig.engine().get(b"").unwrap(), None);
        assert_eq!(rig.engine().get(&[1; 70_000]).unwrap(), None);
        rig.engine().approximate_bytes(&KeyRange::new([1; 70_000], [2; 70_000]));
        assert_eq!(rig.engine().written_seq(), 0);
        let mut batch = WriteBatch::new();
        batch.put(vec![1; 65_535], Bytes::new());
        rig.engine().write(batch).unwrap();
        assert_eq!(rig.engine().get(&[1; 65_535]).unwrap(), Some(Bytes::new()));
        let rows = |start: usize, end: usize| {
            rig.engine().scan(&KeyRange::new(vec![1; start], vec![1; end]), false).count()
        };
        assert_eq!((rows(1, 65_535), rows(65_535, 65_536), rows(65_536, 65_537)), (0, 1, 0));
    }
}

#[test]
fn sizes_are_about_right() {
    let mut lsm = LsmRig::new();
    let mut mem = MemRig::new();
    let rigs: [&mut dyn Rig; 2] = [&mut mem, &mut lsm];
    for rig in rigs {
        for n in 0..100u32 {
            let mut batch = WriteBatch::new();
            for i in 0..20u32 {
                batch.put(format!("{:06}", n * 20 + i), vec![7u8; 94]);
            }
            rig.engine().write(batch).unwrap();
        }
        for _ in 0..2 {
            let size = |a: &str, b: &str| rig.engine().approximate_bytes(&KeyRange::new(a, b));
            let all = size("", "");
            assert!((180_000..320_000).contains(&all), "{all}");
            let tenth = size("000500", "000700");
            assert!((5_000..80_000).contains(&tenth), "{tenth}");
            assert_eq!(size("5", ""), 0);
            assert_eq!(size("5", "4"), 0);
            rig.engine().flush().unwrap();
            rig.compact();
        }
    }
}
