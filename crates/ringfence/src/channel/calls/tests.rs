//! Calls between both ends of a channel in one process.

use std::sync::mpsc;

use proptest::{prelude::*, test_runner::Config};

use super::{
    envelope::{FrameKind, HEAD, Head, MIN_MESSAGE, error_frame, read_error},
    *,
};
use crate::{
    channel::end::ChannelState, error::ErrorKind, options::Options, ring::record::Tag, testing::parts,
};

const CAPACITY: u64 = 4096;
const LONGEST: u64 = 20_000;

const SOON: Duration = Duration::from_secs(60);

fn calls() -> (Calls, Calls) {
    let (one, other) = parts::pair(CAPACITY, LONGEST, &Options::new());
    (one.into_calls().unwrap(), other.into_calls().unwrap())
}

/// Calls until the deadline of a test that has failed.
fn call_in_time(calls: &Calls, request: &[u8]) -> Result<Vec<u8>, CallError> {
    calls.call_until(request, Instant::now() + SOON)
}

fn kind_of<T: std::fmt::Debug>(outcome: Result<T, CallError>) -> ErrorKind {
    match outcome.unwrap_err() {
        CallError::Channel(error) => error.kind(),
        CallError::Remote(error) => panic!("{error}"),
    }
}

fn bytes(number: usize, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| u8::try_from((number * 131 + at * 7) % 251).expect("below 251"))
        .collect()
}

/// Answers each request with itself, twice.
fn serve(calls: &Calls) -> Result<()> {
    calls.serve(|request, _| Ok::<_, RemoteError>([&request[..], &request[..]].concat()))
}

#[test]
fn both_sides_call_and_serve_concurrently() {
    let (one, other) = calls();
    thread::scope(|scope| {
        let sides = [&one, &other];
        for side in sides {
            for _ in 0..2 {
                scope.spawn(|| serve(side).unwrap());
            }
        }
        let callers: Vec<_> = sides
            .iter()
            .flat_map(|side| [*side, *side])
            .map(|side| {
                scope.spawn(move || {
                    for size in [0, 1, 8, 500, 2000, 2033, 4096, 9000] {
                        let request = bytes(size, size);
                        assert_eq!(
                            call_in_time(side, &request).unwrap(),
                            [&request[..], &request[..]].concat()
                        );
                    }
                })
            })
            .collect();
        for thread in callers {
            thread.join().unwrap();
        }
        for side in sides {
            assert_eq!((side.in_flight(), side.late_replies()), (0, 0));
            side.end().unwrap();
        }
    });
}

#[test]
fn handler_errors_and_panics_fail_their_calls() {
    let (one, other) = calls();
    thread::scope(|scope| {
        scope.spawn(|| {
            let handler = |request: Vec<u8>, _: &_| match &request[..] {
                b"fail" => Err(RemoteError::new("not today")
                    .with_name("RangeError")
                    .with_code("E_NO")),
                b"panic" => panic!("expected by the test"),
                b"long" => Ok(vec![0; 30_000]),
                _ => Ok(request),
            };
            other.serve(handler).unwrap();
        });
        let failed = call_in_time(&one, b"fail").unwrap_err();
        let remote = failed.remote().expect("the handler's error");
        assert_eq!(
            (remote.name(), remote.message(), remote.code()),
            ("RangeError", "not today", Some("E_NO"))
        );
        let failed = call_in_time(&one, b"panic").unwrap_err();
        assert_eq!(failed.to_string(), "Error: the handler has panicked");
        let failed = call_in_time(&one, b"long").unwrap_err();
        let code = failed.remote().expect("the server's error").code();
        assert_eq!(code, Some("ERR_RINGFENCE_MESSAGE_TOO_LARGE"));
        assert_eq!(call_in_time(&one, b"still served").unwrap(), b"still served");
        assert_eq!(
            kind_of(call_in_time(&one, &vec![0; 20_000])),
            ErrorKind::MessageTooLarge
        );
        one.end().unwrap();
    });
}

