//! The node log: many shard logs in one sequence of segments, one fsync for all that wait.
