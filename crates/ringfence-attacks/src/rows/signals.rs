//! The signal by which one side announces that it is about to leave, and the handover of the address.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::{SIZE, fenced, must, plain, plain_host};
use crate::{
    Outcome, Report, RowError,
    actor::{Actor, Event},
    plain::LEAVING,
    stage::{Program, Stage, Who},
};

/// The signal numbers that the plain program and ringfence wait for by default.
pub(super) const NUMBERS: (i32, i32) = (40, 50);
/// A user has one signal queue for all its processes, so the tests that fill it and those that need it take
/// turns.
pub(super) static QUEUE: Mutex<()> = Mutex::new(());
/// Longer than any of them needs for a wrong reaction.
const WHILE: Duration = Duration::from_secs(1);

fn attacker(stage: &Stage, words: &[&str]) -> Result<Actor, RowError> {
    let words: Vec<_> = ["attacker"].iter().chain(words).copied().collect();
    stage.spawn("the attacker", Who::Agent, Program::Genuine, &words)
}

/// Starts a pair of the plain program whose guest waits for the announcement to take over the address.
pub(super) fn plain_heir(stage: &Stage, address: &str) -> Result<(Actor, Actor), RowError> {
    let mut host = plain_host(stage, address, "")?;
    let mut guest = plain(stage, "the guest")?;
    must(&mut guest, &format!("join {address} {SIZE}"), "joined guest")?;
    host.line_after("joined host")?;
    must(
        &mut guest,
        &format!("successor {address} {}", NUMBERS.0),
        "waiting",
    )?;
    Ok((host, guest))
}

/// Starts two members with a channel between them.
fn members(stage: &Stage, address: &str) -> Result<(Actor, Actor), RowError> {
    let (mut host, mut guest) = (fenced(stage, "the host")?, fenced(stage, "the guest")?);
    must(&mut host, &format!("member {address}"), "member host")?;
    must(&mut guest, &format!("member {address}"), "member guest")?;
    must(&mut guest, "change 10000", "channel")?;
    must(&mut host, "change 10000", "channel")?;
    super::talks(&mut host, &mut guest)?;
    Ok((host, guest))
}

/// Makes the host leave and its guest take over, and lets a third member join.
fn hands_over(stage: &Stage, host: &mut Actor, guest: &mut Actor, address: &str) -> Result<(), RowError> {
    must(host, "leave", "left")?;
    must(guest, "change 10000", "role host")?;
    let mut third = fenced(stage, "the third")?;
    must(&mut third, &format!("member {address}"), "member guest")?;
    must(&mut third, "change 10000", "channel")?;
    must(guest, "change 10000", "channel")?;
    super::talks(guest, &mut third)
}

/// Row 28: a process of the same user sends the guest the signal that means "I am leaving", in the host's
/// name (rt_sigqueueinfo(2): the sender chooses the number in it). The plain program takes over the address
/// while its host still exists, and from then on there are two hosts.
///
/// Defence: a leaving host announces that in its own memory, which no other process can write, and ends
/// the private line.
pub(super) fn forged_farewell(stage: &Stage) -> Result<Report, RowError> {
    let _turn = QUEUE.lock().unwrap_or_else(PoisonError::into_inner);
    let address = stage.address("plain");
    let (mut host, mut guest) = plain_heir(stage, &address)?;
    let forge = |guest: &Actor, host: &Actor, number: i32, value: u64| {
        let words = [
            "forge",
            &guest.pid().to_string(),
            &host.pid().to_string(),
            &number.to_string(),
            &value.to_string(),
        ];
        attacker(stage, &words)?.line_after("forged")
    };
    forge(&guest, &host, NUMBERS.0, LEAVING as u64)?;
    let plain = match guest.next_event(WHILE) {
        Event::Line(line) if line == "took over" => {
            must(&mut host, "alive", "alive")?;
            Outcome::succeeded("the guest takes over the address while its host is still alive")
        }
        other => Outcome::failed(format!("{other:?}")),
    };

    let address = stage.address("ringfence");
    let (mut host, mut guest) = members(stage, &address)?;
    for _ in 0..10 {
        forge(&guest, &host, NUMBERS.1, ringfence::LEAVING)?;
        forge(&host, &guest, NUMBERS.1, ringfence::LEAVING)?;
    }
    for (member, role) in [(&mut guest, "guest"), (&mut host, "host")] {
        let change = member.ask("change 500")?;
        let now = member.ask("role")?;
        if change != "nothing" || now != role {
            return Ok(Report::with_harm(
                plain,
                format!("{change}, and the role of the {role} is {now}"),
            ));
        }
    }
    super::talks(&mut host, &mut guest)?;
    hands_over(stage, &mut host, &mut guest, &address)?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed("nothing happens; when the host leaves, its guest takes over"),
        stopped_by: "the host announces that it leaves in its memory and on the private line",
    })
}

