//! The sender of each frame: frames are exchanged with one process that is known, and the kernel must have stamped each part of
//! each frame with its credentials.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::{
    errno::Errno,
    poll::PollFlags,
    sys::socket::{ControlMessage, MsgFlags, sendmsg},
};

use crate::{
    error::{Check, Error, Refusal, Result},
    handshake::frame::{Frame, HEAD, Refuse},
    identity::Credentials,
    sys::{
        self,
        ancillary::{Control, Received},
        uninterrupted,
    },
    wait::deadline::{Deadline, Woken},
};

/// With any frame.
const MOST_DESCRIPTORS: usize = 2;

/// A stream socket on which frames are exchanged with one known process, up to a deadline.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    pub(crate) socket: BorrowedFd<'a>,
    /// The process at the other end. Every part of every frame must be stamped with these credentials.
    pub(crate) speaker: Credentials,
    pub(crate) deadline: &'a Deadline,
    /// The address, for errors.
    pub(crate) address: &'a str,
}

/// Sends a frame, with this process's credentials and some descriptors. Never blocks: a handshake's frames
/// are far smaller than any socket's buffer, so one that is full is a peer that does not follow the protocol.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    frame: &Frame,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let bytes = frame.encode();
    let credentials = sys::ancillary::effective_credentials();
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

/// Tells the other side why, as far as it still listens.
pub(crate) fn refuse(socket: impl AsFd, error: Error) -> Error {
    let knows_already = match &error {
        Error::PeerLost(_) | Error::Aborted => true,
        error => error.refusal().is_some_and(|refusal| refusal.by_peer),
    };
    if !knows_already {
        // A peer that does not read it learns it from the end of the line.
        let _ = send(socket.as_fd(), &Frame::Refuse(Refuse::from(&error)), &[]);
    }
    error
}

/// From here on the kernel stamps what arrives with its sender's credentials (unix(7), `SO_PASSCRED`), and adds nothing else.
/// To be called before the first read.
pub(crate) fn settle_line(socket: &OwnedFd) -> Result<()> {
    sys::socket::settle_line(socket).map_err(|errno| Error::system("SO_PASSCRED", errno))
}

/// The same for a socket that this process has just made, and that no other has had.
pub(crate) fn settle_new_line(socket: &OwnedFd) -> Result<()> {
    sys::socket::settle_new_line(socket).map_err(|errno| Error::system("SO_PASSCRED", errno))
}

impl Line<'_> {
    pub(crate) fn send(&self, frame: &Frame, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        send(self.socket, frame, descriptors).map_err(|errno| match errno {
            // It has closed its end. If it said why before that, that is the error.
            Errno::EPIPE | Errno::ECONNRESET => self
                .last_words()
                .unwrap_or_else(|| Error::PeerLost(format!("it closed the line ({})", errno.desc()))),
            Errno::EAGAIN => Error::PeerLost("it does not read what it is sent".into()),
            // The line is what the peer passed: what is wrong with it is not this system's fault.
            errno => Error::unless_short("writing to the peer's line", errno, |errno| {
                Error::Protocol(format!("its line cannot be written to ({})", errno.desc()))
            }),
        })
    }

    /// What a peer that has gone said before that, if it said why.
    pub(crate) fn last_words(&self) -> Option<Error> {
        loop {
            match self.receive("its last words", MOST_DESCRIPTORS) {
                Ok((Frame::Refuse(refuse), _)) => return Some(refuse.into_error(self.address)),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }

    /// The next frame, and the descriptor that came with it, if one did. A refusal is an error already.
    pub(crate) fn expect(&self, step: &'static str) -> Result<(Frame, Vec<OwnedFd>)> {
        self.expect_with(step, 1)
    }

    /// The same, with so many descriptors at most.
    pub(crate) fn expect_with(&self, step: &'static str, most: usize) -> Result<(Frame, Vec<OwnedFd>)> {
        match self.receive(step, most)? {
            (Frame::Refuse(refuse), _) => Err(refuse.into_error(self.address)),
            other => Ok(other),
        }
    }

    /// The next frame, a refusal included, and the descriptors that came with it, so many at most.
    pub(crate) fn receive(&self, step: &'static str, most: usize) -> Result<(Frame, Vec<OwnedFd>)> {
        let mut reader = Reader {
            socket: self.socket,
            speaker: Some(self.speaker),
            deadline: self.deadline,
            step,
            descriptors: Vec::new(),
        };
        let frame = reader.frame(most)?;
        Ok((frame, reader.descriptors))
    }
}

/// The first frame on a socket that a child has inherited, and the process that sent it, which is not known before. The process
/// that begins the frame must send all of it.
pub(crate) fn first(
    socket: BorrowedFd<'_>,
    deadline: &Deadline,
    address: &str,
    step: &'static str,
) -> Result<(Credentials, Frame, Vec<OwnedFd>)> {
    let mut reader = Reader {
        socket,
        speaker: None,
        deadline,
        step,
        descriptors: Vec::new(),
    };
    match (reader.frame(1)?, reader.speaker) {
        (Frame::Refuse(refuse), _) => Err(refuse.into_error(address)),
        (frame, Some(speaker)) => Ok((speaker, frame, reader.descriptors)),
        (_, None) => Err(Error::Protocol("a frame without a sender".into())),
    }
}

/// One frame on its way in.
struct Reader<'a> {
    socket: BorrowedFd<'a>,
    /// Each part must come from this process. `None` until the first part has come.
    speaker: Option<Credentials>,
    deadline: &'a Deadline,
    /// What is awaited, for errors.
    step: &'static str,
    /// Those that have come with the frame.
    descriptors: Vec<OwnedFd>,
}

