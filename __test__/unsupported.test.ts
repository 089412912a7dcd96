// What a program is told where there is no binding: which one is missing, on this system or on another. package.test.ts has a package
// without one.

import test, { type ExecutionContext } from 'ava'
import { RingfenceError } from 'ringfence'

import { insideOf } from './support/inside.js'

/** What the package does not export. */
const { unsupported } = await insideOf<{
  unsupported(cause: unknown): Record<string, () => never>
}>('unsupported.js')

/** A process has these, until the test is over. */
function runningOn(t: ExecutionContext, parts: Partial<Record<'platform' | 'arch' | 'report', unknown>>): void {
  for (const [name, value] of Object.entries(parts)) {
    const given = Object.getOwnPropertyDescriptor(process, name)!
    Object.defineProperty(process, name, { configurable: true, value })
    t.teardown(() => Object.defineProperty(process, name, given))
  }
}

const ofGlibc = { getReport: () => ({ header: { glibcVersionRuntime: '2.39' } }) }
/** A report of another library’s system, one that says nothing, and none. */
const ofOthers = [
  { getReport: () => ({ header: {} }) },
  { getReport: () => ({}) },
  { getReport: () => undefined },
  undefined,
]

const cause = new Error('it does not load')

function reason(t: ExecutionContext): string {
  const binding = unsupported(cause)
  const error = t.throws(() => binding['whatever']!(), { instanceOf: RingfenceError })
  t.like(error, { code: 'ERR_RINGFENCE_UNSUPPORTED', cause })
  return error.message
}

test.serial('each call of a binding that is not there says which package has it', (t) => {
  runningOn(t, { platform: 'linux', arch: 'x64', report: ofGlibc })
  t.true(
    reason(t).startsWith(
      'the binary of ringfence for linux-x64-gnu is not there or does not load: install the package ringfence-linux-x64-gnu',
    ),
  )
  for (const report of ofOthers) {
    runningOn(t, { arch: 'arm64', report })
    t.true(reason(t).startsWith('the binary of ringfence for linux-arm64-musl is not there'))
  }
})

test.serial('where there is none for a system, it says what there is', (t) => {
  runningOn(t, { platform: 'linux', arch: 'riscv64', report: ofGlibc })
  t.regex(reason(t), /^there is no binary of ringfence for linux-riscv64-gnu; there are ones for x64 and arm64, /)
  runningOn(t, { platform: 'darwin', arch: 'arm64' })
  t.is(reason(t), 'ringfence works on Linux, and this is darwin on arm64')
})
