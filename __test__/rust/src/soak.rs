//! The Rust process of the soak (`__test__/soak/main.mjs`). It has one conversation after the other at an address until it is
//! stopped, and records in a ledger what it has sent and received.
//!
//! ```text
//! ringfence-soak ROLE ADDRESS LEDGER ID COUNT EXECUTABLE,EXECUTABLE [shm] [capacity=BYTES]
//! ```
//!
//! On standard input: `stop` (or its end), `exec`, `fork`. On standard output: `here PID`, `session`, `code CODE` for an allowed
//! error, `wrong …` for an error that must not happen, `traces JSON`, `done`.

mod numbered;

use std::{
    collections::HashMap,
    error::Error as StdError,
    fs::{File, OpenOptions},
    io::{self, BufRead as _, Write as _},
    os::{
        fd::AsFd as _,
        unix::{fs::FileExt as _, process::CommandExt as _},
    },
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use ringfence::{
    Address, Arrival, Attachment, AttachmentRef, Attachments, Backing, CallError, Calls, CancelToken, Change,
    Channel, Channels, CloseReason, Delivery, Error, Merge, Merged, Options, Policy, Receiver, RemoteError,
    SealedBuffer, Sender, connect, from_parent, join, listen, member, publish, spawn, subscribe,
};

use numbered::{Outcome, head, message};

/// A record of the ledger, in words of eight bytes.
const WORDS: u64 = 6;
#[derive(Clone, Copy)]
enum Word {
    PeerActor,
    PeerSession,
    Sent,
    Received,
    End,
    Attached,
}

/// The capacity of a ring, unless the arguments state another.
const CAPACITY: usize = 16_384;

/// The end of reading: at the sender's end, at the last message of a sender that has died, or otherwise.
const CLOSED: u64 = 1;
const EXITED: u64 = 2;
const BROKEN: u64 = 3;

struct Actor {
    id: u32,
    count: u32,
    ledger: File,
    sessions: AtomicU64,
    is_over: AtomicBool,
    cancel: CancelToken,
    options: Options,
    child: AtomicI32,
}

/// A child prints to its parent's standard output, and only errors.
fn say(line: &str) {
    let is_child = std::env::args().nth(1).is_some_and(|role| role == "child");
    if is_child && !line.starts_with("wrong ") && !line.starts_with("code ") {
        return;
    }
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Err(error) = run(&arguments) {
        say(&format!("wrong {error}"));
    }
    say(&format!("traces {}", traces()));
    say("done");
}

fn run(arguments: &[String]) -> Outcome {
    let [role, address, ledger, id, count, executables, more @ ..] = arguments else {
        return Err("ROLE ADDRESS LEDGER ID COUNT EXECUTABLES [shm]".into());
    };
    let cancel = CancelToken::new()?;
    let mut options = Options::new()
        .capacity(CAPACITY as u64)
        .max_message_size(100_000)
        .handshake_timeout(Duration::from_secs(20))
        .attachments(accepted())
        .policy(Policy::new().executables(executables.split(',')))
        .cancel_token(cancel.clone())
        .wait(role != "child" && role != "parent");
    if more.iter().any(|it| it == "shm") {
        options = options.backing(Backing::Shm);
    }
    if let Some(bytes) = more.iter().find_map(|it| it.strip_prefix("capacity=")) {
        options = options.capacity(bytes.parse()?);
    }
    let actor = Arc::new(Actor {
        id: id.parse()?,
        count: count.parse()?,
        ledger: OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(ledger)?,
        sessions: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
        cancel,
        options,
        child: AtomicI32::new(0),
    });
    let listener = Arc::clone(&actor);
    if role != "child" {
        thread::spawn(move || listener.obey());
    }
    say(&format!("here {}", std::process::id()));
    while !actor.is_over.load(SeqCst) {
        if let Err(error) = actor.play(role, address) {
            Actor::note(error)?;
        }
        if role == "child" {
            break;
        }
    }
    let child = actor.child.load(SeqCst);
    if child > 0 {
        // SAFETY: a child of this process that no other call waits for.
        unsafe { libc::kill(child, libc::SIGKILL) };
        // SAFETY: as above; the status is not asked for.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    }
    Ok(())
}

impl Actor {
    /// Obeys the commands on standard input until its end.
    fn obey(&self) {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            match &line[..] {
                "exec" => say(&format!(
                    "wrong no exec: {}",
                    Command::new("sleep").arg("1000").exec()
                )),
                "fork" => self.fork(),
                _ => break,
            }
        }
        self.is_over.store(true, SeqCst);
        self.cancel.cancel();
    }

    /// Forks a child that executes nothing, and keeps copies of everything in this process for as long as it lives.
    fn fork(&self) {
        if self.child.load(SeqCst) != 0 {
            return;
        }
        let parent = std::process::id();
        // SAFETY: the child only makes calls that are allowed after fork(2) in a process with threads.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: passes integers only. This thread lives as long as its process.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            // A parent that was killed before that call sends no signal.
            while std::os::unix::process::parent_id() == parent {
                // SAFETY: has no arguments.
                unsafe { libc::pause() };
            }
            // SAFETY: runs no code of this process.
            unsafe { libc::_exit(0) };
        }
        self.child.store(child, SeqCst);
    }

    fn play(&self, role: &str, address: &str) -> Outcome {
        let place = || address.parse::<Address>();
        match role {
            "join" => self.converse(join(&place()?, &self.options)?),
            "connect" => self.converse(connect(&place()?, &self.options)?),
            "child" => self.converse(from_parent(&self.options)?),
            "parent" => self.bring_up(address),
            "listen" => self.serve(&place()?, |channel| self.converse(channel)),
            "answer" => self.answer(&place()?),
            "ask" => self.ask(connect(&place()?, &self.options)?),
            "collect" => self.collect(&place()?),
            "member" => self.stay(&place()?),
            "publish" => self.publish(&place()?),
            "subscribe" => self.subscribe(&place()?),
            other => Err(format!("no such role: {other}").into()),
        }
    }

    /// Prints the code of an allowed error. Any other error ends this process.
    fn note(error: Box<dyn StdError + Send + Sync>) -> Outcome {
        let Some(known) = error.downcast_ref::<Error>() else {
            return Err(error);
        };
        let code = known.code();
        match known {
            Error::Aborted => {}
            Error::RingCorrupt(_)
            | Error::ObjectUnsound { .. }
            | Error::ObjectExposed(_)
            | Error::InvalidArgument(_)
            | Error::Unsupported { .. } => say(&format!("wrong {code} {known}")),
            _ => say(&format!("code {code} {known}")),
        }
        // A process that was refused is often refused again at once, and the conductor reads every line.
        thread::sleep(Duration::from_millis(2));
        Ok(())
    }

    fn write(&self, session: u64, word: Word, value: u64) {
        let at = (session * WORDS + word as u64) * 8;
        let _ = self.ledger.write_at(&value.to_le_bytes(), at);
    }

    fn begin(&self) -> u64 {
        self.sessions.fetch_add(1, SeqCst)
    }

    /// Sends and receives at the same time.
    fn converse(&self, channel: Channel) -> Outcome {
        let session = self.begin();
        let (sender, receiver) = channel.split();
        let (sent, heard) = thread::scope(|scope| {
            let sending = thread::Builder::new().spawn_scoped(scope, || self.send_all(sender, session));
            let heard = self.receive_all(receiver, session);
            (sending.map(|it| it.join().expect("no panic")), heard)
        });
        // Without a thread this side sends nothing, and the channel ends.
        let sent = sent.map_err(|error| Error::NoSpace {
            what: "a thread".into(),
            reason: error.to_string(),
        })?;
        heard?;
        sent?;
        say("session");
        Ok(())
    }

    fn send_all(&self, mut sender: Sender, session: u64) -> Outcome {
        for number in 0..self.count {
            let message = message(self.id, session, number, true);
            with_attachments(&message, number, |attachments| {
                if sender.under_way().is_none() {
                    return sender.send_with(&message, attachments);
                }
                // A wait for room has failed after the first fragments.
                while let Some(written) = sender.under_way() {
                    sender.wait(message.len(), None)?;
                    sender.send_part(&message, written)?;
                }
                Ok(())
            })?;
            self.write(session, Word::Sent, u64::from(number) + 1);
        }
        sender.end();
        Ok(())
    }

    fn receive_all(&self, mut receiver: Receiver, session: u64) -> Outcome {
        let mut room = vec![0; 100_000];
        let mut reading = Reading::default();
        loop {
            match patiently(|| receiver.receive(&mut room)) {
                Ok(Some(length)) => {
                    let attachments = || receiver.attachments();
                    self.account(session, &mut reading, &room[..length], 0, attachments)?;
                }
                Ok(None) | Err(Error::PeerLost(_)) => break,
                Err(error) => {
                    self.write(session, Word::End, BROKEN);
                    return Err(error.into());
                }
            }
        }
        let end = match receiver.close_reason() {
            // Its sender has ended, or was closed: in both cases everything was read.
            None | Some(CloseReason::Closed) => CLOSED,
            Some(CloseReason::Lost) => EXITED,
            _ => BROKEN,
        };
        self.write(session, Word::End, end);
        Ok(())
    }

    /// Checks that a message follows the previous one of its sender, and has its attachments. `lost` messages before it were skipped.
    fn account(
        &self,
        session: u64,
        reading: &mut Reading,
        found: &[u8],
        lost: u64,
        attachments: impl FnOnce() -> Vec<Attachment>,
    ) -> Outcome {
        let [actor, peer_session, number] = head(found)?;
        if found != message(actor, u64::from(peer_session), number, found.len() > 2000) {
            return Err(format!(
                "message {number} of {actor}.{peer_session} is another: {} bytes",
                found.len()
            )
            .into());
        }
        if reading.is_new {
            reading.is_new = false;
            self.write(session, Word::PeerActor, u64::from(actor));
            self.write(session, Word::PeerSession, u64::from(peer_session));
            reading.next = u64::from(number).saturating_sub(lost);
            reading.from = (actor, peer_session);
        }
        if (actor, peer_session) != reading.from || u64::from(number) != reading.next + lost {
            return Err(format!(
                "message {number} of {actor}.{peer_session} came in place of {}",
                reading.next + lost
            )
            .into());
        }
        reading.next = u64::from(number) + 1;
        self.write(session, Word::Received, reading.next);
        if session % 3 == 2 {
            // Others take no attachments, which the next message or the end then closes.
            return Ok(());
        }
        let attachments = attachments();
        let count = attachments.len();
        reading.may_lack = reading.may_lack.saturating_sub(found.len());
        if count != attached(number) && !(count == 0 && reading.may_lack > 0) {
            return Err(format!("message {number} of {actor}.{peer_session} has {count} attachments").into());
        }
        for attachment in attachments {
            let checked = checked(attachment, found)
                .map_err(|what| format!("message {number} of {actor}.{peer_session} {what}"))?;
            // Some conversations keep them to their end.
            if session % 3 == 1 {
                reading.kept.push(checked);
            }
        }
        reading.attached += count as u64;
        self.write(session, Word::Attached, reading.attached);
        Ok(())
    }

    /// Starts children of both languages, one after the other, each for one conversation.
    fn bring_up(&self, address: &str) -> Outcome {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let [_, _, ledger, _, count, executables, ..] = &arguments[..] else {
            return Err("arguments".into());
        };
        let number = self.sessions.load(SeqCst) + 1;
        let other = (u64::from(self.id) * 1000 + number).to_string();
        let ledger = Path::new(ledger).with_file_name(format!("{other}.ledger"));
        let (node, rust) = executables.split_once(',').ok_or("two executables")?;
        let mut command = if number.is_multiple_of(2) {
            let mut command = Command::new(node);
            command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../soak/actor.mjs"));
            command
        } else {
            Command::new(rust)
        };
        command
            .args(["child", address])
            .arg(ledger)
            .args([&other, count, executables])
            .stdin(Stdio::null());
        let (mut child, line) = spawn(command)?;
        let outcome = line
            .channel(&self.options)
            .map_err(Into::into)
            .and_then(|channel| self.converse(channel));
        if outcome.is_err() {
            // It may not have started.
            let _ = child.kill();
        }
        let _ = child.wait();
        outcome
    }

    /// Serves the calls of each client until it has ended.
    fn answer(&self, address: &Address) -> Outcome {
        let (all, is_done) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        let close_all = || {
            for calls in all.lock().expect("no panic").drain(..) {
                Calls::close(&calls);
            }
        };
        thread::scope(|scope| {
            // The threads below wait for their clients, which this side closes when the play stops.
            scope.spawn(|| {
                while !self.is_over.load(SeqCst) && !is_done.load(SeqCst) {
                    thread::sleep(Duration::from_millis(20));
                }
                close_all();
            });
            let served = self.serve(address, |channel| {
                let calls = channel.into_calls()?;
                all.lock().expect("no panic").push(calls.clone());
                if self.is_over.load(SeqCst) {
                    close_all();
                }
                calls.serve(|request, _context| Ok::<_, RemoteError>(request))?;
                calls.close();
                say("session");
                Ok(())
            });
            is_done.store(true, SeqCst);
            served
        })
    }

    /// Makes many concurrent calls, and cancels some.
    fn ask(&self, channel: Channel) -> Outcome {
        let session = self.begin();
        let calls = channel.into_calls()?;
        for batch in 0..self.count / 16 {
            if self.is_over.load(SeqCst) {
                break;
            }
            let requests: Vec<_> = (0..16)
                .map(|number| message(self.id, session, batch * 16 + number, true))
                .collect();
            let deadline = Instant::now() + Duration::from_secs(30);
            let started = requests
                .iter()
                .map(|request| calls.start(request, Some(deadline)));
            let started = started.collect::<Result<Vec<_>, _>>()?;
            for (number, (request, call)) in requests.iter().zip(started).enumerate() {
                if number % 5 == 4 {
                    drop(call);
                    continue;
                }
                match call.wait() {
                    Ok(reply) if reply == *request => {}
                    Ok(reply) => return Err(format!("a reply of {} bytes is another", reply.len()).into()),
                    Err(CallError::Channel(error)) => return Err(error.into()),
                    // For example NO_SPACE at the server.
                    Err(CallError::Remote(error)) if error.code().is_some() => {
                        say(&format!("code {error}"));
                    }
                    Err(error) => return Err(error.to_string().into()),
                }
            }
        }
        calls.end()?;
        say("session");
        Ok(())
    }

    fn serve(&self, address: &Address, each: impl Fn(Channel) -> Outcome + Sync) -> Outcome {
        let each = &each;
        let listener = listen(address, &self.options)?;
        thread::scope(|scope| -> Outcome {
            while !self.is_over.load(SeqCst) {
                match listener.try_accept()? {
                    Some(Arrival::Accepted(channel)) => {
                        thread::Builder::new().spawn_scoped(scope, move || {
                            if let Err(error) = each(channel).or_else(Self::note) {
                                say(&format!("wrong {error}"));
                            }
                        })?;
                    }
                    Some(Arrival::Refused(refused)) => Self::note(refused.error.into())?,
                    Some(_) => {}
                    None => ringfence::wait_readable(&listener, &self.cancel)?,
                }
            }
            Ok(())
        })?;
        listener.close(Channels::Close);
        Ok(())
    }

    /// Reads from all clients with a merge.
    fn collect(&self, address: &Address) -> Outcome {
        let listener = listen(address, &self.options)?;
        let mut merge = Merge::new()?;
        let mut open: HashMap<ringfence::Key, (Sender, u64, Reading)> = HashMap::new();
        let mut room = vec![0; 100_000];
        while !self.is_over.load(SeqCst) {
            match listener.try_accept()? {
                Some(Arrival::Accepted(channel)) => {
                    let (mut sender, receiver) = channel.split();
                    sender.end();
                    if let Ok(key) = merge.add(receiver) {
                        open.insert(key, (sender, self.begin(), Reading::default()));
                    }
                }
                Some(Arrival::Refused(refused)) => Self::note(refused.error.into())?,
                _ => {}
            }
            while let Some(merged) = merge.try_receive(&mut room)? {
                match merged {
                    Merged::Message { from, length } => {
                        let (_, session, reading) =
                            open.get_mut(&from).ok_or("a source that was not added")?;
                        let attachments = || merge.attachments();
                        self.account(*session, reading, &room[..length], 0, attachments)?;
                    }
                    Merged::Ended { from, reason } => {
                        let (_, session, _) = open
                            .remove(&from)
                            .ok_or("the end of a source that was not added")?;
                        self.write(
                            session,
                            Word::End,
                            if reason == CloseReason::Lost {
                                EXITED
                            } else {
                                CLOSED
                            },
                        );
                        say("session");
                    }
                }
            }
            if merge.is_empty() {
                thread::sleep(Duration::from_millis(1));
            } else {
                match merge.wait_readable(Some(Instant::now() + Duration::from_millis(5))) {
                    Ok(_) | Err(Error::TimedOut) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn stay(&self, address: &Address) -> Outcome {
        let membership = member(address, &self.options)?;
        let mut left = 3;
        while left > 0 && !self.is_over.load(SeqCst) {
            match membership.next_until(Some(Instant::now() + Duration::from_millis(20)))? {
                Some(Change::Channel(channel)) => {
                    left -= 1;
                    self.converse(channel).or_else(Self::note)?;
                }
                Some(Change::Refused(refused)) => Self::note(refused.error.into())?,
                _ => {}
            }
        }
        membership.leave();
        Ok(())
    }

    fn publish(&self, address: &Address) -> Outcome {
        let mut publisher = publish(address, &self.options.clone().max_message_size(2048))?;
        let session = self.begin();
        for number in 0..self.count {
            let message = message(self.id, session, number, false);
            with_attachments(&message, number, |attachments| {
                publisher.send_with(&message, attachments)
            })?;
            self.write(session, Word::Sent, u64::from(number) + 1);
            // Messages that are published before there is a subscriber have no reader.
            if number == 0 {
                self.first_subscriber(&publisher)?;
            }
        }
        publisher.end();
        let end = Instant::now() + Duration::from_secs(60);
        while publisher.close_reason().is_none() && !self.is_over.load(SeqCst) {
            if Instant::now() > end {
                return Err("a publisher that has ended is not closed after 60 s".into());
            }
            publisher
                .audience()
                .next_until(Some(Instant::now() + Duration::from_millis(20)))
                .ok();
        }
        say("session");
        Ok(())
    }

    fn first_subscriber(&self, publisher: &ringfence::Publisher) -> Outcome {
        while publisher.subscribers().is_empty() && !self.is_over.load(SeqCst) {
            publisher
                .audience()
                .next_until(Some(Instant::now() + Duration::from_millis(20)))?;
        }
        Ok(())
    }

    fn subscribe(&self, address: &Address) -> Outcome {
        let session = self.begin();
        let is_reliable = session.is_multiple_of(2);
        let delivery = if is_reliable {
            Delivery::Reliable
        } else {
            Delivery::BestEffort
        };
        let options = subscribing(&self.options, &self.cancel).delivery(delivery);
        let mut subscription = subscribe(address, &options)?;
        let (base, mut lost) = (subscription.sequence(), 0);
        let mut reading = Reading {
            may_lack: if is_reliable { CAPACITY } else { usize::MAX },
            ..Reading::default()
        };
        let mut room = vec![0; 2048];
        let mut handed_out = 0;
        loop {
            match patiently(|| subscription.receive(&mut room)) {
                Ok(Some(length)) => {
                    handed_out += 1;
                    let more = subscription.lost() - lost;
                    lost = subscription.lost();
                    if is_reliable && more > 0 {
                        return Err(format!("a reliable subscriber has lost {more}").into());
                    }
                    let attachments = || subscription.attachments();
                    self.account(session, &mut reading, &room[..length], more, attachments)?;
                    if handed_out + lost != subscription.sequence() - base {
                        return Err("handed out and lost are not the sequence less where it began".into());
                    }
                }
                Ok(None) | Err(Error::PeerLost(_)) => break,
                Err(error) => {
                    self.write(session, Word::End, BROKEN);
                    return Err(error.into());
                }
            }
            if self.is_over.load(SeqCst) {
                return Ok(());
            }
        }
        let end = match subscription.close_reason() {
            Some(CloseReason::Closed) if is_reliable => CLOSED,
            Some(CloseReason::Lost) if is_reliable => EXITED,
            _ => BROKEN,
        };
        self.write(session, Word::End, end);
        say("session");
        Ok(())
    }
}

/// A subscriber has no capacity.
fn subscribing(options: &Options, cancel: &CancelToken) -> Options {
    let _ = options;
    Options::new()
        .max_message_size(2048)
        .handshake_timeout(Duration::from_secs(20))
        .attachments(accepted())
        .policy(Policy::new().executables(std::env::args().nth(6).unwrap_or_default().split(',')))
        .cancel_token(cancel.clone())
        .wait(true)
}

/// So few that senders wait for their readers.
fn accepted() -> Attachments {
    Attachments::none().sealed(true).descriptors(true).max_count(3)
}

/// The number of attachments of a message: none, a sealed buffer with the same bytes, or also a file with them.
const fn attached(number: u32) -> usize {
    match number % 24 {
        5 => 2,
        13 | 21 => 1,
        _ => 0,
    }
}

/// Sends a message with its attachments.
fn with_attachments(
    message: &[u8],
    number: u32,
    mut send: impl FnMut(&[AttachmentRef<'_>]) -> ringfence::Result<()>,
) -> ringfence::Result<()> {
    patiently(|| match attached(number) {
        0 => send(&[]),
        count => {
            let buffer = SealedBuffer::from_bytes(message)?;
            send(&[AttachmentRef::from(&buffer), buffer.as_fd().into()][..count])
        }
    })
}

/// Checks that an attachment has these bytes.
fn checked(attachment: Attachment, bytes: &[u8]) -> Outcome<Attachment> {
    match attachment {
        Attachment::Sealed(buffer) if *buffer == *bytes => Ok(Attachment::Sealed(buffer)),
        Attachment::Descriptor(descriptor) => {
            let file = File::from(descriptor);
            let mut room = vec![0; bytes.len() + 1];
            let length = file.read_at(&mut room, 0)?;
            if room[..length] != *bytes {
                return Err(format!("came with another file of {length} bytes").into());
            }
            Ok(Attachment::Descriptor(file.into()))
        }
        other => Err(format!("came with {other:?}").into()),
    }
}

/// Repeats a call while this process lacks descriptors or memory. If that lasts, the conversation fails.
fn patiently<T>(mut call: impl FnMut() -> ringfence::Result<T>) -> ringfence::Result<T> {
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        match call() {
            Err(Error::NoSpace { .. }) if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
            other => return other,
        }
    }
}

/// The position in the messages of one sender, and their attachments.
struct Reading {
    is_new: bool,
    from: (u32, u32),
    next: u64,
    /// The number of bytes whose messages may lack their attachments. A reliable subscriber gets none before the publisher reports it,
    /// which is at most a ring after its start.
    may_lack: usize,
    attached: u64,
    kept: Vec<Attachment>,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            is_new: true,
            from: (0, 0),
            next: 0,
            may_lack: 0,
            attached: 0,
            kept: Vec::new(),
        }
    }
}

/// What is left at the end: descriptors and those of attachments, threads, mappings of shared memory, and memory in KiB.
fn traces() -> String {
    let count = |folder: &str| std::fs::read_dir(folder).map_or(0, Iterator::count);
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        maps.lines()
            .filter(|line| line.contains("memfd:") || line.contains("/dev/shm"))
            .count()
    };
    // Sealed buffers, and files without a name.
    let attachments = || {
        let links = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let names = links.filter_map(|link| std::fs::read_link(link.path()).ok());
        names
            .filter(|name| name.to_string_lossy().ends_with("(deleted)"))
            .count()
    };
    // Threads need a moment to exit, also those that close descriptors. The one that reads the standard input stays.
    let end = Instant::now() + Duration::from_secs(10);
    while (mapped() + attachments() > 0 || count("/proc/self/task") > 2) && Instant::now() < end {
        thread::sleep(Duration::from_millis(2));
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let memory = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap_or("0")
        .trim()
        .to_owned();
    format!(
        r#"{{"descriptors":{},"attachments":{},"threads":{},"mappings":{},"memory":"{memory}"}}"#,
        count("/proc/self/fd"),
        attachments(),
        count("/proc/self/task"),
        mapped()
    )
}
