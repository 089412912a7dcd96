//! A membership as a plain JavaScript object of functions, like a listener. The core has its own thread for
//! it. An event makes a descriptor readable, which is watched like a channel's line.

use std::{
    ffi::CStr,
    os::fd::{AsFd, AsRawFd},
    sync::mpsc,
};

use napi::{bindgen_prelude::*, sys};
use ringfence::{Change, binding};

use crate::{
    channel,
    convert::Failure,
    handle::{Handle, Object, failure, keep_alive},
    raw::{Answer, Call, Function, State, add_functions, new_object, set_property},
    task::{self, Release},
};

struct MembershipState {
    /// `None` once the address was left.
    membership: Option<ringfence::Membership>,
    /// The leave in progress, which may not be finished.
    release: Option<Release>,
    handle: Handle,
}

impl State for MembershipState {
    fn panicked(&mut self) {
        self.leave_in_background();
        self.handle.panicked("the membership was left");
    }
}

impl Object for MembershipState {
    fn handle(&mut self) -> &mut Handle {
        &mut self.handle
    }
}

impl MembershipState {
    /// Takes the membership out and stops watching it.
    fn take(&mut self) -> Option<ringfence::Membership> {
        // Stop first, because a watched descriptor must not be closed.
        self.handle.stop();
        self.membership.take()
    }

    /// Leaves without waiting: the partner may be slow, and the event loop must not block.
    fn leave_in_background(&mut self) {
        if let Some(membership) = self.take() {
            binding::destroy_on_drop(&membership);
            self.release = Some(task::drop_in_background(membership));
        }
    }

    /// Like `leave_in_background`, and waits briefly until the address is left, because the process or its environment
    /// ends.
    fn leave_and_wait(&mut self) {
        self.leave_in_background();
        if let Some(release) = self.release.take() {
            task::wait_briefly(&release);
        }
    }
}

impl Drop for MembershipState {
    fn drop(&mut self) {
        self.leave_and_wait();
    }
}

/// Answers with the next change: a channel, a role, or the failure of a refused client. Answers 0 if there is
/// none now.
fn next(state: &mut MembershipState, call: &mut Call) -> Answer {
    let Some(membership) = &state.membership else {
        return Answer::from(0);
    };
    let change = match membership.try_next() {
        Ok(Some(change)) => change,
        Ok(None) => return Answer::from(0),
        Err(error) => return state.fail(error),
    };
    // SAFETY: this runs in a callback of the environment.
    let object = unsafe {
        match change {
            Change::Channel(channel) => channel::to_object(call.env, channel, state.handle.use_libuv),
            Change::Role(role) => ToNapiValue::to_napi_value(call.env, role.to_string()),
            Change::Refused(refused) => ToNapiValue::to_napi_value(call.env, Failure::from(&refused)),
            _ => return Answer::from(0),
        }
    };
    state.handle.object_answer(object, "a change")
}

fn watch(state: &mut MembershipState, call: &mut Call) -> Answer {
    let Some(membership) = &state.membership else {
        return Answer::from(0);
    };
    let events = membership.as_fd().as_raw_fd();
    // SAFETY: the descriptor lives as long as the membership, and the poll handle is stopped before that is
    // dropped.
    unsafe { state.handle.watch(call, events) }
}

/// Argument: 1 to let new clients wait, 0 to accept them.
fn pause(state: &mut MembershipState, call: &mut Call) -> Answer {
    match &state.membership {
        Some(membership) if call.size(0) != 0 => membership.pause(),
        Some(membership) => membership.resume(),
        None => {}
    }
    Answer::Nothing
}

/// Leaves on a thread, because it waits for the partner's answer. Arguments: the callback, and 1 if everything that was
/// sent is in the ring, so that the partner gets a clean end. Answers 1 if the callback will be called, later and once, and
/// 0 if the address was already left.
fn leave(state: &mut MembershipState, call: &mut Call) -> Answer {
    let Some(membership) = state.take() else {
        return Answer::from(0);
    };
    if call.size(1) == 0 {
        binding::destroy_on_drop(&membership);
    }
    let (sender, receiver) = mpsc::channel();
    state.release = Some(receiver);
    // SAFETY: this runs in a callback of the environment, and the function is its argument.
    let started = unsafe {
        task::run(
            call.env,
            call.value(0),
            "ringfence-leave",
            move || {
                membership.leave();
                drop::<mpsc::Sender<()>>(sender);
            },
            |env, ()| task::no_result(env),
            || {},
        )
    };
    // If no thread could be started, the membership was dropped, which leaves the address.
    Answer::from(i32::from(started.is_ok()))
}

fn close(state: &mut MembershipState, _call: &mut Call) -> Answer {
    state.leave_in_background();
    Answer::Nothing
}

fn vacate(state: &mut MembershipState, _call: &mut Call) -> Answer {
    state.leave_and_wait();
    Answer::Nothing
}

/// Functions of the JavaScript object.
const FUNCTIONS: [(&CStr, Function<MembershipState>); 8] = [
    (c"next", next),
    (c"watch", watch),
    (c"pause", pause),
    (c"keepAlive", keep_alive),
    (c"leave", leave),
    (c"close", close),
    (c"vacate", vacate),
    (c"failure", failure),
];

/// Creates the JavaScript object of a membership.
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
    let state = MembershipState {
        membership: Some(membership),
        release: None,
        handle: Handle::new(use_libuv),
    };
    // SAFETY: env and object are live.
    unsafe { add_functions(env, object, &FUNCTIONS, state) }?;
    Ok(object)
}