impl Reader<'_> {
    /// The frame, with so many descriptors at most.
    fn frame(&mut self, most: usize) -> Result<Frame> {
        let mut head = [0_u8; HEAD];
        self.part(&mut head, most)?;
        let (kind, length) = Frame::head(&head)?;
        let mut body = vec![0_u8; length];
        self.part(&mut body, most)?;
        Frame::body(kind, &body)
    }

    fn part(&mut self, buffer: &mut [u8], most: usize) -> Result<()> {
        self.fill(buffer)?;
        if self.descriptors.len() > most {
            return Err(surplus(most));
        }
        Ok(())
    }

    /// A stream keeps no borders of messages: reads until the buffer is full, and never past it.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let received = self.read(&mut buffer[filled..])?;
            self.descriptors.extend(received.descriptors);
            self.check_control(&received.control)?;
            if received.bytes == 0 {
                return Err(self.left());
            }
            self.check_sender(received.credentials)?;
            filled += received.bytes;
        }
        Ok(())
    }

    /// What comes next, once it is there.
    fn read(&self, buffer: &mut [u8]) -> Result<Received> {
        loop {
            match sys::ancillary::receive(self.socket, buffer) {
                Ok(received) => return Ok(received),
                Err(Errno::EAGAIN) => match self.deadline.wait(&[(self.socket, PollFlags::POLLIN)])? {
                    Woken::Ready => {}
                    Woken::Late => {
                        return Err(Error::HandshakeTimeout {
                            step: self.step,
                            after: self.deadline.allowed,
                        });
                    }
                },
                Err(Errno::ECONNRESET) => return Err(self.left()),
                Err(errno) => {
                    return Err(Error::unless_short("reading the peer's line", errno, |errno| {
                        Error::Protocol(format!("its line cannot be read ({})", errno.desc()))
                    }));
                }
            }
        }
    }

    fn left(&self) -> Error {
        Error::PeerLost(format!("it left while {} was awaited", self.step))
    }

    /// What came beside the bytes must be credentials, and no more descriptors than any frame has.
    fn check_control(&self, control: &Control) -> Result<()> {
        let step = self.step;
        match control {
            Control::Expected if self.descriptors.len() <= MOST_DESCRIPTORS => Ok(()),
            Control::Expected | Control::Truncated => Err(surplus(MOST_DESCRIPTORS)),
            Control::Short => Err(Error::NoSpace {
                what: format!("a descriptor that came with {step}"),
                reason: "this process has as many open as it may (RLIMIT_NOFILE), or a security module forbids it this one"
                    .into(),
            }),
            // It comes of an option of this side's own socket, which only a peer that holds the socket too can have set.
            Control::Unexpected { level, kind } => Err(Error::Protocol(format!(
                "a control message that was not asked for (level {level}, type {kind}) comes with {step}"
            ))),
        }
    }

    /// The process that sent the first part must have sent this one.
    fn check_sender(&mut self, found: Option<Credentials>) -> Result<()> {
        match (found, self.speaker) {
            (Some(found), Some(wanted)) if found == wanted => Ok(()),
            (Some(found), None) => {
                self.speaker = Some(found);
                Ok(())
            }
            (found, wanted) => {
                let who = |c: Credentials| format!("pid {}, uid {}, gid {}", c.pid, c.uid, c.gid);
                let wanted = wanted.map_or_else(
                    || "every message with the credentials of its sender".into(),
                    |wanted| format!("every message from {}, which is who spoke first", who(wanted)),
                );
                let refusal = Refusal::new(Check::Line, wanted, found.map_or_else(|| "none".into(), who));
                Err(found.into_iter().fold(refusal, Refusal::about).into())
            }
        }
    }
}

fn surplus(most: usize) -> Error {
    Error::ObjectUnsound {
        check: "descriptors",
        wanted: format!("at most {most}"),
        found: "more".into(),
    }
}
