//! Hashes the content of an executable.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    sys::{
        stat::FileStat,
        statfs::{FUSE_SUPER_MAGIC, fstatfs},
    },
    unistd::read,
};
use sha2::{Digest as _, Sha256};

use crate::{
    error::{self, Error, Result},
    fork::PerProcess,
    identity::Digest,
    sys::{lock::Mutex, uninterrupted},
    wait::deadline::Deadline,
};

impl FromStr for Digest {
    type Err = Error;

    /// Parses 64 hexadecimal digits, of either case.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for any other text.
    fn from_str(text: &str) -> Result<Self> {
        if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(Error::invalid(format!(
                "a SHA-256 is 64 hexadecimal digits, not {text:?}"
            )));
        }
        let byte = |at| u8::from_str_radix(&text[2 * at..][..2], 16).expect("two hexadecimal digits");
        let bytes: [u8; 32] = std::array::from_fn(byte);
        Ok(Self::from(bytes))
    }
}

/// Identifies one version of a file's content without reading it. The file's owner can set all of these
/// except ctime, which only the kernel sets.
type Version = (u64, u64, i64, i64, i64);

/// Hashes that were computed before. A service checks the same few executables repeatedly, and hashing a Node
/// binary takes tenths of a second.
static CACHE: PerProcess<Mutex<HashMap<Version, Digest>>> = PerProcess::new();
const CACHE_LIMIT: usize = 256;

/// Twice the coarsest timestamp granularity of a filesystem. A file that changed more recently could change
/// again and keep the same ctime.
const MIN_AGE: Duration = Duration::from_secs(2);

fn version_of(stat: &FileStat) -> Option<Version> {
    let changed = UNIX_EPOCH
        + Duration::new(
            stat.st_ctime.try_into().ok()?,
            stat.st_ctime_nsec.try_into().ok()?,
        );
    let age = SystemTime::now().duration_since(changed).ok()?;
    (age >= MIN_AGE).then_some((
        stat.st_dev,
        stat.st_ino,
        stat.st_size,
        stat.st_ctime,
        stat.st_ctime_nsec,
    ))
}

/// Names the step in errors about a slow read.
pub(crate) const READING: &str = "the SHA-256 of the peer's executable";

/// The hash of an executable's content, or why it is unknown.
pub(crate) type Content = Result<Digest, String>;

/// Reports a content that the kernel does not let this process read. Fails if this process has run out of
/// descriptors or memory.
pub(crate) fn unreadable(errno: Errno) -> Result<Content> {
    if error::is_shortage(errno) {
        return Err(Error::system("the content of the peer's executable", errno));
    }
    Ok(Err(format!("its content cannot be read: {}", errno.desc())))
}

/// Hashes the file by reading it to its end. Fails if the wait was cancelled or the deadline has passed.
pub(crate) fn hash(file: &OwnedFd, stat: &FileStat, deadline: &Deadline) -> Result<Content> {
    match uninterrupted(|| fstatfs(file)).map(|found| found.filesystem_type()) {
        Ok(FUSE_SUPER_MAGIC) => {
            return Ok(Err(
                "it lies on a filesystem that a process serves (FUSE), which may show each reader different content"
                    .into(),
            ));
        }
        Ok(_) => {}
        Err(errno) => return unreadable(errno),
    }
    let version = version_of(stat);
    let cached = |map: &mut HashMap<Version, Digest>| version.and_then(|version| map.get(&version).copied());
    if let Some(digest) = with_cache(cached).flatten() {
        return Ok(Ok(digest));
    }
    let mut sha256 = Sha256::new();
    let mut chunk = vec![0; 1 << 18];
    loop {
        // At the deadline: this side's disk is slow, which says nothing about the peer.
        deadline.check_at(READING)?;
        match read(file, &mut chunk) {
            Ok(0) => break,
            Ok(count) => sha256.update(&chunk[..count]),
            Err(Errno::EINTR) => {}
            Err(errno) => return unreadable(errno),
        }
    }
    let digest = Digest::from(<[u8; 32]>::from(sha256.finalize()));
    if let Some(version) = version {
        with_cache(|cache| {
            if cache.len() >= CACHE_LIMIT {
                cache.clear();
            }
            cache.insert(version, digest);
        });
    }
    Ok(Ok(digest))
}

