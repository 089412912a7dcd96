//! Publishes ticks: `ringfence-ticker ADDRESS SUBSCRIBER COUNT`, where SUBSCRIBER is the executable that subscribers must run, and
//! COUNT is how many of them are waited for. It ends when its standard input does.
//!
//! A tick is 40 bytes, little-endian: its number (u64, from 1 on), nanoseconds since the first (u64), an instrument (u32), a size (u32),
//! the price (f64), and the sum of the first four words (u64). One thread publishes; another takes the events and prints a line for
//! each: `in PID`, `behind PID BYTES` once one is more than the ring behind, `gone PID REASON BYTES` with the most that it was ever
//! behind, and at last `sent TICKS SECONDS`.

use std::{
    error::Error,
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use ringfence::{Address, Audience, Broadcaster, Options, Policy, PublisherEvent, Subscriber, publish};

const TICK: usize = 40;
/// Ticks that become visible together.
const BURST: u64 = 100;
/// From one burst to the next.
const PAUSE: Duration = Duration::from_millis(1);
/// Between two looks at how far the subscribers are behind.
const LOOKS: Duration = Duration::from_millis(10);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, subscriber, count] = &arguments[..] else {
        return Err("ringfence-ticker ADDRESS SUBSCRIBER COUNT".into());
    };
    let address: Address = address.parse()?;
    let count: usize = count.parse()?;

    let options = Options::new()
        .capacity(1 << 20)
        .policy(Policy::new().executables([subscriber]));
    let (mut broadcaster, audience) = publish(&address, &options)?.split();
    let (complete, wait_for_all) = channel();
    let capacity = broadcaster.capacity();
    let watcher = thread::spawn(move || watch(&audience, capacity, count, &complete));
    // Fails where the other thread has, which says why at its end.
    if wait_for_all.recv().is_ok() {
        let (sent, seconds) = tick(&mut broadcaster, &over())?;
        // All subscribers get all of it, and then the end.
        broadcaster.end();
        watcher.join().map_err(|_| "the watching thread has panicked")??;
        println!("sent {sent} {seconds:.3}");
        return Ok(());
    }
    Ok(watcher.join().map_err(|_| "the watching thread has panicked")??)
}

/// Set once standard input has ended.
fn over() -> Arc<AtomicBool> {
    let over = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&over);
    thread::spawn(move || {
        let mut input = io::stdin();
        // One that cannot be read has ended as well.
        while input.read(&mut [0; 64]).is_ok_and(|length| length > 0) {}
        set.store(true, Ordering::Relaxed);
    });
    over
}

/// Publishes bursts until it is over. Returns how many ticks, and in how many seconds.
fn tick(broadcaster: &mut Broadcaster, over: &AtomicBool) -> ringfence::Result<(u64, f64)> {
    let begun = Instant::now();
    let mut sent = 0;
    while !over.load(Ordering::Relaxed) {
        let burst = Instant::now();
        let mut batch = broadcaster.batch()?;
        let mut left_over = None;
        for number in sent + 1..=sent + BURST {
            let tick = tick_of(number, begun);
            if !batch.push(&tick)? {
                left_over = Some(tick);
                break;
            }
            sent = number;
        }
        batch.publish();
        drop(batch);
        if let Some(tick) = left_over {
            // A reliable subscriber is a ring behind: it is waited for, for as long as `stall` says.
            broadcaster.send(&tick)?;
            sent += 1;
        }
        thread::sleep(PAUSE.saturating_sub(burst.elapsed()));
    }
    Ok((sent, begun.elapsed().as_secs_f64()))
}

/// Prices that wander.
fn tick_of(number: u64, begun: Instant) -> [u8; TICK] {
    let time = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let instrument = number % 500;
    let size = 100 * (1 + number % 7);
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let price = (100.0 + instrument as f64 + (number % 97) as f64 / 100.0).to_bits();
    let deal = instrument | size << 32;
    let sum = [time, deal, price]
        .iter()
        .fold(number, |sum, word| sum.wrapping_add(*word));
    let mut tick = [0; TICK];
    for (place, word) in tick.chunks_exact_mut(8).zip([number, time, deal, price, sum]) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    tick
}

/// A subscriber that is here.
struct Seen {
    subscriber: Subscriber,
    pid: i32,
    /// The most bytes that it was ever behind, as far as was looked.
    most: u64,
}

impl Seen {
    /// Looks how far it is behind.
    fn look(&mut self, capacity: u64) {
        let lag = self.subscriber.lag();
        if lag > capacity && self.most <= capacity {
            println!("behind {} {lag}", self.pid);
        }
        self.most = self.most.max(lag);
    }
}

/// Takes the events until the last subscriber has gone after the end. Says `complete` once enough have come.
fn watch(audience: &Audience, capacity: u64, count: usize, complete: &Sender<()>) -> ringfence::Result<()> {
    let mut here: Vec<Seen> = Vec::new();
    let mut came = 0;
    loop {
        let event = match audience.next_until(Some(Instant::now() + LOOKS)) {
            // Closed, and every event was taken.
            Err(ringfence::Error::Closed(_)) => return Ok(()),
            other => other?,
        };
        match event {
            Some(PublisherEvent::Subscriber(subscriber)) => {
                let pid = subscriber.peer().pid;
                println!("in {pid}");
                here.push(Seen {
                    subscriber,
                    pid,
                    most: 0,
                });
                came += 1;
                if came == count {
                    // The publishing thread is there: it waits for this.
                    let _ = complete.send(());
                }
            }
            Some(PublisherEvent::Gone(subscriber, reason)) => {
                if let Some(index) = here.iter().position(|seen| seen.subscriber.is(&subscriber)) {
                    let Seen { pid, most, .. } = here.swap_remove(index);
                    println!("gone {pid} {reason} {most}");
                }
            }
            Some(PublisherEvent::Refused(refused)) => eprintln!("refused: {}", refused.error),
            // Nothing has happened, or what is of no interest here.
            None | Some(_) => {}
        }
        for seen in &mut here {
            seen.look(capacity);
        }
    }
}
