//! Namespaces, in which numbers mean something else.

use super::{SIZE, must};
use crate::{
    Outcome, Report, RowError,
    stage::{Program, Space, Stage, Who},
};

/// Row 19: inode numbers are unique only within a filesystem. Two fresh filesystems with one file each give
/// both files the same number.
///
/// Defence: device and inode are compared (inode(7)).
pub(super) fn same_inode(stage: &Stage) -> Result<Report, RowError> {
    let (one, two) = (stage.private().join("one"), stage.private().join("two"));
    for place in [&one, &two] {
        std::fs::create_dir(place).map_err(|error| RowError::wrong(error.to_string()))?;
    }
    let mounts = stage.own_mounts(1 << 20, &[&one, &two])?;
    let (genuine, other) = (one.join("program"), two.join("program"));
    let address = stage.address("plain");
    let mut host = mounts.spawn_at("the host", &genuine, &["victim", "plain"])?;
    host.send_order(&format!("join {address} {SIZE} inode-only listening"))?;
    host.line_after("listening")?;
    let mut thief = mounts.spawn_at("the other program", &other, &["attacker", "knock", &address])?;
    let plain = match &*thief.line()? {
        answer if answer.starts_with("holding") => {
            Outcome::succeeded("the object is passed if only st_ino is compared")
        }
        answer => Outcome::failed(answer),
    };

    let address = stage.address("ringfence");
    let mut host = mounts.spawn_at("the host", &genuine, &["victim", "ringfence"])?;
    super::host_again(&mut host, &address, "")?;
    let mut thief = mounts.spawn_at("the other program", &other, &["hand", "ringfence"])?;
    must(&mut thief, &format!("connect {address}"), "connected")?;
    let answer = thief.ask("hear")?;
    if !answer.starts_with("refuse 2 executable ") {
        return Ok(Report::with_harm(plain, answer));
    }
    let mut guest = mounts.spawn_at("the honest guest", &genuine, &["victim", "ringfence"])?;
    must(&mut guest, &format!("join {address}"), "joined guest")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed("PEER_REFUSED (executable); the host accepts the next client"),
        stopped_by: "device and inode are compared",
    })
}

/// Row 22: in a user namespace, every unmapped user has the overflow uid (user_namespaces(7)). To an unmapped
/// victim, every stranger seems to have the victim's own uid. (If the executable is readable, it may still
/// distinguish them. Here it is not, and only the uid is checked.)
///
/// Defence: the overflow uid belongs to no user, and is always refused.
pub(super) fn unmapped(stage: &Stage) -> Result<Report, RowError> {
    let address = stage.address("plain");
    let mut host = stage.spawn_in("the host", Space::UnmappedUsers, &["victim", "plain"])?;
    host.send_order(&format!("join {address} {SIZE} uid-only listening tell"))?;
    if let Some(why) = host.line()?.strip_prefix("failed ") {
        return Err(RowError::Skipped(why.to_owned()));
    }
    let knock = |address: &str| {
        stage.spawn(
            "the stranger",
            Who::Stranger,
            Program::Genuine,
            &["attacker", "knock", address],
        )
    };
    let plain = match &*knock(&address)?.line()? {
        answer if answer.starts_with("holding") => {
            Outcome::succeeded("the object is passed to another user: both read as the overflow uid")
        }
        answer => Outcome::failed(answer),
    };

    let address = stage.address("ringfence");
    let mut host = stage.spawn_in("the host", Space::UnmappedUsers, &["victim", "ringfence"])?;
    super::host_again(&mut host, &address, "policy=uid")?;
    let answer = knock(&address)?.line()?;
    // An unmapped process cannot even stamp a message, so it cannot send a reason.
    if answer != "nothing" && !answer.starts_with("refuse 2 uid ") {
        return Ok(Report::with_harm(plain, answer));
    }
    must(&mut host, "pid", "")?;
    // In the other direction, the reason is visible.
    let address = stage.address("guest");
    let args = ["hand", "plain", "host", &address, "unsealed"];
    let mut stranger = stage.spawn("the stranger", Who::Stranger, Program::Genuine, &args)?;
    stranger.line_after("listening")?;
    let mut guest = stage.spawn_in("the guest", Space::UnmappedUsers, &["victim", "ringfence"])?;
    let answer = guest.ask(&format!("join {address} policy=uid"))?;
    if !answer.starts_with("error PEER_REFUSED check=uid by_peer=false") {
        return Ok(Report::with_harm(plain, answer));
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed("PEER_REFUSED (uid), whatever the policy"),
        stopped_by: "the overflow uid is never admitted",
    })
}

