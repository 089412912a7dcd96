//! A membership as a plain JavaScript object of functions, as a listener is one. The keeper's thread is the core's; what it
//! has to tell makes a descriptor readable, which is watched like a channel's line.

use std::{
    ffi::CStr,
    os::fd::{AsFd, AsRawFd},
    sync::mpsc,
};

use napi::{bindgen_prelude::*, sys};
use ringfence::Change;

use crate::{
    channel,
    handle::{Handle, Object, failure, failure_of, keep_alive},
    raw::{Answer, Call, Function, State, add_functions, new_object, set_property},
    task::{self, Going},
};

struct Seat {
    /// `None` once it was left.
    membership: Option<ringfence::Membership>,
    /// It is being left, and may not be through.
    going: Option<Going>,
    handle: Handle,
}

impl State for Seat {
    fn panicked(&mut self) {
        self.let_go();
        self.handle.panicked("the membership was left");
    }
}

impl Object for Seat {
    fn handle(&mut self) -> &mut Handle {
        &mut self.handle
    }
}

impl Seat {
    /// Takes the membership out, which is not watched any more.
    fn take(&mut self) -> Option<ringfence::Membership> {
        // First: a watched descriptor must not be closed.
        self.handle.stop();
        self.membership.take()
    }

    /// Leaves, and does not wait: a partner may take its time, and the event loop must not.
    fn let_go(&mut self) {
        if let Some(membership) = self.take() {
            self.going = Some(task::let_go(membership));
        }
    }

    /// As `let_go`, and waits a moment until the place is left: the process or its environment ends.
    fn leave_at_once(&mut self) {
        self.let_go();
        if let Some(going) = self.going.take() {
            task::wait_a_moment(&going);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave_at_once();
    }
}

/// The next change: a channel, a role, or the failure of one that was refused; 0 where there is none now.
fn next(seat: &mut Seat, call: &mut Call) -> Answer {
    let Some(membership) = &seat.membership else {
        return Answer::from(0);
    };
    let change = match membership.try_next() {
        Ok(Some(change)) => change,
        Ok(None) => return Answer::from(0),
        Err(error) => return seat.fail(error),
    };
    // SAFETY: this runs in a callback of the environment.
    let made = unsafe {
        match change {
            Change::Channel(channel) => channel::to_object(call.env, channel, seat.handle.use_libuv),
            Change::Role(role) => ToNapiValue::to_napi_value(call.env, role.to_string()),
            Change::Refused(refused) => ToNapiValue::to_napi_value(call.env, failure_of(&refused)),
            _ => return Answer::from(0),
        }
    };
    seat.handle.made(made, "what has changed")
}

fn watch(seat: &mut Seat, call: &mut Call) -> Answer {
    let Some(membership) = &seat.membership else {
        return Answer::from(0);
    };
    let events = membership.as_fd().as_raw_fd();
    // SAFETY: the descriptor lives as long as the membership, and the poll handle is stopped before that goes.
    unsafe { seat.handle.watch(call, events) }
}

/// 1: newcomers wait; 0: they are taken in.
fn pause(seat: &mut Seat, call: &mut Call) -> Answer {
    match &seat.membership {
        Some(membership) if call.size(0) != 0 => membership.pause(),
        Some(membership) => membership.resume(),
        None => {}
    }
    Answer::Nothing
}

/// Leaves, on a thread, since the partner's answer is waited for. 1: the callback is called later, once; 0: it is done
/// already.
fn leave(seat: &mut Seat, call: &mut Call) -> Answer {
    let Some(membership) = seat.take() else {
        return Answer::from(0);
    };
    let (going, gone) = mpsc::channel();
    seat.going = Some(gone);
    // SAFETY: this runs in a callback of the environment, whose argument the function is.
    let started = unsafe {
        task::run(
            call.env,
            call.value(0),
            "ringfence-leave",
            move || {
                membership.leave();
                drop::<mpsc::Sender<()>>(going);
            },
            |env, ()| task::nothing(env),
            || {},
        )
    };
    // Where no thread was to be had, it was left by dropping it.
    Answer::from(i32::from(started.is_ok()))
}

fn close(seat: &mut Seat, _call: &mut Call) -> Answer {
    seat.let_go();
    Answer::Nothing
}

fn vacate(seat: &mut Seat, _call: &mut Call) -> Answer {
    seat.leave_at_once();
    Answer::Nothing
}

/// The functions that JavaScript sees.
const FUNCTIONS: [(&CStr, Function<Seat>); 8] = [
    (c"next", next),
    (c"watch", watch),
    (c"pause", pause),
    (c"keepAlive", keep_alive),
    (c"leave", leave),
    (c"close", close),
    (c"vacate", vacate),
    (c"failure", failure),
];

/// A membership as a JavaScript object.
///
/// # Safety
/// `env` is the environment that runs now, on this thread, inside a handle scope.
pub(crate) unsafe fn to_object(
    env: sys::napi_env,
    membership: ringfence::Membership,
    use_libuv: bool,
) -> napi::Result<sys::napi_value> {
    // SAFETY: env is live.
    let object = unsafe { new_object(env) }?;
    // SAFETY: env and object are live.
    unsafe {
        let role = ToNapiValue::to_napi_value(env, membership.role().to_string())?;
        set_property(env, object, c"role", role)?;
    }
    let seat = Seat {
        membership: Some(membership),
        going: None,
        handle: Handle::new(use_libuv),
    };
    // SAFETY: env and object are live.
    unsafe { add_functions(env, object, &FUNCTIONS, seat) }?;
    Ok(object)
}
