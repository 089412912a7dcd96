//! An alarm that is raised when another process opens a shared object.
//!
//! The write lease on the object outlives its descriptor, because it belongs to the open file, which exists
//! as long as this process's mapping. The kernel blocks a process that opens the object for the lease-break
//! time (45 s by default, see proc_sys_fs(5)), and sends the signal that was set with the lease. The signal
//! does not say which object was opened, because the descriptor number in it may belong to another file by
//! the time it arrives. `/proc/locks` shows it: a lease that another process is breaking is no longer an
//! active write lease.
//!
//! The signal itself proves nothing. Every process of the same user can send SIGIO, and can make the kernel
//! send this thread the signal of another lease (`F_SETOWN_EX`). So the table decides. Because the decision
//! may destroy data, the table is read with care:
//!
//! - It stays open from the first wire to the last, so that it can be read when no descriptor is available.
//! - It is read after signals alone. The kernel stops all changes of locks for a read, and waits for every
//!   processor first: 10 ms, which no handshake should wait for. The first read allocates a page in the kernel.
//!   A read that finds no memory is repeated, and counts as an alarm after `TIME_LIMIT`. After any other error
//!   the signal decides, as on a system without this table.
//! - The kernel returns it one page at a time, and other processes take and release locks between two reads.
//!   A line that is found is valid. A missing line may have moved to a page that was already read, so it is
//!   searched for again many times. The time for that is the lease-break time
//!   (`/proc/sys/fs/lease-break-time`, at least a second, 45 by default). If the table fits one page, a
//!   missing line is really missing.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::FileExt},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc::c_int,
    sys::stat::{fstat, major, minor},
};

use crate::{
    error::{Error, OrSystem, Result, errno, is_shortage},
    fork::PerProcess,
    signal::claim::SignalClaim,
    sys,
    sys::lock::Mutex,
};

/// The action when the wire is tripped, which runs once.
type Alarm = Box<dyn FnOnce() -> Option<AfterAlarm> + Send>;

/// The part of an alarm that may run after every tripped wire was handled. It may call code outside this
/// crate.
pub(crate) type AfterAlarm = Box<dyn FnOnce() + Send>;

/// A watch on one object of this process, while this value exists. It must be dropped before the mapping.
/// Otherwise the end of the lease would be taken for an alarm.
pub(crate) struct Tripwire {
    wire: Arc<Wire>,
    claim: SignalClaim,
}

struct Wire {
    /// The object's identification in `/proc/locks`.
    lock_id: String,
    armed: AtomicBool,
    tripped: AtomicBool,
    inconclusive: Mutex<Inconclusive>,
    alarm: Mutex<Option<Alarm>>,
}

/// The inconclusive checks since the last conclusive one.
#[derive(Debug, Default)]
struct Inconclusive {
    /// The number of checks in which the line was missing from a table that was not read in one piece.
    missing: u32,
    /// The time of the first such check.
    since: Option<Instant>,
}

/// All wires of this process, and the table that shows their leases. [`Tripwire::arm`] opens the table, the signal
/// thread reads it (`check_wires`), and the drop of the last [`Tripwire`] closes it. All three hold the lock of [`WIRES`].
#[derive(Default)]
struct Wires {
    wires: Vec<Arc<Wire>>,
    /// Open while there are wires. `None` if this system has no such table. Then every alarm counts.
    table: Option<LockTable>,
}

static WIRES: PerProcess<Mutex<Wires>> = PerProcess::new();

impl Wires {
    /// Fails with [`Error::NoSpace`] if no descriptor or memory is available.
    fn add(&mut self, wire: &Arc<Wire>, open: impl FnOnce() -> io::Result<LockTable>) -> Result<()> {
        if self.table.is_none() {
            self.table = match open() {
                Ok(table) => Some(table),
                Err(error) if is_shortage(errno(&error)) => {
                    return Err(Error::system("the table of locks (/proc/locks)", errno(&error)));
                }
                Err(_) => None,
            };
        }
        self.wires.push(Arc::clone(wire));
        Ok(())
    }

    fn remove(&mut self, wire: &Arc<Wire>) {
        self.wires.retain(|other| !Arc::ptr_eq(other, wire));
        if self.wires.is_empty() {
            self.table = None;
        }
    }

