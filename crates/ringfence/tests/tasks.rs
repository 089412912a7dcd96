//! Tokio tasks instead of threads, with real processes: the feature `tokio`.

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures_util::{FutureExt, SinkExt, StreamExt, stream};
use nix::{
    libc,
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, alarm, fork},
};
use ringfence::{
    Address, AnySource, Arrival, Change, CloseReason, Error, MergedVec, PublisherEvent, listen, publish,
    tokio::{
        Channel, Listener, Merge, Publisher, Receiver, Sender, Subscription, connect, join, member, subscribe,
    },
};
use support::{
    Actor, TIME_LIMIT, assert_lost, fresh_address, message, mixed_length, report, small,
    tasks::{meet, options, run, runtimes},
    wait_for_host, wait_for_test,
};

const MESSAGES: usize = 3_000;

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    run(async {
        match role.as_str() {
            "echo" => {
                let (sender, receiver) = join(&address, &options()).await.unwrap().split();
                receiver.forward(sender).await.unwrap();
            }
            // Sends the requested messages, and reads the requested number.
            "sends twice" => {
                let mut channel = join(&address, &options()).await.unwrap();
                report("in");
                for _ in 0..2 {
                    wait_for_test();
                    channel.send(b"sent").await.unwrap();
                }
                wait_for_test();
                let mut lengths = Vec::new();
                while let Some(found) = channel.receive_vec().await.unwrap() {
                    assert!(found == message(found.len(), found.len()));
                    lengths.push(found.len().to_string());
                }
                report(lengths.join(" "));
            }
            "reads" => {
                let mut channel = join(&address, &options()).await.unwrap();
                report("in");
                wait_for_test();
                while let Some(found) = channel.receive_vec().await.transpose() {
                    if let Err(error) = found {
                        report(error.code());
                        return;
                    }
                }
                report("a clean end");
            }
            "floods" => {
                let mut channel = connect(&address, &options()).await.unwrap();
                while channel.send(b"flood").await.is_ok() {}
            }
            "agent" => {
                let mut channel = connect(&address, &options()).await.unwrap();
                while let Some(found) = channel.receive_vec().await.unwrap() {
                    channel.send(&found).await.unwrap();
                }
            }
            "member" => {
                let membership = member(&address, &options()).await.unwrap();
                let mut channel = Channel::new(membership.partner().await.unwrap()).unwrap();
                channel.send(b"hello").await.unwrap();
                assert_eq!(channel.receive_vec().await.unwrap().unwrap(), b"go");
                membership.leave().await;
                report("left");
            }
            "subscriber" => {
                let mut subscription = subscribe(&address, &options()).await.unwrap();
                report("in");
                let mut count = 0;
                while let Some(found) = subscription.next().await.transpose().unwrap() {
                    assert!(
                        found == message(count, mixed_length(count) % 700),
                        "message {count}"
                    );
                    count += 1;
                }
                report(format!("{count}, {:?}", subscription.get_ref().close_reason()));
            }
            // Reads the requested number of messages, and then the remainder.
            "late subscriber" => {
                let mut subscription = subscribe(&address, &options()).await.unwrap();
                report("in");
                let count: usize = std::io::stdin().lines().next().unwrap().unwrap().parse().unwrap();
                for _ in 0..count {
                    subscription.receive_vec().await.unwrap().unwrap();
                }
                report("read");
                let mut lengths = Vec::new();
                while let Some(found) = subscription.receive_vec().await.unwrap() {
                    lengths.push(found.len().to_string());
                }
                report(lengths.join(" "));
            }
            "publisher" => {
                let publisher = publish(&address, &small().capacity(16 << 10)).unwrap();
                let mut publisher = Publisher::new(publisher).unwrap();
                report("publishes");
                wait_for_test();
                publisher.send(b"tick").await.unwrap();
                report("sent");
                wait_for_test();
            }
            other => panic!("no role {other}"),
        }
    });
}

async fn exchange(mut sender: Sender, mut receiver: Receiver) {
    let sending = tokio::spawn(async move {
        for number in 0..MESSAGES {
            sender.send(&message(number, mixed_length(number))).await.unwrap();
        }
        sender.end();
        sender
    });
    for number in 0..MESSAGES {
        let found = receiver.receive_vec().await.unwrap().expect("a message");
        assert!(found == message(number, mixed_length(number)), "message {number}");
    }
    assert_eq!(receiver.receive_vec().await.unwrap(), None);
    sending.await.unwrap();
}

