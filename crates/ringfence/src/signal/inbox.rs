//! Tokens, 64 bits each, carried by realtime signals: where a channel's arrive, and how its peer is sent one.
//!
//! Every process that may send a process signals can make one up, its sender's pid and uid included. So each side gives its peer, on
//! the private line, a secret that a signal must carry: what carries another is counted and dropped. The kernel does not
//! look at the bytes that the secret lies in, and hands them on.

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
    error::{Error, Result},
    fork::{Birth, PerProcess, leave_torn},
    signal::claim::{Claim, Handler, strays},
    sys::lock::{Mutex, MutexGuard},
    sys::{self, signal::SignalInfo},
    wait::cancel::Bell,
};

/// Tokens that wait for a program that does not take them.
const MOST: usize = 65_536;

/// Where the tokens of one channel arrive. Outlives the channel where a caller still takes them.
#[derive(Debug)]
pub(crate) struct TokenInbox {
    number: i32,
    /// Its number in this process.
    id: u32,
    secret: Secret,
    state: Mutex<State>,
    /// How many came that found no room.
    dropped: AtomicU64,
    /// Rung while there is something to take, or no more will come.
    bell: OnceLock<Bell>,
    /// A child takes no tokens of its parent's.
    birth: Birth,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<u64>,
    /// How many have come, those that found no room included.
    heard: u64,
    /// No more will come.
    over: bool,
}

/// all inboxes that are open, by number.
struct Open {
    boxes: BTreeMap<u32, Arc<TokenInbox>>,
    next: u32,
}

impl Default for Open {
    fn default() -> Self {
        Self {
            boxes: BTreeMap::new(),
            next: 1,
        }
    }
}

static OPEN: PerProcess<Mutex<Open>> = PerProcess::new();

impl TokenInbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn put(&self, token: u64) {
        let mut state = self.state();
        state.heard += 1;
        if state.waiting.len() >= MOST {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.waiting.push_back(token);
        if let (1, Some(bell)) = (state.waiting.len(), self.bell.get()) {
            bell.ring();
        }
    }

    fn end(&self) {
        let mut state = self.state();
        state.over = true;
        if let Some(bell) = self.bell.get() {
            bell.ring();
        }
    }

    /// The next token that has come and was not taken yet.
    pub(crate) fn take(&self) -> Option<u64> {
        if !self.birth.is_here() {
            return None;
        }
        let mut state = self.state();
        let token = state.waiting.pop_front()?;
        if let (true, false, Some(bell)) = (state.waiting.is_empty(), state.over, self.bell.get()) {
            bell.hush();
        }
        Some(token)
    }

    /// No more will come, and all were taken.
    pub(crate) fn is_over(&self) -> bool {
        if !self.birth.is_here() {
            return true;
        }
        let state = self.state();
        state.over && state.waiting.is_empty()
    }

    /// Readable while there is something to take, or no more will come. Made when it is first asked for.
    pub(crate) fn bell(&self) -> Result<BorrowedFd<'_>> {
        self.birth.check()?;
        // What comes meanwhile must not miss it.
        let state = self.state();
        let bell = if let Some(bell) = self.bell.get() {
            bell
        } else {
            let bell = Bell::new()?;
            if state.over || !state.waiting.is_empty() {
                bell.ring();
            }
            self.bell.get_or_init(|| bell)
        };
        drop(state);
        Ok(bell.as_fd())
    }

    /// Errors with [`Error::Closed`] in a child of the process whose it is.
    pub(crate) fn check(&self) -> Result<()> {
        self.birth.check()
    }

    /// How many found no room.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// How many signals of this one's number came to this process that were no token of any of its channels.
    pub(crate) fn strays(&self) -> u64 {
        strays(self.number)
    }
}

impl Drop for TokenInbox {
    fn drop(&mut self) {
        if !self.birth.is_here() {
            leave_torn(&mut self.state);
        }
    }
}

/// On the thread of a number: whether what it has heard is a token of a channel of this process.
fn deliver(heard: &SignalInfo) -> bool {
    if heard.code != libc::SI_QUEUE {
        return false;
    }
    let id = heard.errno.cast_unsigned();
    let inbox = OPEN
        .existing()
        .and_then(|open| open.lock().boxes.get(&id).cloned());
    match inbox {
        Some(inbox) if inbox.secret == Secret(heard.rest) => {
            inbox.put(heard.value);
            true
        }
        _ => false,
    }
}

/// How a process is sent a token for one of its channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TokenAddress {
    /// Of the realtime signal; 0: it takes no tokens.
    pub(crate) number: u32,
    pub(crate) thread: u32,
    /// Its own number for the channel.
    pub(crate) mailbox: u32,
    pub(crate) secret: Secret,
}

/// Bytes that only the two processes of a channel know.
#[derive(Clone, Copy, Eq, Default)]
pub(crate) struct Secret(pub(crate) [u8; 16]);

