//! Each call of a sender, cancelled at each point, before and after each other call. Accepted messages arrive
//! once and in order, refused and cancelled ones do not, and the next call works.

use std::{os::fd::AsFd, pin::pin, task::Waker};

use futures_util::SinkExt;
use proptest::prelude::*;
use tokio::{
    runtime::{Builder, Runtime},
    task::spawn_blocking,
};

use super::*;
use crate::{
    options::Options,
    region::sealed::SealedBuffer,
    testing::{chance, parts},
    tokio::Channel,
    wake::attachments::{Attachment, Attachments},
};

const CAPACITY: u64 = 4096;
const LONGEST: u64 = 20_000;

/// A message that goes into the ring at once.
const SHORT: usize = 700;
/// A message that is sent in fragments, and is longer than the ring.
const LONG: usize = 9000;
/// Another such one.
const LONGER: usize = 13_000;
/// A message that the peer does not accept.
const REFUSED: usize = 20_001;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Send(usize),
    /// Passes the message whose `send` was cancelled, or if there is none, a new one of this length.
    SendRest(usize),
    /// Passes a message of another length than the one whose `send` was cancelled.
    SendRestOfAnother,
    TrySend(usize),
    Feed(usize),
    FeedAndFlush(usize),
    Flush,
    Room(usize),
    Close,
    End,
    /// No call: the peer reads.
    PeerReads,
}

const CALLS: [Call; 20] = [
    Call::Send(SHORT),
    Call::Send(LONG),
    Call::Send(REFUSED),
    Call::SendRest(SHORT),
    Call::SendRest(LONGER),
    Call::SendRest(REFUSED),
    Call::SendRestOfAnother,
    Call::TrySend(SHORT),
    Call::TrySend(REFUSED),
    Call::Feed(SHORT),
    Call::Feed(LONG),
    Call::Feed(REFUSED),
    Call::FeedAndFlush(LONG),
    Call::Flush,
    Call::Room(SHORT),
    Call::Room(LONG),
    Call::Room(REFUSED),
    Call::Close,
    Call::End,
    Call::PeerReads,
];

/// The polls of a call before it is dropped. The peer reads between two polls.
const POLLS: [usize; 3] = [0, 1, 2];

/// The most polls that any call needs if the peer reads between them.
const READY: usize = 40;

/// A sender, its peer, and what the peer must receive.
struct Bench {
    sender: Sender,
    peer: channel::Channel,
    /// The messages that were accepted, in their order.
    accepted: Vec<Vec<u8>>,
    received: Vec<Vec<u8>>,
    /// A message whose `send` was cancelled after some of it was in the ring.
    abandoned: Option<Vec<u8>>,
    closed: bool,
    /// The sending was ended with a message in the sink, and no call has reported that yet.
    lost: bool,
    count: usize,
    _runtime: Runtime,
}

/// Reads all messages that are there. Not a method, since a call may borrow the sender.
fn read(peer: &mut channel::Channel, received: &mut Vec<Vec<u8>>) {
    while let Some(message) = peer.receiver().try_receive_vec().expect("an open channel") {
        received.push(message);
    }
}

fn poll_once<F: Future + ?Sized>(future: &mut Pin<&mut F>) -> Poll<F::Output> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// `flush` and `close` report a message that was `lost`, and nothing else.
fn check_flushed(lost: bool, result: Option<Result<()>>) {
    match result {
        None => {}
        Some(Err(Error::Closed(_))) => assert!(lost),
        Some(result) => assert!(result.is_ok() && !lost, "{result:?}, lost: {lost}"),
    }
}