#[test]
fn both_halves_wait_on_one_line_in_two_tasks() {
    for runtime in runtimes() {
        runtime.block_on(async {
            let (actor, channel) = meet("echo").await;
            let (sender, receiver) = channel.split();
            let finished = tokio::time::timeout(TIME_LIMIT, exchange(sender, receiver)).await;
            finished.expect("both halves finish");
            actor.finish();
        });
    }
}

#[test]
fn halves_can_be_polled_in_two_runtimes() {
    let [one, other] = runtimes();
    let (actor, channel) = other.block_on(meet("echo"));
    let (mut sender, mut receiver) = channel.split();
    // The line is watched by a runtime that keeps running, on its own threads.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            one.block_on(async {
                for number in 0..MESSAGES {
                    sender.feed(message(number, mixed_length(number))).await.unwrap();
                }
                SinkExt::<&[u8]>::close(&mut sender).await.unwrap();
            });
        });
        other.block_on(async {
            let mut number = 0;
            while let Some(found) = receiver.next().await.transpose().unwrap() {
                assert!(found == message(number, mixed_length(number)), "message {number}");
                number += 1;
            }
            assert_eq!(number, MESSAGES);
        });
    });
    actor.finish();
}

#[test]
fn dropped_futures_lose_nothing() {
    run(async {
        let (mut actor, channel) = meet("sends twice").await;
        actor.expect("in");
        let (mut sender, mut receiver) = channel.split();
        for _ in 0..100 {
            assert!(receiver.receive(&mut [0; 8]).now_or_never().is_none());
        }
        for _ in 0..2 {
            assert!(receiver.receive_vec().now_or_never().is_none());
            assert!(receiver.wait_readable().now_or_never().is_none());
            actor.proceed();
            assert!(receiver.wait_readable().await.unwrap());
            assert_eq!(receiver.receive_vec().await.unwrap().unwrap(), b"sent");
        }
        let mut sent = Vec::new();
        while sender.send(&message(500, 500)).now_or_never().is_some() {
            sent.push("500");
        }
        assert_eq!(sender.get_ref().under_way(), None);
        assert!(sender.room(500).now_or_never().is_none());
        actor.proceed();
        sender.room(500).await.unwrap();
        // A message in fragments is the exception.
        let long = message(60_000, 60_000);
        sender.room(60_000).await.unwrap();
        if sender.send(&long).now_or_never().is_none() {
            assert!(sender.get_ref().under_way().is_some());
            let other = sender.send(b"another").await;
            assert!(matches!(other, Err(Error::InvalidArgument(_))), "{other:?}");
            sender.send_rest(&long).await.unwrap();
        }
        sent.push("60000");
        sender.end();
        actor.expect(&sent.join(" "));
        actor.finish();
    });
}

#[test]
fn both_waiting_halves_detect_a_killed_peer() {
    run(async {
        let (mut actor, channel) = meet("sends twice").await;
        actor.expect("in");
        let (mut sender, mut receiver) = channel.split();
        let waiting = [
            tokio::spawn(async move {
                let error = loop {
                    if let Err(error) = sender.send(&[0; 1000]).await {
                        break error;
                    }
                };
                assert!(matches!(error, Error::PeerLost(_)), "{error}");
            }),
            tokio::spawn(async move {
                assert_lost(receiver.next().await.transpose());
                assert!(receiver.next().await.is_none());
            }),
        ];
        actor.kill();
        for waits in waiting {
            waits.await.unwrap();
        }
    });
}

#[test]
fn busy_receiver_yields_to_other_tasks() {
    let [runtime, _] = runtimes();
    let (address, _keep) = fresh_address(false);
    runtime.block_on(async {
        let listener = Listener::new(listen(&address, &options()).unwrap()).unwrap();
        let _actor = Actor::start("floods", &[&address.to_string()]);
        let Arrival::Accepted(channel) = listener.accept().await.unwrap() else {
            panic!("refused");
        };
        let mut channel = Channel::new(channel).unwrap();
        let ran = Arc::new(AtomicBool::new(false));
        let other = Arc::clone(&ran);
        tokio::spawn(async move { other.store(true, Ordering::Relaxed) });
        while !ran.load(Ordering::Relaxed) {
            // This makes it always find a message, however slow the peer is.
            let receiver = channel.get_mut().receiver();
            assert!(
                receiver
                    .wait_readable(Some(std::time::Instant::now() + TIME_LIMIT))
                    .unwrap()
            );
            assert_eq!(channel.receive_vec().await.unwrap().unwrap(), b"flood");
        }
    });
}

