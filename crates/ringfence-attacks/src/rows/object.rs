//! The shared object: who else has it, and what can be done to it.

use std::time::Instant;

use super::{
    Event, SIZE, answer_or_exit, exchange_messages, expect_answer, honest_guest, hostile, hostile_channel,
    plain, protected, protected_host, protected_pair, ring::plain_and_hostile,
};
use crate::{
    Outcome, Report, RowError,
    plain::tail_of,
    process::Process,
    setup::{OwnShm, Program, Setup, User},
};

/// The maximum number of attempts to win a race. Most attempts succeed.
const ATTEMPTS: u32 = 50;

/// Row 2: between `shm_open` and `shm_unlink`, the object has a name. Another process of the same user
/// watches the directory and makes a hard link. Then the object keeps a name after the unlink, and its owner
/// may change its mode. Neither `O_EXCL` nor the lease detects a link (the lease counts open files only).
///
/// Defence: a memfd is never in a directory, and lies on an internal filesystem to which no link can be
/// made (EXDEV). With shm, the link count must be 0 after the unlink; otherwise the object is discarded
/// unused.
pub(super) fn hard_link(setup: &Setup) -> Result<Report, RowError> {
    let shm = setup.own_shm(1 << 20)?;
    let plain = plain_window(setup, &shm, "linker")?;

    let (mut attacker, mut host, mut guest, exposed) = shm_window(setup, &shm, "linker")?;
    let count = attacker.ask("count")?;
    let shm_half = if exposed {
        format!("shm: OBJECT_EXPOSED after {count} linked objects")
    } else {
        expect_answer(&mut host, "send secret", "sent")?;
        expect_answer(&mut guest, "find-theirs secret", "found")?;
        if attacker.ask("find secret")? != "absent" {
            return Ok(Report::with_harm(plain, "shm: the link leads to the channel"));
        }
        format!("shm: {count} linked objects discarded, the channel has another")
    };

    // The memfd backing: a guest that has the object's descriptor tries to give it a name.
    let (_host, mut guest) = hostile_channel(setup, &setup.address("memfd"), "", "")?;
    for path in [
        "/dev/shm/ringfence-attacks-link",
        &setup.private().join("link").display().to_string(),
    ] {
        let answer = guest.ask(&format!("link-theirs {path}"))?;
        if answer != "EXDEV" {
            return Ok(Report::with_harm(plain, format!("memfd: a link is {answer}")));
        }
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(format!("memfd: EXDEV; {shm_half}")),
        stopped_by: "a memfd never has a name; shm: st_nlink must be 0",
    })
}

/// Starts an attacker that grabs whatever its victim creates in /dev/shm while it has a name.
fn spawn_in_window(shm: &OwnShm<'_>, role: &str, victim: &Process) -> Result<Process, RowError> {
    let args = ["attacker", role, &victim.pid().to_string()];
    let mut attacker = shm.spawn("the attacker", Program::Other, &args)?;
    attacker.line_after("watching")?;
    Ok(attacker)
}

/// Repeats the attack on the plain program until it succeeds.
pub(super) fn plain_window(setup: &Setup, shm: &OwnShm<'_>, role: &str) -> Result<Outcome, RowError> {
    for attempt in 0..ATTEMPTS {
        let address = setup.address(&format!("plain-{attempt}"));
        let mut host = shm.spawn("the host", Program::Genuine, &["victim", "plain"])?;
        expect_answer(&mut host, "pid", "")?;
        let mut attacker = spawn_in_window(shm, role, &host)?;
        host.send_order(&format!("join {address} {SIZE} listening"))?;
        host.line_after("listening")?;
        if attacker.ask("count")? == "0" {
            continue;
        }
        let mut guest = shm.spawn("the guest", Program::Genuine, &["victim", "plain"])?;
        expect_answer(&mut guest, &format!("join {address} {SIZE}"), "joined guest")?;
        host.line_after("joined host")?;
        expect_answer(&mut host, "send secret", "sent")?;
        return Ok(match &*attacker.ask("find secret")? {
            "found" => Outcome::succeeded("the object is opened later and read, and can be written"),
            other => Outcome::failed(other),
        });
    }
    Ok(Outcome::failed(format!("not in {ATTEMPTS} tries")))
}

