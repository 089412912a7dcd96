//! The start of each endpoint. The core's blocking calls run on their own threads.

#![expect(
    unreachable_pub,
    reason = "what is pub here is exported to JavaScript by its macro"
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the engine's strings come as values, which are read once"
)]

use std::sync::{Arc, Mutex, PoisonError, mpsc};

use napi::{Env, bindgen_prelude::*, sys};
use napi_derive::napi;

use crate::{
    authorize::{Authorize, Questions},
    broadcast::{publisher, subscription},
    channel,
    convert::{Failure, Options},
    membership,
    notifier::{Notifier, argument},
    service,
    task::{self, Release},
};

/// A value that can be taken out once. JavaScript's garbage collector may run late; a descriptor in here must
/// not wait for it.
struct Slot<T>(Arc<Mutex<Option<T>>>);

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Slot<T> {
    fn new(content: Option<T>) -> Self {
        Self(Arc::new(Mutex::new(content)))
    }

    fn put(&self, content: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(content);
    }

    fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The token that cancels a handshake, while it is in progress.
type CancelSlot = Slot<ringfence::CancelToken>;

impl CancelSlot {
    fn cancel(&self) {
        if let Some(cancel_token) = self.take() {
            cancel_token.cancel();
        }
    }
}

/// The result, until JavaScript receives it.
type PendingResult<T> = Slot<ringfence::Result<T>>;

impl<T: Send + 'static> PendingResult<T> {
    /// Drops the result if JavaScript has not received it, and waits briefly for that.
    fn discard(&self) {
        if let Some(Ok(endpoint)) = self.take() {
            task::wait_briefly(&task::drop_in_background(endpoint));
        }
    }
}

/// Releases a handshake when the process exits or its environment ends. Each of the two has one, and either
/// may run first.
struct Cleanup<T> {
    cancel_slot: CancelSlot,
    /// Disconnected once the thread has stored its result.
    thread_done: Release,
    pending_result: PendingResult<T>,
}

impl<T: Send + 'static> Cleanup<T> {
    fn run(&self) {
        self.cancel_slot.cancel();
        // After a delivery, the thread has already finished.
        task::wait_briefly(&self.thread_done);
        // A result that was created before that still occupies its address.
        self.pending_result.discard();
    }
}

/// A handshake in progress.
#[napi]
pub struct Joining {
    cancel_slot: CancelSlot,
    vacate: Box<dyn Fn() + Send>,
    questions: Option<Arc<Questions>>,
}

#[napi]
impl Joining {
    /// Cancels the handshake. Its callback receives `ABORTED`, unless the handshake completes at the same
    /// moment.
    #[napi]
    pub fn cancel(&self) {
        self.cancel_slot.cancel();
    }

    /// Cancels the handshake, and waits briefly until the address is free. For an exiting process, which no
    /// longer delivers results.
    #[napi]
    pub fn vacate(&self) {
        (self.vacate)();
    }

    /// Answers question `id` of the policy's callback; see `Questions::answer`.
    #[napi]
    pub fn answer(&self, id: u32, verdict: u32, detail: String) {
        if let Some(questions) = &self.questions {
            questions.answer(id, verdict, detail);
        }
    }
}

/// Starts a blocking call at an address. `endpoint` names the function of the core, and `ask` is the policy's
/// callback, if any. `on_refused` is called for each guest that the host of a `join` refuses.
///
/// The callback `done` receives a failure, or null and the result: a channel, listener, membership, publisher
/// or subscription. It is called once, asynchronously, and keeps the event loop alive until then.
///
/// # Errors
/// Throws a plain `Error` if a thread or a function cannot be created.
#[napi(
    ts_args_type = "endpoint: string, address: string, options: Options, done: (failure: Failure | null, made: unknown) => void, ask?: (id: number, identity: Identity) => void, onRefused?: (failure: Failure) => void"
)]
pub fn begin(
    env: Env,
    endpoint: String,
    address: String,
    options: Options,
    done: Unknown<'_>,
    ask: Option<Unknown<'_>>,
    on_refused: Option<Unknown<'_>>,
) -> napi::Result<Joining> {
    let call = AsyncCall {
        env,
        options,
        done,
        ask,
    };
    match endpoint.as_str() {
        "join" => {
            let notifier = match on_refused {
                // SAFETY: env is live, and the callback is a value of it; the engine refuses a value that is not a
                // function.
                Some(callback) => Some(unsafe { refusal_notifier(env.raw(), callback.raw()) }?),
                None => None,
            };
            let join = move |address: &ringfence::Address, options: &ringfence::Options| {
                ringfence::binding::join_reporting(address, options, &|refused| {
                    // A blocked event loop must not let the queue grow without limit.
                    if let Some(notifier) = notifier
                        .as_ref()
                        .filter(|notifier| notifier.pending() < MAX_PENDING_REFUSALS)
                    {
                        notifier.send(Failure::from(refused));
                    }
                })
            };
            call.run_at(&address, ("ringfence-join", join, channel::to_object))
        }
        "connect" => call.run_at(
            &address,
            ("ringfence-connect", ringfence::connect, channel::to_object),
        ),
        "listen" => call.run_at(
            &address,
            ("ringfence-listen", ringfence::listen, service::to_object),
        ),
        "member" => call.run_at(
            &address,
            ("ringfence-member", ringfence::member, membership::to_object),
        ),
        "publish" => call.run_at(
            &address,
            ("ringfence-publish", ringfence::publish, publisher::to_object),
        ),
        "subscribe" => call.run_at(
            &address,
            (
                "ringfence-subscribe",
                ringfence::subscribe,
                subscription::to_object,
            ),
        ),
        other => Err(napi::Error::from_reason(format!("no such endpoint: {other}"))),
    }
}

