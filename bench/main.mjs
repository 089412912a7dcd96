// npm run bench: builds what is needed, runs both harnesses in alternating rounds, writes docs/bench. With --scale it runs
// bench/scale in their place.

import { spawn, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import { json, merge, page, plots, usualPlacement } from './report.mjs'
import * as scale from './scale.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const rust = path.join(root, 'bench/rust')

const HELP = `npm run bench -- [options]

  --rust, --node       that half alone
  --scale              neither: ringfence alone, as channels, messages and rings grow; takes the options marked *
  --peers a,b          these contenders alone, ringfence's own names included; a half that has none of them is left out
  --measures a,b       of one, batch, copy, rtt-polled, rtt-spin, rtt-parked
  --sizes 64,1024      bytes of a message for the one-way measure; multiples of 8
  --seconds 0.5      * of one run, warm-up not counted
  --runs 5           * rounds: each runs every cell once
  --capacity BYTES     of a ring (4 MiB; at least four messages)
  --cpus 0,1           where the two sides are pinned
  --pause 0          * seconds between two steps of --scale, for others on the same machine
  --out docs/bench   * where the page, the plots and results.json go; --out '' writes none
  --json FILE        * the results there as well
  --no-build         * what is built already is good enough`

const text = { type: 'string' }
const { values } = parseArgs({
  options: {
    rust: { type: 'boolean' },
    node: { type: 'boolean' },
    scale: { type: 'boolean' },
    pause: { ...text, default: '0' },
    peers: text,
    measures: text,
    sizes: text,
    seconds: { ...text, default: '0.5' },
    runs: { ...text, default: '5' },
    capacity: text,
    cpus: text,
    out: { ...text, default: path.join(root, 'docs/bench') },
    json: text,
    build: { type: 'boolean', default: true },
    help: { type: 'boolean', short: 'h' },
  },
  allowNegative: true,
})

if (values.help) {
  console.log(HELP)
  process.exit(0)
}

const say = (message) => console.log(message)

function must(command, arguments_, options = {}) {
  const { status, error } = spawnSync(command, arguments_, { cwd: root, stdio: 'inherit', ...options })
  if (error || status !== 0) {
    console.error(`${command} ${arguments_.join(' ')}: ${error?.message ?? `ended with ${status}`}`)
    process.exit(1)
  }
}

const answer = (command, arguments_) =>
  spawnSync(command, arguments_, { cwd: root, encoding: 'utf8' }).stdout?.trim() ?? ''

/** The toolchain argument of one that is new enough for native-ipc, '' for the usual one, or null. */
function toolchainOf197() {
  const isNewEnough = (version) => {
    const [, major, minor] = version.match(/^rustc (\d+)\.(\d+)/) ?? []
    return Number(major) > 1 || Number(minor) >= 97
  }
  if (isNewEnough(answer('rustc', ['--version']))) return ''
  const installed = answer('rustup', ['toolchain', 'list'])
    .split('\n')
    .map((row) => row.split(' ')[0])
    .filter(Boolean)
  // A release before a nightly: a nightly changes under the measurement.
  for (const name of installed.sort((a, b) => a.includes('nightly') - b.includes('nightly'))) {
    if (isNewEnough(answer('rustup', ['run', name, 'rustc', '--version']))) return `+${name}`
  }
  return null
}

/** What every page says of where it comes from. */
const origin = () => ({
  date: new Date().toISOString().slice(0, 10),
  commit: answer('git', ['describe', '--always', '--dirty']),
})

function write(files) {
  fs.mkdirSync(values.out, { recursive: true })
  for (const [name, content] of Object.entries(files)) fs.writeFileSync(path.join(values.out, name), content)
  say(`\nwritten to ${path.relative(process.cwd(), values.out) || '.'}`)
}

if (values.scale) {
  const program = path.join(rust, 'target/release/ringfence-scale')
  if (values.build) must('cargo', ['build', '--release', '-p', 'ringfence-scale'], { cwd: rust })
  const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'ringfence-scale-'))
  const file = path.join(scratch, 'scale.json')
  try {
    const chosen = ['runs', 'seconds', 'pause'].flatMap((name) => [`--${name}`, values[name]])
    must(program, [...chosen, '--json', file])
    const results = { ...origin(), ...JSON.parse(fs.readFileSync(file, 'utf8')) }
    const files = scale.plots(results)
    if (values.out !== '')
      write({ 'scale.json': scale.json(results), 'scale.md': scale.page(results, files), ...files })
    if (values.json) fs.writeFileSync(values.json, scale.json(results))
  } finally {
    fs.rmSync(scratch, { recursive: true, force: true })
  }
  process.exit(0)
}

const both = !values.rust && !values.node
const wanted = { rust: both || values.rust, node: both || values.node }
const peers = values.peers?.split(',')
const absent = {}
const programs = []

