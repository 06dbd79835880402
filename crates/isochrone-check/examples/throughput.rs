//! How many transactions a second the list checker takes. `cargo run --release -p isochrone-check --example throughput`
//! prints nothing but the window: time it from outside (`time`), for this crate has no clock.
//!
//! Arguments: level (rc, si, ser, strict), transactions, keys in use, appends per key, clients.

use isochrone_check::append::{AppendChecker, Op, Options, TxnNo};
use isochrone_check::{Level, Outcome};

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let level = match args.next().as_deref() {
        Some("rc") => Level::ReadCommitted,
        Some("si") => Level::SnapshotIsolation,
        Some("ser") => Level::Serializable,
        _ => Level::StrictSerializable,
    };
    let mut number = |default: u64| args.next().and_then(|a| a.parse().ok()).unwrap_or(default);
    let (txns, slots, appends_max, clients) = (number(1_000_000), number(20), number(100), number(20));
    let mut rng = Rng(1);
    let mut checker =
        AppendChecker::new(Options { key_appends_max: appends_max as u32, ..Options::new(level) });
    // Per slot its key and its list; per client its open transaction.
    let mut lists: Vec<(u64, Vec<u64>)> = (0..slots).map(|k| (k, Vec::new())).collect();
    let mut open: Vec<Option<(TxnNo, Vec<Op>)>> = vec![None; clients as usize];
    let (mut next_key, mut value, mut now, mut done) = (slots, 0, 0, 0);
    while done < txns {
        now += 1;
        let client = rng.below(clients);
        if let Some((no, ops)) = open[client as usize].take() {
            checker.finish(no, Outcome::Committed, ops, now);
            done += 1;
            continue;
        }
        let no = checker.begin(client, now);
        let mut ops = Vec::new();
        for _ in 0..1 + rng.below(6) {
            let slot = &mut lists[rng.below(slots) as usize];
            if rng.below(2) == 0 {
                ops.push(Op::Read { key: slot.0, list: slot.1.clone() });
                continue;
            }
            value += 1;
            slot.1.push(value);
            ops.push(Op::Append { key: slot.0, value });
            if slot.1.len() as u64 == appends_max {
                *slot = (next_key, Vec::new());
                next_key += 1;
            }
        }
        open[client as usize] = Some((no, ops));
    }
    checker.end();
    let found = checker.findings().total();
    println!("{level:?}: {found} findings, {:?}", checker.stats());
    checker.findings().take().iter().take(3).for_each(|f| println!("{f}"));
}
