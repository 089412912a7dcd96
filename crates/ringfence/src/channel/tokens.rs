//! Tokens to and from a channel's peer, on any thread.

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

/// 64-bit numbers exchanged with a channel's peer outside of its messages, each as a realtime signal. Clones
/// share the received tokens. Does not keep the channel open.
///
/// The kernel queues a token: it does not depend on what the peer has read, and arrives even if the rings are
/// full. A token that was sent is received, unless the peer ends or closes first, or leaves 65,536 tokens
/// unread.
///
/// Any process that may send this one a signal could forge a token. So each is matched with a secret that was
/// exchanged over the private line: see [`Tokens::strays`]. Tokens arrive in the order in which they were
/// sent. They have no order relative to the channel's messages.
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
#[derive(Clone)]
pub struct Tokens {
    shared: Weak<Shared>,
    /// Weak, since a `Doorbell` holds the line open.
    doorbell: Weak<Doorbell>,
    inbox: Arc<TokenInbox>,
}

opaque! { [] Tokens; }

impl Tokens {
    pub(crate) fn new(shared: &Arc<Shared>, inbox: Arc<TokenInbox>) -> Self {
        Self {
            shared: Arc::downgrade(shared),
            doorbell: Arc::downgrade(&shared.doorbell),
            inbox,
        }
    }

    /// Sends the peer a token. Never blocks. The token is in the peer's signal queue when this returns.
    ///
    /// # Errors
    /// - [`Error::NoSpace`] if that queue is full (`RLIMIT_SIGPENDING` of the peer, setrlimit(2): shared by
    ///   all processes of its user).
    /// - [`Error::Unsupported`] if this process may not send the peer a signal (a process of another user,
    ///   without `CAP_KILL`, kill(2)), or if the peer's system does not deliver the signal's full data.
    /// - [`Error::PeerLost`] once the peer has gone.
    /// - [`Error::Closed`] after this side's close.
    /// - As [`Sender::try_send`](crate::Sender::try_send) if the channel has ended in another way.
    pub fn send(&self, token: u64) -> Result<()> {
        self.shared
            .upgrade()
            .ok_or(Error::Closed("the channel is closed"))?
            .send_token(token)
    }

    /// Returns the next token, if one has arrived. `None`: not yet, or never again (see
    /// [`Tokens::is_ended`]).
    pub fn try_token(&self) -> Option<u64> {
        self.inbox.pop()
    }

    /// Returns the next token, and sleeps until there is one. `None`: the channel has ended, and all tokens
    /// were taken.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if there is no descriptor to wait with.
    pub fn token(&self) -> Result<Option<u64>> {
        self.wait(None)
    }

    /// As [`Tokens::token`], but fails with [`Error::TimedOut`] at the deadline. No token is lost by that.
    pub fn token_until(&self, deadline: Instant) -> Result<Option<u64>> {
        self.wait(Some(deadline))
    }

    fn wait(&self, deadline: Option<Instant>) -> Result<Option<u64>> {
        self.inbox.check()?;
        loop {
            let Some(doorbell) = self.doorbell.upgrade() else {
                // The channel was dropped: no more tokens arrive.
                return Ok(self.try_token());
            };
            // Poll the line here: it may be that no other thread does.
            let was_gone = doorbell.is_gone();
            let shared = self.shared.upgrade();
            if was_gone && let Some(shared) = &shared {
                shared.end_if_gone();
            }
            // The program's callback for the end runs before waiting calls are notified, and may itself wait
            // here.
            let has_ended = shared.is_none_or(|shared| shared.check().is_err());
            if let Some(token) = self.try_token() {
                return Ok(Some(token));
            }
            if has_ended || self.is_ended() {
                return Ok(None);
            }
            let wakeup = self.inbox.wakeup()?;
            let woken = if was_gone {
                // Whatever ends the channel triggers the wakeup.
                doorbell::wait_for_last_token(wakeup, deadline)?
            } else {
                // Another thread may have seen in the meantime that the peer is gone, without notifying
                // anyone yet. The line still reports it.
                doorbell.wait_for_token(wakeup, deadline)?
            };
            if !woken {
                return Err(Error::TimedOut);
            }
        }
    }

    /// Whether the channel has ended and all tokens were taken.
    pub fn is_ended(&self) -> bool {
        self.inbox.is_over()
    }

    /// Returns a descriptor (eventfd(2)) that is readable while there is a token to take, or once no more
    /// will arrive. It is meant for event loops, which must not read it. Created on first use. The thread
    /// that polls the line notices the end of a peer.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if descriptors have run out.
    pub fn bell(&self) -> Result<BorrowedFd<'_>> {
        self.inbox.wakeup()
    }

    /// Returns the number of this channel's tokens that were dropped because 65,536 tokens already waited for
    /// the program.
    pub fn dropped(&self) -> u64 {
        self.inbox.dropped()
    }

    /// Returns the number of stray signals with this channel's number
    /// ([`Options::realtime_signal`](crate::Options::realtime_signal)): signals that were a token of none of this
    /// process's channels, since the process started. Their sender forged them, or took a channel for open
    /// that had ended.
    pub fn strays(&self) -> u64 {
        self.inbox.strays()
    }
}

impl Shared {
    /// Sends the peer a token.
    pub(crate) fn send_token(&self, token: u64) -> Result<()> {
        let doorbell = &self.doorbell;
        let is_connected = || {
            doorbell.check_peer();
            !doorbell.is_gone()
        };
        if !is_connected() {
            self.end_if_gone();
        }
        self.check()?;
        // The guard keeps this side from ending, so that the word with the token count can be written.
        let mut guard = self.resources.lock()?;
        let Some(resources) = guard.as_mut().filter(|resources| !resources.has_left()) else {
            drop(guard);
            return self.check();
        };
        match resources.token_sender.send(token, is_connected) {
            Ok(sent) => {
                resources.own.store(layout::TOKENS, sent, Ordering::Release);
                Ok(())
            }
            Err(error) => {
                drop(guard);
                // The check may have found that the peer is gone.
                self.end_if_gone();
                Err(error)
            }
        }
    }

    /// Receives all tokens that the peer has announced. Runs before any end is reported: the peer announces
    /// none after it has set how it ends.
    pub(crate) fn drain_tokens(&self) {
        self.drain_tokens_with(|Resources { inbox, peer, .. }| {
            inbox.lagging_claim(peer.load(layout::TOKENS, Ordering::Acquire))
        });
    }

    /// As [`Shared::drain_tokens`], but also receives tokens that were sent and not announced.
    pub(super) fn drain_unannounced_tokens(&self) {
        self.drain_tokens_with(|resources| resources.inbox.claim());
    }

    fn drain_tokens_with(&self, late: impl FnOnce(&mut Resources) -> Option<Arc<SignalClaim>>) {
        // Without the lock, as in `end`.
        if let Some(claim) = self.with_resources(late).flatten() {
            claim.catch_up();
        }
    }
}
