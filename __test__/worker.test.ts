import { on } from 'node:events'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'

import test, { type ExecutionContext } from 'ava'
import { join } from 'ringfence'

import { abstractAddress, isBound } from './support/address.js'
import { pattern } from './support/bytes.js'
import type { WorkerTask, WorkerSettings } from './support/worker-task.js'
import { joinHere, pair, Partner } from './support/partner.js'
import { within, until } from './support/until.js'

const workerScript = fileURLToPath(new URL('support/worker-task.js', import.meta.url))

function work(t: ExecutionContext, orders: WorkerSettings): { worker: Worker; exited: Promise<number> } {
  const worker = new Worker(workerScript, { workerData: orders })
  const exited = new Promise<number>((resolve, reject) => {
    worker.on('exit', resolve)
    worker.on('error', reject)
  })
  t.teardown(() => worker.terminate())
  return { worker, exited }
}

for (const threads of [false, true]) {
  const how = threads ? 'where a thread watches' : 'where the event loop watches'

  test.serial(`a channel in a worker thread is a channel like any other, ${how}`, async (t) => {
    const address = abstractAddress()
    const partner = await Partner.start(t)
    const { exited } = work(t, { address, task: 'echoing', threads })
    await partner.join(address)
    const there = await partner.run(async (kit) => {
      for (let number = 0; number < 500; number += 1) {
        const message = kit.bytes.pattern(number, (number * 91) % 40_000)
        void kit.channel.send(message)
        const answer = await kit.channel.receive()
        if (!answer?.equals(message)) return `message ${number} came back as another`
      }
      await kit.channel.end()
      return (await kit.channel.closed).reason
    })
    t.is(there, 'closed')
    t.is(await within(exited, 'the worker to exit by itself'), 0)
  })
}

test.serial('several workers of a process have separate channels', async (t) => {
  const addresses = Array.from({ length: 4 }, abstractAddress)
  const workers = addresses.map((address, number) => work(t, { address, task: 'echoing', threads: number % 2 === 1 }))
  const partner = await Partner.start(t)
  const there = partner.run(async (kit, where: string[]) => {
    const channels = await Promise.all(where.map((address) => kit.join(address)))
    const tasks = channels.map(async (channel, number) => {
      for (let round = 0; round < 200; round += 1) {
        void channel.send(`${number} ${round}`)
        const answer = String(await channel.receive())
        if (answer !== `${number} ${round}`) return answer
      }
      await channel.close()
      return 'right'
    })
    return Promise.all(tasks)
  }, addresses)
  t.deepEqual(await there, ['right', 'right', 'right', 'right'])
  for (const { exited } of workers) t.is(await within(exited, 'a worker to exit by itself'), 0)
})

test.serial('two threads of one process cannot be a pair: ADDRESS_OCCUPIED', async (t) => {
  const address = abstractAddress()
  const over = new AbortController()
  const joined = joinHere(t, address, { signal: over.signal })
  await until(() => isBound(address), 'it is bound')
  const { exited } = work(t, { address, task: 'waiting', threads: false })
  const error = await exited.then(String, (thrown: { code: string }) => thrown.code)
  t.is(error, 'ERR_RINGFENCE_ADDRESS_OCCUPIED')
  over.abort()
  await t.throwsAsync(joined, { code: 'ABORT_ERR' })
})

test.serial('a terminated worker frees the address, and its peer notices', async (t) => {
  const { partner, address } = await pair(t).then(async ({ channel, ...rest }) => {
    await channel.close()
    return rest
  })
  const { worker } = work(t, { address, task: 'waiting', threads: false })
  const joined = new Promise<void>((resolve) => {
    worker.on('message', (messages: string) => {
      if (messages === 'joined') resolve()
    })
  })
  await partner.join(address)
  await joined
  await worker.terminate()
  t.is(await partner.run(async (kit) => (await kit.channel.closed).reason), 'lost')
  await until(() => !isBound(address), 'the address is free')
})

test.serial('a worker that is terminated while `authorize` decides refuses nobody: PEER_LOST', async (t) => {
  const partner = await Partner.start(t)
  // Which came first, the end of the callback or that of the listener, differed from run to run.
  for (let round = 0; round < 10; round += 1) {
    const address = abstractAddress()
    const { worker } = work(t, { address, task: 'deciding', threads: false })
    const messages = on(worker, 'message')
    const waitFor = async (what: string) => {
      for (;;) if ((await messages.next()).value[0] === what) return
    }
    await waitFor('listening')
    const outcome = partner.run(
      (kit, where: string) => kit.ringfence.connect(where).then(String, (error: { code: string }) => error.code),
      address,
    )
    await waitFor('asked')
    await worker.terminate()
    t.is(await outcome, 'ERR_RINGFENCE_PEER_LOST')
  }
})

const deeds: WorkerTask[] = [
  'joining',
  'waiting',
  'sending',
  'draining',
  'reserving',
  'echoing',
  'closing',
  'signalling',
]

/** `npm run test:torture` sets more. */
const times = Number(process.env['RINGFENCE_TORTURE'] ?? 100)

