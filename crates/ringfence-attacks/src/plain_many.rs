//! A plain program for one to many: one object that all map to write, a tail, and a head for each subscriber in it.
//!
//! It is what comes of [`plain`](crate::plain) when a third and a fourth want to read: the publisher passes the same descriptor to
//! each that the check lets in, and waits for the slowest head. Words are taken at their value.

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
    errno::Errno,
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{accept, getsockopt, sockopt},
    },
    unistd::{ftruncate, getuid},
};

use crate::{mapping::Mapping, post};

/// Bytes of the object.
pub const SIZE: usize = 64 * 1024;
/// The most subscribers.
pub const SEATS: usize = 30;
/// The publisher's tail.
pub const TAIL: usize = 0;
/// Every message takes as much.
const RECORD: u64 = 1024;
const DATA: usize = 4096;
const CAPACITY: u64 = (SIZE - DATA) as u64 / RECORD * RECORD;

/// Where a subscriber's head lies.
pub const fn head_of(seat: usize) -> usize {
    128 * (1 + seat)
}

/// Where the message after this many lies: its length, and its bytes.
pub const fn message_at(number: u64) -> usize {
    let offset = (number * RECORD % CAPACITY) as usize;
    DATA + offset
}

fn said(what: &'static str) -> impl Fn(Errno) -> String {
    move |errno| format!("{what}: {errno}")
}

/// The publisher.
#[derive(Debug)]
pub struct Publisher {
    map: Mapping,
    seats: Arc<AtomicUsize>,
    /// Kept, since another may come.
    _object: Arc<OwnedFd>,
}

/// Lets in all that come, on a thread of its own. `greeting`: each says a byte first, of what it wants.
pub fn publish(address: &str, greeting: bool) -> Result<Publisher, String> {
    let listener = post::listen_at(address).map_err(said("listen"))?;
    let object = memfd_create("plain-many", MFdFlags::MFD_CLOEXEC).map_err(said("memfd"))?;
    ftruncate(&object, i64::try_from(SIZE).unwrap_or(i64::MAX)).map_err(said("ftruncate"))?;
    let map = Mapping::new(&object, SIZE, true).map_err(said("mmap"))?;
    let (object, seats) = (Arc::new(object), Arc::new(AtomicUsize::new(0)));
    let (passed, taken) = (Arc::clone(&object), Arc::clone(&seats));
    thread::spawn(move || {
        while let Ok(connection) = accept(&listener) {
            let own = getsockopt(&connection, sockopt::PeerCredentials)
                .is_ok_and(|peer| peer.uid() == getuid().as_raw());
            let spoken = !greeting || post::receive(connection.as_fd(), 1).is_ok();
            if own && spoken && taken.load(Ordering::Acquire) < SEATS {
                taken.fetch_add(1, Ordering::AcqRel);
                // One that has gone meanwhile keeps its seat: nothing tells of it.
                let _ = post::send(connection.as_fd(), &SIZE.to_ne_bytes(), &[passed.as_fd()], None);
            }
        }
    });
    Ok(Publisher {
        map,
        seats,
        _object: object,
    })
}

impl Publisher {
    /// Subscribers that came.
    pub fn subscribers(&self) -> usize {
        self.seats.load(Ordering::Acquire)
    }

    /// Puts a message into the ring, if the slowest has made room.
    pub fn send(&self, message: &[u8]) -> bool {
        let tail = self.map.load(TAIL);
        let slowest = (0..self.subscribers()).map(|seat| self.map.load(head_of(seat)));
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
    seat: usize,
    /// Messages read.
    count: u64,
}

/// Subscribes. Its seat is the one after those that came before.
pub fn subscribe(address: &str, seat: usize, greeting: bool) -> Result<Subscription, String> {
    let line = post::connect_to(address).map_err(said("connect"))?;
    if greeting {
        post::send(line.as_fd(), b"r", &[], None).map_err(said("send"))?;
    }
    let parcel = post::receive_exactly(line.as_fd(), size_of::<usize>()).map_err(said("receive"))?;
    let object = parcel.descriptors.first().ok_or("no descriptor came")?;
    let map = Mapping::new(object, SIZE, true).map_err(said("mmap"))?;
    let count = map.load(TAIL) / RECORD;
    map.store(head_of(seat), count * RECORD);
    Ok(Subscription { map, seat, count })
}

impl Subscription {
    /// The next message, within so long.
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
        self.map.store(head_of(self.seat), self.count * RECORD);
        Some(message)
    }
}
