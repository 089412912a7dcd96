//! A whole handshake with a guest that connects over a socket and sends and passes anything. This side is the
//! host.

use std::{
    cell::Cell,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use arbitrary::{Result, Unstructured};
use nix::unistd::getppid;

use super::{
    beside::{Begun, PeerProcess, Play, judge},
    handshake::{Guest, what_a_host_has},
    object::odd,
};
use crate::{
    error::Error,
    evidence::EvidenceLog,
    handshake::{Slots, frame::Meeting, parts::Side},
    identity::Credentials,
    wait::deadline::Deadline,
    wake::attachments::PeerSocket,
};

/// The kinds of meeting that a guest can connect for.
const MEETINGS: [Meeting; 4] = [
    Meeting::Pair,
    Meeting::Service,
    Meeting::Membership,
    Meeting::Broadcast,
];

/// The labels of a refusal for lack of a slot: when the guest connects, or once everything else is agreed.
const NO_SLOT: [&str; 2] = ["that it comes", "that it would stay"];

/// Runs a handshake with a fuzzed guest. If everything that the guest sends and passes is sound, there is a
/// channel and a slot is taken. Otherwise there is neither, whatever else is wrong.
pub fn host(bytes: &[u8]) {
    static GUEST: Mutex<Option<PeerProcess>> = Mutex::new(None);
    let mut guest = GUEST.lock().expect("no panic before");
    let guest = guest.get_or_insert_with(|| PeerProcess::start("guest"));
    let Some(Begun {
        stream,
        purpose,
        backing,
        wrong,
    }) = guest.begin(bytes)
    else {
        return;
    };
    let meeting = MEETINGS[purpose];
    let (options, ring) = what_a_host_has(meeting == Meeting::Broadcast, backing);
    let shares: Vec<_> = (meeting == Meeting::Membership)
        .then(|| Arc::new(stream.try_clone().expect("a descriptor")))
        .into_iter()
        .collect();
    // The deadline never expires: the guest closes its ends once it has finished.
    let deadline = Deadline::endless(Vec::new(), Duration::from_secs(600));
    let side = Side {
        shares: &shares,
        ..Side::new(&"@address", &options, &deadline, meeting).publishing(ring.as_ref())
    };
    let slots = Few {
        refuses: NO_SLOT.map(|at| wrong.as_deref() == Some(at)),
        taken: Cell::new(0),
    };
    let made = side
        .inspect(PeerSocket::new(stream).expect("memory"), EvidenceLog::default())
        .and_then(|connection| side.host(connection, &slots))
        .map(Some);
    judge(&made, wrong.as_deref(), meeting);
    assert_eq!(slots.taken.get(), u32::from(made.is_ok()), "a slot: {meeting:?}");
}

/// The number of free slots is up to the script.
struct Few {
    refuses: [bool; 2],
    taken: Cell<u32>,
}

impl Slots for Few {
    type Slot = ();

    fn check_free(&self, _: Credentials) -> crate::Result<()> {
        answer(self.refuses[0])
    }

    fn claim(&self, _: Credentials) -> crate::Result<()> {
        answer(self.refuses[1])?;
        self.taken.set(self.taken.get() + 1);
        Ok(())
    }

    fn closed(&self) -> Error {
        Error::Aborted
    }
}

fn answer(refuses: bool) -> crate::Result<()> {
    if refuses {
        return Err(Error::PeerLost("there is no slot".into()));
    }
    Ok(())
}

/// Draws the actions of the guest's process. The drawing bytes arrive together with a line that the host has
/// made.
pub(super) fn play(script: &mut Unstructured<'_>, passed: Vec<OwnedFd>) -> Result<Option<Play>> {
    let purpose = script.int_in_range(0..=MEETINGS.len() - 1)?;
    let meeting = MEETINGS[purpose];
    let slot = if odd(script)? {
        Some(*script.choose(&NO_SLOT)?)
    } else {
        None
    };
    let is_not_its_own = odd(script)?;
    let Some(mut guest) = Guest::take(script, meeting, meeting == Meeting::Broadcast)? else {
        return Ok(None);
    };
    if is_not_its_own {
        guest.speaks_on(passed);
    }
    Ok(Some(Play {
        purpose,
        backing: guest.backing,
        // The slot's refusal takes precedence: the slots are claimed first.
        wrong: slot
            .or(is_not_its_own.then_some("whose line it is"))
            .or(guest.wrong),
        accepted: true,
        talk: Box::new(move |agreed| guest.talk(&agreed, getppid().as_raw())),
    }))
}
