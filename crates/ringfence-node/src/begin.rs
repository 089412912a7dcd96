//! How each endpoint begins: what blocks in the core runs on a thread of its own.

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
    convert::Options,
    membership, service,
    task::{self, Going},
};

/// What is in here, until somebody takes it out. JavaScript's garbage is collected some time; a descriptor in here must not wait for that.
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

/// What calls a handshake off, as long as it is under way.
type UnderWay = Slot<ringfence::CancelToken>;

impl UnderWay {
    fn cancel(&self) {
        if let Some(cancel_token) = self.take() {
            cancel_token.cancel();
        }
    }
}

/// What was made, until JavaScript gets it.
type Undelivered<T> = Slot<ringfence::Result<T>>;

impl<T: Send + 'static> Undelivered<T> {
    /// Lets go of it, if JavaScript did not get it, and waits a moment for that.
    fn discard(&self) {
        if let Some(Ok(made)) = self.take() {
            task::wait_a_moment(&task::let_go(made));
        }
    }
}

/// What is to be let go of as the process ends, or its environment: each has one, and either may come first.
struct Rest<T> {
    under_way: UnderWay,
    /// Disconnected once the thread has let go of everything that it does not deliver.
    over: Going,
    undelivered: Undelivered<T>,
}

impl<T: Send + 'static> Rest<T> {
    fn let_go(&self) {
        self.under_way.cancel();
        // Where the outcome was delivered, the thread is through.
        task::wait_a_moment(&self.over);
        // What had been made before that stands at its address.
        self.undelivered.discard();
    }
}

/// A handshake under way.
#[napi]
pub struct Joining {
    under_way: UnderWay,
    vacate: Box<dyn Fn() + Send>,
    questions: Option<Arc<Questions>>,
}

#[napi]
impl Joining {
    /// Calls it off: its callback gets `ABORTED`, unless it gets a channel just now.
    #[napi]
    pub fn cancel(&self) {
        self.under_way.cancel();
    }

    /// As `cancel`, and waits a moment until the address is free: the process ends, and delivers nothing any more.
    #[napi]
    pub fn vacate(&self) {
        (self.vacate)();
    }

    /// Answers question `id` of the policy's callback: see `Questions::answer`.
    #[napi]
    pub fn answer(&self, id: u32, verdict: u32, found: String) {
        if let Some(questions) = &self.questions {
            questions.answer(id, verdict, found);
        }
    }
}

/// Begins what takes its time at an address: `endpoint` is the name of the core's function. The callback gets a failure, or null
/// and what was made (a channel, a listener, a membership, a publisher, a subscription); it is called once, later, and keeps the event loop alive until
/// then. `ask` is the policy's callback, if it has one.
///
/// # Errors
/// Throws a plain `Error` where a thread or a function cannot be made.
#[napi(
    ts_args_type = "endpoint: string, address: string, options: Options, done: (failure: Failure | null, made: unknown) => void, ask?: (id: number, identity: Identity) => void"
)]
pub fn begin(
    env: Env,
    endpoint: String,
    address: String,
    options: Options,
    done: Unknown<'_>,
    ask: Option<Unknown<'_>>,
) -> napi::Result<Joining> {
    let given = Given {
        env,
        options,
        done,
        ask,
    };
    match endpoint.as_str() {
        "join" => given.meet(&address, ("ringfence-join", ringfence::join, channel::to_object)),
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
        other => Err(napi::Error::from_reason(format!("{other} is no endpoint"))),
    }
}

/// What waits at an address until it has what it is for.
type Meet<T> = fn(&ringfence::Address, &ringfence::Options) -> ringfence::Result<T>;

/// The name of a thread, what blocks on it, and what makes a JavaScript object of the outcome.
type Way<M, T> = (
    &'static str,
    M,
    unsafe fn(sys::napi_env, T, bool) -> napi::Result<sys::napi_value>,
);

/// What JavaScript gives to everything that takes its time.
pub(crate) struct Given<'env> {
    pub(crate) env: Env,
    pub(crate) options: Options,
    pub(crate) done: Unknown<'env>,
    pub(crate) ask: Option<Unknown<'env>>,
}

impl Given<'_> {
    fn meet<T: Send + 'static>(
        self,
        address: &str,
        (name, meet, to_object): Way<Meet<T>, T>,
    ) -> napi::Result<Joining> {
        // A relative path is one in the directory in which JavaScript has called, wherever the process is a moment later.
        let address = address
            .parse::<ringfence::Address>()
            .map(|address| address.absolute());
        self.run((
            name,
            move |options: &ringfence::Options| meet(&address?, options),
            to_object,
        ))
    }

    /// Runs what blocks on a thread of its own.
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
            // SAFETY: env is live, and the callback a value of it; what is no function is refused by the engine.
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
        // SAFETY: env is live, and the callback a value of it; what is no function is refused by the engine.
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
                    // Once there is an outcome, there is nothing to call off: a listener is closed instead.
                    drop(delivered.take());
                    task::outcome(env, outcome, |made| to_object(env, made, use_libuv))
                },
                move || at_end.let_go(),
            )
        }?;
        Ok(Joining {
            under_way,
            vacate: Box::new(move || at_exit.let_go()),
            questions,
        })
    }
}
