//! Backoff for a side that is too close behind the other, so that the two do not contend for the same cache
//! lines.

use std::hint;

/// The consumer's distance. A consumer in a steady stream that finds less than this pauses before it checks
/// again, and so reads lines that the producer has finished. Closer, it would take each line from the
/// producer while the producer writes there, and both would be slow.
const DISTANCE: u64 = 32 * 1024;
/// The length of the pause, in spin-loop hints.
const MOMENT: u64 = 128;

/// Returns [`DISTANCE`], or less in a small ring: the other side must not wait.
pub(super) fn distance(capacity: u64) -> u64 {
    DISTANCE.min(capacity / 4)
}

/// Pauses for about as long as the other side needs to advance by the distance.
pub(super) fn pause(capacity: u64) {
    for _ in 0..MOMENT * distance(capacity) / DISTANCE {
        hint::spin_loop();
    }
}
