//! The events that a program's tracing subscriber receives of real handshakes, refusals, ends and evictions.

mod support;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Condvar, Mutex, Once,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use ringfence::{
    Address, Arrival, Audience, Broadcaster, CallError, Calls, Channel, Channels, CloseReason, Error,
    Listener, Policy, PublisherEvent, RemoteError, connect, join, listen, member, publish, subscribe,
};
use support::{
    Actor, TIME_LIMIT, accepted, fresh_address, handshakes_of, report, small, wait_for_test, wire,
};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::set_global_default,
};
use tracing_subscriber::{
    Registry,
    layer::{Context, Layer, SubscriberExt},
    registry::LookupSpan,
};

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    match role.as_str() {
        "connects" => {
            let channel = connect(&address, &small());
            report(if channel.is_ok() { "connected" } else { "refused" });
            wait_for_test();
        }
        "refuses" => {
            let policy = Policy::new().authorize(|_| Ok::<_, Error>(false));
            let listener = listen(&address, &small().policy(policy)).unwrap();
            report("listens");
            assert!(matches!(listener.accept().unwrap(), Arrival::Refused(_)));
            wait_for_test();
        }
        "joins" => {
            let joined = join(&address, &small());
            report(if joined.is_ok() { "joined" } else { "refused" });
            wait_for_test();
        }
        "calls" => {
            let calls = connect(&address, &small()).unwrap().into_calls().unwrap();
            let late = calls.call_until(b"late", Instant::now() + Duration::from_millis(1));
            assert!(
                matches!(late, Err(CallError::Channel(Error::TimedOut))),
                "{late:?}"
            );
            let failed = calls.call(b"wrong").unwrap_err();
            assert_eq!(failed.remote().map(RemoteError::code), Some(Some("E_TEST")));
            report("failed");
            wait_for_test();
        }
        "connects and leaves" => {
            let channel = connect(&address, &small()).unwrap();
            report("connected");
            wait_for_test();
            drop(channel);
        }
        "subscribes" => {
            let subscription = subscribe(&address, &small());
            report(if subscription.is_ok() {
                "subscribed"
            } else {
                "refused"
            });
            wait_for_test();
        }
        "subscribes late" => {
            install_recorder();
            // When it has the OFFER, the publisher has reserved its position, and READY is not sent yet.
            let has_offer: fn(&str, &Fields) -> bool = |_, fields| {
                let is = |key: &str, value: &str| fields.get(key).is_some_and(|found| found == value);
                is("step", "offer") && is("check", "received")
            };
            let _resumed = run_on_event(&address, has_offer, || {
                report("late");
                wait_for_test();
            });
            report(subscribe_and_read(&address));
        }
        "subscribes and reads" => report(subscribe_and_read(&address)),
        "is a member" => {
            let _membership = member(&address, &small()).unwrap();
            wait_for_test();
        }
        "silent" => {
            let _streams: Vec<_> = (0..30).map(|_| wire::connect(&arguments[0])).collect();
            report("silent");
            wait_for_test();
        }
        "traces slowly" => serve_with_slow_tracing(&address),
        "never reads" => {
            let _subscription = subscribe(&address, &small()).unwrap();
            report("subscribed");
            wait_for_test();
        }
        other => panic!("no role {other}"),
    }
}

/// Returns the code of the error that ends the subscription.
fn subscribe_and_read(address: &Address) -> &'static str {
    let mut subscription = match subscribe(address, &small()) {
        Ok(subscription) => subscription,
        Err(error) => return error.code(),
    };
    loop {
        match subscription.receive(&mut [0; 4096]) {
            Ok(Some(_)) => {}
            Ok(None) => return "the end",
            Err(error) => return error.code(),
        }
    }
}

/// Each time the tracing subscriber is notified of a connection that gave way, it waits until all running
/// handshakes have finished.
fn serve_with_slow_tracing(address: &Address) {
    install_recorder();
    let gave_way: fn(&str, &Fields) -> bool =
        |target, fields| target == "ringfence::refused" && fields["code"] == "HANDSHAKE_TIMEOUT";
    let _events: Vec<_> = (0..300)
        .map(|_| run_on_event(address, gave_way, wait_for_handshakes))
        .collect();
    let listener = listen(address, &small()).unwrap();
    report("listens");
    loop {
        if let Arrival::Accepted(_channel) = listener.accept().unwrap() {
            report("in");
        }
    }
}

