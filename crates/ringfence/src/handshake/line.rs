//! Proves the sender of each frame. Frames are exchanged with one identified process, and the kernel must
//! have stamped each part of each frame with its credentials.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::{
    errno::Errno,
    poll::PollFlags,
    sys::socket::{ControlMessage, MsgFlags, UnixAddr, getpeername, getsockname, sendmsg},
    unistd::getpid,
};

use crate::{
    error::{Check, Error, OrSystem, Refusal, Result, is_denied},
    handshake::frame::{Frame, HEAD, Refuse},
    identity::Credentials,
    sys::{
        self,
        socket::{ControlStatus, Received},
        uninterrupted,
    },
    wait::deadline::Deadline,
    wake::attachments::{UncheckedFd, discard},
};

/// The maximum for any frame.
pub(super) const MAX_DESCRIPTORS: usize = 3;
/// The most frames of one side: HELLO, OFFER, READY and a refusal.
const MAX_FRAMES: usize = 4;

/// A stream socket on which frames are exchanged with one identified process, until a deadline.
pub(crate) struct FrameLine<'a> {
    pub(crate) socket: BorrowedFd<'a>,
    /// The process at the other end. Every part of every frame must carry these credentials.
    pub(crate) sender: Credentials,
    pub(crate) deadline: &'a Deadline,
    /// The address, for errors.
    pub(crate) address: &'a str,
}

/// Sends a frame with this process's credentials and some descriptors. Never blocks: the frames of a
/// handshake are far smaller than any socket buffer, so a full buffer means that the peer violates the
/// protocol.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    frame: &Frame,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let bytes = frame.encode();
    let credentials = sys::socket::effective_credentials();
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let mut control = vec![ControlMessage::ScmCredentials(&credentials)];
    if !raw.is_empty() {
        control.push(ControlMessage::ScmRights(&raw));
    }
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let slices = [std::io::IoSlice::new(&bytes)];
    let sent = uninterrupted(|| sendmsg::<()>(socket.as_raw_fd(), &slices, &control, flags, None))?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(Errno::EAGAIN)
    }
}

/// Sends the reason to the peer, if it still reads.
pub(crate) fn refuse(socket: impl AsFd, error: Error) -> Error {
    let is_known = match &error {
        Error::PeerLost(_) | Error::Aborted => true,
        error => error.refusal().is_some_and(|refusal| refusal.by_peer),
    };
    if !is_known {
        // A peer that does not read the reason notices the end of the line.
        let _ = send(socket.as_fd(), &Frame::Refuse(Refuse::from(&error)), &[]);
    }
    error
}

/// Names the operation in errors.
const CREDENTIALS: &str = "SO_PASSCRED of a line (setsockopt)";

/// Makes the kernel stamp incoming data with its sender's credentials and nothing else (unix(7),
/// `SO_PASSCRED`). Must be called before the first read.
pub(crate) fn prepare_socket(socket: &OwnedFd) -> Result<()> {
    sys::socket::prepare_socket(socket).or_system(CREDENTIALS)
}

/// Does the same for a socket that this process has just made and that no other process has had.
pub(crate) fn prepare_new_socket(socket: &OwnedFd) -> Result<()> {
    sys::socket::prepare_new_socket(socket).or_system(CREDENTIALS)
}

/// Prepares a line that a child is to inherit. A sandbox may deny the child every system call that sets or
/// reads an option of a socket, so this process sets the options of both ends, and leaves a frame on the child's
/// end, by which the child recognizes the line.
pub(crate) fn prepare(own: &OwnedFd, child_end: &OwnedFd) -> Result<()> {
    // From the first byte on, the kernel adds the sender's credentials.
    for end in [own, child_end] {
        prepare_new_socket(end)?;
    }
    send(own.as_fd(), &MARK, &[]).or_system("writing to a private line (sendmsg)")
}

