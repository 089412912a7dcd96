//! A publisher. The core has its own threads for it. Two descriptors are watched: one is readable if there
//! are events, the other if a subscriber has freed space for a waiting sender.

use std::{
    ffi::CStr,
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
};

use napi::{bindgen_prelude::*, sys};
use ringfence::{
    Audience, Broadcaster, FanOut, Progress, Publisher, PublisherEvent, PublisherStats, Subscriber,
};

use crate::{
    answers::EndReason,
    broadcast::subscriber,
    convert::Failure,
    handle::{Handle, Object, failure, keep_alive},
    poll::Poll,
    raw::{Answer, Call, Function, State, add_functions, new_object, set_number},
    sending::{
        Reservation, SendEndpoint, arm_writer, cancel, cancel_open, commit, flush, has_room, packed_room,
        progress_answer, reserve, send, try_send, with_bundle,
    },
    task,
};

struct PublisherState {
    /// `None` once the publisher is closed.
    sender: Option<Broadcaster>,
    audience: Option<Arc<Audience>>,
    /// Watches the events.
    handle: Handle,
    /// Watches for free space, for a waiting sender.
    room_poll: Option<Poll>,
    reservation: Reservation,
    /// Subscribers that JavaScript knows, with their numbers.
    known_subscribers: Vec<(u32, Subscriber)>,
    last_number: u32,
    /// Number of the last message, once there is no sender.
    sequence: u64,
    /// Statistics, once there is no sender.
    stats: PublisherStats,
}

const CLOSED: ringfence::Error = ringfence::Error::Closed("the publisher is closed");

impl SendEndpoint for PublisherState {
    type Ring = FanOut;

    fn sender(&mut self) -> ringfence::Result<&mut Broadcaster> {
        self.sender.as_mut().ok_or(CLOSED)
    }

    fn reservation(&mut self) -> &mut Reservation {
        &mut self.reservation
    }
}

impl State for PublisherState {
    fn panicked(&mut self) {
        self.close();
        self.handle.panicked("the publisher was closed");
    }
}

impl Object for PublisherState {
    fn handle(&mut self) -> &mut Handle {
        &mut self.handle
    }
}

impl PublisherState {
    fn close(&mut self) {
        // Stop first, because a watched descriptor must not be closed.
        self.handle.stop();
        self.room_poll = None;
        // Read before the subscribers are disconnected.
        if let Some(sender) = &mut self.sender {
            self.stats = sender.stats();
        }
        if let Some(audience) = self.audience.take() {
            audience.destroy();
        }
        if let Some(mut sender) = self.sender.take() {
            self.sequence = sender.sequence();
            // A subscriber that was evicted in the meantime counts.
            self.stats.evicted = sender.stats().evicted;
        }
    }

    /// Removes an ended subscriber, and returns the number by which JavaScript knows it.
    fn forget(&mut self, gone: &Subscriber) -> u32 {
        let index = self
            .known_subscribers
            .iter()
            .position(|(_, subscriber)| subscriber.is(gone));
        index.map_or(0, |index| self.known_subscribers.swap_remove(index).0)
    }
}

impl Drop for PublisherState {
    fn drop(&mut self) {
        self.close();
    }
}

/// Answers with the next event: a subscriber, `{ gone, reason }` with an ended subscriber's number, or the
/// failure of a refused client. Answers 0 if there is none now.
fn next(endpoint: &mut PublisherState, call: &mut Call) -> Answer {
    let Some(audience) = &endpoint.audience else {
        return endpoint.fail(CLOSED);
    };
    let event = match audience.try_next() {
        Ok(Some(event)) => event,
        Ok(None) => return Answer::from(0),
        Err(error) => return endpoint.fail(error),
    };
    // SAFETY: this runs in a callback of the environment.
    let object = unsafe {
        match event {
            PublisherEvent::Subscriber(subscriber) => {
                endpoint.last_number += 1;
                let number = endpoint.last_number;
                endpoint.known_subscribers.push((number, subscriber.clone()));
                subscriber::to_object(call.env, subscriber, number)
            }
            PublisherEvent::Gone(subscriber, reason) => {
                let number = endpoint.forget(&subscriber);
                gone_object(call.env, number, Some(reason).into())
            }
            PublisherEvent::Refused(refused) => ToNapiValue::to_napi_value(call.env, Failure::from(&refused)),
            _ => return Answer::from(0),
        }
    };
    endpoint.handle.object_answer(object, "a subscriber")
}