/// Refusals that JavaScript has not been notified of; further ones are dropped.
const MAX_PENDING_REFUSALS: usize = 1024;

/// Notifies JavaScript of refused guests.
///
/// # Safety
/// As [`Notifier::new`].
unsafe fn refusal_notifier(env: sys::napi_env, callback: sys::napi_value) -> napi::Result<Notifier<Failure>> {
    let convert = |env, failure| Ok(vec![argument(env, failure)?]);
    // SAFETY: passed on from the caller.
    unsafe { Notifier::new(env, callback, "ringfence-refused", convert) }
}

/// Name of the thread, the blocking call, and the conversion of its result to a JavaScript object.
type BlockingCall<F, T> = (
    &'static str,
    F,
    unsafe fn(sys::napi_env, T, bool) -> napi::Result<sys::napi_value>,
);

/// Arguments that JavaScript passes to every asynchronous call.
pub(crate) struct AsyncCall<'env> {
    pub(crate) env: Env,
    pub(crate) options: Options,
    pub(crate) done: Unknown<'env>,
    pub(crate) ask: Option<Unknown<'env>>,
}

impl AsyncCall<'_> {
    fn run_at<T: Send + 'static>(
        self,
        address: &str,
        (name, blocking_call, to_object): BlockingCall<
            impl FnOnce(&ringfence::Address, &ringfence::Options) -> ringfence::Result<T> + Send + 'static,
            T,
        >,
    ) -> napi::Result<Joining> {
        // Resolve a relative path against the current directory of this call, which may change before the
        // thread runs.
        let address = address
            .parse::<ringfence::Address>()
            .map(|address| address.absolute());
        self.run((
            name,
            move |options: &ringfence::Options| blocking_call(&address?, options),
            to_object,
        ))
    }

    /// Runs the blocking call on its own thread.
    pub(crate) fn run<T: Send + 'static>(
        self,
        (name, blocking_call, to_object): BlockingCall<
            impl FnOnce(&ringfence::Options) -> ringfence::Result<T> + Send + 'static,
            T,
        >,
    ) -> napi::Result<Joining> {
        let Self {
            env,
            options,
            done,
            ask,
        } = self;
        let cancel_token =
            ringfence::CancelToken::new().map_err(|error| napi::Error::from_reason(error.to_string()))?;
        let cancel_slot = CancelSlot::new(Some(cancel_token.clone()));
        let authorize = match ask {
            // SAFETY: env is live and the callback is a value of it; the engine refuses a value that is not a
            // function.
            Some(ask) => Some(unsafe { Authorize::new(env.raw(), ask.raw()) }?),
            None => None,
        };
        let questions = authorize.as_ref().map(Authorize::questions);
        let with_callback = |policy| match authorize {
            Some(authorize) => authorize.apply_to(policy),
            None => policy,
        };
        let use_libuv = options.use_libuv;
        let pending_result = PendingResult::<T>::new(None);
        let [thread_result, delivered_result] = [(); 2].map(|()| pending_result.clone());
        let delivered_cancel_slot = cancel_slot.clone();
        let [(exit_sender, exit_cleanup), (env_sender, env_cleanup)] = [(); 2].map(|()| {
            let (sender, thread_done) = mpsc::channel::<()>();
            let (cancel_slot, pending_result) = (cancel_slot.clone(), pending_result.clone());
            let cleanup = Cleanup {
                cancel_slot,
                thread_done,
                pending_result,
            };
            (sender, cleanup)
        });
        let done_senders = (exit_sender, env_sender);
        // SAFETY: env is live and the callback is a value of it; the engine refuses a value that is not a
        // function.
        unsafe {
            task::run(
                env.raw(),
                done.raw(),
                name,
                move || {
                    let call = || blocking_call(&options.to_core(with_callback)?.cancel_token(cancel_token));
                    thread_result.put(call());
                    drop(done_senders);
                },
                move |env, ()| {
                    let outcome = delivered_result.take().unwrap_or(Err(ringfence::Error::Aborted));
                    // Once there is a result, there is nothing to cancel: a listener is closed instead.
                    drop(delivered_cancel_slot.take());
                    task::result_arguments(env, outcome, |endpoint| to_object(env, endpoint, use_libuv))
                },
                move || env_cleanup.run(),
            )
        }?;
        Ok(Joining {
            cancel_slot,
            vacate: Box::new(move || exit_cleanup.run()),
            questions,
        })
    }
}