/// Repeats the attack on ringfence's shm backing. Returns the attacker, the host, its guest, and whether the
/// host has noticed and given up.
pub(super) fn shm_window(
    setup: &Setup,
    shm: &OwnShm<'_>,
    role: &str,
) -> Result<(Process, Process, Process, bool), RowError> {
    for attempt in 0..ATTEMPTS {
        let address = setup.address(&format!("shm-{attempt}"));
        let mut host = shm.spawn("the host", Program::Genuine, &["victim", "ringfence"])?;
        expect_answer(&mut host, "pid", "")?;
        let mut attacker = spawn_in_window(shm, role, &host)?;
        super::join_as_host(&mut host, &address, "backing=shm")?;
        // The guest's own object is not shm, so the attacker can only get the host's.
        let mut guest = shm.spawn("the hostile peer", Program::Genuine, &["hostile", "ringfence"])?;
        expect_answer(&mut guest, &format!("connect {address}"), "connected")?;
        expect_answer(&mut guest, "hello backing=2", "sent")?;
        expect_answer(&mut guest, "receive", "hello")?;
        let exposed = !guest.ask("receive")?.starts_with("offer");
        // The race was lost; the next object is another chance.
        if attacker.ask("count")? == "0" {
            continue;
        }
        if exposed {
            host.line_after("error OBJECT_EXPOSED")?;
        } else {
            expect_answer(&mut guest, "offer unsealed", "sent")?;
            expect_answer(&mut guest, "ready", "sent")?;
            expect_answer(&mut guest, "receive", "ready")?;
            host.line_after("joined host")?;
        }
        return Ok((attacker, host, guest, exposed));
    }
    Err(RowError::wrong("the attacker got no object"))
}

/// Row 30: the peer has the object's descriptor, and shrinks the object. A process that touches a page beyond
/// the new end gets SIGBUS (mmap(2)).
///
/// Defence: the seals `F_SEAL_SHRINK`, `F_SEAL_GROW` and, for holes, `F_SEAL_FUTURE_WRITE` (fcntl(2)).
/// An shm object cannot be sealed: with that backing, the two sides must trust each other in this respect.
pub(super) fn truncate(setup: &Setup) -> Result<Report, RowError> {
    let (mut host, mut guest) = plain_and_hostile(setup, &setup.address("plain"))?;
    expect_answer(&mut guest, "truncate", "truncated")?;
    let plain = match answer_or_exit(&mut host, "send more") {
        Event::Exited(how) if how == "SIGBUS" => Outcome::succeeded("SIGBUS"),
        other => Outcome::failed(format!("{other:?}")),
    };

    let (mut host, mut guest) = hostile_channel(setup, &setup.address("memfd"), "", "")?;
    for order in ["shrink-theirs", "grow-theirs", "punch-theirs", "shrink-own"] {
        let answer = guest.ask(order)?;
        if answer != "EPERM" {
            return Ok(Report::with_harm(plain, format!("{order}: {answer}")));
        }
    }
    expect_answer(&mut host, "fill-and-wait 100", "full")?;
    expect_answer(&mut guest, "message still-here", "woken")?;
    expect_answer(&mut host, "receive 10000", "got 10 still-here")?;

    // Check the documentation's statement about the shm backing.
    let (mut host, mut guest) = hostile_channel(
        setup,
        &setup.address("shm"),
        "backing=shm",
        "backing=2 object=unsealed",
    )?;
    expect_answer(&mut guest, "shrink-theirs", "shrunk")?;
    let shm = match answer_or_exit(&mut host, "send more") {
        Event::Exited(how) if how == "SIGBUS" => "shm: SIGBUS, as documented for a pair",
        _ => "shm: no SIGBUS",
    };
    Ok(Report {
        plain,
        ringfence: Outcome::failed(format!("memfd: EPERM; {shm}")),
        stopped_by: "seals: SHRINK, GROW, FUTURE_WRITE",
    })
}

