//! The election at an address: the process that binds it is the host; a process that finds it bound connects as the guest.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{AddressFamily, SockFlag, SockType, bind, connect, socket},
        stat::{SFlag, fchmod, fstat, stat},
    },
};

use crate::{
    address::Address,
    address::bound::{Access, BACKLOG_OF_A_PAIR, BACKLOG_OF_A_SERVICE, BoundAddress, SocketFile, mode_bits},
    address::bound::{Files, cannot_open_directory, inode, is_kind},
    error::{Error, OrSystem, Result, is_shortage},
    evidence::{EvidenceLog, FIRST_TO_BIND, FOUND_BOUND, SERVICE_BINDS},
    sys::{self, uninterrupted},
    wait::deadline::Deadline,
    wake::attachments::PeerSocket,
};

/// The number of attempts before a client concludes that the host accepts no more connections. Between lock
/// and bind, and between bind and listen, a host exists but does not answer yet. Each pause is a little
/// longer than the previous one.
const ATTEMPTS: u32 = 12;

/// The result of meeting at an address.
pub(crate) enum MeetOutcome {
    Host(BoundAddress),
    Guest(PeerSocket),
}

/// The result of trying to bind an address.
enum BindOutcome {
    Bound(BoundAddress),
    /// Another process has bound it.
    Busy,
    /// Unknown: this process may not open the lock file.
    Forbidden(Errno),
    /// The lock is free, yet a process answers at the socket.
    Answered(PeerSocket),
}

/// Binds the address, or connects to the process that has bound it.
pub(crate) fn meet(
    address: &Address,
    access: Access,
    deadline: &Deadline,
    record: &mut EvidenceLog,
) -> Result<MeetOutcome> {
    let mut attempts = 0;
    loop {
        let forbidden = match try_bind(address, access, BACKLOG_OF_A_PAIR)? {
            BindOutcome::Bound(place) => {
                record.met(FIRST_TO_BIND, "host: bound");
                return Ok(MeetOutcome::Host(place));
            }
            BindOutcome::Answered(stream) => return Ok(MeetOutcome::Guest(guest(stream, record))),
            BindOutcome::Busy => None,
            BindOutcome::Forbidden(errno) => Some(errno),
        };
        match connect_to(address) {
            Ok(stream) => return Ok(MeetOutcome::Guest(guest(stream, record))),
            // The host does not listen yet, has just ended, or stopped listening because it has its partner.
            Err(Errno::ECONNREFUSED | Errno::ENOENT) if attempts < ATTEMPTS => {}
            // The lock is held, and the socket does not exist yet or was removed. The holder needs a few more
            // calls, and a busy machine may delay them.
            Err(Errno::ENOENT) if attempts < ATTEMPTS * 8 && forbidden.is_none() => {}
            Err(Errno::ECONNREFUSED) => return Err(address.occupied("its host accepts no more connections")),
            Err(Errno::ENOENT) if forbidden.is_none() => {
                return Err(address.occupied("its lock file is held, but there is no socket"));
            }
            Err(Errno::ENOENT) => {
                let reason = "no process has bound it, and this process may not bind it (its lock file cannot be opened)";
                return Err(address.invalid(reason, forbidden));
            }
            // The backlog is full: a host exists but accepts no connection from it.
            Err(Errno::EAGAIN) if attempts < ATTEMPTS * 8 => {}
            Err(Errno::EAGAIN) => return Err(queue_full(deadline)),
            Err(errno) => return Err(connect_error(address, errno)),
        }
        attempts += 1;
        pause(attempts, deadline)?;
    }
}

/// Sleeps before the next attempt. The pause grows with the number of attempts.
fn pause(attempts: u32, deadline: &Deadline) -> Result<()> {
    deadline.pause(Duration::from_millis(u64::from(attempts.min(ATTEMPTS)) * 2))
}

/// Binds the address for a service, which never connects to another process. Tries again to bind a name that is taken:
/// while another thread of a process starts a program (posix_spawn(3)), the child has that process's listening sockets
/// until it executes. So a name may become free a moment after its host has closed it. A path is free immediately,
/// because unlocking its lock file applies to all processes that have it.
pub(crate) fn bind_alone(
    address: &Address,
    access: Access,
    deadline: &Deadline,
    record: &mut EvidenceLog,
) -> Result<BoundAddress> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match try_bind(address, access, BACKLOG_OF_A_SERVICE)? {
            BindOutcome::Bound(place) => {
                record.met(SERVICE_BINDS, "host: bound");
                return Ok(place);
            }
            BindOutcome::Busy if attempts < ATTEMPTS && address.place().is_none() => {
                pause(attempts, deadline)?;
            }
            BindOutcome::Busy => {
                return Err(address.occupied("another process, or another call of this one, has bound it"));
            }
            BindOutcome::Answered(_) => return Err(address.occupied("another process answers at its socket")),
            BindOutcome::Forbidden(errno) => {
                return Err(address.invalid(
                    "this process may not bind it (its lock file cannot be opened)",
                    Some(errno),
                ));
            }
        }
    }
}

