//! A stream socket with a length before each message: what most programs would write.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use crate::driver::{Contender, Measure, Setup, Side as Which, Wait};
use crate::work::{Work, fill, poll, sum_bytes};

/// A read takes as much as is there, up to this; a write of the batched measure waits until this much is there.
const READ: usize = 256 * 1024;
const WRITE: usize = 64 * 1024;
/// The length takes a whole word, so that payloads stay aligned.
const PREFIX: usize = 8;

pub fn takes(measure: Measure, size: usize) -> Result<(), &'static str> {
    match measure {
        Measure::Batch if size + PREFIX > WRITE / 2 => Err("a message fills the batch by itself"),
        Measure::Copy => Err("the same as one"),
        Measure::RttSpin => Err("a socket does not spin"),
        _ => Ok(()),
    }
}

pub struct Side {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// The bytes that have been read but not yet handed out.
    start: usize,
    end: usize,
    out: Vec<u8>,
}

impl Side {
    /// The next whole message, as a range of the buffer.
    #[inline]
    fn next(&mut self, wait: Wait) -> Result<std::ops::Range<usize>> {
        loop {
            let there = self.end - self.start;
            let mut need = PREFIX;
            if there >= PREFIX {
                let prefix = self.buffer[self.start..self.start + PREFIX]
                    .try_into()
                    .expect("eight bytes");
                need += u64::from_ne_bytes(prefix) as usize;
                if there >= need {
                    let message = self.start + PREFIX..self.start + need;
                    self.start += need;
                    return Ok(message);
                }
            }
            self.more(need, wait)?;
        }
    }

    #[cold]
    fn more(&mut self, need: usize, wait: Wait) -> Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.start < need {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.buffer.len() < need {
            self.buffer.resize(need + READ, 0);
        }
        let read = if wait == Wait::Poll {
            let (stream, free) = (self.stream.as_raw_fd(), &mut self.buffer[self.end..]);
            poll(|| match recv(stream, free, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN) => Ok(None),
                read => Ok(Some(read?)),
            })?
        } else {
            self.stream.read(&mut self.buffer[self.end..])?
        };
        if read == 0 {
            bail!("the socket ended");
        }
        self.end += read;
        Ok(())
    }

    fn frame(&mut self, at: usize, words: usize, start: u64) {
        self.out[at..at + PREFIX].copy_from_slice(&(words as u64 * 8).to_ne_bytes());
        // SAFETY: `out` has a frame of that many words behind each place.
        unsafe { fill(self.out[at + PREFIX..].as_mut_ptr(), words, start) };
    }
}

impl Contender for Side {
    fn open(setup: &mut Setup) -> Result<Self> {
        let size = setup.job.size;
        let side = setup.side;
        let line = setup.line()?;
        let stream = if side == Which::A {
            let (mine, theirs) = UnixStream::pair()?;
            line.send_fds(&[theirs.as_fd()])?;
            mine
        } else {
            line.receive_fds(1)?.remove(0).into()
        };
        Ok(Self {
            stream,
            buffer: vec![0; READ.max(2 * (size + PREFIX))],
            start: 0,
            end: 0,
            out: vec![0; WRITE.max(size + PREFIX)],
        })
    }

    fn produce(&mut self, work: &Work, measure: Measure) -> Result<()> {
        let frame = work.size + PREFIX;
        if measure == Measure::Batch {
            let mut used = 0;
            for n in 0..work.count {
                if used + frame > WRITE {
                    self.stream.write_all(&self.out[..used])?;
                    used = 0;
                }
                self.frame(used, work.words, work.first_word(n));
                used += frame;
            }
            self.stream.write_all(&self.out[..used])?;
        } else {
            for n in 0..work.count {
                self.frame(0, work.words, work.first_word(n));
                self.stream.write_all(&self.out[..frame])?;
            }
        }
        Ok(())
    }

    fn consume(&mut self, work: &Work, _: Measure) -> Result<u64> {
        let mut total = 0u64;
        for _ in 0..work.count {
            // A stream has no use for polling: the reader sleeps until there is something.
            let message = self.next(Wait::Park)?;
            total = total.wrapping_add(sum_bytes(&self.buffer[message]));
        }
        Ok(total)
    }

    fn send_one(&mut self, words: usize, start: u64, _: Wait) -> Result<()> {
        self.frame(0, words, start);
        self.stream.write_all(&self.out[..words * 8 + PREFIX])?;
        Ok(())
    }

    fn receive_one(&mut self, _: usize, wait: Wait) -> Result<u64> {
        let message = self.next(wait)?;
        Ok(sum_bytes(&self.buffer[message]))
    }
}
