//! A forked child that executes no other program. Objects that it inherits are inert in the child, and
//! unaffected in the parent. Objects that the child creates belong to it.

mod support;

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::{
            fs::{MetadataExt, OpenOptionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{Signal, kill},
        stat::Mode,
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, alarm, fork},
};
use ringfence::{
    Address, AnySource, Arrival, Audience, Broadcaster, CancelToken, Change, Channel, Channels, ChildLine,
    CloseReason, Error, Key, Listener, Membership, Merge, ParentLine, Publisher, PublisherEvent, Receiver,
    Result, Role, Sender, Subscriber, Subscription, Tokens, Verifier,
    binding::{self, Retain, Tag},
    connect, join, listen, member, private_line, publish, subscribe,
};
use support::{
    Actor, TIME_LIMIT, accepted, address_in, fresh_address, report, small, wait_for_host, wait_for_test,
};

/// The ways to create a child: by the C library, which runs the handlers of pthread_atfork(3), or bypassing
/// it.
const WAYS: [&str; 2] = ["fork", "clone"];

/// Runs a closure in a child, and returns the outcome: "ok", or how the child ended.
fn in_child(way: &str, body: impl FnOnce()) -> String {
    let child = fork_child(way, body);
    match waitpid(child, None).unwrap() {
        WaitStatus::Exited(_, 0) => "ok".into(),
        other => format!("{other:?}"),
    }
}

fn fork_child(way: &str, body: impl FnOnce()) -> Pid {
    let forked = if way == "fork" {
        // SAFETY: the child is the subject of this test, and the C library's own locks are consistent in it.
        unsafe { fork() }.unwrap()
    } else {
        // SAFETY: as above. Here the other threads of this process wait.
        match unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } {
            0 => ForkResult::Child,
            child => ForkResult::Parent {
                child: Pid::from_raw(child.try_into().unwrap()),
            },
        }
    };
    match forked {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            // A child that hangs has failed.
            alarm::set(60);
            let done = catch_unwind(AssertUnwindSafe(body));
            // SAFETY: only ends the process.
            unsafe { libc::_exit(i32::from(done.is_err())) }
        }
    }
}

/// Checks that the result is that of a call on an object of the parent.
fn assert_inert<T: std::fmt::Debug>(result: Result<T>) {
    match result {
        Err(Error::Closed(why)) => assert!(why.contains("forked"), "{why}"),
        other => panic!("{other:?}"),
    }
}

/// Formats a handle as well: its `Debug` must not take a lock of the parent.
fn assert_debug<T: std::fmt::Debug>(handle: &T) {
    assert!(!format!("{handle:?}").is_empty());
}

/// As `assert_debug`, for a handle whose text starts with the name that the program knows.
fn assert_named<T: std::fmt::Debug>(handle: &T, name: &str) {
    let text = format!("{handle:?}");
    assert!(text.starts_with(&format!("{name} {{ ")), "{text}");
}

// Each of the following calls every method of one kind of handle, in a child. The test of the names below
// ensures that none is missing.

fn use_publisher(publisher: &mut Publisher) {
    assert_debug(publisher);
    let _ = (
        publisher.address(),
        publisher.capacity(),
        publisher.max_message_size(),
    );
    let _ = (publisher.sequence(), publisher.stats());
    assert_inert(publisher.try_send(b"a child's"));
    assert_inert(publisher.send(b"a child's"));
    assert_inert(publisher.send_with(b"a child's", &[]));
    assert_inert(publisher.send_until(b"a child's", Instant::now()));
    assert_inert(publisher.reserve(8).map(drop));
    assert_inert(publisher.reserve_items::<u64>(1).map(drop));
    assert_inert(publisher.reserve_detached(8));
    assert_inert(publisher.batch().map(drop));
    assert_inert(publisher.wait(8, None));
    use_broadcaster(publisher.sender());
    use_audience(publisher.audience());
    assert_inert(publisher.next());
    assert_inert(publisher.try_next());
    assert!(publisher.subscribers().is_empty());
    assert_eq!(publisher.close_reason(), Some(CloseReason::Closed));
    publisher.seal();
    publisher.end();
    publisher.close();
    publisher.destroy();
}

fn use_broadcaster(broadcaster: &mut Broadcaster) {
    assert_named(broadcaster, "Broadcaster");
    let _ = (broadcaster.capacity(), broadcaster.max_message_size());
    let _ = (broadcaster.sequence(), broadcaster.stats());
    assert_inert(broadcaster.try_send(b"a child's"));
    assert_inert(broadcaster.try_send_tagged(b"a child's", Tag::NONE));
    assert_inert(broadcaster.send_part_tagged(b"a child's", Tag::NONE, 0));
    assert_inert(broadcaster.try_send_packed(&[0; 8]));
    assert_inert(broadcaster.send(b"a child's"));
    assert_inert(broadcaster.send_with(b"a child's", &[]));
    assert_inert(broadcaster.send_until(b"a child's", Instant::now()));
    assert_inert(broadcaster.has_room(8));
    assert_inert(broadcaster.packed_room(8));
    assert_inert(broadcaster.wait(8, None));
    assert_inert(broadcaster.arm(8));
    assert_inert(broadcaster.arm_with(8, &[]));
    broadcaster.poll_line();
    broadcaster.disarm();
    broadcaster.give_up();
    assert_eq!(broadcaster.close_reason(), Some(CloseReason::Closed));
    assert!(broadcaster.as_fd().as_raw_fd() >= 0);
    broadcaster.end();
    broadcaster.destroy();
}

