//! `isochrone init`: nodes that were started with `--join` become a cluster.
//!
//! The node that is asked does the work; this asks it twice a second and shows what it waits for. Asking again, also
//! after an answer was lost, is harmless: an initialised cluster says that it is.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Result, bail};
use isochrone_api::{Request, Response};
use isochrone_base::NodeId;

use crate::{admin, table};

/// The pause between two questions.
pub(crate) const ASK_EVERY: Duration = Duration::from_millis(500);

/// Makes a cluster of nodes that wait for it, once; its data survive the loss of any one node.
///
/// The nodes are started first, each with the cluster addresses of all:
///
///   isochrone start --data a --sql 127.0.0.1:5433 --http 127.0.0.1:8433 \
///     --cluster 127.0.0.1:7433 --join 127.0.0.1:7433,127.0.0.1:7434,127.0.0.1:7435
///   (and likewise with --data b, ports ..34, and --data c, ports ..35)
///
/// Then one of them is asked to begin; it becomes node 1:
///
///   isochrone init --cluster 127.0.0.1:7433
///   isochrone node ls --cluster 127.0.0.1:7433     shows who is there
///   isochrone sql postgresql://root@127.0.0.1:5434/isochrone     any node answers
///
/// Repeating it is harmless: it says "already initialised". Exit code 0 when there is a cluster.
#[derive(clap::Args, Debug, Clone)]
#[command(verbatim_doc_comment)]
pub struct InitArgs {
    /// The cluster address of a node; it becomes node 1.
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    pub cluster: String,
    /// Give up when not enough nodes have answered after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub wait: u64,
}

/// clap's view of [`isochrone_api::address::check`].
pub(crate) fn address(text: &str) -> Result<String, String> {
    isochrone_api::address::check(text).map(|()| text.to_string())
}

/// Runs the command. Exit code 0, or an error.
pub async fn run(args: InitArgs) -> Result<i32> {
    let ask = async || admin::call(&args.cluster, &Request::Init).await;
    let outcome = ask_until(ask, &args.cluster, Duration::from_secs(args.wait), &mut |line| {
        println!("{line}");
        let _ = io::stdout().flush();
    })
    .await?;
    match outcome {
        Outcome::Made { cluster, nodes } => {
            println!("initialised cluster {cluster:032x}");
            let rows: Vec<_> = nodes.into_iter().map(|(n, a)| vec![Some(n.to_string()), Some(a)]).collect();
            print!("{}", table::render(&["node".into(), "address".into()], &rows));
        }
        Outcome::Already { cluster, node } => println!(
            "already initialised: {} is node {node} of cluster {cluster:032x}\nSee its nodes with: isochrone node ls \
             --cluster {}",
            args.cluster, args.cluster
        ),
    }
    Ok(0)
}

/// How `Init` ended well.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The cluster was made now.
    Made {
        /// Its id.
        cluster: u128,
        /// Node numbers and cluster addresses.
        nodes: Vec<(NodeId, String)>,
    },
    /// It was there.
    Already {
        /// Its id.
        cluster: u128,
        /// The number of the node that was asked.
        node: NodeId,
    },
}

/// Asks until there is a cluster, at most for `wait`; `say` hears what it waits for whenever that changes.
pub async fn ask_until(
    mut ask: impl AsyncFnMut() -> Result<Response, admin::Error>,
    address: &str,
    wait: Duration,
    say: &mut impl FnMut(&str),
) -> Result<Outcome> {
    let mut waited = Duration::ZERO;
    let mut said = String::new();
    loop {
        let now = match ask().await {
            Ok(Response::Initialised { cluster, nodes }) => return Ok(Outcome::Made { cluster, nodes }),
            Ok(Response::AlreadyInitialised { cluster, node }) => {
                return Ok(Outcome::Already { cluster, node });
            }
            Ok(Response::Waiting { answered, missing }) => waiting(&answered, &missing),
            Ok(other) => return Err(admin::unexpected(other)),
            Err(admin::Error::Unreachable(why)) => {
                format!("waiting for {address}: {why}")
            }
            Err(admin::Error::Refused(why)) => bail!("{address}: {why}"),
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

/// "waiting for 3 nodes: a answers, b does not (connection refused)".
fn waiting(answered: &[String], missing: &[String]) -> String {
    let mut parts: Vec<String> = answered.iter().map(|a| format!("{a} answers")).collect();
    parts.extend(missing.iter().map(|m| match m.split_once(' ') {
        Some((address, reason)) => format!("{address} does not {reason}"),
        None => format!("{m} does not"),
    }));
    format!("waiting for 3 nodes: {}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn scripted(
        answers: Vec<Result<Response, admin::Error>>,
        wait_s: u64,
    ) -> (Result<Outcome>, Vec<String>) {
        let mut answers = answers.into_iter();
        let mut said = Vec::new();
        let ask = async || answers.next().expect("not asked more often");
        let outcome =
            ask_until(ask, "127.0.0.1:1", Duration::from_secs(wait_s), &mut |l| said.push(l.to_string()))
                .await;
        (outcome, said)
    }

    fn some_wait() -> Result<Response, admin::Error> {
        Ok(Response::Waiting {
            answered: vec!["127.0.0.1:7433".into()],
            missing: vec!["127.0.0.1:7434 (connection refused)".into(), "127.0.0.1:7435".into()],
        })
    }

    #[tokio::test(start_paused = true)]
    async fn shows_what_it_waits_for_once() {
        let made = Response::Initialised { cluster: 7, nodes: vec![(NodeId(1), "a:1".into())] };
        let lost = Err(admin::Error::Unreachable("connection refused".into()));
        let (outcome, said) = scripted(vec![lost, some_wait(), some_wait(), Ok(made)], 60).await;
        assert!(matches!(outcome.unwrap(), Outcome::Made { cluster: 7, .. }));
        assert_eq!(
            said,
            [
                "waiting for 127.0.0.1:1: connection refused",
                "waiting for 3 nodes: 127.0.0.1:7433 answers, 127.0.0.1:7434 does not (connection refused), \
                 127.0.0.1:7435 does not",
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn gives_up() {
        let (outcome, _) = scripted(vec![some_wait(), some_wait(), some_wait()], 1).await;
        assert!(outcome.unwrap_err().to_string().starts_with("gave up after 1 s: waiting for 3 nodes"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_ends_it() {
        let (outcome, _) = scripted(vec![Err(admin::Error::Refused("another cluster".into()))], 60).await;
        assert_eq!(outcome.unwrap_err().to_string(), "127.0.0.1:1: another cluster");
        let error = Response::Error { message: "not in this state".into() };
        let (outcome, _) = scripted(vec![Ok(error)], 60).await;
        assert_eq!(outcome.unwrap_err().to_string(), "not in this state");
    }
}
