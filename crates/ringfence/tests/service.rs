//! One service and its clients: each is served, none delays another, and every end is reported.

mod support;

use std::{
    collections::HashMap,
    fs,
    io::Read,
    iter,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use memmap2::MmapMut;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ringfence::{
    Address, Arrival, CancelToken, Channel, Channels, CloseReason, Error, Listener, Outcome, Policy, Refused,
    Role, connect, join, listen,
};
use support::{
    Actor, OTHER_UID, OtherUsers, TIME_LIMIT, accepted, address_in, assert_lost, fresh_address, join_later,
    refused, report, small, threads_named, wait_for_host, wait_for_test, wire,
};

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address = || address_in(&arguments);
    match role.as_str() {
        "agent" | "any agent" => as_agent(role.as_str(), &arguments),
        "refuses for shortage" => as_refuses_for_shortage(&arguments),
        "sequential clients" => as_sequential_clients(&arguments),
        "limited threads" => as_limited_threads(&arguments),
        "patient agent" => {
            let channel = connect(&address(), &small().wait(true)).unwrap();
            report("in");
            echo(channel);
        }
        "agents" => as_agents(&arguments),
        "concurrent connects" => as_concurrent_connects(&arguments),
        // Connects, and sends nothing.
        "silent" => {
            let count: usize = arguments[1].parse().unwrap();
            let streams: Vec<_> = (0..count).map(|_| wire::connect(&arguments[0])).collect();
            report("silent");
            wait_for_test();
            drop(streams);
        }
        "thousand clients" => serve_thousand_clients(),
        "stop at" => wire::guest_for(wire::SERVICE, &arguments[0], &arguments[1], false, || {
            report("there");
            wait_for_test();
        }),
        "join" => match join(&address(), &small()) {
            Ok(_) => report("in"),
            Err(error) => report(format!("{} {error}", error.code())),
        },
        "service" => as_service(&arguments),
        "greedy" => as_greedy(&arguments),
        "connects" => as_connects(&arguments),
        "closes during authorize" => as_closes_during_authorize(&arguments),
        other => unreachable!("{other}"),
    }
}

/// Connects, and answers until the service ends the channel.
fn as_agent(role: &str, arguments: &[String]) {
    let options = match role {
        "agent" => small(),
        _ => small().policy(Policy::new().any_executable().uids([0])),
    };
    match connect(&address_in(arguments), &options) {
        Ok(channel) => {
            report(format!("{} of {}", channel.role(), channel.peer().uid));
            echo(channel);
            report("over");
        }
        Err(error) => {
            let by_peer = error.refusal().is_some_and(|refusal| refusal.by_peer);
            report(format!("{} by peer: {by_peer} {error}", error.code()));
        }
    }
}

/// Reports to two clients at its address that it cannot continue.
fn as_refuses_for_shortage(arguments: &[String]) {
    let listener = wire::listen(&arguments[0]);
    report("listening");
    for _ in 0..2 {
        let (mut stream, _) = listener.accept().unwrap();
        let texts = ["NO_SPACE", "to go on", "there is not enough room for a pidfd"];
        wire::send(&stream, &wire::refusal(5, texts), None);
        // Read the client's HELLO: closing the socket with unread data would discard the refusal.
        let _ = stream.read(&mut [0; 256]);
    }
    wait_for_test();
}

