//! Calls with a deadline, messages in memory of their own, and the classification of errors.

mod support;

use std::{
    error, io,
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ringfence::{
    Address, AnySource, Arrival, Channel, CloseReason, Error, ErrorKind, Merge, MergedVec, Progress, connect,
    join, listen, publish, subscribe,
};
use support::{Actor, TIME_LIMIT, fresh_address, join_later, report, small, wait_for_host, wait_for_test};

/// Size of a message that is sent in fragments through a ring of 4 MiB.
const LONG: usize = 8 << 20;

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    let options = small().max_message_size(1 << 16);
    match role.as_str() {
        "limited memory" => receive_with_limited_memory(&address),
        // On command, reads all that is there.
        "reads" => {
            let (_sender, mut receiver) = join(&address, &options).unwrap().split();
            wait_for_test();
            report(read_all(|| receiver.receive_vec()));
        }
        "subscribes" => {
            let mut subscription = subscribe(&address, &options).unwrap();
            let late = subscription.receive_vec_until(soon());
            assert!(matches!(late, Err(Error::TimedOut)));
            report("in");
            wait_for_test();
            report(read_all(|| subscription.receive_vec_until(far())));
            assert_eq!(subscription.try_receive_vec().unwrap(), None);
        }
        "sends" => {
            let mut sender = join(&address, &options).unwrap().split().0;
            wait_for_test();
            for length in &arguments[1..] {
                let message = message(length.parse().unwrap());
                sender.send_until(&message, far()).unwrap();
            }
            sender.end();
            wait_for_test();
        }
        "publishes" => {
            let mut publisher = publish(&address, &small().capacity(16 << 10)).unwrap();
            report("publishes");
            wait_for_test();
            publisher.send(&message(4)).unwrap();
            publisher.end();
            wait_for_test();
        }
        "agent" => {
            let _channel = connect(&address, &small()).unwrap();
            wait_for_test();
        }
        other => panic!("no role {other}"),
    }
}

/// Reads all messages, checks them, and returns their lengths.
fn read_all(mut next: impl FnMut() -> ringfence::Result<Option<Vec<u8>>>) -> String {
    let mut lengths = Vec::new();
    while let Some(found) = next().unwrap() {
        assert!(found == message(found.len()));
        assert_eq!(found.capacity(), found.len());
        lengths.push(found.len().to_string());
    }
    lengths.join(" ")
}

/// Starts another process in a role, at the other end of a channel.
fn meet(role: &str, arguments: &[&str]) -> (Actor, Channel) {
    let (address, _keep) = fresh_address(false);
    let name = address.to_string();
    let arguments = [&[name.as_str()], arguments].concat();
    let host = join_later(&address, &small().max_message_size(1 << 16));
    wait_for_host(&address);
    let actor = Actor::start(role, &arguments);
    (actor, host.join().unwrap().unwrap())
}

