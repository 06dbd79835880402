//! One life of the node: from opening its log to a power cut, or to the end of the run.

use std::sync::Arc;
use std::time::Duration;

use isochrone_base::NodeId;
use isochrone_consensus::wal_log::to_wal_batch;
use isochrone_consensus::{Event, Handle, Inbox, LogBatch, Output, Store};
use isochrone_env::fake::TokioClock;
use isochrone_env::os::TokioTimer;
use isochrone_env::{Clock, Env, SplitMix64};
use isochrone_server::{Assembled, Node};
use isochrone_wal::Log;
use tokio::sync::{Notify, mpsc};

use crate::World;
use crate::workload;

/// Wall time at which every run begins: 2024-01-01.
const EPOCH_US: u64 = 1_704_067_200_000_000;
/// Log batches on their way to the disk; the store holds back more by itself.
const BATCHES_MAX: usize = 64;

pub(crate) struct End {
    pub(crate) lasted: Duration,
    pub(crate) crashed: bool,
}

/// Runs one life. `cut_after`: disk operations until the power goes. `last`: no load, only the final checks.
pub(crate) fn live(
    world: &Arc<World>,
    life: u64,
    elapsed: Duration,
    remaining: Duration,
    cut_after: Option<u64>,
    last: bool,
) -> Result<End, String> {
    if let Some(n) = cut_after {
        world.disk.fail_at(world.disk.operations() + n, isochrone_env::fake::Fault::PowerCut);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let clock = Arc::new(TokioClock::new(EPOCH_US + elapsed.as_micros() as u64));
        let env = Env {
            disk: Arc::new(world.disk.clone()),
            clock: clock.clone(),
            random: Arc::new(SplitMix64::split(world.options.seed, &format!("node {life}"))),
            timer: Arc::new(TokioTimer),
        };
        let outcome = tokio::select! {
            biased;
            () = power_goes(world) => Ok(()),
            result = node_life(world, life, env, remaining, last) => result,
        };
        let crashed = world.disk.is_dead();
        match outcome {
            // Whatever else a dying node reports is not a finding.
            Err(_) if crashed => {}
            Err(e) => return Err(e),
            Ok(()) => {}
        }
        Ok(End { lasted: Duration::from_nanos(clock.monotonic_ns()), crashed })
    })
}

async fn power_goes(world: &World) {
    while !world.disk.is_dead() {
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
}

async fn node_life(
    world: &Arc<World>,
    life: u64,
    env: Env,
    remaining: Duration,
    last: bool,
) -> Result<(), String> {
    let draw = SplitMix64::split(world.options.seed, &format!("life {life}"));
    let mut config = isochrone_wal::Config::new("/wal");
    config.segment_bytes = [8 << 10, 64 << 10, 1 << 20][draw.below(3) as usize];
    config.preallocate_bytes = 64 << 10;
    let (log, report) =
        Log::open(env.disk.clone(), config).map_err(|e| format!("SIM4: the log does not open: {e}"))?;
    world.note(&format!("{:?}", report.tail), &[life]);

    let notify = Arc::new(Notify::new());
    let wake = notify.clone();
    let inbox = Inbox::new(Box::new(move || wake.notify_one()));
    let handle = Handle::new(inbox.clone());
    let assembled =
        Node::assemble(env.clone(), NodeId(1), Arc::new(world.engine.clone()), log.reader(), handle)
            .map_err(|e| format!("SIM4: the node does not come up: {e:#}"))?;
    let Assembled { node, groups, recoverer: _recoverer } = assembled;
    let (to_disk, batches) = mpsc::channel(BATCHES_MAX);
    tokio::spawn(disk_task(
        log,
        batches,
        inbox.clone(),
        SplitMix64::split(world.options.seed, &format!("disk {life}")),
    ));
    tokio::spawn(store_task(world.clone(), groups, inbox, notify, to_disk));
    node.serve().await.map_err(|e| format!("SIM4: the node does not serve: {e:#}"))?;

    workload::set_up(world, &node).await?;
    if last {
        return workload::final_checks(world, &node).await;
    }
    let ticker = node.clone();
    let ticks = async move {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            // A tick may fail on a shard that is splitting or going down; the next one goes on.
            let _ = ticker.tick(u64::MAX, true).await;
            if draw.below(20) == 0 {
                let _ = ticker.flush_and_truncate();
            }
            if draw.below(100) == 0 {
                let _ = ticker.collect_garbage(Duration::from_secs(5)).await;
            }
        }
    };
    let clients = (0..world.options.clients)
        .map(|id| tokio::spawn(workload::client(world.clone(), node.clone(), life, id)));
    let clients: Vec<_> = clients.collect();
    let auditor = tokio::spawn(workload::auditor(world.clone(), node.clone()));
    tokio::select! {
        biased;
        () = ticks => unreachable!("ticks go on for ever"),
        found = auditor => return found.unwrap_or_else(|e| Err(e.to_string())),
        () = tokio::time::sleep(remaining) => {}
    }
    for client in clients {
        client.abort();
        if let Ok(Err(finding)) = client.await {
            return Err(finding);
        }
    }
    Ok(())
}

/// The store loop, as `isochrone_consensus::shell` runs it on a thread.
async fn store_task(
    world: Arc<World>,
    mut groups: Store,
    inbox: Arc<Inbox>,
    notify: Arc<Notify>,
    to_disk: mpsc::Sender<(u64, LogBatch)>,
) {
    let mut events = Vec::new();
    loop {
        if !groups.has_work() {
            notify.notified().await;
        }
        inbox.drain(&mut events);
        let mut out = Output::default();
        if let Err(e) = groups.step(&mut events, &mut out) {
            panic!("a state machine could not apply: {e}");
        }
        if let Some((number, batch)) = out.log {
            world.note("batch", &[number, batch.entries.len() as u64]);
            if to_disk.send((number, batch)).await.is_err() {
                return;
            }
        }
        if out.stop {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// The log writer, as `isochrone_wal::writer` runs it on a thread: everything that waits, one write, one sync.
async fn disk_task(
    mut log: Log,
    mut batches: mpsc::Receiver<(u64, LogBatch)>,
    inbox: Arc<Inbox>,
    latency: SplitMix64,
) {
    while let Some((mut number, batch)) = batches.recv().await {
        let mut all = vec![to_wal_batch(batch)];
        while let Ok((next, batch)) = batches.try_recv() {
            number = next;
            all.push(to_wal_batch(batch));
        }
        tokio::time::sleep(Duration::from_micros(100 + latency.below(900))).await;
        let result = log.append(&all).and_then(|()| log.sync());
        match result {
            Ok(()) => inbox.push(Event::Durable(Ok(number))),
            Err(e) => {
                inbox.close(&e.to_string());
                inbox.push(Event::Durable(Err(e.to_string())));
                return;
            }
        }
    }
}
