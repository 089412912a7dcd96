//! Publishers and subscribers that execute orders: those of the plain one-to-many program, and those of
//! ringfence.

use std::time::{Duration, Instant};

use ringfence::{
    Address, Delivery, Error, Publisher, PublisherEvent, StartFrom, Subscription, publish, subscribe,
};

use super::{number, program, serve, victim};
use crate::{plain_broadcast, process::TIME_LIMIT};

/// Length of the messages that a publisher generates, in bytes.
const LENGTH: usize = 1000;
/// Longest message that these programs accept, in bytes.
const LONGEST: usize = 8192;

/// Returns the message with this number. Its number repeats throughout, so that a byte of another message
/// shows.
fn message(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(LENGTH / 8)
}

fn number_of(message: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(*message.first_chunk()?);
    (message == self::message(number)).then_some(number)
}

pub(super) fn plain_publisher() -> Result<(), String> {
    let mut publisher = None;
    let mut sent = 0;
    serve(|order| {
        let open = || publisher.as_ref().ok_or("publishes nothing");
        Ok(match order {
            ["publish", address, rest @ ..] => {
                publisher = Some(plain_broadcast::publish(address, *rest == ["greeting"])?);
                "publishing".into()
            }
            ["subscribers"] => open().map(plain_broadcast::Publisher::subscribers)?.to_string(),
            ["fill"] => {
                let before = sent;
                while open()?.send(&message(sent + 1)) {
                    sent += 1;
                }
                format!("filled {}", sent - before)
            }
            // Gives up once nothing could be sent for a second.
            ["send-all", count] => {
                let (goal, mut last) = (sent + number::<u64>(count)?, Instant::now());
                while sent < goal && last.elapsed() < Duration::from_secs(1) {
                    if open()?.send(&message(sent + 1)) {
                        (sent, last) = (sent + 1, Instant::now());
                    }
                }
                if sent == goal {
                    "all sent".into()
                } else {
                    format!("blocked after {sent}")
                }
            }
            other => return Err(format!("no such order: {other:?}")),
        })
    })
}

pub(super) fn plain_subscriber() -> Result<(), String> {
    let mut subscription = None;
    serve(|order| {
        Ok(match order {
            ["subscribe", address, seat, rest @ ..] => {
                let greeting = *rest == ["greeting"];
                subscription = Some(plain_broadcast::subscribe(address, number(seat)?, greeting)?);
                "subscribed".into()
            }
            ["receive"] => {
                let subscription = subscription.as_mut().ok_or("not subscribed")?;
                match subscription.receive(TIME_LIMIT) {
                    Some(message) => format!("got {:?}", number_of(&message)),
                    None => "nothing".into(),
                }
            }
            other => return Err(format!("no such order: {other:?}")),
        })
    })
}

/// Runs a publisher of ringfence.
pub(super) fn publisher() -> Result<(), String> {
    let mut publisher: Option<Publisher> = None;
    let mut sent = 0;
    program::serve(|order| {
        Ok(match order {
            ["publish", address, options @ ..] => {
                let address: Address = address.parse().map_err(|error: Error| error.to_string())?;
                let options = victim::parse(options)?.max_message_size(LONGEST as u64);
                match publish(&address, &options) {
                    Ok(new) => {
                        publisher = Some(new);
                        "publishing".into()
                    }
                    Err(error) => victim::show(&error),
                }
            }
            ["send", text] => match there(&mut publisher)?.try_send(text.as_bytes()) {
                Ok(true) => "sent".into(),
                Ok(false) => "full".into(),
                Err(error) => victim::show(&error),
            },
            ["fill"] => fill(there(&mut publisher)?, &mut sent),
            // Blocks while the ring is full.
            ["send-all", count] => send_all(there(&mut publisher)?, &mut sent, number(count)?),
            ["subscribers"] => there(&mut publisher)?.subscribers().len().to_string(),
            // The next subscriber that was accepted, has left, or was refused.
            ["event"] => event(there(&mut publisher)?),
            ["reason"] => there(&mut publisher)?
                .close_reason()
                .map_or("open".into(), |reason| reason.to_string()),
            ["seal"] => {
                there(&mut publisher)?.seal();
                "sealed".into()
            }
            ["close"] => {
                there(&mut publisher)?.close();
                "closed".into()
            }
            other => return Err(format!("no such order: {other:?}")),
        })
    })
}

/// Sends until the ring is full, and counts in `sent`.
fn fill(publisher: &mut Publisher, sent: &mut u64) -> String {
    let before = *sent;
    loop {
        match publisher.try_send(&message(*sent + 1)) {
            Ok(true) => *sent += 1,
            Ok(false) => return format!("filled {}", *sent - before),
            Err(error) => return victim::show(&error),
        }
    }
}

