//! The catalog as binder and planner see it: names in, descriptors out. The session layer implements [`CatalogView`]
//! over a snapshot of the catalog; a test implements it over a map.

use std::sync::Arc;

use isochrone_txn::kv::{BoxFuture, KvStore};
use isochrone_types::{Datum, Error, EvalContext, Type};

use crate::descriptor::{ColumnDescriptor, SequenceDescriptor, TableDescriptor};

/// What a name in FROM can stand for.
#[derive(Clone)]
pub enum Relation {
    /// A stored table.
    Table(Arc<TableDescriptor>),
    /// A table made of what the node knows: `pg_catalog`, `information_schema`, `isochrone`.
    Virtual(Arc<dyn VirtualTable>),
}

/// A table whose rows are computed when it is read.
pub trait VirtualTable: Send + Sync {
    /// Schema name.
    fn schema(&self) -> &str;
    /// Name.
    fn name(&self) -> &str;
    /// Columns, in order.
    fn columns(&self) -> &[ColumnDescriptor];
    /// All rows.
    fn rows<'a>(&'a self, context: VirtualContext<'a>) -> BoxFuture<'a, Result<Vec<Vec<Datum>>, Error>>;
}

/// What a virtual table may look at.
#[derive(Clone, Copy)]
pub struct VirtualContext<'a> {
    /// The layers below.
    pub store: &'a Arc<dyn KvStore>,
    /// The catalog the statement was planned with.
    pub catalog: &'a dyn CatalogView,
    /// Settings and session names.
    pub eval: &'a EvalContext<'a>,
}

/// A function that needs to know the session or the catalog (`current_user`, `pg_table_is_visible`, `format_type`).
pub struct SessionFunction {
    /// Argument types to cast to.
    pub args: Vec<Type>,
    /// Result type.
    pub result: Type,
    /// NULL in, NULL out.
    pub strict: bool,
    /// Its value does not change within a statement.
    pub stable: bool,
    /// The function.
    pub call: SessionCall,
}

/// The code of a [`SessionFunction`].
pub type SessionCall = Arc<dyn Fn(&[Datum], &EvalContext) -> Result<Datum, Error> + Send + Sync>;

/// Names of the catalog, at one version of it.
pub trait CatalogView: Send + Sync {
    /// The version; plans are cached under it.
    fn version(&self) -> u64;
    /// A relation by name; without a schema, along the search path.
    fn relation(&self, schema: Option<&str>, name: &str) -> Option<Relation>;
    /// A sequence by name.
    fn sequence(&self, schema: Option<&str>, name: &str) -> Option<Arc<SequenceDescriptor>>;
    /// A function that `isochrone_types` does not have. Name in lower case, without schema. `nextval`, `currval`,
    /// `setval` and `lastval` are the executor's, through [`Sequences`].
    fn function(&self, name: &str, args: &[Type]) -> Option<Arc<SessionFunction>>;
    /// The snapshot behind the view, for virtual tables that list what there is; `None` in a test's fake.
    fn snapshot(&self) -> Option<&Arc<crate::catalog::CatalogSnapshot>> {
        None
    }
}

/// A call of a function on advisory locks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AdvisoryCall {
    /// `pg_advisory_lock` and its like.
    Lock {
        /// How.
        mode: crate::catalog::advisory::Mode,
        /// Until the end of the transaction, not of the session.
        transaction: bool,
        /// Wait for it; otherwise say whether it was got.
        wait: bool,
    },
    /// `pg_advisory_unlock`.
    Unlock {
        /// How it is held.
        mode: crate::catalog::advisory::Mode,
    },
    /// `pg_advisory_unlock_all`.
    UnlockAll,
}

/// The advisory locks of one session.
pub trait AdvisoryLocks: Send + Sync {
    /// Does it; the arguments are the numbers that the lock is on.
    fn call<'a>(&'a self, call: AdvisoryCall, args: Vec<Datum>) -> BoxFuture<'a, Result<Datum, Error>>;
}

/// Sequence values for one session. Values come from a cache of the node; the executor calls `reserve` before it
/// evaluates a batch, so that `take` never has to wait.
pub trait Sequences: Send + Sync {
    /// Makes sure that `n` calls of `take` succeed.
    fn reserve<'a>(&'a self, sequence: u32, n: usize) -> BoxFuture<'a, Result<(), Error>>;
    /// The next value (nextval). Never repeats; gaps are normal.
    fn take(&self, sequence: u32) -> Result<i64, Error>;
    /// The last value this session took (currval); 55000 if none.
    fn current(&self, sequence: u32) -> Result<i64, Error>;
    /// The last value of any sequence this session took (lastval).
    fn last(&self) -> Result<i64, Error>;
    /// setval.
    fn set<'a>(&'a self, sequence: u32, value: i64, called: bool) -> BoxFuture<'a, Result<(), Error>>;
    /// The session's advisory locks, which travel the same way; `None` where there is no session.
    fn advisory(&self) -> Option<&dyn AdvisoryLocks> {
        None
    }
}
