//! A channel as a plain JavaScript object of functions. Functions on the hot path answer with numbers. A
//! negative number is not a size, and `-1` means that `failure()` returns the error.

use std::os::fd::AsRawFd;

use napi::{bindgen_prelude::*, sys};
use napi_derive::napi;
use ringfence::{
    ChannelStats, Packed, Progress, Receiver, Sender, Spsc, Tokens, Verifier,
    binding::{self, PairInlet, Retain},
};

use crate::{
    answers::{ATTACHED, ENDED, EndReason, MISMATCH, WHOLE},
    convert::Identity,
    handle::{Handle, Object, failure, keep_alive},
    poll::Poll,
    raw::{Answer, Call, Function, State, add_functions, new_object, set_number, set_property},
    reading::{
        ReadEndpoint, arm_reader, attachments, check_parked, empty_answer, error_answer, evidence, is_lost,
        packed_answer, packed_size_answer, park_reader, poll_line, pull, pull_busy, spin, verify, wake,
        watch,
    },
    sending::{
        Reservation, SendEndpoint, arm_writer, cancel, cancel_open, commit, flush, has_room, packed_room,
        progress_answer, reserve, send, try_send, with_bundle,
    },
};

struct Endpoint {
    /// `None` once the channel is closed and everything is released, including the line.
    halves: Option<Halves>,
    /// Unread messages of a peer that has ended, until they are read.
    leftover: Option<Receiver>,
    handle: Handle,
    /// `None` once all tokens were taken after the channel's end, or the rest was dropped.
    tokens: Option<Tokens>,
    /// Watches the doorbell of the tokens, which must not be closed while it is watched.
    token_poll: Option<Poll>,
    /// Counts of stray and dropped tokens, once `tokens` is `None`.
    final_token_counts: (u64, u64),
    /// See [`ReadEndpoint::evidence`].
    evidence: Vec<ringfence::Evidence>,
    reservation: Reservation,
    /// Statistics of sending, once there is no sender.
    sent: ChannelStats,
    /// Statistics of receiving, once there is no receiver.
    received: ChannelStats,
}

struct Halves {
    sender: Sender,
    receiver: Receiver,
    verifier: Verifier,
}

const CLOSED: ringfence::Error = ringfence::Error::Closed("the channel is closed");

impl State for Endpoint {
    fn panicked(&mut self) {
        self.drop_tokens();
        self.close();
        self.handle.panicked("the channel was closed");
    }
}

impl Object for Endpoint {
    fn handle(&mut self) -> &mut Handle {
        &mut self.handle
    }
}

impl SendEndpoint for Endpoint {
    type Ring = Spsc;

    fn sender(&mut self) -> ringfence::Result<&mut Sender> {
        self.halves
            .as_mut()
            .map(|halves| &mut halves.sender)
            .ok_or(CLOSED)
    }

    fn reservation(&mut self) -> &mut Reservation {
        &mut self.reservation
    }
}

impl ReadEndpoint for Endpoint {
    type Ring = PairInlet;

    const ALWAYS_WAKES: bool = false;

    fn reader(&mut self) -> ringfence::Result<&mut Receiver> {
        match &mut self.halves {
            Some(halves) => Some(&mut halves.receiver),
            None => self.leftover.as_mut(),
        }
        .ok_or(CLOSED)
    }

    fn verifier(&self) -> ringfence::Result<Verifier> {
        let halves = self.halves.as_ref().ok_or(CLOSED)?;
        Ok(halves.verifier.clone())
    }

    fn evidence(&mut self) -> &mut Vec<ringfence::Evidence> {
        &mut self.evidence
    }

    fn is_call_next(&mut self) -> bool {
        self.reader().is_ok_and(|receiver| receiver.tag().is_call())
    }
}

impl Endpoint {
    /// Returns the reason why the channel has ended, or 0 while it is open.
    fn reason(&self) -> Answer {
        let ended = match &self.halves {
            None => EndReason::Closed,
            Some(Halves { sender, .. }) => sender.close_reason().into(),
        };
        Answer::from(ended.number())
    }

    /// Closes the channel at once and releases the line. The peer gets a clean end only if the sending had ended.
    fn close(&mut self) {
        // Stop first, because a watched descriptor must not be closed.
        self.handle.stop();
        if let Some(Halves {
            mut sender,
            mut receiver,
            ..
        }) = self.halves.take()
        {
            self.sent = sender.stats();
            self.received = receiver.stats();
            sender.destroy();
            receiver.close();
        }
        if let Some(mut leftover) = self.leftover.take() {
            self.received = leftover.stats();
        }
    }

