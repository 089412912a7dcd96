//! The frames of calls, as docs/internals/protocol.md describes them: a head of 16 bytes, and a body.

use std::{fmt, io};

use bytemuck::pod_read_unaligned;

use crate::error::{Error, ErrorKind, Result, cut};

/// Bytes of a frame's head.
pub(super) const HEAD: usize = 16;
/// Bytes of the longest frame without a request or a reply: an error with three empty texts.
pub(super) const MIN_MESSAGE: usize = HEAD + 12;
/// The largest number of a call: the largest integer that JavaScript represents exactly.
const MAX_ID: u64 = (1 << 53) - 1;
/// Bytes of the longest name and of the longest code of an error.
const MAX_NAME: usize = 128;
/// Bytes of the longest message of an error.
const MAX_TEXT: usize = 8 * 1024;

/// The meaning of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum FrameKind {
    /// The caller asks. The body is the request.
    Request = 1,
    /// The server answers. The body is the reply.
    Reply = 2,
    /// The server answers with an error. The body is the error.
    Error = 3,
    /// The caller no longer waits, and asks for an answer at once.
    Cancel = 4,
    /// The server answers a call that was cancelled.
    Cancelled = 5,
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: FrameKind,
    /// Of a request: the remaining milliseconds. 0: no deadline.
    pub(super) remaining: u32,
    pub(super) id: u64,
}

impl Head {
    pub(super) fn new(kind: FrameKind, id: u64) -> Self {
        Self {
            kind,
            remaining: 0,
            id,
        }
    }

    pub(super) fn encode(self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(&(self.kind as u32).to_le_bytes());
        head[4..8].copy_from_slice(&self.remaining.to_le_bytes());
        head[8..].copy_from_slice(&self.id.to_le_bytes());
        head
    }

    /// Reads the head of a frame, and checks it. Fails with [`Error::RingCorrupt`].
    pub(super) fn decode(frame: &[u8]) -> Result<Self> {
        let Some(head) = frame.first_chunk::<HEAD>() else {
            return Err(corrupt(&format!("a call frame of {} bytes", frame.len())));
        };
        let (words, id) = head.split_at(8);
        let ([kind, remaining], id): ([u32; 2], u64) = (pod_read_unaligned(words), pod_read_unaligned(id));
        let (is_empty, is_plain) = (frame.len() == HEAD, remaining == 0);
        let kind = match kind {
            1 => Some(FrameKind::Request),
            2 if is_plain => Some(FrameKind::Reply),
            3 if is_plain => Some(FrameKind::Error),
            4 if is_plain && is_empty => Some(FrameKind::Cancel),
            5 if is_plain && is_empty => Some(FrameKind::Cancelled),
            _ => None,
        };
        match kind {
            Some(kind) if id <= MAX_ID => Ok(Self { kind, remaining, id }),
            _ => Err(corrupt(&format!(
                "a call frame of {} bytes for call {id}, which starts with {words:?}",
                frame.len()
            ))),
        }
    }

    /// Makes a frame.
    pub(super) fn frame(self, body: &[u8]) -> Vec<u8> {
        [&self.encode(), body].concat()
    }
}

/// Makes the frame of a handler's error, of at most `limit` bytes, which is at least [`MIN_MESSAGE`]. Texts that are too long are cut.
pub(super) fn error_frame(id: u64, error: &RemoteError, limit: usize) -> Vec<u8> {
    let mut left = limit - MIN_MESSAGE;
    let mut fit = |text: &str, max: usize| {
        let text = cut(text, max.min(left)).to_owned();
        left -= text.len();
        text
    };
    // The message is cut first, because programs compare the other two.
    let name = fit(error.name(), MAX_NAME);
    let code = fit(error.code().unwrap_or_default(), MAX_NAME);
    let message = fit(error.message(), MAX_TEXT);
    let mut frame = Head::new(FrameKind::Error, id).frame(&[]);
    for text in [name, message, code] {
        let length = u32::try_from(text.len()).expect("at most MAX_TEXT");
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(text.as_bytes());
    }
    frame
}

