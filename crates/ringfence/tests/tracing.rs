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
    Address, Arrival, Audience, Broadcaster, CallError, Channel, Channels, CloseReason, Error, Listener,
    Policy, PublisherEvent, RemoteError, connect, join, listen, member, publish, subscribe,
};
use support::{Actor, TIME_LIMIT, accepted, fresh_address, handshakes_of, say, small, wait_for_test, wire};
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
            say(if channel.is_ok() { "connected" } else { "refused" });
            wait_for_test();
        }
        "refuses" => {
            let policy = Policy::new().authorize(|_| Ok::<_, Error>(false));
            let listener = listen(&address, &small().policy(policy)).unwrap();
            say("listens");
            assert!(matches!(listener.accept().unwrap(), Arrival::Refused(_)));
            wait_for_test();
        }
        "joins" => {
            let joined = join(&address, &small());
            say(if joined.is_ok() { "joined" } else { "refused" });
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
            say("failed");
            wait_for_test();
        }
        "connects and leaves" => {
            let channel = connect(&address, &small()).unwrap();
            say("connected");
            wait_for_test();
            drop(channel);
        }
        "subscribes" => {
            let subscription = subscribe(&address, &small());
            say(if subscription.is_ok() {
                "subscribed"
            } else {
                "refused"
            });
            wait_for_test();
        }
        "subscribes late" => {
            watch();
            // Before it sends READY.
            let is_last_check: fn(&str, &Fields) -> bool =
                |_, fields| fields.get("step").is_some_and(|step| step == "final");
            let _resumed = when(&address, is_last_check, || {
                say("late");
                wait_for_test();
            });
            say(subscribe_and_read(&address));
        }
        "subscribes and reads" => say(subscribe_and_read(&address)),
        "is a member" => {
            let _membership = member(&address, &small()).unwrap();
            wait_for_test();
        }
        "says nothing" => {
            let _streams: Vec<_> = (0..30).map(|_| wire::connect(&arguments[0])).collect();
            say("silent");
            wait_for_test();
        }
        "is told slowly" => serve_and_be_told_slowly(&address),
        "never reads" => {
            let _subscription = subscribe(&address, &small()).unwrap();
            say("subscribed");
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
fn serve_and_be_told_slowly(address: &Address) {
    watch();
    let gave_way: fn(&str, &Fields) -> bool =
        |target, fields| target == "ringfence::refused" && fields["code"] == "HANDSHAKE_TIMEOUT";
    let _told: Vec<_> = (0..300)
        .map(|_| when(address, gave_way, wait_for_handshakes))
        .collect();
    let listener = listen(address, &small()).unwrap();
    say("listens");
    loop {
        if let Arrival::Accepted(_channel) = listener.accept().unwrap() {
            say("in");
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
struct Told {
    target: String,
    fields: Fields,
}

impl Told {
    fn get(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

struct Into<'a>(&'a mut Fields, &'a str);

impl Visit for Into<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(format!("{}{field}", self.1), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(format!("{}{field}", self.1), value.to_owned());
    }
}

static ALL: Mutex<Vec<Told>> = Mutex::new(Vec::new());
static MORE: Condvar = Condvar::new();
/// The tracing subscriber panics if an address contains this.
const PANICS: &str = "panics";

/// Records all events of this process.
struct Keeper;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Keeper {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::new();
        attributes.record(&mut Into(&mut fields, "handshake."));
        call_back("begins", &fields);
        context.span(id).unwrap().extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let mut extensions = span.extensions_mut();
        values.record(&mut Into(extensions.get_mut().unwrap(), "handshake."));
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::new();
        event.record(&mut Into(&mut fields, ""));
        if let Some(span) = context.event_span(event) {
            fields.extend(span.extensions().get::<Fields>().unwrap().clone());
        }
        let target = event.metadata().target().to_owned();
        call_back(&target, &fields);
        let panics = fields.values().any(|value| value.contains(PANICS));
        ALL.lock().unwrap().push(Told { target, fields });
        MORE.notify_all();
        assert!(!panics, "as a subscriber may");
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        panic_within(id, &context, "enters");
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        panic_within(id, &context, "leaves");
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        panic_within(&id, &context, "closes");
    }
}

/// An action of the tracing subscriber on a certain event, and the address for which it applies.
struct CallsBack {
    address: String,
    is_it: fn(&str, &Fields) -> bool,
    call: Box<dyn FnOnce() + Send>,
}

static CALLS_BACK: Mutex<Vec<CallsBack>> = Mutex::new(Vec::new());

/// Makes the tracing subscriber call this crate, once. The returned channel receives a value when the call
/// has returned.
fn when<T: Send + 'static>(
    address: &Address,
    is_it: fn(&str, &Fields) -> bool,
    call: impl FnOnce() -> T + Send + 'static,
) -> mpsc::Receiver<T> {
    let (tell, told) = mpsc::channel();
    CALLS_BACK.lock().unwrap().push(CallsBack {
        address: address.to_string(),
        is_it,
        call: Box::new(move || tell.send(call()).unwrap()),
    });
    told
}

fn call_back(target: &str, fields: &Fields) {
    let told = |name: &str| fields.get(name).cloned();
    let Some(address) = told("address").or_else(|| told("handshake.address")) else {
        return;
    };
    let found = {
        let mut all = CALLS_BACK.lock().unwrap();
        let at = all
            .iter()
            .position(|one| one.address == address && (one.is_it)(target, fields));
        at.map(|at| all.remove(at))
    };
    if let Some(CallsBack { call, .. }) = found {
        call();
    }
}

/// Events on the accept thread, on a handshake thread, and at the start of a channel.
const MOMENTS: [fn(&str, &Fields) -> bool; 3] = [
    |target, _| target == "begins",
    |_, fields| fields.get("check").is_some_and(|check| check == "lease"),
    |target, fields| target == "ringfence::channel" && fields["message"] == "open",
];

/// Panics if the address of the handshake asks for it, and records that it did.
fn panic_within<S: Subscriber + for<'a> LookupSpan<'a>>(id: &Id, context: &Context<'_, S>, when: &str) {
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
    ALL.lock().unwrap().push(Told {
        target: when.into(),
        fields: Fields::from([("address".into(), address.clone())]),
    });
    MORE.notify_all();
    panic!("as a subscriber may");
}

/// The tests of this file are threads of one process, which has one tracing subscriber.
fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| set_global_default(Registry::default().with(Keeper)).unwrap());
}

/// Waits for an event of this kind, at this address.
fn hear(target: &str, address: &Address, is_it: impl Fn(&Told) -> bool) -> Told {
    let address = address.to_string();
    let end = Instant::now() + TIME_LIMIT;
    let mut all = ALL.lock().unwrap();
    loop {
        let found = all.iter().find(|told| {
            let at = [told.get("address"), told.get("handshake.address")];
            told.target == target && at.contains(&address.as_str()) && is_it(told)
        });
        if let Some(found) = found {
            return found.clone();
        }
        let left = end.saturating_duration_since(Instant::now());
        assert!(left > Duration::ZERO, "not told: {target} at {address}\n{all:#?}");
        all = MORE.wait_timeout(all, left).unwrap().0;
    }
}

fn message(wanted: &str) -> impl Fn(&Told) -> bool {
    move |told| told.get("message") == wanted
}

#[test]
fn a_handshake_is_told_by_its_steps_and_a_channel_from_its_begin_to_its_end() {
    watch();
    let (address, _kept) = fresh_address(false);
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
        let told = hear("ringfence::handshake", &address, |told| {
            (told.get("step"), told.get("check"), told.get("found"))
                == (check.step, check.check, &check.found)
        });
        assert_eq!(told.get("wanted"), check.wanted);
        assert_eq!(told.get("outcome"), check.outcome.as_str());
        assert_eq!(told.get("handshake.role"), "host");
        assert_eq!(told.get("handshake.peer_pid"), pid);
    }
    let opened = hear("ringfence::channel", &address, message("open"));
    assert_eq!(opened.get("peer_pid"), pid);
    assert_eq!(opened.get("peer_uid"), channel.peer().uid.to_string());
    assert_eq!(opened.get("role"), "host");
    actor.kill();
    // Until this side has noticed.
    assert!(channel.receiver().receive(&mut [0; 64]).is_err());
    let closed = hear("ringfence::channel", &address, message("closed"));
    assert_eq!(
        (closed.get("peer_pid"), closed.get("reason")),
        (pid.as_str(), "lost")
    );
}

