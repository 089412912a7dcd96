//! Heavy traffic in both directions, with every way to wait.

mod support;

use std::{
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ringfence::{Address, Channel, Error, Options, Packed, Progress, Receiver, Sender, join};
use support::{
    Actor, TIME_LIMIT, fresh_address, join_later, message, mixed_length, report, small, wait_for_host,
    wait_for_test,
};

const MIXED_COUNT: usize = 20_000;
const LARGE: usize = 16 << 20;

/// Sends and receives concurrently, on two threads, and checks every byte.
fn exchange(channel: Channel, messages: usize, length: fn(usize) -> usize) {
    let (mut sender, mut receiver) = channel.split();
    thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..messages {
                sender.send(&message(number, length(number))).unwrap();
            }
            sender.end();
        });
        let mut into = vec![0; receiver.max_message_size().try_into().unwrap()];
        for number in 0..messages {
            let found = receiver.receive(&mut into).unwrap().expect("a message");
            assert!(
                into[..found] == message(number, length(number)),
                "message {number}"
            );
        }
        assert_eq!(receiver.receive(&mut into).unwrap(), None);
    });
}

fn large_options() -> Options {
    small().capacity(64 << 10).max_message_size(LARGE as u64)
}

fn mixed_options() -> Options {
    small().max_message_size(1 << 16)
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    let echo = |options: Options| {
        let (mut sender, mut receiver) = join(&address, &options).unwrap().split();
        let mut into = vec![0; 1 << 16];
        while let Some(length) = receiver.receive(&mut into).unwrap() {
            match sender.send(&into[..length]) {
                Ok(()) => {}
                // The peer does not wait for this answer.
                Err(Error::PeerLost(_)) => return,
                Err(error) => panic!("{error}"),
            }
        }
    };
    match role.as_str() {
        "mixed sizes" => exchange(
            join(&address, &mixed_options()).unwrap(),
            MIXED_COUNT,
            mixed_length,
        ),
        "large" => exchange(join(&address, &large_options()).unwrap(), 2, |_| LARGE),
        "echo" => echo(small()),
        "busy echo" => echo(small().busy_poll(Duration::from_micros(50))),
        "small limits" => {
            let options = small().capacity(5000).max_message_size(1000);
            let mut channel = join(&address, &options).unwrap();
            report(format!(
                "{} {}",
                channel.sender().capacity(),
                channel.sender().max_message_size()
            ));
            wait_for_test();
        }
        "partial" => {
            let (mut sender, receiver) = join(&address, &small()).unwrap().split();
            let message = message(1, 100_000);
            // As much as the ring holds.
            let Progress::Part(mut written) = sender.send_part(&message, 0).unwrap() else {
                panic!("the message does not fit");
            };
            report("partial sent");
            wait_for_test();
            while let Progress::Part(so_far) = sender.send_part(&message, written).unwrap() {
                written = so_far;
                sender.wait(message.len(), None).unwrap();
            }
            sender.send(b"after").unwrap();
            wait_for_test();
            drop(receiver);
        }
        "late" => {
            let mut channel = join(&address, &small()).unwrap();
            wait_for_test();
            channel.sender().send(b"late").unwrap();
            wait_for_test();
            // Finally reads.
            while channel.receiver().try_receive(&mut [0; 4096]).unwrap().is_some() {}
            wait_for_test();
        }
        other => unreachable!("{other}"),
    }
}

fn meet(role: &str, options: &Options) -> (Actor, Channel) {
    let (address, _keep) = fresh_address(false);
    let host = join_later(&address, options);
    wait_for_host(&address);
    let actor = Actor::start(role, &[&address.to_string()]);
    (actor, host.join().unwrap().expect("a channel"))
}

#[test]
fn both_directions_carry_mixed_sizes_concurrently() {
    let (other, channel) = meet("mixed sizes", &mixed_options());
    exchange(channel, MIXED_COUNT, mixed_length);
    other.finish();
}

