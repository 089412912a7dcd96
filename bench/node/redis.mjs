// Redis publish/subscribe over its Unix socket, if a redis-server is on the PATH: a broker between the processes.

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'

import { Sink } from './frames.mjs'
import { Reader, fill } from './work.mjs'

/** Bytes published before the sender awaits the replies. Otherwise it would fill the server's memory. */
const WINDOW = 4 << 20

export const socketOf = (job) => path.join(os.tmpdir(), `${job.tag}.redis`)

/** The reason why Redis is skipped, or null. */
export const absence = () => (spawnSync('redis-server', ['--version']).error ? 'no redis-server on the PATH' : null)

export async function server(job) {
  const where = socketOf(job)
  const arguments_ = [
    ...['--port', '0', '--unixsocket', where, '--save', '', '--appendonly', 'no', '--daemonize', 'no'],
    // The default limits disconnect a subscriber that is 32 MB behind.
    ...['--client-output-buffer-limit', 'pubsub 0 0 0', '--dir', os.tmpdir(), '--loglevel', 'warning'],
  ]
  const child = spawn('redis-server', arguments_, { stdio: 'ignore' })
  process.on('exit', () => child.kill())
  // The socket exists before the server listens.
  for (let i = 0; ; i++) {
    try {
      ;(await connect(where)).destroy()
      return { child, where }
    } catch (error) {
      if (i === 200) throw error
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
  }
}

async function connect(where) {
  const socket = net.connect(where)
  await once(socket, 'connect')
  return socket
}

/** Reads replies of the kinds that occur here: integers, statuses, and arrays of strings. */
class Replies {
  #buffer = Buffer.alloc(0)
  #chunks = []
  #there = 0
  #need = 0
  #visit

  constructor(visit) {
    this.#visit = visit
  }

  push(chunk) {
    this.#chunks.push(chunk)
    this.#there += chunk.length
    // A long payload arrives in many chunks, which are joined once it is complete.
    if (this.#there < this.#need) return
    this.#buffer = this.#chunks.length === 1 ? chunk : Buffer.concat(this.#chunks)
    this.#need = 0
    let at = 0
    for (;;) {
      const end = this.#one(at)
      if (end < 0) break
      at = end
    }
    const rest = this.#buffer.subarray(at)
    this.#chunks = rest.length > 0 ? [rest] : []
    this.#there = rest.length
    this.#need = Math.max(0, this.#need - at)
  }

  #line(at) {
    const end = this.#buffer.indexOf('\r\n', at)
    return end < 0 ? null : { text: this.#buffer.latin1Slice(at + 1, end), next: end + 2 }
  }

  #one(at) {
    if (at >= this.#buffer.length) return -1
    const head = this.#line(at)
    if (head === null) return -1
    const kind = this.#buffer[at]
    if (kind === 0x3a || kind === 0x2b) {
      this.#visit(head.text, null)
      return head.next
    }
    if (kind === 0x2d) throw new Error(head.text)
    let next = head.next
    let last = null
    let first = null
    for (let i = 0; i < Number(head.text); i++) {
      const part = this.#line(next)
      if (part === null) return -1
      if (this.#buffer[next] === 0x3a) {
        next = part.next
        continue
      }
      const length = Number(part.text)
      if (this.#buffer.length < part.next + length + 2) {
        this.#need = part.next + length + 2
        return -1
      }
      last = this.#buffer.subarray(part.next, part.next + length)
      first ??= last.latin1Slice()
      next = part.next + length + 2
    }
    this.#visit(first, last)
    return next
  }
}

const command = (...parts) => `*${parts.length}\r\n${parts.map((part) => `$${part.length}\r\n${part}\r\n`).join('')}`

/** Subscribes, and passes the sum of each message to a sink. */
export async function subscription(where, topic) {
  const sink = new Sink()
  const reader = new Reader()
  const socket = await connect(where)
  let subscribed
  const ready = new Promise((resolve) => {
    subscribed = resolve
  })
  const incoming = new Replies((first, payload) => {
    if (first === 'message') sink.put(reader.sum(payload, 0, payload.length))
    else subscribed()
  })
  socket.on('data', (chunk) => incoming.push(chunk))
  socket.write(command('subscribe', topic))
  await ready
  return { sink, close: () => socket.destroy() }
}

/** Publishes messages of one size, pipelined. */
export async function publication(where, topic, size) {
  const socket = await connect(where)
  let unanswered = 0
  let wake = null
  const answers = new Replies(() => {
    unanswered--
    wake?.()
    wake = null
  })
  socket.on('data', (chunk) => answers.push(chunk))
  const window = Math.max(1, Math.floor(WINDOW / size))
  const head = Buffer.from(`*3\r\n$7\r\nPUBLISH\r\n$1\r\n${topic}\r\n$${size}\r\n`)
  const start = Math.ceil(head.length / 8) * 8
  const spare = []
  const send = (n) => {
    const memory = spare.pop() ?? Buffer.from(new ArrayBuffer(start + size + 2))
    head.copy(memory, start - head.length)
    fill(new Float64Array(memory.buffer, start, size / 8), 0, size / 8, n)
    memory.write('\r\n', start + size)
    unanswered++
    return socket.write(memory.subarray(start - head.length), () => spare.push(memory))
  }
  const below = async (most) => {
    while (unanswered >= most) {
      await new Promise((resolve) => {
        wake = resolve
      })
    }
  }
  return {
    send,
    async produce(count) {
      for (let n = 0; n < count; n++) {
        send(n)
        if (unanswered >= window) await below(window)
      }
    },
    close: () => socket.destroy(),
  }
}
