//! A Node program: its inspector, and modules that its environment makes it load.

use std::{fs, net::TcpListener, path::Path};

use super::{Event, TIME_LIMIT, expect_answer, protected_host};
use crate::{
    Outcome, Report, RowError,
    process::Process,
    setup::{Program, Setup, User},
};

/// Starts the Node program with `node`.
fn program(
    setup: &Setup,
    name: &'static str,
    node: &Path,
    flags: &[&str],
    environment: &[(&str, &str)],
) -> Result<Process, RowError> {
    let script = setup.shared().join("program.mjs");
    fs::write(&script, include_str!("../roles/program.mjs"))
        .map_err(|error| RowError::wrong(error.to_string()))?;
    let face = setup.package()?.display().to_string();
    let script = script.display().to_string();
    let arguments = [flags, &[&*script]].concat();
    let environment = [&[("RINGFENCE", &*face)], environment].concat();
    setup.spawn_other(name, node, &arguments, &environment)
}

fn attacker(setup: &Setup, who: User, args: &[&str]) -> Result<String, RowError> {
    setup
        .spawn(
            "the attacker",
            who,
            Program::Other,
            &[&["insider"][..], args].concat(),
        )?
        .line()
}

/// Returns a port of the loopback interface that is free now.
fn free_port() -> Result<String, RowError> {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port().to_string())
        .map_err(|error| RowError::wrong(error.to_string()))
}

/// Row 12: SIGUSR1 makes Node open its inspector on port 9229 of the loopback interface, dumpable or not.
/// (Here it is another port, which no other process uses.) Every process that can connect to it can read
/// everything, whatever its user.
///
/// Defence: hardening ignores SIGUSR1.
pub(super) fn inspector(setup: &Setup) -> Result<Report, RowError> {
    let node = setup.node()?;
    let port = free_port()?;
    let flag = format!("--inspect-port={port}");
    // The process that reads need not be the one that sent the signal.
    let reader = if setup.is_root() { User::Other } else { User::Agent };

    let mut victim = program(setup, "the victim", &node, &[&flag], &[])?;
    let pid = victim.ask("pid")?;
    let mut opener = setup.spawn(
        "the attacker",
        User::Agent,
        Program::Other,
        &["insider", "inspector-open", &pid, &port],
    )?;
    opener.line_after("signalled")?;
    opener.line_after("open")?;
    let answer = attacker(setup, reader, &["inspector-read", &port, "globalThis.secret"])?;
    let plain = if answer == "read topsecret" {
        Outcome::succeeded("the attacker reads a variable through the inspector")
    } else {
        Outcome::failed(answer)
    };
    victim.kill();

    let mut victim = program(setup, "the victim", &node, &[&flag], &[])?;
    let pid = victim.ask("pid")?;
    expect_answer(&mut victim, "harden", "hardened")?;
    let answer = attacker(setup, User::Agent, &["inspector-signal", &pid])?;
    if answer != "signalled" {
        return Err(RowError::wrong(answer));
    }
    // An ignored signal is discarded when it is sent, so it has no later effect.
    expect_answer(&mut victim, "pid", &pid)?;
    let answer = attacker(setup, reader, &["inspector-read", &port, "globalThis.secret"])?;
    if answer != "ConnectionRefused" {
        return Ok(Report::with_harm(plain, answer));
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed("hardened: no port opens"),
        stopped_by: "harden(): SIGUSR1 is ignored",
    })
}

