// `ringfence doctor PID|ADDRESS`: reading the properties of a machine and its processes.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'

import test, { type ExecutionContext } from 'ava'

import { abstractAddress, temporaryDirectory } from './support/address.js'
import { useFakeFiles } from './support/fake-proc.js'
import { Partner } from './support/partner.js'
import { slow, type Activity, type Bounded } from './support/slow.js'
import { until } from './support/until.js'

const { distanceOf, memoryGroupOf, ringsInShm, shmOf } = (await slow('machine')) as {
  distanceOf(one: number, other: number, places: { sys: string }): string
  memoryGroupOf(pid: number, places: { sys: string }): Bounded | null
  ringsInShm(pid: number): number
  shmOf(pid: number): Bounded | null
}
const { sampleProcesses } = (await slow('activity')) as {
  sampleProcesses(pids: readonly number[]): Promise<Map<number, Activity>>
}

/** The pid of a process that has exited. Linux does not reuse it soon. */
async function goneProcess(): Promise<number> {
  const child = spawn('true')
  await once(child, 'exit')
  return child.pid!
}

function writeTo(path: string, content: string | number): void {
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(path, `${content}\n`)
}

/** A fake /sys with the caches of each core. */
function machineWith(t: ExecutionContext, caches: Record<number, [level: number, cores: string][]>): string {
  const sys = temporaryDirectory(t)
  for (const [core, all] of Object.entries(caches)) {
    writeTo(`${sys}/devices/system/cpu/cpu${core}/cache/uevent`, 'no cache')
    for (const [at, [level, cores]] of all.entries()) {
      const index = `${sys}/devices/system/cpu/cpu${core}/cache/index${at}`
      writeTo(`${index}/level`, level)
      writeTo(`${index}/shared_cpu_list`, cores)
    }
  }
  return sys
}

test('two cores are near if they share their last cache', (t) => {
  const sys = machineWith(t, {
    0: [
      [1, '0'],
      [3, '0-2,5'],
      [2, '0,9'],
    ],
    1: [[3, '0-2,5']],
    2: [[3, '0-2,5']],
    5: [[3, '0-2,5']],
    // It shares one cache, but not its last one.
    3: [
      [1, '0-5'],
      [2, '3-4'],
    ],
    6: [[3, '0-6']],
    7: [],
    9: [[2, '0,9']],
  })
  const of = (one: number, other: number) => distanceOf(one, other, { sys })
  for (const near of [1, 2, 5]) t.is(of(0, near), 'near', `0 and ${near}`)
  for (const far of [3, 6, 9])
    for (const [one, other] of [
      [0, far],
      [far, 0],
    ] as const)
      t.is(of(one, other), 'far', `${one} and ${other}`)
  for (const unknown of [7, 8]) {
    t.is(of(0, unknown), 'unknown')
    t.is(of(unknown, 0), 'unknown')
    t.is(of(unknown, unknown), 'same core')
  }
})

test('the tightest memory cgroup counts, in versions 1 and 2', async (t) => {
  const groups = readFileSync('/proc/self/cgroup', 'latin1').trim().split('\n')
  const pathOf = (is: (controllers: string) => boolean) => {
    const line = groups.find((group) => is(group.split(':')[1]!))
    return line === undefined ? undefined : line.split(':').slice(2).join(':').replace(/^\/$/, '')
  }
  const found = (files: Record<string, string | number>) => {
    const sys = temporaryDirectory(t)
    for (const [name, content] of Object.entries(files)) writeTo(`${sys}/fs/cgroup${name}`, content)
    return memoryGroupOf(process.pid, { sys })
  }
  const second = pathOf((controllers) => controllers === '')
  const first = pathOf((controllers) => controllers.split(',').includes('memory'))
  t.false(second === undefined && first === undefined, 'there is one of them')
  for (const [root, path, limit, used] of [
    ['', second, 'memory.max', 'memory.current'],
    ['/unified', second, 'memory.max', 'memory.current'],
    ['/memory', first, 'memory.limit_in_bytes', 'memory.usage_in_bytes'],
  ] as const) {
    if (path === undefined) continue
    const at = (group: string, of: number | string, has: number | string) => ({
      [`${root}${group}/${limit}`]: of,
      [`${root}${group}/${used}`]: has,
    })
    t.deepEqual(found(at(path, 1000, 10)), { limit: 1000, used: 10, path: path || '/' })
    t.deepEqual(found(at('', 1000, 0)), { limit: 1000, used: 0, path: '/' })
    if (path !== '') {
      t.deepEqual(found({ ...at(path, 1000, 10), ...at('', 500, 10) }), { limit: 500, used: 10, path: '/' })
      t.deepEqual(found({ ...at(path, 500, 10), ...at('', 1000, 10) }), { limit: 500, used: 10, path })
    }
    for (const none of [at('', 'max', 1), at('', 0, 1), at('', 2 ** 60, 1), at('', 1000, 'x'), at('', 1000, -1)])
      t.is(found(none), null)
  }
  t.is(found({}), null)
  t.is(memoryGroupOf(await goneProcess(), { sys: temporaryDirectory(t) }), null)
})

