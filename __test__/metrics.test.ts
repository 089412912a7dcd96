// Metrics as prom-client and OpenTelemetry read them, with the real packages.

import { once } from 'node:events'

import { MeterProvider, MetricReader } from '@opentelemetry/sdk-metrics'
import test from 'ava'
import { publish, RingfenceError, toMetrics } from 'ringfence'
import prometheus from 'prom-client'

import { abstractAddress } from './support/address.js'
import { internals } from './support/internals.js'
import { listenHere, pair } from './support/partner.js'

interface Insides {
  toMetrics: typeof toMetrics
  trackOpen(made: object): void
  openResources: Set<object>
  Listener: { prototype: object }
}

const inside = internals<Insides>

const [{ toMetrics: metricsOf }, { trackOpen, openResources }, { Listener }] = await Promise.all([
  inside('adapters/metrics.js'),
  inside('runtime/diagnostics.js'),
  inside('endpoint/service.js'),
])

test('prom-client reads the metrics of the given resources', async (t) => {
  const { channel, partner, address } = await pair(t)
  const listener = await listenHere(t, abstractAddress(), { policy: { authorize: () => false } })
  // The peer may be notified before this process.
  const refused = once(listener, 'refused')
  await t.throwsAsync(partner.connect(listener.address), { code: 'ERR_RINGFENCE_PEER_REFUSED' })
  await refused
  await channel.send('hello')
  const registry = new prometheus.Registry()
  const registers: { registerMetric(metric: object): void } = registry
  for (const metric of toMetrics(channel, listener).prometheus) registers.registerMetric(metric)
  const text = await registry.metrics()
  const labels = `kind="channel",address="${address}",peer_pid="${partner.pid}"`
  t.true(text.includes(`ringfence_messages_sent_total{${labels}} 1\n`), text)
  t.true(text.includes(`ringfence_sent_bytes_total{${labels}} 5\n`), text)
  t.true(text.includes('# TYPE ringfence_sent_bytes_total counter\n'))
  t.true(text.includes(`ringfence_ring_capacity_bytes{${labels}} ${channel.capacity}\n`))
  t.true(text.includes(`ringfence_refused_total{kind="listener",address="${listener.address}",check="authorize"} 1\n`))
  await channel.send('again')
  t.true(
    (await registry.metrics()).includes(`ringfence_messages_sent_total{${labels}} 2\n`),
    'read when it is collected',
  )
})

class Reader extends MetricReader {
  protected override onForceFlush(): Promise<void> {
    return Promise.resolve()
  }
  protected override onShutdown(): Promise<void> {
    return Promise.resolve()
  }
}

test('OpenTelemetry reads every open resource', async (t) => {
  const { channel, partner, address } = await pair(t)
  const publisher = await publish(abstractAddress())
  t.teardown(() => publisher.close())
  await channel.send('hello')
  await publisher.send('to all')
  const reader = new Reader()
  const provider = new MeterProvider({ readers: [reader] })
  t.teardown(() => provider.shutdown())
  toMetrics().observe(provider.getMeter('ringfence'))
  const collect = async (name: string) => {
    const { resourceMetrics, errors } = await reader.collect()
    t.deepEqual(errors, [])
    const metric = resourceMetrics.scopeMetrics[0]!.metrics.find(({ descriptor }) => descriptor.name === name)!
    const { unit } = metric.descriptor
    return { unit, points: metric.dataPoints.map(({ value, attributes }) => ({ value, attributes })) }
  }
  const sent = await collect('messaging.client.sent.messages')
  t.is(sent.unit, '{message}')
  const system = { 'messaging.system': 'ringfence' }
  const ofChannel = { 'ringfence.kind': 'channel', 'ringfence.peer.pid': String(partner.pid) }
  const here = sent.points.filter(({ attributes }) =>
    [address, publisher.address].includes(String(attributes['messaging.destination.name'])),
  )
  t.deepEqual(here, [
    { value: 1, attributes: { ...system, 'messaging.destination.name': address, ...ofChannel } },
    {
      value: 1,
      attributes: { ...system, 'messaging.destination.name': publisher.address, 'ringfence.kind': 'publisher' },
    },
  ])
  t.is((await collect('ringfence.sent')).unit, 'By')

  const open = async () => {
    const metric = toMetrics().prometheus.find(({ name }) => name === 'ringfence_messages_sent_total')!
    return (await metric.get()).values.some(({ labels }) => labels['address'] === address)
  }
  t.true(await open())
  await channel.close()
  t.false(await open(), 'what has ended is not told any more')
})

test('objects without statistics are refused', (t) => {
  for (const value of [{}, null, undefined, 5, 'a channel', () => {}, { stats: () => ({}), role: 'host' }]) {
    const error = t.throws(() => toMetrics(value as never), { instanceOf: RingfenceError })
    t.is(error.code, 'ERR_RINGFENCE_INVALID_ARGUMENT')
  }
})

type Figures = Record<string, number | Record<string, number>>

/** An open resource, of this build or the other one. */
function opened(figures: Figures, address: string | null, more: object): never {
  const made = { stats: () => figures, address, ...more }
  trackOpen(made)
  // Tests of all open resources must not count these.
  openResources.delete(made)
  return made as never
}

