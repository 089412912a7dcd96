//! Channels as streams of bytes, with real processes: their ends, and the protocols that programs run over
//! them.

mod support;

use std::{
    convert::Infallible,
    error::Error as _,
    io::{self, ErrorKind},
};

use futures_util::{SinkExt, StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ringfence::{
    Address, Error,
    tokio::{ByteStream, join},
};
use support::{
    Actor, message, report,
    tasks::{meet, options, run},
    wait_for_test,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::{
    bytes::BytesMut,
    codec::{Framed, LengthDelimitedCodec},
};

/// More than the rings and the buffers in between hold.
const LARGE: usize = 1 << 20;

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let address: Address = arguments[0].parse().unwrap();
    run(async {
        let channel = join(&address, &options()).await.unwrap();
        match role.as_str() {
            "echo" => {
                let stream = channel.into_stream();
                let (mut reading, mut writing) = tokio::io::split(stream);
                tokio::io::copy(&mut reading, &mut writing).await.unwrap();
                writing.shutdown().await.unwrap();
            }
            // Writes something, and ends in the way that the test names.
            "ends" => {
                let mut stream = channel.into_stream();
                stream.write_all(b"a part").await.unwrap();
                report("written");
                let way = std::io::stdin().lines().next().unwrap().unwrap();
                match way.as_str() {
                    "shut down" => {
                        stream.shutdown().await.unwrap();
                        report("done");
                        wait_for_test();
                    }
                    "shut down and drop" => {
                        stream.shutdown().await.unwrap();
                        drop(stream);
                        report("done");
                        wait_for_test();
                    }
                    "shut down and exit" => {
                        stream.shutdown().await.unwrap();
                        report("done");
                        std::process::exit(0);
                    }
                    "drop" => {
                        drop(stream);
                        report("done");
                        wait_for_test();
                    }
                    "panic" => {
                        let panicking = tokio::spawn(async move {
                            let _stream = stream;
                            panic!("on purpose");
                        });
                        assert!(panicking.await.unwrap_err().is_panic());
                        report("done");
                        wait_for_test();
                    }
                    "exit" => std::process::exit(0),
                    other => panic!("{other:?} is not a known ending"),
                }
            }
            "messages" => {
                let (mut sender, _receiver) = channel.split();
                for length in LENGTHS {
                    sender.send(&message(length, length)).await.unwrap();
                }
            }
            "reads messages" => {
                let (_sender, mut receiver) = channel.split();
                let mut bytes = Vec::new();
                while let Some(piece) = receiver.receive_vec().await.unwrap() {
                    bytes.extend(piece);
                }
                assert!(bytes == message(1, LARGE));
            }
            "http1" => {
                let io = TokioIo::new(channel.into_stream());
                let http = hyper::server::conn::http1::Builder::new();
                http.serve_connection(io, service_fn(answer)).await.unwrap();
            }
            "http2" => {
                let io = TokioIo::new(channel.into_stream());
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                http.serve_connection(io, service_fn(answer)).await.unwrap();
            }
            "frames" => {
                let frames = Framed::new(channel.into_stream(), LengthDelimitedCodec::new());
                let (sink, stream) = StreamExt::split::<Bytes>(frames);
                stream
                    .map(|frame| frame.map(BytesMut::freeze))
                    .forward(sink)
                    .await
                    .unwrap();
            }
            other => panic!("no role {other}"),
        }
    });
}

/// The lengths of a peer's messages. Some are empty, and one is sent in fragments.
const LENGTHS: [usize; 7] = [0, 5, 2000, 0, 50_000, 7, 0];

/// Echoes the body, or for another path, returns an endless body.
async fn answer(
    request: Request<Incoming>,
) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, hyper::Error> {
    let body = if request.uri().path() == "/endless" {
        let first = stream::iter([Ok(Frame::data(Bytes::from_static(b"a part")))]);
        StreamBody::new(first.chain(stream::pending())).boxed_unsync()
    } else {
        let body = request.into_body().collect().await?.to_bytes();
        Full::new(body).boxed_unsync()
    };
    Ok(Response::new(body))
}

fn request(path: &str, body: Vec<u8>) -> Request<Full<Bytes>> {
    Request::post(format!("http://channel{path}"))
        .body(Full::new(body.into()))
        .unwrap()
}

async fn meet_stream(role: &str) -> (Actor, ByteStream) {
    let (actor, channel) = meet(role).await;
    (actor, channel.into_stream())
}

/// Asserts that this is the error of a lost peer, of this kind.
fn assert_io_lost(error: &io::Error, kind: ErrorKind) {
    assert_eq!(error.kind(), kind, "{error}");
    let own = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
    assert!(matches!(own, Some(Error::PeerLost(_))), "{error:?}");
}

/// Writes until that fails: the peer's end may be noticed later.
async fn write_until_refused(stream: &mut ByteStream) -> io::Error {
    loop {
        if let Err(error) = stream.write(b"more").await {
            return error;
        }
    }
}

#[test]
fn large_transfer_passes_both_ways() {
    run(async {
        let (actor, stream) = meet_stream("echo").await;
        let (mut reading, mut writing) = tokio::io::split(stream);
        let sending = tokio::spawn(async move {
            let bytes = message(1, LARGE);
            // Pieces of all sizes, from smaller than a message to larger than the ring.
            let mut left = &bytes[..];
            for size in [1, 10, 511, 512, 513, 4096, 20_000].into_iter().cycle() {
                let (piece, rest) = left.split_at(left.len().min(size));
                writing.write_all(piece).await.unwrap();
                left = rest;
                if left.is_empty() {
                    break;
                }
            }
            writing.shutdown().await.unwrap();
            let refused = writing.write(b"more").await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::BrokenPipe);
            writing
        });
        let mut found: Vec<u8> = Vec::new();
        let mut buffer = vec![0; 70_000];
        for size in [1, 7, 600, 70_000].into_iter().cycle() {
            match reading.read(&mut buffer[..size]).await.unwrap() {
                0 => break,
                length => found.extend(&buffer[..length]),
            }
        }
        assert!(found == message(1, LARGE));
        // Each further read returns the end as well.
        assert_eq!(reading.read(&mut buffer).await.unwrap(), 0);
        sending.await.unwrap();
        actor.finish();
    });
}

