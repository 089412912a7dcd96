import { setImmediate as turn, setTimeout as pause } from 'node:timers/promises'

import test from 'ava'

import { abstractAddress, untilBound } from './support/address.js'
import { pattern } from './support/bytes.js'
import { joinHere, pair, Partner, type Exit } from './support/partner.js'
import { isPending, within, until } from './support/until.js'

/** Ways to watch the line: by a handle of the event loop, or by a thread if there is no libuv. */
const watchers = ['the event loop', 'a thread'] as const
type Watcher = (typeof watchers)[number]

/** A partner whose channels are watched in this way. */
async function watching(t: Parameters<typeof Partner.start>[0], watcher: Watcher): Promise<Partner> {
  const partner = await Partner.start(t)
  if (watcher === 'a thread') {
    // With this version, the package assumes that the process has no libuv.
    await partner.run(() => void Object.defineProperty(process.versions, 'bun', { value: '1.0.0' }))
  }
  return partner
}

/** Makes the partner idle for a second. Returns the milliseconds of CPU time and the wake-ups of all threads. */
function idle(partner: Partner): Promise<{ cpu: number; wakeUps: number }> {
  return partner.run(async (kit) => {
    const { readdirSync, readFileSync } = kit.require('node:fs') as typeof import('node:fs')
    const wakeUps = () => {
      let sum = 0
      for (const task of readdirSync('/proc/self/task')) {
        let status
        try {
          status = readFileSync(`/proc/self/task/${task}/status`, 'utf8')
        } catch {
          // It has exited since the list was read.
          continue
        }
        sum += Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(status)![1])
      }
      return sum
    }
    const before = wakeUps()
    const start = process.cpuUsage()
    await new Promise((resolve) => setTimeout(resolve, 1000))
    const { user, system } = process.cpuUsage(start)
    return { cpu: (user + system) / 1000, wakeUps: wakeUps() - before }
  })
}

for (const watcher of watchers) {
  test.serial(
    `an idle channel that ${watcher} watches uses no CPU and wakes no thread, whatever calls wait on it`,
    async (t) => {
      const partners = await Promise.all(['nothing', 'reading', 'writing'].map(() => watching(t, watcher)))
      const [nothing, reading, writing] = partners as [Partner, Partner, Partner]
      for (const partner of partners) await pair(t, { partner, there: { capacity: 4096 } })
      await reading.run((kit) => {
        kit.keep['waiting'] = kit.channel.receive()
      })
      await writing.run((kit) => {
        // The channel is closed before this process ends.
        kit.keep['waiting'] = kit.channel.send(kit.bytes.pattern(0, 100_000)).catch(() => {})
      })
      let idleSeconds = 0
      // Work left from the start, such as compiling, takes a while on a busy machine.
      await until(async () => {
        const costs = await Promise.all([idle(nothing), idle(reading), idle(writing)])
        const areIdle = costs.every(({ cpu, wakeUps }) => cpu < 20 && wakeUps < 20)
        if (!areIdle) t.log(JSON.stringify(costs))
        idleSeconds = areIdle ? idleSeconds + 1 : 0
        return idleSeconds === 2
      }, 'each of them is idle for two seconds')
      t.is(idleSeconds, 2)
    },
  )

  test.serial(`messages wake a process whose channel ${watcher} watches, both ways`, async (t) => {
    const partner = await echoing(t, watcher)
    const { channel } = await pair(t, { partner, here: { capacity: 4096 } })
    for (let number = 0; number < 500; number += 1) {
      const message = pattern(number, (number * 67) % 10_000)
      const sent = channel.send(message)
      const answer = await within(channel.receive(), `the answer to message ${number}`)
      if (!answer!.equals(message)) return t.fail(`message ${number} came back as another`)
      await sent
    }
    // A thread sets its name once it runs. It has done so already.
    const threads = await partner.run((kit) => {
      const { readdirSync, readFileSync } = kit.require('node:fs') as typeof import('node:fs')
      return readdirSync('/proc/self/task').map((task) => readFileSync(`/proc/self/task/${task}/comm`, 'utf8').trim())
    })
    return t.is(threads.includes('ringfence-line'), watcher === 'a thread')
  })

  test.serial(`a process whose channel ${watcher} watches exits on its own once the peer has closed`, async (t) => {
    const partner = await echoing(t, watcher)
    const { channel } = await pair(t, { partner })
    const exited = partner.detach()
    await channel.send('are you there?')
    t.is(String(await channel.receive()), 'are you there?')
    t.true(await isPending(exited))
    await channel.close()
    t.deepEqual(await within(exited, 'its exit'), { code: 0, signal: null })
  })

  test.serial(
    `an open channel that ${watcher} watches keeps the process alive though no call waits on it`,
    async (t) => {
      const partner = await watching(t, watcher)
      const { channel } = await pair(t, { partner })
      const exited = partner.detach()
      await staysAlive(t, exited)
      await channel.close()
      t.deepEqual(await within(exited, 'its exit'), { code: 0, signal: null })
    },
  )

  test.serial(`unref lets a process exit whose channel ${watcher} watches, ref keeps it`, async (t) => {
    const kept = await watching(t, watcher)
    const { channel } = await pair(t, { partner: kept })
    await kept.run((kit) => void kit.channel.unref().ref())
    const keptExit = kept.detach()
    await staysAlive(t, keptExit)
    await channel.close()
    t.is((await within(keptExit, 'its exit')).code, 0)

    const partner = await watching(t, watcher)
    const second = await pair(t, { partner })
    await partner.run(async (kit) => {
      kit.channel.unref()
      kit.keep['waiting'] = kit.channel.receive()
      await kit.channel.send('goodbye')
    })
    t.deepEqual(await within(partner.detach(), 'its exit'), { code: 0, signal: null })
    t.is(String(await second.channel.receive()), 'goodbye')
    await t.throwsAsync(second.channel.receive(), { code: 'ERR_RINGFENCE_PEER_LOST' })
    t.is((await second.channel.closed).reason, 'lost')
  })

  test.serial(`unref lets a process exit while its peer sends endlessly: ${watcher} watches`, async (t) => {
    for (const way of ['a loop', 'receiveEach', 'a merge', 'a stream', 'tokens'] as const) {
      const { channel, partner } = await pair(t, { partner: await watching(t, watcher) })
      while (channel.trySend(pattern(0, 64)));
      let isOver = false
      const sending = (async () => {
        while (!isOver) {
          if (way === 'tokens') for (let token = 0; token < 200; token += 1) channel.sendToken(token)
          await (way === 'tokens' ? turn() : channel.send(pattern(0, 64)))
        }
      })().catch(() => {})
      await partner.run((kit, how) => {
        kit.channel.unref()
        // Slower than the peer.
        const work = () => {
          const end = performance.now() + 0.05
          while (performance.now() < end);
        }
        void (async () => {
          if (how === 'a loop') for await (const _ of kit.channel) work()
          else if (how === 'a merge') for await (const _ of kit.ringfence.merge([kit.channel])) work()
          else if (how === 'a stream') kit.channel.duplex().on('data', work)
          else if (how === 'tokens') for await (const _ of kit.channel.tokens()) work()
          else while (await kit.channel.waitReadable()) kit.channel.receiveEach(work)
        })()
        // The event loop turns in between.
        return new Promise<void>((resolve) => setTimeout(resolve, 10))
      }, way)
      t.deepEqual(await within(partner.detach(), `its exit, with ${way}`), { code: 0, signal: null })
      isOver = true
      await sending
      await channel.close()
    }
  })

  test.serial(`the death of a process is noticed by one whose channel ${watcher} watches`, async (t) => {
    const partner = await watching(t, watcher)
    const other = await Partner.start(t)
    const address = abstractAddress()
    await Promise.all([partner.join(address), other.join(address)])
    const waiting = partner.run(async (kit) => [
      await kit.channel.receive().catch((error: { code: string }) => error.code),
      (await kit.channel.closed).reason,
    ])
    await other.kill()
    t.deepEqual(await within(waiting, 'its end'), ['ERR_RINGFENCE_PEER_LOST', 'lost'])
  })
}

