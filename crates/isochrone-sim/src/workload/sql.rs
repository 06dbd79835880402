//! SQL as a client sends it, through the code of a real session.

use std::sync::Arc;

use isochrone_sql::face::{Outcome, RowSink};
use isochrone_sql::session::{Database, Session};
use isochrone_txn::kv::BoxFuture;
use isochrone_types::{Datum, Error, SqlState, Type};

use super::{Gateway, Heard, LOCK_WAIT_MAX, RETRY, gone};
use crate::world::Found;

/// One connection.
pub(crate) struct Client(Session);

#[derive(Default)]
struct Rows(Vec<Vec<Datum>>);

impl RowSink for Rows {
    fn row(&mut self, row: &[Datum]) -> Result<(), Error> {
        self.0.push(row.to_vec());
        Ok(())
    }
    fn copy_data(&mut self, _data: &[u8]) -> Result<(), Error> {
        Err(Error::unsupported("COPY"))
    }
    fn copy_out(&mut self, _columns: usize) -> Result<(), Error> {
        Err(Error::unsupported("COPY"))
    }
    fn ready<'a>(&'a mut self) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn sent(&self) -> bool {
        false
    }
    fn reset(&mut self) {
        self.0.clear();
    }
}

impl Client {
    pub(crate) async fn connect(database: &Arc<Database>) -> Result<Client, Error> {
        let mut client = Client(database.connect("root", "isochrone").await?);
        client.run(&format!("SET lock_timeout = {}", LOCK_WAIT_MAX.as_millis()), &[]).await?;
        Ok(client)
    }

    /// Runs a statement; integers only as parameters. A COMMIT that rolled back is an error, as drivers make it one.
    pub(crate) async fn run(&mut self, sql: &str, params: &[i64]) -> Result<Vec<Vec<Datum>>, Error> {
        let session = &mut self.0;
        let result = async {
            let types = vec![Some(Type::Int8); params.len()];
            let prepared = session.parse(sql, &types).await?;
            let mut portal = session.bind(&prepared, params.iter().map(|n| Datum::Int8(*n)).collect())?;
            let mut rows = Rows::default();
            let outcome = session.execute(&mut portal, 0, true, &mut rows).await?;
            match outcome {
                Outcome::Complete(tag) if sql == "COMMIT" && tag == "ROLLBACK" => Err(Error::new(
                    SqlState::IN_FAILED_SQL_TRANSACTION,
                    "the transaction had failed and was rolled back",
                )),
                _ => Ok(rows.0),
            }
        }
        .await;
        // The end of an implicit transaction: its outcome is heard here.
        match (result, session.sync().await) {
            (Ok(_), Err(e)) => Err(e),
            (result, _) => result,
        }
    }
}

/// Connects, and says a statement until it succeeds.
pub(crate) async fn insist(node: &Arc<Gateway>, statement: &str, params: &[i64]) -> Result<(), Found> {
    loop {
        let done = async { Client::connect(&node.database).await?.run(statement, params).await }.await;
        match done {
            Ok(_) => return Ok(()),
            Err(e) => {
                tracing::debug!(statement, error = %e, "said again");
                match heard(&e)? {
                    Heard::Down => return gone().await,
                    Heard::Aborted | Heard::Unknown => tokio::time::sleep(RETRY).await,
                }
            }
        }
    }
}

/// What an error tells a client about its transaction. `Err`: it is none that a client can expect.
pub(crate) fn heard(e: &Error) -> Result<Heard, Found> {
    match e.sqlstate.code() {
        "40001" | "40P01" | "55P03" | "57P03" | "72000" | "25P02" => Ok(Heard::Aborted),
        "40003" => Ok(Heard::Unknown),
        "58030" | "53100" => Ok(Heard::Down),
        code => Err(Found::from(format!("SQLSTATE {code}: {e}"))),
    }
}

/// An integer of a result.
pub(crate) fn int(datum: &Datum) -> Result<i64, Found> {
    match datum {
        Datum::Int4(n) => Ok(i64::from(*n)),
        Datum::Int8(n) => Ok(*n),
        other => Err(Found::from(format!("not an integer: {other:?}"))),
    }
}