#[test]
fn ended_peer_reads_as_eof_and_lost_peer_as_error() {
    for (ending, is_end) in [
        ("shut down", true),
        ("shut down and drop", true),
        ("shut down and exit", true),
        ("drop", false),
        ("panic", false),
        ("exit", false),
        ("kill", false),
    ] {
        println!("{ending}");
        run(async {
            let (mut actor, mut stream) = meet_stream("ends").await;
            actor.expect("written");
            let mut found: Vec<u8> = Vec::new();
            if ending == "kill" {
                actor.kill();
            } else {
                // The name of the way arrives while the test reads.
                let mut first = [0; 2];
                stream.read_exact(&mut first).await.unwrap();
                found.extend(first);
                actor.send_line(ending);
            }
            let ended = stream.read_to_end(&mut found).await;
            assert_eq!(found, b"a part", "the written bytes precede the end");
            match ended {
                Ok(_) => assert!(is_end),
                Err(error) => {
                    assert!(!is_end, "{error}");
                    assert_io_lost(&error, ErrorKind::ConnectionReset);
                    let again = stream.read(&mut [0; 8]).await.unwrap_err();
                    assert_io_lost(&again, ErrorKind::ConnectionReset);
                }
            }
            if ending == "shut down" {
                // This direction stays open.
                stream.write_all(b"more").await.unwrap();
                stream.shutdown().await.unwrap();
                actor.expect("done");
                actor.proceed();
                actor.finish();
            } else {
                assert_io_lost(&write_until_refused(&mut stream).await, ErrorKind::BrokenPipe);
                // There is nothing left that could fail.
                stream.shutdown().await.unwrap();
            }
        });
    }
}

#[test]
fn waiting_write_detects_a_killed_peer() {
    run(async {
        let (mut actor, mut stream) = meet_stream("ends").await;
        actor.expect("written");
        let writing = tokio::spawn(async move { write_until_refused(&mut stream).await });
        actor.kill();
        assert_io_lost(&writing.await.unwrap(), ErrorKind::BrokenPipe);
    });
}

#[test]
fn stream_interoperates_with_messages() {
    run(async {
        let (actor, mut stream) = meet_stream("messages").await;
        let mut found: Vec<u8> = Vec::new();
        // Smaller than some of the messages.
        let mut buffer = [0; 1000];
        loop {
            match stream.read(&mut buffer).await.unwrap() {
                0 => break,
                length => found.extend(&buffer[..length]),
            }
        }
        let wanted: Vec<u8> = LENGTHS
            .into_iter()
            .flat_map(|length| message(length, length))
            .collect();
        assert!(found == wanted);
        actor.finish();
        let (actor, mut stream) = meet_stream("reads messages").await;
        stream.write_all(&message(1, LARGE)).await.unwrap();
        stream.shutdown().await.unwrap();
        actor.finish();
    });
}

