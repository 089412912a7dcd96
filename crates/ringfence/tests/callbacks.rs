//! Misbehaving policy callbacks: they panic, or never return. Only the handshake of their peer fails; other
//! peers are unaffected.

mod support;

use std::{
    error::Error as _,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use ringfence::{Address, Channels, Error, Policy, Refused, connect, listen};
use support::{Actor, accepted, fresh_address, refused, report, small, wait_for_test};

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    match role.as_str() {
        // Connects repeatedly, and reports each outcome.
        "agent" => {
            let mut channels = Vec::new();
            for _ in 0..arguments[1].parse().unwrap() {
                match connect(&address, &small()) {
                    Ok(channel) => {
                        channels.push(channel);
                        report("in");
                    }
                    Err(error) => report(format!("{} {error}", error.code())),
                }
            }
            wait_for_test();
        }
        // Connects many times at once.
        "concurrent connects" => {
            thread::scope(|scope| {
                for _ in 0..arguments[1].parse().unwrap() {
                    scope.spawn(|| report(connect(&address, &small()).unwrap_err().code()));
                }
            });
            wait_for_test();
        }
        other => unreachable!("{other}"),
    }
}

#[test]
fn panicking_callback_only_refuses_its_peer() {
    // More handshakes than one process may have under way: no slot is leaked.
    const COUNT: usize = 20;
    for later in [true, false] {
        let panics = Arc::new(AtomicBool::new(true));
        let policy = {
            let panics = Arc::clone(&panics);
            let decide = move || assert!(!panics.load(Ordering::Acquire), "on purpose");
            if later {
                Policy::new().authorize_later(move |_, decision| {
                    decide();
                    decision.allow();
                })
            } else {
                Policy::new().authorize(move |_| {
                    decide();
                    Ok::<_, Error>(true)
                })
            }
        };
        let (address, _keep) = fresh_address(false);
        let listener = listen(&address, &small().policy(policy)).unwrap();
        let mut agent = Actor::start("agent", &[&address.to_string(), &(COUNT + 1).to_string()]);
        for number in 0..COUNT {
            let Refused { error, identity, .. } = refused(&listener);
            let refusal = error.refusal().expect("a refusal");
            assert_eq!(
                (refusal.check.as_str(), refusal.found.as_str()),
                ("authorize", "a panic: on purpose"),
                "{number}"
            );
            let cause = refusal.source().expect("its cause").to_string();
            assert!(cause.contains("on purpose"), "{cause}");
            assert_eq!(identity.map(|identity| identity.pid), Some(agent.pid()));
            if number == COUNT - 1 {
                break;
            }
            assert!(agent.next_line().starts_with("PEER_REFUSED"));
        }
        // The last attempt is made as soon as the one before it was refused.
        panics.store(false, Ordering::Release);
        let mut last = agent.next_line();
        assert!(last.starts_with("PEER_REFUSED"), "{last}");
        last = agent.next_line();
        if last == "in" {
            drop(accepted(&listener));
        }
        agent.proceed();
        agent.finish();
        let next = Actor::start("agent", &[&address.to_string(), "1"]);
        next.expect("in");
        listener.close(Channels::Close);
    }
}

#[test]
fn hanging_callbacks_occupy_a_limited_number_of_threads() {
    const CALLS: usize = 20;
    // The maximum number of concurrent callback calls about one process.
    const MAX_CALLS: usize = 16;
    let (address, _keep) = fresh_address(false);
    let about = Arc::new(AtomicI32::new(0));
    let started = Arc::new(AtomicUsize::new(0));
    let released = Arc::new((Mutex::new(false), Condvar::new()));
    let policy = Policy::new().authorize_later({
        let (about, started, released) = (Arc::clone(&about), Arc::clone(&started), Arc::clone(&released));
        move |peer, decision| {
            if peer.pid == about.load(Ordering::Acquire) {
                started.fetch_add(1, Ordering::AcqRel);
                let (released, signal) = &*released;
                drop(signal.wait_while(released.lock().unwrap(), |released| !*released));
            }
            decision.allow();
        }
    });
    // Long enough for a client's handshake on a busy machine: all concurrent clients wait that long.
    let options = small().policy(policy).handshake_timeout(Duration::from_secs(2));
    let listener = listen(&address, &options).unwrap();
    listener.pause();
    let mut clients = Actor::start("concurrent connects", &[&address.to_string(), &CALLS.to_string()]);
    about.store(clients.pid(), Ordering::Release);
    listener.resume();
    let mut without_a_thread = 0;
    for _ in 0..CALLS {
        let error = refused(&listener).error;
        assert!(matches!(error, Error::HandshakeTimeout { .. }), "{error}");
        without_a_thread += usize::from(error.to_string().contains("calls that do not return"));
        clients.expect("PEER_LOST");
    }
    assert_eq!(
        (started.load(Ordering::Acquire), without_a_thread),
        (MAX_CALLS, CALLS - MAX_CALLS)
    );
    // All of these calls still hang.
    let mut agent = Actor::start("agent", &[&address.to_string(), "1"]);
    assert_eq!(accepted(&listener).peer().pid, agent.pid());
    agent.expect("in");
    listener.close(Channels::Close);
    // Their results are no longer needed, and their threads become available to others.
    *released.0.lock().unwrap() = true;
    released.1.notify_all();
    about.store(0, Ordering::Release);
    let listener = listen(&address, &options).unwrap();
    let mut again = Actor::start("agent", &[&address.to_string(), "1"]);
    again.expect("in");
    drop(listener);
    for actor in [&mut clients, &mut agent, &mut again] {
        actor.proceed();
    }
}
