// Reasons to refuse hardening, and the order of its steps, over a fake binding: real hardening would affect the whole
// test process. harden.test.ts hardens processes of its own.

import test, { type ExecutionContext } from 'ava'
import type { harden as Harden } from 'ringfence'

import { internals } from './support/internals.js'

interface Insides {
  harden: typeof Harden
  native: Record<string, unknown>
  builtin: object
}

const inside = internals<Insides>

const [{ harden }, { native }, { builtin }] = await Promise.all([
  inside('runtime/harden.js'),
  inside('native.js'),
  inside('native.js'),
])

interface Process {
  isMainThread: boolean
  /** Undefined: this runtime does not report it. */
  hasInspector: boolean | undefined
  url: () => string | undefined
  failing: string | null
}

const calm: Process = { isMainThread: true, hasInspector: true, url: () => undefined, failing: null }

/** Hardens a process of this kind. Returns the calls to the binding, and the error. */
function hardening(t: ExecutionContext, kind: Partial<Process>): { calls: string[]; error: Error | null } {
  const { isMainThread, hasInspector, url, failing } = { ...calm, ...kind }
  const calls: string[] = []
  const record = (name: string) => () => {
    calls.push(name)
    return name === failing ? { code: 'UNSUPPORTED', message: `${name} cannot be had` } : null
  }
  const replaced: [object, string, unknown][] = [
    [native, 'harden', record('harden')],
    [native, 'ignoreSigusr1', record('ignoreSigusr1')],
    [process.features, 'inspector', hasInspector],
    [builtin, 'threads', { isMainThread }],
    [builtin, 'inspector', { url }],
  ]
  for (const [of, name, value] of replaced) {
    const given = Object.getOwnPropertyDescriptor(of, name)!
    Object.defineProperty(of, name, { configurable: true, writable: true, enumerable: true, value })
    t.teardown(() => Object.defineProperty(of, name, given))
  }
  try {
    harden()
    return { calls, error: null }
  } catch (error) {
    return { calls, error: error as Error }
  }
}

test.serial('SIGUSR1 is ignored before the process is closed, unless the program listens to it', (t) => {
  const all = ['ignoreSigusr1', 'harden']
  t.deepEqual(hardening(t, {}), { calls: all, error: null })
  t.deepEqual(hardening(t, { hasInspector: undefined }), { calls: all, error: null })
  const listen = () => {}
  process.on('SIGUSR1', listen)
  t.teardown(() => process.off('SIGUSR1', listen))
  t.deepEqual(hardening(t, {}), { calls: ['harden'], error: null })
})

test.serial('nothing is done in a worker thread, or if the inspector is open or may be', (t) => {
  const refused = (kind: Partial<Process>, code: string, message: RegExp) => {
    const { calls, error } = hardening(t, kind)
    t.deepEqual(calls, [])
    t.like(error, { code: `ERR_RINGFENCE_${code}` })
    t.regex(error!.message, message)
    return error!
  }
  refused({ isMainThread: false }, 'INVALID_ARGUMENT', /worker thread/)
  refused(
    { url: () => 'ws://here' },
    'INVALID_ARGUMENT',
    /its inspector is open at ws:\/\/here, .* start it without --inspect/,
  )
  const cause = new Error('there is none')
  const url = () => {
    throw cause
  }
  t.is(refused({ url }, 'UNSUPPORTED', /does not report whether its inspector is open/).cause, cause)
  // A runtime without an inspector cannot have it open.
  t.is(hardening(t, { hasInspector: false, url }).error, null)
})

test.serial('a step that the binding cannot do is an error, and later steps are not tried', (t) => {
  for (const [failing, tried] of [
    ['ignoreSigusr1', ['ignoreSigusr1']],
    ['harden', ['ignoreSigusr1', 'harden']],
  ] as const) {
    const { calls, error } = hardening(t, { failing })
    t.deepEqual(calls, tried)
    t.like(error, { code: 'ERR_RINGFENCE_UNSUPPORTED', message: `${failing} cannot be had` })
  }
})
