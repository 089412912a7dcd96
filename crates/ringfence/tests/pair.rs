//! A channel between two processes: connecting, exchanging messages, and every kind of end.

mod support;

use std::{
    os::unix::fs::{FileTypeExt, MetadataExt},
    time::{Duration, Instant},
};

use ringfence::{Address, Backing, CloseReason, Error, Outcome, Role, join};
use support::{Actor, assert_lost, fresh_address, join_later, report, small, wait_for_host, wait_for_test};

/// A message whose bytes depend on its number.
fn message(number: u64, size: usize) -> Vec<u8> {
    (0..size as u64)
        .map(|at| (number.wrapping_mul(31) + at.wrapping_mul(7)).to_le_bytes()[0])
        .collect()
}

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    let backing: Backing = arguments
        .get(1)
        .map_or(Backing::Memfd, |text| text.parse().unwrap());
    let options = small().backing(backing);
    match role.as_str() {
        "echo" => {
            let channel = join(&address, &options).unwrap();
            report(channel.role().to_string());
            let (mut sender, mut receiver) = channel.split();
            let mut buffer = vec![0; 1 << 20];
            while let Some(length) = receiver.receive(&mut buffer).unwrap() {
                sender.send(&buffer[..length]).unwrap();
            }
            sender.end();
            report("ended");
        }
        "try" => match join(&address, &options) {
            Ok(channel) => {
                report(channel.role().to_string());
                wait_for_test();
            }
            Err(error) => report(error.code()),
        },
        "flood" => {
            let (mut sender, _receiver) = join(&address, &options).unwrap().split();
            // Small messages that fit. The peer does not read them before this process is dead.
            let mut sent = 0;
            while sender.try_send(&message(sent, 100)).unwrap() {
                sent += 1;
            }
            report(sent.to_string());
            wait_for_test();
        }
        "many joins" => {
            let rounds: u32 = arguments[2].parse().unwrap();
            for _ in 0..rounds {
                let (_sender, mut receiver) = join(&address, &options.clone().wait(true)).unwrap().split();
                assert_eq!(receiver.receive(&mut [0; 8]).unwrap(), None);
            }
        }
        other => unreachable!("{other}"),
    }
}

#[test]
fn messages_pass_over_each_backing_and_address_kind() {
    for backing in [Backing::Memfd, Backing::Shm] {
        for named in [true, false] {
            let (address, keep) = fresh_address(named);
            let partner = Actor::start("echo", &[&address.to_string(), &backing.to_string()]);
            wait_for_host(&address);
            if let Some(path) = address.as_path() {
                let file = std::fs::symlink_metadata(path).unwrap();
                assert!(file.file_type().is_socket());
                assert_eq!(file.mode() & 0o777, 0o600);
            }
            let channel = join(&address, &small().backing(backing)).unwrap();
            assert_eq!(channel.role(), Role::Guest);
            partner.expect("host");
            let steps: Vec<_> = channel.evidence().iter().map(|evidence| evidence.step).collect();
            for pair in [
                "rendezvous",
                "credentials",
                "executable",
                "hello",
                "object",
                "final",
                "ready",
            ]
            .windows(2)
            {
                let first = |step| steps.iter().position(|found| *found == step).unwrap();
                assert!(first(pair[0]) < first(pair[1]), "{steps:?}");
            }
            let mut outcomes = channel.evidence().iter().map(|evidence| evidence.outcome);
            assert!(outcomes.any(|outcome| outcome == Outcome::Passed));
            let (mut sender, mut receiver) = channel.split();
            let mut buffer = vec![0; 1 << 20];
            // From empty to many times the ring, so that some are sent in fragments. Both directions run at
            // once.
            for size in [0, 1, 7, 8, 100, 2047, 2048, 2049, 4096, 100_000, 1 << 20] {
                let sent = message(size as u64, size);
                let part = std::thread::scope(|scope| {
                    scope.spawn(|| sender.send(&sent).unwrap());
                    receiver.receive(&mut buffer).unwrap().unwrap()
                });
                assert_eq!(&buffer[..part], &sent[..]);
            }
            sender.end();
            assert_eq!(receiver.receive(&mut buffer).unwrap(), None);
            partner.expect("ended");
            assert_eq!(
                receiver.close_reason(),
                Some(CloseReason::Closed),
                "both had ended"
            );
            partner.finish();
            if let Some(directory) = keep {
                assert_eq!(
                    std::fs::read_dir(directory.path()).unwrap().count(),
                    0,
                    "nothing is left behind"
                );
            }
        }
    }
}

