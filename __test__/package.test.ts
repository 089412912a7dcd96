import { execFile } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'

import test from 'ava'
import * as esbuild from 'esbuild'
import * as ringfence from 'ringfence'

import { abstractAddress, temporaryDirectory } from './support/address.js'
import { pair, Partner } from './support/partner.js'

const require = createRequire(import.meta.url)
const run = promisify(execFile)
const home = path.dirname(require.resolve('ringfence/package.json'))

/** The native library that this process has loaded. */
function library(): string {
  return readFileSync('/proc/self/maps', 'utf8').match(/\/.*ringfence.*\.node$/m)![0]
}

test.serial('objects of another copy of the package are refused, and the error says why', async (t) => {
  const required = require('ringfence') as typeof ringfence
  const { channel } = await pair(t)
  const error = t.throws(() => required.merge([channel as never]), { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' })
  t.regex(error!.message, /not a Channel of another copy of ringfence/)
  t.throws(() => ringfence.merge([new (class Channel {})() as never]), { message: /not an object$/ })
  const buffer = required.SealedBuffer.from(Buffer.from('hello'))
  const refused = { code: 'ERR_RINGFENCE_INVALID_ARGUMENT', message: /not one of another copy of ringfence/ }
  const own = ringfence.SealedBuffer.from(Buffer.from('hello'))
  await t.throwsAsync(channel.send('x', { attachments: [own, buffer] }), refused)
  await t.throwsAsync(channel.with(ringfence.structured()).send({ own, buffer }), refused)
  t.is(buffer.byteLength, 5)
})

test.serial('import and require export the same names', (t) => {
  const required = require('ringfence') as typeof ringfence
  const functions = [
    'connect',
    'doctor',
    'fromParent',
    'harden',
    'join',
    'json',
    'listen',
    'member',
    'merge',
    'observe',
    'publish',
    'spawn',
    'structured',
    'subscribe',
    'toMetrics',
  ]
  const classes = [
    'Channel',
    'Listener',
    'Membership',
    'Merge',
    'Publisher',
    'ReceivedDescriptor',
    'RemoteError',
    'RingfenceError',
    'SealedBuffer',
    'Subscription',
  ]
  const names = [...classes, ...functions].sort()
  t.deepEqual(Object.keys(ringfence).sort(), names)
  t.deepEqual(Object.keys(required).sort(), names)
  // Errors and `inspect` show the name of a class.
  for (const face of [ringfence, required]) {
    for (const [name, value] of Object.entries(face)) if (typeof value === 'function') t.is(value.name, name)
  }
})

test.serial('import and require in one process share one binding', async (t) => {
  const { channel, partner, address } = await pair(t)
  const there = await partner.run(async (kit, second: string) => {
    const required = kit.require('ringfence') as typeof ringfence
    const { readFileSync: read } = kit.require('node:fs') as typeof import('node:fs')
    const libraries = new Set(read('/proc/self/maps', 'utf8').match(/\/.*ringfence.*\.node$/gm))
    kit.keep['second'] = required.join(second).then(async (other) => {
      await other.send('from require')
      return String(await other.receive())
    })
    return { libraries: libraries.size, joins: required.join === kit.join }
  }, `${address}-2`)
  t.is(there.libraries, 1)
  const second = await ringfence.join(`${address}-2`)
  t.is(String(await second.receive()), 'from require')
  await second.send('from import')
  t.is(await partner.run((kit) => kit.keep['second']), 'from import')
  await second.close()
  await channel.send('both')
  t.is(await partner.run(async (kit) => String(await kit.channel.receive())), 'both')
})

test.serial('two copies of the package in one process have separate channels, and are not a pair', async (t) => {
  const place = temporaryDirectory(t)
  for (const part of ['package.json', 'dist', 'binding/index.cjs']) {
    cpSync(path.join(home, part), path.join(place, part), { recursive: true })
  }
  cpSync(library(), path.join(place, 'binding', path.basename(library())))
  const { channel, partner, address } = await pair(t)
  const there = await partner.run(
    async (kit, copy: string, second: string) => {
      const other = kit.require(copy) as typeof ringfence
      const { readFileSync: read } = kit.require('node:fs') as typeof import('node:fs')
      const over = new AbortController()
      const alone = kit.join(`${second}-alone`, { signal: over.signal })
      await kit.until.until(
        () => read('/proc/net/unix', 'latin1').includes(`${second}-alone\n`),
        'one copy has bound the address',
      )
      const code = await other.join(`${second}-alone`).then(String, (error: ringfence.RingfenceError) => error.code)
      over.abort()
      await alone.catch(() => {})
      kit.keep['second'] = other.join(second).then(async (joined) => {
        // Both channels of this process are busy at the same time.
        for (let number = 0; number < 100; number += 1) {
          await joined.send(String(await joined.receive()))
          await kit.channel.send(String(await kit.channel.receive()))
        }
        await joined.end()
        return [joined instanceof other.Channel, joined instanceof kit.ringfence.Channel, await joined.closed]
      })
      return { libraries: new Set(read('/proc/self/maps', 'utf8').match(/\/.*ringfence.*\.node$/gm)).size, code }
    },
    place,
    `${address}-2`,
  )
  t.deepEqual(there, { libraries: 2, code: 'ERR_RINGFENCE_ADDRESS_OCCUPIED' })
  const second = await ringfence.join(`${address}-2`)
  for (let number = 0; number < 100; number += 1) {
    for (const one of [second, channel]) {
      await one.send(`message ${number}`)
      t.is(String(await one.receive()), `message ${number}`)
    }
  }
  await second.close()
  t.deepEqual(await partner.run((kit) => kit.keep['second']), [true, false, { reason: 'closed' }])
})

for (const format of ['esm', 'cjs'] as const) {
  test.serial(`a bundle runs, with the library in a package beside it: ${format}`, async (t) => {
    const place = temporaryDirectory(t)
    const name = path.basename(library(), '.node').replace('.', '-')
    const packed = path.join(place, 'node_modules', name)
    mkdirSync(packed, { recursive: true })
    cpSync(path.join(home, 'npm', name.replace('ringfence-', ''), 'package.json'), path.join(packed, 'package.json'))
    cpSync(library(), path.join(packed, path.basename(library())))
    const bundle = path.join(place, `program.${format === 'esm' ? 'mjs' : 'cjs'}`)
    // As docs/guide/test.md says.
    const banner = `import { createRequire } from 'node:module'; const require = createRequire(import.meta.url)`
    const { warnings } = await esbuild.build({
      stdin: {
        contents: `import { join } from 'ringfence'
          join(process.argv[2]).then(async (channel) => {
            for await (const message of channel) await channel.send(message)
            await channel.close({ linger: 10_000 })
          })`,
        resolveDir: home,
      },
      bundle: true,
      platform: 'node',
      format,
      external: ['*.node', 'ringfence-linux-*'],
      banner: format === 'esm' ? { js: banner } : {},
      outfile: bundle,
      logLevel: 'silent',
    })
    t.deepEqual(warnings, [])
    const address = abstractAddress()
    const ran = run(process.execPath, [bundle, address])
    const channel = await ringfence.join(address)
    await channel.send('through a bundle')
    t.is(String(await channel.receive()), 'through a bundle')
    await channel.end()
    t.deepEqual(await ran, { stdout: '', stderr: '' })
  })
}

test.serial('a program with only CommonJS runs', async (t) => {
  const address = abstractAddress()
  const program = `
    const { join, RingfenceError } = require('ringfence')
    join(${JSON.stringify(address)}).then(async (channel) => {
      for await (const message of channel) console.log(String(message))
    })
    join('').catch((error) => console.log(error instanceof RingfenceError, error.code))
  `
  const ran = run(process.execPath, ['--input-type=commonjs', '-e', program])
  const channel = await ringfence.join(address)
  await channel.send('hello')
  await channel.close({ linger: 1000 })
  t.deepEqual((await ran).stdout.trim().split('\n').sort(), ['hello', 'true ERR_RINGFENCE_ADDRESS_INVALID'])
})

const withoutBinding = `
  const { join, doctor, harden } = LOADED
  const seen = async (call) => { try { await call() } catch (error) { return error } }
  const errors = await Promise.all([() => join('@x'), doctor, harden].map(seen))
  console.log(JSON.stringify(errors.map((e) => [e.name, e.code, e.message, e.cause instanceof Error])))
`

for (const [system, sentence] of [
  ['', /linux-(x64|arm64)-(gnu|musl) is not there.*package ringfence-linux-/],
  ["Object.defineProperty(process, 'platform', { value: 'darwin' })", /works on Linux, and this is darwin on /],
  ["Object.defineProperty(process, 'arch', { value: 'riscv64' })", /no binary of ringfence for linux-riscv64-/],
] as const) {
  for (const build of ['esm', 'cjs']) {
    test(`without a binding the package loads, and each call says so: ${build} ${system}`, async (t) => {
      const place = mkdtempSync(path.join(tmpdir(), 'ringfence-'))
      t.teardown(() => rmSync(place, { recursive: true }))
      cpSync(path.join(home, 'dist'), path.join(place, 'dist'), { recursive: true })
      for (const file of ['package.json', 'binding/index.cjs']) cpSync(path.join(home, file), path.join(place, file))
      const file = path.join(place, 'dist', build, 'index.js')
      const loaded = build === 'esm' ? `await import(${JSON.stringify(file)})` : `require(${JSON.stringify(file)})`
      const program = `${system}\nasync function main() { ${withoutBinding.replace('LOADED', loaded)} }\nmain()`
      const { stdout } = await run(process.execPath, ['--input-type=commonjs', '-e', program])
      for (const [name, code, message, hasCause] of JSON.parse(stdout) as [string, string, string, boolean][]) {
        t.is(name, 'RingfenceError')
        t.is(code, 'ERR_RINGFENCE_UNSUPPORTED')
        t.regex(message, sentence)
        t.true(hasCause)
      }
    })
  }
}

test.serial('only the calls create channels', (t) => {
  const Made = ringfence.Channel as unknown as new (...given: unknown[]) => unknown
  t.throws(() => new Made(), { instanceOf: ringfence.RingfenceError, code: 'ERR_RINGFENCE_INVALID_ARGUMENT' })
  t.throws(() => new Made({}, {}, 0), { instanceOf: ringfence.RingfenceError })
})

test.serial('join returns a Channel, and its role and sizes are read-only', async (t) => {
  const { channel } = await pair(t)
  t.true(channel instanceof ringfence.Channel)
  t.is(typeof channel.closed.then, 'function')
  t.is(channel.closed, channel.closed)
})

test.serial('an error is an Error with a name, a code, a sentence and details', async (t) => {
  const error = await t.throwsAsync<ringfence.RingfenceError>(ringfence.join('/nowhere/at/all'))
  t.true(error instanceof ringfence.RingfenceError)
  t.true(error instanceof Error)
  t.is(error!.name, 'RingfenceError')
  t.is(error!.code, 'ERR_RINGFENCE_ADDRESS_INVALID')
  t.regex(error!.message, /nowhere/)
  t.true(error!.cause instanceof Error, 'what the kernel said')
  t.regex(String(error!.stack), /RingfenceError/)
  t.deepEqual(Object.keys(error!), ['code'])

  const made = new ringfence.RingfenceError('PEER_REFUSED', 'no', { check: 'uid', wanted: '0', found: '1' })
  t.deepEqual({ ...made }, { code: 'ERR_RINGFENCE_PEER_REFUSED', check: 'uid', wanted: '0', found: '1' })
})

test.serial('an error of either build is an instance of both classes', async (t) => {
  const { RingfenceError: Required, join } = require('ringfence') as typeof ringfence
  t.not(Required, ringfence.RingfenceError)
  for (const error of [await t.throwsAsync(join('')), await t.throwsAsync(ringfence.join(''))]) {
    t.true(error instanceof Required)
    t.true(error instanceof ringfence.RingfenceError)
  }
  for (const other of [new Error('another'), { code: 'ERR_RINGFENCE_CLOSED' }, null, undefined, 'text']) {
    t.false((other as unknown) instanceof ringfence.RingfenceError)
  }
  class Own extends ringfence.RingfenceError {}
  t.true(new Own('CLOSED', 'own') instanceof Own)
  t.true(new Own('CLOSED', 'own') instanceof Required)
  t.false(new ringfence.RingfenceError('CLOSED', 'not own') instanceof Own)
})

test.serial('the stack of an error names the caller', async (t) => {
  const error = await t.throwsAsync(ringfence.join(5 as never))
  t.regex(String(error!.stack), /package\.test/)
})

test.serial('a failing process leaves no unhandled rejection', async (t) => {
  const partner = await Partner.start(t)
  const { channel } = await pair(t, { partner })
  await partner.run((kit) => {
    process.on('unhandledRejection', (reason) => {
      kit.keep['unhandled'] = String(reason)
    })
    // All pending calls inside, without a handler.
    kit.channel.duplex().on('error', () => {})
    kit.channel.waitReadable().catch(() => {})
    kit.keep['ended'] = kit.channel.end()
  })
  await channel.close()
  await partner.run(async (kit) => {
    await kit.channel.closed
    await new Promise((resolve) => setTimeout(resolve, 10))
  })
  t.is(await partner.run((kit) => kit.keep['unhandled']), undefined)
})

test.serial('doctor reports what this system offers', (t) => {
  const { kernel, findings } = ringfence.doctor()
  t.regex(kernel, /^Linux \d+\.\d+/)
  t.true(findings.length > 0)
  for (const { name, title, status, found, meaning } of findings) {
    t.true(name !== '' && title !== '' && found !== '' && meaning !== '')
    t.true(['good', 'limited', 'missing'].includes(status))
  }
})
