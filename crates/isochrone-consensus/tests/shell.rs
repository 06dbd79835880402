//! The loop's thread: however it ends, nobody who asked it something waits for ever.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isochrone_base::{Bytes, LogIndex, NodeId, ShardId, Term};
use isochrone_consensus::shell::{self, LogSink, NoPeers, Running, Wiring};
use isochrone_consensus::{
    ApplyError, CommittedEntry, GroupLog, Handle, HardState, InstallDone, LogBatch, LogEntry, NewGroup,
    ProposeError, Role, SnapshotMeta, SnapshotSource, StateMachine, Store, StoreConfig,
};
use isochrone_env::SplitMix64;

const SHARD: ShardId = ShardId(7);
const PATIENCE: Duration = Duration::from_secs(20);

/// A log that begins empty; entries are applied from the group's own cache.
struct NoLog;

impl GroupLog for NoLog {
    fn begin(&self, _: ShardId) -> Option<(LogIndex, Term)> {
        None
    }
    fn bounds(&self, _: ShardId) -> Option<(LogIndex, LogIndex)> {
        None
    }
    fn term(&self, _: ShardId, _: LogIndex) -> Option<Term> {
        None
    }
    fn entries(&self, _: ShardId, _: LogIndex, _: LogIndex, _: u64) -> Result<Vec<LogEntry>, String> {
        Err("nothing here".into())
    }
    fn hard_state(&self, _: ShardId) -> Option<HardState> {
        None
    }
}

/// Everything is durable at once.
struct Durable;

impl LogSink for Durable {
    fn submit(&mut self, _: LogBatch, done: Box<dyn FnOnce(Result<(), String>) + Send>) {
        done(Ok(()));
    }
}

/// Refuses `poison`, panics at `panic`, tells of its term.
struct Machine(Mutex<Option<std::sync::mpsc::Sender<Term>>>);

impl StateMachine for Machine {
    fn apply(&self, shard: ShardId, entries: &[CommittedEntry]) -> Result<Vec<NewGroup>, ApplyError> {
        for entry in entries {
            match entry.payload.as_ref() {
                b"poison" => {
                    return Err(ApplyError { shard, index: entry.index, reason: "poison".into() });
                }
                b"panic" => panic!("as the test wants it"),
                _ => {}
            }
        }
        Ok(Vec::new())
    }
    fn role(&self, _: ShardId, role: Role) {
        if let Role::Leader(term) = role {
            let _ = self.0.lock().unwrap().as_ref().unwrap().send(term);
        }
    }
    fn lease(&self, _: ShardId, _: Term, _: u64) {}
    fn snapshot(&self, _: ShardId) -> Result<Box<dyn SnapshotSource>, String> {
        Err("nobody asks".into())
    }
    fn install(&self, _: ShardId, _: SnapshotMeta, done: InstallDone) {
        done(Err("nobody asks".into()));
    }
    fn remove(&self, _: ShardId, _: isochrone_consensus::RemoveDone) {
        unreachable!("nobody leaves");
    }
    fn discard(&self, _: ShardId, _: SnapshotMeta) {}
    fn stopped(&self, _: &str) {}
}

fn start() -> (Handle, Running, Term, Receiver<String>) {
    let (leading, term) = channel();
    let (fatal, reasons) = channel();
    let machine = Arc::new(Machine(Mutex::new(Some(leading))));
    let random = Arc::new(SplitMix64::new(1));
    let mut store = Store::new(StoreConfig::new(NodeId(1)), Arc::new(NoLog), machine, random).unwrap();
    store
        .create_group(NewGroup {
            shard: SHARD,
            members: vec![NodeId(1)].into(),
            applied: 0,
            applied_term: 0,
            campaign: false,
        })
        .unwrap();
    let (wiring, handle) = Wiring::new();
    let env = isochrone_env::os::env(0).unwrap();
    let fatal = Box::new(move |reason: String| drop(fatal.send(reason)));
    let running = shell::run(store, wiring, Box::new(Durable), Box::new(NoPeers), env.clock, fatal).unwrap();
    // The role is told when there is something to look at.
    let _status = handle.status();
    (handle, running, term.recv_timeout(PATIENCE).unwrap(), reasons)
}

async fn within<T>(what: &str, f: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, f).await.unwrap_or_else(|_| panic!("{what}: nobody answers"))
}

async fn ends_with(payload: &'static [u8], expected: &str) {
    let (handle, running, term, reasons) = start();
    let answer = within("a proposal", handle.propose(SHARD, term, Bytes::from_static(b"fine"))).await;
    assert!(matches!(answer, Ok(Ok(_))), "{answer:?}");
    // Others come in while the loop goes down: some before it takes the fatal entry, some after it is gone.
    let fatal = handle.propose(SHARD, term, Bytes::from_static(payload));
    let mut waiting = Vec::new();
    let mut asking = Vec::new();
    let reason = loop {
        waiting.push(handle.propose(SHARD, term, Bytes::from_static(b"late")));
        asking.push(handle.status());
        match reasons.try_recv() {
            Ok(reason) => break reason,
            Err(_) if waiting.len() < 10_000 => std::thread::yield_now(),
            Err(_) => break reasons.recv_timeout(PATIENCE).unwrap(),
        }
    };
    assert!(reason.contains(expected), "{reason}");
    assert!(within("the fatal entry", fatal).await.is_err());
    waiting.push(handle.propose(SHARD, term, Bytes::from_static(b"later")));
    for w in waiting {
        let answer = within("a late proposal", w).await;
        assert!(!matches!(answer, Ok(Ok(_))), "acknowledged after the end: {answer:?}");
    }
    asking.push(handle.status());
    for a in asking {
        let _gone_or_answered = within("a status", a).await;
    }
    running.stop();
    let answer = within("a proposal at the end", handle.propose(SHARD, term, Bytes::new())).await;
    assert!(matches!(answer, Ok(Err(ProposeError::Stopped(_)))), "{answer:?}");
    assert!(within("a status at the end", handle.status()).await.is_err());
}

#[tokio::test]
async fn a_refused_entry_leaves_nobody_waiting() {
    ends_with(b"poison", "poison").await;
}

#[tokio::test]
async fn a_panic_leaves_nobody_waiting_and_is_told() {
    ends_with(b"panic", "panicked").await;
}

#[tokio::test]
async fn after_a_stop_nobody_waits() {
    let (handle, running, ..) = start();
    running.stop();
    assert!(within("a status", handle.status()).await.is_err());
}
