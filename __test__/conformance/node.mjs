// The Node side of the conformance tests, with the command line of __test__/rust:
//
//     node node.mjs COMMAND ADDRESS EXECUTABLE CAPACITY LONGEST [SIZE,SIZE…]
//
// Prints each outcome in a line: a code, or how a channel ended. An error ends it with exit code 1.

import { closeSync, openSync, writeSync } from 'node:fs'
import { createInterface } from 'node:readline'

import {
  ReceivedDescriptor,
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

const [command, address, executable, capacity, longest, sizes = ''] = process.argv.slice(2)
const options = {
  capacity: Number(capacity),
  maxMessageSize: Number(longest),
  handshakeTimeout: 60_000,
  policy: { executable },
  ...(command === 'shm' ? { backing: 'shm' } : {}),
}
const lengths = sizes === '' ? [] : sizes.split(',').map(Number)

const print = (line) => void process.stdout.write(`${line}\n`)
const outcome = async (how) => print(await how.catch((error) => codeOf(error)))
const inputLines = () => createInterface({ input: process.stdin })

/** Without the common prefix, as in Rust. An error without a code is not part of the API. */
function codeOf(error) {
  if (!String(error.code).startsWith('ERR_RINGFENCE_')) throw error
  return error.code.slice('ERR_RINGFENCE_'.length)
}

/** The bytes of message `number`: those of __test__/support/bytes.ts. */
function pattern(number, length) {
  const words = new Uint32Array((length + 3) >>> 2)
  let word = Math.imul(number + 1, 0x9e3779b1) >>> 0
  for (let index = 0; index < words.length; index += 1) {
    word = (Math.imul(word, 1664525) + 1013904223) >>> 0
    words[index] = word
  }
  return Buffer.from(words.buffer, 0, length)
}

/** Of the numbers: whether sealed buffers are accepted (0 or 1), whether descriptors are, how many, and how many bytes. */
function limits() {
  const [sealed, descriptors, maxCount, maxBytes] = lengths
  return { attachments: { sealed: sealed === 1, descriptors: descriptors === 1, maxCount, maxBytes } }
}

async function openChannel() {
  if (address === 'parent') return fromParent(options)
  if (!address.startsWith('child:')) return join(address, options)
  const stdio = ['ignore', 'inherit', 'inherit']
  return (await spawn(executable, [address.slice(6)], { ...options, spawn: { stdio } })).channel
}

/** With its attachments: a copy of each sealed buffer, and each descriptor. */
async function echo(channel) {
  for await (const message of channel) {
    const { attachments = [] } = message
    const copies = attachments.map((each) => (each instanceof SealedBuffer ? SealedBuffer.from(each.bytes()) : each))
    await channel.send(message, { attachments: copies })
    for (const each of [...attachments, ...copies]) each.close()
  }
  await channel.end()
  return (await channel.closed).reason
}

async function exchange(channel) {
  await channel.send('hello')
  const found = await channel.receive()
  await channel.end()
  while ((await channel.receive()) !== undefined);
  const { reason } = await channel.closed
  return found?.toString() === 'hello' ? `answered, ${reason}` : reason
}

/** Calls the peer twice, cancels the second call, and serves it until its end. */
async function callAndServe(channel) {
  const first = channel.call('asked').then(String, describeError)
  const abort = new AbortController()
  channel.call('cancelled', { signal: abort.signal }).catch(() => {})
  abort.abort()
  void echoMessages(channel).catch(() => {})
  await channel.serve(async (request, { signal }) => {
    const text = request.toString('latin1')
    if (text === 'fail') throw Object.assign(new RangeError('not today'), { code: 'E_NO' })
    if (text === 'hang') await new Promise((resolve) => signal.addEventListener('abort', resolve))
    return Buffer.concat([request, request])
  })
  return `closed, asked ${await first}`
}

/** The outcome of a failed call. */
function describeError(error) {
  return error instanceof RemoteError ? `${error.name}: ${error.message} ${error.code || '-'}` : codeOf(error)
}

async function echoMessages(channel) {
  for await (const message of channel) await channel.send(message)
}

async function greet(channel) {
  await channel.send('hello')
  return (await channel.receive()) !== undefined
}

/** Counts messages and attachments. Writes each message with the bytes of its sealed buffers to each of its descriptors. */
async function readAll(delivery, accepted) {
  const { capacity: _, ...subscriberOptions } = options
  const subscription = await subscribe(address, { ...subscriberOptions, ...accepted, delivery, from: 'oldest' })
  let count = 0
  let attached = 0
  for (let message; (message = await subscription.receive()) !== undefined; count += 1) {
    const { attachments = [] } = message
    attached += attachments.length
    const sealed = attachments.filter((each) => each instanceof SealedBuffer)
    const bytes = Buffer.concat([message, ...sealed.map((each) => each.bytes())])
    for (const each of attachments) {
      if (each instanceof ReceivedDescriptor) tryWrite(each.fd, bytes)
      each.close()
    }
  }
  // The memory of a buffer stays mapped while a view of it is there.
  globalThis.gc()
  return `${count} read, ${subscription.lost} lost, ${attached} attached, ${(await subscription.closed).reason}`
}

/** A hostile publisher may pass anything. */
function tryWrite(fd, bytes) {
  try {
    writeSync(fd, bytes)
  } catch {}
}

/** Reads to the end, and prints the number of tokens up to then. */
async function countTokens(channel) {
  let tokens = 0
  const counting = (async () => {
    for await (const _ of channel.tokens()) tokens += 1
  })()
  // A peer that has closed without an end is lost. `closed` reports that as well.
  const received = () => channel.receive().catch(() => undefined)
  while ((await received()) !== undefined);
  const { reason } = await channel.closed
  await counting
  return `${tokens} tokens, ${reason}`
}

/** Publishes a message, with no attachment, with an open file, or with that and a sealed buffer. */
async function publishMessage(publisher, number, size) {
  const file = openSync(executable)
  const buffer = await SealedBuffer.from(pattern(number, 5000))
  const attachments = [{ fd: file }, buffer].slice(0, number % 3)
  await publisher.send(pattern(number, size), { attachments })
  buffer.close()
  closeSync(file)
}

async function joinAndEcho() {
  const channel = await openChannel()
  print(`${channel.role} ${channel.peer.pid}`)
  print(`over ${await echo(channel)}`)
}

const commands = {
  echo: joinAndEcho,
  shm: joinAndEcho,

  async tokens() {
    const channel = await openChannel()
    print(`${channel.role} ${channel.peer.pid}`)
    for await (const token of channel.tokens()) channel.sendToken(BigInt.asUintN(64, token + 1n))
    print(`over ${(await channel.closed).reason}`)
  },

  /** Works on each message for a while, and prints how often a timer of 5 ms has fired. */
  async busy() {
    const channel = await openChannel()
    print(`${channel.role} ${channel.peer.pid}`)
    let ticks = 0
    setInterval(() => (ticks += 1), 5).unref()
    for await (const _ of channel) {
      const until = performance.now() + 0.5
      while (performance.now() < until);
    }
    print(`${ticks} ticks`)
    print(`over ${(await channel.closed).reason}`)
  },

  async 'count-tokens'() {
    const listener = await listen(address, options)
    print('bound')
    for await (const channel of listener) {
      print('accepted')
      void outcome(countTokens(channel))
    }
  },

  /**
   * Greets each partner, and leaves at its first message. Prints the code of a partner that is refused or violates the protocol.
   */
  async member() {
    const membership = await member(address, options)
    print(membership.role)
    membership.on('role', print)
    membership.on('refused', (error) => print(`refused ${codeOf(error)}`))
    for await (const channel of membership) {
      print(`channel ${channel.peer.pid}`)
      const receivedMessage = await greet(channel).catch((error) => print(`over ${codeOf(error)}`))
      if (!receivedMessage) continue
      await membership.close()
      print('left')
      return
    }
  },

  async close() {
    const channel = await openChannel()
    print(`${channel.role} ${channel.peer.pid}`)
    await channel.receive()
    await channel.close()
  },

  async part() {
    const channel = await openChannel()
    print(`${channel.role} ${channel.peer.pid}`)
    await channel.receive()
    for (const [number, size] of lengths.entries()) await channel.send(pattern(number, size))
    channel.destroy()
  },

  async produce() {
    const channel = await openChannel()
    print(`${channel.role} ${channel.peer.pid}`)
    for (const [number, size] of lengths.entries()) await channel.send(pattern(number, size))
    await channel.end()
    print('sent')
    await channel.receive()
    print(`over ${(await channel.closed).reason}`)
  },

  async serve(accepted = {}) {
    const listener = await listen(address, { ...options, ...accepted })
    print('bound')
    listener.on('refused', (error) => print(codeOf(error)))
    for await (const channel of listener) {
      print('accepted')
      void outcome(echo(channel))
    }
  },

  async 'echo-attachments'() {
    await commands.serve(limits())
  },

  async 'serve-calls'() {
    const listener = await listen(address, options)
    print('bound')
    for await (const channel of listener) {
      print('accepted')
      void outcome(callAndServe(channel))
    }
  },

  async 'connect-each'() {
    print('bound')
    for await (const _ of inputLines()) await outcome(connect(address, options).then(exchange))
  },

  async 'publish-each'() {
    const publisher = await publish(address, { ...options, stall: 2000 })
    print('bound')
    publisher.on('refused', (error) => print(codeOf(error)))
    let sending = Promise.resolve()
    // After its messages, which the next subscriber must not get.
    publisher.on('disconnect', (_, { reason }) => (sending = sending.then(() => print(reason))))
    publisher.on('connection', (subscriber) => {
      print('accepted')
      sending = sending.then(async () => {
        for (const [number, size] of lengths.entries()) await publishMessage(publisher, number, size)
        subscriber.disconnect()
      })
    })
    await publisher.closed
  },

  async 'subscribe-each'() {
    print('bound')
    const subscriberOptions = lengths.length > 0 ? limits() : {}
    for await (const line of inputLines()) await outcome(readAll(line, subscriberOptions))
  },
}

try {
  await commands[command]()
} catch (error) {
  print(codeOf(error))
  process.exitCode = 1
}
