//! A process that uses ringfence's public API and executes orders.

use std::{
    os::unix::net::UnixListener,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::unistd::getegid;
use ringfence::{
    Address, Arrival, Attachments, Change, Channel, Channels, Decision, Error, Identity, Listener,
    Membership, Message, Namespace, Options, Packed, Policy, Progress, Receiver, Sender, Verifier, connect,
    join, listen, member,
};

use super::{endings, number, program};

/// Longest message that this program accepts, and so the size of its buffer.
const LONGEST: usize = 1 << 20;

type Halves = (Sender, Receiver);

/// Verifies the peer of the last joined channel.
static VERIFIER: Mutex<Option<Verifier>> = Mutex::new(None);

pub(super) fn run() -> Result<(), String> {
    let channel: Arc<Mutex<Option<Halves>>> = Arc::default();
    let mut last_message = Vec::new();
    let mut membership: Option<Membership> = None;
    let mut services = Services::default();
    program::serve(|order| {
        Ok(match order {
            ["egid"] => getegid().to_string(),
            ["fill"] => program::fill()?,
            // The child uses the inherited channel, and drops it.
            ["in-child"] => in_child(&channel, &mut membership)?,
            // The socket that a killed host leaves behind.
            ["stale", path] => UnixListener::bind(path)
                .map_err(|error| error.to_string())
                .map(|_| "stale".into())?,
            // On another thread, so that orders are still executed. The thread prints the answer when it is
            // done.
            ["join-in-background", address, options @ ..] => {
                let (address, options, channel) =
                    ((*address).to_owned(), parse(options)?, Arc::clone(&channel));
                thread::spawn(move || println!("{}", joined(&address, &options, &channel)));
                "joining".into()
            }
            ["join", address, options @ ..] => joined(address, &parse(options)?, &channel),
            // The peer ends each channel at about the same moment.
            ["end-channels", address, count, ways] => endings::run(address, number(count)?, ways)?,
            ["verify-without-descriptors"] => check_peer_without_descriptors()?,
            ["member" | "role" | "change" | "leave", ..] => on_membership(order, &mut membership, &channel)?,
            ["listen" | "connect" | "close-services", ..] => services.execute(order)?,
            ["close"] => close(&channel),
            other => {
                let mut channel = locked(&channel);
                let (sender, receiver) = channel.as_mut().ok_or("not joined")?;
                on_channel(other, sender, receiver, &mut last_message)?
            }
        })
    })
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn address_of(text: &str) -> Result<Address, String> {
    text.parse().map_err(|error: Error| error.to_string())
}

fn close(channel: &Mutex<Option<Halves>>) -> String {
    let mut channel = locked(channel);
    let start = Instant::now();
    drop(channel.take());
    if start.elapsed() < Duration::from_secs(2) {
        "closed"
    } else {
        "closed late"
    }
    .into()
}

fn check_peer_without_descriptors() -> Result<String, String> {
    let verifier = locked(&VERIFIER).clone().ok_or("not joined")?;
    Ok(match program::without_descriptors(|| verifier.verify())? {
        Ok(_) => "there".into(),
        Err(error) => show(&error),
    })
}

/// Executes an order about the membership. Later orders about a channel mean the membership's newest channel.
fn on_membership(
    order: &[&str],
    membership: &mut Option<Membership>,
    channel: &Mutex<Option<Halves>>,
) -> Result<String, String> {
    Ok(match order {
        ["member", address, options @ ..] => match member(&address_of(address)?, &parse(options)?) {
            Ok(joined) => format!("member {}", membership.insert(joined).role()),
            Err(error) => show(&error),
        },
        ["role"] => membership.as_ref().ok_or("no member")?.role().to_string(),
        ["change", milliseconds] => {
            let deadline = Instant::now() + Duration::from_millis(number(milliseconds)?);
            let change = membership.as_ref().ok_or("no member")?.next_until(Some(deadline));
            match change {
                Ok(Some(Change::Channel(new))) => {
                    let peer = new.peer().pid;
                    *locked(channel) = Some(new.split());
                    format!("channel {peer}")
                }
                Ok(Some(Change::Role(role))) => format!("role {role}"),
                Ok(Some(Change::Refused(refused))) => format!("refused {}", refused.error.code()),
                Ok(Some(other)) => format!("{other:?}"),
                Ok(None) => "nothing".into(),
                Err(error) => show(&error),
            }
        }
        ["leave"] => {
            membership.take().ok_or("no member")?.leave();
            "left".into()
        }
        other => return Err(format!("no such order: {other:?}")),
    })
}

/// The services that this process hosts, and the channels that it has opened to any service.
#[derive(Default)]
struct Services {
    own: Vec<Arc<Listener>>,
    connected: Vec<Channel>,
}

impl Services {
    fn execute(&mut self, order: &[&str]) -> Result<String, String> {
        Ok(match order {
            ["listen", address, options @ ..] => self.listen(&address_of(address)?, &parse(options)?),
            ["connect", address, count, options @ ..] => {
                self.connect(&address_of(address)?, number(count)?, &parse(options)?)
            }
            ["close-services"] => {
                for listener in self.own.drain(..) {
                    listener.close(Channels::Close);
                }
                "closed".into()
            }
            other => return Err(format!("no such order: {other:?}")),
        })
    }

    /// Opens a service that keeps its agents until they leave.
    fn listen(&mut self, address: &Address, options: &Options) -> String {
        let listener = match listen(address, options) {
            Ok(listener) => Arc::new(listener),
            Err(error) => return show(&error),
        };
        let accepting = Arc::clone(&listener);
        thread::spawn(move || {
            let mut channels = Vec::new();
            while let Ok(arrival) = accepting.accept() {
                if let Arrival::Accepted(channel) = arrival {
                    channels.push(channel);
                }
            }
        });
        self.own.push(listener);
        "listening".into()
    }

    /// Connects `count` times, one after another, even if some are refused.
    fn connect(&mut self, address: &Address, count: usize, options: &Options) -> String {
        let before = self.connected.len();
        let mut last = "no error".into();
        for _ in 0..count {
            match connect(address, options) {
                Ok(channel) => self.connected.push(channel),
                Err(error) => last = show(&error),
            }
        }
        format!("connected {} {last}", self.connected.len() - before)
    }
}

/// Forks. The child sends on the inherited channel, and drops everything.
fn in_child(channel: &Mutex<Option<Halves>>, membership: &mut Option<Membership>) -> Result<String, String> {
    program::in_child(move || {
        let sent = {
            let mut channel = locked(channel);
            let sent = channel.as_mut().map(|(sender, _)| sender.try_send(b"the-childs"));
            drop(channel.take());
            sent
        };
        drop(membership.take());
        match sent {
            Some(Ok(true)) => "sent".into(),
            Some(Err(error)) => show(&error),
            other => format!("{other:?}"),
        }
    })
}

fn on_channel(
    order: &[&str],
    sender: &mut Sender,
    receiver: &mut Receiver,
    last_message: &mut Vec<u8>,
) -> Result<String, String> {
    Ok(match order {
        ["send", text] => match sender.try_send(text.as_bytes()) {
            Ok(true) => "sent".into(),
            Ok(false) => "full".into(),
            Err(error) => show(&error),
        },
        ["receive", milliseconds] => {
            let deadline = Instant::now() + Duration::from_millis(number(milliseconds)?);
            let mut buffer = vec![0; LONGEST];
            match receiver.receive_until(&mut buffer, deadline) {
                Ok(Some(length)) => {
                    buffer.truncate(length);
                    *last_message = buffer;
                    show_message(last_message)
                }
                Ok(None) => "end".into(),
                Err(Error::TimedOut) => "nothing".into(),
                Err(error) => show(&error),
            }
        }
        // Ends sending, and still reads.
        ["end"] => {
            sender.end();
            "ended".into()
        }
        ["again"] => show_message(last_message),
        // Messages that were already received stay unchanged.
        ["work", how, milliseconds] => {
            let (messages, end) = work(how, sender, receiver, number(milliseconds)?);
            format!("worked {messages} {end}")
        }
        ["stuck-close"] => stuck_close(sender, receiver),
        // Fills the ring, and then waits for room that never becomes free.
        ["fill-and-wait", milliseconds] => {
            let deadline = Instant::now() + Duration::from_millis(number(milliseconds)?);
            loop {
                match sender.try_send(&[7; 1000]) {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(error) => break show(&error),
                }
                match sender.wait(1000, Some(deadline)) {
                    Ok(true) => {}
                    Ok(false) => break "full".into(),
                    Err(error) => break show(&error),
                }
            }
        }
        ["reason"] => receiver
            .close_reason()
            .map_or("open".into(), |reason| reason.to_string()),
        other => return Err(format!("no such order: {other:?}")),
    })
}

/// Closes the channel while another thread waits for room that never becomes free.
fn stuck_close(sender: &mut Sender, receiver: &mut Receiver) -> String {
    let sent = AtomicUsize::new(0);
    thread::scope(|scope| {
        let stuck = scope.spawn(|| {
            loop {
                match sender.send(&[7; 1000]) {
                    Ok(()) => sent.fetch_add(1, Ordering::Relaxed),
                    Err(error) => return show(&error),
                };
            }
        });
        // The sender is stuck once nothing was sent for a while.
        let mut before = usize::MAX;
        while sent.load(Ordering::Relaxed) != before {
            before = sent.load(Ordering::Relaxed);
            thread::sleep(Duration::from_millis(200));
        }
        let start = Instant::now();
        receiver.close();
        let end = stuck.join().unwrap_or_else(|_| "a panic".into());
        let how = if start.elapsed() < Duration::from_secs(2) {
            "at once"
        } else {
            "late"
        };
        format!("closed {how}, {before} sent, {end}")
    })
}

/// Formats an error as the rows expect it: its code first.
pub(super) fn show(error: &Error) -> String {
    let check = error.refusal().map_or(String::new(), |refusal| {
        format!(" check={} by_peer={}", refusal.check, refusal.by_peer)
    });
    format!("error {}{check} | {error}", error.code())
}

fn show_message(message: &[u8]) -> String {
    format!(
        "got {} {}",
        message.len(),
        String::from_utf8_lossy(&message[..message.len().min(64)]).escape_default()
    )
}

fn joined(address: &str, options: &Options, channel: &Mutex<Option<Halves>>) -> String {
    let result = address
        .parse::<Address>()
        .and_then(|address| join(&address, options));
    let answer = match &result {
        Ok(channel) => format!("joined {} pid={}", channel.role(), channel.peer().pid),
        Err(error) => show(error),
    };
    let verifier = result.as_ref().ok().map(Channel::verifier);
    *locked(&VERIFIER) = verifier;
    *locked(channel) = result.ok().map(Channel::split);
    answer
}

pub(super) fn parse(options: &[&str]) -> Result<Options, String> {
    let mut parsed = Options::new()
        .capacity(64 * 1024)
        .max_message_size(LONGEST as u64)
        .handshake_timeout(Duration::from_secs(20));
    for option in options {
        parsed = match option.split_once('=') {
            None if *option == "harden" => parsed.harden(true),
            Some(("backing", backing)) => {
                parsed.backing(backing.parse().map_err(|error: Error| error.to_string())?)
            }
            Some(("capacity", bytes)) => parsed.capacity(number(bytes)?),
            Some(("timeout", milliseconds)) => {
                parsed.handshake_timeout(Duration::from_millis(number(milliseconds)?))
            }
            Some(("stall", milliseconds)) => parsed.stall(Duration::from_millis(number(milliseconds)?)),
            Some(("attachments", count)) => {
                parsed.attachments(Attachments::none().sealed(true).max_count(number(count)?))
            }
            Some(("peers", count)) => parsed.max_peers(number(count)?),
            Some(("authorize", how)) => parsed.policy(Policy::new().authorize_later(misbehave(how)?)),
            Some(("policy", "uid")) => parsed.policy(Policy::new().any_executable()),
            Some(("policy", "executable")) => parsed.policy(Policy::new()),
            Some(("namespace", "any")) => parsed.policy(Policy::new().namespace(Namespace::Any)),
            Some(("gid", gid)) => parsed.policy(Policy::new().any_executable().gids([number(gid)?])),
            Some(("uid", uid)) => parsed.policy(Policy::new().any_executable().uids([number(uid)?])),
            _ => return Err(format!("no such option: {option}")),
        };
    }
    Ok(parsed)
}

/// Returns a callback that misbehaves for the first process that it is asked about, and allows all others.
fn misbehave(how: &str) -> Result<impl Fn(Identity, Decision) + Send + Sync + 'static, String> {
    let panics = match how {
        "panic" => true,
        "hang" => false,
        other => return Err(format!("no such callback: {other}")),
    };
    let first = OnceLock::new();
    Ok(move |peer: Identity, decision: Decision| {
        if *first.get_or_init(|| peer.pid) != peer.pid {
            decision.allow();
        } else if panics {
            // A panic without the printed report.
            std::panic::resume_unwind(Box::new("as this row wants it"));
        } else {
            program::idle();
        }
    })
}

/// Sends and receives as fast as it can, in the way that `how` names, for a time or until an error. Returns
/// how many messages arrived, and what ended the work.
fn work(how: &str, writing: &mut Sender, reading: &mut Receiver, milliseconds: u64) -> (usize, String) {
    let end = Instant::now() + Duration::from_millis(milliseconds);
    let mut buffer = vec![0; LONGEST + 8];
    let mut messages = 0;
    // A message that was read in part must be continued in the same way, into the same buffer.
    let mut under_way = false;
    while Instant::now() < end {
        let received = match how {
            "packed" | "part" if under_way => part(reading, &mut buffer, &mut under_way),
            "receive" => reading
                .try_receive(&mut buffer)
                .map(|length| usize::from(length.is_some())),
            "packed" => reading
                .try_receive_packed(&mut buffer)
                .and_then(|packed| match packed {
                    Packed::Bytes(_) => Ok(1),
                    Packed::Large(_) => part(reading, &mut buffer, &mut under_way),
                    Packed::Nothing => Ok(0),
                }),
            "part" => reading.next_size().and_then(|size| {
                if size.is_some() {
                    part(reading, &mut buffer, &mut under_way)
                } else {
                    Ok(0)
                }
            }),
            _ => reading.receive_each(
                |message: Message<'_>| {
                    // Read every word once, and copy.
                    std::hint::black_box(message.words().fold(0, u64::wrapping_add));
                    std::hint::black_box(message.to_vec());
                },
                64,
            ),
        };
        match received {
            Ok(count) => messages += count,
            Err(error) => return (messages, show(&error)),
        }
        if let Err(error) = writing.try_send(b"an answer") {
            return (messages, show(&error));
        }
        match reading.is_ended() {
            Ok(false) => {}
            Ok(true) => return (messages, "end".into()),
            Err(error) => return (messages, show(&error)),
        }
    }
    (messages, "still open".into())
}

/// Continues a message. Returns 1 if it is complete now, and notes whether a message is under way.
fn part(reading: &mut Receiver, buffer: &mut [u8], under_way: &mut bool) -> Result<usize, Error> {
    let progress = reading.receive_part(buffer)?;
    *under_way = matches!(progress, Progress::Part(bytes) if bytes > 0);
    Ok(usize::from(progress == Progress::Whole))
}
