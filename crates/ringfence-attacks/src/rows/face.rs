//! The genuine executable with foreign code in it. Within one user, no check of the executable can detect
//! that. The promise is that a policy which requires more (here a group that only a setgid launcher gives) is
//! not fooled.

use std::{fs, path::PathBuf, process::Command};

use super::{SIZE, fenced_host, hand, must, plain_host};
use crate::{
    Outcome, Report, RowError,
    actor::Actor,
    stage::{Program, Stage, Who},
};

/// The documented behaviour of the default policy, for these rows.
pub(super) const DOCUMENTED: &str =
    "default policy: admitted, as documented; with a setgid launcher's gid in the policy: PEER_REFUSED (gid)";

/// Starts a host that requires the launcher's group. Returns it with the launcher.
fn guarded_host(stage: &Stage, address: &str) -> Result<(Actor, PathBuf), RowError> {
    let launcher = stage.launcher()?;
    let mut probe = stage.spawn_at("the launched", &launcher, &["victim", "ringfence"], &[])?;
    let group = probe.ask("egid")?;
    if group != stage.launcher_group().to_string() {
        return Err(RowError::Skipped(format!(
            "setgid has no effect in {}",
            launcher.display()
        )));
    }
    let host = fenced_host(stage, address, &format!("gid={}", stage.launcher_group()))?;
    Ok((host, launcher))
}

/// Checks that a process started by the launcher is accepted.
fn launched_gets_in(
    stage: &Stage,
    host: &mut Actor,
    launcher: &std::path::Path,
    address: &str,
    environment: &[(&str, &str)],
) -> Result<(), RowError> {
    let mut guest = stage.spawn_at(
        "the launched guest",
        launcher,
        &["victim", "ringfence"],
        environment,
    )?;
    let pid = guest.pid().to_string();
    must(&mut guest, "pid", &pid)?;
    must(&mut guest, &format!("join {address} policy=uid"), "joined guest")?;
    host.line_after("joined host")?;
    super::talks(host, &mut guest)
}

/// Row 9: the attacker starts the genuine program as its tracer (ptrace(2)), and can write anything into it.
///
/// Promise: the executable alone proves nothing within one user. With a setgid launcher, the group
/// is the proof: the kernel does not give it to a program that is traced during its exec (execve(2)).
pub(super) fn traced(stage: &Stage) -> Result<Report, RowError> {
    let genuine = stage.program(Program::Genuine).display().to_string();
    let trace = |program: &str, kind: &str| {
        let args = ["insider", "trace", program, "role", "victim", kind];
        let mut traced = stage.spawn("the traced guest", Who::Agent, Program::Other, &args)?;
        traced.line_after("tracing")?;
        Ok::<_, RowError>(traced)
    };
    let address = stage.address("plain");
    let mut host = plain_host(stage, &address, "")?;
    let mut guest = trace(&genuine, "plain")?;
    must(&mut guest, &format!("join {address} {SIZE}"), "joined guest")?;
    host.line_after("joined host")?;
    let plain = Outcome::succeeded("a traced program is admitted");

    let address = stage.address("default");
    let mut host = fenced_host(stage, &address, "")?;
    let mut guest = trace(&genuine, "ringfence")?;
    must(&mut guest, &format!("join {address}"), "joined guest")?;
    host.line_after("joined host")?;

    let address = stage.address("guarded");
    let (mut host, launcher) = guarded_host(stage, &address)?;
    let mut guest = trace(&launcher.display().to_string(), "ringfence")?;
    let answer = guest.ask(&format!("join {address} policy=uid"))?;
    if !answer.starts_with("error PEER_REFUSED check=gid by_peer=true") {
        return Ok(Report::with_harm(
            plain,
            format!("with gid in the policy: {answer}"),
        ));
    }
    launched_gets_in(stage, &mut host, &launcher, &address, &[])?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed(DOCUMENTED),
        stopped_by: "the kernel ignores setgid for a traced program",
    })
}

/// Row 10: the loader puts the attacker's library into the genuine program before its main runs (ld.so(8)).
///
/// Promise: as in row 9. For a setgid program the loader ignores `LD_PRELOAD`.
pub(super) fn preloaded(stage: &Stage) -> Result<Report, RowError> {
    let library = injected_library(stage)?.display().to_string();
    let genuine = stage.program(Program::Genuine);
    let environment = [("LD_PRELOAD", &*library)];
    let inject = |kind: &str| {
        let mut guest = stage.spawn_at("the injected guest", &genuine, &["victim", kind], &environment)?;
        guest.line_after("injected")?;
        Ok::<_, RowError>(guest)
    };
    let address = stage.address("plain");
    let mut host = plain_host(stage, &address, "")?;
    let mut guest = inject("plain")?;
    must(&mut guest, &format!("join {address} {SIZE}"), "joined guest")?;
    host.line_after("joined host")?;
    let plain = Outcome::succeeded("a program with injected code is admitted");

    let address = stage.address("default");
    let mut host = fenced_host(stage, &address, "")?;
    let mut guest = inject("ringfence")?;
    must(&mut guest, &format!("join {address}"), "joined guest")?;
    host.line_after("joined host")?;

    let address = stage.address("guarded");
    let (mut host, launcher) = guarded_host(stage, &address)?;
    let mut guest = inject("ringfence")?;
    let answer = guest.ask(&format!("join {address} policy=uid"))?;
    if !answer.starts_with("error PEER_REFUSED check=gid by_peer=true") {
        return Ok(Report::with_harm(
            plain,
            format!("with gid in the policy: {answer}"),
        ));
    }
    // The launcher with the same environment: nothing is injected.
    launched_gets_in(stage, &mut host, &launcher, &address, &environment)?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed(DOCUMENTED),
        stopped_by: "the loader ignores LD_PRELOAD for a setgid program",
    })
}

