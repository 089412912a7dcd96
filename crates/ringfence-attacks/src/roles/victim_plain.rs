//! A process of the plain program that executes orders.

use std::{
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use nix::{sys::socket::accept, unistd::Pid};

use super::{number, program};
use crate::{
    plain::{self, Moment, Plain, Reading},
    socket,
};

pub(super) fn run() -> Result<(), String> {
    let mut channel: Option<Plain> = None;
    let mut last_message = None;
    program::serve(|order| {
        let connected = || channel.as_ref().ok_or("not joined");
        Ok(match order {
            // The child uses the inherited channel, and drops it.
            ["in-child"] => {
                let channel = channel.as_ref();
                program::in_child(|| {
                    let sent = channel.is_some_and(|channel| channel.send(b"the-childs"));
                    if sent { "sent" } else { "full" }.into()
                })?
            }
            ["join", address, size, options @ ..] => match join(address, number(size)?, options) {
                Ok(joined) => format!("joined {}", channel.insert(joined).role),
                Err(what) => format!("error {what}"),
            },
            ["send", text] => if connected()?.send(text.as_bytes()) {
                "sent"
            } else {
                "full"
            }
            .into(),
            // Copies nothing: the program reads the message in place.
            ["receive", milliseconds] => match wait(connected()?, number(milliseconds)?) {
                Some(message) => {
                    last_message = Some(message);
                    show(&connected()?.copy_message(message))
                }
                None => "nothing".into(),
            },
            ["again"] => show(&connected()?.copy_message(last_message.ok_or("no message")?)),
            ["done"] => {
                let (_, length) = last_message.take().ok_or("no message")?;
                connected()?.advance(length);
                "done".into()
            }
            // Like a producer that has nothing else to do.
            ["send-all", count] => {
                for _ in 0..number::<usize>(count)? {
                    while !connected()?.send(&[7; 1000]) {
                        thread::sleep(Duration::from_millis(1));
                    }
                }
                "all sent".into()
            }
            // Takes the address over once the peer announces that it leaves, and prints it.
            ["successor", address, signal] => {
                succeed(address, number(signal)?, connected()?.peer)?;
                "waiting".into()
            }
            ["announce-leave", signal] => match plain::announce_exit(connected()?.peer, number(signal)?) {
                Ok(()) => "announced".into(),
                Err(errno) => format!("error {errno}"),
            },
            // Receives a line that the peer created, and 64 single bytes over it. Reports how many
            // descriptors are left open.
            ["take-line", address] => take_line(address)?,
            // Disconnects from a peer that it cannot check.
            ["verify-without-descriptors"] => {
                let shows = program::without_descriptors(|| connected().map(Plain::peer_shows))??;
                if shows {
                    "there".into()
                } else {
                    channel = None;
                    "cut off".into()
                }
            }
            ["check-peer"] => check_peer(&mut channel)?,
            ["exit"] => std::process::exit(0),
            ["alive"] => if connected()?.peer_is_alive() {
                "alive"
            } else {
                "gone"
            }
            .into(),
            other => return Err(format!("no such order: {other:?}")),
        })
    })
}

/// Waits on a thread, so that orders are still executed. The thread prints when it has taken over.
fn succeed(address: &str, signal: i32, peer: Pid) -> Result<(), String> {
    let address = address.to_owned();
    plain::block(signal)?;
    thread::spawn(move || match plain::inherit(&address, signal, peer) {
        Ok(listener) => {
            println!("took over");
            std::mem::forget(listener);
        }
        Err(what) => println!("error {what}"),
    });
    Ok(())
}

fn take_line(address: &str) -> Result<String, String> {
    let listener = socket::listen_at(address).map_err(|errno| errno.to_string())?;
    println!("listening");
    let connection = accept(&listener).map_err(|errno| errno.to_string())?;
    let mut parcel = socket::receive(connection.as_fd(), 1).map_err(|errno| errno.to_string())?;
    let line = parcel.descriptors.pop().ok_or("no line was passed")?;
    let before = program::inventory().len();
    socket::receive_exactly(line.as_fd(), 64).map_err(|errno| errno.to_string())?;
    Ok(format!("left {}", program::inventory().len() - before))
}

/// Checks the peer after the ring was found empty. This program knows one reason for a missing peer: that it
/// exited.
fn check_peer(channel: &mut Option<Plain>) -> Result<String, String> {
    let looking = channel.as_ref().ok_or("not joined")?;
    if looking.peer_is_alive() {
        return Ok("there".into());
    }
    let unread = looking.peek().map_or(0, |(_, length)| length);
    *channel = None;
    Ok(format!("exited, {unread} bytes unread"))
}

/// Formats a message as the rows expect it.
fn show(message: &[u8]) -> String {
    format!(
        "got {} {}",
        message.len(),
        String::from_utf8_lossy(&message[..message.len().min(64)]).escape_default()
    )
}

fn join(address: &str, size: usize, options: &[&str]) -> Result<Plain, String> {
    let reading = Reading {
        keep_lease: options.contains(&"keep-lease"),
        uid_only: options.contains(&"uid-only"),
        inode_only: options.contains(&"inode-only"),
        group: match options.iter().find_map(|option| option.strip_prefix("group=")) {
            Some(group) => Some(number(group)?),
            None => None,
        },
    };
    plain::join(address, size, reading, &mut |moment| match moment {
        Moment::Listening if options.contains(&"listening") => println!("listening"),
        Moment::Refused if options.contains(&"tell") => println!("refused"),
        // A program's callback may take forever.
        Moment::Refused if options.contains(&"hang") => {
            println!("refused");
            program::idle();
        }
        Moment::Received if options.contains(&"forking") => {
            println!("child {}", program::child_inherits().unwrap_or_else(|what| what));
        }
        _ => {}
    })
}

fn wait(channel: &Plain, milliseconds: u64) -> Option<(*const u8, usize)> {
    let end = Instant::now() + Duration::from_millis(milliseconds);
    loop {
        if let Some(message) = channel.peek() {
            return Some(message);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(Duration::from_micros(200));
    }
}
