//! The callback that a policy asks last.

use std::{
    fmt,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
};

use nix::poll::PollFlags;

use crate::{
    error::{Cause, Error, Refusal, Result},
    evidence::Record,
    identity::Identity,
    patience::{Bell, Patience, Woken},
};

/// It belongs to the step in which the peer has shown that the line is its own.
pub(crate) const STEP: &str = "hello";
pub(crate) const CHECK: &str = "authorize";

/// What asks: gets the identity and the means to answer, and returns soon.
type Ask = dyn Fn(Identity, Decision) + Send + Sync;

#[derive(Clone)]
pub(crate) struct Authorize(Arc<Ask>);

impl fmt::Debug for Authorize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorize(..)")
    }
}

/// The answer to what a policy's callback was asked, given by whichever thread, whenever. Dropped without one, it
/// refuses.
#[derive(Debug)]
pub struct Decision {
    /// Gone once nobody waits for the answer any more.
    question: Weak<Question>,
}

#[derive(Debug)]
struct Question {
    answer: Mutex<Option<Answer>>,
    answered: Bell,
}

#[derive(Debug)]
enum Answer {
    Yes,
    No { found: String, cause: Option<Cause> },
}

impl Decision {
    /// The peer is let in.
    pub fn allow(self) {
        self.answer(Answer::Yes);
    }

    /// The peer is refused; `found` is what the refusal says was found.
    pub fn refuse(self, found: impl Into<String>) {
        let found = found.into();
        self.answer(Answer::No { found, cause: None });
    }

    /// It could not be decided, so the peer is refused; the refusal carries the cause
    /// ([`Error`](crate::Error)'s `source`).
    pub fn fail(self, found: impl Into<String>, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) {
        let cause = Some(Cause::from(cause.into()));
        let found = found.into();
        self.answer(Answer::No { found, cause });
    }

    /// Whether somebody waits for the answer still: not after the handshake's deadline, nor when it was called off.
    pub fn is_awaited(&self) -> bool {
        self.question
            .upgrade()
            .is_some_and(|question| question.answered.is_here())
    }

    fn answer(&self, answer: Answer) {
        // In a child nobody waits for it, and its parent's is not the child's to give.
        let question = self.question.upgrade();
        if let Some(question) = question.filter(|question| question.answered.is_here()) {
            let mut given = question.answer.lock().unwrap_or_else(PoisonError::into_inner);
            given.get_or_insert(answer);
            question.answered.ring();
        }
    }
}

impl Drop for Decision {
    fn drop(&mut self) {
        let found = "it was dropped without an answer".into();
        self.answer(Answer::No { found, cause: None });
    }
}

impl Authorize {
    pub(crate) fn later(ask: impl Fn(Identity, Decision) + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    /// A callback that answers when it returns. It gets a thread of its own each time, so that one that does not return
    /// holds up nobody but its peer, and that one only up to the deadline.
    pub(crate) fn now<E>(decide: impl Fn(&Identity) -> Result<bool, E> + Send + Sync + 'static) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let decide = Arc::new(decide);
        Self::later(move |identity, decision| {
            let decide = Arc::clone(&decide);
            let named = thread::Builder::new().name("ringfence-authorize".into());
            // A thread that cannot be had drops the decision, and so does one that panics.
            let _ = named.spawn(move || match decide(&identity) {
                Ok(true) => decision.allow(),
                Ok(false) => decision.refuse("false"),
                Err(cause) => {
                    let cause = cause.into();
                    decision.fail(format!("an error: {cause}"), cause);
                }
            });
        })
    }

    /// Asks, and waits for the answer as long as the handshake may take, and as long as the peer is there
    /// (`connection` has not hung up).
    pub(crate) fn ask(
        &self,
        identity: &Identity,
        connection: BorrowedFd<'_>,
        patience: &Patience,
        record: &mut Record,
    ) -> Result<()> {
        let question = Arc::new(Question {
            answer: Mutex::default(),
            answered: Bell::new()?,
        });
        let decision = Decision {
            question: Arc::downgrade(&question),
        };
        (self.0)(identity.clone(), decision);
        // Asked for nothing, poll tells the end of the connection alone.
        let hung_up = (connection, PollFlags::empty());
        let answered = (std::os::fd::AsFd::as_fd(&question.answered), PollFlags::POLLIN);
        match patience.wait(&[answered, hung_up])? {
            Woken::Ready => {}
            Woken::Late => {
                return Err(Error::HandshakeTimeout {
                    step: "the answer of authorize",
                    after: patience.allowed,
                });
            }
        }
        let answer = question
            .answer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match answer {
            Some(Answer::Yes) => {
                record.passed(STEP, CHECK, "true", "true");
                Ok(())
            }
            Some(Answer::No { found, cause }) => {
                let mut refusal = Refusal::new(CHECK, "true", found);
                refusal.identity = Some(identity.clone());
                refusal.cause = cause;
                Err(refusal.into())
            }
            None => Err(Error::PeerLost(
                "it left while authorize was asked about it".into(),
            )),
        }
    }
}
