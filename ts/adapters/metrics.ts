// Exports the figures to monitoring systems: as prom-client metrics, and as observable instruments of OpenTelemetry.

import type { Publisher } from '../endpoint/publisher.js'
import type { Subscription } from '../channel/subscription.js'
import type { Channel } from '../channel/channel.js'
import { addressOf, openNow, wasOpened } from '../runtime/diagnostics.js'
import { invalid, show } from '../errors.js'
import { Membership } from '../endpoint/membership.js'
import { Merge } from '../channel/merge.js'
import { Listener } from '../endpoint/service.js'
import type { ChannelStats, ListenerStats, MergeStats, PublisherStats, SubscriptionStats } from '../channel/stats.js'

/** The objects that have figures. */
export type MetricsSource =
  // oxlint-disable typescript/no-explicit-any -- of whichever values
  Channel<any, any> | Listener<any, any> | Membership<any, any> | Publisher<any> | Subscription<any> | Merge<any, any>
// oxlint-enable typescript/no-explicit-any

type Figure =
  keyof ChannelStats | keyof ListenerStats | keyof PublisherStats | keyof SubscriptionStats | keyof MergeStats

/** The definition of one metric. */
interface Definition {
  figure: Figure
  /** The Prometheus name, in base units. */
  prometheus: string
  /** The OpenTelemetry name. */
  name: string
  unit: string
  help: string
  type: 'counter' | 'gauge'
  /** The factor that converts the figure to the unit. */
  scale: number
}

/** A figure, its names for Prometheus and OpenTelemetry, its unit, its description, and the factor that converts it to the unit. */
type Row = [figure: Figure, prometheus: string, name: string, unit: string, help: string, scale?: number]

const COUNTERS: Row[] = [
  [
    'messagesSent',
    'ringfence_messages_sent_total',
    'messaging.client.sent.messages',
    '{message}',
    'Messages that were sent and are in the ring.',
  ],
  [
    'messagesReceived',
    'ringfence_messages_received_total',
    'messaging.client.consumed.messages',
    '{message}',
    'Messages that were handed out.',
  ],
  ['bytesSent', 'ringfence_sent_bytes_total', 'ringfence.sent', 'By', 'Bytes of the messages sent.'],
  ['bytesReceived', 'ringfence_received_bytes_total', 'ringfence.received', 'By', 'Bytes of the messages handed out.'],
  ['waits', 'ringfence_waits_total', 'ringfence.waits', '{wait}', 'Sends that had to wait for room.'],
  [
    'waitedMicros',
    'ringfence_waited_seconds_total',
    'ringfence.waited',
    's',
    'For how long at least one send waited for room.',
    1e-6,
  ],
  [
    'wakeupsSent',
    'ringfence_wakeups_sent_total',
    'ringfence.wakeups',
    '{wakeup}',
    'How often this side has woken its peer.',
  ],
  ['tokensSent', 'ringfence_tokens_sent_total', 'ringfence.tokens.sent', '{token}', 'Tokens that were sent.'],
  [
    'tokensReceived',
    'ringfence_tokens_received_total',
    'ringfence.tokens.received',
    '{token}',
    'Tokens that were read.',
  ],
  [
    'tokensStray',
    'ringfence_tokens_stray_total',
    'ringfence.tokens.stray',
    '{signal}',
    'Signals in this process that were no tokens; each channel shows all of them.',
  ],
  [
    'tokensDropped',
    'ringfence_tokens_dropped_total',
    'ringfence.tokens.dropped',
    '{token}',
    'Tokens that were dropped because no loop read them.',
  ],
  [
    'attachmentsSent',
    'ringfence_attachments_sent_total',
    'ringfence.attachments.sent',
    '{attachment}',
    'Attachments of the messages sent.',
  ],
  [
    'attachmentsWithheld',
    'ringfence_attachments_withheld_total',
    'ringfence.attachments.withheld',
    '{attachment}',
    'Attachments that subscribers did not get with their message.',
  ],
  [
    'attachmentsReceived',
    'ringfence_attachments_received_total',
    'ringfence.attachments.received',
    '{attachment}',
    'Attachments of the messages read.',
  ],
  ['sleeps', 'ringfence_sleeps_total', 'ringfence.sleeps', '{sleep}', 'How often this side went to sleep.'],
  ['lateReplies', 'ringfence_late_replies_total', 'ringfence.late_replies', '{reply}', 'Replies to cancelled calls.'],
  ['lost', 'ringfence_messages_lost_total', 'ringfence.lost', '{message}', 'Messages that were passed over.'],
  [
    'evicted',
    'ringfence_evicted_total',
    'ringfence.evicted',
    '{subscriber}',
    'Subscribers that were evicted because they were too slow.',
  ],
  ['accepted', 'ringfence_accepted_total', 'ringfence.accepted', '{peer}', 'Peers that were accepted.'],
  ['refused', 'ringfence_refused_total', 'ringfence.refused', '{peer}', 'Peers that were refused.'],
]

