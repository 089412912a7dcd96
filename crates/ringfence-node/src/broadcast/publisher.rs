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
    answers::Ended,
    broadcast::subscriber,
    handle::{Handle, Object, failure, failure_of, keep_alive},
    poll::Poll,
    raw::{Answer, Call, Function, State, add_functions, new_object, set_number},
    sending::{
        Reservation, Sends, arm_writer, cancel, cancel_open, commit, flush, has_room, packed_room, reserve,
        send, sent_part, try_send, with_bundle,
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
    room: Option<Poll>,
    reservation: Reservation,
    /// Subscribers that JavaScript knows, with their numbers.
    told: Vec<(u32, Subscriber)>,
    last: u32,
    /// Number of the last message, once there is no sender.
    sequence: u64,
    /// Statistics, once there is no sender.
    stats: PublisherStats,
}

const CLOSED: ringfence::Error = ringfence::Error::Closed("the publisher is closed");

impl Sends for PublisherState {
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
        self.drop_in_background();
        self.handle.panicked("the publisher was closed");
    }
}

impl Object for PublisherState {
    fn handle(&mut self) -> &mut Handle {
        &mut self.handle
    }
}

impl PublisherState {
    fn drop_in_background(&mut self) {
        // Stop first, because a watched descriptor must not be closed.
        self.handle.stop();
        self.room = None;
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
        let place = self.told.iter().position(|(_, subscriber)| subscriber.is(gone));
        place.map_or(0, |place| self.told.swap_remove(place).0)
    }
}

impl Drop for PublisherState {
    fn drop(&mut self) {
        self.drop_in_background();
    }
}

/// Answers with the next event: a subscriber, `{ gone, reason }` with an ended subscriber's number, or the
/// failure of a refused client. Answers 0 if there is none now.
fn next(publishing: &mut PublisherState, call: &mut Call) -> Answer {
    let Some(audience) = &publishing.audience else {
        return publishing.fail(CLOSED);
    };
    let event = match audience.try_next() {
        Ok(Some(event)) => event,
        Ok(None) => return Answer::from(0),
        Err(error) => return publishing.fail(error),
    };
    // SAFETY: this runs in a callback of the environment.
    let made = unsafe {
        match event {
            PublisherEvent::Subscriber(subscriber) => {
                publishing.last += 1;
                let number = publishing.last;
                publishing.told.push((number, subscriber.clone()));
                subscriber::to_object(call.env, subscriber, number)
            }
            PublisherEvent::Gone(subscriber, reason) => {
                let number = publishing.forget(&subscriber);
                gone(call.env, number, Some(reason).into())
            }
            PublisherEvent::Refused(refused) => ToNapiValue::to_napi_value(call.env, failure_of(&refused)),
            _ => return Answer::from(0),
        }
    };
    publishing.handle.made(made, "a subscriber")
}