#[test]
fn each_waiting_task_gets_an_arrival() {
    let (address, _keep) = fresh_address(false);
    run(async {
        let listener = Arc::new(Listener::new(listen(&address, &options()).unwrap()).unwrap());
        assert!(listener.accept().now_or_never().is_none());
        let accepting: Vec<_> = (0..3)
            .map(|_| {
                let listener = Arc::clone(&listener);
                tokio::spawn(async move { listener.accept().await.unwrap() })
            })
            .collect();
        let agents: Vec<_> = (0..3)
            .map(|_| Actor::start("agent", &[&address.to_string()]))
            .collect();
        for accepted in accepting {
            let Arrival::Accepted(channel) = accepted.await.unwrap() else {
                panic!("refused");
            };
            let mut channel = Channel::new(channel).unwrap();
            channel.send(b"there and back").await.unwrap();
            assert_eq!(channel.receive_vec().await.unwrap().unwrap(), b"there and back");
        }
        agents.into_iter().for_each(Actor::finish);
        let mut listener = Arc::into_inner(listener).unwrap();
        listener.get_ref().close(ringfence::Channels::Keep);
        assert!(listener.next().await.is_none());
    });
}

#[test]
fn dropped_join_is_cancelled() {
    let (address, _keep) = fresh_address(false);
    run(async {
        let waiting = tokio::spawn({
            let address = address.clone();
            async move { join(&address, &options()).await }
        });
        let address = tokio::task::spawn_blocking(move || {
            wait_for_host(&address);
            address
        });
        let address = address.await.unwrap();
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        // It gets the address once the other owner has released it.
        let listener = tokio::task::spawn_blocking(move || listen(&address, &options().wait(true)));
        listener.await.unwrap().unwrap();
    });
}

#[test]
fn dropped_join_leaves_the_address_to_the_next() {
    for is_path in [false, true] {
        let (address, _keep) = fresh_address(is_path);
        let options = options();
        run(async {
            for _ in 0..100 {
                let listens = tokio::task::spawn_blocking({
                    let address = address.clone();
                    move || wait_for_host(&address)
                });
                tokio::select! {
                    joined = join(&address, &options) => panic!("{joined:?}"),
                    listens = listens => listens.unwrap(),
                }
            }
        });
    }
}

#[test]
fn member_waits_for_partners() {
    let (address, _keep) = fresh_address(false);
    run(async {
        let mut membership = member(&address, &options()).await.unwrap();
        let actor = Actor::start("member", &[&address.to_string()]);
        let channel = loop {
            if let Change::Channel(channel) = membership.next().await.unwrap() {
                break channel;
            }
        };
        let mut channel = Channel::new(channel).unwrap();
        assert_eq!(channel.receive_vec().await.unwrap().unwrap(), b"hello");
        channel.send(b"go").await.unwrap();
        assert_eq!(channel.receive_vec().await.unwrap(), None);
        actor.expect("left");
        actor.finish();
        assert!(StreamExt::next(&mut membership).now_or_never().is_none());
        membership.leave().await;
    });
}

#[test]
fn publisher_and_subscribers_wait_as_tasks() {
    let (address, _keep) = fresh_address(false);
    run(async {
        let options = small().capacity(16 << 10).stall(TIME_LIMIT);
        let publisher = Publisher::new(publish(&address, &options).unwrap()).unwrap();
        let actors: Vec<_> = (0..3)
            .map(|_| Actor::start("subscriber", &[&address.to_string()]))
            .collect();
        for actor in &actors {
            actor.expect("in");
            assert!(matches!(
                publisher.next().await.unwrap(),
                PublisherEvent::Subscriber(_)
            ));
        }
        let (mut sender, mut audience) = publisher.split();
        let messages = (0..MESSAGES).map(|number| Ok(message(number, mixed_length(number) % 700)));
        sender.send_all(&mut stream::iter(messages)).await.unwrap();
        SinkExt::<&[u8]>::close(&mut sender).await.unwrap();
        for actor in actors {
            actor.expect(&format!("{MESSAGES}, Some(Closed)"));
            actor.finish();
        }
        let mut gone = 0;
        while let Some(event) = StreamExt::next(&mut audience).await {
            assert!(matches!(
                event.unwrap(),
                PublisherEvent::Gone(_, CloseReason::Closed)
            ));
            gone += 1;
        }
        assert_eq!(gone, 3);
    });
}

