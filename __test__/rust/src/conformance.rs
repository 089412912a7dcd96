//! The Rust side of `__test__/conformance`, whose peers are well-formed or hostile. Prints each outcome in a line: a code, or
//! how a channel ended.

use std::{
    fs::File,
    io::{self, BufRead as _, Write as _},
    os::fd::AsFd as _,
    thread,
    time::Duration,
};

use ringfence::{
    Address, Arrival, Attachment, AttachmentRef, Attachments, Channel, Delivery, Options, PublisherEvent,
    SealedBuffer, StartFrom, connect, listen, publish, subscribe,
};

use crate::{Outcome, next, say};

/// Serves clients until it is stopped: echoes everything.
pub(crate) fn serve(address: &Address, options: &Options) -> Outcome {
    serve_each(address, options, echo)
}

/// Calls each client, and serves its calls.
pub(crate) fn serve_calls(address: &Address, options: &Options) -> Outcome {
    serve_each(address, options, crate::calls::call_and_serve)
}

/// Echoes the messages of each client with their attachments: a copy of each sealed buffer, and each descriptor.
pub(crate) fn echo_attachments(address: &Address, options: &Options, accepted: &[usize]) -> Outcome {
    serve_each(address, &with_attachments(options, accepted)?, echo)
}

/// `accepted`: whether sealed buffers are accepted (0 or 1), whether descriptors are, how many, and how many bytes.
fn with_attachments(options: &Options, accepted: &[usize]) -> Outcome<Options> {
    let [sealed, descriptors, count, bytes] = *accepted else {
        return Err("SEALED,DESCRIPTORS,COUNT,BYTES".into());
    };
    let accepted = Attachments::none()
        .sealed(sealed != 0)
        .descriptors(descriptors != 0)
        .max_count(count.try_into()?)
        .max_bytes(bytes.try_into()?);
    Ok(options.clone().attachments(accepted))
}

/// Reads the messages of each client to the end, and prints the number of tokens up to then.
pub(crate) fn count_tokens(address: &Address, options: &Options) -> Outcome {
    serve_each(address, options, count)
}

/// Serves clients until it is stopped, each on its own thread, and prints the outcome of each.
fn serve_each(
    address: &Address,
    options: &Options,
    serve: fn(Channel) -> ringfence::Result<String>,
) -> Outcome {
    let listener = listen(address, options)?;
    say("bound");
    loop {
        match listener.accept()? {
            Arrival::Accepted(channel) => {
                say("accepted");
                thread::spawn(move || say(&outcome(serve(channel))));
            }
            Arrival::Refused(refused) => say(refused.error.code()),
            other => return Err(format!("{other:?}").into()),
        }
    }
}

/// Connects to a service once for each line of its input.
pub(crate) fn connect_each(address: &Address, options: &Options) -> Outcome {
    say("bound");
    for line in io::stdin().lock().lines() {
        line?;
        say(&outcome(connect(address, options).and_then(call)));
    }
    Ok(())
}

/// Publishes to each subscriber, until it is stopped: messages with no attachment, with an open file, or with that and a sealed buffer.
pub(crate) fn publish_each(
    address: &Address,
    executable: &str,
    options: &Options,
    sizes: &[usize],
) -> Outcome {
    let options = options.clone().stall(Duration::from_secs(2));
    let mut publisher = publish(address, &options)?;
    say("bound");
    loop {
        match publisher.next()? {
            PublisherEvent::Subscriber(subscriber) => {
                say("accepted");
                for (number, &size) in sizes.iter().enumerate() {
                    let file = File::open(executable)?;
                    let buffer = SealedBuffer::from_bytes(&crate::pattern(number, 5000))?;
                    let attached = [file.as_fd().into(), (&buffer).into()];
                    publisher.send_with(&crate::pattern(number, size), &attached[..number % 3])?;
                }
                subscriber.disconnect();
            }
            PublisherEvent::Gone(_, reason) => say(&reason.to_string()),
            PublisherEvent::Refused(refused) => say(refused.error.code()),
            other => return Err(format!("{other:?}").into()),
        }
    }
}

