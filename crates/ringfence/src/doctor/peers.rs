//! What the kernel says of a peer on a socket, and what two processes can agree on.

use std::os::fd::{AsFd, OwnedFd};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socketpair, sockopt},
    unistd::getpid,
};

use crate::{
    doctor::finding::{About, Finding},
    sys,
};

const PIDFD: About = About {
    name: "pidfd",
    title: "Holding on to a process (pidfd_open)",
};

pub(super) fn pidfd() -> Finding {
    match sys::process::pidfd_open(getpid()) {
        Ok(_) => PIDFD.good(
            "works",
            "what is read of a peer in /proc is read between two looks that show that very process alive, and its \
             death is noticed even where its end of the line is kept open",
        ),
        Err(errno) => PIDFD.limited(
            format!("{} (Linux 5.3)", errno.desc()),
            "a peer is held by its number and its directory in /proc; its death is noticed by the end of the line \
             alone",
        ),
    }
}

pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
}

const PEER_PIDFD: About = About {
    name: "peer-pidfd",
    title: "The peer's process from its socket (SO_PEERPIDFD)",
};

pub(super) fn peer_pidfd() -> Finding {
    match pair().and_then(|(one, _other)| getsockopt(&one, sockopt::PeerPidfd)) {
        Ok(_) => PEER_PIDFD.good(
            "works",
            "the process that is looked at is the one that connected, even if its number has been given to another \
             since",
        ),
        Err(errno) => PEER_PIDFD.limited(
            format!("{} (Linux 6.5)", errno.desc()),
            "the peer's process is found by its number; one that ended in that moment could be taken for its \
             successor, who then still lacks the private line",
        ),
    }
}

const PEER_GROUPS: About = About {
    name: "peer-groups",
    title: "The peer's groups from its socket (SO_PEERGROUPS)",
};

pub(super) fn peer_groups() -> Finding {
    match pair().and_then(|(one, _other)| sys::socket::peer_groups(one.as_fd())) {
        Ok(groups) => PEER_GROUPS.good(
            format!("works; this process has {}", groups.len()),
            "a policy that asks for a gid finds it among the peer's supplementary groups as well",
        ),
        Err(errno) => PEER_GROUPS.limited(
            format!("{} (Linux 4.13)", errno.desc()),
            "a policy that asks for a gid finds the peer's effective one alone",
        ),
    }
}

const PIDFD_INFO: About = About {
    name: "pidfd-info",
    title: "What a pidfd says of its process (PIDFD_GET_INFO)",
};

pub(super) fn pidfd_information() -> Finding {
    match sys::process::pidfd_open(getpid()).and_then(sys::process::pidfd_info) {
        Ok(info) => PIDFD_INFO.good(
            format!("works: pid {}, effective uid {}, gid {}", info.pid, info.uid, info.gid),
            "a peer's user, group and cgroup are looked at again through its pidfd, which names no other process",
        ),
        Err(errno) => PIDFD_INFO.limited(
            format!("{} (Linux 6.13)", errno.desc()),
            "a peer's user, group and cgroup are looked at again in /proc alone, between two looks that find it alive",
        ),
    }
}

const MEMBARRIER: About = About {
    name: "membarrier",
    title: "Barriers for other processes (membarrier)",
};

pub(super) fn membarrier() -> Finding {
    match sys::barrier::knows_barriers().and_then(|known| sys::barrier::issue_barrier().map(|()| known)) {
        Ok(true) => MEMBARRIER.good(
            "global expedited: works",
            "sending takes no fence: the side that goes to sleep makes the barrier for both",
        ),
        Ok(false) | Err(_) => MEMBARRIER.limited(
            "global expedited: not here (Linux 4.16, and a sandbox that allows it)",
            "every send makes a full fence of its own: slower, and just as right",
        ),
    }
}
