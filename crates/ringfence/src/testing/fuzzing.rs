//! Entry points of the fuzz targets, each called with the fuzzer's bytes. They are built for the fuzzer
//! (`--cfg fuzzing`) and for the tests, and are no part of this crate's API. Each target in `fuzz/` only
//! names the function that it calls.
//!
//! Every function panics if the crate breaks its guarantees against a peer that may send anything.

mod beside;
mod calls;
mod channel;
mod guest;
mod handshake;
mod host;
mod line;
mod object;

use arbitrary::{Result, Unstructured};

pub use self::{
    beside::peer_if_asked, calls::calls, channel::channel, guest::guest, handshake::handshake, host::host,
    line::line, object::object,
};
pub use crate::wake::attachments::parcels::parcels;
use crate::{
    handshake::frame::Frame,
    region::layout::CAPACITY_MIN,
    ring::fan_out::lies::{self as fan_out_lies, Call, Claims, publish_among_lies},
    ring::fan_out::{Delivery, StartFrom},
    ring::lies::{Lie, Read, Write, read_lies, write_among_lies},
    ring::record::ALIGNED,
};

/// Decodes frames received over the line.
pub fn wire(bytes: &[u8]) {
    let Ok((frame, _)) = Frame::decode(bytes) else {
        return;
    };
    let sent = frame.encode();
    let (back, rest) = Frame::decode(&sent).expect("what this side sends, it can read");
    assert!(rest.is_empty(), "one frame");
    match (frame, back) {
        (Frame::Refuse(claims), Frame::Refuse(back)) => {
            assert_eq!(claims.code, back.code);
            // A text is cut at a thousand bytes, and is unchanged after that.
            let again = Frame::Refuse(back.clone()).encode();
            assert_eq!(Frame::decode(&again).expect("as before").0, Frame::Refuse(back));
            let shown = claims.clone().into_error("@address").to_string();
            assert!(
                !shown.chars().any(char::is_control),
                "a terminal could be steered by {shown:?}"
            );
        }
        (claims, back) => assert_eq!(claims, back),
    }
}

/// The ring, with a peer whose region may change at every load.
pub fn ring(bytes: &[u8]) {
    // An error only ends the run: a run that was cut short is valid as well.
    let _ = ring_of(&mut Unstructured::new(bytes));
}

fn ring_of(script: &mut Unstructured<'_>) -> Result<()> {
    let reads = script.arbitrary()?;
    let lies: Vec<_> = (0..script.int_in_range(1..=60)?)
        .map(|_| lie(script))
        .collect::<Result<_>>()?;
    let mut calls = script.int_in_range(1..=200)?;
    let mut more = |script: &Unstructured<'_>| {
        calls -= 1;
        calls > 0 && !script.is_empty()
    };
    if reads {
        let calls = std::iter::from_fn(|| more(script).then(|| read(script)).and_then(Result::ok));
        read_lies(lies, calls);
    } else {
        let calls = std::iter::from_fn(|| more(script).then(|| write(script)).and_then(Result::ok));
        write_among_lies(lies, calls);
    }
    Ok(())
}

/// The ring with many readers: a reader of a lying publisher, and a publisher with a lying reader.
pub fn fan_out(bytes: &[u8]) {
    let _ = fan_out_of(&mut Unstructured::new(bytes));
}

fn fan_out_of(script: &mut Unstructured<'_>) -> Result<()> {
    let reads = script.arbitrary()?;
    let delivery = *script.choose(&Delivery::ALL)?;
    let position = script.int_in_range(0..=3 * CAPACITY_MIN / 8)? * 8;
    let lies: Vec<_> = (0..script.int_in_range(1..=60)?)
        .map(|_| lie(script))
        .collect::<Result<_>>()?;
    let mut calls = script.int_in_range(1..=200)?;
    let mut more = |script: &Unstructured<'_>| {
        calls -= 1;
        calls > 0 && !script.is_empty()
    };
    if reads {
        let claims = Claims {
            position,
            sequence: position / 32,
            lies,
        };
        let calls = std::iter::from_fn(|| more(script).then(|| fan_in_call(script)).and_then(Result::ok));
        let _ = fan_out_lies::read_lies(delivery, claims, calls);
    } else {
        let calls = std::iter::from_fn(|| more(script).then(|| write(script)).and_then(Result::ok));
        publish_among_lies(lies, calls);
    }
    Ok(())
}

