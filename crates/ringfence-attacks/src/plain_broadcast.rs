//! A plain one-to-many program: one object that all processes map writable, with a tail and a head for each
//! subscriber.
//!
//! It extends [`plain`](crate::plain) to more readers in the obvious way: the publisher passes the same
//! descriptor to each accepted subscriber, and waits for the slowest head. Words are trusted.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{accept, getsockopt, sockopt},
    },
    unistd::{ftruncate, getuid},
};

use crate::{failed, mapping::Mapping, socket};

/// The size of the object in bytes.
pub const SIZE: usize = 64 * 1024;
/// The maximum number of subscribers.
pub const MAX_SUBSCRIBERS: usize = 30;
/// The offset of the publisher's tail.
pub const TAIL: usize = 0;
/// The size of every message in the ring.
const RECORD: u64 = 1024;
const DATA: usize = 4096;
const CAPACITY: u64 = (SIZE - DATA) as u64 / RECORD * RECORD;

/// Returns the offset of a subscriber's head.
pub const fn head_of(slot: usize) -> usize {
    128 * (1 + slot)
}

/// Returns the offset of a message's length and bytes, given the number of messages before it.
pub const fn message_at(number: u64) -> usize {
    let offset = (number * RECORD % CAPACITY) as usize;
    DATA + offset
}

/// The publisher.
#[derive(Debug)]
pub struct Publisher {
    map: Mapping,
    slots: Arc<AtomicUsize>,
    /// Kept open for further subscribers.
    _object: Arc<OwnedFd>,
}

/// Accepts all subscribers, on a separate thread. With `greeting`, each must first send a byte with its
/// request.
pub fn publish(address: &str, greeting: bool) -> Result<Publisher, String> {
    let listener = socket::listen_at(address).map_err(failed("listen"))?;
    let object = memfd_create("plain-broadcast", MFdFlags::MFD_CLOEXEC).map_err(failed("memfd"))?;
    ftruncate(&object, i64::try_from(SIZE).unwrap_or(i64::MAX)).map_err(failed("ftruncate"))?;
    let map = Mapping::new(&object, SIZE, true).map_err(failed("mmap"))?;
    let (object, slots) = (Arc::new(object), Arc::new(AtomicUsize::new(0)));
    let (passed, used) = (Arc::clone(&object), Arc::clone(&slots));
    thread::spawn(move || {
        while let Ok(connection) = accept(&listener) {
            let same_uid = getsockopt(&connection, sockopt::PeerCredentials)
                .is_ok_and(|peer| peer.uid() == getuid().as_raw());
            let greeted = !greeting || socket::receive(connection.as_fd(), 1).is_ok();
            if same_uid && greeted && used.load(Ordering::Acquire) < MAX_SUBSCRIBERS {
                used.fetch_add(1, Ordering::AcqRel);
                // A subscriber that has disconnected keeps its slot, because nothing reports that.
                let _ = socket::send(connection.as_fd(), &SIZE.to_ne_bytes(), &[passed.as_fd()], None);
            }
        }
    });
    Ok(Publisher {
        map,
        slots,
        _object: object,
    })
}

impl Publisher {
    /// Returns the number of subscribers that connected.
    pub fn subscribers(&self) -> usize {
        self.slots.load(Ordering::Acquire)
    }

    /// Puts a message into the ring, if the slowest subscriber has left space.
    pub fn send(&self, message: &[u8]) -> bool {
        let tail = self.map.load(TAIL);
        let slowest = (0..self.subscribers()).map(|slot| self.map.load(head_of(slot)));
        if slowest
            .max_by_key(|head| tail.wrapping_sub(*head))
            .is_some_and(|head| tail.wrapping_sub(head) >= CAPACITY)
        {
            return false;
        }
        let at = message_at(tail / RECORD);
        self.map.store(at, message.len() as u64);
        self.map.write(at + 8, message);
        self.map.store(TAIL, tail + RECORD);
        true
    }
}

/// A subscriber.
#[derive(Debug)]
pub struct Subscription {
    map: Mapping,
    slot: usize,
    /// The number of messages read.
    count: u64,
}

/// Subscribes. `slot` is the number of subscribers that connected before.
pub fn subscribe(address: &str, slot: usize, greeting: bool) -> Result<Subscription, String> {
    let line = socket::connect_to(address).map_err(failed("connect"))?;
    if greeting {
        socket::send(line.as_fd(), b"r", &[], None).map_err(failed("send"))?;
    }
    let parcel = socket::receive_exactly(line.as_fd(), size_of::<usize>()).map_err(failed("receive"))?;
    let object = parcel.descriptors.first().ok_or("no descriptor was passed")?;
    let map = Mapping::new(object, SIZE, true).map_err(failed("mmap"))?;
    let count = map.load(TAIL) / RECORD;
    map.store(head_of(slot), count * RECORD);
    Ok(Subscription { map, slot, count })
}

impl Subscription {
    /// Returns the next message, or `None` after a time.
    pub fn receive(&mut self, within: Duration) -> Option<Vec<u8>> {
        let end = Instant::now() + within;
        while self.map.load(TAIL) / RECORD <= self.count {
            if Instant::now() > end {
                return None;
            }
            thread::sleep(Duration::from_micros(200));
        }
        let at = message_at(self.count);
        let length = usize::try_from(self.map.load(at)).unwrap_or(usize::MAX);
        let message = self.map.read(at + 8, length);
        self.count += 1;
        self.map.store(head_of(self.slot), self.count * RECORD);
        Some(message)
    }
}
