//! A wait ends at its deadline, at the peer's end and at the peer's death. This holds if the thread spins or
//! sleeps, for every kind of channel, and if another process holds a copy of the dead peer's socket.

mod support;

use std::{
    os::fd::AsFd,
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::{ForkResult, Pid, fork, pause},
};
use ringfence::{
    Address, AnySource, Channel, CloseReason, Error, Listener, Membership, Merge, Merged, Options, Publisher,
    PublisherEvent, Receiver, Sender, Subscription, connect, from_parent, join, listen, member, publish,
    subscribe,
};
use support::{
    Actor, TIME_LIMIT, accepted, assert_lost, forbid, fresh_address, join_later, report, small,
    wait_for_host, wait_for_test,
};

/// The way in which this process waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Sleeps,
    Spins,
    /// In an event loop, which polls only the descriptor.
    Polls,
}

const WAYS: [Way; 3] = [Way::Sleeps, Way::Spins, Way::Polls];

/// A spinning thread spins forever, so that only the tested event ends its wait.
fn options(way: Way) -> Options {
    small().busy_poll(if way == Way::Spins {
        Duration::MAX
    } else {
        Duration::ZERO
    })
}

/// Makes a call that may wait forever. Panics if it does.
fn within_limit<T: Send + 'static>(what: &str, wait: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, waiting) = channel();
    thread::spawn(move || done.send(wait()));
    let found = waiting.recv_timeout(TIME_LIMIT);
    found.unwrap_or_else(|_| panic!("{what}: the wait does not end"))
}

/// A process that holds a copy of a socket. Nothing else would end it.
struct Holder(Pid);

impl Drop for Holder {
    fn drop(&mut self) {
        // It may have ended with its parent.
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

/// The kinds of channel, by what the other process is.
const KINDS: [&str; 5] = ["guest", "agent", "member", "child", "publisher"];

/// This process's end of the channel.
#[expect(clippy::large_enum_variant, reason = "each is moved a few times, in a test")]
enum Own {
    Channel(Channel, Box<dyn std::any::Any + Send>),
    Subscription(Subscription),
}

/// Starts the other process of a kind, with a child that holds copies of its sockets.
fn meet(kind: &str, way: Way) -> (Actor, Own, Holder) {
    let (address, _keep) = fresh_address(false);
    let (name, options) = (address.to_string(), options(way));
    let start = || Actor::start(kind, &[&name]);
    let (actor, own) = match kind {
        "guest" => {
            let host = join_later(&address, &options);
            wait_for_host(&address);
            let actor = start();
            (actor, Own::Channel(host.join().unwrap().unwrap(), Box::new(())))
        }
        "agent" => {
            let listener: Listener = listen(&address, &options).unwrap();
            let actor = start();
            (actor, Own::Channel(accepted(&listener), Box::new(listener)))
        }
        "member" => {
            let membership: Membership = member(&address, &options).unwrap();
            let actor = start();
            let channel = membership.partner(None).unwrap().unwrap();
            (actor, Own::Channel(channel, Box::new(membership)))
        }
        "child" => {
            let (actor, line) = Actor::spawn(kind, &[&name]);
            (actor, Own::Channel(line.channel(&options).unwrap(), Box::new(())))
        }
        _ => {
            let actor = start();
            wait_for_host(&address);
            (actor, Own::Subscription(subscribe(&address, &options).unwrap()))
        }
    };
    let holder = Holder(Pid::from_raw(actor.next_line().parse().unwrap()));
    (actor, own, holder)
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    match role.as_str() {
        "guest" => as_channel(join(&address, &small()).unwrap()),
        "agent" => as_channel(connect(&address, &small()).unwrap()),
        "member" => {
            let membership = member(&address, &small()).unwrap();
            as_channel(membership.partner(None).unwrap().unwrap());
        }
        "child" => as_channel(from_parent(&small()).unwrap()),
        "publisher" => {
            let publisher = publish(&address, &small()).unwrap();
            let PublisherEvent::Subscriber(_) = publisher.next().unwrap() else {
                panic!("expected the subscriber first");
            };
            fork_holder();
            wait_for_test();
        }
        "subscriber" => {
            let _subscription = subscribe(&address, &small()).unwrap();
            fork_holder();
            wait_for_test();
        }
        other => unreachable!("{other}"),
    }
}

/// On the test's command, this side ends its sending.
fn as_channel(channel: Channel) {
    let (mut sender, _receiver) = channel.split();
    fork_holder();
    wait_for_test();
    sender.end();
    report("ended");
    wait_for_test();
}

fn fork_holder() {
    // SAFETY: the child does nothing but sleep.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => loop {
            pause();
        },
        ForkResult::Parent { child } => report(child.to_string()),
    }
}

