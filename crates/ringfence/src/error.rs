//! Errors, each with a code for programs and a sentence for people.

use std::{
    fmt::{self, Write as _},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use nix::errno::Errno;

use crate::{
    identity::{Confinement, Credentials, Identity},
    sys::{self, uninterrupted},
};

/// The result of every fallible operation in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason for a failure. A program can match on [`Error::kind`], and [`Error::code`] is its stable name.
/// `Display` gives a sentence that says what to do.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument has the wrong type or range, or the channel's state does not allow the call (for example a
    /// second reservation).
    #[error("{0}")]
    InvalidArgument(String),
    /// The address is unusable: it is empty, too long or contains a NUL. Or its directory is missing or not
    /// accessible, or a file that is not a socket has this path.
    #[error("the address {address:?} cannot be used: {reason}")]
    AddressInvalid {
        /// The address as it was given.
        address: String,
        /// The reason.
        reason: String,
        /// The kernel's error, if a system call failed.
        source: Option<io::Error>,
    },
    /// Two processes already share this address, or this process itself holds it.
    #[error("the address {address:?} is taken: {by}; {}", remedy(.by))]
    AddressOccupied {
        /// The address as it was given.
        address: String,
        /// The current user of the address, as far as it is known.
        by: String,
    },
    /// The peer does not satisfy the policy, or a check could not be made.
    #[error(transparent)]
    PeerRefused(Box<Refusal>),
    /// The peer disconnected or died before the channel was made, or a message can no longer reach it.
    #[error("the peer is gone: {0}")]
    PeerLost(String),
    /// The child exited before the handshake was complete, and no process has its end of the line
    /// ([`ParentLine::channel`](crate::ParentLine::channel)).
    #[error("the child, process {0}, has exited before the handshake")]
    ChildExited(i32),
    /// The peer connected, but did not complete its part of the handshake in time.
    #[error("the handshake did not finish within {} ms (last step: {step}); a longer `handshake_timeout` allows more time", .after.as_millis())]
    HandshakeTimeout {
        /// The step that did not complete.
        step: &'static str,
        /// The time allowed for the handshake.
        after: Duration,
    },
    /// The peer speaks another protocol or another version, or its options do not agree with this side's
    /// options.
    #[error("the peer's protocol or options do not match: {0}")]
    Protocol(String),
    /// Another process had the shared memory open, or tried to open it. Its content was destroyed.
    #[error("the shared memory was exposed to another process: {0}")]
    ObjectExposed(String),
    /// The shared object that the peer passed differs from what was agreed, or could still be changed by
    /// others.
    #[error("the peer's shared object was refused: its {check} should be {wanted} and is {found}")]
    ObjectUnsound {
        /// The property that was checked.
        check: &'static str,
        /// The required value.
        wanted: String,
        /// The value found.
        found: String,
    },
    /// The peer wrote something into its own region that an honest peer never writes. The channel was closed.
    #[error("the peer's ring is corrupt, the channel was closed: {0}")]
    RingCorrupt(String),
    /// The message is larger than the peer accepts, or than this call can put into the ring.
    #[error("a message of {size} bytes is too large: the limit is {limit} bytes ({reason})")]
    MessageTooLarge {
        /// The size of the message, in bytes.
        size: usize,
        /// The largest accepted size, in bytes.
        limit: u64,
        /// The origin of the limit.
        reason: &'static str,
    },
    /// Memory or descriptors are exhausted.
    #[error("there is not enough room for {what}: {reason}")]
    NoSpace {
        /// The thing that was to be made.
        what: String,
        /// The missing resource.
        reason: String,
    },
    /// This side has closed the channel, or ended its sending direction.
    #[error("{0}")]
    Closed(&'static str),
    /// The publisher evicted this subscriber, which had delayed it for too long. The subscriber has lost all
    /// messages that it had not read.
    #[error(
        "the publisher has evicted this subscriber, which delayed it for longer than its `stall` allows; subscribe again, read \
         faster, or request the delivery 'best-effort'"
    )]
    Evicted,
    /// This process cancelled the wait.
    #[error("the wait was cancelled")]
    Aborted,
    /// The deadline of a call has passed. The awaited event may still happen: nothing is lost, and the call
    /// may be repeated.
    #[error("the deadline has passed")]
    TimedOut,
    /// This kernel, sandbox or platform lacks a required feature.
    #[error("this system does not offer what is needed: {what}")]
    Unsupported {
        /// The missing call or property.
        what: String,
        /// The kernel's error, if a system call failed.
        source: Option<io::Error>,
    },
}

