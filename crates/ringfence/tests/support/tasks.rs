//! Helpers for the tests with Tokio.

use ringfence::{
    Options,
    tokio::{Channel, join},
};
use tokio::runtime::{Builder, Runtime};

use super::{Actor, TIME_LIMIT, fresh_address, small, wait_for_host};

pub fn options() -> Options {
    small().max_message_size(1 << 16)
}

/// Returns both kinds of Tokio runtime.
pub fn runtimes() -> [Runtime; 2] {
    [Builder::new_current_thread(), Builder::new_multi_thread()]
        .map(|mut builder| builder.worker_threads(2).enable_all().build().unwrap())
}

pub fn run<T>(work: impl Future<Output = T>) -> T {
    let [_, runtime] = runtimes();
    runtime.block_on(async { tokio::time::timeout(TIME_LIMIT, work).await.expect("in time") })
}

/// Starts the other process in a role, and returns it with this end of the channel.
pub async fn meet(role: &str) -> (Actor, Channel) {
    let (address, _keep) = fresh_address(false);
    let host = {
        let address = address.clone();
        tokio::spawn(async move { join(&address, &options()).await })
    };
    let name = address.to_string();
    let started = tokio::task::spawn_blocking({
        let role = role.to_owned();
        move || {
            wait_for_host(&address);
            Actor::start(&role, &[&name])
        }
    });
    let actor = started.await.unwrap();
    (actor, host.await.unwrap().unwrap())
}