fn use_audience(audience: &Audience) {
    assert_named(audience, "Audience");
    let _ = audience.address();
    assert_inert(audience.next());
    assert_inert(audience.next_until(Some(Instant::now())));
    assert_inert(audience.try_next());
    assert!(audience.subscribers().is_empty());
    assert!(audience.as_fd().as_raw_fd() >= 0);
    audience.pause();
    audience.resume();
    assert_eq!(audience.close_reason(), Some(CloseReason::Closed));
    audience.seal();
    audience.close();
    audience.destroy();
}

fn use_subscriber(subscriber: &Subscriber) {
    assert_debug(subscriber);
    assert!(subscriber.peer().pid > 0);
    assert!(!subscriber.evidence().is_empty());
    let _ = subscriber.delivery();
    assert_eq!(subscriber.lag(), 0);
    assert_eq!(subscriber.gone(), None);
    assert!(subscriber.is(subscriber));
    assert_inert(subscriber.verify());
    subscriber.disconnect();
}

fn use_subscription(subscription: &mut Subscription) {
    let mut room = [0; 64];
    assert_named(subscription, "Subscription");
    let _ = (
        subscription.peer(),
        subscription.evidence(),
        subscription.delivery(),
    );
    let _ = (subscription.capacity(), subscription.max_message_size());
    let _ = (
        subscription.lost(),
        subscription.sequence(),
        subscription.busy_poll(),
    );
    assert_eq!(subscription.lag(), 0);
    subscription.stats();
    subscription.disarm();
    subscription.wake();
    subscription.begin_round();
    subscription.is_round_over();
    assert_inert(subscription.poll_line());
    assert_inert(subscription.poll_line_later());
    assert_inert(subscription.try_receive(&mut room));
    assert_inert(subscription.receive(&mut room));
    assert_inert(subscription.receive_until(&mut room, Instant::now()));
    assert_inert(subscription.try_receive_vec());
    assert_inert(subscription.receive_vec());
    assert_inert(subscription.receive_vec_until(Instant::now()));
    assert_inert(subscription.try_receive_packed(&mut room));
    assert_inert(subscription.try_receive_more_packed(&mut room));
    assert_inert(subscription.receive_each(|_| {}, 1));
    assert_inert(subscription.next_size());
    assert_inert(subscription.has_message());
    assert_inert(subscription.is_ended());
    assert_inert(subscription.arm());
    assert_inert(subscription.wait_readable(None));
    assert_inert(subscription.verify().map(drop));
    use_verifier(&subscription.verifier());
    assert!(subscription.close_reason().is_some());
    assert!(subscription.as_fd().as_raw_fd() >= 0);
    subscription.close();
    subscription.destroy();
}

fn use_sender(sender: &mut Sender) {
    assert_named(sender, "Sender");
    let _ = (sender.capacity(), sender.max_message_size(), sender.max_at_once());
    sender.stats();
    sender.disarm();
    sender.poll_line();
    sender.refresh();
    sender.vacate();
    assert_eq!(sender.under_way(), None);
    assert_inert(sender.try_send(b"a child's"));
    assert_inert(sender.try_send_tagged(b"a child's", Tag::NONE));
    assert_inert(sender.send_with(b"a child's", &[]));
    assert_inert(sender.send(b"a child's"));
    assert_inert(sender.send_until(b"a child's", Instant::now()));
    assert_inert(sender.send_part(b"a child's", 0));
    assert_inert(sender.send_part_tagged(b"a child's", Tag::NONE, 0));
    assert_inert(sender.try_send_packed(&[0; 8]));
    assert_inert(sender.has_room(8));
    assert_inert(sender.packed_room(8));
    assert_inert(sender.reserve(8).map(drop));
    assert_inert(sender.reserve_items::<u64>(1).map(drop));
    assert_inert(sender.reserve_detached(8));
    assert_inert(sender.batch().map(drop));
    assert_inert(sender.wait(8, None));
    assert_inert(sender.arm(8));
    assert_inert(sender.arm_with(8, &[]));
    assert_eq!(sender.close_reason(), Some(CloseReason::Closed));
    assert!(sender.as_fd().as_raw_fd() >= 0);
    sender.end();
    sender.close();
    sender.destroy();
}

fn use_receiver(receiver: &mut Receiver) {
    receiver.accept_calls();
    let mut room = [0; 64];
    assert_named(receiver, "Receiver");
    let _ = (receiver.peer(), receiver.max_message_size());
    receiver.stats();
    receiver.disarm();
    receiver.wake();
    receiver.begin_round();
    let _ = receiver.is_round_over();
    assert_inert(receiver.poll_line());
    assert_inert(receiver.poll_line_later());
    assert_inert(receiver.try_receive(&mut room));
    assert_inert(receiver.receive(&mut room));
    assert_inert(receiver.receive_until(&mut room, Instant::now()));
    assert_inert(receiver.try_receive_vec());
    assert_inert(receiver.receive_vec());
    assert_inert(receiver.receive_vec_until(Instant::now()));
    assert_inert(receiver.receive_part(&mut room));
    assert_inert(receiver.next_tag());
    let _ = receiver.tag();
    assert_inert(receiver.try_receive_packed(&mut room));
    assert_inert(receiver.try_receive_more_packed(&mut room));
    assert_inert(binding::pull_retained(receiver, &mut room, 0..=8, Retain::Each));
    assert_inert(binding::pull_again(receiver, &mut room, 0));
    binding::release(receiver);
    assert_inert(binding::Waits::announce(receiver));
    assert_inert(binding::Waits::check_parked(receiver, ()));
    assert_inert(receiver.receive_each(|_| {}, 1));
    assert_inert(receiver.next_size());
    assert_inert(receiver.has_message());
    assert_inert(receiver.is_ended());
    assert_inert(receiver.wait_readable(None));
    assert_inert(receiver.arm());
    assert_eq!(receiver.close_reason(), Some(CloseReason::Closed));
    assert!(receiver.as_fd().as_raw_fd() >= 0);
    receiver.close();
    receiver.destroy();
}

