//! What the objects have in common that JavaScript sees: each watches a descriptor, and knows what went wrong last.

use std::os::fd::RawFd;

use napi::sys;
use ringfence::Refused;

use crate::{
    answers::FAILED,
    convert::{Failure, Identity},
    poll::Poll,
    raw::{Answer, Call, State},
    task,
};

pub(crate) struct Handle {
    poll: Option<Poll>,
    failure: Option<ringfence::Error>,
    pub(crate) use_libuv: bool,
}

/// What an object of JavaScript's stands for.
pub(crate) trait Object: State {
    fn handle(&mut self) -> &mut Handle;

    fn fail(&mut self, error: ringfence::Error) -> Answer {
        self.handle().fail(error)
    }

    fn answer<T: Into<Answer>>(&mut self, result: ringfence::Result<T>) -> Answer {
        match result {
            Ok(value) => value.into(),
            Err(error) => self.fail(error),
        }
    }
}

/// What went wrong last, once.
pub(crate) fn failure<O: Object>(object: &mut O, call: &mut Call) -> Answer {
    object.handle().failure(call)
}

/// Argument: 1 where the event loop is kept alive, 0 where not.
pub(crate) fn keep_alive<O: Object>(object: &mut O, call: &mut Call) -> Answer {
    object.handle().keep_alive(call)
}

impl Handle {
    pub(crate) fn new(use_libuv: bool) -> Self {
        Self {
            poll: None,
            failure: None,
            use_libuv,
        }
    }

    pub(crate) fn fail(&mut self, error: ringfence::Error) -> Answer {
        self.failure = Some(error);
        Answer::from(FAILED)
    }

    /// A call has panicked; `what` became of the object.
    pub(crate) fn panicked(&mut self, what: &str) {
        self.failure = Some(ringfence::Error::Unsupported {
            what: format!("a defect of ringfence itself, please report it ({what})"),
            source: None,
        });
    }

    fn failure(&mut self, call: &Call) -> Answer {
        let failure = self.failure.take().map(|error| Failure::from(&error));
        Answer::value(call.env, failure)
    }

    /// Has the function that is the call's argument called whenever the descriptor is readable; 0 where that is so.
    ///
    /// # Safety
    /// The descriptor stays open until [`Handle::stop`].
    pub(crate) unsafe fn watch(&mut self, call: &Call, descriptor: RawFd) -> Answer {
        // SAFETY: the caller promises it.
        match unsafe { self.start(call, descriptor) } {
            Ok(poll) => {
                self.poll = Some(poll);
                Answer::from(0)
            }
            Err(error) => self.fail(error),
        }
    }

    /// As [`Handle::watch`], by a poll handle of the caller's own.
    ///
    /// # Safety
    /// The descriptor stays open until the poll handle is dropped.
    pub(crate) unsafe fn start(&self, call: &Call, descriptor: RawFd) -> ringfence::Result<Poll> {
        // SAFETY: a call is one in a callback of its environment; the caller promises the rest.
        let started = unsafe { Poll::start(call.env, descriptor, call.value(0), self.use_libuv) };
        // Memory, a thread or a watch of epoll's is what may be short; all else was there when the process began.
        started.map_err(|error| ringfence::Error::NoSpace {
            what: "watching for events".into(),
            reason: error.reason.clone(),
        })
    }

    /// Runs `work` on a thread, and has the function that is the call's argument called with what `convert` makes of its outcome; once,
    /// later. 0 where that is so. The names are those of the thread, and of what there is no thread for.
    pub(crate) fn later<T: Send + 'static>(
        &mut self,
        call: &Call,
        (thread, what): (&'static str, &str),
        work: impl FnOnce() -> T + Send + 'static,
        convert: impl FnOnce(sys::napi_env, T) -> napi::Result<[sys::napi_value; 2]> + 'static,
    ) -> Answer {
        // SAFETY: a call is one in a callback of its environment, whose argument the function is.
        match unsafe { task::run(call.env, call.value(0), thread, work, convert, || {}) } {
            Ok(()) => Answer::from(0),
            Err(error) => self.fail(ringfence::Error::NoSpace {
                what: what.into(),
                reason: error.reason.clone(),
            }),
        }
    }

    /// Whether the function was called for a bell that was not heard of since: see [`Poll::was_rung`].
    pub(crate) fn was_rung(&self) -> bool {
        self.poll.as_ref().is_some_and(Poll::was_rung)
    }

    fn keep_alive(&self, call: &Call) -> Answer {
        if let Some(poll) = &self.poll {
            poll.keep_alive(call.env, call.size(0) != 0);
        }
        Answer::Nothing
    }

    pub(crate) fn stop(&mut self) {
        self.poll = None;
    }

    /// What was made for JavaScript, of whatever has come.
    pub(crate) fn made(&mut self, made: napi::Result<sys::napi_value>, what: &str) -> Answer {
        match made {
            Ok(value) => Answer::Value(value),
            // The engine is out of memory, or is ending; a channel was closed with its object.
            Err(error) => self.fail(ringfence::Error::NoSpace {
                what: format!("an object for {what}"),
                reason: error.reason.clone(),
            }),
        }
    }
}

/// Whoever was refused, as JavaScript is told.
pub(crate) fn failure_of(refused: &Refused) -> Failure {
    let mut failure = Failure::from(&refused.error);
    failure.identity = refused.identity.as_ref().map(Identity::from);
    failure
}
