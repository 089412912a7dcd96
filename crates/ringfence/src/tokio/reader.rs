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

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};
    use tokio::runtime::Builder;

    use crate::{error::Error, options::Options, ring::message::Progress, testing::parts, tokio::Channel};

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
    fn a_stream_goes_on_after_a_local_error_though_the_peer_has_gone() {
        let runtime = Builder::new_current_thread().enable_io().build().unwrap();
        let _inside = runtime.enter();
        let (own, peer) = parts::pair(4096, 20_000, &Options::new());
        let (_sender, mut receiver) = Channel::new(own).unwrap().split();
        let (mut sender, unread) = peer.split();
        let (long, mut into, mut written) = ([7; 9000], [0; 9000], 0);
        while let Progress::Part(bytes) = sender.send_part(&long, written).unwrap() {
            written = bytes;
            receiver.get_mut().receive_part(&mut into).unwrap();
        }
        assert!(sender.try_send(b"the next").unwrap());
        drop((sender, unread));
        receiver.get_mut().poll_line().unwrap();
        assert!(receiver.close_reason().is_some());
        let refused = receiver.next().now_or_never().unwrap().unwrap();
        assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{refused:?}");
        assert_eq!(
            receiver.get_mut().receive_part(&mut into).unwrap(),
            Progress::Whole
        );
        let next = receiver.next().now_or_never().unwrap().transpose().unwrap();
        assert_eq!(next.as_deref(), Some(&b"the next"[..]));
        assert!(receiver.next().now_or_never().unwrap().is_none());
    }
}