fn use_channel(channel: &mut Channel) {
    assert_debug(channel);
    let _ = (
        channel.role(),
        channel.peer(),
        channel.evidence(),
        channel.busy_poll(),
    );
    channel.stats();
    assert_inert(channel.verify().map(drop));
    use_verifier(&channel.verifier());
    use_tokens(&channel.tokens());
    assert!(channel.as_fd().as_raw_fd() >= 0);
    use_sender(channel.sender());
    use_receiver(channel.receiver());
}

fn use_tokens(tokens: &Tokens) {
    assert_debug(tokens);
    assert_inert(tokens.send(1));
    assert_inert(tokens.token());
    assert_inert(tokens.token_until(Instant::now()));
    assert_eq!(tokens.try_token(), None);
    assert!(tokens.is_ended());
    assert_inert(tokens.bell().map(drop));
    let _ = (tokens.dropped(), tokens.strays());
}

fn use_verifier(verifier: &Verifier) {
    assert_debug(verifier);
    assert_inert(verifier.verify());
}

fn use_merge(merge: &mut Merge<AnySource>, key: Key) {
    let mut room = [0; 64];
    assert_debug(merge);
    let _ = (merge.stats(), merge.len(), merge.is_empty(), merge.is_ended());
    assert!(merge.source(key).is_some());
    assert_inert(merge.try_receive(&mut room));
    assert_inert(merge.try_receive_vec());
    assert_inert(merge.receive(&mut room));
    assert_inert(merge.receive_until(&mut room, Instant::now()));
    assert_inert(merge.receive_vec());
    assert_inert(merge.next_size());
    assert_inert(merge.receive_each(|_, _| {}, 1));
    assert_inert(merge.wait_readable(None));
    assert_inert(merge.arm());
    assert_inert(merge.poll());
    assert_eq!(merge.next_end(), None);
    assert!(merge.attachments().is_empty());
    assert!(merge.as_fd().as_raw_fd() >= 0);
    assert!(merge.remove(key).is_none());
    if let Some(AnySource::Receiver(_)) = merge.source(key) {
        // SAFETY: a copy of a value that the merge still owns, in a process that ends with it.
        let source = unsafe { std::ptr::read(merge.source(key).unwrap()) };
        assert_inert(merge.add(source).map_err(Error::from));
    }
}

fn use_listener(listener: &Listener) {
    assert_named(listener, "Listener");
    let _ = listener.address();
    listener.stats();
    assert_inert(listener.accept());
    assert_inert(listener.accept_until(Instant::now()));
    assert_inert(listener.try_accept());
    assert_eq!(listener.size(), 0);
    assert!(listener.as_fd().as_raw_fd() >= 0);
    listener.pause();
    listener.resume();
    listener.close(Channels::Close);
}

fn use_membership(membership: &Membership) {
    assert_named(membership, "Membership");
    let _ = membership.address();
    membership.stats();
    assert_inert(membership.next());
    assert_inert(membership.next_until(Some(Instant::now())));
    assert_inert(membership.try_next());
    assert_inert(membership.partner(None));
    assert_eq!(membership.role(), Role::Guest);
    assert!(!membership.has_partner());
    assert!(membership.as_fd().as_raw_fd() >= 0);
    membership.pause();
    membership.resume();
}

fn use_parent_line(line: &mut ParentLine, childs: &ChildLine) {
    assert_debug(line);
    assert_debug(childs);
    assert_inert(line.started(std::process::id()));
    assert_inert(line.processes().kill());
    assert!(childs.as_fd().as_raw_fd() >= 0);
}

/// The files that contain the methods of handles, and the functions above that call them.
const HANDLES: [(&str, &[&str]); 17] = [
    ("channel/mod.rs", &["channel"]),
    ("channel/outbound.rs", &["sender"]),
    ("channel/outbound.rs", &["broadcaster"]),
    ("channel/sender.rs", &["sender"]),
    ("channel/inbound.rs", &["receiver"]),
    ("channel/inbound.rs", &["subscription"]),
    ("channel/receiver.rs", &["receiver"]),
    ("channel/subscription.rs", &["subscription"]),
    ("channel/merge/mod.rs", &["merge"]),
    ("channel/tokens.rs", &["tokens"]),
    ("channel/verify.rs", &["verifier"]),
    ("api/service.rs", &["listener"]),
    ("api/member.rs", &["membership"]),
    ("api/child.rs", &["parent_line"]),
    ("api/publish.rs", &["publisher", "audience"]),
    ("host/broadcaster.rs", &["broadcaster"]),
    ("host/audience.rs", &["subscriber"]),
];

