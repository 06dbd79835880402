//! Names, units and help of this crate's metrics.

/// Proposals accepted.
pub const PROPOSALS: &str = "isochrone_consensus_proposals_total";
/// Proposals refused because the inbox was full.
pub const OVERLOADED: &str = "isochrone_consensus_overloaded_total";
/// Entries applied.
pub const APPLIED: &str = "isochrone_consensus_applied_total";

/// Tells the recorder what the names mean.
pub fn describe() {
    metrics::describe_counter!(PROPOSALS, "proposals accepted into a shard's log");
    metrics::describe_counter!(OVERLOADED, "proposals refused because the store's inbox was full");
    metrics::describe_counter!(APPLIED, "log entries applied");
}