    /// Returns the wires whose object is being opened, and whether the others need another check.
    fn judge(&self, locks: Option<&io::Result<Locks>>, now: Instant) -> (Vec<Arc<Wire>>, bool) {
        let mut recheck = false;
        let tripped = self
            .wires
            .iter()
            .filter(|wire| wire.armed.load(Ordering::SeqCst) && !wire.is_tripped())
            .filter(|wire| {
                let state = match locks {
                    Some(Ok(locks)) => lease_state(locks, &wire.lock_id),
                    Some(Err(error)) if is_shortage(errno(error)) => LeaseState::Unread,
                    Some(Err(_)) | None => LeaseState::Broken,
                };
                let verdict = wire.judge(state, now);
                recheck |= verdict.is_none();
                verdict == Some(true)
            })
            .cloned()
            .collect();
        (tripped, recheck)
    }
}

/// `/proc/locks`, open.
struct LockTable(File);

/// The content of the table at one time.
struct Locks {
    text: Vec<u8>,
    /// The table was read in one piece, so a missing line is really missing.
    complete: bool,
}

impl LockTable {
    fn open() -> io::Result<Self> {
        File::open("/proc/locks").map(Self)
    }

    fn read(&self) -> io::Result<Locks> {
        Self::read_pieces(|piece, at| self.0.read_at(piece, at))
    }

