// Reads the state of the machine: how far apart two cores are, and how much memory is left.

import { readFileSync, readdirSync, statfsSync } from 'node:fs'

/** The distance that a cache line travels between two cores. */
export type Distance = 'same core' | 'near' | 'far' | 'unknown'

/** The directories of the kernel's files. Tests pass other ones to simulate other machines. */
export interface SystemPaths {
  sys: string
}

/** Whether two cores share their last-level cache, as the kernel reports it. A hypervisor may report a fictitious topology. */
export function distanceOf(one: number, other: number, { sys }: SystemPaths): Distance {
  if (one === other) return 'same core'
  const [own, otherCache] = [lastCacheOf(one, sys), lastCacheOf(other, sys)]
  if (own === null || otherCache === null) return 'unknown'
  return coresIn(own).has(other) && coresIn(otherCache).has(one) ? 'near' : 'far'
}

/** The cores that share a core's last-level cache, in the kernel's list format; null if the kernel does not report it. */
function lastCacheOf(core: number, sys: string): string | null {
  const directory = `${sys}/devices/system/cpu/cpu${core}/cache`
  return orNull(() => {
    let last = { level: 0, cores: '' }
    for (const name of readdirSync(directory).filter((entry) => entry.startsWith('index'))) {
      const level = Number(readFileSync(`${directory}/${name}/level`, 'latin1'))
      if (level > last.level)
        last = { level, cores: readFileSync(`${directory}/${name}/shared_cpu_list`, 'latin1').trim() }
    }
    return last.level === 0 ? null : last.cores
  })
}

/** Returns null if a file is missing, or this user may not read it. */
function orNull<Result>(read: () => Result): Result | null {
  try {
    return read()
  } catch {
    return null
  }
}

/** Parses the kernel's list format: `0-3,8` is 0, 1, 2, 3 and 8. */
function coresIn(list: string): Set<number> {
  const cores = new Set<number>()
  for (const part of list.split(',')) {
    const [from, to = from] = part.split('-').map(Number)
    for (let core = from!; core <= to!; core += 1) cores.add(core)
  }
  return cores
}

/** The limit and the usage of a resource in bytes. */
export interface Bounded {
  limit: number
  used: number
}

/** /dev/shm as a process sees it; null if it has no limit, or this user may not inspect it. */
export function shmOf(pid: number): Bounded | null {
  return orNull(() => {
    const { bsize, blocks, bavail } = statfsSync(`/proc/${pid}/root/dev/shm`)
    return blocks === 0 ? null : { limit: blocks * bsize, used: (blocks - bavail) * bsize }
  })
}

/** Bytes of a process's rings in /dev/shm, from its channels with the backing shm. */
export function ringsInShm(pid: number): number {
  const maps = orNull(() => readFileSync(`/proc/${pid}/maps`, 'latin1')) ?? ''
  let bytes = 0
  for (const [, from, to] of maps.matchAll(/^([0-9a-f]+)-([0-9a-f]+) rw\S+ .* \/dev\/shm\/ringfence\S*/gm))
    bytes += parseInt(to!, 16) - parseInt(from!, 16)
  return bytes
}

/** The tightest memory cgroup among a process's own and its ancestors; null if none has a limit. */
export function memoryGroupOf(pid: number, { sys }: SystemPaths): (Bounded & { path: string }) | null {
  const [tightest] = [...memoryGroupsOf(pid, sys)].sort((a, b) => b.used / b.limit - a.used / a.limit)
  return tightest ?? null
}

function* memoryGroupsOf(pid: number, sys: string): Generator<Bounded & { path: string }> {
  for (const { root, path, names } of hierarchiesOf(pid, sys)) {
    for (let at = path; ; at = at.slice(0, at.lastIndexOf('/'))) {
      const bounded = boundedAt(`${root}${at}`, names)
      if (bounded !== null) yield { ...bounded, path: at === '' ? '/' : at }
      if (at === '') break
    }
  }
}

/** The cgroup hierarchies that can limit memory: the unified one of version 2, and the memory hierarchy of version 1. */
function* hierarchiesOf(pid: number, sys: string) {
  const groups = orNull(() => readFileSync(`/proc/${pid}/cgroup`, 'latin1')) ?? ''
  for (const [, controllers, groupPath] of groups.matchAll(/^\d+:([^:]*):(.*)$/gm)) {
    const path = groupPath === '/' ? '' : groupPath!
    if (controllers === '') {
      const names = { limit: 'memory.max', used: 'memory.current' }
      yield { root: `${sys}/fs/cgroup`, path, names }
      yield { root: `${sys}/fs/cgroup/unified`, path, names }
    }
    if (controllers!.split(',').includes('memory')) {
      const names = { limit: 'memory.limit_in_bytes', used: 'memory.usage_in_bytes' }
      yield { root: `${sys}/fs/cgroup/memory`, path, names }
    }
  }
}

/** A larger limit means no limit: cgroup version 1 can only express that as the largest number. */
const NO_LIMIT = 2 ** 60

function boundedAt(directory: string, names: { limit: string; used: string }): Bounded | null {
  return orNull(() => {
    const limit = Number(readFileSync(`${directory}/${names.limit}`, 'latin1'))
    const used = Number(readFileSync(`${directory}/${names.used}`, 'latin1'))
    return limit > 0 && limit < NO_LIMIT && used >= 0 ? { limit, used } : null
  })
}