    /// Like [`Endpoint::close`], but keeps the peer's unread messages readable.
    fn close_keeping_unread(&mut self) {
        self.handle.stop();
        if let Some(Halves {
            mut sender, receiver, ..
        }) = self.halves.take()
        {
            self.sent = sender.stats();
            sender.destroy();
            self.leftover = Some(receiver);
        }
    }

    fn tokens(&self) -> ringfence::Result<&Tokens> {
        self.tokens.as_ref().ok_or(CLOSED)
    }

    fn drop_tokens(&mut self) {
        self.token_poll = None;
        if let Some(tokens) = self.tokens.take() {
            self.final_token_counts = (tokens.strays(), tokens.dropped());
        }
    }
}

/// Arguments: memory, the offset in it, and the lengths of the shortest and the longest message. A fifth
/// argument of 1 also holds a message that arrives alone.
fn pull_retained(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    // SAFETY: the slice is used within this call only, and requested once.
    let block = unsafe { call.bytes(0) };
    let offset = call.size(1).min(block.len());
    let lengths = call.size(2)..=call.size(3);
    let retain = if call.size(4) == 0 {
        Retain::Several
    } else {
        Retain::Each
    };
    let pulled = endpoint
        .reader()
        .and_then(|receiver| binding::pull_retained(receiver, &mut block[offset..], lengths, retain));
    packed_answer(endpoint, pulled)
}

/// Arguments: memory, and the number of bytes of the last pull that must not be returned again.
fn pull_again(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    // SAFETY: the slice is used within this call only, and requested once.
    let into = unsafe { call.bytes(0) };
    let consumed = call.size(1);
    let pulled = endpoint
        .reader()
        .and_then(|receiver| binding::pull_again(receiver, into, consumed));
    packed_answer(endpoint, pulled)
}

fn release(endpoint: &mut Endpoint, _call: &mut Call) -> Answer {
    if let Ok(receiver) = endpoint.reader() {
        binding::release(receiver);
    }
    Answer::Nothing
}

fn pull_retained_busy(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    spin(endpoint, call, pull_retained)
}

fn gather(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    // SAFETY: the slice is used within this call only, and requested once.
    let into = unsafe { call.bytes(0) };
    match endpoint.reader().and_then(|receiver| receiver.receive_part(into)) {
        Ok(Progress::Whole) => {
            let attached = endpoint
                .reader()
                .is_ok_and(|receiver| receiver.tag().attachments() > 0);
            Answer::from(if attached { ATTACHED } else { WHOLE })
        }
        Ok(Progress::Part(bytes)) => match empty_answer(endpoint) {
            Answer::Number(0.0) => bytes.into(),
            answer => answer,
        },
        Err(error) => error_answer(endpoint, error, ENDED),
    }
}

/// Arguments: the message, and its attachments. Answers as `send`; 0 if nothing was sent yet.
fn send_attached(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    // SAFETY: the slice is used within this call only, and requested once.
    let message = unsafe { call.bytes(0) };
    let sent = with_bundle(call, 1, |attachments| {
        endpoint.sender()?.send_part_with(message, attachments)
    });
    progress_answer(endpoint, sent)
}

/// Arguments: the size of the message, and its attachments. Answers as `armWriter`.
fn arm_attached(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    let size = call.size(0);
    let armed = with_bundle(call, 1, |attachments| {
        endpoint.sender()?.arm_with(size, attachments)
    });
    endpoint.answer(armed.map(i32::from))
}

/// Arguments: memory, the offset in it, and the lengths of the shortest and the longest frame. Answers as `pull`, and with `MISMATCH` if a
/// message is next.
fn pull_calls(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    // SAFETY: the slice is used within this call only, and requested once.
    let block = unsafe { call.bytes(0) };
    let offset = call.size(1).min(block.len());
    let lengths = call.size(2)..=call.size(3);
    let pulled = endpoint
        .reader()
        .and_then(|receiver| binding::pull_calls(receiver, &mut block[offset..], lengths));
    match pulled {
        Ok(Packed::Large(_)) if !endpoint.is_call_next() => MISMATCH.into(),
        pulled => packed_size_answer(endpoint, pulled),
    }
}

