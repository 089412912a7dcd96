//! The plain program: shared memory between two processes, as in the well-known recipe and nothing more.
//!
//! The recipe: `shm_open` with `O_EXCL` and mode 0, `shm_unlink` immediately, a lease to check that no other
//! process has the object open. Bind or connect at an agreed Unix socket. Check `SO_PEERCRED`, the uid and
//! the inode of `/proc/PID/exe`. Pass the object by `SCM_RIGHTS`, with its size as data. Map it and close
//! everything.
//!
//! Then there is a ring in each direction in the single object, which both sides may write, and each side
//! trusts its words. The program is written to be attacked, and implements every point of the recipe.

use std::{
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::{
    cmsg_space,
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sys::{
        mman::{MapFlags, ProtFlags, mmap, shm_open, shm_unlink},
        signal::kill,
        socket::{
            AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
            accept, bind, connect, getsockopt, listen, recvmsg, sendmsg, socket, sockopt,
        },
        stat::{Mode, stat},
    },
    unistd::{Pid, ftruncate, geteuid, getpid, getuid, read},
};

use crate::{failed, socket};

/// The number of bytes before the two rings, for their tails and heads.
const HEAD_WORDS: usize = 4096;
/// A special length: the rest of the ring is unused.
const SKIP: u32 = u32::MAX;

/// A point during the start at which other threads of the program may do anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// It has become the host, has made its object, and listens.
    Listening,
    /// The guest has received the object's descriptor, and has not mapped it yet.
    Received,
    /// A peer was refused.
    Refused,
}

/// Points that the recipe leaves open.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reading {
    /// Keeps the lease that is taken as a check, instead of releasing it.
    pub keep_lease: bool,
    /// If the two run as different users, the executable is unreadable, and only the uid is checked.
    pub uid_only: bool,
    /// Compares the inode without the filesystem.
    pub inode_only: bool,
    /// A supplementary group that the peer must have had when it connected.
    pub group: Option<u32>,
}

/// Memory shared with a peer.
#[derive(Debug)]
pub struct Plain {
    /// `host` or `guest`.
    pub role: &'static str,
    /// The peer at the time of the check.
    pub peer: Pid,
    base: *mut u8,
    capacity: u64,
    sends: usize,
}

/// The value that means: this process is about to exit, the other should bind and listen.
pub const LEAVING: usize = 1;

/// Sends that value to the other process by a realtime signal (sigqueue(3)).
pub fn announce_exit(process: Pid, signal: i32) -> Result<(), Errno> {
    let value = libc::sigval {
        sival_ptr: ptr::without_provenance_mut(LEAVING),
    };
    // SAFETY: sigqueue takes integers and a word that is not dereferenced.
    Errno::result(unsafe { libc::sigqueue(process.as_raw(), signal, value) }).map(drop)
}

/// Blocks a realtime signal in this thread and the threads that it starts.
pub fn block(signal: i32) -> Result<(), String> {
    let set = set_of(signal);
    // SAFETY: pthread_sigmask reads the set; only the mask of this thread changes.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(failed("pthread_sigmask")(Errno::from_raw(error))),
    }
}

fn set_of(signal: i32) -> libc::sigset_t {
    // SAFETY: all-zero bytes are a valid set of signals.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: sigaddset writes the set, a local variable.
    unsafe { libc::sigaddset(&raw mut set, signal) };
    set
}

/// Waits until the peer announces its exit, and takes over the address: the last sentence of the recipe.
pub fn inherit(address: &str, signal: i32, peer: Pid) -> Result<OwnedFd, String> {
    let set = set_of(signal);
    loop {
        // SAFETY: all-zero bytes are a valid siginfo.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: sigwaitinfo reads the set, and writes one siginfo.
        let received = unsafe { libc::sigwaitinfo(&raw const set, &raw mut info) };
        if received != signal || info.si_code != libc::SI_QUEUE {
            continue;
        }
        // SAFETY: a queued signal has both fields.
        let (sender, value) = unsafe { (info.si_pid(), info.si_value()) };
        if sender == peer.as_raw() && value.sival_ptr.addr() == LEAVING {
            return socket::listen_at(address).map_err(failed("listen"));
        }
    }
}

