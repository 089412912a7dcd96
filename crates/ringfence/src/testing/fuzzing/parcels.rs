//! Bytes and descriptors on an open line, for the reader of attachments.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::IoSlice,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    thread,
};

use arbitrary::{Result, Unstructured};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair},
};

use super::{AttachmentRef, Attachments, DESCRIPTOR, PARCEL, Parcel, Parcels, UNCLOSED, post, unpack};
use crate::sys;

const STEPS: u32 = 100;

/// Feeds a peer's bytes and descriptors to the reader. It never holds more than this side accepts, reads nothing after a violation, and
/// leaks no descriptor. An honest peer causes no violation, and its attachments arrive in order.
pub fn parcels(bytes: &[u8]) {
    let unclosed = UNCLOSED.get().expect("memory");
    let before = open_descriptors();
    // An error only ends the script.
    let _ = run(&mut Unstructured::new(bytes));
    // Tests that run in parallel open and close descriptors concurrently.
    if !cfg!(test) {
        while !unclosed.lock().is_empty() {
            thread::yield_now();
        }
        assert_eq!(open_descriptors(), before, "a descriptor was left behind");
    }
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("/proc").count()
}

/// Both ends of a line.
struct Line {
    arrived: Parcels,
    ours: OwnedFd,
    theirs: OwnedFd,
    null: OwnedFd,
    /// The number of the publisher's last message with attachments.
    last: u64,
    /// Whether the peer has sent a byte that the kernel may skip.
    out_of_band: bool,
    /// The parcels of an honest peer that were not taken: the number of the message, and the number of attachments.
    posted: VecDeque<(u64, usize)>,
}

fn run(script: &mut Unstructured<'_>) -> Result<()> {
    let accepts = Attachments {
        sealed: script.arbitrary()?,
        descriptors: script.arbitrary()?,
        max_count: script.int_in_range(1..=8)?,
        max_bytes: script.int_in_range(0..=0x4000)?,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags).expect("a line");
    let honest = accepts.descriptors && script.arbitrary()?;
    // Another peer can turn the credentials off.
    if honest || script.ratio(7, 8)? {
        sys::socket::prepare_socket(&ours).expect("SO_PASSCRED");
    }
    let mut line = Line {
        arrived: Parcels::new(accepts, script.arbitrary()?),
        ours,
        theirs,
        null: File::open("/dev/null").expect("/dev/null").into(),
        last: 0,
        out_of_band: false,
        posted: VecDeque::new(),
    };
    for _ in 0..STEPS {
        if script.is_empty() {
            break;
        }
        match (script.int_in_range(0..=3)?, honest) {
            (0 | 1, true) => line.post(script)?,
            (0 | 1, false) => line.send(script)?,
            (2, _) => drop(line.read()),
            (_, true) => line.take_posted(),
            (_, false) => line.take(script)?,
        }
    }
    while !line.posted.is_empty() {
        line.take_posted();
    }
    // Each read consumes something, or is the last.
    while line.read().is_ok_and(|count| count > 0) {}
    assert!(!honest || line.arrived.violation.is_none(), "{:?}", line.arrived);
    Ok(())
}

impl Line {
    fn read(&mut self) -> Result<usize, Errno> {
        let (before, violation) = (self.unread(), self.arrived.violation.clone());
        let read = self.arrived.read(self.ours.as_fd());
        let after = self.unread();
        if violation.is_some() {
            assert_eq!((read, after), (Ok(0), before), "a read after a violation");
            assert_eq!(self.arrived.violation, violation);
        } else if let (Ok(count), false) = (read, self.out_of_band) {
            assert_eq!(after + count, before, "bytes on the line");
        }
        self.check();
        read
    }

    fn unread(&self) -> usize {
        sys::socket::unread(&self.ours).expect("FIONREAD")
    }

