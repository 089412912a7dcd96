//! Reads from a channel or a subscription: operations on the hot path, which answer with numbers.

use std::os::fd::AsRawFd;

use napi::bindgen_prelude::*;
use ringfence::{
    CloseReason, Inbound, Packed, Verifier,
    binding::{self, AnyInlet, Waits},
};

use crate::{
    answers::{CALL_NEXT, ENDED, FIRST, MORE, TOO_LARGE},
    attachments::received,
    convert,
    handle::Object,
    raw::{Answer, Call, Function},
    task,
};

/// An object that JavaScript reads from.
pub(crate) trait ReadEndpoint: Object {
    type Ring: AnyInlet;

    /// Whether each call wakes the peer, even if the caller is about to call again. A publisher may be
    /// waiting for this subscriber alone.
    const ALWAYS_WAKES: bool;

    fn reader(&mut self) -> ringfence::Result<&mut Inbound<Self::Ring>>;

    /// Returns the handle that checks the peer again.
    fn verifier(&self) -> ringfence::Result<Verifier>;

    /// The evidence of the handshake, kept until JavaScript asks for it: as JavaScript objects it takes
    /// several times as much memory.
    fn evidence(&mut self) -> &mut Vec<ringfence::Evidence>;

    /// Whether the message whose size the last call has returned is a call frame.
    fn is_call_next(&mut self) -> bool {
        false
    }

    /// Runs after messages were fetched.
    #[inline]
    fn fetched(&mut self) {}
}

/// The answer if nothing was found: whether the reader has come to the end.
pub(crate) fn empty_answer<R: ReadEndpoint>(endpoint: &mut R) -> Answer {
    match endpoint.reader().and_then(Inbound::is_ended) {
        Ok(ended) => Answer::from(if ended { ENDED } else { 0 }),
        Err(error) => error_answer(endpoint, error, ENDED),
    }
}

/// The answer of a failed read. If the peer is lost and everything was read, that is this number: JavaScript calls `isLost` to tell a
/// lost peer from a clean end.
pub(crate) fn error_answer<R: ReadEndpoint>(
    endpoint: &mut R,
    error: ringfence::Error,
    answer: i32,
) -> Answer {
    match error {
        ringfence::Error::PeerLost(_) => Answer::from(answer),
        error => endpoint.fail(error),
    }
}

/// The answer of a call that parks the reader. There is something to read if the peer is lost: its end.
fn parked_answer<R: ReadEndpoint>(endpoint: &mut R, parked: ringfence::Result<bool>) -> Answer {
    match parked {
        Ok(parked) => Answer::from(i32::from(parked)),
        Err(error) => error_answer(endpoint, error, 0),
    }
}

/// Answers whether the peer is lost: it is gone, and had not ended its sending. 1: its process has ended, or executes another program.
/// 2: it has destroyed the channel.
pub(crate) fn is_lost<R: ReadEndpoint>(endpoint: &mut R, _call: &mut Call) -> Answer {
    let answer = match endpoint.reader() {
        Ok(reader) if reader.close_reason() == Some(CloseReason::Lost) => {
            1 + i32::from(binding::was_closed_by_peer(reader))
        }
        _ => 0,
    };
    Answer::from(answer)
}

/// Arguments: memory, the offset in it, and what the caller does next: `FIRST`, `MORE` or neither.
pub(crate) fn pull<R: ReadEndpoint>(endpoint: &mut R, call: &mut Call) -> Answer {
    // SAFETY: the slice is used within this call only, and requested once.
    let arena = unsafe { call.bytes(0) };
    let offset = call.size(1).min(arena.len());
    let round = u32::try_from(call.size(2)).unwrap_or(0);
    if let Ok(reader) = endpoint.reader() {
        match round {
            FIRST => reader.begin_round(),
            MORE if reader.is_round_over() => {
                reader.wake();
                return Answer::from(0);
            }
            _ => {}
        }
    }
    let pulled = endpoint.reader().and_then(|reader| {
        if round == 0 || R::ALWAYS_WAKES {
            reader.try_receive_packed(&mut arena[offset..])
        } else {
            reader.try_receive_more_packed(&mut arena[offset..])
        }
    });
    packed_answer(endpoint, pulled)
}

/// Converts the result of `pull` and its variants.
pub(crate) fn packed_answer<R: ReadEndpoint>(endpoint: &mut R, pulled: ringfence::Result<Packed>) -> Answer {
    match pulled {
        Ok(Packed::Large(_)) if endpoint.is_call_next() => CALL_NEXT.into(),
        pulled => packed_size_answer(endpoint, pulled),
    }
}

