//! Tokens to a channel's peer, and from it, on any thread.

use std::{
    os::fd::BorrowedFd,
    sync::{Arc, Weak, atomic::Ordering},
    time::Instant,
};

use crate::{
    channel::end::{Resources, Shared},
    error::{Error, Result},
    region::copy::{Readable, Writable},
    region::layout,
    signal::claim::SignalClaim,
    signal::inbox::TokenInbox,
    wake::doorbell::{self, Doorbell},
};

/// Numbers of 64 bits that go to a channel's peer beside its messages, as a realtime signal each, and those that come from
/// it. Clones share what has come. Does not keep the channel open.
///
/// A token is queued in the kernel: there is nothing that a peer has to read first, and it comes however full the rings
/// are. One that was sent is received, unless the peer ends or closes before, or lets 65,536 lie.
///
/// What comes is matched with a secret that the private line has carried, since every process that may send this one a
/// signal could make one up: see [`Tokens::strays`]. Tokens come in the order in which they were sent. They have no order with
/// the channel's messages.
///
/// ```no_run
/// # fn main() -> ringfence::Result<()> {
/// # let address: ringfence::Address = "@prices".parse()?;
/// # let channel = ringfence::join(&address, &ringfence::Options::new())?;
/// let tokens = channel.tokens();
/// tokens.send(7)?;
/// while let Some(token) = tokens.token()? {
///     println!("token {token}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Tokens {
    shared: Weak<Shared>,
    /// Weak, since it holds the line open.
    doorbell: Weak<Doorbell>,
    inbox: Arc<TokenInbox>,
}

impl Tokens {
    pub(crate) fn new(shared: &Arc<Shared>, inbox: Arc<TokenInbox>) -> Self {
        Self {
            shared: Arc::downgrade(shared),
            doorbell: Arc::downgrade(&shared.doorbell),
            inbox,
        }
    }

    /// Sends the peer a token; never blocks. It has arrived in the peer's queue of signals when this returns.
    ///
    /// # Errors
    /// [`Error::NoSpace`] where that queue is full (`RLIMIT_SIGPENDING` of the peer, setrlimit(2): of all processes of its user
    /// together). [`Error::Unsupported`] where this process may not send the peer a signal (a process of another user, without
    /// `CAP_KILL`, kill(2)), or the peer's system does not hand on all that comes with one. [`Error::PeerLost`] once the peer has
    /// gone; [`Error::Closed`] after this side's close; as [`Sender::try_send`](crate::Sender::try_send) where the channel has
    /// ended otherwise.
    pub fn send(&self, token: u64) -> Result<()> {
        self.shared
            .upgrade()
            .ok_or(Error::Closed("the channel is closed"))?
            .send_token(token)
    }

    /// The next token, if one has come. `None`: not now, or no more will come (see [`Tokens::is_ended`]).
    pub fn try_token(&self) -> Option<u64> {
        self.inbox.pop()
    }

    /// The next token; sleeps until there is one. `None`: the channel has ended, and all were taken.
    ///
    /// # Errors
    /// [`Error::NoSpace`] where there is no descriptor to wait with.
    pub fn token(&self) -> Result<Option<u64>> {
        self.wait(None)
    }

    /// As [`Tokens::token`], up to a deadline, when it errors with [`Error::TimedOut`]. Nothing is lost by that.
    pub fn token_until(&self, deadline: Instant) -> Result<Option<u64>> {
        self.wait(Some(deadline))
    }

    fn wait(&self, deadline: Option<Instant>) -> Result<Option<u64>> {
        self.inbox.check()?;
        loop {
            let Some(doorbell) = self.doorbell.upgrade() else {
                // The channel was let go of: nothing more comes.
                return Ok(self.try_token());
            };
            // Perhaps no other thread looks at the line.
            let seen_gone = doorbell.is_gone();
            let shared = self.shared.upgrade();
            if seen_gone && let Some(shared) = &shared {
                shared.notice();
            }
            // The program's subscriber is told of an end before those who wait are, and may wait here itself.
            let has_ended = shared.is_none_or(|shared| shared.check().is_err());
            if let Some(token) = self.try_token() {
                return Ok(Some(token));
            }
            if has_ended || self.is_ended() {
                return Ok(None);
            }
            let bell = self.inbox.wakeup()?;
            let woken = if seen_gone {
                // What has ended the channel, or ends it now, rings.
                doorbell::wait_for(bell, deadline)?
            } else {
                // Another thread may have seen meanwhile that the peer is gone, and have told nobody yet: the line says so still.
                doorbell.wait_beside(bell, deadline)?
            };
            if !woken {
                return Err(Error::TimedOut);
            }
        }
    }

    /// No more will come, and all were taken.
    pub fn is_ended(&self) -> bool {
        self.inbox.is_over()
    }

    /// A descriptor (eventfd(2)) that is readable while there is a token to take, or no more will come: for event loops,
    /// which must not read it. Made when it is first asked for. The end of a peer is noticed by the thread that looks at the line.
    ///
    /// # Errors
    /// [`Error::NoSpace`] where descriptors have run out.
    pub fn bell(&self) -> Result<BorrowedFd<'_>> {
        self.inbox.wakeup()
    }

    /// How many tokens of this channel were dropped, since 65,536 that the program had not taken lay here already.
    pub fn dropped(&self) -> u64 {
        self.inbox.dropped()
    }

    /// How many signals of this channel's number ([`Options::signal_number`](crate::Options::signal_number)) this process
    /// has been sent, since it began, that were no token of any of its channels: a process made them up, or took a channel for
    /// open that had ended.
    pub fn strays(&self) -> u64 {
        self.inbox.strays()
    }
}

impl Shared {
    /// Sends the peer a token.
    pub(crate) fn send_token(&self, token: u64) -> Result<()> {
        let doorbell = &self.doorbell;
        let is_there = || {
            doorbell.look();
            !doorbell.is_gone()
        };
        if !is_there() {
            self.notice();
        }
        self.check()?;
        // This side does not end meanwhile, so that the word of how many there are is there to be written.
        let mut guard = self.held()?;
        let Some(held) = guard.as_mut().filter(|held| !held.has_left()) else {
            drop(guard);
            return self.check();
        };
        match held.token_sender.send(token, is_there) {
            Ok(sent) => {
                held.own.store(layout::TOKENS, sent, Ordering::Release);
                Ok(())
            }
            Err(error) => {
                drop(guard);
                // The look may have found that the peer is gone.
                self.notice();
                Err(error)
            }
        }
    }

    /// What the peer has announced has come when this returns. Before any end is told: the peer announces nothing after it
    /// has said how it ends.
    pub(crate) fn hear_out(&self) {
        self.catch_up_with(|Resources { inbox, peer, .. }| {
            inbox.lags_behind(peer.load(layout::TOKENS, Ordering::Acquire))
        });
    }

    /// As [`Shared::hear_out`], also what was sent and not announced.
    pub(super) fn hear_all(&self) {
        self.catch_up_with(|held| held.inbox.claim());
    }

    fn catch_up_with(&self, late: impl FnOnce(&Resources) -> Option<Arc<SignalClaim>>) {
        let Ok(held) = self.held() else { return };
        let late = held.as_ref().and_then(late);
        // As in `finish`.
        drop(held);
        if let Some(claim) = late {
            claim.catch_up();
        }
    }
}
