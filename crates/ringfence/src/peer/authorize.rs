//! The policy's callback, which is called last.
//!
//! The callback is the program's code: it may panic or never return. So each call runs on its own thread. A
//! handshake waits for the answer until its deadline, and never for the thread. A panic counts as an answer.
//! The number of threads is limited, and a peer beyond the limit costs this process nothing more.

use std::{
    any::Any,
    cell::Cell,
    fmt,
    os::fd::{AsFd as _, BorrowedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
    thread,
};

use nix::poll::PollFlags;

use crate::{
    error::{Cause, Check, Error, Refusal, Result},
    evidence::EvidenceLog,
    fork::OwnerProcess,
    identity::{Credentials, Identity},
    sys::lock::Mutex,
    wait::deadline::{Deadline, Wakeup},
    wait::threads::ThreadQuota,
};

/// The callback belongs to the step in which the peer has proved that it holds the private line.
pub(crate) const STEP: &str = "hello";

/// Receives the identity and the object that answers.
type CallbackFn = dyn Fn(Identity, Decision) + Send + Sync;

#[derive(Clone)]
pub(crate) struct Authorize(Arc<Callback>);

/// State shared by the clones of a policy.
struct Callback {
    call: Box<CallbackFn>,
    calls: Mutex<RunningCalls>,
    /// The process that made the callback. A forked child does not count calls: they belong to the parent, and a
    /// thread that does not exist in the child may hold the lock.
    owner: Option<OwnerProcess>,
}

/// Written under the lock, by handshakes that start a call and by the threads of those calls.
#[derive(Default)]
struct RunningCalls {
    /// The peer in each call that has not returned. Each has a thread.
    running: ThreadQuota,
    /// Woken when a call returns.
    waiting: Vec<Weak<Question>>,
}

/// A call that is running. Dropping it records that the call has returned.
struct Running {
    callback: Arc<Callback>,
    peer: Credentials,
}

thread_local! {
    /// Whether this thread runs a callback and reports its panic itself.
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

impl fmt::Debug for Authorize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorize(..)")
    }
}

/// The answer to one call of a policy's callback. Any thread may give it, at any time. Dropping it without an
/// answer refuses the peer.
#[derive(Debug)]
pub struct Decision {
    /// Dangling once the handshake no longer waits for the answer.
    question: Weak<Question>,
}

struct Question {
    answer: Mutex<Option<Answer>>,
    answered: Wakeup,
}

impl Question {
    /// Returns whether the question's wakeup was signalled. Otherwise, the peer has closed the connection.
    fn wait(&self, connection: BorrowedFd<'_>, step: &'static str, deadline: &Deadline) -> Result<bool> {
        // With no events requested, poll reports only a hang-up.
        let hung_up = (connection, PollFlags::empty());
        deadline.wait_at(step, &[(self.answered.as_fd(), PollFlags::POLLIN), hung_up])?;
        Ok(self.answered.clear())
    }
}

enum Answer {
    Yes,
    No { found: String, cause: Option<Cause> },
}

impl Decision {
    /// Accepts the peer.
    pub fn allow(self) {
        self.answer(Answer::Yes);
    }

    /// Refuses the peer. `found` becomes the refusal's text.
    pub fn refuse(self, found: impl Into<String>) {
        let found = found.into();
        self.answer(Answer::No { found, cause: None });
    }

    /// Refuses the peer because no decision could be made. The refusal carries the cause ([`Error`]'s
    /// `source`).
    pub fn fail(self, found: impl Into<String>, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) {
        let cause = Some(Cause::from(cause.into()));
        let found = found.into();
        self.answer(Answer::No { found, cause });
    }

    /// Whether the handshake still waits for the answer. It stops waiting at its deadline, and when it is
    /// cancelled.
    pub fn is_awaited(&self) -> bool {
        self.question
            .upgrade()
            .is_some_and(|question| question.answered.in_owner_process())
    }

    fn answer(&self, answer: Answer) {
        // In a forked child no handshake waits, and the child must not answer for its parent.
        let question = self.question.upgrade();
        if let Some(question) = question.filter(|question| question.answered.in_owner_process()) {
            let mut slot = question.answer.lock();
            slot.get_or_insert(answer);
            question.answered.signal();
        }
    }
}

