//! A subscription: the operations by which a channel is read, over the ring of a publisher.

use std::{
    cell::RefCell,
    ffi::CStr,
    os::fd::{AsFd, AsRawFd},
    ptr,
    rc::Rc,
    time::{Duration, Instant},
};

use napi::{bindgen_prelude::*, sys};
use ringfence::{Packed, Subscription, SubscriptionStats, Verified, Verifier, binding};

use crate::{
    answers::{ENDED, Ended, FIRST, LARGE, MORE, OTHER, WHOLE},
    convert::{self, Evidence, Failure, Identity},
    handle::Handle,
    raw::{Answer, Call, Function, add_function, check, set_number, set_property},
    task,
};

struct Reading {
    /// `None` once it is closed.
    subscription: Option<Subscription>,
    handle: Handle,
    verifier: Option<Verifier>,
    evidence: Vec<ringfence::Evidence>,
    busy_poll: Duration,
    /// Before the last messages were fetched.
    before: Counts,
    /// With them.
    now: Counts,
    /// What was done, once there is no subscription to ask.
    stats: SubscriptionStats,
}

/// Of the messages that were fetched so far.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    /// The number of the last one.
    sequence: u64,
    /// Those that will never be handed out.
    lost: u64,
}

const CLOSED: ringfence::Error = ringfence::Error::Closed("the subscription is closed");

impl Reading {
    fn subscription(&mut self) -> ringfence::Result<&mut Subscription> {
        self.subscription.as_mut().ok_or(CLOSED)
    }

    fn fail(&mut self, error: ringfence::Error) -> Answer {
        self.handle.fail(error)
    }

    fn answer<T: Into<Answer>>(&mut self, result: ringfence::Result<T>) -> Answer {
        match result {
            Ok(value) => value.into(),
            Err(error) => self.fail(error),
        }
    }

    fn panicked(&mut self) {
        self.let_go();
        self.handle.panicked("the subscription was closed");
    }

    /// Messages have been fetched. What was lost lies before the first of them.
    fn fetched(&mut self) {
        if let Some(subscription) = &self.subscription {
            self.before = self.now;
            self.now = Counts {
                sequence: subscription.sequence(),
                lost: subscription.lost(),
            };
        }
    }

    /// What was handed out, where so many of the messages that were fetched last were not.
    fn counts(&self, unread: u64) -> Counts {
        let Counts { sequence, lost } = self.now;
        let fetched = (sequence - self.before.sequence) - (lost - self.before.lost);
        if unread > 0 && unread == fetched {
            return self.before;
        }
        Counts {
            sequence: sequence - unread.min(fetched),
            lost,
        }
    }

    fn reason(&self) -> Answer {
        let ended = match &self.subscription {
            None => Ended::Closed,
            Some(subscription) => match subscription.close_reason() {
                None => Ended::No,
                Some(_) if self.verifier.as_ref().is_some_and(Verifier::has_refused) => Ended::Refused,
                Some(reason) => Ended::from(reason),
            },
        };
        Answer::from(ended.number())
    }

