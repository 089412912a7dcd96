//! What a task reads: takes what is there, in turns with the runtime's other tasks, and waits where nothing is.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::task::coop;

use crate::{
    channel::merge::source::Reading,
    channel::waiting::{Awaited, Waits},
    error::Result,
    tokio::line::{Half, Line},
};

/// What reads one ring, and the line on which it waits.
#[derive(Debug)]
pub(super) struct Reader<R> {
    line: Arc<Line>,
    pub(super) inner: R,
    /// The stream has told what ended it.
    failed: bool,
}

impl<R: Reading> Reader<R> {
    pub(super) fn new(line: Arc<Line>, inner: R) -> Self {
        Self {
            line,
            inner,
            failed: false,
        }
    }

    /// What `take` finds, once it finds something. `None`: no more will come.
    pub(super) async fn take<T>(
        &mut self,
        mut take: impl FnMut(&mut R) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let Self { line, inner, .. } = self;
        poll_fn(|cx| poll_take_on(line, inner, cx, &mut take)).await
    }

    /// For a stream of messages: an error that ends what is read is its last item.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Vec<u8>>>> {
        if self.failed {
            return Poll::Ready(None);
        }
        let found = ready!(poll_take_on(
            &self.line,
            &mut self.inner,
            cx,
            Reading::try_receive_vec
        ));
        // After a local error the messages that the peer has left are still there.
        self.failed =
            found.as_ref().is_err_and(|error| !error.is_local()) && self.inner.end_reason().is_some();
        Poll::Ready(found.transpose())
    }
}

/// As [`poll_take`], of what waits on a line.
pub(super) fn poll_take_on<R: Waits<For = ()>, T>(
    line: &Line,
    reader: &mut R,
    cx: &mut Context<'_>,
    take: impl FnMut(&mut R) -> Result<Option<T>>,
) -> Poll<Result<Option<T>>> {
    let poll_ready = |reader: &mut R, cx: &mut Context<'_>| line.poll_ready(Half::Receiver, reader, cx, ());
    poll_take(reader, cx, take, poll_ready)
}

/// What `take` finds, once it finds something. `None`: no more will come.
pub(super) fn poll_take<R: Awaited, T>(
    reader: &mut R,
    cx: &mut Context<'_>,
    mut take: impl FnMut(&mut R) -> Result<Option<T>>,
    mut poll_ready: impl FnMut(&mut R, &mut Context<'_>) -> Poll<Result<()>>,
) -> Poll<Result<Option<T>>> {
    let turn = ready!(coop::poll_proceed(cx));
    loop {
        let taken = take(reader)?;
        if taken.is_some() || reader.is_through()? {
            turn.made_progress();
            return Poll::Ready(Ok(taken));
        }
        ready!(poll_ready(reader, cx))?;
    }
}
