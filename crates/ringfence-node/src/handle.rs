//! Common parts of the objects that JavaScript sees: each watches a descriptor, and stores its last error.

use std::os::fd::RawFd;

use napi::sys;

use crate::{
    answers::FAILED,
    convert::Failure,
    poll::Poll,
    raw::{Answer, Call, State},
    task,
};

pub(crate) struct Handle {
    poll: Option<Poll>,
    failure: Option<ringfence::Error>,
    pub(crate) use_libuv: bool,
}

/// State behind a JavaScript object.
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

/// Returns the last error, once.
pub(crate) fn failure<O: Object>(object: &mut O, call: &mut Call) -> Answer {
    object.handle().failure(call)
}

/// Argument: 1 to keep the event loop alive, 0 to not.
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

    /// Stores an error after a panic in a call. `what` tells what was done to the object.
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

    /// Calls the function in the call's argument whenever the descriptor is readable. Answers 0 on success.
    ///
    /// # Safety
    /// The descriptor stays open until [`Handle::stop`].
    pub(crate) unsafe fn watch(&mut self, call: &Call, descriptor: RawFd) -> Answer {
        // SAFETY: the caller guarantees it.
        match unsafe { self.start_poll(call, descriptor) } {
            Ok(poll) => {
                self.poll = Some(poll);
                Answer::from(0)
            }
            Err(error) => self.fail(error),
        }
    }

    /// Like [`Handle::watch`], with a poll handle that the caller keeps.
    ///
    /// # Safety
    /// The descriptor stays open until the poll handle is dropped.
    pub(crate) unsafe fn start_poll(&self, call: &Call, descriptor: RawFd) -> ringfence::Result<Poll> {
        // SAFETY: a call exists only within a callback of its environment; the caller guarantees the rest.
        let started = unsafe { Poll::start(call.env, descriptor, call.value(0), self.use_libuv) };
        // Only memory, a thread or an epoll watch can be short; everything else existed when the process
        // started.
        started.map_err(|error| ringfence::Error::NoSpace {
            what: "a watch for events".into(),
            reason: error.reason.clone(),
        })
    }

    /// Runs `work` on a thread, and then calls the function in the call's argument with what `convert`
    /// returns, once. Answers 0 if the thread was started. The names are the thread's name and the text for
    /// an error.
    pub(crate) fn run_on_thread<T: Send + 'static>(
        &mut self,
        call: &Call,
        (thread, what): (&'static str, &str),
        work: impl FnOnce() -> T + Send + 'static,
        convert: impl FnOnce(sys::napi_env, T) -> napi::Result<[sys::napi_value; 2]> + 'static,
    ) -> Answer {
        // SAFETY: a call exists only within a callback of its environment, and the function is its argument.
        match unsafe { task::run(call.env, call.value(0), thread, work, convert, || {}) } {
            Ok(()) => Answer::from(0),
            Err(error) => self.fail(ringfence::Error::NoSpace {
                what: what.into(),
                reason: error.reason.clone(),
            }),
        }
    }

    /// Returns whether a wakeup has called the function since the last query: see [`Poll::take_wakeup`].
    pub(crate) fn take_wakeup(&self) -> bool {
        self.poll.as_ref().is_some_and(Poll::take_wakeup)
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

    /// Answers with the JavaScript object that was created for an event.
    pub(crate) fn object_answer(&mut self, object: napi::Result<sys::napi_value>, what: &str) -> Answer {
        match object {
            Ok(value) => Answer::Value(value),
            // The engine is out of memory or is ending. A channel was closed with its object.
            Err(error) => self.fail(ringfence::Error::NoSpace {
                what: format!("an object for {what}"),
                reason: error.reason.clone(),
            }),
        }
    }
}