fn send_all(publisher: &mut Publisher, sent: &mut u64, count: u64) -> String {
    for _ in 0..count {
        if let Err(error) = publisher.send(&message(*sent + 1)) {
            return victim::show(&error);
        }
        *sent += 1;
    }
    "all sent".into()
}

fn event(publisher: &Publisher) -> String {
    match publisher.audience().next_until(Some(Instant::now() + TIME_LIMIT)) {
        Ok(Some(PublisherEvent::Subscriber(who))) => format!("subscribed {}", who.peer().pid),
        Ok(Some(PublisherEvent::Gone(who, reason))) => format!("gone {} {reason}", who.peer().pid),
        Ok(Some(PublisherEvent::Refused(refused))) => format!("refused {}", refused.error.code()),
        Ok(other) => format!("{other:?}"),
        Err(error) => victim::show(&error),
    }
}

/// Runs a subscriber of ringfence.
pub(super) fn subscriber() -> Result<(), String> {
    let mut subscription: Option<Subscription> = None;
    let mut into = vec![0; LONGEST];
    program::serve(|order| {
        Ok(match order {
            ["subscribe", address, delivery, from, options @ ..] => {
                match subscribe_as(address, delivery, from, options)? {
                    Ok(new) => {
                        subscription = Some(new);
                        "subscribed".into()
                    }
                    Err(error) => victim::show(&error),
                }
            }
            // Subscribes and leaves `count` times.
            ["subscribe-and-drop", address, count] => {
                let mut last = String::from("no error");
                for _ in 0..number::<usize>(count)? {
                    if let Err(error) = subscribe_as(address, "reliable", "now", &[])? {
                        last = victim::show(&error);
                    }
                }
                last
            }
            ["receive", milliseconds] => {
                let end = Instant::now() + Duration::from_millis(number(milliseconds)?);
                let subscription = there(&mut subscription)?;
                match subscription.receive_until(&mut into, end) {
                    Ok(Some(length)) => format!("got {length} with {}", subscription.attachments().len()),
                    Ok(None) => "end".into(),
                    Err(error) => victim::show(&error),
                }
            }
            // Reads messages and checks that they are whole and in order.
            ["read-all", count] => read_all(there(&mut subscription)?, &mut into, number(count)?),
            // Reads all messages, for a time.
            ["read", milliseconds] => {
                let end = Instant::now() + Duration::from_millis(number(milliseconds)?);
                read_until(there(&mut subscription)?, &mut into, end)
            }
            ["close"] => {
                subscription = None;
                "closed".into()
            }
            ["reason"] => there(&mut subscription)?
                .close_reason()
                .map_or("open".into(), |reason| reason.to_string()),
            other => return Err(format!("no such order: {other:?}")),
        })
    })
}

fn read_all(subscription: &mut Subscription, into: &mut [u8], count: u64) -> String {
    for _ in 0..count {
        let expected = subscription.sequence() + 1;
        match subscription.receive_until(into, Instant::now() + TIME_LIMIT) {
            Ok(Some(length)) if number_of(&into[..length]) == Some(expected) => {}
            Ok(Some(length)) => return format!("{:?} for {expected}", &into[..length.min(16)]),
            Ok(None) => return "end".into(),
            Err(error) => return victim::show(&error),
        }
    }
    format!("read {count}")
}

fn read_until(subscription: &mut Subscription, into: &mut [u8], end: Instant) -> String {
    let mut got = 0;
    loop {
        match subscription.receive_until(into, end) {
            Ok(Some(_)) => got += 1,
            Ok(None) => return format!("end after {got}"),
            Err(Error::TimedOut) => return format!("still open after {got}"),
            Err(error) => return victim::show(&error),
        }
    }
}

fn there<T>(handle: &mut Option<T>) -> Result<&mut T, String> {
    handle
        .as_mut()
        .ok_or_else(|| "neither published nor subscribed".into())
}

fn subscribe_as(
    address: &str,
    delivery: &str,
    from: &str,
    options: &[&str],
) -> Result<Result<Subscription, Error>, String> {
    let address: Address = address.parse().map_err(|error: Error| error.to_string())?;
    let delivery: Delivery = delivery.parse().map_err(|error: Error| error.to_string())?;
    let from: StartFrom = from.parse().map_err(|error: Error| error.to_string())?;
    let options = victim::parse(options)?.delivery(delivery).from(from);
    Ok(subscribe(&address, &options))
}
