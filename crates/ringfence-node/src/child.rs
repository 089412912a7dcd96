//! `spawn` and `fromParent`: Node starts the child itself, and leaves it a descriptor of the line.

#![expect(
    unreachable_pub,
    reason = "what is pub here is exported to JavaScript by its macro"
)]

use std::os::fd::{AsFd, AsRawFd};

use napi::{Env, bindgen_prelude::*};
use napi_derive::napi;
use ringfence::{ChildLine, ParentLine};

use crate::{
    begin::{Given, Joining},
    channel,
    convert::{Failure, Options},
};

/// Both ends of a line, until each is where it belongs. What is left when this goes is closed.
#[napi]
pub struct PrivateLine {
    parent: Option<ParentLine>,
    child: Option<ChildLine>,
}

#[napi]
impl PrivateLine {
    /// The descriptor of the child's end; -1 once it is closed.
    #[napi(getter)]
    pub fn descriptor(&self) -> i32 {
        self.child.as_ref().map_or(-1, |child| child.as_fd().as_raw_fd())
    }

    /// The environment variable by which the child finds its end at descriptor `number`: its name and its value.
    #[napi]
    pub fn variable(&self, number: i32) -> Option<Vec<String>> {
        let child = self.child.as_ref()?;
        Some(vec![ringfence::LINE_VARIABLE.to_owned(), child.value(number)])
    }

    /// The child was started, with a descriptor of its own: this one is closed. To be called in the same turn of the
    /// event loop, in which its end cannot have been waited for.
    #[napi]
    pub fn started(&mut self, pid: u32) -> Option<Failure> {
        self.child = None;
        let named = self.parent.as_mut()?.started(pid);
        named.err().as_ref().map(Failure::from)
    }

    /// Closes what is left.
    #[napi]
    pub fn close(&mut self) {
        self.child = None;
        self.parent = None;
    }
}

/// # Errors
/// Throws a plain `Error` where descriptors have run out.
#[napi]
pub fn private_line() -> napi::Result<PrivateLine> {
    let (parent, child) =
        ringfence::private_line().map_err(|error| napi::Error::from_reason(error.to_string()))?;
    Ok(PrivateLine {
        parent: Some(parent),
        child: Some(child),
    })
}

/// The channel with the child. Otherwise as `join`.
///
/// # Errors
/// As `join`, and where the line has been used already.
#[napi(
    ts_args_type = "line: PrivateLine, options: Options, done: (failure: Failure | null, channel: unknown) => void, ask?: (id: number, identity: Identity) => void"
)]
pub fn adopt(
    env: Env,
    line: &mut PrivateLine,
    options: Options,
    done: Unknown<'_>,
    ask: Option<Unknown<'_>>,
) -> napi::Result<Joining> {
    let parent = line
        .parent
        .take()
        .ok_or_else(|| napi::Error::from_reason("the line has been used already"))?;
    let meet = move |options: &ringfence::Options| parent.channel(options);
    Given {
        env,
        options,
        done,
        ask,
    }
    .run(("ringfence-adopt", meet, channel::to_object))
}

/// The channel with the parent. Otherwise as `join`.
///
/// # Errors
/// As `join`.
#[napi(
    ts_args_type = "options: Options, done: (failure: Failure | null, channel: unknown) => void, ask?: (id: number, identity: Identity) => void"
)]
pub fn from_parent(
    env: Env,
    options: Options,
    done: Unknown<'_>,
    ask: Option<Unknown<'_>>,
) -> napi::Result<Joining> {
    let meet = ringfence::from_parent;
    Given {
        env,
        options,
        done,
        ask,
    }
    .run(("ringfence-parent", meet, channel::to_object))
}
