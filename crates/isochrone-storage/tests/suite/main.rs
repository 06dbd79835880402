//! The tests of this crate, one binary so that it is linked once.

mod common;
mod engine;
mod lsm;
mod mvcc;