/// Covers methods that borrow the handle. The tests call those that consume it on copies.
#[test]
fn every_method_of_each_handle_is_called_in_a_child() {
    let own = include_str!("fork.rs");
    let body = |handle: &&str| {
        let (_, behind) = own.split_once(&format!("\nfn use_{handle}(")).unwrap();
        behind.split_once("\n}\n").unwrap().0
    };
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut count, mut missing) = (0, Vec::new());
    for (file, handles) in HANDLES {
        let calls: String = handles.iter().map(body).collect();
        let text = std::fs::read_to_string(source.join(file)).unwrap();
        let methods = text.split("\n    pub fn ").skip(1);
        for (name, arguments) in methods.filter_map(|method| method.split_once('(')) {
            let name = name.split('<').next().unwrap();
            if arguments.starts_with("&self") || arguments.starts_with("&mut self") {
                count += 1;
                if ![format!(".{name}("), format!(".{name}::<")]
                    .iter()
                    .any(|call| calls.contains(call))
                {
                    missing.push(format!("{file}: {name}"));
                }
            }
        }
    }
    assert!(count > 150, "the methods were found: {count}");
    assert!(missing.is_empty(), "not called in a child: {missing:#?}");
}

/// Allocates the child's own mappings, which would be placed at the addresses of mappings lost from the
/// parent. Returns a closure that checks whether they are intact.
fn fill_memory() -> impl Fn() -> bool {
    let filled: Vec<Vec<u8>> = (0..64).map(|_| vec![0xa5; 1 << 17]).collect();
    move || filled.iter().flatten().all(|byte| *byte == 0xa5)
}

/// Answers up to `most` messages.
fn echo(sender: &mut Sender, receiver: &mut Receiver, most: usize) {
    let mut word = [0; 64];
    for _ in 0..most {
        let Some(length) = receiver.receive(&mut word).unwrap() else {
            return;
        };
        sender.send(&word[..length]).unwrap();
    }
}

fn answers(sender: &mut Sender, receiver: &mut Receiver, word: &[u8]) {
    let mut answer = [0; 64];
    sender.send(word).unwrap();
    let length = receiver
        .receive_until(&mut answer, Instant::now() + TIME_LIMIT)
        .unwrap();
    assert_eq!(&answer[..length.unwrap()], word);
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = address_in(&arguments);
    let way = arguments.get(1).map_or("fork", String::as_str);
    match role.as_str() {
        // Forks a child that inherits its subscription, and another that inherits it after the end.
        "subscriber" => {
            let mut subscription = Some(subscribe(&address, &small()).unwrap());
            let use_it_in_child = |subscription: &mut Option<Subscription>| {
                report(in_child(way, || {
                    let mut subscription = subscription.take().unwrap();
                    use_subscription(&mut subscription);
                    drop(subscription);
                }));
            };
            use_it_in_child(&mut subscription);
            let mut into = [0; 64];
            let length = subscription
                .as_mut()
                .unwrap()
                .receive(&mut into)
                .unwrap()
                .unwrap();
            report(String::from_utf8_lossy(&into[..length]));
            wait_for_test();
            assert_eq!(subscription.as_mut().unwrap().receive(&mut into).unwrap(), None);
            use_it_in_child(&mut subscription);
            report(subscription.unwrap().close_reason().unwrap().to_string());
        }
        "merge" => merge(&address, way),
        "channel" => channel(&address, way),
        "service" => service(&address, way),
        "holder" => holder(&address, &arguments[1]),
        "member" => membership(&address, way),
        "creates channels" => create_channels(&address, &arguments[2].parse().unwrap(), way),
        "turns" => turns(&address, &arguments[2].parse().unwrap()),
        "locks" => locks(&address),
        "cancel_token" => cancel_token(&address, way),
        "publisher" => publisher(&address, way),
        "line" => line(way),
        other => unreachable!("{other}"),
    }
}

/// Forks children that use and drop the handles they inherit; then continues.
fn channel(address: &Address, way: &str) {
    let mut channel = join(address, &small()).unwrap();
    let tokens = channel.tokens();
    report(in_child(way, || use_channel(&mut channel)));
    let (mut sender, mut receiver) = channel.split();
    // After this many sleeps, a thread watches for the death of the peer.
    echo(&mut sender, &mut receiver, SLEEPS);
    report(in_child(way, || {
        let whole = fill_memory();
        use_tokens(&tokens);
        use_sender(&mut sender);
        use_receiver(&mut receiver);
        // SAFETY: a copy of a value that the parent still owns, in a process that ends with it.
        unsafe {
            drop(std::ptr::read(&raw const sender));
            drop(std::ptr::read(&raw const receiver));
            drop(std::ptr::read(&raw const tokens));
        }
        assert!(whole());
    }));
    // Objects that are open at the fork.
    let mut reservation = sender.reserve(5).unwrap().unwrap();
    reservation.copy_from_slice(b"whole");
    let ended = in_child(way, || {
        if way == "fork" {
            let whole = fill_memory();
            reservation.fill(0xee);
            assert!(whole());
        }
        // SAFETY: as above.
        assert_inert(unsafe { std::ptr::read(&raw const reservation) }.commit(5));
    });
    reservation.commit(5).unwrap();
    report(ended);
    let mut batch = sender.batch().unwrap();
    assert!(batch.push(b"first").unwrap());
    let ended = in_child(way, || {
        if way == "fork" {
            let whole = fill_memory();
            let _ = batch.push(b"a child's");
            assert!(whole());
        }
        // SAFETY: as above.
        drop(unsafe { std::ptr::read(&raw const batch) });
    });
    assert!(batch.push(b"second").unwrap());
    drop(batch);
    report(ended);
    let detached = sender.reserve_detached(5).unwrap().unwrap();
    let ended = in_child(way, || {
        // SAFETY: as above.
        let copy = || unsafe { std::ptr::read(&raw const detached) };
        assert_inert(sender.commit(copy(), 5));
        assert_inert(sender.cancel(copy()));
    });
    sender.cancel(detached).unwrap();
    report(ended);
    assert_eq!(tokens.token().unwrap(), Some(7));
    tokens.send(8).unwrap();
    report("token");
    echo(&mut sender, &mut receiver, usize::MAX);
    // A channel that has ended belongs to the parent as well.
    report(in_child(way, || {
        assert_inert(receiver.is_ended());
        assert_inert(receiver.receive_vec());
        assert_inert(receiver.wait_readable(None));
    }));
    drop((sender, receiver));
    report("ended");
}

