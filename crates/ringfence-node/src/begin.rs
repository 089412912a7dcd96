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
    handle::failure_of,
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
type UnderWay = Slot<ringfence::CancelToken>;

impl UnderWay {
    fn cancel(&self) {
        if let Some(cancel_token) = self.take() {
            cancel_token.cancel();
        }
    }
}

/// The result, until JavaScript receives it.
type Undelivered<T> = Slot<ringfence::Result<T>>;

impl<T: Send + 'static> Undelivered<T> {
    /// Drops the result if JavaScript has not received it, and waits briefly for that.
    fn discard(&self) {
        if let Some(Ok(made)) = self.take() {
            task::wait_briefly(&task::drop_in_background(made));
        }
    }
}

/// Releases a handshake when the process exits or its environment ends. Each of the two has one, and either
/// may run first.
struct Rest<T> {
    under_way: UnderWay,
    /// Disconnected once the thread has stored its result.
    over: Release,
    undelivered: Undelivered<T>,
}

impl<T: Send + 'static> Rest<T> {
    fn drop_in_background(&self) {
        self.under_way.cancel();
        // After a delivery, the thread has already finished.
        task::wait_briefly(&self.over);
        // A result that was created before that still occupies its address.
        self.undelivered.discard();
    }
}

/// A handshake in progress.
#[napi]
pub struct Joining {
    under_way: UnderWay,
    vacate: Box<dyn Fn() + Send>,
    questions: Option<Arc<Questions>>,
}

#[napi]
impl Joining {
    /// Cancels the handshake. Its callback receives `ABORTED`, unless the handshake completes at the same
    /// moment.
    #[napi]
    pub fn cancel(&self) {
        self.under_way.cancel();
    }

    /// Cancels the handshake, and waits briefly until the address is free. For an exiting process, which no
    /// longer delivers results.
    #[napi]
    pub fn vacate(&self) {
        (self.vacate)();
    }

    /// Answers question `id` of the policy's callback; see `Questions::answer`.
    #[napi]
    pub fn answer(&self, id: u32, verdict: u32, found: String) {
        if let Some(questions) = &self.questions {
            questions.answer(id, verdict, found);
        }
    }
}

/// Starts a blocking call at an address. `endpoint` names the function of the core, and `ask` is the policy's
/// callback, if any. `refused` is called for each guest that the host of a `join` refuses.
///
/// The callback `done` receives a failure, or null and the result: a channel, listener, membership, publisher
/// or subscription. It is called once, asynchronously, and keeps the event loop alive until then.
///
/// # Errors
/// Throws a plain `Error` if a thread or a function cannot be created.
#[napi(
    ts_args_type = "endpoint: string, address: string, options: Options, done: (failure: Failure | null, made: unknown) => void, ask?: (id: number, identity: Identity) => void, refused?: (failure: Failure) => void"
)]
pub fn begin(
    env: Env,
    endpoint: String,
    address: String,
    options: Options,
    done: Unknown<'_>,
    ask: Option<Unknown<'_>>,
    refused: Option<Unknown<'_>>,
) -> napi::Result<Joining> {
    let given = AsyncCall {
        env,
        options,
        done,
        ask,
    };
    match endpoint.as_str() {
        "join" => {
            let refusals = match refused {
                // SAFETY: env is live, and the callback a value of it; what is no function is refused by the engine.
                Some(refused) => Some(unsafe { refusals(env.raw(), refused.raw()) }?),
                None => None,
            };
            let join = move |address: &ringfence::Address, options: &ringfence::Options| {
                ringfence::binding::join_reporting(address, options, &|refused| {
                    // Beyond that the event loop does not turn, and what is kept for it must not grow.
                    if let Some(refusals) = refusals
                        .as_ref()
                        .filter(|refusals| refusals.pending() < MOST_PENDING)
                    {
                        refusals.send(failure_of(refused));
                    }
                })
            };
            given.meet(&address, ("ringfence-join", join, channel::to_object))
        }
        "connect" => given.meet(
            &address,
            ("ringfence-connect", ringfence::connect, channel::to_object),
        ),
        "listen" => given.meet(
            &address,
            ("ringfence-listen", ringfence::listen, service::to_object),
        ),
        "member" => given.meet(
            &address,
            ("ringfence-member", ringfence::member, membership::to_object),
        ),
        "publish" => given.meet(
            &address,
            ("ringfence-publish", ringfence::publish, publisher::to_object),
        ),
        "subscribe" => given.meet(
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
const MOST_PENDING: usize = 1024;

/// Notifies JavaScript of refused guests.
///
/// # Safety
/// As [`Notifier::new`].
unsafe fn refusals(env: sys::napi_env, callback: sys::napi_value) -> napi::Result<Notifier<Failure>> {
    let convert = |env, failure| Ok(vec![argument(env, failure)?]);
    // SAFETY: passed on from the caller.
    unsafe { Notifier::new(env, callback, "ringfence-refused", convert) }
}

/// Name of the thread, the blocking call, and the conversion of its result to a JavaScript object.
type Way<M, T> = (
    &'static str,
    M,
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
    fn meet<T: Send + 'static>(
        self,
        address: &str,
        (name, meet, to_object): Way<
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
            move |options: &ringfence::Options| meet(&address?, options),
            to_object,
        ))
    }

    /// Runs the blocking call on its own thread.
    pub(crate) fn run<T: Send + 'static>(
        self,
        (name, meet, to_object): Way<
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
        let under_way = UnderWay::new(Some(cancel_token.clone()));
        let authorize = match ask {
            // SAFETY: env is live and the callback is a value of it; the engine refuses a value that is not a
            // function.
            Some(ask) => Some(unsafe { Authorize::new(env.raw(), ask.raw()) }?),
            None => None,
        };
        let questions = authorize.as_ref().map(Authorize::questions);
        let with_callback = |policy| match authorize {
            Some(authorize) => authorize.of(policy),
            None => policy,
        };
        let use_libuv = options.use_libuv;
        let undelivered = Undelivered::<T>::new(None);
        let [made, waiting] = [(); 2].map(|()| undelivered.clone());
        let delivered = under_way.clone();
        let [(busy, at_exit), (busy_too, at_end)] = [(); 2].map(|()| {
            let (busy, over) = mpsc::channel::<()>();
            let (under_way, undelivered) = (under_way.clone(), undelivered.clone());
            let rest = Rest {
                under_way,
                over,
                undelivered,
            };
            (busy, rest)
        });
        // SAFETY: env is live and the callback is a value of it; the engine refuses a value that is not a
        // function.
        unsafe {
            task::run(
                env.raw(),
                done.raw(),
                name,
                move || {
                    let meet = || meet(&options.to_core(with_callback)?.cancel_token(cancel_token));
                    let outcome = meet();
                    made.put(outcome);
                    drop((busy, busy_too));
                },
                move |env, ()| {
                    let outcome = waiting.take().unwrap_or(Err(ringfence::Error::Aborted));
                    // Once there is a result, there is nothing to cancel: a listener is closed instead.
                    drop(delivered.take());
                    task::outcome(env, outcome, |made| to_object(env, made, use_libuv))
                },
                move || at_end.drop_in_background(),
            )
        }?;
        Ok(Joining {
            under_way,
            vacate: Box::new(move || at_exit.drop_in_background()),
            questions,
        })
    }
}