/// Meets the other instance at `address`. The first instance makes an object of `size` bytes.
pub fn join(
    address: &str,
    size: usize,
    reading: Reading,
    on: &mut dyn FnMut(Moment),
) -> Result<Plain, String> {
    let agreed = socket::address(address).map_err(failed("address"))?;
    let line =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).map_err(failed("socket"))?;
    fcntl(&line, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(failed("FD_CLOEXEC"))?;
    match bind(line.as_raw_fd(), &agreed) {
        Ok(()) => {
            let object = create(size, reading)?;
            listen(&line, Backlog::new(8).map_err(failed("backlog"))?).map_err(failed("listen"))?;
            on(Moment::Listening);
            loop {
                let connection = accept(&line).map_err(failed("accept"))?;
                fcntl(&connection, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(failed("FD_CLOEXEC"))?;
                let Ok(peer) = check(&connection, reading) else {
                    on(Moment::Refused);
                    continue;
                };
                let descriptors = [object.as_raw_fd()];
                let rights = [ControlMessage::ScmRights(&descriptors)];
                let data = size.to_ne_bytes();
                sendmsg::<()>(
                    connection.as_raw_fd(),
                    &[std::io::IoSlice::new(&data)],
                    &rights,
                    MsgFlags::MSG_NOSIGNAL,
                    None,
                )
                .map_err(failed("sendmsg"))?;
                return map(&object, size, "host", peer);
            }
        }
        Err(Errno::EADDRINUSE) => {
            connect(line.as_raw_fd(), &agreed).map_err(failed("connect"))?;
            let peer = check(&line, reading)?;
            let (object, size) = receive(&line)?;
            on(Moment::Received);
            map(&object.ok_or("no descriptor was passed")?, size, "guest", peer)
        }
        Err(errno) => Err(failed("bind")(errno)),
    }
}

/// Makes an object that no other process can open.
fn create(size: usize, reading: Reading) -> Result<OwnedFd, String> {
    let name = format!("/plain-{}", getpid());
    let object = shm_open(
        name.as_str(),
        OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL,
        Mode::empty(),
    )
    .map_err(failed("shm_open"))?;
    shm_unlink(name.as_str()).map_err(failed("shm_unlink"))?;
    lease(&object, libc::F_WRLCK).map_err(failed("another process has it open"))?;
    if !reading.keep_lease {
        lease(&object, libc::F_UNLCK).map_err(failed("F_UNLCK"))?;
    }
    ftruncate(&object, size.try_into().map_err(|_| "size")?).map_err(failed("ftruncate"))?;
    Ok(object)
}

fn lease(object: &OwnedFd, kind: i32) -> Result<(), Errno> {
    // SAFETY: F_SETLEASE takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(object.as_raw_fd(), libc::F_SETLEASE, kind) }).map(drop)
}

/// Makes the recipe's checks: the uid is ours, and the executable is the file that we execute.
fn check(connection: &OwnedFd, reading: Reading) -> Result<Pid, String> {
    let peer = getsockopt(connection, sockopt::PeerCredentials).map_err(failed("SO_PEERCRED"))?;
    if peer.uid() != getuid().as_raw() || peer.uid() != geteuid().as_raw() {
        return Err(format!("uid {}", peer.uid()));
    }
    if let Some(group) = reading.group
        && !peer_groups(connection)?.contains(&group)
    {
        return Err(format!("without the group {group}"));
    }
    if reading.uid_only {
        return Ok(Pid::from_raw(peer.pid()));
    }
    let theirs = stat(format!("/proc/{}/exe", peer.pid()).as_str()).map_err(failed("/proc/PID/exe"))?;
    let own = stat("/proc/self/exe").map_err(failed("/proc/self/exe"))?;
    if theirs.st_ino != own.st_ino || (theirs.st_dev != own.st_dev && !reading.inode_only) {
        return Err("executable".into());
    }
    Ok(Pid::from_raw(peer.pid()))
}

/// `SO_PEERGROUPS`, Linux 4.13.
fn peer_groups(connection: &OwnedFd) -> Result<Vec<u32>, String> {
    const SO_PEERGROUPS: libc::c_int = 59;
    let mut groups = [0_u32; 64];
    let mut length = 256;
    // SAFETY: the array has 256 bytes, and the kernel writes no more than that.
    Errno::result(unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut length,
        )
    })
    .map_err(failed("SO_PEERGROUPS"))?;
    Ok(groups[..length as usize / 4].to_vec())
}

/// Receives the object with its size, and continues to read until the size is complete.
fn receive(line: &OwnedFd) -> Result<(Option<OwnedFd>, usize), String> {
    let mut data = [0; size_of::<usize>()];
    let mut control = cmsg_space!(RawFd);
    let mut object = None;
    let mut filled = {
        let mut slices = [std::io::IoSliceMut::new(&mut data)];
        let message = recvmsg::<()>(
            line.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::empty(),
        )
        .map_err(failed("recvmsg"))?;
        if let Ok(items) = message.cmsgs() {
            for item in items {
                if let ControlMessageOwned::ScmRights(numbers) = item {
                    // SAFETY: the kernel has just installed this descriptor for this process. (Any further
                    // descriptors leak, because the recipe mentions only one.)
                    object = numbers
                        .first()
                        .map(|number| unsafe { OwnedFd::from_raw_fd(*number) });
                }
            }
        }
        message.bytes
    };
    while filled < data.len() {
        match read(line, &mut data[filled..]) {
            Ok(0) => return Err("the peer left".into()),
            Ok(count) => filled += count,
            Err(errno) => return Err(failed("read")(errno)),
        }
    }
    Ok((object, usize::from_ne_bytes(data)))
}

fn map(object: &OwnedFd, size: usize, role: &'static str, peer: Pid) -> Result<Plain, String> {
    let length = size.try_into().map_err(|_| "a size of 0")?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address chosen by the kernel replaces nothing.
    let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, object.as_fd(), 0) }
        .map_err(failed("mmap"))?;
    let capacity = (size.saturating_sub(HEAD_WORDS) / 2) as u64;
    Ok(Plain {
        role,
        peer,
        base: base.as_ptr().cast(),
        capacity,
        sends: usize::from(role == "guest"),
    })
}

