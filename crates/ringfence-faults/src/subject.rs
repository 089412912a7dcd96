//! The process whose calls fail. It retries until it has had one complete conversation. A fault happens once,
//! and its consequences must not block anything that follows.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use ringfence::{
    Address, Arrival, Attachments, Backing, Change, Channel, Channels, CloseReason, Error, Evidence,
    Listener, Options, Policy, Publisher, PublisherEvent, StartFrom, Subscriber, connect, from_parent, join,
    listen, member, publish, spawn, subscribe,
};

use crate::{
    conversation::{
        AttemptError, Codes, LIMIT, Outcome, call_each_other, pass_attachments, publish_all, read_all,
        run_conversation, unexpected,
    },
    inject::{arm, cancel_fault, disarm, hits},
    resources::{self, Resources},
};

/// The report of a subject.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) codes: Codes,
    pub(crate) evidence: Vec<Evidence>,
    pub(crate) failure: Option<String>,
}

/// Returns the timeout of one handshake, on both sides. A fault that uses up all of it is reported as
/// HANDSHAKE_TIMEOUT.
fn timeout() -> Duration {
    let seconds = std::env::var(TIMEOUT_VARIABLE)
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(5))
}

/// Seconds for a handshake that takes longer than others.
pub(crate) const TIMEOUT_VARIABLE: &str = "RINGFENCE_FAULTS_TIMEOUT";

pub(crate) fn options() -> Options {
    // The ring is smaller than the data that is sent.
    Options::new()
        .capacity(4096)
        .max_message_size(20_000)
        .handshake_timeout(timeout())
}

pub(crate) fn attachment_options() -> Options {
    options().attachments(accepted_attachments())
}

/// Two messages with attachments are more than a side accepts at once.
fn accepted_attachments() -> Attachments {
    Attachments::none().sealed(true).descriptors(true).max_count(3)
}

/// Runs a role to its end. The calls that it makes while they are armed may fail.
pub(crate) fn run(role: &str, address: &Address) -> Report {
    let mut report = Report::default();
    let end = Instant::now() + LIMIT;
    loop {
        arm();
        let outcome = attempt(role, address, &mut report);
        disarm();
        match outcome {
            Ok(()) => return report,
            Err(AttemptError::Unexpected(what)) => {
                report.failure = Some(what);
                return report;
            }
            // A child has one line to its parent. The parent starts another child.
            Err(AttemptError::Coded(_, text)) if text.contains("has taken its line already") => {
                return report;
            }
            Err(AttemptError::Coded(code, text)) => report.codes.0.push((code, text)),
        }
        // A subject that must refuse has refused, or had a local error.
        if role.contains('-') {
            return report;
        }
        if Instant::now() > end {
            report.failure = Some("the subject did not recover".into());
            return report;
        }
        // A lasting fault ends with the first attempt.
        cancel_fault();
    }
}

fn attempt(role: &str, address: &Address, report: &mut Report) -> Outcome {
    let Report { codes, evidence, .. } = report;
    match role {
        "pair" => converse(join(address, &options().wait(true))?, codes, evidence),
        "calls" => {
            let channel = join(address, &options().wait(true))?;
            *evidence = channel.evidence().to_vec();
            call_each_other(channel, codes)
        }
        "attachments" => {
            let channel = join(address, &attachment_options().wait(true))?;
            *evidence = channel.evidence().to_vec();
            pass_attachments(channel, codes)
        }
        "shm" => converse(
            join(address, &options().backing(Backing::Shm).wait(true))?,
            codes,
            evidence,
        ),
        "agent" => converse(connect(address, &options().wait(true))?, codes, evidence),
        "service" => run_service(address, codes, evidence),
        "member" => run_member(address, codes, evidence),
        "publisher" => run_publisher(address, 1, codes, evidence),
        "publisher of two" => run_publisher(address, 2, codes, evidence),
        "subscriber" => run_subscriber(address, codes, evidence),
        "parent" => start_child(codes, evidence),
        "child" => converse(from_parent(&options())?, codes, evidence),
        other => match other.split_once('-') {
            Some(("host", check)) => refuse_agents(address, check),
            Some(("guest", check)) => refuse_service(address, check),
            _ => unexpected(format!("no such role: {other}")),
        },
    }
}

fn converse(channel: Channel, codes: &mut Codes, evidence: &mut Vec<Evidence>) -> Outcome {
    *evidence = channel.evidence().to_vec();
    run_conversation(channel, b"bye", codes)
}

/// Sets the slots, with one slot per process. A process whose earlier slot was not released would not get
/// another.
pub(crate) fn with_slots(options: Options, count: usize) -> Options {
    options.max_peers(count).max_peers_per_process(1)
}

