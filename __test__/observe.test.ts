// Looking at other processes: `ringfence ps` reads /proc alone, and `ringfence top` reads the statistics of processes
// that allow it.

import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'
import { observe, type ChannelStats } from 'ringfence'

import { abstractAddress, isBound, temporaryDirectory } from './support/address.js'
import { urlOf } from './support/internals.js'
import { listenHere, nextChannel, pair, Partner } from './support/partner.js'
import { until } from './support/until.js'

const cli = fileURLToPath(urlOf('cli.js'))
const processesModule = urlOf('runtime/processes.js')

interface Seen extends Partial<ChannelStats> {
  address: string | null
  peer: number | null
  role: string
  peerRingCapacity?: number
  messagesSentPerSecond?: number
  bytesSentPerSecond?: number
  messagesReceivedPerSecond?: number
}

interface Processes {
  processes: { pid: number; uid: number; executable: string; since?: number; channels: Seen[] }[]
}

const ringfence = (...words: string[]): Promise<Processes> =>
  new Promise((resolve, reject) => {
    execFile(process.execPath, [cli, ...words], { timeout: 60_000 }, (error, stdout) =>
      error === null ? resolve(JSON.parse(stdout) as Processes) : reject(error),
    )
  })

test('ps shows who has a channel with whom, and triggers no tripwire', async (t) => {
  // A service has an address of its own: this process has one, and the client has none.
  const service = await Partner.start(t)
  const address = abstractAddress()
  await service.run(async (kit, where) => {
    const listener = await kit.ringfence.listen(where, { capacity: 65_536 })
    kit.keep['listener'] = listener
    void listener[Symbol.asyncIterator]()
      .next()
      .then(({ value }) => {
        kit.channel = value!
      })
  }, address)
  const agent = await Partner.start(t)
  await agent.connect(address, { capacity: 8192 })
  const { processes } = await ringfence('ps', '--json')
  const at = (pid: number) => processes.find((process) => process.pid === pid)!
  t.like(at(service.pid), { uid: process.getuid!(), executable: process.execPath })
  t.true(at(service.pid).since! <= Date.now() && at(service.pid).since! > Date.now() - 3_600_000)
  t.deepEqual(at(service.pid).channels, [
    { address, peer: agent.pid, role: 'host', ringCapacity: 65_536, peerRingCapacity: 8192 },
  ])
  t.deepEqual(at(agent.pid).channels, [
    { address, peer: service.pid, role: 'guest', ringCapacity: 8192, peerRingCapacity: 65_536 },
  ])
  await agent.run((kit) => kit.channel.send('nothing was exposed'))
  t.is(await service.run(async (kit) => String(await kit.channel.receive())), 'nothing was exposed')
})

test('ps shows the address of two observed processes', async (t) => {
  const [service, agent] = [await Partner.start(t), await Partner.start(t)]
  const address = abstractAddress()
  await service.run(async (kit, where) => {
    await kit.ringfence.observe()
    const listener = await kit.ringfence.listen(where)
    kit.keep['listener'] = listener
    listener.on('connection', (channel) => (kit.channel = channel))
  }, address)
  await agent.run((kit) => kit.ringfence.observe().then(() => {}))
  await agent.connect(address)
  const { processes } = await ringfence('ps', '--json')
  const between = ({ pid }: Partner, peer: Partner) =>
    processes.find((process) => process.pid === pid)!.channels.filter((channel) => channel.peer === peer.pid)
  t.like(between(service, agent), [{ address, role: 'host' }])
  t.like(between(agent, service), [{ address, role: 'guest' }])
})

test('ps shows an address whatever it contains, and no address that another socket forges', async (t) => {
  const [service, agent] = [await Partner.start(t), await Partner.start(t)]
  const address = join(temporaryDirectory(t), 'gr\u00fc\u00df  \r\u2028\u001b[2J\nb .sock')
  await service.run(async (kit, where) => {
    const listener = await kit.ringfence.listen(where)
    kit.keep['listener'] = listener
    listener.on('connection', (channel) => (kit.channel = channel))
  }, address)
  await agent.connect(address)
  const listed = async () => {
    const { processes } = await ringfence('ps', '--json')
    return [service, agent].map(({ pid }) => processes.find((process) => process.pid === pid)!.channels[0]!.address)
  }
  t.deepEqual(await listed(), [address, address])
  const [, inode] = / (\d+) \S*gr\u00fc\u00df {2}/.exec(readFileSync('/proc/net/unix', 'utf8'))!
  // Any user may choose a name like this.
  const forged = `\n0000000000000000: 00000002 00000000 00010000 0001 01 ${inode} /forged.sock`
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(`\0${forged}`, resolve))
  t.teardown(() => server.close())
  t.true(readFileSync('/proc/net/unix', 'utf8').includes(forged))
  t.deepEqual(await listed(), [null, null])
})

