// The packages as a user gets them: published to a registry on this machine, installed in an empty folder by a user
// without privileges and without a compiler in the PATH, and used by each Node and by Bun.

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
import { fail, fetchNode, install, root, run, script } from './lib.mjs'
import { startRegistry } from './install/registry.mjs'

const LIMIT = 120_000
/** Of the table's first column. */
const WIDE = 26
/** Somebody who owns nothing here. Not 65534, which stands for every user that has no number here, and is refused. */
const NOBODY = 61_534
const asRoot = process.getuid() === 0

const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))

install()
if (!existsSync(join(root, 'binding', 'index.cjs'))) script('build.mjs', ['--release'])

const work = mkdtempSync(join(tmpdir(), 'ringfence-install-'))
chmodSync(work, 0o755)
const registry = await startRegistry(join(work, 'registry'))
const table = []
try {
  publish()
  await tryAll()
} finally {
  registry.stop()
  rmSync(work, { recursive: true, force: true })
}

console.log(
  `\n${'runtime'.padEnd(WIDE)}${Object.keys(table[0].results)
    .map((name) => name.padEnd(12))
    .join('')}`,
)
for (const { runtime, results } of table) {
  console.log(
    runtime.padEnd(WIDE) +
      Object.values(results)
        .map((result) => result.word.padEnd(12))
        .join(''),
  )
}
// What is not tried above, and why: so that nobody takes it for a pass.
console.log(`
not tried here:
  the package on musl     no Node that is built with musl starts on this system's musl; the crate's tests run there
                          (npm run test:musl), and the binding is tried on Alpine by the workflow
  the package on arm64    npm run test:arm64 has a pair of Node 22 under qemu; the workflow has real machines
  Deno 2.9.6              it may hang while joining, or end by SIGSEGV after the channel has closed: not supported`)
const broken = table.flatMap(({ runtime, results }) =>
  Object.entries(results)
    .filter(([, { word }]) => word === 'failed')
    .map(([name, { why }]) => `${runtime}, ${name}: ${why}`),
)
if (broken.length > 0) fail(`✗ ${broken.join('\n✗ ')}`)

