//! Names, units and help of this crate's metrics.

/// Proposals accepted.
pub const PROPOSALS: &str = "isochrone_consensus_proposals_total";
/// Proposals refused because the inbox was full.
pub const OVERLOADED: &str = "isochrone_consensus_overloaded_total";
/// Entries applied.
pub const APPLIED: &str = "isochrone_consensus_applied_total";
/// Messages from peers dropped because the inbox was full.
pub const MESSAGES_DROPPED: &str = "isochrone_consensus_messages_dropped_total";
/// Elections won here.
pub const ELECTIONS_WON: &str = "isochrone_consensus_elections_won_total";
/// Snapshots begun for followers.
pub const SNAPSHOTS_OUT: &str = "isochrone_consensus_snapshots_out_total";
/// Snapshots accepted from leaders.
pub const SNAPSHOTS_IN: &str = "isochrone_consensus_snapshots_in_total";

/// Tells the recorder what the names mean.
pub fn describe() {
    metrics::describe_counter!(PROPOSALS, "proposals accepted into a shard's log");
    metrics::describe_counter!(OVERLOADED, "proposals refused because the store's inbox was full");
    metrics::describe_counter!(APPLIED, "log entries applied");
    metrics::describe_counter!(MESSAGES_DROPPED, "messages of peers dropped because the inbox was full");
    metrics::describe_counter!(ELECTIONS_WON, "elections won by replicas of this node");
    metrics::describe_counter!(SNAPSHOTS_OUT, "snapshots begun for followers that fell behind the log");
    metrics::describe_counter!(SNAPSHOTS_IN, "snapshots accepted from leaders");
}
