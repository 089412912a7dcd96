//! A program that calls its peer.

use std::{collections::VecDeque, time::Instant};

use ringfence::{CallError, Calls, Channel, Options, join};

use super::{program, victim};
use crate::process::TIME_LIMIT;

/// Joins its peer, and then executes orders.
pub(super) fn run(address: &str) -> Result<(), String> {
    let options: Options = victim::parse(&[])?;
    let joined = victim::address_of(address).and_then(|address| {
        join(&address, &options)
            .and_then(Channel::into_calls)
            .map_err(|error| error.to_string())
    });
    let calls: Calls = joined?;
    println!("joined");
    let mut pending = VecDeque::new();
    program::serve(|order| {
        Ok(match order {
            // The row waits longer for an answer than a call for its reply.
            ["call", request] => match calls.start(request.as_bytes(), Some(Instant::now() + TIME_LIMIT / 2))
            {
                Ok(call) => {
                    pending.push_back(call);
                    "called".into()
                }
                Err(error) => victim::show(&error),
            },
            // The outcome of the oldest call.
            ["reply"] => match pending.pop_front().ok_or("nothing was called")?.wait() {
                Ok(reply) => format!("got {}", String::from_utf8_lossy(&reply)),
                Err(CallError::Channel(error)) => victim::show(&error),
                Err(error) => error.to_string(),
            },
            other => return Err(format!("no such order: {other:?}")),
        })
    })
}