/// The frame on an inherited line: READY with an echo of zeros, which no handshake has. It stays there.
pub(super) const MARK: Frame = Frame::Ready([0; 32]);

/// Whether this socket is a line that another process has prepared for a child. Reads nothing from it.
pub(crate) fn is_prepared_by_another(socket: BorrowedFd<'_>) -> Result<bool, Errno> {
    // A client of this process could send the mark, but its socket has a name. A filter may deny both questions.
    let names = [
        getsockname::<UnixAddr>(socket.as_raw_fd()),
        getpeername(socket.as_raw_fd()),
    ];
    for name in names {
        match name {
            Ok(name) if name.is_unnamed() => {}
            Err(errno) if is_denied(errno) => {}
            // A socket of another family, or one that is not connected.
            _ => return Ok(false),
        }
    }
    let mark = MARK.encode();
    let mut found = vec![0; mark.len()];
    let received = match sys::socket::peek(socket, &mut found) {
        Err(Errno::EAGAIN) => return Ok(false),
        received => received?,
    };
    discard(received.descriptors);
    let sender = received.credentials.map(|credentials| credentials.pid);
    Ok(found[..received.bytes] == mark && sender.is_some_and(|pid| pid != getpid().as_raw()))
}

impl FrameLine<'_> {
    pub(crate) fn send(&self, frame: &Frame, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        send(self.socket, frame, descriptors).map_err(|errno| match errno {
            // The peer has closed its end. If it sent a reason first, that is the error.
            Errno::EPIPE | Errno::ECONNRESET => self
                .read_refusal()
                .unwrap_or_else(|| Error::PeerLost(format!("it closed the line ({})", errno.desc()))),
            Errno::EAGAIN => Error::PeerLost("it does not read what this side sends".into()),
            // The peer passed this line, so its defects are not the fault of this system.
            errno => Error::unless_denied("writing to the peer's line (sendmsg)", errno, |errno| {
                Error::Protocol(format!("its line cannot be written to ({})", errno.desc()))
            }),
        })
    }

    /// Returns the reason that a disconnected peer has sent, if it sent one.
    pub(crate) fn read_refusal(&self) -> Option<Error> {
        // Frames that have arrived are read after the deadline, too, and a peer may send them without end.
        for _ in 0..MAX_FRAMES {
            match self.receive("the peer's reason", MAX_DESCRIPTORS) {
                Ok((Frame::Refuse(refuse), _)) => return Some(refuse.into_error(self.address)),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
        None
    }

    /// Receives the next frame, with at most `max` descriptors. A refusal is returned as an error.
    pub(crate) fn next_frame(&self, step: &'static str, max: usize) -> Result<(Frame, Vec<UncheckedFd>)> {
        match self.receive(step, max)? {
            (Frame::Refuse(refuse), _) => Err(refuse.into_error(self.address)),
            other => Ok(other),
        }
    }

    /// Receives the next frame, which may be a refusal, with at most `max` descriptors.
    pub(crate) fn receive(&self, step: &'static str, max: usize) -> Result<(Frame, Vec<UncheckedFd>)> {
        let mut reader = FrameReader {
            socket: self.socket,
            sender: Some(self.sender),
            deadline: self.deadline,
            step,
            max,
            descriptors: Vec::new(),
        };
        let frame = reader.frame()?;
        Ok((frame, reader.descriptors))
    }
}

/// Receives the first frame on a socket that a child has inherited. Its sender is not known in advance, and
/// must send the whole frame.
pub(crate) fn first_frame(
    socket: BorrowedFd<'_>,
    deadline: &Deadline,
    address: &str,
    step: &'static str,
) -> Result<(Credentials, Frame, Vec<UncheckedFd>)> {
    let mut reader = FrameReader {
        socket,
        sender: None,
        deadline,
        step,
        max: MAX_DESCRIPTORS,
        descriptors: Vec::new(),
    };
    match (reader.frame()?, reader.sender) {
        (Frame::Refuse(refuse), _) => Err(refuse.into_error(address)),
        (frame, Some(sender)) => Ok((sender, frame, reader.descriptors)),
        (_, None) => Err(Error::Protocol("a frame without a sender".into())),
    }
}

/// A frame that is being read.
struct FrameReader<'a> {
    socket: BorrowedFd<'a>,
    /// The sender of each part. `None` until the first part has arrived.
    sender: Option<Credentials>,
    deadline: &'a Deadline,
    /// The awaited frame, for errors.
    step: &'static str,
    /// The most descriptors that may come with the frame.
    max: usize,
    /// The descriptors that have arrived with the frame.
    descriptors: Vec<UncheckedFd>,
}

