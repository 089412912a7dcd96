//! Calls between a Rust process and a Node process, for `__test__/calls-rust.test.ts`.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use ringfence::{CallContext, CallError, Channel, RemoteError};

use crate::{Outcome, say};

/// Longer than any call takes on a loaded machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Serves calls on four threads, calls the peer back on request, and prints how each thread ended.
pub(crate) fn answer(channel: Channel) -> Outcome {
    let calls = channel.into_calls()?;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let served = calls.serve(|request, context| match &request[..] {
                    b"back" => calls
                        .call_until(b"from Rust", Instant::now() + LIMIT)
                        .map_err(|error| RemoteError::new(error.to_string())),
                    _ => handle(request, context),
                });
                match served {
                    Ok(()) => say("served"),
                    Err(error) => say(error.code()),
                }
            });
        }
        scope.spawn(|| {
            // Echoes each message, beside the calls.
            while let Ok(Some(message)) = calls.receive() {
                if calls.send(&message).is_err() {
                    break;
                }
            }
        });
    });
    Ok(())
}

fn handle(request: Vec<u8>, context: &CallContext) -> Result<Vec<u8>, RemoteError> {
    match &request[..] {
        b"fail" => Err(RemoteError::new("not today")
            .with_name("RangeError")
            .with_code("E_NO")),
        b"panic" => panic!("expected by the test"),
        b"hang" => {
            let (begin, end) = match context.deadline() {
                Some(_) => ("hangs until its deadline", "cancelled at its deadline"),
                None => ("hangs", "cancelled"),
            };
            say(begin);
            while !context.is_cancelled() {
                thread::sleep(Duration::from_millis(1));
            }
            say(end);
            Ok(request)
        }
        _ => Ok([&request[..], &request[..]].concat()),
    }
}

/// Calls the peer, and prints each outcome. `sizes` are the sizes of requests, each of which is echoed.
pub(crate) fn ask(channel: Channel, sizes: &[usize]) -> Outcome {
    let calls = channel.into_calls()?;
    let ask = |request: &[u8]| calls.call_until(request, Instant::now() + LIMIT);
    for &size in sizes {
        if ask(&vec![7; size])? != vec![7; size] {
            return Err(format!("another reply to {size} bytes").into());
        }
    }
    say(&format!("asked {}", sizes.len()));
    say(&text_of(ask(b"fail")));
    say(&text_of(ask(b"due")));
    // The peer's timers round to milliseconds.
    let late: Vec<_> = (0..100)
        .map(|number| {
            let soon = Instant::now() + Duration::from_micros(50_000 + 370 * number);
            calls.start(b"hang", Some(soon))
        })
        .collect::<Result<_, _>>()?;
    let outcomes: BTreeSet<_> = late.into_iter().map(|call| text_of(call.wait())).collect();
    say(&Vec::from_iter(outcomes).join(", "));
    let pending = calls.start(b"hang", None)?;
    say(&text_of(ask(b"the first hangs")));
    drop(pending);
    let many: Vec<_> = (0..2000_u32)
        .map(|number| calls.start(&number.to_le_bytes(), None))
        .collect::<Result<_, _>>()?;
    for (number, call) in (0..2000_u32).zip(many) {
        if call.wait()? != number.to_le_bytes() {
            return Err(format!("another reply to {number}").into());
        }
    }
    say("asked 2000");
    say(&text_of(calls.call(b"hang")));
    Ok(())
}

fn text_of(outcome: Result<Vec<u8>, CallError>) -> String {
    match outcome {
        Ok(reply) => String::from_utf8_lossy(&reply).into_owned(),
        Err(CallError::Remote(error)) => format!("{error} {}", error.code().unwrap_or("-")),
        Err(CallError::Channel(error)) => error.code().into(),
        Err(error) => error.to_string(),
    }
}

/// Calls the peer twice, cancels the second call, and serves it until its end, for `__test__/conformance`.
pub(crate) fn call_and_serve(channel: Channel) -> ringfence::Result<String> {
    let calls = channel.into_calls()?;
    let asked = calls.start(b"asked", None)?;
    drop(calls.start(b"cancelled", None)?);
    thread::scope(|scope| {
        scope.spawn(|| {
            while let Ok(Some(message)) = calls.receive() {
                let _ = calls.send(&message);
            }
        });
        calls.serve(|request, context| match &request[..] {
            b"fail" => Err(RemoteError::new("not today")
                .with_name("RangeError")
                .with_code("E_NO")),
            b"hang" => {
                while !context.is_cancelled() {
                    thread::sleep(Duration::from_millis(1));
                }
                Ok(request)
            }
            _ => Ok([&request[..], &request[..]].concat()),
        })
    })?;
    Ok(format!("closed, asked {}", text_of(asked.wait())))
}
