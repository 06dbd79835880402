//! One transaction's way through the logs of the two shards it touches: from account 42 to account 1900, through a
//! gateway, into the logs of both leaders.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use crate::bank::Transfer;
use crate::inspect::{self, LOOK_EVERY, LogRecord, Shard};
use crate::table;

/// The transfer that is followed.
pub const TRANSFER: Transfer = Transfer { from: 42, to: 1_900, amount: 7 };
/// Attempts of the transfer; then it is given up.
const ATTEMPTS_MAX: u32 = 20;
/// How long the records of the second phase may take: they are written behind the client's answer.
const RECORDS_MAX: Duration = Duration::from_secs(20);

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Journey {
    /// The node the client was connected to.
    pub gateway: u32,
    /// The shard of account 42, and that of account 1900.
    pub shards: [Shard; 2],
    /// The transaction's id.
    pub txn: String,
    /// Its records in the logs of the leaders of the two shards.
    pub records: [Vec<LogRecord>; 2],
}

/// Makes the transfer and finds its records, asking nodes at these addresses. Nothing else must write to the accounts
/// meanwhile.
pub async fn follow(nodes: &BTreeMap<u32, SocketAddr>) -> Result<Journey, String> {
    let (any, _) = nodes.first_key_value().ok_or("there are no nodes")?;
    let client = connect(nodes, *any).await?;
    let third = (crate::bank::ACCOUNTS / crate::bank::SHARDS) as usize;
    let all = inspect::shards(&client, "accounts").await?;
    let shard_of = |account: i32| {
        let shard = all.get(account as usize / third).cloned();
        shard.ok_or_else(|| format!("account {account} has no shard of its own: {all:?}"))
    };
    let shards = [shard_of(TRANSFER.from)?, shard_of(TRANSFER.to)?];
    // A gateway that leads neither, if there is one: then everything it does goes over the network.
    let leads = |node: &u32| shards.iter().any(|s| s.leader == *node);
    let gateway = *nodes.keys().find(|n| !leads(n)).unwrap_or(any);
    let client = connect(nodes, gateway).await?;
    let script = format!(
        "BEGIN; UPDATE accounts SET balance = balance - {a} WHERE id = {}; \
         UPDATE accounts SET balance = balance + {a} WHERE id = {}; COMMIT",
        TRANSFER.from,
        TRANSFER.to,
        a = TRANSFER.amount
    );
    let mut attempts = 0;
    while let Err(error) = client.batch_execute(&script).await {
        // Rolled back: nothing was done. Anything else might have been.
        let again = error.code().is_some_and(|c| matches!(c.code(), "40001" | "40P01" | "57P03"));
        attempts += 1;
        if !again || attempts == ATTEMPTS_MAX {
            return Err(format!("the transfer from 42 to 1900: {}", inspect::describe(&error)));
        }
        let _ = client.batch_execute("ROLLBACK").await; // it may have ended by itself
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let mut last = String::from("no transaction prepared in both logs and in no other");
    let found = tokio::time::timeout(RECORDS_MAX, async {
        loop {
            match find(nodes, &shards).await {
                Ok(Some((txn, records))) => return (txn, records),
                Ok(None) => {}
                Err(error) => last = error,
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    });
    let (txn, records) =
        found.await.map_err(|_| format!("the records of the transfer are not in both logs: {last}"))?;
    Ok(Journey { gateway, shards, txn, records })
}

async fn connect(nodes: &BTreeMap<u32, SocketAddr>, node: u32) -> Result<tokio_postgres::Client, String> {
    let address = nodes.get(&node).ok_or_else(|| format!("nobody knows where node {node} is"))?;
    inspect::connect(*address)
        .await
        .map_err(|e| format!("cannot connect to node {node}: {}", inspect::describe(&e)))
}

type Found = (String, [Vec<LogRecord>; 2]);

/// The newest transaction that has `prepare` and `commit` in the logs of both leaders, above where the shards were before.
async fn find(nodes: &BTreeMap<u32, SocketAddr>, shards: &[Shard; 2]) -> Result<Option<Found>, String> {
    let mut logs = Vec::new();
    for shard in shards {
        let client = connect(nodes, shard.leader).await?;
        logs.push(inspect::log_of(&client, shard.shard, shard.last_index).await?);
    }
    let with = |log: &[LogRecord], kind: &str| -> BTreeSet<String> {
        log.iter().filter(|r| r.kind == kind).map(|r| r.txn.clone()).collect()
    };
    let both = |kind: &str| &with(&logs[0], kind) & &with(&logs[1], kind);
    let Some(txn) = (&both("prepare") & &both("commit")).into_iter().next() else {
        return Ok(None);
    };
    let of = |log: &[LogRecord]| log.iter().filter(|r| r.txn == txn).cloned().collect();
    let records = [of(&logs[0]), of(&logs[1])];
    Ok(Some((txn, records)))
}

/// As text.
pub fn show(journey: &Journey) -> String {
    let Transfer { from, to, amount } = TRANSFER;
    let [a, b] = &journey.shards;
    let mut out = format!(
        "One transaction's way, from account {from} (shard {}, led by node {}) to account {to} (shard {}, led by node {}),\n\
         by a client of node {}:\n\n\
         \x20 BEGIN;\n\
         \x20 UPDATE accounts SET balance = balance - {amount} WHERE id = {from};\n\
         \x20 UPDATE accounts SET balance = balance + {amount} WHERE id = {to};\n\
         \x20 COMMIT;\n\n\
         Transaction {}, as each leader's log has it\n\
         (SELECT * FROM isochrone.wal WHERE txn = '...' on that node):\n\n",
        a.shard, a.leader, b.shard, b.leader, journey.gateway, journey.txn
    );
    let columns = ["shard", "node", "index", "term", "kind", "keys", "commit_ts", "file", "offset"];
    let rows: Vec<_> = journey
        .records
        .iter()
        .flatten()
        .map(|r| {
            let cells = [
                r.shard.to_string(),
                r.node.to_string(),
                r.index.to_string(),
                r.term.to_string(),
                r.kind.clone(),
                r.keys.to_string(),
                r.commit_ts.clone(),
                r.file.clone(),
                r.offset.to_string(),
            ];
            cells.into_iter().map(|c| Some(c).filter(|c| !c.is_empty())).collect()
        })
        .collect();
    out.push_str(&table::render(&columns.map(String::from), &rows));
    out.push_str(
        "\nThe client had its answer when both prepares were on the disks of two of three nodes. The commits follow;\n\
         acked says that all of them are there, so that nobody needs to remember the outcome.\n",
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_shown_with_both_logs() {
        let shard = |shard, leader| Shard {
            shard,
            start: String::new(),
            end: String::new(),
            leader,
            first_index: 11,
            last_index: 40,
        };
        let record = |shard, node, index, kind: &str, commit_ts: &str| LogRecord {
            node,
            shard,
            index,
            term: 6,
            file: "000001.wal".into(),
            offset: 4_096,
            kind: kind.into(),
            txn: "abc".into(),
            commit_ts: commit_ts.into(),
            keys: 1,
        };
        let journey = Journey {
            gateway: 3,
            shards: [shard(3, 1), shard(4, 2)],
            txn: "abc".into(),
            records: [
                vec![record(3, 1, 41, "prepare", ""), record(3, 1, 42, "commit", "7.0")],
                vec![record(4, 2, 51, "prepare", ""), record(4, 2, 52, "commit", "7.0")],
            ],
        };
        let text = show(&journey);
        for part in ["by a client of node 3", "Transaction abc", " prepare |    1 |", " commit  |    1 | "] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(text.lines().all(|l| l.chars().count() <= 110), "{text}");
    }
}