/// Forks children that use a merge: of an open channel, after the end of another.
fn merge(address: &Address, way: &str) {
    let mut merge: Merge<AnySource> = Merge::new().unwrap();
    let (_sender, receiver) = connect(address, &small()).unwrap().split();
    let key = merge.add(receiver.into()).unwrap();
    // Handshakes at the same time could complete in the other order at the service.
    wait_for_test();
    let (mut sender, receiver) = connect(address, &small()).unwrap().split();
    let ended = merge.add(receiver.into()).unwrap();
    sender.send(b"end").unwrap();
    // An end that has not been reported yet.
    while merge.source(ended).is_some() {
        assert!(merge.wait_readable(None).unwrap());
        assert_eq!(merge.receive_each(|_, _| {}, 1).unwrap(), 0);
    }
    report(in_child(way, || use_merge(&mut merge, key)));
    assert!(merge.next_end().is_some_and(|(key, _)| key == ended));
    report("done");
}

/// Forks children that use and drop the listener; then continues to serve.
fn service(address: &Address, way: &str) {
    let listener = listen(address, &small().max_peers(2)).unwrap();
    let first = accepted(&listener);
    let (mut sender, mut receiver) = first.split();
    let ended = in_child(way, || {
        use_listener(&listener);
        // SAFETY: copies of values that the parent still owns, in a process that ends with them.
        unsafe {
            drop(std::ptr::read(&raw const listener));
            drop(std::ptr::read(&raw const sender));
            drop(std::ptr::read(&raw const receiver));
        }
    });
    // The number of slots is unchanged. The second client connects once this is reported.
    assert_eq!(listener.size(), 1);
    report(ended);
    let mut second = accepted(&listener);
    assert_eq!(listener.size(), 2);
    let mut word = [0; 64];
    assert_eq!(second.receiver().receive(&mut word).unwrap(), Some(5));
    second.sender().send(b"hello").unwrap();
    echo(&mut sender, &mut receiver, usize::MAX);
    drop((sender, receiver, second));
    drop(listener);
    report("closed");
}

/// Forks a child that stays alive and does nothing until the test closes the connection to it.
fn holder(address: &Address, test: &str) {
    let mut test = UnixStream::connect(test).unwrap();
    let listener = listen(address, &small()).unwrap();
    fork_child("fork", || {
        alarm::cancel();
        // The child has closed all inherited descriptors that it must not hold before it gets here.
        test.write_all(b"!").unwrap();
        test.read_to_end(&mut Vec::new()).unwrap();
    });
    report("forked");
    wait_for_test();
    drop(listener);
    // Succeeds at once, although the child still exists.
    let again = listen(address, &small());
    report(again.as_ref().map_or_else(Error::code, |_| "again"));
    wait_for_test();
}

/// A member with its partner forks children that drop all of it; then continues.
fn membership(address: &Address, way: &str) {
    let membership = member(address, &small()).unwrap();
    report(membership.role().to_string());
    let channel = membership
        .partner(Some(Instant::now() + TIME_LIMIT))
        .unwrap()
        .unwrap();
    let (mut sender, mut receiver) = channel.split();
    let role = membership.role();
    report(in_child(way, || {
        use_membership(&membership);
        // SAFETY: copies of values that the parent still owns, in a process that ends with them.
        unsafe {
            drop(std::ptr::read(&raw const sender));
            drop(std::ptr::read(&raw const receiver));
            std::ptr::read(&raw const membership).leave();
        }
    }));
    assert_eq!(membership.role(), role);
    assert!(membership.has_partner());
    echo(&mut sender, &mut receiver, usize::MAX);
    // The guest takes over the address of a host that has gone.
    let end = Instant::now() + TIME_LIMIT;
    while let Some(change) = membership.next_until(Some(end)).unwrap() {
        if let Change::Role(role) = change {
            report(role.to_string());
            return;
        }
    }
}

/// Has a channel, and forks a child that makes one of its own: with the parent's partner, and by itself.
fn create_channels(address: &Address, service: &Address, way: &str) {
    let (mut sender, mut receiver) = join(address, &small()).unwrap().split();
    echo(&mut sender, &mut receiver, SLEEPS);
    let ended = in_child(way, || {
        let (channel, paths) = connect_and_capture(service);
        let tokens = channel.tokens();
        let (mut own, mut own_receiver) = channel.split();
        // The copies of the parent's handles are dropped before the child receives anything.
        // SAFETY: copies of values that the parent still owns, in a process that ends with them.
        unsafe {
            drop(std::ptr::read(&raw const sender));
            drop(std::ptr::read(&raw const receiver));
        }
        echo(&mut own, &mut own_receiver, SLEEPS);
        tokens.send(5).unwrap();
        assert_eq!(tokens.token().unwrap(), Some(6));
        let opened = reopen(&paths[0]).unwrap_err();
        assert_eq!(opened.raw_os_error(), Some(Errno::EWOULDBLOCK as i32));
        let error = own_receiver
            .receive_until(&mut [0; 8], Instant::now() + TIME_LIMIT)
            .unwrap_err();
        assert_eq!(error.code(), "OBJECT_EXPOSED");
        drop((own, own_receiver));
        // The child can itself be a parent.
        assert_eq!(in_child(way, || drop(connect(service, &small()).unwrap())), "ok");
    });
    report(ended);
    echo(&mut sender, &mut receiver, usize::MAX);
}