/// Row 31: another process uses up all space in /dev/shm. A page that was never written needs space then, and
/// the process that writes to it gets SIGBUS.
///
/// Defence: fallocate(2) when the object is made. If there is no space, the error is reported then
/// (`NO_SPACE`); otherwise the space is reserved. A memfd is not on that filesystem at all.
pub(super) fn full_tmpfs(setup: &Setup) -> Result<Report, RowError> {
    let shm = setup.own_shm(2 << 20)?;
    let fill = || {
        let mut filler = shm.spawn("the filler", Program::Other, &["attacker", "fill-shm"])?;
        filler.line_after("filled")?;
        Ok::<_, RowError>(filler)
    };
    let victim = |name: &'static str, kind: &str| shm.spawn(name, Program::Genuine, &["victim", kind]);

    let address = setup.address("plain");
    let mut host = victim("the host", "plain")?;
    host.send_order(&format!("join {address} {} listening", 1 << 20))?;
    host.line_after("listening")?;
    let mut guest = victim("the guest", "plain")?;
    expect_answer(&mut guest, &format!("join {address} {}", 1 << 20), "joined guest")?;
    host.line_after("joined host")?;
    let mut filler = fill()?;
    let plain = match answer_or_exit(&mut host, "send more") {
        Event::Exited(how) if how == "SIGBUS" => Outcome::succeeded("SIGBUS at the first message"),
        other => Outcome::failed(format!("{other:?}")),
    };

    // A full filesystem is an error when the object is made.
    let address = setup.address("full");
    let mut host = victim("the host", "ringfence")?;
    let mut guest = victim("the guest", "ringfence")?;
    super::join_as_host(&mut host, &address, "backing=shm")?;
    let outcome = guest.ask(&format!("join {address} backing=shm"))?;
    let answer = host.line()?;
    if !answer.starts_with("error NO_SPACE") || !outcome.starts_with("error ") {
        return Err(RowError::wrong(format!(
            "expected NO_SPACE from the host, got {answer}; its guest: {outcome}"
        )));
    }

    // A filesystem that fills up later changes nothing.
    filler.send_order("empty")?;
    filler.next_event(super::TIME_LIMIT);
    let address = setup.address("later");
    super::join_as_host(&mut host, &address, "backing=shm")?;
    expect_answer(&mut guest, &format!("join {address} backing=shm"), "joined guest")?;
    host.line_after("joined host")?;
    let _filler = fill()?;
    for (name, process) in [("host", &mut host), ("guest", &mut guest)] {
        let answer = process.try_ask("fill-and-wait 100", super::TIME_LIMIT);
        if answer != Event::Line("full".into()) {
            return Ok(Report::with_harm(
                plain,
                format!("the {name} filling its ring: {answer:?}"),
            ));
        }
    }
    for process in [&mut host, &mut guest] {
        expect_answer(process, "work receive 100", "worked")?;
    }

    // The default backing is not affected.
    let address = setup.address("memfd");
    let (mut host, mut guest) = (
        victim("the host", "ringfence")?,
        victim("the guest", "ringfence")?,
    );
    super::join_as_host(&mut host, &address, "")?;
    expect_answer(&mut guest, &format!("join {address}"), "joined guest")?;
    host.line_after("joined host")?;
    exchange_messages(&mut host, &mut guest)?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed("shm: NO_SPACE on creation, never later; memfd: not on that filesystem"),
        stopped_by: "fallocate before anything is passed",
    })
}

/// Row 32: the peer writes into the ring that it should only read.
///
/// Defence: each process writes only its own region. The owner of a region seals it with
/// `F_SEAL_FUTURE_WRITE` after mapping it (memfd_create(2), fcntl(2)). The kernel then allows no other
/// writable mapping, whether through this descriptor, through a new one, or by changing a mapping's
/// protection.
pub(super) fn write_to_peer_ring(setup: &Setup) -> Result<Report, RowError> {
    let (mut host, mut guest) = plain_and_hostile(setup, &setup.address("plain"))?;
    expect_answer(&mut host, "send first", "sent")?;
    // The host's own tail.
    expect_answer(
        &mut guest,
        &format!("store {} {}", tail_of(0), 1_u64 << 40),
        "stored",
    )?;
    let plain = match &*host.ask("send second")? {
        "full" => Outcome::succeeded("the host's own tail is overwritten: it can no longer send"),
        other => Outcome::failed(other),
    };

    let (mut host, mut guest) = hostile_channel(setup, &setup.address("ringfence"), "", "")?;
    expect_answer(&mut host, "send first", "sent")?;
    let mut seen = Vec::new();
    for (order, wanted) in [
        ("map-theirs", &["EPERM"][..]),
        ("protect-theirs", &["EACCES"]),
        ("write-theirs", &["EPERM"]),
        ("punch-theirs", &["EPERM"]),
        ("unseal-theirs", &["EPERM"]),
    ] {
        let answer = guest.ask(order)?;
        if !wanted.contains(&&*answer) {
            return Ok(Report::with_harm(plain, format!("{order}: {answer}")));
        }
        seen.push(format!("{order} {answer}"));
    }
    expect_answer(&mut guest, "find-theirs first", "found")?;
    expect_answer(&mut host, "fill-and-wait 100", "full")?;
    // The lease blocks even a new open file and notifies the owner. Without the lease, the seal would prevent
    // writing.
    let answer = guest.ask("reopen-theirs")?;
    if answer != "EAGAIN" {
        return Ok(Report::with_harm(plain, format!("reopen-theirs: {answer}")));
    }
    super::is_exposed(&mut host)?;
    seen.push("reopen-theirs EAGAIN, and the channel ends".into());
    Ok(Report {
        plain,
        ringfence: Outcome::failed(seen.join(", ")),
        stopped_by: "F_SEAL_FUTURE_WRITE: only the owner's first mapping is writable",
    })
}