#[test]
fn cancelled_call_is_confirmed_and_its_reply_dropped() {
    let (one, other) = calls();
    let (started, was_started) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            other
                .serve(|request, context| {
                    assert_eq!(context.deadline().is_some(), request == b"late");
                    started.send(()).unwrap();
                    while request != b"echo" && !context.is_cancelled() {
                        thread::yield_now();
                    }
                    // The caller may still read an outcome that arrives just after the deadline.
                    if request == b"late" {
                        Err(timeout_error())
                    } else {
                        Ok(request)
                    }
                })
                .unwrap();
        });
        let pending = one.start(b"wait", None).unwrap();
        was_started.recv().unwrap();
        assert_eq!(one.in_flight(), 1);
        drop(pending);
        assert_eq!(one.in_flight(), 0);
        assert_eq!(one.call(b"echo").unwrap(), b"echo");
        assert_eq!(one.late_replies(), 0, "a cancelled call is answered as such");
        let late = one.call_until(b"late", Instant::now() + Duration::from_millis(20));
        assert_eq!(kind_of(late), ErrorKind::TimedOut);
        assert_eq!(one.call(b"echo").unwrap(), b"echo");
        one.end().unwrap();
    });
}

#[test]
fn expired_request_does_not_reach_the_handler() {
    let (one, other) = calls();
    let mut pending = one
        .start(b"late", Some(Instant::now() + Duration::from_millis(1)))
        .unwrap();
    // The server reads the request, and its clock starts.
    let read = other.receive_until(Instant::now() + Duration::from_millis(20));
    assert_eq!(read.unwrap_err().kind(), ErrorKind::TimedOut);
    thread::scope(|scope| {
        let serving =
            scope.spawn(|| other.serve(|_, _| -> Result<Vec<u8>, RemoteError> { panic!("it is late") }));
        // The caller waits for the server's answer, whatever its clock says.
        pending.deadline = None;
        assert_eq!(kind_of(pending.wait()), ErrorKind::TimedOut);
        one.close();
        serving.join().unwrap().unwrap();
    });
}

#[test]
fn thousands_of_calls_can_be_in_flight() {
    let (one, other) = calls();
    let count = 20_000_usize;
    let pending: Vec<_> = (0..count)
        .map(|number| one.start(&number.to_le_bytes(), None).unwrap())
        .collect();
    assert_eq!(one.in_flight(), count);
    thread::scope(|scope| {
        scope.spawn(|| serve(&other).unwrap());
        for (number, call) in pending.into_iter().enumerate().rev() {
            if number % 7 == 0 {
                drop(call);
            } else {
                let number = number.to_le_bytes();
                assert_eq!(call.wait().unwrap(), [number, number].concat());
            }
        }
        one.end().unwrap();
    });
    assert_eq!(one.in_flight(), 0);
}

#[test]
fn messages_alongside_calls_keep_their_order() {
    let (one, other) = calls();
    thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&other));
        one.send(b"first").unwrap();
        assert_eq!(call_in_time(&one, b"a").unwrap(), b"aa");
        assert_eq!(other.receive().unwrap().as_deref(), Some(&b"first"[..]));
        let sending = scope.spawn(|| {
            for number in 0..6000_u32 {
                one.send(&number.to_le_bytes()).unwrap();
            }
            call_in_time(&one, b"behind them")
        });
        for number in 0..6000_u32 {
            let message = other.receive().unwrap().expect("a message");
            assert_eq!(message, number.to_le_bytes());
        }
        assert_eq!(sending.join().unwrap().unwrap(), b"behind thembehind them");
        one.end().unwrap();
        serving.join().unwrap().unwrap();
        assert_eq!(other.receive().unwrap(), None);
    });
}