/// Waits until an event loop that polls only this descriptor would be woken.
fn wait_readable(descriptor: &impl AsFd) {
    let mut polled = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(TIME_LIMIT).unwrap();
    assert_eq!(poll(&mut polled, limit), Ok(1), "the descriptor is not readable");
}

/// Reports that an event loop sleeps. A peer that dies before this is an error of `arm`, not a wakeup.
fn arm(way: Way, arm: impl FnOnce() -> ringfence::Result<bool>) {
    if way == Way::Polls {
        assert!(arm().unwrap(), "there is nothing to wait for");
    }
}

fn receive(mut receiver: Receiver, way: Way) -> CloseReason {
    if way == Way::Polls {
        wait_readable(&receiver);
        let _ = receiver.poll_line();
    }
    assert_lost(receiver.receive(&mut [0; 8]));
    receiver.close_reason().unwrap()
}

fn receive_from(mut subscription: Subscription, way: Way) -> CloseReason {
    if way == Way::Polls {
        wait_readable(&subscription);
        let _ = subscription.poll_line();
    }
    assert_lost(subscription.receive(&mut [0; 8]));
    subscription.close_reason().unwrap()
}

/// Waits for room that never appears.
fn send(mut sender: Sender, way: Way) -> Error {
    if way == Way::Polls {
        wait_readable(&sender);
        sender.poll_line();
    }
    sender.send(&[1; 2000]).unwrap_err()
}

#[test]
fn killed_peer_ends_a_wait_for_a_message() {
    for kind in KINDS {
        for way in WAYS {
            let what = format!("{kind}, {way:?}");
            let (mut actor, mut own, _holder) = meet(kind, way);
            match &mut own {
                Own::Channel(channel, _) => arm(way, || channel.receiver().arm()),
                Own::Subscription(subscription) => arm(way, || subscription.arm()),
            }
            let (started_sender, started) = channel();
            let waiting = thread::spawn(move || {
                started_sender.send(()).unwrap();
                match own {
                    Own::Channel(channel, owner) => {
                        let (_sender, receiver) = channel.split();
                        let ended = within_limit(&what, move || receive(receiver, way));
                        assert_eq!(ended, CloseReason::Lost, "{what}");
                        drop(owner);
                    }
                    Own::Subscription(subscription) => {
                        let ended = within_limit(&what, move || receive_from(subscription, way));
                        assert_eq!(ended, CloseReason::Lost, "{what}");
                    }
                }
            });
            started.recv().unwrap();
            actor.kill();
            waiting.join().unwrap();
        }
    }
}

#[test]
fn killed_peer_ends_a_wait_for_room() {
    for way in WAYS {
        let (mut actor, own, _holder) = meet("agent", way);
        let Own::Channel(channel, _owner) = own else {
            unreachable!()
        };
        let (mut sender, _receiver) = channel.split();
        while sender.try_send(&[1; 200]).unwrap() {}
        arm(way, || sender.arm(2000));
        let waiting = thread::spawn(move || within_limit("a sender", move || send(sender, way)));
        actor.kill();
        let error = waiting.join().unwrap();
        assert!(matches!(error, Error::PeerLost(_)), "{way:?}: {error}");
    }
}

#[test]
fn killed_subscriber_ends_a_wait_for_room() {
    for way in [Way::Sleeps, Way::Spins] {
        let (address, _keep) = fresh_address(false);
        let options = options(way).stall(TIME_LIMIT * 10).capacity(16 << 10);
        let publisher: Publisher = publish(&address, &options).unwrap();
        let mut actor = Actor::start("subscriber", &[&address.to_string()]);
        let _holder = Holder(Pid::from_raw(actor.next_line().parse().unwrap()));
        let (mut sender, audience) = publisher.split();
        while sender.try_send(&[1; 200]).unwrap() {}
        let waiting = thread::spawn(move || within_limit("a publisher", move || sender.send(&[1; 2000])));
        actor.kill();
        waiting.join().unwrap().unwrap();
        let gone = loop {
            match audience.next_until(Some(Instant::now() + TIME_LIMIT)).unwrap() {
                Some(PublisherEvent::Gone(_, reason)) => break reason,
                other => drop(other.expect("an event")),
            }
        };
        assert_eq!(gone, CloseReason::Lost, "{way:?}");
    }
}