impl PartialEq for Secret {
    /// Takes the same time wherever the first difference is.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A channel's hold on its inbox, which is closed when this goes.
#[derive(Debug)]
pub(crate) struct OpenInbox {
    inbox: Arc<TokenInbox>,
    claim: Option<Arc<Claim>>,
}

impl OpenInbox {
    /// Opens an inbox for what comes by signals of this number, or of one that is free. Errors as [`Claim::new`].
    pub(crate) fn open(number: Option<i32>) -> Result<Self> {
        let claim = Claim::new(number, Handler::Queued(deliver))?;
        let secret = sys::random::bytes().map_err(|errno| Error::system("random bytes", errno))?;
        Self::register(claim.number, Secret(secret), Some(Arc::new(claim)))
    }

    /// The number by which this process is told.
    pub(crate) fn number(&self) -> i32 {
        self.inbox.number
    }

    /// An inbox that no signal reaches, for what sends none.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn unreachable() -> Self {
        Self::register(0, Secret([0; 16]), None).expect("memory")
    }

    fn register(number: i32, secret: Secret, claim: Option<Arc<Claim>>) -> Result<Self> {
        let birth = Birth::now()?;
        let mut open = OPEN.get()?.lock();
        while open.next == 0 || open.boxes.contains_key(&open.next) {
            open.next = open.next.wrapping_add(1);
        }
        let id = open.next;
        let inbox = Arc::new(TokenInbox {
            number,
            id,
            secret,
            state: Mutex::default(),
            dropped: AtomicU64::new(0),
            bell: OnceLock::new(),
            birth,
        });
        open.boxes.insert(id, Arc::clone(&inbox));
        open.next = id.wrapping_add(1);
        drop(open);
        Ok(Self { inbox, claim })
    }

    pub(crate) fn inbox(&self) -> &Arc<TokenInbox> {
        &self.inbox
    }

    /// What the peer must know to send this side a token.
    pub(crate) fn address(&self) -> TokenAddress {
        let TokenInbox { id, secret, .. } = &*self.inbox;
        // A signal without the secret would be one that the peer does not believe.
        let claim = self.claim.as_ref().filter(|claim| claim.carries_all);
        claim.map_or_else(TokenAddress::default, |claim| TokenAddress {
            number: claim.number.cast_unsigned(),
            thread: claim.thread.cast_unsigned(),
            mailbox: *id,
            secret: *secret,
        })
    }

    /// What must catch up, where the peer says that it has sent another number of tokens than has come.
    pub(crate) fn lags_behind(&self, sent: u64) -> Option<Arc<Claim>> {
        let heard = self.inbox.state().heard;
        self.claim().filter(|_| heard != sent)
    }

    /// What brings this inbox its tokens.
    pub(crate) fn claim(&self) -> Option<Arc<Claim>> {
        self.claim.clone()
    }
}

impl Drop for OpenInbox {
    fn drop(&mut self) {
        // In a child the number may be another inbox's.
        if let Some(open) = OPEN.existing().filter(|_| self.inbox.birth.is_here()) {
            open.lock().boxes.remove(&self.inbox.id);
            self.inbox.end();
        }
    }
}

/// The peer, as the senders of its tokens know it.
#[derive(Debug)]
pub(crate) struct TokenSender {
    process: libc::pid_t,
    address: TokenAddress,
    sent: u64,
}

impl TokenSender {
    /// `process` is the one that the kernel names at the other end, `address` what that says of itself.
    pub(crate) fn new(process: libc::pid_t, address: TokenAddress) -> Result<Self> {
        let TokenAddress { number, thread, .. } = address;
        // Every C library keeps some of the kernel's realtime signals, 32 to 64, for itself: which ones is the peer's affair.
        if number != 0 && (!(32..=64).contains(&number) || thread == 0 || thread > i32::MAX.cast_unsigned()) {
            return Err(Error::Protocol(format!(
                "tokens by signal {number} at thread {thread}"
            )));
        }
        Ok(Self {
            process,
            address,
            sent: 0,
        })
    }

    /// One that cannot be sent tokens, whatever it says of itself.
    pub(crate) fn out_of_reach(mut self) -> Self {
        self.address = TokenAddress::default();
        self
    }

