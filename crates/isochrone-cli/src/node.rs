//! `isochrone node`: who is there, and taking one out of use.

use std::time::Duration;

use anyhow::{Result, bail};
use isochrone_api::{NodeRow, Request, Response};
use isochrone_base::NodeId;

use crate::init::{ASK_EVERY, address};
use crate::{admin, table};

/// The nodes of a cluster.
///
///   isochrone node ls --cluster 127.0.0.1:7433           any node may be asked
///   isochrone node drain 2 --cluster 127.0.0.1:7433      before node 2 is stopped
#[derive(clap::Args, Debug, Clone)]
#[command(verbatim_doc_comment)]
pub struct NodeArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: NodeCommand,
}

/// What `isochrone node` can do.
#[derive(clap::Subcommand, Debug, Clone)]
pub enum NodeCommand {
    /// Lists the nodes: number, addresses, live or dead or draining, shards led, replicas held.
    ///
    ///   isochrone node ls --cluster 127.0.0.1:7433
    ///
    /// A dead node has not renewed its liveness record. Exit code 0 when somebody answered.
    #[command(verbatim_doc_comment)]
    Ls {
        /// The cluster address of any node.
        #[arg(long, value_name = "HOST:PORT", value_parser = address)]
        cluster: String,
    },
    /// Lets a node lead nothing, so that stopping it afterwards disturbs nobody. Its replicas stay.
    ///
    ///   isochrone node drain 2 --cluster 127.0.0.1:7433 && kill PID-OF-NODE-2
    ///
    /// Shows how many shards it still leads. Exit code 0 when that is none.
    #[command(verbatim_doc_comment)]
    Drain {
        /// The node's number, as `isochrone node ls` shows it.
        #[arg(value_name = "NODE", value_parser = clap::value_parser!(u32).range(1..))]
        node: u32,
        /// The cluster address of any node.
        #[arg(long, value_name = "HOST:PORT", value_parser = address)]
        cluster: String,
        /// Give up after this many seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        wait: u64,
    },
    /// Gives the replicas of a node to another one, shard by shard, while both serve; the old one may be lost for good.
    ///
    ///   isochrone start --data n4 --cluster 127.0.0.1:7436 --join 127.0.0.1:7433      a new node
    ///   isochrone node replace 3 4 --cluster 127.0.0.1:7433
    ///
    /// Shows how many shards are left to move. Giving up does not stop it: the cluster goes on by itself. Exit code 0 when all
    /// are moved.
    #[command(verbatim_doc_comment)]
    Replace {
        /// The node whose place is taken.
        #[arg(value_name = "OLD", value_parser = clap::value_parser!(u32).range(1..))]
        old: u32,
        /// The node that takes it.
        #[arg(value_name = "NEW", value_parser = clap::value_parser!(u32).range(1..))]
        new: u32,
        /// The cluster address of any node.
        #[arg(long, value_name = "HOST:PORT", value_parser = address)]
        cluster: String,
        /// Give up after this many seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 600)]
        wait: u64,
    },
}

/// Runs the command. Exit code 0, or an error.
pub async fn run(args: NodeArgs) -> Result<i32> {
    match args.command {
        NodeCommand::Ls { cluster } => {
            print!("{}", show(&list(&cluster).await?));
        }
        NodeCommand::Drain { node, cluster, wait } => {
            let request = Request::Drain { node: NodeId(node) };
            let ask = async || admin::call(&cluster, &request).await;
            follow(ask, |now| draining(node, now), Duration::from_secs(wait), &mut |line| println!("{line}"))
                .await?;
        }
        NodeCommand::Replace { old, new, cluster, wait } => {
            let request = Request::Replace { old: NodeId(old), new: NodeId(new) };
            let ask = async || admin::call(&cluster, &request).await;
            let read = |now| replacing(old, new, now);
            follow(ask, read, Duration::from_secs(wait), &mut |line| println!("{line}")).await?;
        }
    }
    Ok(0)
}

