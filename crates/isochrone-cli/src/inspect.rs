//! What a cluster tells of itself over SQL: shards and their leaders, replicas and how far they are, records of logs.
//!
//! Everything is read as text, by column name, so that it works with any release that has these columns.

use std::time::Duration;

use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};

/// Longest wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// The pause between two looks when something is waited for.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Connects to a node as `root`.
pub async fn connect(address: std::net::SocketAddr) -> Result<Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host(address.ip().to_string()).port(address.port()).user("root").dbname("isochrone");
    config.connect_timeout(CONNECT_MAX);
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// An error of a statement in one line: message and SQLSTATE, or what happened to the connection.
pub fn describe(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(db), _) => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}

/// The rows of a query.
pub async fn rows(client: &Client, sql: &str) -> Result<Vec<SimpleQueryRow>, String> {
    let messages = client.simple_query(sql).await.map_err(|e| format!("{sql}: {}", describe(&e)))?;
    let rows = messages.into_iter().filter_map(|m| match m {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    Ok(rows.collect())
}

/// A column as text; NULL is empty.
fn text(row: &SimpleQueryRow, column: &str) -> Result<String, String> {
    match row.try_get(column) {
        Ok(value) => Ok(value.unwrap_or_default().to_string()),
        Err(error) => Err(format!("column {column}: {error}")),
    }
}

/// A column as a number; NULL is 0.
fn number(row: &SimpleQueryRow, column: &str) -> Result<u64, String> {
    let text = text(row, column)?;
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| format!("column {column}: {text} is not a number"))
}

/// A shard of a table, as `SHOW SHARDS FROM TABLE` has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shard {
    /// Its id.
    pub shard: u64,
    /// Where it starts; empty: at the beginning.
    pub start: String,
    /// Where it ends.
    pub end: String,
    /// The node that leads it; 0: not known.
    pub leader: u32,
    /// First index that the leader's log still holds.
    pub first_index: u64,
    /// Last index.
    pub last_index: u64,
}

/// The shards of a table, in key order.
pub async fn shards(client: &Client, table: &str) -> Result<Vec<Shard>, String> {
    rows(client, &format!("SHOW SHARDS FROM TABLE {table}"))
        .await?
        .iter()
        .map(|row| {
            Ok(Shard {
                shard: number(row, "shard")?,
                start: text(row, "start_key")?,
                end: text(row, "end_key")?,
                leader: number(row, "leader")? as u32,
                first_index: number(row, "first_index")?,
                last_index: number(row, "last_index")?,
            })
        })
        .collect()
}

/// A replica, as `isochrone.replicas` has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replica {
    /// The shard.
    pub shard: u64,
    /// Where it is.
    pub node: u32,
    /// `leader`, `follower`, `learner`.
    pub role: String,
    /// How far it has applied its log.
    pub applied: u64,
    /// How many entries it is behind the leader.
    pub lag: u64,
    /// The last index of its log.
    pub last_index: u64,
}

/// All replicas of nodes that answer.
pub async fn replicas(client: &Client) -> Result<Vec<Replica>, String> {
    rows(
        client,
        "SELECT shard, node, role, applied, lag, last_index FROM isochrone.replicas ORDER BY shard, node",
    )
    .await?
    .iter()
    .map(|row| {
        Ok(Replica {
            shard: number(row, "shard")?,
            node: number(row, "node")? as u32,
            role: text(row, "role")?,
            applied: number(row, "applied")?,
            lag: number(row, "lag")?,
            last_index: number(row, "last_index")?,
        })
    })
    .collect()
}

/// A record of the log of the node that is asked, as `isochrone.wal` has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogRecord {
    /// The node.
    pub node: u32,
    /// The shard.
    pub shard: u64,
    /// Index in the shard's log.
    pub index: u64,
    /// Raft term.
    pub term: u64,
    /// Segment file.
    pub file: String,
    /// Where in the file.
    pub offset: u64,
    /// `prepare`, `commit`, ...
    pub kind: String,
    /// The transaction; empty: none.
    pub txn: String,
    /// Its commit timestamp, where the record tells it.
    pub commit_ts: String,
    /// Keys written.
    pub keys: u64,
}