#[test]
fn killed_peer_ends_a_wait_of_a_merge() {
    for way in WAYS {
        let (mut actor, own, _holder) = meet("agent", way);
        let (mut second, other, _second_holder) = meet("publisher", way);
        let mut merge: Merge<AnySource> = Merge::new().unwrap();
        let mut keep = Vec::<Box<dyn std::any::Any + Send>>::new();
        for own in [own, other] {
            match own {
                Own::Channel(channel, owner) => {
                    let (sender, receiver) = channel.split();
                    merge.add(receiver.into()).unwrap();
                    keep.push(Box::new((sender, owner)));
                }
                Own::Subscription(subscription) => _ = merge.add(subscription.into()).unwrap(),
            }
        }
        for actor in [&mut actor, &mut second] {
            let waiting = thread::spawn(move || {
                within_limit("a merge", move || {
                    if way == Way::Polls && merge.arm().unwrap() {
                        wait_readable(&merge);
                        merge.poll().unwrap();
                    }
                    let found = merge.receive(&mut [0; 8]).unwrap();
                    (found, merge)
                })
            });
            actor.kill();
            let (found, rest) = waiting.join().unwrap();
            let reason = CloseReason::Lost;
            assert!(
                matches!(found, Some(Merged::Ended { reason: found, .. }) if found == reason),
                "{way:?}: {found:?}"
            );
            merge = rest;
        }
    }
}

#[cfg(feature = "tokio")]
#[test]
fn killed_peer_ends_a_wait_of_a_task() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for kind in KINDS {
        let (mut actor, own, _holder) = meet(kind, Way::Sleeps);
        runtime.block_on(async {
            let killer = tokio::task::spawn_blocking(move || actor.kill());
            let waiting = async {
                match own {
                    Own::Channel(channel, _owner) => {
                        let mut channel = ringfence::tokio::Channel::new(channel).unwrap();
                        assert_lost(channel.receive(&mut [0; 8]).await);
                        channel.get_mut().receiver().close_reason()
                    }
                    Own::Subscription(subscription) => {
                        let mut subscription = ringfence::tokio::Subscription::new(subscription).unwrap();
                        assert_lost(subscription.receive(&mut [0; 8]).await);
                        subscription.get_ref().close_reason()
                    }
                }
            };
            let ended = tokio::time::timeout(TIME_LIMIT, waiting).await;
            assert_eq!(ended.expect("an end in time"), Some(CloseReason::Lost), "{kind}");
            killer.await.unwrap();
        });
    }
}

#[test]
fn arming_fails_if_an_exit_could_not_be_reported() {
    let (mut actor, own, _holder) = meet("agent", Way::Polls);
    let Own::Channel(channel, _owner) = own else {
        unreachable!()
    };
    let (_sender, mut receiver) = channel.split();
    let short = thread::spawn(move || {
        forbid(libc::SYS_epoll_ctl, None, libc::ENOMEM);
        let _ = receiver.as_fd();
        let armed = receiver.arm();
        assert!(matches!(armed, Err(Error::NoSpace { .. })), "{armed:?}");
        receiver
    });
    let mut receiver = short.join().unwrap();
    assert!(receiver.arm().unwrap(), "arming succeeds later");
    actor.kill();
    wait_readable(&receiver);
}

#[test]
fn peer_killed_after_its_end_has_ended_cleanly() {
    for way in WAYS {
        let (mut actor, own, _holder) = meet("guest", way);
        let Own::Channel(channel, _owner) = own else {
            unreachable!()
        };
        let (mut sender, mut receiver) = channel.split();
        actor.proceed();
        actor.expect("ended");
        // A spinning thread receives no wakeup: it sees the end in memory.
        let (mut receiver, found) = within_limit("the peer's end", move || {
            let found = receiver.receive(&mut [0; 8]).unwrap();
            (receiver, found)
        });
        assert_eq!((found, receiver.close_reason()), (None, None), "{way:?}");
        actor.kill();
        let error = within_limit("the peer's death", move || send_until_lost(&mut sender, way));
        assert!(matches!(error, Error::PeerLost(_)), "{way:?}: {error}");
        assert_eq!(receiver.receive(&mut [0; 8]).unwrap(), None, "{way:?}");
        assert_eq!(receiver.close_reason(), Some(CloseReason::Closed), "{way:?}");
    }
}

