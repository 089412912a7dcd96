//! The other side of a handshake as a process of its own, this very executable, which draws from the same bytes: a side refuses a peer
//! that is itself.

use std::{
    io::{IoSlice, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use arbitrary::{Result, Unstructured};
use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
        socketpair,
    },
};

use super::{guest, host};
use crate::{handshake::line::settle_new_line, region::create::Backing, sys};

/// In the environment of the other process: what it plays.
const ROLE: &str = "RINGFENCE_FUZZED_PEER";
/// The same: the folder of its files.
const FOLDER: &str = "RINGFENCE_FUZZED_FOLDER";

/// The other process, as this one has it.
pub(super) struct Beside {
    control: OwnedFd,
    pub(super) folder: PathBuf,
    /// It ends, and takes its folder away, once `control` is closed, which is at the end of this process.
    process: Child,
}

/// A handshake that the other process has begun.
pub(super) struct Begun {
    pub(super) stream: OwnedFd,
    /// Which of the things that it may come for.
    pub(super) comes: usize,
    pub(super) backing: Backing,
    pub(super) wrong: Option<String>,
}

/// What the other process will do.
pub(super) struct Play {
    pub(super) comes: usize,
    pub(super) backing: Backing,
    pub(super) wrong: Option<&'static str>,
    /// The side that is looked at has its end from a listener, with which the kernel says from the first byte on who speaks.
    pub(super) accepted: bool,
    pub(super) talk: Box<dyn FnOnce(OwnedFd)>,
}

impl Beside {
    /// Starts it, as the host or as the guest.
    pub(super) fn start(role: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("ringfence-fuzzed-{role}-{}", std::process::id()));
        let (control, theirs) = pair_of(SockType::SeqPacket);
        let mut command = Command::new(std::env::current_exe().expect("this executable"));
        #[cfg(test)]
        command.args([
            "--exact",
            "testing::fuzzing::tests::a_peer_of_its_own",
            "--nocapture",
        ]);
        let process = command
            .env(ROLE, role)
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
    pub(super) fn begin(&mut self, bytes: &[u8]) -> Option<Begun> {
        // A message of nothing could not be told from the end.
        if bytes.is_empty() {
            return None;
        }
        // A line that the other process has, and that this one has made.
        let (one, other) = pair_of(SockType::Stream);
        tell(&self.control, bytes, &[one, other]);
        let (said, passed) = hear(&self.control).unwrap_or_default();
        let (comes, backing, wrong) = match said[..] {
            [] => panic!(
                "the {} has gone: {:?}",
                self.folder.display(),
                self.process.wait()
            ),
            [comes, backing, ref wrong @ ..] => (comes, backing, wrong),
            [_] => return None,
        };
        let wrong = String::from_utf8(wrong.to_vec()).expect("text");
        Some(Begun {
            stream: passed.into_iter().next().expect("one end of the line"),
            comes: comes.into(),
            backing: Backing::from_number(backing.into()).expect("a backing"),
            wrong: (!wrong.is_empty()).then_some(wrong),
        })
    }
}

pub(super) fn pair_of(kind: SockType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).expect("a pair")
}

/// A side that has gone is told nothing.
fn tell(control: &OwnedFd, said: &[u8], passed: &[OwnedFd]) {
    let passed: Vec<_> = passed.iter().map(AsRawFd::as_raw_fd).collect();
    let passed = [ControlMessage::ScmRights(&passed)];
    let slices = [IoSlice::new(said)];
    let (number, flags) = (control.as_raw_fd(), MsgFlags::MSG_NOSIGNAL);
    let _ = sys::uninterrupted(|| sendmsg::<()>(number, &slices, &passed, flags, None));
}

/// One message, and the descriptors that came with it. `None`: the other side has gone.
fn hear(control: &OwnedFd) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut into = vec![0; 1 << 17];
    let mut space = cmsg_space!([RawFd; 2]);
    let mut slices = [IoSliceMut::new(&mut into)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    // The fuzzer's clock sends signals.
    let heard = loop {
        match recvmsg::<()>(control.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            other => break other.ok()?,
        }
    };
    let passed = heard.cmsgs().ok()?.find_map(|message| match message {
        ControlMessageOwned::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let passed = passed
        .unwrap_or_default()
        .into_iter()
        // SAFETY: the kernel has just made this descriptor for this process, and nothing else knows of it.
        .map(|number| unsafe { OwnedFd::from_raw_fd(number) })
        .collect();
    let length = heard.bytes;
    into.truncate(length);
    Some((into, passed))
}

/// To be called before anything else: in the other process it plays that one, and does not return.
pub fn peer_if_asked() {
    let (Some(role), Some(folder)) = (std::env::var_os(ROLE), std::env::var_os(FOLDER)) else {
        return;
    };
    let folder = PathBuf::from(folder);
    std::fs::create_dir(&folder).expect("a folder");
    match role.as_bytes() {
        b"host" => {
            let places = guest::Places::at(&folder);
            play(|script, _| guest::play(script, &places));
        }
        _ => play(host::play),
    }
    std::fs::remove_dir_all(&folder).expect("what it has made");
    std::process::exit(0);
}

/// Plays what comes over standard input, one handshake after the other.
fn play(draw: impl Fn(&mut Unstructured<'_>, Vec<OwnedFd>) -> Result<Option<Play>>) {
    let control = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .expect("a descriptor");
    while let Some((bytes, passed)) = hear(&control).filter(|(bytes, _)| !bytes.is_empty()) {
        let Ok(Some(play)) = draw(&mut Unstructured::new(&bytes), passed) else {
            tell(&control, &[0], &[]);
            continue;
        };
        let (agreed, theirs) = pair_of(SockType::Stream);
        settle_new_line(&agreed).expect("SO_PASSCRED");
        if play.accepted {
            settle_new_line(&theirs).expect("SO_PASSCRED");
        }
        let mut said = [play.comes, play.backing.number() as usize]
            .map(|number| u8::try_from(number).expect("a small number"))
            .to_vec();
        said.extend(play.wrong.unwrap_or_default().as_bytes());
        tell(&control, &said, &[theirs]);
        (play.talk)(agreed);
    }
}

/// What is said of a handshake that should have ended otherwise, or of an error that could steer a terminal.
pub(super) fn judge<T>(made: &crate::Result<Option<T>>, wrong: Option<&str>, comes: impl std::fmt::Debug) {
    match (made, wrong) {
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
