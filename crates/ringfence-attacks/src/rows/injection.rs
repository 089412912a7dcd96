//! The genuine executable with foreign code in it. Within one user, no check of the executable can detect
//! that. The promise is that a policy which requires more (here a group that only a setgid launcher gives) is
//! not fooled.

use std::{fs, path::PathBuf, process::Command};

use super::{SIZE, expect_answer, hostile, plain_host, protected_host};
use crate::{
    Outcome, Report, RowError,
    process::Process,
    setup::{Program, Setup, User},
};

/// The documented behaviour of the default policy, for these rows.
pub(super) const DOCUMENTED: &str =
    "default policy: admitted, as documented; with a setgid launcher's gid in the policy: PEER_REFUSED (gid)";

/// Starts a host that requires the launcher's group. Returns it with the launcher.
fn guarded_host(setup: &Setup, address: &str) -> Result<(Process, PathBuf), RowError> {
    let launcher = setup.launcher()?;
    let mut probe = setup.spawn_at("the launched", &launcher, &["victim", "ringfence"], &[])?;
    let group = probe.ask("egid")?;
    if group != setup.launcher_group().to_string() {
        return Err(RowError::Skipped(format!(
            "setgid has no effect in {}",
            launcher.display()
        )));
    }
    let host = protected_host(setup, address, &format!("gid={}", setup.launcher_group()))?;
    Ok((host, launcher))
}

/// Checks that a process started by the launcher is accepted.
fn launched_gets_in(
    setup: &Setup,
    host: &mut Process,
    launcher: &std::path::Path,
    address: &str,
    environment: &[(&str, &str)],
) -> Result<(), RowError> {
    let mut guest = setup.spawn_at(
        "the launched guest",
        launcher,
        &["victim", "ringfence"],
        environment,
    )?;
    let pid = guest.pid().to_string();
    expect_answer(&mut guest, "pid", &pid)?;
    expect_answer(&mut guest, &format!("join {address} policy=uid"), "joined guest")?;
    host.line_after("joined host")?;
    super::exchange_messages(host, &mut guest)
}

/// Row 9: the attacker starts the genuine program as its tracer (ptrace(2)), and can write anything into it.
///
/// Promise: the executable alone proves nothing within one user. With a setgid launcher, the group
/// is the proof: the kernel does not give it to a program that is traced during its exec (execve(2)).
pub(super) fn traced(setup: &Setup) -> Result<Report, RowError> {
    let genuine = setup.program(Program::Genuine).display().to_string();
    let trace = |program: &str, kind: &str| {
        let args = ["insider", "trace", program, "role", "victim", kind];
        let mut traced = setup.spawn("the traced guest", User::Agent, Program::Other, &args)?;
        traced.line_after("tracing")?;
        Ok::<_, RowError>(traced)
    };
    let address = setup.address("plain");
    let mut host = plain_host(setup, &address, "")?;
    let mut guest = trace(&genuine, "plain")?;
    expect_answer(&mut guest, &format!("join {address} {SIZE}"), "joined guest")?;
    host.line_after("joined host")?;
    let plain = Outcome::succeeded("a traced program is admitted");

    let address = setup.address("default");
    let mut host = protected_host(setup, &address, "")?;
    let mut guest = trace(&genuine, "ringfence")?;
    expect_answer(&mut guest, &format!("join {address}"), "joined guest")?;
    host.line_after("joined host")?;

    let address = setup.address("guarded");
    let (mut host, launcher) = guarded_host(setup, &address)?;
    let mut guest = trace(&launcher.display().to_string(), "ringfence")?;
    let answer = guest.ask(&format!("join {address} policy=uid"))?;
    if !answer.starts_with("error PEER_REFUSED check=gid by_peer=true") {
        return Ok(Report::with_harm(
            plain,
            format!("with gid in the policy: {answer}"),
        ));
    }
    launched_gets_in(setup, &mut host, &launcher, &address, &[])?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed(DOCUMENTED),
        stopped_by: "the kernel ignores setgid for a traced program",
    })
}