impl Drop for Decision {
    fn drop(&mut self) {
        if thread::panicking() && IN_CALLBACK.get() {
            return;
        }
        let found = "the decision was dropped without an answer".into();
        self.answer(Answer::No { found, cause: None });
    }
}

/// Returns the message of a panic.
fn panic_message(payload: Box<dyn Any + Send>) -> String {
    let text = match payload.downcast_ref::<&str>() {
        Some(text) => Some((*text).to_owned()),
        None => payload.downcast_ref::<String>().cloned(),
    };
    if text.is_none() {
        // The payload has a type of the program's own, whose drop may panic too.
        std::mem::forget(payload);
    }
    text.unwrap_or_else(|| "no message".into())
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.callback.owner.is_some_and(OwnerProcess::is_current) {
            return;
        }
        let mut calls = self.callback.calls.lock();
        calls.running.release(self.peer);
        let waiting = std::mem::take(&mut calls.waiting);
        drop(calls);
        for question in waiting.iter().filter_map(Weak::upgrade) {
            question.answered.signal();
        }
    }
}

impl Authorize {
    pub(crate) fn deferred(ask: impl Fn(Identity, Decision) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Callback {
            call: Box::new(ask),
            calls: Mutex::default(),
            owner: OwnerProcess::current().ok(),
        }))
    }

    /// Makes a callback whose return value is the answer.
    pub(crate) fn direct<E>(decide: impl Fn(&Identity) -> Result<bool, E> + Send + Sync + 'static) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        Self::deferred(move |identity, decision| match decide(&identity) {
            Ok(true) => decision.allow(),
            Ok(false) => decision.refuse("false"),
            Err(cause) => {
                let cause = cause.into();
                decision.fail(format!("an error: {cause}"), cause);
            }
        })
    }

    /// Calls the callback and waits for the answer. The wait ends at the handshake's deadline, or when the
    /// peer closes `connection`.
    pub(crate) fn call(
        &self,
        identity: &Identity,
        connection: BorrowedFd<'_>,
        deadline: &Deadline,
        record: &mut EvidenceLog,
    ) -> Result<()> {
        let question = Arc::new(Question {
            answer: Mutex::default(),
            answered: Wakeup::new()?,
        });
        self.begin(&question, identity, connection, deadline)?;
        let answer = loop {
            let is_signalled = question.wait(connection, "the answer of `authorize`", deadline)?;
            let answer = question.answer.lock().take();
            // A wakeup without an answer means that a thread has become free.
            if answer.is_some() || !is_signalled {
                break answer;
            }
        };
        match answer {
            Some(Answer::Yes) => {
                record.passed(STEP, Check::Authorize.name(), "true", "true");
                Ok(())
            }
            Some(Answer::No { found, cause }) => {
                let mut refusal = Refusal::new(Check::Authorize, "true", found);
                refusal.identity = Some(identity.clone());
                refusal.cause = cause;
                Err(refusal.into())
            }
            None => Err(disconnected()),
        }
    }

    /// Starts the call on a thread, as soon as the limits allow one.
    ///
    /// # Errors
    ///
    /// [`Error::HandshakeTimeout`] if calls that do not return occupy all threads until the deadline. That
    /// says nothing about the peer.
    fn begin(
        &self,
        question: &Arc<Question>,
        identity: &Identity,
        connection: BorrowedFd<'_>,
        deadline: &Deadline,
    ) -> Result<()> {
        let Identity { pid, uid, gid, .. } = *identity;
        let peer = Credentials { pid, uid, gid };
        while self.0.owner.is_some_and(OwnerProcess::is_current) {
            let mut calls = self.0.calls.lock();
            if calls.running.allows(peer) {
                calls.running.acquire(peer);
                break;
            }
            calls.waiting.retain(|waiting| waiting.strong_count() > 0);
            calls.waiting.push(Arc::downgrade(question));
            drop(calls);
            let step = "a thread for `authorize`, which calls that do not return occupy";
            if !question.wait(connection, step, deadline)? {
                return Err(disconnected());
            }
        }
        let running = Running {
            callback: Arc::clone(&self.0),
            peer,
        };
        let question = Arc::downgrade(question);
        let identity = identity.clone();
        thread::Builder::new()
            .name("ringfence-authorize".into())
            .spawn(move || {
                let decision = Decision {
                    question: question.clone(),
                };
                IN_CALLBACK.set(true);
                let outcome = catch_unwind(AssertUnwindSafe(|| (running.callback.call)(identity, decision)));
                IN_CALLBACK.set(false);
                if let Err(payload) = outcome {
                    let text = panic_message(payload);
                    let cause = format!("`authorize` panicked: {text}");
                    Decision { question }.fail(format!("a panic: {text}"), cause);
                }
                drop(running);
            })
            .map(drop)
            .map_err(|error| Error::no_space("a thread for `authorize`", error))
    }
}