/// The nodes, as one of them sees the cluster.
pub async fn list(cluster: &str) -> Result<Vec<NodeRow>> {
    match admin::call(cluster, &Request::NodeList).await {
        Ok(Response::Nodes(rows)) => Ok(rows),
        Ok(other) => Err(admin::unexpected(other)),
        Err(admin::Error::Unreachable(why)) => bail!("no answer from {cluster}: {why}"),
        Err(admin::Error::Refused(why)) => bail!("{cluster}: {why}"),
    }
}

fn show(nodes: &[NodeRow]) -> String {
    let columns = ["node", "address", "sql", "state", "leaders", "replicas"].map(String::from);
    let rows: Vec<_> = nodes
        .iter()
        .map(|n| {
            vec![
                Some(n.node.to_string()),
                Some(n.address.clone()),
                Some(n.sql.clone()).filter(|s| !s.is_empty()),
                Some(n.state.name().to_string()),
                Some(n.leaders.to_string()),
                Some(n.replicas.to_string()),
            ]
        })
        .collect();
    table::render(&columns, &rows)
}

/// How far it is, in words, and whether that is the end.
type Progress = (String, bool);

fn draining(node: u32, now: Response) -> Result<Progress> {
    match now {
        Response::Drained => Ok((format!("node {node} leads no shard; it can be stopped"), true)),
        Response::Draining { leaders_left: 1 } => Ok((format!("node {node} still leads 1 shard"), false)),
        Response::Draining { leaders_left: n } => Ok((format!("node {node} still leads {n} shards"), false)),
        other => Err(admin::unexpected(other)),
    }
}

fn replacing(old: u32, new: u32, now: Response) -> Result<Progress> {
    match now {
        Response::Replaced => {
            Ok((format!("node {new} holds what node {old} held; node {old} can be stopped"), true))
        }
        Response::Replacing { shards_left: u32::MAX } => {
            Ok(("no quorum answers now; asking again".into(), false))
        }
        Response::Replacing { shards_left: 1 } => Ok(("1 shard left to move".into(), false)),
        Response::Replacing { shards_left: n } => Ok((format!("{n} shards left to move"), false)),
        other => Err(admin::unexpected(other)),
    }
}

/// Asks until it is done, and says how far it is whenever that changes.
async fn follow(
    mut ask: impl AsyncFnMut() -> Result<Response, admin::Error>,
    read: impl Fn(Response) -> Result<Progress>,
    wait: Duration,
    say: &mut impl FnMut(&str),
) -> Result<()> {
    let mut waited = Duration::ZERO;
    let mut said = String::new();
    loop {
        let now = match ask().await {
            Ok(now) => match read(now)? {
                (end, true) => {
                    say(&end);
                    return Ok(());
                }
                (now, false) => now,
            },
            Err(admin::Error::Unreachable(why)) => format!("no answer ({why}); asking again"),
            Err(admin::Error::Refused(why)) => bail!("{why}"),
        };
        if now != said {
            say(&now);
            said = now;
        }
        if waited >= wait {
            bail!("gave up after {} s: {said}", wait.as_secs());
        }
        tokio::time::sleep(ASK_EVERY).await;
        waited += ASK_EVERY;
    }
}

#[cfg(test)]
mod tests {
    use isochrone_api::NodeState;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drain_shows_its_progress() {
        let left = |leaders_left| Ok(Response::Draining { leaders_left });
        let lost = Err(admin::Error::Unreachable("connection refused".into()));
        let mut answers = [left(5), left(5), lost, left(1), Ok(Response::Drained)].into_iter();
        let mut said = Vec::new();
        let ask = async || answers.next().expect("not asked more often");
        follow(ask, |now| draining(2, now), Duration::from_secs(60), &mut |l| said.push(l.to_string()))
            .await
            .unwrap();
        assert_eq!(
            said,
            [
                "node 2 still leads 5 shards",
                "no answer (connection refused); asking again",
                "node 2 still leads 1 shard",
                "node 2 leads no shard; it can be stopped",
            ]
        );
    }

    #[test]
    fn nodes_as_a_table() {
        let row = NodeRow {
            node: NodeId(2),
            address: "127.0.0.1:7434".into(),
            sql: String::new(),
            state: NodeState::Dead,
            leaders: 0,
            replicas: 4,
        };
        assert!(show(&[row]).contains("    2 | 127.0.0.1:7434 |     | dead  |       0 |        4\n"));
    }
}
