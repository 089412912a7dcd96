/**
 * Protected shared-memory channels between two processes on one Linux host.
 *
 * @packageDocumentation
 */

import { observeIfAsked } from './runtime/observe.js'

export { publish, Publisher } from './endpoint/publisher.js'
export type { Subscriber } from './endpoint/subscriber.js'
export { subscribe, Subscription } from './channel/subscription.js'
export { ReceivedDescriptor, SealedBuffer, type Attachable, type Attachment } from './channel/attachments.js'
export { Channel, type MessagePortLike } from './channel/channel.js'
export type { Resource as OpenResource, ResourceEvents } from './channel/resource.js'
export type { Source as OpenSource } from './channel/source.js'
export { json, structured, type Codec } from './adapters/codec.js'
export { doctor, type Diagnosis } from './runtime/doctor.js'
export { RemoteError, RingfenceError, type ErrorCode, type ErrorDetails, type ErrorName } from './errors.js'
export { fromParent, spawn, type Spawned } from './endpoint/child.js'
export type { Loop } from './channel/loops.js'
export { harden } from './runtime/harden.js'
export { merge, Merge, type MergeEvents, type MergeSource, type MergeVisit, type MessageOf } from './channel/merge.js'
export {
  toMetrics,
  type MeterLike,
  type MetricLabels,
  type Metrics,
  type MetricsSource,
  type PrometheusMetric,
} from './adapters/metrics.js'
export { observe, type Observation } from './runtime/observe.js'
export { join } from './endpoint/pair.js'
export type { PortEventListener, PortMessageEvent } from './adapters/port.js'
export type { Fill } from './channel/send-queue.js'
export type { EndpointEvents } from './endpoint/endpoint.js'
export { connect, listen, Listener } from './endpoint/service.js'
export { member, Membership, type MembershipEvents } from './endpoint/membership.js'
export type { Finding } from './native.js'
export type {
  ChannelStats,
  EndpointStats,
  ListenerStats,
  MembershipStats,
  MergeStats,
  PublisherStats,
  SubscriberStats,
  SubscriptionStats,
  TokenStats,
} from './channel/stats.js'
export type * from './types.js'

observeIfAsked()
