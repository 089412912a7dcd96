//! Runs the other side of a handshake as a separate process of the same executable, which draws from the same
//! bytes. A separate process is needed because a side refuses a peer that is itself.

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
use crate::{handshake::line::prepare_new_socket, region::create::Backing, sys};

/// Environment variable of the other process: the role that it plays.
const ROLE: &str = "RINGFENCE_FUZZED_PEER";
/// Environment variable of the other process: the folder of its files.
const FOLDER: &str = "RINGFENCE_FUZZED_FOLDER";

/// The handle of the other process.
pub(super) struct PeerProcess {
    control: OwnedFd,
    pub(super) folder: PathBuf,
    /// The process exits and removes its folder once `control` is closed, which happens when this process
    /// exits.
    process: Child,
}

/// A handshake that the other process has started.
pub(super) struct Begun {
    pub(super) stream: OwnedFd,
    /// The index of the purpose for which it connects.
    pub(super) purpose: usize,
    pub(super) backing: Backing,
    pub(super) wrong: Option<String>,
}

/// The actions of the other process.
pub(super) struct Play {
    pub(super) purpose: usize,
    pub(super) backing: Backing,
    pub(super) wrong: Option<&'static str>,
    /// The side under test has accepted its end from a listener, so the kernel reports the sender's
    /// credentials from the first byte on.
    pub(super) accepted: bool,
    pub(super) talk: Box<dyn FnOnce(OwnedFd)>,
}

impl PeerProcess {
    /// Starts the process as the host or as the guest.
    pub(super) fn start(role: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("ringfence-fuzzed-{role}-{}", std::process::id()));
        let (control, theirs) = pair_of(SockType::SeqPacket);
        let mut command = Command::new(std::env::current_exe().expect("this executable"));
        #[cfg(test)]
        command.args(["--exact", "testing::fuzzing::tests::peer_process", "--nocapture"]);
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

    /// `None`: the process has drawn an object that this kernel does not support, or there were too few
    /// bytes.
    pub(super) fn begin(&mut self, bytes: &[u8]) -> Option<Begun> {
        // An empty message would look like the end.
        if bytes.is_empty() {
            return None;
        }
        // A line that the other process holds, and that this one has made.
        let (one, other) = pair_of(SockType::Stream);
        send(&self.control, bytes, &[one, other]);
        let (sent, passed) = receive(&self.control).unwrap_or_default();
        let (purpose, backing, wrong) = match sent[..] {
            [] => panic!(
                "the {} has gone: {:?}",
                self.folder.display(),
                self.process.wait()
            ),
            [purpose, backing, ref wrong @ ..] => (purpose, backing, wrong),
            [_] => return None,
        };
        let wrong = String::from_utf8(wrong.to_vec()).expect("text");
        Some(Begun {
            stream: passed.into_iter().next().expect("one end of the line"),
            purpose: purpose.into(),
            backing: Backing::from_number(backing.into()).expect("a backing"),
            wrong: (!wrong.is_empty()).then_some(wrong),
        })
    }
}

pub(super) fn pair_of(kind: SockType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).expect("a pair")
}

/// Ignores a side that has exited.
fn send(control: &OwnedFd, sent: &[u8], passed: &[OwnedFd]) {
    let passed: Vec<_> = passed.iter().map(AsRawFd::as_raw_fd).collect();
    let passed = [ControlMessage::ScmRights(&passed)];
    let slices = [IoSlice::new(sent)];
    let (number, flags) = (control.as_raw_fd(), MsgFlags::MSG_NOSIGNAL);
    let _ = sys::uninterrupted(|| sendmsg::<()>(number, &slices, &passed, flags, None));
}

/// Receives one message and its descriptors. `None`: the other side has exited.
fn receive(control: &OwnedFd) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut into = vec![0; 1 << 17];
    let mut space = cmsg_space!([RawFd; 2]);
    let mut slices = [IoSliceMut::new(&mut into)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    // The fuzzer's timer sends signals, so the call may be interrupted.
    let received = loop {
        match recvmsg::<()>(control.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            other => break other.ok()?,
        }
    };
    let passed = received.cmsgs().ok()?.find_map(|message| match message {
        ControlMessageOwned::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let passed = passed
        .unwrap_or_default()
        .into_iter()
        // SAFETY: the kernel has just created this descriptor for this process, and no other code knows it.
        .map(|number| unsafe { OwnedFd::from_raw_fd(number) })
        .collect();
    let length = received.bytes;
    into.truncate(length);
    Some((into, passed))
}

/// Must be called first: in the other process it plays the peer's role, and does not return.
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

/// Plays the handshakes that arrive on standard input, one after the other.
fn play(draw: impl Fn(&mut Unstructured<'_>, Vec<OwnedFd>) -> Result<Option<Play>>) {
    let control = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .expect("a descriptor");
    while let Some((bytes, passed)) = receive(&control).filter(|(bytes, _)| !bytes.is_empty()) {
        let Ok(Some(play)) = draw(&mut Unstructured::new(&bytes), passed) else {
            send(&control, &[0], &[]);
            continue;
        };
        let (agreed, theirs) = pair_of(SockType::Stream);
        prepare_new_socket(&agreed).expect("SO_PASSCRED");
        if play.accepted {
            prepare_new_socket(&theirs).expect("SO_PASSCRED");
        }
        let mut sent = [play.purpose, play.backing.number() as usize]
            .map(|number| u8::try_from(number).expect("a small number"))
            .to_vec();
        sent.extend(play.wrong.unwrap_or_default().as_bytes());
        send(&control, &sent, &[theirs]);
        (play.talk)(agreed);
    }
}

/// Fails if a handshake should have ended differently, or if an error could inject terminal control
/// sequences.
pub(super) fn judge<T>(made: &crate::Result<Option<T>>, wrong: Option<&str>, purpose: impl std::fmt::Debug) {
    match (made, wrong) {
        (Ok(Some(_)), None) | (Ok(None), Some(_)) => {}
        (Ok(Some(_)), Some(wrong)) => panic!("a channel, though {wrong} was wrong: {purpose:?}"),
        (Ok(None), None) => panic!("it has gone, though nothing was wrong: {purpose:?}"),
        (Err(error), None) => panic!("{error}, though nothing was wrong: {purpose:?}"),
        (Err(error), Some(_)) => {
            let shown = error.to_string();
            assert!(
                !shown.chars().any(char::is_control),
                "a terminal could be steered by {shown:?}"
            );
        }
    }
}
