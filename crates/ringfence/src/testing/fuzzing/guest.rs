//! A whole handshake with a host that sends and passes anything. This side is the guest.

use std::{
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    path::Path,
    sync::Mutex,
    time::Duration,
};

use arbitrary::{Result, Unstructured};
use nix::{
    fcntl::OFlag,
    sys::socket::{Shutdown, SockType, shutdown},
    unistd::getppid,
};

use super::{
    beside::{PeerProcess, Play, judge, pair_of},
    handshake::{OWN, Said, frame_on, hello, offer, other, say},
    object::{Drawn, odd},
};
use crate::{
    address::Address,
    evidence::EvidenceLog,
    handshake::frame::{Frame, LACKS_MEMORY, Meeting, Nonce},
    handshake::line::prepare_new_socket,
    handshake::parts::Side,
    options::{MAX_MESSAGE_SIZE, Options},
    region::create::Backing,
    region::layout::CAPACITY_MIN,
    signal::inbox::TokenAddress,
    sys,
    wait::deadline::Deadline,
    wake::attachments::PeerSocket,
};

/// The purpose for which a guest connects, and the kind of address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// As one of a pair, as a client, or as a child.
    For(Meeting),
    /// As a member, at a path or at an abstract name.
    AsMember { at_path: bool },
    /// As a subscriber.
    Subscribing,
}

impl Purpose {
    const ALL: [Self; 6] = [
        Self::For(Meeting::Pair),
        Self::For(Meeting::Service),
        Self::For(Meeting::Family),
        Self::AsMember { at_path: true },
        Self::AsMember { at_path: false },
        Self::Subscribing,
    ];

    fn meeting(self) -> Meeting {
        match self {
            Self::For(meeting) => meeting,
            Self::AsMember { .. } => Meeting::Membership,
            Self::Subscribing => Meeting::Broadcast,
        }
    }
}

/// Runs a handshake with a fuzzed host. If everything that the host sends and passes is sound there is a
/// channel, and otherwise none, whatever else is wrong.
pub fn guest(bytes: &[u8]) {
    static HOST: Mutex<Option<PeerProcess>> = Mutex::new(None);
    let mut host = HOST.lock().expect("no panic before");
    let host = host.get_or_insert_with(|| PeerProcess::start("host"));
    let Some(begun) = host.begin(bytes) else { return };
    let purpose = Purpose::ALL[begun.purpose];
    let options = Options::new().capacity(CAPACITY_MIN).backing(begun.backing);
    let options = options.checked().expect("options");
    let address = match purpose {
        Purpose::AsMember { at_path: true } => at_path(&host.folder),
        _ => by_name(&host.folder),
    };
    // The deadline never expires: the host closes its ends once it has finished.
    let deadline = Deadline::endless(Vec::new(), Duration::from_secs(600));
    let side = Side {
        inherits: matches!(purpose, Purpose::AsMember { .. }).then_some(&address),
        ..Side::new(&address, &options, &deadline, purpose.meeting())
    };
    let made = side.guest(
        PeerSocket::new(begun.stream).expect("memory"),
        EvidenceLog::default(),
    );
    judge(&made, begun.wrong.as_deref(), purpose);
}

fn at_path(folder: &Path) -> Address {
    let path = folder.join("socket");
    path.to_str().expect("text").parse().expect("an address")
}

fn by_name(folder: &Path) -> Address {
    format!("@{}", folder.display()).parse().expect("an address")
}

/// Draws the actions of the host's process.
pub(super) fn play(script: &mut Unstructured<'_>, places: &Places) -> Result<Option<Play>> {
    let script = Script::take(script, places)?;
    Ok(script.map(|script| Play {
        purpose: Purpose::ALL
            .iter()
            .position(|purpose| *purpose == script.purpose)
            .expect("one of them"),
        backing: script.backing,
        wrong: script.wrong,
        accepted: false,
        talk: Box::new(|agreed| script.talk(agreed)),
    }))
}

/// The descriptors that a host among members holds, and those that it could pass instead.
pub(super) struct Places {
    at_path: [OwnedFd; 2],
    by_name: OwnedFd,
    /// The lock's file, opened again: it holds no lock.
    unlocked: OwnedFd,
    /// The lock's file, opened as a path only (`O_PATH`).
    path_alone: OwnedFd,
    /// Another file, locked.
    other_lock: OwnedFd,
    other_listener: OwnedFd,
    folder: OwnedFd,
}

