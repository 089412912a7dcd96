//! The line between the two processes of a measurement, for setup and results; nothing measured goes over it.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Serialize, de::DeserializeOwned};

/// Longer than any phase: a contender that hangs must end as a failed run, not as a hung benchmark.
const TIME_LIMIT: Duration = Duration::from_secs(60);

pub struct Line(UnixStream);

fn address(tag: &str) -> Result<SocketAddr> {
    Ok(SocketAddr::from_abstract_name(format!("{tag}.line"))?)
}

pub fn listen(tag: &str) -> Result<UnixListener> {
    UnixListener::bind_addr(&address(tag)?).context("bind the line")
}

impl Line {
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(TIME_LIMIT))?;
        Ok(Self(stream))
    }

    pub fn accept(listener: &UnixListener) -> Result<Self> {
        let mut come = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut come, PollTimeout::try_from(TIME_LIMIT)?)? != 1 {
            bail!("the other process did not come");
        }
        Self::new(listener.accept()?.0)
    }

    pub fn connect(tag: &str) -> Result<Self> {
        Self::new(UnixStream::connect_addr(&address(tag)?).context("connect the line")?)
    }

    pub fn send<T: Serialize>(&mut self, message: &T) -> Result<()> {
        let text = serde_json::to_vec(message)?;
        self.0.write_all(&(text.len() as u32).to_ne_bytes())?;
        self.0.write_all(&text)?;
        Ok(())
    }

    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut length = [0; 4];
        self.0
            .read_exact(&mut length)
            .context("the other process said nothing")?;
        let mut text = vec![0; u32::from_ne_bytes(length) as usize];
        self.0.read_exact(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }

    pub fn send_fds(&mut self, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&raw)];
        sendmsg::<()>(
            self.0.as_raw_fd(),
            &[IoSlice::new(b"f")],
            &control,
            MsgFlags::empty(),
            None,
        )?;
        Ok(())
    }

    pub fn receive_fds(&mut self, wanted: usize) -> Result<Vec<OwnedFd>> {
        let mut byte = [0u8; 1];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 8]);
        let mut parts = [IoSliceMut::new(&mut byte)];
        let message = recvmsg::<()>(
            self.0.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the descriptor has just come, and belongs to nothing else.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if fds.len() != wanted {
            bail!("{} descriptors instead of {wanted}", fds.len());
        }
        Ok(fds)
    }
}
