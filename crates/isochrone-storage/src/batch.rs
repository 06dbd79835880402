//! A set of writes that become visible, and durable, together.

use std::collections::BTreeMap;

use isochrone_base::{Bytes, Key};

/// Puts and deletes of physical keys; the last write to a key wins.
///
/// Kept in key order: the engines insert faster that way, and [`crate::mvcc::put_version`] can look up what an
/// earlier write of the same batch left.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    ops: BTreeMap<Key, Option<Bytes>>,
    bytes: usize,
}

impl WriteBatch {
    /// An empty batch.
    pub fn new() -> WriteBatch {
        WriteBatch::default()
    }

    /// Sets a key.
    pub fn put(&mut self, key: impl Into<Key>, value: impl Into<Bytes>) {
        self.push(key.into(), Some(value.into()));
    }

    /// Removes a key; nothing happens if it is not there.
    pub fn delete(&mut self, key: impl Into<Key>) {
        self.push(key.into(), None);
    }

    fn push(&mut self, key: Key, value: Option<Bytes>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        self.ops.insert(key, value);
    }

    /// What this batch does to a key: `None` if nothing, `Some(None)` if it removes it.
    pub fn get(&self, key: &[u8]) -> Option<Option<&Bytes>> {
        self.ops.get(key).map(Option::as_ref)
    }

    /// Takes over the writes of another batch; they win over the ones already here.
    pub fn append(&mut self, mut other: WriteBatch) {
        self.bytes += other.bytes;
        self.ops.append(&mut other.ops);
    }

    /// Keys written.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Nothing to write?
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Bytes of keys and values put in (overwritten ones are counted too).
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The writes in key order; `None` removes.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&Bytes>)> {
        self.ops.iter().map(|(k, v)| (k.as_slice(), v.as_ref()))
    }

    pub(crate) fn into_ops(self) -> BTreeMap<Key, Option<Bytes>> {
        self.ops
    }

    /// Refuses keys an engine cannot hold. An engine calls this before it writes anything.
    pub(crate) fn check(&self) -> crate::Result<()> {
        match self.ops.keys().find(|k| k.is_empty() || k.len() > crate::ENGINE_KEY_BYTES_MAX) {
            Some(k) => Err(crate::Error::KeyLength(k.len())),
            None => Ok(()),
        }
    }
}
