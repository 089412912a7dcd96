//! The Rust end of a pair whose other end is a Node process, for the tests in `__test__/languages.test.ts`:
//!
//! ```text
//! ringfence-partner DEED ADDRESS EXECUTABLE CAPACITY LONGEST [SIZE,SIZE…]
//! ```
//!
//! ADDRESS is `parent` for the line that a parent has left, and `child:SCRIPT` to make EXECUTABLE run a script as a child.
//!
//! Prints its progress on standard output, one step in each line. An error is a line with its code, and exit code 1.

mod calls;
mod conformance;
mod merge;

use std::{
    error::Error,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    process::Command,
    time::Duration,
};

use ringfence::{
    Address, Backing, Change, Channel, CloseReason, Message, Options, Packed, Policy, Progress,
    PublisherEvent, Receiver, Sender, from_parent, join, member, publish, spawn, subscribe,
};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() {
    if let Err(error) = run() {
        match error.downcast_ref::<ringfence::Error>() {
            Some(error) => say(&format!("{} {error}", error.code())),
            None => say(&format!("failed {error}")),
        }
        std::process::exit(1);
    }
}

/// The test waits for lines. A line without a reader is not a failure of this end.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn run() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [deed, address, executable, capacity, longest, sizes @ ..] = &arguments[..] else {
        return Err("DEED ADDRESS EXECUTABLE CAPACITY LONGEST [SIZES]".into());
    };
    let sizes: Vec<usize> = sizes
        .iter()
        .flat_map(|sizes| sizes.split(','))
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let options = Options::new()
        .capacity(capacity.parse()?)
        .max_message_size(longest.parse()?)
        // Enough for a slow machine.
        .handshake_timeout(Duration::from_secs(60))
        .policy(Policy::new().executables([executable]));
    if deed == "member" {
        return stay(&address.parse()?, &options);
    }
    match &deed[..] {
        "publish" => return publish_all(&address.parse()?, &options, &sizes),
        "merge" => return merge::merge_all(&address.parse()?, &options, longest.parse()?, &sizes),
        "subscribe" => return subscribe_all(&address.parse()?, &options.wait(true)),
        "serve" => return conformance::serve(&address.parse()?, &options),
        "serve-calls" => return conformance::serve_calls(&address.parse()?, &options),
        "echo-attachments" => return conformance::echo_attachments(&address.parse()?, &options, &sizes),
        "count-tokens" => return conformance::count_tokens(&address.parse()?, &options),
        "connect-each" => return conformance::connect_each(&address.parse()?, &options),
        "publish-each" => return conformance::publish_each(&address.parse()?, executable, &options, &sizes),
        "subscribe-each" => return conformance::subscribe_each(&address.parse()?, &options, &sizes),
        _ => {}
    }
    let options = if deed == "shm" {
        options.backing(Backing::Shm)
    } else {
        options
    };
    let channel = meet(address, executable, &options)?;
    say(&format!("{} {}", channel.role(), channel.peer().pid));
    match &deed[..] {
        "answer" => calls::answer(channel),
        "ask" => calls::ask(channel, &sizes),
        "produce" => produce(channel, &sizes),
        "consume" => consume(channel, &sizes),
        "echo" | "shm" => echo(channel),
        "close" => close(channel),
        "part" => part(channel, &sizes),
        "leave" => leave(channel, &sizes),
        "execute" => execute(channel),
        "tokens" => tokens(channel),
        other => Err(format!("no such deed: {other}").into()),
    }
}

/// Greets each partner, and leaves at its first message. Prints the code of a partner that is refused or violates the protocol.
fn stay(address: &Address, options: &Options) -> Outcome {
    let membership = member(address, options)?;
    say(&membership.role().to_string());
    loop {
        match membership.next()? {
            Change::Role(role) => say(&role.to_string()),
            Change::Refused(refused) => say(&format!("refused {}", refused.error.code())),
            Change::Channel(mut channel) => {
                say(&format!("channel {}", channel.peer().pid));
                match greet(&mut channel) {
                    Ok(false) => {}
                    Ok(true) => {
                        membership.leave();
                        say("left");
                        return Ok(());
                    }
                    Err(error) => say(&format!("over {}", error.code())),
                }
            }
            other => return Err(format!("{other:?}").into()),
        }
    }
}

