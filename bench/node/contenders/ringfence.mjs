// ringfence through its public API.

import { Frames, PREFIX } from '../frames.mjs'
import { Reader, add, fill, message } from '../work.mjs'
import { own, ringfence as library } from './contender.mjs'

/** Bytes that a sender stages before it awaits, as a program would do to limit its memory. */
const AWAIT_EVERY = 256 * 1024
/** Messages of a small group with one await. */
const GROUP = 256
/** Bytes that the program gathers before it sends them, as many as with a Unix socket. */
const GATHERED = 65_536
/** Microseconds of spinning in the polled round trip, longer than any round trip between two awake cores. */
const BUSY_POLL = 200

/** Returns a Float64Array over the memory of these bytes. The last one is cached. */
let viewed = null
function viewOf({ buffer }) {
  if (viewed?.buffer !== buffer) viewed = new Float64Array(buffer, 0, buffer.byteLength >>> 3)
  return viewed
}

export function optionsOf({ capacity, size, measure }) {
  while (capacity < 4 * size) capacity *= 2
  return { capacity, busyPollMicros: measure === 'rtt-polled' ? BUSY_POLL : 0 }
}

export async function open({ job }, mode, connect = (options) => library.join(`@${job.tag}`, options)) {
  const channel = await connect(optionsOf(job))
  const reader = new Reader()
  const { size } = job
  const { words, bytes } = message(size)

  /** Sends each, and awaits the last of each `every`. */
  const sendAll = (every) => async (count) => {
    let sent
    for (let n = 0; n < count; n++) {
      fill(words, 0, words.length, n)
      sent = channel.send(bytes)
      if (n % every === every - 1) await sent
    }
    await sent
  }
  const sendMany = sendAll(Math.max(1, Math.floor(AWAIT_EVERY / size)))

  async function tryAll(count) {
    for (let n = 0; n < count; n++) {
      fill(words, 0, words.length, n)
      while (!channel.trySend(bytes)) await channel.waitWritable(size)
    }
  }

  async function fillAll(count) {
    let n = 0
    const write = (memory, offset, length) => {
      fill(viewOf(memory), (memory.byteOffset + offset) / 8, words.length, n)
      return length
    }
    for (; n < count; n++) while (!channel.fill(size, write)) await channel.waitWritable(size)
  }

  async function gatherAll(count) {
    const length = (size + PREFIX) / 8
    const block = new Float64Array(Math.floor(GATHERED / (size + PREFIX)) * length)
    const gathered = Buffer.from(block.buffer)
    for (let n = 0; n < count;) {
      let used = 0
      for (; used < block.length && n < count; used += length, n++) {
        gathered.writeUInt32LE(size, used * 8)
        fill(block, used + 1, words.length, n)
      }
      await channel.send(gathered.subarray(0, used * 8))
    }
  }

  async function reserveAll(count) {
    for (let n = 0; n < count; n++) {
      let reservation
      while ((reservation = channel.reserve(size)) === undefined) await channel.waitWritable(size)
      const memory = reservation.bytes
      fill(new Float64Array(memory.buffer, memory.byteOffset, size / 8), 0, size / 8, n)
      reservation.commit()
    }
  }

  async function drainAll(count) {
    let total = 0
    const visit = (memory, offset, length) => {
      total = add(total, reader.sum(memory, offset, length))
    }
    for (let n = 0; n < count;) {
      const seen = channel.receiveEach(visit)
      n += seen
      if (seen === 0) await channel.waitReadable()
    }
    return total
  }

  async function awaitAll(count) {
    let total = 0
    let n = 0
    for await (const buffer of channel) {
      total = add(total, reader.sum(buffer, 0, buffer.length))
      if (++n === count) break
    }
    return total
  }

  async function batchAll(count) {
    let total = 0
    let n = 0
    for await (const batch of channel.batches()) {
      for (const buffer of batch) total = add(total, reader.sum(buffer, 0, buffer.length))
      n += batch.length
      if (n >= count) break
    }
    return total
  }

  async function scatterAll(count) {
    let total = 0
    let n = 0
    const frames = new Frames((sum) => {
      total = add(total, sum)
      n++
    })
    const visit = (memory, offset, length) => frames.push(memory.subarray(offset, offset + length))
    while (n < count) if (channel.receiveEach(visit) === 0) await channel.waitReadable()
    return total
  }

  const [produce, consume = drainAll] = {
    drain: [sendMany],
    await: [sendMany, awaitAll],
    batches: [sendMany, batchAll],
    gather: [gatherAll, scatterAll],
    reserve: [reserveAll],
    single: [sendAll(1)],
    group: [sendAll(GROUP)],
    try: [tryAll],
    fill: [fillAll],
  }[mode]

  return {
    pid: channel.peer.pid,
    produce,
    consume,
    send(n) {
      fill(words, 0, words.length, n)
      return channel.send(bytes)
    },
    async receive() {
      const buffer = await channel.receive()
      return reader.sum(buffer, 0, buffer.length)
    },
    close: () => channel.close(),
  }
}

const contender = (id, note, mode, takes = () => null) => own(id, note, (setup) => open(setup, mode), { takes })

const oneWay = (measure) => (measure === 'one' ? null : 'one-way only')

export const ringfence = contender(
  'ringfence',
  'two processes; send each, drain with a visitor; round trip: send and receive',
  'drain',
)
export const ringfenceAwait = contender(
  'ringfence-await',
  'the same, read by for await: a Buffer each',
  'await',
  oneWay,
)
export const ringfenceGathered = contender(
  'ringfence-gathered',
  'messages gathered into 64 KiB by hand, as with unix-corked; one send and one visit for all of them',
  'gather',
  (measure, size) =>
    measure !== 'one' ? 'one-way only' : size > 32_768 ? 'a message fills the gathering by itself' : null,
)
export const ringfenceReserve = contender(
  'ringfence-reserve',
  'written in place through reserve, drained',
  'reserve',
  oneWay,
)

/** The cost of single calls, for 64 B. */
export const singles = [
  contender('send-await', 'await each send, drained', 'single'),
  contender('send-for-await', 'send each, read by for await: a Buffer each', 'await'),
  contender('send-batches', 'send each, read by batches(): arrays of Buffers', 'batches'),
  contender('send-drain', 'send each, drained with a visitor', 'drain'),
  contender('send-256-drain', 'send, the last of each 256 awaited, drained with a visitor', 'group'),
  contender('try-send-drain', 'trySend each, drained with a visitor', 'try'),
  contender('fill-drain', 'fill each in place, drained with a visitor', 'fill'),
]
