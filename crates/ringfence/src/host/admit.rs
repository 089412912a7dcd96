//! How newcomers are taken in at an endpoint: the same for a service, a membership and a publisher.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    channel::end::Partner,
    error::{Error, Result},
    handshake::Slots,
    handshake::parts::Parts,
    host::accept::{Host, Refused},
    host::endpoint::{Endpoint, Seat, Shared},
    identity::Credentials,
    options::Options,
    trace,
};

/// Asks the endpoint who gets a seat, and tells it what became of each newcomer.
pub(crate) struct Admission<'a, E: Endpoint> {
    shared: &'a Arc<Shared<E>>,
    options: &'a Options,
    /// The program was told that this process cannot take newcomers in just now. It tries again many times a second, and tells
    /// once.
    told_hindered: AtomicBool,
}

impl<'a, E: Endpoint> Admission<'a, E> {
    pub(crate) fn new(shared: &'a Arc<Shared<E>>, options: &'a Options) -> Self {
        Self {
            shared,
            options,
            told_hindered: AtomicBool::new(false),
        }
    }
}

impl<E: Endpoint> Slots for Admission<'_, E> {
    type Slot = Seat<E>;

    fn check_free(&self, who: Credentials) -> Result<()> {
        E::ask(self.shared, who)
    }

    fn claim(&self, who: Credentials) -> Result<Seat<E>> {
        self.shared.seat(who)
    }

    fn closed(&self) -> Error {
        Error::Closed(E::BREAKS_OFF)
    }
}

impl<E: Endpoint> Host for Admission<'_, E> {
    /// Trouble on this side that trying again does not mend.
    type End = Error;

    fn may_begin(&self, under_way: usize) -> bool {
        E::has_room(self.shared, under_way) && !self.shared.is_paused()
    }

    fn ready(&self, parts: Parts, seat: Seat<E>) -> ControlFlow<Error> {
        self.told_hindered.store(false, Ordering::Relaxed);
        E::ready(self.shared, parts, seat, self.options);
        ControlFlow::Continue(())
    }

    fn refused(&self, refused: Refused) -> ControlFlow<Error> {
        self.told_hindered.store(false, Ordering::Relaxed);
        self.shared.count_refused(&refused.error);
        E::refused(self.shared, refused);
        ControlFlow::Continue(())
    }

    fn hindered(&self, error: Error) -> ControlFlow<Error> {
        if E::is_final(&error) {
            return ControlFlow::Break(error);
        }
        if !self.told_hindered.swap(true, Ordering::Relaxed) {
            trace::refused(&self.shared.address, "host", &error, None);
            let identity = None;
            E::refused(self.shared, Refused { error, identity });
        }
        ControlFlow::Continue(())
    }

    fn partners(&self) -> Vec<Partner> {
        E::partners(self.shared)
    }

    fn look_round(&self) {
        E::look_round(self.shared);
    }
}