fn failure() -> RemoteError {
    RemoteError::new("as a test says")
        .with_name("TestError")
        .with_code("E_TEST")
}

/// Waits for the first event of a handler's error, and checks it.
fn hear_one_failed_call(address: &Address, caller: &Actor) {
    let failed = hear("ringfence::call", address, |_| true);
    let fields = ["peer_pid", "name", "code", "error"].map(|name| failed.get(name));
    let pid = caller.pid().to_string();
    assert_eq!(fields, [&*pid, "TestError", "E_TEST", "as a test says"]);
}

#[test]
fn the_error_of_a_handler_is_told_and_a_deadline_is_not() {
    watch();
    let (address, _kept) = fresh_address(false);
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
    hear_one_failed_call(&address, &caller);
    caller.kill();
    assert!(serving.join().unwrap().is_err());
}

#[cfg(feature = "tokio")]
#[test]
fn the_error_of_a_handler_that_is_a_task_is_told_and_a_deadline_is_not() {
    watch();
    let (address, _kept) = fresh_address(false);
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
                hear_one_failed_call(&address, &caller);
            })
            .await
            .unwrap();
        });
        assert!(served.is_err(), "its peer was killed");
    });
}

/// Its peer has the address then. The channel has ended like any other that this side closes.
#[test]
fn a_member_that_leaves_tells_of_the_end_of_its_channel() {
    watch();
    let (address, _kept) = fresh_address(false);
    let own = member(&address, &small()).unwrap();
    let actor = Actor::start("is a member", &[&address.to_string()]);
    let _channel = own.partner(None).unwrap().unwrap();
    own.leave();
    let closed = hear("ringfence::channel", &address, message("closed"));
    assert_eq!(
        (closed.get("peer_pid"), closed.get("reason")),
        (actor.pid().to_string().as_str(), "closed")
    );
}