/// Row 35: the peer passes something other than what was agreed.
///
/// Defence: the receiver asks the kernel what it received, whatever the peer states. It must be exactly
/// one descriptor, a regular file on tmpfs, of the agreed size, owned by the peer's uid, without a name,
/// sealed, and with the agreed layout. Surplus descriptors are closed.
pub(super) fn invalid_object(setup: &Setup) -> Result<Report, RowError> {
    let plain = unsound_for_plain(setup)?;

    let address = setup.address("ringfence");
    let mut host = protected_host(setup, &address, "")?;
    let mut guest = hostile(setup)?;
    let before = host.ask("descriptors")?;
    let (mut refused, mut holes) = unsound_objects(&mut guest, &address)?;
    // Closing the connection removes what the last attempt may have left behind.
    expect_answer(&mut guest, "disconnect", "disconnected")?;
    match unsound_lines(&mut host, &mut guest, &address)? {
        Ok(count) => refused += count,
        Err(hole) => holes.push(hole),
    }
    if !holes.is_empty() {
        return Ok(Report::with_harm(plain, holes.join("; ")));
    }
    expect_answer(&mut guest, "disconnect", "disconnected")?;
    // A refused client is notified a moment before the host closes its descriptors.
    let end = Instant::now() + super::TIME_LIMIT;
    loop {
        let after = host.ask("descriptors")?;
        if before == after {
            break;
        }
        if Instant::now() > end {
            return Ok(Report::with_harm(
                plain,
                format!("{before} descriptors before, {after} after"),
            ));
        }
    }
    honest_guest(setup, &mut host, &address, "")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed(format!(
            "OBJECT_UNSOUND or PROTOCOL for each of {refused} kinds, and no descriptor leaks"
        )),
        stopped_by: "the receiver asks the kernel for the object's type, size and seals",
    })
}

/// The attachments that a receiver of sealed buffers must refuse, with the error of each.
pub(super) const UNSOUND_ATTACHMENTS: [(&str, &str); 11] = [
    ("writable", "OBJECT_UNSOUND"),
    ("mapped", "OBJECT_UNSOUND"),
    ("shrinks", "OBJECT_UNSOUND"),
    ("unsealed", "OBJECT_UNSOUND"),
    ("hole", "OBJECT_UNSOUND"),
    ("longer", "OBJECT_UNSOUND"),
    ("too-large", "RING_CORRUPT"),
    ("too-many", "RING_CORRUPT"),
    ("withheld", "RING_CORRUPT"),
    ("more", "RING_CORRUPT"),
    ("descriptor", "RING_CORRUPT"),
];

/// Row 64: the peer attaches memory that it can still change, more than the receiver accepts, or a descriptor that is no memory.
///
/// Defence: the receiver reads what the peer states before it receives descriptors, and asks the kernel for the seals, the size
/// and the memory of each buffer. Each violation ends the channel, and its descriptors are closed.
pub(super) fn attachments(setup: &Setup) -> Result<Report, RowError> {
    let plain = unsound_for_plain(setup)?;
    let kinds = UNSOUND_ATTACHMENTS
        .into_iter()
        .chain([("absent", "RING_CORRUPT")]);
    for (kind, code) in kinds {
        let address = setup.address(&format!("ringfence-{kind}"));
        let (mut host, mut guest) = hostile_channel(setup, &address, "attachments=4", "")?;
        if let Some(harm) = attach(&mut guest, &mut host, kind, &format!("error {code}"))? {
            return Ok(Report::with_harm(plain, harm));
        }
    }
    let address = setup.address("ringfence");
    let (mut host, mut guest) = hostile_channel(setup, &address, "attachments=4", "")?;
    expect_answer(&mut guest, "attach sound", "woken")?;
    expect_answer(&mut host, "receive 10000", "got 8")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed(format!(
            "each of {} kinds ends the channel, and no descriptor leaks",
            UNSOUND_ATTACHMENTS.len() + 1
        )),
        stopped_by: "the receiver checks what the peer states before it receives a descriptor, and then the kernel's seals and sizes",
    })
}

