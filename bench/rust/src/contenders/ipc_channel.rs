//! ipc-channel: its bytes channel, a message through a socket each.

use anyhow::Result;
use ipc_channel::TryRecvError;
use ipc_channel::ipc::{self, IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcSender};

use crate::driver::{Contender, Measure, Setup, Side as Which, Wait};
use crate::work::{Work, fill_bytes, poll, sum_bytes};

pub fn takes(measure: Measure, _: usize) -> Result<(), &'static str> {
    match measure {
        Measure::Batch => Err("one message a send"),
        Measure::Copy => Err("the same as one"),
        Measure::RttSpin => Err("it does not spin"),
        _ => Ok(()),
    }
}

pub struct Side {
    sender: IpcBytesSender,
    receiver: IpcBytesReceiver,
    buffer: Vec<u8>,
}

impl Contender for Side {
    fn open(setup: &mut Setup) -> Result<Self> {
        let buffer = vec![0; setup.job.size];
        let side = setup.side;
        let line = setup.line()?;
        let (sender, receiver) = if side == Which::A {
            let (server, name) = IpcOneShotServer::<(IpcBytesSender, IpcBytesReceiver)>::new()?;
            line.send(&name)?;
            server.accept()?.1
        } else {
            let name: String = line.receive()?;
            let (ping, receiver) = ipc::bytes_channel()?;
            let (sender, pong) = ipc::bytes_channel()?;
            IpcSender::connect(name)?.send((ping, pong))?;
            (sender, receiver)
        };
        Ok(Self {
            sender,
            receiver,
            buffer,
        })
    }

    fn produce(&mut self, work: &Work, _: Measure) -> Result<()> {
        for n in 0..work.count {
            fill_bytes(&mut self.buffer, work.first_word(n));
            self.sender.send(&self.buffer)?;
        }
        Ok(())
    }

    fn consume(&mut self, work: &Work, _: Measure) -> Result<u64> {
        let mut total = 0u64;
        for _ in 0..work.count {
            total = total.wrapping_add(sum_bytes(&self.receiver.recv()?));
        }
        Ok(total)
    }

    fn send_one(&mut self, _: usize, start: u64, _: Wait) -> Result<()> {
        fill_bytes(&mut self.buffer, start);
        self.sender.send(&self.buffer)?;
        Ok(())
    }

    fn receive_one(&mut self, _: usize, wait: Wait) -> Result<u64> {
        if wait != Wait::Poll {
            return Ok(sum_bytes(&self.receiver.recv()?));
        }
        poll(|| match self.receiver.try_recv() {
            Ok(message) => Ok(Some(sum_bytes(&message))),
            Err(TryRecvError::Empty) => Ok(None),
            Err(error) => Err(error.into()),
        })
    }
}