test('ps without free descriptors fails with a code, instead of leaving out what it could not read', async (t) => {
  const [service, looking] = [await Partner.start(t), await Partner.start(t)]
  const address = abstractAddress()
  await service.run(async (kit, where) => {
    kit.keep['publisher'] = await kit.ringfence.publish(where)
  }, address)
  const listed = await looking.run(
    async (kit, module, pid) => {
      const { readdirSync, openSync, closeSync } = kit.require('node:fs') as typeof import('node:fs')
      const { execFileSync } = kit.require('node:child_process') as typeof import('node:child_process')
      const { seenProcesses } = (await import(module)) as {
        seenProcesses(): { pid: number }[]
      }
      const sees = () => seenProcesses().some((seen) => seen.pid === pid)
      const before = sees()
      const most = Math.max(...readdirSync('/proc/self/fd').map(Number)) + 1
      execFileSync('prlimit', [`--pid=${process.pid}`, `--nofile=${most}:`])
      const all: number[] = []
      const fill = () => {
        for (;;) all.push(openSync('/dev/null', 'r'))
      }
      try {
        fill()
      } catch {
        // No descriptors are left.
      }
      const codes: unknown[] = []
      // With no free descriptor, one, and so on, so that each step fails once.
      for (let free = 0; free < 6; free += 1) {
        try {
          codes.push(sees())
        } catch (error) {
          codes.push((error as NodeJS.ErrnoException).code)
        }
        const one = all.pop()
        if (one !== undefined) closeSync(one)
      }
      all.forEach((one) => closeSync(one))
      return { before, codes }
    },
    processesModule,
    service.pid,
  )
  t.true(listed.before)
  t.is(listed.codes[0], 'ERR_RINGFENCE_NO_SPACE')
  for (const code of listed.codes) t.true(code === true || code === 'ERR_RINGFENCE_NO_SPACE', String(code))
})

test('ps shows a publisher and the readers of its ring', async (t) => {
  const publisher = await Partner.start(t)
  const address = join(temporaryDirectory(t), 'gr\u00fc\u00df \nb .sock')
  await publisher.run(async (kit, where) => {
    await kit.ringfence.observe()
    kit.keep['publisher'] = await kit.ringfence.publish(where, { capacity: 65_536 })
  }, address)
  const alone = (await ringfence('ps', '--json')).processes.find(({ pid }) => pid === publisher.pid)!
  t.deepEqual(alone.channels, [{ address, peer: null, role: 'publisher', ringCapacity: 65_536, peerRingCapacity: 0 }])
  const subscribers = [await Partner.start(t), await Partner.start(t)]
  for (const one of subscribers)
    await one.run(async (kit, where) => {
      kit.keep['subscription'] = await kit.ringfence.subscribe(where)
    }, address)
  const { processes } = await ringfence('ps', '--json')
  const channels = (pid: number) => processes.find((process) => process.pid === pid)!.channels
  t.deepEqual(
    channels(publisher.pid)
      .map(({ role, peer, ringCapacity }) => ({ role, peer, ringCapacity }))
      .sort((one, other) => one.peer! - other.peer!),
    subscribers
      .map(({ pid }) => ({ role: 'publisher', peer: pid, ringCapacity: 65_536 }))
      .sort((one, other) => one.peer - other.peer),
  )
  t.deepEqual(channels(subscribers[0]!.pid), [
    { address, peer: publisher.pid, role: 'subscriber', ringCapacity: 0, peerRingCapacity: 65_536 },
  ])
})

