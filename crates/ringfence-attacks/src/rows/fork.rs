//! A child that is forked and executes nothing.

use super::{SIZE, fenced, must, plain, plain_host, talks};
use crate::{Half, Report, Trouble, stage::Stage};

/// Row 56: A program forks, and the child goes on with its copy of what the parent has, and drops it, as a destructor does
/// that its program does not think of. The child of the plain program speaks to the guest in its parent's place.
///
/// What stops it: whatever was made before the fork is the parent's, and does nothing in the child.
pub(super) fn without_exec(stage: &Stage) -> Result<Report, Trouble> {
    let address = stage.address("plain");
    let mut host = plain_host(stage, &address, "")?;
    let mut guest = plain(stage, "the guest")?;
    must(&mut guest, &format!("join {address} {SIZE}"), "joined guest")?;
    host.expect("joined host")?;
    must(&mut host, "in-child", "child")?;
    host.expect("ended well")?;
    let answer = guest.ask("receive 10000")?;
    let plain = if answer == "got 10 the-childs" {
        Half::bit("the child speaks to the peer as its parent")
    } else {
        Half::held(answer)
    };

    let address = stage.address("ringfence");
    let (mut host, mut guest) = (fenced(stage, "the host")?, fenced(stage, "the guest")?);
    must(&mut host, &format!("member {address}"), "member host")?;
    must(&mut guest, &format!("member {address}"), "member guest")?;
    must(&mut guest, "change 10000", "channel")?;
    must(&mut host, "change 10000", "channel")?;
    for host_forks in [true, false] {
        let parent = if host_forks { &mut host } else { &mut guest };
        let said = parent.ask("in-child")?;
        if !said.starts_with("child error CLOSED") {
            return Ok(Report::bitten(plain, said));
        }
        let ended = parent.line()?;
        if ended != "ended well" {
            return Ok(Report::bitten(plain, ended));
        }
        // Both go on as if nothing had been: what each hears first is the other's.
        talks(&mut host, &mut guest)?;
    }
    // The guest still has what it needs to follow its host.
    must(&mut host, "leave", "left")?;
    must(&mut guest, "change 10000", "role host")?;
    Ok(Report {
        plain,
        ringfence: Half::held("CLOSED in the child; the parent, its peer and the place go on"),
        stopped_by: "every handle knows in which process it was made",
    })
}