#[test]
fn third_process_is_refused_at_once() {
    for named in [true, false] {
        let (address, _keep) = fresh_address(named);
        let host = join_later(&address, &small());
        wait_for_host(&address);
        assert!(
            matches!(join(&address, &small()), Err(Error::AddressOccupied { .. })),
            "of one process"
        );
        let mut guest = Actor::start("try", &[&address.to_string()]);
        guest.expect("guest");
        let channel = host.join().unwrap().unwrap();
        let started = Instant::now();
        let third = Actor::start("try", &[&address.to_string()]);
        third.expect("ADDRESS_OCCUPIED");
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "{:?}",
            started.elapsed()
        );
        third.finish();
        assert!(
            matches!(join(&address, &small()), Err(Error::AddressOccupied { .. })),
            "of one process, paired"
        );
        channel.close();
        guest.proceed();
        guest.finish();
        // The address is free again, for the first of the two to arrive.
        let next = Actor::start("try", &[&address.to_string()]);
        let channel = join(&address, &small()).unwrap();
        next.expect(match channel.role() {
            Role::Host => "guest",
            Role::Guest => "host",
        });
    }
}

#[test]
fn committed_messages_of_a_killed_peer_are_read() {
    for backing in ["memfd", "shm"] {
        let (address, _keep) = fresh_address(false);
        let host = join_later(&address, &small().backing(backing.parse().unwrap()));
        wait_for_host(&address);
        let mut flood = Actor::start("flood", &[&address.to_string(), backing]);
        let sent: u64 = flood.next_line().parse().unwrap();
        assert!(sent > 10, "{sent}");
        flood.kill();
        let (mut sender, mut receiver) = host.join().unwrap().unwrap().split();
        let mut buffer = [0; 4096];
        for number in 0..sent {
            let length = receiver.receive(&mut buffer).unwrap().expect("a message");
            assert_eq!(&buffer[..length], &message(number, 100)[..]);
        }
        assert_lost(receiver.receive(&mut buffer));
        assert_eq!(receiver.close_reason(), Some(CloseReason::Lost));
        assert!(matches!(sender.try_send(b"x"), Err(Error::PeerLost(_))));
    }
}

#[test]
fn stale_socket_is_replaced_and_other_files_are_not() {
    let (address, keep) = fresh_address(true);
    let mut host = Actor::start("try", &[&address.to_string()]);
    wait_for_host(&address);
    host.kill();
    let path = address.as_path().unwrap();
    assert!(path.exists(), "the dead host's socket is still there");
    let next = join_later(&address, &small());
    let partner = Actor::start("try", &[&address.to_string()]);
    let role = next.join().unwrap().unwrap().role().to_string();
    assert_ne!(partner.next_line(), role, "one host and one guest");
    drop(partner);

    let file = keep.as_ref().unwrap().path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let error = join(&Address::path(&file).unwrap(), &small()).unwrap_err();
    assert_eq!(error.code(), "ADDRESS_INVALID");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    let error = join(&Address::path("/nowhere/at/all").unwrap(), &small()).unwrap_err();
    assert_eq!(error.code(), "ADDRESS_INVALID");
}

#[test]
fn racing_joins_on_a_stale_socket_form_one_pair() {
    const ROUNDS: u32 = 1000;
    let (address, _keep) = fresh_address(true);
    let other = Actor::start(
        "many joins",
        &[&address.to_string(), "memfd", &ROUNDS.to_string()],
    );
    let path = address.as_path().unwrap().to_owned();
    for round in 0..ROUNDS {
        // The leftovers of a killed host: a socket at which no process listens. Only if neither process has
        // arrived yet.
        if round % 10 == 0 && !path.exists() {
            let _ = std::os::unix::net::UnixListener::bind(&path);
        }
        let channel = join(&address, &small().wait(true)).unwrap();
        assert_eq!(channel.peer().pid, other.pid(), "round {round}");
        channel.close();
    }
    other.finish();
    assert!(!path.exists());
}