#[test]
fn pending_calls_fail_when_the_peer_ends() {
    for end in [Calls::close as fn(&Calls), Calls::destroy, |calls| {
        calls.end().unwrap();
    }] {
        let (one, other) = calls();
        let (before, after) = (one.start(b"before", None).unwrap(), one.start(b"", None).unwrap());
        thread::scope(|scope| {
            let waiting = scope.spawn(|| before.wait());
            end(&other);
            assert_eq!(kind_of(waiting.join().unwrap()), ErrorKind::PeerLost);
            assert_eq!(kind_of(after.wait()), ErrorKind::PeerLost);
        });
        assert_eq!(one.start(b"more", None).unwrap_err().kind(), ErrorKind::PeerLost);
    }
}

#[test]
fn serve_ends_with_its_channel() {
    let (one, other) = calls();
    thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&other));
        one.destroy();
        assert_eq!(
            serving.join().unwrap().unwrap_err().kind(),
            ErrorKind::PeerLost,
            "the peer was lost"
        );
    });
    let (one, other) = calls();
    thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&other));
        assert_eq!(call_in_time(&one, b"a").unwrap(), b"aa");
        let pending = other.start(b"b", None).unwrap();
        other.close();
        serving.join().unwrap().unwrap();
        assert_eq!(kind_of(pending.wait()), ErrorKind::Closed);
    });
}

#[test]
fn serve_reports_an_error_that_precedes_a_close() {
    let (one, other) = calls();
    one.destroy();
    assert_eq!(kind_of(call_in_time(&other, b"a")), ErrorKind::PeerLost);
    other.close();
    assert_eq!(serve(&other).unwrap_err().kind(), ErrorKind::PeerLost);
}

/// Waits in a handler until its request is cancelled. `false`: it was not, and the test has failed.
fn wait_for_cancellation(context: &CallContext) -> bool {
    let until = Instant::now() + SOON;
    while !context.is_cancelled() {
        if until < Instant::now() {
            return false;
        }
        thread::yield_now();
    }
    true
}

#[test]
fn callers_close_cancels_handlers_and_ends_serve() {
    let close: fn(&Calls) = Calls::close;
    // The channel closes once the call is dropped, whose cancellation can no longer be sent.
    let end_and_drop: fn(&Calls) = |calls| calls.end().unwrap();
    for (end, drives) in [
        (close, false),
        (close, true),
        (end_and_drop, false),
        (end_and_drop, true),
    ] {
        let (one, other) = calls();
        let (started, was_started) = mpsc::channel();
        let (cancelled, was_cancelled) = mpsc::channel();
        let serve = || {
            other.serve(|_, context| {
                started.send(()).unwrap();
                cancelled.send(wait_for_cancellation(context)).unwrap();
                Ok::<_, RemoteError>([])
            })
        };
        thread::scope(|scope| {
            let serving = scope.spawn(serve);
            // A second thread waits for requests, and drives.
            let driving = drives.then(|| scope.spawn(serve));
            let pending = one.start(b"a", None).unwrap();
            was_started.recv().unwrap();
            end(&one);
            drop((one, pending));
            assert!(was_cancelled.recv().unwrap());
            for serving in driving.into_iter().chain([serving]) {
                serving.join().unwrap().unwrap();
            }
            assert_eq!(other.receive().unwrap(), None);
        });
    }
}

#[test]
fn handler_can_answer_after_the_caller_ended() {
    let (one, other) = calls();
    let (started, was_started) = mpsc::channel();
    let (ended, has_ended) = mpsc::channel::<()>();
    let served = &other;
    thread::scope(|scope| {
        let serving = scope.spawn(move || {
            served.serve(|request, context| {
                started.send(()).unwrap();
                has_ended.recv().unwrap();
                // The first check reads the end.
                let is_cancelled = context.is_cancelled() || context.is_cancelled();
                Ok::<_, RemoteError>(if is_cancelled { Vec::new() } else { request })
            })
        });
        let pending = one.start(b"a", None).unwrap();
        was_started.recv().unwrap();
        one.end().unwrap();
        ended.send(()).unwrap();
        assert_eq!(pending.wait().unwrap(), b"a");
        serving.join().unwrap().unwrap();
    });
}

