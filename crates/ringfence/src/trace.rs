//! Events and spans for subscribers of the crate `tracing`: a feature, off by default.
//!
//! Without the feature, the same names exist and do nothing. With it, there are:
//!
//! | target | level | what | fields |
//! | --- | --- | --- | --- |
//! | `ringfence::handshake` | DEBUG | the span `handshake`, one per handshake | `address`, `role`, and at a host `peer_pid`, `peer_uid` |
//! | `ringfence::handshake` | DEBUG | each check, as it is made | `step`, `check`, `wanted`, `found`, `outcome` |
//! | `ringfence::channel` | INFO | `open`, `closed` | `address`, `peer_pid`, `peer_uid`; `role`; `reason` |
//! | `ringfence::refused` | WARN | a process got no channel | `address`, `role`, `code`, `error`; of a known process `peer_pid`, `peer_uid`, `peer_gid`, `executable`; of a check `check`, `wanted`, `found`, `by_peer` |
//! | `ringfence::evicted` | WARN | a subscriber was too slow | `address`, `peer_pid`, `peer_uid`, `lag` (bytes), `stall_millis` |
//! | `ringfence::call` | WARN | the handler of a call has failed | `address`, `peer_pid`, `peer_uid`, `name`, `code`, `error` |
//!
//! May import `error` and the modules below it. A panic in a subscriber does not reach the caller, because it must not end a thread
//! of this crate.

#[cfg(not(feature = "tracing"))]
pub(crate) use off::{Handshake, TraceContext, refused, step};
#[cfg(feature = "tracing")]
pub(crate) use on::{Handshake, TraceContext, refused, step};

#[cfg(feature = "tracing")]
mod on {
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
    const CALL: &str = "ringfence::call";

    /// Calls the subscriber. The panic hook has already reported a panic.
    fn notify<T: Default>(call: impl FnOnce() -> T) -> T {
        catch_unwind(AssertUnwindSafe(call)).unwrap_or_default()
    }

    /// The span of one handshake.
    ///
    /// Cloning, entering, leaving and dropping a span also call the subscriber, so each of them catches its panics.
    pub(crate) struct Handshake(Option<Span>);

    impl Handshake {
        pub(crate) fn begin(address: &impl Display, role: &'static str, peer: Option<Credentials>) -> Self {
            Self(notify(|| {
                let span = debug_span!(target: HANDSHAKE, "handshake", %address, role, peer_pid = Empty, peer_uid = Empty);
                if let Some(peer) = peer {
                    span.record("peer_pid", peer.pid).record("peer_uid", peer.uid);
                }
                Some(span)
            }))
        }

        pub(crate) fn within<T>(&self, steps: impl FnOnce() -> T) -> T {
            let _entered = EnteredSpan(notify(|| self.0.as_ref().map(Span::enter)));
            steps()
        }
    }

    impl Drop for Handshake {
        fn drop(&mut self) {
            let span = self.0.take();
            notify(|| drop(span));
        }
    }

    /// Keeps a span entered until it is dropped.
    struct EnteredSpan<'a>(Option<Entered<'a>>);

    impl Drop for EnteredSpan<'_> {
        fn drop(&mut self) {
            let entered = self.0.take();
            notify(|| drop(entered));
        }
    }

    /// Reports a check that has not failed.
    pub(crate) fn step(step: &str, check: &str, wanted: &str, found: &str, outcome: &str) {
        notify(|| event!(target: HANDSHAKE, Level::DEBUG, step, check, wanted, found, outcome));
    }

    /// Reports that a process that connected, or was connected to, got no channel.
    pub(crate) fn refused(
        address: &impl Display,
        role: &'static str,
        error: &Error,
        identity: Option<&Identity>,
    ) {
        let refusal = error.refusal();
        let identity = refusal.and_then(|refusal| refusal.identity.as_ref()).or(identity);
        let executable = identity.and_then(|identity| identity.executable.as_ref());
        // A string, because a subscriber that prints lines quotes it. So a path cannot forge a line.
        let executable = executable.map(|executable| executable.path.to_string_lossy());
        notify(|| {
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

    /// Makes an event about a channel.
    macro_rules! channel_event {
        ($context:expr, $target:expr, $level:expr, $($fields:tt)+) => {{
            let TraceContext {
                address, pid, uid, ..
            } = $context;
            notify(|| event!(target: $target, $level, address, peer_pid = pid, peer_uid = uid, $($fields)+));
        }};
    }

    /// The peer of a channel, and the address. Plain data, because a span would end in a forked child as well.
    #[derive(Debug, Clone)]
    pub(crate) struct TraceContext {
        address: String,
        pid: i32,
        uid: u32,
        gid: u32,
    }

    impl TraceContext {
        pub(crate) fn with(address: &str, peer: &Identity) -> Self {
            Self {
                address: address.to_owned(),
                pid: peer.pid,
                uid: peer.uid,
                gid: peer.gid,
            }
        }

        pub(crate) fn opened(&self, role: &impl Display) {
            channel_event!(self, CHANNEL, Level::INFO, %role, "open");
        }

        pub(crate) fn closed(&self, reason: &impl Display) {
            channel_event!(self, CHANNEL, Level::INFO, %reason, "closed");
        }

        /// Reports that a later check of the peer has failed.
        pub(crate) fn refused(&self, error: &Error) {
            let Self { pid, uid, gid, .. } = *self;
            let peer = Identity::of(Credentials { pid, uid, gid });
            refused(&self.address, "peer", error, Some(&peer));
        }

        /// Reports the error of a handler.
        pub(crate) fn call_failed(&self, name: &str, code: Option<&str>, error: &str) {
            channel_event!(
                self,
                CALL,
                Level::WARN,
                name,
                code,
                error,
                "the handler of a call has failed"
            );
        }

        /// Reports that the subscriber has delayed its publisher for longer than `stall`.
        pub(crate) fn evicted(&self, lag: u64, stall: Duration) {
            let stall_millis = u64::try_from(stall.as_millis()).unwrap_or(u64::MAX);
            channel_event!(
                self,
                EVICTED,
                Level::WARN,
                lag,
                stall_millis,
                "a subscriber was too slow"
            );
        }
    }
}

/// Without the feature nothing is stored and nothing is called.
#[cfg(not(feature = "tracing"))]
#[expect(clippy::unused_self, reason = "the signatures are those with the feature")]
mod off {
    use std::{fmt::Display, time::Duration};

    use crate::{
        error::Error,
        identity::{Credentials, Identity},
    };

    pub(crate) struct Handshake;

    impl Handshake {
        pub(crate) fn begin(_: &impl Display, _: &'static str, _: Option<Credentials>) -> Self {
            Self
        }

        pub(crate) fn within<T>(&self, steps: impl FnOnce() -> T) -> T {
            steps()
        }
    }

    pub(crate) fn step(_: &str, _: &str, _: &str, _: &str, _: &str) {}

    pub(crate) fn refused(_: &impl Display, _: &'static str, _: &Error, _: Option<&Identity>) {}

    #[derive(Debug, Clone)]
    pub(crate) struct TraceContext;

    impl TraceContext {
        pub(crate) fn with(_: &str, _: &Identity) -> Self {
            Self
        }

        pub(crate) fn opened(&self, _: &impl Display) {}

        pub(crate) fn closed(&self, _: &impl Display) {}

        pub(crate) fn refused(&self, _: &Error) {}

        pub(crate) fn call_failed(&self, _: &str, _: Option<&str>, _: &str) {}

        pub(crate) fn evicted(&self, _: u64, _: Duration) {}
    }
}
