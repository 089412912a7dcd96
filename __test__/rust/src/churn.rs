//! Many channels and many kills, to find failures that happen once in ten thousand times.
//!
//! ```text
//! ringfence-churn CHANNELS KILLS SEED       until there have been so many of both
//! ringfence-churn connect|join|member|subscribe ADDRESS ID LEDGER
//! ```
//!
//! The first form listens, joins, is a member, and publishes. It starts processes of the second form, which connect repeatedly,
//! and kills each at a random moment. A process records in its ledger how many messages it has sent, once the call has returned.
//! Every recorded message must be read, whenever its sender was killed. All messages of a process that was not killed must be
//! read. At the end this process has no more descriptors, threads and mappings than after the first second.

mod numbered;

use std::{
    collections::{BTreeMap, HashMap},
    env,
    error::Error as StdError,
    fs::{self, File, OpenOptions},
    io::Read as _,
    os::unix::{fs::FileExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use numbered::{Outcome, head, message};
use ringfence::{
    Address, Arrival, Audience, Broadcaster, CancelToken, Change, Channel, CloseReason, Error, Listener,
    Membership, Options, PublisherEvent, connect, join, listen, member, publish, subscribe,
};

/// No call takes that long, even on a machine with other load.
const LIMIT: Duration = Duration::from_secs(60);
/// The time after which a pending handshake has succeeded or failed.
const SETTLED: Duration = Duration::from_secs(2);
/// The sender id of the listener and the publisher in messages.
const HOST: u32 = 0;

fn options() -> Options {
    Options::new()
        .capacity(16_384)
        .max_message_size(2048)
        .handshake_timeout(LIMIT)
        .wait(true)
}

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        [role @ ("connect" | "join" | "member"), address, id, ledger] => {
            ever(id, |id, session| converse(role, address, id, session, ledger))
        }
        ["subscribe", address, id, _] => ever(id, |id, session| read(address, id, session)),
        [channels, kills, seed] => conduct(channels, kills, seed),
        _ => Err("CHANNELS KILLS SEED".into()),
    };
    if let Err(error) = outcome {
        println!("{error}");
        std::process::exit(1);
    }
}

/// Random numbers that follow only from these (splitmix64).
fn drawn(seed: u64, number: u64) -> u64 {
    let mut mixed = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The number of messages in a session.
fn count(id: u32, session: u64) -> u32 {
    1 + u32::try_from(drawn(u64::from(id), session) % 30).unwrap_or_default()
}

// The processes that are killed.

fn ever(id: &str, mut session: impl FnMut(u32, u64) -> Outcome) -> Outcome {
    let id = id.parse()?;
    for number in 0.. {
        session(id, number).map_err(|error| format!("{id}.{number}: {error}"))?;
    }
    Ok(())
}

/// Sends some messages, ends, and receives the number of those that arrived.
fn converse(role: &str, address: &str, id: u32, session: u64, ledger: &str) -> Outcome {
    let ledger = Ledger::open(ledger.as_ref())?;
    let address = address.parse()?;
    let _membership;
    let channel = match role {
        "connect" => connect(&address, &options())?,
        "join" => join(&address, &options())?,
        _ => {
            let membership = member(&address, &options())?;
            let channel = next_channel(&membership)?;
            _membership = membership;
            channel
        }
    };
    let (mut sender, mut receiver) = channel.split();
    let count = count(id, session);
    for number in 0..count {
        let message = message(id, session, number, false);
        sender.send_until(&message, Instant::now() + LIMIT)?;
        ledger.note(session, number + 1)?;
    }
    sender.end();
    let answer = receiver.receive_vec_until(Instant::now() + LIMIT)?;
    let answer = answer.ok_or("there was no answer")?;
    if answer != message(HOST, session, count, false) {
        return Err(format!("the answer to {count} messages is {:?}", head(&answer)).into());
    }
    match receiver.receive_vec_until(Instant::now() + LIMIT) {
        // A service that exits after its reply is lost.
        Ok(None) | Err(Error::PeerLost(_)) => Ok(()),
        Ok(Some(_)) => Err("there is more than an answer".into()),
        Err(error) => Err(error.into()),
    }
}

/// The next channel of a member. A peer that is killed during its handshake gives none.
fn next_channel(membership: &Membership) -> Outcome<Channel> {
    let end = Instant::now() + LIMIT;
    loop {
        match membership.next_until(Some(end))? {
            Some(Change::Channel(channel)) => return Ok(channel),
            Some(_) => {}
            None => return Err("no other member has come".into()),
        }
    }
}

/// Reads some published messages.
fn read(address: &str, id: u32, session: u64) -> Outcome {
    let mut subscription = subscribe(
        &address.parse()?,
        &Options::new().handshake_timeout(LIMIT).wait(true),
    )?;
    let mut next = None;
    for _ in 0..count(id, session) {
        let found = subscription.receive_vec_until(Instant::now() + LIMIT)?;
        let found = found.ok_or_else(|| format!("there is no more: {:?}", subscription.close_reason()))?;
        let [from, of, number] = head(&found)?;
        let is_right = found == message(HOST, u64::from(of), number, false) && from == HOST;
        if !is_right || next.is_some_and(|next| next != number) {
            return Err(format!("message {from}.{of}.{number} came in place of {next:?}").into());
        }
        next = Some(number + 1);
    }
    Ok(())
}

/// The progress of a process in its last session: one word, so that a reader never sees half of it.
struct Ledger(File);

impl Ledger {
    fn open(path: &Path) -> Outcome<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        Ok(Self(file))
    }

    fn note(&self, session: u64, sent: u32) -> Outcome {
        self.0
            .write_all_at(&((session << 32) | u64::from(sent)).to_le_bytes(), 0)?;
        Ok(())
    }

    /// The session, and the number of messages sent in it. `None`: no session has started.
    fn last(&self) -> Outcome<Option<(u64, u32)>> {
        let mut word = [0; 8];
        if self.0.metadata()?.len() < 8 {
            return Ok(None);
        }
        self.0.read_exact_at(&mut word, 0)?;
        let word = u64::from_le_bytes(word);
        Ok(Some((word >> 32, u32::try_from(word & 0xffff_ffff)?)))
    }
}

