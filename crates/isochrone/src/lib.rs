//! Isochrone, embedded: the same engine as the server, in your program, without sockets.
//!
//!     let db = isochrone::Database::open("data").await?;
//!     db.execute("CREATE TABLE t (id int PRIMARY KEY, name text)", &[]).await?;
//!     db.execute("INSERT INTO t VALUES ($1, $2)", params![1, "ada"]).await?;
//!     let rows = db.query("SELECT name FROM t WHERE id = $1", params![1]).await?;
//!     let name: String = rows[0].get(0)?;
//!
//! One process has a directory open at a time. What `commit`, `execute` or `query` returned `Ok` for is on fsynced
//! storage. Dropping a [`Database`] loses nothing; [`Database::close`] makes the next start quick.
//!
//! Must be used inside a tokio runtime with time enabled. Statements nest up to a bound, and parsing one that does needs
//! [`STACK_BYTES_MIN`] of stack: give it to the runtime (`Builder::thread_stack_size`) if statements come from others.
#![forbid(unsafe_code)]

mod convert;

use std::path::Path;
use std::sync::Arc;

pub use convert::FromDatum;
use isochrone_server::{NodeConfig, Running};
use isochrone_sql::face::{Outcome, OutputColumn, RowSink};
pub use isochrone_sql::parse::STACK_BYTES_MIN;
use isochrone_sql::session::{self, Session};
use isochrone_txn::kv::BoxFuture;
pub use isochrone_types::{Datum, Error, SqlState};

/// Parameters of a statement: `params![1, "ada", None::<i32>]`.
#[macro_export]
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        &[$($crate::IntoDatum::into_datum($value)),*] as &[$crate::Datum]
    };
}

/// What a parameter can be made of.
pub trait IntoDatum {
    /// The value; `None` is NULL.
    fn into_datum(self) -> Datum;
}

impl<T: Into<Datum>> IntoDatum for T {
    fn into_datum(self) -> Datum {
        self.into()
    }
}

/// A row of a result.
#[derive(Clone, Debug)]
pub struct Row {
    columns: Arc<[OutputColumn]>,
    values: Vec<Datum>,
}

impl Row {
    /// The columns, in order.
    pub fn columns(&self) -> &[OutputColumn] {
        &self.columns
    }

    /// The values, in order.
    pub fn values(&self) -> &[Datum] {
        &self.values
    }

    /// A value as a Rust type. 42804 if it is another type, 42703 if there is no such column.
    pub fn get<T: FromDatum>(&self, column: usize) -> Result<T, Error> {
        let value = self.values.get(column).ok_or_else(|| {
            Error::new(SqlState::UNDEFINED_COLUMN, format!("the row has no column number {column}"))
        })?;
        T::from_datum(value).ok_or_else(|| {
            Error::new(
                SqlState::DATATYPE_MISMATCH,
                format!(
                    "column \"{}\" cannot be read as {}",
                    self.columns[column].name,
                    std::any::type_name::<T>()
                ),
            )
        })
    }
}

/// A database in a directory, open in this process.
pub struct Database {
    running: Running,
    sql: Arc<session::Database>,
}

impl Database {
    /// Opens a directory, or makes it.
    pub async fn open(path: impl AsRef<Path>) -> anyhow::Result<Database> {
        Database::open_with(NodeConfig::new(path.as_ref())).await
    }

    /// Opens a directory with settings other than the defaults.
    pub async fn open_with(config: NodeConfig) -> anyhow::Result<Database> {
        let running = Running::open(&config).await?;
        let node = running.node();
        let sql = session::Database::new(node.store.clone(), node.env.clone(), "isochrone");
        Ok(Database { running, sql })
    }

    async fn session(&self) -> Result<Session, Error> {
        self.sql.connect("root", "isochrone").await
    }

    /// Runs one statement in a transaction of its own and returns how many rows it concerned.
    pub async fn execute(&self, sql: &str, params: &[Datum]) -> Result<u64, Error> {
        run(&mut self.session().await?, sql, params).await.map(|(count, _)| count)
    }

