// A ticker: a Rust process publishes, and eight Node processes subscribe. See README.md.

import { fork, spawn, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { EventEmitter, once } from 'node:events'
import { resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const { values } = parseArgs({
  options: { seconds: { type: 'string', default: '4' }, publisher: { type: 'string' } },
})
const time = Number(values.seconds) * 1000
if (!(time > 0)) throw new Error('--seconds NUMBER')

const KINDS = [
  ...['reliable', 'reliable', 'reliable'],
  ...['best-effort', 'best-effort', 'best-effort'],
  ...['latest', 'latest'],
]

const publisher = values.publisher === undefined ? build() : resolve(values.publisher)
const address = `@ringfence-ticker-${randomBytes(8).toString('hex')}`
const ticker = spawn(publisher, [address, process.execPath, String(KINDS.length)], {
  stdio: ['pipe', 'pipe', 'inherit'],
})
// Emits each line of the publisher as an event. Earlier lines are in `seen`.
const seen = new Set()
const lines = new EventEmitter()
const gone = new Map()
let sent
createInterface({ input: ticker.stdout }).on('line', (line) => {
  const [word, ...more] = line.split(' ')
  if (word === 'gone') gone.set(Number(more[0]), { reason: more[1], most: Number(more[2]) })
  if (word === 'sent') sent = { ticks: Number(more[0]), seconds: Number(more[1]) }
  seen.add(`${word} ${more[0]}`)
  lines.emit(word)
})
const over = new AbortController()
const exited = once(ticker, 'close').finally(() => over.abort(new Error('the publisher has ended')))

const subscribers = KINDS.map((delivery) => new Process(delivery))
const [killed, stopped] = [subscribers[0], subscribers[3]]
process.on('exit', () => {
  for (const each of [ticker, ...subscribers.map(({ child }) => child)]) each.kill('SIGKILL')
})
for (const { child } of subscribers) await waitFor('in', child.pid)
await setTimeout(time / 4)
killed.signal('SIGKILL', 'killed')
stopped.signal('SIGSTOP', 'stopped, went on')
await setTimeout(time / 2)
await waitFor('gone', killed.child.pid)
// More than a ring is overwritten while the subscriber is stopped. It does not delay the publisher, and will count its lost messages.
await waitFor('behind', stopped.child.pid)
stopped.child.kill('SIGCONT')
await setTimeout(time / 4)
// The end of its input ends the publisher.
ticker.stdin.end()
const ends = await Promise.all(subscribers.map(({ end }) => end))
const [end] = await exited
if (end !== 0) throw new Error(`the publisher ended with ${end}`)
print()
check()

/** Waits until the publisher has reported this event of a process. */
async function waitFor(word, pid) {
  while (!seen.has(`${word} ${pid}`)) await once(lines, word, { signal: over.signal })
}

/** A subscriber process. */
function Process(delivery) {
  this.delivery = delivery
  this.state = ''
  this.child = fork(new URL('subscriber.mjs', import.meta.url), [address, publisher, delivery], {
    serialization: 'advanced',
  })
  let report = { read: 0, lost: 0n, sequence: 0n, seconds: 0 }
  this.child.on('message', (message) => (report = message))
  this.end = new Promise((finish, reject) => {
    this.child.on('error', reject)
    this.child.on('close', (code) => {
      if (code === 0 || this.state === 'killed') finish(report)
      else reject(new Error(`a ${delivery} subscriber ended with ${code}`))
    })
  })
  // All results have arrived.
  this.end.catch((error) => over.abort(error))
  this.signal = (signal, state) => {
    this.state = state
    this.child.kill(signal)
  }
}

function print() {
  const rate = Math.round(sent.ticks / sent.seconds)
  console.log(`${sent.ticks} ticks of 40 B in ${sent.seconds.toFixed(2)} s, each published once: ${rate} a second`)
  const rows = subscribers.map(({ delivery, state, child }, index) => {
    const { read, lost, seconds } = ends[index]
    const { reason, most } = gone.get(child.pid)
    const perSecond = seconds > 0 ? String(Math.round(read / seconds)) : '-'
    return [String(child.pid), delivery, String(read), perSecond, String(most), String(lost), reason, state]
  })
  const all = [['process', 'delivery', 'read', 'a second', 'largest lag, B', 'lost', 'ended', ''], ...rows]
  const widths = all[0].map((_, column) => Math.max(...all.map((row) => row[column].length)))
  for (const row of all)
    console.log(
      row
        .map((cell, column) => cell.padEnd(widths[column]))
        .join('  ')
        .trimEnd(),
    )
}

/** Checks the guarantees of each delivery. All subscribers started before the first tick. */
function check() {
  for (const [index, { delivery, child }] of subscribers.entries()) {
    const { read, lost, sequence } = ends[index]
    const { reason } = gone.get(child.pid)
    const who = `process ${child.pid}, ${delivery},`
    if (child === killed.child) {
      if (reason !== 'lost') throw new Error(`${who} was killed, and is gone as ${reason}`)
      continue
    }
    if (reason !== 'closed') throw new Error(`${who} is gone as ${reason}`)
    if (BigInt(read) + lost !== sequence || sequence !== BigInt(sent.ticks))
      throw new Error(`${who} has ${read} read and ${lost} lost at ${sequence}, of ${sent.ticks}`)
    if (delivery === 'reliable' && lost !== 0n) throw new Error(`${who} has lost ${lost}`)
    if (child === stopped.child && lost === 0n) throw new Error(`${who} was stopped, and has lost nothing`)
  }
}

/** Builds the publisher, and returns its path. */
function build() {
  const root = fileURLToPath(new URL('../..', import.meta.url))
  const cargo = ['build', '--quiet', '--release', '-p', 'ringfence-ticker']
  const { status } = spawnSync('cargo', cargo, { cwd: root, stdio: 'inherit' })
  if (status !== 0) throw new Error('the publisher could not be built')
  return `${root}target/release/ringfence-ticker`
}
