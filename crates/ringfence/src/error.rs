//! What can go wrong, each with a code for programs and a sentence for people.

use std::{
    fmt::{self, Write as _},
    io,
    sync::Arc,
    time::Duration,
};

use nix::errno::Errno;

use crate::identity::{Credentials, Identity};

/// The result of everything in this crate that can be refused.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something was refused. [`Error::kind`] is what a program can switch on, and [`Error::code`] its stable name; `Display`
/// gives a sentence that says what to do.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument of the wrong type or range, or a call that the channel's state does not allow
    /// (a second reservation, for instance).
    #[error("{0}")]
    InvalidArgument(String),
    /// The address cannot be used: empty, too long, with a NUL in it, in a directory that is missing or closed
    /// to this process, or taken by something that is not a socket.
    #[error("the address {address:?} cannot be used: {reason}")]
    AddressInvalid {
        /// The address as it was given.
        address: String,
        /// What is wrong with it.
        reason: String,
        /// What the kernel said, where it was asked.
        source: Option<io::Error>,
    },
    /// Two processes already share this address (or this process itself holds it).
    #[error("the address {address:?} is taken: {by}; wait for it with the `wait` option, or choose another")]
    AddressOccupied {
        /// The address as it was given.
        address: String,
        /// Who has it, as far as is known.
        by: String,
    },
    /// The peer is not who the policy says it must be, or this could not be found out.
    #[error(transparent)]
    PeerRefused(Box<Refusal>),
    /// The peer left (or died) before the channel was made, or a message can no longer reach it.
    #[error("the peer is gone: {0}")]
    PeerLost(String),
    /// The partner came, but did not do its part of the handshake in time.
    #[error("the handshake was not finished within {} ms: {step}; a longer `timeout` waits longer", .after.as_millis())]
    HandshakeTimeout {
        /// What was being waited for.
        step: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// What the peer said is not this protocol, not this version of it, or does not agree with this side's options.
    #[error("the peer does not speak this protocol as agreed: {0}")]
    Protocol(String),
    /// Another process had the shared memory open, or tried to open it: what was in it is destroyed.
    #[error("the shared memory was exposed to another process: {0}")]
    ObjectExposed(String),
    /// The shared object that the peer passed is not what was agreed, or could be changed behind our back.
    #[error("the peer's shared object was refused: its {check} should be {wanted} and is {found}")]
    ObjectUnsound {
        /// Which property was looked at.
        check: &'static str,
        /// What it must be.
        wanted: String,
        /// What it is.
        found: String,
    },
    /// The peer wrote something into its own region that an honest peer never writes. The channel is closed.
    #[error("the peer's ring is corrupt, the channel was closed: {0}")]
    RingCorrupt(String),
    /// The message is larger than the peer takes, or than this call can ever put into the ring at once.
    #[error("a message of {size} bytes is too large: {limit} bytes at most here ({reason})")]
    MessageTooLarge {
        /// Size of the message, in bytes.
        size: usize,
        /// The largest size that would pass, in bytes.
        limit: u64,
        /// Whose limit it is.
        reason: &'static str,
    },
    /// There is not enough memory, or there are not enough descriptors.
    #[error("there is not enough room for {what}: {reason}")]
    NoSpace {
        /// What was to be made.
        what: String,
        /// What is missing.
        reason: String,
    },
    /// This side has closed the channel, or ended its sending direction.
    #[error("{0}")]
    Closed(&'static str),
    /// This subscriber has held its publisher up for longer than that allows, and was let go of. What it had not read by then
    /// is lost to it.
    #[error(
        "the publisher has evicted this subscriber, which held it up for longer than its `stall` allows; subscribe again, read \
         faster, or ask for the delivery 'best-effort'"
    )]
    Evicted,
    /// The waiting was called off by this process.
    #[error("the waiting was called off")]
    Aborted,
    /// The deadline of a call has passed. What was waited for may still come: nothing is lost, and the same call may be made again.
    #[error("the deadline has passed")]
    TimedOut,
    /// This kernel, sandbox or platform does not offer what is needed.
    #[error("this system does not offer what is needed: {what}")]
    Unsupported {
        /// The call or property that is missing.
        what: String,
        /// What the kernel said.
        source: Option<io::Error>,
    },
}

