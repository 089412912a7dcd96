//! A policy's JavaScript callback. Questions reach JavaScript through a thread-safe function; answers arrive
//! later, or never.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use napi::sys;
use ringfence::Decision;

use crate::{
    convert::{Identity, Thrown},
    notifier::{Notifier, argument},
};

/// Questions that JavaScript has not answered yet.
#[derive(Default)]
pub(crate) struct Questions {
    unanswered: Mutex<HashMap<u32, Decision>>,
    next_id: AtomicU32,
}

/// Asks JavaScript. The last policy that uses it drops it, which releases the JavaScript function. The call that
/// waits for a channel keeps the event loop alive.
pub(crate) struct Authorize {
    notifier: Notifier<(u32, Identity)>,
    questions: Arc<Questions>,
}

impl Questions {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Decision>> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, decision: Decision) -> u32 {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut unanswered = self.lock();
        // Removes questions whose peer has timed out, so that promises that never settle do not accumulate.
        unanswered.retain(|_, decision| decision.is_awaited());
        unanswered.insert(id, decision);
        id
    }

    /// Handles JavaScript's answer. `verdict` is 0 to refuse, 1 to allow, or 2 for an error, which JavaScript
    /// keeps under this id.
    pub(crate) fn answer(&self, id: u32, verdict: u32, detail: String) {
        let decision = self.lock().remove(&id);
        match (decision, verdict) {
            (None, _) => {}
            (Some(decision), 1) => decision.allow(),
            (Some(decision), 2) => {
                let thrown = Thrown {
                    question: id,
                    text: detail.clone(),
                };
                decision.fail(detail, thrown);
            }
            (Some(decision), _) => decision.refuse(detail),
        }
    }
}

impl Authorize {
    /// # Safety
    /// `env` is the environment that runs now, on this thread. `callback` is a live function of it and must
    /// not throw.
    pub(crate) unsafe fn new(env: sys::napi_env, callback: sys::napi_value) -> napi::Result<Self> {
        // SAFETY: passed on from the caller.
        let notifier = unsafe { Notifier::new(env, callback, "ringfence-authorize", question_arguments) }?;
        let questions = Arc::default();
        Ok(Self { notifier, questions })
    }

    pub(crate) fn questions(&self) -> Arc<Questions> {
        Arc::clone(&self.questions)
    }

    /// Returns the policy with this callback.
    pub(crate) fn apply_to(self, policy: ringfence::Policy) -> ringfence::Policy {
        policy.authorize_later(move |identity, decision| self.ask(&identity, decision))
    }

    fn ask(&self, identity: &ringfence::Identity, decision: Decision) {
        let id = self.questions.add(decision);
        // If the JavaScript environment is ending, the question stays open: an answer would refuse a peer that
        // has done nothing wrong. The handshake ends when the environment closes what it has opened.
        self.notifier.send((id, Identity::from(identity)));
    }
}

/// The callback's arguments.
fn question_arguments(
    env: sys::napi_env,
    (id, identity): (u32, Identity),
) -> napi::Result<Vec<sys::napi_value>> {
    Ok(vec![argument(env, id)?, argument(env, identity)?])
}
