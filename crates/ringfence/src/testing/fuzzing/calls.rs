//! The state machine of calls: with a peer that sends anything, and with one that is the same state machine.

use std::{
    collections::{BTreeMap, VecDeque},
    task::{Poll, Waker},
};

use arbitrary::{Result, Unstructured};

use crate::{
    channel::calls::envelope::{CallError, RemoteError},
    channel::calls::state::{Request, State, Ticket},
    error::{Error, ErrorKind},
    ring::record::Tag,
};

const MAX_LENGTH: u64 = 100;
const STEPS: u32 = 400;

/// Runs the state machine.
pub fn calls(bytes: &[u8]) {
    let script = &mut Unstructured::new(bytes);
    // An error only ends the script.
    let _ = match script.arbitrary() {
        Ok(true) => among_violations(script),
        _ => in_a_pair(script),
    };
}

/// One side, and the program that uses it.
struct Side {
    state: State,
    /// Calls that wait, with their requests.
    pending: BTreeMap<Ticket, Vec<u8>>,
    running: Vec<Request>,
    /// The messages in the ring to the peer.
    sent: VecDeque<(Vec<u8>, Tag)>,
    messages: (u32, u32),
}

fn pick<T>(script: &mut Unstructured<'_>, from: &mut Vec<T>) -> Result<Option<T>> {
    if from.is_empty() {
        return Ok(None);
    }
    let at = script.int_in_range(0..=from.len() - 1)?;
    Ok(Some(from.swap_remove(at)))
}

impl Side {
    fn new() -> Self {
        Self {
            state: State::new(MAX_LENGTH).expect("long enough"),
            pending: BTreeMap::new(),
            running: Vec::new(),
            sent: VecDeque::new(),
            messages: (0, 0),
        }
    }

    /// One step of the program or of the ring.
    fn step(&mut self, script: &mut Unstructured<'_>) -> Result<()> {
        match script.int_in_range(0..=5)? {
            0 => {
                let size = script.int_in_range(0..=90_usize)?;
                let request = script.bytes(size.min(script.len()))?.to_vec();
                match self.state.start(&request, None) {
                    Ok(ticket) => drop(self.pending.insert(ticket, request)),
                    Err(error) => assert_ne!(error.kind(), ErrorKind::InvalidArgument),
                }
            }
            1 => {
                let mut tickets = self.pending.keys().copied().collect();
                if let Some(ticket) = pick(script, &mut tickets)? {
                    self.pending.remove(&ticket);
                    self.state.abandon(ticket);
                }
            }
            2 => self.flush(),
            3 => self.serve(),
            4 => {
                if let Some(request) = pick(script, &mut self.running)? {
                    let fails = script.arbitrary()?;
                    self.answer(&request, fails);
                }
            }
            _ => {
                if self.state.send(&self.messages.0.to_le_bytes()).is_ok() {
                    self.messages.0 += 1;
                }
            }
        }
        self.state.check();
        Ok(())
    }

    /// The front of the queue enters the ring.
    fn flush(&mut self) {
        let Some((bytes, tag)) = self.state.front(true) else {
            return;
        };
        assert!(bytes.len() as u64 <= MAX_LENGTH, "{} bytes", bytes.len());
        self.sent.push_back((bytes.to_vec(), tag));
        self.state.pop_flushed();
    }

    fn serve(&mut self) {
        if let Poll::Ready(Ok(Some(request))) = self.state.poll_request(&mut None, Waker::noop()) {
            self.running.push(request);
        }
    }

    fn answer(&mut self, request: &Request, fails: bool) {
        let reply = [&request.body[..], &request.body[..]].concat();
        let outcome = if fails {
            Err(RemoteError::new("ü".repeat(100)).with_code("E"))
        } else {
            Ok(&reply[..])
        };
        let _ = self.state.answer(request.id, outcome);
    }

    /// Takes each outcome.
    fn settle(&mut self) {
        let Self { state, pending, .. } = self;
        pending.retain(|ticket, request| match state.poll_call(*ticket, Waker::noop()) {
            Poll::Pending => true,
            Poll::Ready(Ok(reply)) => {
                assert_eq!(reply, [&request[..], &request[..]].concat(), "its own reply");
                false
            }
            Poll::Ready(Err(CallError::Remote(error))) => {
                let is_cut = error.code() == Some("E") && error.message().chars().all(|char| char == 'ü');
                let is_long = error.code().is_some_and(|code| code.starts_with("ERR_RINGFENCE"));
                assert!(is_cut || is_long, "{error:?}");
                false
            }
            Poll::Ready(Err(CallError::Channel(error))) => panic!("{error}"),
        });
    }