/// Row 23: a process in another pid namespace that is not below the victim's has no number there.
/// `SO_PEERCRED` says 0 (pid_namespaces(7)), which means the caller itself to some calls and its process
/// group to others. (The plain program is saved because there is no /proc/0.)
///
/// Defence: such a peer is refused before anything else is checked.
pub(super) fn pid_zero(stage: &Stage) -> Result<Report, RowError> {
    let address = stage.address("plain");
    let mut host = stage.spawn_in("the host", Space::OwnPids, &["victim", "plain"])?;
    host.send_order(&format!("join {address} {SIZE} listening tell"))?;
    host.line_after("listening")?;
    let knock = |address: &str| {
        stage.spawn(
            "the foreigner",
            Who::Agent,
            Program::Genuine,
            &["attacker", "knock", address],
        )
    };
    let plain = match &*knock(&address)?.line()? {
        "nothing" => Outcome::failed("refused, because there is no /proc/0"),
        answer => Outcome::succeeded(answer),
    };

    let address = stage.address("ringfence");
    let mut host = stage.spawn_in("the host", Space::OwnPids, &["victim", "ringfence"])?;
    super::host_again(&mut host, &address, "policy=uid")?;
    let answer = knock(&address)?.line()?;
    if !(answer.starts_with("refuse 2 namespace ") && answer.ends_with(" 0 descriptors")) {
        return Ok(Report::with_harm(plain, answer));
    }
    must(&mut host, "pid", "1")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed("PEER_REFUSED (namespace), unless the policy allows it"),
        stopped_by: "a peer must live in the same pid namespace",
    })
}

/// Row 40: any user gets `CAP_SYS_ADMIN` over a pid namespace with `unshare -Urp`. There a process may put
/// the number of any other into the credentials of a message (unix(7)). As in row 14, one process connects
/// and becomes the genuine program, and another sends on the line, here in the name of the first.
///
/// Defence: a peer must live in this process's own pid namespace, whose processes cannot be
/// impersonated from below.
pub(super) fn namesake(stage: &Stage) -> Result<Report, RowError> {
    let genuine = stage.program(Program::Genuine).display().to_string();
    let attacker = |how: &str, address: &str| {
        let args = ["attacker", "namesake", how, address, &genuine];
        let mut attacker = stage.spawn("the namesake", Who::Agent, Program::Other, &args)?;
        match &*attacker.line()? {
            "genuine" => Ok(attacker),
            other => Err(RowError::Skipped(format!(
                "needs unprivileged namespaces: {other}"
            ))),
        }
    };
    let address = stage.address("plain");
    let mut host = super::plain_host(stage, &address, "")?;
    host.freeze()?;
    let mut thief = attacker("plain", &address)?;
    host.thaw()?;
    thief.line_after("holding")?;
    host.line_after("joined host")?;
    must(&mut host, "send secret", "sent")?;
    must(&mut thief, "find secret", "found")?;
    let plain = Outcome::succeeded("another process gets the object and reads what is sent");

    let address = stage.address("ringfence");
    let mut host = super::fenced_host(stage, &address, "")?;
    host.freeze()?;
    let mut thief = attacker("ringfence", &address)?;
    must(&mut thief, "hello", "said")?;
    host.thaw()?;
    let heard = thief.ask("hear")?;
    if heard.starts_with("hello") {
        must(&mut thief, "hear", "offer")?;
        must(&mut thief, "offer sound", "said")?;
        must(&mut thief, "ready", "said")?;
        return Ok(Report::with_harm(plain, thief.ask("hear")?));
    }
    let answer = thief.ask("hear-acceptor")?;
    if !answer.starts_with("refuse 2 namespace ") {
        return Ok(Report::with_harm(plain, answer));
    }
    super::honest_guest(stage, &mut host, &address, "")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed("PEER_REFUSED (namespace); the host accepts the next client"),
        stopped_by: "a peer must live in the same pid namespace",
    })
}

/// Row 43: a peer connects with the group that the policy requires, drops it, and is then checked while /proc
/// hides it.
///
/// Defence: the group counts only if the check has seen that the peer still has it. A check that cannot
/// be made is a refusal.
pub(super) fn dropped_group(stage: &Stage) -> Result<Report, RowError> {
    let group = stage.launcher_group();
    let address = stage.address("plain");
    let host = super::plain_host(stage, &address, &format!("uid-only group={group}"))?;
    host.freeze()?;
    let mut leaver = stage.spawn_leaver(&address)?;
    leaver.line_after("left")?;
    host.thaw()?;
    let plain = match &*leaver.line()? {
        answer if answer.starts_with("holding") => {
            Outcome::succeeded("a process that no longer has the group gets the object")
        }
        answer => Outcome::failed(answer),
    };

    let mut seen = stage.spawn("the host", Who::Agent, Program::Genuine, &["victim", "ringfence"])?;
    let mut blind = stage.spawn_in("the host", Space::HiddenProc, &["victim", "ringfence"])?;
    for (part, host) in [("seen", &mut seen), ("hidden", &mut blind)] {
        let address = stage.address(part);
        super::host_again(host, &address, &format!("policy=uid gid={group}"))?;
        host.freeze()?;
        let mut leaver = stage.spawn_leaver(&address)?;
        leaver.line_after("left")?;
        host.thaw()?;
        let answer = leaver.line()?;
        if !(answer.starts_with("refuse 2 gid ") && answer.ends_with(" 0 descriptors")) {
            return Ok(Report::with_harm(plain, format!("{part}: {answer}")));
        }
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed("PEER_REFUSED (gid), also where /proc hides the peer"),
        stopped_by: "a check that cannot be made is a refusal",
    })
}
