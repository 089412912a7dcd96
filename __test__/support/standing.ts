// Endpoints over a fake binding: tests decide which peers connect.

import type { ExecutionContext } from 'ava'
import type { ListenOptions, Listener, MemberOptions, Membership } from 'ringfence'

import { beginsHere, type Failure } from './binding.js'
import { Binding, FAILED } from './channel.js'
import { insideOf } from './inside.js'

/** Not exported by the package, with public functions of the same copy. */
export const [{ listen, connect }, { member }, { join }, { atExit }] = await Promise.all([
  insideOf<Pick<typeof import('ringfence'), 'listen' | 'connect'>>('endpoint/service.js'),
  insideOf<Pick<typeof import('ringfence'), 'member'>>('endpoint/membership.js'),
  insideOf<Pick<typeof import('ringfence'), 'join'>>('endpoint/pair.js'),
  insideOf<{ atExit(address: string, vacate: () => void): () => void }>('runtime/exit.js'),
])

/** Runs what the process would run at exit. The package listens for the exit from the first registration on. */
export const exits: () => void = (() => {
  const before = process.listeners('exit')
  atExit('/somewhere', () => {})()
  return process.listeners('exit').find((listener) => !before.includes(listener)) as () => void
})()

/** The fake object of an endpoint. */
export class Standing {
  readonly role = 'host'
  readonly asked: string[] = []
  events: unknown[] = []
  bell: () => void = () => {}
  watching = 0
  failing: Failure = { code: 'CLOSED', message: 'as the binding says' }
  /** Reports that the place was left; null: this is reported at once. */
  left: (() => void) | null = null
  leavesAtOnce = true

  /** Adds events, and sends a wakeup. */
  tell(...events: unknown[]): void {
    this.events.push(...events)
    this.bell()
  }

  /** The endpoint fails. */
  fail(): void {
    this.tell(FAILED)
  }

  accept(): unknown {
    this.asked.push('next')
    return this.events.shift() ?? 0
  }

  next(): unknown {
    return this.accept()
  }

  watch(bell: () => void): number {
    this.bell = bell
    return this.watching
  }

  pause(paused: number): void {
    this.asked.push(`pause ${paused}`)
  }

  keepAlive(alive: number): void {
    this.asked.push(`keep alive ${alive}`)
  }

  close(): void {
    this.asked.push('close')
  }

  vacate(): void {
    this.asked.push('vacate')
  }

  leave(left: () => void): number {
    this.asked.push('leave')
    this.left = left
    return this.leavesAtOnce ? 0 : 1
  }

  failure(): Failure {
    return this.failing
  }

  /** The calls since the last time, except those for events. */
  since(): string[] {
    return this.asked.splice(0).filter((what) => what !== 'next')
  }
}

/** The fake channel of a new peer. */
export function comer(pid = 1): Binding {
  const binding = new Binding()
  Object.assign(binding.peer, { pid })
  return binding
}

export async function listens(t: ExecutionContext, options: ListenOptions = {}, address = '@somewhere') {
  const standing = new Standing()
  const all = beginsHere(t)
  const opening = listen(address, options)
  await Promise.resolve()
  all[0]!.done(null, standing)
  const listener: Listener = await opening
  return { listener, standing }
}

export async function stays(
  t: ExecutionContext,
  {
    options = {},
    address = '@somewhere',
    events = [],
  }: { options?: MemberOptions; address?: string; events?: unknown[] } = {},
) {
  const standing = new Standing()
  standing.events = events
  const all = beginsHere(t)
  const opening = member(address, options)
  await Promise.resolve()
  all[0]!.done(null, standing)
  const membership: Membership = await opening
  return { membership, standing }
}
