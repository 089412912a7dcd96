//! This process has no descriptors left: that is its own trouble, told as such, and never held against the peer.

mod support;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ringfence::{Address, Channel, join};
use support::{Actor, fresh_address, say, small, wait_for_host};

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    match role.as_str() {
        "verify" => verify(&address),
        other => panic!("no such role: {other}"),
    }
}

/// No descriptor of this number or above can be had while this lives.
struct Short(u64);

impl Short {
    fn new(first: usize) -> Self {
        let (before, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, first as u64, most).unwrap();
        Self(before)
    }
}

impl Drop for Short {
    fn drop(&mut self) {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, self.0, most).unwrap();
    }
}

/// Sends a message and waits for the same one.
fn both_ways(channel: &mut Channel) {
    channel.sender().send(b"there and back").unwrap();
    let mut answer = [0; 64];
    let length = channel.receiver().receive(&mut answer).unwrap().unwrap();
    assert_eq!(&answer[..length], b"there and back");
}

/// Looks at the peer again with fewer and fewer descriptors.
fn verify(address: &Address) {
    let mut channel = join(address, &small()).unwrap();
    let mut outcomes = Vec::new();
    for first in 0..40 {
        let short = Short::new(first);
        let verified = channel.verify();
        drop(short);
        outcomes.push(match verified {
            Ok(_) => "well",
            Err(error) => error.code(),
        });
        both_ways(&mut channel);
    }
    // One of each at least, and nothing else.
    assert!(
        outcomes.contains(&"well") && outcomes.contains(&"NO_SPACE"),
        "{outcomes:?}"
    );
    assert!(
        outcomes.iter().all(|it| ["well", "NO_SPACE"].contains(it)),
        "{outcomes:?}"
    );
    channel.close();
    say("verified");
}

#[test]
fn a_look_at_the_peer_for_which_no_descriptor_is_left_ends_no_channel() {
    let (address, _keep) = fresh_address(false);
    let actor = Actor::start("verify", &[&address.to_string()]);
    wait_for_host(&address);
    let mut channel = join(&address, &small()).unwrap();
    let mut message = [0; 64];
    while let Ok(Some(length)) = channel.receiver().receive(&mut message) {
        channel.sender().send(&message[..length]).unwrap();
    }
    actor.expect("verified");
    actor.finish();
}