/** The samples of all sources for both packages: values by labels. */
async function reported(...sources: never[]) {
  const metrics = metricsOf(...sources)
  const forPrometheus: Record<string, [number, object][]> = {}
  for (const metric of metrics.prometheus) {
    const { name, help, type, aggregator, values } = await metric.get()
    if (name !== metric.name || help !== metric.help || type !== metric.type || aggregator !== 'sum')
      throw new Error(name)
    if (values.length > 0) forPrometheus[`${type} ${name}`] = values.map(({ value, labels }) => [value, labels])
  }
  const forOpenTelemetry: Record<string, [number, object][]> = {}
  const all: string[] = []
  const make = (type: string) => (name: string, options: { description: string; unit: string }) => {
    all.push(name)
    return `${type} ${name} in ${options.unit}`
  }
  metrics.observe({
    createObservableCounter: make('counter'),
    createObservableGauge: make('gauge'),
    addBatchObservableCallback: (callback, observables) => {
      const observe = (observable: string, value: number, attributes: object) => {
        if (!observables.includes(observable)) throw new Error(`${observable} was not made`)
        ;(forOpenTelemetry[observable] ??= []).push([value, attributes])
      }
      callback({ observe })
    },
  })
  return { forPrometheus, forOpenTelemetry, all }
}

test('each metric has its unit, and the labels of its resource', async (t) => {
  const peer = { pid: 12 }
  const channel = opened({ messagesSent: 3, waitedMicros: 1_500_000, queuedBytes: 7 }, '@a', { role: 'host', peer })
  const line = opened({ messagesSent: 4 }, null, { role: 'guest', peer })
  const publisher = opened({ messagesSent: 5 }, '@b', { subscribers: [] })
  const subscription = opened({ lag: 6 }, '@c', { peer })
  const listener = Object.create(Listener.prototype, {
    stats: { value: () => ({ refused: { uid: 2, NO_SPACE: 1 }, open: 0 }) },
    address: { value: '@d' },
  }) as never
  const { forPrometheus, forOpenTelemetry, all } = await reported(channel, line, publisher, subscription, listener)
  const ofChannel = { kind: 'channel', address: '@a', peer_pid: '12' }
  const ofListener = { kind: 'listener', address: '@d' }
  t.deepEqual(forPrometheus, {
    'counter ringfence_messages_sent_total': [
      [3, ofChannel],
      [4, { ...ofChannel, address: '' }],
      [5, { kind: 'publisher', address: '@b' }],
    ],
    'counter ringfence_waited_seconds_total': [[1.5, ofChannel]],
    'counter ringfence_refused_total': [
      [2, { ...ofListener, check: 'uid' }],
      [1, { ...ofListener, check: 'NO_SPACE' }],
    ],
    'gauge ringfence_open_peers': [[0, ofListener]],
    'gauge ringfence_queued_bytes': [[7, ofChannel]],
    'gauge ringfence_lag_bytes': [[6, { kind: 'subscription', address: '@c', peer_pid: '12' }]],
  })
  const of = (kind: string, address?: string, more: object = {}) => {
    const place = address === undefined ? {} : { 'messaging.destination.name': address }
    return { 'messaging.system': 'ringfence', ...place, 'ringfence.kind': kind, ...more }
  }
  const withPeer = { 'ringfence.peer.pid': '12' }
  t.deepEqual(forOpenTelemetry, {
    'counter messaging.client.sent.messages in {message}': [
      [3, of('channel', '@a', withPeer)],
      [4, of('channel', undefined, withPeer)],
      [5, of('publisher', '@b')],
    ],
    'counter ringfence.waited in s': [[1.5, of('channel', '@a', withPeer)]],
    'counter ringfence.refused in {peer}': [
      [2, of('listener', '@d', { 'ringfence.check': 'uid' })],
      [1, of('listener', '@d', { 'ringfence.check': 'NO_SPACE' })],
    ],
    'gauge ringfence.open in {peer}': [[0, of('listener', '@d')]],
    'gauge ringfence.queued in By': [[7, of('channel', '@a', withPeer)]],
    'gauge ringfence.lag in By': [[6, of('subscription', '@c', withPeer)]],
  })
  t.is(new Set(all).size, all.length, 'what two figures are told by is made once')
})

test('resources with the same labels are one sample, the sum: collectors would drop all but one', async (t) => {
  const peer = { pid: 12 }
  const [one, other] = [3, 4].map((messagesSent) => opened({ messagesSent }, '@a', { role: 'host', peer })) as [
    never,
    never,
  ]
  const elsewhere = opened({ messagesSent: 5 }, '@a', { role: 'host', peer: { pid: 13 } })
  const { forPrometheus, forOpenTelemetry } = await reported(one, elsewhere, other)
  const values = (samples: Record<string, [number, object][]>) =>
    Object.values(samples).map((all) => all.map(([value]) => value))
  t.deepEqual(values(forPrometheus), [[7, 5]])
  t.deepEqual(values(forOpenTelemetry), [[7, 5]])
})
