//! The other process of a case, whose calls never fail. It holds as many conversations as the subject needs,
//! and ends when its standard input is closed.

use std::{
    io::{self, Read as _},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use ringfence::{
    Address, Arrival, Backing, CancelToken, Change, Channel, Channels, Namespace, Options, Policy,
    PublisherEvent, connect, from_parent, join, listen, member, publish, spawn, subscribe,
};

use crate::{
    conversation::{
        AttemptError, Codes, LIMIT, LastMessage, Outcome, answer, answer_with_calls, publish_all, read_all,
        unexpected,
    },
    subject::{DROPPED_GROUP, attachment_options, options, subscriber_options, with_slots},
};

/// Whether the subject has ended, and the number of complete conversations.
struct Progress {
    subject_ended: AtomicBool,
    completed: AtomicU32,
    cancel: CancelToken,
}

/// Runs until standard input is closed. Returns the number of complete conversations, and the codes of the
/// others.
pub(crate) fn run(role: &str, address: &Address) -> Outcome<(u32, Codes)> {
    if role == "child" {
        return Ok((
            u32::from(answer(from_parent(&options())?)? == LastMessage::Bye),
            Codes::default(),
        ));
    }
    let progress = Arc::new(Progress {
        subject_ended: AtomicBool::new(false),
        completed: AtomicU32::new(0),
        cancel: CancelToken::new()?,
    });
    let watched = Arc::clone(&progress);
    let watch = thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        watched.subject_ended.store(true, SeqCst);
        watched.cancel.cancel();
    });
    let mut codes = Codes::default();
    let with = |options: Options| options.wait(true).cancel_token(progress.cancel.clone());
    let answer = |channel: ringfence::Result<Channel>| progress.answer(channel?);
    while !progress.subject_ended.load(SeqCst) {
        let outcome = match role {
            "pair" => answer(join(address, &with(options()))),
            "calls" => progress.serve_calls(join(address, &with(options()))),
            "attachments" => answer(join(address, &with(attachment_options()))),
            "shm" => answer(join(address, &with(options().backing(Backing::Shm)))),
            // The subject must be the one that refuses.
            "agent of a namespace" => {
                answer(connect(address, &with(options().policy(any_namespace_policy()))))
            }
            "service of a namespace" => run_service(
                address,
                &with(options().policy(any_namespace_policy())),
                &progress,
            ),
            "agent" => answer(connect(address, &with(options()))),
            "agent of a group" => {
                connect_in_group(address, &with(options())).and_then(|channel| progress.answer(channel))
            }
            // One slot only: if the subject kept the slot of a failed attempt, the next attempt would not get
            // one.
            "service" => run_service(address, &with(with_slots(options(), 1)), &progress),
            "member" => run_member(address, &with(options()), &progress),
            "publisher" => run_publisher(address, with(options()), 1, &progress, &mut codes),
            "publisher of two" => run_publisher(address, with(options()), 2, &progress, &mut codes),
            "subscriber" => run_subscriber(address, &with(subscriber_options()), &progress),
            other => unexpected(format!("no such partner: {other}")),
        };
        match outcome {
            Err(AttemptError::Coded("ABORTED", _)) | Ok(()) => {}
            Err(AttemptError::Coded(code, text)) => {
                codes.0.push((code, text));
                // Do not send hundreds of requests to a subject that refuses, before it has checked one.
                thread::sleep(Duration::from_millis(20));
            }
            Err(AttemptError::Unexpected(what)) => return unexpected(what),
        }
    }
    let _ = watch.join();
    Ok((progress.completed.load(SeqCst), codes))
}

impl Progress {
    fn answer(&self, channel: Channel) -> Outcome {
        let last_message = answer(channel)?;
        if last_message != LastMessage::None {
            self.completed.fetch_add(1, SeqCst);
        }
        Ok(())
    }

    fn serve_calls(&self, channel: ringfence::Result<Channel>) -> Outcome {
        answer_with_calls(channel?)?;
        self.completed.fetch_add(1, SeqCst);
        Ok(())
    }

    /// Returns the next time to check whether the subject has ended, for calls that no cancel token
    /// interrupts.
    fn next_check() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }
}

fn any_namespace_policy() -> Policy {
    Policy::new().any_executable().namespace(Namespace::Any)
}