/// More sleeps than it takes until a thread watches for the death of the peer.
const SLEEPS: usize = 48;

/// Connects repeatedly, until a path to the own object was captured while a descriptor of it was open.
fn connect_and_capture(service: &Address) -> (Channel, Vec<File>) {
    loop {
        let done = AtomicBool::new(false);
        let (mut channel, mut paths) = thread::scope(|scope| {
            let capturing = scope.spawn(|| {
                let mut paths = BTreeMap::new();
                while !done.load(Ordering::Relaxed) {
                    capture_paths(&mut paths);
                }
                paths.into_values().collect::<Vec<_>>()
            });
            let channel = connect(service, &small());
            done.store(true, Ordering::Relaxed);
            (channel.unwrap(), capturing.join().unwrap())
        });
        paths.retain(is_own);
        let word: &[u8] = if paths.is_empty() { b"again" } else { b"kept" };
        channel.sender().send(word).unwrap();
        if !paths.is_empty() {
            return (channel, paths);
        }
    }
}

/// Takes an `O_PATH` descriptor of every shared object that this process has a descriptor of. It does not
/// count as an open.
fn capture_paths(paths: &mut BTreeMap<u64, File>) {
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        if !target.to_string_lossy().starts_with("/memfd:ringfence") {
            continue;
        }
        let path = open(&entry.path(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
        if let Ok(file) = path.map(File::from)
            && let Ok(metadata) = file.metadata()
        {
            paths.entry(metadata.ino()).or_insert(file);
        }
    }
}

/// Whether this process writes this object: only that one is mapped writable.
fn is_own(file: &File) -> bool {
    let inode = file.metadata().unwrap().ino().to_string();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some("rw-s") && fields.nth(2) == Some(&inode)
    })
}

fn reopen(file: &File) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Has the maximum number of handshakes under way, and a child that connects elsewhere.
fn turns(silent: &Address, service: &Address) {
    let cancel_token = CancelToken::new().unwrap();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| connect(silent, &small().cancel_token(cancel_token.clone())).unwrap_err());
        }
        wait_for_test();
        let connected = || {
            let (mut sender, mut receiver) = connect(service, &small()).unwrap().split();
            answers(&mut sender, &mut receiver, b"at once");
        };
        for way in WAYS {
            report(in_child(way, connected));
        }
        cancel_token.cancel();
    });
}

/// Forks while other threads continuously create and end channels, tokens and services, so that each lock is
/// held at times.
fn locks(service: &Address) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let channel = connect(service, &small()).unwrap();
                let tokens = channel.tokens();
                let (mut sender, mut receiver) = channel.split();
                answers(&mut sender, &mut receiver, b"parent");
                let _ = tokens.send(1);
                drop(tokens.token_until(Instant::now() + Duration::from_millis(1)));
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let (address, _) = fresh_address(false);
                let listener = listen(&address, &small()).unwrap();
                for _ in 0..100 {
                    let _ = listener.size();
                }
            }
        });
        for _ in 0..60 {
            let ended = in_child("fork", || {
                let (mut sender, mut receiver) = connect(service, &small()).unwrap().split();
                answers(&mut sender, &mut receiver, b"child");
                let (address, _) = fresh_address(false);
                drop(listen(&address, &small()).unwrap());
            });
            if ended != "ok" {
                report(ended);
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    report("done");
}

/// A cancellation in the child does not affect the parent, and one in the parent does not affect the child.
fn cancel_token(address: &Address, way: &str) {
    let cancel_token = CancelToken::new().unwrap();
    let options = small().cancel_token(cancel_token.clone());
    report(in_child(way, || cancel_token.cancel()));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| join(address, &options));
        wait_for_host(address);
        report("waits");
        wait_for_test();
        cancel_token.cancel();
        report(waiting.join().unwrap().unwrap_err().code());
    });
    report(in_child(way, || {
        let mut channel = join(address, &options).unwrap();
        // Until the other side has dropped its channel.
        assert_eq!(channel.receiver().receive(&mut [0; 8]).unwrap(), None);
    }));
}

/// A publisher forks a child that uses and drops it; then continues.
fn publisher(address: &Address, way: &str) {
    let mut publisher = publish(address, &small()).unwrap();
    let mut subscriber = Actor::start("subscriber", &[&address.to_string(), way]);
    subscriber.expect("ok");
    let PublisherEvent::Subscriber(one) = publisher.next().unwrap() else {
        panic!("expected the subscriber first");
    };
    let mut inherited = Some(publisher);
    report(in_child(way, || {
        let mut publisher = inherited.take().unwrap();
        use_subscriber(&one);
        use_publisher(&mut publisher);
        drop(publisher);
    }));
    publisher = inherited.take().unwrap();
    // The address still belongs to the parent, and so do its subscribers.
    assert!(publish(address, &small()).is_err());
    assert_eq!(publisher.subscribers().len(), 1);
    publisher.send(b"the parent's").unwrap();
    subscriber.expect("the parent's");
    publisher.end();
    subscriber.proceed();
    subscriber.expect("ok");
    subscriber.expect("closed");
    subscriber.finish();
}