/// Creates the `{ gone, reason }` object.
///
/// # Safety
/// `env` is the environment that runs now, on this thread, inside a handle scope.
unsafe fn gone_object(env: sys::napi_env, number: u32, reason: EndReason) -> napi::Result<sys::napi_value> {
    // SAFETY: env is live.
    let object = unsafe { new_object(env) }?;
    // SAFETY: env and object are live.
    unsafe {
        set_number(env, object, c"gone", number.into())?;
        set_number(env, object, c"reason", reason.number().into())?;
    }
    Ok(object)
}

/// Arguments: the message, and its attachments. Answers as `send`; 0 if it was not sent.
fn send_attached(endpoint: &mut PublisherState, call: &mut Call) -> Answer {
    // SAFETY: the slice is used within this call only, and requested once.
    let message = unsafe { call.bytes(0) };
    let sent = with_bundle(call, 1, |attachments| {
        endpoint.sender()?.try_send_with(message, attachments)
    });
    let sent = sent.map(|sent| if sent { Progress::Whole } else { Progress::Part(0) });
    progress_answer(endpoint, sent)
}

/// Arguments: the size of the message that `sendAttached` has not sent, and its attachments. Answers as `armWriter`.
fn arm_attached(endpoint: &mut PublisherState, call: &mut Call) -> Answer {
    let size = call.size(0);
    let armed = with_bundle(call, 1, |attachments| {
        endpoint.sender()?.arm_with(size, attachments)
    });
    endpoint.answer(armed.map(i32::from))
}

fn disarm(endpoint: &mut PublisherState, _call: &mut Call) -> Answer {
    if let Some(sender) = &mut endpoint.sender {
        sender.disarm();
    }
    Answer::Nothing
}

/// Reads the subscribers' notifications, and checks for ended subscribers. Answers like `reason`.
fn listen(endpoint: &mut PublisherState, call: &mut Call) -> Answer {
    if let Some(sender) = &mut endpoint.sender {
        sender.poll_line();
    }
    reason(endpoint, call)
}

/// Answers with the reason why the publisher has ended, or 0 while it is open.
fn reason(endpoint: &mut PublisherState, _call: &mut Call) -> Answer {
    let ended = match &endpoint.audience {
        None => EndReason::Closed,
        Some(audience) => audience.close_reason().into(),
    };
    Answer::from(ended.number())
}

/// Answers with the number of published messages, as a bigint.
fn sequence(endpoint: &mut PublisherState, call: &mut Call) -> Answer {
    let sequence = endpoint
        .sender
        .as_ref()
        .map_or(endpoint.sequence, Broadcaster::sequence);
    Answer::bigint(call.env, sequence)
}

/// Answers with the statistics so far, in the order of TypeScript's `Published`.
fn stats(endpoint: &mut PublisherState, call: &mut Call) -> Answer {
    if let Some(sender) = &mut endpoint.sender {
        endpoint.stats = sender.stats();
    }
    let stats = &endpoint.stats;
    let figures = [
        stats.published,
        stats.bytes_published,
        stats.evicted,
        stats.ring_used,
        stats.ring_capacity,
        stats.attachments_sent,
        stats.attachments_withheld,
    ];
    Answer::numbers(call.env, &figures)
}

fn end(endpoint: &mut PublisherState, call: &mut Call) -> Answer {
    if let Some(sender) = &mut endpoint.sender {
        sender.end();
    }
    reason(endpoint, call)
}

/// Seals on a thread, because it waits for handshakes in progress. The callback receives two nulls, once,
/// asynchronously.
fn seal(endpoint: &mut PublisherState, call: &mut Call) -> Answer {
    let Some(audience) = endpoint.audience.clone() else {
        return endpoint.fail(CLOSED);
    };
    endpoint.handle.run_on_thread(
        call,
        ("ringfence-seal", "the thread of seal()"),
        move || audience.seal(),
        |env, ()| task::no_result(env),
    )
}

