//! Room for a shared object: looked up before one is made, and reserved when it is.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    libc,
    sys::resource::{RLIM_INFINITY, Resource, getrlimit},
};

use crate::{
    error::{Error, OrSystem, Result, is_shortage},
    fork::PerProcess,
    sys::{
        self,
        file::{MOUNTS, Mount, cgroup_mounts_in},
        lock::Mutex,
    },
};

/// Fails with [`Error::NoSpace`] if there is no room for an object of this size.
///
/// A memfd has no filesystem with a size of its own: the kernel would hand out pages until it has to kill a process. So this
/// side first checks how much memory is available. It checks the limit of file sizes too, since exceeding that is a signal.
pub(crate) fn check_room(size: u64) -> Result<()> {
    Pending::claim(CLAIMS.get()?, size).map(drop)
}

static CLAIMS: PerProcess<Mutex<Claims>> = PerProcess::new();

/// The memory that this process has claimed, and the last answer on how much is available.
#[derive(Default)]
struct Claims {
    /// The bytes that threads have claimed and not reserved yet, which the kernel still counts as available.
    pending: u64,
    reading: Option<Available>,
}

/// A reading of the available memory takes up to a third of the CPU time of a handshake. So it also serves the next claims, if
/// they are small in comparison and follow at once. Whatever other processes take in the meantime, they could also take between
/// a reading and the reservation.
struct Available {
    at: Instant,
    /// The bytes that further claims may take without another reading.
    left: u64,
}

impl Available {
    const MAX_AGE: Duration = Duration::from_millis(100);
    /// The part of the available memory that claims without a reading of their own may take together.
    const SHARE: u64 = 16;
}

impl Claims {
    /// Whether the last reading serves this claim, which is then charged to it.
    fn covers(&mut self, size: u64, now: Instant) -> bool {
        match &mut self.reading {
            Some(Available { at, left }) if size <= *left && now.duration_since(*at) < Available::MAX_AGE => {
                *left -= size;
                true
            }
            _ => false,
        }
    }
}

/// A claim to memory, until it is reserved or dropped.
struct Pending {
    claims: &'static Mutex<Claims>,
    size: u64,
}

impl Pending {
    fn claim(shared: &'static Mutex<Claims>, size: u64) -> Result<Self> {
        let (limit, _) =
            getrlimit(Resource::RLIMIT_FSIZE).or_system("the limit of file sizes (getrlimit)")?;
        // Under the lock: two threads must not claim the same memory.
        let mut claims = shared.lock();
        let at = Instant::now();
        if claims.covers(size, at) {
            compare(size, limit, None)?;
        } else {
            let available = available_memory()
                .or_system("the available memory (/proc/meminfo)")?
                .map(|available| available.saturating_sub(claims.pending));
            claims.reading = available.map(|available| Available {
                at,
                left: available.saturating_sub(size) / Available::SHARE,
            });
            compare(size, limit, available)?;
        }
        claims.pending += size;
        drop(claims);
        Ok(Self { claims: shared, size })
    }

    /// Records that these bytes are reserved.
    fn reserved(&mut self, bytes: u64) {
        self.claims.lock().pending -= bytes;
        self.size -= bytes;
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.reserved(self.size);
    }
}

/// Fails if there is no room for `size` bytes. `available`: `None` if unknown.
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
    available(sys::file::read_whole_text)
}

fn available(read: impl Fn(&str) -> Result<String, Errno>) -> Result<Option<u64>, Errno> {
    let machine = match read("/proc/meminfo") {
        Err(errno) if is_shortage(errno) => return Err(errno),
        other => other.ok(),
    };
    let machine = machine.and_then(|text| {
        let kilobytes = sys::file::value_in(&text, "MemAvailable:")?.split(' ').next()?;
        kilobytes.parse::<u64>().ok()?.checked_mul(1024)
    });
    Ok(machine.into_iter().chain(cgroup_memory(read)?).min())
}

/// The bytes reserved at a time: at most a millisecond's work, at least a page on every machine.
const CHUNK_SIZES: [libc::off_t; 2] = [4 << 20, 1 << 16];

