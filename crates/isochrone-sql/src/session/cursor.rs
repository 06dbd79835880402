//! SQL cursors: DECLARE, FETCH, MOVE, CLOSE. Forward only.
//!
//! A cursor is a portal with a name. One WITH HOLD keeps its rows, all of them, in memory when its transaction
//! commits, and is bounded by [`HELD_ROWS_MAX`].

use std::sync::Arc;

use isochrone_types::{Datum, Error, SqlState};

use super::portal::{Portal, PortalState};
use super::utility::{Fetch, Statement};
use super::{NAMED_MAX, Session, utility};
use crate::face::{OutputColumn, RowSink, TxnStatus};
use isochrone_txn::kv::BoxFuture;

/// Rows a held cursor may have; more are refused with 54000.
pub const HELD_ROWS_MAX: usize = 1_000_000;

/// See the file's head.
pub(super) struct Cursor {
    portal: Portal,
    hold: bool,
}

impl Cursor {
    /// Does it stay when its transaction ends?
    pub fn outlives(&self) -> bool {
        self.hold && matches!(self.portal.state, PortalState::Rows(..))
    }
}

/// Keeps rows.
#[derive(Default)]
pub(super) struct Rows {
    pub rows: Vec<Vec<Datum>>,
    pub max: usize,
}

impl RowSink for Rows {
    fn row(&mut self, row: &[Datum]) -> Result<(), Error> {
        if self.rows.len() >= self.max {
            return Err(Error::new(
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                format!("more than {} rows cannot be kept here", self.max),
            ));
        }
        self.rows.push(row.to_vec());
        Ok(())
    }

    fn copy_data(&mut self, _: &[u8]) -> Result<(), Error> {
        Err(Error::unsupported("COPY here"))
    }

    fn copy_out(&mut self, _: usize) -> Result<(), Error> {
        Err(Error::unsupported("COPY here"))
    }

    fn ready<'a>(&'a mut self) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn sent(&self) -> bool {
        false
    }

    fn reset(&mut self) {
        self.rows.clear();
    }
}

fn unknown(name: &str) -> Error {
    Error::new(SqlState::INVALID_CURSOR_NAME, format!("cursor \"{name}\" does not exist"))
}

impl Session {
    pub(super) async fn declare(&mut self, name: &str, hold: bool, body: &str) -> Result<(), Error> {
        if self.cursors.contains_key(name) {
            return Err(Error::new(SqlState::DUPLICATE_CURSOR, format!("cursor \"{name}\" already exists")));
        }
        if self.cursors.len() >= NAMED_MAX {
            return Err(Error::new(SqlState::INSUFFICIENT_RESOURCES, "too many cursors"));
        }
        if self.status == TxnStatus::Idle && !hold {
            return Err(Error::new(
                SqlState::NO_ACTIVE_SQL_TRANSACTION,
                "DECLARE CURSOR can only be used in transaction blocks",
            ));
        }
        let statement = utility::parse_statement(body)?;
        if !matches!(statement, Statement::Query(_)) {
            return Err(Error::syntax("DECLARE CURSOR needs a query"));
        }
        let prepared = self.prepare_statement(body.into(), Some(Arc::new(statement)), Vec::new())?;
        if prepared.columns.is_none() {
            return Err(Error::syntax("DECLARE CURSOR needs a query"));
        }
        let mut portal = Portal { prepared, params: Arc::from([]), state: PortalState::Start };
        if hold {
            // Read now: what other transactions do later must not show.
            let mut rows = Rows { max: HELD_ROWS_MAX, ..Rows::default() };
            self.run_query(&mut portal, 0, &mut rows).await?;
            portal.state = PortalState::Rows(rows.rows, 0, String::new());
        }
        self.cursors.insert(name.to_string(), Cursor { portal, hold });
        Ok(())
    }

    pub(super) fn cursor_columns(&self, name: &str) -> Result<Option<Vec<OutputColumn>>, Error> {
        self.cursors.get(name).map(|c| c.portal.prepared.columns.clone()).ok_or_else(|| unknown(name))
    }

    /// FETCH and MOVE; gives the number of rows.
    pub(super) async fn fetch(
        &mut self,
        name: &str,
        fetch: Fetch,
        skip: bool,
        sink: &mut dyn RowSink,
    ) -> Result<usize, Error> {
        let mut cursor = self.cursors.remove(name).ok_or_else(|| unknown(name))?;
        let most = match fetch {
            Fetch::All => 0,
            Fetch::Rows(0) => {
                self.cursors.insert(name.to_string(), cursor);
                return Ok(0);
            }
            Fetch::Rows(n) => n,
        };
        let mut counted = Counting { rows: 0, skip, sink };
        let result = self.run_query(&mut cursor.portal, most, &mut counted).await;
        let rows = counted.rows;
        // After an error it would be gone with its transaction anyway.
        self.cursors.insert(name.to_string(), cursor);
        result.map(|_| rows)
    }

    pub(super) fn close(&mut self, name: Option<&str>) -> Result<(), Error> {
        match name {
            None => self.cursors.clear(),
            Some(name) => {
                self.cursors.remove(name).ok_or_else(|| unknown(name))?;
            }
        }
        Ok(())
    }

    pub(super) fn close_cursors_of_transaction(&mut self) {
        self.cursors.retain(|_, c| c.outlives());
    }
}

/// Counts rows on their way, or drops them.
struct Counting<'a> {
    rows: usize,
    skip: bool,
    sink: &'a mut dyn RowSink,
}

impl RowSink for Counting<'_> {
    fn row(&mut self, row: &[Datum]) -> Result<(), Error> {
        self.rows += 1;
        if self.skip { Ok(()) } else { self.sink.row(row) }
    }

    fn copy_data(&mut self, data: &[u8]) -> Result<(), Error> {
        self.sink.copy_data(data)
    }

    fn copy_out(&mut self, columns: usize) -> Result<(), Error> {
        self.sink.copy_out(columns)
    }

    fn ready<'a>(&'a mut self) -> BoxFuture<'a, Result<(), Error>> {
        self.sink.ready()
    }

    fn sent(&self) -> bool {
        self.sink.sent()
    }

    fn reset(&mut self) {
        self.sink.reset();
    }
}
