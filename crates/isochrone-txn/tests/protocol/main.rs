//! The commit protocol as coordinator and recovery keep it, against shards in memory that keep their part.
//!
//! `model` is the shards (records, prepares, floor, cache, locks) with evaluation and application as one step; `net`
//! is what lies between: it loses, repeats, delays, holds and answers messages as a test says, and lets coordinators
//! die. `rules` has a test for each rule and for each coordinator's mistake of the protocol's section 13; `bank` is random.
//!
//! Time is virtual: a paused tokio runtime.

mod bank;
mod model;
mod net;
mod reads;
mod rules;
mod store;