const GAUGES: Row[] = [
  ['open', 'ringfence_open_peers', 'ringfence.open', '{peer}', 'Peers that are connected.'],
  ['sources', 'ringfence_merge_sources', 'ringfence.sources', '{source}', 'Sources of the merge.'],
  ['callsInFlight', 'ringfence_calls_in_flight', 'ringfence.calls.in_flight', '{call}', 'Calls that wait for a reply.'],
  ['ringUsed', 'ringfence_ring_used_bytes', 'ringfence.ring.used', 'By', 'Bytes of the ring that are not read.'],
  ['ringCapacity', 'ringfence_ring_capacity_bytes', 'ringfence.ring.capacity', 'By', 'Bytes of the ring.'],
  ['queuedBytes', 'ringfence_queued_bytes', 'ringfence.queued', 'By', 'Bytes that were sent and are not in the ring.'],
  ['lag', 'ringfence_lag_bytes', 'ringfence.lag', 'By', 'Bytes that are published and not read.'],
]

function definitions(rows: Row[], type: 'counter' | 'gauge'): Definition[] {
  return rows.map(([figure, prometheus, name, unit, help, scale = 1]) => {
    return { figure, prometheus, name, unit, help, scale, type }
  })
}

const DEFINITIONS: readonly Definition[] = [...definitions(COUNTERS, 'counter'), ...definitions(GAUGES, 'gauge')]

/** Labels of a sample. */
export type MetricLabels = Record<string, string>

/** A metric as prom-client's registry expects it (`registry.registerMetric`). */
export interface PrometheusMetric {
  name: string
  help: string
  type: 'counter' | 'gauge'
  aggregator: 'sum'
  /** Returns the current values. */
  get(): Promise<{
    name: string
    help: string
    type: 'counter' | 'gauge'
    aggregator: 'sum'
    values: { value: number; labels: MetricLabels }[]
  }>
  /** Does nothing: the figures belong to the watched objects. */
  reset(): void
}

/** The part of OpenTelemetry's Meter that is used. */
export interface MeterLike {
  createObservableCounter(name: string, options: { description: string; unit: string }): unknown
  createObservableGauge(name: string, options: { description: string; unit: string }): unknown
  addBatchObservableCallback(
    // oxlint-disable-next-line typescript/no-explicit-any -- the observables of any version
    callback: (result: { observe(observable: any, value: number, attributes: MetricLabels): void }) => void,
    // oxlint-disable-next-line typescript/no-explicit-any
    observables: any[],
  ): void
}

/** The result of {@link toMetrics}. */
export interface Metrics {
  /** For prom-client: `for (const metric of toMetrics().prometheus) register.registerMetric(metric)`. */
  readonly prometheus: readonly PrometheusMetric[]
  /** For OpenTelemetry: creates the instruments, which read the figures at each collection. */
  observe(meter: MeterLike): void
}

interface Sample {
  value: number
  labels: MetricLabels
}