impl Error {
    /// What kind of error this is, for a program that switches on it.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidArgument(_) => ErrorKind::InvalidArgument,
            Self::AddressInvalid { .. } => ErrorKind::AddressInvalid,
            Self::AddressOccupied { .. } => ErrorKind::AddressOccupied,
            Self::PeerRefused(_) => ErrorKind::PeerRefused,
            Self::PeerLost(_) => ErrorKind::PeerLost,
            Self::HandshakeTimeout { .. } => ErrorKind::HandshakeTimeout,
            Self::Protocol(_) => ErrorKind::Protocol,
            Self::ObjectExposed(_) => ErrorKind::ObjectExposed,
            Self::ObjectUnsound { .. } => ErrorKind::ObjectUnsound,
            Self::RingCorrupt(_) => ErrorKind::RingCorrupt,
            Self::MessageTooLarge { .. } => ErrorKind::MessageTooLarge,
            Self::NoSpace { .. } => ErrorKind::NoSpace,
            Self::Closed(_) => ErrorKind::Closed,
            Self::Evicted => ErrorKind::Evicted,
            Self::Aborted => ErrorKind::Aborted,
            Self::TimedOut => ErrorKind::TimedOut,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
        }
    }

    /// The stable name of this kind of error: that of [`Error::kind`]. The Node face prefixes it with `ERR_RINGFENCE_`.
    pub const fn code(&self) -> &'static str {
        self.kind().as_str()
    }

    /// The refusal behind [`Error::PeerRefused`].
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::PeerRefused(refusal) => Some(refusal),
            _ => None,
        }
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::InvalidArgument(what.into())
    }

    /// A system call that failed where no rule of the protocol gives the failure a name of its own: either the
    /// process or the machine has run out of something, or the kernel or a sandbox does not allow the call.
    pub(crate) fn system(what: impl Into<String>, errno: Errno) -> Self {
        let what = what.into();
        if is_shortage(errno) || matches!(errno, Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) {
            return Self::NoSpace {
                what,
                reason: errno.desc().to_owned(),
            };
        }
        Self::Unsupported {
            what: format!("{what}: {}", errno.desc()),
            source: Some(errno.into()),
        }
    }

    /// A poll(2) that failed. It refuses to look at more descriptors than the process may have now (EINVAL), which is a
    /// shortage like any other.
    pub(crate) fn poll(what: &str, errno: Errno) -> Self {
        let errno = if errno == Errno::EINVAL {
            Errno::EMFILE
        } else {
            errno
        };
        Self::system(format!("{what} (poll)"), errno)
    }

    /// A system call about the peer, or about an address, that failed. For want of descriptors or memory it has found
    /// nothing out, and that is this side's own trouble ([`Error::NoSpace`]): it is never held against the peer. Every other
    /// failure is what `otherwise` makes of it.
    pub(crate) fn unless_short(
        what: impl Into<String>,
        errno: Errno,
        otherwise: impl FnOnce(Errno) -> Self,
    ) -> Self {
        if is_shortage(errno) {
            Self::system(what, errno)
        } else {
            otherwise(errno)
        }
    }
}

/// What kind of error an [`Error`] is, without its particulars.
///
/// ```
/// use ringfence::{Error, ErrorKind};
///
/// assert_eq!(Error::TimedOut.kind(), ErrorKind::TimedOut);
/// assert_eq!(ErrorKind::PeerLost.to_string(), "PEER_LOST");
/// ```
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// An argument, an option or the moment of a call is wrong. [`Error::InvalidArgument`].
    InvalidArgument,
    /// The address cannot be used. [`Error::AddressInvalid`].
    AddressInvalid,
    /// Two share the address already, or the service is full. [`Error::AddressOccupied`].
    AddressOccupied,
    /// The policy does not hold, on either side. [`Error::PeerRefused`].
    PeerRefused,
    /// No process is there, or the peer left or died. [`Error::PeerLost`].
    PeerLost,
    /// The peer came, and did not finish in time. [`Error::HandshakeTimeout`].
    HandshakeTimeout,
    /// The peer speaks another protocol, or its options do not agree. [`Error::Protocol`].
    Protocol,
    /// Another process opened the shared memory, or tried to. [`Error::ObjectExposed`].
    ObjectExposed,
    /// The memory that the peer passed is not what was agreed. [`Error::ObjectUnsound`].
    ObjectUnsound,
    /// The peer wrote what no honest peer writes. [`Error::RingCorrupt`].
    RingCorrupt,
    /// The message is longer than the peer takes, or than this call can take. [`Error::MessageTooLarge`].
    MessageTooLarge,
    /// Memory or descriptors have run out. [`Error::NoSpace`].
    NoSpace,
    /// This side has closed the channel, or ended its sending. [`Error::Closed`].
    Closed,
    /// The publisher has let go of this subscriber. [`Error::Evicted`].
    Evicted,
    /// This process has called off the waiting. [`Error::Aborted`].
    Aborted,
    /// The deadline of a call has passed. [`Error::TimedOut`].
    TimedOut,
    /// The kernel, a sandbox or the platform lacks what is needed. [`Error::Unsupported`].
    Unsupported,
}

