// Tests the packages as users get them: published to a local registry, installed in an empty directory by an unprivileged user
// without a compiler in the PATH, and used by each runtime, architecture and C library that this machine can run. The last
// results are in expected.json, and must not get worse.
//
//     node __test__/install/main.mjs [--update]     to remember what this run has given, instead of comparing

import { spawn, spawnSync } from 'node:child_process'
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { build } from '../../scripts/build.mjs'
import { fail, root, run } from '../../scripts/lib/run.mjs'
import { startRegistry } from './registry.mjs'
import { compare, remember, report } from './results.mjs'
import { platforms } from './runtimes.mjs'

/** The limit for one process. An emulator is slower. */
const LIMIT = 45_000
const EMULATED_LIMIT = 120_000
/** The time for the partners of a failed process to print their errors. */
const GRACE = 3000
/** A user who owns nothing here. 65534 stands for every unmapped user, and is refused. */
const NOBODY = 61_534
const asRoot = process.getuid() === 0
/** The programs to run where the package was installed, and what they need. */
const PROGRAMS = [
  'who.cjs',
  'pair.mjs',
  'pair.cjs',
  'speak.cjs',
  'service.mjs',
  'membership.mjs',
  'tokens.mjs',
  'killed.mjs',
  'broadcast.mjs',
  'faces.mjs',
  'ready.mjs',
  'types.mts',
]

const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
const update = process.argv.includes('--update')

// Publishes the current sources.
build('--release')
const untried = new Map(platforms.map((platform) => [platform, platform.cannot()]))
for (const platform of platforms) if (untried.get(platform) === null) platform.build?.()

/** The limit for all tests, without the builds: if many tests hang, the table is more useful than a run that was killed. */
const END = performance.now() + 12 * 60_000

/** Process groups to kill when this process exits. */
const groups = new Set()
for (const [signal, number] of [
  ['SIGINT', 2],
  ['SIGTERM', 15],
]) {
  process.once(signal, () => process.exit(128 + number))
}
const work = mkdtempSync(join(tmpdir(), 'ringfence-install-'))
process.once('exit', () => {
  for (const group of groups) endGroup(group)
  rmSync(work, { recursive: true, force: true })
})
chmodSync(work, 0o755)
const registry = await startRegistry(join(work, 'registry'))
process.once('exit', () => registry.stop())

publish()
const tools = join(work, 'tools')
const npm = realPath(join(dirname(process.execPath), 'npm'))
// Only npm: installing the package must not need more.
mkdirSync(tools)
for (const name of ['sh', 'env']) symlinkSync(realPath(`/bin/${name}`), join(tools, name))
symlinkSync(process.execPath, join(tools, 'node'))

const rows = []
for (const platform of platforms) {
  const why = untried.get(platform)
  if (why === null) await tryPlatform(platform)
  else for (const { name } of platform.runtimes) rows.push({ ...row(platform, name, name), untried: why })
}

if (rows.every(({ results }) => !results)) fail('✗ Nothing could be tried on this machine.')
report(rows)
if (update) {
  remember(rows)
} else {
  const { broken, mended } = compare(rows)
  for (const what of mended) console.log(`\npasses now, and --update remembers it: ${what}`)
  if (broken.length > 0) fail(`✗ ${broken.join('\n✗ ')}`)
}
process.exit()

function row(platform, name, title) {
  const emulator = platform.emulated ? ' in qemu' : ''
  return { key: `${name}${emulator}, ${platform.name}`, title: title + emulator, platform: platform.name }
}

/** The packages, each in a directory as in a release, and published from there. */
function publish() {
  const optional = {}
  for (const target of readdirSync(join(root, 'npm'))) {
    const file = `ringfence.${target}.node`
    const { name } = JSON.parse(readFileSync(join(root, 'npm', target, 'package.json'), 'utf8'))
    optional[name] = manifest.version
    // A binding that was not built here is not published, and npm skips optional packages that it cannot find.
    if (!existsSync(join(root, 'binding', file))) continue
    const place = join(work, 'packages', target)
    cpSync(join(root, 'npm', target), place, { recursive: true })
    cpSync(join(root, 'binding', file), join(place, file))
    send(place)
  }
  const place = join(work, 'packages', 'ringfence')
  mkdirSync(place, { recursive: true })
  for (const file of [...manifest.files, 'README.md']) {
    if (existsSync(join(root, file))) cpSync(join(root, file), join(place, file), { recursive: true })
  }
  const published = { ...manifest, devDependencies: undefined, scripts: undefined, optionalDependencies: optional }
  writeFileSync(join(place, 'package.json'), JSON.stringify(published, null, 2))
  send(place)
}

function send(place) {
  const settings = join(work, 'npmrc')
  const token = `//${new URL(registry.address).host}/:_authToken=nobody`
  writeFileSync(settings, `registry=${registry.address}\n${token}\n`)
  const options = ['--userconfig', settings, '--loglevel=error']
  run('publish', 'npm', ['publish', place, ...options], { quiet: true, limit: LIMIT })
}

