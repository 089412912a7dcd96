//! A policy's JavaScript callback. Questions reach JavaScript through a thread-safe function; answers arrive
//! later, or never.

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

/// Questions that JavaScript has not answered yet.
#[derive(Default)]
pub(crate) struct Questions {
    open: Mutex<HashMap<u32, Decision>>,
    last: AtomicU32,
}

/// Asks JavaScript. The last policy that uses it drops it, which releases the JavaScript function.
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
        // Removes questions whose peer has timed out, so that promises that never settle do not accumulate.
        open.retain(|_, decision| decision.is_awaited());
        open.insert(id, decision);
        id
    }

    /// Handles JavaScript's answer. `verdict` is 0 to refuse, 1 to allow, or 2 for an error, which JavaScript
    /// keeps under this id.
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
    /// `env` is the environment that runs now, on this thread. `callback` is a live function of it and must
    /// not throw.
    pub(crate) unsafe fn new(env: sys::napi_env, callback: sys::napi_value) -> napi::Result<Self> {
        let authorize = Self {
            threadsafe: Arc::default(),
            questions: Arc::default(),
        };
        let context = Box::into_raw(Box::new((
            Arc::clone(&authorize.threadsafe),
            Arc::clone(&authorize.questions),
        )));
        // SAFETY: the caller guarantees env and callback. `forget` frees the context, which has the type it
        // expects.
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
                // SAFETY: no function was created, so nothing else frees the context.
                drop(unsafe { Box::from_raw(context) });
                return Err(error);
            }
        }
        // The call that waits for a channel already keeps the event loop alive.
        authorize.threadsafe.keep_alive(env, false);
        Ok(authorize)
    }

    pub(crate) fn questions(&self) -> Arc<Questions> {
        Arc::clone(&self.questions)
    }

    /// Returns the policy with this callback.
    pub(crate) fn of(self, policy: ringfence::Policy) -> ringfence::Policy {
        policy.authorize_later(move |identity, decision| self.ask(&identity, decision))
    }

    fn ask(&self, identity: &ringfence::Identity, decision: Decision) {
        let id = self.questions.add(decision);
        let question = Box::into_raw(Box::new((id, Identity::from(identity))));
        if !self.threadsafe.send(question.cast()) {
            // SAFETY: the question was not sent, so nothing else owns the box.
            drop(unsafe { Box::from_raw(question) });
            self.questions.answer(
                id,
                0,
                "the JavaScript environment of the callback is ending".into(),
            );
        }
    }
}

impl Drop for Authorize {
    fn drop(&mut self) {
        self.threadsafe.release();
    }
}

type Context = (Arc<Threadsafe>, Arc<Questions>);

/// Called when the function is freed or its environment ends: no open question will be answered.
unsafe extern "C" fn forget(_env: sys::napi_env, data: *mut c_void, _hint: *mut c_void) {
    // SAFETY: data is the box from `new`, and the engine calls this once.
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
    // SAFETY: data is the box from `ask`, which the engine delivers once. If the environment is ending, env
    // is null.
    let (id, identity) = *unsafe { Box::from_raw(data.cast::<(u32, Identity)>()) };
    if env.is_null() {
        return;
    }
    // SAFETY: the engine calls this on the environment's thread, inside a handle scope.
    unsafe {
        let arguments = ToNapiValue::to_napi_value(env, id)
            .and_then(|id| Ok([id, ToNapiValue::to_napi_value(env, identity)?]));
        // On an error, JavaScript has run out of memory or is ending.
        if let Ok(arguments) = arguments {
            task::call(env, callback, &arguments);
        }
    }
}
