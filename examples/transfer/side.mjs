// One of the two processes of the transfer: `node side.mjs send|receive ADDRESS BACKING FILE`.

import { createHash } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { once } from 'node:events'
import { finished } from 'node:stream/promises'

import { join } from 'ringfence'

const [, , task, address, backing, file] = process.argv
// Half-open: the receiver's end confirms that everything is written, and follows the sender's end.
const channel = await join(address, { backing, handshakeTimeout: 10_000, allowHalfOpen: true })
const { role, peer, evidence } = channel
process.send({ role, pid: process.pid, peer, evidence })

const hash = createHash('sha256')
let bytes = 0
const started = performance.now()
const timer = setInterval(() => process.send({ bytes }), 50)

if (task === 'send') {
  for await (const chunk of createReadStream(file, { highWaterMark: 256 * 1024 })) {
    hash.update(chunk)
    await channel.send(chunk)
    bytes += chunk.length
  }
  await channel.end()
  // The receiver ends its side once it has written everything.
  if ((await channel.receive()) !== undefined) throw new Error('the receiver answered')
} else {
  const sink = createWriteStream(file)
  for await (const message of channel) {
    hash.update(message)
    bytes += message.length
    if (!sink.write(message)) await once(sink, 'drain')
  }
  sink.end()
  await finished(sink)
  await channel.end()
}

const { reason } = await channel.closed
clearInterval(timer)
process.send({ bytes, seconds: (performance.now() - started) / 1000, sha256: hash.digest('hex'), reason })
process.disconnect()
