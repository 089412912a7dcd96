//! What stays at an address alone begins by taking it: a listener, and a publisher.

use crate::{
    address::Address,
    address::bound::BoundAddress,
    address::election,
    error::{Error, Result},
    evidence::EvidenceLog,
    host::handle::{Hold, Worker},
    options::Options,
    wait::deadline::CancelToken,
    wait::deadline::Deadline,
    wait::retry::Backoff,
};

/// The address is taken, and no newcomer is let in yet.
pub(crate) struct Standing {
    pub(crate) place: BoundAddress,
    /// How it was taken.
    pub(crate) record: EvidenceLog,
    /// Ends once the program calls it off, or closes what stands there.
    pub(crate) deadline: Deadline,
    /// Cancelled once the accepting is over.
    pub(crate) over: CancelToken,
    pub(crate) hold: Hold,
}

impl Standing {
    /// Takes the address, which is absolute; where the option says so, once it is free.
    pub(crate) fn take(address: &Address, options: &Options) -> Result<(Self, Worker)> {
        let deadline = Deadline::endless(options.cancel_token.iter().cloned().collect(), options.timeout);
        let mut backoff = Backoff::new(&deadline);
        let mut record = EvidenceLog::default();
        let place = loop {
            match election::bind_alone(address, options.access()?, &deadline, &mut record) {
                Err(Error::AddressOccupied { .. }) if options.wait => backoff.pause()?,
                other => break other?,
            }
        };
        let (worker, hold) = Worker::new()?;
        let standing = Self {
            place,
            record,
            deadline: deadline.or(worker.stop()),
            over: CancelToken::new()?,
            hold,
        };
        Ok((standing, worker))
    }
}
