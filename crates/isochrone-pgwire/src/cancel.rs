//! The keys by which another connection may cancel a statement: process id and secret, as BackendKeyData told them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backend::Canceller;

struct Entry {
    secret: u32,
    cancel: Canceller,
}

/// The table of one server. Locked for single operations, at login, logout and cancel only.
#[derive(Default)]
pub(crate) struct CancelKeys(Mutex<BTreeMap<i32, Entry>>);

/// An entry, for as long as it lives: shorter than its session, whose number is free afterwards.
pub(crate) struct Registration {
    keys: Arc<CancelKeys>,
    process_id: i32,
}

impl CancelKeys {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, Entry>> {
        // Every change of the table is one insert or remove: a panic cannot leave it half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a connection under its session's number.
    pub(crate) fn register(
        self: &Arc<CancelKeys>,
        process_id: i32,
        secret: u32,
        cancel: Canceller,
    ) -> Registration {
        self.lock().insert(process_id, Entry { secret, cancel });
        Registration { keys: Arc::clone(self), process_id }
    }

    /// Cancels the statement of the connection that has this id and secret; false if there is none. The secrets are
    /// compared in constant time; the caller tells nobody the result (P5).
    pub(crate) fn cancel(&self, process_id: i32, secret: u32) -> bool {
        let found = match self.lock().get(&process_id) {
            Some(e) if same(e.secret, secret) => Some(Arc::clone(&e.cancel)),
            _ => None,
        };
        // Called outside of the lock: what it does is the session's.
        found.map(|cancel| cancel()).is_some()
    }

    /// Cancels every running statement: the server stops.
    pub(crate) fn cancel_all(&self) {
        let all: Vec<Canceller> = self.lock().values().map(|e| Arc::clone(&e.cancel)).collect();
        all.iter().for_each(|cancel| cancel());
    }
}

/// Equality without a branch on the bytes.
fn same(a: u32, b: u32) -> bool {
    let difference = a.to_be_bytes().iter().zip(b.to_be_bytes()).fold(0, |d, (x, y)| d | (x ^ y));
    std::hint::black_box(difference) == 0
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.keys.lock().remove(&self.process_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn needs_both_halves_of_the_key_and_forgets_it() {
        let keys = Arc::new(CancelKeys::default());
        let hits = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&hits);
        let cancel = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let entry = keys.register(5, 77, Arc::new(cancel));
        let _other = keys.register(6, 78, Arc::new(|| ()));
        assert!(!keys.cancel(5, 78) && !keys.cancel(6, 77) && !keys.cancel(7, 77));
        assert_eq!(hits.load(Ordering::Relaxed), 0);
        assert!(keys.cancel(5, 77));
        assert_eq!(hits.load(Ordering::Relaxed), 1);
        drop(entry);
        assert!(!keys.cancel(5, 77) && keys.cancel(6, 78));
    }
}