/// Has no memory for one more thread when a client connects, and has it again after it has reported that.
fn as_limited_threads(arguments: &[String]) {
    let listener = listen(&address_in(arguments), &small()).unwrap();
    report("listening");
    wait_for_test();
    let (_, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
    let size = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = size.split(' ').next().unwrap().parse().unwrap();
    setrlimit(Resource::RLIMIT_AS, pages * 4096 + (1 << 20), hard).unwrap();
    // Too little for a thread's stack. The other memory that a starting thread needs must be available, or
    // the process aborts.
    let ballast = MmapMut::map_anon(1 << 19).unwrap();
    // A new thread may reuse memory of threads that have exited, and one may just be exiting.
    let park = || thread::Builder::new().spawn(thread::park);
    let patient = || {
        (0..100).find_map(|_| {
            let parked = park().ok();
            if parked.is_none() {
                thread::sleep(Duration::from_millis(1));
            }
            parked
        })
    };
    let parked: Vec<_> = iter::from_fn(patient).collect();
    drop(ballast);
    report("short");
    let Arrival::Refused(refused) = listener.accept().unwrap() else {
        panic!("a thread was started");
    };
    setrlimit(Resource::RLIMIT_AS, hard, hard).unwrap();
    assert_eq!(
        (refused.error.code(), refused.identity.is_none()),
        ("NO_SPACE", true)
    );
    let accepted_channel = accepted(&listener);
    report("in");
    drop((accepted_channel, parked));
    wait_for_test();
}

/// Connects many times, and exchanges messages on each channel, over and over.
fn as_agents(arguments: &[String]) {
    let count: usize = arguments[1].parse().unwrap();
    let rounds: u32 = arguments[2].parse().unwrap();
    raise_descriptor_limit();
    let channels: Vec<_> = (0..count)
        .map(|_| connect(&address_in(arguments), &small()).expect("a channel"))
        .collect();
    report("all in");
    wait_for_test();
    let mut halves: Vec<_> = channels.into_iter().map(Channel::split).collect();
    for round in 0..rounds {
        for (number, (sender, _)) in halves.iter_mut().enumerate() {
            sender.send(format!("{number} {round}").as_bytes()).unwrap();
        }
        for (number, (_, receiver)) in halves.iter_mut().enumerate() {
            let mut message = [0; 64];
            let length = receiver.receive(&mut message).unwrap().expect("an answer");
            assert_eq!(message[..length], *format!("{number} {round}").as_bytes());
        }
    }
    report("all answered");
    wait_for_test();
}

/// Connects on many threads at once.
fn as_concurrent_connects(arguments: &[String]) {
    let count: usize = arguments[1].parse().unwrap();
    raise_descriptor_limit();
    let address = address_in(arguments);
    let threads: Vec<_> = (0..count)
        .map(|_| {
            let address = address.clone();
            thread::spawn(move || connect(&address, &small()).expect("a channel"))
        })
        .collect();
    let channels: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    report("all in");
    wait_for_test();
    drop(channels);
}

fn as_service(arguments: &[String]) {
    let listener = listen(&address_in(arguments), &small()).unwrap();
    report("listening");
    loop {
        if let Arrival::Accepted(channel) = listener.accept().unwrap() {
            thread::spawn(|| echo(channel));
        }
    }
}

/// Connects until it is refused, and reports the number of connections.
fn as_greedy(arguments: &[String]) {
    let options = match arguments.get(1) {
        None => small(),
        Some(uid) => small().policy(Policy::new().any_executable().uids([uid.parse().unwrap()])),
    };
    let mut channels = Vec::new();
    let error = loop {
        match connect(&address_in(arguments), &options) {
            Ok(channel) => channels.push(channel),
            Err(error) => break error,
        }
    };
    report(format!("{} {} {error}", channels.len(), error.code()));
    wait_for_test();
}

/// Makes sixteen connections at an address where no service answers, and then one at another address.
fn as_connects(arguments: &[String]) {
    let (hung, other): (Address, Address) = (arguments[0].parse().unwrap(), arguments[1].parse().unwrap());
    for _ in 0..16 {
        let hung = hung.clone();
        thread::spawn(move || connect(&hung, &small().handshake_timeout(TIME_LIMIT * 10)));
    }
    wait_for_test();
    report(connect(&other, &small()).map_or_else(|error| error.to_string(), |_| "in".into()));
}

/// Closes while its policy's callback runs, and listens again on request.
fn as_closes_during_authorize(arguments: &[String]) {
    let (asked, question) = mpsc::channel();
    let policy = Policy::new().authorize_later(move |_, decision| asked.send(decision).unwrap());
    let listener = listen(&address_in(arguments), &small().policy(policy)).unwrap();
    report("listening");
    let unanswered = question.recv().unwrap();
    listener.close(Channels::Keep);
    drop(unanswered);
    report("closed");
    wait_for_test();
    let listener = listen(&address_in(arguments), &small()).unwrap();
    let channel = next_accepted(&listener);
    report(format!("again, with {}", channel.peer().pid));
    wait_for_test();
}

/// Echoes every message until the end.
fn echo(channel: Channel) {
    let (mut sender, mut receiver) = channel.split();
    let mut message = [0; 64];
    while let Ok(Some(length)) = receiver.receive(&mut message) {
        if sender.send(&message[..length]).is_err() {
            return;
        }
    }
}

/// Raises the descriptor limit to the maximum.
fn raise_descriptor_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// Sends a message and checks its echo.
fn ask(channel: &mut Channel, message: &str) {
    channel.sender().send(message.as_bytes()).expect("sent");
    let mut answer = [0; 64];
    let length = channel.receiver().receive(&mut answer).expect("received");
    assert_eq!(length.map(|length| &answer[..length]), Some(message.as_bytes()));
}

fn agent(address: &Address) -> Actor {
    Actor::start("agent", &[&address.to_string()])
}

#[test]
fn each_client_gets_its_own_channel() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let listener = listen(&address, &small()).unwrap();
        assert_eq!((listener.address(), listener.size()), (&address, 0));
        let agents: Vec<_> = (0..5).map(|_| agent(&address)).collect();
        let mut channels: HashMap<_, _> = (0..5)
            .map(|_| accepted(&listener))
            .map(|channel| (channel.peer().pid, channel))
            .collect();
        assert_eq!(listener.size(), 5);
        for agent in &agents {
            assert!(agent.next_line().starts_with("guest of "));
            let channel = channels.get_mut(&agent.pid()).expect("its channel");
            assert_eq!(channel.role(), Role::Host);
            let listed = |check| {
                channel
                    .evidence()
                    .iter()
                    .any(|one| one.check == check && one.outcome == Outcome::Passed)
            };
            assert!(["uid", "executable", "seals", "sent"].into_iter().all(listed));
            (0..10).for_each(|round| ask(channel, &format!("{round} to {}", agent.pid())));
        }
        // One leaves, and the others stay.
        let (first, rest) = agents.split_first().unwrap();
        channels.remove(&first.pid()).unwrap().close();
        first.expect("over");
        assert_eq!(listener.size(), 4);
        for agent in rest {
            ask(channels.get_mut(&agent.pid()).unwrap(), "still there");
        }
    }
}