#[test]
fn a_refusal_tells_whom_and_which_check_on_both_sides() {
    watch();
    let (address, _kept) = fresh_address(false);
    let policy = Policy::new().authorize(|_| Ok::<_, Error>(false));
    let listener = listen(&address, &small().policy(policy)).unwrap();
    let actor = Actor::start("connects", &[&address.to_string()]);
    let refused = match listener.accept().unwrap() {
        Arrival::Refused(refused) => refused,
        other => panic!("{other:?}"),
    };
    let told = hear("ringfence::refused", &address, |_| true);
    let refusal = refused.error.refusal().unwrap();
    assert_eq!(told.get("role"), "host");
    assert_eq!(told.get("code"), "PEER_REFUSED");
    assert_eq!(told.get("error"), refused.error.to_string());
    assert_eq!(told.get("peer_pid"), actor.pid().to_string());
    assert_eq!(told.get("peer_uid"), nix::unistd::geteuid().to_string());
    assert_eq!(told.get("check"), "authorize");
    assert_eq!(
        (told.get("wanted"), told.get("found")),
        (&*refusal.wanted, &*refusal.found)
    );
    assert_eq!(told.get("by_peer"), "false");
    let own = std::env::current_exe().unwrap();
    assert_eq!(told.get("executable"), own.display().to_string());

    // The other way round: this process is refused.
    let (address, _kept) = fresh_address(false);
    let host = Actor::start("refuses", &[&address.to_string()]);
    host.expect("listens");
    connect(&address, &small()).unwrap_err();
    let told = hear("ringfence::refused", &address, |_| true);
    assert_eq!((told.get("role"), told.get("check")), ("guest", "authorize"));
    assert_eq!(told.get("by_peer"), "true");
}

/// Returns the refusals that the host at this address has reported.
fn refusals_at(address: &Address) -> Vec<Told> {
    let address = address.to_string();
    let is_one = |told: &&Told| {
        told.target == "ringfence::refused" && told.get("address") == address && told.get("role") == "host"
    };
    ALL.lock().unwrap().iter().filter(is_one).cloned().collect()
}