impl Bench {
    fn new(full: bool) -> Self {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .build()
            .expect("a runtime");
        let (sender, peer) = {
            let _inside = runtime.enter();
            let (own, peer) = parts::pair(CAPACITY, LONGEST, &Options::new());
            let (sender, _receiver) = Channel::new(own).expect("descriptors").split();
            (sender, peer)
        };
        let mut bench = Self {
            sender,
            peer,
            accepted: Vec::new(),
            received: Vec::new(),
            abandoned: None,
            closed: false,
            lost: false,
            count: 0,
            _runtime: runtime,
        };
        let mut has_room = full;
        while has_room {
            let message = bench.message(SHORT);
            has_room = bench.sender.try_send(&message).expect("an open channel");
            if has_room {
                bench.accepted.push(message);
            }
        }
        bench
    }

    /// Returns a message that differs from all others.
    fn message(&mut self, length: usize) -> Vec<u8> {
        self.count += 1;
        let mut message = vec![0xaa; length];
        message[..8].copy_from_slice(&self.count.to_le_bytes());
        message
    }

    /// Polls a call, and drops it. `None`: it was not ready after the last poll.
    fn poll<T>(
        &mut self,
        polls: usize,
        call: impl AsyncFnOnce(&mut Sender) -> Result<T>,
    ) -> Option<Result<T>> {
        let mut future = std::pin::pin!(call(&mut self.sender));
        for poll in 0..polls {
            if poll > 0 {
                read(&mut self.peer, &mut self.received);
            }
            if let Poll::Ready(result) = poll_once(&mut future.as_mut()) {
                return Some(result);
            }
        }
        None
    }

    /// Checks the result of a call that begins a message of this size. `None`: it was rightly refused.
    fn check<T: std::fmt::Debug>(&self, size: usize, result: Result<T>) -> Option<T> {
        match result {
            Err(Error::MessageTooLarge { .. }) if size as u64 > LONGEST => None,
            Err(Error::InvalidArgument(_)) if self.abandoned.is_some() && !self.closed => None,
            Err(Error::Closed(_)) if self.closed => None,
            Ok(value) if size as u64 <= LONGEST && self.abandoned.is_none() && !self.closed => Some(value),
            other => panic!(
                "{other:?} of {size} bytes, abandoned {}",
                self.abandoned.is_some()
            ),
        }
    }

    /// Notes the result of `send` or `send_rest`.
    fn sent(&mut self, message: Vec<u8>, result: Option<Result<()>>) {
        if let Some(result) = result {
            if self.check(message.len(), result).is_some() {
                self.accepted.push(message);
            }
        } else if self.abandoned.is_none() && !self.closed && self.sender.under_way().is_some() {
            assert!(message.len() as u64 > self.sender.get_ref().max_at_once());
            self.abandoned = Some(message);
        }
    }

