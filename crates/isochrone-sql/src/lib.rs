//! The query layer: catalog, binding, planning, execution, sessions.
