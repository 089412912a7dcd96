//! ZeroMQ: XPUB and SUB over its ipc transport, configured not to drop.

use anyhow::{Result, bail};
use zmq::{Context, Socket, SocketType};

use crate::broadcast::driver::{Job, Publish, Subscribe};
use crate::work::{Work, fill_bytes, sum_bytes};

pub fn takes(_: usize, batch: bool) -> Result<(), &'static str> {
    if batch {
        Err("it gathers by itself")
    } else {
        Ok(())
    }
}

fn endpoint(job: &Job) -> String {
    // An abstract name: no file stays behind.
    format!("ipc://@{}", job.tag)
}

/// The crate has no call for these options.
fn set(socket: &mut Socket, option: u32) -> Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: a live socket, and an option that is an int.
    let failed = unsafe {
        zmq_sys::zmq_setsockopt(
            socket.as_mut_ptr(),
            option as i32,
            (&raw const on).cast(),
            size_of_val(&on),
        )
    };
    if failed != 0 {
        bail!("this libzmq does not know option {option}");
    }
    Ok(())
}

pub struct Out {
    socket: Socket,
    _context: Context,
}

impl Publish for Out {
    fn open(job: &Job) -> Result<Self> {
        let context = Context::new();
        let mut socket = context.socket(SocketType::XPUB)?;
        socket.set_sndhwm(job.slots() as i32)?;
        set(&mut socket, zmq_sys::ZMQ_XPUB_NODROP)?;
        // Otherwise only the first of several equal subscriptions is reported.
        set(&mut socket, zmq_sys::ZMQ_XPUB_VERBOSE)?;
        socket.bind(&endpoint(job))?;
        Ok(Self {
            socket,
            _context: context,
        })
    }

    /// Each subscription comes as a message of its own; what is sent before goes to none.
    fn admit(&mut self, job: &Job) -> Result<()> {
        for _ in 0..job.subscribers {
            self.socket.recv_bytes(0)?;
        }
        Ok(())
    }

    fn publish(&mut self, work: &Work, _: bool) -> Result<()> {
        for n in 0..work.count {
            let mut message = zmq::Message::with_size(work.size);
            fill_bytes(&mut message, work.first_word(n));
            self.socket.send(message, 0)?;
        }
        Ok(())
    }
}

pub struct In {
    socket: Socket,
    _context: Context,
}

impl Subscribe for In {
    fn open(job: &Job) -> Result<Self> {
        let context = Context::new();
        let socket = context.socket(SocketType::SUB)?;
        socket.set_rcvhwm(job.slots() as i32)?;
        socket.connect(&endpoint(job))?;
        socket.set_subscribe(b"")?;
        Ok(Self {
            socket,
            _context: context,
        })
    }

    fn consume(&mut self, work: &Work, _: bool) -> Result<u64> {
        let mut message = zmq::Message::new();
        let mut total = 0u64;
        for _ in 0..work.count {
            self.socket.recv(&mut message, 0)?;
            if message.len() != work.size {
                bail!("{} bytes instead of {}", message.len(), work.size);
            }
            total = total.wrapping_add(sum_bytes(&message));
        }
        Ok(total)
    }
}
