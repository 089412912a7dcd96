//! The seals of a memfd, and their names in the evidence.

use nix::fcntl::SealFlag;

/// Returns the seals of an object: the owner's mapping stays writable, and no process can make another
/// writable one.
pub(crate) fn wanted() -> SealFlag {
    SealFlag::F_SEAL_FUTURE_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

/// Returns the names of seals, as in fcntl(2), for the evidence.
pub(super) fn names(found: SealFlag) -> String {
    /// F_SEAL_EXEC, which the kernel sets when it creates a memfd that can never be executed (Linux 6.3).
    const EXEC: SealFlag = SealFlag::from_bits_retain(0x20);
    let known = [
        (SealFlag::F_SEAL_FUTURE_WRITE, "FUTURE_WRITE"),
        (SealFlag::F_SEAL_WRITE, "WRITE"),
        (SealFlag::F_SEAL_SHRINK, "SHRINK"),
        (SealFlag::F_SEAL_GROW, "GROW"),
        (SealFlag::F_SEAL_SEAL, "SEAL"),
        (EXEC, "EXEC"),
    ];
    let set: Vec<_> = known
        .iter()
        .filter(|(seal, _)| found.contains(*seal))
        .map(|(_, name)| *name)
        .collect();
    if set.is_empty() {
        "none".into()
    } else {
        set.join("|")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_seal_is_named_and_the_wanted_ones_do_not_restrict_the_owner() {
        assert_eq!(names(SealFlag::empty()), "none");
        assert_eq!(names(SealFlag::from_bits_retain(0x20)), "EXEC");
        assert_eq!(
            names(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL),
            "WRITE|SEAL"
        );
        assert_eq!(names(wanted()), "FUTURE_WRITE|SHRINK|GROW|SEAL");
    }
}
