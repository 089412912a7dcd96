//! What is known of a process, as plain data. It imports nothing of this crate, so everything can carry it.

use std::{fmt, path::PathBuf};

/// The credentials in a message's ancillary data, as the kernel attests them (unix(7), `SCM_CREDENTIALS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A file that a process executes: what it is (device and inode), and what it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executable {
    /// The path by which the kernel knows it now. For people: names can be made to say anything.
    pub path: PathBuf,
    /// The filesystem, `st_dev` of stat(2).
    pub device: u64,
    /// The file on it, `st_ino` of stat(2).
    pub inode: u64,
    /// What its content hashes to, where the policy asked for that.
    pub sha256: Option<Digest>,
}

impl Executable {
    /// The very same file: names and contents may be equal elsewhere.
    pub(crate) fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

impl fmt::Display for Executable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            device,
            inode,
            sha256,
        } = self;
        write!(f, "{} (device {device:#x}, inode {inode}", path.display())?;
        if let Some(sha256) = sha256 {
            write!(f, ", SHA-256 {sha256}")?;
        }
        f.write_str(")")
    }
}

/// What the kernel attested of the peer when it was looked at.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct Identity {
    /// Process id, in this process's pid namespace (`SO_PEERCRED`); 0 for a process that has none there, which only
    /// [`Namespace::Any`](crate::Namespace::Any) lets in.
    pub pid: i32,
    /// Effective user id when it connected or listened, which must be its effective user id at each later look.
    pub uid: u32,
    /// Effective group id, likewise.
    pub gid: u32,
    /// Supplementary groups when it connected or listened (`SO_PEERGROUPS`, Linux 4.13) that it still has; `None`
    /// where the kernel does not tell, or where those that it has now cannot be seen.
    pub groups: Option<Vec<u32>>,
    /// The executable; `None` where it cannot be read: another uid's process, or one that is not dumpable.
    pub executable: Option<Executable>,
    /// The cgroup (version 2) path, as this process's cgroup namespace names it.
    pub cgroup: Option<String>,
    /// The security label when it connected or listened (`SO_PEERSEC`), where a security module gives one.
    pub label: Option<String>,
}

impl Identity {
    /// As much as a connection tells by itself.
    pub(crate) fn of(credentials: Credentials) -> Self {
        let Credentials { pid, uid, gid } = credentials;
        Self {
            pid,
            uid,
            gid,
            groups: None,
            executable: None,
            cgroup: None,
            label: None,
        }
    }
}

/// A SHA-256, written as 64 hexadecimal digits (as sha256sum(1) prints it).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