    /// Sends a token, and returns how many have been sent. `is_there` looks whether the peer has the channel still, and with
    /// that the thread.
    pub(crate) fn send(&mut self, token: u64, is_there: impl Fn() -> bool) -> Result<u64> {
        let Self { process, address, .. } = *self;
        let TokenAddress {
            number,
            thread,
            mailbox,
            secret,
        } = address;
        if number == 0 {
            return Err(Error::Unsupported {
                what: format!(
                    "process {process} cannot be sent a token: its system does not hand on all that comes with a signal, or it \
                     lives in another pid namespace; send a message instead"
                ),
                source: None,
            });
        }
        let info = SignalInfo {
            signal: number.cast_signed(),
            errno: mailbox.cast_signed(),
            code: libc::SI_QUEUE,
            value: token,
            rest: secret.0,
        };
        queue(process, thread.cast_signed(), &info, is_there).map_err(|errno| match errno {
            Errno::EAGAIN => Error::NoSpace {
                what: format!("a token to process {process}"),
                reason: "as many signals are queued to processes of its user as its limit allows \
                         (RLIMIT_SIGPENDING); there is room again once it takes some"
                    .into(),
            },
            Errno::ESRCH => Error::PeerLost("it is closing the channel, or has ended".into()),
            Errno::EPERM | Errno::EACCES => Error::Unsupported {
                what: format!(
                    "this process may not send process {process} a signal: that takes a process of the same user, or \
                     CAP_KILL (kill(2)), and no security module that forbids it; send a message instead"
                ),
                source: Some(errno.into()),
            },
            errno => Error::system("a token to the peer (rt_tgsigqueueinfo)", errno),
        })?;
        self.sent += 1;
        Ok(self.sent)
    }
}

/// Queues a signal to the peer's thread and to no other. The thread lives as long as the peer has the channel: if it has
/// that after a descriptor of the thread was had, the descriptor is the right thread's, and never names another.
fn queue(
    process: libc::pid_t,
    thread: libc::pid_t,
    info: &SignalInfo,
    is_there: impl Fn() -> bool,
) -> Result<(), Errno> {
    match sys::process::pidfd_open_thread(thread) {
        Ok(held) => {
            sys::signal::may_signal(process, thread)?;
            if !is_there() {
                return Err(Errno::ESRCH);
            }
            sys::signal::pidfd_queue_signal(&held, info)
        }
        Err(Errno::ESRCH) => Err(Errno::ESRCH),
        // Before Linux 6.9, or no descriptor left. Both numbers would have to be another's by now, of one process, within the
        // moment since the peer was looked at.
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

    /// What comes with the right secret is a token of the right channel, and nothing else is.
    #[test]
    fn a_signal_is_matched_by_inbox_and_secret() {
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
        one.lags_behind(u64::MAX).unwrap().catch_up();
        assert!(one.lags_behind(3).is_none() && other.lags_behind(1).is_none());
        let taken = |open: &OpenInbox| std::iter::from_fn(|| open.inbox().take()).collect::<Vec<_>>();
        assert_eq!(taken(&one), [0, u64::MAX, 3]);
        assert_eq!(taken(&other), [4]);
        assert_eq!(one.inbox().strays() - strays, 3);
        assert_eq!(one.inbox().dropped(), 0);
        let inbox = Arc::clone(one.inbox());
        assert!(!inbox.is_over());
        drop(one);
        assert!(inbox.is_over());
    }

    /// Channels come and go on other threads, and what they do with the number is no use of the program's own.
    #[test]
    fn a_number_that_is_claimed_and_given_back_meanwhile_is_free() {
        const OTHER: i32 = 61;
        let over = AtomicBool::new(false);
        let look = || {
            while !over.load(Ordering::Relaxed) {
                crate::signal::claim::check(Some(OTHER))?;
            }
            Ok::<_, Error>(())
        };
        thread::scope(|scope| {
            let looking = [scope.spawn(look), scope.spawn(look)];
            for _ in 0..2000 {
                drop(OpenInbox::open(Some(OTHER)).unwrap());
            }
            over.store(true, Ordering::Relaxed);
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
    fn an_inbox_that_is_full_drops_what_comes_and_counts_it() {
        let open = OpenInbox::unreachable();
        let inbox = open.inbox();
        for token in 0..MOST as u64 + 3 {
            inbox.put(token);
        }
        assert_eq!(inbox.dropped(), 3);
        let mut wanted = 0;
        while let Some(token) = inbox.take() {
            assert_eq!(token, wanted);
            wanted += 1;
        }
        assert_eq!(wanted, MOST as u64);
    }

    #[test]
    fn the_bell_is_readable_while_there_is_something_to_take_and_at_the_end() {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let open = OpenInbox::unreachable();
        let inbox = Arc::clone(open.inbox());
        let readable = || {
            let mut polled = [PollFd::new(inbox.bell().unwrap(), PollFlags::POLLIN)];
            poll(&mut polled, PollTimeout::ZERO).unwrap() == 1
        };
        inbox.put(1);
        // Made when something is there already.
        assert!(readable());
        inbox.put(2);
        assert_eq!(inbox.take(), Some(1));
        assert!(readable());
        assert_eq!(inbox.take(), Some(2));
        assert!(!readable());
        inbox.put(3);
        assert!(readable());
        drop(open);
        assert_eq!(inbox.take(), Some(3));
        assert!(readable() && inbox.is_over());
    }

    #[test]
    fn an_address_that_no_thread_can_have_is_a_violation() {
        let good = TokenAddress {
            number: 34,
            thread: 1,
            mailbox: 1,
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
