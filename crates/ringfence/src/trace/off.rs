//! The feature is off: each of these is nothing, and costs nothing.

#![expect(clippy::unused_self, reason = "with the feature on there is something to it")]

use std::{fmt::Display, time::Duration};

use crate::{
    error::Error,
    identity::{Credentials, Identity},
};

#[derive(Debug, Clone)]
pub(crate) struct Handshake;

impl Handshake {
    #[inline]
    pub(crate) fn begin(_address: &impl Display, _role: &'static str, _who: Option<Credentials>) -> Self {
        Self
    }

    #[inline]
    pub(crate) fn within<T>(&self, deed: impl FnOnce() -> T) -> T {
        deed()
    }
}

#[inline]
pub(crate) fn step(_step: &str, _check: &str, _wanted: &str, _found: &str, _outcome: &str) {}

#[inline]
pub(crate) fn refused(
    _address: &impl Display,
    _role: &'static str,
    _error: &Error,
    _identity: Option<&Identity>,
) {
}

#[derive(Debug, Clone)]
pub(crate) struct Tie;

impl Tie {
    #[inline]
    pub(crate) fn with(_address: &str, _peer: &Identity) -> Self {
        Self
    }

    #[inline]
    pub(crate) fn opened(&self, _role: &impl Display) {}

    #[inline]
    pub(crate) fn closed(&self, _reason: &impl Display) {}

    #[inline]
    pub(crate) fn refused(&self, _error: &Error) {}

    #[inline]
    pub(crate) fn evicted(&self, _lag: u64, _stall: Duration) {}
}
