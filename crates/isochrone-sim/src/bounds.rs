//! SIM19: who has a wrong clock serves nobody.
//!
//! A clock counts as wrong when no clock within its bound can be taken to agree with it, whatever the measuring does. While
//! wrong clocks are as many as right ones, nobody can know, and nothing is asked. Nor is it while a node cannot measure most
//! clocks as right ones: who is cut off from them cannot know either (N6).

use std::collections::BTreeMap;
use std::time::Duration;

use isochrone_base::NodeId;
use isochrone_server::cluster::{CLOCK_ERROR_MAX, OFFSET_MAX};

use crate::fleet::Fleet;
use crate::life::EPOCH_US;
use crate::world::Found;

/// A node whose clock is wrong must have noticed after this.
const NOTICED_MAX: Duration = Duration::from_secs(5);
/// What measuring may be off by.
const MEASURING_MAX: Duration = Duration::from_millis(100);

/// Since when clocks are wrong.
#[derive(Default)]
pub(crate) struct Bounds {
    wrong_since: BTreeMap<NodeId, Duration>,
}

impl Bounds {
    /// To be called often.
    pub(crate) fn look(&mut self, fleet: &Fleet) -> Result<(), Found> {
        let true_us = EPOCH_US + fleet.now.as_micros() as u64;
        let far_us = (OFFSET_MAX + CLOCK_ERROR_MAX + MEASURING_MAX).as_micros() as u64;
        let off = |node: &NodeId| fleet.world.skew(*node).off_us(true_us).unsigned_abs();
        let all = fleet.world.nodes();
        let wrong: Vec<NodeId> = all.iter().copied().filter(|n| off(n) > far_us).collect();
        let right = all.iter().filter(|n| off(n) <= CLOCK_ERROR_MAX.as_micros() as u64).count();
        if right * 2 <= all.len() {
            self.wrong_since.clear();
            return Ok(());
        }
        let right_in_service = |node: &NodeId| {
            off(node) <= CLOCK_ERROR_MAX.as_micros() as u64
                && fleet.life(*node).is_some_and(|life| !life.node.cluster.clocks().is_out())
        };
        let can_know = |node: &NodeId| {
            let measured = all.iter().filter(|m| *m != node && fleet.world.net.in_touch(*node, **m));
            measured.filter(|m| right_in_service(m)).count() * 2 > all.len()
        };
        // A node that stands still, or has just begun, has had no time to notice.
        self.wrong_since
            .retain(|node, _| wrong.contains(node) && fleet.life(*node).is_some() && can_know(node));
        for node in wrong.into_iter().filter(can_know) {
            let Some(life) = fleet.life(node) else { continue };
            let since = *self.wrong_since.entry(node).or_insert(fleet.now.max(life.began()));
            if fleet.now.saturating_sub(since) > NOTICED_MAX && !life.node.cluster.clocks().is_out() {
                let off_ms = off(&node) / 1_000;
                return Err(Found::new(
                    "SIM19",
                    format!(
                        "node {node} serves, with a clock that has been off by {off_ms} ms since {since:?}"
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// When all clocks are within their bounds again.
pub(crate) fn at_the_end(fleet: &Fleet) -> Result<(), Found> {
    for life in fleet.moving() {
        if let Some(why) = life.node.cluster.clocks().trouble() {
            return Err(Found::new("SIM19", format!("node {} is still out of service: {why}", life.node.id)));
        }
    }
    Ok(())
}