/// Returns the offset of a ring's tail. Ring 0 is the host's, ring 1 the guest's.
pub const fn tail_of(ring: usize) -> usize {
    ring * 128
}

/// Returns the offset of a ring's head. See [`tail_of`].
pub const fn head_of(ring: usize) -> usize {
    ring * 128 + 64
}

/// Returns the offset of a ring's data, in an object of `size` bytes.
pub const fn data_of(ring: usize, size: usize) -> usize {
    HEAD_WORDS + ring * ((size - HEAD_WORDS) / 2)
}

#[expect(clippy::cast_possible_truncation, reason = "64-bit Linux only")]
const fn offset(position: u64) -> usize {
    position as usize
}

impl Plain {
    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: the words are in the first page of the mapping, if the peer has stated the true size.
        let record = unsafe { self.base.add(at) };
        // SAFETY: aligned, because the mapping starts at a page boundary; it is never unmapped.
        unsafe { AtomicU64::from_ptr(record.cast()) }
    }

    /// Returns the address of a record's length. Positions are multiples of eight.
    fn length_at(&self, ring: usize, position: u64) -> *mut u32 {
        let words: *mut u32 = self.base.cast();
        words.wrapping_add((HEAD_WORDS + offset(ring as u64 * self.capacity + position % self.capacity)) / 4)
    }

    fn record_at(&self, ring: usize, position: u64) -> *mut u8 {
        let at = HEAD_WORDS + offset(ring as u64 * self.capacity + position % self.capacity);
        self.base.wrapping_add(at)
    }

    /// Puts a message into the ring, if there is space.
    pub fn send(&self, message: &[u8]) -> bool {
        let (tail, head) = (
            self.word(tail_of(self.sends)),
            self.word(head_of(self.sends)).load(Ordering::Acquire),
        );
        let mut position = tail.load(Ordering::Relaxed);
        let needed = (message.len() as u64 + 4).next_multiple_of(8);
        let rest = self.capacity - position % self.capacity;
        let skipped = if needed > rest { rest } else { 0 };
        if position + skipped + needed - head > self.capacity {
            return false;
        }
        if skipped > 0 {
            // SAFETY: positions are multiples of eight, so four bytes fit before the ring's end.
            unsafe { self.length_at(self.sends, position).write_volatile(SKIP) };
            position += skipped;
        }
        let record = self.record_at(self.sends, position);
        let length = u32::try_from(message.len()).unwrap_or(SKIP - 1);
        // SAFETY: the words that both sides maintain ensure that there is space for the record.
        unsafe { self.length_at(self.sends, position).write_volatile(length) };
        // SAFETY: as above.
        unsafe { ptr::copy_nonoverlapping(message.as_ptr(), record.wrapping_add(4), message.len()) };
        tail.store(position + needed, Ordering::Release);
        true
    }

    /// Returns the next message in place, without a copy, as is the point of shared memory.
    pub fn peek(&self) -> Option<(*const u8, usize)> {
        let ring = 1 - self.sends;
        loop {
            let head = self.word(head_of(ring));
            let position = head.load(Ordering::Relaxed);
            if position == self.word(tail_of(ring)).load(Ordering::Acquire) {
                return None;
            }
            let record = self.record_at(ring, position);
            // SAFETY: the words that both sides maintain ensure that a record starts here.
            let length = unsafe { self.length_at(ring, position).read_volatile() };
            if length != SKIP {
                return Some((record.wrapping_add(4), length as usize));
            }
            let rest = self.capacity - position % self.capacity;
            head.store(position + rest, Ordering::Release);
        }
    }

    /// Returns the current bytes of a message that [`Plain::peek`] found.
    pub fn copy_message(&self, (record, length): (*const u8, usize)) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        // SAFETY: the record has the length that the ring states. A process that can write there can make
        // this untrue, as the rows about hostile rings show; then the process dies in this call.
        unsafe { ptr::copy_nonoverlapping(record, bytes.as_mut_ptr(), length) };
        // SAFETY: filled above.
        unsafe { bytes.set_len(length) };
        bytes
    }

    /// Skips the message that [`Plain::peek`] found.
    pub fn advance(&self, length: usize) {
        let head = self.word(head_of(1 - self.sends));
        let needed = (length as u64 + 4).next_multiple_of(8);
        head.store(head.load(Ordering::Relaxed) + needed, Ordering::Release);
    }

    /// Whether /proc shows the peer. This repeats the recipe's check, as a simple program would: an
    /// unreadable file counts as a missing process.
    pub fn peer_shows(&self) -> bool {
        std::fs::read(format!("/proc/{}/stat", self.peer)).is_ok()
    }

    /// Whether the peer exists. After all descriptors are closed, this is the only way to ask.
    pub fn peer_is_alive(&self) -> bool {
        kill(self.peer, None).is_ok()
    }
}
