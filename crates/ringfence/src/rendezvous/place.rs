//! An address that this process has bound: the listening socket, and beside a path the socket's file and the lock.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, FcntlArg, OFlag, fcntl, openat},
    poll::{PollFd, PollTimeout, poll},
    sys::{
        socket::{Backlog, Shutdown, SockFlag, accept4, listen, shutdown},
        stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat},
    },
    unistd::{Gid, Uid, fchownat},
};

use crate::{
    error::{Check, Error, Refusal, Result},
    fork::{Birth, Withheld},
    rendezvous::address::Address,
    rendezvous::files::{self, Files, Inode, inode, is_kind},
    sys::{self, uninterrupted},
};

/// Connections that wait for the host. More than that, and a newcomer tries again a little later.
pub(super) const BACKLOG_OF_A_PAIR: i32 = 64;
/// As many as the kernel allows, since a thousand agents may come at once (listen(2), `net.core.somaxconn`: 4096 since
/// Linux 5.4, 128 before).
pub(super) const BACKLOG_OF_A_SERVICE: i32 = -1;

/// Which users may connect to a named address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    /// Permission bits of the socket's file.
    pub(crate) mode: u32,
    /// The group of the socket's file, where another than the process's own is wanted.
    pub(crate) group: Option<u32>,
}

/// An address that this process has bound. The address is free again once this is dropped, and nothing of it stays
/// behind.
#[derive(Debug)]
pub(crate) struct Place {
    /// Dropped first: as long as the socket is open, no other file gets its inode, also where its file was removed.
    pub(super) named: Option<Named>,
    pub(super) listener: Withheld,
    /// Another process has the place, of which this one holds its share alone.
    pub(super) of_another: bool,
}

impl Drop for Place {
    /// While another thread starts a program (posix_spawn(3), which runs no handlers of pthread_atfork(3)), the child has the
    /// listening socket as well, until it executes that program. Its copy must take no connections: no process would ever accept them.
    fn drop(&mut self) {
        if !self.of_another && self.listener.is_here() {
            Self::shut(&self.listener);
        }
    }
}

/// The socket and the lock of a named address.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) files: Files,
    /// The socket's file, so that no other file is ever removed.
    socket: Option<Inode>,
    /// Held as long as the address is. A process that finds a socket at which no host answers learns from it whether there is
    /// still a host.
    lock: Withheld,
    /// As the place is.
    of_another: bool,
    /// A child has nothing of it.
    birth: Birth,
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
        sys::file::unlock_file(&**self.lock);
    }
}

impl Named {
    /// Nothing but the lock is there yet.
    pub(super) fn locked(files: Files, lock: OwnedFd) -> Result<Self> {
        Ok(Self {
            files,
            socket: None,
            lock: Withheld::new(lock)?,
            of_another: false,
            birth: Birth::now()?,
        })
    }

    /// What another process has bound and locked, and shares with this one.
    pub(super) fn shared(files: Files, lock: OwnedFd) -> Result<Self> {
        let mut named = Self::locked(files, lock)?;
        named.of_another = true;
        named.socket = named.files.which(&named.files.socket).map_err(|errno| {
            Error::unless_short("looking at the host's socket", errno, |errno| {
                Refusal::new(Check::Address, "the host's socket beside its lock", errno.desc()).into()
            })
        })?;
        Ok(named)
    }

    /// Errors where the socket and the lock of a host that has gone are not where they were, as far as can be told: nobody would find a
    /// host here, and the next one that comes has files of its own.
    pub(super) fn must_be_there(&self) -> Result<()> {
        let gone = |why: &str| {
            let what = format!(
                "the host has gone, and its socket and its lock are not found beside the path: {why}"
            );
            Error::PeerLost(what)
        };
        let unseen = |errno: Errno| {
            Error::unless_short("looking for the files of the host", errno, |errno| {
                gone(errno.desc())
            })
        };
        let socket = self.files.which(&self.files.socket).map_err(unseen)?;
        let lock = self.files.which(&self.files.lock).map_err(unseen)?;
        let held = uninterrupted(|| fstat(&**self.lock)).map_err(unseen)?;
        if socket.is_some() && socket == self.socket && lock == Some(inode(&held)) {
            return Ok(());
        }
        Err(gone("they were removed, or others have taken their place"))
    }