fn wait_for_handshakes() {
    let end = Instant::now() + TIME_LIMIT;
    while handshakes_of(std::process::id().cast_signed()) > 0 {
        assert!(Instant::now() < end, "a handshake does not end");
        thread::yield_now();
    }
}

type Fields = BTreeMap<String, String>;

/// An event, with the fields of its span (`handshake.role`).
#[derive(Debug, Clone)]
struct TracedEvent {
    target: String,
    fields: Fields,
}

impl TracedEvent {
    fn get(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

struct FieldRecorder<'a>(&'a mut Fields, &'a str);

impl Visit for FieldRecorder<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(format!("{}{field}", self.1), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(format!("{}{field}", self.1), value.to_owned());
    }
}

static EVENTS: Mutex<Vec<TracedEvent>> = Mutex::new(Vec::new());
static EVENT_ADDED: Condvar = Condvar::new();
/// The tracing subscriber panics if an address contains this.
const PANICS: &str = "panics";

/// Records all events of this process.
struct Recorder;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::new();
        attributes.record(&mut FieldRecorder(&mut fields, "handshake."));
        run_hook("begins", &fields);
        context.span(id).unwrap().extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let mut extensions = span.extensions_mut();
        values.record(&mut FieldRecorder(extensions.get_mut().unwrap(), "handshake."));
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::new();
        event.record(&mut FieldRecorder(&mut fields, ""));
        if let Some(span) = context.event_span(event) {
            fields.extend(span.extensions().get::<Fields>().unwrap().clone());
        }
        let target = event.metadata().target().to_owned();
        run_hook(&target, &fields);
        let panics = fields.values().any(|value| value.contains(PANICS));
        EVENTS.lock().unwrap().push(TracedEvent { target, fields });
        EVENT_ADDED.notify_all();
        assert!(!panics, "panics as the test requests");
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        panic_if_requested(id, &context, "enters");
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        panic_if_requested(id, &context, "leaves");
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        panic_if_requested(&id, &context, "closes");
    }
}

/// An action of the tracing subscriber on a certain event, and the address for which it applies.
struct Hook {
    address: String,
    matches: fn(&str, &Fields) -> bool,
    call: Box<dyn FnOnce() + Send>,
}

static HOOKS: Mutex<Vec<Hook>> = Mutex::new(Vec::new());

/// Makes the tracing subscriber call this crate, once. The returned channel receives a value when the call
/// has returned.
fn run_on_event<T: Send + 'static>(
    address: &Address,
    matches: fn(&str, &Fields) -> bool,
    call: impl FnOnce() -> T + Send + 'static,
) -> mpsc::Receiver<T> {
    let (tx, rx) = mpsc::channel();
    HOOKS.lock().unwrap().push(Hook {
        address: address.to_string(),
        matches,
        call: Box::new(move || tx.send(call()).unwrap()),
    });
    rx
}

fn run_hook(target: &str, fields: &Fields) {
    let field = |name: &str| fields.get(name).cloned();
    let Some(address) = field("address").or_else(|| field("handshake.address")) else {
        return;
    };
    let found = {
        let mut all = HOOKS.lock().unwrap();
        let at = all
            .iter()
            .position(|one| one.address == address && (one.matches)(target, fields));
        at.map(|at| all.remove(at))
    };
    if let Some(Hook { call, .. }) = found {
        call();
    }
}

/// Events on the accept thread, on a handshake thread, and at the start of a channel.
const HOOK_POINTS: [fn(&str, &Fields) -> bool; 3] = [
    |target, _| target == "begins",
    |_, fields| fields.get("check").is_some_and(|check| check == "lease"),
    |target, fields| target == "ringfence::channel" && fields["message"] == "open",
];