/// Row 29: a process of the same user fills the signal queue, whose size is limited per user
/// (`RLIMIT_SIGPENDING`), with signals to itself. The plain program's host can no longer announce to its
/// guest that it leaves, so the address has no owner afterwards.
///
/// Defence: the line reports it.
pub(super) fn flooded_queue(stage: &Stage) -> Result<Report, RowError> {
    let _turn = QUEUE.lock().unwrap_or_else(PoisonError::into_inner);
    let address = stage.address("plain");
    let (mut host, mut guest) = plain_heir(stage, &address)?;
    let mut flood = attacker(stage, &["flood"])?;
    flood.line_after("flooded")?;
    let told = host.ask(&format!("farewell {}", NUMBERS.0))?;
    host.kill();
    let plain = match guest.next_event(WHILE) {
        Event::Timeout if told.starts_with("error EAGAIN") => Outcome::succeeded(
            "the host cannot announce that it leaves, and no process takes over the address",
        ),
        other => Outcome::failed(format!("{told}, then {other:?}")),
    };
    drop(flood);

    let address = stage.address("ringfence");
    let (mut host, mut guest) = members(stage, &address)?;
    let mut flood = attacker(stage, &["flood"])?;
    flood.line_after("flooded")?;
    hands_over(stage, &mut host, &mut guest, &address)?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed("the guest takes over from its host as usual"),
        stopped_by: "the announcement uses the private line, not a signal",
    })
}

/// Row 55: a process of the same user sends SIGIO to the thread that waits for alarms. The kernel sends that
/// signal when the signal queue is full (tgkill(2)). The program has no descriptor left for a check. The
/// plain program, which has no such thread, is terminated.
///
/// Defence: the table of locks, which is kept open, shows that the lease is unchanged.
pub(super) fn false_alarm(stage: &Stage) -> Result<Report, RowError> {
    /// The number of signals; each causes a check.
    const ALARMS: u32 = 20;
    let sigio = |victim: &Actor| {
        let words = ["sigio", &victim.pid().to_string()];
        attacker(stage, &words)?.line_after("sent")
    };
    let (mut host, _guest) = super::plain_pair(stage, &stage.address("plain"))?;
    sigio(&host)?;
    let plain = match host.next_event(super::TIME_LIMIT) {
        Event::Exited(how) => Outcome::succeeded(format!("killed: {how}")),
        other => Outcome::failed(format!("{other:?}")),
    };

    let (mut host, mut guest) = super::fenced_pair(stage, &stage.address("ringfence"), "")?;
    must(&mut host, "fill", "full")?;
    for alarm in 1..=ALARMS {
        sigio(&host)?;
        // The thread takes the signal before it sleeps again, and a wipe would end the channel.
        let answer = guest.ask("receive 20")?;
        if answer != "nothing" {
            return Ok(Report::with_harm(
                plain,
                format!("{answer}, after {alarm} signals"),
            ));
        }
        super::talks(&mut host, &mut guest)?;
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed("nothing happens, and the channel stays open"),
        stopped_by: "/proc/locks, which is held open, decides",
    })
}