/// A parent forks a child that uses its line.
fn line(way: &str) {
    let (mut line, childs) = private_line().unwrap();
    report(in_child(way, || {
        use_parent_line(&mut line, &childs);
        // SAFETY: a copy of a value that the parent still owns, in a process that ends with it.
        assert_inert(unsafe { std::ptr::read(&raw const line) }.channel(&small()));
    }));
}

#[test]
fn channel_survives_use_and_drop_in_a_child() {
    for way in WAYS {
        // As the host, whose address the child could release, and as the guest.
        for guest in [false, true] {
            let (address, directory) = fresh_address(true);
            let start = || Actor::start("channel", &[&address.to_string(), way]);
            let (actor, channel) = if guest {
                let later = support::join_later(&address, &small());
                wait_for_host(&address);
                (start(), later.join().unwrap().unwrap())
            } else {
                let actor = start();
                wait_for_host(&address);
                (actor, join(&address, &small()).unwrap())
            };
            let tokens = channel.tokens();
            let (mut sender, mut receiver) = channel.split();
            actor.expect("ok");
            for _ in 0..SLEEPS {
                answers(&mut sender, &mut receiver, b"before");
            }
            for _ in 0..4 {
                actor.expect("ok");
            }
            let mut word = [0; 64];
            for wanted in [&b"whole"[..], b"first", b"second"] {
                let length = receiver.receive(&mut word).unwrap().unwrap();
                assert_eq!(&word[..length], wanted, "{way}");
            }
            tokens.send(7).unwrap();
            actor.expect("token");
            assert_eq!(tokens.token().unwrap(), Some(8));
            // The files at the address still exist, and belong to this host.
            let there = directory.as_ref().unwrap().path().read_dir().unwrap().count();
            assert_eq!(there, 2, "the socket and its lock");
            assert_eq!(join(&address, &small()).unwrap_err().code(), "ADDRESS_OCCUPIED");
            for _ in 0..SLEEPS {
                answers(&mut sender, &mut receiver, b"after");
            }
            sender.end();
            actor.expect("ok");
            actor.expect("ended");
            assert_eq!(receiver.receive(&mut word).unwrap(), None);
            actor.finish();
        }
    }
}

#[test]
fn service_survives_a_child_dropping_its_listener() {
    for way in WAYS {
        let (address, _) = fresh_address(false);
        let actor = Actor::start("service", &[&address.to_string(), way]);
        wait_for_host(&address);
        let (mut sender, mut receiver) = connect(&address, &small()).unwrap().split();
        actor.expect("ok");
        let mut second = connect(&address, &small()).unwrap();
        second.sender().send(b"hello").unwrap();
        let mut word = [0; 64];
        let length = second.receiver().receive(&mut word).unwrap().unwrap();
        assert_eq!(&word[..length], b"hello");
        // Exactly both slots are taken.
        assert_eq!(
            connect(&address, &small()).unwrap_err().code(),
            "ADDRESS_OCCUPIED"
        );
        answers(&mut sender, &mut receiver, b"first");
        drop((sender, receiver));
        actor.expect("closed");
        actor.finish();
    }
}

#[test]
fn surviving_child_does_not_hold_the_parents_address() {
    for named in [false, true] {
        let (address, _directory) = fresh_address(named);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test");
        let socket = UnixListener::bind(&path).unwrap();
        let mut actor = Actor::start("holder", &[&address.to_string(), path.to_str().unwrap()]);
        // The child exits when this connection is closed.
        let (mut child, _) = socket.accept().unwrap();
        actor.expect("forked");
        child.read_exact(&mut [0]).unwrap();
        actor.proceed();
        actor.expect("again");
        // The address is also free when the parent is killed.
        kill(Pid::from_raw(actor.pid()), Signal::SIGKILL).unwrap();
        let ended = Instant::now() + TIME_LIMIT;
        let listener = loop {
            match listen(&address, &small()) {
                Err(Error::AddressOccupied { .. }) if Instant::now() < ended => thread::yield_now(),
                other => break other.unwrap(),
            }
        };
        drop(listener);
    }
}

#[test]
fn membership_survives_a_drop_in_a_child() {
    for way in WAYS {
        for role in [Role::Host, Role::Guest] {
            let (address, _) = fresh_address(false);
            let text = address.to_string();
            let (actor, own) = if role == Role::Host {
                let actor = Actor::start("member", &[&text, way]);
                actor.expect("host");
                (actor, member(&address, &small()).unwrap())
            } else {
                let own = member(&address, &small()).unwrap();
                let actor = Actor::start("member", &[&text, way]);
                actor.expect("guest");
                (actor, own)
            };
            let channel = partner(&own);
            actor.expect("ok");
            let (mut sender, mut receiver) = channel.split();
            answers(&mut sender, &mut receiver, b"after");
            if role == Role::Guest {
                drop((sender, receiver));
                drop(own);
                // The guest has inherited the address, unaffected by its child.
                actor.expect("host");
            }
        }
    }
}

fn partner(membership: &Membership) -> Channel {
    membership
        .partner(Some(Instant::now() + TIME_LIMIT))
        .unwrap()
        .unwrap()
}