/// Names this process as the holder of an address.
pub(crate) const HELD_BY_SELF: &str = "this process holds it itself";

/// The step of a handshake whose child has not sent anything.
pub(crate) const SILENT_CHILD: &str = "the child's call of `from_parent`";

/// Advice for an address that is taken. A process that waited for its own address would wait forever.
fn remedy(by: &str) -> &'static str {
    if by == HELD_BY_SELF {
        "connect from another process, or choose another address"
    } else {
        "wait for it with the `wait` option, or choose another"
    }
}

/// Turns the failure of a system call into an error.
pub(crate) trait OrSystem<T> {
    /// See [`Error::system`].
    fn or_system(self, what: &str) -> Result<T>;
}

impl<T> OrSystem<T> for Result<T, Errno> {
    fn or_system(self, what: &str) -> Result<T> {
        self.map_err(|errno| Error::system(what, errno))
    }
}

impl<T> OrSystem<T> for io::Result<T> {
    fn or_system(self, what: &str) -> Result<T> {
        self.map_err(|error| Error::system(what, errno(&error)))
    }
}

impl Error {
    /// Returns the kind of this error, for a program that matches on it.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidArgument(_) => ErrorKind::InvalidArgument,
            Self::AddressInvalid { .. } => ErrorKind::AddressInvalid,
            Self::AddressOccupied { .. } => ErrorKind::AddressOccupied,
            Self::PeerRefused(_) => ErrorKind::PeerRefused,
            Self::PeerLost(_) => ErrorKind::PeerLost,
            Self::ChildExited(_) => ErrorKind::ChildExited,
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

