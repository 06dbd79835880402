//! Tests of the node log through its public face: against a model, with a fault at every operation, with every bit
//! flipped, with threads.

mod exhaustive;
mod faults;
mod maintain;
mod model;
mod os;
mod support;
mod threads;
