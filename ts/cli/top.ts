// Who has channels, and what goes through them.

import { readFileSync } from 'node:fs'

import { subscribe, type Subscription } from '../broadcast/subscription.js'
import { observedAt, type Observed, type Snapshot } from '../observe.js'
import { seenProcesses } from '../processes.js'
import { formatBytes, printable, table } from './text.js'

/** Prints the processes that have channels. */
export function ps(json: boolean): void {
  const processes = seenProcesses()
  if (json) {
    process.stdout.write(`${JSON.stringify({ processes }, null, 2)}\n`)
    return
  }
  const rows = processes.flatMap(({ pid, uid, executable, since, channels }) =>
    (channels.length > 0 ? channels : [undefined]).map((channel) => [
      String(pid),
      String(uid),
      executable ?? '?',
      new Date(since).toISOString().slice(0, 19),
      channel?.role ?? '?',
      channel?.peer === null || channel === undefined ? '?' : String(channel.peer),
      channel === undefined ? '?' : formatBytes(channel.ringCapacity),
      channel?.address ?? '?',
    ]),
  )
  const headings = ['pid', 'uid', 'executable', 'since', 'role', 'peer', 'ring', 'address']
  process.stdout.write(`${shown(headings, rows)}\n`)
}

/** Executables and addresses are named by others. */
function shown(headings: string[], rows: string[][]): string {
  return table(
    headings,
    rows.map((row) => row.map(printable)),
    process.stdout.columns ?? 160,
  )
}

/** What goes through in a second. */
interface Rates {
  messagesSentPerSecond: number
  bytesSentPerSecond: number
  messagesReceivedPerSecond: number
  bytesReceivedPerSecond: number
}

interface Watched {
  pid: number
  uid: number
  executable: string
  channels: (Observed & Rates)[]
}

/** How long the first figures of a process are waited for, in milliseconds. */
const PATIENCE = 10_000
/** How often the screen is drawn, and processes are looked for, in milliseconds. */
const INTERVAL = 1000

/** A process that tells its figures: the last two that came. */
class Source {
  readonly #subscription: Subscription
  #before: Snapshot | null = null
  #now: Snapshot | null = null
  isOver = false
  /** Resolves once two have come, or no more will. */
  readonly ready: Promise<void>

  constructor(subscription: Subscription) {
    this.#subscription = subscription
    this.ready = new Promise((resolve) => {
      void this.#read(resolve).finally(resolve)
    })
  }

  async #read(ready: () => void): Promise<void> {
    try {
      for await (const message of this.#subscription) {
        this.#before = this.#now
        this.#now = snapshotIn(message)
        if (this.#before !== null) ready()
      }
    } catch {
      // It is not looked at any more.
    }
    this.isOver = true
  }

  close(): Promise<void> {
    return this.#subscription.close()
  }

  /** null: nothing has come. */
  watched(address: string | undefined): Watched | null {
    if (this.#now === null) return null
    const { pid, uid, executable, at, channels } = this.#now
    const before = this.#before
    const seconds = before === null ? 0 : (at - before.at) / 1000
    const rated = channels
      .filter((channel) => address === undefined || channel.address === address)
      .map((channel) => {
        const earlier = before?.channels.find(({ id }) => id === channel.id)
        return Object.assign(channel, ratesOf(earlier, channel, seconds))
      })
    return { pid, uid, executable, channels: rated }
  }
}

/** Throws for what is none: a process of this user may publish anything at such an address. */
function snapshotIn(message: Buffer): Snapshot {
  const found = JSON.parse(message.toString()) as Partial<Snapshot> | null
  const isSound =
    typeof found?.pid === 'number' &&
    typeof found.at === 'number' &&
    typeof found.executable === 'string' &&
    Array.isArray(found.channels) &&
    found.channels.every((channel) => typeof channel === 'object' && channel !== null)
  if (!isSound) throw new Error('no figures')
  return found as Snapshot
}

function ratesOf(before: Observed | undefined, now: Observed, seconds: number): Rates {
  const rate = (...figures: (keyof Observed)[]) => {
    if (before === undefined || !(seconds > 0)) return 0
    const sum = (of: Observed) => figures.reduce((all, figure) => all + Number(of[figure] ?? 0), 0)
    return (sum(now) - sum(before)) / seconds
  }
  return {
    messagesSentPerSecond: rate('messagesSent', 'published'),
    bytesSentPerSecond: rate('bytesSent', 'bytesPublished'),
    messagesReceivedPerSecond: rate('messagesReceived'),
    bytesReceivedPerSecond: rate('bytesReceived'),
  }
}

/** Processes that tell their figures, as the kernel lists their addresses. */
function observedPids(): number[] {
  const own = process.pid
  const listed = readFileSync('/proc/net/unix', 'latin1').matchAll(/ 00010000 .* @ringfence-observe-(\d+)$/gm)
  return [...new Set([...listed].map(([, pid]) => Number(pid)))].filter((pid) => pid !== own)
}

class Sources {
  readonly #sources = new Map<number, Source>()