/// Subscribes once for each line of its input, which has the delivery. `accepted`: as in [`with_attachments`], if any.
pub(crate) fn subscribe_each(address: &Address, options: &Options, accepted: &[usize]) -> Outcome {
    let options = match accepted {
        [] => options.clone(),
        accepted => with_attachments(options, accepted)?,
    };
    say("bound");
    for line in io::stdin().lock().lines() {
        let line = line?;
        let delivery = match &line[..] {
            "best-effort" => Delivery::BestEffort,
            "latest" => Delivery::Latest,
            _ => Delivery::Reliable,
        };
        let options = options.clone().delivery(delivery).from(StartFrom::Oldest);
        say(&outcome(read_all(address, &options)));
    }
    Ok(())
}

fn outcome(how: ringfence::Result<String>) -> String {
    how.unwrap_or_else(|error| error.code().to_owned())
}

fn echo(channel: Channel) -> ringfence::Result<String> {
    let (mut sender, mut receiver) = channel.split();
    let mut buffer = vec![0; usize::try_from(receiver.max_message_size()).expect("64 bits")];
    while let Some(length) = next(&mut receiver, &mut buffer)? {
        let mut attachments = receiver.attachments();
        for attachment in &mut attachments {
            if let Attachment::Sealed(sealed) = attachment {
                *sealed = SealedBuffer::from_bytes(sealed)?;
            }
        }
        let attached: Vec<AttachmentRef<'_>> = attachments.iter().map(reference).collect();
        sender.send_with(&buffer[..length], &attached)?;
    }
    sender.end();
    Ok(ended(receiver.close_reason()))
}

fn reference(attachment: &Attachment) -> AttachmentRef<'_> {
    match attachment {
        Attachment::Sealed(buffer) => buffer.into(),
        Attachment::Descriptor(descriptor) => descriptor.as_fd().into(),
        other => unreachable!("{other:?}"),
    }
}

fn count(channel: Channel) -> ringfence::Result<String> {
    let tokens = channel.tokens();
    let (_sender, mut receiver) = channel.split();
    let mut buffer = vec![0; usize::try_from(receiver.max_message_size()).expect("64 bits")];
    while next(&mut receiver, &mut buffer)?.is_some() {}
    let mut count = 0;
    while tokens.try_token().is_some() {
        count += 1;
    }
    Ok(format!("{count} tokens, {}", ended(receiver.close_reason())))
}

fn call(channel: Channel) -> ringfence::Result<String> {
    let (mut sender, mut receiver) = channel.split();
    sender.send(b"hello")?;
    let mut buffer = vec![0; usize::try_from(receiver.max_message_size()).expect("64 bits")];
    let found = next(&mut receiver, &mut buffer)?;
    sender.end();
    while next(&mut receiver, &mut buffer)?.is_some() {}
    let reason = ended(receiver.close_reason());
    Ok(match found {
        Some(length) if buffer[..length] == *b"hello" => format!("answered, {reason}"),
        _ => reason,
    })
}

/// Counts messages and attachments. Writes each message with the bytes of its sealed buffers to each of its descriptors.
fn read_all(address: &Address, options: &Options) -> ringfence::Result<String> {
    let mut subscription = subscribe(address, options)?;
    let (mut count, mut attached) = (0, 0);
    while let Some(mut bytes) = subscription.receive_vec()? {
        count += 1;
        let mut files = Vec::new();
        for attachment in subscription.attachments() {
            attached += 1;
            match attachment {
                Attachment::Sealed(buffer) => bytes.extend_from_slice(&buffer),
                Attachment::Descriptor(descriptor) => files.push(File::from(descriptor)),
                other => unreachable!("{other:?}"),
            }
        }
        for mut file in files {
            // A hostile publisher may pass anything.
            let _ = file.write_all(&bytes);
        }
    }
    let reason = ended(subscription.close_reason());
    let lost = subscription.lost();
    Ok(format!(
        "{count} read, {lost} lost, {attached} attached, {reason}"
    ))
}

fn ended(reason: Option<impl ToString>) -> String {
    reason.map_or_else(|| "open".to_owned(), |reason| reason.to_string())
}
