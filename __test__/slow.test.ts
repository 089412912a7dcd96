// `ringfence doctor PID|ADDRESS` finds each cause of a slow channel. Real processes produce the causes.

import { execFile, spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'

import test, { type ExecutionContext } from 'ava'

import { abstractAddress, temporaryDirectory } from './support/address.js'
import { urlOf } from './support/internals.js'
import { Partner, type PartnerSettings } from './support/partner.js'
import { diagnosePair, type Diagnosis, type Finding } from './support/slow.js'
import { until } from './support/until.js'

const cli = fileURLToPath(urlOf('cli.js'))

/** Two processes with a channel. Both the writer and the reader are observed. */
async function twoProcesses(t: ExecutionContext, settings: PartnerSettings[] = [{}, {}], options = {}) {
  const address = abstractAddress()
  const [writer, reader] = await Promise.all(settings.map((each) => Partner.start(t, each)))
  const how = { capacity: 65_536, ...options }
  await Promise.all([writer!.join(address, how), reader!.join(address, how)])
  const observe = async (partner: Partner) =>
    void (await partner.run(async (kit) => void (await kit.ringfence.observe())))
  await Promise.all([observe(writer!), observe(reader!)])
  return { writer: writer!, reader: reader!, address }
}

/** The findings about the direction from one process to the other. */
async function findings(target: number | string, places?: { sys: string }): Promise<Finding[]> {
  const { pairs } = await diagnosePair(target, places)
  return pairs.flatMap((pair) => pair.findings)
}

const findingOf = (all: Finding[], check: string, ...processes: number[]): Finding =>
  all.find((one) => one.check === check && one.processes.join() === processes.join())!

/** Repeats until the finding appears: other load on the machine may hide it for a while. */
async function untilFound(target: number, check: string, processes: number[], what: RegExp): Promise<Finding> {
  let last: Finding | undefined
  await until(async () => {
    last = findingOf(await findings(target), check, ...processes)
    return last.status === 'slow' && what.test(last.meaning)
  }, `${check} is found: ${what}`).catch((error: Error) => {
    throw new Error(`${error.message}\n${JSON.stringify(last)}`)
  })
  return last!
}

test('a full ring, with a reader that sleeps, is stopped, or is always busy', async (t) => {
  const { writer, reader } = await twoProcesses(t)
  const [from, to] = [writer.pid, reader.pid]
  await writer.run((kit) => {
    while (kit.channel.trySend(Buffer.alloc(1000)));
  })
  let [full, ring] = [] as Finding[]
  await until(async () => {
    const all = await findings(from)
    full = findingOf(all, 'reader', to)
    ring = findingOf(all, 'ring', from, to)
    return full.status === 'slow' && /it sleeps, though there is much to read/.test(full.meaning)
  }, 'the reader that sleeps is found')
  t.regex(full!.found, /^works for \d+ % of the time$/)
  t.is(ring!.status, 'slow')
  t.regex(ring!.found, /^(9\d|100) % of 65\.54 kB full/)
  t.regex(ring!.meaning, new RegExp(`process ${to} reads more slowly than process ${from} sends`))

  await reader.stop()
  await untilFound(from, 'reader', [to], /SIGCONT/)
  reader.resume()
  // It never returns, and ends with the test.
  void reader.run(() => {
    for (;;);
  })
  await untilFound(from, 'reader', [to], /it works all the time/)
})

test('a sender that waits for room most of the time', async (t) => {
  const { writer, reader } = await twoProcesses(t)
  // It reads ten times a second, and the sender has filled the ring in the meantime.
  await reader.run((kit) => void setInterval(() => kit.channel.receiveEach(() => {}, 40), 100))
  await writer.run((kit) => {
    void (async () => {
      for (;;) await kit.channel.send(Buffer.alloc(1000))
    })().catch(() => {})
  })
  const ring = await untilFound(writer.pid, 'ring', [writer.pid, reader.pid], /reads more slowly/)
  const share = Number(/waits for room for (\d+) % of the time/.exec(ring.found)![1])
  t.true(share > 10, ring.found)
})

test('of the subscribers of a publisher, only the one that does not read is slow', async (t) => {
  const address = abstractAddress()
  const [writer, slow, other] = await Promise.all([Partner.start(t), Partner.start(t), Partner.start(t)])
  await writer.run(async (kit, where) => {
    kit.keep['publisher'] = await kit.ringfence.publish(where, { capacity: 65_536 })
    await kit.ringfence.observe()
  }, address)
  const subscribe = (partner: Partner) =>
    partner.run(async (kit, where) => {
      kit.keep['subscription'] = await kit.ringfence.subscribe(where, { delivery: 'best-effort' })
    }, address)
  await Promise.all([subscribe(slow), subscribe(other)])
  await other.run((kit) => {
    const subscription = kit.keep['subscription'] as AsyncIterable<Buffer>
    void (async () => {
      for await (const message of subscription) void message
    })().catch(() => {})
  })
  await writer.run((kit) => {
    const publisher = kit.keep['publisher'] as import('ringfence').Publisher
    for (let sent = 0; sent < 60_000; sent += 1000 + 8) publisher.trySend(Buffer.alloc(1000))
  })
  let all: Finding[] = []
  await until(async () => {
    all = await findings(writer.pid)
    return findingOf(all, 'reader', slow.pid).status === 'slow'
  }, 'the subscriber that reads nothing is found').catch((error: Error) => {
    throw new Error(`${error.message}\n${JSON.stringify(all)}`)
  })
  t.regex(findingOf(all, 'ring', writer.pid, slow.pid).found, /^9\d % of 65.54 kB full/)
  const ring = findingOf(all, 'ring', writer.pid, other.pid)
  t.is(ring.status, 'good', JSON.stringify(ring))
  t.regex(ring.found, /^0 % of 65.54 kB full/)
  t.is(findingOf(all, 'reader', other.pid).status, 'good')
})

test('messages that are small compared with their header, or too large for the ring', async (t) => {
  const { writer, reader } = await twoProcesses(t)
  const [from, to] = [writer.pid, reader.pid]
  await reader.run((kit) => {
    void (async () => {
      for await (const message of kit.channel) void message
    })().catch(() => {})
  })
  const send = (size: number) =>
    writer.run((kit, bytes) => {
      kit.keep['size'] = bytes
      if (kit.keep['sends'] === true) return
      kit.keep['sends'] = true
      void (async () => {
        for (;;) {
          for (let count = 0; count < 100; count += 1) await kit.channel.send(Buffer.alloc(kit.keep['size'] as number))
          // Statistics are published in between.
          await new Promise((resolve) => setImmediate(resolve))
        }
      })().catch(() => {})
    }, size)
  await send(8)
  const small = await untilFound(from, 'sizes', [from, to], /put several into one message/)
  t.regex(small.found, /^8 B a message/)
  await send(10_000)
  await untilFound(from, 'sizes', [from, to], /holds fewer than eight/)
  await send(40_000)
  await untilFound(from, 'sizes', [from, to], /travels in fragments/)
  t.pass()
})

test('a reader that is woken for each message', async (t) => {
  const { writer, reader } = await twoProcesses(t)
  await reader.run((kit) => {
    void (async () => {
      for await (const message of kit.channel) await kit.channel.send(message)
    })().catch(() => {})
  })
  const idle = findingOf(await findings(writer.pid), 'wake-ups', writer.pid, reader.pid)
  t.is(idle.status, 'good', JSON.stringify(idle))
  await writer.run((kit) => {
    void (async () => {
      for (;;) {
        await kit.channel.send('to and fro')
        await kit.channel.receive()
      }
    })().catch(() => {})
  })
  const often = await untilFound(writer.pid, 'wake-ups', [writer.pid, reader.pid], /busyPollMicros/)
  t.regex(often.found, /^the reader sleeps \d+ times a second, for \d+ messages$/)
})

test('statistics in quick succession, because of other observers, give no rate', async (t) => {
  const address = abstractAddress()
  const [writer, reader] = await Promise.all([Partner.start(t), Partner.start(t)])
  await Promise.all([writer.join(address), reader.join(address)])
  await reader.run(async (kit, peer) => {
    const observation = `@ringfence-observe-${process.pid}`
    const publisher = await kit.ringfence.publish(observation, { policy: { executable: 'any' } })
    kit.keep['publisher'] = publisher
    let published = 0
    const publish = () => {
      // A hundred sleeps a second, all within the milliseconds between two snapshots in quick succession.
      const [rounds, isClose] = [Math.floor(published / 2), published % 2]
      const channel = { id: 1, address: null, peer, role: 'guest', sleeps: 10 * (rounds + isClose) }
      const snapshot = { executable: process.execPath, at: 100 * rounds + isClose, channels: [channel] }
      if (publisher.trySend(JSON.stringify(snapshot))) published += 1
    }
    publisher.on('connection', publish)
    setInterval(publish, 50).unref()
  }, writer.pid)
  const { found } = findingOf(await findings(writer.pid), 'wake-ups', writer.pid, reader.pid)
  const sleeps = Number(/^the reader sleeps (\d+) times a second/.exec(found)?.[1])
  t.true(sleeps >= 50 && sleeps <= 200, found)
})

/** Cores on which this process may run. */
const cores = readFileSync('/proc/self/status', 'latin1')
  .match(/^Cpus_allowed_list:\s*(.*)$/m)![1]!
  .split(',')
  .flatMap((part) => {
    const [from, to = from] = part.split('-').map(Number)
    return Array.from({ length: to! - from! + 1 }, (_, at) => from! + at)
  })
const on = (core: number): PartnerSettings => ({ through: ['taskset', '-c', String(core)] })
const canPin = spawnSync('taskset', ['-c', String(cores[0]), 'true']).status === 0

;(canPin ? test : test.skip)('two processes on one core', async (t) => {
  const { writer, reader } = await twoProcesses(t, [on(cores[0]!), on(cores[0]!)])
  const found = findingOf(await findings(writer.pid), 'cores', writer.pid, reader.pid)
  t.is(found.status, 'slow')
  t.is(found.found, `cores ${cores[0]} and ${cores[0]}: same core`)
})

/** Fake files of the kernel about the caches of two cores. */
function machineWith(t: ExecutionContext, caches: Record<number, [level: number, cores: string][]>): string {
  const sys = temporaryDirectory(t)
  for (const [core, all] of Object.entries(caches))
    for (const [at, [level, shared]] of all.entries()) {
      const directory = `${sys}/devices/system/cpu/cpu${core}/cache/index${at}`
      mkdirSync(directory, { recursive: true })
      writeFileSync(`${directory}/level`, `${level}\n`)
      writeFileSync(`${directory}/shared_cpu_list`, `${shared}\n`)
    }
  return sys
}

;(canPin && cores.length > 1 ? test : test.skip)('two processes on cores that share no cache', async (t) => {
  const [one, other] = cores as [number, number]
  const { writer } = await twoProcesses(t, [on(one), on(other)])
  const apart = machineWith(t, {
    [one]: [
      [1, `${one}`],
      [3, `${one},100-107`],
    ],
    [other]: [[3, `${other}`]],
  })
  const all = `${Math.min(one, other)}-${Math.max(one, other)}`
  const together = machineWith(t, {
    [one]: [
      [1, `${one}`],
      [2, all],
    ],
    [other]: [
      [2, all],
      [1, `${other}`],
    ],
  })
  const free = await twoProcesses(t)
  const [far, near, untold] = await Promise.all([
    findings(writer.pid, { sys: apart }),
    findings(writer.pid, { sys: together }),
    findings(writer.pid, { sys: temporaryDirectory(t) }),
  ])
  const coresOf = (found: Finding[]) => found.find(({ check }) => check === 'cores')!
  t.like(coresOf(far), { status: 'slow', found: `cores ${one} and ${other}: far` })
  t.like(coresOf(near), { status: 'good', found: `cores ${one} and ${other}: near` })
  t.is(coresOf(untold).status, 'unknown')
  // A process that has just started is busy for a while.
  await until(async () => /hardly run/.test(coresOf(await findings(free.writer.pid)).meaning), 'both are idle')
})

test('a memory cgroup that is nearly full', async (t) => {
  const { writer, reader } = await twoProcesses(t)
  const sys = temporaryDirectory(t)
  const write = (path: string, bytes: number | string) => {
    mkdirSync(dirname(`${sys}${path}`), { recursive: true })
    writeFileSync(`${sys}${path}`, `${bytes}\n`)
  }
  /** The limit is that of the parent group, as in containers. */
  const fill = (used: number) => {
    for (const [, controllers, path] of readFileSync(`/proc/${writer.pid}/cgroup`, 'latin1').matchAll(
      /^\d+:(.*?):(.*)$/gm,
    )) {
      if (controllers === '') {
        write(`/fs/cgroup${path}/memory.max`, 'max')
        write(`/fs/cgroup${path}/memory.current`, 1)
        write('/fs/cgroup/memory.max', 1_000_000)
        write('/fs/cgroup/memory.current', used)
      }
      if (controllers!.split(',').includes('memory')) {
        write(`/fs/cgroup/memory${path}/memory.limit_in_bytes`, '9223372036854771712')
        write(`/fs/cgroup/memory${path}/memory.usage_in_bytes`, 1)
        write('/fs/cgroup/memory/memory.limit_in_bytes', 1_000_000)
        write('/fs/cgroup/memory/memory.usage_in_bytes', used)
      }
    }
  }
  const none = findingOf(await findings(writer.pid, { sys }), 'memory', writer.pid)
  t.like(none, { status: 'good', found: 'no limit' })
  fill(950_000)
  const full = findingOf(await findings(writer.pid, { sys }), 'memory', reader.pid)
  t.is(full.status, 'slow')
  t.is(full.found, '950 kB of 1.00 MB in /')
})

/** A separate /dev/shm of `size` KiB. */
const withShm = (size: number): PartnerSettings => ({
  through: ['unshare', '-m', 'sh', '-c', `mount -t tmpfs -o size=${size}k none /dev/shm && exec "$0" "$@"`],
})
const canMount = spawnSync('unshare', ['-m', 'mount', '-t', 'tmpfs', 'none', '/dev/shm']).status === 0

;(canMount ? test : test.skip)('a /dev/shm without room for one more ring', async (t) => {
  const { writer, reader } = await twoProcesses(t, [withShm(400), withShm(4000)], { backing: 'shm', capacity: 262_144 })
  const all = await findings(writer.pid)
  const short = findingOf(all, 'shm', writer.pid)
  t.is(short.status, 'slow')
  t.regex(short.found, /^\d+\.?\d* kB of 410 kB left/)
  t.is(findingOf(all, 'shm', reader.pid).status, 'good')
})

const ringfence = (...words: string[]): Promise<{ code: number; stdout: string; stderr: string }> =>
  new Promise((resolve) => {
    execFile(process.execPath, [cli, ...words], { timeout: 60_000 }, (error, stdout, stderr) =>
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    )
  })

test('the command line: by process and by address, observed or not', async (t) => {
  const { writer, reader, address } = await twoProcesses(t)
  const [byAddress, byProcess] = await Promise.all([
    ringfence('doctor', address, '--json'),
    ringfence('doctor', String(reader.pid)),
  ])
  const { pairs, processes } = JSON.parse(byAddress.stdout) as Diagnosis
  t.is(pairs.length, 1, byAddress.stdout)
  t.is(pairs[0]!.address, address)
  const pids = [writer.pid, reader.pid].sort((one, other) => one - other)
  // The host is first, which may be either process.
  t.deepEqual(
    pairs[0]!.processes.sort((one, other) => one - other),
    pids,
  )
  t.deepEqual(
    processes.map(({ pid }) => pid).sort((one, other) => one - other),
    pids,
  )
  t.regex(byProcess.stdout, new RegExp(`^processes ${reader.pid} and ${writer.pid} at ${address}\n`))
  t.regex(byProcess.stdout, new RegExp(`ring +${writer.pid} → ${reader.pid} +0 % of 65.54 kB full`))

  const [one, other] = await Promise.all([Partner.start(t), Partner.start(t)])
  const unseen = abstractAddress()
  await Promise.all([one.join(unseen), other.join(unseen)])
  const ring = findingOf(await findings(one.pid), 'ring', one.pid, other.pid)
  t.is(ring.status, 'unknown')
  t.regex(ring.meaning, /RINGFENCE_OBSERVE=1/)

  const nowhere = await ringfence('doctor', abstractAddress())
  t.is(nowhere.code, 1)
  t.regex(nowhere.stderr, /has no channel, as far as this user may see/)
})