impl FrameReader<'_> {
    fn frame(&mut self) -> Result<Frame> {
        let mut head = [0_u8; HEAD];
        self.fill(&mut head)?;
        let (kind, length) = Frame::head(&head)?;
        let mut body = vec![0_u8; length];
        self.fill(&mut body)?;
        Frame::body(kind, &body)
    }

    /// Reads until the buffer is full, and never beyond. A stream does not preserve message boundaries.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let received = self.read(&mut buffer[filled..])?;
            self.descriptors
                .extend(received.descriptors.into_iter().map(UncheckedFd::new));
            self.check_control(&received.control)?;
            if received.bytes == 0 {
                return Err(self.disconnected());
            }
            self.check_sender(received.credentials)?;
            filled += received.bytes;
        }
        Ok(())
    }

    /// Reads the next part as soon as it has arrived.
    fn read(&self, buffer: &mut [u8]) -> Result<Received> {
        loop {
            match sys::socket::receive(self.socket, buffer) {
                Ok(received) => return Ok(received),
                Err(Errno::EAGAIN) => {
                    let awaited = [(self.socket, PollFlags::POLLIN)];
                    self.deadline.wait_at(self.step, &awaited)?;
                }
                Err(Errno::ECONNRESET) => return Err(self.disconnected()),
                Err(errno) => {
                    return Err(Error::unless_denied(
                        "reading the peer's line (recvmsg)",
                        errno,
                        |errno| Error::Protocol(format!("its line cannot be read ({})", errno.desc())),
                    ));
                }
            }
        }
    }

    fn disconnected(&self) -> Error {
        Error::PeerLost(format!(
            "it disconnected while this side waited for {}",
            self.step
        ))
    }

    /// Checks that the only control data are credentials, and no more descriptors than the frame may have.
    fn check_control(&self, control: &ControlStatus) -> Result<()> {
        let step = self.step;
        match control {
            ControlStatus::Expected if self.descriptors.len() <= self.max => Ok(()),
            ControlStatus::Expected | ControlStatus::Truncated => {
                let wanted = format!("at most {}", self.max);
                Err(Error::unsound("descriptors", wanted, "more"))
            }
            ControlStatus::Short => Err(Error::no_space(
                format!("a descriptor that came with {step}"),
                "this process has reached its limit (RLIMIT_NOFILE), or a security module denies this descriptor",
            )),
            // It results from an option of this side's own socket. Only a peer that holds that socket too can
            // have set the option.
            ControlStatus::Unexpected { level, kind } => Err(Error::Protocol(format!(
                "an unexpected control message (level {level}, type {kind}) came with {step}"
            ))),
        }
    }

    /// Checks that the same process has sent all parts.
    fn check_sender(&mut self, found: Option<Credentials>) -> Result<()> {
        match (found, self.sender) {
            (Some(found), Some(wanted)) if found == wanted => Ok(()),
            (Some(found), None) => {
                self.sender = Some(found);
                Ok(())
            }
            (found, wanted) => {
                let describe = |c: Credentials| format!("pid {}, uid {}, gid {}", c.pid, c.uid, c.gid);
                let wanted = wanted.map_or_else(
                    || "every message to carry its sender's credentials".into(),
                    |wanted| format!("every message from {}, the sender of the first", describe(wanted)),
                );
                let refusal =
                    Refusal::new(Check::Line, wanted, found.map_or_else(|| "none".into(), describe));
                Err(found.into_iter().fold(refusal, Refusal::about).into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::socket::{Shutdown, send as send_bytes, shutdown};

    use super::*;

    const FAR: Duration = Duration::from_secs(60);

    fn ends() -> (OwnedFd, OwnedFd) {
        let (own, peer) = sys::socket::new_line().unwrap();
        for end in [&own, &peer] {
            prepare_new_socket(end).unwrap();
        }
        (own, peer)
    }

    fn this_process() -> Credentials {
        let own = sys::socket::effective_credentials();
        Credentials {
            pid: own.pid(),
            uid: own.uid(),
            gid: own.gid(),
        }
    }

    fn within(time: Duration) -> Deadline {
        Deadline::endless(Vec::new(), time).within(time)
    }

    fn line<'a>(end: &'a OwnedFd, sender: Credentials, deadline: &'a Deadline) -> FrameLine<'a> {
        FrameLine {
            socket: end.as_fd(),
            sender,
            deadline,
            address: "here",
        }
    }

    const FRAME: Frame = Frame::Ready([7; 32]);

    fn refusal() -> Error {
        Refusal::new(Check::Line, "this", "that").into()
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no socket that passes descriptors")]
    fn frame_arrives_with_descriptors_up_to_the_limit() {
        let (own, peer) = ends();
        let deadline = within(FAR);
        let [here, there] = [&own, &peer].map(|end| line(end, this_process(), &deadline));
        here.send(&FRAME, &[]).unwrap();
        let (frame, descriptors) = there.next_frame("a frame", 1).unwrap();
        assert_eq!((frame, descriptors.len()), (FRAME, 0));
        for max in 1..=3 {
            let passed = vec![own.as_fd(); max];
            here.send(&FRAME, &passed).unwrap();
            let (frame, descriptors) = there.next_frame("a frame", max).unwrap();
            assert_eq!((frame, descriptors.len()), (FRAME, max));
        }
        for (passed, max) in [(1, 0), (2, 1), (3, 2), (4, 3)] {
            let (own, peer) = ends();
            send(own.as_fd(), &FRAME, &vec![own.as_fd(); passed]).unwrap();
            let refused = line(&peer, this_process(), &deadline).next_frame("a frame", max);
            let is_right = matches!(
                refused,
                Err(Error::ObjectUnsound {
                    check: "descriptors",
                    ..
                })
            );
            assert!(is_right, "{passed} of {max}: {refused:?}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no credentials of a socket")]
    fn frame_parts_must_have_the_same_sender() {
        let deadline = within(FAR);
        let own = this_process();
        for other in [
            Credentials {
                pid: own.pid + 1,
                ..own
            },
            Credentials {
                uid: own.uid + 1,
                ..own
            },
            Credentials {
                gid: own.gid + 1,
                ..own
            },
        ] {
            let (here, there) = ends();
            send(here.as_fd(), &FRAME, &[]).unwrap();
            let refused = line(&there, other, &deadline).next_frame("a frame", 1);
            assert_eq!(refused.unwrap_err().code(), "PEER_REFUSED");
        }
        let (here, there) = ends();
        send(here.as_fd(), &FRAME, &[]).unwrap();
        let (sender, frame, descriptors) = first_frame(there.as_fd(), &deadline, "here", "a frame").unwrap();
        assert_eq!((sender, frame, descriptors.len()), (own, FRAME, 0));
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no credentials of a socket")]
    fn split_frame_is_accepted_and_unfinished_one_is_an_error() {
        let bytes = FRAME.encode();
        for pieces in [1, 7, bytes.len()] {
            let (here, there) = ends();
            for piece in bytes.chunks(pieces) {
                send_bytes(here.as_raw_fd(), piece, MsgFlags::empty()).unwrap();
            }
            send(here.as_fd(), &FRAME, &[]).unwrap();
            let deadline = within(FAR);
            let there = line(&there, this_process(), &deadline);
            for _ in 0..2 {
                assert_eq!(there.next_frame("a frame", 1).unwrap().0, FRAME);
            }
            drop(here);
            let disconnected = there.next_frame("the next one", 1).unwrap_err();
            assert!(
                matches!(&disconnected, Error::PeerLost(how) if how.contains("the next one")),
                "{disconnected}"
            );
        }
        for part in [0, 1, HEAD, bytes.len() - 1] {
            let (here, there) = ends();
            send_bytes(here.as_raw_fd(), &bytes[..part], MsgFlags::empty()).unwrap();
            let deadline = within(Duration::from_millis(5));
            let late = line(&there, this_process(), &deadline)
                .next_frame("a frame", 1)
                .unwrap_err();
            assert_eq!(late.code(), "HANDSHAKE_TIMEOUT", "{part}");
            drop(here);
            let deadline = within(FAR);
            let disconnected = line(&there, this_process(), &deadline)
                .next_frame("a frame", 1)
                .unwrap_err();
            assert_eq!(disconnected.code(), "PEER_LOST", "{part}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no credentials of a socket")]
    fn refusal_is_sent_unless_the_peer_has_ended() {
        let deadline = within(FAR);
        let (here, there) = ends();
        assert_eq!(refuse(&here, refusal()).code(), "PEER_REFUSED");
        let reported = line(&there, this_process(), &deadline)
            .next_frame("a frame", 1)
            .unwrap_err();
        assert_eq!(reported.code(), "PEER_REFUSED");
        assert!(reported.refusal().unwrap().by_peer);
        // A refusal from the peer is not sent back, and neither is the fact that it has disconnected.
        for known in [reported, Error::PeerLost("it left".into()), Error::Aborted] {
            refuse(&here, known);
            assert_eq!(sys::socket::unread(&there), Ok(0));
        }
    }

    /// A peer that no longer reads, and sends frame after frame, must not keep this side beyond its deadline.
    #[test]
    #[cfg_attr(miri, ignore = "Miri has no credentials of a socket")]
    fn search_for_the_reason_ends_after_a_few_frames() {
        let deadline = within(Duration::ZERO);
        let (here, there) = ends();
        shutdown(there.as_raw_fd(), Shutdown::Read).unwrap();
        let mut sent = 0;
        while send(there.as_fd(), &FRAME, &[]).is_ok() {
            sent += 1;
        }
        let here = line(&here, this_process(), &deadline);
        assert_eq!(here.send(&FRAME, &[]).unwrap_err().code(), "PEER_LOST");
        let mut left = 0;
        while here.receive("a frame", 0).is_ok() {
            left += 1;
        }
        assert!(sent > MAX_FRAMES && left == sent - MAX_FRAMES, "{left} of {sent}");
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no credentials of a socket")]
    fn write_to_a_disconnected_peer_returns_its_reason() {
        let deadline = within(FAR);
        let (here, there) = ends();
        refuse(&there, refusal());
        drop(there);
        let here = line(&here, this_process(), &deadline);
        assert_eq!(here.send(&FRAME, &[]).unwrap_err().code(), "PEER_REFUSED");
        assert_eq!(here.send(&FRAME, &[]).unwrap_err().code(), "PEER_LOST");
        // A full line fails immediately instead of blocking.
        let (here, _there) = ends();
        let full = loop {
            if let Err(error) = line(&here, this_process(), &deadline).send(&FRAME, &[]) {
                break error;
            }
        };
        assert!(
            matches!(&full, Error::PeerLost(how) if how.contains("does not read")),
            "{full}"
        );
    }
}
