//! The log against the disk under it, in one run: `cargo bench -p isochrone-wal`.
//!
//! * raw: write + fdatasync of as many bytes as one append makes, on a preallocated file.
//! * one appender: `append_durable` of one entry.
//! * 64 appenders over 32 shards.
//!
//! Rounds alternate between the three, so that a disk that changes its mood does so for all; the median of the rounds'
//! ratios counts. Bars
//! (issue: the log): one appender at most 1.3 times the raw latency, 64 appenders at least 15 times its throughput.
//! Both bars are about the disk: on a machine that is busy with other things a thread waits milliseconds for a core after
//! each sync, and the figures say that instead. `WAL_BENCH_DIR` names a directory on the disk to measure; default: the target directory's.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use isochrone_base::ShardId;
use isochrone_env::os::OsDisk;
use isochrone_wal::{Batch, Config, Log, writer};

const ROUNDS: usize = 9;
const APPENDS_PER_ROUND: usize = 150;
const APPENDERS: usize = 64;
const SHARDS: u64 = 32;
const PAYLOAD_BYTES: usize = 128;
/// What one append of such an entry writes: batch header, record header, payload, padding, blank end.
const RAW_BYTES: usize = 56 + 36 + PAYLOAD_BYTES + 4 + 56;
const RATIO_LATENCY_MAX: f64 = 1.3;
const RATIO_THROUGHPUT_MIN: f64 = 15.0;

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn now() -> Instant {
    Instant::now()
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

fn directory() -> PathBuf {
    let base = std::env::var_os("WAL_BENCH_DIR")
        .or_else(|| std::env::var_os("CARGO_TARGET_DIR"))
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
    std::fs::create_dir_all(&base).expect("the benchmark's directory can be made");
    base
}

fn entry(shard: u64, index: u64) -> Batch {
    let mut b = Batch::new();
    b.entry(ShardId(shard), 1, index, vec![index as u8; PAYLOAD_BYTES]);
    b
}

fn main() {
    let dir = tempfile::Builder::new().prefix("wal-bench-").tempdir_in(directory()).expect("a directory");
    let raw = OpenOptions::new().create_new(true).write(true).open(dir.path().join("raw")).expect("a file");
    raw.set_len(64 << 20).expect("room");
    for at in 0..128u64 {
        raw.write_all_at(&vec![0; 512 << 10], at * (512 << 10)).expect("room");
    }
    raw.sync_all().expect("a sync");
    // The whole segment is made ahead: both sides overwrite.
    let config = Config { preallocate_bytes: 64 << 20, ..Config::new(dir.path().join("log")) };
    let (log, _) = Log::open(Arc::new(OsDisk), config).expect("a log");
    let log = writer::spawn(log).expect("a thread");

    let mut raw_at = 0u64;
    let shards: Vec<Mutex<u64>> = (0..=SHARDS).map(|_| Mutex::new(1)).collect();
    let take = |shard: u64| {
        let mut next = shards[shard as usize].lock().expect("nobody panics");
        // The order within a shard is fixed under its lock, the disk works outside of it.
        let ticket = log.enqueue(entry(shard, *next));
        *next += 1;
        ticket
    };
    let (mut raw_us, mut one_us, mut many_per_s, mut ratios, mut gains) =
        (vec![], vec![], vec![], vec![], vec![]);
    let mut group = vec![];
    for round in 0..=ROUNDS {
        let (mut raws, mut ones) = (vec![], vec![]);
        for half in 0..2 {
            // Which of the two goes first alternates.
            if (half + round) % 2 == 0 {
                for i in 0..APPENDS_PER_ROUND {
                    let buf = vec![i as u8; RAW_BYTES];
                    let t = now();
                    raw.write_all_at(&buf, raw_at).expect("a write");
                    raw.sync_data().expect("a sync");
                    raws.push(t.elapsed().as_secs_f64() * 1e6);
                    raw_at = (raw_at + RAW_BYTES as u64) % (63 << 20);
                }
            } else {
                for _ in 0..APPENDS_PER_ROUND {
                    let mut next = shards[0].lock().expect("nobody panics");
                    let batch = entry(0, *next);
                    *next += 1;
                    let t = now();
                    log.append_durable(batch).expect("an append");
                    ones.push(t.elapsed().as_secs_f64() * 1e6);
                }
            }
        }
        let alone_per_s = ones.len() as f64 * 1e6 / ones.iter().sum::<f64>();
        let mut many = 0u64;
        let before = log.stats();
        let t = now();
        std::thread::scope(|s| {
            let threads: Vec<_> = (0..APPENDERS)
                .map(|a| {
                    let take = &take;
                    s.spawn(move || {
                        let mut done = 0u64;
                        while t.elapsed() < Duration::from_millis(800) {
                            let ticket = take(1 + a as u64 % SHARDS).expect("a place in the queue");
                            ticket.wait().expect("an append");
                            done += 1;
                        }
                        done
                    })
                })
                .collect();
            many += threads.into_iter().map(|t| t.join().expect("an appender")).sum::<u64>();
        });
        let per_s = many as f64 / t.elapsed().as_secs_f64();
        let after = log.stats();
        if round == 0 {
            continue; // warm-up
        }
        let (r, o) = (median(raws), median(ones));
        println!("round {round}: raw {r:.0} us, one {o:.0} us ({alone_per_s:.0}/s), many {per_s:.0}/s");
        group.push((after.records - before.records) as f64 / (after.syncs - before.syncs) as f64);
        raw_us.push(r);
        one_us.push(o);
        ratios.push(o / r);
        gains.push(per_s / alone_per_s);
        many_per_s.push(per_s);
    }
    let (ratio, gain) = (median(ratios), median(gains));
    println!("raw write+fdatasync  {:9.1} us (median of {ROUNDS} rounds)", median(raw_us));
    println!("one appender         {:9.1} us", median(one_us));
    println!("64 appenders         {:9.0} appends/s, {:.1} to a sync", median(many_per_s), median(group));
    let verdict = |ok| if ok { "PASS" } else { "FAIL" };
    println!(
        "{}  latency ratio     {ratio:5.2} (at most {RATIO_LATENCY_MAX})",
        verdict(ratio <= RATIO_LATENCY_MAX)
    );
    println!(
        "{}  throughput ratio  {gain:5.1} (at least {RATIO_THROUGHPUT_MIN})",
        verdict(gain >= RATIO_THROUGHPUT_MIN)
    );
    log.shutdown().expect("an orderly end");
    if ratio > RATIO_LATENCY_MAX || gain < RATIO_THROUGHPUT_MIN {
        std::process::exit(1);
    }
}