/// Converts the result of a call that pulls all kinds of messages.
pub(crate) fn packed_size_answer<R: ReadEndpoint>(
    endpoint: &mut R,
    pulled: ringfence::Result<Packed>,
) -> Answer {
    match pulled {
        Ok(Packed::Bytes(bytes)) => {
            endpoint.fetched();
            bytes.into()
        }
        #[expect(clippy::cast_precision_loss, reason = "sizes of messages are below 2^53")]
        Ok(Packed::Large(size)) => Answer::Number(f64::from(TOO_LARGE) - size as f64),
        Ok(Packed::Nothing) => empty_answer(endpoint),
        Err(error) => error_answer(endpoint, error, ENDED),
    }
}

pub(crate) fn pull_busy<R: ReadEndpoint>(endpoint: &mut R, call: &mut Call) -> Answer {
    spin(endpoint, call, pull)
}

/// If there is no message, pulls again until there is one or the time of the option `busyPollMicros` is over.
pub(crate) fn spin<R: ReadEndpoint>(endpoint: &mut R, call: &mut Call, pull: Function<R>) -> Answer {
    match pull(endpoint, call) {
        Answer::Number(0.0) => {}
        answer => return answer,
    }
    match endpoint.reader().and_then(binding::spin) {
        Ok(_) => pull(endpoint, call),
        Err(error) => error_answer(endpoint, error, ENDED),
    }
}

/// Answers with the attachments of the message that was gathered last.
pub(crate) fn attachments<R: ReadEndpoint>(endpoint: &mut R, call: &mut Call) -> Answer {
    let attachments = endpoint.reader().map(Inbound::attachments).unwrap_or_default();
    let attachments: Vec<_> = attachments.into_iter().filter_map(received).collect();
    Answer::value(call.env, attachments)
}

pub(crate) fn wake<R: ReadEndpoint>(endpoint: &mut R, _call: &mut Call) -> Answer {
    if let Ok(reader) = endpoint.reader() {
        reader.wake();
    }
    Answer::Nothing
}

pub(crate) fn arm_reader<R: ReadEndpoint>(endpoint: &mut R, _call: &mut Call) -> Answer {
    let armed = endpoint.reader().and_then(Inbound::arm);
    parked_answer(endpoint, armed)
}

/// The first half of `arm_reader`, for a merge that arms many readers. Answers 1 if the merge must issue one
/// barrier for all of them before the second half.
pub(crate) fn park_reader<R: ReadEndpoint>(endpoint: &mut R, _call: &mut Call) -> Answer {
    let announced = endpoint.reader().and_then(Waits::announce);
    parked_answer(endpoint, announced)
}

/// The second half; answers as `arm_reader`.
pub(crate) fn check_parked<R: ReadEndpoint>(endpoint: &mut R, _call: &mut Call) -> Answer {
    let armed = endpoint.reader().and_then(|reader| reader.check_parked(()));
    parked_answer(endpoint, armed)
}

/// Reads the line, or leaves it to be read later. The next read returns any error that the reader finds.
pub(crate) fn poll_line<R: ReadEndpoint>(endpoint: &mut R) {
    let defer = endpoint.handle().take_wakeup();
    if let Ok(reader) = endpoint.reader() {
        let _ = if defer {
            reader.poll_line_later()
        } else {
            reader.poll_line()
        };
    }
}

/// Argument: the function to call when the line is readable.
pub(crate) fn watch<R: ReadEndpoint>(endpoint: &mut R, call: &mut Call) -> Answer {
    let line = match endpoint.reader().and_then(binding::line) {
        Ok(line) => line.as_raw_fd(),
        Err(error) => return endpoint.fail(error),
    };
    // SAFETY: the line lives as long as the reader, and the owner of the reader stops the poll handle before
    // it drops the reader.
    unsafe { endpoint.handle().watch(call, line) }
}

/// Checks the peer again, on a thread, since reading the executable's content may take long. The callback is
/// called once, later, with an error, or with null and the result.
pub(crate) fn verify<R: ReadEndpoint>(endpoint: &mut R, call: &mut Call) -> Answer {
    let verifier = match endpoint.verifier() {
        Ok(verifier) => verifier,
        Err(error) => return endpoint.fail(error),
    };
    endpoint.handle().run_on_thread(
        call,
        ("ringfence-verify", "verifying the peer"),
        move || verifier.verify(),
        |env, found| {
            // SAFETY: this runs on the environment's thread, which is about to call the callback.
            task::result_arguments(env, found, |found| unsafe {
                ToNapiValue::to_napi_value(env, convert::Verified::from(&found))
            })
        },
    )
}

/// Returns the evidence of the handshake, once.
pub(crate) fn evidence<R: ReadEndpoint>(endpoint: &mut R, call: &mut Call) -> Answer {
    let evidence = std::mem::take(endpoint.evidence());
    Answer::value(call.env, convert::Evidence::list(&evidence))
}
