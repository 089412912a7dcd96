//! The address.

use std::time::Duration;

use super::{
    Event, SIZE, exchange_messages, expect_answer, honest_guest, plain, plain_host, protected, protected_host,
};
use crate::{
    Outcome, Report, RowError,
    process::Process,
    setup::{Program, Setup, User},
};

/// Row 24: another user binds the name before the program does. An abstract name belongs to the first process
/// that binds it.
///
/// Defence: the guest checks the host just as the host checks the guest, and reports the process that
/// it found. In a directory that only the user may enter, another user cannot bind a path (EACCES); such an
/// address is the one to choose.
pub(super) fn occupied_address(setup: &Setup) -> Result<Report, RowError> {
    let squat = |address: &str, who: User| {
        setup.spawn(
            "the squatter",
            who,
            Program::Genuine,
            &["hostile", "plain", "host", address, "unsealed"],
        )
    };
    let address = setup.address("plain");
    let mut squatter = squat(&address, User::Other)?;
    squatter.line_after("listening")?;
    let mut client = plain(setup, "the client")?;
    let plain = match &*client.ask(&format!("join {address} {SIZE}"))? {
        answer if answer.starts_with("error uid") => {
            Outcome::succeeded("the client refuses it, but has no service")
        }
        answer => Outcome::succeeded(answer),
    };

    let address = setup.address("ringfence");
    let mut squatter = squat(&address, User::Other)?;
    squatter.line_after("listening")?;
    let mut client = protected(setup, "the client")?;
    let answer = client.ask(&format!("join {address}"))?;
    let who = format!("process {}", squatter.pid());
    if !answer.starts_with("error PEER_REFUSED check=uid by_peer=false") || !answer.contains(&who) {
        return Ok(Report::with_harm(plain, answer));
    }

    let path = setup.private().join("named.sock").display().to_string();
    let refused = squat(&path, User::Other)?.line()?;
    if refused != "failed listen: EACCES: Permission denied" {
        return Ok(Report::with_harm(
            plain,
            format!("a path in a private directory: {refused}"),
        ));
    }
    let mut host = protected(setup, "the host")?;
    expect_answer(&mut host, &format!("join-in-background {path}"), "joining")?;
    crate::socket::wait_for_listener(&path).map_err(RowError::Wrong)?;
    honest_guest(setup, &mut host, &path, "")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed(
            "abstract: PEER_REFUSED with the squatter's pid; a path: EACCES for the other user",
        ),
        stopped_by: "both sides check each other; the directory's mode",
    })
}

/// Row 25: another user connects until the backlog is full (listen(2)), while the host is busy for a moment.
/// Then no other client can connect. (Here the host is stopped, so the moment lasts as long as needed.)
///
/// Defence: connecting needs write permission on the socket's file (unix(7)), which only the owner has
/// from its creation, whatever the umask. An abstract name has no such file.
pub(super) fn backlog(setup: &Setup) -> Result<Report, RowError> {
    let connect_many = |address: &str| {
        setup.spawn(
            "the clients",
            User::Other,
            Program::Other,
            &["attacker", "connect-many", address, "300"],
        )
    };
    let address = setup.address("plain");
    let host = plain_host(setup, &address, "")?;
    host.stop()?;
    let mut clients = connect_many(&address)?;
    let connected = clients.line_after("connected")?;
    let mut guest = plain(setup, "the guest")?;
    let plain = match guest.try_ask(&format!("join {address} {SIZE}"), Duration::from_secs(1)) {
        Event::Timeout => Outcome::succeeded(format!("the guest cannot connect (clients: {connected})")),
        other => Outcome::failed(format!("{other:?}")),
    };

    // In a directory that everyone may enter, so only the socket's mode counts.
    let path = setup.shared().join("named.sock").display().to_string();
    let mut host = protected(setup, "the host")?;
    expect_answer(&mut host, &format!("join-in-background {path}"), "joining")?;
    crate::socket::wait_for_listener(&path).map_err(RowError::Wrong)?;
    host.stop()?;
    let mut clients = connect_many(&path)?;
    let connected = clients.line_after("connected")?;
    host.resume()?;
    if connected != "0 EACCES" {
        return Ok(Report::with_harm(plain, format!("clients: {connected}")));
    }
    honest_guest(setup, &mut host, &path, "")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed("a path: EACCES for the other user"),
        stopped_by: "the socket file has mode 0600 from creation on",
    })
}

