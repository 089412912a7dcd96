// The same child without a sandbox, and in bubblewrap with a seccomp filter. Each inherits its line.

import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'

import { filter } from '../../../examples/sandbox/filter.mjs'
import { called } from './calls.mjs'
import { own, ringfence } from './contender.mjs'
import { open, optionsOf } from './ringfence.mjs'
import { open as openCalls } from './rpc.mjs'

const { spawn, fromParent, why } = ringfence

const SANDBOX = [
  ...['--unshare-all', '--unshare-user', '--die-with-parent', '--cap-drop', 'ALL', '--seccomp', '3'],
  ...['--ro-bind', '/', '/', '--proc', '/proc', '--dev', '/dev'],
]
/** Refuses a child that is not confined, so that its figures cannot be mistaken for those of a sandbox. */
const confined = {
  noNewPrivs: true,
  seccomp: true,
  noCapabilities: true,
  userNamespace: 'other',
  networkNamespace: 'other',
}

function seccompOf({ tag }) {
  const file = path.join(os.tmpdir(), `${tag}.filter`)
  fs.writeFileSync(file, filter())
  return fs.openSync(file)
}

/** The channel to the child that this process has started. */
let started

const starting = (isConfined) => (command, words, options, job) => {
  let child
  const more = { ...optionsOf(job), onSpawn: (one) => (child = one) }
  const spawned = isConfined
    ? spawn('bwrap', [...SANDBOX, command, ...words], {
        ...more,
        admit: 'descendant',
        policy: { confined },
        spawn: { ...options, stdio: [...options.stdio, seccompOf(job)] },
      })
    : spawn(command, words, { ...more, spawn: options })
  started = spawned.then(({ channel }) => channel)
  return child
}

const connecting =
  ({ side }) =>
  (options) =>
    side === 'a' ? started : fromParent(options)

const message = (setup) => open(setup, 'drain', connecting(setup))
const call = (setup) =>
  openCalls(setup, async (counter) => called(await connecting(setup)(optionsOf(setup.job)), setup, counter))

const noBwrap = spawnSync('bwrap', ['--version']).error && 'bwrap is not installed'

const NOTES = {
  spawned: 'started by spawn, without a launcher',
  sandboxed: 'bwrap --unshare-all, no capabilities, the seccomp filter of examples/sandbox',
}
const pair = (kind, opening, times = false) =>
  Object.entries(NOTES).map(([place, note]) =>
    own(`${kind}/${place}`, note, opening, {
      start: starting(place === 'sandboxed'),
      unavailable: why ?? (place === 'sandboxed' ? noBwrap : undefined),
      // The `sandbox` command compares only these two.
      alone: true,
      times,
    }),
  )

export const children = pair('message', message)
export const childCalls = pair('call', call, true)
