//! The threads of this crate that call the program: its subscriber, with the feature `tracing`.
//!
//! The program may call back into this crate, and may drop a value that such a thread works for. So these
//! threads never wait for each other: a thread could end up waiting for itself.

use std::cell::Cell;

thread_local! {
    static IS_OWN: Cell<bool> = const { Cell::new(false) };
}

/// Marks a thread of this crate. Must be called first on that thread.
pub(crate) fn begin_own_thread() {
    IS_OWN.set(true);
}

/// Whether this is a thread of this crate.
pub(crate) fn is_own_thread() -> bool {
    IS_OWN.get()
}
