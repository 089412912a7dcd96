//! What the guest among members holds of its host's place.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{SockType, UnixAddr, getsockname, getsockopt, sockopt},
        stat::{SFlag, fstat},
    },
};

use crate::{
    error::{Check, Error, Refusal, Result},
    evidence::Record,
    fork::Withheld,
    rendezvous::address::Address,
    rendezvous::files::{self, Files, inode, is_kind},
    rendezvous::place::{BACKLOG_OF_A_PAIR, Named, Place},
    sys::{self, uninterrupted},
};

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
        let wanted = format!("the socket that listens at {address}");
        let unseen = |errno: Errno| {
            Error::unless_short("looking at the host's socket", errno, |errno| {
                Refusal::new(Check::Address, wanted.clone(), errno.desc()).into()
            })
        };
        let kind = uninterrupted(|| getsockopt(&listener, sockopt::SockType)).map_err(unseen)?;
        let stream = kind == SockType::Stream;
        let listens = uninterrupted(|| getsockopt(&listener, sockopt::AcceptConn)).map_err(unseen)?;
        let number = listener.as_raw_fd();
        let bound = uninterrupted(|| getsockname::<UnixAddr>(number)).map_err(unseen)?;
        let here = is_at(&bound, address).map_err(unseen)?;
        let found = format!("stream: {stream}, listening: {listens}, bound at {bound}");
        if stream && listens && !here && is_left(&bound).map_err(unseen)? {
            return Err(Error::PeerLost("the host has left the address".into()));
        }
        if !(stream && listens && here) {
            return Err(Refusal::new(Check::Address, wanted, found).into());
        }
        record.passed("ready", "address", wanted, found);
        let named = match (address.place(), lock) {
            (Some(path), Some(lock)) => Some(named_of_host(address, path, lock, record)?),
            (None, None) => None,
            _ => return Err(Error::Protocol("READY with a lock too many or too few".into())),
        };
        Ok(Self(Place {
            named,
            listener: Withheld::new(listener)?,
            of_another: true,
        }))
    }

    /// Goes on in the place of a host that is no more. From here on the kernel names this process to a guest that connects;
    /// the connections that wait already are another matter ([`Place::send_away`]).
    pub(crate) fn take_over(self) -> Result<Place> {
        let Self(mut place) = self;
        if let Some(named) = &place.named {
            named.must_be_there()?;
        }
        place.take_guests(BACKLOG_OF_A_PAIR)?;
        place.set_of_another(false);
        Ok(place)
    }
}

/// The lock that a host has passed must be the one beside the path, and held through this very open file.
fn named_of_host(address: &Address, path: &Path, lock: OwnedFd, record: &mut Record) -> Result<Named> {
    let files = Files::of(path).map_err(|errno| files::cannot_open_directory(address, errno))?;
    let wanted = "the locked file beside the socket";
    let unseen = |errno: Errno| {
        Error::unless_short("looking at the host's lock", errno, |errno| {
            Refusal::new(Check::Lock, wanted, errno.desc()).into()
        })
    };
    let stat = uninterrupted(|| fstat(&lock)).map_err(unseen)?;
    let regular = is_kind(&stat, SFlag::S_IFREG);
    let beside = files.which(&files.lock).map_err(unseen)? == Some(inode(&stat));
    let held = regular
        && beside
        && match sys::file::lock_file(&lock) {
            Ok(()) => true,
            Err(Errno::EWOULDBLOCK) => false,
            // As with a path alone (`O_PATH`), in which nothing can be locked.
            Err(errno) => return Err(unseen(errno)),
        };
    let found = format!("a regular file: {regular}, beside it: {beside}, locked: {held}");
    if !held {
        return Err(Refusal::new(Check::Lock, wanted, found).into());
    }
    record.passed("ready", "lock", wanted, found);
    Named::shared(files, lock)
}

/// Whether a socket was bound beside a path, and is not there any more: so it cannot be told whether it was the one at the
/// address, where that is another way to the same place.
fn is_left(bound: &UnixAddr) -> Result<bool, Errno> {
    match bound.path() {
        Some(bound) if bound.is_absolute() => Ok(files::which(bound)?.is_none()),
        _ => Ok(false),
    }
}

/// Whether a socket is bound where this process finds the address. Two ways to the same file are the same place.
fn is_at(bound: &UnixAddr, address: &Address) -> Result<bool, Errno> {
    let Some(path) = address.place() else {
        return Ok(address.to_socket().is_ok_and(|own| own == *bound));
    };
    match bound.path() {
        Some(bound) if bound == path => Ok(true),
        Some(bound) if bound.is_absolute() => {
            let there = files::which(bound)?;
            Ok(there.is_some() && there == files::which(path)?)
        }
        _ => Ok(false),
    }
}