/// Panics if the address of the handshake asks for it, and records that it did.
fn panic_if_requested<S: Subscriber + for<'a> LookupSpan<'a>>(id: &Id, context: &Context<'_, S>, when: &str) {
    let span = context.span(id).unwrap();
    let extensions = span.extensions();
    let Some(address) = extensions
        .get::<Fields>()
        .and_then(|fields| fields.get("handshake.address"))
    else {
        return;
    };
    if !address.contains(&format!("{PANICS}-{when}")) {
        return;
    }
    EVENTS.lock().unwrap().push(TracedEvent {
        target: when.into(),
        fields: Fields::from([("address".into(), address.clone())]),
    });
    EVENT_ADDED.notify_all();
    panic!("panics as the test requests");
}

/// The tests of this file are threads of one process, which has one tracing subscriber.
fn install_recorder() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| set_global_default(Registry::default().with(Recorder)).unwrap());
}

/// Waits for an event of this kind, at this address.
fn wait_for_event(target: &str, address: &Address, matches: impl Fn(&TracedEvent) -> bool) -> TracedEvent {
    let address = address.to_string();
    let end = Instant::now() + TIME_LIMIT;
    let mut all = EVENTS.lock().unwrap();
    loop {
        let found = all.iter().find(|event| {
            let at = [event.get("address"), event.get("handshake.address")];
            event.target == target && at.contains(&address.as_str()) && matches(event)
        });
        if let Some(found) = found {
            return found.clone();
        }
        let left = end.saturating_duration_since(Instant::now());
        assert!(left > Duration::ZERO, "no event: {target} at {address}\n{all:#?}");
        all = EVENT_ADDED.wait_timeout(all, left).unwrap().0;
    }
}

fn message(wanted: &str) -> impl Fn(&TracedEvent) -> bool {
    move |event| event.get("message") == wanted
}

#[test]
fn handshake_steps_and_channel_lifetime_are_traced() {
    install_recorder();
    let (address, _keep) = fresh_address(false);
    let listener = listen(&address, &small()).unwrap();
    let mut actor = Actor::start("connects", &[&address.to_string()]);
    let pid = actor.pid().to_string();
    let mut channel = accepted(&listener);
    actor.expect("connected");
    let evidence: Vec<_> = channel
        .evidence()
        .iter()
        .filter(|evidence| evidence.step != "rendezvous")
        .cloned()
        .collect();
    assert!(evidence.len() > 10, "{evidence:?}");
    for check in evidence {
        let event = wait_for_event("ringfence::handshake", &address, |event| {
            (event.get("step"), event.get("check"), event.get("found"))
                == (check.step, check.check, &check.found)
        });
        assert_eq!(event.get("wanted"), check.wanted);
        assert_eq!(event.get("outcome"), check.outcome.as_str());
        assert_eq!(event.get("handshake.role"), "host");
        assert_eq!(event.get("handshake.peer_pid"), pid);
    }
    let opened = wait_for_event("ringfence::channel", &address, message("open"));
    assert_eq!(opened.get("peer_pid"), pid);
    assert_eq!(opened.get("peer_uid"), channel.peer().uid.to_string());
    assert_eq!(opened.get("role"), "host");
    actor.kill();
    // Until this side has noticed.
    assert!(channel.receiver().receive(&mut [0; 64]).is_err());
    let closed = wait_for_event("ringfence::channel", &address, message("closed"));
    assert_eq!(
        (closed.get("peer_pid"), closed.get("reason")),
        (pid.as_str(), "lost")
    );
}

fn failure() -> RemoteError {
    RemoteError::new("failed on purpose")
        .with_name("TestError")
        .with_code("E_TEST")
}

/// Waits for the first event of a handler's error, and checks it.
fn expect_failed_call(address: &Address, caller: &Actor) {
    let failed = wait_for_event("ringfence::call", address, |_| true);
    let fields = ["peer_pid", "name", "code", "error"].map(|name| failed.get(name));
    let pid = caller.pid().to_string();
    assert_eq!(fields, [&*pid, "TestError", "E_TEST", "failed on purpose"]);
}

#[test]
fn handler_error_is_traced_and_a_deadline_is_not() {
    install_recorder();
    let (address, _keep) = fresh_address(false);
    let listener = listen(&address, &small()).unwrap();
    let mut caller = Actor::start("calls", &[&address.to_string()]);
    let calls = accepted(&listener).into_calls().unwrap();
    let server = calls.clone();
    let serving = thread::spawn(move || {
        server.serve(|request, context| {
            while request == b"late" && !context.is_cancelled() {
                thread::yield_now();
            }
            Err::<Vec<u8>, _>(failure())
        })
    });
    caller.expect("failed");
    expect_failed_call(&address, &caller);
    caller.kill();
    assert!(serving.join().unwrap().is_err());
}

