// The Node process of the soak. It has one conversation after the other at an address until it is stopped, and records in a
// ledger what it has sent and received. Its input and output are those of the Rust process (`__test__/rust/src/soak.rs`).
//
//     node actor.mjs ROLE ADDRESS LEDGER ID COUNT EXECUTABLE,EXECUTABLE [shm] [worker] [throw] [capacity=BYTES]

import { closeSync, openSync, readFileSync, readSync, readdirSync, readlinkSync, unlinkSync, writeSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads'
import {
  RemoteError,
  SealedBuffer,
  connect,
  fromParent,
  join,
  listen,
  member,
  publish,
  spawn,
  subscribe,
} from 'ringfence'

const [role, address, path, first, count, executables, ...more] = isMainThread
  ? process.argv.slice(2)
  : workerData.words
const has = (word) => more.includes(word)
const id = isMainThread ? Number(first) : workerData.id
const WORDS = 6
const PEER_ACTOR = 0
const PEER_SESSION = 1
const SENT = 2
const RECEIVED = 3
const END = 4
const ATTACHED = 5
const CAPACITY = 16_384
const ENDS = { closed: 1, lost: 2 }
const BROKEN = 3

// The standard output of a worker would end with it. A child prints to its parent's, and only errors.
function say(line) {
  if (role !== 'child' || /^(wrong|code) /.test(line)) writeSync(1, `${line}\n`)
}

/** An error that must not happen. */
class Wrong extends Error {}

const over = new AbortController()
/** Each session listens for it. */
const { signal } = over
let sessions = 0
let ledger

function write(session, word, value) {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(BigInt(value))
  writeSync(ledger, bytes, 0, 8, (session * WORDS + word) * 8)
}

// Every byte follows from the sender and the number, as in the Rust process.
const ALL = Buffer.from(Array.from({ length: 40_000 + 256 }, (_, at) => at & 255))

function message(actor, session, number, mayBeLong) {
  const drawn = Math.imul(number, 2_654_435_761) >>> 7
  const length = mayBeLong && number % 97 === 96 ? 20_000 + (drawn % 20_000) : drawn % 1900
  const start = (Math.imul(number, 31) + actor) & 255
  const bytes = Buffer.allocUnsafe(12 + length)
  bytes.writeUInt32LE(actor, 0)
  bytes.writeUInt32LE(session, 4)
  bytes.writeUInt32LE(number, 8)
  ALL.copy(bytes, 12, start, start + length)
  return bytes
}

/** The number of attachments of a message: none, a sealed buffer with the same bytes, or also a file with them. */
const attachmentsOf = (number) => ({ 5: 2, 13: 1, 21: 1 })[number % 24] ?? 0

function fileWith(bytes) {
  const name = path.replace(/[^/]*$/, `${id}.attached`)
  const fd = openSync(name, 'w+')
  unlinkSync(name)
  writeSync(fd, bytes)
  return { fd, close: () => closeSync(fd) }
}

/** Sends a message with its attachments. */
function sendOne(sink, session, number, mayBeLong) {
  const bytes = message(id, session, number, mayBeLong)
  const wanted = attachmentsOf(number)
  if (wanted === 0) return patiently(() => sink.send(bytes))
  return patiently(async () => {
    const attachments = []
    try {
      attachments.push(SealedBuffer.from(bytes))
      if (wanted === 2) attachments.push(fileWith(bytes))
      await sink.send(bytes, { attachments })
    } finally {
      for (const each of attachments) each.close()
    }
  })
}

/** The bytes of an attachment of at most this length, and one more if it is longer. */
function bytesOf(attachment, length) {
  if (attachment instanceof SealedBuffer) return attachment.bytes()
  const room = Buffer.alloc(length + 1)
  return room.subarray(0, readSync(attachment.fd, room, 0, room.length, 0))
}

/** Checks that each message follows the previous one of its sender, and has its attachments. */
class Reading {
  #from = null
  #attached = 0
  next = 0

  /** @param mayLack - The number of bytes whose messages may lack their attachments */
  constructor(session, mayLack = 0) {
    this.session = session
    this.mayLack = mayLack
  }

  account(found, lost = 0) {
    const actor = found.readUInt32LE(0)
    const session = found.readUInt32LE(4)
    const number = found.readUInt32LE(8)
    const name = `message ${number} of ${actor}.${session}`
    if (!found.equals(message(actor, session, number, found.length > 2000))) {
      throw new Wrong(`${name} is another: ${found.length} bytes`)
    }
    if (this.#from === null) {
      this.#from = `${actor}.${session}`
      write(this.session, PEER_ACTOR, actor)
      write(this.session, PEER_SESSION, session)
      this.next = number - lost
    }
    if (this.#from !== `${actor}.${session}` || number !== this.next + lost) {
      throw new Wrong(`${name} came in place of ${this.next + lost} of ${this.#from}`)
    }
    this.next = number + 1
    write(this.session, RECEIVED, this.next)
    this.#check(found, number, name)
  }

  #check(found, number, name) {
    const { attachments = [] } = found
    this.mayLack -= found.length
    if (attachments.length !== attachmentsOf(number) && !(attachments.length === 0 && this.mayLack > 0))
      throw new Wrong(`${name} has ${attachments.length} attachments`)
    const way = Math.floor(this.session / 3) % 3
    // Others leave them to the garbage collector, unread.
    if (way === 2) return
    for (const attachment of attachments) {
      const bytes = bytesOf(attachment, found.length)
      if (!found.equals(bytes)) throw new Wrong(`${name} came with another ${attachment.kind ?? 'buffer'}`)
      // Others leave them to the garbage collector after that.
      if (way === 0) attachment.close()
    }
    if (attachments.length > 0) write(this.session, ATTACHED, (this.#attached += attachments.length))
  }
}

const MAY_BE = new Set(['AbortError', 'ABORT_ERR'])
const MUST_NOT_BE = new Set([
  'RING_CORRUPT',
  'OBJECT_UNSOUND',
  'OBJECT_EXPOSED',
  'INVALID_ARGUMENT',
  'UNSUPPORTED',
  'MALFORMED',
])

/**
 * Reports an allowed error by its code, and every other error as wrong. Ignores errors of a worker that is being terminated: it
 * keeps running until the engine checks for the termination, and in the meantime each call of the binding returns undefined.
 */
function note(error) {
  if (!isMainThread && Atomics.load(workerData.ends, 0) === 1) return
  const code = error?.code?.replace('ERR_RINGFENCE_', '')
  if (error instanceof Wrong || code === undefined) say(`wrong ${error?.stack?.replaceAll('\n', ' | ') ?? error}`)
  else if (MUST_NOT_BE.has(code)) say(`wrong ${code} ${error.message}`)
  else if (!MAY_BE.has(code)) say(`code ${code} ${error.message}`)
}

const policy = { executable: executables?.split(',') }
if (has('throw')) {
  let asked = 0
  policy.authorize = () => {
    asked += 1
    if (asked % 3 === 0) throw new Error('thrown in a callback, as it may be')
    return true
  }
}
/** So few that senders wait for their readers. */
const attachments = { sealed: true, descriptors: true, maxCount: 3 }
const common = { policy, handshakeTimeout: 20_000, signal }
const capacity = more.find((word) => word.startsWith('capacity='))?.slice('capacity='.length)
const options = {
  ...common,
  capacity: Number(capacity ?? CAPACITY),
  maxMessageSize: 100_000,
  attachments,
  allowHalfOpen: true,
  ...(has('shm') && { backing: 'shm' }),
}

const SHORT = new Set(['ERR_RINGFENCE_NO_SPACE', 'EMFILE'])

/** Repeats a call while this process lacks descriptors or memory. If that lasts, the conversation fails. */
async function patiently(call) {
  const end = performance.now() + 2000
  for (;;) {
    try {
      return await call()
    } catch (error) {
      if (!SHORT.has(error.code) || performance.now() > end) throw error
      await sleep(1)
    }
  }
}

async function sendAll(channel, session) {
  for (let number = 0; number < Number(count); number += 1) {
    await sendOne(channel, session, number, true)
    write(session, SENT, number + 1)
  }
  await channel.end()
}

/** Reads in one of the possible ways, with a callback that sometimes throws. */
async function receiveAll(channel, session) {
  const reading = new Reading(session, session % 3 === 2 ? Infinity : 0) // `receiveEach` closes them
  try {
    if (session % 3 === 0) {
      for await (const found of channel) reading.account(found)
    } else if (session % 3 === 1) {
      for (;;) {
        const found = await patiently(() => channel.receive())
        if (found === undefined) break
        reading.account(found)
      }
    } else {
      let visited = 0
      while (await channel.waitReadable()) {
        try {
          channel.receiveEach((bytes, offset, length) => {
            reading.account(Buffer.from(bytes.buffer, bytes.byteOffset + offset, length))
            visited += 1
            if (has('throw') && visited % 7 === 0) throw new RangeError('thrown in a visit')
          }, 5)
        } catch (error) {
          if (!(error instanceof RangeError)) throw error
        }
      }
    }
  } catch (error) {
    // A lost peer is also an end: everything that it had sent was read.
    if (error.code !== 'ERR_RINGFENCE_PEER_LOST') {
      write(session, END, BROKEN)
      throw error
    }
  }
  // If only the sender has ended, there is no reason yet.
  const { reason } = await Promise.race([channel.closed, sleep(0, { reason: 'closed' })])
  // A channel that this side has closed was not read to its end.
  write(session, END, (!signal.aborted && ENDS[reason]) || BROKEN)
}

async function converse(channel) {
  const session = sessions++
  const outcomes = await Promise.allSettled([sendAll(channel, session), receiveAll(channel, session)])
  await channel.close()
  for (const { status, reason } of outcomes) if (status === 'rejected') throw reason
  say('session')
}

/** Serves the calls of a client until it has ended. */
async function attend(channel) {
  await channel.serve((request) => request)
  await channel.close()
  say('session')
}

/** Makes many concurrent calls, and cancels some. */
async function asks(channel) {
  const session = sessions++
  for (let number = 0; number < Number(count) && !signal.aborted; number += 16) {
    const calls = Array.from({ length: 16 }, async (_, at) => {
      const request = message(id, session, number + at, true)
      const limits = at % 5 === 4 ? { signal: AbortSignal.timeout(1) } : { timeout: 30_000 }
      let reply
      try {
        reply = await channel.call(request, limits)
      } catch (error) {
        // The handlers have no errors of their own. Their process may lack the memory for a reply.
        if (error instanceof RemoteError && !error.code?.startsWith('ERR_RINGFENCE_')) throw new Wrong(error.message)
        throw error
      }
      if (!reply.equals(request)) throw new Wrong(`a reply of ${reply.length} bytes is another`)
    })
    for (const { reason } of await Promise.allSettled(calls)) if (reason !== undefined) note(reason)
    if (channel.readableEnded) break
  }
  await channel.close()
  say('session')
}

/** Listens, and closes the listener at the end: the next one would wait for it. */
async function listening(use) {
  const listener = await listen(address, options)
  const close = () => listener.close({ channels: 'close' })
  signal.addEventListener('abort', close)
  listener.on('refused', (error) => note(error))
  try {
    await use(listener)
  } finally {
    signal.removeEventListener('abort', close)
    await close()
  }
}

const serve = (each = converse) =>
  listening(async (listener) => {
    const agents = new Set()
    for await (const agent of listener) {
      const one = each(agent)
        .catch(note)
        .finally(() => agents.delete(one))
      agents.add(one)
    }
    await Promise.all(agents)
  })

const collect = () =>
  listening(async (listener) => {
    const open = new Map()
    for await (const [agent, found] of listener.messages()) {
      if (!open.has(agent)) {
        const reading = new Reading(sessions++)
        open.set(agent, reading)
        void agent.end().catch(() => {})
        void agent.closed.then(() => say('session'))
      }
      open.get(agent).account(found)
    }
  })

async function stay() {
  const membership = await member(address, options)
  const leave = () => void membership.close().catch(() => {})
  signal.addEventListener('abort', leave)
  membership.on('refused', (error) => note(error))
  let left = 3
  for await (const channel of membership) {
    await converse(channel).catch(note)
    left -= 1
    if (left === 0 || signal.aborted) break
  }
  await membership.close()
}

async function publishes() {
  const publisher = await publish(address, { ...common, capacity: CAPACITY, maxMessageSize: 2048 })
  const session = sessions++
  publisher.on('refused', (error) => note(error))
  const close = () => void publisher.close().catch(() => {})
  signal.addEventListener('abort', close)
  const subscriber = new Promise((resolve) => publisher.once('connection', resolve))
  for (let number = 0; number < Number(count); number += 1) {
    await sendOne(publisher, session, number, false)
    write(session, SENT, number + 1)
    // Messages that are published before there is a subscriber have no reader.
    if (number === 0) await Promise.race([subscriber, publisher.closed])
    if (signal.aborted) return
  }
  await publisher.end()
  await publisher.closed
  say('session')
}

async function subscribes() {
  const session = sessions++
  const isReliable = session % 2 === 0
  const delivery = isReliable ? 'reliable' : 'best-effort'
  const subscription = await subscribe(address, { ...common, maxMessageSize: 2048, attachments, delivery })
  const close = () => void subscription.close().catch(() => {})
  signal.addEventListener('abort', close)
  // A reliable subscriber gets none before the publisher reports it, which is at most a ring after its start.
  const reading = new Reading(session, isReliable ? CAPACITY : Infinity)
  const base = subscription.sequence
  let lost = 0n
  let handedOut = 0n
  try {
    for (;;) {
      const found = await patiently(() => subscription.receive())
      if (found === undefined) break
      handedOut += 1n
      const passedOver = Number(subscription.lost - lost)
      lost = subscription.lost
      if (isReliable && passedOver > 0) throw new Wrong(`a reliable subscriber has lost ${passedOver}`)
      reading.account(found, passedOver)
      if (handedOut + lost !== subscription.sequence - base) {
        throw new Wrong('handed out and lost are not the sequence less where it began')
      }
    }
  } catch (error) {
    if (error.code !== 'ERR_RINGFENCE_PEER_LOST') {
      write(session, END, BROKEN)
      throw error
    }
  } finally {
    signal.removeEventListener('abort', close)
  }
  const { reason } = await subscription.closed
  write(session, END, (isReliable && !signal.aborted && ENDS[reason]) || BROKEN)
  await subscription.close()
  say('session')
}

/** Starts children of both languages, one after the other, each for one conversation. */
async function bringsUp() {
  const number = sessions + 1
  // The numbers of workers follow that of their own process.
  const other = String(id * 1000 + number)
  const words = ['child', address, path.replace(/[^/]*$/, `${other}.ledger`), other, count, executables]
  const [node, rust] = policy.executable
  const command = number % 2 === 0 ? [node, new URL(import.meta.url).pathname] : [rust]
  const stdio = ['ignore', 'inherit', 'inherit']
  let exit
  const onSpawn = (child) => (exit = new Promise((resolve) => child.once('exit', resolve)))
  try {
    const started = await spawn(command[0], [...command.slice(1), ...words], { ...options, spawn: { stdio }, onSpawn })
    await converse(started.channel)
  } finally {
    await exit
  }
}

const ROLES = {
  parent: bringsUp,
  join: async () => converse(await join(address, options)),
  answer: () => serve(attend),
  ask: async () => asks(await connect(address, options)),
  connect: async () => converse(await connect(address, options)),
  child: async () => converse(await fromParent(options)),
  listen: () => serve(),
  collect,
  member: stay,
  publish: publishes,
  subscribe: subscribes,
}
if (role !== 'child' && role !== 'parent') options.wait = true
if (role === 'publish' || role === 'subscribe') common.wait = true

async function work() {
  ledger = openSync(path.replace('%', id), 'w')
  while (!signal.aborted) {
    try {
      await ROLES[role]()
    } catch (error) {
      if (!signal.aborted || error instanceof Wrong) note(error)
      await sleep(2)
    }
    if (role === 'child') break
  }
  closeSync(ledger)
}

/** One worker after the other, each terminated at a different moment. */
async function workers() {
  for (let number = 1; !signal.aborted; number += 1) {
    const ends = new Int32Array(new SharedArrayBuffer(4))
    const worker = new Worker(new URL(import.meta.url), {
      workerData: { words: process.argv.slice(2), id: id + number, ends },
    })
    worker.on('error', (error) => say(`wrong in a worker: ${error.stack}`))
    const exit = new Promise((resolve) => worker.once('exit', resolve))
    await Promise.race([exit, sleep(200 + ((number * 7919) % 900), undefined, { signal }).catch(() => {})])
    Atomics.store(ends, 0, signal.aborted ? 0 : 1)
    if (!signal.aborted) await worker.terminate()
    else worker.postMessage('stop')
    const late = sleep(30_000, 'late', { ref: false })
    if ((await Promise.race([exit, late])) === 'late') say('wrong a worker does not stop')
  }
}

/**
 * The kinds of open descriptors, without those of modules: Node leaks the file if a worker is terminated while it loads a module.
 */
function kindsOfDescriptors() {
  const kinds = {}
  for (const name of readdirSync('/proc/self/fd')) {
    try {
      const kind = readlinkSync(`/proc/self/fd/${name}`).replace(/[0-9]+/g, '')
      if (!/\.[cm]?js$/.test(kind)) kinds[kind] = (kinds[kind] ?? 0) + 1
    } catch {
      // The descriptor that reads this list.
    }
  }
  return kinds
}

/** What is left at the end: mappings of shared memory, descriptors and those of attachments, threads and memory. */
async function traces() {
  // Sealed buffers, and files without a name.
  const left = () => {
    const kinds = Object.entries(kindsOfDescriptors()).filter(([kind]) => kind.endsWith('(deleted)'))
    return kinds.reduce((sum, [, number]) => sum + number, 0)
  }
  const mapped = () => readFileSync('/proc/self/maps', 'utf8').match(/^.*(memfd:|\/dev\/shm).*$/gm)?.length ?? 0
  const end = performance.now() + 10_000
  while (mapped() + left() > 0 && performance.now() < end) {
    // The garbage collector releases the memory of received messages, and their attachments.
    globalThis.gc?.()
    await sleep(20)
  }
  const threads = readdirSync('/proc/self/task').length
  const kinds = kindsOfDescriptors()
  const memory = `${Math.round(process.memoryUsage().rss / 1024)} kB`
  return {
    descriptors: Object.values(kinds).reduce((sum, number) => sum + number, 0),
    attachments: left(),
    kinds,
    threads,
    mappings: mapped(),
    memory,
  }
}

if (isMainThread) {
  process.on('uncaughtException', (error) => say(`wrong uncaught: ${error.stack?.replaceAll('\n', ' | ')}`))
  const input = createInterface({ input: process.stdin })
  if (role !== 'child') {
    input.on('line', (line) => line === 'stop' && over.abort())
    input.on('close', () => over.abort())
  }
  say(`here ${process.pid}`)
  await (has('worker') ? workers() : work())
  input.close()
  say(`traces ${JSON.stringify(await traces())}`)
  say('done')
  process.exit()
} else {
  parentPort.on('message', () => over.abort())
  await work()
  parentPort.close()
}