/// Frees the address and leaves the subscribers as they are, because the process is exiting.
fn vacate(endpoint: &mut PublisherState, _call: &mut Call) -> Answer {
    if let Some(audience) = &endpoint.audience {
        audience.seal();
    }
    Answer::Nothing
}

fn watch(endpoint: &mut PublisherState, call: &mut Call) -> Answer {
    let Some(audience) = &endpoint.audience else {
        return endpoint.fail(CLOSED);
    };
    let events = audience.as_fd().as_raw_fd();
    // SAFETY: the descriptor lives as long as the audience, and the poll handle is stopped before that is
    // dropped.
    unsafe { endpoint.handle.watch(call, events) }
}

/// Does not keep the event loop alive, since the publisher does.
fn watch_room(endpoint: &mut PublisherState, call: &mut Call) -> Answer {
    let line = match endpoint.sender() {
        Ok(sender) => sender.as_fd().as_raw_fd(),
        Err(error) => return endpoint.fail(error),
    };
    // SAFETY: the descriptor lives as long as the sender, and the poll handle is stopped before that is
    // dropped.
    match unsafe { endpoint.handle.start_poll(call, line) } {
        Ok(poll) => {
            poll.keep_alive(call.env, false);
            endpoint.room_poll = Some(poll);
            Answer::from(0)
        }
        Err(error) => endpoint.fail(error),
    }
}

fn close(endpoint: &mut PublisherState, call: &mut Call) -> Answer {
    cancel_open(endpoint, call.env);
    endpoint.close();
    Answer::Nothing
}

/// Functions of the JavaScript object.
const FUNCTIONS: [(&CStr, Function<PublisherState>); 25] = [
    (c"flush", flush),
    (c"send", send),
    (c"sendAttached", send_attached),
    (c"armAttached", arm_attached),
    (c"trySend", try_send),
    (c"hasRoom", has_room),
    (c"packedRoom", packed_room),
    (c"armWriter", arm_writer),
    (c"disarm", disarm),
    (c"reserve", reserve),
    (c"commit", commit),
    (c"cancel", cancel),
    (c"next", next),
    (c"listen", listen),
    (c"reason", reason),
    (c"sequence", sequence),
    (c"stats", stats),
    (c"end", end),
    (c"seal", seal),
    (c"vacate", vacate),
    (c"watch", watch),
    (c"watchRoom", watch_room),
    (c"keepAlive", keep_alive),
    (c"close", close),
    (c"failure", failure),
];

/// Creates the JavaScript object of a publisher.
///
/// # Safety
/// `env` is the environment that runs now, on this thread, inside a handle scope.
pub(crate) unsafe fn to_object(
    env: sys::napi_env,
    publisher: Publisher,
    use_libuv: bool,
) -> napi::Result<sys::napi_value> {
    // SAFETY: env is live.
    let object = unsafe { new_object(env) }?;
    #[expect(clippy::cast_precision_loss, reason = "sizes of memory are below 2^53")]
    let sizes = [
        (c"capacity", publisher.capacity() as f64),
        (c"maxMessageSize", publisher.max_message_size() as f64),
        // A publisher never splits a message.
        (c"maxAtOnce", publisher.max_message_size() as f64),
    ];
    for (name, size) in sizes {
        // SAFETY: env and object are live.
        unsafe { set_number(env, object, name, size) }?;
    }
    let (sender, audience) = publisher.split();
    let endpoint = PublisherState {
        sender: Some(sender),
        audience: Some(Arc::new(audience)),
        handle: Handle::new(use_libuv),
        room_poll: None,
        reservation: Reservation::NONE,
        known_subscribers: Vec::new(),
        last_number: 0,
        sequence: 0,
        stats: PublisherStats::default(),
    };
    // SAFETY: env and object are live.
    unsafe { add_functions(env, object, &FUNCTIONS, endpoint) }?;
    Ok(object)
}
