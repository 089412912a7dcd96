//! An address that this process has bound: the listening socket and, for a path, the socket's file and the
//! lock; and the share of it that the guest of a membership holds.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, FcntlArg, OFlag, fcntl, open, openat},
    sys::{
        socket::{
            Backlog, Shutdown, SockFlag, SockType, UnixAddr, accept4, getsockname, getsockopt, listen,
            shutdown, sockopt,
        },
        stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, fstatat, lstat},
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat},
};

use crate::{
    address::Address,
    error::{Check, Error, OrSystem, Refusal, Result},
    evidence::EvidenceLog,
    fork::CloseOnForkFd,
    sys::{self, uninterrupted},
    wake::attachments::{PeerSocket, UncheckedFd},
};

/// The maximum number of connections that wait for a host. A further client retries a little later.
pub(super) const BACKLOG_OF_A_PAIR: i32 = 64;
/// The kernel's maximum, because a thousand agents may connect at the same time (listen(2),
/// `net.core.somaxconn`: 4096 since Linux 5.4, 128 before).
pub(super) const BACKLOG_OF_A_SERVICE: i32 = -1;

/// The users that may connect to a named address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    /// Permission bits of the socket's file.
    pub(crate) mode: u32,
    /// The group of the socket's file; `None` for the process's own group.
    pub(crate) group: Option<u32>,
}

/// An address that this process has bound. Dropping it frees the address and leaves nothing behind.
#[derive(Debug)]
pub(crate) struct BoundAddress {
    pub(super) named: Option<SocketFile>,
    pub(super) listener: CloseOnForkFd,
    /// Another process owns the place, and this process holds only a share of it.
    is_shared: bool,
}

impl Drop for BoundAddress {
    /// Shuts the listening socket. While another thread starts a program (posix_spawn(3), which runs no
    /// pthread_atfork(3) handlers), the child has a copy of the socket until it executes that program. The
    /// copy must not accept connections into its queue, because no process would ever accept them.
    fn drop(&mut self) {
        // A forked child must not remove its parent's files.
        if self.is_shared || !self.listener.in_owner_process() {
            return;
        }
        Self::shut_down(&self.listener);
        // Before the socket is closed: until then no other file can get its inode, even if its file was removed.
        if let Some(named) = &self.named {
            named.remove();
        }
    }
}

/// The socket and the lock of a named address.
#[derive(Debug)]
pub(super) struct SocketFile {
    pub(super) files: Files,
    /// The identity of the socket's file, so that no other file is ever removed.
    socket: Option<Inode>,
    /// Held while the address is bound. A process that finds a socket without an answering host learns from
    /// the lock whether a host still exists.
    lock: CloseOnForkFd,
}

impl SocketFile {
    /// Removes the files while the lock is held. A file that cannot be removed (for example because its
    /// directory has a new owner) stays: the next host finds it stale. A file that has replaced one of
    /// these belongs to another instance.
    pub(super) fn remove(&self) {
        let Files { socket, lock, .. } = &self.files;
        if let Some(inode) = self.socket {
            let _ = self.files.remove(socket, inode);
        }
        if let Ok(stat) = fstat(&**self.lock) {
            let _ = self.files.remove(lock, inode(&stat));
        }
        // A child that was forked without pthread_atfork(3) handlers has the open file as well, so closing it
        // here would not unlock it.
        sys::file::unlock_file(&**self.lock);
    }

    /// Makes the files of an address of which only the lock exists so far.
    pub(super) fn locked(files: Files, lock: OwnedFd) -> Result<Self> {
        Ok(Self {
            files,
            socket: None,
            lock: CloseOnForkFd::new(lock)?,
        })
    }

    /// Makes the share of files that another process has bound and locked.
    pub(super) fn shared(files: Files, lock: OwnedFd) -> Result<Self> {
        let wanted = "the host's socket beside its lock";
        let socket = files
            .inode_at(&files.socket)
            .map_err(|errno| Refusal::of_lookup(INSPECTING_SOCKET, Check::Address, wanted, errno))?;
        Ok(Self {
            socket,
            ..Self::locked(files, lock)?
        })
    }

