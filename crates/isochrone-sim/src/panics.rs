//! Panics of a world's thread: an assertion of the product that fired. A task's panic would otherwise end with the task.

use std::cell::{Cell, RefCell};
use std::sync::Once;

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    static SEEN: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Keeps this thread's panics to itself until the value is dropped.
pub(crate) struct Watch;

/// See [`Watch`].
pub(crate) fn watch() -> Watch {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if WATCHED.get() {
                SEEN.with_borrow_mut(|seen| _ = seen.get_or_insert_with(|| info.to_string()));
            } else {
                before(info);
            }
        }));
    });
    SEEN.take();
    WATCHED.set(true);
    Watch
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED.set(false);
    }
}

/// The first panic since the last look.
pub(crate) fn take() -> Option<String> {
    SEEN.take()
}