    fn let_go(&mut self) {
        // First: a watched descriptor must not be closed.
        self.handle.stop();
        self.verifier = None;
        if let Some(mut subscription) = self.subscription.take() {
            self.stats = subscription.stats();
            subscription.close();
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Whether the reader has come to the end, where it has found nothing.
fn nothing(reading: &mut Reading) -> Answer {
    let ended = reading
        .subscription()
        .and_then(Subscription::is_ended)
        .map(|ended| if ended { ENDED } else { 0 });
    reading.answer(ended)
}

/// As a channel's.
fn pull(reading: &mut Reading, call: &mut Call) -> Answer {
    // SAFETY: used within this call, and asked for once.
    let arena = unsafe { call.bytes(0) };
    let from = call.size(1).min(arena.len());
    let goes_on = u32::try_from(call.size(2)).unwrap_or(0);
    if let Ok(subscription) = reading.subscription() {
        match goes_on {
            FIRST => subscription.begin_round(),
            MORE if subscription.is_round_over() => return Answer::from(0),
            _ => {}
        }
    }
    let pulled = reading
        .subscription()
        .and_then(|subscription| subscription.try_receive_packed(&mut arena[from..]));
    match pulled {
        Ok(Packed::Bytes(bytes)) => {
            reading.fetched();
            bytes.into()
        }
        #[expect(clippy::cast_precision_loss, reason = "sizes of messages are below 2^53")]
        Ok(Packed::Large(size)) => Answer::Number(f64::from(LARGE) - size as f64),
        Ok(Packed::Nothing) => nothing(reading),
        Err(error) => reading.fail(error),
    }
}

/// As `pull`, and where nothing is there, spins for as long as the option says.
fn pull_busy(reading: &mut Reading, call: &mut Call) -> Answer {
    let end = Instant::now().checked_add(reading.busy_poll);
    loop {
        match pull(reading, call) {
            Answer::Number(0.0) => {}
            answer => return answer,
        }
        // The clock costs as much as many looks.
        for _ in 0..64 {
            match reading.subscription().and_then(Subscription::has_message) {
                Ok(false) => std::hint::spin_loop(),
                Ok(true) => break,
                Err(error) => return reading.fail(error),
            }
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return pull(reading, call);
        }
    }
}

/// What has been read is told with each `pull`.
fn wake(_reading: &mut Reading, _call: &mut Call) -> Answer {
    Answer::Nothing
}

/// A message for which `pull` had no room, into memory of its size. Where it was overtaken meanwhile, another one is next: `OTHER` where
/// that is longer, `LARGE - size` where it is here, and shorter.
fn gather(reading: &mut Reading, call: &mut Call) -> Answer {
    // SAFETY: used within this call, and asked for once.
    let into = unsafe { call.bytes(0) };
    let size = reading.subscription().and_then(Subscription::next_size);
    match size {
        Ok(Some(size)) if size == into.len() => {}
        Ok(Some(_)) => return Answer::from(OTHER),
        Ok(None) => return nothing(reading),
        Err(error) => return reading.fail(error),
    }
    let received = reading
        .subscription()
        .and_then(|subscription| subscription.try_receive(into));
    match received {
        Ok(Some(length)) if length == into.len() => {
            reading.fetched();
            Answer::from(WHOLE)
        }
        #[expect(clippy::cast_precision_loss, reason = "sizes of messages are below 2^53")]
        Ok(Some(length)) => {
            reading.fetched();
            Answer::Number(f64::from(LARGE) - length as f64)
        }
        Ok(None) | Err(ringfence::Error::InvalidArgument(_)) => Answer::from(OTHER),
        Err(error) => reading.fail(error),
    }
}

/// Whether there is something to read now: 1, 0, or as `pull` answers where nothing is there.
fn has_message(reading: &mut Reading, _call: &mut Call) -> Answer {
    match reading.subscription().and_then(Subscription::has_message) {
        Ok(true) => Answer::from(1),
        Ok(false) => nothing(reading),
        Err(error) => reading.fail(error),
    }
}

fn arm_reader(reading: &mut Reading, _call: &mut Call) -> Answer {
    let armed = reading.subscription().and_then(Subscription::arm).map(i32::from);
    reading.answer(armed)
}

fn park_reader(reading: &mut Reading, _call: &mut Call) -> Answer {
    let announced = reading.subscription().and_then(binding::announce);
    reading.answer(announced.map(i32::from))
}

fn look_parked(reading: &mut Reading, _call: &mut Call) -> Answer {
    let armed = reading.subscription().and_then(binding::look_parked);
    reading.answer(armed.map(i32::from))
}

fn disarm(reading: &mut Reading, _call: &mut Call) -> Answer {
    if let Some(subscription) = &mut reading.subscription {
        subscription.disarm();
    }
    Answer::Nothing
}

/// Reads the line, or sees to it that it is read later. 0 while the subscription is open; messages may still be there to read when it is
/// not.
fn listen(reading: &mut Reading, _call: &mut Call) -> Answer {
    let later = reading.handle.was_rung();
    if let Some(subscription) = &mut reading.subscription {
        // What the reader finds wrong is told to the next read, again; here only the end counts.
        let _ = if later {
            subscription.poll_line_later()
        } else {
            subscription.poll_line()
        };
    }
    reading.reason()
}

/// Argument: how many of the messages that were fetched last were not handed out.
fn sequence(reading: &mut Reading, call: &mut Call) -> Answer {
    let counts = reading.counts(call.size(0) as u64);
    Answer::bigint(call.env, counts.sequence)
}

fn lost(reading: &mut Reading, call: &mut Call) -> Answer {
    let counts = reading.counts(call.size(0) as u64);
    Answer::bigint(call.env, counts.lost)
}

/// What was done so far, in the order of the face's `Subscribed`. Those that were fetched count, whether handed out or not.
fn stats(reading: &mut Reading, call: &mut Call) -> Answer {
    if let Some(subscription) = &reading.subscription {
        reading.stats = subscription.stats();
    }
    let stats = &reading.stats;
    let figures = [
        stats.messages_received,
        stats.bytes_received,
        stats.lag,
        stats.sleeps,
    ];
    Answer::numbers(call.env, &figures)
}

fn watch(reading: &mut Reading, call: &mut Call) -> Answer {
    let line = match reading.subscription() {
        Ok(subscription) => subscription.as_fd().as_raw_fd(),
        Err(error) => return reading.fail(error),
    };
    // SAFETY: the line lives as long as the subscription, and the poll handle is stopped before that goes.
    unsafe { reading.handle.watch(call, line) }
}

/// The line is watched no more: the publisher is gone, and what it has left is read without.
fn outlive(reading: &mut Reading, _call: &mut Call) -> Answer {
    reading.handle.stop();
    Answer::Nothing
}

fn keep_alive(reading: &mut Reading, call: &mut Call) -> Answer {
    reading.handle.keep_alive(call)
}

/// As a channel's.
fn verify(reading: &mut Reading, call: &mut Call) -> Answer {
    let Some(verifier) = reading.verifier.clone() else {
        return reading.fail(CLOSED);
    };
    // SAFETY: this runs in a callback of the environment, whose argument the function is.
    let started = unsafe {
        task::run(
            call.env,
            call.value(0),
            "ringfence-verify",
            move || verifier.verify(),
            |env, outcome: ringfence::Result<Verified>| match outcome {
                Ok(found) => Ok([
                    ToNapiValue::to_napi_value(env, Null)?,
                    ToNapiValue::to_napi_value(env, convert::Verified::from(&found))?,
                ]),
                Err(error) => Ok([
                    ToNapiValue::to_napi_value(env, Failure::from(&error))?,
                    ToNapiValue::to_napi_value(env, Null)?,
                ]),
            },
            || {},
        )
    };
    match started {
        Ok(()) => Answer::from(0),
        Err(error) => reading.fail(ringfence::Error::NoSpace {
            what: "looking at the publisher".into(),
            reason: error.reason.clone(),
        }),
    }
}

/// What was checked in the handshake, once.
fn evidence(reading: &mut Reading, call: &mut Call) -> Answer {
    let evidence = std::mem::take(&mut reading.evidence);
    let evidence: Vec<Evidence> = evidence.iter().map(Evidence::from).collect();
    // SAFETY: this runs in a callback of the environment.
    match unsafe { ToNapiValue::to_napi_value(call.env, evidence) } {
        Ok(value) => Answer::Value(value),
        Err(_) => Answer::Nothing,
    }
}

fn close(reading: &mut Reading, _call: &mut Call) -> Answer {
    reading.let_go();
    Answer::Nothing
}

fn failure(reading: &mut Reading, call: &mut Call) -> Answer {
    reading.handle.failure(call)
}

/// The functions that JavaScript sees.
const FUNCTIONS: [(&CStr, Function<Reading>); 20] = [
    (c"pull", pull),
    (c"pullBusy", pull_busy),
    (c"wake", wake),
    (c"gather", gather),
    (c"hasMessage", has_message),
    (c"armReader", arm_reader),
    (c"parkReader", park_reader),
    (c"lookParked", look_parked),
    (c"disarm", disarm),
    (c"listen", listen),
    (c"sequence", sequence),
    (c"lost", lost),
    (c"stats", stats),
    (c"watch", watch),
    (c"outlive", outlive),
    (c"keepAlive", keep_alive),
    (c"verify", verify),
    (c"evidence", evidence),
    (c"close", close),
    (c"failure", failure),
];

/// A subscription as a JavaScript object.
///
/// # Safety
/// `env` is the environment that runs now, on this thread, inside a handle scope.
pub(crate) unsafe fn to_object(
    env: sys::napi_env,
    subscription: Subscription,
    use_libuv: bool,
) -> napi::Result<sys::napi_value> {
    let mut object = ptr::null_mut();
    // SAFETY: env is live.
    let status = unsafe { sys::napi_create_object(env, &raw mut object) };
    check(status, "an object")?;
    let identity = Identity::from(subscription.peer());
    let delivery = subscription.delivery().to_string();
    #[expect(clippy::cast_precision_loss, reason = "sizes of memory are below 2^53")]
    let sizes = [
        (c"capacity", subscription.capacity() as f64),
        (c"maxMessageSize", subscription.max_message_size() as f64),
    ];
    // SAFETY: env and object are live.
    unsafe {
        set_property(env, object, c"peer", ToNapiValue::to_napi_value(env, identity)?)?;
        set_property(
            env,
            object,
            c"delivery",
            ToNapiValue::to_napi_value(env, delivery)?,
        )?;
        for (name, size) in sizes {
            set_number(env, object, name, size)?;
        }
    }
    let counts = Counts {
        sequence: subscription.sequence(),
        lost: subscription.lost(),
    };
    let reading = Rc::new(RefCell::new(Reading {
        verifier: Some(subscription.verifier()),
        evidence: subscription.evidence().to_vec(),
        busy_poll: subscription.busy_poll(),
        subscription: Some(subscription),
        handle: Handle::new(use_libuv),
        before: counts,
        now: counts,
        stats: SubscriptionStats::default(),
    }));
    for (name, function) in FUNCTIONS {
        // SAFETY: env and object are live.
        unsafe { add_function(env, object, name, &reading, function, Reading::panicked) }?;
    }
    Ok(object)
}