#[test]
fn spinning_thread_sends_queued_frames_of_others() {
    let (one, other) = parts::pair(CAPACITY, LONGEST, &Options::new().busy_poll(Duration::MAX));
    let (one, other) = (one.into_calls().unwrap(), other.into_calls().unwrap());
    let (started, was_started) = mpsc::channel();
    let (long, was_long) = mpsc::channel();
    let served = &other;
    thread::scope(|scope| {
        scope.spawn(move || {
            served
                .serve(|request, _| {
                    started.send(()).unwrap();
                    // Nothing else makes the caller's thread return.
                    let is_long = was_long.recv_timeout(SOON).is_ok();
                    Ok::<_, RemoteError>(if is_long { request } else { Vec::new() })
                })
                .unwrap();
        });
        let waiting = scope.spawn(|| call_in_time(&one, b"waits"));
        was_started.recv().unwrap();
        scope.spawn(|| {
            one.send(&[1; 15_000]).unwrap();
            assert_eq!(call_in_time(&one, b"").unwrap_or_default(), b"");
        });
        let message = other.receive_until(Instant::now() + SOON);
        let _ = long.send(());
        let _ = long.send(());
        assert_eq!(message.unwrap().map(|message| message.len()), Some(15_000));
        assert_eq!(waiting.join().unwrap().unwrap(), b"waits");
        one.end().unwrap();
    });
}

#[test]
fn available_reply_is_returned_after_the_deadline() {
    let (one, other) = calls();
    let mut pending = one.start(b"a", None).unwrap();
    one.end().unwrap();
    // Returns once the reply is in the ring.
    serve(&other).unwrap();
    pending.deadline = Some(Instant::now());
    assert_eq!(pending.wait().unwrap(), b"aa");
}

#[test]
fn reply_during_the_last_sleep_beats_the_deadline() {
    let (one, other) = calls();
    let pending = one.start(b"a", None).unwrap();
    one.end().unwrap();
    let deadline = Instant::now() + Duration::from_millis(200);
    let (mut polls, mut is_served) = (0, false);
    other.send(b"wakes the caller").unwrap();
    let outcome = one.0.block(Some(deadline), |state, _, waker| {
        polls += 1;
        let polled = state.poll_call(pending.ticket, waker);
        if !is_served && (polls == 2 || deadline <= Instant::now()) {
            serve(&other).unwrap();
            is_served = true;
            thread::sleep(deadline.saturating_duration_since(Instant::now()));
        }
        polled
    });
    assert_eq!(outcome.unwrap().unwrap(), b"aa");
}

#[test]
fn reply_read_by_another_thread_beats_the_deadline() {
    let (one, other) = calls();
    let mut pending = one.start(b"a", None).unwrap();
    let mut late = one.start(b"never answered", None).unwrap();
    one.end().unwrap();
    // This thread drives, and the thread that waits is late.
    let mut receiver = one.0.core.lock().unwrap().receiver.take().unwrap();
    thread::scope(|scope| {
        for call in [&mut pending, &mut late] {
            call.deadline = Some(Instant::now());
        }
        let waiting = scope.spawn(move || pending.wait());
        let until = Instant::now() + SOON;
        while !one.0.core.lock().unwrap().state.awaits_read() && Instant::now() < until {
            thread::yield_now();
        }
        let request = other
            .0
            .block(None, State::poll_request)
            .unwrap()
            .unwrap()
            .unwrap();
        other.answer(request.id, Ok(b"aa")).unwrap();
        let mut inner = one.0.core.lock().unwrap();
        inner.read(&mut receiver).unwrap();
        inner.receiver = Some(receiver);
        drop(inner);
        assert_eq!(waiting.join().unwrap().unwrap(), b"aa");
        assert_eq!(kind_of(late.wait()), ErrorKind::TimedOut);
    });
}