fn message(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

/// Returns a deadline that passes, however loaded the machine is.
fn soon() -> Instant {
    Instant::now() + Duration::from_millis(20)
}

fn far() -> Instant {
    Instant::now() + TIME_LIMIT
}

#[test]
fn timed_out_send_sends_nothing_of_a_short_message() {
    let (mut actor, channel) = meet("reads", &[]);
    let (mut sender, _receiver) = channel.split();
    let mut sent = Vec::new();
    while sender.try_send(&message(500)).unwrap() {
        sent.push("500");
    }
    let late = sender.send_until(&message(501), soon());
    assert!(matches!(late, Err(Error::TimedOut)));
    assert_eq!(sender.under_way(), None);
    sender.end();
    actor.proceed();
    actor.expect(&sent.join(" "));
    actor.finish();
}

#[test]
fn timed_out_send_of_a_long_message_can_be_resumed() {
    let (mut actor, channel) = meet("reads", &[]);
    let (mut sender, _receiver) = channel.split();
    let long = message(30_000);
    assert!(matches!(sender.send_until(&long, soon()), Err(Error::TimedOut)));
    let mut written = sender.under_way().expect("the beginning found room");
    assert!(matches!(
        sender.send_until(b"another", far()),
        Err(Error::InvalidArgument(_))
    ));
    actor.proceed();
    while let Progress::Part(bytes) = sender.send_part(&long, written).unwrap() {
        written = bytes;
        assert!(sender.wait(long.len(), Some(far())).unwrap());
    }
    sender.end();
    actor.expect("30000");
    actor.finish();
}

#[test]
fn receive_vec_allocates_exactly_the_message() {
    let (mut actor, channel) = meet("sends", &["0", "1", "700", "30000", "8"]);
    let (_sender, mut receiver) = channel.split();
    assert_eq!(receiver.try_receive_vec().unwrap(), None);
    assert!(matches!(receiver.receive_vec_until(soon()), Err(Error::TimedOut)));
    actor.proceed();
    assert_eq!(read_all(|| receiver.receive_vec()), "0 1 700 30000 8");
    actor.proceed();
    actor.finish();
}

/// Receives each of two messages once the limit is lifted. Before the second call, the whole message has
/// arrived and was assembled.
fn receive_with_limited_memory(address: &Address) {
    let options = small().capacity(4 << 20);
    let mut receiver = join(address, &options).unwrap().split().1;
    let (soft, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
    for (length, room) in [(1 << 20, 1 << 19), (LONG, 3 * LONG / 2)] {
        // Everything that fits the ring at once is there.
        report("ready");
        wait_for_test();
        let limit = address_space() + room as u64;
        setrlimit(Resource::RLIMIT_AS, limit, hard).unwrap();
        let refused = receiver.receive_vec_until(far()).map(|found| found.is_some());
        setrlimit(Resource::RLIMIT_AS, soft, hard).unwrap();
        assert_eq!(refused.map_err(|error| error.kind()), Err(ErrorKind::NoSpace));
        assert!(receiver.receive_vec_until(far()).unwrap().expect("a message") == message(length));
    }
    report("received");
}

/// Returns the size of this process's address space in bytes.
fn address_space() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages = statm
        .split(' ')
        .next()
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("a number of pages") * 4096
}

#[test]
fn message_is_kept_if_memory_runs_out() {
    let (address, _keep) = fresh_address(false);
    let mut itself = Command::new(std::env::current_exe().unwrap());
    // Each further arena of the C library would reserve 64 MiB of address space, which the limit does not
    // take away.
    itself.env("MALLOC_ARENA_MAX", "1");
    let mut actor = Actor::run(itself, "limited memory", &[&address.to_string()]);
    wait_for_host(&address);
    let options = small().capacity(4 << 20);
    let mut sender = join(&address, &options).unwrap().split().0;
    for length in [1 << 20, LONG] {
        actor.expect("ready");
        // The long message is under way at the same time.
        let long = message(length);
        let Progress::Part(mut written) = sender.send_part(&long, 0).unwrap() else {
            actor.proceed();
            continue;
        };
        actor.proceed();
        while let Progress::Part(bytes) = sender.send_part(&long, written).unwrap() {
            written = bytes;
            assert!(sender.wait(length, Some(far())).unwrap());
        }
    }
    actor.expect("received");
    actor.finish();
}

#[test]
fn timed_out_accept_loses_no_arrival() {
    let (address, _keep) = fresh_address(false);
    let listener = listen(&address, &small()).unwrap();
    assert!(matches!(listener.accept_until(soon()), Err(Error::TimedOut)));
    let mut agent = Actor::start("agent", &[&address.to_string()]);
    match listener.accept_until(far()).unwrap() {
        Arrival::Accepted(channel) => assert_eq!(channel.peer().pid, agent.pid()),
        other => panic!("{other:?}"),
    }
    agent.proceed();
    agent.finish();
}

#[test]
fn publisher_and_subscription_support_deadlines_and_vecs() {
    let (address, _keep) = fresh_address(false);
    let mut publisher = publish(&address, &small().capacity(16 << 10).stall(TIME_LIMIT)).unwrap();
    let mut actor = Actor::start("subscribes", &[&address.to_string()]);
    actor.expect("in");
    let mut sent = Vec::new();
    while publisher.try_send(&message(700)).unwrap() {
        sent.push("700");
    }
    let late = publisher.send_until(&message(701), soon());
    assert!(matches!(late, Err(Error::TimedOut)));
    publisher.end();
    actor.proceed();
    actor.expect(&sent.join(" "));
    actor.finish();
}

#[test]
fn merge_supports_deadlines_and_vecs() {
    let (mut sends, channel) = meet("sends", &["30000"]);
    let (address, _keep) = fresh_address(false);
    let mut publishes = Actor::start("publishes", &[&address.to_string()]);
    publishes.expect("publishes");
    let mut merge: Merge<AnySource> = Merge::new().unwrap();
    let pair = merge.add(channel.split().1.into()).unwrap();
    let ticks = merge.add(subscribe(&address, &small()).unwrap().into()).unwrap();
    assert!(matches!(
        merge.receive_until(&mut [], soon()),
        Err(Error::TimedOut)
    ));
    assert_eq!(merge.try_receive_vec().unwrap(), None);
    for (actor, from, length) in [(&mut sends, pair, 30_000), (&mut publishes, ticks, 4)] {
        actor.proceed();
        let (bytes, found) = (message(length), merge.receive_vec().unwrap());
        assert!(found == Some(MergedVec::Message { from, bytes }), "{length}");
        let reason = CloseReason::Closed;
        let end = merge.receive_vec().unwrap();
        assert_eq!(end, Some(MergedVec::Ended { from, reason }));
    }
    assert_eq!(merge.receive_vec().unwrap(), None);
    for mut actor in [sends, publishes] {
        actor.proceed();
        actor.finish();
    }
}

#[test]
fn error_kinds_map_to_codes_and_io_errors() {
    let no_service = || connect(&fresh_address(false).0, &small()).unwrap_err();
    let no_directory = || connect(&"/no/such/directory/socket".parse().unwrap(), &small()).unwrap_err();
    let no_address = || "".parse::<Address>().unwrap_err();
    let cases = [
        (
            no_service(),
            ErrorKind::PeerLost,
            "PEER_LOST",
            io::ErrorKind::ConnectionReset,
        ),
        (
            no_directory(),
            ErrorKind::AddressInvalid,
            "ADDRESS_INVALID",
            io::ErrorKind::NotFound,
        ),
        (
            no_address(),
            ErrorKind::AddressInvalid,
            "ADDRESS_INVALID",
            io::ErrorKind::InvalidInput,
        ),
        (
            Error::TimedOut,
            ErrorKind::TimedOut,
            "TIMED_OUT",
            io::ErrorKind::TimedOut,
        ),
        (
            Error::Aborted,
            ErrorKind::Aborted,
            "ABORTED",
            io::ErrorKind::Other,
        ),
        (
            Error::Closed("it is"),
            ErrorKind::Closed,
            "CLOSED",
            io::ErrorKind::BrokenPipe,
        ),
    ];
    for (error, kind, code, io_kind) in cases {
        assert_eq!((error.kind(), error.code(), kind.as_str()), (kind, code, code));
        let text = error.to_string();
        let error = io::Error::from(error);
        assert_eq!((error.kind(), error.to_string()), (io_kind, text));
        let own = error
            .get_ref()
            .and_then(<dyn error::Error + Send + Sync>::downcast_ref::<Error>);
        assert_eq!(own.map(Error::kind), Some(kind));
    }
}
