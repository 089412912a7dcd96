//! Random bytes from the kernel.

use nix::{errno::Errno, libc};

/// Returns random bytes (getrandom(2)), for nonces, secrets and the names of shared objects.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], Errno> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        // SAFETY: the array has N - filled bytes left from there on.
        let count = unsafe { libc::getrandom(bytes.as_mut_ptr().add(filled).cast(), N - filled, 0) };
        match Errno::result(count) {
            Err(Errno::EINTR) => {}
            other => filled += other?.cast_unsigned(),
        }
    }
    Ok(bytes)
}
