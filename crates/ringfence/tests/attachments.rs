//! Attachments between real processes.

mod support;

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::AsFd as _,
    os::unix::net::UnixStream,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ringfence::{Address, Attachment, AttachmentRef, Attachments, CloseReason, Options, SealedBuffer, join};
use support::{Actor, fresh_address, join_later, message, say, small, wait_for_host, wait_for_test, wire};

fn both() -> Options {
    small().attachments(
        Attachments::none()
            .sealed(true)
            .descriptors(true)
            .max_count(3)
            .max_bytes(100_000),
    )
}

fn buffer(number: usize) -> SealedBuffer {
    SealedBuffer::from_bytes(&message(number, 30_000)).unwrap()
}

fn sealed(attachments: Vec<Attachment>) -> Vec<SealedBuffer> {
    let sealed = attachments.into_iter().map(|attachment| match attachment {
        Attachment::Sealed(buffer) => buffer,
        other => panic!("{other:?}"),
    });
    sealed.collect()
}

fn be_hostile(arguments: &[String]) {
    let peer = wire::Met::guest(&arguments[0]);
    let file = File::open("/proc/self/exe").unwrap();
    let parcel = |word: u64, count: usize| {
        let mut parcel = vec![2, u8::try_from(count).unwrap()];
        parcel.extend(word.to_le_bytes().repeat(count));
        wire::send_with(&peer.line, &parcel, &vec![file.as_fd(); count]);
    };
    let record = |attachments: u64| {
        peer.write(4096, 8 | (3 | attachments << 8) << 32);
        peer.write(128, 16);
        peer.ring_bell();
    };
    match arguments[1].as_str() {
        "announces what did not come" => record(1),
        "announces more than came" => {
            parcel(u64::MAX, 1);
            record(2);
        }
        "announces more than the limit" => record(4),
        "sends more than the limit" => (0..4).for_each(|_| parcel(u64::MAX, 1)),
        "sends a cut parcel" => wire::send_with(&peer.line, &[2, 1, 0], &[file.as_fd()]),
        "sends a parcel of nothing" => wire::send_with(&peer.line, &[2, 0], &[]),
        "sends a descriptor with a wakeup" => wire::send_with(&peer.line, &[1], &[file.as_fd()]),
        "passes a file as a sealed buffer" => {
            parcel(4096, 1);
            record(1);
        }
        other => panic!("{other}"),
    }
    wait_for_test();
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    match role.as_str() {
        "reader" => {
            let (_sender, mut receiver) = join(&address, &both()).unwrap().split();
            for number in 0..100 {
                let found = receiver.receive_vec().unwrap().expect("a message");
                assert_eq!(found, message(number, if number % 10 == 9 { 6000 } else { 20 }));
                let buffers = sealed(receiver.attachments());
                assert_eq!(buffers.len(), number % 3);
                for buffer in buffers {
                    assert_eq!(*buffer, *message(number, 30_000));
                }
            }
            assert_eq!(receiver.receive_vec().unwrap(), None);
            assert_eq!(receiver.stats().attachments_received, 99);
        }
        "waits" => {
            let channel = join(&address, &both()).unwrap();
            say("joined");
            wait_for_test();
            let (mut sender, mut receiver) = channel.split();
            for number in 0..20 {
                assert_eq!(receiver.receive_vec().unwrap().expect("a message"), [number]);
                assert_eq!(sealed(receiver.attachments()).len(), 1);
            }
            sender.send(b"all").unwrap();
            receiver.receive_vec().unwrap();
        }
        "uses" => {
            let (_sender, mut receiver) = join(&address, &both()).unwrap().split();
            assert_eq!(receiver.receive_vec().unwrap().expect("a message"), b"a socket");
            let Ok([Attachment::Descriptor(socket)]) = <[_; 1]>::try_from(receiver.attachments()) else {
                panic!("a socket");
            };
            UnixStream::from(socket).write_all(b"from afar").unwrap();
        }
        "refuses" => {
            let channel = join(&address, &small()).unwrap();
            say("joined");
            wait_for_test();
            drop(channel);
        }
        "dies" => {
            let (mut sender, receiver) = join(&address, &both()).unwrap().split();
            for number in 0..3 {
                sender.send_with(&[number], &[(&buffer(0)).into()]).unwrap();
            }
            say("sent");
            wait_for_test();
            drop(receiver);
        }
        "short" => {
            let (_sender, mut receiver) = join(&address, &both()).unwrap().split();
            assert_eq!(receiver.receive_vec().unwrap().expect("a message"), b"first");
            let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            // The three that are open already.
            setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
            say("short");
            for _ in 0..2 {
                let error = receiver.receive_vec().unwrap_err();
                assert_eq!(error.code(), "NO_SPACE", "{error}");
            }
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
            assert_eq!(receiver.receive_vec().unwrap().expect("a message"), b"second");
            assert_eq!(*sealed(receiver.attachments())[0], *message(2, 30_000));
        }
        "hostile" => be_hostile(&arguments),
        other => panic!("{other}"),
    }
}

fn meet(role: &str, options: &Options) -> (Actor, ringfence::Channel) {
    meet_with(role, &[], options)
}

