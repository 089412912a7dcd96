//! Random bytes of the kernel.

use nix::{errno::Errno, libc};

/// Random bytes (getrandom(2)): for nonces and for the names of shared objects.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], Errno> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        // SAFETY: the rest of the array is N - filled bytes long.
        let count = unsafe { libc::getrandom(bytes.as_mut_ptr().add(filled).cast(), N - filled, 0) };
        match Errno::result(count) {
            Err(Errno::EINTR) => {}
            other => filled += other?.cast_unsigned(),
        }
    }
    Ok(bytes)
}