impl Places {
    pub(super) fn at(folder: &Path) -> Self {
        let open = |path: &Path| {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
        };
        let locked = |path: &Path| {
            let file = open(path).expect("a file");
            sys::file::lock_file(&file).expect("a lock");
            OwnedFd::from(file)
        };
        let lock = folder.join("socket.lock");
        let name = SocketAddr::from_abstract_name(folder.to_str().expect("text")).expect("a name");
        let listener = UnixListener::bind(folder.join("socket")).expect("a listener");
        let path_alone = nix::fcntl::open(
            folder,
            OFlag::O_PATH | OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        );
        Self {
            at_path: [listener.into(), locked(&lock)],
            by_name: UnixListener::bind_addr(&name).expect("a listener").into(),
            unlocked: open(&lock).expect("a file").into(),
            path_alone: path_alone.expect("a path"),
            other_lock: locked(&folder.join("other.lock")),
            other_listener: UnixListener::bind(folder.join("other"))
                .expect("a listener")
                .into(),
            folder: File::open(folder).expect("a folder").into(),
        }
    }

    /// The descriptors sent with READY, and whether they are the right ones.
    fn shares(&self, purpose: Purpose, script: &mut Unstructured<'_>) -> Result<(Vec<OwnedFd>, bool)> {
        let own: Vec<&OwnedFd> = match purpose {
            Purpose::AsMember { at_path: true } => self.at_path.iter().collect(),
            Purpose::AsMember { at_path: false } => vec![&self.by_name],
            Purpose::For(_) | Purpose::Subscribing => Vec::new(),
        };
        let copy = |which: &[&OwnedFd]| {
            which
                .iter()
                .map(|descriptor| descriptor.try_clone().expect("a descriptor"))
                .collect::<Vec<_>>()
        };
        if !odd(script)? {
            return Ok((copy(&own), true));
        }
        let mut instead = own.clone();
        let strange = [
            &self.unlocked,
            &self.path_alone,
            &self.other_lock,
            &self.other_listener,
            &self.folder,
        ];
        match script.int_in_range(0..=12)? {
            0 => instead.clear(),
            1 => instead.reverse(),
            2 => instead.push(&self.unlocked),
            at @ 3..=7 => {
                instead.pop();
                instead.push(strange[at - 3]);
            }
            at => {
                instead = instead.split_off(instead.len().min(1));
                instead.insert(0, strange[at - 8]);
            }
        }
        let same = instead.len() == own.len()
            && instead
                .iter()
                .zip(&own)
                .all(|(one, other)| std::ptr::eq(*one, *other));
        Ok((copy(&instead), same))
    }
}

/// Everything that the host will send, except for the nonce that it must echo.
struct Script {
    purpose: Purpose,
    backing: Backing,
    frames: [Said; 3],
    /// Whether HELLO, OFFER and READY echo the guest's nonce.
    answers: [bool; 3],
    /// The frame sent on the agreed socket instead of a HELLO on the line.
    turned_away: Option<Said>,
    /// A descriptor sent with HELLO.
    extra: Option<OwnedFd>,
    objects: Vec<Drawn>,
    /// The descriptors sent with READY.
    shares: Vec<OwnedFd>,
    /// The host disconnects after this many frames.
    leaves: usize,
    wrong: Option<&'static str>,
}

