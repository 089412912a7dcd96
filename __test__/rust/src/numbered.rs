//! The messages of the soak: every byte follows from the sender, the session and the number.

use std::error::Error as StdError;

/// An error that is not one of ringfence's is a mistake of the soak.
pub(crate) type Outcome<T = ()> = Result<T, Box<dyn StdError + Send + Sync>>;

/// The sender, the session and the number.
pub(crate) fn head(bytes: &[u8]) -> Outcome<[u32; 3]> {
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    match (word(0), word(4), word(8)) {
        (Some(actor), Some(session), Some(number)) => Ok([actor, session, number]),
        _ => Err(format!("a message of {} bytes", bytes.len()).into()),
    }
}

/// The same as `message` in `__test__/soak/actor.mjs`: every byte follows from the sender and the number.
pub(crate) fn message(actor: u32, session: u64, number: u32, may_be_long: bool) -> Vec<u8> {
    let drawn = number.wrapping_mul(2_654_435_761) >> 7;
    let length = if may_be_long && number % 97 == 96 {
        20_000 + drawn % 20_000
    } else {
        drawn % 1900
    };
    let session = u32::try_from(session).expect("a soak has fewer");
    let start = number.wrapping_mul(31).wrapping_add(actor);
    let mut bytes = Vec::with_capacity(12 + length as usize);
    for word in [actor, session, number] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend((0..length).map(|at| start.wrapping_add(at).to_le_bytes()[0]));
    bytes
}
