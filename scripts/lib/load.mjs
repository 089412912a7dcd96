// Runs the tests under load: `npm run test:load`.

import { spawn, spawnSync } from 'node:child_process'
import { closeSync, mkdirSync, openSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { cpus } from 'node:os'
import { dirname, join } from 'node:path'
import { buildTests } from '../build.mjs'
import { draws } from './draws.mjs'
import { fail, root, tool } from './run.mjs'

const home = join(root, 'build', 'load')
/** Milliseconds for a run, many times the longest usual duration. A longer run counts as hanging. */
const LIMIT = 900_000
/** Lines of output that are printed for a failed run. */
const SHOWN = 40

/**
 * Runs each test file of both languages ROUNDS times, many in parallel, in random order: `[ROUNDS] [--width N] [--seed S] [rust | node | NAME …]`.
 * This finds tests and code that depend on timing. Needs a build.
 */
export async function testLoad(words) {
  const option = (name, fallback) => {
    const at = words.indexOf(name)
    if (at < 0) return fallback
    const [, value] = words.splice(at, 2)
    if (!/^[1-9]\d{0,8}$/.test(value)) fail(`✗ ${name} takes a whole number of at least 1.`)
    return Number(value)
  }
  const width = option('--width', 3 * cpus().length)
  const seed = option('--seed', (Date.now() % 1_000_000) + 1)
  const rounds = /^\d+$/.test(words[0] ?? '') ? Number(words.shift()) : 3
  buildTests()
  const all = [...rustTests(), ...nodeTests()]
  const isNamed = ({ name, language }) => words.includes(name) || words.includes(language)
  const unknown = words.filter((word) => !all.some(({ name, language }) => name === word || language === word))
  if (unknown.length > 0)
    fail(`✗ There are no tests ${unknown.join(', ')}. The tests are ${all.map(({ name }) => name).join(', ')}.`)
  const chosen = words.length > 0 ? all.filter(isNamed) : all

  rmSync(home, { recursive: true, force: true })
  mkdirSync(home, { recursive: true })
  const jobs = shuffled(
    Array.from({ length: rounds }, (_, round) => chosen.map((test) => ({ ...test, round: round + 1 }))).flat(),
    seed,
  )
  console.log(`\n${chosen.length} test files, ${rounds} times each, ${width} at a time, seed ${seed}`)
  const started = performance.now()
  let failed = 0
  const worker = async () => {
    for (let job = jobs.shift(); job !== undefined; job = jobs.shift()) if (!(await passes(job))) failed += 1
  }
  await Promise.all(Array.from({ length: width }, worker))
  const time = Math.round((performance.now() - started) / 1000)
  if (failed > 0)
    fail(`✗ ${failed} of ${chosen.length * rounds} runs failed (${time} s). Their output is in build/load.`)
  console.log(`✓ ${chosen.length * rounds} runs passed in ${time} s.`)
}

/** Builds the crate's test binaries, and returns how cargo runs them. */
function rustTests() {
  const command = ['test', '-p', 'ringfence', '--features', 'ringfence/tokio,ringfence/tracing', '--no-run']
  const stdio = ['ignore', 'pipe', 'inherit']
  const { status, stdout } = spawnSync('cargo', [...command, '--message-format', 'json'], {
    cwd: root,
    stdio,
    maxBuffer: 2 ** 28,
  })
  if (status !== 0) fail(`✗ the Rust tests cannot be built: exit code ${status}`, status ?? 1)
  const messages = stdout
    .toString()
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  return messages
    .filter(({ reason, profile, executable }) => reason === 'compiler-artifact' && profile.test && executable !== null)
    .map(({ target, executable, manifest_path: manifest }) => ({
      language: 'rust',
      name: target.kind.includes('lib') ? 'unit-tests' : target.name,
      command: executable,
      words: [],
      cwd: dirname(manifest),
      env: { CARGO_MANIFEST_DIR: dirname(manifest) },
    }))
}

function nodeTests() {
  const files = readdirSync(join(root, 'build', 'test')).filter((name) => name.endsWith('.test.js'))
  return files.map((file) => ({
    language: 'node',
    name: file.replace('.test.js', '.test'),
    command: tool('ava'),
    words: [join('build', 'test', file)],
    cwd: root,
    env: {},
  }))
}

/** Shuffles the jobs in place, by the seed. */
function shuffled(jobs, seed) {
  const { below } = draws(seed)
  for (let left = jobs.length; left > 1; left -= 1) {
    const other = below(left)
    ;[jobs[left - 1], jobs[other]] = [jobs[other], jobs[left - 1]]
  }
  return jobs
}

/** Runs one test file. Keeps its output if it fails. */
async function passes({ name, round, command, words, cwd, env }) {
  const log = join(home, `${name}-${round}.log`)
  const output = openSync(log, 'w')
  const started = performance.now()
  // Its own process group, so that a hanging test is killed with the processes that it has started.
  const child = spawn(command, words, {
    cwd,
    env: { ...process.env, ...env },
    stdio: ['ignore', output, output],
    detached: true,
  })
  closeSync(output)
  let hangs = false
  const timer = setTimeout(() => {
    hangs = true
    process.kill(-child.pid, 'SIGKILL')
  }, LIMIT)
  const [code, signal] = await new Promise((resolve) => {
    child.once('error', (error) => resolve([error.message, null]))
    child.once('exit', (...how) => resolve(how))
  })
  clearTimeout(timer)
  if (code === 0) {
    rmSync(log)
    return true
  }
  const time = ((performance.now() - started) / 1000).toFixed(1)
  const how = hangs ? 'timed out' : signal === null ? `exit code ${code}` : `terminated by ${signal}`
  console.log(`\n✗ ${name}, round ${round}: ${how} after ${time} s`)
  const lines = readFileSync(log, 'utf8').trimEnd().split('\n')
  // Omits the tests that passed.
  console.log(
    lines
      .filter((line) => !/^test .* ok$|^\s*✔/.test(line))
      .slice(0, SHOWN)
      .join('\n'),
  )
  return false
}
