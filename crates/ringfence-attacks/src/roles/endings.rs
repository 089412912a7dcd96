//! A program that uses ringfence, and closes one channel after another at about the moment at which its peer
//! does.

use std::{
    hint::spin_loop,
    time::{Duration, Instant},
};

use ringfence::{Address, CloseReason, Error, Options, Receiver, Role, join};

/// Longest message of these programs, in bytes.
const LONGEST: usize = 64;
/// Time after the last agreed moment at which the guest ends its side, in microseconds.
const GUEST: u64 = 50;
/// Upper bound of the host's time, which is up to twice as long: the host ends before the guest, with it, and
/// after it.
const HOST: u64 = 2 * GUEST + 1;

/// Ends `count` channels at the address, in turn in each of these ways. Returns "as promised", or describes
/// the first channel whose end was reported wrongly.
pub(super) fn run(address: &str, count: u32, ways: &str) -> Result<String, String> {
    let address = address.parse::<Address>().map_err(|error| error.to_string())?;
    let options = Options::new()
        .capacity(4096)
        .handshake_timeout(Duration::from_secs(20))
        .wait(true);
    for (round, way) in (0..u64::from(count)).zip(ways.split(',').cycle()) {
        if let Err(what) = one(&address, &options, way, round) {
            return Ok(format!("wrong: {way}, round {round}: {what}"));
        }
    }
    Ok(format!("as promised {count}"))
}

fn one(address: &Address, options: &Options, way: &str, round: u64) -> Result<(), String> {
    let channel = join(address, options).map_err(describe)?;
    // 37 is prime, so its multiples cover every moment within few rounds of each way.
    let pause = match channel.role() {
        Role::Host => round * 37 % HOST,
        Role::Guest => GUEST,
    };
    let (mut sender, mut receiver) = channel.split();
    sender.send(b"here").map_err(describe)?;
    let mut into = [0; LONGEST];
    match receiver.receive(&mut into).map_err(describe)? {
        Some(length) if into[..length] == *b"here" => {}
        other => return Err(format!("{other:?} instead of the peer's first message")),
    }
    // The last message names the end that the peer must report. The peer may have ended its side already.
    match sender.send(way.as_bytes()) {
        Ok(()) => {}
        Err(_)
            if matches!(
                sender.close_reason(),
                Some(CloseReason::Closed | CloseReason::Lost)
            ) => {}
        Err(error) => return Err(describe(error)),
    }
    let from = Instant::now();
    while from.elapsed() < Duration::from_micros(pause) {
        spin_loop();
    }
    match way {
        "closes" => receiver.close(),
        "destroys" => receiver.destroy(),
        "drops" => {
            drop(sender);
            drop(receiver);
            return Ok(());
        }
        "ends" => {
            sender.end();
            read_to_the_end(&mut receiver)?;
        }
        "reads" => read_to_the_end(&mut receiver)?,
        other => return Err(format!("no such way: {other}")),
    }
    match receiver.close_reason() {
        Some(CloseReason::Closed | CloseReason::Lost) => Ok(()),
        other => Err(format!("{other:?} instead of closed")),
    }
}

/// Reads what the peer had sent, and waits until the end is reported.
fn read_to_the_end(receiver: &mut Receiver) -> Result<(), String> {
    let mut into = [0; LONGEST];
    let length = receiver
        .receive(&mut into)
        .map_err(describe)?
        .ok_or("what the peer had sent before its end was lost")?;
    let way = String::from_utf8_lossy(&into[..length]).into_owned();
    match (&*way, receiver.receive(&mut into)) {
        (_, Ok(Some(more))) => return Err(format!("{more} bytes more than the peer has sent")),
        ("destroys", Err(Error::PeerLost(_))) => {}
        ("destroys", Ok(None)) => return Err("a lost peer was reported as a clean end".into()),
        (_, end) => drop(end.map_err(describe)?),
    }
    // If the peer ended its sending first, the close is a second event.
    while receiver.close_reason().is_none() {
        receiver.poll_line().map_err(describe)?;
    }
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err hands it over")]
fn describe(error: Error) -> String {
    format!("{} | {error}", error.code())
}
