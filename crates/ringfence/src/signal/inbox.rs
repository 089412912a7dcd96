//! Tokens of 64 bits, carried by realtime signals: the inbox of a channel, and the sender to its peer.
//!
//! Any process that may send signals to a process can forge one, including the sender's pid and uid. So each
//! side gives its peer a secret over the private line, and every token's signal must carry it. A signal with
//! another secret is counted and dropped. The kernel does not interpret the bytes that hold the secret, and
//! passes them on.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::{errno::Errno, libc};
use subtle::ConstantTimeEq as _;

use crate::{
    error::{Error, OrSystem, Result},
    fork::{OwnerProcess, PerProcess, ProcessMutex},
    signal::claim::{SignalClaim, strays},
    sys::lock::Mutex,
    sys::{self, signal::SignalInfo},
    wait::deadline::Wakeup,
};

/// The maximum number of tokens that wait for the program to take them.
const MAX_WAITING: usize = 65_536;

/// The received tokens of one channel. It outlives the channel while a caller still takes tokens.
pub(crate) struct TokenInbox {
    number: i32,
    /// The inbox's number in this process.
    id: u32,
    secret: Secret,
    state: ProcessMutex<TokenQueue>,
    /// The number of tokens that were dropped because the inbox was full.
    dropped: AtomicU64,
    /// Readable while a token waits or the inbox is closed.
    wakeup: OnceLock<Wakeup>,
}

#[derive(Debug, Default)]
struct TokenQueue {
    waiting: VecDeque<u64>,
    /// The number of tokens that arrived, including those that were dropped.
    received: u64,
    /// No more tokens will arrive.
    is_over: bool,
}

/// All open inboxes of this process, by number.
struct Inboxes {
    by_id: BTreeMap<u32, Arc<TokenInbox>>,
    next: u32,
}

impl Default for Inboxes {
    fn default() -> Self {
        Self {
            by_id: BTreeMap::new(),
            next: 1,
        }
    }
}

static OPEN: PerProcess<Mutex<Inboxes>> = PerProcess::new();

impl TokenInbox {
    fn push(&self, token: u64) {
        let Ok(mut state) = self.state.lock() else { return };
        state.received += 1;
        if state.waiting.len() >= MAX_WAITING {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.waiting.push_back(token);
        if let (1, Some(wakeup)) = (state.waiting.len(), self.wakeup.get()) {
            wakeup.signal();
        }
    }

    fn end(&self) {
        let Ok(mut state) = self.state.lock() else { return };
        state.is_over = true;
        if let Some(wakeup) = self.wakeup.get() {
            wakeup.signal();
        }
    }

    /// Removes and returns the oldest waiting token.
    pub(crate) fn pop(&self) -> Option<u64> {
        let mut state = self.state.lock().ok()?;
        let token = state.waiting.pop_front()?;
        if let (true, false, Some(wakeup)) = (state.waiting.is_empty(), state.is_over, self.wakeup.get()) {
            wakeup.clear();
        }
        Some(token)
    }

    /// Whether all tokens were taken and no more will arrive.
    pub(crate) fn is_over(&self) -> bool {
        self.state
            .lock()
            .map_or(true, |state| state.is_over && state.waiting.is_empty())
    }

    /// Returns a descriptor that is readable while a token waits or the inbox is closed. It is created at the
    /// first call.
    pub(crate) fn wakeup(&self) -> Result<BorrowedFd<'_>> {
        // Keep the lock, so that no token arrives between the check and the creation.
        let state = self.state.lock()?;
        let wakeup = if let Some(wakeup) = self.wakeup.get() {
            wakeup
        } else {
            let wakeup = Wakeup::new()?;
            if state.is_over || !state.waiting.is_empty() {
                wakeup.signal();
            }
            self.wakeup.get_or_init(|| wakeup)
        };
        drop(state);
        Ok(wakeup.as_fd())
    }

    /// Fails with [`Error::Closed`] in a forked child of the process that opened the inbox.
    pub(crate) fn check(&self) -> Result<()> {
        self.owner().check()
    }

    fn owner(&self) -> OwnerProcess {
        self.state.owner()
    }

    /// Returns the number of tokens that were dropped because the inbox was full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Returns the number of signals with this inbox's number that this process received and that were no
    /// token of any of its channels.
    pub(crate) fn strays(&self) -> u64 {
        strays(self.number)
    }
}