test.serial('the cgroups of a process are read from its own lines, in any hierarchy', (t) => {
  const found = (cgroup: string, limits: Record<string, number>) => {
    const files = { '/proc/7/cgroup': cgroup }
    for (const [name, content] of Object.entries(limits))
      Object.assign(files, { [`/sys/fs/cgroup${name}`]: `${content}\n` })
    const restore = useFakeFiles(files)
    try {
      return memoryGroupOf(7, { sys: '/sys' })
    } finally {
      restore()
    }
  }
  const first = { '/memory/a/b/memory.limit_in_bytes': 1000, '/memory/a/b/memory.usage_in_bytes': 10 }
  const group = { limit: 1000, used: 10, path: '/a/b' }
  for (const lines of ['12:memory:/a/b\n', '3:cpu,memory:/a/b\n11:pids:/\n0::/\n'])
    t.deepEqual(found(lines, first), group)
  // A path of another hierarchy, and similar names.
  for (const lines of ['4:cpu:/a/b\n', '4:name=memory:/a/b\n', '0::/a/b\n', '4:memory_x:/a/b\n'])
    t.is(found(lines, first), null, lines)
  const second = { '/a:b/memory.max': 1000, '/a:b/memory.current': 10 }
  t.deepEqual(found('0::/a:b\n', second), { ...group, path: '/a:b' })
  t.is(found('4:memory:/a:b\n', second), null)
  t.deepEqual(found('0::/\n', { '/memory.max': 1000, '/memory.current': 10 }), { ...group, path: '/' })
})

test.serial('a /dev/shm without a limit has none', (t) => {
  for (const [blocks, wanted] of [
    [0, null],
    [10, { limit: 40_960, used: 12_288 }],
  ] as const) {
    const restore = useFakeFiles({ '/proc/7/root/dev/shm': { bsize: 4096, blocks, bavail: blocks === 0 ? 0 : 7 } })
    try {
      t.deepEqual(shmOf(7), wanted)
    } finally {
      restore()
    }
  }
})

test('/dev/shm as a process sees it', async (t) => {
  const size = 4 << 20
  const directory = mkdtempSync('/dev/shm/test-')
  t.teardown(() => rmSync(directory, { recursive: true }))
  writeFileSync(`${directory}/file`, Buffer.alloc(size))
  const { limit, used } = shmOf(process.pid)!
  const { bsize, blocks } = statfsSync('/dev/shm')
  t.is(limit, bsize * blocks)
  // Other tests use it at the same time.
  t.true(used >= size && used <= limit, String(used))
  const gone = await goneProcess()
  t.is(shmOf(gone), null)
  t.is(ringsInShm(gone), 0)
  t.is(ringsInShm(process.pid), 0)
})

test('rings in /dev/shm are counted for the process that writes them', async (t) => {
  const [one, other] = await Promise.all([Partner.start(t), Partner.start(t)])
  const capacity = 262_144
  const meet = async (backing: 'shm' | 'memfd') => {
    const address = abstractAddress()
    await Promise.all([one, other].map((partner) => partner.join(address, { backing, capacity })))
    // Keeps the previous channel.
    await one.run((kit, name) => void (kit.keep[name] = kit.channel), backing)
    await other.run((kit, name) => void (kit.keep[name] = kit.channel), backing)
  }
  await meet('memfd')
  t.is(ringsInShm(one.pid), 0)
  await meet('shm')
  // The control words of a ring take a few pages.
  for (const { pid } of [one, other]) {
    const rings = ringsInShm(pid)
    t.true(rings >= capacity && rings < 2 * capacity, String(rings))
  }
})

/** A process with one thread that runs this script. */
function running(t: ExecutionContext, script: string): number {
  const child = spawn('sh', ['-c', script], { stdio: 'ignore' })
  t.teardown(() => child.kill('SIGKILL'))
  return child.pid!
}

const stateOf = (pid: number) => /\) (\S)/.exec(readFileSync(`/proc/${pid}/stat`, 'latin1'))![1]

test('the state of a process: busy, asleep, stopped or gone', async (t) => {
  const busy = running(t, 'while :; do :; done')
  const asleep = running(t, 'exec sleep 1000')
  const stopped = running(t, 'kill -STOP $$')
  const restless = running(t, 'while :; do sleep 0.005; done')
  const pinned = running(t, `exec taskset -c ${firstCore()} sleep 1000`)
  await until(() => stateOf(stopped) === 'T', 'it is stopped')
  await until(
    () => stateOf(asleep) === 'S' && readFileSync(`/proc/${asleep}/comm`, 'latin1') === 'sleep\n',
    'it sleeps',
  )
  await until(() => readFileSync(`/proc/${pinned}/comm`, 'latin1') === 'sleep\n', 'it is pinned')
  const found = await sampleProcesses([busy, asleep, stopped, restless, pinned, await goneProcess()])
  t.is(found.size, 5)
  const of = (pid: number) => found.get(pid)!
  // One thread that was always running or waiting for a core. The samples are slightly inexact.
  t.true(of(busy).busy > 0.1 && of(busy).busy < 1.5, String(of(busy).busy))
  t.deepEqual([of(asleep).busy, of(asleep).sleepsPerSecond], [0, 0])
  t.deepEqual(
    [busy, asleep, stopped, pinned].map((pid) => of(pid).isStopped),
    [false, false, true, false],
  )
  // It waits for each process that it starts.
  t.true(of(restless).sleepsPerSecond > 1, String(of(restless).sleepsPerSecond))
  t.true(of(pinned).isPinned)
  t.is(of(asleep).isPinned, !/^Cpus_allowed_list:.*[-,]/m.test(readFileSync('/proc/self/status', 'latin1')))
  t.is(of(pinned).core, firstCore())
})

function firstCore(): number {
  return Number(/^Cpus_allowed_list:\s*(\d+)/m.exec(readFileSync('/proc/self/status', 'latin1'))![1])
}
