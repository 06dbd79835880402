//! Shards as Raft groups; raft-rs lives here.