#[test]
fn the_host_of_a_pair_tells_once_of_each_guest_that_it_refuses() {
    watch();
    let (address, _kept) = fresh_address(false);
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
    let silent = Actor::start("says nothing", &[&address.to_string()]);
    silent.expect("silent");
    answer.send(()).unwrap();
    guest.expect("joined");
    let channel = host.join().unwrap();
    assert_eq!(channel.peer().pid, guest.pid());
    let of = |pid: i32, code: &str| {
        let is_one = |told: &&Told| told.get("peer_pid") == pid.to_string() && told.get("code") == code;
        refusals_at(&address).iter().filter(is_one).count()
    };
    for actor in &refused {
        assert_eq!(of(actor.pid(), "PEER_REFUSED"), 1);
    }
    assert_eq!(of(silent.pid(), "ADDRESS_OCCUPIED"), 30);
    assert_eq!(refusals_at(&address).len(), 32);
}

#[test]
fn an_eviction_is_told() {
    watch();
    let (address, _kept) = fresh_address(false);
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
    let told = hear("ringfence::evicted", &address, |_| true);
    assert_eq!(told.get("peer_pid"), actor.pid().to_string());
    assert_eq!(told.get("stall_millis"), "50");
    let lag: u64 = told.get("lag").parse().unwrap();
    assert!((2048..=4096).contains(&lag), "nearly the whole ring: {lag}");
    let closed = hear("ringfence::channel", &address, message("closed"));
    assert_eq!(closed.get("reason"), "evicted");
}

#[test]
fn a_subscriber_that_panics_keeps_no_channel_from_being_made() {
    watch();
    for when in ["hears", "enters", "leaves", "closes"] {
        let name = format!("ringfence-{PANICS}-{when}-{}", std::process::id());
        let address = Address::abstract_name(name).unwrap();
        let listener = listen(&address, &small()).unwrap();
        let actor = Actor::start("connects", &[&address.to_string()]);
        let channel = accepted(&listener);
        actor.expect("connected");
        hear("ringfence::channel", &address, message("open"));
        channel.close();
        hear("ringfence::channel", &address, message("closed"));
        if when != "hears" {
            hear(when, &address, |_| true);
        }
    }
}