    fn take(&mut self, (bytes, tag): (Vec<u8>, Tag)) {
        if tag.is_call() {
            self.state.on_frame(bytes).expect("the peer is honest");
            return;
        }
        self.state.push_message(bytes);
        if let Poll::Ready(Ok(Some(message))) = self.state.poll_message(&mut None, Waker::noop()) {
            assert_eq!(message, self.messages.1.to_le_bytes(), "in order");
            self.messages.1 += 1;
        }
    }
}

/// Two sides that keep to the protocol never end the channel, and each call that waits gets its reply.
fn in_a_pair(script: &mut Unstructured<'_>) -> Result<()> {
    let mut sides = [Side::new(), Side::new()];
    let mut outcome = Ok(());
    for _ in 0..STEPS {
        if script.is_empty() || outcome.is_err() {
            break;
        }
        let turn = usize::from(script.arbitrary::<bool>()?);
        if script.arbitrary()? {
            outcome = sides[turn].step(script);
            sides[turn].settle();
        } else if let Some(sent) = sides[1 - turn].sent.pop_front() {
            sides[turn].take(sent);
        }
    }
    // Everything that is under way arrives.
    while sides.iter().any(|side| !side.pending.is_empty()) {
        for turn in [0, 1] {
            let side = &mut sides[turn];
            side.serve();
            for request in std::mem::take(&mut side.running) {
                side.answer(&request, false);
            }
            side.flush();
            while let Some(sent) = sides[turn].sent.pop_front() {
                sides[1 - turn].take(sent);
            }
            sides[turn].settle();
        }
    }
    for side in &sides {
        assert_eq!(side.state.in_flight, 0);
        side.state.check();
    }
    outcome
}

/// A peer that violates the protocol ends the channel. Each call has an outcome then.
fn among_violations(script: &mut Unstructured<'_>) -> Result<()> {
    let mut side = Side::new();
    for _ in 0..STEPS {
        if script.is_empty() {
            break;
        }
        if script.arbitrary()? {
            side.step(script)?;
            // A reply may be any bytes.
            let Side { state, pending, .. } = &mut side;
            pending.retain(|ticket, _| state.poll_call(*ticket, Waker::noop()).is_pending());
            continue;
        }
        let (kind, has_time): (u32, bool) = (script.int_in_range(0..=6)?, script.ratio(1, 8)?);
        let id: u64 = if script.ratio(7, 8)? {
            script.int_in_range(0..=20)?
        } else {
            script.arbitrary()?
        };
        let time = if has_time { script.arbitrary()? } else { 0_u32 };
        let body: &[u8] = if script.arbitrary()? {
            script.arbitrary()?
        } else {
            &[]
        };
        let mut frame = [
            &kind.to_le_bytes()[..],
            &time.to_le_bytes(),
            &id.to_le_bytes(),
            body,
        ]
        .concat();
        if script.ratio(1, 16)? {
            frame.truncate(script.int_in_range(0..=16)?);
        }
        if let Err(error) = side.state.on_frame(frame) {
            assert_eq!(error.kind(), ErrorKind::RingCorrupt);
            side.state.finish(error);
            break;
        }
        side.state.check();
    }
    if !side.state.has_ended() {
        side.state.finish(Error::Closed("the test is over"));
    }
    side.state.check();
    assert!(side.state.front(true).is_none(), "nothing is sent after the end");
    for ticket in side.pending.into_keys() {
        assert!(side.state.poll_call(ticket, Waker::noop()).is_ready());
    }
    assert!(side.state.poll_message(&mut None, Waker::noop()).is_ready());
    assert!(side.state.poll_request(&mut None, Waker::noop()).is_ready());
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::Config};

    proptest! {
        #![proptest_config(Config { cases: if cfg!(miri) { 8 } else { 1000 }, failure_persistence: None, ..Config::default() })]

        #[test]
        fn calls_keep_their_guarantees(script in prop::collection::vec(any::<u8>(), 0..3000)) {
            super::calls(&script);
        }
    }
}
