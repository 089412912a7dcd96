// What the modules behind `ringfence doctor PID|ADDRESS` give each other, as their tests see it.

import { insideOf } from './inside.js'

/** A limit, and what there is of it; `path` says whose. */
export interface Bounded {
  limit: number
  used: number
  path?: string
}

/** What a process was seen to do. */
export interface Activity {
  isStopped: boolean
  busy: number
  core: number
  isPinned: boolean
  sleepsPerSecond: number
}

export const slow = (name: string) => insideOf(`cli/slow/${name}.js`)

/** What was found of the way from one process to another. */
export interface Finding {
  check: string
  status: 'good' | 'slow' | 'unknown'
  processes: number[]
  found: string
  meaning: string
}

/** What `ringfence doctor PID|ADDRESS` finds. */
export interface Diagnosis {
  processes: { pid: number }[]
  pairs: { address: string | null; processes: number[]; findings: Finding[] }[]
}

export const { diagnosePair, explain } = (await slow('main')) as {
  diagnosePair(target: number | string, places?: { sys: string }): Promise<Diagnosis>
  explain(target: number | string, json: boolean): Promise<void>
}
