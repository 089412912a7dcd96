//! The share of the host's place that the guest of a membership holds.

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
    address::Address,
    address::bound::{self, Files, inode, is_kind},
    address::bound::{BACKLOG_OF_A_PAIR, BoundAddress, SocketFile},
    error::{Check, Error, Refusal, Result},
    evidence::EvidenceLog,
    fork::Withheld,
    sys::{self, uninterrupted},
};

/// The share of the host's place that the guest of a membership holds, so that it can take over when the host
/// ends. Dropping it changes nothing at the address.
#[derive(Debug)]
pub(crate) struct Inheritance(BoundAddress);

impl Inheritance {
    /// The number of descriptors that the host passes for it.
    pub(crate) fn count(address: &Address) -> usize {
        if address.place().is_some() { 2 } else { 1 }
    }

    /// Accepts the descriptors that the host has passed, after checking each of them.
    pub(crate) fn accept(
        address: &Address,
        descriptors: Vec<OwnedFd>,
        record: &mut EvidenceLog,
    ) -> Result<Self> {
        let mut descriptors = descriptors.into_iter();
        let (listener, lock) = (descriptors.next(), descriptors.next());
        let listener = listener.ok_or_else(|| Error::Protocol("READY without a listening socket".into()))?;
        let wanted = format!("the socket that listens at {address}");
        let unseen = |errno: Errno| {
            Error::unless_short("inspecting the host's socket", errno, |errno| {
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
            _ => return Err(Error::Protocol("READY with a missing or unexpected lock".into())),
        };
        Ok(Self(BoundAddress {
            named,
            listener: Withheld::new(listener)?,
            of_another: true,
        }))
    }

    /// Takes over the place of a host that has ended. From now on the kernel reports this process to a
    /// connecting guest. Connections that are already queued still refer to the old host: see
    /// [`BoundAddress::send_away`].
    pub(crate) fn take_over(self) -> Result<BoundAddress> {
        let Self(mut place) = self;
        if let Some(named) = &place.named {
            named.must_be_there()?;
        }
        place.take_guests(BACKLOG_OF_A_PAIR)?;
        place.set_of_another(false);
        Ok(place)
    }
}

/// Checks the lock that the host has passed. It must be the file next to the path, and locked through this
/// same open file.
fn named_of_host(
    address: &Address,
    path: &Path,
    lock: OwnedFd,
    record: &mut EvidenceLog,
) -> Result<SocketFile> {
    let files = Files::of(path).map_err(|errno| bound::cannot_open_directory(address, errno))?;
    let wanted = "the locked file beside the socket";
    let unseen = |errno: Errno| {
        Error::unless_short("inspecting the host's lock", errno, |errno| {
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
            // For example with an `O_PATH` descriptor, which cannot be locked.
            Err(errno) => return Err(unseen(errno)),
        };
    let found = format!("a regular file: {regular}, beside it: {beside}, locked: {held}");
    if !held {
        return Err(Refusal::new(Check::Lock, wanted, found).into());
    }
    record.passed("ready", "lock", wanted, found);
    SocketFile::shared(files, lock)
}

/// Whether a socket was bound at a path and its file has been removed. If the address leads to the same
/// directory by another path, it is then unknown whether this was the socket of the address.
fn is_left(bound: &UnixAddr) -> Result<bool, Errno> {
    match bound.path() {
        Some(bound) if bound.is_absolute() => Ok(bound::which(bound)?.is_none()),
        _ => Ok(false),
    }
}

/// Whether a socket is bound at the address, as this process resolves it. Two paths to the same file count as
/// the same place.
fn is_at(bound: &UnixAddr, address: &Address) -> Result<bool, Errno> {
    let Some(path) = address.place() else {
        return Ok(address.to_socket().is_ok_and(|own| own == *bound));
    };
    match bound.path() {
        Some(bound) if bound == path => Ok(true),
        Some(bound) if bound.is_absolute() => {
            let there = bound::which(bound)?;
            Ok(there.is_some() && there == bound::which(path)?)
        }
        _ => Ok(false),
    }
}