    /// Checks that the socket and the lock of a host that has ended are still at their path. If they are not,
    /// no process would find a host here, and the next host would create its own files.
    pub(super) fn check_files(&self) -> Result<()> {
        let gone = |why: &str| {
            let what =
                format!("the host has ended, and its socket and its lock are no longer at the path: {why}");
            Error::PeerLost(what)
        };
        let inspection_error = |errno: Errno| {
            Error::unless_short("looking up the files of the host", errno, |errno| {
                gone(errno.desc())
            })
        };
        let socket = self
            .files
            .inode_at(&self.files.socket)
            .map_err(inspection_error)?;
        let lock = self.files.inode_at(&self.files.lock).map_err(inspection_error)?;
        let held = uninterrupted(|| fstat(&**self.lock)).map_err(inspection_error)?;
        if socket.is_some() && socket == self.socket && lock == Some(inode(&held)) {
            return Ok(());
        }
        Err(gone("they were removed or replaced"))
    }

    /// Returns the identity of the file that has the socket's name.
    pub(super) fn socket_inode(&self, address: &Address) -> Result<Option<Inode>> {
        self.files
            .inode_at(&self.files.socket)
            .map_err(inspection_error(address))
    }

    /// Records the file of the socket that this process has just bound, so that it is removed whatever fails
    /// later. The lookup is by name, because no descriptor may be left. `before` is the file that had the
    /// name before bind. If the name still leads to `before`, the path has led to another directory.
    pub(super) fn find_socket(
        &mut self,
        address: &Address,
        path: &Path,
        before: Option<Inode>,
    ) -> Result<()> {
        let gone = || {
            let reason = "its socket was removed, or its directory replaced";
            address.invalid(reason, Some(Errno::ENOENT))
        };
        let found = match self.files.stat(&self.files.socket) {
            Ok(found) if is_kind(&found, SFlag::S_IFSOCK) && before != Some(inode(&found)) => inode(&found),
            Ok(_) | Err(Errno::ENOENT) => return Err(gone()),
            Err(errno) => return Err(inspection_error(address)(errno)),
        };
        self.socket = Some(found);
        if inode_at(path).map_err(inspection_error(address))? == self.socket {
            return Ok(());
        }
        self.socket = None;
        Err(gone())
    }

    /// Sets the group and the mode of the socket's file. No process can connect before listen, so there is no
    /// moment in which an unauthorized process could.
    pub(super) fn admit(&self, address: &Address, access: Access) -> Result<()> {
        let refused = |what: &str, errno| address.invalid(what, Some(errno));
        // Open the file first: in a directory that others can write, the name could lead to another file a
        // moment later, and the mode of that file must not change.
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let (directory, name) = (&self.files.directory, &*self.files.socket);
        let file = uninterrupted(|| openat(directory, name, flags, Mode::empty()))
            .map_err(|errno| refused("its socket was removed", errno))?;
        let stat = uninterrupted(|| fstat(&file)).map_err(inspection_error(address))?;
        if !is_kind(&stat, SFlag::S_IFSOCK) || Some(inode(&stat)) != self.socket {
            return Err(refused("its socket was replaced by another file", Errno::EEXIST));
        }
        if let Some(group) = access.group {
            let group = Some(Gid::from_raw(group));
            uninterrupted(|| fchownat(&file, "", None::<Uid>, group, AtFlags::AT_EMPTY_PATH))
                .map_err(|errno| refused("its group cannot be set", errno))?;
        }
        // bind applied the umask; the requested mode must win. chmod does not accept an `O_PATH` descriptor,
        // but it accepts the kernel's link to it.
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mode = mode_bits(access.mode);
        uninterrupted(|| fchmodat(AT_FDCWD, link.as_str(), mode, FchmodatFlags::FollowSymlink))
            .map_err(|errno| refused("its mode cannot be set", errno))
    }
}

pub(super) fn mode_bits(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode as _)
}

