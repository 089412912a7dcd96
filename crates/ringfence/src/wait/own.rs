//! The threads of this crate's own that call the program: its subscriber, with the feature `tracing`.
//!
//! It may call back, and what it lets go of there may be what such a thread works for. So nothing waits for one of them on one of
//! them: that would be itself, or one that waits for it.

use std::cell::Cell;

thread_local! {
    static IS_OWN: Cell<bool> = const { Cell::new(false) };
}

/// To be called first on a thread of this crate's own.
pub(crate) fn begin_own_thread() {
    IS_OWN.set(true);
}

/// Whether this is one of those.
pub(crate) fn is_own_thread() -> bool {
    IS_OWN.get()
}
