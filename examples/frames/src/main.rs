//! Produces frames: `ringfence-frames ADDRESS CONSUMER WIDTH HEIGHT FRAMES [READERS]`, where CONSUMER is the executable that
//! the other process must run. With READERS it publishes, to so many; they are waited for.
//!
//! A frame is a header of 16 bytes (its number, u64; the sum of its pixels, u32; 0, u32) and its pixels, RGBA, all
//! little-endian. It is drawn where it will be read: into the ring itself.

use std::error::Error;

use ringfence::{Address, Options, Policy, join, publish};

const HEADER: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (one, readers) = arguments.split_at(arguments.len().min(5));
    let ([address, consumer, width, height, frames], [] | [_]) = (one, readers) else {
        return Err("ringfence-frames ADDRESS CONSUMER WIDTH HEIGHT FRAMES [READERS]".into());
    };
    let address: Address = address.parse()?;
    let (width, height): (usize, usize) = (width.parse()?, height.parse()?);
    let frames: u64 = frames.parse()?;
    let size = HEADER + width * height * 4;
    let options = Options::new().policy(Policy::new().executables([consumer]));
    match readers.first() {
        None => to_one(&address, &options, size, (width, frames)),
        Some(readers) => to_many(&address, &options, size, (width, frames, readers.parse()?)),
    }
}

fn to_one(
    address: &Address,
    options: &Options,
    size: usize,
    (width, frames): (usize, u64),
) -> Result<(), Box<dyn Error>> {
    // A reservation takes up to half the ring. With two halves, one frame is drawn while another is read.
    let options = options.clone().capacity(2 * size as u64);
    let (mut sender, mut receiver) = join(address, &options)?.split();
    for number in 0..frames {
        let mut frame = loop {
            // Asked for anew each time: a borrow that may be returned cannot be kept across the wait.
            if sender.has_room(size)? {
                break sender.reserve(size)?.ok_or("there was room")?;
            }
            sender.wait(size, None)?;
        };
        draw(&mut frame, number, width);
        frame.commit(size)?;
    }
    sender.end();
    // Drawn frames are read first.
    while receiver.receive(&mut [])?.is_some() {}
    Ok(())
}

/// Each frame is drawn once, however many read it.
fn to_many(
    address: &Address,
    options: &Options,
    size: usize,
    (width, frames, readers): (usize, u64, usize),
) -> Result<(), Box<dyn Error>> {
    // A publisher's message is at most an eighth of its ring.
    let options = options
        .clone()
        .capacity(8 * size as u64)
        .max_message_size(size as u64);
    let mut publisher = publish(address, &options)?;
    while publisher.subscribers().len() < readers {
        publisher.next()?;
    }
    for number in 0..frames {
        let mut frame = loop {
            if publisher.sender().has_room(size)? {
                break publisher.reserve(size)?.ok_or("there was room")?;
            }
            publisher.wait(size, None)?;
        };
        draw(&mut frame, number, width);
        frame.commit(size)?;
    }
    publisher.end();
    // Until the last reader has read all of it, and gone.
    while publisher.next().is_ok() {}
    Ok(())
}

/// Colours that wander, so that no two frames are alike.
fn draw(frame: &mut [u8], number: u64, width: usize) {
    let (header, pixels) = frame.split_at_mut(HEADER);
    let mut sum = 0_u32;
    #[expect(clippy::cast_possible_truncation, reason = "colours go round")]
    for (y, row) in pixels.chunks_exact_mut(4 * width).enumerate() {
        let blue = (number as u32).wrapping_add(y as u32) << 16;
        for (x, pixel) in row.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let red = (x as u32).wrapping_add(number as u32) & 0xff;
            let green = ((y as u32) & 0xff) << 8;
            let colour = red | green | (blue & 0x00ff_0000) | 0xff00_0000;
            *pixel = colour.to_le_bytes();
            sum = sum.wrapping_add(colour);
        }
    }
    header[..8].copy_from_slice(&number.to_le_bytes());
    header[8..].copy_from_slice(&u64::from(sum).to_le_bytes());
}