    /// Returns the stable name of [`Error::kind`]. The Node package prefixes it with `ERR_RINGFENCE_`.
    pub const fn code(&self) -> &'static str {
        self.kind().as_str()
    }

    /// Returns whether the cause is local and has ended nothing: the same call may succeed later.
    pub(crate) const fn is_local(&self) -> bool {
        matches!(
            self,
            Self::InvalidArgument(_) | Self::NoSpace { .. } | Self::Unsupported { .. }
        )
    }

    /// Returns the refusal of an [`Error::PeerRefused`].
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::PeerRefused(refusal) => Some(refusal),
            _ => None,
        }
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::InvalidArgument(what.into())
    }

    /// Makes the error for room that cannot be had.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "most callers have just the error, or a text"
    )]
    pub(crate) fn no_space(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::NoSpace {
            what: what.into(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn occupied(address: impl Into<String>, by: impl Into<String>) -> Self {
        let (address, by) = (address.into(), by.into());
        Self::AddressOccupied { address, by }
    }

    pub(crate) const fn too_large(size: usize, limit: u64, reason: &'static str) -> Self {
        Self::MessageTooLarge { size, limit, reason }
    }

    #[expect(clippy::needless_pass_by_value, reason = "most callers have a text")]
    pub(crate) fn unsound(check: &'static str, wanted: impl ToString, found: impl ToString) -> Self {
        let (wanted, found) = (wanted.to_string(), found.to_string());
        Self::ObjectUnsound { check, wanted, found }
    }

    /// Makes the error for something that this system, or this process, cannot do.
    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported {
            what: what.into(),
            source: None,
        }
    }

    /// Makes the error for a failed system call to which the protocol gives no meaning of its own. Either the
    /// process or the machine has run out of something, or the kernel or a sandbox does not allow the call.
    pub(crate) fn system(what: impl Into<String>, errno: Errno) -> Self {
        let what = what.into();
        if errno == Errno::ETOOMANYREFS {
            let reason =
                "too many descriptors of this user are on their way to other processes (RLIMIT_NOFILE)";
            return Self::no_space(what, reason);
        }
        // Of mmap(2): mlockall(2) has locked all memory to come. Of madvise(2): the kernel lacks something at the moment.
        if errno == Errno::EAGAIN {
            return Self::no_space(
                what,
                "a limit is reached, such as that of locked memory (RLIMIT_MEMLOCK)",
            );
        }
        if is_shortage(errno) || matches!(errno, Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) {
            return Self::no_space(what, errno.desc());
        }
        Self::Unsupported {
            what: format!("{what}: {}", errno.desc()),
            source: Some(errno.into()),
        }
    }

    /// Makes the error for a failed poll(2). EINVAL means more descriptors than the process may currently
    /// have, which is a shortage.
    pub(crate) fn poll(what: &str, errno: Errno) -> Self {
        let errno = if errno == Errno::EINVAL {
            Errno::EMFILE
        } else {
            errno
        };
        Self::system(format!("{what} (poll)"), errno)
    }

    /// Makes the error for a failed system call about the peer or an address. A shortage of descriptors or
    /// memory is a local error ([`Error::NoSpace`]): the call found out nothing, so the peer is not blamed. So is a call that is
    /// interrupted each time (see `sys::uninterrupted`). `otherwise` converts every other errno.
    pub(crate) fn unless_short(
        what: impl Into<String>,
        errno: Errno,
        otherwise: impl FnOnce(Errno) -> Self,
    ) -> Self {
        if is_shortage(errno) || errno == Errno::EINTR {
            Self::system(what, errno)
        } else {
            otherwise(errno)
        }
    }

    /// As [`Error::unless_short`]. A denied call is a local error as well: a peer cannot make the kernel deny a call of this process,
    /// except on a file that it has passed.
    pub(crate) fn unless_denied(
        what: impl Into<String>,
        errno: Errno,
        otherwise: impl FnOnce(Errno) -> Self,
    ) -> Self {
        if is_denied(errno) {
            Self::system(what, errno)
        } else {
            Self::unless_short(what, errno, otherwise)
        }
    }

    /// Makes a system call on a file that the peer has passed. If that is denied, the peer may have chosen a file that denies it, or
    /// a filter denies it on every descriptor, also on one that is not open: only then the error is local.
    pub(crate) fn or_local<'a, T>(
        what: &str,
        passed: &'a OwnedFd,
        call: impl Fn(BorrowedFd<'a>) -> Result<T, Errno>,
        otherwise: impl FnOnce(Errno) -> Self,
    ) -> Result<T> {
        uninterrupted(|| call(passed.as_fd())).map_err(|errno| {
            if is_denied(errno) && uninterrupted(|| call(sys::NOT_OPEN)).err() == Some(errno) {
                return Self::system(what, errno);
            }
            Self::unless_short(what, errno, otherwise)
        })
    }
}

named! {
    /// The kind of an [`Error`], without its details. Its name is stable. In Node it is `code`, after the prefix `ERR_RINGFENCE_`.
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
        /// An argument or an option is wrong, or the call came at the wrong time. [`Error::InvalidArgument`].
        InvalidArgument => "INVALID_ARGUMENT",
        /// The address is unusable. [`Error::AddressInvalid`].
        AddressInvalid => "ADDRESS_INVALID",
        /// Two processes already share the address, or the service is full. [`Error::AddressOccupied`].
        AddressOccupied => "ADDRESS_OCCUPIED",
        /// The policy is not satisfied, on either side. [`Error::PeerRefused`].
        PeerRefused => "PEER_REFUSED",
        /// No process listens, or the peer disconnected or died. [`Error::PeerLost`].
        PeerLost => "PEER_LOST",
        /// A child that was started exited before the handshake. [`Error::ChildExited`].
        ChildExited => "CHILD_EXITED",
        /// The peer connected but did not finish in time. [`Error::HandshakeTimeout`].
        HandshakeTimeout => "HANDSHAKE_TIMEOUT",
        /// The peer speaks another protocol, or its options do not agree. [`Error::Protocol`].
        Protocol => "PROTOCOL",
        /// Another process opened the shared memory, or tried to. [`Error::ObjectExposed`].
        ObjectExposed => "OBJECT_EXPOSED",
        /// The memory that the peer passed differs from what was agreed. [`Error::ObjectUnsound`].
        ObjectUnsound => "OBJECT_UNSOUND",
        /// The peer wrote data that no honest peer writes. [`Error::RingCorrupt`].
        RingCorrupt => "RING_CORRUPT",
        /// The message is longer than the peer or this call accepts. [`Error::MessageTooLarge`].
        MessageTooLarge => "MESSAGE_TOO_LARGE",
        /// Memory or descriptors are exhausted. [`Error::NoSpace`].
        NoSpace => "NO_SPACE",
        /// This side has closed the channel, or ended its sending direction. [`Error::Closed`].
        Closed => "CLOSED",
        /// The publisher has evicted this subscriber. [`Error::Evicted`].
        Evicted => "EVICTED",
        /// This process has cancelled the wait. [`Error::Aborted`].
        Aborted => "ABORTED",
        /// The deadline of a call has passed. [`Error::TimedOut`].
        TimedOut => "TIMED_OUT",
        /// The kernel, a sandbox or the platform lacks a required feature. [`Error::Unsupported`].
        Unsupported => "UNSUPPORTED",
    }
}