fn fan_in_call(script: &mut Unstructured<'_>) -> Result<Call> {
    Ok(match script.int_in_range(0..=6)? {
        0 => Call::Begin(*script.choose(&StartFrom::ALL)?),
        1 => Call::Receive(script.int_in_range(0..=600)?),
        2 => Call::Visit(script.int_in_range(0..=50)?),
        3 => Call::Pull(script.int_in_range(0..=5000)?),
        4 => Call::Size,
        5 => Call::End(script.arbitrary()?),
        _ => Call::Settle,
    })
}

fn lie(script: &mut Unstructured<'_>) -> Result<Lie> {
    Ok(match script.int_in_range(0..=5)? {
        0 => Lie::Truth,
        1 => Lie::Further(script.int_in_range(0..=CAPACITY_MIN / 8)? * 8),
        2 => Lie::Header(script.int_in_range(0..=64)?, script.int_in_range(0..=16)?),
        3 => Lie::Header(
            script.int_in_range(0..=CAPACITY_MIN)?,
            script.int_in_range(0..=4)? | if script.arbitrary()? { ALIGNED } else { 0 },
        ),
        4 => Lie::Flip(script.int_in_range(0..=63)?),
        _ => Lie::Word(script.arbitrary()?),
    })
}

fn read(script: &mut Unstructured<'_>) -> Result<Read> {
    Ok(match script.int_in_range(0..=6)? {
        0 => Read::Receive,
        1 => Read::Gather,
        2 => Read::Strides,
        3 => Read::Pull(script.int_in_range(0..=5000)?),
        4 => Read::Size,
        5 => Read::Hold(script.int_in_range(0..=5000)?),
        _ => Read::Salvage,
    })
}

fn write(script: &mut Unstructured<'_>) -> Result<Write> {
    Ok(Write {
        size: script.int_in_range(0..=CAPACITY_MIN / 2)?,
        kind: script.int_in_range(0..=4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the fuzzer's findings and random bytes. The fuzzer itself runs elsewhere; this keeps its entry
    /// points correct.
    fn each(of: fn(&[u8]), found: &[&[u8]]) {
        for bytes in found {
            of(bytes);
        }
        let mut state = 1_u64;
        for length in 0..if cfg!(miri) { 4 } else { 300 } {
            let bytes: Vec<u8> = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state.to_be_bytes()[0]
            })
            .take(length)
            .collect();
            of(&bytes);
        }
    }

    #[test]
    fn any_bytes_are_a_frame_or_an_error() {
        each(wire, &[]);
        each(line, &[]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri passes no descriptors")]
    fn any_attachments_are_accepted_or_a_violation() {
        each(parcels, &[]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn any_passed_object_is_valid_or_refused() {
        each(object, &[]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn any_child_gets_a_channel_only_if_valid() {
        each(handshake, &[]);
    }

    /// The other process of the following tests.
    #[test]
    fn peer_process() {
        peer_if_asked();
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri starts no process")]
    fn any_host_gets_a_channel_only_if_valid() {
        // One sound input of each kind: exhausted bytes draw sound values.
        each(guest, &[&[0], &[1], &[2], &[3], &[4], &[5]]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri starts no process")]
    fn any_guest_gets_a_slot_only_if_valid() {
        each(host, &[&[0], &[1], &[2], &[3]]);
    }

    #[test]
    fn any_ring_content_is_a_message_or_a_violation() {
        each(ring, &[]);
        each(
            fan_out,
            &[&[
                143, 40, 0, 0, 4, 56, 0, 0, 0, 43, 0, 239, 255, 247, 254, 255, 0, 138, 61, 255, 255, 255,
                255, 185, 0, 5, 254, 255, 0, 242, 61, 255, 255, 32, 3, 32, 3, 232, 1, 255, 44,
            ]],
        );
    }

    #[test]
    fn every_call_returns_whatever_the_peer_does() {
        each(
            channel,
            &[b"\x0a\x33\x14\x14\xda\xda\xd7\xd7\xd7\x0a\x0a\x3f\xd7"],
        );
    }
}
