// A channel as web streams: one chunk a message.

import { builtin } from '../native.js'
import type { ReadableStream, WritableStream } from 'node:stream/web'

import { Channel, quietOf } from '../channel/channel.js'
import { invalid, showSource } from '../errors.js'
import { timers } from '../runtime/timers.js'
import type { MessageInput } from '../types.js'

/** Both directions of a channel as web streams. */
export interface WebStreams {
  /** The messages that come. */
  readable: ReadableStream<Uint8Array>
  /** Takes messages. */
  writable: WritableStream<MessageInput>
}

/** For a promise whose rejection is told elsewhere. */
function ignore(): void {}

/**
 * A channel as web streams, one chunk a message, in both directions: empty messages are chunks too.
 *
 * A message is taken from the channel when the reader asks for it and not before, and a write is done once it is in the ring: so
 * backpressure is the channel's. The readable ends where the peer has ended its sending, and errors with PEER_LOST, after all that came, where
 * the peer is gone before that. `close()` of the writable ends this side's sending; without `allowHalfOpen` so does the end of the readable,
 * unless a writer or a pipe holds the writable, which then has the last word. `cancel()` and `abort()` close the channel, both ways.
 *
 * @throws {@link RingfenceError} INVALID_ARGUMENT for what is no channel
 */
export function toWeb(channel: Channel): WebStreams {
  if (!(channel instanceof Channel)) throw invalid(`toWeb takes a channel, not ${showSource(channel)}`)
  const quiet = quietOf(channel)
  let fail: (error: unknown) => void = ignore
  let told = false
  // What a pipe has still on its way goes before this side ends.
  const endIfFree = () => {
    if (told && !writable.locked) quiet.told()
  }
  const readable = new builtin.webStreams.ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        while (await quiet.waitReadable()) {
          const message = quiet.tryReceive()
          if (message === undefined) continue
          controller.enqueue(message)
          return
        }
        const cutOff = quiet.cutOff()
        if (cutOff === undefined) controller.close()
        else controller.error(cutOff)
        told = true
        endIfFree()
      },
      cancel: () => channel.close(),
    },
    // A message that was taken in advance would be lost by a reader that leaves.
    { highWaterMark: 0 },
  )
  const writable = new builtin.webStreams.WritableStream<MessageInput>({
    start(controller) {
      fail = (error) => controller.error(error)
      // A stream asks for its abort once the write, or the end, that is under way is over: one that waits for room would not be.
      // (Its signal is not among the types of Node.)
      const { signal } = controller as typeof controller & { signal: AbortSignal }
      signal.addEventListener('abort', () => void channel.close())
    },
    async write(chunk) {
      await channel.send(chunk)
      if (told) timers.setImmediate(endIfFree)
    },
    close: () => channel.end(),
    abort: () => channel.close(),
  })
  // A writer that waits for nothing is told as well that there is no one left to write to.
  void channel.closed.then(() => channel.send('').catch(fail))
  return { readable, writable }
}
