// Errors without a binding: which one is missing, on this system or on another. package.test.ts has a package without
// one.

import { execFile } from 'node:child_process'
import { resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import test, { type ExecutionContext } from 'ava'
import { RingfenceError } from 'ringfence'

import { internals, urlOf } from './support/internals.js'

/** Not exported by the package. */
const { unsupported } = await internals<{
  unsupported(cause: unknown): Record<string, () => never>
}>('runtime/unsupported.js')

/** Replaces these properties of the process, until the test is over. */
function runningOn(t: ExecutionContext, parts: Partial<Record<'platform' | 'arch' | 'report', unknown>>): void {
  for (const [name, value] of Object.entries(parts)) {
    const given = Object.getOwnPropertyDescriptor(process, name)!
    Object.defineProperty(process, name, { configurable: true, value })
    t.teardown(() => Object.defineProperty(process, name, given))
  }
}

const ofGlibc = { getReport: () => ({ header: { glibcVersionRuntime: '2.39' } }) }
/** A report of a system with another libc, one without that information, and no report. */
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

test.serial('each call of a missing binding names the package that has it', (t) => {
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

test.serial('on a system without a binding the error lists the supported ones', (t) => {
  runningOn(t, { platform: 'linux', arch: 'riscv64', report: ofGlibc })
  t.regex(reason(t), /^there is no binary of ringfence for linux-riscv64-gnu; there are ones for x64 and arm64, /)
  runningOn(t, { platform: 'darwin', arch: 'arm64' })
  t.is(reason(t), 'ringfence works on Linux, and this is darwin on arm64')
})

const run = promisify(execFile)

test('if Node.js may not load the binding, the error says so, and what to do', async (t) => {
  const permission = process.allowedNodeEnvironmentFlags.has('--permission')
    ? '--permission'
    : '--experimental-permission'
  const index = fileURLToPath(urlOf('index.js'))
  const root = resolve(index, '../../..')
  const script = `import { join } from ${JSON.stringify(index)}
    await join('@nowhere').catch(({ code, message }) => console.log(code + ' ' + message))`
  const reads = (...paths: string[]) => paths.map((path) => `--allow-fs-read=${path}`)
  for (const [options, message] of [
    [['--no-addons'], /was started with --no-addons\. Start it without/],
    [[permission, ...reads('*')], /was started with --permission\. Start it with --allow-addons as well/],
    [
      [permission, ...reads(`${root}/dist/*`)],
      /may not read .*--permission\. Start it with --allow-addons, and with --allow-fs-read/,
    ],
    [[permission, '--allow-addons', ...reads(`${root}/dist/*`)], /may not read .*--allow-fs-read/],
  ] as const) {
    const { stdout } = await run(process.execPath, ['--no-warnings', ...options, '--input-type=module', '-e', script])
    t.regex(stdout, /^ERR_RINGFENCE_UNSUPPORTED this process may not /, options.join(' '))
    t.regex(stdout, message, options.join(' '))
    t.notRegex(stdout, /install/)
  }
})

test('in a bundle without require, the error names that, and no missing package', (t) => {
  for (const message of [
    'require is not defined',
    'require.resolve is not a function',
    'Dynamic require of "fs" is not supported',
  ]) {
    const binding = unsupported(new Error('it does not load', { cause: new Error(message) }))
    t.throws(
      () => binding['join']!(),
      { code: 'ERR_RINGFENCE_UNSUPPORTED', message: /no `require`.*createRequire/ },
      message,
    )
  }
})