/** No event reports that the process stays alive, so wait for half a second. */
async function staysAlive(t: Parameters<typeof Partner.start>[0], exited: Promise<Exit>): Promise<void> {
  t.is(await Promise.race([exited, pause(500, 'alive')]), 'alive')
}

/** A partner that echoes messages on the channel by which it is joined. */
async function echoing(t: Parameters<typeof Partner.start>[0], watcher: Watcher): Promise<Partner> {
  const partner = await watching(t, watcher)
  await partner.run((kit) => {
    const { join } = kit
    kit.join = (async (address: string, options?: object) => {
      const channel = await join(address, options)
      void (async () => {
        for await (const message of channel) await channel.send(message)
      })()
      return channel
    }) as typeof join
  })
  return partner
}

test.serial('a join that waits for a partner keeps the process alive', async (t) => {
  const address = abstractAddress()
  const partner = await echoing(t, 'the event loop')
  void partner.join(address)
  await untilBound(address)
  const exited = partner.detach()
  await staysAlive(t, exited)
  const channel = await joinHere(t, address)
  await channel.send('are you there?')
  t.is(String(await channel.receive()), 'are you there?')
  await channel.close()
  t.deepEqual(await within(exited, 'its exit'), { code: 0, signal: null })
})

test.serial('a process whose join is cancelled exits on its own', async (t) => {
  const address = abstractAddress()
  const partner = await Partner.start(t)
  await partner.run((kit, where: string) => {
    const over = new AbortController()
    kit.keep['over'] = over
    kit.keep['joined'] = kit.join(where, { signal: over.signal }).catch((error: Error) => error)
  }, address)
  await untilBound(address)
  await partner.run((kit) => {
    ;(kit.keep['over'] as AbortController).abort()
  })
  t.deepEqual(await within(partner.detach(), 'its exit'), { code: 0, signal: null })
})

test.serial('a process that waits endlessly for a partner can still be told to exit', async (t) => {
  const address = abstractAddress()
  const partner = await Partner.start(t)
  void partner.join(address)
  await untilBound(address)
  partner.mayFail()
  void partner.run(() => process.exit(7))
  t.deepEqual(await within(partner.exited, 'its exit'), { code: 7, signal: null })
})

test.serial('waiting for messages, room and a partner at the same time does not block the event loop', async (t) => {
  const { channel } = await pair(t, { here: { capacity: 4096 } })
  const over = new AbortController()
  const waiting = [
    channel.receive(),
    channel.send(pattern(0, 100_000)).catch(() => {}),
    channel.waitReadable(),
    joinHere(t, abstractAddress(), { signal: over.signal }).catch(() => {}),
  ]
  let turns = 0
  const timer = setInterval(() => {
    turns += 1
  }, 1)
  await until(() => turns > 50, 'timers have fired')
  clearInterval(timer)
  for (const one of waiting) t.true(await isPending(one))
  over.abort()
})