/// Lets the hostile peer attach this kind to a message. Returns the harm if the victim's answer does not start with `wanted`, or a
/// descriptor leaks.
pub(super) fn attach(
    hostile: &mut Process,
    victim: &mut Process,
    kind: &str,
    wanted: &str,
) -> Result<Option<String>, RowError> {
    expect_answer(hostile, &format!("attach {kind}"), "woken")?;
    let answer = victim.ask("receive 10000")?;
    if !answer.starts_with(wanted) {
        return Ok(Some(format!("{kind}: {answer}")));
    }
    // A thread closes the peer's descriptors.
    let end = Instant::now() + super::TIME_LIMIT;
    while victim.ask("inventory")?.contains("memfd:attached") {
        if Instant::now() > end {
            return Ok(Some(format!("{kind}: a leaked descriptor")));
        }
    }
    Ok(None)
}

/// Returns the harm that each kind of object does to a guest of the plain program.
fn unsound_for_plain(setup: &Setup) -> Result<Outcome, RowError> {
    let mut harm = Vec::new();
    for (kind, then) in [
        ("short", "receive 100"),
        ("unsealed", "receive 100"),
        ("two", "descriptors"),
        ("none", "descriptors"),
    ] {
        let address = setup.address(&format!("plain-{kind}"));
        let args = ["hostile", "plain", "host", &address, kind];
        let mut host = setup.spawn("the hostile host", User::Agent, Program::Genuine, &args)?;
        host.line_after("listening")?;
        let mut guest = plain(setup, "the guest")?;
        let before: usize = guest.ask("descriptors")?.parse().unwrap_or(0);
        expect_answer(&mut guest, &format!("join {address} {SIZE}"), "")?;
        host.line_after("passed")?;
        if kind == "unsealed" {
            expect_answer(&mut host, "truncate", "truncated")?;
        }
        match guest.try_ask(then, super::TIME_LIMIT) {
            Event::Exited(how) => harm.push(format!("{kind}: {how}")),
            Event::Line(after) if after.parse().is_ok_and(|after: usize| after > before) => {
                harm.push(format!("{kind}: a leaked descriptor"));
            }
            _ => {}
        }
    }
    Ok(if harm.is_empty() {
        Outcome::failed("everything was refused")
    } else {
        Outcome::succeeded(harm.join(", "))
    })
}

/// Tries invalid objects, with the check that must detect each. Returns the number of refused ones, and
/// descriptions of those that were accepted.
fn unsound_objects(guest: &mut Process, address: &str) -> Result<(usize, Vec<String>), RowError> {
    let (mut refused, mut holes) = (0, Vec::new());
    for (kind, check) in [
        ("directory", "kind"),
        ("pipe", "kind"),
        ("socket", "kind"),
        ("device", "kind"),
        ("path", "kind"),
        ("file", "kind"),
        ("empty", "size"),
        ("short", "size"),
        ("long", "size"),
        ("unsealed", "seals"),
        ("may-shrink", "seals"),
        ("may-unseal", "seals"),
        ("wrong-magic", "layout"),
        ("wrong-capacity", "capacity"),
        ("none", "descriptors"),
        ("two", "descriptors"),
        ("three", "descriptors"),
        ("many", "descriptors"),
        ("sound size=4096", "size"),
        ("sound size=18446744073709551615", "size"),
        // Last, because after accepting an object the host waits for READY.
        ("sparse", ""),
    ] {
        expect_answer(guest, &format!("connect {address}"), "connected")?;
        expect_answer(guest, "hello", "sent")?;
        expect_answer(guest, "receive", "hello")?;
        expect_answer(guest, "receive", "offer")?;
        expect_answer(guest, &format!("offer {kind}"), "sent")?;
        // A valid object gets no answer before READY.
        let answer = guest.ask(if kind == "sparse" {
            "receive 300"
        } else {
            "receive"
        })?;
        // Refused as an object (code 4) by the expected check.
        if answer.starts_with("refuse 4 ") && answer["refuse 4 ".len()..].starts_with(check) {
            refused += 1;
        } else if kind == "sparse" && answer == "silence" {
            let taken = guest.ask("blocks")?;
            holes.push(format!(
                "an object without memory is accepted; the receiver provides {taken} bytes for it"
            ));
        } else {
            return Err(RowError::wrong(format!(
                "expected {kind} to be refused for its {check}, got {answer}"
            )));
        }
    }
    Ok((refused, holes))
}

