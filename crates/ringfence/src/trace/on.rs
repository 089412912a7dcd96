//! The feature is on.

use std::{
    fmt::Display,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use tracing::{Level, Span, debug_span, event, field::Empty, span::Entered};

use crate::{
    error::Error,
    identity::{Credentials, Identity},
};

const HANDSHAKE: &str = "ringfence::handshake";
const CHANNEL: &str = "ringfence::channel";
const REFUSED: &str = "ringfence::refused";
const EVICTED: &str = "ringfence::evicted";

/// Tells the subscriber. Its panic was told where it happened.
fn tell(told: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(told));
}

/// One handshake: what is told meanwhile is told within it.
///
/// The subscriber is called also where a span is copied, entered, left and let go of. A panic there is not heard by the handshake.
#[derive(Debug)]
pub(crate) struct Handshake(Option<Span>);

impl Handshake {
    pub(crate) fn begin(address: &impl Display, role: &'static str, who: Option<Credentials>) -> Self {
        let begun = catch_unwind(AssertUnwindSafe(|| {
            let span = debug_span!(target: HANDSHAKE, "handshake", %address, role, peer_pid = Empty, peer_uid = Empty);
            if let Some(who) = who {
                span.record("peer_pid", who.pid).record("peer_uid", who.uid);
            }
            span
        }));
        Self(begun.ok())
    }

    pub(crate) fn within<T>(&self, deed: impl FnOnce() -> T) -> T {
        let _entered = Within::enter(self.0.as_ref());
        deed()
    }
}

impl Clone for Handshake {
    fn clone(&self) -> Self {
        Self(catch_unwind(AssertUnwindSafe(|| self.0.clone())).unwrap_or_default())
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let span = self.0.take();
        tell(|| drop(span));
    }
}

/// Within a span, as long as this lives.
struct Within<'span>(Option<Entered<'span>>);

impl<'span> Within<'span> {
    fn enter(span: Option<&'span Span>) -> Self {
        Self(catch_unwind(AssertUnwindSafe(|| span.map(Span::enter))).unwrap_or_default())
    }
}

impl Drop for Within<'_> {
    fn drop(&mut self) {
        let entered = self.0.take();
        tell(|| drop(entered));
    }
}

/// A check was made, and has not failed.
pub(crate) fn step(step: &str, check: &str, wanted: &str, found: &str, outcome: &str) {
    tell(|| event!(target: HANDSHAKE, Level::DEBUG, step, check, wanted, found, outcome));
}

/// A process came, or was come to, and there is no channel.
pub(crate) fn refused(
    address: &impl Display,
    role: &'static str,
    error: &Error,
    identity: Option<&Identity>,
) {
    let refusal = error.refusal();
    let identity = refusal.and_then(|refusal| refusal.identity.as_ref()).or(identity);
    let executable = identity.and_then(|identity| identity.executable.as_ref());
    // As a text: a subscriber that prints lines has quotes around it, and nothing in it begins another one.
    let executable = executable.map(|executable| executable.path.to_string_lossy());
    tell(|| {
        event!(
            target: REFUSED,
            Level::WARN,
            %address,
            role,
            code = error.code(),
            %error,
            peer_pid = identity.map(|identity| identity.pid),
            peer_uid = identity.map(|identity| identity.uid),
            peer_gid = identity.map(|identity| identity.gid),
            executable = executable.as_deref(),
            check = refusal.map(|refusal| refusal.check.as_str()),
            wanted = refusal.map(|refusal| refusal.wanted.as_str()),
            found = refusal.map(|refusal| refusal.found.as_str()),
            by_peer = refusal.map(|refusal| refusal.by_peer),
            "a process got no channel"
        );
    });
}

/// Whom a channel is with, and where they met. Plain data: a span would end in a forked child as well.
#[derive(Debug, Clone)]
pub(crate) struct Tie {
    address: String,
    pid: i32,
    uid: u32,
    gid: u32,
}

impl Tie {
    pub(crate) fn with(address: &str, peer: &Identity) -> Self {
        Self {
            address: address.to_owned(),
            pid: peer.pid,
            uid: peer.uid,
            gid: peer.gid,
        }
    }

    pub(crate) fn opened(&self, role: &impl Display) {
        let Self {
            address, pid, uid, ..
        } = self;
        tell(|| event!(target: CHANNEL, Level::INFO, address, peer_pid = pid, peer_uid = uid, %role, "open"));
    }

    pub(crate) fn closed(&self, reason: &impl Display) {
        let Self {
            address, pid, uid, ..
        } = self;
        tell(
            || event!(target: CHANNEL, Level::INFO, address, peer_pid = pid, peer_uid = uid, %reason, "closed"),
        );
    }

    /// A later look at the peer has failed.
    pub(crate) fn refused(&self, error: &Error) {
        let Self { pid, uid, gid, .. } = *self;
        let peer = Identity::of(Credentials { pid, uid, gid });
        refused(&self.address, "peer", error, Some(&peer));
    }

    /// It has held its publisher up for longer than `stall`.
    pub(crate) fn evicted(&self, lag: u64, stall: Duration) {
        let Self {
            address, pid, uid, ..
        } = self;
        let stall_millis = u64::try_from(stall.as_millis()).unwrap_or(u64::MAX);
        tell(|| {
            event!(
                target: EVICTED, Level::WARN, address, peer_pid = pid, peer_uid = uid, lag, stall_millis,
                "a subscriber was too slow"
            );
        });
    }
}