fn greet(channel: &mut Channel) -> ringfence::Result<bool> {
    channel.sender().send(b"hello")?;
    Ok(next(channel.receiver(), &mut [0; 64])?.is_some())
}

/// The next message. The close reason of the channel tells a lost peer from a clean end.
pub(crate) fn next(receiver: &mut Receiver, into: &mut [u8]) -> ringfence::Result<Option<usize>> {
    match receiver.receive(into) {
        Err(ringfence::Error::PeerLost(_)) => Ok(None),
        found => found,
    }
}

/// Publishes a message of each size once there is a subscriber, and ends once that has read all of them.
fn publish_all(address: &Address, options: &Options, sizes: &[usize]) -> Outcome {
    // On a busy machine a subscriber may be slow.
    let mut publisher = publish(address, &options.clone().stall(Duration::from_secs(60)))?;
    let PublisherEvent::Subscriber(_) = publisher.next()? else {
        return Err("no subscriber has come".into());
    };
    for (number, &size) in sizes.iter().enumerate() {
        publisher.send(&pattern(number, size))?;
    }
    publisher.end();
    while let Ok(event) = publisher.next() {
        if !matches!(event, PublisherEvent::Gone(_, CloseReason::Closed)) {
            return Err(format!("{event:?}").into());
        }
    }
    Ok(())
}

/// Reads to the end, and prints the number of messages.
fn subscribe_all(address: &Address, options: &Options) -> Outcome {
    let mut subscription = subscribe(address, options)?;
    say(&format!("subscribed {}", subscription.peer().pid));
    let mut into = vec![0; usize::try_from(subscription.max_message_size())?];
    let mut count = 0;
    while let Some(length) = subscription.receive(&mut into)? {
        if into[..length] != pattern(count, length) {
            return Err(format!("message {count} is another").into());
        }
        count += 1;
    }
    say(&format!("{count} messages"));
    Ok(())
}

/// Closes at the first message: a process that exits before its guest's last check is no peer.
fn close(mut channel: Channel) -> Outcome {
    channel.receiver().receive(&mut [0; 8])?;
    channel.close();
    Ok(())
}

/// Sends at the first message, and destroys the channel without waiting until it was read.
fn part(mut channel: Channel, sizes: &[usize]) -> Outcome {
    channel.receiver().receive(&mut [0; 8])?;
    for (number, &size) in sizes.iter().enumerate() {
        channel.sender().send(&pattern(number, size))?;
    }
    channel.destroy();
    Ok(())
}

/// Executes another program at the first message.
fn execute(mut channel: Channel) -> Outcome {
    channel.receiver().receive(&mut [0; 8])?;
    Err(Command::new("sleep").arg("1000").exec().into())
}

/// Returns every token, increased by one.
fn tokens(channel: Channel) -> Outcome {
    let tokens = channel.tokens();
    let (_sender, mut receiver) = channel.split();
    while let Some(token) = tokens.token()? {
        tokens.send(token.wrapping_add(1))?;
    }
    receiver.poll_line()?;
    over(&receiver)
}

fn meet(address: &str, executable: &str, options: &Options) -> Outcome<Channel> {
    if address == "parent" {
        return Ok(from_parent(options)?);
    }
    if let Some(script) = address.strip_prefix("child:") {
        let mut command = Command::new(executable);
        command.args(["--input-type=module", "--eval", script]);
        // The child prints the final outcome as well. The process that started this one waits for both.
        let (_child, line) = spawn(command)?;
        return Ok(line.channel(options)?);
    }
    Ok(join(&address.parse::<Address>()?, options)?)
}