impl Script {
    /// `None`: this kernel supports no such object.
    fn take(script: &mut Unstructured<'_>, places: &Places) -> Result<Option<Self>> {
        let purpose = *script.choose(&Purpose::ALL)?;
        let subscribes = purpose == Purpose::Subscribing;
        let backing = if subscribes {
            Backing::Memfd
        } else {
            *script.choose(&[Backing::Memfd, Backing::Shm])?
        };
        let mut wrong = None;
        let mut judge = |sound: bool, what| {
            if !sound {
                wrong = wrong.or(Some(what));
            }
        };
        // The objects are drawn last. They use the most bytes, and have their own target.
        let (shares, sound) = places.shares(purpose, script)?;
        judge(sound, "what comes with READY");
        let leaves = if odd(script)? {
            script.int_in_range(0..=2)?
        } else {
            3
        };
        judge(leaves == 3, "when it leaves");
        let extra = if odd(script)? {
            Some(pair_of(SockType::Stream).0)
        } else {
            None
        };
        judge(extra.is_none(), "what comes with HELLO");
        let mut answers = [true; 3];
        if odd(script)? {
            answers[script.int_in_range(0..=2_usize)?] = false;
            judge(false, "an echo");
        }
        let hello = hello(script, CAPACITY_MIN, backing, purpose.meeting())?;
        // HELLO echoes the guest's nonce.
        answers[0] &= hello.echo == Nonce::default();
        judge(answers[0], "HELLO's echo");
        judge(hello.capacity == CAPACITY_MIN, "HELLO's capacity");
        let most = if subscribes { 64 << 20 } else { MAX_MESSAGE_SIZE };
        judge((1..=most).contains(&hello.longest), "its longest message");
        judge(hello.backing == backing.number(), "its backing");
        judge(hello.meeting == purpose.meeting().number(), "its meeting");
        let asks = purpose.meeting() == Meeting::Family && hello.features & LACKS_MEMORY != 0;
        judge(!asks, "the memory that it asks for");
        let mut offer = offer(script, CAPACITY_MIN, 0)?;
        judge(offer.capacity == CAPACITY_MIN, "OFFER's capacity");
        let TokenAddress { number, thread, .. } = offer.tokens;
        let reached = (32..=64).contains(&number) && (1..=i32::MAX.cast_unsigned()).contains(&thread);
        judge(number == 0 || reached, "its tokens");
        let instead = if odd(script)? {
            let at = script.int_in_range(0..=2_usize)?;
            Some((at, other(script, at)?))
        } else {
            None
        };
        judge(instead.is_none(), "a frame");
        let turned_away = if odd(script)? {
            Some(other(script, 0)?)
        } else {
            None
        };
        judge(turned_away.is_none(), "what it answers");
        let wanted = 1 + usize::from(subscribes);
        let count = if odd(script)? {
            script.int_in_range(0..=1)?
        } else {
            wanted
        };
        judge(count == wanted, "how many objects it passes");
        let Some(ring) = Drawn::of(script, backing, CAPACITY_MIN)? else {
            return Ok(None);
        };
        offer.size = ring.agreed.stated;
        wrong = wrong.or(ring.wrong);
        let mut objects = vec![ring];
        if subscribes {
            let Some(control) = Drawn::of(script, backing, 0)? else {
                return Ok(None);
            };
            // OFFER states only the size of the ring.
            wrong = wrong.or(control.wrong.filter(|wrong| *wrong != "stated size"));
            objects.insert(0, control);
        }
        objects.truncate(count);
        let ready = Frame::Ready(Nonce::default());
        let mut frames = [Frame::Hello(hello), Frame::Offer(offer), ready].map(Said::Frame);
        if let Some((at, said)) = instead {
            frames[at] = said;
        }
        Ok(Some(Self {
            purpose,
            backing,
            frames,
            answers,
            turned_away,
            extra,
            objects,
            shares,
            leaves,
            wrong,
        }))
    }

    fn talk(self, agreed: OwnedFd) {
        let guest = getppid().as_raw();
        if self.leaves == 0 {
            return;
        }
        let Some((Frame::Hello(hello), ends)) = frame_on(&agreed, guest) else {
            return;
        };
        if let Some(said) = &self.turned_away {
            return say(&agreed, said, &[]);
        }
        // A child passes its own end too, whose options its parent sets.
        for end in &ends {
            prepare_new_socket(end).expect("SO_PASSCRED");
        }
        let Some(line) = ends.into_iter().next() else {
            return;
        };
        drop(agreed);
        let objects: Vec<_> = self.objects.iter().map(|drawn| drawn.object.as_fd()).collect();
        let shares: Vec<_> = self.shares.iter().map(AsFd::as_fd).collect();
        let extra: Vec<_> = self.extra.iter().map(AsFd::as_fd).collect();
        let passed = [extra, objects, shares];
        for ((mut said, answers), passed) in self
            .frames
            .into_iter()
            .zip(self.answers)
            .zip(passed)
            .take(self.leaves)
        {
            let answer = if answers { hello.nonce } else { OWN };
            match &mut said {
                Said::Frame(Frame::Hello(own)) => own.echo = answer,
                Said::Frame(Frame::Offer(offer)) => offer.echo = answer,
                Said::Frame(Frame::Ready(echo)) => *echo = answer,
                _ => {}
            }
            say(&line, &said, &passed);
        }
        // The host sends nothing more, and reads until the guest is done.
        let _ = shutdown(line.as_raw_fd(), Shutdown::Write);
        while frame_on(&line, guest).is_some() {}
    }
}
