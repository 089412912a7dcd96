//! Both halves of a channel whose peer writes anything into its region and onto the line, at any time.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use arbitrary::{Result, Unstructured};
use nix::{
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair},
    },
    unistd::ftruncate,
};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::{
    channel::Channel,
    channel::end::CloseReason,
    channel::receiver::Receiver,
    channel::sender::Sender,
    error::Error,
    options::Options,
    region::copy::Writable,
    region::layout::{self, CAPACITY_MIN, as_offset, region_size},
    region::own::OwnRegion,
    region::peer::PeerRegion,
    ring::message::{Message, Progress},
    ring::read::Packed,
    ring::record::{Tag, WHOLE, packed_size},
    testing::parts::without_a_peer,
};

/// The capacity of both rings: the smallest, so that their end is reached often.
const CAPACITY: u64 = CAPACITY_MIN;
/// The longest message in either direction.
const MAX_LENGTH: u64 = 3 * CAPACITY;

/// Two objects, mapped as two processes would map them.
struct Memory {
    own: OwnRegion,
    peer: PeerRegion,
    /// The peer's region, as mapped by the peer.
    liar: OwnRegion,
}

impl Memory {
    /// Created once: a mapping takes longer than a run.
    fn get() -> &'static Self {
        static MEMORY: OnceLock<Memory> = OnceLock::new();
        MEMORY.get_or_init(|| {
            let (own, liar) = (object(), object());
            Self {
                own: OwnRegion::map(&own, CAPACITY).expect("a mapping"),
                liar: OwnRegion::map(&liar, CAPACITY).expect("a mapping"),
                peer: PeerRegion::map(&liar, CAPACITY).expect("a mapping"),
            }
        })
    }

    fn clear(&self) {
        for region in [&self.own, &self.liar] {
            for at in (layout::TAIL..as_offset(region_size(CAPACITY))).step_by(8) {
                region.store(at, 0, Ordering::Relaxed);
            }
        }
    }
}

fn object() -> OwnedFd {
    let object = memfd_create("fuzzed", MFdFlags::MFD_CLOEXEC).expect("a memfd");
    ftruncate(&object, region_size(CAPACITY).cast_signed()).expect("its size");
    object
}

/// A word that the peer writes into its region.
#[derive(Clone, Copy)]
struct Scribble {
    at: usize,
    word: u64,
}

impl Scribble {
    fn take(script: &mut Unstructured<'_>) -> Result<Self> {
        let ring = layout::DATA + as_offset(CAPACITY) + layout::OVERHANG;
        let at = match script.int_in_range(0..=7)? {
            0..=2 => layout::TAIL,
            3 => layout::HEAD,
            4 => *script.choose(&[layout::PHASE, layout::READER_PARKED, layout::WRITER_PARKED])?,
            5 => layout::DATA,
            _ => script.int_in_range(0..=(ring / 8) - 1)? * 8,
        };
        let word = match script.int_in_range(0..=3)? {
            0 => script.int_in_range(0..=2 * CAPACITY / 8)? * 8,
            1 => script.int_in_range(0..=CAPACITY)? | (script.int_in_range(0..=7_u64)? << 32),
            2 => script.int_in_range(0..=2)?,
            _ => script.arbitrary()?,
        };
        Ok(Self { at, word })
    }

    fn write(self) {
        Memory::get().liar.store(self.at, self.word, Ordering::Release);
    }
}

/// Makes arbitrary calls on a channel while its peer writes arbitrary data to its region and the line. Each
/// call returns messages within the limits, or an error that names the violation.
pub fn channel(bytes: &[u8]) {
    let mut script = Unstructured::new(bytes);
    let memory = Memory::get();
    memory.clear();
    // Some words are written repeatedly during the calls: two that alternate, or one that races with the
    // call's own reads.
    let restless: Vec<_> = (0..script.int_in_range(0..=4).unwrap_or(0))
        .map_while(|_| Scribble::take(&mut script).ok())
        .collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let scribbler = (!restless.is_empty()).then(|| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for scribble in &restless {
                        scribble.write();
                    }
                }
            })
        });
        let mut program = Program::new(memory);
        // The program ends with the script.
        while !script.is_empty() && program.step(&mut script).is_ok() {}
        drop(program);
        over.store(true, Ordering::Relaxed);
        // The scope waits only for the closure's end. It does not wait until the thread has released its
        // memory, which is no leak.
        scribbler.map(thread::ScopedJoinHandle::join)
    });
}

