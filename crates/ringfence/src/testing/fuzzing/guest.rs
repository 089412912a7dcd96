//! A whole handshake with a host that says anything, and passes anything: this side is the guest. A guest refuses a host that is itself,
//! so the host is a process of its own, this very executable, which draws from the same bytes.

use std::{
    fs::File,
    io::IoSliceMut,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use arbitrary::{Result, Unstructured};
use nix::{
    cmsg_space,
    errno::Errno,
    fcntl::OFlag,
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType, recvmsg,
        sendmsg, shutdown, socketpair,
    },
    unistd::getppid,
};

use super::{
    handshake::{OWN, Said, frame_on, hello, offer, other, say},
    object::{Drawn, odd},
};
use crate::{
    evidence::Record,
    handshake::frame::{Frame, Meeting, Nonce},
    handshake::line::settle_new_line,
    handshake::side::Side,
    memory::backing::Backing,
    memory::layout::CAPACITY_MIN,
    options::{MAX_MESSAGE_SIZE, Options},
    rendezvous::address::Address,
    signal::inbox::TokenAddress,
    sys,
    wait::deadline::Deadline,
};

/// In the environment of the host: the folder of its files.
const FOLDER: &str = "RINGFENCE_FUZZED_HOST";

/// What a guest comes for, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comes {
    /// As the one of a pair, as an agent, or as a child.
    For(Meeting),
    /// As a member, at a path or at an abstract name.
    AsMember { at_path: bool },
    /// As a subscriber.
    Subscribing,
}

impl Comes {
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

/// What a host says and passes in a handshake. Where all of it is as it should be there is a channel, and else none, whatever else is
/// wrong with it.
pub fn guest(bytes: &[u8]) {
    static HOST: Mutex<Option<Host>> = Mutex::new(None);
    // A message of nothing could not be told from the end.
    if bytes.is_empty() {
        return;
    }
    let mut host = HOST.lock().expect("no panic before");
    let host = host.get_or_insert_with(Host::start);
    let Some(Begun {
        stream,
        comes,
        backing,
        wrong,
    }) = host.begin(bytes)
    else {
        return;
    };
    let options = Options::new().capacity(CAPACITY_MIN).backing(backing);
    let options = options.checked().expect("options");
    let address = match comes {
        Comes::AsMember { at_path: true } => at_path(&host.folder),
        _ => by_name(&host.folder),
    };
    // Nothing waits for it: the host's ends are closed where it says no more.
    let deadline = Deadline::endless(Vec::new(), Duration::from_secs(600));
    let side = Side::new(&address, &options, &deadline, comes.meeting());
    let side = match comes {
        Comes::For(_) => side,
        Comes::AsMember { .. } => side.inheriting(&address),
        Comes::Subscribing => side.subscribing(),
    };
    match (side.guest(stream, Record::default()), wrong.as_deref()) {
        (Ok(Some(_)), None) | (Ok(None), Some(_)) => {}
        (Ok(Some(_)), Some(wrong)) => panic!("a channel, though {wrong} was wrong: {comes:?}"),
        (Ok(None), None) => panic!("it has gone, though nothing was wrong: {comes:?}"),
        (Err(error), None) => panic!("{error}, though nothing was wrong: {comes:?}"),
        (Err(error), Some(_)) => {
            let shown = error.to_string();
            assert!(
                !shown.chars().any(char::is_control),
                "a terminal could be steered by {shown:?}"
            );
        }
    }
}

fn at_path(folder: &Path) -> Address {
    let path = folder.join("socket");
    path.to_str().expect("text").parse().expect("an address")
}

fn by_name(folder: &Path) -> Address {
    format!("@{}", folder.display()).parse().expect("an address")
}

/// The process of the host, as its guest has it.
struct Host {
    control: OwnedFd,
    folder: PathBuf,
    /// It ends, and takes its folder away, once `control` is closed, which is at the end of this process.
    process: Child,
}

/// A handshake that the host has begun.
struct Begun {
    stream: OwnedFd,
    comes: Comes,
    backing: Backing,
    wrong: Option<String>,
}

impl Host {
    fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("ringfence-fuzzed-{}", std::process::id()));
        let (control, theirs) = pair_of(SockType::SeqPacket);
        let mut command = Command::new(std::env::current_exe().expect("this executable"));
        #[cfg(test)]
        command.args([
            "--exact",
            "testing::fuzzing::tests::a_host_of_its_own",
            "--nocapture",
        ]);
        let process = command
            .env(FOLDER, &folder)
            .stdin(theirs)
            .stdout(Stdio::null())
            .spawn()
            .expect("a process");
        Self {
            control,
            folder,
            process,
        }
    }

    /// `None`: it has drawn what this kernel does not make, or the bytes were too few.
    fn begin(&mut self, bytes: &[u8]) -> Option<Begun> {
        let flags = MsgFlags::MSG_NOSIGNAL;
        let number = self.control.as_raw_fd();
        let sent = sys::uninterrupted(|| nix::sys::socket::send(number, bytes, flags));
        let heard = sent.ok().and_then(|_| hear(&self.control));
        let (said, stream) = heard.unwrap_or_default();
        let (comes, backing, wrong) = match said[..] {
            [] => panic!("the host has gone: {:?}", self.process.wait()),
            [comes, backing, ref wrong @ ..] => (comes, backing, wrong),
            [_] => return None,
        };
        let wrong = String::from_utf8(wrong.to_vec()).expect("text");
        Some(Begun {
            stream: stream.expect("one end of the line"),
            comes: Comes::ALL[usize::from(comes)],
            backing: Backing::from_number(backing.into()).expect("a backing"),
            wrong: (!wrong.is_empty()).then_some(wrong),
        })
    }
}

