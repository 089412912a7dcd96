//! One handshake, from a connection to the parts of a channel: the order of the steps. Each step is a few
//! lines here and is implemented in the module that it names.
//!
//! `steps` has the steps. `parts` has the state of one side and the result. `frame` encodes the bytes, and
//! `line` proves the sender of each frame. `broadcast` adds the ring of a publisher.
//!
//! May import `options`, `address`, `peer`, `region`, `signal` and the modules below them. It never binds
//! an address and never makes a channel.

pub(crate) mod broadcast;
pub(crate) mod frame;
pub(crate) mod line;
pub(crate) mod parts;
mod steps;

use std::os::fd::{AsFd, OwnedFd};

use nix::poll::PollFlags;

use crate::{
    address::bound::Inheritance,
    error::{Check, Error, HELD_BY_SELF, OrSystem, Refusal, Result, SILENT_CHILD},
    evidence::EvidenceLog,
    handshake::broadcast::RingPart,
    handshake::line::{prepare_socket, refuse},
    handshake::parts::{Connection, ExpectedChild, PeerSession, Side},
    handshake::parts::{Parts, Role},
    handshake::steps::{NEW_LINE, check_child, check_line, exactly},
    identity::{Credentials, Identity},
    peer::process::{Peer, creator_pidfd},
    sys, trace,
    wake::attachments::PeerSocket,
};

/// Decides which of the guests that are ready for a channel get one: a pair has one slot, a service has many.
pub(crate) trait Slots {
    /// Held by a guest while it has its slot. Dropping it frees the slot.
    type Slot;

    /// Checks whether a slot is free for this process now. If not, the handshake need not start.
    fn check_free(&self, peer: Credentials) -> Result<()>;

    /// Claims a slot for a guest that has passed all checks, just before READY is sent to it.
    fn claim(&self, peer: Credentials) -> Result<Self::Slot>;

    /// Returns the error to send to a guest whose handshake the host has cancelled.
    fn closed(&self) -> Error;
}

