// `ringfence collect`: merges the output of many senders line by line.

import type { Channel } from '../channel/channel.js'
import { allowEnd, makePersistent, type Merge } from '../channel/merge.js'
import { listen, type Listener } from '../endpoint/service.js'
import type { Closed, ListenOptions } from '../types.js'
import { Lines, MAX_LINE } from './lines.js'
import { output, write, written } from './output.js'
import { printMessage, printEvidence } from './text.js'
import { requireOpen } from './source.js'
import type { Run } from './transfer.js'

/** One run of the collector. */
interface Collection extends Run<ListenOptions> {
  /** Stops the collector after it has written everything that is in the rings. */
  stop: AbortSignal
}

/**
 * Writes the lines of all senders to standard output, each as a whole, until it is stopped. Confirms to each sender that everything has
 * arrived, once the sender's last line is written. If that line has no newline, one is added.
 */
export async function collect({ address, evidence, options, stop }: Collection): Promise<void> {
  requireOpen(1, 'output', 'open it (>/dev/null where that is meant)')
  // The end of this side confirms to a sender that everything is written, long after the sender's own end.
  const listener = await listen(address, { ...options, allowHalfOpen: true })
  listener.on('refused', ({ code, message, identity }) => {
    // `send` first tries to connect as one of a pair.
    if (code !== 'ERR_RINGFENCE_PROTOCOL')
      printMessage(`refused ${identity ? `process ${identity.pid}` : 'a process'}: ${message}`)
  })
  try {
    await new Collector(evidence).run(listener, stop)
  } finally {
    await written()
  }
}

class Collector {
  readonly #evidence: boolean
  readonly #merged: Merge<Channel> = makePersistent(() => {})
  readonly #lines = new Map<Channel, Lines>()

  constructor(evidence: boolean) {
    this.#evidence = evidence
    this.#merged.on('disconnect', (channel, { reason }) => this.#end(channel, reason))
  }

  async run(listener: Listener, stop: AbortSignal): Promise<void> {
    const accepting = this.#accept(listener)
    stop.addEventListener('abort', () => void listener.close(), { once: true })
    if (stop.aborted) await listener.close()
    try {
      for (;;) {
        const next = await this.#merged.receive({ signal: stop })
        if (next === undefined) return
        await write(this.#add(...next))
      }
    } catch (error) {
      if (!stop.aborted) throw error
    }
    await accepting
    await this.#addAvailable()
    for (const channel of [...this.#lines.keys()]) await this.#finish(channel)
  }

  /** Accepts senders until the listener has closed. */
  async #accept(listener: Listener): Promise<void> {
    try {
      for await (const channel of listener) {
        const { pid } = channel.peer
        if (this.#evidence) printEvidence(`process ${pid} sends`, channel.evidence)
        this.#lines.set(channel, new Lines())
        this.#merged.add(channel)
      }
      allowEnd(this.#merged, null)
    } catch (error) {
      // Connected senders may continue for a long time, so report the failure now.
      printMessage(`no further sender can connect: ${(error as Error).message}`)
      allowEnd(this.#merged, error as Error)
    }
  }

  /** Returns the lines that are now whole. The caller writes them before it waits: a sender that ends during a wait has its last line written. */
  #add(channel: Channel, bytes: Buffer): Buffer[] {
    const lines = this.#lines.get(channel)
    if (lines === undefined) return []
    const whole = lines.add(bytes)
    if (lines.size > MAX_LINE) {
      printMessage(`process ${channel.peer.pid} sent a line of more than ${MAX_LINE >> 20} MiB, and is disconnected`)
      this.#lines.delete(channel)
      channel.destroy()
    }
    return whole
  }

  /** Writes everything that is in the rings. */
  async #addAvailable(): Promise<void> {
    const messages: [Channel, Buffer][] = []
    // The bytes are valid only during the visit.
    this.#merged.receiveEach((bytes, offset, length, channel) => {
      messages.push([channel, Buffer.from(bytes.subarray(offset, offset + length))])
    }, Infinity)
    await write(messages.flatMap(([channel, bytes]) => this.#add(channel, bytes)))
  }

  #end(channel: Channel, reason: Closed['reason']): void {
    const outcome = reason === 'lost' ? 'has ended' : reason === 'closed' ? undefined : `is gone (${reason})`
    if (outcome !== undefined) printMessage(`process ${channel.peer.pid} ${outcome} before it had ended its sending`)
    this.#finish(channel).catch((error: unknown) => allowEnd(this.#merged, error as Error))
  }

  /** Writes a sender's last line, and confirms to the sender that everything is written. */
  async #finish(channel: Channel): Promise<void> {
    const lines = this.#lines.get(channel)
    if (lines === undefined) return
    this.#lines.delete(channel)
    output().write(lines.rest())
    await written()
    // A sender that has not ended may have sent more. It must not get the confirmation.
    if (channel.readableEnded) await channel.end()
    else channel.destroy()
  }
}
