//! What is shown of each step.

use serde::Serialize;

use super::side::{Flow, Usage};
use crate::spread::Spread;

/// One way, for a while.
#[derive(Serialize)]
pub struct FlowRow {
    pub messages_per_second: Spread,
    pub cpu_ns_per_message: Spread,
    pub preempted_per_second: Spread,
}

impl FlowRow {
    pub fn of<S>(samples: &[S], pick: impl Fn(&S) -> Flow) -> Self {
        Self {
            messages_per_second: Spread::by(samples, |sample| pick(sample).messages_per_second),
            cpu_ns_per_message: Spread::by(samples, |sample| pick(sample).cpu_ns_per_message),
            preempted_per_second: Spread::by(samples, |sample| pick(sample).preempted_per_second),
        }
    }

    pub fn seconds_per_message(&self) -> f64 {
        1.0 / self.messages_per_second.median
    }
}

#[derive(Serialize)]
pub struct ChannelsRow {
    pub channels: usize,
    pub placement: &'static str,
    /// In that placement.
    pub runs: usize,
    /// To join one, handshake and memory included.
    pub join_ms: Spread,
    /// To let go of one on both sides.
    pub leave_ms: Spread,
    /// Of both processes, for each channel.
    pub descriptors: f64,
    /// Shared memory of both directions, for each channel.
    pub memory_kib: f64,
    /// All readers asleep, nothing sent: both processes together.
    pub idle_cpu_percent: Spread,
    pub idle_wakeups_per_second: Spread,
    /// One message of 64 B to each channel in turn, the reader polling all of them in turn.
    pub busy: FlowRow,
    /// The same, a batch of 32 to each channel in turn.
    pub batched: FlowRow,
    /// As `busy`, read by one merge of all of them.
    pub merged: FlowRow,
    /// As `batched`, read by one merge of all of them.
    pub merged_batched: FlowRow,
    /// One channel speaks, the reader sleeps on all of them (epoll).
    pub woken_round_trip_us: Spread,
}

/// One measurement of a [`ChannelsRow`].
pub struct ChannelsSample {
    pub join_ms: f64,
    pub descriptors: f64,
    pub memory_kib: f64,
    pub idle: Usage,
    pub busy: Flow,
    pub batched: Flow,
    pub woken_us: f64,
    pub merged: Flow,
    pub merged_batched: Flow,
    pub leave_ms: f64,
}

#[derive(Serialize)]
pub struct SubscribersRow {
    pub subscribers: usize,
    pub placement: &'static str,
    /// In that placement.
    pub runs: usize,
    /// To subscribe once.
    pub join_ms: Spread,
    /// To let go of one.
    pub leave_ms: Spread,
    /// Of both processes, for each subscription.
    pub descriptors: f64,
    /// All subscriptions asleep, nothing published: both processes together.
    pub idle_cpu_percent: Spread,
    pub idle_wakeups_per_second: Spread,
    /// Published, each read by all of them: messages of 64 B, one at a time.
    pub one: FlowRow,
    /// The same, 32 at a time.
    pub batched: FlowRow,
}

/// One measurement of a [`SubscribersRow`].
pub struct SubscribersSample {
    pub join_ms: f64,
    pub leave_ms: f64,
    pub descriptors: f64,
    pub idle: Usage,
    pub one: Flow,
    pub batched: Flow,
}

#[derive(Serialize)]
pub struct SizeRow {
    pub size: usize,
    pub placement: &'static str,
    /// In that placement.
    pub runs: usize,
    pub flow: FlowRow,
    /// The same copies by one thread, without a channel.
    pub alone_per_second: Spread,
    pub in_fragments: bool,
}

#[derive(Serialize)]
pub struct CapacityRow {
    pub capacity: usize,
    pub placement: &'static str,
    /// In that placement.
    pub runs: usize,
    pub join_ms: Spread,
    /// Messages of 64 B.
    pub small: FlowRow,
    /// Messages of 16 KiB.
    pub large: FlowRow,
}

/// A row of a table, of which only those in one placement can be compared.
pub trait Row {
    fn placement(&self) -> &'static str;
}

impl Row for ChannelsRow {
    fn placement(&self) -> &'static str {
        self.placement
    }
}

impl Row for SubscribersRow {
    fn placement(&self) -> &'static str {
        self.placement
    }
}

impl Row for SizeRow {
    fn placement(&self) -> &'static str {
        self.placement
    }
}

impl Row for CapacityRow {
    fn placement(&self) -> &'static str {
        self.placement
    }
}