/// Delivers a token to its inbox, and returns whether the signal was one. Called on the signal thread.
fn deliver(received: &SignalInfo) -> bool {
    if received.code != libc::SI_QUEUE {
        return false;
    }
    let id = received.errno.cast_unsigned();
    let inbox = OPEN
        .existing()
        .and_then(|open| open.lock().by_id.get(&id).cloned());
    match inbox {
        Some(inbox) if inbox.secret == Secret(received.rest) => {
            inbox.push(received.value);
            true
        }
        _ => false,
    }
}

/// The data with which a process is sent a token for one of its channels.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TokenAddress {
    /// The number of the realtime signal. 0: this process receives no tokens.
    pub(crate) number: u32,
    pub(crate) thread: u32,
    /// The receiver's own number for the channel.
    pub(crate) mailbox: u32,
    pub(crate) reserved: u32,
    pub(crate) secret: Secret,
}

/// Bytes that only the two processes of a channel know.
#[repr(transparent)]
#[derive(Clone, Copy, Eq, Default)]
pub(crate) struct Secret(pub(crate) [u8; 16]);

impl PartialEq for Secret {
    /// Compares in constant time, independent of the position of the first difference.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A channel's ownership of its inbox. Dropping it closes the inbox.
pub(crate) struct OpenInbox {
    inbox: Arc<TokenInbox>,
    claim: Option<Arc<SignalClaim>>,
}

impl OpenInbox {
    /// Opens an inbox for signals of this number, or of an unused one. Fails as [`SignalClaim::with_delivery`] does.
    pub(crate) fn open(number: Option<i32>) -> Result<Self> {
        let claim = SignalClaim::with_delivery(number, deliver)?;
        let secret = sys::process::bytes().or_system("random bytes")?;
        Self::register(claim.number, Secret(secret), Some(Arc::new(claim)))
    }

    /// Returns the number of the signal that reaches this inbox.
    pub(crate) fn number(&self) -> i32 {
        self.inbox.number
    }

    /// Makes an inbox that no signal reaches, for tests that send none.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn unreachable() -> Self {
        Self::register(0, Secret([0; 16]), None).expect("memory")
    }

    fn register(number: i32, secret: Secret, claim: Option<Arc<SignalClaim>>) -> Result<Self> {
        let owner = OwnerProcess::current()?;
        let mut open = OPEN.get()?.lock();
        while open.next == 0 || open.by_id.contains_key(&open.next) {
            open.next = open.next.wrapping_add(1);
        }
        let id = open.next;
        let inbox = Arc::new(TokenInbox {
            number,
            id,
            secret,
            state: ProcessMutex::new(TokenQueue::default(), owner),
            dropped: AtomicU64::new(0),
            wakeup: OnceLock::new(),
        });
        open.by_id.insert(id, Arc::clone(&inbox));
        open.next = id.wrapping_add(1);
        drop(open);
        Ok(Self { inbox, claim })
    }

    pub(crate) fn inbox(&self) -> &Arc<TokenInbox> {
        &self.inbox
    }

    /// Returns the address that the peer needs to send tokens to this side.
    pub(crate) fn address(&self) -> TokenAddress {
        let TokenInbox { id, secret, .. } = &*self.inbox;
        // If signals lose the bytes of the secret on this system, the peer cannot send a valid token. Then
        // announce no address.
        let claim = self.claim.as_ref().filter(|claim| claim.carries_all);
        claim.map_or_else(TokenAddress::default, |claim| TokenAddress {
            number: claim.number.cast_unsigned(),
            thread: claim.thread.cast_unsigned(),
            mailbox: *id,
            reserved: 0,
            secret: *secret,
        })
    }

    /// Returns the claim that must catch up if the peer reports a different number of sent tokens than have
    /// arrived.
    pub(crate) fn lagging_claim(&self, sent: u64) -> Option<Arc<SignalClaim>> {
        let received = self.inbox.state.lock().ok()?.received;
        self.claim().filter(|_| received != sent)
    }

    /// Returns the claim that delivers tokens to this inbox.
    pub(crate) fn claim(&self) -> Option<Arc<SignalClaim>> {
        self.claim.clone()
    }
}

impl Drop for OpenInbox {
    fn drop(&mut self) {
        // In a forked child, the number may belong to another inbox.
        if let Some(open) = OPEN.existing().filter(|_| self.inbox.owner().is_current()) {
            open.lock().by_id.remove(&self.inbox.id);
            self.inbox.end();
        }
    }
}

