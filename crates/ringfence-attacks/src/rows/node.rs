//! A Node program: its inspector, and modules that its environment makes it load.

use std::{fs, net::TcpListener, path::Path};

use super::{Event, TIME_LIMIT, fenced_host, must};
use crate::{
    Outcome, Report, RowError,
    actor::Actor,
    stage::{Program, Stage, Who},
};

/// Starts the Node program with `node`.
fn program(
    stage: &Stage,
    name: &'static str,
    node: &Path,
    flags: &[&str],
    environment: &[(&str, &str)],
) -> Result<Actor, RowError> {
    let script = stage.shared().join("program.mjs");
    fs::write(&script, include_str!("../roles/program.mjs"))
        .map_err(|error| RowError::wrong(error.to_string()))?;
    let face = stage.package()?.display().to_string();
    let script = script.display().to_string();
    let arguments = [flags, &[&*script]].concat();
    let environment = [&[("RINGFENCE", &*face)], environment].concat();
    stage.spawn_other(name, node, &arguments, &environment)
}

fn attacker(stage: &Stage, who: Who, args: &[&str]) -> Result<String, RowError> {
    stage
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
pub(super) fn inspector(stage: &Stage) -> Result<Report, RowError> {
    let node = stage.node()?;
    let port = free_port()?;
    let flag = format!("--inspect-port={port}");
    // The process that reads need not be the one that sent the signal.
    let reader = if stage.is_root() {
        Who::Stranger
    } else {
        Who::Agent
    };

    let mut victim = program(stage, "the victim", &node, &[&flag], &[])?;
    let pid = victim.ask("pid")?;
    let mut opener = stage.spawn(
        "the attacker",
        Who::Agent,
        Program::Other,
        &["insider", "inspector-open", &pid, &port],
    )?;
    opener.line_after("knocked")?;
    opener.line_after("open")?;
    let answer = attacker(stage, reader, &["inspector-read", &port, "globalThis.secret"])?;
    let plain = if answer == "read topsecret" {
        Outcome::succeeded("the attacker reads a variable through the inspector")
    } else {
        Outcome::failed(answer)
    };
    victim.kill();

    let mut victim = program(stage, "the victim", &node, &[&flag], &[])?;
    let pid = victim.ask("pid")?;
    must(&mut victim, "harden", "hardened")?;
    let answer = attacker(stage, Who::Agent, &["inspector-knock", &pid])?;
    if answer != "knocked" {
        return Err(RowError::wrong(answer));
    }
    // An ignored signal is discarded when it is sent, so it has no later effect.
    must(&mut victim, "pid", &pid)?;
    let answer = attacker(stage, reader, &["inspector-read", &port, "globalThis.secret"])?;
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
pub(super) fn injected(stage: &Stage) -> Result<Report, RowError> {
    let node = stage.node()?;
    let module = stage.shared().join("injected.cjs");
    let text = "console.log('injected')\nsetTimeout(() => console.log('read ' + globalThis.secret), 0)\n";
    fs::write(&module, text).map_err(|error| RowError::wrong(error.to_string()))?;
    // Quoted, because the directory of temporary files may have a blank in its name.
    let options = format!("\"--require={}\"", module.display());
    let environment = [("NODE_OPTIONS", &*options)];
    let inject = || {
        let mut guest = program(stage, "the injected guest", &node, &[], &environment)?;
        guest.line_after("injected")?;
        guest.line_after("read")?;
        Ok::<_, RowError>(guest)
    };
    inject()?;
    let plain = Outcome::succeeded("injected code runs in the genuine program");

    let address = stage.address("default");
    let mut host = program(stage, "the host", &node, &[], &[])?;
    host.send_order(&format!("join {address}"))?;
    crate::post::wait_for_listener(&address).map_err(RowError::Wrong)?;
    let mut guest = inject()?;
    must(&mut guest, &format!("join {address}"), "joined guest")?;
    host.line_after("joined host")?;

    // The group that only a launcher gives: here a setgid copy of Node.
    let launcher = stage.set_to_group(&node)?;
    let policy = r#"{"uid":"same","executable":"any"}"#;
    let mut probe = program(stage, "the launched", &launcher, &[], &[])?;
    if probe.ask("egid")? != stage.launcher_group().to_string() {
        return Err(RowError::Skipped("setgid has no effect here".into()));
    }
    let address = stage.address("guarded");
    let mut host = fenced_host(stage, &address, &format!("gid={}", stage.launcher_group()))?;
    let mut guest = inject()?;
    let answer = guest.ask(&format!("join {address} {policy}"))?;
    if !answer.starts_with("error ERR_RINGFENCE_PEER_REFUSED check=gid") {
        return Ok(Report::with_harm(
            plain,
            format!("with gid in the policy: {answer}"),
        ));
    }
    // The launcher with the same environment: nothing is injected.
    let mut guest = program(stage, "the launched guest", &launcher, &[], &environment)?;
    must(&mut guest, &format!("join {address} {policy}"), "joined guest")?;
    host.line_after("joined host")?;
    Ok(Report {
        plain,
        ringfence: Outcome::failed(super::face::DOCUMENTED),
        stopped_by: "Node ignores NODE_OPTIONS in a setgid program",
    })
}

/// Row 53: messages that no correct encoder produces: truncated at each byte, random, deeply nested, with
/// wrong lengths.
///
/// Defence: a decoder's exception becomes the error of that call, with the bytes attached, and the next
/// call continues. No decoder gets memory that the peer can still write.
pub(super) fn made_up(stage: &Stage) -> Result<Report, RowError> {
    let node = stage.node()?;
    let path = stage.shared().join("plain.sock").display().to_string();
    let mut victim = program(stage, "the victim", &node, &[], &[])?;
    let mut hostile = program(stage, "the hostile peer", &node, &[], &[])?;
    must(&mut victim, &format!("listen-plain {path}"), "listening")?;
    must(&mut hostile, &format!("send-plain {path}"), "sent")?;
    let plain = match victim.next_event(TIME_LIMIT) {
        Event::Exited(how) => Outcome::succeeded(format!("one malformed line ends the process ({how})")),
        other => Outcome::failed(format!("{other:?}")),
    };

    let mut seen = Vec::new();
    for codec in ["json", "structured"] {
        let address = stage.address(codec);
        let mut victim = program(stage, "the victim", &node, &[], &[])?;
        victim.send_order(&format!("join {address}"))?;
        crate::post::wait_for_listener(&address).map_err(RowError::Wrong)?;
        let mut hostile = program(stage, "the hostile peer", &node, &[], &[])?;
        must(&mut hostile, &format!("join {address}"), "joined guest")?;
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
        must(&mut hostile, &format!("send-value {codec}"), "sent")?;
        must(&mut victim, &format!("receive-value {codec}"), "got it")?;
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