/// Reserves all of the memory now, so that a full filesystem is an error here and no SIGBUS later. Fails first as [`check_room`]
/// does. It works in parts, and `check` reports before each whether there is time left.
///
/// Before Linux 6.9 a signal makes shmem release everything that one call has reserved so far (mm/shmem.c, `shmem_fallocate`).
/// Under the timer of a profiler one call for a large object would start over forever. So finished parts stay reserved, and
/// a part that a signal interrupts is retried in smaller ones.
pub(super) fn reserve(descriptor: impl AsFd, size: u64, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let [most, least] = CHUNK_SIZES;
    let length = libc::off_t::try_from(size).map_err(|_| no_space(size, "it exceeds the largest file"))?;
    let mut pending = Pending::claim(CLAIMS.get()?, size)?;
    let (mut done, mut part) = (0, most);
    while done < length {
        check()?;
        let now = part.min(length - done);
        match fallocate(descriptor.as_fd(), FallocateFlags::empty(), done, now) {
            Err(Errno::EINTR) => part = (part / 2).max(least),
            Ok(()) => {
                done += now;
                pending.reserved(now.cast_unsigned());
                part = (part * 2).min(most);
            }
            Err(errno) => return Err(Error::system(format!("a shared object of {size} bytes"), errno)),
        }
    }
    Ok(())
}

fn no_space(size: u64, reason: impl ToString) -> Error {
    Error::no_space(format!("a shared object of {size} bytes"), reason)
}

// The memory that the cgroups of this process have left.
//
// A limit may stand at any level: of a slice, a pod, a container or a service. So each level from the process's own cgroup up to the root
// of the mount is read, and the smallest remainder counts. In a cgroup namespace the root of the mount is the root of the
// namespace, which has a limit of its own; the levels above it cannot be seen.

/// The files of one level, and what they say if there is no limit.
struct Version {
    limit: &'static str,
    used: &'static str,
    /// In `memory.stat`: the caches of files that the kernel can free, of this level and those below it. MemAvailable in /proc/meminfo
    /// counts both as well (proc(5)).
    caches: [&'static str; 2],
}

const V1: Version = Version {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    caches: ["total_active_file ", "total_inactive_file "],
};

/// `memory.high` does not count: the kernel slows down a cgroup that exceeds it, and kills no process. A cgroup that has one is expected to
/// be at it most of the time, and would get no ring at all.
const V2: Version = Version {
    limit: "memory.max",
    used: "memory.current",
    caches: ["active_file ", "inactive_file "],
};

/// The smallest remainder of all levels. `None` if none has a limit that can be seen. Errors if this process lacks the means to read.
pub(super) fn cgroup_memory(read: impl Fn(&str) -> Result<String, Errno>) -> Result<Option<u64>, Errno> {
    let read = |path: &str| match read(path) {
        Err(errno) if is_shortage(errno) => Err(errno),
        other => Ok(other.ok()),
    };
    let (Some(groups), Some(mounts)) = (read("/proc/self/cgroup")?, read(MOUNTS)?) else {
        return Ok(None);
    };
    let mut least: Option<u64> = None;
    for mount in cgroup_mounts_in(&mounts) {
        let Some((version, group)) = group_at(&mount, &groups) else {
            continue;
        };
        for directory in levels(&mount, group) {
            if let Some(left) = level_memory(&directory, version, read)? {
                least = Some(least.map_or(left, |least| least.min(left)));
            }
        }
    }
    Ok(least)
}

/// The cgroup of this process in a mounted hierarchy that may limit memory, as /proc/self/cgroup names it (cgroups(7)).
fn group_at<'a>(mount: &Mount, groups: &'a str) -> Option<(&'static Version, &'a str)> {
    let has_memory = |controllers: &str| controllers.split(',').any(|controller| controller == "memory");
    let mut groups = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        Some((parts.next()?, parts.next()?, parts.next()?))
    });
    match mount.kind.as_str() {
        "cgroup2" => groups
            .find_map(|(id, controllers, path)| (id == "0" && controllers.is_empty()).then_some((&V2, path))),
        "cgroup" if has_memory(&mount.options) => {
            groups.find_map(|(_, controllers, path)| has_memory(controllers).then_some((&V1, path)))
        }
        _ => None,
    }
}

