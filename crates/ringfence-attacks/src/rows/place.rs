//! The address.

use std::time::Duration;

use super::{Event, SIZE, fenced, fenced_host, honest_guest, must, plain, plain_host, talks};
use crate::{
    Outcome, Report, RowError,
    actor::Actor,
    stage::{Program, Stage, Who},
};

/// Row 24: another user binds the name before the program does. An abstract name belongs to the first process
/// that binds it.
///
/// Defence: the guest checks the host just as the host checks the guest, and reports the process that
/// it found. In a directory that only the user may enter, another user cannot bind a path (EACCES); such an
/// address is the one to choose.
pub(super) fn squatter(stage: &Stage) -> Result<Report, RowError> {
    let squat = |address: &str, who: Who| {
        stage.spawn(
            "the squatter",
            who,
            Program::Genuine,
            &["hand", "plain", "host", address, "unsealed"],
        )
    };
    let address = stage.address("plain");
    let mut squatter = squat(&address, Who::Stranger)?;
    squatter.line_after("listening")?;
    let mut client = plain(stage, "the client")?;
    let plain = match &*client.ask(&format!("join {address} {SIZE}"))? {
        answer if answer.starts_with("error uid") => {
            Outcome::succeeded("the client refuses it, but has no service")
        }
        answer => Outcome::succeeded(answer),
    };

    let address = stage.address("ringfence");
    let mut squatter = squat(&address, Who::Stranger)?;
    squatter.line_after("listening")?;
    let mut client = fenced(stage, "the client")?;
    let answer = client.ask(&format!("join {address}"))?;
    let who = format!("process {}", squatter.pid());
    if !answer.starts_with("error PEER_REFUSED check=uid by_peer=false") || !answer.contains(&who) {
        return Ok(Report::with_harm(plain, answer));
    }

    let path = stage.private().join("named.sock").display().to_string();
    let refused = squat(&path, Who::Stranger)?.line()?;
    if refused != "failed listen: EACCES: Permission denied" {
        return Ok(Report::with_harm(
            plain,
            format!("a path in a private directory: {refused}"),
        ));
    }
    let mut host = fenced(stage, "the host")?;
    must(&mut host, &format!("join-aside {path}"), "joining")?;
    crate::post::wait_for_listener(&path).map_err(RowError::Wrong)?;
    honest_guest(stage, &mut host, &path, "")?;
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
pub(super) fn backlog(stage: &Stage) -> Result<Report, RowError> {
    let crowd = |address: &str| {
        stage.spawn(
            "the crowd",
            Who::Stranger,
            Program::Other,
            &["attacker", "crowd", address, "300"],
        )
    };
    let address = stage.address("plain");
    let host = plain_host(stage, &address, "")?;
    host.freeze()?;
    let mut strangers = crowd(&address)?;
    let there = strangers.line_after("crowd")?;
    let mut guest = plain(stage, "the guest")?;
    let plain = match guest.try_ask(&format!("join {address} {SIZE}"), Duration::from_secs(1)) {
        Event::Timeout => Outcome::succeeded(format!("the guest cannot connect (crowd: {there})")),
        other => Outcome::failed(format!("{other:?}")),
    };

    // In a directory that everyone may enter, so only the socket's mode counts.
    let path = stage.shared().join("named.sock").display().to_string();
    let mut host = fenced(stage, "the host")?;
    must(&mut host, &format!("join-aside {path}"), "joining")?;
    crate::post::wait_for_listener(&path).map_err(RowError::Wrong)?;
    host.freeze()?;
    let mut strangers = crowd(&path)?;
    let there = strangers.line_after("crowd")?;
    host.thaw()?;
    if there != "0 EACCES" {
        return Ok(Report::with_harm(plain, format!("a crowd of {there}")));
    }
    honest_guest(stage, &mut host, &path, "")?;
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
pub(super) fn silent_crowd(stage: &Stage) -> Result<Report, RowError> {
    let crowd = |address: &str, count: &str| {
        stage.spawn(
            "the crowd",
            Who::Agent,
            Program::Genuine,
            &["attacker", "crowd", address, count],
        )
    };
    let address = stage.address("plain");
    let mut host = plain_host(stage, &address, "")?;
    let mut silent = crowd(&address, "3")?;
    silent.line_after("crowd")?;
    host.line_after("joined host")?;
    let mut guest = plain(stage, "the guest")?;
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
        let address = stage.address(&format!("ringfence-{count}"));
        let mut host = fenced_host(stage, &address, &format!("timeout={timeout}"))?;
        let mut silent = crowd(&address, count)?;
        must_be(&silent.line_after("crowd")?, &format!("{count} no error"))?;
        let start = std::time::Instant::now();
        honest_guest(stage, &mut host, &address, "")?;
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

fn must_be(found: &str, wanted: &str) -> Result<(), RowError> {
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
pub(super) fn stale_race(stage: &Stage) -> Result<Report, RowError> {
    let path = stage.private().join("plain.sock").display().to_string();
    let (mut one, mut two) = (fenced(stage, "the first")?, fenced(stage, "the second")?);
    must(&mut one, &format!("stale {path}"), "stale")?;
    let (mut first, mut second) = (plain(stage, "the first")?, plain(stage, "the second")?);
    let answers = (
        first.ask(&format!("join {path} {SIZE}"))?,
        second.ask(&format!("join {path} {SIZE}"))?,
    );
    let plain = if answers.0.starts_with("error connect") && answers.1.starts_with("error connect") {
        Outcome::succeeded("neither becomes the host because of the stale file")
    } else {
        Outcome::failed(format!("{answers:?}"))
    };

    let path = stage.private().join("ringfence.sock").display().to_string();
    let mut hosts = [0, 0];
    for round in 0..RACES {
        must(&mut one, &format!("stale {path}"), "stale")?;
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
            talks(&mut one, &mut two)?;
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
const SEATS: usize = 16;

/// Row 42: an agent that passes every check connects until no slot is left. The plain program has a single
/// slot, which is taken immediately.
///
/// Defence: one process may have seven eighths of the slots (`maxPeersPerProcess`), so that others find
/// one.
pub(super) fn greedy(stage: &Stage) -> Result<Report, RowError> {
    let address = stage.address("plain");
    let mut host = plain_host(stage, &address, "")?;
    let mut greedy = plain(stage, "the greedy client")?;
    must(&mut greedy, &format!("join {address} {SIZE}"), "joined guest")?;
    host.line_after("joined host")?;
    let mut guest = plain(stage, "the guest")?;
    let plain = match guest.try_ask(&format!("join {address} {SIZE}"), Duration::from_secs(1)) {
        Event::Timeout => {
            Outcome::succeeded("the greedy client has the only slot; the honest one waits forever")
        }
        other => Outcome::succeeded(format!(
            "the greedy client has the only slot; the honest one: {other:?}"
        )),
    };

    let address = stage.address("ringfence");
    let mut service = fenced(stage, "the service")?;
    must(
        &mut service,
        &format!("listen {address} peers={SEATS}"),
        "listening",
    )?;
    let mut greedy = fenced(stage, "the greedy client")?;
    let answer = greedy.ask(&format!("connect {address} {}", SEATS + 4))?;
    let mut agent = fenced(stage, "the honest agent")?;
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
            "14 of {SEATS} slots, then ADDRESS_OCCUPIED with the limit; the honest agent connects"
        )),
        stopped_by: "a slot limit for each process and each user",
    })
}

/// Row 57: a program's callback about a peer never returns, or panics. The plain program runs it in the loop
/// that accepts clients.
///
/// Defence: a callback runs on its own thread, and the number of threads is limited. A panic counts as
/// a refusal, and silence ends at the deadline.
pub(super) fn bad_callback(stage: &Stage) -> Result<Report, RowError> {
    let address = stage.address("plain");
    let mut host = plain_host(stage, &address, "hang")?;
    let mut other = stage.spawn(
        "the refused one",
        Who::Agent,
        Program::Other,
        &["victim", "plain"],
    )?;
    other.send_order(&format!("join {address} {SIZE}"))?;
    host.line_after("refused")?;
    let mut guest = plain(stage, "the guest")?;
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
        let address = stage.address(how);
        let mut service = fenced(stage, "the service")?;
        let order = format!("listen {address} authorize={how} timeout=300");
        must(&mut service, &order, "listening")?;
        let mut bad = fenced(stage, "the checked agent")?;
        let answer = bad.ask(&format!("connect {address} 20"))?;
        if !answer.starts_with(&format!("connected 0 {code}")) {
            return Ok(Report::with_harm(plain, format!("{how}: {answer}")));
        }
        let mut agent = fenced(stage, "the honest agent")?;
        let honest = agent.ask(&format!("connect {address} 1"))?;
        if honest != "connected 1 no error" {
            return Ok(Report::with_harm(
                plain,
                format!("{how}; the honest agent: {honest}"),
            ));
        }
        must(&mut service, "close-services", "closed")?;
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(
            "20 panics: PEER_REFUSED; 20 hanging callbacks: the deadline; the honest agent connects",
        ),
        stopped_by: "callbacks run on their own, limited threads, and the handshake has a deadline",
    })
}

fn close_both(one: &mut Actor, other: &mut Actor) -> Result<(), RowError> {
    must(one, "close", "closed")?;
    must(other, "close", "closed")
}