/// The records of transactions in a shard's log above an index, on the node that is asked, in order.
pub async fn log_of(client: &Client, shard: u64, above: u64) -> Result<Vec<LogRecord>, String> {
    let sql = format!(
        "SELECT node, shard, log_index, term, file, \"offset\", kind, txn, commit_ts, keys FROM isochrone.wal \
         WHERE shard = {shard} AND log_index > {above} AND txn IS NOT NULL ORDER BY log_index"
    );
    rows(client, &sql)
        .await?
        .iter()
        .map(|row| {
            Ok(LogRecord {
                node: number(row, "node")? as u32,
                shard: number(row, "shard")?,
                index: number(row, "log_index")?,
                term: number(row, "term")?,
                file: text(row, "file")?,
                offset: number(row, "offset")?,
                kind: text(row, "kind")?,
                txn: text(row, "txn")?,
                commit_ts: text(row, "commit_ts")?,
                keys: number(row, "keys")?,
            })
        })
        .collect()
}

/// Moves the leaders of a table's shards: the first to the first of `nodes`, and so on, round and round. Returns the
/// shards once each is where it should be.
pub async fn spread_leaders(
    client: &Client,
    table: &str,
    nodes: &[u32],
    patience: Duration,
) -> Result<Vec<Shard>, String> {
    let mut last = String::from("nothing was tried");
    let spread = async {
        loop {
            match spread_step(client, table, nodes).await {
                Ok(Some(shards)) => return shards,
                Ok(None) => {}
                // A shard whose leader is moving, or not ready to, is asked again.
                Err(error) => last = error,
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let spread = tokio::time::timeout(patience, spread).await;
    spread.map_err(|_| format!("the leaders of {table} are not spread after {patience:?}: {last}"))
}

async fn spread_step(client: &Client, table: &str, nodes: &[u32]) -> Result<Option<Vec<Shard>>, String> {
    let now = shards(client, table).await?;
    let mut done = true;
    for (shard, node) in now.iter().zip(nodes.iter().cycle()) {
        if shard.leader != *node {
            done = false;
            let sql = format!("ALTER SHARD {} TRANSFER LEADER TO {node}", shard.shard);
            client.batch_execute(&sql).await.map_err(|e| format!("{sql}: {}", describe(&e)))?;
        }
    }
    Ok(done.then_some(now))
}

/// Waits until a node's replicas are those of all shards, each at most `lag_max` entries behind.
pub async fn caught_up(client: &Client, node: u32, lag_max: u64, patience: Duration) -> Result<(), String> {
    let mut last = String::from("nothing was seen");
    let waited = tokio::time::timeout(patience, async {
        loop {
            match replicas(client).await {
                Ok(all) => match behind(&all, node) {
                    Some(lag) if lag <= lag_max => return,
                    Some(lag) => last = format!("{lag} entries behind"),
                    None => last = "not all its replicas are there".into(),
                },
                Err(error) => last = error,
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    });
    waited.await.map_err(|_| format!("node {node} has not caught up after {patience:?}: {last}"))
}

/// How far the furthest-behind replica of a node is; `None` when it does not have one of every shard that somebody leads.
pub fn behind(replicas: &[Replica], node: u32) -> Option<u64> {
    let led = replicas.iter().filter(|r| r.role == "leader");
    let here = |shard| replicas.iter().find(|r| r.node == node && r.shard == shard);
    let mut most = 0;
    let mut any = false;
    for leader in led {
        any = true;
        most = most.max(here(leader.shard)?.lag);
    }
    any.then_some(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_misses_a_replica_is_not_there_yet() {
        let replica = |shard, node, role: &str, lag| Replica {
            shard,
            node,
            role: role.into(),
            applied: 0,
            lag,
            last_index: 0,
        };
        let mut all =
            vec![replica(1, 1, "leader", 0), replica(1, 2, "follower", 4), replica(2, 1, "leader", 0)];
        assert_eq!(behind(&all, 2), None);
        all.push(replica(2, 2, "follower", 9));
        assert_eq!(behind(&all, 2), Some(9));
        assert_eq!(behind(&[], 2), None);
    }
}