#[cfg(feature = "tokio")]
#[test]
fn task_handler_error_is_traced_and_a_deadline_is_not() {
    install_recorder();
    let (address, _keep) = fresh_address(false);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = listen(&address, &small()).unwrap();
        let caller = Actor::start("calls", &[&address.to_string()]);
        let channel = ringfence::tokio::Channel::new(accepted(&listener)).unwrap();
        let calls = channel.into_calls().unwrap();
        let handler = |request: Vec<u8>, _| async move {
            if request == b"late" {
                std::future::pending::<()>().await;
            }
            Err::<Vec<u8>, _>(failure())
        };
        let (served, ()) = tokio::join!(calls.serve(1, handler), async {
            tokio::task::spawn_blocking(move || {
                expect_failed_call(&address, &caller);
            })
            .await
            .unwrap();
        });
        assert!(served.is_err(), "its peer was killed");
    });
}

/// Its peer has the address then. The channel has ended like any other that this side closes.
#[test]
fn leaving_member_traces_the_end_of_its_channel() {
    install_recorder();
    let (address, _keep) = fresh_address(false);
    let own = member(&address, &small()).unwrap();
    let actor = Actor::start("is a member", &[&address.to_string()]);
    let _channel = own.partner(None).unwrap().unwrap();
    own.leave();
    let closed = wait_for_event("ringfence::channel", &address, message("closed"));
    assert_eq!(
        (closed.get("peer_pid"), closed.get("reason")),
        (actor.pid().to_string().as_str(), "closed")
    );
}

#[test]
fn refusal_is_traced_with_peer_and_check_on_both_sides() {
    install_recorder();
    let (address, _keep) = fresh_address(false);
    let policy = Policy::new().authorize(|_| Ok::<_, Error>(false));
    let listener = listen(&address, &small().policy(policy)).unwrap();
    let actor = Actor::start("connects", &[&address.to_string()]);
    let refused = match listener.accept().unwrap() {
        Arrival::Refused(refused) => refused,
        other => panic!("{other:?}"),
    };
    let event = wait_for_event("ringfence::refused", &address, |_| true);
    let refusal = refused.error.refusal().unwrap();
    assert_eq!(event.get("role"), "host");
    assert_eq!(event.get("code"), "PEER_REFUSED");
    assert_eq!(event.get("error"), refused.error.to_string());
    assert_eq!(event.get("peer_pid"), actor.pid().to_string());
    assert_eq!(event.get("peer_uid"), nix::unistd::geteuid().to_string());
    assert_eq!(event.get("check"), "authorize");
    assert_eq!(
        (event.get("wanted"), event.get("found")),
        (&*refusal.wanted, &*refusal.found)
    );
    assert_eq!(event.get("by_peer"), "false");
    let own = std::env::current_exe().unwrap();
    assert_eq!(event.get("executable"), own.display().to_string());

    // The other way round: this process is refused.
    let (address, _keep) = fresh_address(false);
    let host = Actor::start("refuses", &[&address.to_string()]);
    host.expect("listens");
    connect(&address, &small()).unwrap_err();
    let event = wait_for_event("ringfence::refused", &address, |_| true);
    assert_eq!((event.get("role"), event.get("check")), ("guest", "authorize"));
    assert_eq!(event.get("by_peer"), "true");
}

/// Returns the refusals that the host at this address has reported.
fn refusals_at(address: &Address) -> Vec<TracedEvent> {
    let address = address.to_string();
    let is_one = |event: &&TracedEvent| {
        event.target == "ringfence::refused" && event.get("address") == address && event.get("role") == "host"
    };
    EVENTS.lock().unwrap().iter().filter(is_one).cloned().collect()
}

