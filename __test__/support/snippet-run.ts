// Runs the programs of a page's section as the page says.

import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { linkSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'

import type { ExecutionContext } from 'ava'
import { transform } from 'esbuild'

import { abstractAddress, temporaryDirectory, untilBound } from './address.js'
import { root, type Expected, type Snippet } from './snippets.js'
import { until } from './until.js'

/** The calls that bind an address, unless another process has. */
const BINDS = /\b(listen|publish|join|member)\(/
/** Programs that run until they are stopped. */
const ENDLESS = /\b(listen|member)\(|\bfor \(;[^;]*;|\bwhile \(true\)|\bsetInterval\(/
/** Sections at a time: enough to keep two cores busy. */
const AT_A_TIME = 4

let canUseBwrap: boolean | undefined
export function canSandbox(): boolean {
  const words = ['--unshare-all', '--die-with-parent', '--ro-bind', '/', '/', 'true']
  return (canUseBwrap ??= spawnSync('bwrap', words, { stdio: 'ignore' }).status === 0)
}

interface Run {
  readonly title: string
  readonly child: ChildProcess
  readonly endless: boolean
  readonly expected: Expected | undefined
  output: string
  errors: string
}

let running = 0
const waiting: (() => void)[] = []

/** Returns the failures. */
export async function runTogether(
  t: ExecutionContext,
  snippets: readonly Snippet[],
  outputs: readonly Expected[],
): Promise<string[]> {
  if (running === AT_A_TIME) await new Promise<void>((resolve) => waiting.push(resolve))
  else running += 1
  try {
    return await runNow(t, snippets, outputs)
  } finally {
    const next = waiting.shift()
    if (next === undefined) running -= 1
    else next()
  }
}

async function runNow(t: ExecutionContext, snippets: readonly Snippet[], outputs: readonly Expected[]) {
  const place = makePackage(t)
  const adapt = adapter(t)
  const programs = await Promise.all(
    snippets.map(async (snippet) => {
      const { code, addresses } = adapt(snippet.code)
      const name = snippet.name ?? 'main.mjs'
      // Node 20 runs the JavaScript as it stands; `await using` is TypeScript there.
      const text = snippet.isTypeScript ? (await transform(code, { loader: 'ts', target: 'node20' })).code : code
      writeFileSync(path.join(place, name), text)
      return { name, code, addresses, kind: snippet.kind }
    }),
  )
  const runs: Run[] = []
  t.teardown(() => runs.forEach(stop))
  for (const { name, code, addresses, kind } of programs) {
    // Another program of the section starts it.
    if (programs.some((other) => other.name !== name && other.code.includes(name))) continue
    const planned: (Expected | undefined)[] = outputs.filter((one) => one.name === name)
    if (planned.length === 0) planned.push(undefined)
    if (kind === 'twice' && planned.length === 1) planned.push(planned[0])
    for (const expected of planned) {
      const one = start(place, name, expected, ENDLESS.test(code))
      runs.push(one)
      if (!BINDS.test(code)) continue
      const mode = Number(/\bmode: (0o\d+)/.exec(code)?.[1] ?? 0o600)
      const bound = addresses.map((address) => untilBound(address, mode))
      await Promise.race([...bound, until(() => hasExited(one), `${name} exits`)])
    }
  }
  const isDone = () => runs.every(isOver) || runs.some(hasFailed)
  await until(isDone, 'the programs end').catch(() => undefined)
  const failures = runs.filter((one) => hasFailed(one) || !isOver(one)).map(describe)
  runs.forEach(stop)
  return failures
}

/** A directory in which the package is installed. Its files are links, so that a sandbox sees them. */
function makePackage(t: ExecutionContext): string {
  const home = path.join(root, 'build', 'snippets')
  mkdirSync(home, { recursive: true })
  const place = mkdtempSync(path.join(home, 'run-'))
  t.teardown(() => rmSync(place, { recursive: true, force: true }))
  const target = path.join(place, 'node_modules', 'ringfence')
  mkdirSync(target, { recursive: true })
  linkSync(path.join(root, 'package.json'), path.join(target, 'package.json'))
  for (const part of ['dist', 'binding'])
    for (const entry of readdirSync(path.join(root, part), { recursive: true, withFileTypes: true })) {
      if (!entry.isFile()) continue
      const from = path.join(entry.parentPath, entry.name)
      const to = path.join(target, path.relative(root, from))
      mkdirSync(path.dirname(to), { recursive: true })
      linkSync(from, to)
    }
  writeFileSync(path.join(place, 'package.json'), '{ "type": "module" }\n')
  return place
}

/** Replaces addresses, users and groups of a page by those of this test, the same for all programs of a section. */
function adapter(t: ExecutionContext) {
  const directory = temporaryDirectory(t)
  const unique = abstractAddress()
  return (code: string) => {
    const addresses = new Set<string>()
    const adapted = code
      .replaceAll(/(['"`])((?:\.\/|\/)[\w./-]+\.sock|@[\w-]+)\1/g, (_, quote: string, address: string) => {
        const own = address.startsWith('@')
          ? `${unique}-${address.slice(1)}`
          : path.join(directory, address.replaceAll('/', '_'))
        addresses.add(own)
        return quote + own + quote
      })
      .replaceAll(/\buid: (?:\d+|\[[\d, ]+\])/g, `uid: ${process.getuid!()}`)
      .replaceAll(/\b(group|gid): (?:'[\w-]+'|\d+)/g, `$1: ${process.getgid!()}`)
    return { code: adapted, addresses: [...addresses] }
  }
}

function start(cwd: string, name: string, expected: Expected | undefined, endless: boolean): Run {
  const words = expected?.words ?? []
  const child = spawn(process.execPath, [name, ...words], { cwd, stdio: ['ignore', 'pipe', 'pipe'], detached: true })
  const run: Run = { title: [name, ...words].join(' '), child, endless, expected, output: '', errors: '' }
  child.stdout.setEncoding('utf8').on('data', (text: string) => (run.output += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (run.errors += text))
  return run
}

const hasExited = ({ child }: Run) => child.exitCode !== null || child.signalCode !== null
const hasClosed = (run: Run) => hasExited(run) && run.child.stdout!.closed && run.child.stderr!.closed
const hasFailed = (run: Run) => hasClosed(run) && (run.child.exitCode !== 0 || !isAsExpected(run))
const isOver = (run: Run) => (run.endless || hasClosed(run)) && isAsExpected(run)

/** Numbers of three and more digits, such as those of processes, differ in each run. */
function isAsExpected({ expected, output }: Run): boolean {
  if (expected === undefined) return true
  const lines = (text: string) => {
    const all = text
      .trimEnd()
      .replaceAll(/\d{3,}/g, '<number>')
      .split('\n')
    return (expected.anyOrder ? all.sort() : all).join('\n')
  }
  return lines(output) === lines(expected.output)
}

function describe({ title, child, expected, output, errors }: Run): string {
  const state = child.exitCode === null ? (child.signalCode ?? 'still runs') : `exited with ${child.exitCode}`
  const wanted = expected === undefined ? '' : `\nexpected:\n${expected.output}`
  return `node ${title}: ${state}\nprinted:\n${output}${errors}${wanted}`
}

/** Kills the program, and what it has started. */
function stop({ child }: Run): void {
  try {
    process.kill(-child.pid!, 'SIGKILL')
  } catch {
    // All of them have exited.
  }
}