/**
 * Exports the figures of `stats()` to prom-client and OpenTelemetry, in their units and naming conventions. Nothing is counted or stored
 * for this: the figures are read at each collection.
 *
 * @param sources - The objects to watch. By default, every channel, publisher and subscription that is open in this process at that time.
 * @throws {@link RingfenceError} INVALID_ARGUMENT for a value that has no figures
 */
export function toMetrics(...sources: MetricsSource[]): Metrics {
  for (const source of sources)
    if (kindOf(source) === undefined)
      throw invalid(
        `toMetrics takes channels, listeners, memberships, publishers, subscriptions and merges, not ${show(source)}`,
      )
  const watched = () => (sources.length > 0 ? sources : ([...openNow.keys()] as MetricsSource[]))
  return {
    prometheus: DEFINITIONS.map((definition) => toPrometheus(definition, watched)),
    observe: (meter) => observe(meter, watched),
  }
}

function toPrometheus(definition: Definition, watched: () => MetricsSource[]): PrometheusMetric {
  const { prometheus: name, help, type } = definition
  const fixed = { name, help, type, aggregator: 'sum' } as const
  const values = () => samplesOf(definition, watched(), labelsOf)
  return { ...fixed, get: () => Promise.resolve({ ...fixed, values: values() }), reset: () => {} }
}

function labelsOf(source: MetricsSource, check: string | undefined): MetricLabels {
  return {
    kind: kindOf(source)!,
    address: addressOf(source) ?? '',
    ...('peer' in source ? { peer_pid: String(source.peer.pid) } : {}),
    ...(check === undefined ? {} : { check }),
  }
}

function observe(meter: MeterLike, watched: () => MetricsSource[]): void {
  const instruments = new Map<string, unknown>()
  for (const { name, help: description, unit, type } of DEFINITIONS) {
    if (instruments.has(name)) continue
    const options = { description, unit }
    const made =
      type === 'counter' ? meter.createObservableCounter(name, options) : meter.createObservableGauge(name, options)
    instruments.set(name, made)
  }
  meter.addBatchObservableCallback(
    (result) => {
      const all = watched()
      for (const definition of DEFINITIONS)
        for (const { value, labels } of samplesOf(definition, all, attributesOf))
          result.observe(instruments.get(definition.name), value, labels)
    },
    [...instruments.values()],
  )
}

function attributesOf(source: MetricsSource, check: string | undefined): MetricLabels {
  const address = addressOf(source)
  return {
    'messaging.system': 'ringfence',
    ...(address === null ? {} : { 'messaging.destination.name': address }),
    'ringfence.kind': kindOf(source)!,
    ...('peer' in source ? { 'ringfence.peer.pid': String(source.peer.pid) } : {}),
    ...(check === undefined ? {} : { 'ringfence.check': check }),
  }
}

/**
 * Sums up the sources with equal labels, such as two channels with one process. A second sample with these labels would replace the first.
 */
function samplesOf({ figure, scale }: Definition, sources: MetricsSource[], labelsFor: typeof labelsOf): Sample[] {
  const samples = new Map<string, Sample>()
  const add = (value: number, labels: MetricLabels) => {
    const key = JSON.stringify(labels)
    samples.set(key, { value: value + (samples.get(key)?.value ?? 0), labels })
  }
  for (const source of sources) {
    const value = (source.stats() as Partial<Record<Figure, number | Record<string, number>>>)[figure]
    if (typeof value === 'number') add(value * scale, labelsFor(source, undefined))
    else for (const [check, count] of Object.entries(value ?? {})) add(count, labelsFor(source, check))
  }
  return [...samples.values()]
}

const KINDS = [
  [Listener, 'listener'],
  [Membership, 'membership'],
  [Merge, 'merge'],
] as const

function kindOf(source: unknown): string | undefined {
  if (!wasOpened(source)) return KINDS.find(([known]) => source instanceof known)?.[1]
  // The object may come from the other build, which has different classes.
  if ('role' in source) return 'channel'
  return 'subscribers' in source ? 'publisher' : 'subscription'
}
