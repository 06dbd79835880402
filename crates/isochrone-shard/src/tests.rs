//! Tests of the shard against the rules of the commit protocol, by their ids.

mod between;
mod cluster;
mod follower;
mod harness;
mod mistakes;
mod random;
mod rules;
mod snapshot;