#[test]
fn child_can_create_its_own_channels_and_tripwire() {
    for way in WAYS {
        let ((address, _), (service, _)) = (fresh_address(false), fresh_address(false));
        let listener: Listener = listen(&service, &small()).unwrap();
        let actor = Actor::start(
            "creates channels",
            &[&address.to_string(), way, &service.to_string()],
        );
        wait_for_host(&address);
        let (mut sender, mut receiver) = join(&address, &small()).unwrap().split();
        for _ in 0..SLEEPS {
            answers(&mut sender, &mut receiver, b"before");
        }
        let mut word = [0; 64];
        let childs = loop {
            let mut channel = accepted(&listener);
            match channel.receiver().receive(&mut word).unwrap() {
                Some(4) => break channel,
                _ => channel.close(),
            }
        };
        assert_ne!(childs.peer().pid, actor.pid(), "the child's own channel");
        let tokens = childs.tokens();
        let (mut own, mut own_receiver) = childs.split();
        for _ in 0..SLEEPS {
            answers(&mut own, &mut own_receiver, b"its own");
        }
        assert_eq!(tokens.token().unwrap(), Some(5));
        tokens.send(6).unwrap();
        let error = own_receiver
            .receive_until(&mut word, Instant::now() + TIME_LIMIT)
            .unwrap_err();
        assert_eq!(error.code(), "OBJECT_EXPOSED", "{error}");
        actor.expect("ok");
        answers(&mut sender, &mut receiver, b"after");
        assert_eq!(sender.close_reason(), None);
    }
}

#[test]
fn child_has_its_own_connect_queue() {
    let (silent, directory) = fresh_address(true);
    let path = directory.as_ref().unwrap().path().join("socket");
    let socket = UnixListener::bind(path).unwrap();
    let (service, _) = fresh_address(false);
    let listener = listen(&service, &small()).unwrap();
    let mut actor = Actor::start("turns", &[&silent.to_string(), "fork", &service.to_string()]);
    let under_way: Vec<_> = (0..16).map(|_| socket.accept().unwrap().0).collect();
    // Each has sent the first frame of its handshake, and waits for ours.
    for stream in &under_way {
        let mut polled = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        assert!(poll(&mut polled, PollTimeout::from(60_000_u16)).unwrap() > 0);
    }
    actor.proceed();
    for _ in WAYS {
        let channel = accepted(&listener);
        let (mut sender, mut receiver) = channel.split();
        echo(&mut sender, &mut receiver, usize::MAX);
        actor.expect("ok");
    }
    actor.finish();
}

/// Closes a listener on drop, so that a call that waits for its events returns.
struct Closing<'a>(&'a Listener);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close(Channels::Close);
    }
}

#[test]
fn locks_held_at_the_fork_do_not_block_the_child() {
    let (service, _) = fresh_address(false);
    let listener = listen(&service, &small()).unwrap();
    // The handlers of SIGSEGV and SIGBUS in a Rust program make its standard library take a lock at the start
    // and end of each thread, which this crate cannot avoid. If both signals are ignored from the start there
    // are no such handlers, as in Node.
    let mut without_handler = Command::new("sh");
    let executable = std::env::current_exe().unwrap();
    without_handler
        .args(["-c", r#"trap "" SEGV BUS; exec "$0" "$@""#])
        .arg(executable);
    let actor = Actor::run(without_handler, "locks", &[&service.to_string()]);
    thread::scope(|scope| {
        scope.spawn(|| {
            while let Ok(arrival) = listener.accept() {
                let Arrival::Accepted(channel) = arrival else {
                    continue;
                };
                thread::spawn(move || {
                    let (mut sender, mut receiver) = channel.split();
                    let mut word = [0; 64];
                    while let Ok(Some(length)) = receiver.receive(&mut word) {
                        if sender.send(&word[..length]).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        // Close it even if the following code fails: the thread above is joined.
        let _closing = Closing(&listener);
        actor.expect("done");
    });
    actor.finish();
}

#[test]
fn cancel_token_is_not_shared_with_a_child() {
    for way in WAYS {
        let (address, _) = fresh_address(false);
        let mut actor = Actor::start("cancel_token", &[&address.to_string(), way]);
        actor.expect("ok");
        actor.expect("waits");
        actor.proceed();
        actor.expect("ABORTED");
        // The child waits for a partner, although its parent has cancelled its own wait.
        wait_for_host(&address);
        drop(join(&address, &small()).unwrap());
        actor.expect("ok");
        actor.finish();
    }
}

/// The forking process is another one: here other tests may hold a lock of the allocator at the fork.
#[test]
fn inherited_publisher_and_subscription_are_inert() {
    for way in WAYS {
        let (address, _directory) = fresh_address(false);
        let publisher = Actor::start("publisher", &[&address.to_string(), way]);
        publisher.expect("ok");
        publisher.finish();
    }
}

#[test]
fn inherited_merge_and_line_are_inert() {
    for way in WAYS {
        let (address, _directory) = fresh_address(false);
        let listener = listen(&address, &small()).unwrap();
        let mut actor = Actor::start("merge", &[&address.to_string(), way]);
        let _first = accepted(&listener);
        actor.proceed();
        let mut second = accepted(&listener);
        assert_eq!(second.receiver().receive(&mut [0; 8]).unwrap(), Some(3));
        second.close();
        actor.expect("ok");
        actor.expect("done");
        actor.finish();
        let actor = Actor::start("line", &[&address.to_string(), way]);
        actor.expect("ok");
        actor.finish();
    }
}