#[test]
fn publisher_sink_sends_exactly_the_accepted_items() {
    let (address, _keep) = fresh_address(false);
    run(async {
        let options = small().capacity(16 << 10).stall(TIME_LIMIT);
        let publisher = Publisher::new(publish(&address, &options).unwrap()).unwrap();
        let mut actor = Actor::start("late subscriber", &[&address.to_string()]);
        actor.expect("in");
        publisher.next().await.unwrap();
        let (mut sender, _audience) = publisher.split();
        // Fill the ring, and put one more message into the sink.
        let mut count = 0;
        while SinkExt::<&[u8]>::flush(&mut sender).now_or_never().is_some() {
            sender.feed([0; 1000]).await.unwrap();
            count += 1;
        }
        assert!(sender.send(b"cancelled").now_or_never().is_none());
        assert!(sender.feed(b"cancelled").now_or_never().is_none());
        actor.send_line(&(count - 1).to_string());
        actor.expect("read");
        let reserved = loop {
            if let Some(reserved) = sender.get_mut().reserve_detached(8).unwrap() {
                break reserved;
            }
            tokio::task::yield_now().await;
        };
        let flushed = SinkExt::<&[u8]>::flush(&mut sender).await;
        assert!(matches!(flushed, Err(Error::InvalidArgument(_))), "{flushed:?}");
        drop(reserved);
        let refused = sender.feed([0; 5000]).await;
        assert!(
            matches!(refused, Err(Error::MessageTooLarge { .. })),
            "{refused:?}"
        );
        SinkExt::send(&mut sender, [0; 7]).await.unwrap();
        sender.send(&[0; 8]).await.unwrap();
        SinkExt::<&[u8]>::close(&mut sender).await.unwrap();
        actor.expect("1000 7 8");
        actor.finish();
    });
}

#[test]
fn close_that_drops_a_sink_item_is_no_clean_end() {
    run(async {
        for keeps in [true, false] {
            let (mut actor, channel) = meet("reads").await;
            actor.expect("in");
            let (mut sender, _receiver) = channel.split();
            if keeps {
                while SinkExt::<&[u8]>::flush(&mut sender).now_or_never().is_some() {
                    sender.feed([0; 1000]).await.unwrap();
                }
            }
            sender.close();
            actor.proceed();
            actor.expect(if keeps { "PEER_LOST" } else { "a clean end" });
            actor.finish();
        }
    });
}

#[test]
fn waiting_subscription_detects_a_killed_publisher() {
    let (address, _keep) = fresh_address(false);
    run(async {
        let mut actor = Actor::start("publisher", &[&address.to_string()]);
        actor.expect("publishes");
        let mut subscription = subscribe(&address, &options()).await.unwrap();
        assert!(subscription.receive_vec().now_or_never().is_none());
        actor.proceed();
        assert_eq!(subscription.receive_vec().await.unwrap().unwrap(), b"tick");
        actor.expect("sent");
        let waiting = tokio::spawn(async move { (subscription.receive_vec().await, subscription) });
        actor.kill();
        let (found, subscription): (_, Subscription) = waiting.await.unwrap();
        assert_lost(found);
        assert_eq!(subscription.get_ref().close_reason(), Some(CloseReason::Lost));
    });
}