fn disconnected() -> Error {
    Error::PeerLost("it disconnected while `authorize` was deciding".into())
}

#[cfg(test)]
mod tests {
    use std::{error::Error as _, os::unix::net::UnixStream, sync::mpsc, time::Duration};

    use super::*;

    fn about(pid: i32, uid: u32) -> Credentials {
        Credentials { pid, uid, gid: 7 }
    }

    fn peer(pid: i32, uid: u32) -> Identity {
        Identity::of(about(pid, uid))
    }

    /// A deadline so far away that no test reaches it.
    fn time() -> Deadline {
        Deadline::endless(Vec::new(), Duration::ZERO).within(Duration::from_secs(60))
    }

    fn no_time() -> Deadline {
        time().within(Duration::ZERO)
    }

    /// Asks about a peer that stays connected.
    fn call(authorize: &Authorize, peer: &Identity, deadline: &Deadline) -> Result<()> {
        let (near, _far) = UnixStream::pair().unwrap();
        authorize.call(peer, near.as_fd(), deadline, &mut EvidenceLog::default())
    }

    /// Returns the finding of a refusal and its cause.
    fn refused(asked: Result<()>) -> (String, Option<String>) {
        let error = asked.unwrap_err();
        let refusal = error
            .refusal()
            .unwrap_or_else(|| panic!("not a refusal: {error}"));
        assert_eq!((&refusal.check, &*refusal.wanted), (&Check::Authorize, "true"));
        assert_eq!(refusal.identity.as_ref().unwrap().pid, 11);
        (refusal.found.clone(), refusal.source().map(ToString::to_string))
    }

    fn deferred(answer: impl Fn(Identity, Decision) + Send + Sync + 'static) -> Result<()> {
        call(&Authorize::deferred(answer), &peer(11, 12), &time())
    }

    /// Makes a callback whose decisions are handed to the test.
    fn with_queued_decisions() -> (Authorize, mpsc::Receiver<Decision>) {
        let (calls, decisions) = mpsc::channel();
        let authorize = Authorize::deferred(move |_, decision| calls.send(decision).unwrap());
        (authorize, decisions)
    }

    #[test]
    fn every_outcome_except_allow_refuses_with_a_reason() {
        deferred(|_, decision| decision.allow()).unwrap();
        let expected = |found: &str, cause: Option<&str>| (found.to_owned(), cause.map(str::to_owned));
        assert_eq!(
            refused(deferred(
                |peer, decision| decision.refuse(format!("{} is not {}", peer.pid, peer.uid))
            )),
            expected("11 is not 12", None)
        );
        assert_eq!(
            refused(deferred(|_, decision| decision.fail("it failed", "for this"))),
            expected("it failed", Some("for this"))
        );
        let dropped = expected("the decision was dropped without an answer", None);
        assert_eq!(refused(deferred(|_, decision| drop(decision))), dropped);
        // The panic of another thread counts as a dropped decision, not as the callback's panic.
        let elsewhere = deferred(|_, decision| {
            let panics = thread::spawn(move || {
                let _decision = decision;
                panic!("in a thread of a test");
            });
            assert!(panics.join().is_err());
        });
        assert_eq!(refused(elsewhere), dropped);
        for (panic, text) in [
            (deferred(|_, _decision| panic!("a text")), "a text"),
            (deferred(|_, _decision| panic!("{} text", 1)), "1 text"),
            (deferred(|_, _decision| std::panic::panic_any(1)), "no message"),
        ] {
            let cause = format!("`authorize` panicked: {text}");
            assert_eq!(
                refused(panic),
                expected(&format!("a panic: {text}"), Some(&cause))
            );
        }
    }