struct Program {
    sender: Sender,
    receiver: Receiver,
    /// The peer's end of the line.
    line: Option<OwnedFd>,
    /// The number of bytes sent of an unfinished long message.
    sending: Option<usize>,
    /// A message that is being gathered.
    gathering: Option<Vec<u8>>,
}

const LONG: [u8; 10_000] = [9; 10_000];

impl Program {
    fn new(memory: &Memory) -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (line, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags).expect("a line");
        let parts = without_a_peer(
            line,
            memory.own.clone(),
            memory.peer.clone(),
            CAPACITY,
            MAX_LENGTH,
        );
        let (sender, receiver) = Channel::assemble(parts, None, &Options::new()).split();
        Self {
            sender,
            receiver,
            line: Some(theirs),
            sending: None,
            gathering: None,
        }
    }

    fn step(&mut self, script: &mut Unstructured<'_>) -> Result<()> {
        match script.int_in_range(0..=3)? {
            0 => Scribble::take(script)?.write(),
            1 => self.send(script)?,
            2 => self.receive(script)?,
            _ => self.disturb(script)?,
        }
        Ok(())
    }

    fn send(&mut self, script: &mut Unstructured<'_>) -> Result<()> {
        let size: usize = script.int_in_range(0..=as_offset(CAPACITY / 2) + 8)?;
        if let Some(written) = self.sending {
            let progress = self.sender.send_part(&LONG, written);
            self.sending = self.judge(progress).and_then(|progress| match progress {
                Progress::Part(written) if written > 0 => Some(written),
                _ => None,
            });
            return Ok(());
        }
        match script.int_in_range(0..=6)? {
            0 => {
                let sent = self.sender.try_send(&LONG[..size]);
                self.judge(sent);
            }
            1 => {
                let progress = self.sender.send_part(&LONG, 0);
                if let Some(Progress::Part(written)) = self.judge(progress)
                    && written > 0
                {
                    self.sending = Some(written);
                }
            }
            2 => {
                let packed = script.bytes(script.len().min(64))?;
                let taken = self.sender.try_send_packed(packed);
                assert!(self.judge(taken).unwrap_or(0) <= packed.len());
            }
            3 => {
                let reserved = self.sender.reserve_detached(size);
                if let Some(Some(mut reserved)) = self.judge(reserved) {
                    reserved.bytes().fill(1);
                    let done = if script.arbitrary()? {
                        self.sender.commit(reserved, size / 2)
                    } else {
                        self.sender.cancel(reserved)
                    };
                    self.judge(done);
                }
            }
            4 => {
                let room = self.sender.has_room(size);
                self.judge(room);
            }
            5 => {
                let armed = self.sender.arm(size);
                self.judge(armed);
                self.sender.disarm();
            }
            _ => self.sender.poll_line(),
        }
        Ok(())
    }

    fn receive(&mut self, script: &mut Unstructured<'_>) -> Result<()> {
        if let Some(into) = &mut self.gathering {
            let progress = self.receiver.receive_part(into);
            match self.judge(progress) {
                Some(Progress::Part(so_far)) => {
                    assert!(so_far < self.gathering.as_ref().map_or(0, Vec::len).max(1));
                }
                _ => self.gathering = None,
            }
            return Ok(());
        }
        let room: usize = script.int_in_range(0..=as_offset(MAX_LENGTH))?;
        match script.int_in_range(0..=7)? {
            0 => {
                let received = self.receiver.try_receive(&mut vec![0; room]);
                let received = self.judge(received).flatten();
                assert!(received.unwrap_or(0) <= room);
            }
            1 => {
                let size = self.receiver.next_size();
                if let Some(Some(size)) = self.judge(size) {
                    assert!(size as u64 <= MAX_LENGTH);
                    self.gathering = script.arbitrary::<bool>()?.then(|| vec![0; size]);
                }
            }
            2 => {
                let mut into = vec![0; room];
                let packed = self.receiver.try_receive_packed(&mut into);
                match self.judge(packed) {
                    Some(Packed::Bytes(bytes)) => check_packed(&into[..bytes]),
                    Some(Packed::Large(size)) => assert!(size as u64 <= MAX_LENGTH),
                    _ => {}
                }
            }
            3 => {
                let most = room % 300;
                let drained = self.receiver.receive_each(
                    |message| {
                        assert!(message.len() as u64 <= MAX_LENGTH);
                        read_in_every_way(&message);
                    },
                    most,
                );
                assert!(self.judge(drained).unwrap_or(0) <= most);
            }
            4 => {
                let there = self.receiver.has_message();
                self.judge(there);
            }
            5 => {
                let ended = self.receiver.is_ended();
                self.judge(ended);
            }
            6 => {
                let armed = self.receiver.arm();
                self.judge(armed);
                self.receiver.disarm();
            }
            _ => {
                let received = self.receiver.poll_line();
                self.judge(received);
                self.receiver.close_reason();
            }
        }
        Ok(())
    }

    /// One-time events: on the line, and at the end.
    fn disturb(&mut self, script: &mut Unstructured<'_>) -> Result<()> {
        match script.int_in_range(0..=9)? {
            0 => self.line = None,
            1 => self.sender.end(),
            2 => self.receiver.close(),
            _ => {
                if let Some(line) = &self.line {
                    // If the line is full, it is full of wakeups.
                    let _ = send(
                        line.as_raw_fd(),
                        script.bytes(1)?,
                        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
                    );
                }
            }
        }
        Ok(())
    }

    /// Checks the errors that a call may return here.
    fn judge<T>(&self, result: crate::Result<T>) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        match error {
            // A peer that was lost before its violation was found is reported as lost, in any way.
            Error::RingCorrupt(_) => assert!(self.receiver.close_reason().is_some()),
            // The peer's phase may claim so, truthfully or not.
            Error::ObjectExposed(_) => assert_eq!(self.receiver.close_reason(), Some(CloseReason::Exposed)),
            // The script itself causes the last two: buffers that are too small, and invalid packed records.
            Error::PeerLost(_)
            | Error::Closed(_)
            | Error::InvalidArgument(_)
            | Error::MessageTooLarge { .. } => {}
            other => panic!("{other}"),
        }
        None
    }
}

