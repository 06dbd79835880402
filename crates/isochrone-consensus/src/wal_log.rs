//! The node log (crate wal) as consensus sees it.

use std::sync::Arc;

use isochrone_base::{LogIndex, ShardId, Term};
use isochrone_wal::writer::LogWriter;
use isochrone_wal::{Batch, LogReader};

use crate::log::{GroupLog, HardState, LogBatch, LogEntry, Record};
use crate::shell::LogSink;

/// Reads groups' entries from the node log.
pub struct WalLog(pub LogReader);

impl GroupLog for WalLog {
    fn begin(&self, shard: ShardId) -> Option<(LogIndex, Term)> {
        let first = self.0.first_index(shard).ok()?;
        Some((first, self.0.term(shard, first - 1).unwrap_or(isochrone_wal::TERM_UNKNOWN)))
    }

    fn bounds(&self, shard: ShardId) -> Option<(LogIndex, LogIndex)> {
        // A shard without a log is unknown to the reader: no entries.
        let (first, last) = (self.0.first_index(shard).ok()?, self.0.last_index(shard).ok()?);
        (first <= last).then_some((first, last))
    }

    fn term(&self, shard: ShardId, index: LogIndex) -> Option<Term> {
        self.0.term(shard, index).ok()
    }

    fn entries(
        &self,
        shard: ShardId,
        low: LogIndex,
        high: LogIndex,
        bytes_max: u64,
    ) -> Result<Vec<LogEntry>, String> {
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let entries = self.0.entries(shard, low..high, bytes_max).map_err(|e| e.to_string())?;
        Ok(entries
            .into_iter()
            .map(|e| LogEntry { index: e.index, term: e.term, payload: e.payload })
            .collect())
    }

    fn hard_state(&self, shard: ShardId) -> Option<HardState> {
        let hs = self.0.hard_state(shard).ok()??;
        Some(HardState { term: hs.term, vote: hs.vote, commit: hs.commit })
    }
}

/// What a step wants on disk, in the node log's words.
pub fn to_wal_batch(batch: LogBatch) -> Batch {
    let mut out = Batch::new();
    for record in batch.into_records() {
        match record {
            Record::Reset(shard, first, prev_term) => out.reset(shard, first, prev_term),
            Record::HardState(shard, HardState { term, vote, commit }) => {
                out.hard_state(shard, isochrone_wal::HardState { term, vote, commit })
            }
            Record::Entry(shard, e) => out.entry(shard, e.term, e.index, e.payload),
            Record::Truncate(shard, first) => out.truncate_prefix(shard, first),
        };
    }
    out
}

/// Writes through the node log's own thread: group commit over everything that waits.
pub struct WalSink(pub Arc<LogWriter>);

impl LogSink for WalSink {
    fn submit(&mut self, batch: LogBatch, done: Box<dyn FnOnce(Result<(), String>) + Send>) {
        self.0.submit(to_wal_batch(batch), Box::new(move |result| done(result.map_err(|e| e.to_string()))));
    }
}
