// One process publishes for two seconds, and three subscribe. One of the three is killed, and one is stopped.

import { fork } from 'node:child_process'
import { once } from 'node:events'
import { setImmediate } from 'node:timers/promises'

import { publish } from 'ringfence'

import { formatBytes, table } from '../../dist/esm/cli/text.js'

/** Bytes of a message. */
const SIZE = 1024
/** Milliseconds of publishing. It takes longer only if the machine is too slow for the events in between. */
const TIME = 2000
/** Milliseconds for which one subscriber may delay the publisher. */
const STALL = 500
/** Messages per millisecond, few enough that only the stopped subscriber can fall a ring behind. */
const PACE = 100
/** The signals to the subscribers, with their times in milliseconds. */
const SIGNALS = { killed: ['SIGKILL', 500], stopped: ['SIGSTOP', 1000] }

/** Publishes at an address, prints a table, and throws if a guarantee is violated. */
export async function broadcast(address) {
  const publisher = await publish(address, { stall: STALL })
  const failure = new AbortController()
  const readers = ['reading', 'stopped', 'killed'].map((part) => new Reader(part, address, failure))
  try {
    await run(publisher, readers, failure.signal)
  } catch (error) {
    throw failure.signal.aborted ? failure.signal.reason : error
  } finally {
    for (const { child } of readers) child.kill('SIGKILL')
    await publisher.close()
  }
}

async function run(publisher, readers, signal) {
  // A subscriber gets all messages after its connection.
  while (publisher.subscribers.length < readers.length) await once(publisher, 'connection', { signal })
  for (const reader of readers) {
    const seen = publisher.subscribers.find(({ peer }) => peer.pid === reader.child.pid)
    void seen.closed.then(({ reason }) => reader.gone(reason))
  }
  const started = performance.now()
  const held = await publishTo(publisher, readers, { started, signal })
  const seconds = (performance.now() - started) / 1000
  await publisher.end()
  await publisher.closed
  const ends = await Promise.all(readers.map((reader) => reader.outcome()))
  print(publisher, readers, ends, { seconds, held })
  const [reading, stopped, killed] = ends
  if (BigInt(reading.read) !== publisher.sequence || reading.lost !== 0n || reading.reason !== 'closed')
    throw new Error('the subscriber without a signal has not received everything')
  if (stopped.reason !== 'evicted' || killed.reason !== 'lost')
    throw new Error(`the one that was stopped was ${stopped.reason}, and the one that was killed ${killed.reason}`)
}

/** Sends for two seconds. Returns the longest time in milliseconds for which a message has waited for room. */
async function publishTo(publisher, readers, { started, signal }) {
  const message = Buffer.alloc(SIZE)
  const waiting = readers.filter(({ part }) => part in SIGNALS)
  let held = 0
  let number = 0n
  let last = started
  let due = 0
  for (let now = started; now - started < TIME || waiting.some(({ reason }) => reason === null);) {
    signal.throwIfAborted()
    for (const reader of waiting) reader.disturb(now - started)
    // Does not catch up after a delay.
    for (due += Math.min(now - last, 10) * PACE; due >= 1; due -= 1) {
      message.writeBigUInt64LE((number += 1n))
      if (publisher.trySend(message)) continue
      const full = performance.now()
      await publisher.send(message)
      held = Math.max(held, performance.now() - full)
    }
    last = now
    await setImmediate()
    now = performance.now()
  }
  return held
}

/** A subscriber process and its state. */
class Reader {
  /** The reason of its disconnection. */
  reason = null
  /** Milliseconds from the signal to the moment at which it was released. */
  after = null
  #signalled = null
  #report = { read: 0, lost: 0n, seconds: 0 }

  constructor(part, address, failure) {
    this.part = part
    this.child = fork(new URL('reader.mjs', import.meta.url), [address], { serialization: 'advanced' })
    this.child.on('message', (report) => (this.#report = report))
    /** Its last report. */
    this.end = new Promise((resolve) => {
      this.child.on('error', (error) => failure.abort(error))
      this.child.on('close', (code) => {
        if (code === 0 || this.part === 'killed') resolve(this.#report)
        else failure.abort(new Error(`the subscriber that is ${this.part} ended with ${code}`))
      })
    })
  }

  /** Its last report, once the publisher is closed. A killed subscriber reports no end, but the publisher does. */
  async outcome() {
    const report = await this.end
    return { reason: this.reason, ...report }
  }

  disturb(time) {
    const [signal, at] = SIGNALS[this.part]
    if (this.#signalled !== null || time < at) return
    this.child.kill(signal)
    this.#signalled = performance.now()
  }

  gone(reason) {
    this.reason = reason
    if (this.#signalled === null) return
    this.after = performance.now() - this.#signalled
    // It notices its eviction once it continues.
    this.child.kill('SIGCONT')
  }
}

function print(publisher, readers, ends, { seconds, held }) {
  const all = Number(publisher.sequence)
  const rate = `${Math.round(all / seconds).toLocaleString('en')} a second`
  console.log(
    `\nProcess ${process.pid} published ${all.toLocaleString('en')} messages of ${formatBytes(SIZE)}, each once: ${rate}.`,
  )
  console.log(`The stopped subscriber delayed it for ${held.toFixed(0)} ms, of at most ${STALL} ms (\`stall\`).\n`)
  const rows = readers.map(({ part, child, after }, index) => {
    const { read, lost, reason, seconds: busy } = ends[index]
    return [
      `process ${child.pid}, ${part}`,
      // A killed subscriber has not reported its last messages.
      `${part === 'killed' ? '≥ ' : ''}${read.toLocaleString('en')}`,
      busy > 0 ? Math.round(read / busy).toLocaleString('en') : '-',
      String(lost),
      reason === 'evicted' ? 'yes' : 'no',
      reason,
      after === null ? '' : `${after.toFixed(0)} ms after ${SIGNALS[part][0]}`,
    ]
  })
  console.log(
    table(['subscriber', 'read', 'a second', 'lost', 'evicted', 'ended', ''], rows, process.stdout.columns ?? 160),
  )
}
