// Exports the figures to monitoring systems: as prom-client metrics, and as observable instruments of OpenTelemetry.

import type { Publisher } from '../endpoint/publisher.js'
import type { Subscription } from '../channel/subscription.js'
import type { Channel } from '../channel/channel.js'
import { openResources, isKnownResource } from '../runtime/diagnostics.js'
import { invalid, show } from '../errors.js'
import { Membership } from '../endpoint/membership.js'
import { Merge } from '../channel/merge.js'
import { Listener } from '../endpoint/service.js'
import { FIGURES } from '../channel/stats.js'

/** The objects that have figures. */
export type MetricsSource =
  // oxlint-disable typescript/no-explicit-any -- of whichever values
  Channel<any, any> | Listener<any, any> | Membership<any, any> | Publisher<any> | Subscription<any> | Merge<any, any>
// oxlint-enable typescript/no-explicit-any

/** The names that OpenTelemetry has for such figures. */
const CONVENTIONS: Partial<Record<string, string>> = {
  messagesSent: 'messaging.client.sent.messages',
  messagesReceived: 'messaging.client.consumed.messages',
}

/** How the names of Prometheus end for a unit, which is a base unit there. */
const SUFFIXES: Partial<Record<string, string>> = { By: '_bytes', s: '_seconds' }

/** The metrics: counters first. */
const DEFINITIONS = (Object.keys(FIGURES) as (keyof typeof FIGURES)[])
  .map((figure) => {
    const { type, name, unit, help, prometheusName } = FIGURES[figure]
    const stem = (prometheusName ?? name).replaceAll('.', '_') + (SUFFIXES[unit] ?? '')
    return {
      figure,
      prometheus: `ringfence_${stem}${type === 'counter' ? '_total' : ''}`,
      name: CONVENTIONS[figure] ?? `ringfence.${name}`,
      unit,
      help,
      type,
      /** The factor that converts the figure to the unit. */
      scale: unit === 's' ? 1e-6 : 1,
    }
  })
  .sort((a, b) => a.type.localeCompare(b.type))

type Definition = (typeof DEFINITIONS)[number]

/** Labels of a sample. */
export type MetricLabels = Record<string, string>

/** A metric as prom-client's registry expects it (`registry.registerMetric`). */
export interface PrometheusMetric {
  name: string
  help: string
  type: 'counter' | 'gauge'
  aggregator: 'sum'
  /** Returns the current values. */
  get(): Promise<Omit<PrometheusMetric, 'get' | 'reset'> & { values: { value: number; labels: MetricLabels }[] }>
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
 * @param sources - The objects to watch, and no others. Without any, every channel, publisher and subscription that is open in this process
 * at the time of a collection.
 * @throws {@link RingfenceError} INVALID_ARGUMENT for a value that has no figures
 */
export function toMetrics(...sources: MetricsSource[]): Metrics {
  for (const source of sources)
    if (kindOf(source) === undefined)
      throw invalid(
        `toMetrics takes channels, listeners, memberships, publishers, subscriptions and merges, not ${show(source)}`,
      )
  const watched = () => (sources.length > 0 ? sources : ([...openResources] as MetricsSource[]))
  return {
    prometheus: DEFINITIONS.map((definition) => toPrometheus(definition, watched)),
    observe: (meter) => observe(meter, watched),
  }
}

function toPrometheus(definition: Definition, watched: () => MetricsSource[]): PrometheusMetric {
  const { prometheus: name, help, type } = definition
  const header = { name, help, type, aggregator: 'sum' } as const
  const values = () => samplesOf(definition, watched(), labelsOf)
  return { ...header, get: () => Promise.resolve({ ...header, values: values() }), reset: () => {} }
}

/** Names the source of a figure, and the check of a refusal. */
type Labels = (source: MetricsSource, check: string | undefined) => MetricLabels

const labelsOf: Labels = (source, check) => ({
  kind: kindOf(source)!,
  address: source.address ?? '',
  ...('peer' in source && { peer_pid: String(source.peer.pid) }),
  ...(check !== undefined && { check }),
})

const attributesOf: Labels = (source, check) => ({
  'messaging.system': 'ringfence',
  ...(source.address !== null && { 'messaging.destination.name': source.address }),
  'ringfence.kind': kindOf(source)!,
  ...('peer' in source && { 'ringfence.peer.pid': String(source.peer.pid) }),
  ...(check !== undefined && { 'ringfence.check': check }),
})

function observe(meter: MeterLike, watched: () => MetricsSource[]): void {
  const instruments = DEFINITIONS.map(({ name, help: description, unit, type }) => {
    const options = { description, unit }
    return type === 'counter'
      ? meter.createObservableCounter(name, options)
      : meter.createObservableGauge(name, options)
  })
  meter.addBatchObservableCallback((result) => {
    const all = watched()
    for (const [index, definition] of DEFINITIONS.entries())
      for (const { value, labels } of samplesOf(definition, all, attributesOf))
        result.observe(instruments[index], value, labels)
  }, instruments)
}

/**
 * Sums up the sources with equal labels, such as two channels with one process. A second sample with these labels would replace the first.
 */
function samplesOf({ figure, scale }: Definition, sources: MetricsSource[], labelsFor: Labels): Sample[] {
  const samples = new Map<string, Sample>()
  const add = (value: number, labels: MetricLabels) => {
    const key = JSON.stringify(labels)
    samples.set(key, { value: value + (samples.get(key)?.value ?? 0), labels })
  }
  for (const source of sources) {
    const value = (source.stats() as Partial<Record<typeof figure, number | Record<string, number>>>)[figure]
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
  if (!isKnownResource(source)) return KINDS.find(([Class]) => source instanceof Class)?.[1]
  // The object may come from the other build, which has different classes.
  if ('role' in source) return 'channel'
  return 'subscribers' in source ? 'publisher' : 'subscription'
}