/// The bytes of message `number`: those of `pattern` in `__test__/support/bytes.ts`.
fn pattern(number: usize, length: usize) -> Vec<u8> {
    let number = u32::try_from(number).expect("tests send fewer");
    let mut word = number.wrapping_add(1).wrapping_mul(0x9e37_79b1);
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    while bytes.len() < length {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Sends a message of each size in every way, ends, and waits for the peer's end.
fn produce(mut channel: Channel, sizes: &[usize]) -> Outcome {
    let sender = channel.sender();
    for (number, &size) in sizes.iter().enumerate() {
        let message = pattern(number, size);
        if size as u64 > sender.max_at_once() {
            sender.send(&message)?;
            continue;
        }
        match number % 5 {
            0 => sender.send(&message)?,
            1 => {
                while !sender.try_send(&message)? {
                    sender.wait(size, None)?;
                }
            }
            2 => reserve(sender, &message)?,
            3 => {
                while !sender.batch()?.push(&message)? {
                    sender.wait(size, None)?;
                }
            }
            _ => {
                while sender.try_send_packed(&packed(&message))? == 0 {
                    sender.wait(size, None)?;
                }
            }
        }
    }
    sender.end();
    say("sent");
    let (_sender, mut receiver) = channel.split();
    if receiver.receive(&mut [])?.is_some() {
        return Err("nothing was to come".into());
    }
    over(&receiver)
}

/// Reserves more than it commits, if there is space for that.
fn reserve(sender: &mut Sender, message: &[u8]) -> ringfence::Result<()> {
    let most = usize::try_from(sender.max_at_once()).unwrap_or(usize::MAX);
    let size = (message.len() + 100).min(most);
    loop {
        if let Some(mut reservation) = sender.reserve(size)? {
            reservation[..message.len()].copy_from_slice(message);
            return reservation.commit(message.len());
        }
        sender.wait(size, None)?;
    }
}

fn packed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("below half a ring");
    let mut packed = [length.to_le_bytes(), 3_u32.to_le_bytes()].concat();
    packed.extend_from_slice(message);
    packed.resize(packed.len().next_multiple_of(8), 0);
    packed
}

/// Reads a message of each size in every way, and then the end.
fn consume(channel: Channel, sizes: &[usize]) -> Outcome {
    let (sender, mut receiver) = channel.split();
    let mut number = 0;
    let mut check = |found: &[u8]| {
        let wanted = sizes.get(number).map(|&size| pattern(number, size));
        assert!(
            wanted.as_deref() == Some(found),
            "message {number}: {} bytes that are not those of the other end",
            found.len()
        );
        number += 1;
    };
    let mut turn = 0;
    let mut buffer = vec![0; usize::try_from(receiver.max_message_size())?];
    loop {
        match receiver.wait_readable(None) {
            Ok(true) => {}
            Ok(false) | Err(ringfence::Error::PeerLost(_)) => break,
            Err(error) => return Err(error.into()),
        }
        turn += 1;
        match turn % 4 {
            0 => {
                if let Some(length) = receiver.receive(&mut buffer)? {
                    check(&buffer[..length]);
                }
            }
            1 => {
                if let Some(length) = receiver.try_receive(&mut buffer)? {
                    check(&buffer[..length]);
                }
            }
            2 => {
                receiver.receive_each(|message: Message<'_>| check(&message.to_vec()), 3)?;
            }
            _ => match receiver.try_receive_packed(&mut buffer)? {
                Packed::Bytes(end) => {
                    let mut at = 0;
                    while at < end {
                        let header: [u8; 4] = buffer[at..at + 4].try_into()?;
                        let length = u32::from_le_bytes(header) as usize;
                        check(&buffer[at + 8..at + 8 + length]);
                        at += 8 + length.next_multiple_of(8);
                    }
                }
                Packed::Large(size) => {
                    while receiver.receive_part(&mut buffer[..size])? != Progress::Whole {
                        receiver.wait_readable(None)?;
                    }
                    check(&buffer[..size]);
                }
                Packed::Nothing => {}
            },
        }
    }
    say(&format!("read {number}"));
    drop(sender);
    over(&receiver)
}

/// Echoes everything.
fn echo(channel: Channel) -> Outcome {
    let (mut sender, mut receiver) = channel.split();
    let mut buffer = vec![0; usize::try_from(receiver.max_message_size())?];
    while let Some(length) = next(&mut receiver, &mut buffer)? {
        sender.send(&buffer[..length])?;
    }
    sender.end();
    over(&receiver)
}

/// Sends, and exits without an end.
fn leave(mut channel: Channel, sizes: &[usize]) -> Outcome {
    for (number, &size) in sizes.iter().enumerate() {
        channel.sender().send(&pattern(number, size))?;
    }
    say("sent");
    // Until it is killed.
    loop {
        std::thread::park();
    }
}

fn over(receiver: &Receiver) -> Outcome {
    let reason = receiver.close_reason().ok_or("the channel has not ended")?;
    say(&format!("over {reason}"));
    Ok(())
}
