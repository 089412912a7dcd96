// Other APIs of a channel, each used by two processes that do the same: values, a port, web streams.

import { join, json, structured } from 'ringfence'

const [face, address] = process.argv.slice(2)
const channel = await join(address, { signal: AbortSignal.timeout(60_000) })

/** Both processes send the same, so the message must be what this one has sent. */
function expect(found, wanted) {
  if (JSON.stringify(found) !== JSON.stringify(wanted)) throw new Error(`${JSON.stringify(found)} has come`)
}

const faces = {
  async values() {
    const typed = channel.with(json())
    await typed.send({ order: 1, note: null })
    expect(await typed.receive(), { order: 1, note: null })
    const richer = channel.with(structured())
    await richer.send(new Map([['at', new Date(0)]]))
    expect([...(await richer.receive())], [['at', new Date(0)]])
    await channel.close({ linger: 5000 })
  },
  async port() {
    const port = channel.port()
    const closed = new Promise((resolve) => port.on('close', resolve))
    const found = []
    const all = new Promise((resolve) => port.on('message', (value) => found.push(value) === 2 && resolve()))
    port.postMessage({ order: 1 })
    port.postMessage(['a', 'list'])
    await all
    expect(found, [{ order: 1 }, ['a', 'list']])
    port.close()
    await closed
  },
  async web() {
    const { readable, writable } = channel
    const parts = ['{"order":', '', '1}']
    const source = new ReadableStream({
      start(controller) {
        for (const part of parts) controller.enqueue(part)
        controller.close()
      },
    })
    const sent = source.pipeTo(writable)
    expect(await new Response(readable).json(), { order: 1 })
    await sent
  },
}

await faces[face]()
