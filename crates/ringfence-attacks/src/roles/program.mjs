// A Node program that obeys orders and has a secret in its memory.

import { once } from 'node:events'
import { connect, createServer } from 'node:net'
import { createInterface } from 'node:readline'
import { pathToFileURL } from 'node:url'
import v8 from 'node:v8'

const { harden, join, json, structured } = await import(pathToFileURL(process.env.RINGFENCE))
const codecs = { json: json(), structured: structured() }
// Built at run time, so that it exists only in memory.
globalThis.secret = ['top', 'secret'].join('')
let channel

/** Generates messages that no honest encoder writes, the same in each run. A codec must refuse each, without harm. */
function* madeUp(name) {
  const honest = { json: Buffer.from(JSON.stringify(VALUE)), structured: v8.serialize(VALUE) }[name]
  for (let length = 0; length < honest.length; length += 1) yield honest.subarray(0, length)
  let word = 1
  for (let number = 1; number < 300; number += 1) {
    // No message of either codec starts with a zero, so the remaining bytes can be anything.
    const bytes = Buffer.alloc(number)
    for (let at = 1; at < number; at += 1) bytes[at] = (word = (word * 1_103_515_245 + 12_345) & 0x7fff_ffff) >> 16
    yield bytes
  }
  const begun = Buffer.from([0xff, 0x0f])
  // Deep: enough nested arrays to overflow the stack of a recursive decoder.
  yield name === 'json' ? Buffer.alloc(1_000_000, '[') : Buffer.concat([begun, Buffer.alloc(1_000_000, 'A\x01')])
  // Huge: a string, a buffer and an array with a length of 4 GiB.
  const length = [0xff, 0xff, 0xff, 0xff, 0x0f]
  for (const kind of '"BA') yield Buffer.concat([begun, Buffer.from([kind.charCodeAt(0), ...length, 1, 2, 3])])
}

const VALUE = { order: 4, parts: ['a', 1.5, true, null], note: 'x'.repeat(40) }

/** Receives `count` messages, one per call, and returns how many of them the codec refuses. */
async function refused(name, count) {
  const typed = channel.with(codecs[name])
  let malformed = 0
  for (let left = Number(count); left > 0; left -= 1) {
    await typed.receive().catch((error) => {
      if (error.code !== 'ERR_RINGFENCE_MALFORMED') throw error
      malformed += 1
    })
  }
  return malformed
}

/** Listens like a typical plain program: each received line is parsed as a value. */
async function listenPlain(path) {
  const server = createServer(async (socket) => {
    for await (const line of createInterface({ input: socket })) JSON.parse(line)
  })
  await once(server.listen(path), 'listening')
}

async function obey(order, words) {
  switch (order) {
    case 'pid':
      return process.pid
    case 'egid':
      return process.getegid()
    case 'harden':
      return harden() ?? 'hardened'
    case 'join': {
      const [address, policy] = words
      channel = await join(address, policy === undefined ? {} : { policy: JSON.parse(policy) })
      return `joined ${channel.role} pid=${channel.peer.pid}`
    }
    case 'send':
      await channel.send(words[0])
      return 'sent'
    case 'receive':
      return `got ${await channel.receive()}`
    case 'send-made-up': {
      let count = 0
      for (const bytes of madeUp(words[0])) {
        await channel.send(bytes)
        count += 1
      }
      return `sent ${count}`
    }
    case 'refused':
      return `refused ${await refused(...words)}`
    case 'send-value':
      await channel.with(codecs[words[0]]).send(VALUE)
      return 'sent'
    case 'receive-value':
      return JSON.stringify(await channel.with(codecs[words[0]]).receive()) === JSON.stringify(VALUE)
        ? 'got it'
        : 'another'
    case 'listen-plain':
      await listenPlain(words[0])
      return 'listening'
    case 'send-plain': {
      const socket = connect(words[0])
      await once(socket.end('{"order":4,\n'), 'close')
      return 'sent'
    }
  }
  return `no such order: ${order}`
}

for await (const line of createInterface({ input: process.stdin })) {
  const [order, ...words] = line.split(' ')
  const answer = await obey(order, words).catch(
    (error) => `error ${error.code} check=${error.check} | ${error.message}`,
  )
  console.log(String(answer))
}
process.exit()