#[test]
fn open_channel_has_two_mappings_and_no_object_fds() {
    for backing in ["memfd", "shm"] {
        let (address, _keep) = fresh_address(false);
        let host = join_later(&address, &small().backing(backing.parse().unwrap()));
        wait_for_host(&address);
        let mut guest = Actor::start("try", &[&address.to_string(), backing]);
        guest.expect("guest");
        let channel = host.join().unwrap().unwrap();
        let folder = format!("/proc/{}", guest.pid());
        let links = std::fs::read_dir(format!("{folder}/fd")).unwrap();
        let targets: Vec<_> = links
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .collect();
        let object = |text: &str| text.contains("memfd:ringfence") || text.contains("/dev/shm/ringfence");
        assert!(
            !targets.iter().any(|target| object(&target.display().to_string())),
            "{targets:?}"
        );
        let maps = std::fs::read_to_string(format!("{folder}/maps")).unwrap();
        let mut access: Vec<_> = maps
            .lines()
            .filter(|line| object(line))
            .filter_map(|line| line.split(' ').nth(1))
            .collect();
        access.sort_unstable();
        assert_eq!(access, ["r--s", "rw-s"], "its own to write, the peer's to read");
        guest.proceed();
        guest.finish();
        drop(channel);
    }
}

#[test]
fn reservations_batches_and_packed_records_keep_order() {
    let (address, _keep) = fresh_address(false);
    let partner = Actor::start("echo", &[&address.to_string()]);
    wait_for_host(&address);
    let (mut sender, mut receiver) = join(&address, &small()).unwrap().split();
    let mut expected = Vec::new();
    for number in 0..500_u64 {
        let size = usize::try_from(number % 90).unwrap();
        let text = message(number, size);
        match number % 4 {
            0 => while !sender.try_send(&text).unwrap() {},
            1 => loop {
                if let Some(mut reservation) = sender.reserve(size + 5).unwrap() {
                    reservation[..size].copy_from_slice(&text);
                    reservation.commit(size).unwrap();
                    break;
                }
            },
            2 => {
                // A reservation that is dropped sends nothing.
                assert!(sender.reserve(50).unwrap().is_some());
                let mut batch = sender.batch().unwrap();
                while !batch.push(&text).unwrap() {}
            }
            _ => {
                let mut packed = u64::from(3_u32)
                    .wrapping_shl(32)
                    .wrapping_add(size as u64)
                    .to_le_bytes()
                    .to_vec();
                packed.extend_from_slice(&text);
                packed.resize(packed.len().next_multiple_of(8), 0);
                while sender.try_send_packed(&packed).unwrap() == 0 {}
            }
        }
        expected.push(text);
        // Read along the way, or both rings would fill up.
        let mut buffer = [0; 200];
        let length = receiver.receive(&mut buffer).unwrap().unwrap();
        assert_eq!(&buffer[..length], &expected[usize::try_from(number).unwrap()][..]);
    }
    let reserved = sender.reserve_detached(10).unwrap().unwrap();
    assert!(
        matches!(sender.try_send(b"x"), Err(Error::InvalidArgument(_))),
        "one reservation at a time"
    );
    sender.cancel(reserved).unwrap();
    assert!(matches!(
        sender.try_send(&[0; 2049]),
        Err(Error::MessageTooLarge { limit: 2048, .. })
    ));
    assert!(
        sender.try_send(&[0; 2048]).unwrap(),
        "half the ring always fits an empty one"
    );
    sender.close();
    assert!(matches!(sender.try_send(b"x"), Err(Error::Closed(_))));
    assert!(matches!(receiver.try_receive(&mut [0; 8]), Err(Error::Closed(_))));
    drop(partner);
}