// The process that starts the others.

#[derive(Default)]
struct Host {
    seed: u64,
    folder: PathBuf,
    /// Processes are started and killed.
    goes_on: AtomicBool,
    /// No process will be started.
    is_over: AtomicBool,
    next: AtomicU32,
    channels: AtomicU64,
    subscriptions: AtomicU64,
    gone: AtomicU64,
    kills: AtomicU64,
    messages: AtomicU64,
    published: AtomicU64,
    /// The other end of the pair has a channel.
    is_paired: AtomicBool,
    /// Counts channels with only one end. A process that joins first has its channel before the other side has finished its last
    /// check. If it is killed in that moment, no peer reads its messages, and the other side waits for the next process.
    halves: AtomicU64,
    /// Processes that were killed during their handshake, by the error code on this side.
    refused: Mutex<BTreeMap<&'static str, u64>>,
    /// The number of messages read in the last session of each process, once its channel has ended.
    read: Mutex<HashMap<u32, (u64, u32)>>,
    has_read: Condvar,
    wrong: Mutex<Vec<String>>,
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

fn conduct(channels: &str, kills: &str, seed: &str) -> Outcome {
    let (channels, kills): (u64, u64) = (channels.parse()?, kills.parse()?);
    let folder = env::temp_dir().join(format!("ringfence-churn-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let host = Arc::new(Host {
        seed: seed.parse()?,
        folder: folder.clone(),
        next: AtomicU32::new(1),
        ..Host::default()
    });
    let stop = CancelToken::new()?;
    let listener = listen(
        &host.place("connect")?,
        &options().max_peers(256).cancel_token(stop.clone()),
    )?;
    let held_up = options().max_peers(256).stall(LIMIT);
    let (broadcaster, audience) = publish(&host.place("subscribe")?, &held_up)?.split();
    let publishing = thread::spawn({
        let host = Arc::clone(&host);
        move || host.publish(broadcaster)
    });
    let hearing = thread::spawn({
        let host = Arc::clone(&host);
        move || host.hear(&audience)
    });
    let listening = thread::spawn({
        let (host, stop) = (Arc::clone(&host), stop.clone());
        move || host.serve(&listener, &stop)
    });

    let pairing = thread::spawn({
        let (host, stop) = (Arc::clone(&host), stop.clone());
        move || host.pair(&stop)
    });
    let staying = thread::spawn({
        let host = Arc::clone(&host);
        move || host.stay()
    });

    // Creates the threads and descriptors that a process creates once and keeps.
    host.run(|_, began| began.elapsed() > Duration::from_secs(1));
    let before = Traces::at_rest(&host, None);
    let began = Instant::now();
    let mut told = began;
    host.run(|host, _| {
        if told.elapsed() > Duration::from_secs(30) {
            told = Instant::now();
            println!("{}", host.figures(began));
        }
        host.channels.load(SeqCst) >= channels && host.kills.load(SeqCst) >= kills
    });
    let after = Traces::at_rest(&host, Some(&before));
    if !after.are_within(&before) {
        host.fail(format!("left behind: {after:?}, and before {before:?}"));
    }
    host.is_over.store(true, SeqCst);
    stop.cancel();
    let _ = (
        publishing.join(),
        listening.join(),
        hearing.join(),
        pairing.join(),
        staying.join(),
    );
    let (come, gone) = (host.subscriptions.load(SeqCst), host.gone.load(SeqCst));
    if come != gone {
        host.fail(format!("{come} subscribers have come, and {gone} gone"));
    }
    fs::remove_dir_all(&folder)?;
    println!("{}\n{after:?}, at the beginning {before:?}", host.figures(began));
    let wrong = held(&host.wrong);
    if wrong.is_empty() {
        println!("nothing was lost, left or late");
        return Ok(());
    }
    Err(wrong.join("\n").into())
}

impl Host {
    fn place(&self, name: &str) -> Outcome<Address> {
        Ok(self.folder.join(name).to_string_lossy().parse()?)
    }