/// Creates the `{ gone, reason }` object.
///
/// # Safety
/// `env` is the environment that runs now, on this thread, inside a handle scope.
unsafe fn gone(env: sys::napi_env, number: u32, reason: Ended) -> napi::Result<sys::napi_value> {
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
fn send_attached(publishing: &mut PublisherState, call: &mut Call) -> Answer {
    // SAFETY: used within this call, and asked for once.
    let message = unsafe { call.bytes(0) };
    let sent = with_bundle(call, 1, |attachments| {
        publishing.sender()?.try_send_with(message, attachments)
    });
    let sent = sent.map(|sent| if sent { Progress::Whole } else { Progress::Part(0) });
    sent_part(publishing, sent)
}

/// Arguments: the size of the message that `sendAttached` has not sent, and its attachments. Answers as `armWriter`.
fn arm_attached(publishing: &mut PublisherState, call: &mut Call) -> Answer {
    let size = call.size(0);
    let armed = with_bundle(call, 1, |attachments| {
        publishing.sender()?.arm_with(size, attachments)
    });
    publishing.answer(armed.map(i32::from))
}

fn disarm(publishing: &mut PublisherState, _call: &mut Call) -> Answer {
    if let Some(sender) = &mut publishing.sender {
        sender.disarm();
    }
    Answer::Nothing
}

/// Reads the subscribers' notifications, and checks for ended subscribers. Answers like `reason`.
fn listen(publishing: &mut PublisherState, call: &mut Call) -> Answer {
    if let Some(sender) = &mut publishing.sender {
        sender.poll_line();
    }
    reason(publishing, call)
}

/// Answers with the reason why the publisher has ended, or 0 while it is open.
fn reason(publishing: &mut PublisherState, _call: &mut Call) -> Answer {
    let ended = match &publishing.audience {
        None => Ended::Closed,
        Some(audience) => audience.close_reason().into(),
    };
    Answer::from(ended.number())
}

/// Answers with the number of published messages, as a bigint.
fn sequence(publishing: &mut PublisherState, call: &mut Call) -> Answer {
    let sequence = publishing
        .sender
        .as_ref()
        .map_or(publishing.sequence, Broadcaster::sequence);
    Answer::bigint(call.env, sequence)
}

/// Answers with the statistics so far, in the order of TypeScript's `Published`.
fn stats(publishing: &mut PublisherState, call: &mut Call) -> Answer {
    if let Some(sender) = &mut publishing.sender {
        publishing.stats = sender.stats();
    }
    let stats = &publishing.stats;
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

fn end(publishing: &mut PublisherState, call: &mut Call) -> Answer {
    if let Some(sender) = &mut publishing.sender {
        sender.end();
    }
    reason(publishing, call)
}

/// Seals on a thread, because it waits for handshakes in progress. The callback receives two nulls, once,
/// asynchronously.
fn seal(publishing: &mut PublisherState, call: &mut Call) -> Answer {
    let Some(audience) = publishing.audience.clone() else {
        return publishing.fail(CLOSED);
    };
    publishing.handle.later(
        call,
        ("ringfence-seal", "the thread of seal()"),
        move || audience.seal(),
        |env, ()| task::nothing(env),
    )
}

/// Frees the address and leaves the subscribers as they are, because the process is exiting.
fn vacate(publishing: &mut PublisherState, _call: &mut Call) -> Answer {
    if let Some(audience) = &publishing.audience {
        audience.seal();
    }
    Answer::Nothing
}

fn watch(publishing: &mut PublisherState, call: &mut Call) -> Answer {
    let Some(audience) = &publishing.audience else {
        return publishing.fail(CLOSED);
    };
    let events = audience.as_fd().as_raw_fd();
    // SAFETY: the descriptor lives as long as the audience, and the poll handle is stopped before that is
    // dropped.
    unsafe { publishing.handle.watch(call, events) }
}

/// Does not keep the event loop alive, since the publisher does.
fn watch_room(publishing: &mut PublisherState, call: &mut Call) -> Answer {
    let line = match publishing.sender() {
        Ok(sender) => sender.as_fd().as_raw_fd(),
        Err(error) => return publishing.fail(error),
    };
    // SAFETY: the descriptor lives as long as the sender, and the poll handle is stopped before that is
    // dropped.
    match unsafe { publishing.handle.start(call, line) } {
        Ok(poll) => {
            poll.keep_alive(call.env, false);
            publishing.room = Some(poll);
            Answer::from(0)
        }
        Err(error) => publishing.fail(error),
    }
}

fn close(publishing: &mut PublisherState, call: &mut Call) -> Answer {
    cancel_open(publishing, call.env);
    publishing.drop_in_background();
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
    let publishing = PublisherState {
        sender: Some(sender),
        audience: Some(Arc::new(audience)),
        handle: Handle::new(use_libuv),
        room: None,
        reservation: Reservation::NONE,
        told: Vec::new(),
        last: 0,
        sequence: 0,
        stats: PublisherStats::default(),
    };
    // SAFETY: env and object are live.
    unsafe { add_functions(env, object, &FUNCTIONS, publishing) }?;
    Ok(object)
}