#[test]
fn serve_fails_if_the_peer_no_longer_satisfies_the_policy() {
    let (one, other) = calls();
    thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&other));
        assert_eq!(call_in_time(&one, b"a").unwrap(), b"aa");
        let pending = other.start(b"b", None).unwrap();
        other.0.core.shared.finish(ChannelState::Refused);
        assert_eq!(serving.join().unwrap().unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(kind_of(pending.wait()), ErrorKind::Closed);
        assert_eq!(serve(&other).unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(kind_of(call_in_time(&one, b"c")), ErrorKind::PeerLost);
    });
}

/// Panics when it is converted or dropped.
struct Panics {
    when_dropped: bool,
}

impl AsRef<[u8]> for Panics {
    fn as_ref(&self) -> &[u8] {
        assert!(self.when_dropped, "expected by the test");
        b"reply"
    }
}

impl From<Panics> for RemoteError {
    fn from(_: Panics) -> Self {
        panic!("expected by the test")
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        assert!(!self.when_dropped, "expected by the test");
    }
}

#[test]
fn panicking_outcome_conversion_is_answered() {
    let (one, other) = calls();
    thread::scope(|scope| {
        let serving = scope.spawn(|| {
            other.serve(|request, _| {
                let outcome = Panics {
                    when_dropped: request == b"drop",
                };
                if request == b"fail" {
                    Err(outcome)
                } else {
                    Ok(outcome)
                }
            })
        });
        for request in [&b"fail"[..], b"succeed"] {
            let failed = call_in_time(&one, request).unwrap_err();
            assert_eq!(failed.to_string(), "Error: the handler has panicked");
        }
        assert_eq!(call_in_time(&one, b"drop").unwrap(), b"reply");
        one.end().unwrap();
        serving.join().unwrap().unwrap();
    });
}

#[test]
fn observed_cancellation_is_confirmed() {
    let (one, mut other) = parts::pair(CAPACITY, LONGEST, &Options::new());
    let one = one.into_calls().unwrap();
    let (started, was_started) = mpsc::channel();
    let (confirmed, was_confirmed) = mpsc::channel::<()>();
    let served = &one;
    thread::scope(|scope| {
        let serving = scope.spawn(move || {
            served.serve(|_, context| {
                started.send(()).unwrap();
                wait_for_cancellation(context);
                let _ = was_confirmed.recv_timeout(SOON);
                Ok::<_, RemoteError>([])
            })
        });
        for kind in [FrameKind::Request, FrameKind::Cancel] {
            let frame = Head::new(kind, 0).frame(b"");
            assert!(other.sender().send_all(&frame, &[], Tag::CALL, None).is_ok());
            if kind == FrameKind::Request {
                was_started.recv().unwrap();
            }
        }
        other.receiver().accept_calls();
        let deadline = Instant::now() + SOON / 2;
        let answer = other
            .receiver()
            .wait_readable(Some(deadline))
            .map(|found| found.then(|| other.receiver().try_receive_vec().unwrap()));
        confirmed.send(()).unwrap();
        other.sender().end();
        serving.join().unwrap().unwrap();
        let answer = answer.unwrap().flatten().expect("an answer");
        assert_eq!(Head::decode(&answer).unwrap(), Head::new(FrameKind::Cancelled, 0));
    });
}

#[test]
fn aborted_error_has_the_code_of_node() {
    let error = RemoteError::from(Error::Aborted);
    assert_eq!((error.name(), error.code()), ("AbortError", Some("ABORT_ERR")));
}

#[test]
fn plain_channel_rejects_calls_until_converted() {
    let (one, mut other) = parts::pair(CAPACITY, LONGEST, &Options::new());
    let one = one.into_calls().unwrap();
    one.send(b"a message").unwrap();
    let pending = one.start(b"a", None).unwrap();
    let receiver = other.receiver();
    assert_eq!(
        receiver.receive_vec().unwrap().as_deref(),
        Some(&b"a message"[..])
    );
    let mut into = [0; 100];
    for refused in [
        receiver.try_receive(&mut into).map(drop),
        receiver.receive_vec().map(drop),
        receiver.receive_each(|_| panic!("no message"), 1).map(drop),
        receiver.try_receive_packed(&mut into).map(drop),
        receiver.receive_part(&mut into).map(drop),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Protocol);
    }
    let other = other.into_calls().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| serve(&other).unwrap());
        assert_eq!(pending.wait().unwrap(), b"aa");
        one.end().unwrap();
    });
}