impl ErrorKind {
    /// Returns the nearest kind of the standard library.
    const fn of_io(self) -> io::ErrorKind {
        match self {
            Self::InvalidArgument | Self::AddressInvalid | Self::MessageTooLarge => {
                io::ErrorKind::InvalidInput
            }
            Self::AddressOccupied => io::ErrorKind::AddrInUse,
            Self::PeerRefused => io::ErrorKind::PermissionDenied,
            Self::PeerLost | Self::ChildExited => io::ErrorKind::ConnectionReset,
            Self::HandshakeTimeout | Self::TimedOut => io::ErrorKind::TimedOut,
            Self::Protocol | Self::ObjectUnsound | Self::RingCorrupt => io::ErrorKind::InvalidData,
            Self::ObjectExposed | Self::Evicted => io::ErrorKind::ConnectionAborted,
            Self::NoSpace => io::ErrorKind::OutOfMemory,
            Self::Closed => io::ErrorKind::BrokenPipe,
            // Not `Interrupted`, because the standard library repeats an interrupted call.
            Self::Aborted => io::ErrorKind::Other,
            Self::Unsupported => io::ErrorKind::Unsupported,
        }
    }
}

impl From<Error> for io::Error {
    /// Wraps the error, which is available through [`io::Error::get_ref`] and [`io::Error::into_inner`]. If
    /// the kernel rejected an address, the kind is that of the kernel's error. Otherwise it is the nearest to
    /// [`Error::kind`].
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

/// Returns the value with this name. Otherwise the error says which names the option accepts.
pub(crate) fn parse_named<T: Copy + fmt::Display>(option: &str, all: &[T], text: &str) -> Result<T> {
    let is_named = |value: &&T| value.to_string() == text;
    all.iter().find(is_named).copied().ok_or_else(|| {
        let names: Vec<String> = all.iter().map(|value| format!("'{value}'")).collect();
        let (last, others) = names.split_last().expect("an option has values");
        let others = others.join(", ");
        Error::invalid(format!("{option} must be {others} or {last}, not {text:?}"))
    })
}

/// Whether a system call failed because this process or the machine has run out of descriptors or memory.
/// Such a failure says nothing about the object of the call. (EINTR is not included, because an interrupted
/// call is repeated: see `sys::uninterrupted`.)
pub(crate) const fn is_shortage(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EMFILE
            | Errno::ENFILE
            | Errno::ENOMEM
            | Errno::ENOBUFS
            // Too many descriptors of this user are in flight on sockets; the limit is RLIMIT_NOFILE
            // (unix(7)).
            | Errno::ETOOMANYREFS
    )
}

/// Whether a sandbox or a security module denies a system call, or the kernel lacks it.
pub(crate) const fn is_denied(errno: Errno) -> bool {
    matches!(errno, Errno::EPERM | Errno::EACCES | Errno::ENOSYS)
}

/// Returns the errno behind an error of the standard library. Errors without an errno were raised before the
/// system call.
pub(crate) fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
}

/// The check that refused a peer.
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
    /// The credentials that the socket reports.
    Credentials,
    /// The pidfd of the peer's process.
    Pidfd,
    /// The peer's files in /proc.
    Proc,
    /// Whether the peer is the child that was started.
    Child,
    /// The creator of the private line, and the sender of each message on it.
    Line,
    /// The host's socket, which the guest of a membership receives.
    Address,
    /// The host's lock, which the guest of a membership receives.
    Lock,
    /// The delivery that a subscriber requests from its publisher.
    Delivery,
    /// A restriction that the policy requires of the peer.
    Confined(Confinement),
    /// An unknown check, reported by a peer that refused this process.
    Other(String),
}

