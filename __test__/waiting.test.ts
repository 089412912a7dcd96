import test from 'ava'

import { pattern } from './support/bytes.js'
import { pair } from './support/partner.js'
import { soon } from './support/until.js'

/** More looks than the core makes before it looks at the line as well. */
const MANY_LOOKS = 10_000

test.serial('a receive that waits is not forgotten for looks that found nothing in between', async (t) => {
  const { channel, partner } = await pair(t)
  for (const way of ['tryReceive', 'drain', 'trySend'] as const) {
    const waiting = channel.receive()
    await partner.run((kit) => {
      setTimeout(() => void kit.channel.send('taken by a look'), 20)
    })
    // This turn of the event loop sees the message come, takes it, and goes on looking. The bell is in the line.
    while (channel.tryReceive() === null);
    if (way === 'trySend') while (channel.trySend(pattern(0, 100_000)));
    for (let look = 0; look < MANY_LOOKS; look += 1) {
      if (way === 'tryReceive') channel.tryReceive()
      else if (way === 'drain') channel.drain(() => {})
      else channel.trySend(pattern(0, 100_000))
    }
    await partner.run((kit) => kit.channel.send('for the one that waits'))
    t.is(String(await soon(waiting, 'the message')), 'for the one that waits', way)
  }
})

test.serial('a send that waits is not forgotten for looks that found nothing in between', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  const message = pattern(0, 50_000)
  const waiting = channel.send(message)
  await partner.run((kit) => {
    setTimeout(() => (kit.keep['read'] = kit.channel.receive()), 20)
  })
  // Until the peer has read, and rung, and for long after that.
  const end = performance.now() + 500
  while (performance.now() < end) channel.tryReceive()
  await soon(waiting, 'the send')
  t.deepEqual(await partner.run((kit) => kit.keep['read']), message)
})

test.serial('a send that waits is not forgotten where the peer’s end is found', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  const message = pattern(0, 50_000)
  const waiting = channel.send(message)
  const ended = channel.end()
  await partner.run(async (kit) => {
    setTimeout(async () => {
      await kit.channel.end()
      kit.keep['read'] = kit.channel.receive()
    }, 20)
  })
  const end = performance.now() + 500
  while (performance.now() < end) void channel.readableEnded
  t.is(await channel.receive(), null)
  await soon(waiting, 'the send')
  await ended
  t.deepEqual(await partner.run((kit) => kit.keep['read']), message)
})

for (const stop of ['at its limit', 'by an error'] as const) {
  test.serial(`a drain that stops ${stop} lets a send that waits go on, however little was read`, async (t) => {
    const { channel, partner } = await pair(t, { there: { capacity: 1 << 20 } })
    await partner.run(async (kit) => {
      const message = new Uint8Array(1000)
      while (kit.channel.trySend(message));
      kit.keep['sent'] = kit.channel.send(message)
      // The sender looks again for some turns of its event loop before it has this side ring.
      for (let turn = 0; turn < 100; turn += 1) await new Promise((resolve) => setImmediate(resolve))
    })
    if (stop === 'at its limit') {
      t.is(
        channel.drain(() => {}, 1),
        1,
      )
    } else {
      const thrown = new Error('of the visitor')
      t.is(
        t.throws(() =>
          channel.drain(() => {
            throw thrown
          }),
        ),
        thrown,
      )
    }
    await soon(
      partner.run(async (kit) => {
        await kit.keep['sent']
      }),
      'the send',
    )
  })
}

interface Buffered {
  tryReceive(): Buffer | null
  wait(takes: boolean): { promise: Promise<Buffer | null> }
  awake(): void
}

/** What a reader asks of the binding, and a ring that has so many messages of 100 bytes at each look. */
class Ring {
  readonly asked: string[] = []
  readonly capacity = 1 << 20

  constructor(
    readonly large: number,
    readonly looks: number[],
  ) {}

  pullHeld(into: Buffer, from: number): number {
    const room = Math.floor((into.length - from) / 112)
    if (room === 0 && this.looks[0]) return this.large - 100
    const count = Math.min(this.looks.shift() ?? 0, room)
    this.asked.push(count === 0 ? 'nothing' : 'something')
    const words = new Uint32Array(into.buffer, from)
    // A header of 8 bytes, and the payload up to a multiple of 8.
    for (let number = 0; number < count; number += 1) words[number * 28] = 100
    return count * 112
  }

  armReader(): number {
    this.asked.push('armed')
    return 1
  }

  release(): void {}
}

interface Insides {
  ReceiveBuffer: new (ring: Ring, busy: boolean, ...told: (() => void)[]) => Buffered
  LARGE: number
}

/** What the package does not export. */
async function insides(): Promise<Insides> {
  const [buffers, natives] = await Promise.all(
    ['receive-buffer.js', 'native.js'].map(
      (file) => import(new URL(`../../dist/esm/${file}`, import.meta.url).href) as Promise<Insides>,
    ),
  )
  return { ReceiveBuffer: buffers!.ReceiveBuffer, LARGE: natives!.LARGE }
}

/** Reads what is there now, and waits for one more. */
function readOn(buffer: Buffered): Promise<Buffer | null> {
  while (buffer.tryReceive() !== null);
  return buffer.wait(true).promise
}

async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn += 1) await new Promise((resolve) => setImmediate(resolve))
}

test('a reader of a stream looks some times more before it has the peer ring, and sleeps then', async (t) => {
  const { ReceiveBuffer, LARGE } = await insides()
  const ignore = () => {}
  const open = (ring: Ring) => new ReceiveBuffer(ring, false, ignore, ignore, ignore)

  const stream = new Ring(LARGE, [50, 0, 0, 0, 0, 50])
  const buffer = open(stream)
  t.is((await readOn(buffer))!.length, 100)
  t.false(stream.asked.includes('armed'), 'more has come within a few turns')
  stream.asked.length = 0
  const waiting = readOn(buffer)
  await turns(100)
  const looks = stream.asked.indexOf('armed')
  t.true(looks > 5, 'it looks some times')
  t.true(looks < 15, 'and not for long')
  t.is(stream.asked.length, looks + 2, 'it sleeps, after a last look')
  // One message at a time is no stream: the peer is to ring at once.
  stream.looks.push(1)
  buffer.awake()
  t.is((await waiting)!.length, 100)
  stream.asked.length = 0
  void readOn(buffer)
  await turns(100)
  t.deepEqual(stream.asked, ['nothing', 'nothing', 'armed', 'nothing'])
})