    fn check(&self) {
        let Parcels {
            accepts,
            queue: parcels,
            ..
        } = &self.arrived;
        let count: usize = parcels.iter().map(Parcel::len).sum();
        let bytes: u64 = parcels.iter().map(Parcel::bytes).sum();
        assert_eq!((self.arrived.count, self.arrived.bytes), (count as u64, bytes));
        assert!(count as u64 <= accepts.max_count.into() && bytes <= accepts.max_bytes);
        assert!(parcels.iter().is_sorted_by_key(|parcel| parcel.number));
        for (word, _) in parcels.iter().flat_map(|parcel| &parcel.parts) {
            assert!(if *word == DESCRIPTOR {
                accepts.descriptors
            } else {
                accepts.sealed
            });
        }
    }

    /// Sends wakeups, or a parcel that this side has room for.
    fn post(&mut self, script: &mut Unstructured<'_>) -> Result<()> {
        let unread: usize = self.posted.iter().map(|(_, count)| count).sum();
        let room = (self.arrived.accepts.max_count as usize).saturating_sub(unread);
        let count = script.int_in_range(0..=4)?.min(room);
        if count == 0 {
            send(&self.theirs, &[1; 3], &[]);
            return Ok(());
        }
        self.last += 1;
        let attachments = vec![AttachmentRef::Descriptor(self.null.as_fd()); count];
        let number = self.arrived.numbered.then_some(self.last);
        if post(self.theirs.as_fd(), &attachments, number).is_ok() {
            self.posted.push_back((self.last, count));
        }
        Ok(())
    }

    /// Takes the attachments of the next message.
    fn take_posted(&mut self) {
        let Some((number, count)) = self.posted.pop_front() else {
            return;
        };
        while self.read().is_ok_and(|count| count > 0) {}
        let parcel = self.arrived.pop_next(number).expect("a parcel that was posted");
        assert_eq!(unpack(parcel).expect("no sealed buffer").len(), count);
        self.check();
    }

    /// Sends anything.
    fn send(&mut self, script: &mut Unstructured<'_>) -> Result<()> {
        let mut bytes = vec![1; script.int_in_range(0..=2)?];
        let mut count = script.int_in_range(0..=4_usize)?;
        if script.ratio(7, 8)? {
            bytes.extend([PARCEL, u8::try_from(count).expect("at most 4")]);
            if self.arrived.numbered {
                self.last = self.last.wrapping_add(script.int_in_range(0..=2)?);
                bytes.extend(self.last.to_le_bytes());
            }
            for _ in 0..count {
                let any = script.arbitrary()?;
                let word: u64 = *script.choose(&[DESCRIPTOR, DESCRIPTOR, 0, 0x1000, DESCRIPTOR - 1, any])?;
                bytes.extend(word.to_le_bytes());
            }
        } else {
            bytes.extend(script.arbitrary::<&[u8]>()?);
        }
        if script.ratio(1, 8)? {
            bytes.truncate(script.int_in_range(0..=40)?);
        }
        if script.ratio(1, 4)? {
            count = script.int_in_range(0..=4)?;
        }
        send(&self.theirs, &bytes, &vec![self.null.as_raw_fd(); count]);
        if script.ratio(1, 16)? {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_OOB;
            self.out_of_band = true;
            let _ = nix::sys::socket::send(self.theirs.as_raw_fd(), &[PARCEL], flags);
        }
        Ok(())
    }

    /// Takes the attachments of some message, or passes over it.
    fn take(&mut self, script: &mut Unstructured<'_>) -> Result<()> {
        let number = self.last.saturating_sub(script.int_in_range(0..=3)?);
        if script.arbitrary()? {
            self.arrived.drop_missed(number);
        }
        if let Some(parcel) = self.arrived.pop_next(number)
            && let Err((_, parcel)) = unpack(parcel)
        {
            self.arrived.put_back(parcel);
        }
        self.check();
        Ok(())
    }
}

/// What does not fit is not sent.
fn send(line: &OwnedFd, bytes: &[u8], descriptors: &[RawFd]) {
    let (slices, control) = ([IoSlice::new(bytes)], [ControlMessage::ScmRights(descriptors)]);
    let control = if descriptors.is_empty() { &[][..] } else { &control };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let _ = sendmsg::<()>(line.as_raw_fd(), &slices, control, flags, None);
}
