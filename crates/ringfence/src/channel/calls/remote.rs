//! The errors of calls.

use std::{fmt, io};

use crate::error::{Error, ErrorKind};

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

impl From<&str> for RemoteError {
    fn from(message: &str) -> Self {
        Self::new(message)
    }
}

impl From<String> for RemoteError {
    fn from(message: String) -> Self {
        Self::new(message)
    }
}

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

impl From<io::Error> for RemoteError {
    fn from(error: io::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<Box<dyn std::error::Error + Send + Sync>> for RemoteError {
    fn from(error: Box<dyn std::error::Error + Send + Sync>) -> Self {
        Self::new(error.to_string())
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
