//! shmem-ipc: a ring of elements of one type, sealed memfd, eventfds for sleeping.

use std::os::fd::AsFd;

use anyhow::Result;
use shmem_ipc::sharedring::{Receiver, Sender};

use super::{fixed_sizes, is_fixed_size};
use crate::driver::{Contender, Job, Measure, Outcome, Setup, Side as Which, Wait, run_a, run_b};
use crate::work::{BATCH, Work, fill, poll_sum, sum, sum_items};

pub fn takes(measure: Measure, size: usize) -> Result<(), &'static str> {
    match measure {
        Measure::Copy => Err("in place only"),
        Measure::RttSpin => Err("it does not spin"),
        _ => is_fixed_size(size),
    }
}

pub fn takes_run(measure: Measure, size: usize) -> Result<(), &'static str> {
    if measure == Measure::Batch {
        is_fixed_size(size)
    } else {
        Err("only batches")
    }
}

pub fn a(job: &Job) -> Result<Outcome> {
    fixed_sizes!(run_a, Paced, job)
}

pub fn b(job: &Job) -> Result<()> {
    fixed_sizes!(run_b, Paced, job)
}

pub fn a_run(job: &Job) -> Result<Outcome> {
    fixed_sizes!(run_a, Unpaced, job)
}

pub fn b_run(job: &Job) -> Result<()> {
    fixed_sizes!(run_b, Unpaced, job)
}

type Paced<const W: usize> = Side<W, BATCH>;
type Unpaced<const W: usize> = Side<W, { usize::MAX }>;

pub struct Side<const W: usize, const LIMIT: usize> {
    sender: Sender<[u64; W]>,
    receiver: Receiver<[u64; W]>,
}

impl<const W: usize, const LIMIT: usize> Side<W, LIMIT> {
    #[inline(always)]
    fn produce_up_to(&mut self, work: &Work, limit: usize) -> Result<()> {
        let mut n = 0;
        while n < work.count {
            let most = limit.min((work.count - n) as usize);
            let mut written = 0;
            self.sender.sender_mut().send(|slots, free| {
                written = free.min(most);
                for i in 0..written {
                    // SAFETY: the library says that this many slots are free, and each has that many words.
                    unsafe { fill(slots.add(i).cast(), W, work.first_word(n + i as u64)) };
                }
                written
            })?;
            if written == 0 {
                std::hint::spin_loop();
            }
            n += written as u64;
        }
        Ok(())
    }
}

impl<const W: usize, const LIMIT: usize> Contender for Side<W, LIMIT> {
    fn open(setup: &mut Setup) -> Result<Self> {
        let slots = setup.job.slots();
        let side = setup.side;
        let line = setup.line()?;
        let sender = Sender::new(slots)?;
        let send = |line: &mut crate::line::Line| {
            line.send_fds(&[
                sender.memfd().as_file().as_fd(),
                sender.empty_signal().as_fd(),
                sender.full_signal().as_fd(),
            ])
        };
        let receive = |line: &mut crate::line::Line| -> Result<Receiver<[u64; W]>> {
            let mut fds = line.receive_fds(3)?.into_iter().map(Into::into);
            let mut next = || fds.next().expect("three");
            Ok(Receiver::open(slots, next(), next(), next())?)
        };
        let receiver = if side == Which::A {
            send(line)?;
            receive(line)?
        } else {
            let receiver = receive(line)?;
            send(line)?;
            receiver
        };
        Ok(Self { sender, receiver })
    }

    fn produce(&mut self, work: &Work, measure: Measure) -> Result<()> {
        self.produce_up_to(work, if measure == Measure::Batch { LIMIT } else { 1 })
    }

    fn consume(&mut self, work: &Work, _: Measure) -> Result<u64> {
        poll_sum(work.count, std::hint::spin_loop, |_| {
            let mut found = (0, 0);
            self.receiver.receiver_mut().recv(|slots, there| {
                // SAFETY: the library says that this many slots are filled.
                let slots = unsafe { std::slice::from_raw_parts(slots, there) };
                found = (there as u64, sum_items(slots));
                there
            })?;
            Ok(found)
        })
    }

    #[inline(always)]
    fn send_one(&mut self, _: usize, start: u64, wait: Wait) -> Result<()> {
        let write = |slots: *mut [u64; W], _| {
            // SAFETY: one slot at least is free, or filled, as the library says, and is that many words.
            unsafe { fill(slots.cast(), W, start) };
            1
        };
        if wait == Wait::Poll {
            self.sender.sender_mut().send(write)?;
        } else {
            self.sender.send_raw(write)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn receive_one(&mut self, _: usize, wait: Wait) -> Result<u64> {
        let mut total = None;
        while total.is_none() {
            let read = |slots: *const [u64; W], _| {
                // SAFETY: one slot at least is free, or filled, as the library says, and is that many words.
                total = Some(unsafe { sum(slots.cast(), W) });
                1
            };
            if wait == Wait::Poll {
                self.receiver.receiver_mut().recv(read)?;
            } else {
                self.receiver.block_until_readable()?;
                self.receiver.receive_raw(read)?;
            }
        }
        Ok(total.expect("received"))
    }
}