fn pull_calls_busy(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    spin(endpoint, call, pull_calls)
}

fn disarm(endpoint: &mut Endpoint, _call: &mut Call) -> Answer {
    if let Some(Halves { sender, receiver, .. }) = &mut endpoint.halves {
        sender.disarm();
        receiver.disarm();
    }
    Answer::Nothing
}

/// Reads the line, or arranges a later read. Answers 0 while the channel is open. Unread messages may remain
/// after it has closed.
fn listen(endpoint: &mut Endpoint, _call: &mut Call) -> Answer {
    if endpoint.halves.is_some() {
        poll_line(endpoint);
    }
    if let Some(Halves { sender, .. }) = &mut endpoint.halves {
        sender.refresh();
    }
    endpoint.reason()
}

fn end(endpoint: &mut Endpoint, _call: &mut Call) -> Answer {
    if let Ok(sender) = endpoint.sender() {
        sender.end();
    }
    endpoint.reason()
}

fn close(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    cancel_open(endpoint, call.env);
    endpoint.close();
    Answer::Nothing
}

fn outlive(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    cancel_open(endpoint, call.env);
    endpoint.close_keeping_unread();
    Answer::Nothing
}

/// Frees the address and leaves the channel as it is, because the process is exiting.
fn vacate(endpoint: &mut Endpoint, _call: &mut Call) -> Answer {
    if let Some(Halves { sender, .. }) = &endpoint.halves {
        sender.vacate();
    }
    Answer::Nothing
}

/// Argument: the token.
fn send_token(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    let sent = endpoint.tokens().and_then(|tokens| tokens.send(call.word(0)));
    endpoint.answer(sent.map(|()| 0_i32))
}

/// Answers with a token as a bigint, or with 0 if there is none now.
fn token(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    let Some(tokens) = &endpoint.tokens else {
        return Answer::from(ENDED);
    };
    let Some(token) = tokens.try_token() else {
        if !tokens.is_ended() {
            return Answer::from(0);
        }
        endpoint.drop_tokens();
        return Answer::from(ENDED);
    };
    Answer::bigint(call.env, token)
}

/// Calls the callback while a token is available, or once no more will arrive. Does not keep the event loop
/// alive, since the channel does.
fn watch_tokens(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    let doorbell = match endpoint.tokens().and_then(Tokens::bell) {
        Ok(doorbell) => doorbell.as_raw_fd(),
        Err(error) => return endpoint.fail(error),
    };
    // SAFETY: the doorbell stays open as long as the tokens, whose poll handle is stopped before they are
    // dropped.
    match unsafe { endpoint.handle.start_poll(call, doorbell) } {
        Ok(poll) => {
            poll.keep_alive(call.env, false);
            endpoint.token_poll = Some(poll);
            Answer::from(0)
        }
        Err(error) => endpoint.fail(error),
    }
}

fn unwatch_tokens(endpoint: &mut Endpoint, _call: &mut Call) -> Answer {
    endpoint.token_poll = None;
    Answer::Nothing
}

fn end_tokens(endpoint: &mut Endpoint, _call: &mut Call) -> Answer {
    endpoint.drop_tokens();
    Answer::Nothing
}

#[expect(clippy::cast_precision_loss, reason = "nobody counts to 2^53")]
fn stray_tokens(endpoint: &mut Endpoint, _call: &mut Call) -> Answer {
    let count = endpoint
        .tokens
        .as_ref()
        .map_or(endpoint.final_token_counts.0, Tokens::strays);
    Answer::Number(count as f64)
}

#[expect(clippy::cast_precision_loss, reason = "nobody counts to 2^53")]
fn dropped_tokens(endpoint: &mut Endpoint, _call: &mut Call) -> Answer {
    let count = endpoint
        .tokens
        .as_ref()
        .map_or(endpoint.final_token_counts.1, Tokens::dropped);
    Answer::Number(count as f64)
}

/// Answers with the statistics so far, in the order of TypeScript's `Figures`.
fn stats(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    if let Some(Halves { sender, receiver, .. }) = &mut endpoint.halves {
        endpoint.received = receiver.stats();
        endpoint.sent = sender.stats();
    } else if let Some(leftover) = &mut endpoint.leftover {
        endpoint.received = leftover.stats();
    }
    let Endpoint { sent, received, .. } = endpoint;
    let figures = [
        sent.messages_sent,
        sent.bytes_sent,
        // Both halves share these counters.
        received.bells_rung.max(sent.bells_rung),
        received.sleeps.max(sent.sleeps),
        sent.ring_used,
        sent.ring_capacity,
        sent.attachments_sent,
        received.attachments_received,
    ];
    Answer::numbers(call.env, &figures)
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.drop_tokens();
        self.close();
    }
}