#[test]
fn one_process_can_connect_many_times() {
    const COUNT: usize = 60;
    let (address, _keep) = fresh_address(false);
    let listener = listen(&address, &small()).unwrap();
    let mut agents = Actor::start("agents", &[&address.to_string(), &COUNT.to_string(), "20"]);
    for _ in 0..COUNT {
        let channel = accepted(&listener);
        assert_eq!(channel.peer().pid, agents.pid());
        thread::spawn(|| echo(channel));
    }
    agents.expect("all in");
    agents.proceed();
    agents.expect("all answered");
    agents.proceed();
    agents.finish();
}

/// A service that answers all clients by polling, with one thread.
struct EchoService {
    over: Arc<AtomicBool>,
    thread: thread::JoinHandle<(Listener, usize)>,
}

impl EchoService {
    fn start(listener: Listener) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let thread = thread::spawn(move || {
            let (mut channels, mut refusals) = (Vec::new(), 0);
            let mut message = [0; 64];
            while !stop.load(Ordering::Acquire) {
                let mut idle = true;
                while let Some(arrival) = listener.try_accept().expect("an event") {
                    idle = false;
                    match arrival {
                        Arrival::Accepted(channel) => channels.push(channel),
                        Arrival::Refused(refused) => {
                            eprintln!("{}", refused.error);
                            refusals += 1;
                        }
                        other => panic!("{other:?}"),
                    }
                }
                channels.retain_mut(|channel| {
                    loop {
                        let length = match channel.receiver().try_receive(&mut message) {
                            Ok(Some(length)) => length,
                            Ok(None) => break,
                            Err(Error::PeerLost(_)) => return false,
                            Err(error) => panic!("an honest client: {error}"),
                        };
                        idle = false;
                        if !channel.sender().try_send(&message[..length]).unwrap_or(false) {
                            return false;
                        }
                    }
                    !channel.receiver().is_ended().expect("sound")
                });
                if idle {
                    thread::sleep(Duration::from_millis(20));
                    // A service that only polls must poll the line as well, to notice that a client has left.
                    for channel in &mut channels {
                        match channel.receiver().poll_line() {
                            Ok(()) | Err(Error::PeerLost(_)) => {}
                            Err(error) => panic!("an honest client: {error}"),
                        }
                    }
                }
            }
            (listener, refusals)
        });
        Self { over, thread }
    }

    fn stop(self) -> (Listener, usize) {
        self.over.store(true, Ordering::Release);
        self.thread.join().expect("the service")
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn thousand_clients_are_served_without_leaks() {
    // In a separate process, since it counts descriptors.
    let service = Actor::start("thousand clients", &[]);
    for said in ["all in", "all answered", "all gone"] {
        service.expect(said);
    }
    service.finish();
}

fn serve_thousand_clients() {
    raise_descriptor_limit();
    let (address, _keep) = fresh_address(false);
    let listener = listen(&address, &small()).unwrap();
    // The acceptor has allocated everything that it needs once it has accepted a client.
    let first = agent(&address);
    accepted(&listener).close();
    first.finish();
    let before = descriptors();
    let service = EchoService::start(listener);
    // 25 processes with 38 channels each, and 50 with one.
    let start = |count| Actor::start("agents", &[&address.to_string(), count, "30"]);
    let mut agents: Vec<_> = (0..75)
        .map(|number| start(if number < 25 { "38" } else { "1" }))
        .collect();
    for agent in &agents {
        agent.expect("all in");
    }
    report("all in");
    // All are connected, and all start to send.
    agents.iter_mut().for_each(Actor::proceed);
    for agent in &agents {
        agent.expect("all answered");
    }
    report("all answered");
    // Half of them leave cleanly, and half are killed.
    for (number, mut agent) in agents.into_iter().enumerate() {
        if number % 2 == 0 {
            agent.kill();
        } else {
            agent.proceed();
            agent.finish();
        }
    }
    let end = Instant::now() + TIME_LIMIT;
    while descriptors() > before {
        assert!(
            Instant::now() < end,
            "{} descriptors, {before} before",
            descriptors()
        );
        thread::yield_now();
    }
    report("all gone");
    let (listener, refusals) = service.stop();
    assert_eq!((listener.size(), refusals), (0, 0));
}

/// Accepts this many clients, and holds them until their process has exited.
fn accept_all(listener: &Listener, mut clients: Actor, count: usize) {
    let channels: Vec<_> = (0..count).map(|_| accepted(listener)).collect();
    clients.expect("all in");
    clients.proceed();
    clients.finish();
    drop(channels);
}

#[test]
fn concurrent_connects_of_one_process_are_queued() {
    const COUNT: usize = 150;
    let (address, _keep) = fresh_address(false);
    let listener = listen(&address, &small()).unwrap();
    let clients = Actor::start("concurrent connects", &[&address.to_string(), &COUNT.to_string()]);
    accept_all(&listener, clients, COUNT);
}

#[test]
fn stalled_handshake_does_not_block_other_clients() {
    let (address, _keep) = fresh_address(false);
    let listener = listen(&address, &small()).unwrap();
    let stallers: Vec<_> = wire::GUEST_STEPS[..5]
        .iter()
        .map(|step| Actor::start("stop at", &[&address.to_string(), step]))
        .collect();
    for staller in &stallers {
        staller.expect("there");
    }
    let agent = agent(&address);
    assert_eq!(accepted(&listener).peer().pid, agent.pid());
    // They disconnected at their different steps, and that is reported.
    let mut missing: Vec<_> = stallers.iter().map(Actor::pid).collect();
    drop(stallers);
    while !missing.is_empty() {
        let Refused { error, identity, .. } = refused(&listener);
        assert_eq!(error.code(), "PEER_LOST", "{error}");
        let pid = identity.expect("its identity").pid;
        missing.remove(missing.iter().position(|one| *one == pid).expect("one of them"));
    }
}

#[test]
fn silent_connections_do_not_block_other_clients() {
    let (address, _keep) = fresh_address(false);
    // No client times out before the end of the test.
    let listener = listen(&address, &small()).unwrap();
    let start = |_| Actor::start("silent", &[&address.to_string(), "30"]);
    // More than there are slots: those that have been silent for longest give way.
    let silent: Vec<_> = (0..8).map(start).collect();
    for silent in &silent {
        silent.expect("silent");
    }
    let agents: Vec<_> = (0..5).map(|_| agent(&address)).collect();
    let mut accepted_count = 0;
    while accepted_count < agents.len() {
        match listener.accept().unwrap() {
            Arrival::Accepted(channel) => {
                assert!(agents.iter().any(|agent| agent.pid() == channel.peer().pid));
                accepted_count += 1;
            }
            Arrival::Refused(refused) => {
                assert_eq!(refused.error.code(), "HANDSHAKE_TIMEOUT", "{}", refused.error);
                let pid = refused.identity.expect("its identity").pid;
                assert!(silent.iter().any(|silent| silent.pid() == pid));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn handshakes_per_process_are_limited() {
    let (address, _keep) = fresh_address(false);
    let listener = listen(&address, &small()).unwrap();
    let greedy = Actor::start("silent", &[&address.to_string(), "40"]);
    greedy.expect("silent");
    for _ in 0..8 {
        let Refused { error, identity, .. } = refused(&listener);
        assert!(matches!(error, Error::AddressOccupied { .. }), "{error}");
        assert!(error.to_string().contains("32 handshakes"), "{error}");
        assert_eq!(identity.map(|identity| identity.pid), Some(greedy.pid()));
    }
    let agent = agent(&address);
    assert_eq!(accepted(&listener).peer().pid, agent.pid());
}

#[test]
fn silent_client_is_refused_at_its_deadline() {
    let (address, _keep) = fresh_address(false);
    let listener = listen(&address, &small().handshake_timeout(Duration::from_secs(1))).unwrap();
    let mut stream = wire::connect(&address.to_string());
    // A connection from this process itself is refused at once, whatever it sends.
    let Refused { error, .. } = refused(&listener);
    assert!(matches!(error, Error::AddressOccupied { .. }), "{error}");
    stream.read_to_end(&mut Vec::new()).unwrap();
    let silent = Actor::start("silent", &[&address.to_string(), "1"]);
    let Refused { error, identity, .. } = refused(&listener);
    assert!(matches!(error, Error::HandshakeTimeout { .. }), "{error}");
    let identity = identity.expect("its identity");
    assert_eq!(
        (identity.pid, identity.executable.is_some()),
        (silent.pid(), true)
    );
}

#[test]
fn full_service_refuses_until_a_slot_is_free() {
    let (address, _keep) = fresh_address(false);
    let listener = listen(&address, &small().max_peers(2)).unwrap();
    let mut agents = [agent(&address), agent(&address)];
    let mut channels = [accepted(&listener), accepted(&listener)];
    for agent in &agents {
        assert!(agent.next_line().starts_with("guest"));
    }
    let third = agent(&address);
    let answer = third.next_line();
    assert!(
        answer.starts_with("ADDRESS_OCCUPIED") && answer.contains("the service is full, with 2 at once"),
        "{answer}"
    );
    let Refused { error, identity, .. } = refused(&listener);
    assert_eq!(error.code(), "ADDRESS_OCCUPIED");
    assert_eq!(identity.map(|identity| identity.pid), Some(third.pid()));
    // A waiting client is accepted once another was closed…
    let mut patient = Actor::start("patient agent", &[&address.to_string()]);
    assert_eq!(refused(&listener).error.code(), "ADDRESS_OCCUPIED");
    let closed = channels[0].peer().pid;
    let [first, mut second] = channels;
    first.close();
    channels = [next_accepted(&listener), {
        ask(&mut second, "still there");
        second
    }];
    assert_eq!(channels[0].peer().pid, patient.pid());
    patient.expect("in");
    // …or was killed, although no call here has polled its channel.
    let killed = agents.iter_mut().find(|agent| agent.pid() != closed).unwrap();
    killed.kill();
    let fourth = agent(&address);
    assert!(fourth.next_line().starts_with("guest"));
    // A refusal of the waiting client may be reported later than its acceptance.
    assert_eq!(next_accepted(&listener).peer().pid, fourth.pid());
    assert_lost(channels[1].receiver().receive(&mut [0; 8]));
    patient.kill();
}

#[test]
fn one_process_cannot_occupy_all_slots() {
    let (address, _keep) = fresh_address(false);
    let text = address.to_string();
    let listener = listen(&address, &small().max_peers(8)).unwrap();
    let mut greedy = Actor::start("greedy", &[&text]);
    let answer = greedy.next_line();
    assert!(
        answer.starts_with("7 ADDRESS_OCCUPIED") && answer.contains("one process may have no more"),
        "{answer}"
    );
    let honest = agent(&address);
    assert!(honest.next_line().starts_with("guest"));
    // A slot that was released is available to the same process again.
    greedy.kill();
    let limited = fresh_address(false).0;
    let listener_of_few = listen(&limited, &small().max_peers(8).max_peers_per_process(2)).unwrap();
    let mut two = [(); 2].map(|()| Actor::start("greedy", &[&limited.to_string()]));
    for one in &two {
        assert!(one.next_line().starts_with("2 ADDRESS_OCCUPIED"));
    }
    two.iter_mut().for_each(Actor::proceed);
    drop((listener, listener_of_few));
}

#[test]
fn another_user_cannot_occupy_all_slots() {
    let Some(others) = OtherUsers::new() else { return };
    let (address, _keep) = fresh_address(false);
    let text = address.to_string();
    let policy = Policy::new().any_executable().uids([0, OTHER_UID]);
    let listener = listen(&address, &small().max_peers(16).policy(policy)).unwrap();
    let first = others.start_as(OTHER_UID, "greedy", &[&text, "0"]);
    let answer = first.next_line();
    assert!(
        answer.starts_with("12 ADDRESS_OCCUPIED") && answer.contains("one user may have no more"),
        "{answer}"
    );
    let second = others.start_as(OTHER_UID, "greedy", &[&text, "0"]);
    assert!(second.next_line().starts_with("0 ADDRESS_OCCUPIED"));
    // The service's own user may take the remaining slots.
    let own = Actor::start("greedy", &[&text]);
    let answer = own.next_line();
    assert!(
        answer.starts_with("4 ADDRESS_OCCUPIED") && answer.contains("full"),
        "{answer}"
    );
    drop(listener);
}

#[test]
fn hung_service_does_not_delay_connects_to_another() {
    let (hung, _keep) = fresh_address(false);
    let (address, _keep) = fresh_address(false);
    let silent = wire::listen(&hung.to_string());
    let listener = listen(&address, &small()).unwrap();
    let mut calls = Actor::start("connects", &[&hung.to_string(), &address.to_string()]);
    // The maximum number of calls is under way there.
    let waiting: Vec<_> = (0..16).map(|_| silent.accept().expect("a connection")).collect();
    calls.proceed();
    calls.expect("in");
    drop((waiting, listener));
}

fn next_accepted(listener: &Listener) -> Channel {
    loop {
        if let Arrival::Accepted(channel) = listener.accept().expect("an event") {
            return channel;
        }
    }
}

#[test]
fn close_keeps_or_closes_channels_as_requested() {
    for channels in [Channels::Keep, Channels::Close] {
        let (address, keep) = fresh_address(true);
        let listener = listen(&address, &small()).unwrap();
        let first = agent(&address);
        let mut channel = accepted(&listener);
        assert!(first.next_line().starts_with("guest"));
        // This client is connected, but its arrival was not taken.
        let second = agent(&address);
        assert!(second.next_line().starts_with("guest"));
        listener.close(channels);
        assert_eq!(std::fs::read_dir(keep.unwrap().path()).unwrap().count(), 0);
        assert!(matches!(listener.accept(), Err(Error::Closed(_))));
        assert!(matches!(listener.try_accept(), Err(Error::Closed(_))));
        second.expect("over");
        if channels == Channels::Keep {
            ask(&mut channel, "still there");
            assert_eq!(listener.size(), 1);
        } else {
            assert_eq!(channel.receiver().close_reason(), Some(CloseReason::Closed));
            first.expect("over");
            assert_eq!(listener.size(), 0);
        }
        listener.close(Channels::Close);
        let error = connect(&address, &small()).unwrap_err();
        assert!(
            matches!(error, Error::PeerLost(_) | Error::AddressInvalid { .. }),
            "{error}"
        );
    }
}

#[test]
fn connect_without_a_listener_fails_or_waits() {
    let (address, keep) = fresh_address(true);
    let (nowhere, _) = fresh_address(false);
    let path = address.as_path().unwrap();
    let missing = Address::path(path.parent().unwrap().join("none/socket")).unwrap();
    for (address, code, reason) in [
        (&address, "PEER_LOST", "no process listens at"),
        (&nowhere, "PEER_LOST", "no process listens at"),
        (&missing, "ADDRESS_INVALID", "directory does not exist"),
    ] {
        let error = connect(address, &small()).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    // The socket that a killed service leaves does not listen either.
    let mut killed = Actor::start("service", &[&address.to_string()]);
    killed.expect("listening");
    killed.kill();
    assert!(path.exists());
    assert_eq!(connect(&address, &small()).unwrap_err().code(), "PEER_LOST");
    let patient = Actor::start("patient agent", &[&address.to_string()]);
    let listener = listen(&address, &small()).unwrap();
    assert_eq!(accepted(&listener).peer().pid, patient.pid());
    drop(listener);
    assert_eq!(std::fs::read_dir(keep.unwrap().path()).unwrap().count(), 0);
}

#[test]
fn waiting_client_survives_a_close_mid_handshake() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let mut service = Actor::start("closes during authorize", &[&address.to_string()]);
        service.expect("listening");
        let patient = Actor::start("patient agent", &[&address.to_string()]);
        service.expect("closed");
        // Without `wait`, this fails like an absent service.
        let hasty = agent(&address);
        assert!(hasty.next_line().starts_with("PEER_LOST"));
        service.proceed();
        service.expect(&format!("again, with {}", patient.pid()));
        patient.expect("in");
    }
}

#[test]
fn second_listener_is_refused_or_waits() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let first = listen(&address, &small()).unwrap();
        let error = listen(&address, &small()).unwrap_err();
        assert!(matches!(error, Error::AddressOccupied { .. }), "{error}");
        let next = {
            let address = address.clone();
            thread::spawn(move || listen(&address, &small().wait(true)))
        };
        let agent = agent(&address);
        assert_eq!(accepted(&first).peer().pid, agent.pid());
        first.close(Channels::Keep);
        assert!(next.join().unwrap().is_ok());
    }
}

#[test]
fn join_and_listen_refuse_each_other() {
    let (address, _keep) = fresh_address(false);
    let listener = listen(&address, &small()).unwrap();
    let stray = Actor::start("join", &[&address.to_string()]);
    let both = ["called `listen`", "called `join`"];
    let answer = stray.next_line();
    assert!(
        answer.starts_with("PROTOCOL") && both.iter().all(|kind| answer.contains(kind)),
        "{answer}"
    );
    let error = refused(&listener).error;
    assert!(
        matches!(&error, Error::Protocol(what) if both.iter().all(|kind| what.contains(kind))),
        "{error}"
    );
    drop(listener);

    let host = join_later(&address, &small());
    wait_for_host(&address);
    let stray = agent(&address);
    assert!(stray.next_line().starts_with("PROTOCOL"));
    let partner = Actor::start("join", &[&address.to_string()]);
    partner.expect("in");
    assert_eq!(host.join().unwrap().expect("a channel").peer().pid, partner.pid());
}

#[test]
fn unaccepted_clients_are_limited_until_accept() {
    const COUNT: usize = 150;
    let (address, _keep) = fresh_address(false);
    let listener = listen(&address, &small()).unwrap();
    let clients = Actor::start("concurrent connects", &[&address.to_string(), &COUNT.to_string()]);
    let end = Instant::now() + TIME_LIMIT;
    while listener.size() < 64 {
        assert!(Instant::now() < end, "{} accepted", listener.size());
        thread::yield_now();
    }
    // The number does not grow, however long the test waits.
    thread::sleep(Duration::from_millis(200));
    assert_eq!(listener.size(), 64);
    accept_all(&listener, clients, COUNT);
}

#[test]
fn paused_listener_accepts_no_clients() {
    let (address, _keep) = fresh_address(false);
    let listener = listen(&address, &small()).unwrap();
    listener.pause();
    let agent = agent(&address);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(listener.size(), 0);
    listener.resume();
    assert_eq!(accepted(&listener).peer().pid, agent.pid());
}

#[test]
fn listening_and_waiting_can_be_cancelled() {
    let (address, keep) = fresh_address(true);
    let cancel_token = CancelToken::new().unwrap();
    let options = small().cancel_token(cancel_token.clone()).wait(true);
    let waiting = {
        let (address, options) = (address.clone(), options.clone());
        thread::spawn(move || connect(&address, &options))
    };
    cancel_token.cancel();
    assert!(matches!(waiting.join().unwrap(), Err(Error::Aborted)));

    let cancel_token = CancelToken::new().unwrap();
    let options = small().cancel_token(cancel_token.clone()).wait(true);
    let listener = listen(&address, &options).unwrap();
    let second = {
        let (address, options) = (address.clone(), options.clone());
        thread::spawn(move || listen(&address, &options))
    };
    let agent = agent(&address);
    let mut channel = accepted(&listener);
    cancel_token.cancel();
    assert!(matches!(listener.accept(), Err(Error::Aborted)));
    assert!(matches!(listener.accept(), Err(Error::Aborted)));
    // Either cancelled while it waited, or bound just after the first had left, and cancelled there.
    if let Ok(second) = second.join().unwrap() {
        assert!(matches!(second.accept(), Err(Error::Aborted)));
    }
    ask(&mut channel, "still there");
    drop(channel);
    agent.finish();
    drop(listener);
    assert_eq!(std::fs::read_dir(keep.unwrap().path()).unwrap().count(), 0);
}

#[test]
fn two_allowed_users_are_served_while_a_third_is_refused() {
    let Some(others) = OtherUsers::new() else { return };
    let (first, second, third) = (OTHER_UID, OTHER_UID + 1, OTHER_UID + 2);
    for address in [others.address(), fresh_address(false).0] {
        let options = small()
            .mode(0o666)
            .policy(Policy::new().any_executable().uids([first, second]));
        let listener = listen(&address, &options).unwrap();
        let text = address.to_string();
        let agents = [first, second].map(|uid| others.start_as(uid, "any agent", &[&text]));
        let mut channels = [accepted(&listener), accepted(&listener)];
        for agent in &agents {
            agent.expect("guest of 0");
        }
        let mut uids = channels.each_ref().map(|channel| channel.peer().uid);
        uids.sort_unstable();
        assert_eq!(uids, [first, second]);
        for round in 0..20 {
            for channel in &mut channels {
                ask(channel, &round.to_string());
            }
            if round % 10 == 0 {
                let stranger = others.start_as(third, "any agent", &[&text]);
                let Refused { error, identity, .. } = refused(&listener);
                let refusal = error.refusal().expect("a refusal");
                assert_eq!(
                    (refusal.check.as_str(), refusal.found.as_str()),
                    ("uid", &*third.to_string())
                );
                assert!(refusal.wanted.contains(&first.to_string()), "{refusal}");
                let identity = identity.expect("its identity");
                assert_eq!((identity.pid, identity.uid), (stranger.pid(), third));
                assert!(stranger.next_line().starts_with("PEER_REFUSED by peer: true"));
            }
        }
    }
}

#[test]
fn client_reports_a_shortage_of_its_host_at_once() {
    let (address, _keep) = fresh_address(false);
    let mut host = Actor::start("refuses for shortage", &[&address.to_string()]);
    host.expect("listening");
    for error in [
        connect(&address, &small()).unwrap_err(),
        join(&address, &small()).unwrap_err(),
    ] {
        assert_eq!(error.code(), "PEER_LOST", "{error}");
        assert!(
            error.to_string().contains("not enough room for a pidfd"),
            "{error}"
        );
    }
    host.proceed();
    host.finish();
}

/// Returns the threads of this process that wait for the next handshake.
fn idle_handshake_threads() -> Vec<i32> {
    threads_named(std::process::id().cast_signed(), "ringfence-spare")
}

/// In a separate process, because the other tests of this file have such threads as well.
fn as_sequential_clients(arguments: &[String]) {
    let listener = listen(&address_in(arguments), &small()).unwrap();
    report("listening");
    let mut thread = None;
    for _ in 0..3 {
        // The thread waits again before its channel is reported.
        let channel = accepted(&listener);
        let threads = idle_handshake_threads();
        assert_eq!(threads.len(), 1);
        assert_eq!(*thread.get_or_insert_with(|| threads.clone()), threads);
        report("in");
        drop(channel);
    }
    drop(listener);
    let end = Instant::now() + TIME_LIMIT;
    while !idle_handshake_threads().is_empty() {
        assert!(Instant::now() < end, "the thread ends with the listener");
        thread::yield_now();
    }
}

#[test]
fn sequential_clients_share_a_handshake_thread() {
    let (address, _keep) = fresh_address(false);
    let service = Actor::start("sequential clients", &[&address.to_string()]);
    service.expect("listening");
    for _ in 0..3 {
        drop(connect(&address, &small()).unwrap());
        service.expect("in");
    }
    service.finish();
}

#[test]
#[ignore = "by hand: RLIMIT_AS does not leave a process short of a thread alone each time, and then it is short of other things"]
fn client_waits_until_a_handshake_thread_can_start() {
    let (address, _keep) = fresh_address(false);
    let mut service = Actor::start("limited threads", &[&address.to_string()]);
    service.expect("listening");
    // Its handshake has a thread.
    let first = Actor::start("stop at", &[&address.to_string(), "answered"]);
    first.expect("there");
    service.proceed();
    service.expect("short");
    // It connects once, and completes the handshake on that connection.
    wire::guest_for(wire::SERVICE, &address.to_string(), "", false, || ());
    service.expect("in");
    service.proceed();
    service.finish();
}