/// The peer, as the destination of tokens.
#[derive(Debug)]
pub(crate) struct TokenSender {
    process: libc::pid_t,
    /// The default if the peer cannot be reached.
    pub(crate) address: TokenAddress,
    sent: u64,
}

impl TokenSender {
    /// Makes a sender. `process` is the peer's number as reported by the kernel, `address` is the peer's own
    /// statement.
    pub(crate) fn new(process: libc::pid_t, address: TokenAddress) -> Result<Self> {
        let TokenAddress { number, thread, .. } = address;
        // Each C library reserves some of the kernel's realtime signals, 32 to 64. Which ones is up to the
        // peer, so the whole range is valid.
        if number != 0 && (!(32..=64).contains(&number) || thread == 0 || thread > i32::MAX.cast_unsigned()) {
            return Err(Error::Protocol(format!(
                "an invalid address for tokens: signal {number}, thread {thread}"
            )));
        }
        Ok(Self {
            process,
            address,
            sent: 0,
        })
    }

    /// Sends a token, and returns the number of tokens sent so far. `is_there` checks whether the peer still
    /// has the channel, and so the thread.
    pub(crate) fn send(&mut self, token: u64, is_there: impl Fn() -> bool) -> Result<u64> {
        let Self { process, address, .. } = *self;
        if address.number == 0 {
            return Err(Error::unsupported(format!(
                "process {process} cannot receive tokens: its system loses part of a signal's data, or it \
                 lives in another pid namespace; send a message instead"
            )));
        }
        let info = SignalInfo {
            signal: address.number.cast_signed(),
            errno: address.mailbox.cast_signed(),
            code: libc::SI_QUEUE,
            value: token,
            rest: address.secret.0,
        };
        queue(process, address.thread.cast_signed(), &info, is_there).map_err(|errno| match errno {
            Errno::EAGAIN => Error::no_space(
                format!("a token to process {process}"),
                "the limit of queued signals for its user is reached \
                         (RLIMIT_SIGPENDING); send it again once the peer has taken some",
            ),
            Errno::ESRCH => Error::PeerLost("it is closing the channel, or has ended".into()),
            Errno::EPERM | Errno::EACCES => Error::Unsupported {
                what: format!(
                    "this process may not send process {process} a signal: that needs the same user or \
                     CAP_KILL (kill(2)), and a security module may forbid it; send a message instead"
                ),
                source: Some(errno.into()),
            },
            errno => Error::system("a token to the peer (rt_tgsigqueueinfo)", errno),
        })?;
        self.sent += 1;
        Ok(self.sent)
    }
}

