//! The election at an address: whoever binds it is the host, whoever finds it bound connects as the guest.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, FcntlArg, OFlag, fcntl, open, openat},
    poll::{PollFd, PollTimeout, poll},
    sys::{
        socket::{
            AddressFamily, Backlog, Shutdown, SockFlag, SockType, UnixAddr, accept4, bind, connect,
            getsockname, getsockopt, listen, shutdown, socket, sockopt,
        },
        stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, fstatat, lstat},
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat},
};

use crate::{
    error::{Check, Error, Refusal, Result},
    evidence::Record,
    fork::{Birth, Withheld},
    handshake::frame::{Code, Frame, Refuse},
    handshake::line,
    rendezvous::address::Address,
    sys,
    wait::deadline::Deadline,
};

/// Connections that wait for the host. More than that, and a newcomer tries again a little later.
const BACKLOG_OF_A_PAIR: i32 = 64;
/// As many as the kernel allows, since a thousand agents may come at once (listen(2), `net.core.somaxconn`: 4096 since
/// Linux 5.4, 128 before).
const BACKLOG_OF_A_SERVICE: i32 = -1;
/// Between bind and listen, and between the lock and bind, a host is there but does not answer yet: a newcomer looks
/// again this often before it believes that the host wants no more connections, each time a little later.
const LOOKS: u32 = 12;

/// Who may connect to a named address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    /// Permission bits of the socket's file.
    pub(crate) mode: u32,
    /// The group of the socket's file, where another than the process's own is wanted.
    pub(crate) group: Option<u32>,
}

/// What became of a process that came to an address.
#[derive(Debug)]
pub(crate) enum Met {
    Host(Place),
    Guest(OwnedFd),
}

/// An address that this process has bound. The address is free again once this is dropped, and nothing of it stays
/// behind.
#[derive(Debug)]
pub(crate) struct Place {
    /// Dropped first: as long as the socket is open its file's inode is nobody else's, also where the file was removed.
    named: Option<Named>,
    listener: Withheld,
}

/// A file, whatever its name is now: device and inode.
type Inode = (u64, u64);

/// The socket and the lock of a named address.
#[derive(Debug)]
struct Named {
    files: Files,
    /// The socket's file, so that nobody else's is ever removed.
    socket: Option<Inode>,
    /// Held as long as the address is: whoever finds a socket that nobody answers at knows from it whether there is
    /// still somebody.
    lock: Withheld,
    /// Another process has the place, of which this one holds its share alone.
    of_another: bool,
    /// A child has nothing of it.
    birth: Birth,
}

/// The directory of a named address, and the names in it. The directory is held by a descriptor: the path may lead to
/// another one later, since this process changes its own, or the directory was renamed and there is a new one.
#[derive(Debug)]
struct Files {
    directory: OwnedFd,
    socket: OsString,
    lock: OsString,
}

impl Drop for Named {
    fn drop(&mut self) {
        if self.of_another || !self.birth.is_here() {
            return;
        }
        // While the lock is held. A file that cannot be removed (its directory has changed hands, say) is left to
        // the next host, which finds it stale. A file that has taken the place of one of these is another instance's.
        let Files { socket, lock, .. } = &self.files;
        if let Some(inode) = self.socket {
            let _ = self.files.remove(socket, inode);
        }
        if let Ok(stat) = fstat(&**self.lock) {
            let _ = self.files.remove(lock, inode(&stat));
        }
        // A child that was forked past pthread_atfork(3) has the open file as well.
        sys::unlock_file(&**self.lock);
    }
}

