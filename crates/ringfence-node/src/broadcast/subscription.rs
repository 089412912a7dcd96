//! A subscription: the reading operations of a channel, on a publisher's ring.

use std::ffi::CStr;

use napi::{bindgen_prelude::*, sys};
use ringfence::{Subscription, SubscriptionStats, Verifier, binding::BroadcastInlet};

use crate::{
    answers::{ATTACHED, ENDED, EndReason, MISMATCH, TOO_LARGE, WHOLE},
    convert::Identity,
    handle::{Handle, Object, failure, keep_alive},
    raw::{Answer, Call, Function, State, add_functions, new_object, set_number, set_property},
    reading::{
        ReadEndpoint, arm_reader, attachments, check_parked, empty_answer, error_answer, evidence, is_lost,
        park_reader, poll_line, pull, pull_busy, verify, wake, watch,
    },
};

struct SubscriptionState {
    /// `None` once the subscription is closed.
    subscription: Option<Subscription>,
    handle: Handle,
    evidence: Vec<ringfence::Evidence>,
    /// Counts before the last messages were fetched.
    previous: Counts,
    /// Counts after that.
    current: Counts,
    /// Statistics, once there is no subscription.
    stats: SubscriptionStats,
}

/// Counts of the fetched messages.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    /// Number of the last fetched message.
    sequence: u64,
    /// Number of messages that were lost.
    lost: u64,
}

const CLOSED: ringfence::Error = ringfence::Error::Closed("the subscription is closed");

impl State for SubscriptionState {
    fn panicked(&mut self) {
        self.close(false);
        self.handle.panicked("the subscription was closed");
    }
}

impl Object for SubscriptionState {
    fn handle(&mut self) -> &mut Handle {
        &mut self.handle
    }
}

impl ReadEndpoint for SubscriptionState {
    type Ring = BroadcastInlet;

    const ALWAYS_WAKES: bool = true;

    fn reader(&mut self) -> ringfence::Result<&mut Subscription> {
        self.subscription.as_mut().ok_or(CLOSED)
    }

    fn verifier(&self) -> ringfence::Result<Verifier> {
        self.subscription
            .as_ref()
            .map(Subscription::verifier)
            .ok_or(CLOSED)
    }

    fn evidence(&mut self) -> &mut Vec<ringfence::Evidence> {
        &mut self.evidence
    }

    /// Updates the counts. Lost messages precede the first of the fetched ones.
    fn fetched(&mut self) {
        if let Some(subscription) = &self.subscription {
            self.previous = self.current;
            self.current = Counts {
                sequence: subscription.sequence(),
                lost: subscription.lost(),
            };
        }
    }
}

impl SubscriptionState {
    /// Returns the counts of delivered messages, if `unread` of the last fetched messages were not delivered
    /// yet.
    fn counts(&self, unread: u64) -> Counts {
        let Counts { sequence, lost } = self.current;
        let fetched = (sequence - self.previous.sequence) - (lost - self.previous.lost);
        if unread > 0 && unread == fetched {
            return self.previous;
        }
        Counts {
            sequence: sequence - unread.min(fetched),
            lost,
        }
    }

    fn reason(&self) -> Answer {
        let ended = match &self.subscription {
            None => EndReason::Closed,
            Some(subscription) => subscription.close_reason().into(),
        };
        Answer::from(ended.number())
    }

    /// Without a clean end, the publisher reports the subscriber as lost.
    fn close(&mut self, is_clean: bool) {
        // Stop first, because a watched descriptor must not be closed.
        self.handle.stop();
        if let Some(mut subscription) = self.subscription.take() {
            self.stats = subscription.stats();
            if is_clean {
                subscription.close();
            } else {
                subscription.destroy();
            }
        }
    }
}

impl Drop for SubscriptionState {
    fn drop(&mut self) {
        self.close(false);
    }
}

/// Reads a message that did not fit into `pull`'s memory, into memory of its size. The publisher may have
/// overwritten it in the meantime. Then the next message has another size. The answer is `MISMATCH`,
/// or `TOO_LARGE - size` if a shorter message was read.
fn gather(endpoint: &mut SubscriptionState, call: &mut Call) -> Answer {
    // SAFETY: the slice is used within this call only, and requested once.
    let into = unsafe { call.bytes(0) };
    let size = endpoint.reader().and_then(Subscription::next_size);
    match size {
        Ok(Some(size)) if size == into.len() => {}
        Ok(Some(_)) => return Answer::from(MISMATCH),
        Ok(None) => return empty_answer(endpoint),
        Err(error) => return error_answer(endpoint, error, ENDED),
    }
    let received = endpoint
        .reader()
        .and_then(|subscription| subscription.try_receive(into));
    match received {
        Ok(Some(length)) if length == into.len() => {
            endpoint.fetched();
            let attached = endpoint.reader().is_ok_and(|reader| reader.has_attachments());
            Answer::from(if attached { ATTACHED } else { WHOLE })
        }
        #[expect(clippy::cast_precision_loss, reason = "sizes of messages are below 2^53")]
        Ok(Some(length)) => {
            endpoint.fetched();
            Answer::Number(f64::from(TOO_LARGE) - length as f64)
        }
        Ok(None) | Err(ringfence::Error::InvalidArgument(_)) => Answer::from(MISMATCH),
        Err(error) => endpoint.fail(error),
    }
}