    /// Runs one statement in a transaction of its own and returns its rows.
    pub async fn query(&self, sql: &str, params: &[Datum]) -> Result<Vec<Row>, Error> {
        run(&mut self.session().await?, sql, params).await.map(|(_, rows)| rows)
    }

    /// Begins a transaction, at the default level (serializable).
    pub async fn begin(&self) -> Result<Transaction, Error> {
        let mut session = self.session().await?;
        run(&mut session, "BEGIN", &[]).await?;
        Ok(Transaction { session })
    }

    /// Closes the database: everything is flushed, so that the next start has nothing to replay. Transactions that
    /// are still open are lost, as if they had been dropped.
    pub async fn close(self) -> anyhow::Result<()> {
        self.running.close().await
    }
}

/// A transaction. Dropping it rolls it back.
pub struct Transaction {
    session: Session,
}

impl Transaction {
    /// Runs a statement and returns how many rows it concerned.
    pub async fn execute(&mut self, sql: &str, params: &[Datum]) -> Result<u64, Error> {
        run(&mut self.session, sql, params).await.map(|(count, _)| count)
    }

    /// Runs a statement and returns its rows.
    pub async fn query(&mut self, sql: &str, params: &[Datum]) -> Result<Vec<Row>, Error> {
        run(&mut self.session, sql, params).await.map(|(_, rows)| rows)
    }

    /// Commits. 25P02: a statement had failed, everything was rolled back. 40001: certainly not committed, try the whole transaction again. 40003: nobody can say.
    pub async fn commit(mut self) -> Result<(), Error> {
        run(&mut self.session, "COMMIT", &[]).await.map(|_| ())
    }

    /// Rolls back.
    pub async fn rollback(mut self) -> Result<(), Error> {
        run(&mut self.session, "ROLLBACK", &[]).await.map(|_| ())
    }
}

/// Collects rows in memory.
#[derive(Default)]
struct Collect {
    rows: Vec<Vec<Datum>>,
}

impl RowSink for Collect {
    fn row(&mut self, row: &[Datum]) -> Result<(), Error> {
        self.rows.push(row.to_vec());
        Ok(())
    }
    fn copy_data(&mut self, _data: &[u8]) -> Result<(), Error> {
        Err(Error::unsupported("COPY in the embedded library"))
    }
    fn copy_out(&mut self, _columns: usize) -> Result<(), Error> {
        Err(Error::unsupported("COPY in the embedded library"))
    }
    fn ready<'a>(&'a mut self) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn sent(&self) -> bool {
        false
    }
    fn reset(&mut self) {
        self.rows.clear();
    }
}

async fn run(session: &mut Session, sql: &str, params: &[Datum]) -> Result<(u64, Vec<Row>), Error> {
    let types: Vec<_> = params.iter().map(convert::type_of).collect();
    let prepared = session.parse(sql, &types).await?;
    let columns: Arc<[OutputColumn]> = prepared.columns().unwrap_or_default().into();
    let mut portal = session.bind(&prepared, params.to_vec())?;
    let mut sink = Collect::default();
    let outcome = session.execute(&mut portal, 0, true, &mut sink).await?;
    session.sync().await?;
    let count = match outcome {
        // What COMMIT of a failed transaction answers.
        Outcome::Complete(tag) if sql == "COMMIT" && tag == "ROLLBACK" => {
            return Err(Error::new(
                SqlState::IN_FAILED_SQL_TRANSACTION,
                "the transaction had failed and was rolled back",
            ));
        }
        Outcome::Complete(tag) => tag.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0),
        Outcome::CopyIn { .. } => {
            session.copy_fail("COPY FROM STDIN is not part of the embedded library");
            return Err(Error::unsupported("COPY FROM STDIN in the embedded library"));
        }
        Outcome::Empty | Outcome::Suspended => 0,
    };
    let rows = sink.rows.into_iter().map(|values| Row { columns: columns.clone(), values }).collect();
    Ok((count, rows))
}