/// Connects to the process that listens at the address, and never binds it. Returns `None` if no process
/// listens.
pub(crate) fn find(
    address: &Address,
    deadline: &Deadline,
    record: &mut EvidenceLog,
) -> Result<Option<PeerSocket>> {
    let mut attempts = 0;
    loop {
        match connect_to(address) {
            Ok(stream) => return Ok(Some(guest(stream, record))),
            // A service that has just bound may not have set the mode yet, or may not listen yet. This number
            // of attempts covers that.
            Err(Errno::ECONNREFUSED | Errno::EACCES) if attempts < 3 => {}
            Err(Errno::ECONNREFUSED | Errno::ENOENT) => return check_joinable(address).map(|()| None),
            // The backlog is full: a service exists and may accept more connections before the deadline.
            Err(Errno::EAGAIN) if deadline.has_time_left() => {}
            Err(Errno::EAGAIN) => return Err(queue_full(deadline)),
            Err(errno) => return Err(connect_error(address, errno)),
        }
        attempts += 1;
        pause(attempts, deadline)?;
    }
}

/// Checks that a process could start to listen there later. A file that is not a socket prevents that, and
/// waiting would never end.
fn check_joinable(address: &Address) -> Result<()> {
    let found = address.place().map(|path| uninterrupted(|| stat(path)));
    match found {
        Some(Ok(stat)) if !is_kind(&stat, SFlag::S_IFSOCK) => Err(no_socket(address)),
        Some(Err(errno)) if is_shortage(errno) => Err(address.invalid("it cannot be inspected", Some(errno))),
        _ => Ok(()),
    }
}

fn connect_error(address: &Address, errno: Errno) -> Error {
    let reason = if errno == Errno::EACCES {
        "this process may not connect to it: the socket's mode or group (the options `mode` and `group` of the process that binds it), \
         or a directory above, keeps it out"
            .to_owned()
    } else {
        format!("it cannot be connected to ({})", errno.desc())
    };
    address.invalid(reason, Some(errno))
}

fn no_socket(address: &Address) -> Error {
    address.invalid("a file that is not a socket has this path", Some(Errno::EEXIST))
}

fn queue_full(deadline: &Deadline) -> Error {
    deadline.timed_out("the host accepts no connections, and its queue is full")
}

