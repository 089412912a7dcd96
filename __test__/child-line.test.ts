// The line that a child inherits, over a fake binding: failures before there is a channel, and the descriptor that the
// child gets.

import type { ChildProcess } from 'node:child_process'
import { text } from 'node:stream/consumers'

import test, { type ExecutionContext } from 'ava'
import type { RingfenceError } from 'ringfence'

import { native } from './support/binding.js'
import { internals } from './support/internals.js'
import { codeOf } from './support/ring.js'

const { spawn } = await internals<Pick<typeof import('ringfence'), 'spawn'>>('endpoint/child.js')

/** Replaces the creation of lines until the test is over. */
function linesAre(t: ExecutionContext, make: () => unknown): void {
  const { privateLine } = native
  native['privateLine'] = make
  t.teardown(() => (native['privateLine'] = privateLine))
}

test.serial('if no line can be created, no child is started, and the error says why', async (t) => {
  for (const code of ['NO_SPACE', 'UNSUPPORTED'] as const) {
    linesAre(t, () => ({ code, message: 'no descriptor' }))
    const error = await t.throwsAsync<RingfenceError>(spawn('/bin/true'), codeOf(code))
    t.is(error!.message, 'no descriptor')
  }
})

test.serial('the line is the first descriptor after the standard ones, however few of those are given', async (t) => {
  for (const stdio of [undefined, 'pipe', ['ignore'], ['ignore', 'pipe'], ['ignore', 'pipe', 'ignore']] as const) {
    const asked: unknown[] = []
    const { adopt } = native
    native['adopt'] = (_line: unknown, _options: unknown, done: (failure: unknown, raw: null) => void) => {
      adopted = () => done({ code: 'PROTOCOL', message: 'as the binding says' }, null)
      return { cancel() {}, vacate() {}, answer() {} }
    }
    t.teardown(() => (native['adopt'] = adopt))
    let adopted!: () => void
    linesAre(t, () => ({
      descriptor: 'ignore',
      started: (pid: number) => (asked.push(pid), null),
      kill: (done: (nothing: null, killed: boolean) => void) => (asked.push('kill'), done(null, false)),
      release: () => {},
      close: () => void asked.push('close'),
    }))
    let child!: ChildProcess
    const spawned = spawn('/bin/sh', ['-c', 'echo "$RINGFENCE_LINE"'], {
      spawn: { stdio: stdio as never },
      onSpawn: (started) => (child = started),
    })
    const error = t.throwsAsync(spawned, { message: 'as the binding says' })
    t.is(await text(child.stdout!), '3\n', String(stdio))
    adopted()
    await error
    t.deepEqual(asked, [child.pid, 'kill', 'close'])
  }
})
