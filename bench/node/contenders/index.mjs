import { childProcess } from './child-process.mjs'
import { messagePort } from './message-port.mjs'
import { redis } from './redis.mjs'
import { ringfence, ringfenceAwait, ringfenceGathered, ringfenceReserve } from './ringfence.mjs'
import { sharedArrayBuffer } from './shared-array-buffer.mjs'
import { corked, plain } from './unix.mjs'
import { zeromq } from './zeromq.mjs'

export const contenders = [
  ringfence,
  ringfenceAwait,
  ringfenceGathered,
  ringfenceReserve,
  plain,
  corked,
  childProcess,
  zeromq,
  redis,
  messagePort,
  sharedArrayBuffer,
]