/// Compiles a library that prints a line when it is loaded.
fn injected_library(stage: &Stage) -> Result<PathBuf, RowError> {
    if cfg!(target_env = "musl") {
        return Err(RowError::Skipped(
            "this executable is linked statically and has no loader".into(),
        ));
    }
    let (source, library) = (
        stage.shared().join("injected.c"),
        stage.shared().join("injected.so"),
    );
    let text = "#include <unistd.h>\n\
                __attribute__((constructor)) static void injected(void) { if (write(1, \"injected\\n\", 9)) {} }\n";
    fs::write(&source, text).map_err(|error| RowError::wrong(error.to_string()))?;
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status();
    if compiled.is_ok_and(|status| status.success()) {
        return Ok(library);
    }
    Err(RowError::Skipped("needs a C compiler (cc)".into()))
}

/// Row 13: in its own user namespace, a process may choose the file that counts as its executable
/// (`PR_SET_MM_MAP`, PR_SET_MM(2const)), once nothing of the old one is mapped. /proc/PID/exe then names the
/// genuine program.
///
/// Defence: this is possible only in another user namespace, and a peer must live in this process's
/// user namespace if that is visible. It is visible for every process whose executable is visible.
pub(super) fn worn(stage: &Stage) -> Result<Report, RowError> {
    let genuine = stage.program(Program::Genuine).display().to_string();
    let wear = |then: &[&str]| {
        let args = [&["insider", "wear", &genuine], then].concat();
        let mut attacker = stage.spawn("the wearer", Who::Agent, Program::Other, &args)?;
        match &*attacker.line()? {
            "worn" => Ok(attacker),
            other => Err(RowError::Skipped(format!(
                "the executable cannot be changed here: {other}"
            ))),
        }
    };
    let address = stage.address("plain");
    let mut host = plain_host(stage, &address, "")?;
    let mut thief = wear(&["attacker", "knock", &address])?;
    thief.line_after("holding")?;
    host.line_after("joined host")?;
    must(&mut host, "send secret", "sent")?;
    must(&mut thief, "find secret", "found")?;
    let plain = Outcome::succeeded("another program is admitted and reads what is sent");

    let address = stage.address("default");
    let _host = fenced_host(stage, &address, "")?;
    let answer = wear(&["attacker", "knock", &address])?.line()?;
    if !answer.starts_with("refuse 2 namespace ") {
        return Ok(Report::with_harm(
            plain,
            format!("with the default policy: {answer}"),
        ));
    }
    // If the policy accepts other namespaces, the result is that of row 9.
    let address = stage.address("any");
    let mut host = fenced_host(stage, &address, "namespace=any")?;
    let mut thief = wear(&["hand", "ringfence"])?;
    must(&mut thief, &format!("channel {address}"), "channel")?;
    host.line_after("joined host")?;

    let address = stage.address("guarded");
    let (mut host, launcher) = guarded_host(stage, &address)?;
    let answer = wear(&["attacker", "knock", &address])?.line()?;
    if !answer.starts_with("refuse 2 namespace ") {
        return Ok(Report::with_harm(
            plain,
            format!("with gid in the policy: {answer}"),
        ));
    }
    launched_gets_in(stage, &mut host, &launcher, &address, &[])?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed(
            "PEER_REFUSED (namespace); with a policy that allows any namespace: admitted, as documented",
        ),
        stopped_by: "it needs a user namespace of its own, which the policy refuses",
    })
}

/// Row 20: the same executable does other work: another script of the same interpreter, another role of this
/// program.
///
/// Promise: as in row 9.
pub(super) fn other_script(stage: &Stage) -> Result<Report, RowError> {
    let address = stage.address("plain");
    let mut host = plain_host(stage, &address, "")?;
    let args = ["hand", "plain", "guest", &address];
    let mut other = stage.spawn("the other script", Who::Agent, Program::Genuine, &args)?;
    other.line_after("holding")?;
    host.line_after("joined host")?;
    must(&mut host, "send secret", "sent")?;
    must(&mut other, "find secret", "found")?;
    let plain = Outcome::succeeded("it is admitted and reads what is sent");

    let address = stage.address("default");
    let mut host = fenced_host(stage, &address, "")?;
    let mut other = hand(stage)?;
    must(&mut other, &format!("channel {address}"), "channel")?;
    host.line_after("joined host")?;

    let address = stage.address("guarded");
    let (mut host, launcher) = guarded_host(stage, &address)?;
    must(&mut other, &format!("connect {address}"), "connected")?;
    let answer = other.ask("hear")?;
    if !answer.starts_with("refuse 2 gid ") {
        return Ok(Report::with_harm(
            plain,
            format!("with gid in the policy: {answer}"),
        ));
    }
    launched_gets_in(stage, &mut host, &launcher, &address, &[])?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed(DOCUMENTED),
        stopped_by: "the group of a launcher that starts only one script",
    })
}
