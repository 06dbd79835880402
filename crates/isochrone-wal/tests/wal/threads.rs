//! Group commit with real threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use isochrone_base::ShardId;
use isochrone_env::fake::{Fault, MemDisk};
use isochrone_wal::{Batch, Error, writer};

use crate::support::{config, observe, open};

fn batch(shard: u64, index: u64) -> Batch {
    let mut b = Batch::new();
    b.entry(ShardId(shard), 1, index, index.to_le_bytes().to_vec());
    b
}

#[test]
fn many_threads_one_log() {
    let disk = MemDisk::new();
    let writer = Arc::new(writer::spawn(open(&disk, config()).unwrap().0).unwrap());
    std::thread::scope(|s| {
        for shard in 1..=16 {
            let writer = writer.clone();
            s.spawn(move || {
                for i in 1..=50 {
                    writer.append_durable(batch(shard, i)).unwrap();
                    assert_eq!(writer.reader().last_index(ShardId(shard)).unwrap(), i, "durable is visible");
                }
            });
        }
    });
    let stats = writer.stats();
    assert!(stats.syncs <= 16 * 50 + 2, "{stats:?}");
    writer.shutdown().unwrap();
    assert!(matches!(&*writer.append_durable(batch(1, 51)).unwrap_err(), Error::Closed));
    let log = open(&disk, config()).unwrap().0;
    let model = observe(&log.reader()).unwrap();
    assert!(model.0.len() == 16 && model.0.values().all(|s| s.entries.len() == 50));
}

#[test]
fn callbacks_come_in_order_and_all_of_them() {
    let disk = MemDisk::new();
    let writer = writer::spawn(open(&disk, config()).unwrap().0).unwrap();
    let (tx, rx) = mpsc::channel();
    for i in 1..=300 {
        let tx = tx.clone();
        let b = if i % 100 == 0 { batch(2, 77) } else { batch(1, i - (i / 100)) };
        writer.submit(b, Box::new(move |r| tx.send((i, r)).unwrap()));
    }
    writer.shutdown().unwrap();
    drop(tx);
    let seen: Vec<_> = rx.iter().collect();
    assert_eq!(seen.iter().map(|s| s.0).collect::<Vec<_>>(), (1..=300).collect::<Vec<_>>());
    for (i, r) in seen {
        assert_eq!(r.is_err(), i % 100 == 0, "{i}: a refused batch fails alone");
    }
}

#[test]
fn after_a_failure_nothing_is_acknowledged() {
    let disk = MemDisk::new();
    let writer = Arc::new(writer::spawn(open(&disk, config()).unwrap().0).unwrap());
    for i in 1..=5 {
        writer.append_durable(batch(1, i)).unwrap();
    }
    disk.fail_at(disk.operations() + 101, Fault::Eio);
    let acknowledged: Vec<AtomicU64> = (0..9).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|s| {
        for shard in 2..=8u64 {
            let (writer, acknowledged) = (writer.clone(), &acknowledged);
            s.spawn(move || {
                for i in 1..=200 {
                    match writer.append_durable(batch(shard, i)) {
                        Ok(()) => acknowledged[shard as usize].store(i, Ordering::Relaxed),
                        Err(_) => break,
                    }
                }
                assert!(writer.append_durable(batch(shard, 1)).is_err());
            });
        }
    });
    assert!(matches!(&*writer.failed().unwrap(), Error::Io { .. }));
    let (tx, rx) = mpsc::channel();
    writer.submit(batch(1, 6), Box::new(move |r| tx.send(r).unwrap()));
    let first = rx.recv().unwrap().unwrap_err();
    assert!(matches!(&*first, Error::Io { .. }), "the first error, not a consequence: {first}");
    assert!(writer.shutdown().is_err());
    disk.crash(&isochrone_env::SplitMix64::new(5));
    let log = open(&disk, config()).unwrap().0;
    for shard in 2..=8u64 {
        let last = log.reader().last_index(ShardId(shard)).unwrap_or(0);
        assert!(last >= acknowledged[shard as usize].load(Ordering::Relaxed));
    }
}

/// Tickets fix an order; waiting may come late, in any order, or never.
#[test]
fn tickets() {
    let disk = MemDisk::new();
    let writer = writer::spawn(open(&disk, config()).unwrap().0).unwrap();
    let mut tickets: Vec<_> = (1..=20).map(|i| writer.enqueue(batch(1, i)).unwrap()).collect();
    let refused = writer.enqueue(batch(1, 40)).unwrap();
    drop(writer.enqueue(batch(1, 21)).unwrap());
    assert!(matches!(&*refused.wait().unwrap_err(), Error::OutOfOrder { index: 40, last: 20, .. }));
    tickets.reverse();
    tickets.into_iter().for_each(|t| t.wait().unwrap());
    writer.shutdown().unwrap();
    assert_eq!(open(&disk, config()).unwrap().0.reader().last_index(ShardId(1)).unwrap(), 21);
}

/// A callback that panics stops the writer; nobody waits for ever.
#[test]
fn a_panicking_callback() {
    let disk = MemDisk::new();
    let writer = &writer::spawn(open(&disk, config()).unwrap().0).unwrap();
    let held = &std::sync::Barrier::new(2);
    std::thread::scope(|s| {
        // Threads wait before and behind the panicking callback, in its group and in the next.
        let survive = |f: &dyn Fn()| drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)));
        s.spawn(move || {
            survive(&|| {
                let first = writer.enqueue(batch(1, 1)).unwrap();
                writer.submit(batch(1, 2), Box::new(|_| panic!("on purpose")));
                let second = writer.enqueue(batch(1, 3));
                first.wait().ok();
                second.and_then(|t| t.wait()).ok();
            });
            held.wait();
        });
        for i in 4..9 {
            s.spawn(move || survive(&|| drop(writer.append_durable(batch(1, i)))));
        }
        held.wait();
    });
    let _ = writer.shutdown();
    assert!(matches!(&*writer.append_durable(batch(1, 2)).unwrap_err(), Error::Closed));
    assert!(writer.failed().is_some());
}