if (wanted.rust) {
  const program = path.join(rust, 'target/release/ringfence-bench')
  const second = path.join(rust, 'target/native-ipc/release/ringfence-bench')
  const cargo = (more, env = {}) =>
    must('cargo', [...more, 'build', '--release', '-p', 'ringfence-bench'].filter(Boolean), {
      cwd: rust,
      env: { ...process.env, ...env },
    })
  if (values.build) cargo([])
  programs.push(program)
  const toolchain = toolchainOf197()
  if (toolchain === null) {
    absent['native-ipc'] = 'needs Rust 1.97, which is not installed (rustup toolchain install 1.97.0)'
    say(`native-ipc is left out: it ${absent['native-ipc']}`)
  } else {
    if (values.build) {
      must(
        'cargo',
        [
          toolchain,
          'build',
          '--release',
          '-p',
          'ringfence-bench',
          '--no-default-features',
          '--features',
          'native-ipc',
        ].filter(Boolean),
        {
          cwd: rust,
          env: { ...process.env, CARGO_TARGET_DIR: path.join(rust, 'target/native-ipc') },
        },
      )
    }
    if (fs.existsSync(second)) programs.push(second)
  }
}
if (wanted.node && values.build) must('npm', ['run', '--silent', 'build'])

const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'ringfence-bench-'))
const measuresOf = {
  rust: ['one', 'batch', 'copy', 'rtt-polled', 'rtt-spin', 'rtt-parked'],
  node: ['one', 'rtt-polled', 'rtt-parked'],
}

function only(ids) {
  if (peers === undefined) return null
  return peers.filter((id) => ids.includes(id))
}

async function harness(name) {
  const [command, first] =
    name === 'rust'
      ? [programs[0], programs.slice(1).flatMap((program) => ['--also', program])]
      : [process.execPath, [path.join(root, 'bench/node/main.mjs')]]
  const listed = [programs[1], command]
    .filter((program) => name === 'rust' && program)
    .flatMap((program) => JSON.parse(answer(program, ['--list'])))
  const ids =
    name === 'rust' ? listed.map(({ id }) => id) : JSON.parse(answer(command, [...first, '--list'])).map(({ id }) => id)
  const chosen = only(ids)
  if (chosen?.length === 0) return null
  const file = path.join(scratch, `${name}.json`)
  const measures = values.measures?.split(',').filter((measure) => measuresOf[name].includes(measure))
  if (measures?.length === 0) return null
  const arguments_ = [...first, '--runs', '1', '--seconds', values.seconds, '--json', file]
  if (chosen) arguments_.push('--only', chosen.join(','))
  if (measures) arguments_.push('--measures', measures.join(','))
  for (const option of ['sizes', 'capacity', 'cpus']) if (values[option]) arguments_.push(`--${option}`, values[option])
  return {
    name,
    async round() {
      await new Promise((resolve, reject) => {
        const child = spawn(command, arguments_, { cwd: root, stdio: 'inherit' })
        child.on('error', reject)
        child.on('exit', (code) =>
          code === 0 ? resolve() : reject(new Error(`the ${name} harness ended with ${code}`)),
        )
      })
      return JSON.parse(fs.readFileSync(file, 'utf8'))
    },
  }
}

const { Probe } = await import('./node/placement.mjs')

async function placement() {
  const probe = new Probe((values.cpus ?? '0,1').split(',').map(Number))
  await probe.measure()
  const found = await probe.measure()
  await probe.close()
  return found
}

try {
  const harnesses = []
  for (const name of ['rust', 'node']) if (wanted[name]) harnesses.push(await harness(name))
  const running = harnesses.filter(Boolean)
  if (running.length === 0) throw new Error('nothing to run: no half has these peers and measures')
  const before = await placement()
  const merged = Object.fromEntries(running.map(({ name }) => [name, null]))
  const runs = Number(values.runs)
  // Rounds, and not one contender's runs in a row: what the machine does in one minute it does to all of them.
  for (let round = 1; round <= runs; round++) {
    for (const { name, round: run } of running) {
      say(`\n${name}, round ${round} of ${runs}`)
      merged[name] = merge(merged[name], await run())
    }
  }
  const after = await placement()
  const found = running.map(({ name }) => merged[name])
  const machine = found[0].machine
  const results = {
    ...origin(),
    node: wanted.node ? process.version : undefined,
    rustc: merged.rust?.machine.rustc,
    machine,
    before,
    after,
    placement: usualPlacement(found),
    runs,
    seconds: Number(values.seconds),
    absent,
    harnesses: found,
  }
  const files = plots(results)
  if (values.out !== '') write({ 'results.json': json(results), 'README.md': page(results, files), ...files })
  if (values.json) fs.writeFileSync(values.json, json(results))
  say(`\n${page(results, files)}`)
} finally {
  fs.rmSync(scratch, { recursive: true, force: true })
}
