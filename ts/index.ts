/**
 * Protected shared-memory channels between two processes on one Linux host.
 *
 * @packageDocumentation
 */

export { Channel } from './channel.js'
export { json, structured, type Codec, type CodecOptions } from './codec.js'
export { doctor, type Diagnosis } from './doctor.js'
export { RingfenceError, type ErrorDetails, type ErrorName } from './errors.js'
export { fromParent, spawn, type Spawned } from './child.js'
export { harden } from './harden.js'
export { merge, Merge, type MergeEvents, type MergeSource, type MergeVisit } from './merge.js'
export { join } from './pair.js'
export type { Visit } from './receive-buffer.js'
export { connect, listen, Listener, type ListenerEvents } from './service.js'
export { LEAVING, member, Membership, type MembershipEvents } from './membership.js'
export type { Finding } from './native.js'
export { TypedChannel } from './typed.js'
export type {
  BufferSource,
  CloseReason,
  ConnectOptions,
  Evidence,
  ExecutableFile,
  Identity,
  JoinOptions,
  LineOptions,
  ListenOptions,
  MemberOptions,
  Options,
  Policy,
  Reservation,
} from './types.js'