/// The directories of a cgroup and of those above it, as far as the mount shows them. None if the cgroup lies elsewhere.
fn levels(mount: &Mount, group: &str) -> Vec<String> {
    let root = mount.root.trim_end_matches('/');
    let Some(below) = group.strip_prefix(root) else {
        return Vec::new();
    };
    // Outside of this process's cgroup namespace, the kernel names a cgroup by a way that no directory has.
    if !(below.is_empty() || below.starts_with('/')) || below.split('/').any(|part| part == "..") {
        return Vec::new();
    }
    let mut directory = mount.point.trim_end_matches('/').to_owned();
    let mut levels = vec![directory.clone()];
    for part in below.split('/').filter(|part| !part.is_empty()) {
        directory = format!("{directory}/{part}");
        levels.push(directory.clone());
    }
    levels
}

/// The remainder of one level. `None` if it has no limit.
fn level_memory(
    directory: &str,
    version: &Version,
    read: impl Fn(&str) -> Result<Option<String>, Errno>,
) -> Result<Option<u64>, Errno> {
    /// Version 1 has a number that no machine reaches, version 2 the word "max". The kernel need not add up the rest then.
    const NO_LIMIT: u64 = 1 << 62;
    let number = |name: &str| -> Result<Option<u64>, Errno> {
        Ok(read(&format!("{directory}/{name}"))?.and_then(|text| text.trim().parse().ok()))
    };
    let Some(limit) = number(version.limit)?.filter(|limit| *limit < NO_LIMIT) else {
        return Ok(None);
    };
    // Used memory includes the cache of files, most of which the kernel frees when asked.
    let stat = read(&format!("{directory}/memory.stat"))?.unwrap_or_default();
    let size_of = |cache: &str| sys::file::value_in(&stat, cache)?.parse::<u64>().ok();
    let cache: u64 = version.caches.into_iter().filter_map(size_of).sum();
    let Some(used) = number(version.used)? else {
        return Ok(None);
    };
    Ok(Some(limit.saturating_sub(used.saturating_sub(cache))))
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, os::fd::OwnedFd};

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
    fn reservation_stops_at_the_deadline() {
        let object = object();
        let size = 40 << 20;
        let mut before = 0;
        let mut looks = 0;
        let result = reserve(&object, size, || {
            let now = reserved(&object);
            assert!(now - before <= CHUNK_SIZES[0], "{before} became {now} in one go");
            before = now;
            looks += 1;
            if looks == 4 { Err(Error::Aborted) } else { Ok(()) }
        });
        assert!(matches!(result, Err(Error::Aborted)));
        assert_eq!(reserved(&object), 3 * CHUNK_SIZES[0]);
        reserve(&object, size, || Ok(())).unwrap();
        assert_eq!(reserved(&object).cast_unsigned(), size);
    }

    #[test]
    fn remainder_of_a_part_is_reserved() {
        let object = object();
        reserve(&object, (4 << 20) + 8192, || Ok(())).unwrap();
        assert_eq!(fstat(&object).unwrap().st_size, (4 << 20) + 8192);
        assert_eq!(reserved(&object), (4 << 20) + 8192);
    }

    #[test]
    fn excess_reservation_error_states_both_sizes() {
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
    fn memory_reserved_by_another_thread_is_unavailable() {
        let claims: &'static Mutex<Claims> = Box::leak(Box::default());
        let mut claim = Pending::claim(claims, 8192).unwrap();
        claim.reserved(4096);
        assert_eq!(claims.lock().pending, 4096);
        // More than any machine has.
        claims.lock().pending += 1 << 60;
        claims.lock().reading = None;
        let refused = Pending::claim(claims, 4096).err().unwrap();
        assert_eq!(refused.code(), "NO_SPACE");
        claims.lock().pending -= 1 << 60;
        drop(claim);
        assert_eq!(claims.lock().pending, 0);
        Pending::claim(claims, 4096).unwrap();
    }

    #[test]
    fn cached_reading_serves_small_claims() {
        let at = Instant::now();
        let mut claims = Claims {
            pending: 0,
            reading: Some(Available { at, left: 100 }),
        };
        let late = at + Available::MAX_AGE;
        let in_time = at + Available::MAX_AGE / 2;
        for (size, now, served) in [
            (101, at, false),
            (60, at, true),
            (41, at, false),
            (40, late, false),
            (40, in_time, true),
            (1, at, false),
        ] {
            assert_eq!(claims.covers(size, now), served, "{size}");
        }
        assert!(!Claims::default().covers(0, at));
        // A claim leaves a reading that serves a small part of what it found.
        let claims: &'static Mutex<Claims> = Box::leak(Box::default());
        let available = available_memory().unwrap().unwrap();
        drop(Pending::claim(claims, 4096).unwrap());
        let left = claims.lock().reading.as_ref().unwrap().left;
        assert!(
            left > 0 && left < available / (Available::SHARE / 2),
            "{left} of {available}"
        );
    }

    #[test]
    fn object_size_is_limited_by_file_size_and_memory() {
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
    fn lower_of_machine_and_cgroup_memory_counts() {
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
            assert_eq!(available(files(machine, most)), Ok(left), "{machine:?} {most}");
        }
        // This process could not ask.
        assert_eq!(available(files(Err(Errno::EMFILE), "4000")), Err(Errno::EMFILE));
    }

    /// The files of a machine, by their paths.
    #[derive(Clone, Default)]
    struct Files(HashMap<String, Result<String, Errno>>);

    impl Files {
        fn new(group: &str, mounts: &str) -> Self {
            Self::default()
                .with("/proc/self/cgroup", group)
                .with(MOUNTS, mounts)
        }

        fn with(mut self, path: &str, text: &str) -> Self {
            self.0.insert(path.into(), Ok(text.into()));
            self
        }

        fn failing(mut self, path: &str, errno: Errno) -> Self {
            self.0.insert(path.into(), Err(errno));
            self
        }

        /// A level of version 2, with a cache of 1,000 bytes.
        fn v2(self, directory: &str, limit: &str, used: u64) -> Self {
            self.with(&format!("{directory}/memory.max"), &format!("{limit}\n"))
                .with(&format!("{directory}/memory.current"), &format!("{used}\n"))
                .with(
                    &format!("{directory}/memory.stat"),
                    "anon 7\nactive_file 400\ninactive_file 600\n",
                )
        }

        /// A level of version 1, with a cache of 1,000 bytes below it.
        fn v1(self, directory: &str, limit: &str, used: u64) -> Self {
            self.with(
                &format!("{directory}/memory.limit_in_bytes"),
                &format!("{limit}\n"),
            )
            .with(
                &format!("{directory}/memory.usage_in_bytes"),
                &format!("{used}\n"),
            )
            .with(
                &format!("{directory}/memory.stat"),
                "inactive_file 5\ntotal_cache 7\ntotal_active_file 400\ntotal_inactive_file 600\n",
            )
        }

        fn left(&self) -> Result<Option<u64>, Errno> {
            cgroup_memory(|path| self.0.get(path).cloned().unwrap_or(Err(Errno::ENOENT)))
        }
    }

    const UNIFIED: &str = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    const MEMORY: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn lowest_remaining_level_counts() {
        let slice = "/sys/fs/cgroup/a.slice";
        let service = "/sys/fs/cgroup/a.slice/b.service";
        for (of_slice, of_service, wanted) in [
            (("max", 0), ("max", 0), None),
            (("max", 0), ("5000", 3000), Some(3000)),
            (("5000", 3000), ("max", 0), Some(3000)),
            (("5000", 3000), ("9000", 3000), Some(3000)),
            (("9000", 3000), ("5000", 3000), Some(3000)),
            // It may be the larger limit that is nearly reached.
            (("9000", 9500), ("5000", 3000), Some(500)),
            (("9000", 12_000), ("5000", 3000), Some(0)),
        ] {
            let files = Files::new("1:cpu:/x\n0::/a.slice/b.service\n", UNIFIED)
                .v2(slice, of_slice.0, of_slice.1)
                .v2(service, of_service.0, of_service.1);
            assert_eq!(files.left(), Ok(wanted), "{of_slice:?} {of_service:?}");
        }
        // A level without the controller has no such files.
        let files = Files::new("0::/a.slice/b.service\n", UNIFIED).v2(slice, "5000", 3000);
        assert_eq!(files.left(), Ok(Some(3000)));
    }

    #[test]
    fn cgroup_v1_uses_the_memory_hierarchy() {
        let group = "9:name=systemd:/s\n4:cpu,memory:/pod/one\n1:cpuset:/x\n0::/u\n";
        let mounts = format!(
            "34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n{MEMORY}{}",
            UNIFIED.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
        );
        let (pod, one) = ("/sys/fs/cgroup/memory/pod", "/sys/fs/cgroup/memory/pod/one");
        let none = "9223372036854771712";
        let files = Files::new(group, &mounts).v1("/sys/fs/cgroup/memory", none, 1 << 40);
        assert_eq!(files.left(), Ok(None));
        let files = files.v1(pod, "5000", 3000).v1(one, none, 3000);
        assert_eq!(files.left(), Ok(Some(3000)));
        assert_eq!(files.clone().v1(one, "4000", 3000).left(), Ok(Some(2000)));
        // Both versions can limit a process; the controller is in one of them.
        assert_eq!(
            files.v2("/sys/fs/cgroup/unified/u", "1500", 2000).left(),
            Ok(Some(500))
        );
    }

    #[test]
    fn visible_root_of_a_container_counts_as_a_level() {
        // With a cgroup namespace, and a mount that was made in it.
        let files = Files::new("0::/\n", UNIFIED).v2("/sys/fs/cgroup", "5000", 3000);
        assert_eq!(files.left(), Ok(Some(3000)));
        // Without one: the container's cgroup lies at the mount point, and keeps its name of the host.
        for (group, directory) in [
            ("0::/docker/1f\n", "/sys/fs/cgroup"),
            ("0::/docker/1f/job\n", "/sys/fs/cgroup/job"),
        ] {
            let mounts = "31 23 0:28 /docker/1f /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n";
            let files = Files::new(group, mounts).v2(directory, "5000", 3000);
            assert_eq!(files.left(), Ok(Some(3000)), "{group}");
            assert_eq!(
                files.v2("/sys/fs/cgroup", "4000", 4500).left(),
                Ok(Some(500)),
                "{group}"
            );
        }
        let mounts = "35 31 0:32 /kubepods/pod1/c2 /mnt/memory ro - cgroup memory rw,memory\n";
        let files = Files::new("4:memory:/kubepods/pod1/c2\n", mounts).v1("/mnt/memory", "5000", 3000);
        assert_eq!(files.left(), Ok(Some(3000)));
    }

    #[test]
    fn ignores_paths_outside_the_mount() {
        for (group, root) in [
            // Beside the mount's root, or beside that of the cgroup namespace.
            ("0::/docker/1f2\n", "/docker/1f"),
            ("0::/other\n", "/docker"),
            ("0::/../other\n", "/"),
        ] {
            let mounts = format!("31 23 0:28 {root} /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n");
            let files = Files::new(group, &mounts)
                .v2("/sys/fs/cgroup", "1", 0)
                .v2("/sys/fs/cgroup/../other", "1", 0)
                .v2("/sys/fs/cgroup2", "1", 0);
            assert_eq!(files.left(), Ok(None), "{group} {root}");
        }
        // A mount from before the namespace was entered: both are named from the namespace's root.
        let mounts = "31 23 0:28 /.. /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n";
        let files = Files::new("0::/../other\n", mounts).v2("/sys/fs/cgroup/other", "5000", 3000);
        assert_eq!(files.left(), Ok(Some(3000)));
    }

    #[test]
    fn unreadable_file_is_no_limit_except_on_local_shortage() {
        let directory = "/sys/fs/cgroup/a";
        let files = Files::new("0::/a\n", UNIFIED).v2(directory, "5000", 3000);
        let paths = ["/proc/self/cgroup", MOUNTS]
            .into_iter()
            .map(str::to_owned)
            .chain(["memory.max", "memory.current"].map(|name| format!("{directory}/{name}")));
        for path in paths {
            let failing = |errno| files.clone().failing(&path, errno).left();
            assert_eq!(failing(Errno::EACCES), Ok(None), "{path}");
            assert_eq!(failing(Errno::EMFILE), Err(Errno::EMFILE), "{path}");
        }
        // Without the sum of the cache, none of it is taken for free.
        let stat = format!("{directory}/memory.stat");
        let failing = |errno| files.clone().failing(&stat, errno).left();
        assert_eq!(failing(Errno::EACCES), Ok(Some(2000)));
        assert_eq!(failing(Errno::ENOMEM), Err(Errno::ENOMEM));
    }
}