    fn fail(&self, what: String) {
        println!("✘ {what}");
        held(&self.wrong).push(what);
        self.goes_on.store(false, SeqCst);
    }

    fn figures(&self, began: Instant) -> String {
        format!(
            "{} s: {} channels, {} subscriptions, {} messages read, {} published, {} kills; of them {:?} while they came in, {} of them \
             one end of a pair that had sent something",
            began.elapsed().as_secs(),
            self.channels.load(SeqCst),
            self.subscriptions.load(SeqCst),
            self.messages.load(SeqCst),
            self.published.load(SeqCst),
            self.kills.load(SeqCst),
            held(&self.refused),
            self.halves.load(SeqCst),
        )
    }

    /// Starts and kills processes until it is enough or something is wrong. Returns when all of them have exited.
    fn run(self: &Arc<Self>, mut is_enough: impl FnMut(&Self, Instant) -> bool) {
        self.goes_on.store(held(&self.wrong).is_empty(), SeqCst);
        // Its role, and the longest life in milliseconds.
        let roles = [
            ("connect", 4000),
            ("connect", 60),
            ("connect", 20),
            ("join", 60),
            ("member", 60),
            ("subscribe", 40),
        ];
        let casting: Vec<_> = roles
            .into_iter()
            .map(|(role, life)| {
                let host = Arc::clone(self);
                thread::spawn(move || {
                    while host.goes_on.load(SeqCst) {
                        if let Err(error) = host.one_life(role, life) {
                            host.fail(format!("{role}: {error}"));
                        }
                    }
                })
            })
            .collect();
        let began = Instant::now();
        while self.goes_on.load(SeqCst) && !is_enough(self, began) {
            thread::sleep(Duration::from_millis(20));
        }
        self.goes_on.store(false, SeqCst);
        for role in casting {
            let _ = role.join();
        }
    }

    /// Starts a process, kills it, and compares its ledger with the messages that were read.
    fn one_life(&self, role: &str, life: u64) -> Outcome {
        let id = self.next.fetch_add(1, SeqCst);
        let path = self.folder.join(id.to_string());
        let ledger = Ledger::open(&path)?;
        let mut child = Command::new(env::current_exe()?)
            .arg(role)
            .arg(self.folder.join(role))
            .arg(id.to_string())
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        thread::sleep(Duration::from_micros(
            drawn(self.seed, u64::from(id)) % (life * 1000),
        ));
        child.kill()?;
        let status = child.wait()?;
        let mut said = String::new();
        if let Some(mut out) = child.stdout.take() {
            out.read_to_string(&mut said)?;
        }
        if status.signal() != Some(libc::SIGKILL) || !said.is_empty() {
            return Err(format!("{status}, {said}").into());
        }
        self.kills.fetch_add(1, SeqCst);
        let last = ledger.last()?;
        fs::remove_file(path)?;
        if let Some((session, sent)) = last {
            self.compare(id, session, sent, role == "join")?;
        }
        held(&self.read).remove(&id);
        Ok(())
    }