#[test]
fn host_traces_each_refused_guest_once() {
    install_recorder();
    let (address, _keep) = fresh_address(false);
    let asked = AtomicUsize::new(0);
    let (is_asked, of_the_third) = mpsc::channel();
    let (answer, answered) = mpsc::channel();
    let (is_asked, answered) = (Mutex::new(is_asked), Mutex::new(answered));
    // The first two are refused, and the third waits for its answer.
    let policy = Policy::new().authorize(move |_| {
        let third = asked.fetch_add(1, Ordering::Relaxed) == 2;
        if third {
            is_asked.lock().unwrap().send(()).unwrap();
            answered.lock().unwrap().recv().unwrap();
        }
        Ok::<_, Error>(third)
    });
    let host = {
        let address = address.clone();
        thread::spawn(move || join(&address, &small().policy(policy)).unwrap())
    };
    support::wait_for_host(&address);
    let refused = [0; 2].map(|_| {
        let actor = Actor::start("joins", &[&address.to_string()]);
        actor.expect("refused");
        actor
    });
    let guest = Actor::start("joins", &[&address.to_string()]);
    of_the_third.recv_timeout(TIME_LIMIT).unwrap();
    // These connect and send nothing. When the slot is taken, some have a thread, some wait for one, and some
    // are in the backlog.
    let silent = Actor::start("silent", &[&address.to_string()]);
    silent.expect("silent");
    answer.send(()).unwrap();
    guest.expect("joined");
    let channel = host.join().unwrap();
    assert_eq!(channel.peer().pid, guest.pid());
    let of = |pid: i32, code: &str| {
        let is_one =
            |event: &&TracedEvent| event.get("peer_pid") == pid.to_string() && event.get("code") == code;
        refusals_at(&address).iter().filter(is_one).count()
    };
    for actor in &refused {
        assert_eq!(of(actor.pid(), "PEER_REFUSED"), 1);
    }
    assert_eq!(of(silent.pid(), "ADDRESS_OCCUPIED"), 30);
    assert_eq!(refusals_at(&address).len(), 32);
}

#[test]
fn eviction_is_traced() {
    install_recorder();
    let (address, _keep) = fresh_address(false);
    let stall = Duration::from_millis(50);
    let mut publisher = publish(&address, &small().stall(stall)).unwrap();
    let actor = Actor::start("never reads", &[&address.to_string()]);
    actor.expect("subscribed");
    assert!(matches!(publisher.next().unwrap(), PublisherEvent::Subscriber(_)));
    while publisher.stats().evicted == 0 {
        publisher.send(&[7; 256]).unwrap();
    }
    match publisher.next().unwrap() {
        PublisherEvent::Gone(_, reason) => assert_eq!(reason, CloseReason::Evicted),
        other => panic!("{other:?}"),
    }
    let event = wait_for_event("ringfence::evicted", &address, |_| true);
    assert_eq!(event.get("peer_pid"), actor.pid().to_string());
    assert_eq!(event.get("stall_millis"), "50");
    let lag: u64 = event.get("lag").parse().unwrap();
    assert!((2048..=4096).contains(&lag), "nearly the whole ring: {lag}");
    let closed = wait_for_event("ringfence::channel", &address, message("closed"));
    assert_eq!(closed.get("reason"), "evicted");
}

#[test]
fn panicking_tracing_subscriber_does_not_break_channels() {
    install_recorder();
    for when in ["event", "enters", "leaves", "closes"] {
        let name = format!("ringfence-{PANICS}-{when}-{}", std::process::id());
        let address = Address::abstract_name(name).unwrap();
        let listener = listen(&address, &small()).unwrap();
        let actor = Actor::start("connects", &[&address.to_string()]);
        let channel = accepted(&listener);
        actor.expect("connected");
        wait_for_event("ringfence::channel", &address, message("open"));
        channel.close();
        wait_for_event("ringfence::channel", &address, message("closed"));
        if when != "event" {
            wait_for_event(when, &address, |_| true);
        }
    }
}