/// Returns `None` if there is no memory for the map. Then nothing is cached.
fn with_cache<T>(what: impl FnOnce(&mut HashMap<Version, Digest>) -> T) -> Option<T> {
    let mut cache = CACHE.get().ok()?.lock();
    Some(what(&mut cache))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write, time::Instant};

    use nix::sys::stat::fstat;

    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn deadline(time: Duration) -> Deadline {
        Deadline::endless(Vec::new(), time).within(time)
    }

    fn open(path: &std::path::Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    fn of_path(path: &std::path::Path, time: Duration) -> Result<Digest> {
        let file = open(path);
        match hash(&file, &fstat(&file).unwrap(), &deadline(time))? {
            Ok(digest) => Ok(digest),
            Err(why) => panic!("{why}"),
        }
    }

    #[test]
    fn digest_round_trips_as_64_digits() {
        let digest: Digest = ABC.parse().unwrap();
        assert_eq!(digest.to_string(), ABC);
        assert_eq!(ABC.to_uppercase().parse::<Digest>().unwrap(), digest);
        for wrong in [
            "",
            "ba",
            &ABC[1..],
            &format!("{ABC}0"),
            &format!("{ABC}00"),
            &ABC.replace('a', "g"),
            &"ü".repeat(32),
        ] {
            assert_eq!(
                wrong.parse::<Digest>().unwrap_err().code(),
                "INVALID_ARGUMENT",
                "{wrong}"
            );
        }
    }

    #[test]
    fn changed_content_is_never_served_from_the_cache() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let time = Duration::from_secs(60);
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(of_path(&path, time).unwrap().to_string(), ABC);
        // The same size, modification time and inode, with different content.
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        let mut file = File::options().write(true).open(&path).unwrap();
        file.write_all(b"abd").unwrap();
        file.set_modified(modified).unwrap();
        assert_ne!(of_path(&path, time).unwrap().to_string(), ABC);
    }

    #[test]
    fn hashing_a_huge_file_stops_at_the_deadline() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sparse");
        File::create(&path).unwrap().set_len(1 << 42).unwrap();
        let started = Instant::now();
        let error = of_path(&path, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.code(), "HANDSHAKE_TIMEOUT");
        assert!(started.elapsed() >= Duration::from_millis(50));
    }
    #[test]
    fn file_has_a_version_only_once_settled() {
        let mut stat = fstat(File::open("/proc/self/exe").unwrap()).unwrap();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs()
            .cast_signed();
        for (changed, settled) in [
            (now - 3600, true),
            (now - 60, true),
            (now, false),
            (now + 3600, false),
            (-1, false),
        ] {
            stat.st_ctime = changed;
            let version = version_of(&stat);
            assert_eq!(version.map(|version| version.3), settled.then_some(changed));
        }
    }

    #[test]
    fn hashes_are_cached_up_to_a_limit() {
        let version = |path: &str| version_of(&fstat(open(path.as_ref())).unwrap()).unwrap();
        let programs = ["/bin/sh", "/bin/cat"];
        for path in programs {
            of_path(path.as_ref(), Duration::from_secs(60)).unwrap();
        }
        for path in programs {
            let version = version(path);
            assert!(
                with_cache(|cache| cache.contains_key(&version)).unwrap(),
                "{path}"
            );
        }
        with_cache(|cache| {
            cache.clear();
            let digest: Digest = ABC.parse().unwrap();
            cache.extend((0..CACHE_LIMIT as u64).map(|inode| ((0, inode, 0, 0, 0), digest)));
            // A cached hash is returned without reading the file, so a wrong one is returned too.
            cache.insert(version("/bin/sh"), digest);
        });
        let cached = of_path("/bin/sh".as_ref(), Duration::from_secs(60)).unwrap();
        assert_eq!(cached.to_string(), ABC);
        of_path("/bin/cat".as_ref(), Duration::from_secs(60)).unwrap();
        assert!(with_cache(|cache| cache.len()).unwrap() <= CACHE_LIMIT);
        // The wrong hash must not affect other tests of this process.
        with_cache(HashMap::clear);
    }
}