impl AsFd for BoundAddress {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Makes the error for a failed lookup of the socket's file.
fn inspection_error(address: &Address) -> impl Fn(Errno) -> Error {
    |errno| address.invalid("its socket cannot be inspected", Some(errno))
}

impl BoundAddress {
    /// Takes a socket that this process has just made, and is about to bind.
    pub(super) fn unbound(listener: OwnedFd) -> Result<Self> {
        // Accepted sockets inherit this option, so data that a guest sends before it is accepted carries its
        // credentials.
        sys::socket::prepare_new_socket(&listener).or_system("SO_PASSCRED")?;
        Ok(Self {
            named: None,
            listener: CloseOnForkFd::new(listener)?,
            is_shared: false,
        })
    }

    /// Starts listening. From now on the kernel reports this process to a connecting guest.
    pub(super) fn start_listening(&self, backlog: i32) -> Result<()> {
        let backlog = Backlog::new(backlog).or_system("listening")?;
        listen(&**self.listener, backlog).or_system("listening")
    }

    /// Accepts the next connection, if one waits. Fails with [`Error::Closed`] if another process that has
    /// the socket has shut it.
    pub(crate) fn accept(&self) -> Result<Option<PeerSocket>> {
        match self.next() {
            Ok(stream) => Ok(Some(stream)),
            Err(Errno::EAGAIN) if self.is_shut() => Err(Error::Closed(
                "the listening socket was shut down by another process that has it",
            )),
            Err(Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(Error::system("accepting a connection", errno)),
        }
    }

    /// Whether the socket was shut. accept(2) fails with EAGAIN both if no connection waits and if the socket
    /// was shut; poll(2) distinguishes the two.
    fn is_shut(&self) -> bool {
        sys::is_ready(&self.listener, sys::socket::HUNG_UP) == Ok(true)
    }

    fn next(&self) -> Result<PeerSocket, Errno> {
        // The mode belongs to the open socket, which the peer of a membership shares and can change.
        fcntl(&**self.listener, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        loop {
            match accept4(&**self.listener, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                Err(errno) => return Err(errno),
                // The stream inherits the listening socket's options, which the peer of a membership can
                // change as well.
                Ok(stream) => {
                    let stream = PeerSocket::new(stream)?;
                    return sys::socket::prepare_socket(&stream).map(|()| stream);
                }
            }
        }
    }

    /// Closes the connections that already wait, so that their clients reconnect. The kernel has reported the
    /// old host to them, and their handshake would look for that process and fail.
    pub(crate) fn drop_queued(&self) {
        // At most as many as the kernel lets wait. A client that is not closed here notices the mismatch
        // itself.
        for _ in 0..=BACKLOG_OF_A_PAIR {
            if self.next().is_err() {
                break;
            }
        }
    }

    /// Shuts the listening socket permanently, for all processes that have it. A blocked accept returns.
    pub(crate) fn shut_down(listener: &OwnedFd) {
        // This fails only if the socket is already shut.
        let _ = shutdown(listener.as_raw_fd(), Shutdown::Read);
    }

    /// Returns the descriptors with which a guest can take over: the listening socket and, for a path, the
    /// lock.
    pub(crate) fn share(&self) -> Vec<Arc<OwnedFd>> {
        let lock = self.named.iter().map(|named| &named.lock);
        let descriptors = std::iter::once(&self.listener).chain(lock);
        descriptors.map(|descriptor| Arc::clone(descriptor)).collect()
    }

    /// Drops the place without changing the address: another process takes over.
    pub(crate) fn hand_over(mut self) {
        self.is_shared = true;
    }

    /// Stops accepting connections, while the address stays bound. From then on the kernel rejects clients
    /// without a thread of ours: connect(2) fails with ECONNREFUSED on a listening socket that was shut down
    /// for reading. `refuse_client` receives the connections that already wait.
    pub(crate) fn close(&self, refuse_client: impl Fn(PeerSocket)) -> Result<()> {
        shutdown(self.listener.as_raw_fd(), Shutdown::Read)
            .or_system("closing the address to new clients (shutdown)")?;
        loop {
            match self.next() {
                Ok(stream) => refuse_client(stream),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(Error::system("accepting a connection", errno)),
            }
        }
    }
}

/// The identity of a file, independent of its name: device and inode.
pub(super) type Inode = (u64, u64);

/// The directory of a named address, and the file names in it. The directory is held as a descriptor, because
/// its path may later lead to a different one: this process may change its working directory, or the
/// directory may be renamed and replaced.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) directory: OwnedFd,
    pub(super) socket: OsString,
    pub(super) lock: OsString,
}

/// Makes the error for a directory that cannot be opened.
pub(super) fn cannot_open_directory(address: &Address, errno: Errno) -> Error {
    let (reason, errno) = match errno {
        Errno::ENOENT | Errno::ENOTDIR => ("its directory does not exist", Errno::ENOENT),
        Errno::EISDIR => ("it names a directory", errno),
        _ => ("its directory cannot be opened", errno),
    };
    address.invalid(reason, Some(errno))
}

impl Files {
    /// Opens the directory. Fails with `EISDIR` if the path has no file name, otherwise with the errno of
    /// open(2).
    pub(super) fn of(path: &Path) -> Result<Self, Errno> {
        let bytes = path.as_os_str().as_bytes();
        let (directory, name) = match bytes.iter().rposition(|byte| *byte == b'/') {
            None => (&b"."[..], bytes),
            Some(at) => (&bytes[..=at], &bytes[at + 1..]),
        };
        if matches!(name, b"" | b"." | b"..") {
            return Err(Errno::EISDIR);
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = uninterrupted(|| open(OsStr::from_bytes(directory), flags, Mode::empty()))?;
        let socket = OsStr::from_bytes(name).to_owned();
        let mut lock = socket.clone();
        lock.push(".lock");
        Ok(Self {
            directory,
            socket,
            lock,
        })
    }

    pub(super) fn open_lock(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        uninterrupted(|| openat(&self.directory, &*self.lock, flags, mode))
    }

    pub(super) fn stat(&self, name: &OsStr) -> Result<FileStat, Errno> {
        uninterrupted(|| fstatat(&self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW))
    }

    /// Returns the identity of the file with this name, or `None` if there is none. Fails if that is unknown.
    pub(super) fn inode_at(&self, name: &OsStr) -> Result<Option<Inode>, Errno> {
        inode_if_found(self.stat(name))
    }

    /// Removes the file if its name still leads to `expected`.
    pub(super) fn remove(&self, name: &OsStr, expected: Inode) -> Result<(), Errno> {
        if self.inode_at(name)? != Some(expected) {
            return Ok(());
        }
        match unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }
}

pub(super) fn inode(stat: &FileStat) -> Inode {
    (stat.st_dev, stat.st_ino)
}

/// Does the same as [`Files::inode_at`], for a path.
pub(super) fn inode_at(path: &Path) -> Result<Option<Inode>, Errno> {
    inode_if_found(uninterrupted(|| lstat(path)))
}

fn inode_if_found(stat: Result<FileStat, Errno>) -> Result<Option<Inode>, Errno> {
    match stat {
        Ok(stat) => Ok(Some(inode(&stat))),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

pub(super) fn is_kind(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

/// Names the operation in errors.
const INSPECTING_SOCKET: &str = "inspecting the host's socket";

/// The share of the host's place that the guest of a membership holds, so that it can take over when the host
/// ends. Dropping it changes nothing at the address.
pub(crate) struct Inheritance(BoundAddress);

impl Inheritance {
    /// The number of descriptors that the host passes for it.
    pub(crate) fn count(address: &Address) -> usize {
        if address.place().is_some() { 2 } else { 1 }
    }

    /// Accepts the descriptors that the host has passed, after checking each of them.
    pub(crate) fn accept(
        address: &Address,
        descriptors: Vec<UncheckedFd>,
        record: &mut EvidenceLog,
    ) -> Result<Self> {
        let mut descriptors = descriptors.into_iter();
        let (listener, lock) = (descriptors.next(), descriptors.next());
        let listener = listener.ok_or_else(|| Error::Protocol("READY without a listening socket".into()))?;
        let wanted = format!("the socket that listens at {address}");
        // The host has chosen the path, which this process may not be allowed to follow.
        let inspection_error = |errno| {
            Error::unless_short(INSPECTING_SOCKET, errno, |errno| {
                Refusal::new(Check::Address, &wanted, errno.desc()).into()
            })
        };
        let stream = ask(&listener, &wanted, |socket| {
            getsockopt(&socket, sockopt::SockType)
        })?;
        let stream = stream == SockType::Stream;
        let listens = ask(&listener, &wanted, |socket| {
            getsockopt(&socket, sockopt::AcceptConn)
        })?;
        let bound = ask(&listener, &wanted, |socket| {
            getsockname::<UnixAddr>(socket.as_raw_fd())
        })?;
        let here = is_bound_at(&bound, address).map_err(inspection_error)?;
        let found = format!("stream: {stream}, listening: {listens}, bound at {bound}");
        if stream && listens && !here && is_orphaned(&bound).map_err(inspection_error)? {
            return Err(Error::PeerLost("the host has left the address".into()));
        }
        if !(stream && listens && here) {
            return Err(Refusal::new(Check::Address, wanted, found).into());
        }
        record.passed("ready", "address", wanted, found);
        let named = match (address.place(), lock) {
            (Some(path), Some(lock)) => Some(accept_lock(address, path, lock, record)?),
            (None, None) => None,
            _ => return Err(Error::Protocol("READY with a missing or unexpected lock".into())),
        };
        Ok(Self(BoundAddress {
            named,
            listener: CloseOnForkFd::new(listener.into_checked())?,
            is_shared: true,
        }))
    }

    /// Takes over the place of a host that has ended. From now on the kernel reports this process to a
    /// connecting guest. Connections that are already queued still refer to the old host: see
    /// [`BoundAddress::drop_queued`].
    pub(crate) fn take_over(self) -> Result<BoundAddress> {
        let Self(mut place) = self;
        if let Some(named) = &place.named {
            named.check_files()?;
        }
        place.start_listening(BACKLOG_OF_A_PAIR)?;
        place.is_shared = false;
        Ok(place)
    }
}

/// Makes a system call on the socket that the host has passed.
fn ask<'a, T>(
    listener: &'a OwnedFd,
    wanted: &str,
    call: impl Fn(BorrowedFd<'a>) -> Result<T, Errno>,
) -> Result<T> {
    sys::uninterrupted(|| call(listener.as_fd()))
        .map_err(|errno| Refusal::of_lookup(INSPECTING_SOCKET, Check::Address, wanted, errno))
}

/// Checks the lock that the host has passed. It must be the file next to the path, and locked through this
/// same open file.
fn accept_lock(
    address: &Address,
    path: &Path,
    lock: UncheckedFd,
    record: &mut EvidenceLog,
) -> Result<SocketFile> {
    let files = Files::of(path).map_err(|errno| cannot_open_directory(address, errno))?;
    let wanted = "the locked file beside the socket";
    let what = "inspecting the host's lock";
    let inspection_error = |errno| Refusal::of_lookup(what, Check::Lock, wanted, errno);
    let (kind, inode) = Refusal::or_local(what, Check::Lock, wanted, &lock, sys::file::identify)?;
    let regular = kind == SFlag::S_IFREG;
    let beside = files.inode_at(&files.lock).map_err(inspection_error)? == Some(inode);
    let held = regular
        && beside
        // It fails, for example, with an `O_PATH` descriptor, which cannot be locked.
        && Refusal::or_local(what, Check::Lock, wanted, &lock, |lock| {
            match sys::file::lock_file(lock) {
                Err(Errno::EWOULDBLOCK) => Ok(false),
                locked => locked.map(|()| true),
            }
        })?;
    let found = format!("a regular file: {regular}, beside it: {beside}, locked: {held}");
    if !held {
        return Err(Refusal::new(Check::Lock, wanted, found).into());
    }
    record.passed("ready", "lock", wanted, found);
    SocketFile::shared(files, lock.into_checked())
}

/// Whether a socket was bound at a path and its file has been removed. If the address leads to the same
/// directory by another path, it is then unknown whether this was the socket of the address.
fn is_orphaned(bound: &UnixAddr) -> Result<bool, Errno> {
    match bound.path() {
        Some(bound) if bound.is_absolute() => Ok(inode_at(bound)?.is_none()),
        _ => Ok(false),
    }
}

/// Whether a socket is bound at the address, as this process resolves it. Two paths to the same file count as
/// the same place.
fn is_bound_at(bound: &UnixAddr, address: &Address) -> Result<bool, Errno> {
    let Some(path) = address.place() else {
        return Ok(address.to_socket().is_ok_and(|own| own == *bound));
    };
    match bound.path() {
        Some(bound) if bound == path => Ok(true),
        Some(bound) if bound.is_absolute() => {
            let there = inode_at(bound)?;
            Ok(there.is_some() && there == inode_at(path)?)
        }
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        os::unix::{
            fs::{PermissionsExt, symlink},
            net::UnixListener,
        },
        thread,
    };

    use nix::unistd::{Uid, setfsuid};

    use super::*;

    /// The path leads to another directory, and looking it up again fails.
    #[test]
    fn file_that_existed_before_bind_is_not_our_socket() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("socket");
        let lock = tempfile::tempfile().unwrap().into();
        let mut named = SocketFile::locked(Files::of(&place).unwrap(), lock).unwrap();
        let _stranger = UnixListener::bind(&place).unwrap();
        symlink("circle", folder.path().join("circle")).unwrap();
        let path = folder.path().join("circle/socket");
        let address = Address::path(&path).unwrap();
        let before = named.socket_inode(&address).unwrap();
        assert!(before.is_some());
        let error = named.find_socket(&address, &path, before).unwrap_err();
        assert!(error.to_string().contains("its socket was removed"), "{error}");
        named.remove();
        assert!(place.exists());
    }

    #[test]
    fn host_is_refused_for_a_path_that_may_not_be_followed() {
        let folder = tempfile::tempdir().unwrap();
        let closed = folder.path().join("closed");
        std::fs::create_dir(&closed).unwrap();
        let listener = UnixListener::bind(closed.join("socket")).unwrap();
        let set_mode = |mode| std::fs::set_permissions(&closed, Permissions::from_mode(mode)).unwrap();
        set_mode(0);
        let address = Address::path(folder.path().join("socket")).unwrap();
        let accept = move || {
            // Root is denied nothing.
            setfsuid(Uid::from_raw(65534));
            let passed = vec![UncheckedFd::new(listener.into())];
            Inheritance::accept(&address, passed, &mut EvidenceLog::default()).map(drop)
        };
        let error = thread::spawn(accept).join().unwrap().unwrap_err();
        set_mode(0o700);
        assert_eq!(error.code(), "PEER_REFUSED", "{error}");
    }

    #[test]
    fn uninspectable_host_socket_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let lock = || tempfile::tempfile().unwrap().into();
        let files = |name: &str| Files::of(&folder.path().join(name)).unwrap();
        assert!(SocketFile::shared(files("missing"), lock()).is_ok());
        let error = SocketFile::shared(files(&"x".repeat(300)), lock()).unwrap_err();
        assert_eq!(error.code(), "PEER_REFUSED", "{error}");
        assert!(error.to_string().contains("File name too long"), "{error}");
    }

    #[test]
    fn uninspectable_file_does_not_count_as_missing() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::of(&folder.path().join("socket")).unwrap();
        std::fs::write(folder.path().join("socket"), "").unwrap();
        symlink("circle", folder.path().join("circle")).unwrap();
        let there = files.inode_at(&files.socket).unwrap();
        assert!(there.is_some());
        assert_eq!(inode_at(&folder.path().join("socket")), Ok(there));
        assert_eq!(files.inode_at(&files.lock), Ok(None));
        assert_eq!(inode_at(&folder.path().join("socket/under a file")), Ok(None));
        let long = "x".repeat(300);
        assert_eq!(files.inode_at(OsStr::new(&long)), Err(Errno::ENAMETOOLONG));
        assert_eq!(inode_at(&folder.path().join("circle/socket")), Err(Errno::ELOOP));
        // The file is unknown, so it must not be removed, and that is not a success.
        let removed = files.remove(OsStr::new(&long), there.unwrap());
        assert_eq!(removed, Err(Errno::ENAMETOOLONG));
    }
}