    /// Waits until the recorded messages were read, at the latest when the channel has ended.
    fn compare(&self, id: u32, session: u64, sent: u32, may_be_half: bool) -> Outcome {
        let killed = Instant::now();
        let mut read = held(&self.read);
        loop {
            match read.get(&id) {
                // It has started another session without a record: it does so once it has its reply.
                Some(&(of, received)) if of > session || (of == session && received >= sent) => return Ok(()),
                Some(&(of, received)) if of == session => {
                    return Err(format!("{id}.{session} has sent {sent}, and {received} were read").into());
                }
                _ if may_be_half && killed.elapsed() > SETTLED && !self.is_paired.load(SeqCst) => {
                    self.halves.fetch_add(1, SeqCst);
                    return Ok(());
                }
                found if killed.elapsed() > LIMIT => {
                    return Err(format!(
                        "{id}.{session} has sent {sent}, and the last that has ended is {found:?}"
                    )
                    .into());
                }
                _ => {
                    let (again, _) = self
                        .has_read
                        .wait_timeout(read, Duration::from_millis(200))
                        .unwrap_or_else(PoisonError::into_inner);
                    read = again;
                }
            }
        }
    }

    fn serve(self: &Arc<Self>, listener: &Listener, stop: &CancelToken) {
        loop {
            match listener.try_accept() {
                Ok(Some(Arrival::Accepted(channel))) => {
                    let host = Arc::clone(self);
                    thread::spawn(move || {
                        if let Err(error) = host.answer(channel, false) {
                            host.fail(format!("a channel: {error}"));
                        }
                    });
                }
                Ok(Some(Arrival::Refused(refused))) => self.refuse(&refused.error),
                Ok(Some(_)) => {}
                Ok(None) => {
                    if ringfence::wait_readable(listener, stop).is_err() {
                        return;
                    }
                }
                Err(Error::Aborted) => return,
                Err(error) => return self.fail(format!("the service: {error}")),
            }
        }
    }

    /// Joins repeatedly.
    fn pair(&self, stop: &CancelToken) {
        let joined = || -> Outcome {
            let place = self.place("join")?;
            loop {
                match join(&place, &options().cancel_token(stop.clone())) {
                    Ok(channel) => {
                        self.is_paired.store(true, SeqCst);
                        self.answer(channel, false)?;
                        self.is_paired.store(false, SeqCst);
                    }
                    Err(Error::Aborted) => return Ok(()),
                    // No partner has connected.
                    Err(Error::TimedOut) => {}
                    Err(error) => self.refuse(&error),
                }
            }
        };
        if let Err(error) = joined() {
            self.fail(format!("a pair: {error}"));
        }
    }

    /// Stays a member while partners connect and disconnect.
    fn stay(&self) {
        let stayed = || -> Outcome {
            let membership = member(&self.place("member")?, &options())?;
            while !self.is_over.load(SeqCst) {
                match membership.next_until(Some(Instant::now() + Duration::from_millis(100)))? {
                    Some(Change::Channel(channel)) => self.answer(channel, true)?,
                    Some(Change::Refused(refused)) => self.refuse(&refused.error),
                    _ => {}
                }
            }
            Ok(())
        };
        if let Err(error) = stayed() {
            self.fail(format!("a member: {error}"));
        }
    }

    /// A process that is killed during its handshake is gone, or could not be checked. Any other refusal is an error.
    fn refuse(&self, error: &Error) {
        match error {
            // Of two members, one that was killed may keep its place for a moment.
            Error::PeerLost { .. }
            | Error::PeerRefused { .. }
            | Error::TimedOut
            | Error::AddressOccupied { .. } => {
                *held(&self.refused).entry(error.code()).or_default() += 1;
            }
            _ => self.fail(format!("a newcomer: {} {error}", error.code())),
        }
    }

    fn answer(&self, channel: Channel, is_member: bool) -> Outcome {
        let (mut sender, mut receiver) = channel.split();
        let mut from = None;
        let mut come = 0;
        loop {
            let found = match receiver.receive_vec_until(Instant::now() + LIMIT) {
                Ok(Some(found)) => found,
                // The close reason tells them apart.
                Ok(None) | Err(Error::PeerLost(_)) => break,
                Err(error) => return Err(error.into()),
            };
            let [id, session, number] = head(&found)?;
            let is_next = number == come && from.is_none_or(|from| from == (id, session));
            if !is_next || found != message(id, u64::from(session), number, false) {
                return Err(format!("message {id}.{session}.{number} came after {come} of {from:?}").into());
            }
            from = Some((id, session));
            come += 1;
        }
        self.messages.fetch_add(u64::from(come), SeqCst);
        self.channels.fetch_add(1, SeqCst);
        let reason = receiver.close_reason();
        let Some((id, session)) = from else {
            return match reason {
                // It was killed before it sent anything.
                Some(CloseReason::Lost) => Ok(()),
                // Two members reconnect as soon as a channel of theirs has ended, even if one of them is about to leave. The end of
                // its sending may be read before the end of the channel is noticed.
                None | Some(CloseReason::Closed) if is_member => Ok(()),
                _ => Err(format!("without a message: {reason:?}").into()),
            };
        };
        let session = u64::from(session);
        match reason {
            Some(CloseReason::Lost) => {}
            None | Some(CloseReason::Closed) if come == count(id, session) => {
                match sender.send_until(&message(HOST, session, come, false), Instant::now() + LIMIT) {
                    // It was killed in the meantime.
                    Err(error) if !matches!(error, Error::Closed(_) | Error::PeerLost { .. }) => {
                        return Err(error.into());
                    }
                    _ => sender.end(),
                }
            }
            _ => {
                return Err(format!("{id}.{session} has ended after {come} messages: {reason:?}").into());
            }
        }
        // The thread of the previous session may run later than this one.
        let mut read = held(&self.read);
        let last = read.entry(id).or_insert((session, come));
        *last = (session, come).max(*last);
        drop(read);
        self.has_read.notify_all();
        Ok(())
    }