impl ErrorKind {
    /// Its stable name, `PEER_REFUSED` for instance: what Node has as `code`, behind `ERR_RINGFENCE_`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::AddressInvalid => "ADDRESS_INVALID",
            Self::AddressOccupied => "ADDRESS_OCCUPIED",
            Self::PeerRefused => "PEER_REFUSED",
            Self::PeerLost => "PEER_LOST",
            Self::HandshakeTimeout => "HANDSHAKE_TIMEOUT",
            Self::Protocol => "PROTOCOL",
            Self::ObjectExposed => "OBJECT_EXPOSED",
            Self::ObjectUnsound => "OBJECT_UNSOUND",
            Self::RingCorrupt => "RING_CORRUPT",
            Self::MessageTooLarge => "MESSAGE_TOO_LARGE",
            Self::NoSpace => "NO_SPACE",
            Self::Closed => "CLOSED",
            Self::Evicted => "EVICTED",
            Self::Aborted => "ABORTED",
            Self::TimedOut => "TIMED_OUT",
            Self::Unsupported => "UNSUPPORTED",
        }
    }

    /// The nearest kind that the standard library has.
    const fn of_io(self) -> io::ErrorKind {
        match self {
            Self::InvalidArgument | Self::AddressInvalid | Self::MessageTooLarge => {
                io::ErrorKind::InvalidInput
            }
            Self::AddressOccupied => io::ErrorKind::AddrInUse,
            Self::PeerRefused => io::ErrorKind::PermissionDenied,
            Self::PeerLost => io::ErrorKind::ConnectionReset,
            Self::HandshakeTimeout | Self::TimedOut => io::ErrorKind::TimedOut,
            Self::Protocol | Self::ObjectUnsound | Self::RingCorrupt => io::ErrorKind::InvalidData,
            Self::ObjectExposed | Self::Evicted => io::ErrorKind::ConnectionAborted,
            Self::NoSpace => io::ErrorKind::OutOfMemory,
            Self::Closed => io::ErrorKind::BrokenPipe,
            // Not `Interrupted`: the standard library makes an interrupted call again.
            Self::Aborted => io::ErrorKind::Other,
            Self::Unsupported => io::ErrorKind::Unsupported,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<Error> for io::Error {
    /// The error itself is behind [`io::Error::get_ref`] and [`io::Error::into_inner`]. The kind is the one that the kernel gave, where
    /// an address could not be used for a reason of the kernel's, and else the nearest to [`Error::kind`].
    ///
    /// ```
    /// use std::io;
    ///
    /// fn open() -> io::Result<ringfence::Channel> {
    ///     let address = "/no/such/directory/socket".parse().map_err(io::Error::from)?;
    ///     Ok(ringfence::connect(&address, &ringfence::Options::new())?)
    /// }
    ///
    /// let error = open().unwrap_err();
    /// assert_eq!(error.kind(), io::ErrorKind::NotFound);
    /// let own = error.get_ref().and_then(|error| error.downcast_ref::<ringfence::Error>());
    /// assert!(matches!(own, Some(ringfence::Error::AddressInvalid { .. })));
    /// ```
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::AddressInvalid {
                source: Some(source), ..
            } => source.kind(),
            other => other.kind().of_io(),
        };
        Self::new(kind, error)
    }
}

/// Whether a system call has failed for want of this process's own descriptors or memory, or the machine's. Such a call
/// tells nothing of what it was about. (EINTR is not among these: an interrupted call is made again, see `sys::uninterrupted`.)
pub(crate) const fn is_shortage(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EMFILE
            | Errno::ENFILE
            | Errno::ENOMEM
            | Errno::ENOBUFS
            // Too many descriptors of this user are in flight on sockets, as many as RLIMIT_NOFILE allows (unix(7)).
            | Errno::ETOOMANYREFS
    )
}

/// The errno behind an error of the standard library. What has none was refused before the kernel was asked.
pub(crate) fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
}

/// What was looked at when a peer was refused.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// The user.
    Uid,
    /// The group, or a supplementary one.
    Gid,
    /// The pid namespace and the user namespace.
    Namespace,
    /// The executable, or its content.
    Executable,
    /// The cgroup.
    Cgroup,
    /// The security label.
    Label,
    /// The answer of the policy's callback.
    Authorize,
    /// What the socket tells of the peer.
    Credentials,
    /// The descriptor that names the peer's process.
    Pidfd,
    /// What /proc shows of the peer.
    Proc,
    /// Whether the peer is the child that was started.
    Child,
    /// Who made the private line, and who speaks on it.
    Line,
    /// The host's socket, which is passed on.
    Address,
    /// The host's lock, which is passed on.
    Lock,
    /// What a subscriber asks its publisher for.
    Delivery,
    /// Another one, in the words of a peer that refused this process.
    Other(String),
}

