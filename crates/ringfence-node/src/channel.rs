//! A channel as a plain JavaScript object of functions. Those on the hot path answer with numbers: what is negative
//! is not a size, and `-1` says that `failure()` knows more.

use std::{os::fd::AsRawFd, time::Duration};

use napi::{bindgen_prelude::*, sys};
use napi_derive::napi;
use ringfence::{
    ChannelStats, CloseReason, Progress, Receiver, Sender, Tokens, Verifier,
    binding::{self, Keep},
};

use crate::{
    answers::{ENDED, Ended, WHOLE},
    convert::Identity,
    handle::{Handle, Object, failure, keep_alive},
    poll::Poll,
    raw::{Answer, Call, Function, State, add_functions, new_object, set_number, set_property},
    reading::{
        Reads, arm_reader, evidence, hear, look_parked, nothing, park_reader, pull, pull_busy, spin, told,
        verify, wake, watch,
    },
    sending::{
        Reservation, Sends, arm_writer, cancel, cancel_open, commit, flush, has_room, packed_room, reserve,
        send, try_send,
    },
};

struct Endpoint {
    /// `None` once the channel is closed and everything is let go of, the line included.
    halves: Option<Halves>,
    /// What the peer has left when it was gone, until it was read.
    left: Option<Receiver>,
    handle: Handle,
    /// `None` once all have been taken after the channel's end, or the rest is let go of.
    tokens: Option<Tokens>,
    /// Of the bell of the tokens, which must not be closed while it is watched.
    token_poll: Option<Poll>,
    /// Strays and dropped tokens, once there are no tokens any more to ask.
    counted: (u64, u64),
    /// See [`Reads::evidence`].
    evidence: Vec<ringfence::Evidence>,
    reservation: Reservation,
    busy_poll: Duration,
    /// What was sent, once there is no sender to ask.
    sent: ChannelStats,
    /// The same of what was received.
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
        self.let_tokens_go();
        self.let_go();
        self.handle.panicked("the channel was closed");
    }
}

impl Object for Endpoint {
    fn handle(&mut self) -> &mut Handle {
        &mut self.handle
    }
}

impl Sends for Endpoint {
    type Writer = Sender;

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

impl Reads for Endpoint {
    type Reader = Receiver;