/// Operations of a channel. One JavaScript function calls all of them, because each function takes a KiB of
/// memory.
const OPERATIONS: [(&str, Function<Endpoint>); 45] = [
    ("flush", flush),
    ("send", send),
    ("trySend", try_send),
    ("sendAttached", send_attached),
    ("armAttached", arm_attached),
    ("pull", pull),
    ("pullBusy", pull_busy),
    ("pullRetained", pull_retained),
    ("pullRetainedBusy", pull_retained_busy),
    ("pullAgain", pull_again),
    ("release", release),
    ("wake", wake),
    ("gather", gather),
    ("attachments", attachments),
    ("pullCalls", pull_calls),
    ("pullCallsBusy", pull_calls_busy),
    ("hasRoom", has_room),
    ("packedRoom", packed_room),
    ("armWriter", arm_writer),
    ("armReader", arm_reader),
    ("parkReader", park_reader),
    ("checkParked", check_parked),
    ("disarm", disarm),
    ("listen", listen),
    ("isLost", is_lost),
    ("reserve", reserve),
    ("commit", commit),
    ("cancel", cancel),
    ("end", end),
    ("close", close),
    ("outlive", outlive),
    ("vacate", vacate),
    ("watch", watch),
    ("keepAlive", keep_alive),
    ("verify", verify),
    ("sendToken", send_token),
    ("token", token),
    ("watchTokens", watch_tokens),
    ("unwatchTokens", unwatch_tokens),
    ("endTokens", end_tokens),
    ("strayTokens", stray_tokens),
    ("droppedTokens", dropped_tokens),
    ("evidence", evidence),
    ("stats", stats),
    ("failure", failure),
];

/// Returns the names of a channel's operations. JavaScript calls each by its index.
#[napi]
pub(crate) fn operations() -> Vec<&'static str> {
    OPERATIONS.iter().map(|(name, _)| *name).collect()
}

fn operate(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    let operation = call.size(0);
    call.shift();
    match OPERATIONS.get(operation) {
        Some((_, function)) => function(endpoint, call),
        None => Answer::Nothing,
    }
}

/// Creates the JavaScript object of a channel.
///
/// # Safety
/// `env` is the environment that runs now, on this thread, inside a handle scope.
pub(crate) unsafe fn to_object(
    env: sys::napi_env,
    channel: ringfence::Channel,
    use_libuv: bool,
) -> napi::Result<sys::napi_value> {
    // SAFETY: env is live.
    let object = unsafe { new_object(env) }?;
    let identity = Identity::from(channel.peer());
    let evidence = channel.evidence().to_vec();
    let role = channel.role().to_string();
    let verifier = channel.verifier();
    let tokens = channel.tokens();
    let (sender, mut receiver) = channel.split();
    receiver.accept_calls();
    #[expect(clippy::cast_precision_loss, reason = "sizes of memory are below 2^53")]
    let sizes = [
        (c"capacity", sender.capacity() as f64),
        (c"maxMessageSize", sender.max_message_size() as f64),
        (c"maxAtOnce", sender.max_at_once() as f64),
    ];
    // SAFETY: env and object are live.
    unsafe {
        set_property(env, object, c"peer", ToNapiValue::to_napi_value(env, identity)?)?;
        set_property(env, object, c"role", ToNapiValue::to_napi_value(env, role)?)?;
        for (name, size) in sizes {
            set_number(env, object, name, size)?;
        }
    }
    let endpoint = Endpoint {
        halves: Some(Halves {
            sender,
            receiver,
            verifier,
        }),
        handle: Handle::new(use_libuv),
        tokens: Some(tokens),
        token_poll: None,
        final_token_counts: (0, 0),
        evidence,
        leftover: None,
        reservation: Reservation::NONE,
        sent: ChannelStats::default(),
        received: ChannelStats::default(),
    };
    // SAFETY: env and object are live.
    unsafe { add_functions(env, object, &[(c"operate", operate)], endpoint) }?;
    Ok(object)
}
