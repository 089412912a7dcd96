//! What the two processes of a case say to each other, so that each kind of call of a running channel is made: short messages, one
//! longer than the ring, a token, another look, the end of both directions.

use std::time::{Duration, Instant};

use ringfence::{Channel, Error, Publisher, Subscription};

/// How long a case may wait for anything: a peer that does not come, a token, the end.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Messages that a publisher sends; several times what its ring holds.
pub(crate) const MESSAGES: u32 = 64;
pub(crate) const MESSAGE: usize = 480;

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// As ringfence says it.
    Coded(&'static str, String),
    /// What must not be.
    Wrong(String),
}

pub(crate) type Outcome<T = ()> = Result<T, Trouble>;

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        match error {
            Error::TimedOut => Self::Wrong(format!("nothing came within {} s: it was lost", LIMIT.as_secs())),
            error => Self::Coded(error.code(), error.to_string()),
        }
    }
}

pub(crate) fn wrong<T>(what: impl Into<String>) -> Outcome<T> {
    Err(Trouble::Wrong(what.into()))
}

/// The codes that the calls of a process gave, in order.
#[derive(Debug, Default)]
pub(crate) struct Codes(pub(crate) Vec<(&'static str, String)>);

impl Codes {
    /// Makes a call, and again where it says that this side has no room: then the channel lives, and the call may be repeated.
    pub(crate) fn patiently<T>(&mut self, mut call: impl FnMut() -> ringfence::Result<T>) -> Outcome<T> {
        for _ in 0..3 {
            match call() {
                Err(error @ Error::NoSpace { .. }) => self.0.push((error.code(), error.to_string())),
                other => return Ok(other?),
            }
        }
        Ok(call()?)
    }
}

/// What the subject ends with: `bye`, or `leave` to a member that shall go and come again.
pub(crate) fn speak(mut channel: Channel, last: &[u8], codes: &mut Codes) -> Outcome {
    let mut room = vec![0; 20_000];
    let long: Vec<u8> = (0..10_000_u32).map(|it| (it * 7 % 251) as u8).collect();
    for message in [b"hello".as_slice(), &long] {
        codes.patiently(|| channel.sender().send(message))?;
        hear(&mut channel, message, &mut room, codes)?;
    }
    let tokens = channel.tokens();
    codes.patiently(|| channel.sender().send(b"token"))?;
    hear(&mut channel, b"token", &mut room, codes)?;
    codes.patiently(|| tokens.send(7))?;
    let limit = Instant::now() + LIMIT;
    match codes.patiently(|| tokens.token_until(limit))? {
        Some(8) => {}
        Some(other) => return wrong(format!("token {other} came in place of 8")),
        None if Instant::now() >= limit => return wrong("a token was lost"),
        None => {
            return Err(Trouble::Coded(
                "ENDED",
                "the channel has ended before the token".into(),
            ));
        }
    }
    codes.patiently(|| channel.verify().map(|_| ()))?;
    codes.patiently(|| channel.sender().send(last))?;
    hear(&mut channel, last, &mut room, codes)?;
    channel.sender().end();
    match codes.patiently(|| {
        channel
            .receiver()
            .receive_until(&mut room, Instant::now() + LIMIT)
    })? {
        None if channel.receiver().close_reason().is_some() => Ok(()),
        None => wrong("the end was not told"),
        Some(_) => wrong("a message came after the last"),
    }
}

fn hear(channel: &mut Channel, wanted: &[u8], room: &mut [u8], codes: &mut Codes) -> Outcome {
    let limit = Instant::now() + LIMIT;
    match codes.patiently(|| channel.receiver().receive_until(room, limit))? {
        Some(length) if room[..length] == *wanted => Ok(()),
        Some(length) => wrong(format!("{length} bytes that are not those that were sent")),
        None if Instant::now() >= limit => wrong("a message was lost"),
        None => Err(Trouble::Coded(
            "ENDED",
            "the channel has ended before the answer".into(),
        )),
    }
}

/// How a conversation ended for the one who answers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// The other one has gone before its last word.
    None,
    Bye,
    Leave,
}

/// Sends everything back, until the other end has said its last word and ended.
pub(crate) fn answer(mut channel: Channel) -> ringfence::Result<Farewell> {
    let tokens = channel.tokens();
    let mut farewell = Farewell::None;
    let mut room = vec![0; 20_000];
    while let Some(length) = channel.receiver().receive(&mut room)? {
        channel.sender().send(&room[..length])?;
        match &room[..length] {
            b"bye" => farewell = Farewell::Bye,
            b"leave" => farewell = Farewell::Leave,
            b"token" => {
                if let Some(token) = tokens.token()? {
                    tokens.send(token + 1)?;
                }
            }
            _ => {}
        }
    }
    channel.sender().end();
    Ok(farewell)
}

fn numbered(number: u32) -> Vec<u8> {
    let mut message = vec![number.to_le_bytes()[0]; MESSAGE];
    message[..4].copy_from_slice(&number.to_le_bytes());
    message
}

/// Publishes all messages. The subscribers sleep between, and the publisher sleeps while the ring is full.
pub(crate) fn publish_all(publisher: &mut Publisher, codes: &mut Codes) -> Outcome {
    for number in 0..MESSAGES {
        codes.patiently(|| publisher.send(&numbered(number)))?;
    }
    publisher.end();
    Ok(())
}

/// Reads all messages, one after the other, and the end.
///
/// Who `came_before` and failed may have been counted by the publisher, which did not wait for the next attempt: that is told, and only
/// there the first message may be missing.
pub(crate) fn read_all(subscription: &mut Subscription, codes: &mut Codes, came_before: bool) -> Outcome {
    let mut room = vec![0; MESSAGE];
    let mut next = 0;
    let limit = Instant::now() + LIMIT;
    while let Some(length) = codes.patiently(|| subscription.receive_until(&mut room, limit))? {
        if room[..length] != numbered(next) {
            if came_before && next == 0 {
                return Err(Trouble::Coded("LATE", "the publisher had begun".into()));
            }
            return wrong(format!("message {next} is another"));
        }
        next += 1;
    }
    if subscription.close_reason().is_none() {
        return wrong(format!("nothing more came after {next} messages"));
    }
    if next < MESSAGES {
        let text = format!("the publisher was gone after {next} messages");
        return Err(Trouble::Coded("ENDED", text));
    }
    Ok(())
}
