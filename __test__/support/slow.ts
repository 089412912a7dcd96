// What the modules behind `ringfence doctor PID|ADDRESS` give each other, as their tests see it.

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

export const slow = (name: string) => import(new URL(`../../../dist/esm/cli/slow/${name}.js`, import.meta.url).href)
