//! `spawn` and `fromParent`. Node starts the child itself, which inherits a descriptor of the line.

#![expect(
    unreachable_pub,
    reason = "what is pub here is exported to JavaScript by its macro"
)]
#![expect(clippy::needless_pass_by_value, reason = "napi hands over owned strings")]

use std::os::fd::{AsFd, AsRawFd};

use napi::{Env, bindgen_prelude::*};
use napi_derive::napi;
use ringfence::{ChildLine, ChildProcesses, ParentLine};

use crate::{
    begin::{AsyncCall, Joining},
    channel,
    convert::{Failure, Options},
    task,
};

/// Both ends of a line, until each is passed on, and the processes of the child. Dropping it closes the ends that are still here, and
/// kills the processes unless [`PrivateLine::close`] was called: the environment has ended in the middle of a `spawn`.
#[napi]
pub struct PrivateLine {
    parent: Option<ParentLine>,
    child: Option<ChildLine>,
    processes: ChildProcesses,
    /// A child was started, and the outcome of its `spawn` is not known yet. Only the environment's thread uses it.
    is_starting: bool,
}

#[napi]
impl PrivateLine {
    /// Returns the descriptor of the child's end, or -1 once it is closed.
    #[napi(getter)]
    pub fn descriptor(&self) -> i32 {
        self.child.as_ref().map_or(-1, |child| child.as_fd().as_raw_fd())
    }

    /// Closes this process's copy of the child's end, because the child was started with its own. Must be
    /// called in the same turn of the event loop as the start: the child cannot have been reaped yet.
    /// `admit` is `child` or `descendant`.
    #[napi]
    pub fn started(&mut self, pid: u32, admit: String) -> Option<Failure> {
        self.child = None;
        self.is_starting = true;
        let parent = self.parent.take()?;
        let started = admit
            .parse()
            .and_then(|admit| self.parent.insert(parent.admit(admit)).started(pid));
        started.err().as_ref().map(Failure::from)
    }

    /// Kills the processes of the child, on a thread: that reads /proc. Calls `done` with whether the child itself was killed.
    ///
    /// # Errors
    /// Throws a plain `Error` if a thread or a function cannot be created.
    #[napi(ts_args_type = "done: (nothing: null, killed: boolean) => void")]
    pub fn kill(&self, env: Env, done: Unknown<'_>) -> napi::Result<()> {
        let processes = self.processes.clone();
        let kill = move || processes.kill().unwrap_or(false);
        // SAFETY: env is live and the callback is a value of it; the engine refuses a value that is not a function.
        unsafe {
            task::run(
                env.raw(),
                done.raw(),
                "ringfence-kill",
                kill,
                |env, killed| {
                    Ok([
                        ToNapiValue::to_napi_value(env, Null)?,
                        ToNapiValue::to_napi_value(env, killed)?,
                    ])
                },
                || {},
            )
        }
    }

    /// As `kill`, on this thread: a child that starts processes up to its user's limit leaves no room for another one. Blocks for up to half a
    /// second.
    #[napi]
    pub fn kill_here(&self) -> bool {
        self.processes.kill().unwrap_or(false)
    }

    /// Lists the processes of the child, so that `kill` finds those whose parents exit before it is called.
    #[napi]
    pub fn list(&self) {
        self.processes.list();
    }

    /// Closes the descriptors of the processes that have exited.
    #[napi]
    pub fn release(&self) {
        self.processes.release();
    }

    /// Closes the ends that are still here. The `spawn` has an outcome: from now on, the child is left to the program.
    #[napi]
    pub fn close(&mut self) {
        self.is_starting = false;
        self.child = None;
        self.parent = None;
    }
}

impl Drop for PrivateLine {
    fn drop(&mut self) {
        if self.is_starting {
            // Best effort, as `kill`.
            let _ = self.processes.kill();
        }
    }
}

/// Creates a private line.
#[napi]
pub fn private_line() -> Either<PrivateLine, Failure> {
    match ringfence::private_line() {
        Ok((parent, child)) => Either::A(PrivateLine {
            processes: parent.processes(),
            parent: Some(parent),
            child: Some(child),
            is_starting: false,
        }),
        Err(error) => Either::B(Failure::from(&error)),
    }
}

/// Opens the channel with the child. Otherwise like `join`.
///
/// # Errors
/// As for `join`, and if the line was already used.
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
        .ok_or_else(|| napi::Error::from_reason("the line was already used"))?;
    let open = move |options: &ringfence::Options| parent.channel(options);
    AsyncCall {
        env,
        options,
        done,
        ask,
    }
    .run(("ringfence-adopt", open, channel::to_object))
}

/// Opens the channel with the parent. Otherwise like `join`.
///
/// # Errors
/// As for `join`.
#[napi(
    ts_args_type = "options: Options, done: (failure: Failure | null, channel: unknown) => void, ask?: (id: number, identity: Identity) => void"
)]
pub fn from_parent(
    env: Env,
    options: Options,
    done: Unknown<'_>,
    ask: Option<Unknown<'_>>,
) -> napi::Result<Joining> {
    let open = ringfence::from_parent;
    AsyncCall {
        env,
        options,
        done,
        ask,
    }
    .run(("ringfence-parent", open, channel::to_object))
}
