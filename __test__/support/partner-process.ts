// The main script of a partner: runs the functions that it is sent, and returns their results.

import { createRequire } from 'node:module'

import * as ringfence from 'ringfence'
import type { Channel } from 'ringfence'

import * as bytes from './bytes.js'
import * as until from './until.js'

/** The first argument of functions that run in a partner. */
export interface Kit {
  ringfence: typeof ringfence
  join: typeof ringfence.join
  /** The channel that was joined last. */
  channel: Channel
  /** Values that are kept between calls. */
  keep: Record<string, unknown>
  bytes: typeof bytes
  until: typeof until
  require: NodeJS.Require
}

/** The data of an error that is sent to another process. */
export interface Thrown {
  name: string
  message: string
  code?: string
  check?: string
  wanted?: string
  found?: string
  cause?: string
  isRingfenceError: boolean
}

/** The result of a call. */
export interface Answer {
  id: number
  value?: unknown
  thrown?: Thrown
}

let open: Channel | undefined

const kit: Kit = {
  ringfence,
  join: ringfence.join,
  get channel() {
    if (open === undefined) throw new Error('no channel was joined')
    return open
  },
  set channel(channel) {
    open = channel
  },
  keep: {},
  bytes,
  until,
  require: createRequire(import.meta.url),
}

function describe(error: unknown): Thrown {
  if (!(error instanceof Error)) return { name: 'no error', message: String(error), isRingfenceError: false }
  const { code, check, wanted, found, cause } = error as Partial<ringfence.RingfenceError> & Error
  return {
    name: error.name,
    message: error.message,
    code,
    check,
    wanted,
    found,
    cause: cause === undefined ? undefined : String(cause),
    isRingfenceError: error instanceof ringfence.RingfenceError,
  }
}

process.on('message', async ({ id, code, args }: { id: number; code: string; args: unknown[] }) => {
  const answer: Answer = { id }
  try {
    // oxlint-disable-next-line no-new-func
    const task = new Function(`return (${code})`)() as (kit: Kit, ...args: unknown[]) => unknown
    answer.value = await task(kit, ...args)
  } catch (error) {
    answer.thrown = describe(error)
  }
  if (process.connected) process.send!(answer)
})
