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
    Address, Arrival, Backing, CancelToken, Change, Channel, Channels, Error, Namespace, Options, Policy,
    Publisher, PublisherEvent, connect, from_parent, join, listen, member, publish, spawn, subscribe,
};

use crate::{
    subject::{DROPPED_GROUP, accepting, options, subscribing, with_slots},
    talk::{
        AttemptError, Codes, Farewell, LIMIT, Outcome, answer, answer_by_calling, publish_all, read_all,
        wrong,
    },
};

/// Whether the subject has ended, and the number of complete conversations.
struct Course {
    over: AtomicBool,
    whole: AtomicU32,
    cancel: CancelToken,
}

/// Plays until standard input is closed. Returns the number of complete conversations, and the codes of the
/// others.
pub(crate) fn run(role: &str, address: &Address) -> Outcome<(u32, Codes)> {
    if role == "child" {
        return Ok((
            u32::from(answer(from_parent(&options())?)? == Farewell::Bye),
            Codes::default(),
        ));
    }
    let course = Arc::new(Course {
        over: AtomicBool::new(false),
        whole: AtomicU32::new(0),
        cancel: CancelToken::new()?,
    });
    let watched = Arc::clone(&course);
    let watch = thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        watched.over.store(true, SeqCst);
        watched.cancel.cancel();
    });
    let mut codes = Codes::default();
    let with = |options: Options| options.wait(true).cancel_token(course.cancel.clone());
    while !course.over.load(SeqCst) {
        let outcome = match role {
            "pair" => join(address, &with(options()))
                .map_err(AttemptError::from)
                .and_then(|it| course.answers(it)),
            "calls" => join(address, &with(options()))
                .map_err(AttemptError::from)
                .and_then(|it| course.calls(it)),
            "attachments" => join(address, &with(accepting()))
                .map_err(AttemptError::from)
                .and_then(|it| course.answers(it)),
            "shm" => join(address, &with(options().backing(Backing::Shm)))
                .map_err(AttemptError::from)
                .and_then(|it| course.answers(it)),
            // The subject must be the one that refuses.
            "agent of a namespace" => connect(address, &with(options().policy(of_any_namespace())))
                .map_err(AttemptError::from)
                .and_then(|it| course.answers(it)),
            "service of a namespace" => serve(address, &with(options().policy(of_any_namespace())), &course),
            "agent" => connect(address, &with(options()))
                .map_err(AttemptError::from)
                .and_then(|it| course.answers(it)),
            "agent of a group" => {
                connect_in_group(address, &with(options())).and_then(|it| course.answers(it))
            }
            // One slot only: if the subject kept the slot of a failed attempt, the next attempt would not get
            // one.
            "service" => serve(address, &with(with_slots(options(), 1)), &course),
            "member" => stay(address, &with(options()), &course),
            "publisher" | "publisher of two" => {
                let wanted = if role == "publisher" { 1 } else { 2 };
                let options = with_slots(options().max_message_size(512), wanted);
                let publisher = publish(address, &with(options));
                publisher
                    .map_err(AttemptError::from)
                    .and_then(|it| publishes(it, wanted, &course, &mut codes))
            }
            "subscriber" => subscribes(address, &with(subscribing()), &course),
            other => wrong(format!("no such partner: {other}")),
        };
        match outcome {
            Err(AttemptError::Coded("ABORTED", _)) | Ok(()) => {}
            Err(AttemptError::Coded(code, text)) => {
                codes.0.push((code, text));
                // Do not send hundreds of requests to a subject that refuses, before it has checked one.
                thread::sleep(Duration::from_millis(20));
            }
            Err(AttemptError::Wrong(what)) => return wrong(what),
        }
    }
    let _ = watch.join();
    Ok((course.whole.load(SeqCst), codes))
}

impl Course {
    fn answers(&self, channel: Channel) -> Outcome {
        let farewell = answer(channel)?;
        if farewell != Farewell::None {
            self.whole.fetch_add(1, SeqCst);
        }
        Ok(())
    }

    fn calls(&self, channel: Channel) -> Outcome {
        answer_by_calling(channel)?;
        self.whole.fetch_add(1, SeqCst);
        Ok(())
    }