/// Connects from a thread that has an additional group. The kernel keeps groups per thread and reports those
/// of the connecting thread, but /proc shows those of the first thread. To the checking process, the peer has
/// dropped the group since.
fn connect_in_group(address: &Address, options: &Options) -> Outcome<Channel> {
    let connecting = || {
        let groups = [DROPPED_GROUP];
        // SAFETY: the kernel reads as many groups as the array has.
        if unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) } != 0 {
            return unexpected(format!("could not set the group: {}", io::Error::last_os_error()));
        }
        Ok(connect(address, options)?)
    };
    thread::scope(|scope| scope.spawn(connecting).join()).unwrap_or_else(|_| unexpected("a panic"))
}

fn run_service(address: &Address, options: &Options, progress: &Progress) -> Outcome {
    let listener = listen(address, options)?;
    thread::scope(|scope| {
        while !progress.subject_ended.load(SeqCst) {
            match listener.try_accept()? {
                Some(Arrival::Accepted(channel)) => {
                    scope.spawn(move || progress.answer(channel));
                }
                Some(_) => {}
                None => ringfence::wait_readable(&listener, &progress.cancel)?,
            }
        }
        listener.close(Channels::Close);
        Ok(())
    })
}

fn run_member(address: &Address, options: &Options, progress: &Progress) -> Outcome {
    let membership = member(address, options)?;
    while !progress.subject_ended.load(SeqCst) {
        let Some(Change::Channel(channel)) = membership.next_until(Some(Progress::next_check()))? else {
            continue;
        };
        match answer(channel) {
            Ok(LastMessage::None) | Err(_) => {}
            Ok(last_message) => {
                progress.completed.fetch_add(1, SeqCst);
                if last_message == LastMessage::Leave {
                    membership.leave();
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

fn run_publisher(
    address: &Address,
    options: Options,
    expected: usize,
    progress: &Progress,
    codes: &mut Codes,
) -> Outcome {
    let options = with_slots(options.max_message_size(512), expected);
    let mut publisher = publish(address, &options)?;
    let mut connected = 0;
    while connected < expected {
        if progress.subject_ended.load(SeqCst) {
            return Ok(());
        }
        match publisher.audience().next_until(Some(Progress::next_check()))? {
            Some(PublisherEvent::Subscriber(_)) => connected += 1,
            Some(PublisherEvent::Gone(..)) => connected -= 1,
            Some(PublisherEvent::Refused(refused)) => {
                codes.add(&refused.error);
            }
            _ => {}
        }
    }
    publish_all(&mut publisher, codes)?;
    // The subject may end before the end of its subscriber is reported.
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        if let Some(PublisherEvent::Gone(..)) =
            publisher.audience().next_until(Some(Progress::next_check()))?
        {
            connected -= 1;
        }
        if connected == 0 {
            progress.completed.fetch_add(1, SeqCst);
            return Ok(());
        }
    }
    unexpected("the end of a subscriber was not reported")
}

fn run_subscriber(address: &Address, options: &Options, progress: &Progress) -> Outcome {
    let mut subscription = subscribe(address, options)?;
    read_all(&mut subscription, &mut Codes::default(), false)?;
    progress.completed.fetch_add(1, SeqCst);
    Ok(())
}

/// Runs the parent of a subject, which reports for itself. If a child's conversation was not complete, a
/// second child follows whose calls never fail, and its conversation must be complete.
pub(crate) fn run_parent(arguments: &[&str]) -> Outcome {
    let with_fault = [&["subject"], arguments].concat();
    let without_fault = ["subject", "child", "@none", "none", "0", "0", "0"];
    for words in [with_fault.as_slice(), &without_fault] {
        let program = std::env::current_exe().map_err(|error| AttemptError::Unexpected(error.to_string()))?;
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null());
        let (mut child, line) = spawn(command)?;
        let last_message = line.channel(&options()).and_then(answer);
        wait_for_exit(&mut child)?;
        if last_message.is_ok_and(|it| it == LastMessage::Bye) {
            return Ok(());
        }
    }
    unexpected("no child had a complete conversation")
}

/// Waits for the exit of a child, which reports its outcome itself.
fn wait_for_exit(child: &mut Child) -> Outcome {
    let end = Instant::now() + 2 * LIMIT;
    while Instant::now() < end {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return unexpected(format!("the child ended early ({status})")),
            _ => {}
        }
        thread::sleep(Duration::from_millis(2));
    }
    let _ = child.kill();
    let _ = child.wait();
    unexpected("the child hangs")
}