impl Check {
    const NAMES: [(Self, &'static str); 15] = [
        (Self::Uid, "uid"),
        (Self::Gid, "gid"),
        (Self::Namespace, "namespace"),
        (Self::Executable, "executable"),
        (Self::Cgroup, "cgroup"),
        (Self::Label, "label"),
        (Self::Authorize, "authorize"),
        (Self::Credentials, "credentials"),
        (Self::Pidfd, "pidfd"),
        (Self::Proc, "proc"),
        (Self::Child, "child"),
        (Self::Line, "line"),
        (Self::Address, "address"),
        (Self::Lock, "lock"),
        (Self::Delivery, "delivery"),
    ];

    /// Returns its name, for logs and for programs: `uid`, `executable`, `authorize`…
    pub fn as_str(&self) -> &str {
        match self {
            Self::Other(name) => name,
            known => known.name(),
        }
    }

    /// Returns the name of one of this side's checks.
    pub(crate) fn name(&self) -> &'static str {
        let known = Self::NAMES.iter().find(|(check, _)| check == self);
        match (known, self) {
            (Some((_, name)), _) => name,
            (None, Self::Confined(confinement)) => confinement.as_str(),
            (None, _) => "other",
        }
    }

    /// Returns the check that a peer names.
    fn named(name: String) -> Self {
        let confined = Confinement::ALL.map(Self::Confined);
        let known = Self::NAMES.map(|(check, _)| check).into_iter().chain(confined);
        let known = known.into_iter().find(|known| known.name() == name);
        known.unwrap_or(Self::Other(name))
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The refusal of a peer: the check, the requirement and the finding.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The check that failed.
    pub check: Check,
    /// The required value.
    pub wanted: String,
    /// The value found, or why it could not be determined.
    pub found: String,
    /// Whether the peer refused this process. Otherwise this process refused the peer.
    pub by_peer: bool,
    /// The known properties of the refused peer.
    pub identity: Option<Identity>,
    /// The error of the policy's callback.
    pub(crate) cause: Option<Cause>,
}

/// An error of the program.
pub(crate) type Cause = Arc<dyn std::error::Error + Send + Sync>;

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

/// Replaces the required and the found value for a peer of another user.
const HIDDEN: &str = "hidden from other users";

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

    /// Makes the refusal for a failed lookup, or a local error: see [`Error::unless_denied`].
    pub(crate) fn of_lookup(what: impl Into<String>, check: Check, wanted: &str, errno: Errno) -> Error {
        Error::unless_denied(what, errno, |errno| Self::new(check, wanted, errno.desc()).into())
    }

    /// Makes a system call on a file that the peer has passed: see [`Error::or_local`].
    pub(crate) fn or_local<'a, T>(
        what: &str,
        check: Check,
        wanted: &str,
        passed: &'a OwnedFd,
        call: impl Fn(BorrowedFd<'a>) -> Result<T, Errno>,
    ) -> Result<T> {
        let refuse = |errno: Errno| Self::new(check, wanted, errno.desc()).into();
        Error::or_local(what, passed, call, refuse)
    }

    /// Adds the credentials of the peer, if nothing more is known.
    pub(crate) fn about(mut self, peer: Credentials) -> Self {
        self.identity = Some(Identity::of(peer));
        self
    }

    /// Makes the refusal that a peer has sent. A peer of another user sends only the name of the check.
    pub(crate) fn by_peer(check: String, wanted: String, found: String) -> Self {
        let or_hidden = |text: String| if text.is_empty() { HIDDEN.to_owned() } else { text };
        Self {
            by_peer: true,
            ..Self::new(Check::named(check), or_hidden(wanted), or_hidden(found))
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [check, wanted, found] = [self.check.as_str(), &self.wanted, &self.found].map(Shown);
        if self.by_peer {
            write!(f, "the peer refused this process: its policy checks {check}")?;
            return if wanted.0 == HIDDEN {
                f.write_str("; the details are hidden from other users")
            } else {
                write!(f, ", requires {wanted} and found {found}")
            };
        }
        match &self.identity {
            Some(peer) => write!(f, "process {} was refused", peer.pid)?,
            None => f.write_str("the peer was refused")?,
        }
        write!(f, ": the policy requires {check} {wanted} and found {found}")?;
        match self.check {
            Check::Confined(confinement) => write!(f, "; {}", confinement.advice()),
            _ => Ok(()),
        }
    }
}

/// Shortens a text for a peer, between two characters.
pub(crate) fn cut(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Whether a character moves a terminal's cursor, starts a line, or changes the text direction.
pub(crate) fn steers(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// A text that is safe to print. Another process can choose the names of its executable and cgroup freely,
/// and they are written to logs and terminals.
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

    /// Only the sentence is escaped. Programs get the found value unchanged.
    #[test]
    fn error_text_contains_no_control_characters() {
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
