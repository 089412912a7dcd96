// Endpoints over a fake binding: tests decide which peers connect.

import type { ExecutionContext } from 'ava'
import type { ListenOptions, Listener, MemberOptions, Membership } from 'ringfence'

import { captureHandshakes, type Failure } from './binding.js'
import { Binding, FAILED } from './channel.js'
import { internals } from './internals.js'

/** Not exported by the package, with public functions of the same copy. */
export const [{ listen, connect }, { member }, { join }, { atExit }] = await Promise.all([
  internals<Pick<typeof import('ringfence'), 'listen' | 'connect'>>('endpoint/service.js'),
  internals<Pick<typeof import('ringfence'), 'member'>>('endpoint/membership.js'),
  internals<Pick<typeof import('ringfence'), 'join'>>('endpoint/pair.js'),
  internals<{ atExit(address: string, vacate: () => void): () => void }>('runtime/exit.js'),
])

/** Runs what the process would run at exit. The package listens for the exit from the first registration on. */
export const runExitHandlers: () => void = (() => {
  const before = process.listeners('exit')
  atExit('/somewhere', () => {})()
  return process.listeners('exit').find((listener) => !before.includes(listener)) as () => void
})()

/** The fake object of an endpoint. */
export class FakeEndpoint {
  readonly role = 'host'
  readonly calls: string[] = []
  events: unknown[] = []
  onWakeup: () => void = () => {}
  watching = 0
  failing: Failure = { code: 'CLOSED', message: 'as the binding says' }
  /** Reports that the place was left; null: this is reported at once. */
  onLeft: (() => void) | null = null
  leavesImmediately = true

  /** Adds events, and sends a wakeup. */
  emit(...events: unknown[]): void {
    this.events.push(...events)
    this.onWakeup()
  }

  /** The endpoint fails. */
  fail(): void {
    this.emit(FAILED)
  }

  accept(): unknown {
    this.calls.push('next')
    return this.events.shift() ?? 0
  }

  next(): unknown {
    return this.accept()
  }

  watch(onWakeup: () => void): number {
    this.onWakeup = onWakeup
    return this.watching
  }

  pause(paused: number): void {
    this.calls.push(`pause ${paused}`)
  }

  keepAlive(alive: number): void {
    this.calls.push(`keep alive ${alive}`)
  }

  close(): void {
    this.calls.push('close')
  }

  vacate(): void {
    this.calls.push('vacate')
  }

  leave(onLeft: () => void): number {
    this.calls.push('leave')
    this.onLeft = onLeft
    return this.leavesImmediately ? 0 : 1
  }

  failure(): Failure {
    return this.failing
  }

  /** The calls since the last time, except those for events. */
  newCalls(): string[] {
    return this.calls.splice(0).filter((what) => what !== 'next')
  }
}

/** The fake channel of a new peer. */
export function incomingChannel(pid = 1): Binding {
  const binding = new Binding()
  Object.assign(binding.peer, { pid })
  return binding
}

export async function openListener(t: ExecutionContext, options: ListenOptions = {}, address = '@somewhere') {
  const endpoint = new FakeEndpoint()
  const all = captureHandshakes(t)
  const opening = listen(address, options)
  await Promise.resolve()
  all[0]!.done(null, endpoint)
  const listener: Listener = await opening
  return { listener, endpoint }
}

export async function openMembership(
  t: ExecutionContext,
  {
    options = {},
    address = '@somewhere',
    events = [],
  }: { options?: MemberOptions; address?: string; events?: unknown[] } = {},
) {
  const endpoint = new FakeEndpoint()
  endpoint.events = events
  const all = captureHandshakes(t)
  const opening = member(address, options)
  await Promise.resolve()
  all[0]!.done(null, endpoint)
  const membership: Membership = await opening
  return { membership, endpoint }
}
