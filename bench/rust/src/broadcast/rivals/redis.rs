//! Redis: PUBLISH and SUBSCRIBE through a local server on a Unix socket, pipelined.

use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::broadcast::driver::{Job, Publish, Subscribe};
use crate::driver::spawn;
use crate::work::{Work, fill_bytes, sum_bytes};

pub fn takes(_: usize, batch: bool) -> Result<(), &'static str> {
    if batch {
        Err("one message a command")
    } else if Command::new("redis-server").arg("--version").output().is_err() {
        Err("no redis-server on the PATH")
    } else {
        Ok(())
    }
}

/// Bytes of commands that are sent before the first answer is awaited.
const WINDOW: usize = 256 * 1024;

fn socket(job: &Job) -> PathBuf {
    std::env::temp_dir().join(format!("{}.redis", job.tag))
}

pub struct Out {
    server: Child,
    socket: PathBuf,
    commands: BufWriter<UnixStream>,
    answers: BufReader<UnixStream>,
    buffer: Vec<u8>,
}

impl Publish for Out {
    fn open(job: &Job) -> Result<Self> {
        let socket = socket(job);
        let mut command = Command::new("redis-server");
        command
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(&socket)
            // No subscriber is cut off for being slow: the server keeps what it has not read.
            .args(["--client-output-buffer-limit", "pubsub", "0", "0", "0"])
            .stdout(Stdio::null());
        let server = spawn(&mut command).context("redis-server")?;
        let deadline = Instant::now() + Duration::from_secs(10);
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => return Err(error).context("redis-server"),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        Ok(Self {
            server,
            socket,
            commands: BufWriter::with_capacity(64 * 1024, stream.try_clone()?),
            answers: BufReader::new(stream),
            buffer: vec![0; job.size],
        })
    }

    fn publish(&mut self, work: &Work, _: bool) -> Result<()> {
        let window = (WINDOW / work.size).max(1) as u64;
        let head = format!("*3\r\n$7\r\nPUBLISH\r\n$1\r\nm\r\n${}\r\n", work.size);
        let mut answered = 0;
        for n in 0..work.count {
            fill_bytes(&mut self.buffer, work.first_word(n));
            self.commands.write_all(head.as_bytes())?;
            self.commands.write_all(&self.buffer)?;
            self.commands.write_all(b"\r\n")?;
            if n + 1 - answered >= window {
                self.commands.flush()?;
                // Half of them: the server has work while the next are written.
                while n + 1 - answered > window / 2 {
                    self.answer()?;
                    answered += 1;
                }
            }
        }
        self.commands.flush()?;
        for _ in answered..work.count {
            self.answer()?;
        }
        Ok(())
    }
}

impl Out {
    /// The number of subscribers that a message went to.
    fn answer(&mut self) -> Result<()> {
        let mut line = [0u8; 16];
        let length = read_line(&mut self.answers, &mut line)?;
        if line[0] != b':' {
            bail!("{}", String::from_utf8_lossy(&line[..length]));
        }
        Ok(())
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Reads up to the end of a line, and returns how many bytes of it fit into `line`.
fn read_line(from: &mut impl BufRead, line: &mut [u8]) -> Result<usize> {
    let mut length = 0;
    loop {
        let bytes = from.fill_buf()?;
        if bytes.is_empty() {
            bail!("the server has hung up");
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(bytes.len(), |at| at + 1);
        let kept = taken.min(line.len() - length);
        line[length..length + kept].copy_from_slice(&bytes[..kept]);
        length += kept;
        from.consume(taken);
        if end.is_some() {
            return Ok(length);
        }
    }
}

pub struct In {
    messages: BufReader<UnixStream>,
    buffer: Vec<u8>,
}

impl Subscribe for In {
    fn open(job: &Job) -> Result<Self> {
        let mut stream = UnixStream::connect(socket(job))?;
        stream.write_all(b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nm\r\n")?;
        let mut messages = BufReader::with_capacity(64 * 1024, stream);
        // *3, $9 subscribe, $1 m, :1
        for _ in 0..6 {
            read_line(&mut messages, &mut [0; 16])?;
        }
        Ok(Self {
            messages,
            buffer: vec![0; job.size],
        })
    }

    fn consume(&mut self, work: &Work, _: bool) -> Result<u64> {
        // *3, $7 message, $1 m, $size: the same for all of them.
        let mut head = vec![0u8; format!("*3\r\n$7\r\nmessage\r\n$1\r\nm\r\n${}\r\n", work.size).len()];
        let mut total = 0u64;
        for _ in 0..work.count {
            self.messages.read_exact(&mut head)?;
            if head[0] != b'*' {
                bail!("{}", String::from_utf8_lossy(&head));
            }
            self.messages.read_exact(&mut self.buffer)?;
            self.messages.read_exact(&mut [0; 2])?;
            total = total.wrapping_add(sum_bytes(&self.buffer));
        }
        Ok(total)
    }
}
