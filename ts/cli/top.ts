// `ps` and `top`: the processes that have channels, and the traffic of these.

import { counted } from '../channel/resource.js'
import { seenProcesses } from '../runtime/processes.js'
import { Sources, type ObservedProcess } from './observed.js'
import { print, printJson } from './output.js'
import { formatBytes, outputTable } from './text.js'

/** Prints the processes that have channels. */
export function ps(json: boolean): void {
  const processes = seenProcesses()
  if (json) return printJson({ processes })
  const rows = processes.flatMap(({ pid, uid, executable, since, channels }) =>
    channels.map(({ role, peer, ringCapacity, address }) => [
      String(pid),
      String(uid),
      executable ?? '?',
      new Date(since).toISOString().slice(0, 19),
      role ?? '?',
      // A publisher without a subscriber has no peer (`-`). Any other channel has one that this user may not see (`?`).
      String(peer ?? (role === 'publisher' ? '-' : '?')),
      formatBytes(ringCapacity),
      address ?? '?',
    ]),
  )
  const headings = ['pid', 'uid', 'executable', 'since', 'role', 'peer', 'ring', 'address']
  print(outputTable(headings, rows))
}

/** Milliseconds between two updates of the screen and of the list of processes. */
const INTERVAL = 1000

type Row = ObservedProcess['channels'][number] & { pid: number }

/** The sort orders, by key. */
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

/** The columns: a heading, and the text of a row. */
const COLUMNS: [heading: string, cell: (row: Row) => string][] = [
  ['pid', ({ pid }) => String(pid)],
  ['role', ({ role }) => role],
  ['peer', ({ peer, open = 0 }) => (peer === null ? counted(open, 'subscriber') : String(peer))],
  ['sent/s', (row) => row.messagesSentPerSecond.toFixed(0)],
  ['', (row) => `${formatBytes(Math.round(row.bytesSentPerSecond))}/s`],
  ['received/s', (row) => row.messagesReceivedPerSecond.toFixed(0)],
  ['', (row) => `${formatBytes(Math.round(row.bytesReceivedPerSecond))}/s`],
  ['fill', (row) => `${(fillOf(row) * 100).toFixed(0)} %`],
  ['lag', ({ lag = 0 }) => formatBytes(lag)],
  ['lost', ({ lost = 0 }) => String(lost)],
  ['waits', ({ waits = 0 }) => String(waits)],
  ['evicted', ({ evicted = 0 }) => String(evicted)],
  ['address', ({ address }) => address ?? '(a line)'],
]

function screen(watched: ObservedProcess[], order: string): string {
  const { by, name } = ORDERS[order]!
  const rows = watched.flatMap(({ pid, channels }) => channels.map((channel): Row => ({ ...channel, pid })))
  rows.sort((a, b) => by(b) - by(a))
  const keys = Object.entries(ORDERS).map(([key, { name: label }]) => `${key} ${label}`)
  const processes = counted(watched.length, 'process', 'processes')
  return `${processes}, sorted by ${name} (${keys.join(', ')}, q quit)\n${outputTable(
    COLUMNS.map(([heading]) => heading),
    rows.map((row) => COLUMNS.map(([, cell]) => cell(row))),
  )}`
}

/** Shows the traffic of this user's observable processes. */
export async function top(
  address: string | undefined,
  { once, json }: { once: boolean; json: boolean },
): Promise<void> {
  const sources = new Sources()
  await sources.find()
  await sources.ready()
  let order = 'm'
  const show = () => {
    const processes = sources.observed(address)
    if (json) printJson({ processes }, once ? 2 : 0)
    else print(`${once ? '' : '\u001B[2J\u001B[H'}${screen(processes, order)}`)
  }
  if (once) {
    show()
    await sources.close()
    return
  }
  const { stdin } = process
  const isInteractive = stdin.isTTY && !json
  const restore = () => void stdin.setRawMode(false)
  let fail!: (error: unknown) => void
  const over = new Promise<void>((resolve, reject) => {
    fail = reject
    if (!isInteractive) return
    stdin.setRawMode(true).setEncoding('utf8')
    // Also runs if a signal terminates this process: ts/cli.ts emits 'exit' first.
    process.once('exit', restore)
    stdin.on('data', (keys: string) => {
      for (const key of keys) {
        // In raw mode, Control-C is a key and sends no signal.
        if (key === 'q' || key === '\u0003') resolve()
        if (key in ORDERS) {
          order = key
          show()
        }
      }
    })
  })
  show()
  const timer = setInterval(() => {
    // Not awaited: a new process that does not answer must not delay the screen.
    sources.find().catch(fail)
    show()
  }, INTERVAL)
  try {
    await over
  } finally {
    clearInterval(timer)
    if (isInteractive) {
      process.off('exit', restore)
      restore()
    }
    stdin.pause()
    await sources.close()
  }
}