    /// Returns the next time to check whether the subject has ended, for calls that no cancel token
    /// interrupts.
    fn moment() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }
}

fn of_any_namespace() -> Policy {
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
            return wrong(format!("could not set the group: {}", io::Error::last_os_error()));
        }
        Ok(connect(address, options)?)
    };
    thread::scope(|scope| scope.spawn(connecting).join()).unwrap_or_else(|_| wrong("a panic"))
}

fn serve(address: &Address, options: &Options, course: &Course) -> Outcome {
    let listener = listen(address, options)?;
    thread::scope(|scope| {
        while !course.over.load(SeqCst) {
            match listener.try_accept()? {
                Some(Arrival::Accepted(channel)) => {
                    scope.spawn(move || course.answers(channel));
                }
                Some(_) => {}
                None => ringfence::wait_readable(&listener, &course.cancel)?,
            }
        }
        listener.close(Channels::Close);
        Ok(())
    })
}

fn stay(address: &Address, options: &Options, course: &Course) -> Outcome {
    let membership = member(address, options)?;
    while !course.over.load(SeqCst) {
        let Some(Change::Channel(channel)) = membership.next_until(Some(Course::moment()))? else {
            continue;
        };
        match answer(channel) {
            Ok(Farewell::None) | Err(_) => {}
            Ok(farewell) => {
                course.whole.fetch_add(1, SeqCst);
                if farewell == Farewell::Leave {
                    membership.leave();
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

fn publishes(mut publisher: Publisher, wanted: usize, course: &Course, codes: &mut Codes) -> Outcome {
    let mut here = 0;
    while here < wanted {
        if course.over.load(SeqCst) {
            return Ok(());
        }
        match publisher.audience().next_until(Some(Course::moment()))? {
            Some(PublisherEvent::Subscriber(_)) => here += 1,
            Some(PublisherEvent::Gone(..)) => here -= 1,
            Some(PublisherEvent::Refused(refused)) => {
                codes.0.push((refused.error.code(), refused.error.to_string()));
            }
            _ => {}
        }
    }
    publish_all(&mut publisher, codes)?;
    // The subject may end before the end of its subscriber is reported.
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        if let Some(PublisherEvent::Gone(..)) = publisher.audience().next_until(Some(Course::moment()))? {
            here -= 1;
        }
        if here == 0 {
            course.whole.fetch_add(1, SeqCst);
            return Ok(());
        }
    }
    wrong("the end of a subscriber was not reported")
}

fn subscribes(address: &Address, options: &Options, course: &Course) -> Outcome {
    let mut subscription = subscribe(address, options)?;
    match read_all(&mut subscription, &mut Codes::default(), false) {
        Ok(()) => {
            course.whole.fetch_add(1, SeqCst);
            Ok(())
        }
        Err(AttemptError::Coded(code, text)) if code == Error::Aborted.code() => {
            Err(AttemptError::Coded(code, text))
        }
        other => other,
    }
}

/// Plays the parent of a subject, which reports for itself. If a child's conversation was not complete, a
/// second child follows whose calls never fail, and its conversation must be complete.
pub(crate) fn bring_up(words: &[&str]) -> Outcome {
    let failing = [&["subject"], words].concat();
    let sound = ["subject", "child", "@none", "none", "0", "0", "0"];
    for words in [failing.as_slice(), &sound] {
        let own = std::env::current_exe().map_err(|error| AttemptError::Wrong(error.to_string()))?;
        let mut command = Command::new(own);
        command.args(words).stdin(Stdio::null());
        let (mut child, line) = spawn(command)?;
        let farewell = line.channel(&options()).and_then(answer);
        reap(&mut child)?;
        if farewell.is_ok_and(|it| it == Farewell::Bye) {
            return Ok(());
        }
    }
    wrong("no child had a complete conversation")
}

/// Waits for the exit of a child, which reports its outcome itself.
fn reap(child: &mut Child) -> Outcome {
    let end = Instant::now() + 2 * LIMIT;
    while Instant::now() < end {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return wrong(format!("the child ended early ({status})")),
            _ => {}
        }
        thread::sleep(Duration::from_millis(2));
    }
    let _ = child.kill();
    let _ = child.wait();
    wrong("the child hangs")
}