impl Check {
    const KNOWN: [Self; 15] = [
        Self::Uid,
        Self::Gid,
        Self::Namespace,
        Self::Executable,
        Self::Cgroup,
        Self::Label,
        Self::Authorize,
        Self::Credentials,
        Self::Pidfd,
        Self::Proc,
        Self::Child,
        Self::Line,
        Self::Address,
        Self::Lock,
        Self::Delivery,
    ];

    /// Its name, for logs and for programs: `uid`, `executable`, `authorize`…
    pub fn as_str(&self) -> &str {
        match self {
            Self::Other(name) => name,
            known => known.name(),
        }
    }

    /// The name of a check of this side.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Uid => "uid",
            Self::Gid => "gid",
            Self::Namespace => "namespace",
            Self::Executable => "executable",
            Self::Cgroup => "cgroup",
            Self::Label => "label",
            Self::Authorize => "authorize",
            Self::Credentials => "credentials",
            Self::Pidfd => "pidfd",
            Self::Proc => "proc",
            Self::Child => "child",
            Self::Line => "line",
            Self::Address => "address",
            Self::Lock => "lock",
            Self::Delivery => "delivery",
            Self::Other(_) => "other",
        }
    }

    /// The check that a peer names.
    fn named(name: String) -> Self {
        let known = Self::KNOWN.into_iter().find(|known| known.name() == name);
        known.unwrap_or(Self::Other(name))
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A peer that was refused: which check, what it wanted, what it found.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The check that failed.
    pub check: Check,
    /// What the check asked for.
    pub wanted: String,
    /// What it found, or why it could not look.
    pub found: String,
    /// Whether the peer refused us (its words), rather than we it.
    pub by_peer: bool,
    /// As much as was learned about the refused peer.
    pub identity: Option<Identity>,
    /// What the policy's callback failed with.
    pub(crate) cause: Option<Cause>,
}

/// An error of the caller's own.
pub(crate) type Cause = Arc<dyn std::error::Error + Send + Sync>;

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

/// What another user is told in place of what was wanted and found.
const UNTOLD: &str = "what it does not tell another user";

impl Refusal {
    pub(crate) fn new(check: Check, wanted: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            check,
            wanted: wanted.into(),
            found: found.into(),
            by_peer: false,
            identity: None,
            cause: None,
        }
    }

    /// Of whom no more is known than this.
    pub(crate) fn about(mut self, who: Credentials) -> Self {
        self.identity = Some(Identity::of(who));
        self
    }

    /// What the peer said. It tells another user the check alone.
    pub(crate) fn by_peer(check: String, wanted: String, found: String) -> Self {
        let told = |text: String| if text.is_empty() { UNTOLD.to_owned() } else { text };
        Self {
            by_peer: true,
            ..Self::new(Check::named(check), told(wanted), told(found))
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            check,
            wanted,
            found,
            by_peer,
            identity,
            ..
        } = self;
        let (check, wanted, found) = (Shown(check.as_str()), Shown(wanted), Shown(found));
        if *by_peer {
            f.write_str("the peer refused this process: ")?;
            return if wanted.0 == UNTOLD {
                write!(
                    f,
                    "its policy looks at {check}, and it does not tell another user more"
                )
            } else {
                write!(
                    f,
                    "its policy looks at {check}, asks for {wanted} and found {found}"
                )
            };
        }
        match identity {
            Some(peer) => write!(f, "process {} was refused", peer.pid)?,
            None => f.write_str("the peer was refused")?,
        }
        write!(f, ": the policy asks for {check} {wanted} and found {found}")
    }
}

/// Whether a character moves a terminal's cursor, begins a line, or turns the direction of what follows.
pub(crate) fn steers(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// A text as a sentence can have it: another process names its executable and its cgroup as it likes, and what is told of it goes to
/// logs and terminals.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| {
            if steers(character) {
                write!(f, "{}", character.escape_unicode())
            } else {
                f.write_char(character)
            }
        })
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::PeerRefused(Box::new(refusal))
    }
}

#[cfg(test)]
mod tests {
    use super::{Check, Refusal};

    /// What is found stays as it is, for programs.
    #[test]
    fn a_sentence_steers_no_terminal() {
        let found = "/tmp/\u{1b}[2J\nall is well\u{202e}";
        for refusal in [
            Refusal::new(Check::Executable, "/usr/bin/orders", found),
            Refusal::by_peer("label\n".into(), found.into(), String::new()),
        ] {
            assert!(refusal.found == found || refusal.wanted == found);
            let sentence = refusal.to_string();
            assert!(
                sentence.contains(r"/tmp/\u{1b}[2J\u{a}all is well\u{202e}"),
                "{sentence}"
            );
            assert!(!sentence.contains(super::steers), "{sentence}");
        }
    }
}