    fn read_pieces(mut read_at: impl FnMut(&mut [u8], u64) -> io::Result<usize>) -> io::Result<Locks> {
        /// A piece that leaves this many bytes of the smallest page free is not a full page, so it ends where
        /// the table ends. No line is longer.
        const ROOM: usize = 512;
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        let mut pieces = 0;
        loop {
            match read_at(&mut piece, bytes.len() as u64) {
                Ok(0) => break,
                Ok(count) => {
                    bytes.try_reserve(count).map_err(|_| Errno::ENOMEM)?;
                    bytes.extend_from_slice(&piece[..count]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            pieces += 1;
        }
        Ok(Locks {
            complete: pieces <= 1 && bytes.len() <= piece.len() - ROOM,
            text: bytes,
        })
    }
}

impl Tripwire {
    /// Takes a write lease on the object and watches it. The kernel grants the lease only while no other
    /// process has the object open. Afterwards the descriptor may be closed: a mapping that was made with it
    /// keeps the lease.
    ///
    /// # Errors
    ///
    /// [`Error::ObjectExposed`] if another process has the object open. [`Error::InvalidArgument`] if this
    /// process uses the signal itself. [`Error::Unsupported`].
    pub(crate) fn arm(object: impl AsFd, signal: c_int) -> Result<Self> {
        let file = fstat(&object).or_system("inspecting the shared object (fstat)")?;
        let claim = SignalClaim::with_alarm(signal, check_wires)?;
        let wires = WIRES.get()?;
        let (major, minor) = (major(file.st_dev), minor(file.st_dev));
        let wire = Arc::new(Wire {
            lock_id: format!("{major:02x}:{minor:02x}:{}", file.st_ino),
            armed: AtomicBool::new(false),
            tripped: AtomicBool::new(false),
            inconclusive: Mutex::default(),
            alarm: Mutex::new(None),
        });
        wires.lock().add(&wire, LockTable::open)?;
        let tripwire = Self { wire, claim };
        sys::file::acquire_watched_lease(&object, tripwire.claim.thread, signal).map_err(lease_error)?;
        tripwire.wire.armed.store(true, Ordering::SeqCst);
        // Check again: a process may have opened the object between the lease and arming, and that alarm was
        // ignored.
        if !sys::file::has_write_lease(&object).map_err(lease_error)? {
            // No alarm action is set yet, so nothing is returned.
            drop(tripwire.wire.trip());
        }
        Ok(tripwire)
    }

    /// Whether another process has tried to open the object.
    pub(crate) fn is_tripped(&self) -> bool {
        self.wire.is_tripped()
    }

    /// Sets the action for when another process tries to open the object. It runs immediately if one has
    /// already tried.
    pub(crate) fn on_alarm(&self, alarm: impl FnOnce() -> Option<AfterAlarm> + Send + 'static) {
        *self.wire.alarm.lock() = Some(Box::new(alarm));
        if self.is_tripped()
            && let Some(aftermath) = self.wire.trip()
        {
            aftermath();
        }
    }
}

impl Drop for Tripwire {
    fn drop(&mut self) {
        // A forked child's tripwires are never among its parent's wires.
        if let Some(wires) = WIRES.existing() {
            wires.lock().remove(&self.wire);
        }
    }
}

impl Wire {
    fn is_tripped(&self) -> bool {
        self.tripped.load(Ordering::SeqCst)
    }

    /// Whether the observation means that the object is being opened. `None` if that is still unknown.
    fn judge(&self, state: LeaseState, now: Instant) -> Option<bool> {
        let mut inconclusive = self.inconclusive.lock();
        if let LeaseState::Held | LeaseState::Broken = state {
            *inconclusive = Inconclusive::default();
            return Some(state == LeaseState::Broken);
        }
        let since = *inconclusive.since.get_or_insert(now);
        inconclusive.missing += u32::from(state == LeaseState::Missing);
        let time = now.duration_since(since);
        // A flood of signals causes checks that all see the same table, so the time counts too.
        let is_gone = inconclusive.missing >= MIN_CHECKS && time >= PAUSE * MIN_CHECKS / 2;
        (is_gone || time >= TIME_LIMIT).then_some(true)
    }

    fn trip(&self) -> Option<AfterAlarm> {
        self.tripped.store(true, Ordering::SeqCst);
        // Not under the lock, because the alarm may end the channel and drop the wire.
        let alarm = self.alarm.lock().take();
        alarm.and_then(|alarm| alarm())
    }
}

/// Makes the error for a refused lease.
pub(crate) fn lease_error(errno: Errno) -> Error {
    match errno {
        Errno::EAGAIN => {
            Error::ObjectExposed("the write lease was refused, so another process has it open".into())
        }
        errno => Error::system("a write lease on the shared object (fcntl F_SETLEASE)", errno),
    }
}

/// The pause between two checks of an inconclusive table.
const PAUSE: Duration = Duration::from_millis(20);
/// The number of checks that must miss a line before it counts as gone: two seconds. Next to a program that
/// does nothing but take and release locks, a check missed the line in at most two of three cases. So all
/// checks miss it in one of 10^17 alarms.
const MIN_CHECKS: u32 = 100;
/// The time for which a lack of memory may keep the table from being read before the alarm counts. By default the kernel blocks an
/// opener for longer.
const TIME_LIMIT: Duration = Duration::from_secs(20);

/// The observation of a lease in one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeaseState {
    /// The lease is unchanged.
    Held,
    /// Another process is breaking the lease, or has broken it.
    Broken,
    /// The line was missing, which may be due to reading in pieces.
    Missing,
    /// There was no memory to read the table.
    Unread,
}

/// Checks all wires, on the signal thread, after a signal from the kernel or from a process that imitates it.
/// Returns the delay until the next check, if one is needed.
fn check_wires() -> Option<Duration> {
    let (tripped, recheck) = {
        // A wire in the list still has its mapping, and so the lease.
        let wires = WIRES.existing()?.lock();
        let locks = wires.table.as_ref().map(LockTable::read);
        wires.judge(locks.as_ref(), Instant::now())
    };
    // Wipe all regions before calling any other code, because callbacks may block.
    let aftermaths: Vec<_> = tripped.iter().filter_map(|wire| wire.trip()).collect();
    for aftermath in aftermaths {
        aftermath();
    }
    recheck.then_some(PAUSE)
}

/// Searches the table for the lease of that object. Other kinds of locks on the same file are ignored.
fn lease_state(locks: &Locks, lock_id: &str) -> LeaseState {
    let mut state = if locks.complete {
        LeaseState::Broken
    } else {
        LeaseState::Missing
    };
    // Bytes that are not UTF-8 cannot belong to a lease's line.
    let lines = locks.text.split(|byte| *byte == b'\n');
    for line in lines.filter_map(|line| str::from_utf8(line).ok()) {
        // "3: LEASE  ACTIVE    WRITE 879 00:01:587017 0 EOF", and "3: -> LEASE  BREAKER …" for an opener that
        // is blocked.
        let mut fields = line.split_whitespace().skip(1).skip_while(|field| *field == "->");
        if fields.next() != Some("LEASE") || !fields.clone().any(|field| field == lock_id) {
            continue;
        }
        if [fields.next(), fields.next()] != [Some("ACTIVE"), Some("WRITE")] {
            return LeaseState::Broken;
        }
        state = LeaseState::Held;
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "1: POSIX  ADVISORY  WRITE 41 00:19:2034 0 EOF\n\
                     2: LEASE  ACTIVE    WRITE 879 00:01:587017 0 EOF\n\
                     3: LEASE  BREAKING  READ 880 00:01:587018 0 EOF\n\
                     3: -> LEASE  BREAKER   WRITE 881 00:01:587018 0 EOF\n\
                     4: LEASE  ACTIVE    READ 882 00:01:587019 0 EOF\n\
                     5: FLOCK  ADVISORY  WRITE 883 00:01:587017 0 EOF\n\
                     6: -> LEASE  BREAKER   WRITE 884 00:01:587020 0 EOF\n";

    fn locks(text: &str, complete: bool) -> Locks {
        Locks {
            text: text.into(),
            complete,
        }
    }

    #[test]
    fn lock_table_shows_held_leases() {
        for (lock_id, state) in [
            // A process that has a descriptor may lock the same file in other ways.
            ("00:01:587017", LeaseState::Held),
            // Being broken, downgraded to a read lease, and waited for.
            ("00:01:587018", LeaseState::Broken),
            ("00:01:587019", LeaseState::Broken),
            ("00:01:587020", LeaseState::Broken),
        ] {
            assert_eq!(lease_state(&locks(TABLE, true), lock_id), state, "{lock_id}");
            assert_eq!(
                lease_state(&locks(TABLE, false), lock_id),
                state,
                "{lock_id}, in pieces"
            );
        }
        // Missing lines.
        assert_eq!(
            lease_state(&locks(TABLE, true), "00:01:58701"),
            LeaseState::Broken
        );
        assert_eq!(
            lease_state(&locks(TABLE, false), "00:01:58701"),
            LeaseState::Missing
        );
        assert_eq!(lease_state(&locks("", true), "00:01:587017"), LeaseState::Broken);
    }

    fn wire(lock_id: &str) -> Arc<Wire> {
        Arc::new(Wire {
            lock_id: lock_id.into(),
            armed: AtomicBool::new(true),
            tripped: AtomicBool::new(false),
            inconclusive: Mutex::default(),
            alarm: Mutex::new(None),
        })
    }

    #[test]
    fn missing_lock_line_is_searched_repeatedly() {
        let wire = wire("");
        let start = Instant::now();
        let later = start + PAUSE * MIN_CHECKS;
        // Each time that the line is found again, counting restarts.
        for _ in 0..2 {
            for _ in 0..2 * MIN_CHECKS {
                assert_eq!(wire.judge(LeaseState::Missing, start), None, "no time has passed");
            }
            assert_eq!(wire.judge(LeaseState::Held, later), Some(false));
        }
        for _ in 1..MIN_CHECKS {
            assert_eq!(wire.judge(LeaseState::Missing, start), None);
        }
        let soon = start + PAUSE * MIN_CHECKS / 4;
        assert_eq!(
            wire.judge(LeaseState::Missing, soon),
            None,
            "that many checks within a short time"
        );
        assert_eq!(wire.judge(LeaseState::Missing, later), Some(true), "it is gone");
        assert_eq!(
            wire.judge(LeaseState::Broken, start),
            Some(true),
            "seen to be broken"
        );
        // An unreadable table is tolerated while an opener is still blocked, but not forever.
        assert_eq!(wire.judge(LeaseState::Unread, start), None);
        assert_eq!(wire.judge(LeaseState::Unread, start + TIME_LIMIT / 2), None);
        assert_eq!(wire.judge(LeaseState::Unread, start + TIME_LIMIT), Some(true));
    }

    #[test]
    fn table_is_whole_only_if_read_in_one_piece() {
        use std::io::Write;
        for (bytes, complete) in [
            (0, true),
            (3000, true),
            (4000, false),
            (4096, false),
            (9000, false),
        ] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&vec![b'x'; bytes]).unwrap();
            let locks = LockTable(file).read().unwrap();
            assert_eq!((locks.text.len(), locks.complete), (bytes, complete));
        }
    }
    #[test]
    fn table_read_in_pieces_is_complete_but_not_whole() {
        let read = |answers: Vec<io::Result<usize>>| {
            let mut answers = answers.into_iter();
            let mut read_up_to = 0;
            LockTable::read_pieces(|piece, at| {
                assert_eq!(at, read_up_to);
                let count = answers.next().unwrap()?;
                piece[..count].fill(b'x');
                read_up_to += count as u64;
                Ok(count)
            })
            .map(|locks| (locks.text.len(), locks.complete))
        };
        let interrupted = || Err(io::ErrorKind::Interrupted.into());
        assert_eq!(read(vec![Ok(100), Ok(0)]).unwrap(), (100, true));
        assert_eq!(
            read(vec![interrupted(), Ok(9), interrupted(), Ok(0)]).unwrap(),
            (9, true)
        );
        // Between two pieces a lock may have moved, even if the pieces are short.
        assert_eq!(read(vec![Ok(100), Ok(9), Ok(0)]).unwrap(), (109, false));
        let failed = read(vec![Ok(100), Err(io::ErrorKind::PermissionDenied.into())]);
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn armed_wires_without_a_lease_are_tripped() {
        let places = ["587017", "587018", "587018", "587018", "1"];
        let wires: Vec<_> = places
            .iter()
            .map(|lock_id| wire(&format!("00:01:{lock_id}")))
            .collect();
        wires[2].armed.store(false, Ordering::SeqCst);
        wires[3].tripped.store(true, Ordering::SeqCst);
        let set = Wires {
            wires: wires.clone(),
            table: None,
        };
        let now = Instant::now();
        let weighed = |locks: Option<io::Result<Locks>>| {
            let (tripped, recheck) = set.judge(locks.as_ref(), now);
            let tripped = tripped
                .iter()
                .map(|one| wires.iter().position(|wire| Arc::ptr_eq(one, wire)).unwrap());
            (tripped.collect::<Vec<_>>(), recheck)
        };
        // The last one is missing, which a table read in pieces does not prove.
        assert_eq!(weighed(Some(Ok(locks(TABLE, false)))), (vec![1], true));
        assert_eq!(weighed(Some(Ok(locks(TABLE, true)))), (vec![1, 4], false));
        assert_eq!(weighed(Some(Err(Errno::ENOMEM.into()))), (vec![], true));
        // Without a table that can be read, the signal counts.
        assert_eq!(weighed(Some(Err(Errno::EPERM.into()))), (vec![0, 1, 4], false));
        assert_eq!(weighed(None), (vec![0, 1, 4], false));
        let held = Wires {
            wires: wires[..1].to_vec(),
            table: None,
        };
        assert!(!held.judge(Some(&Ok(locks(TABLE, false))), now).1);
    }

    #[test]
    fn lock_table_is_open_while_wires_exist() {
        let (one, two) = (wire("1"), wire("2"));
        let open = || Ok(LockTable(tempfile::tempfile().unwrap()));
        let failed = |kind: Errno| move || Err(io::Error::from(kind));
        let mut set = Wires::default();
        let short = set.add(&one, failed(Errno::EMFILE)).unwrap_err();
        assert_eq!((short.code(), set.wires.len()), ("NO_SPACE", 0));
        // A system without such a table.
        set.add(&one, failed(Errno::ENOENT)).unwrap();
        assert!(set.table.is_none());
        set.add(&two, open).unwrap();
        assert!(set.table.is_some());
        set.remove(&one);
        assert!(set.table.is_some() && Arc::ptr_eq(&set.wires[0], &two));
        set.remove(&two);
        assert!(set.table.is_none() && set.wires.is_empty());
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no memfd")]
    fn open_raises_an_alarm_even_before_arming() {
        use std::os::{fd::AsRawFd, unix::fs::OpenOptionsExt};
        use std::sync::mpsc;

        use nix::{
            libc,
            sys::memfd::{MFdFlags, memfd_create},
        };

        let memfd = memfd_create("ringfence-test", MFdFlags::MFD_CLOEXEC).unwrap();
        let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
        let leased = File::options().read(true).write(true).open(&path).unwrap();
        let tripwire = Tripwire::arm(&leased, libc::SIGRTMIN() + 5).unwrap();
        let is_watched = |wire: &Arc<Wire>| {
            let set = WIRES.existing().unwrap().lock();
            set.wires.iter().any(|other| Arc::ptr_eq(other, wire))
        };
        let wire = Arc::clone(&tripwire.wire);
        assert!(is_watched(&wire) && !tripwire.is_tripped());
        let (tell, told) = mpsc::channel();
        let alarm = |tell: mpsc::Sender<&'static str>| {
            move || {
                tell.send("wiped").unwrap();
                Some(Box::new(move || tell.send("reported").unwrap()) as AfterAlarm)
            }
        };
        tripwire.on_alarm(alarm(tell.clone()));
        assert!(told.try_recv().is_err());
        // A blocking open would wait for the lease.
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path);
        assert_eq!(opened.unwrap_err().raw_os_error(), Some(libc::EWOULDBLOCK));
        assert_eq!([told.recv(), told.recv()], [Ok("wiped"), Ok("reported")]);
        assert!(tripwire.is_tripped());
        tripwire.on_alarm(alarm(tell));
        assert_eq!([told.try_recv(), told.try_recv()], [Ok("wiped"), Ok("reported")]);
        drop(tripwire);
        assert!(WIRES.existing().is_none() || !is_watched(&wire));
    }
}
