//! rtrb: a queue between two threads of one process. It needs none of the checks that a stranger's memory needs,
//! and so shows how much room there is.

use std::hint::spin_loop;
use std::sync::Mutex;

use anyhow::{Result, bail};
use rtrb::{Consumer, Producer, RingBuffer};

use crate::driver::{Contender, Measure, Setup, Side as Which, Wait};
use crate::work::{BATCH, Work, fill, one_or_none, poll, poll_sum, sum, sum_item, sum_items};

pub fn takes(measure: Measure, size: usize) -> Result<(), &'static str> {
    match measure {
        Measure::Copy => Err("the same as one"),
        Measure::Batch if size != 64 => Err("batches at 64 B only"),
        Measure::RttPolled if size != 64 => Err("round trips at 64 B only"),
        Measure::RttSpin | Measure::RttParked | Measure::Paced => Err("it does not sleep"),
        _ => Ok(()),
    }
}

type Small = [u64; 8];

/// The two ends as one side holds them.
pub struct Side {
    small: (Producer<Small>, Consumer<Small>),
    words: (Producer<u64>, Consumer<u64>),
}

fn pop(consumer: &mut Consumer<Small>) -> Option<u64> {
    Some(sum_item(&consumer.pop().ok()?))
}

static OTHER: Mutex<Option<Side>> = Mutex::new(None);

impl Contender for Side {
    const THREADS: bool = true;

    fn open(setup: &mut Setup) -> Result<Self> {
        if setup.side == Which::B {
            // A has put it there before it accepts the line.
            setup.line()?;
            let _: bool = setup.line()?.receive()?;
            return Ok(OTHER
                .lock()
                .expect("not poisoned")
                .take()
                .expect("A put it there"));
        }
        let slots = setup.job.slots();
        let is_small = setup.job.size == 64;
        let small = |slots| RingBuffer::<Small>::new(slots);
        let words = |slots| RingBuffer::<u64>::new(slots);
        let (ping, ping_back) = small(if is_small { slots } else { 1 });
        let (pong, pong_back) = small(if is_small { slots } else { 1 });
        let (wide, wide_back) = words(if is_small { 1 } else { slots * setup.job.size / 8 });
        let (unused, unused_back) = words(1);
        *OTHER.lock().expect("not poisoned") = Some(Self {
            small: (pong, ping_back),
            words: (unused, wide_back),
        });
        setup.line()?.send(&true)?;
        Ok(Self {
            small: (ping, pong_back),
            words: (wide, unused_back),
        })
    }

    fn produce(&mut self, work: &Work, measure: Measure) -> Result<()> {
        if work.words != 8 {
            for n in 0..work.count {
                let mut chunk = loop {
                    match self.words.0.write_chunk_uninit(work.words) {
                        Ok(chunk) => break chunk,
                        Err(_) => spin_loop(),
                    }
                };
                let (first, second) = chunk.as_mut_slices();
                let start = work.first_word(n);
                // SAFETY: both parts of the chunk have as many words as are written or read there.
                unsafe {
                    fill(first.as_mut_ptr().cast(), first.len(), start);
                    fill(
                        second.as_mut_ptr().cast(),
                        second.len(),
                        start + first.len() as u64,
                    );
                    chunk.commit_all();
                }
            }
        } else if measure == Measure::Batch {
            for first in (0..work.count).step_by(BATCH) {
                let chunk = loop {
                    match self.small.0.write_chunk_uninit(BATCH) {
                        Ok(chunk) => break chunk,
                        Err(_) => spin_loop(),
                    }
                };
                let mut n = first;
                chunk.fill_from_iter(std::iter::from_fn(|| {
                    let start = work.first_word(n);
                    n += 1;
                    Some(std::array::from_fn(|i| start + i as u64))
                }));
            }
        } else {
            for n in 0..work.count {
                let start = work.first_word(n);
                let mut item: Small = std::array::from_fn(|i| start + i as u64);
                while let Err(rtrb::PushError::Full(back)) = self.small.0.push(item) {
                    item = back;
                    spin_loop();
                }
            }
        }
        Ok(())
    }

    fn consume(&mut self, work: &Work, measure: Measure) -> Result<u64> {
        let (small, words) = (&mut self.small.1, &mut self.words.1);
        if work.words != 8 {
            poll_sum(work.count, spin_loop, |_| {
                let Ok(chunk) = words.read_chunk(work.words) else {
                    return Ok((0, 0));
                };
                let (first, second) = chunk.as_slices();
                let of = |part: &[u64]| {
                    // SAFETY: a slice of that many words.
                    unsafe { sum(part.as_ptr().cast(), part.len()) }
                };
                let total = of(first).wrapping_add(of(second));
                chunk.commit_all();
                Ok((1, total))
            })
        } else if measure == Measure::Batch {
            poll_sum(work.count, spin_loop, |_| {
                let there = small.slots();
                let chunk = small.read_chunk(there)?;
                let (first, second) = chunk.as_slices();
                let total = sum_items(first).wrapping_add(sum_items(second));
                chunk.commit_all();
                Ok((there as u64, total))
            })
        } else {
            poll_sum(work.count, spin_loop, |_| Ok(one_or_none(pop(small))))
        }
    }

    #[inline(always)]
    fn send_one(&mut self, _: usize, start: u64, _: Wait) -> Result<()> {
        let item: Small = std::array::from_fn(|i| start + i as u64);
        if self.small.0.push(item).is_err() {
            bail!("full");
        }
        Ok(())
    }

    #[inline(always)]
    fn receive_one(&mut self, _: usize, _: Wait) -> Result<u64> {
        poll(|| Ok(pop(&mut self.small.1)))
    }
}