    fn call(&mut self, call: Call, polls: usize) {
        let lost = self.lost;
        match call {
            Call::Send(size) => {
                let message = self.message(size);
                let sent = self.poll(polls, async |sender| sender.send(&message).await);
                self.sent(message, sent);
            }
            Call::SendRest(size) => {
                let message = self.abandoned.take().filter(|_| !self.closed);
                let goes_on = message.is_some();
                let message = message.unwrap_or_else(|| self.message(size));
                let sent = self.poll(polls, async |sender| sender.send_rest(&message).await);
                if goes_on && sent.is_none() {
                    self.abandoned = Some(message);
                } else {
                    self.sent(message, sent);
                }
            }
            Call::SendRestOfAnother => {
                if self.abandoned.is_some() {
                    let message = self.message(SHORT);
                    let sent = self.poll(polls, async |sender| sender.send_rest(&message).await);
                    self.sent(message, sent);
                }
            }
            Call::TrySend(size) => {
                let message = self.message(size);
                let waits = self.sender.buffered.message.is_some();
                let sent = self.sender.try_send(&message);
                if waits && matches!(sent, Ok(false)) {
                    return;
                }
                if self.check(size, sent) == Some(true) {
                    self.accepted.push(message);
                }
            }
            Call::Feed(size) => {
                let message = self.message(size);
                let fed = self.poll(polls, async |sender| sender.feed(&message).await);
                if let Some(fed) = fed
                    && self.check(size, fed).is_some()
                {
                    self.accepted.push(message);
                }
            }
            Call::FeedAndFlush(size) => {
                let message = self.message(size);
                let sent = self.poll(polls, async |sender| SinkExt::send(sender, &message).await);
                let is_taken = self
                    .sender
                    .buffered
                    .message
                    .as_ref()
                    .is_some_and(|(taken, _)| *taken == message);
                if sent.map_or(is_taken, |sent| self.check(size, sent).is_some()) {
                    self.accepted.push(message);
                }
            }
            Call::Flush => {
                let flushed = self.poll(polls, async |sender| SinkExt::<&[u8]>::flush(sender).await);
                check_flushed(lost, flushed);
            }
            Call::Room(size) => {
                let room = self.poll(polls, async |sender| sender.room(size).await);
                // This sends nothing, even during an unfinished message.
                match room {
                    None => {}
                    Some(Ok(())) => assert!(size as u64 <= LONGEST && !self.closed),
                    Some(Err(Error::MessageTooLarge { .. })) => assert!(size as u64 > LONGEST),
                    Some(Err(Error::Closed(_))) => assert!(self.closed),
                    other => panic!("{other:?}"),
                }
            }
            Call::Close => {
                let closed = self.poll(polls, async |sender| SinkExt::<&[u8]>::close(sender).await);
                self.closed |= closed.is_some();
                check_flushed(lost, closed);
            }
            Call::End => {
                if self.sender.buffered.message.is_some() && !self.closed {
                    self.accepted.pop();
                    self.lost = true;
                }
                self.closed = true;
                self.sender.end();
            }
            Call::PeerReads => read(&mut self.peer, &mut self.received),
        }
        // The first call that would have sent it has reported the loss.
        self.lost &= self.sender.buffered.message.is_some();
    }

    /// The sender works after these calls, and the peer receives each accepted message.
    fn finish(mut self) {
        if !self.closed {
            if let Some(message) = self.abandoned.take() {
                let sent = self.poll(READY, async |sender| sender.send_rest(&message).await);
                sent.expect("an end").expect("the same message");
                self.accepted.push(message);
            }
            for size in [SHORT, LONG] {
                for feeds in [false, true] {
                    let message = self.message(size);
                    let sent = self.poll(READY, async |sender| {
                        if feeds {
                            SinkExt::send(sender, &message).await
                        } else {
                            sender.send(&message).await
                        }
                    });
                    sent.expect("an end").expect("an open channel");
                    self.accepted.push(message);
                }
            }
            let closed = self.poll(READY, async |sender| SinkExt::<&[u8]>::close(sender).await);
            closed.expect("an end").expect("an open channel");
        }
        read(&mut self.peer, &mut self.received);
        assert!(self.peer.receiver().is_ended().expect("an open channel"));
        let lengths = |messages: &[Vec<u8>]| messages.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lengths(&self.received), lengths(&self.accepted));
        assert!(self.received == self.accepted, "each is itself");
    }
}