/// Queues a signal to the peer's thread and to no other. That thread lives as long as the peer has the
/// channel. If the peer still has the channel after the thread was opened, then the descriptor refers to the
/// right thread, and never to a later one.
fn queue(
    process: libc::pid_t,
    thread: libc::pid_t,
    info: &SignalInfo,
    is_there: impl Fn() -> bool,
) -> Result<(), Errno> {
    match sys::process::pidfd_open_thread(thread) {
        Ok(pidfd) => {
            sys::signal::signal_thread(process, thread, 0)?;
            if !is_there() {
                return Err(Errno::ESRCH);
            }
            sys::signal::pidfd_signal(&pidfd, info.signal, Some(info))
        }
        Err(Errno::ESRCH) => Err(Errno::ESRCH),
        // Before Linux 6.9, or no descriptor is left. A wrong delivery would need both numbers to be reused
        // by one process in the moment since the peer was checked.
        Err(_) => sys::signal::queue_signal(process, thread, info),
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicBool, thread};

    use super::*;

    /// A number that no other test in this process claims.
    const NUMBER: i32 = 60;

    fn send(to: TokenAddress, token: u64) -> Result<u64> {
        TokenSender::new(nix::unistd::getpid().as_raw(), to)?.send(token, || true)
    }

    /// A signal is a token only if it carries the secret of its channel.
    #[test]
    fn signals_are_matched_by_inbox_and_secret() {
        let (one, other) = (
            OpenInbox::open(Some(NUMBER)).unwrap(),
            OpenInbox::open(Some(NUMBER)).unwrap(),
        );
        let (to_one, to_other) = (one.address(), other.address());
        let strays = one.inbox().strays();
        let mut secret = to_one.secret;
        secret.0[15] ^= 1;
        for wrong in [
            TokenAddress { secret, ..to_one },
            TokenAddress {
                mailbox: to_other.mailbox,
                ..to_one
            },
            TokenAddress { mailbox: 0, ..to_one },
        ] {
            send(wrong, 7).unwrap();
        }
        for token in [0, u64::MAX, 3] {
            send(to_one, token).unwrap();
        }
        send(to_other, 4).unwrap();
        one.lagging_claim(u64::MAX).unwrap().catch_up();
        assert!(one.lagging_claim(3).is_none() && other.lagging_claim(1).is_none());
        let taken = |open: &OpenInbox| std::iter::from_fn(|| open.inbox().pop()).collect::<Vec<_>>();
        assert_eq!(taken(&one), [0, u64::MAX, 3]);
        assert_eq!(taken(&other), [4]);
        assert_eq!(one.inbox().strays() - strays, 3);
        assert_eq!(one.inbox().dropped(), 0);
        let inbox = Arc::clone(one.inbox());
        assert!(!inbox.is_over());
        drop(one);
        assert!(inbox.is_over());
    }

    /// Channels open and close on other threads, and their use of a number must not count as the program's
    /// own use.
    #[test]
    fn number_used_only_by_channels_counts_as_free() {
        const OTHER: i32 = 61;
        let is_over = AtomicBool::new(false);
        let look = || {
            while !is_over.load(Ordering::Relaxed) {
                crate::signal::claim::check(Some(OTHER))?;
            }
            Ok::<_, Error>(())
        };
        thread::scope(|scope| {
            let looking = [scope.spawn(look), scope.spawn(look)];
            for _ in 0..2000 {
                drop(OpenInbox::open(Some(OTHER)).unwrap());
            }
            is_over.store(true, Ordering::Relaxed);
            for thread in looking {
                thread.join().unwrap().unwrap();
            }
        });
        assert_eq!(
            sys::signal::disposition_of(OTHER).unwrap().sa_sigaction,
            libc::SIG_DFL
        );
    }

    #[test]
    fn full_inbox_drops_and_counts_tokens() {
        let open = OpenInbox::unreachable();
        let inbox = open.inbox();
        for token in 0..MAX_WAITING as u64 + 3 {
            inbox.push(token);
        }
        assert_eq!(inbox.dropped(), 3);
        let mut wanted = 0;
        while let Some(token) = inbox.pop() {
            assert_eq!(token, wanted);
            wanted += 1;
        }
        assert_eq!(wanted, MAX_WAITING as u64);
    }

    #[test]
    fn descriptor_is_readable_with_a_token_and_at_the_end() {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let open = OpenInbox::unreachable();
        let inbox = Arc::clone(open.inbox());
        let readable = || {
            let mut polled = [PollFd::new(inbox.wakeup().unwrap(), PollFlags::POLLIN)];
            poll(&mut polled, PollTimeout::ZERO).unwrap() == 1
        };
        inbox.push(1);
        // The descriptor is created while a token already waits.
        assert!(readable());
        inbox.push(2);
        assert_eq!(inbox.pop(), Some(1));
        assert!(readable());
        assert_eq!(inbox.pop(), Some(2));
        assert!(!readable());
        inbox.push(3);
        assert!(readable());
        drop(open);
        assert_eq!(inbox.pop(), Some(3));
        assert!(readable() && inbox.is_over());
    }

    #[test]
    fn invalid_token_address_is_a_protocol_violation() {
        let good = TokenAddress {
            number: 34,
            thread: 1,
            mailbox: 1,
            reserved: 0,
            secret: Secret([1; 16]),
        };
        assert!(TokenSender::new(1, good).is_ok());
        for number in [1, 9, 31, 65, u32::MAX] {
            let error = TokenSender::new(1, TokenAddress { number, ..good }).unwrap_err();
            assert_eq!(error.code(), "PROTOCOL", "{number}");
        }
        for thread in [0, 1 << 31] {
            assert!(TokenSender::new(1, TokenAddress { thread, ..good }).is_err());
        }
        let refused = TokenSender::new(1, TokenAddress::default())
            .unwrap()
            .send(1, || true);
        assert_eq!(refused.unwrap_err().code(), "UNSUPPORTED");
    }
}
