//! Merges Node processes: clients of a service in this process, and a publisher.

use std::collections::HashMap;

use ringfence::{Address, AnySource, Arrival, Key, Merge, Merged, Options, listen, subscribe};

use crate::{Outcome, pattern, say};

/// A source: its sender, and the number of its messages.
struct Heard {
    pid: i32,
    count: usize,
}

/// Reads the messages of two clients and of the publisher at the address that ends in `-ticks`, until all three have ended. The
/// messages of each have the lengths `sizes`, in this order.
pub(crate) fn merge_all(address: &Address, options: &Options, longest: usize, sizes: &[usize]) -> Outcome {
    let mut merge: Merge<AnySource> = Merge::new()?;
    let mut heard = HashMap::new();
    let listener = listen(address, options)?;
    say("listening");
    // Keeps the sending halves, without which a channel would end.
    let mut senders = Vec::new();
    while senders.len() < 2 {
        let channel = match listener.accept()? {
            Arrival::Accepted(channel) => channel,
            other => return Err(format!("{other:?}").into()),
        };
        let pid = channel.peer().pid;
        let (sender, receiver) = channel.split();
        senders.push(sender);
        heard.insert(merge.add(receiver.into())?, Heard { pid, count: 0 });
    }
    let ticks: Address = format!("{address}-ticks").parse()?;
    let subscription = subscribe(&ticks, &options.clone().wait(true))?;
    let pid = subscription.peer().pid;
    heard.insert(merge.add(subscription.into())?, Heard { pid, count: 0 });
    say("reading");

    let mut into = vec![0; longest];
    while let Some(merged) = merge.receive(&mut into)? {
        match merged {
            Merged::Message { from, length } => {
                let source = source(&mut heard, from)?;
                if into[..length] != pattern(source.count, sizes[source.count]) {
                    return Err(format!("message {} of {} is another", source.count, source.pid).into());
                }
                source.count += 1;
            }
            Merged::Ended { from, reason } => {
                let Heard { pid, count } = source(&mut heard, from)?;
                say(&format!("{pid}: {count}, {reason}"));
            }
        }
    }
    Ok(())
}

fn source(heard: &mut HashMap<Key, Heard>, key: Key) -> Outcome<&mut Heard> {
    heard
        .get_mut(&key)
        .ok_or_else(|| "a source that was not added".into())
}
