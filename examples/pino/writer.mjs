// A process that logs in one of the compared ways. It prints JSON for main.mjs and test.mjs.
//
//     node writer.mjs WAY TARGET NAME COUNT PACE [COUNTER]
//
// PACE: lines per millisecond, or 0 for full speed. COUNTER: a file with the number of log calls that have returned so far.

import { openSync, writeSync } from 'node:fs'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { setImmediate, setTimeout } from 'node:timers/promises'

import pino from 'pino'

import { ringDestination } from './destination.mjs'

const [way, target, name, ...numbers] = process.argv.slice(2)
const [count, pace] = numbers.map(Number)
const counter = numbers[2] === undefined ? null : openSync(numbers[2], 'r+')

const destinations = {
  ring: () => ringDestination({ address: target, wait: true }),
  'ring by transport': () =>
    pino.transport({
      target: new URL('transport.mjs', import.meta.url).pathname,
      options: { address: target, wait: true },
    }),
  'worker thread': () => pino.transport({ target: 'pino/file', options: { destination: target } }),
  'sonic-boom, sync': () => pino.destination({ dest: target, sync: true }),
  'sonic-boom, async': () => pino.destination({ dest: target, sync: false, minLength: 4096 }),
  // Standard output is a pipe to the parent, which writes the file.
  'stdout to a pipe': () => pino.destination({ dest: 1, sync: true }),
}
const destination = await destinations[way]()
const log = pino({ base: { writer: name }, timestamp: pino.stdTimeFunctions.epochTime }, destination)

const delay = monitorEventLoopDelay({ resolution: 1 })
delay.enable()
const began = process.hrtime.bigint()
const cpu = process.cpuUsage()
await (pace === 0 ? flood() : steady())
delay.disable()
// At exit, to include other threads and the last flush.
process.on('exit', () => {
  const { user, system } = process.cpuUsage(cpu)
  const figures = { began: String(began), cpu: user + system, p99: delay.percentile(99) / 1e6, max: delay.max / 1e6 }
  writeSync(2, `${JSON.stringify(figures)}\n`)
})
if (way === 'ring') destination.end()

/** Logs at full speed, with a turn of the event loop after each hundred lines. */
async function flood() {
  for (let line = 0; line < count; line += 1) {
    write(line)
    if (line % 100 === 99) await setImmediate()
  }
}

/** Logs a number of lines for each elapsed millisecond. */
async function steady() {
  for (let line = 0; line < count;) {
    const due = Math.min(count, Math.floor((Number(process.hrtime.bigint() - began) / 1e6) * pace))
    for (; line < due; line += 1) write(line)
    await setTimeout(1)
  }
}

function write(line) {
  log.info({ line, user: 'ada', path: '/orders/4711', took: 12.5 }, 'request completed')
  if (counter !== null) returns(line + 1)
}

/** Records that the call of this line has returned. The record survives a kill of this process. */
function returns(lines) {
  writeSync(counter, String(lines).padStart(12), 0)
}
