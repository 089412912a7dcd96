//! Attachments between real processes.

mod support;

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::memfd::{MFdFlags, memfd_create},
    sys::resource::{Resource, getrlimit, setrlimit},
    sys::socket::MsgFlags,
    unistd::ftruncate,
};
use ringfence::{
    Address, Attachment, AttachmentRef, Attachments, CloseReason, Merge, Merged, Options, Receiver,
    SealedBuffer, join,
};
use support::{Actor, fresh_address, join_later, message, report, small, wait_for_host, wait_for_test, wire};

fn all_kinds() -> Options {
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

fn into_sealed(attachments: Vec<Attachment>) -> Vec<SealedBuffer> {
    let sealed = attachments.into_iter().map(|attachment| match attachment {
        Attachment::Sealed(buffer) => buffer,
        other => panic!("{other:?}"),
    });
    sealed.collect()
}

fn as_hostile(arguments: &[String]) {
    let peer = wire::ManualGuest::guest(&arguments[0]);
    let file = OwnedFd::from(File::open("/proc/self/exe").unwrap());
    let parcel_of = |object: &OwnedFd, word: u64, count: usize| {
        let mut parcel = vec![2, u8::try_from(count).unwrap()];
        parcel.extend(word.to_le_bytes().repeat(count));
        wire::send_with(&peer.line, &parcel, &vec![object.as_fd(); count]);
    };
    let parcel = |word: u64, count: usize| parcel_of(&file, word, count);
    let record = |attachments: u64| {
        peer.write(4096, 8 | (3 | attachments << 8) << 32);
        peer.write(128, 16);
        // The receiver may have read the record already, and have ended the channel.
        let _ = (&peer.line).write(&[1]);
    };
    match arguments[1].as_str() {
        "announces a missing attachment" => record(1),
        "announces too many attachments" => {
            parcel(u64::MAX, 1);
            record(2);
        }
        "announces more than the limit" => record(4),
        "sends more than the limit" => (0..4).for_each(|_| parcel(u64::MAX, 1)),
        "sends a cut parcel" => wire::send_with(&peer.line, &[2, 1, 0], &[file.as_fd()]),
        "sends a parcel without descriptors" => {
            wire::send_with(&peer.line, &[2, 1, 255, 255, 255, 255, 255, 255, 255, 255], &[]);
        }
        what @ ("sends an out-of-band byte" | "sends one behind a wakeup") => {
            if what == "sends one behind a wakeup" {
                (&peer.line).write_all(&[1]).unwrap();
            }
            let sent = nix::sys::socket::send(peer.line.as_raw_fd(), b"x", MsgFlags::MSG_OOB);
            assert_eq!(sent, Ok(1));
        }
        "states sizes that overflow" => parcel(u64::MAX - 1, 2),
        "states one attachment and passes three" => {
            let objects = [file.as_fd(); 3];
            wire::send_with(
                &peer.line,
                &[2, 1, 255, 255, 255, 255, 255, 255, 255, 255],
                &objects,
            );
        }
        "sends the kernel's maximum" => parcel(u64::MAX, 253),
        "sends an empty parcel" => wire::send_with(&peer.line, &[2, 0], &[]),
        "sends a descriptor with a wakeup" => wire::send_with(&peer.line, &[1], &[file.as_fd()]),
        "passes a file as a sealed buffer" => {
            parcel(4096, 1);
            record(1);
        }
        "passes memory without seals" => {
            parcel_of(&memory(4096, 4096, false), 4096, 1);
            record(1);
        }
        "passes sealed memory with holes" => {
            parcel_of(&memory(8192, 4096, true), 8192, 1);
            record(1);
        }
        "states another size" => {
            parcel_of(&memory(8192, 8192, true), 4096, 1);
            record(1);
        }
        "passes more bytes than the limit" => parcel_of(&memory(4096, 4096, true), 100_001, 1),
        "sends a descriptor and dies" => {
            parcel(u64::MAX, 1);
            std::process::exit(0);
        }
        other => panic!("{other}"),
    }
    wait_for_test();
}

/// Makes a memfd of `size` bytes, `reserved` of which have memory.
fn memory(size: i64, reserved: i64, is_sealed: bool) -> OwnedFd {
    let memory = memfd_create("attached", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
    fallocate(&memory, FallocateFlags::empty(), 0, reserved).unwrap();
    ftruncate(&memory, size).unwrap();
    if is_sealed {
        let seals =
            SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
        fcntl(&memory, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    }
    memory
}

/// Returns the number of open descriptors of this process.
fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Limits the memory that this process can map to what it has now and this number of bytes.
fn limit_memory(more: u64) {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm")
        .unwrap()
        .split_ascii_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
    setrlimit(Resource::RLIMIT_AS, pages * 4096 + more, hard).unwrap();
}

fn receive_without_memory(address: &Address) {
    let options = all_kinds().attachments(Attachments::none().sealed(true).descriptors(true));
    let (_sender, mut receiver) = join(address, &options).unwrap().split();
    assert_eq!(receiver.receive_vec().unwrap().expect("a message"), b"first");
    let mut into = [0; 100];
    let (soft, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
    limit_memory(4 << 20);
    report("short");
    for _ in 0..2 {
        let error = receiver.receive(&mut into).unwrap_err();
        assert_eq!(error.code(), "NO_SPACE", "{error}");
        assert!(receiver.attachments().is_empty(), "the message was not received");
    }
    setrlimit(Resource::RLIMIT_AS, soft, hard).unwrap();
    assert_eq!(receiver.receive(&mut into).unwrap(), Some(6));
    let [Attachment::Descriptor(_), Attachment::Sealed(buffer)] = &receiver.attachments()[..] else {
        panic!("a descriptor and a buffer");
    };
    assert_eq!(buffer.len(), 16 << 20);
}

/// Holds a channel until its peer is gone, and then has the descriptors that it had before.
fn hold(address: &Address, mode: &str) {
    // The process's threads and their descriptors stay.
    let before = {
        let first = join(address, &all_kinds()).unwrap();
        report("joined");
        wait_for_test();
        drop(first);
        open_descriptors()
    };
    report("again");
    let (sender, mut receiver) = join(address, &all_kinds()).unwrap().split();
    let mut held = Vec::new();
    if mode == "takes" {
        receiver.receive_vec().unwrap().expect("a message");
        held = receiver.attachments();
        receiver.receive_vec().unwrap().expect("a message");
    }
    while !matches!(receiver.receive_vec(), Ok(None) | Err(_)) {}
    drop((sender, receiver));
    // The host's thread closes its descriptors by itself.
    let start = Instant::now();
    while open_descriptors() > before + held.len() {
        assert!(start.elapsed() < Duration::from_secs(30), "descriptors are left");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The processes that have few descriptors, or many attachments.
fn as_limited(role: &str, address: &Address) {
    match role {
        "limited" => {
            let (_sender, mut receiver) = join(address, &all_kinds()).unwrap().split();
            let mut files = Vec::new();
            // Fewer numbers than the peer's descriptors need.
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            setrlimit(Resource::RLIMIT_NOFILE, 128, hard).unwrap();
            while let Ok(file) = File::open("/dev/null") {
                files.push(file);
            }
            // For the wait.
            files.truncate(files.len() - 3);
            let found = receiver.receive_vec().unwrap_err();
            assert_eq!(found.code(), "RING_CORRUPT", "{found}");
        }
        "takes none" => {
            let (_sender, mut receiver) = join(address, &all_kinds()).unwrap().split();
            assert_eq!(receiver.receive_vec().unwrap().expect("a message"), b"first");
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            setrlimit(Resource::RLIMIT_NOFILE, 128, hard).unwrap();
            let files: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
            report("full");
            wait_for_test();
            assert_eq!(receiver.try_receive_vec().unwrap().expect("a message"), b"second");
            drop(files);
        }
        "fills" => {
            let options = small().attachments(Attachments::none().sealed(true).max_count(64));
            let (mut sender, receiver) = join(address, &options).unwrap().split();
            let buffer = SealedBuffer::from_bytes(b"x").unwrap();
            let attached = [(&buffer).into()];
            for _ in 0..40 {
                sender.send_part_with(&[0; 40], &attached).unwrap();
            }
            report("sent");
            while sender.send_with(&[0; 40], &attached).is_ok() {}
            drop(receiver);
        }
        "fills a lap" => {
            let (mut sender, _receiver) = join(address, &all_kinds()).unwrap().split();
            sender.send(&[0; 1500]).unwrap();
            report("sent");
            wait_for_test();
            sender.send_with(&[0; 1500], &[(&buffer(1)).into()]).unwrap();
            // It does not fit the lap.
            sender.send(&[0; 1501]).unwrap();
            report("sent");
            wait_for_test();
        }
        "reads a thousand" => {
            let accepted = Attachments::none().descriptors(true).max_count(1024);
            let options = Options::new().capacity(1 << 20).attachments(accepted);
            let (_sender, mut receiver) = join(address, &options).unwrap().split();
            report("joined");
            wait_for_test();
            for _ in 0..1000 {
                assert_eq!(receiver.receive_vec().unwrap().expect("a message"), b"x");
                assert_eq!(receiver.attachments().len(), 1);
            }
        }
        "drops its receiver" => {
            let (sender, mut receiver) = join(address, &all_kinds()).unwrap().split();
            wait_for_test();
            assert_eq!(receiver.receive_vec().unwrap().expect("a message"), b"x");
            drop(receiver);
            report("dropped");
            wait_for_test();
            drop(sender);
        }
        other => as_event_loop(other, address),
    }
}

/// The processes whose event loop is short of descriptors, and the peer of one.
fn as_event_loop(role: &str, address: &Address) {
    match role {
        "loops without descriptors" => {
            let (_sender, mut receiver) = join(address, &all_kinds()).unwrap().split();
            let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
            receiver.as_fd();
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
            let found = receiver.arm().unwrap_err();
            assert_eq!(found.code(), "NO_SPACE", "{found}");
            report("armed");
            receiver.receive_vec().unwrap();
        }
        "loops without numbers" | "arms without numbers" => {
            let (_sender, mut receiver) = join(address, &all_kinds()).unwrap().split();
            receiver.arm().unwrap();
            // As a loop in Rust does, and as the Node binding does while a half waits.
            let poll_line = |receiver: &mut Receiver| {
                if role == "loops without numbers" {
                    receiver.poll_line().unwrap();
                } else {
                    receiver.poll_line_later().unwrap();
                    receiver.arm().unwrap();
                }
            };
            let line = ringfence::binding::line(&mut receiver)
                .unwrap()
                .as_fd()
                .try_clone_to_owned()
                .unwrap();
            let wakes =
                |timeout| poll(&mut [PollFd::new(line.as_fd(), PollFlags::POLLIN)], timeout).unwrap() > 0;
            let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
            report("short");
            for received in ["two parcels and their wakeups", "another"] {
                wait_for_test();
                let mut turns = 0;
                while wakes(PollTimeout::ZERO) {
                    poll_line(&mut receiver);
                    turns += 1;
                    assert!(turns < 100, "the loop never stops being woken: {received}");
                }
                assert!(turns > 0, "{received}");
                report("waits");
            }
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
            for _ in 0..3 {
                assert_eq!(receiver.receive_vec().unwrap().unwrap(), b"x");
                assert_eq!(receiver.attachments().len(), 1);
            }
            setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
            report("read");
            // The peer sends once more, and is killed.
            while receiver.close_reason().is_none() {
                assert!(wakes(PollTimeout::NONE));
                poll_line(&mut receiver);
            }
            assert_eq!(receiver.close_reason(), Some(CloseReason::Lost));
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
            assert_eq!(receiver.receive_vec().unwrap().unwrap(), b"x");
            assert_eq!(receiver.attachments().len(), 1);
            report("lost");
        }
        "sends to event loop" => {
            let (mut sender, _receiver) = join(address, &all_kinds()).unwrap().split();
            report("joined");
            for count in [2, 1, 1] {
                wait_for_test();
                for _ in 0..count {
                    sender.send_with(b"x", &[(&buffer(1)).into()]).unwrap();
                }
                report("sent");
            }
            wait_for_test();
        }
        "loops later" => {
            let (sender, mut first) = join(address, &all_kinds()).unwrap().split();
            // Starts the thread that watches peers, which has descriptors of its own.
            ringfence::binding::line(&mut first).unwrap();
            report("joined");
            wait_for_test();
            drop((sender, first));
            report("again");
            let (_sender, mut receiver) = join(address, &all_kinds()).unwrap().split();
            let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
            let found = ringfence::binding::line(&mut receiver).unwrap_err();
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
            assert_eq!(found.code(), "NO_SPACE", "{found}");
            ringfence::binding::line(&mut receiver).unwrap();
            receiver.arm().unwrap();
            report("armed");
            receiver.receive_vec().unwrap();
        }
        other => panic!("{other}"),
    }
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
            let (_sender, mut receiver) = join(&address, &all_kinds()).unwrap().split();
            for number in 0..100 {
                let found = receiver.receive_vec().unwrap().expect("a message");
                assert_eq!(found, message(number, if number % 10 == 9 { 6000 } else { 20 }));
                let buffers = into_sealed(receiver.attachments());
                assert_eq!(buffers.len(), number % 3);
                for buffer in buffers {
                    assert_eq!(*buffer, *message(number, 30_000));
                }
            }
            assert_eq!(receiver.receive_vec().unwrap(), None);
            assert_eq!(receiver.stats().attachments_received, 99);
        }
        "waits" => {
            let channel = join(&address, &all_kinds()).unwrap();
            report("joined");
            wait_for_test();
            let (mut sender, mut receiver) = channel.split();
            for number in 0..20 {
                assert_eq!(receiver.receive_vec().unwrap().expect("a message"), [number]);
                assert_eq!(into_sealed(receiver.attachments()).len(), 1);
            }
            sender.send(b"all").unwrap();
            receiver.receive_vec().unwrap();
        }
        "uses" => {
            let (_sender, mut receiver) = join(&address, &all_kinds()).unwrap().split();
            assert_eq!(receiver.receive_vec().unwrap().expect("a message"), b"a socket");
            let Ok([Attachment::Descriptor(socket)]) = <[_; 1]>::try_from(receiver.attachments()) else {
                panic!("a socket");
            };
            UnixStream::from(socket).write_all(b"written remotely").unwrap();
        }
        "refuses" => {
            let channel = join(&address, &small()).unwrap();
            report("joined");
            wait_for_test();
            drop(channel);
        }
        "dies" => {
            let (mut sender, receiver) = join(&address, &all_kinds()).unwrap().split();
            for number in 0..3 {
                sender.send_with(&[number], &[(&buffer(0)).into()]).unwrap();
            }
            report("sent");
            wait_for_test();
            drop(receiver);
        }
        "short" => {
            let (_sender, mut receiver) = join(&address, &all_kinds()).unwrap().split();
            assert_eq!(receiver.receive_vec().unwrap().expect("a message"), b"first");
            let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            // The three that are open already.
            setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
            report("short");
            for _ in 0..2 {
                let error = receiver.receive_vec().unwrap_err();
                assert_eq!(error.code(), "NO_SPACE", "{error}");
            }
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
            assert_eq!(receiver.receive_vec().unwrap().expect("a message"), b"second");
            assert_eq!(*into_sealed(receiver.attachments())[0], *message(2, 30_000));
        }
        "short of memory" => receive_without_memory(&address),
        "holds" => hold(&address, &arguments[1]),
        "is killed" => {
            let (_sender, mut receiver) = join(&address, &all_kinds()).unwrap().split();
            receiver.receive_vec().unwrap().expect("a message");
            let _held = receiver.attachments();
            receiver.receive_vec().unwrap().expect("a message");
            report("received");
            wait_for_test();
        }
        "hostile" => as_hostile(&arguments),
        other => as_limited(other, &address),
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
    let (reader, channel) = meet("reader", &all_kinds());
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
fn sender_waits_until_pending_attachments_are_read() {
    let (mut reader, channel) = meet("waits", &all_kinds());
    let (mut sender, mut receiver) = channel.split();
    reader.expect("joined");
    let buffer = buffer(1);
    let sent = (0..20_u8)
        .take_while(|number| {
            let sent = sender.send_part_with(&[*number], &[(&buffer).into()]).unwrap();
            sent == ringfence::Progress::Whole
        })
        .count();
    assert_eq!(sent, 3, "the peer's limit");
    reader.proceed();
    for number in 3..20 {
        sender.send_with(&[number], &[(&buffer).into()]).unwrap();
    }
    assert_eq!(receiver.receive_vec().unwrap().expect("a message"), b"all");
    sender.end();
    reader.finish();
}

#[test]
fn received_descriptor_is_usable() {
    let (user, channel) = meet("uses", &all_kinds());
    let (mut sender, _receiver) = channel.split();
    let (mine, theirs) = UnixStream::pair().unwrap();
    sender.send_with(b"a socket", &[theirs.as_fd().into()]).unwrap();
    drop(theirs);
    let mut found = String::new();
    (&mine).read_to_string(&mut found).unwrap();
    assert_eq!(found, "written remotely");
    user.finish();
}

#[test]
fn unacceptable_attachment_fails_the_call() {
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
    sender.send(b"the channel still works").unwrap();
    refuses.proceed();
    refuses.finish();

    let (waits, channel) = meet("waits", &all_kinds());
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
fn unread_attachments_survive_a_killed_sender() {
    let (mut dies, channel) = meet("dies", &all_kinds());
    let (_sender, mut receiver) = channel.split();
    dies.expect("sent");
    dies.kill();
    for number in 0..3 {
        assert_eq!(receiver.receive_vec().unwrap().expect("a message"), [number]);
        assert_eq!(into_sealed(receiver.attachments()).len(), 1);
    }
}

#[test]
fn message_is_kept_without_free_descriptors() {
    let (short, channel) = meet("short", &all_kinds());
    let (mut sender, _receiver) = channel.split();
    sender.send(b"first").unwrap();
    short.expect("short");
    sender.send_with(b"second", &[(&buffer(2)).into()]).unwrap();
    short.finish();
}

#[test]
fn attachments_not_taken_leave_their_descriptors_to_the_next() {
    let (mut other, channel) = meet("takes none", &all_kinds());
    let (mut sender, _receiver) = channel.split();
    sender.send_with(b"first", &[(&buffer(1)).into()]).unwrap();
    other.expect("full");
    sender.send_with(b"second", &[(&buffer(2)).into()]).unwrap();
    other.proceed();
    other.finish();
}

#[test]
fn malformed_attachments_end_the_channel() {
    for (violation, code) in [
        ("announces a missing attachment", "RING_CORRUPT"),
        ("announces too many attachments", "RING_CORRUPT"),
        ("announces more than the limit", "RING_CORRUPT"),
        ("sends more than the limit", "RING_CORRUPT"),
        ("sends a cut parcel", "RING_CORRUPT"),
        ("sends an empty parcel", "RING_CORRUPT"),
        ("sends a descriptor with a wakeup", "RING_CORRUPT"),
        ("passes a file as a sealed buffer", "OBJECT_UNSOUND"),
        ("passes memory without seals", "OBJECT_UNSOUND"),
        ("passes sealed memory with holes", "OBJECT_UNSOUND"),
        ("states another size", "OBJECT_UNSOUND"),
        ("passes more bytes than the limit", "RING_CORRUPT"),
        ("sends a parcel without descriptors", "RING_CORRUPT"),
        ("states one attachment and passes three", "RING_CORRUPT"),
        ("sends the kernel's maximum", "RING_CORRUPT"),
    ] {
        let (mut hostile, channel) = meet_with("hostile", &[violation], &all_kinds().max_message_size(1000));
        let (_sender, mut receiver) = channel.split();
        let found = receiver.receive_vec().unwrap_err();
        assert_eq!(found.code(), code, "{violation}: {found}");
        assert_eq!(receiver.close_reason(), Some(CloseReason::Corrupt), "{violation}");
        // Each call reports the violation itself.
        let (found, again) = (found.to_string(), receiver.receive_vec().unwrap_err().to_string());
        assert!(!found.contains("found before"), "{violation}: {found}");
        assert!(again.ends_with(&found), "{violation}: {again}");
        hostile.proceed();
        hostile.finish();
    }
}

/// A hostile peer that does this ends its channel with this side.
fn expect_corrupt(violation: &str, accepted: Attachments) {
    let (mut hostile, channel) = meet_with("hostile", &[violation], &small().attachments(accepted));
    let (_sender, mut receiver) = channel.split();
    let found = receiver.receive_vec().unwrap_err();
    assert_eq!(found.code(), "RING_CORRUPT", "{violation}: {found}");
    hostile.proceed();
    hostile.finish();
}

#[test]
fn unaccepted_attachment_kind_ends_the_channel() {
    for (violation, accepted) in [
        ("announces too many attachments", Attachments::none().sealed(true)),
        (
            "passes sealed memory with holes",
            Attachments::none().descriptors(true),
        ),
        // The kernel may refuse its descriptors (Linux 6.16).
        ("announces a missing attachment", Attachments::none()),
    ] {
        expect_corrupt(violation, accepted);
    }
}

#[test]
fn message_is_kept_without_memory_for_its_attachments() {
    let (short, channel) = meet(
        "short of memory",
        &small().attachments(Attachments::none().sealed(true)),
    );
    let (mut sender, _receiver) = channel.split();
    sender.send(b"first").unwrap();
    short.expect("short");
    let large = SealedBuffer::create(16 << 20, |_| {}).unwrap();
    let (_end, pipe) = nix::unistd::pipe().unwrap();
    sender
        .send_with(b"second", &[pipe.as_fd().into(), (&large).into()])
        .unwrap();
    short.finish();
}

#[test]
fn attachments_belong_to_the_last_received_message() {
    let (mut dies, channel) = meet("dies", &all_kinds());
    let (_sender, mut receiver) = channel.split();
    dies.expect("sent");
    let mut into = [0; 100];
    assert_eq!(receiver.receive_each(|_| {}, 10).unwrap(), 1);
    assert_eq!(into_sealed(receiver.attachments()).len(), 1);
    assert!(receiver.attachments().is_empty(), "already taken");
    assert_eq!(receiver.try_receive(&mut into).unwrap(), Some(1));
    assert_eq!(receiver.try_receive(&mut into).unwrap(), Some(1));
    assert_eq!(into_sealed(receiver.attachments()).len(), 1);
    dies.kill();
}

#[test]
fn merge_delivers_attachments_with_their_messages() {
    let mut merge = Merge::new().unwrap();
    let actors: Vec<_> = (0..2)
        .map(|_| {
            let (dies, channel) = meet("dies", &all_kinds());
            let (sender, receiver) = channel.split();
            merge.add(receiver).unwrap();
            dies.expect("sent");
            (dies, sender)
        })
        .collect();
    let mut into = [0; 100];
    assert!(matches!(
        merge.receive(&mut into).unwrap(),
        Some(Merged::Message { length: 1, .. })
    ));
    assert_eq!(into_sealed(merge.attachments()).len(), 1);
    for _ in 0..5 {
        assert_eq!(merge.receive_each(|_, _| {}, 10).unwrap(), 1);
        assert_eq!(into_sealed(merge.attachments()).len(), 1);
        assert!(merge.attachments().is_empty());
    }
    drop(actors);
}

#[test]
fn out_of_band_byte_ends_the_channel() {
    let (one, _other) = UnixStream::pair().unwrap();
    // A kernel may be built without them.
    if nix::sys::socket::send(one.as_raw_fd(), b"x", MsgFlags::MSG_OOB).is_err() {
        return;
    }
    for what in ["sends an out-of-band byte", "sends one behind a wakeup"] {
        expect_corrupt(what, Attachments::none().sealed(true).descriptors(true));
    }
}

#[test]
fn overflowing_sizes_end_the_channel() {
    let accepted = Attachments::none().sealed(true).max_bytes(u64::MAX);
    expect_corrupt("states sizes that overflow", accepted);
}

#[test]
fn too_many_descriptors_are_a_violation_despite_emfile() {
    let (address, _directory) = fresh_address(false);
    let limited = Actor::start("limited", &[&address.to_string()]);
    wait_for_host(&address);
    let mut hostile = Actor::start("hostile", &[&address.to_string(), "sends the kernel's maximum"]);
    limited.finish();
    hostile.proceed();
    hostile.finish();
}

#[test]
fn attachment_for_a_killed_peer_fails_with_peer_lost() {
    let (mut killed, channel) = meet("waits", &all_kinds());
    let (mut sender, _receiver) = channel.split();
    killed.expect("joined");
    killed.kill();
    let buffer = buffer(1);
    for _ in 0..2 {
        let found = sender.send_with(b"x", &[(&buffer).into()]).unwrap_err();
        assert_eq!(found.code(), "PEER_LOST", "{found}");
    }
    assert_eq!(sender.close_reason(), Some(CloseReason::Lost));
}

#[test]
fn arming_without_descriptors_is_no_space() {
    let (limited, channel) = meet("loops without descriptors", &all_kinds());
    limited.expect("armed");
    drop(channel);
    limited.finish();
}

#[test]
fn event_loop_without_free_descriptors_detects_peer_exit() {
    for limited in ["loops without numbers", "arms without numbers"] {
        run_event_loop_without_descriptors(limited);
    }
}

fn run_event_loop_without_descriptors(limited: &str) {
    let (address, _directory) = fresh_address(false);
    let mut limited = Actor::start(limited, &[&address.to_string()]);
    wait_for_host(&address);
    let mut sends = Actor::start("sends to event loop", &[&address.to_string()]);
    sends.expect("joined");
    limited.expect("short");
    for _ in 0..2 {
        sends.proceed();
        sends.expect("sent");
        limited.proceed();
        limited.expect("waits");
    }
    limited.expect("read");
    sends.proceed();
    sends.expect("sent");
    sends.kill();
    limited.expect("lost");
    limited.finish();
}

#[test]
fn event_loop_starts_once_descriptors_are_available() {
    let (address, _directory) = fresh_address(false);
    let mut limited = Actor::start("loops later", &[&address.to_string()]);
    wait_for_host(&address);
    let first = join(&address, &all_kinds()).unwrap();
    limited.expect("joined");
    limited.proceed();
    limited.expect("again");
    drop(first);
    wait_for_host(&address);
    let channel = join(&address, &all_kinds()).unwrap();
    limited.expect("armed");
    drop(channel);
    limited.finish();
}

#[test]
fn merge_is_fair_between_sources_with_attachments() {
    let options = small().attachments(Attachments::none().sealed(true).max_count(64));
    let mut merge = Merge::new().unwrap();
    let mut actors = Vec::new();
    let mut sources = Vec::new();
    for _ in 0..2 {
        let (greedy, channel) = meet("fills", &options);
        let (sender, receiver) = channel.split();
        sources.push((merge.add(receiver).unwrap(), sender));
        greedy.expect("sent");
        actors.push(greedy);
    }
    let mut seen = Vec::new();
    while seen.len() < 100 {
        let count = merge.receive_each(|from, _| seen.push(from), 100).unwrap();
        assert_eq!(count, 1);
        merge.attachments();
    }
    for (key, _) in &sources {
        assert!(seen.contains(key), "one source has had every turn");
    }
    drop(actors);
}

#[test]
fn sender_waits_while_the_line_is_full() {
    let accepted = Attachments::none().descriptors(true).max_count(1024);
    let options = Options::new().capacity(1 << 20).attachments(accepted);
    let (mut reads, channel) = meet("reads a thousand", &options);
    let (mut sender, _receiver) = channel.split();
    reads.expect("joined");
    let (_end, pipe) = nix::unistd::pipe().unwrap();
    let mut sent = 0;
    while sender.send_part_with(b"x", &[pipe.as_fd().into()]).unwrap() == ringfence::Progress::Whole {
        sent += 1;
    }
    assert!((64..1024).contains(&sent), "{sent}");
    reads.proceed();
    for _ in sent..1000 {
        sender.send_with(b"x", &[pipe.as_fd().into()]).unwrap();
    }
    reads.finish();
}

#[test]
fn next_size_keeps_the_current_attachments() {
    let (mut laps, channel) = meet("fills a lap", &all_kinds());
    let (_sender, mut receiver) = channel.split();
    laps.expect("sent");
    let mut into = [0; 1500];
    assert_eq!(receiver.try_receive(&mut into).unwrap(), Some(1500));
    laps.proceed();
    laps.expect("sent");
    assert_eq!(receiver.try_receive(&mut into).unwrap(), Some(1500));
    assert_eq!(receiver.next_size().unwrap(), Some(1501), "behind the padding");
    assert_eq!(into_sealed(receiver.attachments()).len(), 1);
    laps.proceed();
    laps.finish();
}

#[test]
fn dropped_receiver_closes_unread_attachments() {
    let (address, _directory) = fresh_address(false);
    let mut drops = Actor::start("drops its receiver", &[&address.to_string()]);
    wait_for_host(&address);
    let (mut sender, _receiver) = join(&address, &all_kinds()).unwrap().split();
    let (end, pipe) = nix::unistd::pipe().unwrap();
    sender.send_with(b"x", &[pipe.as_fd().into()]).unwrap();
    sender.send_with(b"x", &[pipe.as_fd().into()]).unwrap();
    drop(pipe);
    drops.proceed();
    drops.expect("dropped");
    let mut rest = Vec::new();
    File::from(end).read_to_end(&mut rest).unwrap();
    assert_eq!(rest, [], "the pipe is closed");
    drops.proceed();
    drops.finish();
}

/// Joins "holds" twice, and plays `second` as its second peer.
fn with_holder(role: &str, second: impl FnOnce(&Address)) {
    let (address, _directory) = fresh_address(false);
    let mut holder = Actor::start("holds", &[&address.to_string(), role]);
    wait_for_host(&address);
    let first = join(&address, &all_kinds()).unwrap();
    holder.expect("joined");
    holder.proceed();
    holder.expect("again");
    drop(first);
    wait_for_host(&address);
    second(&address);
    holder.finish();
}

#[test]
fn unread_and_untaken_attachments_are_closed() {
    with_holder("takes", |address| {
        let (mut sender, _receiver) = join(address, &all_kinds()).unwrap().split();
        let (_end, pipe) = nix::unistd::pipe().unwrap();
        for number in 0..20 {
            let buffer = buffer(number);
            let attached = [pipe.as_fd().into(), (&buffer).into()];
            sender.send_with(b"x", &attached).unwrap();
        }
    });
    for violation in [
        "sends a descriptor and dies",
        "sends a descriptor with a wakeup",
        "sends more than the limit",
        "sends a cut parcel",
        "announces too many attachments",
        "states another size",
    ] {
        with_holder("reads", |address| {
            let mut hostile = Actor::start("hostile", &[&address.to_string(), violation]);
            if violation != "sends a descriptor and dies" {
                hostile.proceed();
            }
            hostile.finish();
        });
    }
}

#[test]
fn killed_receiver_leaves_no_attachment_open() {
    let (mut killed, channel) = meet("is killed", &all_kinds());
    let (mut sender, receiver) = channel.split();
    let (end, pipe) = nix::unistd::pipe().unwrap();
    // One is taken, one is received and not taken, and one is not read.
    for _ in 0..3 {
        sender.send_with(b"x", &[pipe.as_fd().into()]).unwrap();
    }
    drop(pipe);
    killed.expect("received");
    killed.kill();
    drop((sender, receiver));
    let mut rest = Vec::new();
    File::from(end).read_to_end(&mut rest).unwrap();
    assert_eq!(rest, []);
}

#[test]
fn spliced_memory_cannot_be_sealed() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let found = SealedBuffer::create(4096, |bytes| {
        let piece = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: the pages stay mapped during the call. The pipe then shares them, which is what is tested.
        let spliced = unsafe { libc::vmsplice(writer.as_raw_fd(), &raw const piece, 1, 0) };
        assert_eq!(spliced, 4096);
    });
    let error = found.unwrap_err();
    assert_eq!(error.code(), "INVALID_ARGUMENT", "{error}");
    drop(reader);
}

/// Registers this memory with io_uring(7), which then may write it at any time. `None`: this system does not allow it.
fn register_with_io_uring(bytes: &[u8]) -> Option<OwnedFd> {
    const REGISTER_BUFFERS: libc::c_uint = 0;
    let mut parameters = [0_u32; 30];
    // SAFETY: the kernel reads and writes the 120 bytes of the parameters.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    // SAFETY: the kernel has just made it.
    let ring = (ring >= 0).then(|| unsafe { OwnedFd::from_raw_fd(i32::try_from(ring).unwrap()) })?;
    let piece = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: the kernel reads one iovec, and pins its pages, whose mapping outlives the ring in no test that writes by it.
    let registered = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            REGISTER_BUFFERS,
            &raw const piece,
            1,
        )
    };
    (registered == 0).then_some(ring)
}

#[test]
fn memory_registered_with_io_uring_cannot_be_sealed() {
    let mut ring = None;
    let found = SealedBuffer::create(4096, |bytes| ring = register_with_io_uring(bytes));
    if ring.is_some() {
        let error = found.unwrap_err();
        assert_eq!(error.code(), "INVALID_ARGUMENT", "{error}");
    }
    let sound = SealedBuffer::create(4096, |_| {}).unwrap();
    assert!(register_with_io_uring(&sound).is_none(), "a read-only mapping");
}
