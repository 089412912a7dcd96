//! The known properties of a process, as plain data. It imports nothing from this crate, so every module can
//! use it.

use std::{fmt, path::PathBuf};

use nix::sys::stat::FileStat;

/// The credentials in a message's ancillary data, as the kernel attests them (unix(7), `SCM_CREDENTIALS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A file that a process executes: its identity (device and inode) and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executable {
    /// The current path according to the kernel. For display only, because a path can be forged.
    pub path: PathBuf,
    /// The filesystem, `st_dev` of stat(2).
    pub device: u64,
    /// The file on it, `st_ino` of stat(2).
    pub inode: u64,
    /// The hash of its content, if the policy asked for it.
    pub sha256: Option<Digest>,
}

impl Executable {
    /// The file with this status. Its content is not read.
    pub(crate) fn of(path: PathBuf, file: &FileStat) -> Self {
        Self {
            path,
            device: file.st_dev,
            inode: file.st_ino,
            sha256: None,
        }
    }

    /// Whether both are the same file. Names and contents do not count.
    pub(crate) fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

impl fmt::Display for Executable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        write!(f, "{path} (device {:#x}, inode {}", self.device, self.inode)?;
        if let Some(sha256) = &self.sha256 {
            write!(f, ", SHA-256 {sha256}")?;
        }
        f.write_str(")")
    }
}

/// The properties of the peer that the kernel attested when it was checked.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct Identity {
    /// The process id in this process's pid namespace (`SO_PEERCRED`). 0 for a process that has none there;
    /// only [`Namespace::Any`](crate::Namespace::Any) accepts such a peer.
    pub pid: i32,
    /// The effective user id when it connected or listened. It must be unchanged at each later check.
    pub uid: u32,
    /// The effective group id, likewise.
    pub gid: u32,
    /// The supplementary groups that it had when it connected or listened (`SO_PEERGROUPS`, Linux 4.13) and
    /// still has. `None` if the kernel does not report them, or if its current groups are not visible.
    pub groups: Option<Vec<u32>>,
    /// The executable. `None` if it is unreadable: for a process of another uid, or one that is not dumpable.
    pub executable: Option<Executable>,
    /// The path of its cgroup (version 2), as seen in this process's cgroup namespace.
    pub cgroup: Option<String>,
    /// The security label when it connected or listened (`SO_PEERSEC`), if a security module sets one.
    pub label: Option<String>,
}

impl Identity {
    /// Makes an identity from the credentials of a connection only.
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

named! { all pub(crate),
    /// A restriction that the kernel enforces on a process, and that a policy can require of a peer
    /// ([`Policy::confined`](crate::Policy::confined)). Its name is that of its check: `confined.` and the key of the policy.
    #[non_exhaustive]
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Confinement {
        /// No program that it executes gives it more privileges (`PR_SET_NO_NEW_PRIVS` of prctl(2)).
        NoNewPrivs => "confined.noNewPrivs",
        /// A filter decides about its system calls (seccomp(2)).
        Seccomp => "confined.seccomp",
        /// It has no permitted capability that counts in this process's user namespace. Capabilities in a user
        /// namespace below that one do not count.
        NoCapabilities => "confined.noCapabilities",
        /// It lives in a user namespace that descends from this process's.
        UserNamespace => "confined.userNamespace",
        /// It lives in another network namespace than this process.
        NetworkNamespace => "confined.networkNamespace",
    }
}

impl Confinement {
    /// Returns what makes a peer pass, for the sentence of a refusal.
    pub(crate) const fn advice(self) -> &'static str {
        match self {
            Self::NoNewPrivs => {
                "start the peer by bwrap, by `setpriv --no-new-privs` or with systemd's NoNewPrivileges=yes, or let it \
                 call prctl(PR_SET_NO_NEW_PRIVS) before it starts threads"
            }
            Self::Seccomp => {
                "start the peer under a filter (`bwrap --seccomp`, systemd's SystemCallFilter=), or let it load one \
                 for all of its threads (SECCOMP_FILTER_FLAG_TSYNC)"
            }
            Self::NoCapabilities => {
                "start the peer as a user without capabilities, with `bwrap --cap-drop ALL` or with systemd's \
                 CapabilityBoundingSet=, or in a user namespace of its own (`bwrap --unshare-user`)"
            }
            Self::UserNamespace => {
                "start the peer by `bwrap --unshare-user` or `unshare --user`, by a process of this one's user"
            }
            Self::NetworkNamespace => {
                "start the peer by `bwrap --unshare-net` or with systemd's PrivateNetwork=yes"
            }
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