fn send_until_lost(sender: &mut Sender, way: Way) -> Error {
    loop {
        if way == Way::Polls && sender.arm(2000).is_ok_and(|armed| armed) {
            wait_readable(sender);
            sender.poll_line();
        }
        if let Err(error) = sender.send(&[1; 2000]) {
            return error;
        }
    }
}

/// Returns a deadline that passes, however loaded the machine is.
fn soon() -> Instant {
    Instant::now() + Duration::from_millis(20)
}

/// Tests each wait of a channel, a publisher, a subscription and a merge, up to a deadline.
fn expect_timeouts(way: Way, until: fn() -> Instant) {
    let within_limit = |what: &str, wait: Box<dyn FnOnce() -> (Instant, ringfence::Result<()>) + Send>| {
        let (deadline, found) = within_limit(what, wait);
        assert!(matches!(found, Err(Error::TimedOut)), "{what}: {found:?}");
        assert!(Instant::now() >= deadline, "{what}: the wait ended early");
    };
    let (_actor, own, _holder) = meet("agent", way);
    let Own::Channel(channel, _owner) = own else {
        unreachable!()
    };
    let tokens = channel.tokens();
    let (mut sender, mut receiver) = channel.split();
    while sender.try_send(&[1; 200]).unwrap() {}
    within_limit(
        "a sender",
        Box::new(move || {
            let deadline = until();
            (deadline, sender.send_until(&[1; 2000], deadline))
        }),
    );
    within_limit(
        "tokens",
        Box::new(move || {
            let deadline = until();
            (deadline, tokens.token_until(deadline).map(drop))
        }),
    );
    within_limit(
        "a receiver and a merge",
        Box::new(move || {
            let late = receiver.receive_until(&mut [0; 8], until());
            assert!(matches!(late, Err(Error::TimedOut)), "{late:?}");
            let mut merge = Merge::new().unwrap();
            merge.add(receiver).unwrap();
            let deadline = until();
            (deadline, merge.receive_until(&mut [0; 8], deadline).map(drop))
        }),
    );
    let (_actor, own, _holder) = meet("publisher", way);
    let Own::Subscription(mut subscription) = own else {
        unreachable!()
    };
    within_limit(
        "a subscription",
        Box::new(move || {
            let deadline = until();
            (
                deadline,
                subscription.receive_until(&mut [0; 8], deadline).map(drop),
            )
        }),
    );
    let (address, _keep) = fresh_address(false);
    let publisher = publish(&address, &options(way).capacity(16 << 10).stall(TIME_LIMIT * 10)).unwrap();
    let actor = Actor::start("subscriber", &[&address.to_string()]);
    let _holder = Holder(Pid::from_raw(actor.next_line().parse().unwrap()));
    let (mut sender, audience) = publisher.split();
    while sender.try_send(&[1; 200]).unwrap() {}
    within_limit(
        "a publisher",
        Box::new(move || {
            let deadline = until();
            (deadline, sender.send_until(&[1; 2000], deadline))
        }),
    );
    // The publisher may count a subscriber a moment after the subscriber knows.
    assert!(matches!(
        audience.next_until(Some(Instant::now() + TIME_LIMIT)),
        Ok(Some(PublisherEvent::Subscriber(_)))
    ));
    within_limit(
        "an audience",
        Box::new(move || {
            let deadline = until();
            let next = audience.next_until(Some(deadline));
            (
                deadline,
                next.and_then(|event| event.ok_or(Error::TimedOut)).map(drop),
            )
        }),
    );
}

#[test]
fn spinning_wait_respects_its_deadline() {
    expect_timeouts(Way::Spins, soon);
}

/// A deadline may be longer than the longest wait of one system call. Here the system call returns at once.
#[test]
fn early_return_from_the_kernel_continues_the_wait() {
    expect_timeouts(Way::Sleeps, || {
        // On the thread that waits.
        for call in [libc::SYS_epoll_pwait, libc::SYS_ppoll] {
            forbid(call, None, 0);
        }
        #[cfg(target_arch = "x86_64")]
        for call in [libc::SYS_epoll_wait, libc::SYS_poll] {
            forbid(call, None, 0);
        }
        soon()
    });
}