impl Side<'_> {
    /// Runs steps 2 and 3: asks the kernel for the process at the other end, and checks it against the
    /// policy. Waits for no peer.
    pub(crate) fn inspect(&self, stream: PeerSocket, mut record: EvidenceLog) -> Result<Connection> {
        let inspected = (|| {
            let peer = Peer::attest(&stream, self.options.policy.may_hide(), &mut record)?;
            if peer.is_self() {
                return Err(Error::occupied(&self.address, HELD_BY_SELF));
            }
            let policy = &self.options.policy;
            let identity = policy.check(&peer, "executable", self.deadline, &mut record)?;
            Ok((peer, identity))
        })();
        let (peer, identity) = inspected.map_err(|error| refuse(&stream, error))?;
        Ok(Connection {
            stream,
            peer,
            identity,
            record,
        })
    }

    /// Runs steps 4 to 8 as the host.
    pub(crate) fn host<S: Slots>(&self, connection: Connection, slots: &S) -> Result<(Parts, S::Slot)> {
        let map_abort = |error| match error {
            Error::Aborted => slots.closed(),
            error => error,
        };
        let peer = connection.peer.credentials;
        slots
            .check_free(peer)
            .map_err(|error| refuse(&connection, error))?;
        let session = self.hello_of_guest(connection, map_abort)?;
        self.agree_as_host(session, || slots.claim(peer), map_abort)
    }

    /// Traces a handshake and its refusal. The acceptor traces the handshakes of a host with its guests.
    fn traced<T>(&self, role: &'static str, steps: impl FnOnce() -> Result<T>) -> Result<T> {
        trace::Handshake::begin(&self.address, role, None).within(|| {
            let result = steps();
            if let Err(error) = &result {
                trace::refused(&self.address, role, error, None);
            }
            result
        })
    }

    /// Runs steps 2 to 8 as the parent. Sets `identified` once the kernel has named the process that answers, and
    /// not by that process's claim alone.
    pub(crate) fn parent(
        &self,
        stream: OwnedFd,
        expected: ExpectedChild<'_>,
        identified: &mut Option<(i32, Option<OwnedFd>)>,
        record: EvidenceLog,
    ) -> Result<Parts> {
        self.traced("host", || {
            let session = self.hello_of_child(&stream, expected, identified, record);
            let session = session.map_err(|error| refuse(&stream, error))?;
            // A further process that answers reads the refusal after it has found its own line closed.
            let answered = session.peer.credentials.pid;
            let wanted = format!("pid {answered}, which has already answered on this line");
            refuse(
                &stream,
                Refusal::new(Check::Child, wanted, "another process").into(),
            );
            drop(stream);
            let (parts, ()) = self.agree_as_host(session, || Ok(()), |error| error)?;
            Ok(parts)
        })
    }

    /// Runs steps 2 to 4 as the parent. The kernel reports this process as the creator of both ends of the socket that the
    /// child has inherited. So this side identifies the child by the credentials of its message, and by the line that
    /// the child creates and sends. The credentials alone could be forged below a new pid namespace; the
    /// creator of the line cannot.
    ///
    /// A child that may not make a line gets one from this side.
    fn hello_of_child(
        &self,
        stream: &OwnedFd,
        expected: ExpectedChild<'_>,
        identified: &mut Option<(i32, Option<OwnedFd>)>,
        mut record: EvidenceLog,
    ) -> Result<PeerSession> {
        let step = SILENT_CHILD;
        let (sender, frame, descriptors) =
            line::first_frame(stream.as_fd(), self.deadline, &self.address, step)?;
        check_child(sender, expected, &mut record)?;
        let policy = &self.options.policy;
        let is_made_by_child = !descriptors.is_empty();
        let (line, child_end, peer);
        if is_made_by_child {
            let [own, other] = exactly(descriptors)?;
            line = check_line(own, sender)?;
            child_end = check_line(other, sender)?;
            *identified = Some((sender.pid, creator_pidfd(&line)));
            peer = Peer::attest(&line, policy.may_hide(), &mut record)?;
        } else {
            // The child may not make a line. A claim does not suffice to kill a descendant.
            (line, child_end) = sys::socket::new_line().or_system(NEW_LINE)?;
            let started = match expected {
                ExpectedChild::Process(_, pidfd) => pidfd,
                ExpectedChild::Descendant | ExpectedChild::Unknown => None,
            };
            peer = Peer::named_by_message(sender, started, policy.may_hide(), &mut record)?;
        }
        // The child may not be allowed to set options.
        for end in [&line, &child_end] {
            prepare_socket(end)?;
        }
        // Once the child was waited for, another process can have its number.
        if let ExpectedChild::Process(_, Some(pidfd)) = expected
            && sys::is_ready(&pidfd, PollFlags::POLLIN)
                .map_err(|errno| Error::poll("whether the child has exited", errno))?
        {
            return Err(Error::PeerLost("the child has exited".into()));
        }
        let identity = policy.check(&peer, "executable", self.deadline, &mut record)?;
        let (socket, passed) = if is_made_by_child {
            (&line, None)
        } else {
            (stream, Some(child_end.as_fd()))
        };
        let socket = self.line(socket, sender);
        let (own, hello) = self.answer(&socket, passed.as_slice(), &frame, &mut record)?;
        Ok(PeerSession {
            line,
            peer,
            identity,
            own,
            hello,
            prepared: None,
            record,
        })
    }

    /// Runs steps 5 to 8 as the host.
    fn agree_as_host<S>(
        &self,
        mut session: PeerSession,
        claim_slot: impl FnOnce() -> Result<S>,
        map_abort: impl Fn(Error) -> Error,
    ) -> Result<(Parts, S)> {
        let result = (|| {
            self.authorize(&mut session)?;
            // The peer is checked twice: before this side waits for READY, and again after READY has arrived.
            let (objects, _) = self.exchange(&mut session)?;
            self.receive_ready(&mut session, 0)?;
            let identity = self.final_check(&mut session)?;
            if let RingPart::Publisher(start) = &objects.ring {
                start.check()?;
            }
            let slot = claim_slot()?;
            self.send_ready(&mut session)?;
            Ok((objects, identity, slot))
        })();
        let (objects, identity, slot) = result.map_err(|error| refuse(&session.line, map_abort(error)))?;
        Ok((self.finish(Role::Host, session, objects, identity, None), slot))
    }

    /// Runs steps 2 to 8 as the guest. Returns `None` if the host has disconnected without an answer.
    pub(crate) fn guest(&self, stream: PeerSocket, record: EvidenceLog) -> Result<Option<Parts>> {
        self.traced("guest", || {
            let connection = match self.inspect(stream, record) {
                Ok(connection) => connection,
                // The socket of the previous host, which has ended.
                Err(Error::PeerLost(_)) => return Ok(None),
                Err(error) => return Err(error),
            };
            let Some(mut session) = self.hello_of_host(connection)? else {
                return Ok(None);
            };
            let result = (|| {
                self.authorize(&mut session)?;
                // The peer is checked while it makes its object, before this side's READY, and again after the host's READY.
                let (mut objects, before) = self.exchange(&mut session)?;
                let agreed = self.agree_as_guest(&mut session, before);
                if matches!(agreed, Err(Error::Aborted)) && !self.is_destroyed() {
                    objects.own.give_up();
                }
                let (identity, inheritance) = agreed?;
                Ok((objects, identity, inheritance))
            })();
            let (objects, identity, inheritance) = result.map_err(|error| refuse(&session.line, error))?;
            let parts = self.finish(Role::Guest, session, objects, identity, inheritance);
            Ok(Some(parts))
        })
    }

    /// Runs step 8 as the guest. `before`: the identity of the host at the check before it.
    fn agree_as_guest(
        &self,
        session: &mut PeerSession,
        before: Identity,
    ) -> Result<(Identity, Option<Inheritance>)> {
        self.send_ready(session)?;
        let inheritance = self.receive_inheritance(session)?;
        let identity = match self.final_check(session) {
            // The host has had the channel since its READY. It may have sent, closed and exited: its messages are in the ring.
            Err(Error::PeerLost(_)) if session.peer.wait_for_exit(self.deadline)? => {
                session
                    .record
                    .not_asked("final", "process", "it has ended since it sent READY");
                before
            }
            inspected => inspected?,
        };
        Ok((identity, inheritance))
    }
}
