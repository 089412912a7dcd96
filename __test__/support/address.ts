// Addresses that no other test uses, since tests run concurrently.

import { randomBytes } from 'node:crypto'
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import type { ExecutionContext } from 'ava'

import { until } from './until.js'

export const kinds = ['named', 'abstract'] as const
export type Kind = (typeof kinds)[number]

export const backings = ['memfd', 'shm'] as const

export function abstractAddress(): string {
  return `@ringfence-test-${randomBytes(8).toString('hex')}`
}

/** A directory that is removed after the test. */
export function temporaryDirectory(t: ExecutionContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'ringfence-test-'))
  t.teardown(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

export function namedAddress(t: ExecutionContext): string {
  return join(temporaryDirectory(t), 'meet.sock')
}

export function addressOf(kind: Kind, t: ExecutionContext): string {
  return kind === 'named' ? namedAddress(t) : abstractAddress()
}

/** The sockets at an address, according to the kernel. */
function socketsAt(address: string): string[] {
  const lines = readFileSync('/proc/net/unix', 'latin1').split('\n')
  return lines.filter((line) => line.endsWith(` ${address}`))
}

/**
 * Whether the address is bound. For a path, the file must exist as well: a process that is starting has a copy of a
 * closed socket until exec.
 */
export function isBound(address: string): boolean {
  return socketsAt(address).length > 0 && (address.startsWith('@') || existsSync(address))
}

/**
 * Resolves once a process listens at the address, and its files are in place. It accepts no process before they have
 * their mode.
 */
export async function untilBound(address: string, mode = 0o600): Promise<void> {
  // The flag is __SO_ACCEPTCON. A socket that is only bound does not listen yet.
  const listens = () => socketsAt(address).some((line) => line.split(' ')[3] === '00010000')
  const isThere = () => address.startsWith('@') || (existsSync(address) && (statSync(address).mode & 0o777) === mode)
  await until(() => listens() && isThere(), `a process listens at ${address}`)
}