  /** Looks for processes that have come, and forgets those that have gone. */
  async find(): Promise<void> {
    for (const [pid, source] of this.#sources) if (source.isOver) this.#sources.delete(pid)
    const fresh = observedPids().filter((pid) => !this.#sources.has(pid))
    await Promise.all(
      fresh.map(async (pid) => {
        const options = { delivery: 'latest', from: 'latest', policy: { uid: 'same' }, timeout: PATIENCE } as const
        // Another user's process refuses, and so does one that ends just now.
        const subscription = await subscribe(observedAt(pid), options).catch(() => null)
        if (subscription !== null) this.#sources.set(pid, new Source(subscription))
      }),
    )
  }

  async ready(): Promise<void> {
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, PATIENCE)
    })
    await Promise.race([late, Promise.all([...this.#sources.values()].map(({ ready }) => ready))])
    clearTimeout(timer)
  }

  watched(address: string | undefined): Watched[] {
    const all = [...this.#sources.values()]
      .map((source) => source.watched(address))
      .filter((watched) => watched !== null)
      .filter(({ channels }) => address === undefined || channels.length > 0)
    return all.sort((one, other) => one.pid - other.pid)
  }

  async close(): Promise<void> {
    await Promise.all([...this.#sources.values()].map((source) => source.close()))
  }
}

type Row = Watched['channels'][number] & { pid: number }

/** Keys, and what they sort by. */
const ORDERS: Record<string, { name: string; by: (row: Row) => number }> = {
  m: { name: 'messages', by: (row) => row.messagesSentPerSecond + row.messagesReceivedPerSecond },
  b: { name: 'bytes', by: (row) => row.bytesSentPerSecond + row.bytesReceivedPerSecond },
  f: { name: 'fill', by: fillOf },
  l: { name: 'lag', by: (row) => row.lag ?? 0 },
  w: { name: 'waits', by: (row) => row.waits ?? 0 },
}

function fillOf({ ringUsed = 0, ringCapacity = 0 }: Row): number {
  return ringCapacity === 0 ? 0 : ringUsed / ringCapacity
}

function screen(watched: Watched[], order: string): string {
  const { by, name } = ORDERS[order]!
  const rows = watched.flatMap(({ pid, channels }) => channels.map((channel): Row => ({ ...channel, pid })))
  rows.sort((one, other) => by(other) - by(one))
  const cells = rows.map((row) => [
    String(row.pid),
    String(row.role),
    row.peer === null ? `${row.subscribers ?? 0} subscribers` : String(row.peer),
    row.messagesSentPerSecond.toFixed(0),
    `${formatBytes(Math.round(row.bytesSentPerSecond))}/s`,
    row.messagesReceivedPerSecond.toFixed(0),
    `${formatBytes(Math.round(row.bytesReceivedPerSecond))}/s`,
    `${(fillOf(row) * 100).toFixed(0)} %`,
    formatBytes(Number(row.lag ?? 0)),
    String(row.lost ?? 0),
    String(row.waits ?? 0),
    String(row.evicted ?? 0),
    String(row.address ?? '(a line)'),
  ])
  const headings = [
    'pid',
    'role',
    'peer',
    'sent/s',
    '',
    'received/s',
    '',
    'fill',
    'lag',
    'lost',
    'waits',
    'evicted',
    'address',
  ]
  const keys = Object.entries(ORDERS).map(([key, { name: of }]) => `${key} ${of}`)
  return `${watched.length} processes, sorted by ${name} (${keys.join(', ')}, q quit)\n${shown(headings, cells)}\n`
}

/** Shows what goes through, of the processes of this user that let it be seen. */
export async function top(
  address: string | undefined,
  { once, json }: { once: boolean; json: boolean },
): Promise<void> {
  const sources = new Sources()
  await sources.find()
  await sources.ready()
  let order = 'm'
  const show = () => {
    const processes = sources.watched(address)
    if (json) process.stdout.write(`${JSON.stringify({ processes }, null, once ? 2 : 0)}\n`)
    else process.stdout.write(`${once ? '' : '\u001B[2J\u001B[H'}${screen(processes, order)}`)
  }
  if (once) {
    show()
    await sources.close()
    return
  }
  const { stdin } = process
  const over = new Promise<void>((resolve) => {
    if (!stdin.isTTY || json) return
    stdin.setRawMode(true).setEncoding('utf8')
    stdin.on('data', (keys: string) => {
      for (const key of keys) {
        // Control-C is a key here.
        if (key === 'q' || key === '\u0003') resolve()
        if (key in ORDERS) {
          order = key
          show()
        }
      }
    })
  })
  show()
  const timer = setInterval(() => void sources.find().then(show), INTERVAL)
  await over
  clearInterval(timer)
  stdin.setRawMode(false)
  stdin.pause()
  await sources.close()
}