/// Row 11: `NODE_OPTIONS` makes Node load the attacker's module into the genuine program before its first
/// line.
///
/// Promise: as in row 9, the executable proves nothing within one user. In a setgid program Node
/// ignores `NODE_OPTIONS` (secure execution, getauxval(3) `AT_SECURE`).
pub(super) fn node_options(setup: &Setup) -> Result<Report, RowError> {
    let node = setup.node()?;
    let module = setup.shared().join("injected.cjs");
    let text = "console.log('injected')\nsetTimeout(() => console.log('read ' + globalThis.secret), 0)\n";
    fs::write(&module, text).map_err(|error| RowError::wrong(error.to_string()))?;
    // Quoted, because the directory of temporary files may have a blank in its name.
    let options = format!("\"--require={}\"", module.display());
    let environment = [("NODE_OPTIONS", &*options)];
    let inject = || {
        let mut guest = program(setup, "the injected guest", &node, &[], &environment)?;
        guest.line_after("injected")?;
        guest.line_after("read")?;
        Ok::<_, RowError>(guest)
    };
    inject()?;
    let plain = Outcome::succeeded("injected code runs in the genuine program");

    let address = setup.address("default");
    let mut host = program(setup, "the host", &node, &[], &[])?;
    host.send_order(&format!("join {address}"))?;
    crate::socket::wait_for_listener(&address).map_err(RowError::Wrong)?;
    let mut guest = inject()?;
    expect_answer(&mut guest, &format!("join {address}"), "joined guest")?;
    host.line_after("joined host")?;

    // The group that only a launcher gives: here a setgid copy of Node.
    let launcher = setup.set_to_group(&node)?;
    let policy = r#"{"uid":"same","executable":"any"}"#;
    let mut probe = program(setup, "the launched", &launcher, &[], &[])?;
    if probe.ask("egid")? != setup.launcher_group().to_string() {
        return Err(RowError::Skipped("setgid has no effect here".into()));
    }
    let address = setup.address("guarded");
    let mut host = protected_host(setup, &address, &format!("gid={}", setup.launcher_group()))?;
    let mut guest = inject()?;
    let answer = guest.ask(&format!("join {address} {policy}"))?;
    if !answer.starts_with("error ERR_RINGFENCE_PEER_REFUSED check=gid") {
        return Ok(Report::with_harm(
            plain,
            format!("with gid in the policy: {answer}"),
        ));
    }
    // The launcher with the same environment: nothing is injected.
    let mut guest = program(setup, "the launched guest", &launcher, &[], &environment)?;
    expect_answer(&mut guest, &format!("join {address} {policy}"), "joined guest")?;
    host.line_after("joined host")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed(super::injection::DOCUMENTED),
        stopped_by: "Node ignores NODE_OPTIONS in a setgid program",
    })
}

/// Row 53: messages that no correct encoder produces: truncated at each byte, random, deeply nested, with
/// wrong lengths.
///
/// Defence: a decoder's exception becomes the error of that call, with the bytes attached, and the next
/// call continues. No decoder gets memory that the peer can still write.
pub(super) fn malformed_codec_input(setup: &Setup) -> Result<Report, RowError> {
    let node = setup.node()?;
    let path = setup.shared().join("plain.sock").display().to_string();
    let mut victim = program(setup, "the victim", &node, &[], &[])?;
    let mut hostile = program(setup, "the hostile peer", &node, &[], &[])?;
    expect_answer(&mut victim, &format!("listen-plain {path}"), "listening")?;
    expect_answer(&mut hostile, &format!("send-plain {path}"), "sent")?;
    let plain = match victim.next_event(TIME_LIMIT) {
        Event::Exited(how) => Outcome::succeeded(format!("one malformed line ends the process ({how})")),
        other => Outcome::failed(format!("{other:?}")),
    };

    let mut seen = Vec::new();
    for codec in ["json", "structured"] {
        let address = setup.address(codec);
        let mut victim = program(setup, "the victim", &node, &[], &[])?;
        victim.send_order(&format!("join {address}"))?;
        crate::socket::wait_for_listener(&address).map_err(RowError::Wrong)?;
        let mut hostile = program(setup, "the hostile peer", &node, &[], &[])?;
        expect_answer(&mut hostile, &format!("join {address}"), "joined guest")?;
        victim.line_after("joined host")?;
        hostile.send_order(&format!("send-made-up {codec}"))?;
        let count = hostile.line_after("sent")?;
        match victim.try_ask(&format!("refused {codec} {count}"), TIME_LIMIT) {
            Event::Line(line) if line == format!("refused {count}") => {}
            other => {
                return Ok(Report::with_harm(
                    plain,
                    format!("{codec}, {count} messages: {other:?}"),
                ));
            }
        }
        expect_answer(&mut hostile, &format!("send-value {codec}"), "sent")?;
        expect_answer(&mut victim, &format!("receive-value {codec}"), "got it")?;
        seen.push(format!("{codec} {count}"));
    }
    Ok(Report {
        plain,
        ringfence: Outcome::failed(format!(
            "each is MALFORMED ({}), and the next value is read",
            seen.join(", ")
        )),
        stopped_by: "a decoder's exception becomes an error of that call",
    })
}