async function tryPlatform(platform) {
  const wanted = `ringfence-linux-${platform.name.replace(' ', '-')}`
  const limit = platform.emulated ? EMULATED_LIMIT : LIMIT
  const place = join(work, wanted, 'app')
  mkdirSync(place, { recursive: true })
  for (const file of PROGRAMS) cpSync(join(root, '__test__', 'install', file), join(place, file))
  writeFileSync(join(place, 'package.json'), '{ "name": "app", "private": true }\n')
  writeFileSync(join(place, 'empty.mjs'), '')
  if (asRoot) run('give it away', 'chown', ['-R', `${NOBODY}:${NOBODY}`, dirname(place)])
  const go = (command, stop, ends) => runAs(place, command, limit, stop, ends)

  const options = ['--no-audit', '--no-fund', ...(platform.install ?? [])]
  const { why: refused } = await go([process.execPath, npm, 'install', 'ringfence', ...options])
  const got = existsSync(join(place, 'node_modules'))
    ? readdirSync(join(place, 'node_modules')).filter((name) => name.startsWith('ringfence-'))
    : []
  const missing =
    refused ?? (got.join() === wanted ? null : `npm has installed ${got.join(', ') || 'no binding'}, not ${wanted}`)
  console.log(missing === null ? `✓ npm install ringfence: with ${wanted}` : `✗ npm install ringfence: ${missing}`)
  if (missing === null && rows.every(({ results }) => !results)) checkTypes(place)

  for (const { name, find } of platform.runtimes) {
    const command = find()
    const { why, said } = await go([...command, 'who.cjs'])
    const [version, where] = said.trim().split('\n')
    const { title, ...rest } = row(platform, name, `${name.split(' ')[0]} ${why === null ? version : '?'}`)
    const strange = why ?? (where === platform.name ? null : `it says that it runs on ${where}`)
    // If runtimes may be mixed, one process is run by the first runtime of the platform, which is a Node.
    const commands = [command, platform.runtimes[0].find()]
    const results = await tryRuntime(title, commands, place, go, missing ?? strange)
    rows.push({ ...rest, title, results })
    if (!platform.emulated && Object.values(results).every((result) => result === null)) {
      const [first, second] = [await least(go, [...command, 'ready.mjs']), await least(go, [...command, 'empty.mjs'])]
      console.log(`  ${title}: from start to end with import ${first} ms, of an empty script ${second} ms`)
    }
  }
}

/** Each way to use the package: null, or why it failed. `node` is a Node that runs one of the processes if they may be mixed. */
async function tryRuntime(title, [command, node], place, go, lacking) {
  let number = 0
  const address = () => `@ringfence-install-${process.pid}-${title.replaceAll(/\W/g, '')}-${(number += 1)}`
  const cli = join(place, 'node_modules', 'ringfence', 'dist', 'esm', 'cli.js')
  const [from, to] = [join(place, 'types.mts'), join(place, 'copy')]
  rmSync(to, { force: true })
  const pair = (...words) => [
    [...words.slice(0, -1), 'send', words.at(-1)],
    [...words.slice(0, -1), 'receive', words.at(-1)],
  ]
  const both = (...words) => [words, words]
  const ways = {
    ESM: (at) => pair('pair.mjs', at),
    CommonJS: (at) => pair('pair.cjs', at),
    service: (at) => [
      ['service.mjs', 'service', at, '3'],
      ...['one', 'two', 'three'].map((name) => ['service.mjs', name, at]),
    ],
    membership: (at) => Array.from({ length: 3 }, () => ['membership.mjs', at, '3']),
    tokens: (at) => [
      ['tokens.mjs', '1', at],
      ['tokens.mjs', '18446744073709551615', at],
    ],
    killed: (at) => [
      ['killed.mjs', 'survivor', at],
      { by: command, words: ['killed.mjs', 'killed', at], ends: 'SIGKILL' },
    ],
    broadcast: (at) => [
      ['broadcast.mjs', 'publisher', at, '2'],
      ['broadcast.mjs', 'subscriber', at],
      { by: node, words: ['broadcast.mjs', 'subscriber', at] },
    ],
    values: (at) => both('faces.mjs', 'values', at),
    port: (at) => both('faces.mjs', 'port', at),
    web: (at) => both('faces.mjs', 'web', at),
    command: (at) => [
      [cli, 'send', at, from],
      [cli, 'receive', at, to],
    ],
  }
  const results = {}
  for (const [name, sides] of Object.entries(ways)) {
    let why =
      lacking ??
      (await together(
        go,
        sides(address()).map((side) => (Array.isArray(side) ? { by: command, words: side } : side)),
      ))
    if (why === null && name === 'command' && !readFileSync(from).equals(readFileSync(to))) {
      why = 'what was received is not what was sent'
    }
    results[name] = why
    console.log(`${why === null ? '✓' : '✗'} ${title}: ${name}${why === null ? '' : `: ${why}`}`)
  }
  return results
}