#[test]
fn messages_much_larger_than_the_ring_pass_both_ways() {
    let (other, channel) = meet("large", &large_options());
    exchange(channel, 2, |_| LARGE);
    other.finish();
}

#[test]
fn sleeping_peer_answers_ten_thousand_requests() {
    let (other, channel) = meet("echo", &small());
    request_each(channel, 10_000);
    other.finish();
}

#[test]
fn busy_polling_peer_answers_every_request() {
    let (other, channel) = meet("busy echo", &small().busy_poll(Duration::from_micros(50)));
    request_each(channel, 2000);
    other.finish();
}

/// Sends this many requests, each after the previous one has been echoed.
fn request_each(channel: Channel, count: u64) {
    let (mut sender, mut receiver) = channel.split();
    for number in 0..count {
        sender.send(&number.to_le_bytes()).unwrap();
        let mut answer = [0; 8];
        assert_eq!(receiver.receive(&mut answer).unwrap(), Some(8));
        assert_eq!(answer, number.to_le_bytes());
    }
}

/// Polls the line as an event loop does.
fn poll_line(line: &impl AsFd) {
    let mut polled = [PollFd::new(line.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(TIME_LIMIT).unwrap();
    assert!(poll(&mut polled, timeout).unwrap() > 0, "the peer sent no wakeup");
}

#[test]
fn event_loop_on_the_line_misses_nothing() {
    fn send(sender: &mut Sender, message: &[u8]) {
        while !sender.try_send(message).unwrap() {
            if sender.arm(message.len()).unwrap() {
                poll_line(sender);
                sender.poll_line();
                sender.disarm();
            }
        }
    }

    fn receive(receiver: &mut Receiver, into: &mut [u8]) -> Option<usize> {
        loop {
            if let Some(length) = receiver.try_receive(into).unwrap() {
                return Some(length);
            }
            if receiver.is_ended().unwrap() {
                return None;
            }
            if receiver.arm().unwrap() {
                poll_line(receiver);
                receiver.poll_line().unwrap();
                receiver.disarm();
            }
        }
    }

    let (other, channel) = meet("echo", &small());
    let (mut sender, mut receiver) = channel.split();
    let mut into = [0; 2000];
    for round in 0..2000 {
        // The messages fill a good part of both rings, so that both sides sometimes wait for room.
        for number in 0..round % 6 {
            send(&mut sender, &message(number, 600));
        }
        for number in 0..round % 6 {
            assert_eq!(receive(&mut receiver, &mut into), Some(600));
            assert!(into[..600] == message(number, 600));
        }
    }
    sender.end();
    assert_eq!(receive(&mut receiver, &mut into), None);
    other.finish();
}

#[test]
fn timed_out_wait_loses_nothing() {
    let (mut other, channel) = meet("late", &small());
    let (mut sender, mut receiver) = channel.split();
    let soon = || Instant::now() + Duration::from_millis(20);
    let mut into = [0; 8];
    assert!(matches!(
        receiver.receive_until(&mut into, soon()),
        Err(Error::TimedOut)
    ));
    assert!(matches!(
        receiver.wait_readable(Some(soon())),
        Err(Error::TimedOut)
    ));
    other.proceed();
    let far = Instant::now() + TIME_LIMIT;
    assert_eq!(receiver.receive_until(&mut into, far).unwrap(), Some(4));
    assert_eq!(&into[..4], b"late");

    while sender.try_send(&[1; 500]).unwrap() {}
    assert!(!sender.wait(500, Some(soon())).unwrap());
    assert!(!sender.has_room(500).unwrap());
    other.proceed();
    assert!(sender.wait(500, Some(far)).unwrap());
    assert!(sender.try_send(&[1; 500]).unwrap());
    other.proceed();
    other.finish();
}

#[test]
fn message_started_by_one_call_is_finished_by_another() {
    type Finish = fn(&mut Receiver) -> Vec<u8>;
    let ways: [Finish; 3] = [
        |receiver| {
            let mut into = vec![0; receiver.next_size().unwrap().expect("under way")];
            while receiver.receive_part(&mut into).unwrap() != Progress::Whole {
                receiver.wait_readable(None).unwrap();
            }
            into
        },
        |receiver| {
            let mut found = Vec::new();
            while receiver
                .receive_each(|message| found = message.to_vec(), 1)
                .unwrap()
                == 0
            {
                receiver.wait_readable(None).unwrap();
            }
            found
        },
        |receiver| {
            let mut into = vec![0; 100_000];
            assert_eq!(receiver.receive(&mut into).unwrap(), Some(100_000));
            into
        },
    ];
    for finish in ways {
        let (mut other, channel) = meet("partial", &small());
        let (_sender, mut receiver) = channel.split();
        other.expect("partial sent");
        let mut into = vec![0; 100_000];
        assert_eq!(receiver.try_receive(&mut into).unwrap(), None);
        assert_eq!(receiver.next_size().unwrap(), Some(100_000));
        assert_eq!(
            receiver.try_receive_packed(&mut into).unwrap(),
            Packed::Large(100_000)
        );
        let soon = Instant::now() + Duration::from_millis(5);
        assert!(matches!(
            receiver.receive_until(&mut into, soon),
            Err(Error::TimedOut)
        ));
        other.proceed();
        assert!(finish(&mut receiver) == message(1, 100_000));
        assert_eq!(receiver.receive(&mut into).unwrap(), Some(5));
        assert_eq!(&into[..5], b"after");
        other.proceed();
        other.finish();
    }
}

#[test]
fn partial_message_continues_in_the_same_buffer() {
    let (mut other, channel) = meet("partial", &small());
    let (_sender, mut receiver) = channel.split();
    other.expect("partial sent");
    let mut into = vec![0; 100_000];
    let Progress::Part(part) = receiver.receive_part(&mut into).unwrap() else {
        panic!("the message is partial");
    };
    assert!(part > 0 && part < 4096, "{part}");
    // The message would be split between two buffers.
    let mut other_buffer = vec![0; 100_000];
    for refused in [
        receiver.try_receive(&mut other_buffer).map(drop),
        receiver.receive_each(|_| {}, 1).map(drop),
        receiver.try_receive_packed(&mut other_buffer).map(drop),
    ] {
        assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{refused:?}");
    }
    other.proceed();
    receiver.wait_readable(None).unwrap();
    // A buffer that is too small neither loses nor damages the message.
    assert!(matches!(
        receiver.receive_part(&mut [0; 10]),
        Err(Error::InvalidArgument(_))
    ));
    while receiver.receive_part(&mut into).unwrap() != Progress::Whole {
        receiver.wait_readable(None).unwrap();
    }
    assert!(into == message(1, 100_000));
    other.proceed();
    other.finish();
}

#[test]
fn sender_respects_the_peers_limits() {
    let (mut other, mut channel) = meet("small limits", &small().max_message_size(3000));
    // Its ring of 5000 bytes is rounded up.
    other.expect("8192 3000");
    let sender = channel.sender();
    assert_eq!(
        (sender.capacity(), sender.max_message_size(), sender.max_at_once()),
        (4096, 1000, 1000)
    );
    let packed = [&1001_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), &[0; 1008]].concat();
    let too_large = [
        sender.send(&[0; 1001]),
        sender.try_send(&[0; 1001]).map(drop),
        sender.reserve(1001).map(drop),
        sender.try_send_packed(&packed).map(drop),
        sender.has_room(1001).map(drop),
        sender.batch().unwrap().push(&[0; 1001]).map(drop),
    ];
    for result in too_large {
        let error = result.unwrap_err();
        assert!(
            matches!(error, Error::MessageTooLarge { limit: 1000, .. }),
            "{error:?}"
        );
    }
    sender.send(&[0; 1000]).unwrap();
    other.proceed();
    other.finish();
}

#[test]
fn message_larger_than_the_buffer_is_kept() {
    let (other, channel) = meet("echo", &small());
    let (mut sender, mut receiver) = channel.split();
    for length in [600, 3000] {
        sender.send(&message(1, length)).unwrap();
        receiver.wait_readable(None).unwrap();
        assert_eq!(receiver.next_size().unwrap(), Some(length));
        assert!(matches!(
            receiver.try_receive(&mut [0; 100]),
            Err(Error::InvalidArgument(_))
        ));
        let mut into = vec![0; length];
        assert_eq!(receiver.receive(&mut into).unwrap(), Some(length));
        assert!(into == message(1, length));
    }
    drop((sender, receiver));
    other.finish();
}

#[test]
fn foreign_or_oversized_commit_is_rejected() {
    let (one, first) = meet("echo", &small());
    let (other, second) = meet("echo", &small().capacity(1 << 20));
    let ((mut first, mut answers), (mut second, receiver)) = (first.split(), second.split());
    let mut reserved = first.reserve_detached(100).unwrap().expect("room");
    // Advance far into the larger ring, beyond the size of the smaller one.
    for _ in 0..10 {
        assert!(second.try_send(&[0; 10_000]).unwrap());
    }
    let foreign = second.reserve_detached(100).unwrap().expect("room");
    assert!(matches!(
        first.commit(foreign, 100),
        Err(Error::InvalidArgument(_))
    ));
    for refused in [
        first.try_send(b"x").map(drop),
        first.send(b"x"),
        first.try_send_packed(&[]).map(drop),
        first.reserve(1).map(drop),
        first.reserve_detached(1).map(drop),
        first.batch().map(drop),
    ] {
        assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{refused:?}");
    }
    reserved.bytes()[..5].copy_from_slice(b"first");
    first.commit(reserved, 5).unwrap();
    let mut into = [0; 100];
    assert_eq!(answers.receive(&mut into).unwrap(), Some(5));
    assert_eq!(&into[..5], b"first");

    // One byte more than was reserved: nothing is sent, and the next reservation is unaffected.
    let reserved = first.reserve_detached(100).unwrap().expect("room");
    assert!(matches!(
        first.commit(reserved, 101),
        Err(Error::InvalidArgument(_))
    ));
    let reservation = first.reserve(100).unwrap().expect("room");
    assert!(matches!(reservation.commit(101), Err(Error::InvalidArgument(_))));
    let reserved = first.reserve_detached(100).unwrap().expect("room");
    first.cancel(reserved).unwrap();
    first.send(b"second").unwrap();
    assert_eq!(answers.receive(&mut into).unwrap(), Some(6));
    assert_eq!(&into[..6], b"second");

    // Reserved memory stays valid after a close, and is not sent.
    let mut reserved = first.reserve_detached(100).unwrap().expect("room");
    first.close();
    reserved.bytes().fill(7);
    assert!(matches!(first.commit(reserved, 100), Err(Error::Closed(_))));
    drop((second, receiver));
    one.finish();
    drop(other);
}

#[test]
fn calls_after_close_fail_with_closed() {
    let (other, channel) = meet("echo", &small());
    let (mut sender, mut receiver) = channel.split();
    receiver.close();
    let mut into = [0; 100];
    for closed in [
        sender.send(b"x"),
        sender.try_send(b"x").map(drop),
        sender.try_send_packed(&[]).map(drop),
        sender.reserve(1).map(drop),
        sender.reserve_detached(1).map(drop),
        sender.batch().map(drop),
        sender.has_room(1).map(drop),
        sender.wait(1, None).map(drop),
        receiver.receive(&mut into).map(drop),
        receiver.try_receive(&mut into).map(drop),
        receiver.try_receive_packed(&mut into).map(drop),
        receiver.receive_part(&mut into).map(drop),
        receiver.receive_each(|_| {}, 1).map(drop),
        receiver.next_size().map(drop),
        receiver.wait_readable(None).map(drop),
    ] {
        assert!(matches!(closed, Err(Error::Closed(_))), "{closed:?}");
    }
    // Calling them twice has no further effect.
    sender.end();
    sender.close();
    receiver.close();
    other.finish();
}