#[test]
fn tracing_subscriber_can_close_the_traced_handle() {
    install_recorder();
    for hook_point in HOOK_POINTS {
        for drops in [false, true] {
            let (address, _keep) = fresh_address(false);
            let listener = Arc::new(Mutex::new(Some(listen(&address, &small()).unwrap())));
            let the_listener = Arc::clone(&listener);
            let closed = run_on_event(&address, hook_point, move || {
                let mut listener = the_listener.lock().unwrap();
                assert!(listener.as_ref().is_some_and(|listener| listener.size() <= 1));
                if drops {
                    *listener = None;
                } else if let Some(listener) = &*listener {
                    listener.close(Channels::Close);
                }
            });
            let agent = Actor::start("connects", &[&address.to_string()]);
            closed
                .recv_timeout(TIME_LIMIT)
                .expect("close returns on a thread of the listener");
            assert!(["connected", "refused"].contains(&agent.next_line().as_str()));
            // Its thread releases the address once the tracing subscriber has returned.
            drop(listen(&address, &small().wait(true)).expect("the address is free"));
            drop(listener);
        }
        let (address, _keep) = fresh_address(false);
        let (broadcaster, audience) = publish(&address, &small()).unwrap().split();
        let closed = run_on_event(&address, hook_point, move || drop(audience));
        let subscriber = Actor::start("subscribes", &[&address.to_string()]);
        closed
            .recv_timeout(TIME_LIMIT)
            .expect("close returns on a thread of the publisher");
        assert!(["subscribed", "refused"].contains(&subscriber.next_line().as_str()));
        drop(publish(&address, &small().wait(true)).expect("the address is free"));
        drop(broadcaster);
    }
}

/// Accepts a channel with another process.
fn channel_with(listener: &Listener, agent: &Actor) -> Channel {
    let channel = accepted(listener);
    assert_eq!(agent.next_line(), "connected");
    channel
}

#[test]
fn tracing_subscriber_can_drop_an_ended_channel() {
    install_recorder();
    let (address, _keep) = fresh_address(false);
    let listener = listen(&address, &small()).unwrap();
    let agent = Actor::start("connects and leaves", &[&address.to_string()]);
    let channel = channel_with(&listener, &agent);
    let (tokens, tokens_in_call) = (channel.tokens(), channel.tokens());
    let called = run_on_event(
        &address,
        |_, fields| fields.contains_key("reason"),
        move || {
            let token = tokens_in_call.token();
            drop(channel);
            (token, tokens_in_call.is_ended())
        },
    );
    let waiting = thread::spawn(move || tokens.token());
    agent.finish();
    let (token, _) = called.recv_timeout(TIME_LIMIT).expect("the wait ends");
    assert!(matches!(token, Ok(None)), "{token:?}");
    let token = waiting.join().unwrap();
    assert!(matches!(token, Ok(None)), "{token:?}");
}

#[test]
fn tracing_subscriber_can_use_the_calls_that_have_ended() {
    install_recorder();
    let ends: [fn(&Calls, &mut Actor); 4] = [
        |calls, _| calls.close(),
        |calls, _| calls.destroy(),
        |_, agent| agent.proceed(),
        |_, agent| agent.kill(),
    ];
    for end in ends {
        let (address, _keep) = fresh_address(false);
        let listener = listen(&address, &small()).unwrap();
        let mut agent = Actor::start("connects and leaves", &[&address.to_string()]);
        let calls = channel_with(&listener, &agent).into_calls().unwrap();
        let the_calls = calls.clone();
        let called = run_on_event(
            &address,
            |_, fields| fields.contains_key("reason"),
            move || (the_calls.call(b"").is_err(), the_calls.in_flight()),
        );
        let reader = calls.clone();
        let reading = thread::spawn(move || while let Ok(Some(_)) = reader.receive() {});
        let ending = thread::spawn(move || end(&calls, &mut agent));
        assert_eq!(called.recv_timeout(TIME_LIMIT), Ok((true, 0)));
        reading.join().unwrap();
        ending.join().unwrap();
    }
}

#[test]
fn concurrent_disconnect_keeps_the_eviction_reason() {
    install_recorder();
    let (address, _keep) = fresh_address(false);
    let options = small().stall(Duration::from_millis(50));
    let (mut broadcaster, audience) = publish(&address, &options).unwrap().split();
    let subscriber = Actor::start("never reads", &[&address.to_string()]);
    assert_eq!(subscriber.next_line(), "subscribed");
    let next_subscriber = |audience: &Audience| match audience.next().unwrap() {
        PublisherEvent::Subscriber(subscriber) => subscriber,
        other => panic!("{other:?}"),
    };
    let evicted = next_subscriber(&audience);
    // Between the end of the channel and its report.
    let called = run_on_event(
        &address,
        |_, fields| fields.get("reason").is_some_and(|reason| reason == "evicted"),
        move || evicted.disconnect(),
    );
    while called.try_recv().is_err() {
        broadcaster.send(&[0; 100]).unwrap();
    }
    assert!(matches!(
        audience.next().unwrap(),
        PublisherEvent::Gone(_, CloseReason::Evicted)
    ));
    assert_eq!(broadcaster.stats().evicted, 1);
}

