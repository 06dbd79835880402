//! The replicated state machine of a shard: versions, records, floor, closed, timestamp cache, locks.
