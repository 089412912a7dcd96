//! Calls that make a channel. They run on the runtime's blocking threads, since a handshake reads files and
//! inspects processes.

use std::panic::resume_unwind;

use tokio::task::spawn_blocking;

use crate::{
    address::Address,
    api,
    error::{Error, Result},
    options::Options,
    tokio::channel::Channel,
    tokio::events::Membership,
    tokio::inbound::Subscription,
    wait::deadline::CancelToken,
};

/// As [`crate::join`]. Dropping the future cancels the wait, unless [`Options::cancel_token`] is set: then
/// only that [`CancelToken`] cancels it.
///
/// # Errors
/// As [`crate::join`], and as [`Channel::new`].
pub async fn join(address: &Address, options: &Options) -> Result<Channel> {
    Channel::new(away(address, options, api::pair::join).await?)
}

/// As [`crate::connect`]. Dropping the future cancels the wait, as in [`join`].
///
/// # Errors
/// As [`crate::connect`], and as [`Channel::new`].
pub async fn connect(address: &Address, options: &Options) -> Result<Channel> {
    Channel::new(away(address, options, api::service::connect).await?)
}

/// As [`crate::member()`]. Dropping the future cancels the wait, as in [`join`].
///
/// # Errors
/// As [`crate::member()`], and as [`Membership::new`].
pub async fn member(address: &Address, options: &Options) -> Result<Membership> {
    Membership::new(away(address, options, api::member::member).await?)
}

/// As [`crate::subscribe`]. Dropping the future cancels the wait, as in [`join`].
///
/// # Errors
/// As [`crate::subscribe`], and as [`Subscription::new`].
pub async fn subscribe(address: &Address, options: &Options) -> Result<Subscription> {
    Subscription::new(away(address, options, api::subscribe::subscribe).await?)
}

/// Cancels the call when it is dropped.
struct CallsOff(CancelToken);

impl Drop for CallsOff {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

async fn away<T: Send + 'static>(
    address: &Address,
    options: &Options,
    call: fn(&Address, &Options) -> Result<T>,
) -> Result<T> {
    let (address, mut options) = (address.clone(), options.clone());
    let mut calls_off = None;
    if options.cancel_token.is_none() {
        let cancel_token = CancelToken::new()?;
        options = options.cancel_token(cancel_token.clone());
        calls_off = Some(CallsOff(cancel_token));
    }
    let called = spawn_blocking(move || call(&address, &options)).await;
    drop(calls_off);
    match called.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(made) => made,
        Err(Ok(panic)) => resume_unwind(panic),
        // The runtime is shutting down.
        Err(Err(_)) => Err(Error::Aborted),
    }
}