/// Each way of reading returns as many bytes as the message has, though the content may change at every load.
fn read_in_every_way(message: &Message<'_>) {
    let length = message.len();
    assert_eq!(message.is_empty(), length == 0);
    assert_eq!(message.to_vec().len(), length);
    assert_eq!(message.try_to_vec().expect("memory").len(), length);
    assert_eq!(message.copy_to(&mut vec![0; length / 2]).is_err(), length > 0);
    assert_eq!(message.words().len(), length.div_ceil(8));
    message.words().fold(0, u64::wrapping_add);
    let mut rest = message.words();
    rest.next();
    assert_eq!(
        rest.fold(0, |count, _| count + 1),
        length.div_ceil(8).saturating_sub(1)
    );
    count_items::<u64>(message);
    // A size that is aligned to no word, and that does not divide a block.
    count_items::<[u8; 3]>(message);
    // More than a block, so the values are read one by one.
    count_items::<[u64; 80]>(message);
}

fn count_items<T: bytemuck::Pod>(message: &Message<'_>) {
    let Some(mut items) = message.items::<T>() else {
        assert!(!message.len().is_multiple_of(size_of::<T>()));
        return;
    };
    let count = message.len() / size_of::<T>();
    assert_eq!(items.len(), count);
    assert_eq!(items.clone().fold(0, |seen, _| seen + 1), count);
    items.next();
    assert_eq!(items.fold(0, |seen, _| seen + 1), count.saturating_sub(1));
}

/// Handed-out records can be walked without checks.
fn check_packed(records: &[u8]) {
    let mut at = 0;
    while at < records.len() {
        let header = u64::from_le_bytes(records[at..at + 8].try_into().expect("eight bytes"));
        assert_eq!((header >> 32) as u32 & !Tag::CALL.bits(), WHOLE);
        let length = header & 0xffff_ffff;
        assert!(length <= CAPACITY / 2);
        at += as_offset(packed_size(length));
    }
    assert_eq!(at, records.len());
}
