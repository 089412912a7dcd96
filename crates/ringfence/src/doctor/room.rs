//! How much shared memory there is.

use nix::{
    sys::statfs::{TMPFS_MAGIC, statfs},
    sys::statvfs::statvfs,
};

use crate::{
    doctor::finding::{About, Finding, bytes, default_region},
    region::room,
};

const SHARED_MEMORY: About = About {
    name: "dev-shm",
    title: "Room in /dev/shm",
};

pub(super) fn shared_memory() -> Finding {
    let none =
        "the shm backing cannot be used here; the memfd backing, which is the default, does not need it";
    match statfs("/dev/shm").map(|found| found.filesystem_type()) {
        Ok(TMPFS_MAGIC) => {}
        Ok(_) => return SHARED_MEMORY.missing("it is no tmpfs", none),
        Err(errno) => return SHARED_MEMORY.missing(errno.desc(), none),
    }
    let found = match statvfs("/dev/shm") {
        Ok(found) => found,
        Err(errno) => return SHARED_MEMORY.missing(errno.desc(), none),
    };
    let size = found.blocks().saturating_mul(found.fragment_size());
    let free = found.blocks_available().saturating_mul(found.fragment_size());
    let pair = default_region() * 2;
    // A tmpfs that is mounted with size=0 has no limit but memory, and says so with no blocks.
    let room = if size == 0 { pair } else { free };
    let text = if size == 0 {
        "no limit of its own".to_owned()
    } else {
        format!("{} free of {}", bytes(free), bytes(size))
    };
    if room >= pair {
        SHARED_MEMORY.good(
            text,
            format!(
                "a pair with the shm backing takes {} of it with default rings; memfd takes nothing of it",
                bytes(pair)
            ),
        )
    } else {
        SHARED_MEMORY.limited(
            text,
            format!(
                "the shm backing has no room for a pair with default rings ({}): give /dev/shm more (a container's \
                 shm-size), ask for a smaller capacity, or use memfd, which takes nothing of it",
                bytes(pair)
            ),
        )
    }
}

const MEMORY: About = About {
    name: "memory",
    title: "Memory for a ring",
};

pub(super) fn memory() -> Finding {
    let region = default_region();
    let found = match room::available_memory() {
        Ok(Some(available)) => format!("{} available to this process", bytes(available)),
        Ok(None) => "neither /proc/meminfo nor the cgroup says".into(),
        Err(errno) => format!("/proc/meminfo cannot be read: {}", errno.desc()),
    };
    match room::check_room(region) {
        Ok(()) => MEMORY.good(
            found,
            format!(
                "a ring takes all its memory at once ({} by default, at each side): what cannot be had is an error \
                 when the channel is made, not a signal later",
                bytes(region)
            ),
        ),
        Err(error) => MEMORY.missing(
            format!("{found}; {error}"),
            format!(
                "a default ring ({}) is refused with NO_SPACE; ask for a smaller capacity, or give this process more",
                bytes(region)
            ),
        ),
    }
}