/// Row 10: the loader puts the attacker's library into the genuine program before its main runs (ld.so(8)).
///
/// Promise: as in row 9. For a setgid program the loader ignores `LD_PRELOAD`.
pub(super) fn ld_preload(setup: &Setup) -> Result<Report, RowError> {
    let library = injected_library(setup)?.display().to_string();
    let genuine = setup.program(Program::Genuine);
    let environment = [("LD_PRELOAD", &*library)];
    let inject = |kind: &str| {
        let mut guest = setup.spawn_at("the injected guest", &genuine, &["victim", kind], &environment)?;
        guest.line_after("injected")?;
        Ok::<_, RowError>(guest)
    };
    let address = setup.address("plain");
    let mut host = plain_host(setup, &address, "")?;
    let mut guest = inject("plain")?;
    expect_answer(&mut guest, &format!("join {address} {SIZE}"), "joined guest")?;
    host.line_after("joined host")?;
    let plain = Outcome::succeeded("a program with injected code is admitted");

    let address = setup.address("default");
    let mut host = protected_host(setup, &address, "")?;
    let mut guest = inject("ringfence")?;
    expect_answer(&mut guest, &format!("join {address}"), "joined guest")?;
    host.line_after("joined host")?;

    let address = setup.address("guarded");
    let (mut host, launcher) = guarded_host(setup, &address)?;
    let mut guest = inject("ringfence")?;
    let answer = guest.ask(&format!("join {address} policy=uid"))?;
    if !answer.starts_with("error PEER_REFUSED check=gid by_peer=true") {
        return Ok(Report::with_harm(
            plain,
            format!("with gid in the policy: {answer}"),
        ));
    }
    // The launcher with the same environment: nothing is injected.
    launched_gets_in(setup, &mut host, &launcher, &address, &environment)?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed(DOCUMENTED),
        stopped_by: "the loader ignores LD_PRELOAD for a setgid program",
    })
}

/// Compiles a library that prints a line when it is loaded.
fn injected_library(setup: &Setup) -> Result<PathBuf, RowError> {
    if cfg!(target_env = "musl") {
        return Err(RowError::Skipped(
            "this executable is linked statically and has no loader".into(),
        ));
    }
    let (source, library) = (
        setup.shared().join("injected.c"),
        setup.shared().join("injected.so"),
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
pub(super) fn faked_executable(setup: &Setup) -> Result<Report, RowError> {
    let genuine = setup.program(Program::Genuine).display().to_string();
    let fake_exe = |then: &[&str]| {
        let args = [&["insider", "fake-exe", &genuine], then].concat();
        let mut attacker = setup.spawn("the exe faker", User::Agent, Program::Other, &args)?;
        match &*attacker.line()? {
            "faked" => Ok(attacker),
            other => Err(RowError::Skipped(format!(
                "the executable cannot be changed here: {other}"
            ))),
        }
    };
    let address = setup.address("plain");
    let mut host = plain_host(setup, &address, "")?;
    let mut intruder = fake_exe(&["attacker", "connect", &address])?;
    intruder.line_after("holding")?;
    host.line_after("joined host")?;
    expect_answer(&mut host, "send secret", "sent")?;
    expect_answer(&mut intruder, "find secret", "found")?;
    let plain = Outcome::succeeded("another program is admitted and reads what is sent");

    let address = setup.address("default");
    let _host = protected_host(setup, &address, "")?;
    let answer = fake_exe(&["attacker", "connect", &address])?.line()?;
    if !answer.starts_with("refuse 2 namespace ") {
        return Ok(Report::with_harm(
            plain,
            format!("with the default policy: {answer}"),
        ));
    }
    // If the policy accepts other namespaces, the result is that of row 9.
    let address = setup.address("any");
    let mut host = protected_host(setup, &address, "namespace=any")?;
    let mut intruder = fake_exe(&["hostile", "ringfence"])?;
    expect_answer(&mut intruder, &format!("channel {address}"), "channel")?;
    host.line_after("joined host")?;

    let address = setup.address("guarded");
    let (mut host, launcher) = guarded_host(setup, &address)?;
    let answer = fake_exe(&["attacker", "connect", &address])?.line()?;
    if !answer.starts_with("refuse 2 namespace ") {
        return Ok(Report::with_harm(
            plain,
            format!("with gid in the policy: {answer}"),
        ));
    }
    launched_gets_in(setup, &mut host, &launcher, &address, &[])?;
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
pub(super) fn other_arguments(setup: &Setup) -> Result<Report, RowError> {
    let address = setup.address("plain");
    let mut host = plain_host(setup, &address, "")?;
    let args = ["hostile", "plain", "guest", &address];
    let mut other = setup.spawn("the other script", User::Agent, Program::Genuine, &args)?;
    other.line_after("holding")?;
    host.line_after("joined host")?;
    expect_answer(&mut host, "send secret", "sent")?;
    expect_answer(&mut other, "find secret", "found")?;
    let plain = Outcome::succeeded("it is admitted and reads what is sent");

    let address = setup.address("default");
    let mut host = protected_host(setup, &address, "")?;
    let mut other = hostile(setup)?;
    expect_answer(&mut other, &format!("channel {address}"), "channel")?;
    host.line_after("joined host")?;

    let address = setup.address("guarded");
    let (mut host, launcher) = guarded_host(setup, &address)?;
    expect_answer(&mut other, &format!("connect {address}"), "connected")?;
    let answer = other.ask("receive")?;
    if !answer.starts_with("refuse 2 gid ") {
        return Ok(Report::with_harm(
            plain,
            format!("with gid in the policy: {answer}"),
        ));
    }
    launched_gets_in(setup, &mut host, &launcher, &address, &[])?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed(DOCUMENTED),
        stopped_by: "the group of a launcher that starts only one script",
    })
}
