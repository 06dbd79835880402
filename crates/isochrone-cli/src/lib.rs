//! The operator's tool: the SQL shell and the log inspector.