    #[test]
    fn callback_decides_by_its_return_value() {
        let direct = |answer: fn(&Identity) -> Result<bool, String>| {
            call(&Authorize::direct(answer), &peer(11, 12), &time())
        };
        direct(|peer| Ok(peer.uid == 12)).unwrap();
        assert_eq!(refused(direct(|peer| Ok(peer.uid == 13))), ("false".into(), None));
        assert_eq!(
            refused(direct(|_| Err("no answer".into()))),
            ("an error: no answer".into(), Some("no answer".into()))
        );
    }

    #[test]
    fn decision_wait_ends_at_deadline_or_peer_exit() {
        let (authorize, decisions) = with_queued_decisions();
        let (near, far) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            let asked = scope.spawn(|| {
                let mut record = EvidenceLog::default();
                let asked = authorize.call(&peer(11, 12), near.as_fd(), &time(), &mut record);
                asked.map(|()| record.into_list())
            });
            let decision = decisions.recv().unwrap();
            assert!(decision.is_awaited());
            decision.allow();
            let evidence = asked.join().unwrap().unwrap();
            let evidence: Vec<_> = evidence.iter().map(|one| (one.step, one.check)).collect();
            assert_eq!(evidence, [("hello", "authorize")]);
        });
        let error = call(&authorize, &peer(11, 12), &no_time()).unwrap_err();
        assert!(error.to_string().contains("the answer of `authorize`"), "{error}");
        let late = decisions.recv().unwrap();
        assert!(!late.is_awaited());
        late.allow();
        drop(far);
        let asked = authorize.call(&peer(11, 12), near.as_fd(), &time(), &mut EvidenceLog::default());
        assert_eq!(asked.unwrap_err().code(), "PEER_LOST");
        assert!(!decisions.recv().unwrap().is_awaited());
    }

    #[test]
    fn call_beyond_the_limit_waits_for_a_thread() {
        let (started, calls) = mpsc::channel();
        let (ends, ended) = mpsc::channel::<()>();
        let ended = Mutex::new(ended);
        // Each call about process 1 returns when the test tells it to.
        let authorize = Authorize::deferred(move |peer, decision| {
            decision.allow();
            started.send(peer.pid).unwrap();
            if peer.pid == 1 {
                let _ = ended.lock().recv();
            }
        });
        let waiting = || authorize.0.calls.lock().waiting.len();
        let until = |done: &dyn Fn() -> bool| {
            while !done() {
                thread::yield_now();
            }
        };
        thread::scope(|scope| {
            // If an assertion fails, dropping `ends` lets all calls return, so the scope can end.
            let ends = ends;
            for _ in 0..ThreadQuota::PER_PROCESS {
                call(&authorize, &peer(1, 1), &time()).unwrap();
                assert_eq!(calls.recv().unwrap(), 1);
            }
            let error = call(&authorize, &peer(1, 1), &no_time()).unwrap_err();
            assert!(error.to_string().contains("calls that do not return"), "{error}");
            let (near, far) = UnixStream::pair().unwrap();
            drop(far);
            let gone = authorize.call(&peer(1, 1), near.as_fd(), &time(), &mut EvidenceLog::default());
            assert_eq!(gone.unwrap_err().code(), "PEER_LOST");
            // Calls about other processes still run. The one that has returned here is the call about process
            // 2.
            call(&authorize, &peer(2, 1), &time()).unwrap();
            assert_eq!(calls.recv().unwrap(), 2);
            until(&|| authorize.0.calls.lock().running.0 == [about(1, 1); ThreadQuota::PER_PROCESS]);
            let wait = || scope.spawn(|| call(&authorize, &peer(1, 1), &time()));
            let one = wait();
            until(&|| waiting() == 1);
            let two = wait();
            until(&|| waiting() == 2);
            // The next question replaces those whose handshakes have given up.
            assert!(call(&authorize, &peer(1, 1), &no_time()).is_err());
            assert!(call(&authorize, &peer(1, 1), &no_time()).is_err());
            assert_eq!(waiting(), 3);
            for _ in 0..2 {
                ends.send(()).unwrap();
                assert_eq!(calls.recv().unwrap(), 1);
            }
            one.join().unwrap().unwrap();
            two.join().unwrap().unwrap();
            drop(ends);
        });
        until(&|| authorize.0.calls.lock().running.0.is_empty());
    }
}
