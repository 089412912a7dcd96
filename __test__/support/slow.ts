// Types of the internal modules of `ringfence doctor PID|ADDRESS`, for their tests.

import { internals } from './internals.js'

/** A limit and its use; `path` names its owner. */
export interface Bounded {
  limit: number
  used: number
  path?: string
}

/** The activity of a process. */
export interface Activity {
  isStopped: boolean
  busy: number
  core: number
  isPinned: boolean
  sleepsPerSecond: number
}

export const slow = (name: string) => internals(`cli/slow/${name}.js`)

/** A finding about the direction from one process to another. */
export interface Finding {
  check: string
  status: 'good' | 'slow' | 'unknown'
  processes: number[]
  found: string
  meaning: string
}

/** The findings of `ringfence doctor PID|ADDRESS`. */
export interface Diagnosis {
  processes: { pid: number }[]
  pairs: { address: string | null; processes: number[]; findings: Finding[] }[]
}

export const { diagnosePair, explain } = (await slow('main')) as {
  diagnosePair(target: number | string, places?: { sys: string }): Promise<Diagnosis>
  explain(target: number | string, json: boolean): Promise<void>
}
