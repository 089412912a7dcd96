// Events for observers of the process: node:diagnostics_channel and NODE_DEBUG=ringfence. Without an observer, each costs one check.

import { channel as diagnostics } from 'node:diagnostics_channel'
import { debuglog } from 'node:util'

import { messageOf, type RingfenceError } from '../errors.js'
import { printable } from './printable.js'
import type { Closed, Evidence, Identity } from '../types.js'

const opened = diagnostics('ringfence:channel:open')
const closed = diagnostics('ringfence:channel:close')
const refused = diagnostics('ringfence:refused')
const evicted = diagnostics('ringfence:evicted')
const failed = diagnostics('ringfence:call:error')

const log = debuglog('ringfence')

/** An object with a checked peer: a channel, a subscriber or a subscription. */
export interface CheckedResource {
  readonly peer: Identity
  readonly evidence: readonly Evidence[]
}

/** One that met its peer at an address; null for a line without one. */
interface ConnectedResource extends CheckedResource {
  readonly address: string | null
}

interface Registry {
  /** The objects that are open. */
  open: Set<object>
  /** Those that have ended as well. */
  known: WeakSet<object>
}

/** Shared by both builds of this package, since a program may load both: each also reports what the other has opened. */
const REGISTRY: unique symbol = Symbol.for('ringfence.resources')
const shared = globalThis as { [REGISTRY]?: Registry }
const registry = (shared[REGISTRY] ??= { open: new Set(), known: new WeakSet() })

/** The open channels, publishers and subscriptions of this process. */
export const openResources = registry.open

/** Whether the value is a channel, a publisher or a subscription that either build of this package has opened. */
export function isKnownResource(value: unknown): value is object {
  return registry.known.has(value as object)
}

/** Records that an object is open. */
export function trackOpen(resource: object): void {
  openResources.add(resource)
  registry.known.add(resource)
}

/** Reports that a channel is open. */
export function reportOpen(channel: ConnectedResource & { role: string }): void {
  trackOpen(channel)
  const { address } = channel
  if (opened.hasSubscribers) opened.publish({ channel, peer: channel.peer, address })
  if (log.enabled) logHandshake(channel, `${addressName(address)}: a channel, this side is the ${channel.role}`)
}

/** Reports that a channel has ended. */
export function reportClosed(channel: ConnectedResource, { reason, error }: Closed): void {
  openResources.delete(channel)
  if (closed.hasSubscribers) closed.publish({ channel, peer: channel.peer, reason, error })
  if (log.enabled)
    log('%s: the channel with process %d has ended: %s', addressName(channel.address), channel.peer.pid, reason)
}

/** Reports a handshake in which the peer was refused, on the listening or the connecting side. */
export function reportRefused(address: string | null, error: RingfenceError): void {
  const { identity, check, wanted, found } = error
  if (refused.hasSubscribers) refused.publish({ address, error, identity })
  if (!log.enabled) return
  const peer = identity === undefined ? 'a process' : `process ${identity.pid} (uid ${identity.uid})`
  const cause = check === undefined ? error.message : `${check}: wanted ${wanted}, found ${found}`
  log('%s: %s was refused (%s): %s', addressName(address), peer, error.code, printable(cause))
}

/** Reports that a publisher has evicted a subscriber that was too slow. */
export function reportEvicted(publisher: { address: string }, subscriber: CheckedResource): void {
  if (evicted.hasSubscribers) evicted.publish({ publisher, subscriber })
  if (log.enabled) log('%s: the subscriber of process %d was evicted', publisher.address, subscriber.peer.pid)
}

/** Reports an error that the handler of a call has thrown. The caller gets it without its stack. */
export function reportHandlerError(channel: ConnectedResource, error: unknown): void {
  if (failed.hasSubscribers) failed.publish({ channel, peer: channel.peer, error })
  if (!log.enabled) return
  const { address, peer } = channel
  log(
    '%s: the handler of a call of process %d has thrown: %s',
    addressName(address),
    peer.pid,
    printable(messageOf(error)),
  )
}

/** Reports that a handshake has resulted in a subscriber or a subscription. */
export function reportSubscribed(resource: CheckedResource, address: string, summary: string): void {
  if (log.enabled) logHandshake(resource, `${address}: ${summary}`)
}

/** Logs a handshake step by step, from its evidence. */
function logHandshake({ peer, evidence }: CheckedResource, summary: string): void {
  log('%s; the peer is process %d (uid %d)', summary, peer.pid, peer.uid)
  for (const { step, check, wanted, found, outcome } of evidence)
    log('  %s, %s: wanted %s, found %s (%s)', step, check, printable(wanted ?? ''), printable(found ?? ''), outcome)
}

function addressName(address: string | null): string {
  return address ?? 'a private line'
}
