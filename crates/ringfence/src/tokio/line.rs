//! The line of a channel in the runtime's event loop, for both halves.
//!
//! A wakeup does not say which half it is for. A half that reads the line consumes wakeups for the other half
//! too, including those that the runtime has not reported yet and now will not report. So a half that has
//! read the line wakes the other half. A half that was about to wait, and had no waker registered yet, sees
//! that [`Doorbell::generation`] has changed since it parked.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker, ready},
};

use crate::{
    channel::end::Shared,
    channel::waiting::Waits,
    error::Result,
    tokio::watched::{Readable, Watched},
    wake::doorbell::Doorbell,
};

/// The half that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    Sender = 0,
    Receiver = 1,
}

/// The line, and the peer's process.
#[derive(Debug)]
pub(super) struct Line {
    bell: Watched,
    /// The line alone does not suffice: it stays open while another process holds the peer's end.
    exit: Option<Watched>,
    both: Arc<Both>,
    /// Wakes the tasks of both halves.
    waker: Waker,
}

/// The tasks in which the halves wait.
#[derive(Debug, Default)]
struct Both(Mutex<[Option<Waker>; 2]>);

impl Both {
    fn set(&self, half: Half, waker: &Waker) {
        let mut wakers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut wakers[half as usize] {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    fn wake_the_other(&self, half: Half) {
        let mut wakers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let other = wakers[1 - half as usize].take();
        drop(wakers);
        if let Some(other) = other {
            other.wake();
        }
    }
}

impl Wake for Both {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let wakers = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

/// The reason why a half has woken.
#[derive(Debug)]
enum Heard<'a> {
    /// The line is readable or has ended, or the peer's process has exited.
    Line {
        bell: Option<Readable<'a>>,
        exit: Option<Readable<'a>>,
    },
    /// The other half has read the line in the meantime.
    Before,
}

impl Line {
    pub(super) fn new(shared: &Arc<Shared>) -> Result<Arc<Self>> {
        let both = Arc::new(Both::default());
        Ok(Arc::new(Self {
            bell: Watched::line_of(shared)?,
            exit: Watched::process_of(shared)?,
            waker: Waker::from(Arc::clone(&both)),
            both,
        }))
    }

    /// Polls until the half's condition holds, or can no longer hold.
    pub(super) fn poll_ready<W: Waits>(
        &self,
        half: Half,
        waits: &mut W,
        cx: &Context<'_>,
        what: W::For,
    ) -> Poll<Result<()>> {
        loop {
            let generation = waits.parking().shared.doorbell.generation();
            if !waits.arm_for(what)? {
                return Poll::Ready(Ok(()));
            }
            let doorbell = &waits.parking().shared.doorbell;
            let heard = ready!(self.poll_heard(cx, half, doorbell, generation))?;
            let read = self.hear(heard, half, waits);
            waits.unpark();
            read?;
        }
    }

    /// Polls until an event has arrived, for a half that cannot read now.
    pub(super) fn poll_line<W: Waits>(
        &self,
        half: Half,
        waits: &mut W,
        cx: &Context<'_>,
    ) -> Poll<Result<()>> {
        let doorbell = &waits.parking().shared.doorbell;
        let heard = ready!(self.poll_heard(cx, half, doorbell, doorbell.generation()))?;
        Poll::Ready(self.hear(heard, half, waits))
    }

    /// Polls until an event has arrived after `generation`.
    fn poll_heard(
        &self,
        cx: &Context<'_>,
        half: Half,
        doorbell: &Doorbell,
        generation: u64,
    ) -> Poll<Result<Heard<'_>>> {
        self.both.set(half, cx.waker());
        // tokio keeps only the most recent waker, so register a shared one.
        let cx = &mut Context::from_waker(&self.waker);
        let bell = now(self.bell.poll(cx))?;
        let exit = match &self.exit {
            Some(exit) => now(exit.poll(cx))?,
            None => None,
        };
        if bell.is_some() || exit.is_some() {
            return Poll::Ready(Ok(Heard::Line { bell, exit }));
        }
        // Check after registering the waker. A half that has read the line earlier has already moved the
        // generation, and one that reads the line later finds the waker.
        if doorbell.generation() != generation || doorbell.is_gone() {
            return Poll::Ready(Ok(Heard::Before));
        }
        Poll::Pending
    }

    /// Handles the event on behalf of a half.
    fn hear<W: Waits>(&self, heard: Heard<'_>, half: Half, waits: &mut W) -> Result<()> {
        let doorbell = &waits.parking().shared.doorbell;
        let Heard::Line { bell, exit } = heard else {
            waits.parking().shared.notice();
            return Ok(());
        };
        if let Some(exit) = exit {
            doorbell.look();
            if doorbell.is_gone() {
                exit.was_read();
            }
        }
        let read = waits.read_line();
        if let Some(bell) = bell {
            bell.was_read();
        }
        // Wake only after the generation has moved: see `poll_heard`.
        self.both.wake_the_other(half);
        read
    }
}

/// Returns the result of a poll, or `None` if it is pending.
fn now<T>(polled: Poll<Result<T>>) -> Result<Option<T>> {
    match polled {
        Poll::Ready(found) => found.map(Some),
        Poll::Pending => Ok(None),
    }
}
