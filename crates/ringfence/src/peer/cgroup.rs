//! Looks up the number of a cgroup (version 2) by its name.

use std::path::Path;

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::{
        stat::{Mode, fstat},
        statfs::{CGROUP2_SUPER_MAGIC, fstatfs},
    },
};

use crate::{
    error::Result,
    peer::proc::answered,
    sys::{
        self,
        mounts::{MOUNTS, mounts_in},
        uninterrupted,
    },
};

/// The numbers of the cgroups with a given name, found under the mounts of the cgroup filesystem (version 2).
/// Usually at most one.
pub(crate) enum Numbers {
    Told(Vec<u64>),
    /// The filesystem is not mounted where this process can see it.
    NotMounted,
    /// The lookup failed, for this reason.
    Untold(String),
}

/// Looks up a cgroup by its name. On 64-bit systems a cgroup's number is the inode number of its directory.
pub(crate) fn numbers_of(name: &str) -> Result<Numbers> {
    let mounts = match answered(MOUNTS, sys::file::read_whole_text(MOUNTS))? {
        Ok(mounts) => mounts,
        Err(errno) => {
            return Ok(Numbers::Untold(format!(
                "{MOUNTS} cannot be read: {}",
                errno.desc()
            )));
        }
    };
    let found = numbers_below(hierarchies_in(&mounts), name);
    Ok(match answered("the cgroup that the policy names", found)? {
        Ok(Some(numbers)) => Numbers::Told(numbers),
        Ok(None) => Numbers::NotMounted,
        Err(errno) => Numbers::Untold(format!(
            "the cgroup that the policy names cannot be inspected: {}",
            errno.desc()
        )),
    })
}

/// Returns the root and the mount point of each mounted hierarchy of version 2.
fn hierarchies_in(mounts: &str) -> impl Iterator<Item = (String, String)> {
    let hierarchies = mounts_in(mounts).filter(|mount| mount.kind == "cgroup2");
    hierarchies.map(|mount| (mount.root, mount.point))
}

fn numbers_below(
    mounts: impl Iterator<Item = (String, String)>,
    name: &str,
) -> Result<Option<Vec<u64>>, Errno> {
    let mut mounted = false;
    let mut found = Vec::new();
    for (root, point) in mounts {
        let below = name.strip_prefix(root.trim_end_matches('/'));
        let Some(below) = below.filter(|below| below.is_empty() || below.starts_with('/')) else {
            continue;
        };
        mounted = true;
        let path = Path::new(&point).join(below.trim_start_matches('/'));
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let directory = match uninterrupted(|| open(&path, flags, Mode::empty())) {
            Ok(directory) => directory,
            // No cgroup has that name.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG) => continue,
            Err(errno) => return Err(errno),
        };
        // Another filesystem may be mounted over the cgroup's directory.
        if uninterrupted(|| fstatfs(&directory))?.filesystem_type() == CGROUP2_SUPER_MAGIC {
            found.push(uninterrupted(|| fstat(&directory))?.st_ino);
        }
    }
    found.dedup();
    Ok(mounted.then_some(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_filesystem_is_found_wherever_it_is_mounted() {
        let text =
            "28 23 0:25 / /mnt rw - cgroup cgroup rw,memory\n29 23 0:26 /a /mnt/c rw - cgroup2 cgroup2 rw\n";
        assert!(hierarchies_in(text).eq([("/a".to_owned(), "/mnt/c".to_owned())]));
        let nowhere = || [("/a".to_owned(), "/nowhere/at/all".to_owned())].into_iter();
        // The first name is inside this mount, the second beside it.
        assert_eq!(numbers_below(nowhere(), "/a/b"), Ok(Some(vec![])));
        assert_eq!(numbers_below(nowhere(), "/ab"), Ok(None));
        // A directory at the mount point that is not a cgroup has no number.
        let elsewhere = [("/".to_owned(), "/".to_owned())].into_iter();
        assert_eq!(numbers_below(elsewhere, "/proc"), Ok(Some(vec![])));
    }
    #[test]
    fn a_cgroup_is_a_directory_and_not_a_file_or_a_symlink() {
        let mounts = sys::file::read_whole_text("/proc/self/mountinfo").unwrap();
        let Some((_, point)) =
            hierarchies_in(&mounts).find(|(_, point)| Path::new(point).join("cgroup.procs").exists())
        else {
            eprintln!("skipped: no cgroup filesystem (version 2) is mounted here");
            return;
        };
        let below = |point: &Path, name| {
            let mount = ("/".to_owned(), point.to_str().unwrap().to_owned());
            numbers_below([mount].into_iter(), name).unwrap().unwrap()
        };
        let number = nix::sys::stat::stat(point.as_str()).unwrap().st_ino;
        assert_eq!(below(Path::new(&point), "/"), [number]);
        assert_eq!(below(Path::new(&point), "/cgroup.procs"), [0; 0]);
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(&point, elsewhere.path().join("link")).unwrap();
        assert_eq!(below(elsewhere.path(), "/link"), [0; 0]);
    }
}
