// What stands at an address, over a binding of the test's own: who comes is what a test says.

import type { ExecutionContext } from 'ava'
import type { ListenOptions, Listener, MemberOptions, Membership } from 'ringfence'

import { beginsHere, type Failure } from './binding.js'
import { Binding, FAILED } from './channel.js'
import { insideOf } from './inside.js'

/** What the package does not export, and the calls beside it. */
export const [{ listen, connect }, { member }, { join }, { atExit }] = await Promise.all([
  insideOf<Pick<typeof import('ringfence'), 'listen' | 'connect'>>('endpoint/service.js'),
  insideOf<Pick<typeof import('ringfence'), 'member'>>('endpoint/membership.js'),
  insideOf<Pick<typeof import('ringfence'), 'join'>>('endpoint/pair.js'),
  insideOf<{ atExit(address: string, vacate: () => void): () => void }>('runtime/exit.js'),
])

/** What the process would call as it exits: it listens from the first time on that something is to be called. */
export const exits: () => void = (() => {
  const before = process.listeners('exit')
  atExit('/somewhere', () => {})()
  return process.listeners('exit').find((listener) => !before.includes(listener)) as () => void
})()

/** What the binding makes at an address. */
export class Standing {
  readonly role = 'host'
  readonly asked: string[] = []
  events: unknown[] = []
  bell: () => void = () => {}
  watching = 0
  failing: Failure = { code: 'CLOSED', message: 'as the binding says' }
  /** Tells that the place is left; null: it is so at once. */
  left: (() => void) | null = null
  leavesAtOnce = true

  /** Who comes, and the bell. */
  tell(...events: unknown[]): void {
    this.events.push(...events)
    this.bell()
  }

  /** It ends by itself. */
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

  /** What was asked since the last time, but for who comes. */
  since(): string[] {
    return this.asked.splice(0).filter((what) => what !== 'next')
  }
}

/** Somebody who comes. */
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
