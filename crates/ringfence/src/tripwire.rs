//! Who opens a shared object sounds an alarm.
//!
//! The write lease on the object outlives its descriptor: it belongs to the open file, which lives as long as this
//! process's mapping. Whoever opens the object is held back by it for the lease-break time (45 s by default, see
//! proc_sys_fs(5)), and the kernel sends the signal that the lease was taken with. Which of the objects is meant the signal does not
//! say (its descriptor's number has another owner by then), but `/proc/locks` does: a lease that somebody breaks is
//! not an active write lease any more.

use std::{
    fmt,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::{
    errno::Errno,
    libc::c_int,
    sys::stat::{fstat, major, minor},
};

use crate::{
    error::{Error, Result},
    fork::PerProcess,
    signal::{Claim, Listener},
    sys,
};

/// What is done when the wire is tripped, once.
type Alarm = Box<dyn FnOnce() + Send>;

/// A watch on one object of this process's own, as long as this lives. It must go before the mapping does, or the end
/// of the lease would be taken for an alarm.
#[derive(Debug)]
pub(crate) struct Tripwire {
    wire: Arc<Wire>,
    claim: Claim,
}

struct Wire {
    /// The object as `/proc/locks` names it.
    place: String,
    armed: AtomicBool,
    tripped: AtomicBool,
    alarm: Mutex<Option<Alarm>>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire")
            .field("place", &self.place)
            .field("armed", &self.armed)
            .field("tripped", &self.tripped)
            .finish_non_exhaustive()
    }
}

static WIRES: PerProcess<Mutex<Vec<Arc<Wire>>>> = PerProcess::new();

fn locked(wires: &Mutex<Vec<Arc<Wire>>>) -> MutexGuard<'_, Vec<Arc<Wire>>> {
    // Valid after every statement that changes it.
    wires.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tripwire {
    /// Takes a write lease on the object, which the kernel grants only while nobody else has it open, and watches it.
    /// The descriptor may be closed then; a mapping that was made with it keeps the lease.
    ///
    /// Errors with [`Error::ObjectExposed`] where somebody else has it open, with [`Error::InvalidArgument`] where this
    /// process uses the signal itself, and with [`Error::Unsupported`].
    pub(crate) fn arm(object: impl AsFd, signal: c_int) -> Result<Self> {
        let file =
            fstat(&object).map_err(|errno| Error::system("looking at the shared object (fstat)", errno))?;
        let claim = Claim::new(Some(signal), Listener::Alarms(look))?;
        let wires = WIRES.get()?;
        let wire = Arc::new(Wire {
            place: format!(
                "{:02x}:{:02x}:{}",
                major(file.st_dev),
                minor(file.st_dev),
                file.st_ino
            ),
            armed: AtomicBool::new(false),
            tripped: AtomicBool::new(false),
            alarm: Mutex::new(None),
        });
        locked(wires).push(Arc::clone(&wire));
        let tripwire = Self { wire, claim };
        sys::take_watched_lease(&object, tripwire.claim.thread, signal).map_err(refused)?;
        tripwire.wire.armed.store(true, Ordering::SeqCst);
        // Who came between the lease and the wire was told of too early.
        if sys::has_write_lease(&object) != Ok(true) {
            tripwire.wire.trip();
        }
        Ok(tripwire)
    }

    /// Whether somebody has tried to open the object.
    pub(crate) fn is_tripped(&self) -> bool {
        self.wire.tripped.load(Ordering::SeqCst)
    }

    /// What to do when somebody tries to open the object; at once, if somebody has.
    pub(crate) fn on_alarm(&self, alarm: impl FnOnce() + Send + 'static) {
        *self.wire.alarm() = Some(Box::new(alarm));
        if self.is_tripped() {
            self.wire.trip();
        }
    }
}

impl Drop for Tripwire {
    fn drop(&mut self) {
        // None of a child's is among those that were its parent's.
        if let Some(wires) = WIRES.existing() {
            locked(wires).retain(|wire| !Arc::ptr_eq(wire, &self.wire));
        }
    }
}

impl Wire {
    fn alarm(&self) -> MutexGuard<'_, Option<Alarm>> {
        self.alarm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trip(&self) {
        self.tripped.store(true, Ordering::SeqCst);
        // Not under the lock: the alarm may end the channel, and the wire with it.
        let alarm = self.alarm().take();
        if let Some(alarm) = alarm {
            alarm();
        }
    }
}

/// What a refused lease means.
pub(crate) fn refused(errno: Errno) -> Error {
    match errno {
        Errno::EAGAIN => {
            Error::ObjectExposed("the write lease was refused, so somebody else has it open".into())
        }
        errno => Error::system("a write lease on the shared object (fcntl F_SETLEASE)", errno),
    }
}

/// On the signal's thread, once the kernel has said something.
fn look() {
    let Some(wires) = WIRES.existing() else { return };
    let tripped: Vec<_> = {
        // Whose wire is here has its mapping still, and with it the lease that is looked for.
        let wires = locked(wires);
        // Read bytewise: what cannot be read cannot calm anybody.
        let locks = std::fs::read("/proc/locks").unwrap_or_default();
        let locks = String::from_utf8_lossy(&locks);
        wires
            .iter()
            .filter(|wire| wire.armed.load(Ordering::SeqCst) && !is_held(&locks, &wire.place))
            .cloned()
            .collect()
    };
    for wire in tripped {
        wire.trip();
    }
}

/// Whether the table of locks shows a write lease at that place, and nobody who breaks it.
fn is_held(locks: &str, place: &str) -> bool {
    let mut held = false;
    for line in locks.lines() {
        let mut fields = line.split_whitespace().skip(1);
        if !fields.clone().any(|field| field == place) {
            continue;
        }
        if [Some("LEASE"), Some("ACTIVE"), Some("WRITE")] != [fields.next(), fields.next(), fields.next()] {
            return false;
        }
        held = true;
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_locks_tells_what_is_held() {
        let table = "1: POSIX  ADVISORY  WRITE 41 00:19:2034 0 EOF\n\
                     2: LEASE  ACTIVE    WRITE 879 00:01:587017 0 EOF\n\
                     3: LEASE  BREAKING  READ 880 00:01:587018 0 EOF\n\
                     3: -> LEASE  BREAKER   WRITE 881 00:01:587018 0 EOF\n\
                     4: LEASE  ACTIVE    READ 882 00:01:587019 0 EOF\n";
        for (place, held) in [
            ("00:01:587017", true),
            // Being broken, worn down to a read lease, and not there at all.
            ("00:01:587018", false),
            ("00:01:587019", false),
            ("00:01:58701", false),
        ] {
            assert_eq!(is_held(table, place), held, "{place}");
        }
        assert!(!is_held("", "00:01:587017"), "a table that cannot be read");
    }
}