test.serial(
  `workers may be terminated at any moment, ${times} times: the process goes on, and keeps nothing`,
  async (t) => {
    const stage = await Partner.start(t, { node: ['--expose-gc'] })
    const other = await Partner.start(t)
    const address = abstractAddress()
    // The other side joins each worker, and keeps it busy in both directions.
    await other.run((kit, where: string) => {
      kit.keep['met'] = 0
      const meet = async () => {
        for (;;) {
          const channel = await kit.join(where, { capacity: 16_384, wait: true })
          kit.keep['met'] = (kit.keep['met'] as number) + 1
          const message = kit.bytes.pattern(1, 3000)
          const flood = async () => {
            for (let number = 0; ; number += 1) {
              await channel.send(message)
              if (number % 10 === 0) await new Promise((resolve) => setImmediate(resolve))
            }
          }
          const read = async () => {
            while (await channel.waitReadable()) {
              channel.receiveEach(() => {}, 5)
              await new Promise((resolve) => setImmediate(resolve))
            }
          }
          const signal = async () => {
            for await (const token of channel.tokens()) channel.sendToken(token)
          }
          await Promise.all([flood().catch(() => {}), read().catch(() => {}), signal().catch(() => {})])
          await channel.close()
        }
      }
      kit.keep['over'] = meet()
    }, address)

    const rounds = (first: number, count: number) =>
      stage.run(
        async (kit, where: string, script: string, ways: WorkerTask[], from: number, to: number) => {
          const { Worker: Thread } = kit.require('node:worker_threads') as typeof import('node:worker_threads')
          const { readdirSync, readFileSync } = kit.require('node:fs') as typeof import('node:fs')
          const { gc } = globalThis as unknown as { gc(): void }
          const holds = () => {
            gc()
            return {
              descriptors: readdirSync('/proc/self/fd').length,
              threads: readdirSync('/proc/self/task').length,
              regions: readFileSync('/proc/self/maps', 'latin1').match(/memfd:ringfence/g)?.length ?? 0,
              resident: Math.round(process.memoryUsage.rss() / 1024 / 1024),
            }
          }
          const chance = kit.bytes.random(from)
          const joined = { times: 0 }
          for (let round = from; round < to; round += 1) {
            const deed = ways[round % ways.length]!
            // No partner will come: the worker is terminated while it joins.
            const meeting = deed === 'joining' ? `${where}-alone` : where
            const orders = { address: meeting, deed, threads: Math.floor(round / ways.length) % 2 === 1 }
            const worker = new Thread(script, { workerData: orders })
            worker.on('error', (error: Error & { code?: string }) => {
              // The other side has not noticed yet that the last worker is gone, or was released from the one before.
              if (!/OCCUPIED|PEER_LOST/.test(error.code ?? '')) throw error
            })
            const exited = new Promise((resolve) => worker.on('exit', resolve))
            const begun = new Promise<void>((resolve) => {
              worker.on('message', (what: string) => {
                if (what === 'joined') joined.times += 1
                if (what === (deed === 'joining' || round % 10 === 9 ? 'joining' : 'joined')) resolve()
              })
            })
            await Promise.race([begun, exited])
            const late = chance() * 8
            if (round % 3 !== 0) await new Promise((resolve) => setTimeout(resolve, late))
            await worker.terminate()
            await exited
            if (to > 1000 && round % 1000 === 999) console.log(`${round + 1} of ${to}: ${JSON.stringify(holds())}`)
          }
          // Abandoned threads of handshakes exit once they notice.
          let held = holds()
          for (let look = 0; look < 100; look += 1) {
            await new Promise((resolve) => setTimeout(resolve, 10))
            const { descriptors, threads, regions, resident } = holds()
            held = {
              descriptors: Math.min(held.descriptors, descriptors),
              threads: Math.min(held.threads, threads),
              regions: Math.min(held.regions, regions),
              resident: Math.min(held.resident, resident),
            }
          }
          return { ...held, joined: joined.times }
        },
        address,
        workerScript,
        deeds,
        first,
        first + count,
      )
    // Each task runs at least twice, so that what is made once exists afterwards.
    const first = Math.max(20, times / 10)
    const before = await rounds(0, first)
    const after = await rounds(first, times - first)
    t.log(`after ${first}: ${JSON.stringify(before)}; after ${times}: ${JSON.stringify(after)}`)
    t.true(
      after.descriptors <= before.descriptors,
      `${before.descriptors} descriptors before, ${after.descriptors} after`,
    )
    t.true(after.threads <= before.threads, `${before.threads} threads before, ${after.threads} after`)
    t.is(after.regions, 0)
    t.true(after.joined > times * 0.3, `${after.joined} workers had a channel`)
    t.true((await other.run((kit) => kit.keep['met'] as number)) > times * 0.3)

    // Both processes work as before.
    const { channel } = await pair(t, { partner: stage })
    await channel.send(pattern(0, 5_000_000).subarray(0, 1000))
    t.is(await stage.run(async (kit) => (await kit.channel.receive())!.length), 1000)
  },
)

test.serial('a process may exit while its workers have channels', async (t) => {
  const partner = await Partner.start(t)
  const stage = await Partner.start(t)
  const address = abstractAddress()
  await stage.run(
    (kit, script: string, where: string) => {
      const { Worker: Thread } = kit.require('node:worker_threads') as typeof import('node:worker_threads')
      kit.keep['worker'] = new Thread(script, { workerData: { address: where, task: 'sending', threads: false } })
    },
    workerScript,
    address,
  )
  await partner.join(address)
  await partner.run((kit) => kit.channel.receive())
  stage.mayFail()
  void stage.run(() => process.exit(3))
  t.deepEqual(await within(stage.exited, 'its exit'), { code: 3, signal: null })
  const there = await partner.run(async (kit) => {
    const code = await (async () => {
      for await (const message of kit.channel) void message
    })().catch((error: { code: string }) => error.code)
    return [code, (await kit.channel.closed).reason]
  })
  t.deepEqual(there, ['ERR_RINGFENCE_PEER_LOST', 'lost'])
  const [again] = await Promise.all([join(address), partner.join(address)])
  await again.close()
})
