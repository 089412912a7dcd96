//! Namespaces, in which numbers mean something else.

use super::{SIZE, expect_answer};
use crate::{
    Outcome, Report, RowError,
    setup::{Namespace, Program, Setup, User},
};

/// Row 19: inode numbers are unique only within a filesystem. Two fresh filesystems with one file each give
/// both files the same number.
///
/// Defence: device and inode are compared (inode(7)).
pub(super) fn same_inode(setup: &Setup) -> Result<Report, RowError> {
    let (one, two) = (setup.private().join("one"), setup.private().join("two"));
    for place in [&one, &two] {
        std::fs::create_dir(place).map_err(|error| RowError::wrong(error.to_string()))?;
    }
    let mounts = setup.own_mounts(1 << 20, &[&one, &two])?;
    let (genuine, other) = (one.join("program"), two.join("program"));
    let address = setup.address("plain");
    let mut host = mounts.spawn_at("the host", &genuine, &["victim", "plain"])?;
    host.send_order(&format!("join {address} {SIZE} inode-only listening"))?;
    host.line_after("listening")?;
    let mut intruder = mounts.spawn_at("the other program", &other, &["attacker", "connect", &address])?;
    let plain = match &*intruder.line()? {
        answer if answer.starts_with("holding") => {
            Outcome::succeeded("the object is passed if only st_ino is compared")
        }
        answer => Outcome::failed(answer),
    };

    let address = setup.address("ringfence");
    let mut host = mounts.spawn_at("the host", &genuine, &["victim", "ringfence"])?;
    super::join_as_host(&mut host, &address, "")?;
    let mut intruder = mounts.spawn_at("the other program", &other, &["hostile", "ringfence"])?;
    expect_answer(&mut intruder, &format!("connect {address}"), "connected")?;
    let answer = intruder.ask("receive")?;
    if !answer.starts_with("refuse 2 executable ") {
        return Ok(Report::with_harm(plain, answer));
    }
    let mut guest = mounts.spawn_at("the honest guest", &genuine, &["victim", "ringfence"])?;
    expect_answer(&mut guest, &format!("join {address}"), "joined guest")?;
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
pub(super) fn unmapped_uid(setup: &Setup) -> Result<Report, RowError> {
    let address = setup.address("plain");
    let mut host = setup.spawn_in("the host", Namespace::UnmappedUsers, &["victim", "plain"])?;
    host.send_order(&format!("join {address} {SIZE} uid-only listening tell"))?;
    if let Some(why) = host.line()?.strip_prefix("failed ") {
        return Err(RowError::Skipped(why.to_owned()));
    }
    let knock = |address: &str| {
        setup.spawn(
            "the other user",
            User::Other,
            Program::Genuine,
            &["attacker", "connect", address],
        )
    };
    let plain = match &*knock(&address)?.line()? {
        answer if answer.starts_with("holding") => {
            Outcome::succeeded("the object is passed to another user: both read as the overflow uid")
        }
        answer => Outcome::failed(answer),
    };

    let address = setup.address("ringfence");
    let mut host = setup.spawn_in("the host", Namespace::UnmappedUsers, &["victim", "ringfence"])?;
    super::join_as_host(&mut host, &address, "policy=uid")?;
    let answer = knock(&address)?.line()?;
    // An unmapped process cannot even stamp a message, so it cannot send a reason.
    if answer != "nothing" && !answer.starts_with("refuse 2 uid ") {
        return Ok(Report::with_harm(plain, answer));
    }
    expect_answer(&mut host, "pid", "")?;
    // In the other direction, the reason is visible.
    let address = setup.address("guest");
    let args = ["hostile", "plain", "host", &address, "unsealed"];
    let mut other_user = setup.spawn("the other user", User::Other, Program::Genuine, &args)?;
    other_user.line_after("listening")?;
    let mut guest = setup.spawn_in("the guest", Namespace::UnmappedUsers, &["victim", "ringfence"])?;
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
pub(super) fn pid_zero(setup: &Setup) -> Result<Report, RowError> {
    let address = setup.address("plain");
    let mut host = setup.spawn_in("the host", Namespace::OwnPids, &["victim", "plain"])?;
    host.send_order(&format!("join {address} {SIZE} listening tell"))?;
    host.line_after("listening")?;
    let knock = |address: &str| {
        setup.spawn(
            "the foreigner",
            User::Agent,
            Program::Genuine,
            &["attacker", "connect", address],
        )
    };
    let plain = match &*knock(&address)?.line()? {
        "nothing" => Outcome::failed("refused, because there is no /proc/0"),
        answer => Outcome::succeeded(answer),
    };

    let address = setup.address("ringfence");
    let mut host = setup.spawn_in("the host", Namespace::OwnPids, &["victim", "ringfence"])?;
    super::join_as_host(&mut host, &address, "policy=uid")?;
    let answer = knock(&address)?.line()?;
    if !(answer.starts_with("refuse 2 namespace ") && answer.ends_with(" 0 descriptors")) {
        return Ok(Report::with_harm(plain, answer));
    }
    expect_answer(&mut host, "pid", "1")?;
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
pub(super) fn forged_credentials(setup: &Setup) -> Result<Report, RowError> {
    let genuine = setup.program(Program::Genuine).display().to_string();
    let attacker = |how: &str, address: &str| {
        let args = ["attacker", "pid-forger", how, address, &genuine];
        let mut attacker = setup.spawn("the pid forger", User::Agent, Program::Other, &args)?;
        match &*attacker.line()? {
            "genuine" => Ok(attacker),
            other => Err(RowError::Skipped(format!(
                "needs unprivileged namespaces: {other}"
            ))),
        }
    };
    let address = setup.address("plain");
    let mut host = super::plain_host(setup, &address, "")?;
    host.stop()?;
    let mut intruder = attacker("plain", &address)?;
    host.resume()?;
    intruder.line_after("holding")?;
    host.line_after("joined host")?;
    expect_answer(&mut host, "send secret", "sent")?;
    expect_answer(&mut intruder, "find secret", "found")?;
    let plain = Outcome::succeeded("another process gets the object and reads what is sent");

    let address = setup.address("ringfence");
    let mut host = super::protected_host(setup, &address, "")?;
    host.stop()?;
    let mut intruder = attacker("ringfence", &address)?;
    expect_answer(&mut intruder, "hello", "sent")?;
    host.resume()?;
    let reply = intruder.ask("receive")?;
    if reply.starts_with("hello") {
        expect_answer(&mut intruder, "receive", "offer")?;
        expect_answer(&mut intruder, "offer sound", "sent")?;
        expect_answer(&mut intruder, "ready", "sent")?;
        return Ok(Report::with_harm(plain, intruder.ask("receive")?));
    }
    let answer = intruder.ask("receive-from-acceptor")?;
    if !answer.starts_with("refuse 2 namespace ") {
        return Ok(Report::with_harm(plain, answer));
    }
    super::honest_guest(setup, &mut host, &address, "")?;
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
pub(super) fn dropped_group(setup: &Setup) -> Result<Report, RowError> {
    let group = setup.launcher_group();
    let address = setup.address("plain");
    let host = super::plain_host(setup, &address, &format!("uid-only group={group}"))?;
    host.stop()?;
    let mut leaver = setup.spawn_group_dropper(&address)?;
    leaver.line_after("left")?;
    host.resume()?;
    let plain = match &*leaver.line()? {
        answer if answer.starts_with("holding") => {
            Outcome::succeeded("a process that no longer has the group gets the object")
        }
        answer => Outcome::failed(answer),
    };

    let mut seen = setup.spawn(
        "the host",
        User::Agent,
        Program::Genuine,
        &["victim", "ringfence"],
    )?;
    let mut blind = setup.spawn_in("the host", Namespace::HiddenProc, &["victim", "ringfence"])?;
    for (part, host) in [("seen", &mut seen), ("hidden", &mut blind)] {
        let address = setup.address(part);
        super::join_as_host(host, &address, &format!("policy=uid gid={group}"))?;
        host.stop()?;
        let mut leaver = setup.spawn_group_dropper(&address)?;
        leaver.line_after("left")?;
        host.resume()?;
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
