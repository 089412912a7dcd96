//! The newcomers whose handshake has not begun, and the processes with which handshakes are under way.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::sys::socket::{getsockopt, sockopt};

use crate::{
    address::Address,
    error::{Error, Result},
    handshake::line::refuse,
    handshake::parts::Caller,
    identity::{Credentials, Identity},
    trace::Handshake,
    wait::deadline::{self, Deadline},
};

/// Handshakes under way at a time, each with a thread.
pub(crate) const SIDE_BY_SIDE: usize = 64;
/// Of these, with one user's processes: the rest is for the others.
const OF_ONE_USER: usize = 48;
/// Of these, with one process. `connect` has no more under way in its process.
pub(crate) const OF_ONE_PROCESS: usize = 16;
/// Connections of one process that wait or shake hands. An honest process stays far below.
const AT_MOST_OF_ONE_PROCESS: usize = 32;
/// Connections that wait, with up to three descriptors each.
const LONGEST: usize = 128;

/// A newcomer that did not get a channel, or trouble that keeps this process from taking newcomers in.
#[non_exhaustive]
#[derive(Debug)]
pub struct Refused {
    /// Why: [`Error::PeerRefused`] (with the check, what was wanted and what was found), [`Error::HandshakeTimeout`],
    /// [`Error::Protocol`], [`Error::PeerLost`], [`Error::AddressOccupied`] where the service is full, or what kept this
    /// process from it, such as [`Error::NoSpace`].
    pub error: Error,
    /// As much as was learned of it: at least pid, uid and gid. `None` where it was not about one newcomer.
    pub identity: Option<Identity>,
}

/// A process that has connected, and has no thread.
pub(super) struct Newcomer {
    pub(super) who: Credentials,
    pub(super) stage: Stage,
    /// Until its handshake must be over.
    pub(super) deadline: Deadline,
    pub(super) handshake: Handshake,
}

/// How far its handshake is.
pub(super) enum Stage {
    /// Its process was not looked at yet.
    Fresh(OwnedFd),
    /// Its process was looked at and passed, and its HELLO has not come.
    Silent(Box<Caller>),
}

impl AsFd for Newcomer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stage {
            Stage::Fresh(stream) => stream.as_fd(),
            Stage::Silent(caller) => caller.as_fd(),
        }
    }
}

impl Newcomer {
    /// With the process that the kernel names at the other end: enough to count its connections by.
    pub(super) fn new(stream: OwnedFd, deadline: Deadline, address: &Address) -> Result<Self> {
        let credentials = getsockopt(&stream, sockopt::PeerCredentials)
            .map_err(|errno| Error::system("SO_PEERCRED of a newcomer", errno))?;
        let who = Credentials {
            pid: credentials.pid(),
            uid: credentials.uid(),
            gid: credentials.gid(),
        };
        Ok(Self {
            who,
            stage: Stage::Fresh(stream),
            deadline,
            handshake: Handshake::begin(address, "host", Some(who)),
        })
    }

    pub(super) fn give_up(self, step: &'static str, after: Duration) -> Refused {
        self.turn_away(Error::HandshakeTimeout { step, after })
    }

    /// Tells the newcomer why, as far as it still listens.
    pub(super) fn turn_away(self, error: Error) -> Refused {
        let identity = match &self.stage {
            Stage::Fresh(_) => Identity::of(self.who),
            Stage::Silent(caller) => caller.identity.clone(),
        };
        Refused {
            error: refuse(self.as_fd(), error),
            identity: Some(identity),
        }
    }
}

/// The newcomers that wait, and the processes with which handshakes are under way.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) waiting: Vec<Newcomer>,
    under_way: Vec<Credentials>,
}

impl Queue {
    pub(super) fn under_way(&self) -> usize {
        self.under_way.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= LONGEST
    }

    /// Whether one more handshake with this process may begin.
    pub(super) fn may_begin(&self, who: Credentials) -> bool {
        let count = |same: fn(&Credentials, &Credentials) -> bool| {
            self.under_way.iter().filter(|other| same(other, &who)).count()
        };
        self.under_way.len() < SIDE_BY_SIDE
            && count(|one, other| one.uid == other.uid) < OF_ONE_USER
            && count(|one, other| one.pid == other.pid) < OF_ONE_PROCESS
    }

    /// Why this process may not wait here as well, if it may not.
    pub(super) fn refusal(&self, who: Credentials) -> Option<String> {
        let waiting = self.waiting.iter().map(|newcomer| &newcomer.who);
        let all = waiting.chain(&self.under_way);
        let has = all.filter(|other| other.pid == who.pid).count();
        (has >= AT_MOST_OF_ONE_PROCESS).then(|| {
            format!(
                "process {} has {AT_MOST_OF_ONE_PROCESS} handshakes under way already",
                who.pid
            )
        })
    }

    pub(super) fn has_begun(&mut self, who: Credentials) {
        self.under_way.push(who);
    }

    pub(super) fn has_ended(&mut self, who: Credentials) {
        if let Some(index) = self.under_way.iter().position(|other| *other == who) {
            self.under_way.swap_remove(index);
        }
    }

    /// Takes out the first that a handshake may begin with: one that is to be looked at, or that has spoken.
    pub(super) fn next(&mut self) -> Option<Newcomer> {
        let spoken = self.spoken();
        let index = self.waiting.iter().zip(&spoken).position(|(newcomer, spoken)| {
            (*spoken || matches!(newcomer.stage, Stage::Fresh(_))) && self.may_begin(newcomer.who)
        })?;
        Some(self.waiting.remove(index))
    }

    /// Takes out the one that has been silent for longest.
    pub(super) fn most_silent(&mut self) -> Option<Newcomer> {
        let spoken = self.spoken();
        let index = self
            .waiting
            .iter()
            .zip(&spoken)
            .position(|(newcomer, spoken)| !spoken && matches!(newcomer.stage, Stage::Silent(_)))?;
        Some(self.waiting.remove(index))
    }

    /// Takes out those whose time is over.
    pub(super) fn late(&mut self) -> Vec<Newcomer> {
        self.waiting
            .extract_if(.., |newcomer| !newcomer.deadline.is_left())
            .collect()
    }

    fn spoken(&self) -> Vec<bool> {
        deadline::readable(self.waiting.iter().map(AsFd::as_fd))
    }
}
