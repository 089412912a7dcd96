//! A policy's callback in JavaScript: questions go over by a thread-safe function, and answers come back some time, or
//! never.

use std::{
    collections::HashMap,
    ffi::c_void,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use napi::{bindgen_prelude::*, sys};
use ringfence::Decision;

use crate::{
    convert::{Identity, Thrown},
    task,
    threadsafe::Threadsafe,
};

/// What JavaScript was asked and has not answered.
#[derive(Default)]
pub(crate) struct Questions {
    open: Mutex<HashMap<u32, Decision>>,
    last: AtomicU32,
}

/// Asks JavaScript. Dropped with the last policy that it belongs to, and then JavaScript's function is let go of.
pub(crate) struct Authorize {
    threadsafe: Arc<Threadsafe>,
    questions: Arc<Questions>,
}

impl Questions {
    fn open(&self) -> MutexGuard<'_, HashMap<u32, Decision>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, decision: Decision) -> u32 {
        let id = self.last.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open();
        // A promise that never settles leaves no trace once its peer's time is up.
        open.retain(|_, decision| decision.is_awaited());
        open.insert(id, decision);
        id
    }

    /// JavaScript's answer. `verdict`: 0 no, 1 yes, 2 an error of its own, which it keeps under this number.
    pub(crate) fn answer(&self, id: u32, verdict: u32, found: String) {
        let decision = self.open().remove(&id);
        match (decision, verdict) {
            (None, _) => {}
            (Some(decision), 1) => decision.allow(),
            (Some(decision), 2) => {
                let thrown = Thrown {
                    question: id,
                    text: found.clone(),
                };
                decision.fail(found, thrown);
            }
            (Some(decision), _) => decision.refuse(found),
        }
    }
}

impl Authorize {
    /// # Safety
    /// `env` is the environment that runs now, on this thread; `callback` a live function of it, which must not throw.
    pub(crate) unsafe fn new(env: sys::napi_env, callback: sys::napi_value) -> napi::Result<Self> {
        let authorize = Self {
            threadsafe: Arc::default(),
            questions: Arc::default(),
        };
        let context = Box::into_raw(Box::new((
            Arc::clone(&authorize.threadsafe),
            Arc::clone(&authorize.questions),
        )));
        // SAFETY: passed on from the caller; `forget` frees the context, which is of its type.
        let function = unsafe {
            task::create(
                env,
                callback,
                "ringfence-authorize",
                context.cast(),
                forget,
                deliver,
            )
        };
        match function {
            Ok(function) => authorize.threadsafe.take_over(function),
            Err(error) => {
                // SAFETY: there is no function that would free it.
                drop(unsafe { Box::from_raw(context) });
                return Err(error);
            }
        }
        // The call that waits for a channel keeps the event loop alive already.
        authorize.threadsafe.keep_alive(env, false);
        Ok(authorize)
    }

    pub(crate) fn questions(&self) -> Arc<Questions> {
        Arc::clone(&self.questions)
    }

    /// The policy with this as its callback.
    pub(crate) fn of(self, policy: ringfence::Policy) -> ringfence::Policy {
        policy.authorize_later(move |identity, decision| self.ask(&identity, decision))
    }

    fn ask(&self, identity: &ringfence::Identity, decision: Decision) {
        let id = self.questions.add(decision);
        let question = Box::into_raw(Box::new((id, Identity::from(identity))));
        if !self.threadsafe.send(question.cast()) {
            // SAFETY: it was not sent, so nothing else takes it back.
            drop(unsafe { Box::from_raw(question) });
            self.questions
                .answer(id, 0, "no callback to ask: its JavaScript is ending".into());
        }
    }
}

impl Drop for Authorize {
    fn drop(&mut self) {
        self.threadsafe.release();
    }
}

type Context = (Arc<Threadsafe>, Arc<Questions>);

/// The function is gone, or its environment ends: what is open will not be answered.
unsafe extern "C" fn forget(_env: sys::napi_env, data: *mut c_void, _hint: *mut c_void) {
    // SAFETY: the box of `new`; the engine calls this once.
    let (threadsafe, questions) = *unsafe { Box::from_raw(data.cast::<Context>()) };
    threadsafe.forget();
    questions.open().clear();
}

unsafe extern "C" fn deliver(
    env: sys::napi_env,
    callback: sys::napi_value,
    _context: *mut c_void,
    data: *mut c_void,
) {
    // SAFETY: the box of `ask`; the engine delivers it once, with a null env where it is ending.
    let (id, identity) = *unsafe { Box::from_raw(data.cast::<(u32, Identity)>()) };
    if env.is_null() {
        return;
    }
    // SAFETY: the engine calls on the environment's thread, inside a handle scope.
    unsafe {
        let arguments = ToNapiValue::to_napi_value(env, id)
            .and_then(|id| Ok([id, ToNapiValue::to_napi_value(env, identity)?]));
        // JavaScript has run out of memory, or is ending.
        if let Ok(arguments) = arguments {
            task::call(env, callback, &arguments);
        }
    }
}
