//! Aggregates: resolution, and the state that a group carries. DISTINCT, ORDER BY and FILTER are the executor's.
use crate::{Datum, Result, Type};

/// The aggregate that a call means.
#[derive(Clone, Debug)]
pub struct AggregateSpec {
    /// Its name.
    pub name: &'static str,
    /// The type that each argument must be cast to.
    pub arg_types: Vec<Type>,
    /// The type of the result.
    pub result: Type,
}

/// The state of one aggregate in one group.
#[derive(Clone, Debug)]
pub enum AggState {
    /// count(*), count(x)
    Count(i64),
}

impl AggregateSpec {
    /// The state before the first row.
    pub fn init(&self) -> AggState {
        AggState::Count(0)
    }
}

impl AggState {
    /// Takes in one row's arguments.
    pub fn update(&mut self, args: &[Datum]) -> Result<()> {
        let _ = args;
        Ok(())
    }

    /// Takes in the state of another part of the group.
    pub fn merge(&mut self, other: AggState) -> Result<()> {
        let _ = other;
        Ok(())
    }

    /// The result.
    pub fn finish(self) -> Result<Datum> {
        let AggState::Count(n) = self;
        Ok(Datum::Int8(n))
    }
}

/// The aggregate that a call of this name with arguments of these types means; `count(*)` has no arguments. `None`:
/// no aggregate has this name; an error: one has, but not for these types (42883).
pub fn aggregate(name: &str, args: &[Type]) -> Result<Option<AggregateSpec>> {
    let _ = (name, args);
    Ok(None)
}

/// Is there an aggregate of this name?
pub fn is_aggregate(name: &str) -> bool {
    let _ = name;
    false
}
