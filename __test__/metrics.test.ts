// The figures as prom-client and OpenTelemetry read them: with the real packages.

import { once } from 'node:events'

import { MeterProvider, MetricReader } from '@opentelemetry/sdk-metrics'
import test from 'ava'
import { publish, RingfenceError, toMetrics } from 'ringfence'
import prometheus from 'prom-client'

import { abstractAddress } from './support/address.js'
import { listenHere, pair } from './support/partner.js'

test('prom-client reads the figures of what is watched', async (t) => {
  const { channel, partner, address } = await pair(t)
  const listener = await listenHere(t, abstractAddress(), { policy: { authorize: () => false } })
  // The peer may hear of it before this process does.
  const refused = once(listener, 'refused')
  await t.throwsAsync(partner.connect(listener.address), { code: 'ERR_RINGFENCE_PEER_REFUSED' })
  await refused
  await channel.send('hello')
  const registry = new prometheus.Registry()
  for (const metric of toMetrics(channel, listener).prometheus)
    registry.registerMetric(metric as unknown as prometheus.Metric)
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

test('OpenTelemetry reads everything that is open', async (t) => {
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

test('what has no figures is refused', (t) => {
  const error = t.throws(() => toMetrics({} as never), { instanceOf: RingfenceError })
  t.is(error.code, 'ERR_RINGFENCE_INVALID_ARGUMENT')
})
