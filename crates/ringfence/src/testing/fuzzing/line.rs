//! Frames as they arrive: in pieces, with surplus descriptors, and cut anywhere.

use std::{
    fs::File,
    io::IoSlice,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    time::Duration,
};

use arbitrary::{Result, Unstructured};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, setsockopt, socketpair, sockopt,
};

use crate::{
    handshake::frame::Frame, handshake::line::FrameLine, identity::Credentials, sys, wait::deadline::Deadline,
};

/// A piece of the stream, and the number of descriptors sent with it.
struct Piece {
    bytes: Vec<u8>,
    descriptors: usize,
}

/// Feeds a peer's bytes and descriptors to the line's reader. It must read as many frames as a reader that
/// has all the bytes at once, up to the first one with too many descriptors. No descriptor may be leaked.
pub fn line(bytes: &[u8]) {
    let mut script = Unstructured::new(bytes);
    let pieces: Vec<_> = std::iter::from_fn(|| piece(&mut script).ok().flatten())
        .take(32)
        .collect();
    let free = lowest_free();
    listen(&pieces);
    // Tests that run in parallel open and close descriptors concurrently.
    assert!(
        cfg!(test) || lowest_free() == free,
        "a descriptor was left behind"
    );
}

fn piece(script: &mut Unstructured<'_>) -> Result<Option<Piece>> {
    if script.is_empty() {
        return Ok(None);
    }
    // Mostly none: a surplus ends the connection.
    let descriptors = script.int_in_range(0..=15_usize)?.saturating_sub(12);
    let length = script.int_in_range(1..=4200_usize)?.min(script.len().max(1));
    let bytes = match script.bytes(length) {
        Ok(bytes) => bytes.to_vec(),
        Err(_) => return Ok(None),
    };
    Ok(Some(Piece { bytes, descriptors }))
}

fn listen(pieces: &[Piece]) {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .expect("a socket pair");
    setsockopt(&ours, sockopt::PassCred, &true).expect("SO_PASSCRED");
    let sent = say(&theirs, pieces);
    // No call waits: everything that will arrive is there, and so is the end.
    drop(theirs);

    let own = sys::socket::effective_credentials();
    let deadline = Deadline::endless(Vec::new(), Duration::from_secs(5));
    let line = FrameLine {
        socket: ours.as_fd(),
        sender: Credentials {
            pid: own.pid(),
            uid: own.uid(),
            gid: own.gid(),
        },
        deadline: &deadline,
        address: "@address",
    };
    let stream: Vec<u8> = pieces[..sent]
        .iter()
        .flat_map(|piece| &piece.bytes)
        .copied()
        .collect();
    let attached = pieces[..sent].iter().any(|piece| piece.descriptors > 0);
    let mut rest = &stream[..];
    loop {
        let wanted = Frame::decode(rest);
        match (line.next_frame("a frame", 1), wanted) {
            (Ok((frame, descriptors)), wanted) => {
                let (wanted, after) = wanted.expect("a frame in the bytes that were sent");
                assert_eq!(frame, wanted);
                assert!(descriptors.len() <= 1);
                rest = after;
            }
            // The peer has given the reason, has sent an invalid frame, or has disconnected.
            (Err(_), Err(_) | Ok((Frame::Refuse(_), _))) => return,
            (Err(error), Ok((frame, _))) => {
                assert!(attached, "{error}, where {frame:?} was sent");
                assert_eq!(error.code(), "OBJECT_UNSOUND", "{error}");
                return;
            }
        }
    }
}

/// Sends the pieces, and returns the number of pieces that fit.
fn say(socket: &OwnedFd, pieces: &[Piece]) -> usize {
    let attached = File::open("/dev/null").expect("/dev/null");
    let credentials = sys::socket::effective_credentials();
    for (count, piece) in pieces.iter().enumerate() {
        let descriptors: Vec<RawFd> = vec![attached.as_raw_fd(); piece.descriptors];
        let mut control = vec![ControlMessage::ScmCredentials(&credentials)];
        if !descriptors.is_empty() {
            control.push(ControlMessage::ScmRights(&descriptors));
        }
        let sent = sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(&piece.bytes)],
            &control,
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            None,
        );
        if sent != Ok(piece.bytes.len()) {
            assert!(sent.is_err(), "a stream takes small pieces whole, or not at all");
            return count;
        }
    }
    pieces.len()
}

fn lowest_free() -> RawFd {
    File::open("/dev/null").expect("/dev/null").as_raw_fd()
}