/// Fills all slots, and fills them again after those channels have ended. A slot that was not released would
/// be missing.
fn run_service(address: &Address, codes: &mut Codes, evidence: &mut Vec<Evidence>) -> Outcome {
    const SLOTS: usize = 2;
    let listener = listen(address, &with_slots(options(), SLOTS).wait(true))?;
    let channels = fill_slots(&listener, SLOTS, codes)?;
    let first = disarmed(resources::wait_until_stable);
    for channel in channels {
        // The slot must be released in this case as well.
        if let Err(error) = converse(channel, codes, evidence) {
            let AttemptError::Coded(code, text) = error else {
                return Err(error);
            };
            codes.0.push((code, text));
            cancel_fault();
        }
    }
    disarm();
    let channels = fill_slots(&listener, SLOTS, codes)?;
    check_no_growth(&first)?;
    for channel in channels {
        converse(channel, codes, evidence)?;
    }
    listener.close(Channels::Close);
    Ok(())
}

/// Waits until every slot has an agent.
fn fill_slots(listener: &Listener, slots: usize, codes: &mut Codes) -> Outcome<Vec<Channel>> {
    let mut channels = Vec::new();
    let limit = Instant::now() + LIMIT;
    while channels.len() < slots {
        match listener.accept_until(limit) {
            Ok(Arrival::Accepted(channel)) => channels.push(channel),
            Ok(Arrival::Refused(refused)) => {
                codes.add(&refused.error);
            }
            Ok(_) => {}
            Err(Error::TimedOut) => return unfilled_slots(channels.len(), slots),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(channels)
}

fn disarmed<T>(inspect: impl FnOnce() -> T) -> T {
    disarm();
    let found = inspect();
    arm();
    found
}

/// Checks, with all slots filled again, that there are no more resources than the first time. A service and a
/// publisher must keep nothing of an ended peer for the rest of their lives.
fn check_no_growth(first: &Resources) -> Outcome {
    match resources::excess(first).first_key_value() {
        None => Ok(()),
        Some((kind, count)) => unexpected(format!("ended peers left behind: {count} × {kind}")),
    }
}

fn unfilled_slots<T>(taken: usize, slots: usize) -> Outcome<T> {
    unexpected(format!(
        "a slot was not released: only {taken} of {slots} could be filled within {} s",
        LIMIT.as_secs()
    ))
}

/// Makes the other member leave and join again, which makes this one the host if it was not. Then leaves the
/// address to it.
fn run_member(address: &Address, codes: &mut Codes, evidence: &mut Vec<Evidence>) -> Outcome {
    let membership = member(address, &options().wait(true))?;
    let last_messages = [b"bye".as_slice(), b"leave"];
    let mut remaining = last_messages.len();
    let end = Instant::now() + LIMIT;
    while remaining > 0 {
        match codes.retry(|| membership.next_until(Some(end)))? {
            Some(Change::Channel(channel)) => {
                *evidence = channel.evidence().to_vec();
                match run_conversation(channel, last_messages[remaining - 1], codes) {
                    Ok(()) => remaining -= 1,
                    // The partner joins again as soon as a channel has ended, and leaves then.
                    Err(AttemptError::Coded("ENDED" | "PEER_LOST", _)) if hits() == 0 => {}
                    Err(error) => return Err(error),
                }
            }
            // The partner joins again as soon as a channel has ended, and leaves during that handshake.
            Some(Change::Refused(refused)) if refused.error.code() == "PEER_LOST" => {}
            Some(Change::Refused(refused)) => {
                codes.add(&refused.error);
            }
            Some(_) => {}
            None => return unexpected("no partner has joined"),
        }
    }
    membership.leave();
    Ok(())
}

fn run_publisher(
    address: &Address,
    expected: usize,
    codes: &mut Codes,
    evidence: &mut Vec<Evidence>,
) -> Outcome {
    let options = with_slots(options().max_message_size(512), expected).wait(true);
    let mut publisher = publish(address, &options)?;
    let mut connected = 0;
    let first = fill_subscriber_slots(&publisher, expected, &mut connected, codes)?;
    *evidence = first.last().map_or_else(Vec::new, |it| it.evidence().to_vec());
    // The slots must be free again for the same processes.
    let resources = disarmed(resources::wait_until_stable);
    for subscriber in &first {
        subscriber.disconnect();
    }
    fill_subscriber_slots(&publisher, expected, &mut connected, codes)?;
    disarmed(|| check_no_growth(&resources))?;
    publish_all(&mut publisher, codes)?;
    while connected > 0 {
        match publisher.next()? {
            PublisherEvent::Gone(_, CloseReason::Closed) => connected -= 1,
            PublisherEvent::Gone(_, reason) => {
                return Err(AttemptError::Coded("GONE", format!("{reason:?}")));
            }
            PublisherEvent::Refused(refused) => {
                codes.add(&refused.error);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Waits until every slot has a new subscriber. `connected` counts the subscribers whose end was not reported yet.
/// The ends of the previous subscribers are reported first.
fn fill_subscriber_slots(
    publisher: &Publisher,
    slots: usize,
    connected: &mut usize,
    codes: &mut Codes,
) -> Outcome<Vec<Subscriber>> {
    let mut new: Vec<Subscriber> = Vec::new();
    let limit = Instant::now() + LIMIT;
    while new.len() < slots || *connected > slots {
        match publisher.audience().next_until(Some(limit))? {
            Some(PublisherEvent::Subscriber(subscriber)) => {
                new.push(subscriber);
                *connected += 1;
            }
            Some(PublisherEvent::Gone(gone, reason)) => {
                *connected -= 1;
                let before = new.len();
                new.retain(|it| !it.is(&gone));
                if new.len() < before {
                    codes.0.push(("GONE", format!("{reason:?}")));
                    cancel_fault();
                }
            }
            Some(PublisherEvent::Refused(refused)) => {
                codes.add(&refused.error);
            }
            Some(_) => {}
            None => return unfilled_slots(new.len(), slots),
        }
    }
    Ok(new)
}

fn run_subscriber(address: &Address, codes: &mut Codes, evidence: &mut Vec<Evidence>) -> Outcome {
    let mut subscription = subscribe(address, &subscriber_options().wait(true))?;
    *evidence = subscription.evidence().to_vec();
    let has_retried = !codes.0.is_empty();
    codes.retry(|| subscription.verify().map(|_| ()))?;
    read_all(&mut subscription, codes, has_retried)
}

pub(crate) fn subscriber_options() -> Options {
    Options::new()
        .max_message_size(512)
        .from(StartFrom::Now)
        .attachments(accepted_attachments())
        .handshake_timeout(timeout())
}

/// Starts its own child, which answers.
fn start_child(codes: &mut Codes, evidence: &mut Vec<Evidence>) -> Outcome {
    let program =
        std::env::current_exe().map_err(|error| AttemptError::Coded("HARNESS", error.to_string()))?;
    let mut command = Command::new(program);
    command
        .args(["partner", "child", "@"])
        // The list describes this process, and what the child reports is not read.
        .env_remove("RINGFENCE_FAULTS_RESOURCES")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let (mut child, line) = spawn(command)?;
    let outcome = line
        .channel(&options())
        .map_err(AttemptError::from)
        .and_then(|it| converse(it, codes, evidence));
    disarm();
    if outcome.is_err() {
        let _ = child.kill();
    }
    let _ = child.wait();
    outcome
}

/// Supplementary group that the partner has only while it connects.
pub(crate) const DROPPED_GROUP: u32 = 4_000_000_003;

/// Returns a policy that no peer of these scenarios meets. For `authorize`, the callback refuses.
fn unmet_policy(check: &str) -> Outcome<Policy> {
    let policy = Policy::new().any_executable();
    Ok(match check {
        "uid" => policy.uids([4_000_000_001]),
        "gid" => policy.gids([4_000_000_002]),
        "group" => policy.gids([DROPPED_GROUP]),
        "executable" => policy.executables(["/bin/sh"]),
        "content" => policy.programs([ringfence::Program::content([7; 32].into())]),
        "cgroup" => policy.cgroup("/no.such/cgroup"),
        "label" => policy.label("no such label"),
        "authorize" => policy.authorize(|_| Ok::<_, String>(false)),
        // The partner runs in its own pid namespace.
        "namespace" => policy,
        other => return unexpected(format!("no such check: {other}")),
    })
}

/// A peer that does not meet the policy must never get a channel, whatever fails.
fn refuse_agents(address: &Address, check: &str) -> Outcome {
    let listener = listen(address, &options().wait(true).policy(unmet_policy(check)?))?;
    match listener.accept()? {
        Arrival::Accepted(channel) => report_fail_open(&channel),
        Arrival::Refused(refused) => Err(refused.error.into()),
        _ => unexpected("an unknown kind of arrival"),
    }
}

fn refuse_service(address: &Address, check: &str) -> Outcome {
    report_fail_open(&connect(
        address,
        &options().wait(true).policy(unmet_policy(check)?),
    )?)
}

fn report_fail_open(channel: &Channel) -> Outcome {
    unexpected(format!(
        "FAIL OPEN: admitted a peer that does not meet the policy: {:?}",
        channel.evidence()
    ))
}
