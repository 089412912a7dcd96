/**
 * Protected shared-memory channels between two processes on one Linux host.
 *
 * @packageDocumentation
 */

export { Channel } from './channel.js'
export { doctor, type Diagnosis } from './doctor.js'
export { RingfenceError, type ErrorDetails, type ErrorName } from './errors.js'
export { fromParent, spawn, type Spawned } from './family.js'
export { harden } from './harden.js'
export { connect, join } from './join.js'
export type { Visit } from './inbox.js'
export { listen, Listener, type ListenerEvents } from './listener.js'
export { LEAVING, member, Membership, type MembershipEvents } from './membership.js'
export type { Finding } from './native.js'
export type {
  CloseReason,
  ConnectOptions,
  Evidence,
  ExecutableFile,
  Identity,
  LineOptions,
  Options,
  PlaceOptions,
  Policy,
  Reservation,
} from './types.js'