    fn reader(&mut self) -> ringfence::Result<&mut Receiver> {
        match &mut self.halves {
            Some(halves) => Some(&mut halves.receiver),
            None => self.left.as_mut(),
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

    fn busy_poll(&self) -> Duration {
        self.busy_poll
    }
}

impl Endpoint {
    /// Why the channel has ended: 0 while it has not.
    fn reason(&self) -> Answer {
        let ended = match &self.halves {
            None => Ended::Closed,
            Some(Halves { sender, verifier, .. }) => Ended::of(sender.close_reason(), || verifier.clone()),
        };
        Answer::from(ended.number())
    }

    /// Closes the channel, and lets go of the line as well.
    fn let_go(&mut self) {
        // First: a watched descriptor must not be closed.
        self.handle.stop();
        if let Some(Halves {
            mut sender,
            mut receiver,
            ..
        }) = self.halves.take()
        {
            self.sent = sender.stats();
            self.received = receiver.stats();
            sender.close();
            receiver.close();
        }
        if let Some(mut left) = self.left.take() {
            self.received = left.stats();
        }
    }

    /// As [`Endpoint::let_go`], but what the peer has left can be read still.
    fn outlive(&mut self) {
        self.handle.stop();
        if let Some(Halves {
            mut sender, receiver, ..
        }) = self.halves.take()
        {
            self.sent = sender.stats();
            sender.close();
            self.left = Some(receiver);
        }
    }

    fn tokens(&self) -> ringfence::Result<&Tokens> {
        self.tokens.as_ref().ok_or(CLOSED)
    }

    fn let_tokens_go(&mut self) {
        self.token_poll = None;
        if let Some(tokens) = self.tokens.take() {
            self.counted = (tokens.strays(), tokens.dropped());
        }
    }
}

/// Arguments: memory, from where on, bytes of the shortest and of the longest message, and 1 where a message that comes alone is
/// held as well.
fn pull_held(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    // SAFETY: used within this call, and asked for once.
    let block = unsafe { call.bytes(0) };
    let from = call.size(1).min(block.len());
    let lengths = call.size(2)..=call.size(3);
    let keep = if call.size(4) == 0 {
        Keep::Several
    } else {
        Keep::Each
    };
    let pulled = endpoint
        .reader()
        .and_then(|receiver| binding::pull_held(receiver, &mut block[from..], lengths, keep));
    told(endpoint, pulled)
}

/// Arguments: memory, and how many bytes of what was pulled last are not to be had again.
fn pull_again(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    // SAFETY: used within this call, and asked for once.
    let into = unsafe { call.bytes(0) };
    let passed = call.size(1);
    let pulled = endpoint
        .reader()
        .and_then(|receiver| binding::pull_again(receiver, into, passed));
    told(endpoint, pulled)
}

fn release(endpoint: &mut Endpoint, _call: &mut Call) -> Answer {
    if let Ok(receiver) = endpoint.reader() {
        binding::release(receiver);
    }
    Answer::Nothing
}

fn pull_held_busy(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    spin(endpoint, call, pull_held)
}

fn gather(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    // SAFETY: used within this call, and asked for once.
    let into = unsafe { call.bytes(0) };
    match endpoint.reader().and_then(|receiver| receiver.receive_part(into)) {
        Ok(Progress::Whole) => Answer::from(WHOLE),
        Ok(Progress::Part(bytes)) => match nothing(endpoint) {
            Answer::Number(0.0) => bytes.into(),
            answer => answer,
        },
        Err(error) => endpoint.fail(error),
    }
}

fn disarm(endpoint: &mut Endpoint, _call: &mut Call) -> Answer {
    if let Some(Halves { sender, receiver, .. }) = &mut endpoint.halves {
        sender.disarm();
        receiver.disarm();
    }
    Answer::Nothing
}

/// Reads the line, or sees to it that it is read later. 0 while the channel is open; the peer's messages may still be there
/// to read when it is not.
fn listen(endpoint: &mut Endpoint, _call: &mut Call) -> Answer {
    if endpoint.halves.is_some() {
        hear(endpoint);
    }
    if let Some(Halves { sender, .. }) = &mut endpoint.halves {
        sender.refresh();
    }
    endpoint.reason()
}

/// Whether the peer is gone without having said that no more would come: 0 no, 1 its process has ended, 2 it has closed
/// the channel.
fn is_cut(endpoint: &mut Endpoint, _call: &mut Call) -> Answer {
    let cut = endpoint.halves.as_ref().map_or(0, |Halves { receiver, .. }| {
        match (receiver.is_cut(), receiver.close_reason()) {
            (false, _) => 0,
            (true, Some(CloseReason::Exited)) => 1,
            (true, _) => 2,
        }
    });
    Answer::from(cut)
}

fn end(endpoint: &mut Endpoint, _call: &mut Call) -> Answer {
    if let Ok(sender) = endpoint.sender() {
        sender.end();
    }
    endpoint.reason()
}

fn close(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    cancel_open(endpoint, call.env);
    endpoint.let_go();
    Answer::Nothing
}

fn outlive(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    cancel_open(endpoint, call.env);
    endpoint.outlive();
    Answer::Nothing
}

/// Frees the address, and lets the channel be: the process ends.
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

/// A token, as a bigint; 0: none now.
fn token(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    let Some(tokens) = &endpoint.tokens else {
        return Answer::from(ENDED);
    };
    let Some(token) = tokens.try_token() else {
        if !tokens.is_ended() {
            return Answer::from(0);
        }
        endpoint.let_tokens_go();
        return Answer::from(ENDED);
    };
    Answer::bigint(call.env, token)
}

/// The callback is called while there is a token to take, or no more will come. It keeps no event loop alive: the
/// channel does.
fn watch_tokens(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    let bell = match endpoint.tokens().and_then(Tokens::bell) {
        Ok(bell) => bell.as_raw_fd(),
        Err(error) => return endpoint.fail(error),
    };
    // SAFETY: the bell lives as long as the tokens, whose poll handle is stopped before they go.
    match unsafe { endpoint.handle.start(call, bell) } {
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
    endpoint.let_tokens_go();
    Answer::Nothing
}

#[expect(clippy::cast_precision_loss, reason = "nobody counts to 2^53")]
fn stray_tokens(endpoint: &mut Endpoint, _call: &mut Call) -> Answer {
    let count = endpoint
        .tokens
        .as_ref()
        .map_or(endpoint.counted.0, Tokens::strays);
    Answer::Number(count as f64)
}

#[expect(clippy::cast_precision_loss, reason = "nobody counts to 2^53")]
fn dropped_tokens(endpoint: &mut Endpoint, _call: &mut Call) -> Answer {
    let count = endpoint
        .tokens
        .as_ref()
        .map_or(endpoint.counted.1, Tokens::dropped);
    Answer::Number(count as f64)
}

/// What was done so far, in the order of the face's `Figures`.
fn stats(endpoint: &mut Endpoint, call: &mut Call) -> Answer {
    if let Some(Halves { sender, receiver, .. }) = &mut endpoint.halves {
        endpoint.received = receiver.stats();
        endpoint.sent = sender.stats();
    } else if let Some(left) = &mut endpoint.left {
        endpoint.received = left.stats();
    }
    let Endpoint { sent, received, .. } = endpoint;
    let figures = [
        sent.messages_sent,
        sent.bytes_sent,
        received.messages_received,
        received.bytes_received,
        // Both halves count these together.
        received.bells_rung.max(sent.bells_rung),
        received.sleeps.max(sent.sleeps),
        sent.ring_used,
        sent.ring_capacity,
    ];
    Answer::numbers(call.env, &figures)
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.let_tokens_go();
        self.let_go();
    }
}

/// What a channel can do. One function of the channel's does it all: each function takes a KiB of JavaScript's memory.
const OPERATIONS: [(&str, Function<Endpoint>); 40] = [
    ("flush", flush),
    ("send", send),
    ("trySend", try_send),
    ("pull", pull),
    ("pullBusy", pull_busy),
    ("pullHeld", pull_held),
    ("pullHeldBusy", pull_held_busy),
    ("pullAgain", pull_again),
    ("release", release),
    ("wake", wake),
    ("gather", gather),
    ("hasRoom", has_room),
    ("packedRoom", packed_room),
    ("armWriter", arm_writer),
    ("armReader", arm_reader),
    ("parkReader", park_reader),
    ("lookParked", look_parked),
    ("disarm", disarm),
    ("listen", listen),
    ("isCut", is_cut),
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

/// The names of a channel's operations: each is asked for by its place here.
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

/// A channel as a JavaScript object.
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
    let busy_poll = channel.busy_poll();
    let verifier = channel.verifier();
    let tokens = channel.tokens();
    let (sender, receiver) = channel.split();
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
        counted: (0, 0),
        evidence,
        left: None,
        reservation: Reservation::NONE,
        busy_poll,
        sent: ChannelStats::default(),
        received: ChannelStats::default(),
    };
    // SAFETY: env and object are live.
    unsafe { add_functions(env, object, &[(c"operate", operate)], endpoint) }?;
    Ok(object)
}
