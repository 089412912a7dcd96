//! Subscribing to a publisher.

use std::mem;

use crate::{
    address::Address,
    channel::open::open,
    channel::subscription::Subscription,
    error::{Error, Result},
    handshake::broadcast::RingPart,
    handshake::frame::Meeting,
    handshake::parts::Side,
    host::connect::call,
    options::Options,
};

/// Subscribes to the publisher at an address. [`Options::delivery`] selects which messages arrive, and [`Options::from`] the first one.
///
/// A reliable subscriber that starts from [`StartFrom::Now`](crate::StartFrom::Now) gets every message whose sending began after this has
/// returned. [`Options::cancel_token`] ends the waiting.
///
/// # Errors
/// - [`Error::PeerLost`] if no process publishes at the address. With [`Options::wait`], the call waits for a publisher instead.
/// - [`Error::AddressOccupied`] if the publisher is full. With [`Options::wait`], the call waits for a slot.
/// - [`Error::PeerRefused`], check `delivery`, if the publisher does not offer the delivery.
/// - [`Error::Protocol`] if the publisher's messages may be longer than [`Options::max_message_size`], or the host does not publish.
pub fn subscribe(address: &Address, options: &Options) -> Result<Subscription> {
    let options = options.clone().checked_to_subscribe()?;
    let address = &address.absolute();
    let mut parts = call(
        address,
        &options,
        ("publishes", "publisher"),
        |stream, record, deadline| {
            Side::new(address, &options, deadline, Meeting::Broadcast)
                .subscribing()
                .guest(stream, record)
        },
    )?;
    match mem::replace(&mut parts.ring, RingPart::Equal) {
        RingPart::Subscriber(ring, beginning) => {
            let opened = open(parts, None, &options);
            Subscription::begin(opened, ring, beginning, &options)
        }
        RingPart::Equal | RingPart::Publisher(_) => {
            Err(Error::Protocol("a handshake without a publisher's ring".into()))
        }
    }
}