/// Row 26: many processes that pass every check (same user, same executable) connect and send nothing. The
/// plain program passes its object to the first of them and is then unavailable to everyone else.
///
/// Defence: the first guest that completes a handshake gets the place, not the first that connects.
/// Handshakes run in parallel, and each has a deadline.
pub(super) fn silent_clients(setup: &Setup) -> Result<Report, RowError> {
    let connect_many = |address: &str, count: &str| {
        setup.spawn(
            "the clients",
            User::Agent,
            Program::Genuine,
            &["attacker", "connect-many", address, count],
        )
    };
    let address = setup.address("plain");
    let mut host = plain_host(setup, &address, "")?;
    let mut silent = connect_many(&address, "3")?;
    silent.line_after("connected")?;
    host.line_after("joined host")?;
    let mut guest = plain(setup, "the guest")?;
    guest.send_order(&format!("join {address} {SIZE}"))?;
    let plain = match guest.next_event(Duration::from_secs(1)) {
        // It is the host of its own address now, and waits for a guest that waits elsewhere.
        Event::Timeout => {
            Outcome::succeeded("the silent client occupies the host; the honest one finds no peer")
        }
        other => Outcome::succeeded(format!(
            "the silent client occupies the host; the honest one: {other:?}"
        )),
    };

    // With a few silent clients, others are served immediately. With more than run in parallel, they are
    // served after the deadline.
    for (count, timeout) in [("8", "20000"), ("40", "500")] {
        let address = setup.address(&format!("ringfence-{count}"));
        let mut host = protected_host(setup, &address, &format!("timeout={timeout}"))?;
        let mut silent = connect_many(&address, count)?;
        expect_equal(&silent.line_after("connected")?, &format!("{count} no error"))?;
        let start = std::time::Instant::now();
        honest_guest(setup, &mut host, &address, "")?;
        if start.elapsed() > Duration::from_secs(10) {
            return Ok(Report::with_harm(
                plain,
                format!("{count} silent clients block it for {:?}", start.elapsed()),
            ));
        }
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(
            "the honest client connects next to 8 silent ones, and after the timeout of 40",
        ),
        stopped_by: "concurrent handshakes, each with a deadline; a client becomes the peer only at READY",
    })
}

fn expect_equal(found: &str, wanted: &str) -> Result<(), RowError> {
    if found == wanted {
        Ok(())
    } else {
        Err(RowError::wrong(format!("{found:?} instead of {wanted:?}")))
    }
}

/// The number of simultaneous starts.
const RACES: usize = 1000;

/// Row 27: a host was killed and has left its socket's file, and two processes start at the same moment. The
/// plain program finds the name taken by a socket that does not answer, and gives up.
///
/// Defence: a lock file next to the socket shows whether its owner is alive (flock(2) ends with its
/// holder). Only the process that has the lock may remove stale files.
pub(super) fn stale_race(setup: &Setup) -> Result<Report, RowError> {
    let path = setup.private().join("plain.sock").display().to_string();
    let (mut one, mut two) = (protected(setup, "the first")?, protected(setup, "the second")?);
    expect_answer(&mut one, &format!("stale {path}"), "stale")?;
    let (mut first, mut second) = (plain(setup, "the first")?, plain(setup, "the second")?);
    let answers = (
        first.ask(&format!("join {path} {SIZE}"))?,
        second.ask(&format!("join {path} {SIZE}"))?,
    );
    let plain = if answers.0.starts_with("error connect") && answers.1.starts_with("error connect") {
        Outcome::succeeded("neither becomes the host because of the stale file")
    } else {
        Outcome::failed(format!("{answers:?}"))
    };

    let path = setup.private().join("ringfence.sock").display().to_string();
    let mut hosts = [0, 0];
    for round in 0..RACES {
        expect_answer(&mut one, &format!("stale {path}"), "stale")?;
        let order = format!("join {path}");
        one.send_order(&order)?;
        two.send_order(&order)?;
        let (first, second) = (one.line()?, two.line()?);
        let role = |answer: &str| answer.split(" pid=").next().map(str::to_owned);
        match (role(&first).as_deref(), role(&second).as_deref()) {
            (Some("joined host"), Some("joined guest")) => hosts[0] += 1,
            (Some("joined guest"), Some("joined host")) => hosts[1] += 1,
            _ => {
                return Ok(Report::with_harm(
                    plain,
                    format!("race {round}: {first} and {second}"),
                ));
            }
        }
        if round % 100 == 0 {
            exchange_messages(&mut one, &mut two)?;
        }
        close_both(&mut one, &mut two)?;
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(format!(
            "{RACES} races, each with one host and one guest ({} to {})",
            hosts[0], hosts[1]
        )),
        stopped_by: "a lock that the kernel releases when its holder dies",
    })
}

