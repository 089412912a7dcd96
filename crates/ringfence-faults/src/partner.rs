//! The other process of a case, whose calls are left alone. It is there for as many conversations as the subject needs, and ends
//! when its standard input does.

use std::{
    io::{self, Read as _},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use ringfence::{
    Address, Arrival, Backing, CancelToken, Change, Channel, Channels, Error, Options, PublisherEvent,
    connect, from_parent, join, listen, member, publish, subscribe,
};

use crate::{
    subject::{options, subscribing},
    talk::{Codes, Farewell, LIMIT, Outcome, Trouble, answer, publish_all, read_all, wrong},
};

/// When the subject has ended, and how many conversations it had to the end.
struct Course {
    over: AtomicBool,
    whole: AtomicU32,
    cancel: CancelToken,
}

/// Plays until the standard input ends. How many conversations were whole, and the codes of the others.
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
                .map_err(Trouble::from)
                .and_then(|it| course.answers(it)),
            "shm" => join(address, &with(options().backing(Backing::Shm)))
                .map_err(Trouble::from)
                .and_then(|it| course.answers(it)),
            "agent" => connect(address, &with(options()))
                .map_err(Trouble::from)
                .and_then(|it| course.answers(it)),
            "service" => serve(address, &with(options()), &course),
            "member" => stay(address, &with(options()), &course),
            "publisher" => publishes(
                address,
                &with(options().max_message_size(512)),
                &course,
                &mut codes,
            ),
            "subscriber" => subscribes(address, &with(subscribing()), &course),
            other => wrong(format!("no such partner: {other}")),
        };
        match outcome {
            Err(Trouble::Coded("ABORTED", _)) | Ok(()) => {}
            Err(Trouble::Coded(code, text)) => {
                codes.0.push((code, text));
                // A subject that refuses is not to be asked a thousand times before it has looked once.
                thread::sleep(Duration::from_millis(20));
            }
            Err(Trouble::Wrong(what)) => return wrong(what),
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

    /// A moment in which to look whether it is over, for calls that no cancel token ends.
    fn moment() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }
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

fn publishes(address: &Address, options: &Options, course: &Course, codes: &mut Codes) -> Outcome {
    let mut publisher = publish(address, options)?;
    loop {
        if course.over.load(SeqCst) {
            return Ok(());
        }
        match publisher.audience().next_until(Some(Course::moment()))? {
            Some(PublisherEvent::Subscriber(_)) => break,
            Some(PublisherEvent::Refused(refused)) => {
                codes.0.push((refused.error.code(), refused.error.to_string()));
            }
            _ => {}
        }
    }
    publish_all(&mut publisher, codes)?;
    // The subject may have ended before its going is told.
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        if let Some(PublisherEvent::Gone(..)) = publisher.audience().next_until(Some(Course::moment()))? {
            course.whole.fetch_add(1, SeqCst);
            return Ok(());
        }
    }
    wrong("nothing was told of the subscriber's end")
}

fn subscribes(address: &Address, options: &Options, course: &Course) -> Outcome {
    let mut subscription = subscribe(address, options)?;
    match read_all(&mut subscription, &mut Codes::default()) {
        Ok(()) => {
            course.whole.fetch_add(1, SeqCst);
            Ok(())
        }
        Err(Trouble::Coded(code, text)) if code == Error::Aborted.code() => Err(Trouble::Coded(code, text)),
        other => other,
    }
}
