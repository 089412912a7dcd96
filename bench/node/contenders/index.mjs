import { buffers } from './buffers.mjs'
import { calls } from './calls.mjs'
import { childCalls, children } from './child.mjs'
import { childProcess, childProcess26 } from './child-process.mjs'
import { messagePort } from './message-port.mjs'
import { objects } from './objects.mjs'
import { pass } from './pass.mjs'
import { redis } from './redis.mjs'
import { ringfence, ringfenceAwait, ringfenceGathered, ringfenceReserve, singles } from './ringfence.mjs'
import { rpc } from './rpc.mjs'
import { copied, sharedArrayBuffer } from './shared-array-buffer.mjs'
import { corked, plain } from './unix.mjs'
import { zeromq } from './zeromq.mjs'

/** Between two processes, messages of bytes. */
const PEERS = ['one', 'rtt-polled', 'rtt-parked', 'paced']

const peers = [
  ringfence,
  ringfenceAwait,
  ringfenceGathered,
  ringfenceReserve,
  plain,
  corked,
  childProcess,
  childProcess26,
  zeromq,
  redis,
  messagePort,
  sharedArrayBuffer,
  copied,
]

const of = (list, measures) => list.map((contender) => Object.assign(contender, { measures }))

/** Each lists its measures; `takes` returns why it cannot run a size of one of them. */
export const contenders = [
  ...of(peers, PEERS),
  ...of(children, ['one', 'rtt-polled', 'rtt-parked']),
  ...of(childCalls, ['rpc']),
  ...of([...singles, buffers], ['single']),
  ...of(objects, ['objects']),
  ...of(calls, ['rpc']),
  ...of(rpc, ['rpc', 'rpc-stalled']),
  ...pass,
]
plain.measures = [...PEERS, 'single']