test('top shows the traffic of a process that is observed', async (t) => {
  const { channel, partner, address } = await pair(t)
  const listener = await listenHere(t, abstractAddress())
  await Promise.all([nextChannel(listener), (await Partner.start(t)).connect(listener.address)])
  const observation = await partner.run(async (kit) => (await kit.ringfence.observe()).address)
  t.is(observation, `@ringfence-observe-${partner.pid}`)
  // Sends while the test runs.
  await partner.run((kit) => {
    const timer = setInterval(() => void kit.channel.send('twelve bytes').catch(() => clearInterval(timer)), 5)
  })
  const reading = (async () => {
    for await (const message of channel) t.is(message.length, 12)
  })()
  const { processes } = await ringfence('top', '--once', '--json')
  const seen = processes.find(({ pid }) => pid === partner.pid)!
  t.like(seen, { uid: process.getuid!(), executable: process.execPath })
  const [only, ...others] = seen.channels
  t.deepEqual(others, [], 'its own publisher is not told')
  t.like(only, { address, peer: process.pid, role: await partner.run((kit) => kit.channel.role) })
  t.true(only!.messagesSent! > 0 && only!.bytesSent === only!.messagesSent! * 12)
  t.true(only!.messagesSentPerSecond! > 0, JSON.stringify(only))
  t.true(Math.abs(only!.bytesSentPerSecond! - only!.messagesSentPerSecond! * 12) < 1)
  t.is(only!.messagesReceivedPerSecond, 0)
  t.false(
    processes.some(({ pid }) => pid === process.pid),
    'this process is not observed',
  )
  const elsewhere = await ringfence('top', abstractAddress(), '--once', '--json')
  t.deepEqual(elsewhere.processes, [])
  await channel.close()
  await reading
})

test('top trusts a process only about its own statistics, and malformed ones do not break it', async (t) => {
  const lying = async (lie: unknown, about?: number): Promise<Partner> => {
    const partner = await Partner.start(t)
    await partner.run(
      async (kit, listed, pid) => {
        const address = `@ringfence-observe-${pid ?? process.pid}`
        const publisher = await kit.ringfence.publish(address, { policy: { executable: 'any' } })
        kit.keep['publisher'] = publisher
        const tell = () => publisher.trySend(JSON.stringify(listed))
        publisher.on('connection', tell)
        setInterval(tell, 50).unref()
      },
      lie,
      about ?? null,
    )
    return partner
  }
  const none = { toString: 1, valueOf: 1 }
  const channel = { id: 1, address: null, peer: 1, role: 'host' }
  const snapshot = { pid: 1, uid: 4_000_000, executable: '/bin/\u001b[2J', at: 1, channels: [channel], more: 0 }
  const [honest, other] = [await Partner.start(t), await Partner.start(t)]
  await honest.run((kit) => kit.ringfence.observe().then(() => {}))
  const another = await lying(snapshot)
  const wrong = [
    await lying({ ...snapshot, channels: [{ ...channel, role: none }] }),
    await lying({ ...snapshot, channels: [{ ...channel, messagesSent: none }] }),
    await lying({ ...snapshot, channels: [{ ...channel, ringUsed: -1 }] }),
    await lying({ ...snapshot, channels: [{ ...channel, address: 'x'.repeat(10_000) }] }),
    // The statistics of another process.
    await lying(snapshot, other.pid),
  ]
  const { processes } = await ringfence('top', '--once', '--json')
  const listed = ({ pid }: Partner) => processes.find((process) => process.pid === pid)
  t.deepEqual(listed(honest), { pid: honest.pid, uid: process.getuid!(), executable: process.execPath, channels: [] })
  t.like(listed(another), { uid: process.getuid!(), executable: process.execPath })
  for (const partner of [...wrong, other]) t.is(listed(partner), undefined)
  t.false(processes.some(({ pid }) => pid === 1))
  const screen = await new Promise<string>((resolve, reject) => {
    execFile(process.execPath, [cli, 'top', '--once'], { timeout: 60_000 }, (error, stdout) =>
      error === null ? resolve(stdout) : reject(error),
    )
  })
  t.regex(screen, new RegExp(`^${another.pid} .* host`, 'm'))
})

test('top asks only the processes themselves, so a process that takes their address does not delay it', async (t) => {
  const observed = await Promise.all(Array.from({ length: 12 }, () => Partner.start(t)))
  await Promise.all(observed.map((partner) => partner.run((kit) => kit.ringfence.observe().then(() => {}))))
  const quiet = await Partner.start(t)
  let came = 0
  // It never answers.
  const server = createServer(() => (came += 1))
  await new Promise<void>((resolve) => server.listen(`\0ringfence-observe-${quiet.pid}`, resolve))
  t.teardown(() => server.close())
  const { out, complaints } = await new Promise<{ out: string; complaints: string }>((resolve, reject) => {
    execFile(process.execPath, [cli, 'top', '--once', '--json'], { timeout: 60_000 }, (error, stdout, stderr) =>
      error === null ? resolve({ out: stdout, complaints: stderr }) : reject(error),
    )
  })
  t.is(came, 0)
  // Many concurrent handshakes are not a leak.
  t.is(complaints, '')
  const { processes } = JSON.parse(out) as Processes
  for (const { pid } of observed) t.true(processes.some((process) => process.pid === pid))
})