#[test]
fn copy_bidirectional_forwards_bytes_and_errors() {
    run(async {
        let (actor, mut stream) = meet_stream("echo").await;
        let (near, mut far) = tokio::io::duplex(1000);
        let copying = tokio::spawn(async move { tokio::io::copy_bidirectional(&mut far, &mut stream).await });
        let (mut reading, mut writing) = tokio::io::split(near);
        let sending = tokio::spawn(async move {
            writing.write_all(&message(1, LARGE)).await.unwrap();
            writing.shutdown().await.unwrap();
        });
        let mut found: Vec<u8> = Vec::new();
        reading.read_to_end(&mut found).await.unwrap();
        assert!(found == message(1, LARGE));
        assert_eq!(copying.await.unwrap().unwrap(), (LARGE as u64, LARGE as u64));
        sending.await.unwrap();
        actor.finish();

        let (mut actor, mut stream) = meet_stream("ends").await;
        let (mut near, mut far) = tokio::io::duplex(1000);
        let copying = tokio::spawn(async move { tokio::io::copy_bidirectional(&mut far, &mut stream).await });
        near.read_exact(&mut [0; 6]).await.unwrap();
        actor.kill();
        assert_io_lost(&copying.await.unwrap().unwrap_err(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn framed_stream_ends_or_fails_with_its_peer() {
    run(async {
        let (actor, stream) = meet_stream("frames").await;
        let mut frames = Framed::new(stream, LengthDelimitedCodec::new());
        for length in [0, 1, 1000, 100_000] {
            let frame = Bytes::from(message(length, length));
            frames.send(frame.clone()).await.unwrap();
            assert!(frames.next().await.unwrap().unwrap() == frame);
        }
        SinkExt::<Bytes>::close(&mut frames).await.unwrap();
        assert!(frames.next().await.is_none());
        actor.finish();

        let (mut actor, stream) = meet_stream("frames").await;
        let mut frames = Framed::new(stream, LengthDelimitedCodec::new());
        frames.send(Bytes::from_static(b"there and back")).await.unwrap();
        assert_eq!(&frames.next().await.unwrap().unwrap()[..], b"there and back");
        actor.kill();
        assert_io_lost(
            &frames.next().await.unwrap().unwrap_err(),
            ErrorKind::ConnectionReset,
        );
    });
}

/// Finds the I/O error that caused an error of hyper.
fn find_io(error: &hyper::Error) -> Option<&io::Error> {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref() {
            return Some(io);
        }
        next = error.source();
    }
    None
}

#[test]
fn http1_works_over_a_channel() {
    run(async {
        let (actor, stream) = meet_stream("http1").await;
        let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        for size in [0, 10, LARGE] {
            client.ready().await.unwrap();
            let answer = client.send_request(request("/", message(1, size))).await.unwrap();
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert!(body == message(1, size));
        }
        drop(client);
        connection.await.unwrap().unwrap();
        // The server reported no error either.
        actor.finish();

        let (mut actor, stream) = meet_stream("http1").await;
        let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let answer = client
            .send_request(request("/endless", Vec::new()))
            .await
            .unwrap();
        let mut body = answer.into_body();
        let first = body.frame().await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "a part");
        actor.kill();
        let error = body.frame().await.unwrap().unwrap_err();
        assert_io_lost(find_io(&error).expect("the cause"), ErrorKind::ConnectionReset);
    });
}

#[test]
fn http2_works_over_a_channel() {
    run(async {
        let (actor, stream) = meet_stream("http2").await;
        let (client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        let connection = tokio::spawn(connection);
        // Concurrently.
        let requests = (0..8).map(|number| {
            let mut client = client.clone();
            async move {
                let sent = message(number, LARGE / 8);
                let answer = client.send_request(request("/", sent.clone())).await.unwrap();
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                assert!(body == sent);
            }
        });
        futures_util::future::join_all(requests).await;
        drop(client);
        connection.await.unwrap().unwrap();
        actor.finish();

        let (mut actor, stream) = meet_stream("http2").await;
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        let connection = tokio::spawn(connection);
        let answer = client
            .send_request(request("/endless", Vec::new()))
            .await
            .unwrap();
        let mut body = answer.into_body();
        let first = body.frame().await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "a part");
        actor.kill();
        body.frame().await.unwrap().unwrap_err();
        let error = connection.await.unwrap().unwrap_err();
        assert_eq!(
            find_io(&error).map(io::Error::kind),
            Some(ErrorKind::ConnectionReset)
        );
    });
}