#[test]
fn close_with_queued_frames_is_no_clean_end() {
    let (one, mut other) = parts::pair(CAPACITY, LONGEST, &Options::new());
    let one = one.into_calls().unwrap();
    let pending: Vec<_> = (0..100).map(|_| one.start(&[0; 1000], None).unwrap()).collect();
    std::mem::forget(pending);
    let mut lost = None;
    assert!(one.0.core.lock().unwrap().state.has_unsent());
    // The forgotten calls keep the channel open.
    one.close();
    other.receiver().accept_calls();
    while lost.is_none() {
        lost = other.receiver().try_receive_vec().err();
    }
    assert_eq!(lost.unwrap().kind(), ErrorKind::PeerLost);
}

/// Sends these frames to a channel with calls, and returns the error that they cause.
fn refused(frames: &[Vec<u8>], calls: impl FnOnce(&Calls) -> Vec<PendingCall>) -> Option<Error> {
    let (one, mut other) = parts::pair(CAPACITY, LONGEST, &Options::new());
    let one = one.into_calls().unwrap();
    let pending = calls(&one);
    for frame in frames {
        assert!(other.sender().try_send_tagged(frame, Tag::CALL).unwrap());
    }
    other.sender().end();
    let end = one.receive().err();
    drop(pending);
    end
}

#[test]
fn each_violation_ends_the_channel() {
    let frame = |kind, id, body: &[u8]| Head::new(kind, id).frame(body);
    let request = |id| frame(FrameKind::Request, id, b"");
    let with_kind = |kind: u32| [&kind.to_le_bytes()[..], &[0; 12]].concat();
    let with_time = |kind| {
        Head {
            remaining: 1,
            ..Head::new(kind, 0)
        }
        .frame(b"")
    };
    let one_call = |calls: &Calls| vec![calls.start(b"a", None).unwrap()];
    let one_cancelled = |calls: &Calls| {
        drop(calls.start(b"a", None).unwrap());
        Vec::new()
    };
    for (frames, calls) in [
        (vec![vec![1; HEAD - 1]], false),
        (vec![vec![]], false),
        (vec![with_kind(0)], false),
        (vec![with_kind(6)], false),
        (vec![request(1)], false),
        (vec![request(0), request(0)], false),
        (vec![request(u64::MAX)], false),
        (vec![frame(FrameKind::Cancel, 0, b"")], false),
        (vec![request(0), frame(FrameKind::Cancel, 0, b"body")], false),
        (vec![frame(FrameKind::Reply, 0, b"")], false),
        (vec![frame(FrameKind::Reply, 1, b"")], true),
        (
            vec![frame(FrameKind::Reply, 0, b""), frame(FrameKind::Reply, 0, b"")],
            true,
        ),
        (vec![with_time(FrameKind::Reply)], true),
        (vec![frame(FrameKind::Cancelled, 0, b"")], true),
        (vec![frame(FrameKind::Error, 0, b"")], true),
        (vec![frame(FrameKind::Error, 0, &[1; 12])], true),
    ] {
        let error = refused(
            &frames,
            |channel| if calls { one_call(channel) } else { Vec::new() },
        );
        assert_eq!(
            error.map(|error| error.kind()),
            Some(ErrorKind::RingCorrupt),
            "{frames:?}"
        );
    }
    // These frames are sound.
    for (frames, cancelled) in [
        (
            vec![
                request(0),
                request(1),
                frame(FrameKind::Cancel, 0, b""),
                frame(FrameKind::Cancel, 0, b""),
            ],
            false,
        ),
        (vec![frame(FrameKind::Cancelled, 0, b"")], true),
        (vec![frame(FrameKind::Reply, 0, b"late")], true),
    ] {
        let error = refused(&frames, |channel| {
            if cancelled {
                one_cancelled(channel)
            } else {
                Vec::new()
            }
        });
        assert!(error.is_none(), "{error:?}");
    }
}

