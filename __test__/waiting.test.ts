import test from 'ava'

import { pattern } from './support/bytes.js'
import { pair } from './support/partner.js'
import { within } from './support/until.js'

/** More checks than the core makes before it checks the line as well. */
const MANY_LOOKS = 10_000

test.serial('a waitReadable is not forgotten because of checks that found nothing', async (t) => {
  const { channel, partner } = await pair(t)
  for (const way of ['tryReceive', 'receiveEach', 'trySend'] as const) {
    const waiting = channel.waitReadable()
    await partner.run((kit) => {
      setTimeout(() => void kit.channel.send('taken by a look'), 20)
    })
    // In this turn of the event loop the message is found and taken, and the checks go on. The wakeup is still in the
    // line.
    while (channel.tryReceive() === undefined);
    if (way === 'trySend') while (channel.trySend(pattern(0, 100_000)));
    for (let look = 0; look < MANY_LOOKS; look += 1) {
      if (way === 'tryReceive') channel.tryReceive()
      else if (way === 'receiveEach') channel.receiveEach(() => {})
      else channel.trySend(pattern(0, 100_000))
    }
    await partner.run((kit) => kit.channel.send('for the one that waits'))
    t.true(await within(waiting, 'the message'), way)
    t.is(String(channel.tryReceive()), 'for the one that waits', way)
  }
})

test.serial('a waiting send is not forgotten because of checks that found nothing', async (t) => {
  const { channel, partner } = await pair(t, { here: { capacity: 4096 } })
  const message = pattern(0, 50_000)
  const waiting = channel.send(message)
  await partner.run((kit) => {
    setTimeout(() => (kit.keep['read'] = kit.channel.receive()), 20)
  })
  // Until the peer has read and sent a wakeup, and long after that.
  const end = performance.now() + 500
  while (performance.now() < end) channel.tryReceive()
  await within(waiting, 'the send')
  t.deepEqual(await partner.run((kit) => kit.keep['read']), message)
})

test.serial('a waiting send is not forgotten when the peer’s end is found', async (t) => {
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
  t.is(await channel.receive(), undefined)
  await within(waiting, 'the send')
  await ended
  t.deepEqual(await partner.run((kit) => kit.keep['read']), message)
})

for (const stop of ['at its limit', 'by an error'] as const) {
  test.serial(`a call of receiveEach that stops ${stop} wakes a waiting send, however little was read`, async (t) => {
    const { channel, partner } = await pair(t, { there: { capacity: 1 << 20 } })
    await partner.run(async (kit) => {
      const message = new Uint8Array(1000)
      while (kit.channel.trySend(message));
      kit.keep['sent'] = kit.channel.send(message)
      // The sender checks for some turns of its event loop before it requests a wakeup.
      for (let turn = 0; turn < 100; turn += 1) await new Promise((resolve) => setImmediate(resolve))
    })
    if (stop === 'at its limit') {
      t.is(
        channel.receiveEach(() => {}, 1),
        1,
      )
    } else {
      const thrown = new Error('of the visitor')
      t.is(
        t.throws(() =>
          channel.receiveEach(() => {
            throw thrown
          }),
        ),
        thrown,
      )
    }
    await within(
      partner.run(async (kit) => {
        await kit.keep['sent']
      }),
      'the send',
    )
  })
}
