/**
 * Protected shared-memory channels between two processes on one Linux host.
 *
 * @packageDocumentation
 */

import { observeIfAsked } from './observe.js'

export { publish, Publisher, type PublisherEvents } from './broadcast/publisher.js'
export { Subscriber } from './broadcast/subscriber.js'
export { subscribe, Subscription } from './broadcast/subscription.js'
export { TypedPublisher, TypedSubscription } from './broadcast/typed.js'
export { Channel } from './channel.js'
export { json, structured, type Codec, type CodecOptions } from './codec.js'
export { doctor, type Diagnosis } from './doctor.js'
export { RingfenceError, type ErrorDetails, type ErrorName } from './errors.js'
export { fromParent, spawn, type Spawned } from './child.js'
export { harden } from './harden.js'
export { merge, Merge, type EndOf, type MergeEvents, type MergeSource, type MergeVisit } from './merge.js'
export {
  toMetrics,
  type MeterLike,
  type MetricLabels,
  type Metrics,
  type MetricsSource,
  type PrometheusMetric,
} from './metrics.js'
export { observe, type Observation } from './observe.js'
export { join } from './pair.js'
export type { Visit } from './receive-buffer.js'
export { toWeb, type WebStreams } from './web.js'
export {
  toPort,
  type MessagePortLike,
  type PortEvent,
  type PortEventListener,
  type PortListener,
  type PortMessageEvent,
} from './port.js'
export type { Fill } from './send-queue.js'
export { connect, listen, Listener, type ListenerEvents } from './service.js'
export { LEAVING, member, Membership, type MembershipEvents } from './membership.js'
export type { Finding } from './native.js'
export type {
  ChannelStats,
  ListenerStats,
  MembershipStats,
  MergeStats,
  PublisherStats,
  SubscriberStats,
  SubscriptionStats,
} from './stats.js'
export { TypedChannel } from './typed.js'
export { TypedMerge } from './typed-merge.js'
export type {
  BufferSource,
  CloseReason,
  ConnectOptions,
  Delivery,
  Evidence,
  ExecutableFile,
  GoneReason,
  Identity,
  JoinOptions,
  LineOptions,
  ListenOptions,
  MemberOptions,
  Options,
  Policy,
  PublishOptions,
  Reservation,
  SubscribeOptions,
} from './types.js'

observeIfAsked()
