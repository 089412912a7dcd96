//! The signal by which one side announces that it is about to leave, and the handover of the address.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::{SIZE, expect_answer, plain, plain_host, protected};
use crate::{
    Outcome, Report, RowError,
    plain::LEAVING,
    process::{Event, Process},
    setup::{Program, Setup, User},
};

/// The signal numbers that the plain program and ringfence wait for by default.
pub(super) const NUMBERS: (i32, i32) = (40, 50);
/// A user has one signal queue for all its processes, so the tests that fill it and those that need it take
/// turns.
pub(super) static QUEUE: Mutex<()> = Mutex::new(());
/// Longer than any of them needs for a wrong reaction.
const WHILE: Duration = Duration::from_secs(1);

fn attacker(setup: &Setup, words: &[&str]) -> Result<Process, RowError> {
    let words: Vec<_> = ["attacker"].iter().chain(words).copied().collect();
    setup.spawn("the attacker", User::Agent, Program::Genuine, &words)
}

/// Starts a pair of the plain program whose guest waits for the announcement to take over the address.
pub(super) fn plain_heir(setup: &Setup, address: &str) -> Result<(Process, Process), RowError> {
    let mut host = plain_host(setup, address, "")?;
    let mut guest = plain(setup, "the guest")?;
    expect_answer(&mut guest, &format!("join {address} {SIZE}"), "joined guest")?;
    host.line_after("joined host")?;
    expect_answer(
        &mut guest,
        &format!("successor {address} {}", NUMBERS.0),
        "waiting",
    )?;
    Ok((host, guest))
}

/// Starts two members with a channel between them.
fn members(setup: &Setup, address: &str) -> Result<(Process, Process), RowError> {
    let (mut host, mut guest) = (protected(setup, "the host")?, protected(setup, "the guest")?);
    expect_answer(&mut host, &format!("member {address}"), "member host")?;
    expect_answer(&mut guest, &format!("member {address}"), "member guest")?;
    expect_answer(&mut guest, "change 10000", "channel")?;
    expect_answer(&mut host, "change 10000", "channel")?;
    super::exchange_messages(&mut host, &mut guest)?;
    Ok((host, guest))
}

/// Makes the host leave and its guest take over, and lets a third member join.
fn hands_over(setup: &Setup, host: &mut Process, guest: &mut Process, address: &str) -> Result<(), RowError> {
    expect_answer(host, "leave", "left")?;
    expect_answer(guest, "change 10000", "role host")?;
    let mut third = protected(setup, "the third")?;
    expect_answer(&mut third, &format!("member {address}"), "member guest")?;
    expect_answer(&mut third, "change 10000", "channel")?;
    expect_answer(guest, "change 10000", "channel")?;
    super::exchange_messages(guest, &mut third)
}

/// Row 28: a process of the same user sends the guest the signal that means "I am leaving", in the host's
/// name (rt_sigqueueinfo(2): the sender chooses the number in it). The plain program takes over the address
/// while its host still exists, and from then on there are two hosts.
///
/// Defence: a leaving host announces that in its own memory, which no other process can write, and ends
/// the private line.
pub(super) fn forged_leave_signal(setup: &Setup) -> Result<Report, RowError> {
    let _turn = QUEUE.lock().unwrap_or_else(PoisonError::into_inner);
    let address = setup.address("plain");
    let (mut host, mut guest) = plain_heir(setup, &address)?;
    let forge = |guest: &Process, host: &Process, number: i32, value: u64| {
        let words = [
            "forge",
            &guest.pid().to_string(),
            &host.pid().to_string(),
            &number.to_string(),
            &value.to_string(),
        ];
        attacker(setup, &words)?.line_after("forged")
    };
    forge(&guest, &host, NUMBERS.0, LEAVING as u64)?;
    let plain = match guest.next_event(WHILE) {
        Event::Line(line) if line == "took over" => {
            expect_answer(&mut host, "alive", "alive")?;
            Outcome::succeeded("the guest takes over the address while its host is still alive")
        }
        other => Outcome::failed(format!("{other:?}")),
    };

    let address = setup.address("ringfence");
    let (mut host, mut guest) = members(setup, &address)?;
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
    super::exchange_messages(&mut host, &mut guest)?;
    hands_over(setup, &mut host, &mut guest, &address)?;
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
pub(super) fn full_signal_queue(setup: &Setup) -> Result<Report, RowError> {
    let _turn = QUEUE.lock().unwrap_or_else(PoisonError::into_inner);
    let address = setup.address("plain");
    let (mut host, mut guest) = plain_heir(setup, &address)?;
    let mut flood = attacker(setup, &["flood"])?;
    flood.line_after("flooded")?;
    let outcome = host.ask(&format!("announce-leave {}", NUMBERS.0))?;
    host.kill();
    let plain = match guest.next_event(WHILE) {
        Event::Timeout if outcome.starts_with("error EAGAIN") => Outcome::succeeded(
            "the host cannot announce that it leaves, and no process takes over the address",
        ),
        other => Outcome::failed(format!("{outcome}, then {other:?}")),
    };
    drop(flood);

    let address = setup.address("ringfence");
    let (mut host, mut guest) = members(setup, &address)?;
    let mut flood = attacker(setup, &["flood"])?;
    flood.line_after("flooded")?;
    hands_over(setup, &mut host, &mut guest, &address)?;
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
pub(super) fn false_alarm(setup: &Setup) -> Result<Report, RowError> {
    /// The number of signals; each causes a check.
    const ALARMS: u32 = 20;
    let sigio = |victim: &Process| {
        let words = ["sigio", &victim.pid().to_string()];
        attacker(setup, &words)?.line_after("sent")
    };
    let (mut host, _guest) = super::plain_pair(setup, &setup.address("plain"))?;
    sigio(&host)?;
    let plain = match host.next_event(super::TIME_LIMIT) {
        Event::Exited(how) => Outcome::succeeded(format!("killed: {how}")),
        other => Outcome::failed(format!("{other:?}")),
    };

    let (mut host, mut guest) = super::protected_pair(setup, &setup.address("ringfence"), "")?;
    expect_answer(&mut host, "fill", "full")?;
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
        super::exchange_messages(&mut host, &mut guest)?;
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed("nothing happens, and the channel stays open"),
        stopped_by: "/proc/locks, which is held open, decides",
    })
}