/// Reads the body of an error frame. Fails with [`Error::RingCorrupt`].
pub(super) fn read_error(mut body: &[u8]) -> Result<RemoteError> {
    let mut text = || {
        let (length, rest) = body.split_first_chunk()?;
        let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        body = rest;
        std::str::from_utf8(text).ok()
    };
    let parts = (|| Some((text()?, text()?, text()?)))();
    match parts {
        Some((name, message, code)) if body.is_empty() => Ok(RemoteError::from_parts(name, message, code)),
        _ => Err(corrupt("a malformed error")),
    }
}

pub(super) fn corrupt(what: &str) -> Error {
    Error::RingCorrupt(format!("the peer violated the protocol of calls: {what}"))
}

/// The code of a missed deadline in Node.js.
const LATE: &str = "ERR_RINGFENCE_TIMEOUT";

/// An error of the handler that served a call, as its caller gets it: the name, the message and the code, and never a
/// stack.
///
/// A handler returns it, or anything that converts into it. Its texts are cut at 128 bytes for the name and the code, and
/// at 8 KiB for the message.
///
/// ```
/// use ringfence::RemoteError;
///
/// let error = RemoteError::new("no such order").with_name("NotFound").with_code("E404");
/// assert_eq!(error.to_string(), "NotFound: no such order");
/// assert_eq!(RemoteError::from("no such order").name(), "Error");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteError {
    name: Box<str>,
    message: Box<str>,
    code: Box<str>,
}

impl RemoteError {
    /// Makes an error with the name `Error` and no code.
    pub fn new(message: impl Into<String>) -> Self {
        Self::from_parts("Error", &message.into(), "")
    }

    /// Whether a handler, or its server, has missed the deadline.
    pub(super) fn is_late(&self) -> bool {
        self.code() == Some(LATE)
    }

    pub(super) fn from_parts(name: &str, message: &str, code: &str) -> Self {
        Self {
            name: name.into(),
            message: message.into(),
            code: code.into(),
        }
    }

    /// Sets the name, in Node.js that of the error's class.
    #[must_use]
    pub fn with_name(self, name: &str) -> Self {
        Self {
            name: name.into(),
            ..self
        }
    }

    /// Sets the code, by which a program recognizes the error.
    #[must_use]
    pub fn with_code(self, code: &str) -> Self {
        Self {
            code: code.into(),
            ..self
        }
    }

    /// Returns the name of the error. In Node.js, the `name` of the thrown value.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the message of the error.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the code of the error, if it has one.
    pub fn code(&self) -> Option<&str> {
        (!self.code.is_empty()).then_some(&*self.code)
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.message)
    }
}

impl std::error::Error for RemoteError {}

macro_rules! from_message {
    ($($message:ty),+) => {
        $(
            impl From<$message> for RemoteError {
                fn from(message: $message) -> Self {
                    Self::new(message.to_string())
                }
            }
        )+
    };
}

from_message! { &str, String, io::Error, Box<dyn std::error::Error + Send + Sync> }

impl From<Error> for RemoteError {
    /// Has the name and the code that the error has in Node.js.
    fn from(error: Error) -> Self {
        let sentence = Self::new(error.to_string());
        let named = |code: &str| sentence.with_name("RingfenceError").with_code(code);
        match error.kind() {
            ErrorKind::Aborted => named("ABORT_ERR").with_name("AbortError"),
            ErrorKind::TimedOut => named(LATE),
            kind => named(&format!("ERR_RINGFENCE_{}", kind.as_str())),
        }
    }
}

/// The reason why a call has no reply.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The handler returned an error or panicked, or the peer could not send its reply.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The handler did not answer: [`Error::TimedOut`] after the deadline, [`Error::PeerLost`] if the peer is gone or has
    /// ended its sending, [`Error::Closed`] after this side's close, or the error that has ended the channel.
    #[error(transparent)]
    Channel(#[from] Error),
}

impl CallError {
    /// Returns the handler's error.
    pub fn remote(&self) -> Option<&RemoteError> {
        match self {
            Self::Remote(error) => Some(error),
            Self::Channel(_) => None,
        }
    }
}