fn pair_of(kind: SockType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).expect("a pair")
}

/// One message, and the descriptor that came with it. `None`: the other side has gone.
fn hear(control: &OwnedFd) -> Option<(Vec<u8>, Option<OwnedFd>)> {
    let mut into = vec![0; 1 << 17];
    let mut space = cmsg_space!(std::os::fd::RawFd);
    let mut slices = [IoSliceMut::new(&mut into)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    // The fuzzer's clock sends signals.
    let heard = loop {
        match recvmsg::<()>(control.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            other => break other.ok()?,
        }
    };
    let descriptor = heard.cmsgs().ok()?.find_map(|message| match message {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made this descriptor for this process, and nothing else knows of it.
    let descriptor = descriptor.map(|number| unsafe { std::os::fd::FromRawFd::from_raw_fd(number) });
    let length = heard.bytes;
    into.truncate(length);
    Some((into, descriptor))
}

/// To be called before anything else: in the process of the host it plays that one, and does not return.
pub fn host_if_asked() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let folder = PathBuf::from(folder);
    std::fs::create_dir(&folder).expect("a folder");
    let places = Places::at(&folder);
    let control = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .expect("a descriptor");
    while let Some((bytes, _)) = hear(&control).filter(|(bytes, _)| !bytes.is_empty()) {
        let flags = MsgFlags::MSG_NOSIGNAL;
        let reply = |said: &[u8], passed: &[ControlMessage<'_>]| {
            let slices = [std::io::IoSlice::new(said)];
            let _ = sendmsg::<()>(control.as_raw_fd(), &slices, passed, flags, None);
        };
        let Ok(Some(script)) = Script::take(&mut Unstructured::new(&bytes), &places) else {
            reply(&[0], &[]);
            continue;
        };
        let (agreed, theirs) = pair_of(SockType::Stream);
        settle_new_line(&agreed).expect("SO_PASSCRED");
        let comes = Comes::ALL.iter().position(|comes| *comes == script.comes);
        let mut said = vec![u8::try_from(comes.expect("one of them")).expect("few")];
        said.push(u8::try_from(script.backing.number()).expect("a small number"));
        said.extend(script.wrong.unwrap_or_default().as_bytes());
        reply(&said, &[ControlMessage::ScmRights(&[theirs.as_raw_fd()])]);
        drop(theirs);
        script.talk(agreed);
    }
    std::fs::remove_dir_all(&folder).expect("what it has made");
    std::process::exit(0);
}

/// What a host among members holds, and what it could pass instead.
struct Places {
    at_path: [OwnedFd; 2],
    by_name: OwnedFd,
    /// The lock's file, opened anew: it has no lock.
    unlocked: OwnedFd,
    /// The lock's file as a path alone.
    path_alone: OwnedFd,
    /// Another file, locked.
    other_lock: OwnedFd,
    other_listener: OwnedFd,
    folder: OwnedFd,
}

impl Places {
    fn at(folder: &Path) -> Self {
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

    /// What goes with READY, and whether it is what should.
    fn shares(&self, comes: Comes, script: &mut Unstructured<'_>) -> Result<(Vec<OwnedFd>, bool)> {
        let own: Vec<&OwnedFd> = match comes {
            Comes::AsMember { at_path: true } => self.at_path.iter().collect(),
            Comes::AsMember { at_path: false } => vec![&self.by_name],
            Comes::For(_) | Comes::Subscribing => Vec::new(),
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

/// Everything that the host will say, but for the nonce that it has to answer.
struct Script {
    comes: Comes,
    backing: Backing,
    frames: [Said; 3],
    /// Whether HELLO, OFFER and READY answer the guest's nonce.
    answers: [bool; 3],
    /// What is said on the agreed socket in place of a HELLO on the line.
    turned_away: Option<Said>,
    /// With HELLO.
    extra: Option<OwnedFd>,
    objects: Vec<Drawn>,
    /// With READY.
    shares: Vec<OwnedFd>,
    /// After so many frames it leaves.
    leaves: usize,
    wrong: Option<&'static str>,
}

impl Script {
    /// `None`: this kernel makes no such thing.
    fn take(script: &mut Unstructured<'_>, places: &Places) -> Result<Option<Self>> {
        let comes = *script.choose(&Comes::ALL)?;
        let subscribes = comes == Comes::Subscribing;
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
        // The objects come last. They take the most bytes, and have a target of their own.
        let (shares, sound) = places.shares(comes, script)?;
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
        let hello = hello(script, CAPACITY_MIN, backing, comes.meeting())?;
        // Its echo is the answer to the guest's.
        answers[0] &= hello.echo == Nonce::default();
        judge(answers[0], "HELLO's echo");
        judge(hello.capacity == CAPACITY_MIN, "HELLO's capacity");
        let most = if subscribes { 64 << 20 } else { MAX_MESSAGE_SIZE };
        judge((1..=most).contains(&hello.longest), "its longest message");
        judge(hello.backing == backing.number(), "its backing");
        judge(hello.meeting == comes.meeting().number(), "its meeting");
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
            // OFFER states the size of the ring alone.
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
            comes,
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
        let Some((Frame::Hello(hello), mut line)) = frame_on(&agreed, guest) else {
            return;
        };
        if let Some(said) = &self.turned_away {
            return say(&agreed, said, &[]);
        }
        let Some(line) = line.pop() else {
            return;
        };
        settle_new_line(&line).expect("SO_PASSCRED");
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
        // It says no more, and hears the guest out.
        let _ = shutdown(line.as_raw_fd(), Shutdown::Write);
        while frame_on(&line, guest).is_some() {}
    }
}