test('RINGFENCE_OBSERVE=1 observes a process from its start, and does not keep it alive', async (t) => {
  const index = urlOf('index.js')
  const script = `
    import ${JSON.stringify(index)}
    import { readFileSync } from 'node:fs'
    const bound = () => readFileSync('/proc/net/unix', 'latin1').includes('@ringfence-observe-' + process.pid)
    const timer = setInterval(() => bound() && (clearInterval(timer), console.log('observed')), 5)`
  const env = { ...process.env, RINGFENCE_OBSERVE: '1' }
  const words = ['--input-type=module', '-e', script]
  const stdout = await new Promise<string>((resolve, reject) => {
    execFile(process.execPath, words, { env, timeout: 60_000 }, (error, out) =>
      error === null ? resolve(out) : reject(error),
    )
  })
  t.is(stdout, 'observed\n')
})

test('a process that has loaded both builds is observed as one', async (t) => {
  const partner = await Partner.start(t)
  const addresses = [abstractAddress(), abstractAddress()]
  const listed = await partner.run(async (kit, here) => {
    const builds = [kit.ringfence, kit.require('ringfence') as typeof kit.ringfence] as const
    kit.keep['open'] = await Promise.all(builds.map((build, index) => build.publish(here[index]!)))
    const observations = await Promise.all(builds.map((build) => build.observe()))
    const labels = await Promise.all(
      builds.map(async ({ toMetrics }) => {
        const metric = toMetrics().prometheus.find(({ name }) => name === 'ringfence_open_peers')!
        return (await metric.get()).values.map((sample) => `${sample.labels['kind']} ${sample.labels['address']}`)
      }),
    )
    return { areTwo: builds[0].publish !== builds[1].publish, isOne: observations[0] === observations[1], labels }
  }, addresses)
  t.true(listed.areTwo)
  t.true(listed.isOne)
  const { processes } = await ringfence('top', '--once', '--json')
  const seen = processes.find(({ pid }) => pid === partner.pid)!
  t.deepEqual(seen.channels.map(({ address }) => address).sort(), [...addresses].sort())
  const all = addresses.map((address) => `publisher ${address}`).sort()
  for (const labels of listed.labels) t.deepEqual([...labels].sort(), all)
})

test('an observed process has a timer only while it has an observer', async (t) => {
  const partner = await Partner.start(t)
  await partner.run(async (kit) => {
    const { createHook } = kit.require('node:async_hooks') as typeof import('node:async_hooks')
    const running = new Set<number>()
    kit.keep['running'] = running
    kit.keep['begun'] = 0
    const init = (id: number, type: string) => {
      if (type !== 'Timeout') return
      running.add(id)
      kit.keep['begun'] = (kit.keep['begun'] as number) + 1
    }
    createHook({ init, destroy: (id) => void running.delete(id) }).enable()
    await kit.ringfence.observe()
  })
  // Another test may observe it as well, for a while.
  const rests = () => partner.run((kit) => (kit.keep['running'] as Set<number>).size === 0)
  await until(rests, 'it rests')
  const { processes } = await ringfence('top', '--once', '--json')
  t.true(processes.some(({ pid }) => pid === partner.pid))
  t.true((await partner.run((kit) => kit.keep['begun'] as number)) > 0)
  await until(rests, 'it rests again')
})

test('an observation can be ended, and started again', async (t) => {
  const first = await observe()
  t.is(await observe(), first)
  t.true(isBound(first.address))
  await first.close()
  t.false(isBound(first.address))
  await using again = await observe()
  t.is(again.address, first.address)
  t.true(readFileSync('/proc/net/unix', 'latin1').includes(again.address))
  await until(() => isBound(again.address), 'it is there')
  // A second close of the first does not end the second.
  await first.close()
  t.true(isBound(again.address))
  t.is(await observe(), again)
})