/// The number of slots of the service in row 42.
const SLOTS: usize = 16;

/// Row 42: an agent that passes every check connects until no slot is left. The plain program has a single
/// slot, which is taken immediately.
///
/// Defence: one process may have seven eighths of the slots (`maxPeersPerProcess`), so that others find
/// one.
pub(super) fn slot_exhaustion(setup: &Setup) -> Result<Report, RowError> {
    let address = setup.address("plain");
    let mut host = plain_host(setup, &address, "")?;
    let mut greedy = plain(setup, "the greedy client")?;
    expect_answer(&mut greedy, &format!("join {address} {SIZE}"), "joined guest")?;
    host.line_after("joined host")?;
    let mut guest = plain(setup, "the guest")?;
    let plain = match guest.try_ask(&format!("join {address} {SIZE}"), Duration::from_secs(1)) {
        Event::Timeout => {
            Outcome::succeeded("the greedy client has the only slot; the honest one waits forever")
        }
        other => Outcome::succeeded(format!(
            "the greedy client has the only slot; the honest one: {other:?}"
        )),
    };

    let address = setup.address("ringfence");
    let mut service = protected(setup, "the service")?;
    expect_answer(
        &mut service,
        &format!("listen {address} peers={SLOTS}"),
        "listening",
    )?;
    let mut greedy = protected(setup, "the greedy client")?;
    let answer = greedy.ask(&format!("connect {address} {}", SLOTS + 4))?;
    let mut agent = protected(setup, "the honest agent")?;
    let honest = agent.ask(&format!("connect {address} 1"))?;
    if honest != "connected 1 no error" {
        return Ok(Report::with_harm(
            plain,
            format!("{answer}; the honest agent: {honest}"),
        ));
    }
    if !answer.starts_with("connected 14 error ADDRESS_OCCUPIED") || !answer.contains("one process may have")
    {
        return Ok(Report::with_harm(plain, answer));
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(format!(
            "14 of {SLOTS} slots, then ADDRESS_OCCUPIED with the limit; the honest agent connects"
        )),
        stopped_by: "a slot limit for each process and each user",
    })
}

/// Row 57: a program's callback about a peer never returns, or panics. The plain program runs it in the loop
/// that accepts clients.
///
/// Defence: a callback runs on its own thread, and the number of threads is limited. A panic counts as
/// a refusal, and silence ends at the deadline.
pub(super) fn bad_callback(setup: &Setup) -> Result<Report, RowError> {
    let address = setup.address("plain");
    let mut host = plain_host(setup, &address, "hang")?;
    let mut other = setup.spawn(
        "the refused one",
        User::Agent,
        Program::Other,
        &["victim", "plain"],
    )?;
    other.send_order(&format!("join {address} {SIZE}"))?;
    host.line_after("refused")?;
    let mut guest = plain(setup, "the guest")?;
    let plain = match guest.try_ask(&format!("join {address} {SIZE}"), Duration::from_secs(1)) {
        Event::Timeout => {
            Outcome::succeeded("the host's callback does not return; the honest guest waits forever")
        }
        other => Outcome::failed(format!("{other:?}")),
    };

    for (how, code) in [
        ("panic", "error PEER_REFUSED check=authorize"),
        ("hang", "error PEER_LOST"),
    ] {
        let address = setup.address(how);
        let mut service = protected(setup, "the service")?;
        let order = format!("listen {address} authorize={how} timeout=300");
        expect_answer(&mut service, &order, "listening")?;
        let mut bad = protected(setup, "the checked agent")?;
        let answer = bad.ask(&format!("connect {address} 20"))?;
        if !answer.starts_with(&format!("connected 0 {code}")) {
            return Ok(Report::with_harm(plain, format!("{how}: {answer}")));
        }
        let mut agent = protected(setup, "the honest agent")?;
        let honest = agent.ask(&format!("connect {address} 1"))?;
        if honest != "connected 1 no error" {
            return Ok(Report::with_harm(
                plain,
                format!("{how}; the honest agent: {honest}"),
            ));
        }
        expect_answer(&mut service, "close-services", "closed")?;
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(
            "20 panics: PEER_REFUSED; 20 hanging callbacks: the deadline; the honest agent connects",
        ),
        stopped_by: "callbacks run on their own, limited threads, and the handshake has a deadline",
    })
}

fn close_both(one: &mut Process, other: &mut Process) -> Result<(), RowError> {
    expect_answer(one, "close", "closed")?;
    expect_answer(other, "close", "closed")
}