impl Files {
    /// `Ok(Err(_))`: this process may not enter the directory.
    fn of(address: &Address, path: &Path) -> Result<Result<Self, Errno>> {
        let bytes = path.as_os_str().as_bytes();
        let (directory, name) = match bytes.iter().rposition(|byte| *byte == b'/') {
            None => (&b"."[..], bytes),
            Some(at) => (&bytes[..=at], &bytes[at + 1..]),
        };
        if matches!(name, b"" | b"." | b"..") {
            return Err(address.invalid("it names a directory", Some(Errno::EISDIR)));
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = match open(OsStr::from_bytes(directory), flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(errno @ (Errno::EACCES | Errno::EPERM)) => return Ok(Err(errno)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Err(no_directory(address)),
            Err(errno) => return Err(address.invalid("its directory cannot be opened", Some(errno))),
        };
        let socket = OsStr::from_bytes(name).to_owned();
        let mut lock = socket.clone();
        lock.push(".lock");
        Ok(Ok(Self {
            directory,
            socket,
            lock,
        }))
    }

    fn look_at(&self, name: &OsStr) -> Result<FileStat, Errno> {
        fstatat(&self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    fn inode_of(&self, name: &OsStr) -> Option<Inode> {
        self.look_at(name).ok().as_ref().map(inode)
    }

    /// Removes this very file, if the name is still its own.
    fn remove(&self, name: &OsStr, which: Inode) -> Result<(), Errno> {
        if self.inode_of(name) != Some(which) {
            return Ok(());
        }
        match unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }
}

fn no_directory(address: &Address) -> Error {
    address.invalid("its directory does not exist", Some(Errno::ENOENT))
}

fn inode(stat: &FileStat) -> Inode {
    (stat.st_dev, stat.st_ino)
}

fn inode_of(path: &Path) -> Option<Inode> {
    lstat(path).ok().as_ref().map(inode)
}

fn is_kind(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

enum Taken {
    Mine(Place),
    /// Somebody else has it.
    Held,
    /// Whether somebody has it cannot be told from the lock: this process may not open it.
    Closed(Errno),
    /// The lock is free, yet somebody answers at the socket.
    Answered(OwnedFd),
}

/// Goes to the address: binds it, or connects to whoever has.
pub(crate) fn meet(
    address: &Address,
    access: Access,
    deadline: &Deadline,
    record: &mut Record,
) -> Result<Met> {
    let mut looks = 0;
    loop {
        let closed = match take(address, access, BACKLOG_OF_A_PAIR)? {
            Taken::Mine(place) => {
                record.passed(
                    "rendezvous",
                    "role",
                    "the first to bind the address is the host",
                    "host: bound",
                );
                return Ok(Met::Host(place));
            }
            Taken::Answered(stream) => return Ok(Met::Guest(guest(stream, record))),
            Taken::Held => None,
            Taken::Closed(errno) => Some(errno),
        };
        match reach(address) {
            Ok(stream) => return Ok(Met::Guest(guest(stream, record))),
            // Not listening yet, gone this moment, or not listening any more since it has its partner.
            Err(Errno::ECONNREFUSED | Errno::ENOENT) if looks < LOOKS => {}
            Err(Errno::ECONNREFUSED) => return Err(address.occupied("its host takes no more connections")),
            Err(Errno::ENOENT) => {
                let reason = match closed {
                    Some(_) => {
                        "nobody has it, and this process may not take it (its lock file cannot be opened)"
                    }
                    None => "its lock file is held, but there is no socket",
                };
                return Err(address.invalid(reason, closed));
            }
            // The backlog is full. Somebody is there, so this is a partner that does not get on.
            Err(Errno::EAGAIN) if looks < LOOKS * 8 => {}
            Err(Errno::EAGAIN) => return Err(crowded(deadline)),
            Err(errno) => return Err(address.invalid("it cannot be connected to", Some(errno))),
        }
        looks += 1;
        deadline.pause(Duration::from_millis(u64::from(looks.min(LOOKS)) * 2))?;
    }
}

/// Binds the address for a service, which is not there for anybody else.
pub(crate) fn bind_alone(address: &Address, access: Access, record: &mut Record) -> Result<Place> {
    match take(address, access, BACKLOG_OF_A_SERVICE)? {
        Taken::Mine(place) => {
            record.passed(
                "rendezvous",
                "role",
                "the service binds the address",
                "host: bound",
            );
            Ok(place)
        }
        Taken::Held => Err(address.occupied("somebody has bound it")),
        Taken::Answered(_) => Err(address.occupied("somebody answers at its socket")),
        Taken::Closed(errno) => Err(address.invalid(
            "this process may not take it (its lock file cannot be opened)",
            Some(errno),
        )),
    }
}

/// Connects to whoever listens at the address, and never binds it. `None`: nobody does.
pub(crate) fn find(address: &Address, deadline: &Deadline, record: &mut Record) -> Result<Option<OwnedFd>> {
    let mut looks = 0;
    loop {
        match reach(address) {
            Ok(stream) => return Ok(Some(guest(stream, record))),
            // A service that has bound, and has not set the mode or does not listen yet, takes no longer than this.
            Err(Errno::ECONNREFUSED | Errno::EACCES) if looks < 3 => {}
            Err(Errno::ECONNREFUSED | Errno::ENOENT) => return Ok(None),
            // The backlog is full: somebody is there, and gets on or does not.
            Err(Errno::EAGAIN) if deadline.is_left() => {}
            Err(Errno::EAGAIN) => return Err(crowded(deadline)),
            Err(errno) => return Err(address.invalid("it cannot be connected to", Some(errno))),
        }
        looks += 1;
        let pause = Duration::from_millis(u64::from(looks.min(LOOKS)) * 2);
        deadline.pause(pause)?;
    }
}

fn crowded(deadline: &Deadline) -> Error {
    Error::HandshakeTimeout {
        step: "the host does not take connections, and too many wait already",
        after: deadline.allowed,
    }
}

fn guest(stream: OwnedFd, record: &mut Record) -> OwnedFd {
    record.passed(
        "rendezvous",
        "role",
        "who finds the address bound is the guest",
        "guest: connected",
    );
    stream
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

/// A socket to listen at.
fn new_listener() -> Result<OwnedFd> {
    new_socket().map_err(|errno| Error::system("a Unix socket", errno))
}

fn reach(address: &Address) -> Result<OwnedFd, Errno> {
    let stream = new_socket()?;
    let socket = address.to_socket().map_err(|_| Errno::EINVAL)?;
    loop {
        match connect(stream.as_raw_fd(), &socket) {
            Err(Errno::EINTR) => {}
            Err(Errno::EISCONN) | Ok(()) => return Ok(stream),
            Err(errno) => return Err(errno),
        }
    }
}

fn take(address: &Address, access: Access, backlog: i32) -> Result<Taken> {
    match address.place() {
        Some(path) => take_path(address, path, access, backlog),
        None => take_name(address, backlog),
    }
}

fn take_name(address: &Address, backlog: i32) -> Result<Taken> {
    let listener = new_listener()?;
    match bind(listener.as_raw_fd(), &address.to_socket()?) {
        Ok(()) => open_for_guests(listener, None, backlog).map(Taken::Mine),
        Err(Errno::EADDRINUSE) => Ok(Taken::Held),
        Err(errno) => Err(address.invalid("it cannot be bound", Some(errno))),
    }
}

fn take_path(address: &Address, path: &Path, access: Access, backlog: i32) -> Result<Taken> {
    let files = match Files::of(address, path)? {
        Ok(files) => files,
        Err(errno) => return Ok(Taken::Closed(errno)),
    };
    let lock = match lock(address, &files)? {
        Ok(Some(lock)) => lock,
        Ok(None) => return Ok(Taken::Held),
        Err(errno) => return Ok(Taken::Closed(errno)),
    };
    // From here on, whatever goes wrong, nothing stays behind.
    let mut named = Named {
        files,
        socket: None,
        lock: Withheld::new(lock)?,
        of_another: false,
        birth: Birth::now()?,
    };
    let listener = new_listener()?;
    // The bits that the socket's file will have from birth (sockfs gives bind its inode's mode), owner's only for
    // now: nobody else can come near it before its group is right.
    fchmod(&listener, bits(access.mode & 0o700))
        .map_err(|errno| Error::system("setting the socket's mode", errno))?;
    let socket = address.to_socket()?;
    let bound = match bind(listener.as_raw_fd(), &socket) {
        Err(Errno::EADDRINUSE) => {
            if let Some(taken) = clear_the_way(address, &named.files)? {
                return Ok(taken);
            }
            bind(listener.as_raw_fd(), &socket)
        }
        other => other,
    };
    bound.map_err(|errno| address.invalid("it cannot be bound", Some(errno)))?;
    // By name, and without a descriptor, of which there may be no more: so it is removed, whatever comes next.
    let found = named.files.look_at(&named.files.socket).ok();
    named.socket = found
        .filter(|stat| is_kind(stat, SFlag::S_IFSOCK))
        .as_ref()
        .map(inode);
    if named.socket.is_none() || inode_of(path) != named.socket {
        named.socket = None;
        let reason = "its socket was taken away, or its directory replaced";
        return Err(address.invalid(reason, Some(Errno::ENOENT)));
    }
    admit(address, &named, access)?;
    open_for_guests(listener, Some(named), backlog).map(Taken::Mine)
}

/// Removes the socket of a host that is no more, with the lock in hand. Somebody who follows other rules may be there.
fn clear_the_way(address: &Address, files: &Files) -> Result<Option<Taken>> {
    let found = files.look_at(&files.socket);
    if found.is_ok_and(|stat| !is_kind(&stat, SFlag::S_IFSOCK)) {
        return Err(address.invalid("there is something else than a socket", Some(Errno::EEXIST)));
    }
    match reach(address) {
        Ok(stream) => Ok(Some(Taken::Answered(stream))),
        Err(Errno::ECONNREFUSED) => {
            let stale = found.map(|stat| inode(&stat));
            match stale.and_then(|stale| files.remove(&files.socket, stale)) {
                Ok(()) | Err(Errno::ENOENT) => Ok(None),
                Err(errno) => {
                    Err(address.invalid("a stale socket is there and cannot be removed", Some(errno)))
                }
            }
        }
        Err(Errno::ENOENT) => Ok(None),
        Err(Errno::EAGAIN) => Ok(Some(Taken::Held)),
        Err(errno) => Err(address.invalid("it cannot be connected to", Some(errno))),
    }
}

/// Gives the socket's file the group and the mode that were asked for. Nobody can connect before listen, so this leaves no
/// moment in which a stranger could.
fn admit(address: &Address, named: &Named, access: Access) -> Result<()> {
    let refused = |what: &str, errno| address.invalid(what, Some(errno));
    // Held by a descriptor: in a directory that others can write, the name could be another file's a moment later, and a
    // change of mode must not follow it there.
    let file = openat(
        &named.files.directory,
        &*named.files.socket,
        OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| refused("its socket was taken away", errno))?;
    let stat = fstat(&file).map_err(|errno| refused("its socket cannot be looked at", errno))?;
    if !is_kind(&stat, SFlag::S_IFSOCK) || Some(inode(&stat)) != named.socket {
        return Err(refused(
            "its socket was replaced by something else",
            Errno::EEXIST,
        ));
    }
    if let Some(group) = access.group {
        fchownat(
            &file,
            "",
            None::<Uid>,
            Some(Gid::from_raw(group)),
            AtFlags::AT_EMPTY_PATH,
        )
        .map_err(|errno| refused("its group cannot be set", errno))?;
    }
    // The umask has had its say at bind; what was asked for is what counts. chmod does not take a descriptor of this
    // kind, but the kernel's link to it.
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    fchmodat(
        AT_FDCWD,
        link.as_str(),
        bits(access.mode),
        FchmodatFlags::FollowSymlink,
    )
    .map_err(|errno| refused("its mode cannot be set", errno))
}

fn bits(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode as _)
}

/// Takes the lock beside a path. `Ok(Ok(None))`: somebody has it. `Ok(Err(_))`: it cannot be opened by this process.
fn lock(address: &Address, files: &Files) -> Result<Result<Option<OwnedFd>, Errno>> {
    loop {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = match openat(&files.directory, &*files.lock, flags, mode) {
            Ok(file) => file,
            Err(errno @ (Errno::EACCES | Errno::EPERM | Errno::EROFS)) => return Ok(Err(errno)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Err(no_directory(address)),
            Err(Errno::ELOOP) => {
                return Err(address.invalid("its lock file is a symbolic link", Some(Errno::ELOOP)));
            }
            Err(errno) => return Err(address.invalid("its lock file cannot be opened", Some(errno))),
        };
        match sys::lock_file(&file) {
            Ok(()) => {}
            Err(Errno::EWOULDBLOCK) => return Ok(Ok(None)),
            Err(errno) => return Err(address.invalid("its lock file cannot be locked", Some(errno))),
        }
        let stat = fstat(&file)
            .map_err(|errno| address.invalid("its lock file cannot be looked at", Some(errno)))?;
        if !is_kind(&stat, SFlag::S_IFREG) {
            return Err(address.invalid("its lock file is not a regular file", None));
        }
        // Its last holder may have removed it between the open and the lock: then this is the lock of nothing.
        if files.inode_of(&files.lock) == Some(inode(&stat)) {
            return Ok(Ok(Some(file)));
        }
    }
}

fn open_for_guests(listener: OwnedFd, named: Option<Named>, backlog: i32) -> Result<Place> {
    // Accepted sockets inherit it, so that what a guest sends before it is accepted comes with its credentials.
    sys::settle_line(&listener).map_err(|errno| Error::system("SO_PASSCRED", errno))?;
    take_guests(&listener, backlog)?;
    Ok(Place {
        named,
        listener: Withheld::new(listener)?,
    })
}

/// From here on the kernel names this process to whoever connects.
fn take_guests(listener: &OwnedFd, backlog: i32) -> Result<()> {
    let backlog = Backlog::new(backlog).map_err(|errno| Error::system("listening", errno))?;
    listen(listener, backlog).map_err(|errno| Error::system("listening", errno))
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Place {
    /// The next connection, if one waits. Errors with [`Error::Closed`] where somebody who has the socket as well has shut
    /// it.
    pub(crate) fn accept(&self) -> Result<Option<OwnedFd>> {
        match self.next() {
            Ok(stream) => Ok(Some(stream)),
            Err(Errno::EAGAIN) if self.is_shut() => Err(Error::Closed(
                "the listening socket was shut down by somebody else who has it",
            )),
            Err(Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(Error::system("accepting a connection", errno)),
        }
    }

    /// An accept that does not wait says no more than that nobody is there; and to poll for somebody returns at once.
    fn is_shut(&self) -> bool {
        let mut polled = [PollFd::new(self.listener.as_fd(), sys::HUNG_UP)];
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    fn next(&self) -> Result<OwnedFd, Errno> {
        // The mode belongs to the open socket, which among members the partner has as well.
        fcntl(&**self.listener, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        loop {
            match accept4(&**self.listener, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                Err(errno) => return Err(errno),
                // It has the listening socket's options, which among members the partner can set as well.
                Ok(stream) => return sys::settle_line(&stream).map(|()| stream),
            }
        }
    }

    /// To those who wait already, the kernel has named a host that is no more, and they would look for that one in vain:
    /// they are hung up on, and come again.
    pub(crate) fn send_away(&self) {
        // No more of them than the kernel lets wait. Whoever is left there finds out by itself.
        for _ in 0..=BACKLOG_OF_A_PAIR {
            if self.next().is_err() {
                break;
            }
        }
    }

    /// Shuts the listening socket for good, for everybody who has it: an accept that hangs comes back.
    pub(crate) fn shut(listener: &OwnedFd) {
        // Whatever keeps it from being shut has shut it.
        let _ = shutdown(listener.as_raw_fd(), Shutdown::Read);
    }

    /// What a guest needs to go on in this process's place: the listening socket, and the lock beside a path.
    pub(crate) fn share(&self) -> Vec<Arc<OwnedFd>> {
        let lock = self.named.iter().map(|named| &named.lock);
        let withheld = std::iter::once(&self.listener).chain(lock);
        withheld.map(|withheld| Arc::clone(withheld)).collect()
    }

    /// Lets go of it, and leaves everything there as it is: somebody else goes on with it.
    pub(crate) fn pass_on(mut self) {
        if let Some(named) = &mut self.named {
            named.of_another = true;
        }
    }

    /// The place is taken: the address stays bound, and whoever comes is turned away at once. The kernel does that
    /// by itself (connect(2) answers ECONNREFUSED for a listening socket that was shut down for reading), so that no
    /// thread has to stand at the door; those who wait already are told.
    pub(crate) fn close_door(&self) -> Result<()> {
        shutdown(self.listener.as_raw_fd(), Shutdown::Read)
            .map_err(|errno| Error::system("closing the door (shutdown)", errno))?;
        loop {
            match self.next() {
                Ok(stream) => turn_away(stream.as_fd()),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(Error::system("accepting a connection", errno)),
            }
        }
    }
}

/// What the guest among members holds of its host's place, so that it can go on there. Dropped, it changes nothing there.
#[derive(Debug)]
pub(crate) struct Inheritance(Place);

impl Inheritance {
    /// How many descriptors it takes.
    pub(crate) fn count(address: &Address) -> usize {
        if address.place().is_some() { 2 } else { 1 }
    }

    /// Believes nothing of what the host has passed.
    pub(crate) fn accept(address: &Address, descriptors: Vec<OwnedFd>, record: &mut Record) -> Result<Self> {
        let mut descriptors = descriptors.into_iter();
        let (listener, lock) = (descriptors.next(), descriptors.next());
        let listener = listener.ok_or_else(|| Error::Protocol("READY without a listening socket".into()))?;
        let stream = getsockopt(&listener, sockopt::SockType) == Ok(SockType::Stream);
        let listens = getsockopt(&listener, sockopt::AcceptConn) == Ok(true);
        let bound = getsockname::<UnixAddr>(listener.as_raw_fd());
        let here = bound.as_ref().is_ok_and(|bound| is_at(bound, address));
        let shown = bound.map_or_else(|errno| errno.desc().to_owned(), |bound| bound.to_string());
        let found = format!("stream: {stream}, listening: {listens}, bound at {shown}");
        let wanted = format!("the socket that listens at {address}");
        if !(stream && listens && here) {
            return Err(Refusal::new(Check::Address, wanted, found).into());
        }
        record.passed("ready", "address", wanted, found);
        let named = match (address.place(), lock) {
            (Some(path), Some(lock)) => Some(Named::of_host(address, path, lock, record)?),
            (None, None) => None,
            _ => return Err(Error::Protocol("READY with a lock too many or too few".into())),
        };
        Ok(Self(Place {
            named,
            listener: Withheld::new(listener)?,
        }))
    }

    /// Goes on in the place of a host that is no more. From here on this process is the one that the kernel names to
    /// whoever connects; those who wait already are another matter ([`Place::send_away`]).
    pub(crate) fn take_over(self) -> Result<Place> {
        let Self(mut place) = self;
        take_guests(&place.listener, BACKLOG_OF_A_PAIR)?;
        if let Some(named) = &mut place.named {
            named.of_another = false;
        }
        Ok(place)
    }
}

impl Named {
    /// The lock that a host has passed must be the one beside the path, and held through this very open file.
    fn of_host(address: &Address, path: &Path, lock: OwnedFd, record: &mut Record) -> Result<Self> {
        let files = Files::of(address, path)?
            .map_err(|errno| address.invalid("its directory cannot be opened", Some(errno)))?;
        let stat = fstat(&lock).map_err(|errno| Error::system("looking at a lock (fstat)", errno))?;
        let regular = is_kind(&stat, SFlag::S_IFREG);
        let beside = files.inode_of(&files.lock) == Some(inode(&stat));
        let held = regular && beside && sys::lock_file(&lock).is_ok();
        let found = format!("a regular file: {regular}, beside it: {beside}, locked: {held}");
        let wanted = "the locked file beside the socket";
        if !held {
            return Err(Refusal::new(Check::Lock, wanted, found).into());
        }
        record.passed("ready", "lock", wanted, found);
        Ok(Self {
            socket: files.inode_of(&files.socket),
            files,
            lock: Withheld::new(lock)?,
            of_another: true,
            birth: Birth::now()?,
        })
    }
}

/// Whether a socket is bound where this process finds the address. Two ways to the same file are the same place.
fn is_at(bound: &UnixAddr, address: &Address) -> bool {
    let Some(path) = address.place() else {
        return address.to_socket().is_ok_and(|own| own == *bound);
    };
    bound.path().is_some_and(|bound| {
        bound == path
            || (bound.is_absolute() && inode_of(bound).is_some() && inode_of(bound) == inode_of(path))
    })
}

/// Tells a newcomer that two share the address already.
pub(crate) fn turn_away(stream: BorrowedFd<'_>) {
    let refuse = Refuse {
        code: Code::Occupied,
        check: "address".into(),
        wanted: String::new(),
        found: "two processes share it already".into(),
    };
    // Whoever does not listen learns it from the end of the connection.
    let _ = line::send(stream, &Frame::Refuse(refuse), &[]);
}