/** The packages, each in a folder as the release puts it together, and published from there. */
function publish() {
  const optional = {}
  for (const target of readdirSync(join(root, 'npm'))) {
    const file = `ringfence.${target}.node`
    const { name } = JSON.parse(readFileSync(join(root, 'npm', target, 'package.json'), 'utf8'))
    optional[name] = manifest.version
    // What was not built here is not published, and npm goes on without an optional package that it cannot find.
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
  run('publish', 'npm', ['publish', place, '--userconfig', settings, '--loglevel=error'], { quiet: true })
}

async function tryAll() {
  // npm and nothing else: whoever installs it must not need more.
  const tools = join(work, 'tools')
  mkdirSync(tools)
  for (const name of ['sh', 'env'])
    symlinkSync(spawnSync('which', [name], { encoding: 'utf8' }).stdout.trim(), join(tools, name))
  const npm = join(dirname(process.execPath), 'npm')

  const place = join(work, 'home', 'app')
  mkdirSync(place, { recursive: true })
  for (const file of ['pair.mjs', 'pair.cjs', 'service.mjs', 'handover.mjs', 'ready.mjs', 'speak.cjs', 'types.mts']) {
    cpSync(join(root, 'scripts', 'install', file), join(place, file))
  }
  writeFileSync(join(place, 'package.json'), '{ "name": "app", "private": true }\n')
  writeFileSync(join(place, 'empty.mjs'), '')
  if (asRoot) run('give it away', 'chown', ['-R', `${NOBODY}:${NOBODY}`, dirname(place)])

  const environment = {
    PATH: `${dirname(process.execPath)}:${tools}`,
    HOME: dirname(place),
    npm_config_registry: registry.address,
    npm_config_cache: join(dirname(place), 'cache'),
  }
  const go = (command, ...args) => runAs(place, environment, command, args)
  const installed = await go(process.execPath, realNpm(npm), 'install', 'ringfence', '--no-audit', '--no-fund')
  if (installed !== null) fail(`✗ npm install ringfence: ${installed}`)
  const library = readdirSync(join(place, 'node_modules')).find((name) => name.startsWith('ringfence-'))
  if (library === undefined) fail('✗ npm installed no binding for this machine')
  console.log(`✓ npm install ringfence: with ${library}`)
  checkTypes(place)

  const runtimes = [
    { runtime: on(`Node ${process.versions.node}`), command: [process.execPath] },
    ...[22, 24, 26].map((major) => ({
      runtime: on(`Node ${major}`),
      command: [fetchNode(`node-linux-${process.arch}`, major)],
    })),
    other('bun', '@oven/bun-linux-x64', 'bin/bun', []),
  ].filter(Boolean)
  for (const { runtime, command } of runtimes) {
    const results = {}
    let number = 0
    const together = async (name, ...sides) => {
      const outcomes = await Promise.all(sides.map((side) => go(...side)))
      const why = outcomes.find((outcome) => outcome !== null) ?? null
      results[name] = { word: why === null ? 'pass' : 'failed', why }
      console.log(`${why === null ? '✓' : '✗'} ${runtime}: ${name}${why === null ? '' : `: ${why}`}`)
    }
    const address = () => `@ringfence-install-${process.pid}-${runtime.replaceAll(/\W/g, '')}-${(number += 1)}`
    const cli = join(place, 'node_modules', 'ringfence', 'dist', 'esm', 'cli.js')
    let at = address()
    await together('ESM', [...command, 'pair.mjs', 'send', at], [...command, 'pair.mjs', 'receive', at])
    at = address()
    await together('CommonJS', [...command, 'pair.cjs', 'send', at], [...command, 'pair.cjs', 'receive', at])
    at = address()
    const agents = ['one', 'two', 'three'].map((name) => command.concat('service.mjs', name, at))
    await together('service', [...command, 'service.mjs', 'service', at, '3'], ...agents)
    at = address()
    const follow = command.concat('handover.mjs', at, '3')
    await together('handover', follow, follow, follow)
    at = address()
    const [from, to] = [join(place, 'types.mts'), join(place, 'copy')]
    rmSync(to, { force: true })
    await together('command', [...command, cli, 'send', at, from], [...command, cli, 'receive', at, to])
    if (results.command.word === 'pass' && !readFileSync(from).equals(readFileSync(to))) {
      results.command = { word: 'failed', why: 'what was received is not what was sent' }
    }
    table.push({ runtime, results })
    console.log(`  ${runtime}: ${time(place, environment, command)}`)
  }
}

/** How long it takes until the package is there, beside a script that is empty: the least of several, in ms. */
function time(cwd, env, [command, ...words]) {
  const least = (file) => {
    const tries = Array.from({ length: 7 }, () => {
      const started = performance.now()
      const { status } = spawnSync(command, [...words, file], { cwd, env, stdio: 'ignore', timeout: LIMIT })
      if (status !== 0) fail(`✗ ${command} ${file}: exit code ${status}`)
      return performance.now() - started
    })
    return Math.round(Math.min(...tries))
  }
  return `from start to end with import ${least('ready.mjs')} ms, of an empty script ${least('empty.mjs')} ms`
}

/** With the architecture and the C library for which npm has chosen the binding. */
function on(runtime) {
  const glibc = process.report.getReport().header.glibcVersionRuntime
  return `${runtime}, ${process.arch} ${glibc === undefined ? 'musl' : 'gnu'}`
}

/** npm as a script, so that it runs with the Node that is named, whatever the PATH holds. */
function realNpm(npm) {
  return spawnSync('readlink', ['-f', npm], { encoding: 'utf8' }).stdout.trim()
}

/** Another runtime as npm carries it, unpacked below build/nodes once. */
function other(name, from, executable, options) {
  if (process.arch !== 'x64') return null
  const home = join(root, 'build', 'nodes', name)
  const file = join(home, executable)
  if (!existsSync(file)) {
    mkdirSync(home, { recursive: true })
    run(`fetch ${name}`, 'npm', ['pack', from, '--silent', '--pack-destination', home], { quiet: true })
    run(`unpack ${name}`, 'sh', ['-c', 'tar -xzf *.tgz --strip-components=1 && rm *.tgz'], { cwd: home })
    chmodSync(file, 0o755)
  }
  const version = spawnSync(file, ['--version'], { encoding: 'utf8' }).stdout.trim().split('\n')[0]
  return { runtime: on(`${name} ${version.replace(/^\D*/, '').split(' ')[0]}`), command: [file, ...options] }
}

/** Runs as somebody without privileges. Answers with null, or what went wrong. */
async function runAs(cwd, env, command, args) {
  const child = spawn(command, args, {
    cwd,
    env,
    ...(asRoot ? { uid: NOBODY, gid: NOBODY } : {}),
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: LIMIT,
    killSignal: 'SIGKILL',
  })
  let said = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => (said += text))
  const outcome = await new Promise((resolve) => {
    child.once('error', (error) => resolve(error.message))
    child.once('close', (code, signal) => resolve(code === 0 ? null : `exit code ${code ?? signal}`))
  })
  if (outcome === null) return null
  return `${outcome}: ${said.trim().split('\n').slice(-8).join('\n  ')}`
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