/// Tries invalid lines. The host must refuse each with a reason, and continue. Returns the number of refused
/// ones, or the wrong behaviour.
fn unsound_lines(
    host: &mut Process,
    guest: &mut Process,
    address: &str,
) -> Result<Result<usize, String>, RowError> {
    let kinds = [
        "none",
        "file",
        "pipe",
        "datagram",
        "unconnected",
        "listener",
        "two",
        "many",
    ];
    for kind in kinds {
        expect_answer(guest, &format!("connect {address}"), "connected")?;
        expect_answer(guest, &format!("hello line={kind}"), "sent")?;
        let answer = guest.ask("receive-from-acceptor")?;
        if !["refuse 2 line ", "refuse 3 ", "refuse 4 descriptors "]
            .iter()
            .any(|start| answer.starts_with(start))
        {
            return Ok(Err(format!(
                "a line of the kind {kind:?} got the answer {answer:?}"
            )));
        }
        // The host must answer this order; any other line would be the end of its `join`.
        let (answer, pid) = (host.ask("pid")?, host.pid().to_string());
        if answer != pid {
            return Ok(Err(format!(
                "a line of the kind {kind:?} made the host's join fail: {answer}"
            )));
        }
    }
    Ok(Ok(kinds.len()))
}

/// Row 37: a program starts another one at an arbitrary time. The child inherits every descriptor that is not
/// close-on-exec from creation. And a forked child keeps its parent's mappings.
///
/// Defence: every descriptor is made close-on-exec by the call that creates it (`SOCK_CLOEXEC`,
/// `MFD_CLOEXEC`, `MSG_CMSG_CLOEXEC`), and mappings are `MADV_DONTFORK` (madvise(2)).
pub(super) fn inheritance(setup: &Setup) -> Result<Report, RowError> {
    let address = setup.address("plain");
    let (mut host, mut guest) = (plain(setup, "the host")?, plain(setup, "the guest")?);
    expect_answer(&mut guest, "child", "[]")?;
    host.send_order(&format!("join {address} {SIZE} listening"))?;
    host.line_after("listening")?;
    guest.send_order(&format!("join {address} {SIZE} forking"))?;
    let inherited = guest.line_after("child")?;
    guest.line_after("joined guest")?;
    let mapped = guest.ask("fork")?;
    let plain = if inherited == "[]" {
        Outcome::failed("nothing")
    } else {
        Outcome::succeeded(format!("the object's descriptor; mappings: {mapped}"))
    };

    // Start a child at every step of a handshake at which the host waits.
    let address = setup.address("ringfence");
    let mut host = protected(setup, "the host")?;
    expect_answer(&mut host, "child", "[]")?;
    super::join_as_host(&mut host, &address, "")?;
    let mut guest = hostile(setup)?;
    let steps: [(&[(&str, &str)], &str); 4] = [
        (&[], "listening"),
        (&[("hello", "sent"), ("receive", "hello")], "with the line"),
        (&[("receive", "offer")], "with its object"),
        (&[("offer sound", "sent")], "with the peer's object"),
    ];
    expect_answer(&mut guest, &format!("connect {address}"), "connected")?;
    for (orders, when) in steps {
        for (order, answer) in orders {
            expect_answer(&mut guest, order, answer)?;
        }
        let inherited = host.ask("child")?;
        if inherited != "[]" {
            return Ok(Report::with_harm(plain, format!("{when}: {inherited}")));
        }
    }
    expect_answer(&mut guest, "ready", "sent")?;
    expect_answer(&mut guest, "receive", "ready")?;
    host.line_after("joined host")?;
    let (inherited, mapped) = (host.ask("child")?, host.ask("fork")?);
    if (&*inherited, &*mapped) != ("[]", "[]") {
        return Ok(Report::with_harm(
            plain,
            format!("on the channel: {inherited} {mapped}"),
        ));
    }
    // The same for an honest guest.
    let (_host, mut guest) = protected_pair(setup, &setup.address("pair"), "")?;
    let (inherited, mapped) = (guest.ask("child")?, guest.ask("fork")?);
    if (&*inherited, &*mapped) != ("[]", "[]") {
        return Ok(Report::with_harm(
            plain,
            format!("in the guest: {inherited} {mapped}"),
        ));
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed("no descriptor and no mapping at any step"),
        stopped_by: "close-on-exec from creation on; MADV_DONTFORK",
    })
}