    /// Which file has the socket's name.
    pub(super) fn what_is_there(&self, address: &Address) -> Result<Option<Inode>> {
        self.files.which(&self.files.socket).map_err(unseen(address))
    }

    /// Learns which file the socket is that this process has just bound. By name, and without a descriptor, of which there may be
    /// no more: so it is removed, whatever comes next. `before`: the file that had the name then. The path has led elsewhere, if it has
    /// it still.
    pub(super) fn find_socket(
        &mut self,
        address: &Address,
        path: &Path,
        before: Option<Inode>,
    ) -> Result<()> {
        let gone = || {
            let reason = "its socket was taken away, or its directory replaced";
            address.invalid(reason, Some(Errno::ENOENT))
        };
        let found = match self.files.look_at(&self.files.socket) {
            Ok(found) if is_kind(&found, SFlag::S_IFSOCK) && before != Some(inode(&found)) => inode(&found),
            Ok(_) | Err(Errno::ENOENT) => return Err(gone()),
            Err(errno) => return Err(unseen(address)(errno)),
        };
        self.socket = Some(found);
        if files::which(path).map_err(unseen(address))? == self.socket {
            return Ok(());
        }
        self.socket = None;
        Err(gone())
    }

    /// Gives the socket's file the group and the mode that were asked for. No process can connect before listen, so this leaves no
    /// moment in which a stranger could.
    pub(super) fn admit(&self, address: &Address, access: Access) -> Result<()> {
        let refused = |what: &str, errno| address.invalid(what, Some(errno));
        // Held by a descriptor: in a directory that others can write, the name could be another file's a moment later, and a
        // change of mode must not follow it there.
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let (directory, name) = (&self.files.directory, &*self.files.socket);
        let file = uninterrupted(|| openat(directory, name, flags, Mode::empty()))
            .map_err(|errno| refused("its socket was taken away", errno))?;
        let stat = uninterrupted(|| fstat(&file)).map_err(unseen(address))?;
        if !is_kind(&stat, SFlag::S_IFSOCK) || Some(inode(&stat)) != self.socket {
            return Err(refused(
                "its socket was replaced by something else",
                Errno::EEXIST,
            ));
        }
        if let Some(group) = access.group {
            let group = Some(Gid::from_raw(group));
            fchownat(&file, "", None::<Uid>, group, AtFlags::AT_EMPTY_PATH)
                .map_err(|errno| refused("its group cannot be set", errno))?;
        }
        // The umask has had its say at bind; what was asked for is what counts. chmod does not take a descriptor of this
        // kind, but the kernel's link to it.
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mode = mode_bits(access.mode);
        fchmodat(AT_FDCWD, link.as_str(), mode, FchmodatFlags::FollowSymlink)
            .map_err(|errno| refused("its mode cannot be set", errno))
    }
}

pub(super) fn mode_bits(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode as _)
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// What a look at the socket's file that has failed says of the address.
fn unseen(address: &Address) -> impl Fn(Errno) -> Error {
    |errno| address.invalid("its socket cannot be looked at", Some(errno))
}

impl Place {
    /// Listens at a socket that this process has made and bound.
    pub(super) fn open(listener: OwnedFd, named: Option<Named>, backlog: i32) -> Result<Self> {
        // Accepted sockets inherit it, so that what a guest sends before it is accepted comes with its credentials.
        sys::socket::settle_new_line(&listener).map_err(|errno| Error::system("SO_PASSCRED", errno))?;
        let place = Self {
            named,
            listener: Withheld::new(listener)?,
            of_another: false,
        };
        place.take_guests(backlog)?;
        Ok(place)
    }

    /// From here on the kernel names this process to a guest that connects.
    pub(super) fn take_guests(&self, backlog: i32) -> Result<()> {
        let backlog = Backlog::new(backlog).map_err(|errno| Error::system("listening", errno))?;
        listen(&**self.listener, backlog).map_err(|errno| Error::system("listening", errno))
    }

