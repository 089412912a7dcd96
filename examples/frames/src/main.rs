//! Produces frames: `ringfence-frames ADDRESS CONSUMER WIDTH HEIGHT FRAMES`, where CONSUMER is the executable that
//! the other process must run.
//!
//! A frame is a header of 16 bytes (its number, u64; the sum of its pixels, u32; 0, u32) and its pixels, RGBA, all
//! little-endian. It is drawn where it will be read: into the ring itself.

use std::error::Error;

use ringfence::{Address, Options, Policy, join};

const HEADER: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, consumer, width, height, frames] = &arguments[..] else {
        return Err("ringfence-frames ADDRESS CONSUMER WIDTH HEIGHT FRAMES".into());
    };
    let address: Address = address.parse()?;
    let (width, height): (usize, usize) = (width.parse()?, height.parse()?);
    let frames: u64 = frames.parse()?;
    let size = HEADER + width * height * 4;

    // A reservation takes up to half the ring. With two halves, one frame is drawn while another is read.
    let options = Options::new()
        .capacity(2 * size as u64)
        .policy(Policy::new().executables([consumer]));
    let (mut sender, mut receiver) = join(&address, &options)?.split();
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
    // What was drawn is read first.
    while receiver.receive(&mut [])?.is_some() {}
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
