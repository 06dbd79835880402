//! A workload that a user brings: a file of SQL with a schema, transactions with weights, and invariants.
//!
//!     CREATE TABLE stock (id int8 PRIMARY KEY, n int8 NOT NULL);
//!     INSERT INTO stock SELECT g, 100 FROM generate_series(1, 20) g ON CONFLICT DO NOTHING;
//!
//!     -- transaction 3
//!     UPDATE stock SET n = n - 1 WHERE id = {1..20};
//!     UPDATE stock SET n = n + 1 WHERE id = {1..20};
//!
//!     -- invariant
//!     SELECT sum(n) FROM stock HAVING sum(n) <> 2000;
//!
//! What stands before the first heading is the schema; each of its statements is said until it succeeds, so that it must do
//! no harm twice. `{a..b}` is a number that each client draws anew. An invariant is a query that returns nothing, at
//! any snapshot.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use isochrone_env::SplitMix64;
use isochrone_types::Error;

use super::sql::{Client, heard, insist};
use super::{Counts, Gateway, Heard, RETRY, goes_on, gone, pause};
use crate::world::{Found, World};

const AUDIT_EVERY: Duration = Duration::from_millis(200);

/// A parsed file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Script {
    schema: Vec<String>,
    /// Weight, and statements.
    transactions: Vec<(u64, Vec<String>)>,
    invariants: Vec<String>,
}

enum Part {
    Schema,
    Transaction,
    Invariant,
}

impl Script {
    /// Reads a file; the error names the line.
    pub fn parse(text: &str) -> Result<Script, String> {
        let mut script = Script::default();
        let mut part = Part::Schema;
        let mut statement = String::new();
        for (n, line) in text.lines().enumerate() {
            let at = |what: &str| format!("line {}: {what}", n + 1);
            let line = line.trim();
            if let Some(comment) = line.strip_prefix("--") {
                let words: Vec<&str> = comment.split_whitespace().collect();
                let heading = matches!(words.first(), Some(&"transaction" | &"invariant"));
                if heading && !statement.trim().is_empty() {
                    return Err(at("the statement before it does not end with ;"));
                }
                match words[..] {
                    ["transaction"] => script.transactions.push((1, Vec::new())),
                    ["transaction", weight] => {
                        let weight = weight.parse().ok().filter(|w| *w > 0);
                        let weight = weight.ok_or_else(|| at("a weight is a whole number above 0"))?;
                        script.transactions.push((weight, Vec::new()));
                    }
                    ["invariant"] => {}
                    _ => continue,
                }
                part = if words[0] == "transaction" { Part::Transaction } else { Part::Invariant };
                continue;
            }
            statement += line;
            statement.push(' ');
            if line.ends_with(';') {
                let whole = std::mem::take(&mut statement).trim().trim_end_matches(';').to_string();
                drawn(&whole, &SplitMix64::new(0)).map_err(|e| at(&e))?;
                match part {
                    Part::Schema => script.schema.push(whole),
                    Part::Transaction => {
                        script.transactions.last_mut().expect("a heading came before").1.push(whole);
                    }
                    Part::Invariant => script.invariants.push(whole),
                }
            }
        }
        if !statement.trim().is_empty() {
            return Err("the last statement does not end with ;".into());
        }
        script.transactions.retain(|(_, statements)| !statements.is_empty());
        if script.transactions.is_empty() {
            return Err("no transaction: a line `-- transaction`, and statements behind it".into());
        }
        Ok(script)
    }

    fn pick(&self, random: &SplitMix64) -> &[String] {
        let sum: u64 = self.transactions.iter().map(|(weight, _)| weight).sum();
        let mut at = random.below(sum);
        for (weight, statements) in &self.transactions {
            if at < *weight {
                return statements;
            }
            at -= weight;
        }
        &[]
    }
}

/// A statement with a number for every `{a..b}`.
fn drawn(statement: &str, random: &SplitMix64) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = statement;
    while let Some((before, from)) = rest.split_once('{') {
        let (inside, after) = from.split_once('}').ok_or("a { without a }")?;
        let bounds =
            inside.split_once("..").and_then(|(a, b)| Some((a.parse::<i64>().ok()?, b.parse::<i64>().ok()?)));
        let (a, b) = bounds.filter(|(a, b)| a <= b).ok_or_else(|| format!("{{{inside}}} is not {{a..b}}"))?;
        out += before;
        out += &(a + random.below(b.abs_diff(a).saturating_add(1)) as i64).to_string();
        rest = after;
    }
    Ok(out + rest)
}

/// What the clients were told.
#[derive(Default)]
pub(crate) struct Book(Mutex<Counts>);

impl Book {
    pub(crate) fn counts(&self) -> Counts {
        *self.0.lock().expect("one thread")
    }
}

