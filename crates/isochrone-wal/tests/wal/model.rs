//! The log against a model, over crashes and reopenings (W1, W2, W6, W7).

use isochrone_env::SplitMix64;
use isochrone_env::fake::MemDisk;
use isochrone_wal::{Batch, Log, Tail, inspect};
use proptest::prelude::*;

use crate::support::{DIR, Model, Op, config, observe, open};

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<Op>),
    Sync,
    Maintain,
    /// Close in order, and open.
    Reopen,
    /// The process dies, the machine does not.
    Kill,
    /// Power cut with this seed.
    Crash(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let shard = 1..5u64;
    prop_oneof![
        8 => (shard.clone(), prop_oneof![4 => Just(0u64), 1 => 0..4u64], 1..9u64, 0..200usize, any::<u8>())
            .prop_map(|(shard, back, term, bytes, fill)| Op::Entry { shard, back, term, bytes, fill }),
        1 => (shard.clone(), 1..9u64, 0..4u64, 0..99u64)
            .prop_map(|(shard, term, vote, commit)| Op::Hard { shard, term, vote, commit }),
        3 => (shard.clone(), prop_oneof![4 => 0..4u64, 1 => 4..40u64])
            .prop_map(|(shard, forward)| Op::Truncate { shard, forward }),
        1 => (shard.clone(), 0..50u64, 1..9u64).prop_map(|(shard, first, term)| Op::Reset { shard, first, term }),
        1 => shard.prop_map(|shard| Op::Remove { shard }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec(op(), 1..6).prop_map(Step::Append),
        6 => Just(Step::Sync),
        1 => Just(Step::Maintain),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
        1 => any::<u64>().prop_map(Step::Crash),
    ]
}

/// The models after each batch since the last sync; the first is what is durable.
fn survivor(log: &Log, versions: &[Model]) -> Model {
    let seen = observe(&log.reader()).unwrap();
    assert!(versions.contains(&seen), "{seen:#?}\nis none of {versions:#?}");
    seen
}

fn run(steps: &[Step]) {
    let disk = MemDisk::new();
    let mut log = open(&disk, config()).unwrap().0;
    let mut versions = vec![Model::default()];
    for step in steps {
        match step {
            Step::Append(ops) => {
                let (mut batch, mut model) = (Batch::new(), versions.last().unwrap().clone());
                let mut prefixes = Vec::new();
                for op in ops {
                    model.run(op, &mut batch);
                    prefixes.push(model.clone());
                }
                if batch.bytes() > config().batch_bytes_max {
                    // Cut at record boundaries: any prefix may survive.
                    versions.append(&mut prefixes);
                }
                log.append(&[batch]).unwrap();
                versions.push(model);
            }
            Step::Sync => {
                log.sync().unwrap();
                versions.drain(..versions.len() - 1);
                assert_eq!(observe(&log.reader()).unwrap(), versions[0]);
            }
            Step::Maintain => {
                log.maintain().unwrap();
                assert_eq!(observe(&log.reader()).unwrap(), versions[0]);
            }
            Step::Reopen => {
                log.close().unwrap();
                let (reopened, report) = open(&disk, config()).unwrap();
                log = reopened;
                assert_eq!(report.tail, Tail::Clean);
                versions.drain(..versions.len() - 1);
                assert_eq!(observe(&log.reader()).unwrap(), versions[0]);
            }
            Step::Kill => {
                drop(log);
                let (reopened, report) = open(&disk, config()).unwrap();
                log = reopened;
                assert_eq!(report.tail, Tail::Clean, "all writes reached the page cache");
                versions.drain(..versions.len() - 1);
                assert_eq!(observe(&log.reader()).unwrap(), versions[0]);
            }
            Step::Crash(seed) => {
                drop(log);
                disk.crash(&SplitMix64::new(*seed));
                let before = inspect::verify(&disk, DIR.as_ref()).unwrap();
                assert!(before.problems.is_empty(), "{:?}", before.problems);
                let (reopened, report) = open(&disk, config()).unwrap();
                log = reopened;
                assert_eq!(before.tail, report.tail);
                versions = vec![survivor(&log, &versions)];
            }
        }
    }
    log.sync().unwrap();
    let scanned: Vec<_> = log.reader().scan().collect::<Result<_, _>>().unwrap();
    let offline: Vec<_> =
        inspect::records(&disk, DIR.as_ref(), Default::default()).unwrap().collect::<Result<_, _>>().unwrap();
    // Offline, files show that are not needed any more but not yet put aside.
    assert!(offline.ends_with(&scanned));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn behaves_like_the_model(steps in prop::collection::vec(step(), 1..60)) {
        run(&steps);
    }
}

/// Refusals change nothing.
#[test]
fn entries_must_continue_the_log() {
    use isochrone_base::ShardId;
    let disk = MemDisk::new();
    let mut log = open(&disk, config()).unwrap().0;
    let mut bad = Batch::new();
    bad.entry(ShardId(1), 1, 1, "a").entry(ShardId(1), 1, 3, "c");
    let e = log.append(&[bad]).unwrap_err();
    assert!(e.is_refusal());
    assert_eq!(e.to_string(), "shard 1: entry 3 does not continue a log of 1..=1");
    assert!(!log.has_unsynced());
    let mut good = Batch::new();
    good.reset(ShardId(1), 10, 4).entry(ShardId(1), 5, 10, "x");
    log.append(&[good]).unwrap();
    assert_eq!(log.appended_bounds(ShardId(1)), Some((10, 10)));
    assert!(log.reader().shards().is_empty(), "not durable, not visible");
    log.sync().unwrap();
    let r = log.reader();
    assert_eq!((r.term(ShardId(1), 9).unwrap(), r.term(ShardId(1), 10).unwrap()), (4, 5));
    assert!(matches!(
        r.entries(ShardId(1), 9..11, 1),
        Err(isochrone_wal::Error::Compacted { first: 10, .. })
    ));
    assert!(matches!(
        r.entries(ShardId(1), 10..12, 1),
        Err(isochrone_wal::Error::Unavailable { last: 10, .. })
    ));
    assert!(matches!(r.term(ShardId(2), 1), Err(isochrone_wal::Error::UnknownShard(ShardId(2)))));
    let p = r.position(ShardId(1), 10).unwrap();
    let info = r.scan().map(Result::unwrap).find(|x| x.index == 10 && x.at == p.at).unwrap();
    assert_eq!((info.file, &info.payload[..]), (p.file, &b"x"[..]));
}

/// A record larger than a segment gets a segment of its own size.
#[test]
fn oversized_records() {
    use isochrone_base::ShardId;
    let disk = MemDisk::new();
    let mut log = open(&disk, config()).unwrap().0;
    let big = vec![7; 100_000];
    let mut batch = Batch::new();
    batch.entry(ShardId(1), 1, 1, "small").entry(ShardId(1), 1, 2, big.clone()).entry(
        ShardId(1),
        1,
        3,
        "small",
    );
    log.append(&[batch]).unwrap();
    log.sync().unwrap();
    drop(log);
    let (log, report) = open(&disk, config()).unwrap();
    assert_eq!(report.tail, Tail::Clean);
    let entries = log.reader().entries(ShardId(1), 1..4, 10).unwrap();
    assert_eq!(entries.len(), 1, "the second would exceed the limit");
    let entries = log.reader().entries(ShardId(1), 2..4, 10).unwrap();
    assert_eq!((entries.len(), &entries[0].payload[..]), (1, &big[..]));
}
