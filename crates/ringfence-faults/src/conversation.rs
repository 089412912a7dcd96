//! The conversation between the two processes of a case, which makes every kind of call of an open channel.
//! It has short messages, one longer than the ring, a token, another check of the peer, and the end of both
//! directions.

use std::{
    io,
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use ringfence::{
    Attachment, AttachmentRef, CallError, Calls, Channel, Error, Publisher, RemoteError, SealedBuffer,
    Subscription,
};

/// Longest wait of a case for anything: a peer, a token, or the end.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Number of messages that a publisher sends; together several times the capacity of its ring.
pub(crate) const MESSAGES: u32 = 64;
pub(crate) const MESSAGE: usize = 480;

/// Reason why an attempt failed.
#[derive(Debug)]
pub(crate) enum AttemptError {
    /// An error of ringfence.
    Coded(&'static str, String),
    /// Behavior that must never occur.
    Unexpected(String),
}

pub(crate) type Outcome<T = ()> = Result<T, AttemptError>;

impl From<Error> for AttemptError {
    fn from(error: Error) -> Self {
        match error {
            Error::TimedOut => Self::Unexpected(format!(
                "nothing arrived within {} s: it was lost",
                LIMIT.as_secs()
            )),
            error => Self::Coded(error.code(), error.to_string()),
        }
    }
}

pub(crate) fn unexpected<T>(what: impl Into<String>) -> Outcome<T> {
    Err(AttemptError::Unexpected(what.into()))
}

/// Error codes of a process's calls, in order.
#[derive(Debug, Default)]
pub(crate) struct Codes(pub(crate) Vec<(&'static str, String)>);

impl Codes {
    pub(crate) fn print(&self) {
        for (code, text) in &self.0 {
            println!("code {code} {}", text.replace('\n', " "));
        }
    }

    pub(crate) fn add(&mut self, error: &Error) {
        self.0.push((error.code(), error.to_string()));
    }

    /// Makes a call, and repeats it up to three times on `NoSpace`: the channel is still open then, and the
    /// call may be repeated.
    pub(crate) fn retry<T>(&mut self, mut call: impl FnMut() -> ringfence::Result<T>) -> Outcome<T> {
        for _ in 0..3 {
            match call() {
                Err(error @ Error::NoSpace { .. }) => self.add(&error),
                other => return Ok(other?),
            }
        }
        Ok(call()?)
    }
}

/// Runs the subject's part. The last message is `bye`, or `leave` to ask a member to leave and join again.
pub(crate) fn run_conversation(mut channel: Channel, last: &[u8], codes: &mut Codes) -> Outcome {
    let mut memory = vec![0; 20_000];
    let long: Vec<u8> = (0..10_000_u32).map(|it| (it * 7 % 251) as u8).collect();
    for message in [b"hello".as_slice(), &long] {
        codes.retry(|| channel.sender().send(message))?;
        receive_expected(&mut channel, message, &mut memory, codes)?;
    }
    let tokens = channel.tokens();
    codes.retry(|| channel.sender().send(b"token"))?;
    receive_expected(&mut channel, b"token", &mut memory, codes)?;
    codes.retry(|| tokens.send(7))?;
    let limit = Instant::now() + LIMIT;
    match codes.retry(|| tokens.token_until(limit))? {
        Some(8) => {}
        Some(other) => return unexpected(format!("expected token 8, got {other}")),
        None if Instant::now() >= limit => return unexpected("a token was lost"),
        None => {
            return Err(AttemptError::Coded(
                "ENDED",
                "the channel ended before the token".into(),
            ));
        }
    }
    codes.retry(|| channel.verify().map(|_| ()))?;
    finish_conversation(channel, last, &mut memory, codes)
}

/// Passes sealed buffers and a descriptor, which the peer passes back, and more than either side accepts at once.
pub(crate) fn pass_attachments(mut channel: Channel, codes: &mut Codes) -> Outcome {
    let mut memory = vec![0; 20_000];
    let stdout = io::stdout();
    for size in [0, 1, 5000, 100_000] {
        let content = vec![7; size];
        let buffer = codes.retry(|| SealedBuffer::from_bytes(&content))?;
        let attachments = [AttachmentRef::from(&buffer), stdout.as_fd().into()];
        let messages = [b"short".as_slice(), &[1; 10_000]];
        for message in messages {
            let limit = Instant::now() + LIMIT;
            codes.retry(|| channel.sender().send_with_until(message, &attachments, limit))?;
        }
        for message in messages {
            receive_expected(&mut channel, message, &mut memory, codes)?;
            match &channel.receiver().attachments()[..] {
                [Attachment::Sealed(buffer), Attachment::Descriptor(_)] if **buffer == *content => {}
                other => return unexpected(format!("other attachments returned: {other:?}")),
            }
        }
    }
    finish_conversation(channel, b"bye", &mut memory, codes)
}

/// Sends the last message, and waits for its echo and the end.
fn finish_conversation(mut channel: Channel, last: &[u8], memory: &mut [u8], codes: &mut Codes) -> Outcome {
    codes.retry(|| channel.sender().send(last))?;
    receive_expected(&mut channel, last, memory, codes)?;
    channel.sender().end();
    match codes.retry(|| channel.receiver().receive_until(memory, Instant::now() + LIMIT))? {
        None if channel.receiver().close_reason().is_some() => Ok(()),
        None => unexpected("the end was not reported"),
        Some(_) => unexpected("a message arrived after the last"),
    }
}

fn receive_expected(channel: &mut Channel, expected: &[u8], memory: &mut [u8], codes: &mut Codes) -> Outcome {
    let limit = Instant::now() + LIMIT;
    match codes.retry(|| channel.receiver().receive_until(memory, limit))? {
        Some(length) if memory[..length] == *expected => Ok(()),
        Some(length) => unexpected(format!("{length} bytes differ from those that were sent")),
        None if Instant::now() >= limit => unexpected("a message was lost"),
        None => Err(AttemptError::Coded(
            "ENDED",
            "the channel ended before the answer".into(),
        )),
    }
}

/// Runs the answering process of a conversation by calls: it answers each request with the reply of the subject to the same.
pub(crate) fn answer_with_calls(channel: Channel) -> Outcome {
    let calls = channel.into_calls()?;
    let ask = |request: Vec<u8>, _: &_| {
        let reply = calls.call_until(&request, Instant::now() + LIMIT);
        reply.map_err(|error| RemoteError::new(error.to_string()))
    };
    Ok(calls.serve(ask)?)
}

/// Runs the subject's part by calls, and serves those of the other process.
pub(crate) fn call_each_other(channel: Channel, codes: &mut Codes) -> Outcome {
    let calls = channel.into_calls()?;
    let (reply, served) = thread::scope(|scope| -> Outcome<_> {
        let serve = || {
            let mut codes = Codes::default();
            let echo = || calls.serve(|request, _context| Ok::<_, RemoteError>(request));
            let served = codes.retry(echo);
            if served.is_err() {
                // Otherwise the other process would wait for answers.
                calls.destroy();
            }
            (served, codes)
        };
        let serving = thread::Builder::new().spawn_scoped(scope, serve);
        let serving = serving.map_err(|error| thread_error(&error))?;
        let reply = make_calls(&calls, codes).and_then(|()| codes.retry(|| calls.end()));
        if reply.is_err() {
            calls.destroy();
        }
        let (served, more) = serving.join().expect("no panic");
        codes.0.extend(more.0);
        Ok((reply, served))
    })?;
    reply.and(served)
}

fn thread_error(error: &io::Error) -> Error {
    Error::NoSpace {
        what: "a thread".into(),
        reason: error.to_string(),
    }
}

fn make_calls(calls: &Calls, codes: &mut Codes) -> Outcome {
    for size in [0, 100, 1900, 10_000].repeat(4) {
        let request = vec![7; size];
        let reply = codes.retry(|| {
            let reply = calls.call_until(&request, Instant::now() + LIMIT);
            reply.map_err(|error| match error {
                CallError::Channel(error) => error,
                // The server has had no memory.
                error => Error::NoSpace {
                    what: "a reply".into(),
                    reason: error.to_string(),
                },
            })
        })?;
        if reply != request {
            return unexpected(format!("another reply to {size} bytes"));
        }
    }
    Ok(())
}

/// The last message of a conversation, as the answering process saw it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LastMessage {
    /// The peer ended before its last message.
    None,
    Bye,
    Leave,
}

fn as_ref(attachment: &Attachment) -> AttachmentRef<'_> {
    match attachment {
        Attachment::Sealed(buffer) => buffer.into(),
        Attachment::Descriptor(descriptor) => descriptor.as_fd().into(),
        other => unreachable!("{other:?}"),
    }
}

/// Echoes every message and its attachments until the peer has sent its last message and ended.
pub(crate) fn answer(mut channel: Channel) -> ringfence::Result<LastMessage> {
    let tokens = channel.tokens();
    let mut last_message = LastMessage::None;
    let mut memory = vec![0; 20_000];
    while let Some(length) = channel.receiver().receive(&mut memory)? {
        let attachments = channel.receiver().attachments();
        let attachments: Vec<AttachmentRef<'_>> = attachments.iter().map(as_ref).collect();
        channel.sender().send_with(&memory[..length], &attachments)?;
        match &memory[..length] {
            b"bye" => last_message = LastMessage::Bye,
            b"leave" => last_message = LastMessage::Leave,
            b"token" => {
                if let Some(token) = tokens.token()? {
                    tokens.send(token + 1)?;
                }
            }
            _ => {}
        }
    }
    channel.sender().end();
    Ok(last_message)
}

fn message_of(number: u32) -> Vec<u8> {
    let mut message = vec![number.to_le_bytes()[0]; MESSAGE];
    message[..4].copy_from_slice(&number.to_le_bytes());
    message
}

/// Each of these messages has attachments: a sealed buffer with its bytes, and a descriptor.
fn has_attachments(number: u32) -> bool {
    number % 4 == 3
}

/// Publishes all messages. The subscribers sleep in between, and the publisher sleeps while the ring is full, or while a subscriber holds
/// as many attachments as it accepts.
pub(crate) fn publish_all(publisher: &mut Publisher, codes: &mut Codes) -> Outcome {
    let stdout = io::stdout();
    for number in 0..MESSAGES {
        let message = message_of(number);
        if !has_attachments(number) {
            codes.retry(|| publisher.send(&message))?;
            continue;
        }
        let buffer = codes.retry(|| SealedBuffer::from_bytes(&message))?;
        let attachments = [AttachmentRef::from(&buffer), stdout.as_fd().into()];
        codes.retry(|| publisher.send_with(&message, &attachments))?;
    }
    publisher.end();
    Ok(())
}

/// Reads all messages in order, and the end.
///
/// A subscriber whose earlier attempt failed (`has_retried`) may have been counted by the publisher, which
/// then does not wait for the next attempt. Only in that case may the first message be missing, which is
/// reported.
pub(crate) fn read_all(subscription: &mut Subscription, codes: &mut Codes, has_retried: bool) -> Outcome {
    let mut memory = vec![0; MESSAGE];
    let mut next = 0;
    let limit = Instant::now() + LIMIT;
    while let Some(length) = codes.retry(|| subscription.receive_until(&mut memory, limit))? {
        if memory[..length] != message_of(next) {
            if has_retried && next == 0 {
                return Err(AttemptError::Coded(
                    "LATE",
                    "the publisher had already started".into(),
                ));
            }
            return unexpected(format!("message {next} has the wrong content"));
        }
        match &subscription.attachments()[..] {
            [] if !has_attachments(next) => {}
            [Attachment::Sealed(buffer), Attachment::Descriptor(_)]
                if has_attachments(next) && **buffer == memory[..length] => {}
            other => return unexpected(format!("message {next} has other attachments: {other:?}")),
        }
        next += 1;
    }
    if subscription.close_reason().is_none() {
        return unexpected(format!("nothing arrived after {next} messages"));
    }
    if next < MESSAGES {
        let text = format!("the publisher ended after {next} messages");
        return Err(AttemptError::Coded("ENDED", text));
    }
    Ok(())
}