/// Sends more than the ring holds, so that unread messages were in the way.
fn send_two_rings(sender: &mut Broadcaster) {
    for _ in 0..80 {
        sender.send(&[0; 100]).unwrap();
    }
}

#[test]
fn subscriber_evicted_before_ready_is_notified() {
    let (address, _keep) = fresh_address(false);
    let options = small().stall(Duration::from_millis(50));
    let (mut sender, audience) = publish(&address, &options).unwrap().split();
    let mut subscriber = Actor::start("subscribes late", &[&address.to_string()]);
    subscriber.expect("late");
    send_two_rings(&mut sender);
    subscriber.proceed();
    subscriber.expect("EVICTED");
    let refused = audience.next().unwrap();
    assert!(
        matches!(&refused, PublisherEvent::Refused(refused) if refused.error.code() == "EVICTED"),
        "{refused:?}"
    );
}

/// Whether the thread with this id sleeps (proc_pid_stat(5)).
fn is_sleeping(thread: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.starts_with('S')
}

/// It alone kept the ring full, and nothing else would wake the sender.
#[test]
fn subscriber_killed_in_its_handshake_wakes_the_sender() {
    let (address, _keep) = fresh_address(false);
    let options = small().stall(Duration::MAX);
    let (mut sender, _audience) = publish(&address, &options).unwrap().split();
    let mut subscriber = Actor::start("subscribes late", &[&address.to_string()]);
    subscriber.expect("late");
    while sender.try_send(&[0; 100]).unwrap() {}
    let waiting = nix::unistd::gettid().as_raw();
    let killer = thread::spawn(move || {
        let deadline = Instant::now() + TIME_LIMIT;
        while !is_sleeping(waiting) {
            assert!(Instant::now() < deadline, "it does not wait");
            thread::sleep(Duration::from_millis(1));
        }
        subscriber.kill();
    });
    let deadline = Instant::now() + TIME_LIMIT;
    sender.send_until(&[0; 100], deadline).unwrap();
    assert!(Instant::now() < deadline, "it was not woken");
    killer.join().unwrap();
}

#[test]
fn subscriber_evicted_after_final_check_is_notified() {
    install_recorder();
    let (address, _keep) = fresh_address(false);
    let options = small().stall(Duration::from_millis(50));
    let (mut sender, audience) = publish(&address, &options).unwrap().split();
    let (open, opened) = mpsc::channel();
    let (resume, resumed) = mpsc::channel();
    // It has received READY, and is not yet in the list of subscribers.
    let _events = run_on_event(&address, HOOK_POINTS[2], move || {
        open.send(()).unwrap();
        resumed.recv_timeout(TIME_LIMIT)
    });
    let subscriber = Actor::start("subscribes and reads", &[&address.to_string()]);
    opened.recv_timeout(TIME_LIMIT).expect("a handshake");
    send_two_rings(&mut sender);
    resume.send(()).unwrap();
    subscriber.expect("EVICTED");
    let events = [audience.next(), audience.next()];
    assert!(
        matches!(
            &events,
            [
                Ok(PublisherEvent::Subscriber(_)),
                Ok(PublisherEvent::Gone(_, CloseReason::Evicted))
            ]
        ),
        "{events:?}"
    );
}

/// However many silent connections a busy service finds at once: as many give way as needed.
#[test]
fn slow_tracing_does_not_let_silent_clients_block_others() {
    let (address, _keep) = fresh_address(false);
    let name = address.to_string();
    let service = Actor::start("traces slowly", &[&name]);
    service.expect("listens");
    let silent: Vec<_> = (0..8).map(|_| Actor::start("silent", &[&name])).collect();
    for silent in &silent {
        silent.expect("silent");
    }
    let agent = Actor::start("connects", &[&name]);
    agent.expect("connected");
    service.expect("in");
}