/// What an error tells a client; data that do not fit are no fault of the database.
fn told(e: &Error) -> Result<Heard, Found> {
    match &e.sqlstate.code()[..2] {
        "22" | "23" => Ok(Heard::Aborted),
        _ => heard(e),
    }
}

pub(crate) async fn set_up(script: &Script, node: &Arc<Gateway>) -> Result<(), Found> {
    for statement in &script.schema {
        insist(node, statement, &[]).await?;
    }
    Ok(())
}

/// Transactions until the node goes down or the load ends.
pub(crate) async fn client(
    world: Arc<World>,
    script: Arc<Script>,
    node: Arc<Gateway>,
    life: u64,
    id: u64,
) -> Result<(), Found> {
    let random = SplitMix64::split(world.options.seed, &format!("custom {}.{life}.{id}", node.id));
    let mut connection: Option<Client> = None;
    while goes_on(&world) {
        pause(&world, &random).await;
        let result = async {
            let mut client = match connection.take() {
                Some(client) => client,
                None => Client::connect(&node.database).await?,
            };
            let statements = script.pick(&random);
            if statements.len() > 1 {
                client.run("BEGIN", &[]).await?;
            }
            for statement in statements {
                client.run(&drawn(statement, &random).map_err(Error::internal)?, &[]).await?;
            }
            if statements.len() > 1 {
                client.run("COMMIT", &[]).await?;
            }
            Ok::<_, Error>(client)
        }
        .await;
        world.op();
        let mut counts = world.books.custom.0.lock().expect("one thread");
        match result {
            Ok(client) => {
                counts.committed += 1;
                world.note("custom commit", &[u64::from(node.id.0), id]);
                connection = Some(client);
            }
            Err(e) => match told(&e)? {
                Heard::Aborted => counts.aborted += 1,
                Heard::Unknown => counts.unknown += 1,
                Heard::Down => {
                    drop(counts);
                    return gone().await;
                }
            },
        }
    }
    Ok(())
}

/// Invariants, over and over.
pub(crate) async fn auditor(world: Arc<World>, script: Arc<Script>, node: Arc<Gateway>) -> Result<(), Found> {
    while goes_on(&world) {
        tokio::time::sleep(AUDIT_EVERY).await;
        for invariant in &script.invariants {
            if look(&node, invariant).await?.is_some() {
                world.op();
                world.books.custom.0.lock().expect("one thread").audits += 1;
                world.note("custom audit", &[u64::from(node.id.0)]);
            }
        }
    }
    Ok(())
}

/// Asks once; `None`: there was no answer now.
async fn look(node: &Arc<Gateway>, invariant: &str) -> Result<Option<()>, Found> {
    let rows = async { Client::connect(&node.database).await?.run(invariant, &[]).await };
    match rows.await {
        Ok(rows) if rows.is_empty() => Ok(Some(())),
        Ok(rows) => Err(Found::new(
            "SIM18",
            format!("{invariant} returns {} rows, the first {:?}", rows.len(), rows[0]),
        )),
        Err(e) => match told(&e)? {
            Heard::Down => gone().await,
            _ => Ok(None),
        },
    }
}

/// Every invariant holds at the end.
pub(crate) async fn last_checks(script: &Script, node: &Arc<Gateway>) -> Result<(), Found> {
    for invariant in &script.invariants {
        while look(node, invariant).await?.is_none() {
            tokio::time::sleep(RETRY).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_parts() {
        let text = "CREATE TABLE t (id int8\n PRIMARY KEY);\n\n-- transaction 3\nUPDATE t SET id = {1..3};\n-- a remark\n\
                    -- transaction\nDELETE FROM t;\n-- invariant\nSELECT 1 WHERE false;\n";
        let script = Script::parse(text).unwrap();
        assert_eq!(script.schema, ["CREATE TABLE t (id int8 PRIMARY KEY)"]);
        assert_eq!(script.transactions.iter().map(|t| t.0).collect::<Vec<_>>(), [3, 1]);
        assert_eq!(script.invariants, ["SELECT 1 WHERE false"]);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, says) in [
            ("SELECT 1;", "no transaction"),
            ("-- transaction x\nSELECT 1;", "line 1: a weight"),
            ("-- transaction\nSELECT {1..};", "line 2: {1..}"),
            ("-- transaction\nSELECT {1;", "line 2: a {"),
            ("-- transaction\nSELECT 1", "does not end"),
            ("SELECT 1\n-- transaction\nSELECT 1;", "line 2: the statement before"),
        ] {
            let error = Script::parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn numbers_are_drawn() {
        let random = SplitMix64::new(1);
        for _ in 0..100 {
            let n: i64 = drawn("{-2..2}", &random).unwrap().parse().unwrap();
            assert!((-2..=2).contains(&n));
        }
        assert_eq!(drawn("a{7..7}b{8..8}c", &random).unwrap(), "a7b8c");
    }
}
