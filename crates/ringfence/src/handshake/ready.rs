//! Steps 7 and 8 of a handshake: the final check, READY, and the parts of a channel.

use std::os::fd::{AsFd, OwnedFd};

use crate::{
    address::inherit::Inheritance,
    error::{Error, Result},
    handshake::frame::{Frame, TAKES_BARRIERS, check_echo},
    handshake::objects::Objects,
    handshake::parts::{Parts, Role},
    handshake::side::{RingRole, Side, Talk},
    identity::Identity,
    trace::Tie,
};

impl Side<'_> {
    /// Runs step 7: checks that the process still exists and still satisfies the policy.
    pub(super) fn look_finally(&self, talk: &mut Talk) -> Result<Identity> {
        let Talk { peer, record, .. } = talk;
        let identity = self.options.policy.check(peer, "final", self.deadline, record)?;
        record.not_asked("final", "peer hardened", peer.openness());
        Ok(identity)
    }

    /// Runs step 8.
    pub(super) fn send_ready(&self, talk: &mut Talk) -> Result<()> {
        let shares: Vec<_> = self.shares.iter().map(|share| share.as_fd()).collect();
        self.line(&talk.line, talk.peer.credentials)
            .send(&Frame::Ready(talk.hello.nonce), &shares)?;
        talk.record
            .passed("ready", "sent", "after everything else", "sent");
        if !shares.is_empty() {
            talk.record.passed(
                "ready",
                "passed on",
                "the listening socket, and the lock beside a path",
                format!("{} descriptors", shares.len()),
            );
        }
        Ok(())
    }

    /// Waits for the host's READY. In a membership, READY carries the guest's share of the place.
    pub(super) fn expect_inheritance(&self, talk: &mut Talk) -> Result<Option<Inheritance>> {
        let Some(address) = self.inherits else {
            self.expect_ready(talk, 0)?;
            return Ok(None);
        };
        let descriptors = self.expect_ready(talk, Inheritance::count(address))?;
        Inheritance::accept(address, descriptors, &mut talk.record).map(Some)
    }

    pub(super) fn expect_ready(&self, talk: &mut Talk, count: usize) -> Result<Vec<OwnedFd>> {
        let line = self.line(&talk.line, talk.peer.credentials);
        let (frame, descriptors) = line.receive("the peer's READY", count)?;
        let echo = match frame {
            Frame::Ready(echo) => echo,
            // Only a publisher can evict this side, so the word counts only for a subscriber.
            Frame::Refuse(refuse) if matches!(self.role, RingRole::Subscriber) && refuse.is_eviction() => {
                return Err(Error::Evicted);
            }
            Frame::Refuse(refuse) => return Err(refuse.into_error(line.address)),
            _ => return Err(Error::Protocol("expected READY, received another frame".into())),
        };
        if descriptors.len() != count {
            return Err(Error::ObjectUnsound {
                check: "descriptors",
                wanted: format!("{count} with READY"),
                found: descriptors.len().to_string(),
            });
        }
        check_echo(&echo, &talk.own)?;
        talk.record
            .passed("ready", "received", "after everything else", "received");
        Ok(descriptors)
    }

    pub(super) fn finish(
        &self,
        role: Role,
        talk: Talk,
        objects: Objects,
        identity: Identity,
        inheritance: Option<Inheritance>,
    ) -> Parts {
        let Talk {
            line,
            peer,
            hello,
            mut record,
            ..
        } = talk;
        drop(objects.own);
        record.passed(
            "ready",
            "descriptors",
            "closed on this side; only the mappings remain",
            "closed",
        );
        Parts {
            role,
            line,
            process: peer.keep(),
            tie: Tie::with(&self.address, &identity),
            identity,
            evidence: record.into_list(),
            mark: objects.mark,
            own: objects.region,
            peer: objects.peer,
            own_capacity: self.own_ring(),
            peer_capacity: hello.capacity,
            longest_out: hello.longest,
            longest_in: self.options.longest(),
            barriers: self.takes_barriers && hello.features & TAKES_BARRIERS != 0,
            inbox: objects.inbox,
            token_sender: objects.token_sender,
            inheritance,
            ring: objects.ring,
        }
    }
}
