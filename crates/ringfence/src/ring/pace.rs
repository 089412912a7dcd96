//! When a side that has come too close to the other waits a moment, so that the two do not fight for the same cache lines.

use std::hint;

/// The consumer's distance. Where a consumer in full stream has found less than this, it lets a moment pass before it looks
/// again, and so reads lines that the producer has finished. Closer, it would take each line from the producer
/// while the producer writes there, and both would be slow.
const DISTANCE: u64 = 32 * 1024;
/// How long that moment is, in spin-loop hints.
const MOMENT: u64 = 128;

/// [`DISTANCE`], and in a small ring less: the other side must not wait.
pub(super) fn distance(capacity: u64) -> u64 {
    DISTANCE.min(capacity / 4)
}

/// Lets a moment pass, in which the other side gets about as far.
pub(super) fn pause(capacity: u64) {
    for _ in 0..MOMENT * distance(capacity) / DISTANCE {
        hint::spin_loop();
    }
}
