//! The ring in huge pages: where the kernel gives them both sides have them, and where it does not the channel works.

mod support;

use std::fs;

use ringfence::{Address, Backing, Channel, Options, Status, doctor, join};
use support::{Actor, PATIENCE, fresh_address, say, wait_for_host, wait_for_test};

/// Two huge pages and a bit, where those have 2 MiB.
const CAPACITY: u64 = 4 << 20;

fn options(backing: &str, huge_pages: bool) -> Options {
    Options::new()
        .backing(backing.parse().unwrap())
        .capacity(if huge_pages { CAPACITY } else { 4096 })
        .timeout(PATIENCE)
        .huge_pages(huge_pages)
}

/// Whether this kernel gives huge pages to whoever asks, as far as it says so itself.
fn is_offered() -> bool {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let version = read("/proc/sys/kernel/osrelease");
    let numbers: Vec<u32> = version
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|part| part.parse().ok())
        .collect();
    let rule = read("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    numbers >= vec![6, 1] && !rule.is_empty() && !rule.contains("[deny]")
}

/// What the evidence says of huge pages.
fn evidence(channel: &Channel) -> Option<&str> {
    let all = channel.evidence().iter();
    all.filter(|evidence| evidence.check == "huge pages")
        .map(|evidence| evidence.found.as_str())
        .next()
}

/// Bytes of this process's rings that are mapped as huge pages, as the kernel tells.
fn mapped() -> u64 {
    let text = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut ours = false;
    let mut sum = 0;
    for line in text.lines() {
        let first = line.split(' ').next().unwrap();
        if !first.ends_with(':') {
            ours = line.contains("/memfd:ringfence ") || line.contains("/dev/shm/ringfence-");
        } else if ours && first == "ShmemPmdMapped:" {
            let number = line.split_whitespace().nth(1).unwrap();
            sum += number.parse::<u64>().unwrap() << 10;
        }
    }
    sum
}

/// The other processes of these tests: each tells what its evidence says, and what it has mapped, and sends back what comes.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    if role == "without" {
        nix::sys::prctl::set_thp_disable(true).unwrap();
    }
    let address: Address = arguments[0].parse().unwrap();
    let channel = join(&address, &options(&arguments[1], arguments[2] == "asks")).unwrap();
    say(evidence(&channel).unwrap_or("not asked for"));
    say(mapped().to_string());
    let (mut sender, mut receiver) = channel.split();
    let mut buffer = vec![0; 1 << 20];
    while let Some(length) = receiver.receive(&mut buffer).unwrap() {
        sender.send(&buffer[..length]).unwrap();
    }
    wait_for_test();
}

/// Sends more than the ring holds, and has it come back.
fn talk(channel: Channel) {
    let (mut sender, mut receiver) = channel.split();
    let mut buffer = vec![0; 1 << 20];
    for number in 0..10_u8 {
        let sent = vec![number; (1 << 20) - usize::from(number)];
        let length = std::thread::scope(|scope| {
            scope.spawn(|| sender.send(&sent).unwrap());
            receiver.receive(&mut buffer).unwrap().unwrap()
        });
        assert!(buffer[..length] == sent, "{number}");
    }
    sender.end();
}

/// One test, since it looks at all that this process has mapped.
#[test]
fn whoever_asks_has_huge_pages_where_the_kernel_gives_them_and_a_peer_that_asks_too_maps_them_as_such() {
    if support::role().is_some() {
        return;
    }
    let offered = is_offered();
    let diagnosis = doctor();
    let finding = diagnosis
        .findings
        .iter()
        .find(|finding| finding.name == "huge-pages");
    assert_eq!(finding.unwrap().status == Status::Good, offered, "{finding:?}");
    for backing in [Backing::Memfd, Backing::Shm].map(|backing| backing.to_string()) {
        // Asked for by this side, by the other, by nobody and by both.
        for (here, there) in [(true, false), (false, true), (false, false), (true, true)] {
            let (address, _keep) = fresh_address(false);
            let asks = if there { "asks" } else { "does not" };
            let mut partner = Actor::start("echo", &[&address.to_string(), &backing, asks]);
            wait_for_host(&address);
            let channel = join(&address, &options(&backing, here)).unwrap();
            let own = evidence(&channel).map(str::to_owned);
            let said = partner.hear();
            let (here_mapped, there_mapped) = (mapped(), partner.hear().parse::<u64>().unwrap());
            assert_eq!(own.is_some(), here);
            assert_eq!(said != "not asked for", there);
            let found = own.unwrap_or(said);
            let bytes = found.split(' ').next().unwrap().parse().unwrap_or(0);
            // Each maps both rings, and where only one has asked, its own alone as huge pages.
            let expected = |asks: bool, other: bool| bytes * (u64::from(asks) + u64::from(asks && other));
            assert_eq!(
                here_mapped,
                expected(here, there),
                "{backing}, {here} and {there}: {found}"
            );
            assert_eq!(
                there_mapped,
                expected(there, here),
                "{backing}, {there} and {here}: {found}"
            );
            if here || there {
                assert_eq!(bytes > 0, offered, "{found}");
                assert!(offered || found.starts_with("none: "), "{found}");
            }
            talk(channel);
            partner.go_on();
            partner.finish();
        }
    }
}

#[test]
fn where_huge_pages_are_forbidden_the_evidence_says_so_and_the_channel_works() {
    if support::role().is_some() {
        return;
    }
    for backing in [Backing::Memfd, Backing::Shm].map(|backing| backing.to_string()) {
        let (address, _keep) = fresh_address(false);
        let mut partner = Actor::start("without", &[&address.to_string(), &backing, "asks"]);
        wait_for_host(&address);
        let channel = join(&address, &options(&backing, false)).unwrap();
        let found = partner.hear();
        assert!(found.starts_with("none: "), "{found}");
        partner.expect("0");
        talk(channel);
        partner.go_on();
        partner.finish();
    }
}