#[test]
fn too_many_requests_end_the_channel() {
    let (one, mut other) = parts::pair(1 << 20, LONGEST, &Options::new());
    let one = one.into_calls().unwrap();
    thread::scope(|scope| {
        let reading = scope.spawn(|| one.receive());
        for id in 0..=2 * 16 * 1024 {
            let frame = Head::new(FrameKind::Request, id).frame(b"");
            if other.sender().send_all(&frame, &[], Tag::CALL, None).is_err() {
                break;
            }
        }
        assert_eq!(
            reading.join().unwrap().unwrap_err().kind(),
            ErrorKind::RingCorrupt
        );
    });
}

/// Reads a frame as docs/internals/protocol.md says, in other words than the code does.
fn reference(frame: &[u8]) -> Option<(u32, u32, u64)> {
    let word = |at: usize| {
        (0..4)
            .rev()
            .fold(0_u32, |word, byte| (word << 8) | u32::from(frame[at + byte]))
    };
    if frame.len() < 16 {
        return None;
    }
    let (kind, remaining) = (word(0), word(4));
    let id = u64::from(word(8)) + (u64::from(word(12)) << 32);
    let sound = (1..=5).contains(&kind)
        && (kind == 1 || remaining == 0)
        && (kind < 4 || frame.len() == 16)
        && id < 1 << 53;
    sound.then_some((kind, remaining, id))
}

proptest! {
    #![proptest_config(Config { cases: if cfg!(miri) { 8 } else { 512 }, failure_persistence: None, ..Config::default() })]

    #[test]
    fn frame_decoding_matches_the_reference(
        kind in 0..8_u32,
        remaining in prop_oneof![Just(0_u32), any::<u32>()],
        id in prop_oneof![0..4_u64, any::<u64>(), ((1_u64 << 53) - 2)..((1 << 53) + 2)],
        body in prop::collection::vec(any::<u8>(), 0..4),
        cut in 0..20_usize,
    ) {
        let mut frame = [&kind.to_le_bytes()[..], &remaining.to_le_bytes(), &id.to_le_bytes(), &body].concat();
        frame.truncate(cut);
        let found = Head::decode(&frame).ok().map(|head| (head.kind as u32, head.remaining, head.id));
        prop_assert_eq!(found, reference(&frame));
        if let Ok(head) = Head::decode(&frame) {
            prop_assert_eq!(head.frame(&frame[HEAD..]), frame);
        }
    }

    #[test]
    fn error_frames_round_trip_and_truncations_fail(
        (name, message, code) in ("\\PC{0,80}", "\\PC{0,200}", "\\PC{0,80}"),
        limit in MIN_MESSAGE..400,
    ) {
        let error = RemoteError::from_parts(&name, &message, &code);
        let frame = error_frame(7, &error, limit);
        prop_assert!(frame.len() <= limit);
        prop_assert_eq!(Head::decode(&frame).unwrap(), Head::new(FrameKind::Error, 7));
        let read = read_error(&frame[HEAD..]).unwrap();
        prop_assert!(name.starts_with(read.name()) && message.starts_with(read.message()));
        prop_assert!(code.starts_with(read.code().unwrap_or("")));
        let whole = error_frame(7, &error, 1 << 20);
        if name.len() <= 128 && code.len() <= 128 {
            prop_assert_eq!(read_error(&whole[HEAD..]).unwrap(), error);
        }
        for end in HEAD..frame.len() {
            prop_assert!(read_error(&frame[HEAD..end]).is_err());
        }
        prop_assert!(read_error(&[&frame[HEAD..], &[0]].concat()).is_err());
    }
}
