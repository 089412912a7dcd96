//! A forked child that does not execute another program.

use super::{SIZE, exchange_messages, expect_answer, plain, plain_host, protected};
use crate::{Outcome, Report, RowError, setup::Setup};

/// Row 56: a program forks, and the child continues with its copy of the parent's state and drops it, as a
/// forgotten destructor would. The child of the plain program talks to the guest in the parent's place.
///
/// Defence: everything made before the fork belongs to the parent, and does nothing in the child.
pub(super) fn without_exec(setup: &Setup) -> Result<Report, RowError> {
    let address = setup.address("plain");
    let mut host = plain_host(setup, &address, "")?;
    let mut guest = plain(setup, "the guest")?;
    expect_answer(&mut guest, &format!("join {address} {SIZE}"), "joined guest")?;
    host.line_after("joined host")?;
    expect_answer(&mut host, "in-child", "child")?;
    host.line_after("ended well")?;
    let answer = guest.ask("receive 10000")?;
    let plain = if answer == "got 10 the-childs" {
        Outcome::succeeded("the child speaks to the peer as its parent")
    } else {
        Outcome::failed(answer)
    };

    let address = setup.address("ringfence");
    let (mut host, mut guest) = (protected(setup, "the host")?, protected(setup, "the guest")?);
    expect_answer(&mut host, &format!("member {address}"), "member host")?;
    expect_answer(&mut guest, &format!("member {address}"), "member guest")?;
    expect_answer(&mut guest, "change 10000", "channel")?;
    expect_answer(&mut host, "change 10000", "channel")?;
    for host_forks in [true, false] {
        let parent = if host_forks { &mut host } else { &mut guest };
        let said = parent.ask("in-child")?;
        if !said.starts_with("child error CLOSED") {
            return Ok(Report::with_harm(plain, said));
        }
        let ended = parent.line()?;
        if ended != "ended well" {
            return Ok(Report::with_harm(plain, ended));
        }
        // Both continue as if nothing had happened: the first message that each receives is the other's.
        exchange_messages(&mut host, &mut guest)?;
    }
    // The guest still has what it needs to take over from its host.
    expect_answer(&mut host, "leave", "left")?;
    expect_answer(&mut guest, "change 10000", "role host")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed(
            "CLOSED in the child; the parent, its peer and the address are unaffected",
        ),
        stopped_by: "every handle knows the process that created it",
    })
}