fn meet_with(role: &str, arguments: &[&str], options: &Options) -> (Actor, ringfence::Channel) {
    let (address, _directory) = fresh_address(false);
    let host = join_later(&address, options);
    wait_for_host(&address);
    let address = address.to_string();
    let actor = Actor::start(role, &[&[address.as_str()], arguments].concat());
    (actor, host.join().unwrap().expect("a channel"))
}

#[test]
fn sealed_buffers_arrive_with_their_messages() {
    let (reader, channel) = meet("reader", &both());
    let (mut sender, _receiver) = channel.split();
    for number in 0..100 {
        let buffers = [buffer(number), buffer(number)];
        let attached: Vec<AttachmentRef<'_>> = buffers[..number % 3].iter().map(Into::into).collect();
        // Every tenth message travels in fragments.
        let length = if number % 10 == 9 { 6000 } else { 20 };
        sender.send_with(&message(number, length), &attached).unwrap();
    }
    assert_eq!(sender.stats().attachments_sent, 99);
    sender.end();
    reader.finish();
}

#[test]
fn a_sender_waits_until_the_attachments_that_the_peer_holds_are_read() {
    let (mut reader, channel) = meet("waits", &both());
    let (mut sender, mut receiver) = channel.split();
    reader.expect("joined");
    let buffer = buffer(1);
    let sent = (0..20_u8)
        .take_while(|number| {
            let sent = sender.send_part_with(&[*number], &[(&buffer).into()]).unwrap();
            sent == ringfence::Progress::Whole
        })
        .count();
    assert_eq!(sent, 3, "as many as the peer holds");
    reader.go_on();
    for number in 3..20 {
        sender.send_with(&[number], &[(&buffer).into()]).unwrap();
    }
    assert_eq!(receiver.receive_vec().unwrap().expect("a message"), b"all");
    sender.end();
    reader.finish();
}

#[test]
fn a_descriptor_works_in_the_process_that_received_it() {
    let (user, channel) = meet("uses", &both());
    let (mut sender, _receiver) = channel.split();
    let (mine, theirs) = UnixStream::pair().unwrap();
    sender.send_with(b"a socket", &[theirs.as_fd().into()]).unwrap();
    drop(theirs);
    let mut found = String::new();
    (&mine).read_to_string(&mut found).unwrap();
    assert_eq!(found, "from afar");
    user.finish();
}

#[test]
fn what_the_peer_never_accepts_is_an_error_of_the_call() {
    let (mut refuses, channel) = meet("refuses", &small());
    let (mut sender, _receiver) = channel.split();
    refuses.expect("joined");
    let small_one = buffer(1);
    let found = sender.send_with(b"x", &[(&small_one).into()]).unwrap_err();
    assert_eq!(found.code(), "INVALID_ARGUMENT");
    assert!(
        found.to_string().contains("does not accept sealed buffers"),
        "{found}"
    );
    sender.send(b"the channel goes on").unwrap();
    refuses.go_on();
    refuses.finish();

    let (waits, channel) = meet("waits", &both());
    let (mut sender, _receiver) = channel.split();
    let large = SealedBuffer::create(100_001, |_| {}).unwrap();
    for attached in [vec![&large], vec![&small_one; 4]] {
        let attached: Vec<AttachmentRef<'_>> = attached.into_iter().map(Into::into).collect();
        let found = sender.send_with(b"x", &attached).unwrap_err();
        assert_eq!(found.code(), "MESSAGE_TOO_LARGE", "{found}");
    }
    drop(waits);
}

#[test]
fn unread_attachments_are_readable_after_the_sender_s_death() {
    let (mut dies, channel) = meet("dies", &both());
    let (_sender, mut receiver) = channel.split();
    dies.expect("sent");
    dies.kill();
    for number in 0..3 {
        assert_eq!(receiver.receive_vec().unwrap().expect("a message"), [number]);
        assert_eq!(sealed(receiver.attachments()).len(), 1);
    }
}

#[test]
fn a_message_stays_while_there_are_no_descriptor_numbers_for_its_attachments() {
    let (short, channel) = meet("short", &both());
    let (mut sender, _receiver) = channel.split();
    sender.send(b"first").unwrap();
    short.expect("short");
    sender.send_with(b"second", &[(&buffer(2)).into()]).unwrap();
    short.finish();
}

#[test]
fn what_no_honest_sender_attaches_ends_the_channel() {
    for (lie, code) in [
        ("announces what did not come", "RING_CORRUPT"),
        ("announces more than came", "RING_CORRUPT"),
        ("announces more than the limit", "RING_CORRUPT"),
        ("sends more than the limit", "RING_CORRUPT"),
        ("sends a cut parcel", "RING_CORRUPT"),
        ("sends a parcel of nothing", "RING_CORRUPT"),
        ("sends a descriptor with a wakeup", "RING_CORRUPT"),
        ("passes a file as a sealed buffer", "OBJECT_UNSOUND"),
    ] {
        let (mut hostile, channel) = meet_with("hostile", &[lie], &both().max_message_size(1000));
        let (_sender, mut receiver) = channel.split();
        let found = receiver.receive_vec().unwrap_err();
        assert_eq!(found.code(), code, "{lie}: {found}");
        assert_eq!(receiver.close_reason(), Some(CloseReason::Corrupt), "{lie}");
        hostile.go_on();
        hostile.finish();
    }
}
