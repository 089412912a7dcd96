//! A listener as a plain JavaScript object of functions, as a channel is one. The door's thread is the core's; what it has
//! to tell makes a descriptor readable, which is watched like a channel's line.

use std::{
    cell::RefCell,
    ffi::CStr,
    os::fd::{AsFd, AsRawFd},
    ptr,
    rc::Rc,
};

use napi::{bindgen_prelude::*, sys};
use ringfence::{Arrival, Channels};

use crate::{
    channel,
    convert::{Failure, Identity},
    raw::{Answer, Call, Function, add_function, check},
    watcher::Watcher,
};

/// `failure()` says what went wrong.
const FAILED: i32 = -1;

struct Reception {
    /// `None` once it is closed.
    listener: Option<ringfence::Listener>,
    watcher: Option<Watcher>,
    failure: Option<ringfence::Error>,
    use_libuv: bool,
}

impl Reception {
    fn fail(&mut self, error: ringfence::Error) -> Answer {
        self.failure = Some(error);
        Answer::from(FAILED)
    }

    fn panicked(&mut self) {
        self.let_go();
        self.failure = Some(ringfence::Error::Unsupported {
            what: "a defect of ringfence itself, please report it (the listener was closed)".into(),
            source: None,
        });
    }

    fn let_go(&mut self) {
        // First: a watched descriptor must not be closed.
        self.watcher = None;
        if let Some(listener) = self.listener.take() {
            // Those that JavaScript has are closed there, if they are to be.
            listener.close(Channels::Keep);
        }
    }
}

impl Drop for Reception {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// The next news: a channel, or the failure of whoever was refused; 0 where there are none now.
fn accept(reception: &mut Reception, call: &mut Call) -> Answer {
    let Some(listener) = &reception.listener else {
        return Answer::from(0);
    };
    let arrival = match listener.try_accept() {
        Ok(Some(arrival)) => arrival,
        Ok(None) => return Answer::from(0),
        Err(error) => return reception.fail(error),
    };
    // SAFETY: this runs in a callback of the environment.
    let made = unsafe {
        match arrival {
            Arrival::Accepted(channel) => channel::to_object(call.env, channel, reception.use_libuv),
            Arrival::Refused(refused) => {
                let mut failure = Failure::from(&refused.error);
                failure.identity = refused.identity.as_ref().map(Identity::from);
                ToNapiValue::to_napi_value(call.env, failure)
            }
            _ => return Answer::from(0),
        }
    };
    match made {
        Ok(value) => Answer::Value(value),
        // The engine is out of memory, or is ending; a channel was closed with its object.
        Err(error) => reception.fail(ringfence::Error::NoSpace {
            what: "an object for whoever came".into(),
            reason: error.reason.clone(),
        }),
    }
}

/// 1: newcomers wait; 0: they are taken in.
fn pause(reception: &mut Reception, call: &mut Call) -> Answer {
    match &reception.listener {
        Some(listener) if call.size(0) != 0 => listener.pause(),
        Some(listener) => listener.resume(),
        None => {}
    }
    Answer::Nothing
}

fn watch(reception: &mut Reception, call: &mut Call) -> Answer {
    let Some(listener) = &reception.listener else {
        return Answer::from(0);
    };
    let news = listener.as_fd().as_raw_fd();
    // SAFETY: this runs in a callback of the environment; the descriptor lives as long as the listener, and the watcher
    // is stopped before that.
    match unsafe { Watcher::start(call.env, news, call.value(0), reception.use_libuv) } {
        Ok(watcher) => {
            reception.watcher = Some(watcher);
            Answer::from(0)
        }
        Err(error) => reception.fail(ringfence::Error::Unsupported {
            what: error.reason.clone(),
            source: None,
        }),
    }
}

fn keep_alive(reception: &mut Reception, call: &mut Call) -> Answer {
    if let Some(watcher) = &reception.watcher {
        watcher.keep_alive(call.env, call.size(0) != 0);
    }
    Answer::Nothing
}

fn close(reception: &mut Reception, _call: &mut Call) -> Answer {
    reception.let_go();
    Answer::Nothing
}

fn failure(reception: &mut Reception, call: &mut Call) -> Answer {
    let failure = reception.failure.take().map(|error| Failure::from(&error));
    // SAFETY: this runs in a callback of the environment.
    match unsafe { ToNapiValue::to_napi_value(call.env, failure) } {
        Ok(value) => Answer::Value(value),
        Err(_) => Answer::Nothing,
    }
}

/// The functions that JavaScript sees.
const FUNCTIONS: [(&CStr, Function<Reception>); 6] = [
    (c"accept", accept),
    (c"pause", pause),
    (c"watch", watch),
    (c"keepAlive", keep_alive),
    (c"close", close),
    (c"failure", failure),
];

/// A listener as a JavaScript object.
///
/// # Safety
/// `env` is the environment that runs now, on this thread, inside a handle scope.
pub(crate) unsafe fn to_object(
    env: sys::napi_env,
    listener: ringfence::Listener,
    use_libuv: bool,
) -> napi::Result<sys::napi_value> {
    let mut object = ptr::null_mut();
    // SAFETY: env is live.
    let status = unsafe { sys::napi_create_object(env, &raw mut object) };
    check(status, "an object")?;
    let reception = Rc::new(RefCell::new(Reception {
        listener: Some(listener),
        watcher: None,
        failure: None,
        use_libuv,
    }));
    for (name, function) in FUNCTIONS {
        // SAFETY: env and object are live.
        unsafe { add_function(env, object, name, &reception, function, Reception::panicked) }?;
    }
    Ok(object)
}
