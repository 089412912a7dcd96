//! Room for a shared object: looked up before one is made, and reserved when it is.

use std::os::fd::AsFd;

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    libc,
    sys::resource::{RLIM_INFINITY, Resource, getrlimit},
};

use crate::{
    error::{Error, Result, is_shortage},
    region::cgroup,
    sys,
};

/// Errors with [`Error::NoSpace`] where an object of this size would not find room.
///
/// A memfd has no filesystem with a size of its own: the kernel would hand out pages until it has to kill a process. So this
/// side first looks up how much memory is available. It looks at the limit of file sizes too, since exceeding that is a signal.
pub(crate) fn check_room(size: u64) -> Result<()> {
    let (limit, _) = getrlimit(Resource::RLIMIT_FSIZE)
        .map_err(|errno| Error::system("the limit of file sizes (getrlimit)", errno))?;
    let available =
        available_memory().map_err(|errno| Error::system("what memory is left (/proc/meminfo)", errno))?;
    compare(size, limit, available)
}

/// Whether so many bytes find room. `available`: `None` where that is not told.
fn compare(size: u64, limit: u64, available: Option<u64>) -> Result<()> {
    if limit != RLIM_INFINITY && size > limit {
        return Err(no_space(
            size,
            format!("files may have {limit} bytes here (RLIMIT_FSIZE)"),
        ));
    }
    match available {
        Some(available) if size > available => Err(no_space(
            size,
            format!("{available} bytes of memory are available"),
        )),
        _ => Ok(()),
    }
}

/// The memory that the machine and the cgroups of this process have left, whichever is less. `None` if neither is known. Errors if this
/// process lacks the descriptors or the memory to read it.
pub(crate) fn available_memory() -> Result<Option<u64>, Errno> {
    least(sys::file::read_whole_text)
}

fn least(read: impl Fn(&str) -> Result<String, Errno>) -> Result<Option<u64>, Errno> {
    let machine = match read("/proc/meminfo") {
        Err(errno) if is_shortage(errno) => return Err(errno),
        other => other.ok(),
    };
    let machine = machine.and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()?
            .checked_mul(1024)
    });
    Ok(machine.into_iter().chain(cgroup::left(read)?).min())
}

/// How much is reserved at a time: at most, about a millisecond; at least, a page on every machine.
const PART: [libc::off_t; 2] = [4 << 20, 1 << 16];

/// Reserves all of the memory now, so that a full filesystem is an error here and no SIGBUS later. It does so in parts, and
/// `look` tells between two of them whether there is time left.
///
/// Before Linux 6.9 a signal has shmem give back all that one call had reserved so far (mm/shmem.c, `shmem_fallocate`). Under
/// the timer of a profiler one call for a large object would begin anew for ever. So what is done stays done, and a
/// part that a signal interrupts is tried again in smaller ones.
pub(super) fn reserve(descriptor: impl AsFd, size: u64, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    let [most, least] = PART;
    let length = libc::off_t::try_from(size).map_err(|_| no_space(size, "it exceeds the largest file"))?;
    let (mut done, mut part) = (0, most);
    while done < length {
        look()?;
        let now = part.min(length - done);
        match fallocate(descriptor.as_fd(), FallocateFlags::empty(), done, now) {
            Err(Errno::EINTR) => part = (part / 2).max(least),
            Ok(()) => {
                done += now;
                part = (part * 2).min(most);
            }
            Err(errno) => return Err(Error::system(format!("a shared object of {size} bytes"), errno)),
        }
    }
    Ok(())
}

fn no_space(size: u64, reason: impl Into<String>) -> Error {
    Error::NoSpace {
        what: format!("a shared object of {size} bytes"),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::sys::{
        memfd::{MFdFlags, memfd_create},
        stat::fstat,
    };

    use super::*;

    fn object() -> OwnedFd {
        memfd_create("ringfence-test", MFdFlags::MFD_CLOEXEC).unwrap()
    }

    fn reserved(object: &OwnedFd) -> i64 {
        fstat(object).unwrap().st_blocks * 512
    }

    /// A deadline that passes in the middle ends it there, and not after all of it.
    #[test]
    fn memory_is_reserved_part_by_part_and_no_further_than_there_is_time() {
        let object = object();
        let size = 40 << 20;
        let mut before = 0;
        let mut looks = 0;
        let result = reserve(&object, size, || {
            let now = reserved(&object);
            assert!(now - before <= PART[0], "{before} became {now} in one go");
            before = now;
            looks += 1;
            if looks == 4 { Err(Error::Aborted) } else { Ok(()) }
        });
        assert!(matches!(result, Err(Error::Aborted)));
        assert_eq!(reserved(&object), 3 * PART[0]);
        reserve(&object, size, || Ok(())).unwrap();
        assert_eq!(reserved(&object).cast_unsigned(), size);
    }

    #[test]
    fn what_is_no_whole_part_is_reserved_as_well() {
        let object = object();
        reserve(&object, (4 << 20) + 8192, || Ok(())).unwrap();
        assert_eq!(fstat(&object).unwrap().st_size, (4 << 20) + 8192);
        assert_eq!(reserved(&object), (4 << 20) + 8192);
    }

    #[test]
    fn what_is_left_is_some_of_the_machines_memory_and_more_is_refused_with_both_figures() {
        let left = available_memory().unwrap().expect("a machine that tells");
        assert!(left.is_multiple_of(4) && left > 1 << 20, "{left} bytes");
        check_room(4096).unwrap();
        let refused = check_room(1 << 60).unwrap_err();
        assert_eq!(refused.code(), "NO_SPACE");
        assert!(
            refused.to_string().contains("1152921504606846976 bytes"),
            "{refused}"
        );
    }

    #[test]
    fn an_object_finds_room_up_to_the_limit_of_files_and_the_memory_that_is_left() {
        for (size, limit, available, found) in [
            (10, 10, Some(10), true),
            (11, 10, Some(20), false),
            (11, 20, Some(10), false),
            (11, RLIM_INFINITY, Some(11), true),
            (11, RLIM_INFINITY, None, true),
            (11, 10, None, false),
            (9, 10, None, true),
        ] {
            let compared = compare(size, limit, available);
            assert_eq!(compared.is_ok(), found, "{size} {limit} {available:?}");
        }
    }

    #[test]
    fn the_machine_or_the_cgroup_counts_whichever_has_less_left() {
        let machine = "MemTotal: 9 kB\nMemAvailable:   5 kB\n";
        let files = |machine: Result<&'static str, Errno>, most: &'static str| {
            move |path: &str| {
                let text = match path {
                    "/proc/meminfo" => machine?,
                    "/proc/self/cgroup" => "0::/a\n",
                    "/proc/self/mountinfo" => "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
                    "/sys/fs/cgroup/a/memory.max" => most,
                    "/sys/fs/cgroup/a/memory.current" => "2000\n",
                    _ => return Err(Errno::ENOENT),
                };
                Ok(text.to_owned())
            }
        };
        for (machine, most, left) in [
            (Ok(machine), "max\n", Some(5120)),
            (Ok(machine), "4000\n", Some(2000)),
            (Ok(machine), "9000\n", Some(5120)),
            (Ok("no such line"), "4000\n", Some(2000)),
            (Err(Errno::ENOENT), "max\n", None),
        ] {
            assert_eq!(least(files(machine, most)), Ok(left), "{machine:?} {most}");
        }
        // This process could not ask.
        assert_eq!(least(files(Err(Errno::EMFILE), "4000")), Err(Errno::EMFILE));
    }
}