/// Answers 1 if there is a message now. Otherwise answers as `pull` does without a message.
fn has_message(endpoint: &mut SubscriptionState, _call: &mut Call) -> Answer {
    match endpoint.reader().and_then(Subscription::has_message) {
        Ok(true) => Answer::from(1),
        Ok(false) => empty_answer(endpoint),
        Err(error) => error_answer(endpoint, error, ENDED),
    }
}

fn disarm(endpoint: &mut SubscriptionState, _call: &mut Call) -> Answer {
    if let Some(subscription) = &mut endpoint.subscription {
        subscription.disarm();
    }
    Answer::Nothing
}

/// Reads the line, or arranges a later read. Answers 0 while the subscription is open. Unread messages may
/// remain after it has closed.
fn listen(endpoint: &mut SubscriptionState, _call: &mut Call) -> Answer {
    poll_line(endpoint);
    endpoint.reason()
}

/// Argument: the number of messages of the last fetch that were not delivered yet.
fn sequence(endpoint: &mut SubscriptionState, call: &mut Call) -> Answer {
    let counts = endpoint.counts(call.size(0) as u64);
    Answer::bigint(call.env, counts.sequence)
}

fn lost(endpoint: &mut SubscriptionState, call: &mut Call) -> Answer {
    let counts = endpoint.counts(call.size(0) as u64);
    Answer::bigint(call.env, counts.lost)
}

/// Answers with the statistics that the TypeScript side does not count itself.
fn stats(endpoint: &mut SubscriptionState, call: &mut Call) -> Answer {
    if let Some(subscription) = &endpoint.subscription {
        endpoint.stats = subscription.stats();
    }
    let stats = &endpoint.stats;
    Answer::numbers(call.env, &[stats.lag, stats.sleeps, stats.attachments_received])
}

/// Stops watching the line: the publisher has ended, and its remaining messages are read without it.
fn outlive(endpoint: &mut SubscriptionState, _call: &mut Call) -> Answer {
    endpoint.handle.stop();
    Answer::Nothing
}

/// Argument: 1 to close without a clean end.
fn close(endpoint: &mut SubscriptionState, call: &mut Call) -> Answer {
    endpoint.close(call.size(0) == 0);
    Answer::Nothing
}

/// Functions of the JavaScript object.
const FUNCTIONS: [(&CStr, Function<SubscriptionState>); 22] = [
    (c"pull", pull),
    (c"pullBusy", pull_busy),
    (c"wake", wake),
    (c"gather", gather),
    (c"attachments", attachments),
    (c"hasMessage", has_message),
    (c"armReader", arm_reader),
    (c"parkReader", park_reader),
    (c"checkParked", check_parked),
    (c"disarm", disarm),
    (c"listen", listen),
    (c"isLost", is_lost),
    (c"sequence", sequence),
    (c"lost", lost),
    (c"stats", stats),
    (c"watch", watch),
    (c"outlive", outlive),
    (c"keepAlive", keep_alive),
    (c"verify", verify),
    (c"evidence", evidence),
    (c"close", close),
    (c"failure", failure),
];

/// Creates the JavaScript object of a subscription.
///
/// # Safety
/// `env` is the environment that runs now, on this thread, inside a handle scope.
pub(crate) unsafe fn to_object(
    env: sys::napi_env,
    subscription: Subscription,
    use_libuv: bool,
) -> napi::Result<sys::napi_value> {
    // SAFETY: env is live.
    let object = unsafe { new_object(env) }?;
    let identity = Identity::from(subscription.peer());
    let delivery = subscription.delivery().to_string();
    #[expect(clippy::cast_precision_loss, reason = "sizes of memory are below 2^53")]
    let sizes = [
        (c"capacity", subscription.capacity() as f64),
        (c"maxMessageSize", subscription.max_message_size() as f64),
    ];
    // SAFETY: env and object are live.
    unsafe {
        set_property(env, object, c"peer", ToNapiValue::to_napi_value(env, identity)?)?;
        set_property(
            env,
            object,
            c"delivery",
            ToNapiValue::to_napi_value(env, delivery)?,
        )?;
        for (name, size) in sizes {
            set_number(env, object, name, size)?;
        }
    }
    let counts = Counts {
        sequence: subscription.sequence(),
        lost: subscription.lost(),
    };
    let endpoint = SubscriptionState {
        evidence: subscription.evidence().to_vec(),
        subscription: Some(subscription),
        handle: Handle::new(use_libuv),
        previous: counts,
        current: counts,
        stats: SubscriptionStats::default(),
    };
    // SAFETY: env and object are live.
    unsafe { add_functions(env, object, &FUNCTIONS, endpoint) }?;
    Ok(object)
}