fn guest(stream: PeerSocket, record: &mut EvidenceLog) -> PeerSocket {
    record.met(FOUND_BOUND, "guest: connected");
    stream
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

/// Makes a socket for listening. Dropping it undoes what was done to the address since.
fn new_place() -> Result<BoundAddress> {
    BoundAddress::unbound(new_socket().or_system("a Unix socket")?)
}

fn connect_to(address: &Address) -> Result<PeerSocket, Errno> {
    let stream = PeerSocket::new(new_socket()?)?;
    let socket = address.to_socket().map_err(|_| Errno::EINVAL)?;
    match uninterrupted(|| connect(stream.as_raw_fd(), &socket)) {
        Err(Errno::EISCONN) | Ok(()) => Ok(stream),
        Err(errno) => Err(errno),
    }
}

fn try_bind(address: &Address, access: Access, backlog: i32) -> Result<BindOutcome> {
    match address.place() {
        Some(path) => try_bind_path(address, path, access, backlog),
        None => try_bind_name(address, backlog),
    }
}

fn try_bind_name(address: &Address, backlog: i32) -> Result<BindOutcome> {
    let place = new_place()?;
    let socket = address.to_socket()?;
    match uninterrupted(|| bind(place.listener.as_raw_fd(), &socket)) {
        Ok(()) => place.start_listening(backlog)?,
        Err(Errno::EADDRINUSE) => return Ok(BindOutcome::Busy),
        Err(errno) => return Err(address.invalid("it cannot be bound", Some(errno))),
    }
    Ok(BindOutcome::Bound(place))
}

fn try_bind_path(address: &Address, path: &Path, access: Access, backlog: i32) -> Result<BindOutcome> {
    let named = match lock(address, path)? {
        Ok(named) => named,
        Err(outcome) => return Ok(outcome),
    };
    // From here on every failure removes what was made.
    let mut place = new_place().inspect_err(|_| named.remove())?;
    let named = place.named.insert(named);
    let listener = &**place.listener;
    // The mode that the socket's file gets at bind: sockfs passes on the mode of the socket's inode. Only the
    // owner's bits for now, so no other user can connect before the group is set.
    fchmod(listener, mode_bits(access.mode & 0o700)).or_system("setting the socket's mode")?;
    let socket = address.to_socket()?;
    // A file that already has the name is not this socket's file.
    let mut before = named.socket_inode(address)?;
    let bind = || uninterrupted(|| bind(listener.as_raw_fd(), &socket));
    let bound = match bind() {
        Err(Errno::EADDRINUSE) => {
            if let Some(taken) = remove_stale(address, &named.files)? {
                return Ok(taken);
            }
            before = named.socket_inode(address)?;
            bind()
        }
        other => other,
    };
    bound.map_err(|errno| address.invalid("it cannot be bound", Some(errno)))?;
    named.find_socket(address, path, before)?;
    named.admit(address, access)?;
    place.start_listening(backlog)?;
    Ok(BindOutcome::Bound(place))
}

/// Tries to lock the file next to a path. Creates the file if it is missing. Fails if a lock on that file
/// would have no meaning.
fn lock(address: &Address, path: &Path) -> Result<Result<SocketFile, BindOutcome>> {
    let files = match Files::of(path) {
        Ok(files) => files,
        Err(errno @ (Errno::EACCES | Errno::EPERM)) => return Ok(Err(BindOutcome::Forbidden(errno))),
        Err(errno) => return Err(cannot_open_directory(address, errno)),
    };
    loop {
        let file = match files.open_lock() {
            Ok(file) => file,
            Err(errno @ (Errno::EACCES | Errno::EPERM | Errno::EROFS)) => {
                return Ok(Err(BindOutcome::Forbidden(errno)));
            }
            Err(errno @ (Errno::ENOENT | Errno::ENOTDIR)) => {
                return Err(cannot_open_directory(address, errno));
            }
            Err(errno @ Errno::ELOOP) => {
                return Err(address.invalid("its lock file is a symbolic link", Some(errno)));
            }
            Err(errno) => return Err(address.invalid("its lock file cannot be opened", Some(errno))),
        };
        match sys::file::lock_file(&file) {
            Ok(()) => {}
            Err(Errno::EWOULDBLOCK) => return Ok(Err(BindOutcome::Busy)),
            Err(errno) => return Err(address.invalid("its lock file cannot be locked", Some(errno))),
        }
        let inspection_error = |errno| address.invalid("its lock file cannot be inspected", Some(errno));
        let stat = uninterrupted(|| fstat(&file)).map_err(inspection_error)?;
        if !is_kind(&stat, SFlag::S_IFREG) {
            return Err(address.invalid("its lock file is not a regular file", None));
        }
        // The previous holder may have removed the file between our open and our lock. Then this lock
        // protects nothing.
        if files.inode_at(&files.lock).map_err(inspection_error)? == Some(inode(&stat)) {
            return SocketFile::locked(files, file).map(Ok);
        }
    }
}

/// Removes the socket of a host that has ended. The caller holds the lock. A program that ignores the lock
/// may still listen there; then its connection is returned.
fn remove_stale(address: &Address, files: &Files) -> Result<Option<BindOutcome>> {
    let found = files.stat(&files.socket);
    if found.is_ok_and(|stat| !is_kind(&stat, SFlag::S_IFSOCK)) {
        return Err(no_socket(address));
    }
    match connect_to(address) {
        Ok(stream) => Ok(Some(BindOutcome::Answered(stream))),
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
        Err(Errno::EAGAIN) => Ok(Some(BindOutcome::Busy)),
        Err(errno) => Err(connect_error(address, errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::{
        fd::AsFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    };

    use super::*;
    use crate::wait::deadline::CancelToken;

    const ACCESS: Access = Access {
        mode: 0o600,
        group: None,
    };

    fn address(name: &str) -> Address {
        format!("@ringfence-test-election-{name}-{}", std::process::id())
            .parse()
            .unwrap()
    }

    fn deadline() -> Deadline {
        Deadline::endless(Vec::new(), Duration::from_secs(60))
    }

    /// The descriptor that a child has until it executes its program.
    fn copy(place: &BoundAddress) -> OwnedFd {
        place.as_fd().try_clone_to_owned().unwrap()
    }

    #[test]
    fn closed_listener_accepts_nothing_despite_a_copy() {
        let (address, deadline) = (address("copy"), deadline());
        let record = &mut EvidenceLog::default();
        let place = bind_alone(&address, ACCESS, &deadline, record).unwrap();
        let _copy = copy(&place);
        assert!(find(&address, &deadline, record).unwrap().is_some());
        drop(place);
        assert!(find(&address, &deadline, record).unwrap().is_none());
        // For contrast: a copy of a plain program's socket still accepts connections.
        let name = format!("ringfence-test-plain-{}", std::process::id());
        let name = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&name).unwrap();
        let _copy = listener.try_clone().unwrap();
        drop(listener);
        UnixStream::connect_addr(&name).unwrap();
    }

    #[test]
    fn name_is_free_once_the_last_socket_copy_is_gone() {
        let (address, deadline) = (address("last"), deadline());
        let record = &mut EvidenceLog::default();
        let place = bind_alone(&address, ACCESS, &deadline, record).unwrap();
        let copy = copy(&place);
        drop(place);
        let error = bind_alone(&address, ACCESS, &deadline, record).unwrap_err();
        assert_eq!(error.code(), "ADDRESS_OCCUPIED");
        // It keeps trying until it is cancelled.
        let token = CancelToken::new().unwrap();
        token.cancel();
        let called_off = Deadline::endless(vec![token], Duration::from_secs(60));
        let error = bind_alone(&address, ACCESS, &called_off, record).unwrap_err();
        assert_eq!(error.code(), "ABORTED");
        drop(copy);
        bind_alone(&address, ACCESS, &deadline, record).unwrap();
    }
}
