//! The limits of the machine itself: no contender can pass these.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::Result;
use nix::sys::eventfd::{EfdFlags, EventFd as Event};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::driver::{Contender, Setup, Side, Wait};
use crate::work::Work;

#[repr(align(128))]
struct Lined(AtomicU64);
static PING: Lined = Lined(AtomicU64::new(0));
static PONG: Lined = Lined(AtomicU64::new(0));

/// A word that changes with every message and carries its number: the little of a message that there is.
fn next(before: u64, start: u64) -> u64 {
    start << 1 | ((before & 1) ^ 1)
}

pub struct CacheLine {
    out: &'static AtomicU64,
    back: &'static AtomicU64,
    said: u64,
    seen: u64,
}

impl Contender for CacheLine {
    const THREADS: bool = true;

    fn open(setup: &mut Setup) -> Result<Self> {
        let (out, back) = setup.side.order(&PING.0, &PONG.0);
        Ok(Self {
            out,
            back,
            said: 0,
            seen: 0,
        })
    }

    #[inline(always)]
    fn send_one(&mut self, _: usize, start: u64, _: Wait) -> Result<()> {
        self.said = next(self.said, start);
        self.out.store(self.said, Ordering::Release);
        Ok(())
    }

    #[inline(always)]
    fn receive_one(&mut self, words: usize, _: Wait) -> Result<u64> {
        let value = loop {
            let value = self.back.load(Ordering::Acquire);
            if value != self.seen {
                break value;
            }
            std::hint::spin_loop();
        };
        self.seen = value;
        Ok(Work::new(words * 8, 0).message_sum(value >> 1))
    }
}

pub struct EventFd {
    mine: File,
    theirs: File,
}

impl Contender for EventFd {
    fn open(setup: &mut Setup) -> Result<Self> {
        let side = setup.side;
        let line = setup.line()?;
        let (mine, theirs) = if side == Side::A {
            let make = || Event::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC);
            let (a, b) = (make()?, make()?);
            line.send_fds(&[a.as_fd(), b.as_fd()])?;
            (a.as_fd().try_clone_to_owned()?, b.as_fd().try_clone_to_owned()?)
        } else {
            let mut fds = line.receive_fds(2)?.into_iter();
            let (a, b) = (fds.next().expect("two"), fds.next().expect("two"));
            (b, a)
        };
        Ok(Self {
            mine: mine.into(),
            theirs: theirs.into(),
        })
    }

    fn send_one(&mut self, _: usize, start: u64, _: Wait) -> Result<()> {
        self.theirs.write_all(&(start + 1).to_ne_bytes())?;
        Ok(())
    }

    fn receive_one(&mut self, words: usize, _: Wait) -> Result<u64> {
        let mut value = [0; 8];
        self.mine.read_exact(&mut value)?;
        // The counter itself carries the number: that much of a message there is.
        Ok(Work::new(words * 8, 0).message_sum(u64::from_ne_bytes(value) - 1))
    }
}

pub struct Futex {
    ping: &'static AtomicU32,
    pong: &'static AtomicU32,
    seen: u32,
    _file: File,
}

fn wait_while(word: &AtomicU32, value: u32) {
    while word.load(Ordering::Acquire) == value {
        // SAFETY: the kernel looks at the word, which the reference keeps there.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.as_ptr(),
                libc::FUTEX_WAIT,
                value,
                std::ptr::null::<libc::timespec>(),
            );
        }
    }
}

impl Contender for Futex {
    fn open(setup: &mut Setup) -> Result<Self> {
        let side = setup.side;
        let line = setup.line()?;
        let file: File = if side == Side::A {
            let file: File = memfd_create(c"futex", MFdFlags::MFD_CLOEXEC)?.into();
            file.set_len(4096)?;
            line.send_fds(&[file.as_fd()])?;
            file
        } else {
            line.receive_fds(1)?.remove(0).into()
        };
        // SAFETY: a new mapping, of which nothing is known elsewhere.
        let base = unsafe {
            nix::sys::mman::mmap(
                None,
                std::num::NonZero::new(4096).expect("not zero"),
                nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE,
                nix::sys::mman::MapFlags::MAP_SHARED,
                &file,
                0,
            )?
        };
        // The mapping is never undone, so the words live as long as the process.
        // SAFETY: both offsets lie within the page, aligned, and all who touch the words do so atomically.
        let word = |offset: usize| unsafe { &*base.as_ptr().cast::<u8>().add(offset).cast::<AtomicU32>() };
        let (ping, pong) = side.order(word(0), word(128));
        Ok(Self {
            ping,
            pong,
            seen: 0,
            _file: file,
        })
    }

    fn send_one(&mut self, _: usize, start: u64, _: Wait) -> Result<()> {
        let before = self.ping.load(Ordering::Relaxed);
        self.ping
            .store(next(before.into(), start) as u32, Ordering::Release);
        // SAFETY: the kernel looks at the word, which the reference keeps there.
        unsafe {
            libc::syscall(libc::SYS_futex, self.ping.as_ptr(), libc::FUTEX_WAKE, 1);
        }
        Ok(())
    }

    fn receive_one(&mut self, words: usize, _: Wait) -> Result<u64> {
        wait_while(self.pong, self.seen);
        self.seen = self.pong.load(Ordering::Acquire);
        Ok(Work::new(words * 8, 0).message_sum(u64::from(self.seen >> 1)))
    }
}
