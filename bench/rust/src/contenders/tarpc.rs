//! tarpc: a call over a Unix socket, bincode, a runtime of one thread on each side.

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{Stream, StreamExt, poll};
use serde::{Deserialize, Serialize};
use tarpc::server::{BaseChannel, Channel, InFlightRequest, serve};
use tarpc::tokio_serde::formats::Bincode;
use tarpc::{RequestName, client, context, serde_transport::unix};
use tokio::runtime::{Builder, Runtime};

use crate::driver::{Contender, Measure, Setup, Side as Which, Wait};
use crate::work::{fill_item, sum_item};

pub fn takes(measure: Measure, size: usize) -> Result<(), &'static str> {
    match (measure, size) {
        (Measure::RttParked, 64) => Ok(()),
        _ => Err("calls of 64 B, which sleep until the answer"),
    }
}

type Words = [u64; 8];

#[derive(Serialize, Deserialize)]
struct Call(Words);

impl RequestName for Call {
    fn name(&self) -> &str {
        "call"
    }
}

type Request = InFlightRequest<Call, Words>;
type Requests = Pin<Box<dyn Stream<Item = Result<Request>>>>;

enum End {
    Caller(client::Channel<Call, Words>),
    Server {
        requests: Requests,
        /// A request that arrived while the answer before it was flushed.
        next: Option<Request>,
        current: Option<Request>,
    },
}

pub struct Side {
    runtime: Runtime,
    end: End,
    start: u64,
}

fn words(start: u64) -> Words {
    let mut words = [0; 8];
    fill_item(&mut words, start);
    words
}

async fn call(path: PathBuf) -> Result<End> {
    for _ in 0..500 {
        match unix::connect(&path, Bincode::default).await {
            Ok(transport) => {
                return Ok(End::Caller(
                    client::new(client::Config::default(), transport).spawn(),
                ));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    bail!("tarpc: nothing listens")
}

async fn answer(path: PathBuf) -> Result<End> {
    let mut incoming = unix::listen(&path, Bincode::default).await?;
    let transport = incoming.next().await.context("a connection")??;
    let requests = BaseChannel::with_defaults(transport).requests();
    Ok(End::Server {
        requests: Box::pin(requests.map(|request| Ok(request?))),
        next: None,
        current: None,
    })
}

impl Contender for Side {
    fn open(setup: &mut Setup) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("{}.tarpc", setup.job.tag));
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let end = if setup.side == Which::A {
            runtime.block_on(call(path))?
        } else {
            runtime.block_on(answer(path))?
        };
        Ok(Self {
            runtime,
            end,
            start: 0,
        })
    }

    /// The caller sends when it waits: one call is both.
    fn send_one(&mut self, _: usize, start: u64, _: Wait) -> Result<()> {
        self.start = start;
        let End::Server {
            requests,
            next,
            current,
        } = &mut self.end
        else {
            return Ok(());
        };
        let request = current.take().context("a request to answer")?;
        self.runtime.block_on(async {
            request
                .execute(serve(move |_, _| async move { Ok(words(start)) }))
                .await;
            // The stream of requests is what writes answers to the socket.
            if let std::task::Poll::Ready(Some(request)) = poll!(requests.next()) {
                *next = Some(request?);
            }
            Ok(())
        })
    }

    fn receive_one(&mut self, _: usize, _: Wait) -> Result<u64> {
        match &mut self.end {
            End::Caller(channel) => {
                let call = channel.call(context::current(), Call(words(self.start)));
                Ok(sum_item(&self.runtime.block_on(call)?))
            }
            End::Server {
                requests,
                next,
                current,
            } => {
                let request = match next.take() {
                    Some(request) => request,
                    None => self
                        .runtime
                        .block_on(requests.next())
                        .context("the caller left")??,
                };
                let sum = sum_item(&request.get().message.0);
                *current = Some(request);
                Ok(sum)
            }
        }
    }
}
