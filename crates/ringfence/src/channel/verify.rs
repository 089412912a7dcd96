//! Checks a channel's peer again.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{
    channel::end::{ChannelState, Shared},
    error::{Error, Result},
    evidence::{Evidence, EvidenceLog},
    identity::Identity,
    options::Options,
    peer::policy::Policy,
    peer::process::Peer,
    wait::deadline::Deadline,
};

/// Checks a channel's peer again, on any thread. Does not keep the channel open.
#[derive(Clone)]
pub struct Verifier(pub(crate) Arc<Verification>);

opaque! { [] Verifier; }

/// What is known of the peer of an open channel: from the handshake, and from the last verification.
pub(crate) struct KnownPeer {
    pub(crate) verifier: Verifier,
    pub(crate) identity: Arc<Identity>,
    /// The checks of the handshake come first.
    pub(crate) evidence: Vec<Evidence>,
    handshake_checks: usize,
}

impl KnownPeer {
    pub(crate) fn new(verifier: Verifier, identity: Identity, evidence: Vec<Evidence>) -> Self {
        Self {
            verifier,
            identity: Arc::new(identity),
            handshake_checks: evidence.len(),
            evidence,
        }
    }

    pub(crate) fn verify(&mut self) -> Result<&Identity> {
        let Verified { identity, evidence } = self.verifier.verify()?;
        self.identity = Arc::new(identity);
        self.evidence.truncate(self.handshake_checks);
        self.evidence.extend(evidence);
        Ok(&self.identity)
    }
}

/// The state that a verification needs, including a descriptor of the peer's process.
pub(crate) struct Verification {
    peer: Peer,
    policy: Policy,
    timeout: Duration,
    shared: Weak<Shared>,
}

/// The result of a verification.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct Verified {
    /// The peer as it is now.
    pub identity: Identity,
    /// The checks that were made, of the step `verify`.
    pub evidence: Vec<Evidence>,
}

impl Verifier {
    pub(crate) fn new(peer: Peer, options: &Options, shared: &Arc<Shared>) -> Self {
        Self(Arc::new(Verification {
            peer,
            policy: options.policy.without_callback(),
            timeout: options.handshake_timeout,
            shared: Arc::downgrade(shared),
        }))
    }

    /// Checks the peer now, against the policy that the channel was made with: the process is alive, has the
    /// user and group that were attested at first, and satisfies the policy. The label is the one attested at
    /// first. The policy's callback is not called again: it is meant for the handshake.
    ///
    /// # Errors
    /// - [`Error::PeerRefused`] if the peer violates the policy now, or if that cannot be checked. The
    ///   channel is closed then.
    /// - [`Error::PeerLost`] if the peer is gone, [`Error::Closed`] after this side's close,
    ///   [`Error::RingCorrupt`].
    /// - [`Error::NoSpace`] if this process has run out of descriptors or memory, and
    ///   [`Error::HandshakeTimeout`] if the peer's executable cannot be read within [`Options::handshake_timeout`]. The
    ///   peer was not checked then, and the channel stays open.
    pub fn verify(&self) -> Result<Verified> {
        self.check_open()?;
        let Verification { policy, timeout, .. } = &*self.0;
        let mut record = EvidenceLog::default();
        let deadline = Deadline::endless(Vec::new(), *timeout).within(*timeout);
        let checked = policy.check(&self.0.peer, "verify", &deadline, &mut record);
        // If the channel has ended in the meantime, that error comes first.
        self.check_open()?;
        if let (Err(error @ Error::PeerRefused(_)), Some(shared)) = (&checked, self.0.shared.upgrade()) {
            // Cut off the peer before the process's observers are notified: their callbacks may block.
            let unreported = shared.end(ChannelState::Refused);
            shared.trace.refused(error);
            drop(unreported);
        }
        Ok(Verified {
            identity: checked?,
            evidence: record.into_list(),
        })
    }

    fn check_open(&self) -> Result<()> {
        let shared = self.0.shared.upgrade();
        let shared = shared.ok_or(Error::Closed("the channel is closed"))?;
        shared.check_peer();
        shared.check()
    }
}