    /// The next connection, if one waits. Errors with [`Error::Closed`] where another process, which has the socket as well, has
    /// shut it.
    pub(crate) fn accept(&self) -> Result<Option<OwnedFd>> {
        match self.next() {
            Ok(stream) => Ok(Some(stream)),
            Err(Errno::EAGAIN) if self.is_shut() => Err(Error::Closed(
                "the listening socket was shut down by another process that has it",
            )),
            Err(Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(Error::system("accepting a connection", errno)),
        }
    }

    /// accept(2) says EAGAIN both where no connection waits and where the socket was shut; poll(2) tells the two apart.
    fn is_shut(&self) -> bool {
        let mut polled = [PollFd::new(self.listener.as_fd(), sys::socket::HUNG_UP)];
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
                Ok(stream) => return sys::socket::settle_line(&stream).map(|()| stream),
            }
        }
    }

    /// Hangs up on the connections that wait already, which then come again: the kernel has named them a host that is no more,
    /// and they would look for that one in vain.
    pub(crate) fn send_away(&self) {
        // No more of them than the kernel lets wait. One that is left there finds out by itself.
        for _ in 0..=BACKLOG_OF_A_PAIR {
            if self.next().is_err() {
                break;
            }
        }
    }

    /// Shuts the listening socket for good, for all processes that have it: an accept that hangs comes back.
    pub(crate) fn shut(listener: &OwnedFd) {
        // This fails only where it is shut already.
        let _ = shutdown(listener.as_raw_fd(), Shutdown::Read);
    }

    /// What a guest needs to go on in this process's place: the listening socket, and the lock beside a path.
    pub(crate) fn share(&self) -> Vec<Arc<OwnedFd>> {
        let lock = self.named.iter().map(|named| &named.lock);
        let withheld = std::iter::once(&self.listener).chain(lock);
        withheld.map(|withheld| Arc::clone(withheld)).collect()
    }

    /// Lets go of it, and leaves everything there as it is: another process goes on with it.
    pub(crate) fn pass_on(mut self) {
        self.set_of_another(true);
    }

    pub(super) fn set_of_another(&mut self, of_another: bool) {
        self.of_another = of_another;
        if let Some(named) = &mut self.named {
            named.of_another = of_another;
        }
    }

    /// Takes no more connections, while the address stays bound. The kernel then turns newcomers away by itself (connect(2)
    /// answers ECONNREFUSED for a listening socket that was shut down for reading), without a thread that waits for them.
    /// `turn_away` gets those that wait already.
    pub(crate) fn close(&self, turn_away: impl Fn(OwnedFd)) -> Result<()> {
        shutdown(self.listener.as_raw_fd(), Shutdown::Read)
            .map_err(|errno| Error::system("closing the address to newcomers (shutdown)", errno))?;
        loop {
            match self.next() {
                Ok(stream) => turn_away(stream),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(Error::system("accepting a connection", errno)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    /// The path has led elsewhere, and now it cannot be told where it leads.
    #[test]
    fn a_socket_that_was_there_before_is_not_the_one_that_was_bound() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("socket");
        let lock = tempfile::tempfile().unwrap().into();
        let mut named = Named::locked(Files::of(&place).unwrap(), lock).unwrap();
        let _stranger = UnixListener::bind(&place).unwrap();
        symlink("circle", folder.path().join("circle")).unwrap();
        let path = folder.path().join("circle/socket");
        let address = Address::path(&path).unwrap();
        let before = named.what_is_there(&address).unwrap();
        assert!(before.is_some());
        let error = named.find_socket(&address, &path, before).unwrap_err();
        assert!(error.to_string().contains("its socket was taken away"), "{error}");
        drop(named);
        assert!(place.exists());
    }

    #[test]
    fn a_host_s_socket_that_cannot_be_looked_at_is_no_place_to_share() {
        let folder = tempfile::tempdir().unwrap();
        let lock = || tempfile::tempfile().unwrap().into();
        let files = |name: &str| Files::of(&folder.path().join(name)).unwrap();
        assert!(Named::shared(files("missing"), lock()).is_ok());
        let error = Named::shared(files(&"x".repeat(300)), lock()).unwrap_err();
        assert_eq!(error.code(), "PEER_REFUSED", "{error}");
        assert!(error.to_string().contains("File name too long"), "{error}");
    }
}