#[test]
fn a_subscriber_may_close_what_it_is_told_of() {
    watch();
    for moment in MOMENTS {
        for drops in [false, true] {
            let (address, _kept) = fresh_address(false);
            let listener = Arc::new(Mutex::new(Some(listen(&address, &small()).unwrap())));
            let the_listener = Arc::clone(&listener);
            let closed = when(&address, moment, move || {
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
                .expect("a close on a thread of the listener's own returns");
            assert!(["connected", "refused"].contains(&agent.hear().as_str()));
            // Its thread releases the address once the tracing subscriber has returned.
            drop(listen(&address, &small().wait(true)).expect("the address is free"));
            drop(listener);
        }
        let (address, _kept) = fresh_address(false);
        let (broadcaster, audience) = publish(&address, &small()).unwrap().split();
        let closed = when(&address, moment, move || drop(audience));
        let subscriber = Actor::start("subscribes", &[&address.to_string()]);
        closed
            .recv_timeout(TIME_LIMIT)
            .expect("a close on a thread of the publisher's own returns");
        assert!(["subscribed", "refused"].contains(&subscriber.hear().as_str()));
        drop(publish(&address, &small().wait(true)).expect("the address is free"));
        drop(broadcaster);
    }
}

/// Accepts a channel with another process.
fn channel_with(listener: &Listener, agent: &Actor) -> Channel {
    let channel = accepted(listener);
    assert_eq!(agent.hear(), "connected");
    channel
}

#[test]
fn a_subscriber_that_is_told_of_an_end_may_wait_for_tokens_and_let_go_of_the_channel() {
    watch();
    let (address, _kept) = fresh_address(false);
    let listener = listen(&address, &small()).unwrap();
    let agent = Actor::start("connects and leaves", &[&address.to_string()]);
    let channel = channel_with(&listener, &agent);
    let (tokens, tokens_here) = (channel.tokens(), channel.tokens());
    let told = when(
        &address,
        |_, fields| fields.contains_key("reason"),
        move || {
            let token = tokens_here.token();
            drop(channel);
            (token, tokens_here.is_ended())
        },
    );
    let waiting = thread::spawn(move || tokens.token());
    agent.finish();
    let (token, _) = told.recv_timeout(TIME_LIMIT).expect("the wait ends");
    assert!(matches!(token, Ok(None)), "{token:?}");
    let token = waiting.join().unwrap();
    assert!(matches!(token, Ok(None)), "{token:?}");
}

#[test]
fn one_that_was_evicted_has_that_reason_though_the_program_lets_go_of_it_meanwhile() {
    watch();
    let (address, _kept) = fresh_address(false);
    let options = small().stall(Duration::from_millis(50));
    let (mut broadcaster, audience) = publish(&address, &options).unwrap().split();
    let subscriber = Actor::start("never reads", &[&address.to_string()]);
    assert_eq!(subscriber.hear(), "subscribed");
    let here = |audience: &Audience| match audience.next().unwrap() {
        PublisherEvent::Subscriber(subscriber) => subscriber,
        other => panic!("{other:?}"),
    };
    let evicted = here(&audience);
    // Between the end of the channel and its report.
    let told = when(
        &address,
        |_, fields| fields.get("reason").is_some_and(|reason| reason == "evicted"),
        move || evicted.disconnect(),
    );
    while told.try_recv().is_err() {
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
fn a_subscriber_that_is_evicted_before_it_is_ready_is_told_so() {
    let (address, _kept) = fresh_address(false);
    let options = small().stall(Duration::from_millis(50));
    let (mut sender, audience) = publish(&address, &options).unwrap().split();
    let mut subscriber = Actor::start("subscribes late", &[&address.to_string()]);
    subscriber.expect("late");
    send_two_rings(&mut sender);
    subscriber.go_on();
    subscriber.expect("EVICTED");
    let refused = audience.next().unwrap();
    assert!(
        matches!(&refused, PublisherEvent::Refused(refused) if refused.error.code() == "EVICTED"),
        "{refused:?}"
    );
}

/// Whether the thread with this id sleeps (proc_pid_stat(5)).
fn sleeps(thread: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.starts_with('S')
}

/// It alone kept the ring full, and nothing else would wake the sender.
#[test]
fn a_subscriber_that_dies_in_its_handshake_wakes_the_sender() {
    let (address, _kept) = fresh_address(false);
    let options = small().stall(Duration::MAX);
    let (mut sender, _audience) = publish(&address, &options).unwrap().split();
    let mut subscriber = Actor::start("subscribes late", &[&address.to_string()]);
    subscriber.expect("late");
    while sender.try_send(&[0; 100]).unwrap() {}
    let waiting = nix::unistd::gettid().as_raw();
    let killer = thread::spawn(move || {
        let deadline = Instant::now() + TIME_LIMIT;
        while !sleeps(waiting) {
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
fn a_subscriber_that_is_evicted_after_the_last_check_is_told_so() {
    watch();
    let (address, _kept) = fresh_address(false);
    let options = small().stall(Duration::from_millis(50));
    let (mut sender, audience) = publish(&address, &options).unwrap().split();
    let (open, opened) = mpsc::channel();
    let (resume, resumed) = mpsc::channel();
    // It has received READY, and is not yet in the list of subscribers.
    let _told = when(&address, MOMENTS[2], move || {
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
fn a_silent_crowd_holds_up_no_agent_of_a_service_that_is_told_slowly() {
    let (address, _keep) = fresh_address(false);
    let name = address.to_string();
    let service = Actor::start("is told slowly", &[&name]);
    service.expect("listens");
    let silent: Vec<_> = (0..8).map(|_| Actor::start("says nothing", &[&name])).collect();
    for silent in &silent {
        silent.expect("silent");
    }
    let agent = Actor::start("connects", &[&name]);
    agent.expect("connected");
    service.expect("in");
}