#[test]
fn merge_waits_for_all_sources() {
    let (address, _keep) = fresh_address(false);
    run(async {
        let mut publisher = Actor::start("publisher", &[&address.to_string()]);
        publisher.expect("publishes");
        let (mut sender_actor, channel) = meet("sends twice").await;
        sender_actor.expect("in");
        let mut merge = Merge::new(ringfence::Merge::<AnySource>::new().unwrap()).unwrap();
        let (_sender, receiver) = channel.into_inner().split();
        let ticks = subscribe(&address, &options()).await.unwrap().into_inner();
        let pair = merge.get_mut().add(receiver.into()).unwrap();
        let ticks = merge.get_mut().add(ticks.into()).unwrap();
        for (actor, from, bytes) in [(&mut sender_actor, pair, "sent"), (&mut publisher, ticks, "tick")] {
            assert!(merge.receive(&mut [0; 8]).now_or_never().is_none());
            actor.proceed();
            let bytes = bytes.into();
            assert_eq!(
                merge.receive_vec().await.unwrap(),
                Some(MergedVec::Message { from, bytes })
            );
        }
        for (actor, from) in [(&mut sender_actor, pair), (&mut publisher, ticks)] {
            assert!(merge.next().now_or_never().is_none());
            actor.kill();
            let reason = CloseReason::Lost;
            let end = merge.next().await.transpose().unwrap();
            assert_eq!(end, Some(MergedVec::Ended { from, reason }));
        }
        assert!(merge.next().await.is_none());
    });
}

/// Runs a closure in a forked child. Returns whether the child ended well: a signal ends a child that hangs.
fn in_child(body: impl FnOnce()) -> bool {
    // SAFETY: the child calls the crate, whose locks these tests check, and exits without running anything
    // else.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => {
            let ended = waitpid(child, None).unwrap();
            println!("the child: {ended:?}");
            matches!(ended, WaitStatus::Exited(_, 0))
        }
        ForkResult::Child => {
            alarm::set(60);
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            // SAFETY: only ends the process.
            unsafe { libc::_exit(i32::from(done.is_err())) }
        }
    }
}

#[test]
fn forked_child_fails_at_once_despite_held_locks() {
    let [runtime, _] = runtimes();
    let (actor, channel) = runtime.block_on(meet("echo"));
    let (mut sender, mut receiver) = channel.split();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let done = &done;
        scope.spawn(move || {
            // Most of this time is spent holding the line's lock.
            while !done.load(Ordering::Relaxed) {
                receiver.get_mut().poll_line().unwrap();
            }
        });
        let all_passed = (0..50).all(|_| {
            in_child(|| {
                let room = sender.room(8).now_or_never();
                assert!(matches!(room, Some(Err(Error::Closed(_)))), "{room:?}");
            })
        });
        done.store(true, Ordering::Relaxed);
        assert!(all_passed);
    });
    drop(sender);
    actor.finish();
}

#[test]
fn child_dropping_a_channel_keeps_the_parents_loop() {
    let [runtime, _] = runtimes();
    runtime.block_on(async {
        let (actor, channel) = meet("echo").await;
        let mut inherited = Some(channel);
        assert!(in_child(|| drop(inherited.take())));
        let mut channel = inherited.unwrap();
        for _ in 0..3 {
            channel.send(b"there and back").await.unwrap();
            let back = tokio::time::timeout(TIME_LIMIT, channel.receive_vec());
            assert_eq!(
                back.await.expect("the runtime is woken").unwrap().unwrap(),
                b"there and back"
            );
        }
        drop(channel);
        actor.finish();
    });
}

/// The call belongs to the parent. The child can itself be its partner.
#[test]
fn child_dropping_a_pending_join_can_use_its_address() {
    for is_path in [false, true] {
        let (address, _keep) = fresh_address(is_path);
        // No wait for the inherited call ends before a signal ends the child.
        let options = options().handshake_timeout(TIME_LIMIT * 10);
        run(async {
            let mut joining = Some(Box::pin(join(&address, &options)));
            assert!(joining.as_mut().unwrap().now_or_never().is_none());
            wait_for_host(&address);
            let has_joined = tokio::task::block_in_place(|| {
                in_child(|| {
                    drop(joining.take());
                    let [runtime, _] = runtimes();
                    let mut channel = runtime.block_on(join(&address, &options)).unwrap();
                    runtime.block_on(channel.send(b"child")).unwrap();
                })
            });
            assert!(has_joined);
            let mut channel = joining.unwrap().await.unwrap();
            assert_eq!(channel.receive_vec().await.unwrap().unwrap(), b"child");
        });
    }
}