/** Runs all processes concurrently. Each must exit with 0 or `ends`. Returns null, or the first failure. */
async function together(go, sides) {
  const stop = new AbortController()
  const failures = []
  const one = async ({ by, words, ends = 0 }) => {
    const { why } = await go([...by, ...words], stop.signal, ends)
    if (why === null) return
    failures.push(why)
    // The others may be waiting for it.
    setTimeout(() => stop.abort(), GRACE).unref()
  }
  await Promise.all(sides.map(one))
  return failures[0] ?? null
}

/** The duration in ms: the shortest of several. */
async function least(go, command) {
  let shortest = Infinity
  for (let count = 0; count < 7; count += 1) {
    const started = performance.now()
    const { why } = await go(command)
    if (why !== null) fail(`✗ ${command.join(' ')}: ${why}`)
    shortest = Math.min(shortest, performance.now() - started)
  }
  return Math.round(shortest)
}

function realPath(path) {
  return spawnSync('readlink', ['-f', path], { encoding: 'utf8' }).stdout.trim()
}

/** Runs as an unprivileged user. Returns the output, and null or the failure. `ends` is the expected code or signal. */
async function runAs(cwd, [command, ...args], limit, stop, ends = 0) {
  const started = performance.now()
  const time = Math.min(limit, END - started)
  if (time <= 0) return { said: '', why: 'not tried, as no time was left' }
  const { RINGFENCE_STEP } = process.env
  const home = dirname(cwd)
  const env = {
    PATH: tools,
    HOME: home,
    NO_COLOR: '1',
    npm_config_registry: registry.address,
    npm_config_cache: join(home, 'cache'),
    // .ci/run uses it to find processes that a step has left behind.
    ...(RINGFENCE_STEP === undefined ? {} : { RINGFENCE_STEP }),
  }
  const user = asRoot ? { uid: NOBODY, gid: NOBODY } : {}
  // A separate process group, so that it is killed with everything that it has started.
  const child = spawn(command, args, { cwd, env, ...user, detached: true, stdio: ['ignore', 'pipe', 'pipe'] })
  let [said, heard, ended] = ['', '', null]
  child.stdout.on('data', (text) => (said += text))
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => (heard += text))
  const end = (reason) => {
    ended ??= reason
    endGroup(child.pid)
  }
  const timer = setTimeout(() => {
    // Printed before the process is killed, since a hang may be rare and hard to repeat.
    console.log(
      `  ${[command, ...args].join(' ')} is not over, and said: ${heard.trim() || 'nothing'}\n${threadsOf(child.pid)}`,
    )
    end(`not over after ${Math.round(time / 1000)} s`)
  }, time)
  stop?.addEventListener('abort', () => end('ended, as its partner had failed'))
  groups.add(child.pid)
  const outcome = await new Promise((resolve) => {
    child.once('error', (error) => resolve(error.message))
    child.once('exit', () => endGroup(child.pid))
    child.once('close', (code, signal) => {
      const right = (code ?? signal) === ends && (signal === null || ended === null)
      resolve(right ? null : (ended ?? `exit code ${code ?? signal}`))
    })
  })
  clearTimeout(timer)
  groups.delete(child.pid)
  if (outcome === null) return { said, why: null }
  const lines = heard.trim().split('\n').slice(-8)
  // First the part that fits into the table.
  const short = /\b\w*Error: .*/.exec(heard)?.[0] ?? lines.at(-1)
  return { said, why: short === '' ? outcome : [`${outcome}: ${short}`, ...lines].join('\n  ') }
}

/** A line for each thread of a process: its name, and the system call that it sleeps in, if this user may read it. */
function threadsOf(pid) {
  const tasks = `/proc/${pid}/task`
  // The process or one of its threads may exit in the meantime.
  const tried = (look) => {
    try {
      return look()
    } catch (error) {
      return [error.code]
    }
  }
  const tell = (task, file) => tried(() => readFileSync(join(tasks, task, file), 'utf8').trim())
  return tried(() => readdirSync(tasks))
    .map((task) => `    ${task} ${['comm', 'wchan', 'syscall'].map((file) => tell(task, file)).join(' ')}`)
    .join('\n')
}

function endGroup(leader) {
  try {
    if (leader !== undefined) process.kill(-leader, 'SIGKILL')
  } catch {
    // The process group is empty.
  }
}

function checkTypes(place) {
  for (const [module, resolution] of [
    ['node16', 'node16'],
    ['esnext', 'bundler'],
  ]) {
    const options = [
      '--noEmit',
      '--strict',
      '--target',
      'es2022',
      '--lib',
      'es2022,esnext.disposable',
      '--types',
      'node',
    ]
    const roots = ['--typeRoots', join(root, 'node_modules', '@types')]
    run(
      `types, ${resolution}`,
      process.execPath,
      [
        join(root, 'node_modules', 'typescript', 'bin', 'tsc'),
        ...options,
        ...roots,
        '--module',
        module,
        '--moduleResolution',
        resolution,
        'types.mts',
      ],
      { cwd: place },
    )
  }
}
