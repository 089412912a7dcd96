// A fake /proc and /sys, to test processes of other users and rare moments. Other paths are real.

import fs from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'

/** The results of reading files, directories, links and file systems. An error is thrown. */
export type FakeFiles = Record<string, string | string[] | object | Error>

export const fails = (code: string) => Object.assign(new Error(`${code}: as this test has it`), { code })

const READERS = ['readFileSync', 'readdirSync', 'readlinkSync', 'statSync', 'statfsSync'] as const

const isFake = (path: unknown) => typeof path === 'string' && /^\/(proc|sys)(\/|$)/.test(path)

/** Makes this process read the fake files, including later changes of them. Returns a function that stops it. */
export function useFakeFiles(files: FakeFiles): () => void {
  const { existsSync } = fs
  const real = { existsSync, ...Object.fromEntries(READERS.map((reader) => [reader, fs[reader]])) }
  const faked = (reader: (...words: unknown[]) => unknown) =>
    function seen(...words: [path: unknown, ...unknown[]]) {
      const [path] = words
      if (!isFake(path)) return reader(...words)
      const found = files[path as string] ?? fails('ENOENT')
      if (found instanceof Error) throw found
      return found
    }
  Object.assign(fs, Object.fromEntries(READERS.map((reader) => [reader, faked(fs[reader] as never)])), {
    existsSync: (path: string) => (isFake(path) ? files[path] !== undefined : existsSync(path)),
  })
  syncBuiltinESMExports()
  return () => {
    Object.assign(fs, real)
    syncBuiltinESMExports()
  }
}

/** A line of a map, for a mapping of `size` bytes. */
export const line = (rights: string, inode: number | string, size: number, name = '/memfd:ringfence (deleted)') =>
  `7f0a00000000-${(0x7f0a00000000 + size).toString(16)} ${rights}p 00000000 00:01 ${inode}                    ${name}`
const ring = (rights: string) => (inode: number, capacity: number, publishedAt?: string) =>
  // Beside the ring there are control words and a page.
  line(rights, inode, capacity + 8192, `/memfd:ringfence${publishedAt ? `-published:${publishedAt}` : ''} (deleted)`)
/** A ring that the process writes, or reads; `publishedAt`: the address in the name of a publisher's ring. */
export const [written, read] = [ring('rw-'), ring('r--')]

const OTHER_MAPPINGS = [
  '00400000-00401000 r-xp 00000000 fe:00 77                    /usr/bin/one',
  '7ff000000000-7ff000001000 rw-p 00000000 00:00 0 ',
]

/** A process with these lines in its map, which listens at these addresses. */
export function fakeProcess(pid: number, lines: string[], ...addresses: string[]): FakeFiles {
  const at = (part: string) => `/proc/${pid}/${part}`
  const files: FakeFiles = {
    [`/proc/${pid}`]: { uid: 1000 + pid },
    // The name may contain anything, even this.
    [at('stat')]:
      `${pid} (a) b (c 1 2) S 1 ${pid} ${Array.from({ length: 16 }, (_, word) => 100 + word).join(' ')} 250 9 9\n`,
    [at('exe')]: `/usr/bin/${pid}`,
    [at('maps')]: [...OTHER_MAPPINGS, ...lines, ...OTHER_MAPPINGS].join('\n') + '\n',
    [at('ns/net')]: 'net:[1]',
    [at('fd')]: ['0', ...addresses.map((_, index) => String(index + 3))],
    [at('fd/0')]: '/dev/null',
  }
  addresses.forEach((address, index) => (files[at(`fd/${index + 3}`)] = socketOf(address)))
  return files
}

const sockets = new Map<string, string>()

function socketOf(address: string): string {
  const socket = sockets.get(address) ?? `socket:[${1000 + sockets.size}]`
  sockets.set(address, socket)
  return socket
}

/** A host with these processes, and the addresses at which they listen. */
export function fakeHost(...processes: FakeFiles[]): FakeFiles {
  const names = processes.flatMap((one) => Object.keys(one)).flatMap((path) => /^\/proc\/(\d+)$/.exec(path)?.[1] ?? [])
  const links = new Set(processes.flatMap((one) => Object.values(one)))
  const lines = [...sockets]
    .filter(([, socket]) => links.has(socket))
    .map(
      ([address, socket]) => `00000000f81b2a3c: 00000002 00000000 00010000 0001 01 ${socket.slice(8, -1)} ${address}\n`,
    )
  return Object.assign(
    {
      // Only a name of digits is a process.
      '/proc': ['12x', 'x12', 'self', 'stat', ...names],
      '/proc/12x/maps': written(1, 4096),
      '/proc/x12/maps': written(1, 4096),
      '/proc/stat': 'cpu  1 2 3\nctxt btime 7\nbtime 1700000000\nprocesses 9\n',
      '/proc/net/unix': `Num       RefCount Protocol Flags    Type St Inode Path\n${lines.join('')}`,
      '/proc/self/ns/net': 'net:[1]',
    } satisfies FakeFiles,
    ...processes,
  ) as FakeFiles
}
