//! A whole handshake with a guest that comes over a socket, says anything, and passes anything: this side is the host.

use std::{
    cell::Cell,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use arbitrary::{Result, Unstructured};
use nix::unistd::getppid;

use super::{
    beside::{Begun, Beside, Play, judge},
    handshake::{Guest, what_a_host_has},
    object::odd,
};
use crate::{
    error::Error,
    evidence::EvidenceLog,
    handshake::{Slots, frame::Meeting, parts::Side},
    identity::Credentials,
    wait::deadline::Deadline,
};

/// What a guest comes to.
const MEETINGS: [Meeting; 4] = [
    Meeting::Pair,
    Meeting::Service,
    Meeting::Membership,
    Meeting::Broadcast,
];

/// What is wrong where there is no seat for a guest, when it comes or once all else is agreed.
const NO_SEAT: [&str; 2] = ["that it comes", "that it would stay"];

/// What a guest says and passes in a handshake. Where all of it is as it should be there is a channel and a seat is taken, and else
/// neither, whatever else is wrong with it.
pub fn host(bytes: &[u8]) {
    static GUEST: Mutex<Option<Beside>> = Mutex::new(None);
    let mut guest = GUEST.lock().expect("no panic before");
    let guest = guest.get_or_insert_with(|| Beside::start("guest"));
    let Some(Begun {
        stream,
        comes,
        backing,
        wrong,
    }) = guest.begin(bytes)
    else {
        return;
    };
    let meeting = MEETINGS[comes];
    let (options, ring) = what_a_host_has(meeting == Meeting::Broadcast, backing);
    let shares: Vec<_> = (meeting == Meeting::Membership)
        .then(|| Arc::new(stream.try_clone().expect("a descriptor")))
        .into_iter()
        .collect();
    // Nothing waits for it: the guest's ends are closed where it says no more.
    let deadline = Deadline::endless(Vec::new(), Duration::from_secs(600));
    let side = Side::new(&"@address", &options, &deadline, meeting)
        .publishing(ring.as_ref())
        .sharing(&shares);
    let seats = Few {
        refuses: NO_SEAT.map(|at| wrong.as_deref() == Some(at)),
        taken: Cell::new(0),
    };
    let made = side
        .look_at(stream, EvidenceLog::default())
        .and_then(|caller| side.host(caller, &seats))
        .map(Some);
    judge(&made, wrong.as_deref(), meeting);
    assert_eq!(seats.taken.get(), u32::from(made.is_ok()), "a seat: {meeting:?}");
}

/// As many seats as the script says.
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
        return Err(Error::PeerLost("there is no seat".into()));
    }
    Ok(())
}

/// What the process of the guest will do. With what it draws from comes a line that the host has made.
pub(super) fn play(script: &mut Unstructured<'_>, passed: Vec<OwnedFd>) -> Result<Option<Play>> {
    let comes = script.int_in_range(0..=MEETINGS.len() - 1)?;
    let meeting = MEETINGS[comes];
    let seat = if odd(script)? {
        Some(*script.choose(&NO_SEAT)?)
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
        comes,
        backing: guest.backing,
        // First where both are wrong: the seats are asked for that.
        wrong: seat
            .or(is_not_its_own.then_some("whose line it is"))
            .or(guest.wrong),
        accepted: true,
        talk: Box::new(move |agreed| guest.talk(&agreed, getppid().as_raw())),
    }))
}