fn run(full: bool, calls: &[(Call, usize)]) {
    let ran = std::panic::catch_unwind(|| {
        let mut bench = Bench::new(full);
        for (call, polls) in calls {
            bench.call(*call, *polls);
        }
        bench.finish();
    });
    assert!(ran.is_ok(), "ring full: {full}, calls and polls: {calls:?}");
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
fn each_call_works_after_any_cancelled_call() {
    for full in [false, true] {
        for first in CALLS {
            for polls in POLLS {
                for second in CALLS {
                    run(full, &[(first, polls), (second, 1)]);
                    run(full, &[(first, polls), (second, 1), (Call::SendRest(LONG), 2)]);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(chance::cases(2, 1))]

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
    fn any_call_sequence_leaves_a_working_sender(
        full: bool,
        calls in prop::collection::vec((prop::sample::select(&CALLS[..]), 0..4_usize), 1..16),
    ) {
        run(full, &calls);
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
fn open_reservation_delays_the_sink() {
    let mut bench = Bench::new(true);
    let message = bench.message(SHORT);
    let fed = bench.poll(1, async |sender| sender.feed(&message).await);
    fed.expect("the sink was ready").expect("an open channel");
    read(&mut bench.peer, &mut bench.received);
    let reserved = bench.sender.get_mut().reserve_detached(SHORT);
    let reserved = reserved.expect("an open channel").expect("room");
    for _ in 0..2 {
        let flushed = bench.poll(1, async |sender| SinkExt::<&[u8]>::flush(sender).await);
        assert!(
            matches!(flushed, Some(Err(Error::InvalidArgument(_)))),
            "{flushed:?}"
        );
        let sent = bench.sender.try_send(b"another");
        assert!(matches!(sent, Err(Error::InvalidArgument(_))), "{sent:?}");
    }
    drop(reserved);
    bench.accepted.push(message);
    bench.finish();
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
fn message_dropped_with_its_sink_is_no_clean_end() {
    for (flushes, ends) in [(false, false), (true, false), (false, true)] {
        let mut bench = Bench::new(true);
        let message = bench.message(LONG);
        let fed = bench.poll(1, async |sender| sender.feed(&message).await);
        fed.expect("the sink was ready").expect("an open channel");
        if flushes {
            let flushed = bench.poll(READY, async |sender| SinkExt::<&[u8]>::flush(sender).await);
            flushed.expect("an end").expect("an open channel");
        }
        if ends {
            bench.sender.end();
        }
        let Bench {
            sender,
            mut peer,
            mut received,
            ..
        } = bench;
        drop(sender);
        let end = loop {
            match peer.receiver().receive_vec() {
                Ok(Some(message)) => received.push(message),
                end => break end,
            }
        };
        if flushes || ends {
            assert_eq!(end.expect("a clean end"), None);
        } else {
            assert!(matches!(end, Err(Error::PeerLost(_))), "{end:?}");
        }
        assert_eq!(received.last() == Some(&message), flushes);
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
fn attachments_wait_until_the_peer_accepts_more() {
    let accepted = Attachments::none().sealed(true).max_count(1);
    let buffer = SealedBuffer::create(8, |bytes| bytes.fill(7)).expect("memory");
    let runtime = Builder::new_current_thread()
        .enable_io()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (own, mut peer) = parts::pair(CAPACITY, LONGEST, &Options::new().attachments(accepted));
        let (mut sender, _receiver) = Channel::new(own).expect("descriptors").split();
        let attached = [(&buffer).into()];
        sender.send_with(&[1; SHORT], &attached).await.expect("room");
        let file = std::io::stdin();
        let refused = sender.send_with(b"", &[file.as_fd().into()]).await;
        assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{refused:?}");
        let reading = {
            let mut second = pin!(sender.send_with(&[2; LONG], &attached));
            assert!(poll_once(&mut second).is_pending());
            let reading = spawn_blocking(move || {
                let mut found = Vec::new();
                while let Some(message) = peer.receiver().receive_vec().expect("an honest peer") {
                    let attachments = peer.receiver().attachments();
                    let [Attachment::Sealed(buffer)] = &attachments[..] else {
                        panic!("{attachments:?}");
                    };
                    assert_eq!(buffer[..], [7; 8]);
                    found.push(message.len());
                }
                found
            });
            second.await.expect("room");
            reading
        };
        sender.end();
        assert_eq!(reading.await.expect("no panic"), [SHORT, LONG]);
    });
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no epoll that Tokio takes")]
fn dropped_room_wait_requests_no_wakeup() {
    for call in [Call::Room(SHORT), Call::Send(SHORT), Call::Send(LONG)] {
        let mut bench = Bench::new(true);
        bench.call(call, 1);
        read(&mut bench.peer, &mut bench.received);
        assert_eq!(bench.peer.stats().bells_rung, 0, "{call:?}");
        bench.finish();
    }
}
