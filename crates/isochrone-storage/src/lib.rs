//! The engine the upper layers see: atomic batches, snapshots, versioned keys.
