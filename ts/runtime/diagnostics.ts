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
export interface Checked {
  readonly peer: Identity
  readonly evidence: readonly Evidence[]
}

/** One that met its peer at an address; null for a line without one. */
interface Met extends Checked {
  readonly address: string | null
}

interface Opened {
  /** The objects that are open. */
  now: Set<object>
  /** Those that have ended as well. */
  ever: WeakSet<object>
}

/** Shared by both builds of this package, since a program may load both: each also reports what the other has opened. */
const OPENED: unique symbol = Symbol.for('ringfence.opened')
const ofAllBuilds = globalThis as { [OPENED]?: Opened }
const all = (ofAllBuilds[OPENED] ??= { now: new Set(), ever: new WeakSet() })

/** The open channels, publishers and subscriptions of this process. */
export const openNow = all.now

/** Whether the value is a channel, a publisher or a subscription that either build of this package has opened. */
export function wasOpened(value: unknown): value is object {
  return all.ever.has(value as object)
}

/** Records that an object is open. */
export function nowOpen(made: object): void {
  openNow.add(made)
  all.ever.add(made)
}

/** Reports that a channel is open. */
export function tellOpen(channel: Met & { role: string }): void {
  nowOpen(channel)
  const { address } = channel
  if (opened.hasSubscribers) opened.publish({ channel, peer: channel.peer, address })
  if (log.enabled) tellStory(channel, `${nameOf(address)}: a channel, this side is the ${channel.role}`)
}

/** Reports that a channel has ended. */
export function tellClosed(channel: Met, { reason, error }: Closed): void {
  openNow.delete(channel)
  if (closed.hasSubscribers) closed.publish({ channel, peer: channel.peer, reason, error })
  if (log.enabled)
    log('%s: the channel with process %d has ended: %s', nameOf(channel.address), channel.peer.pid, reason)
}

/** Reports a handshake in which the peer was refused, on the listening or the connecting side. */
export function tellRefused(address: string | null, error: RingfenceError): void {
  const { identity, check, wanted, found } = error
  if (refused.hasSubscribers) refused.publish({ address, error, identity })
  if (!log.enabled) return
  const who = identity === undefined ? 'a process' : `process ${identity.pid} (uid ${identity.uid})`
  const why = check === undefined ? error.message : `${check}: wanted ${wanted}, found ${found}`
  log('%s: %s was refused (%s): %s', nameOf(address), who, error.code, printable(why))
}

/** Reports that a publisher has evicted a subscriber that was too slow. */
export function tellEvicted(publisher: { address: string }, subscriber: Checked): void {
  if (evicted.hasSubscribers) evicted.publish({ publisher, subscriber })
  if (log.enabled) log('%s: the subscriber of process %d was evicted', publisher.address, subscriber.peer.pid)
}

/** Reports an error that the handler of a call has thrown. The caller gets it without its stack. */
export function tellThrown(channel: Met, error: unknown): void {
  if (failed.hasSubscribers) failed.publish({ channel, peer: channel.peer, error })
  if (!log.enabled) return
  const { address, peer } = channel
  log('%s: the handler of a call of process %d has thrown: %s', nameOf(address), peer.pid, printable(messageOf(error)))
}

/** Reports that a handshake has resulted in a subscriber or a subscription. */
export function tellSubscribed(checked: Checked, address: string, what: string): void {
  if (log.enabled) tellStory(checked, `${address}: ${what}`)
}

/** Logs a handshake step by step, from its evidence. */
function tellStory({ peer, evidence }: Checked, what: string): void {
  log('%s; the peer is process %d (uid %d)', what, peer.pid, peer.uid)
  for (const { step, check, wanted, found, outcome } of evidence)
    log('  %s, %s: wanted %s, found %s (%s)', step, check, printable(wanted ?? ''), printable(found ?? ''), outcome)
}

function nameOf(address: string | null): string {
  return address ?? 'a private line'
}