    fn publish(&self, mut broadcaster: Broadcaster) {
        for number in 0.. {
            let message = message(HOST, 0, number, false);
            if let Err(error) = broadcaster.send_until(&message, Instant::now() + LIMIT) {
                self.fail(format!("publishing message {number}: {error}"));
                break;
            }
            self.published.fetch_add(1, SeqCst);
            if self.is_over.load(SeqCst) {
                break;
            }
            if number % 64 == 63 {
                // Leaves the cores to the others.
                thread::sleep(Duration::from_millis(1));
            }
        }
        broadcaster.end();
    }

    fn hear(&self, audience: &Audience) {
        loop {
            match audience.next() {
                Ok(PublisherEvent::Subscriber(_)) => self.subscriptions.fetch_add(1, SeqCst),
                Ok(PublisherEvent::Gone(_, CloseReason::Closed | CloseReason::Lost)) => {
                    self.gone.fetch_add(1, SeqCst)
                }
                Ok(PublisherEvent::Gone(subscriber, reason)) => {
                    return self.fail(format!("process {} has gone: {reason:?}", subscriber.peer().pid));
                }
                Ok(PublisherEvent::Refused(refused)) => {
                    self.refuse(&refused.error);
                    0
                }
                Ok(_) => 0,
                Err(Error::Closed(_)) => return,
                Err(error) => return self.fail(format!("the publisher: {error}")),
            };
        }
    }
}

/// The resources of this process.
#[derive(Debug)]
struct Traces {
    descriptors: usize,
    threads: usize,
    mappings: usize,
    #[expect(dead_code, reason = "it is printed: what the allocator keeps says little")]
    memory: String,
}

impl Traces {
    fn now() -> Outcome<Self> {
        let entries = |folder: &str| Ok::<_, Box<dyn StdError + Send + Sync>>(fs::read_dir(folder)?.count());
        let status = fs::read_to_string("/proc/self/status")?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let maps = fs::read_to_string("/proc/self/maps")?;
        Ok(Self {
            descriptors: entries("/proc/self/fd")?,
            threads: entries("/proc/self/task")?,
            mappings: maps.lines().filter(|line| line.contains("memfd:")).count(),
            memory: memory.unwrap_or_default().trim().to_owned(),
        })
    }

    fn are_within(&self, other: &Self) -> bool {
        self.descriptors <= other.descriptors
            && self.threads <= other.threads
            && self.mappings <= other.mappings
    }

    /// The resources once everything was released: at most `wanted`, or the state after a limit. Without `wanted`, all
    /// subscribers must have disconnected, and two samples a second apart must agree.
    fn at_rest(host: &Host, wanted: Option<&Self>) -> Self {
        let end = Instant::now() + LIMIT;
        loop {
            let now = Self::now().unwrap_or_else(|error| {
                host.fail(format!("/proc: {error}"));
                Self {
                    descriptors: 0,
                    threads: 0,
                    mappings: 0,
                    memory: String::new(),
                }
            });
            if Instant::now() > end || wanted.is_some_and(|wanted| now.are_within(wanted)) {
                return now;
            }
            thread::sleep(Duration::from_secs(1));
            let have_gone = host.subscriptions.load(SeqCst) == host.gone.load(SeqCst);
            if wanted.is_none()
                && have_gone
                && Self::now().is_ok_and(|then| then.are_within(&now) && now.are_within(&then))
            {
                return now;
            }
        }
    }
}
