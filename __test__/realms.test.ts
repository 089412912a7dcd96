// The package in another realm, as Jest and vitest run a program: `instanceof` then finds no class of the engine's or the program's main realm.

import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import vm from 'node:vm'

import test from 'ava'
import type * as ringfence from 'ringfence'

import { abstractAddress } from './support/address.js'
import { Partner } from './support/partner.js'

const require = createRequire(import.meta.url)
const file = require.resolve('ringfence')

/** The globals that an environment of Jest adds. All other ones are those of the realm. */
const globals = {
  process,
  Buffer,
  setTimeout,
  clearTimeout,
  setInterval,
  clearInterval,
  setImmediate,
  queueMicrotask,
  Event,
  EventTarget,
  MessageEvent,
}
const realm = vm.createContext({ ...globals })

function loadInRealm(): typeof ringfence {
  const module = { exports: {} as typeof ringfence }
  const load = vm.compileFunction(readFileSync(file, 'utf8'), ['module', 'exports', 'require', '__filename'], {
    filename: file,
    parsingContext: realm,
  }) as (...given: unknown[]) => void
  load(module, module.exports, createRequire(path.join(path.dirname(file), 'index.js')), file)
  return module.exports
}

const here = loadInRealm()
const inRealm = (code: string) => vm.runInContext(code, realm) as unknown

async function echo(t: Parameters<typeof Partner.start>[0]): Promise<ringfence.Channel> {
  const address = abstractAddress()
  const partner = await Partner.start(t)
  void partner.run(async (kit, at: string) => {
    const channel = await kit.join(at, { attachments: { sealed: true } })
    for await (const message of channel) await channel.send(message, { attachments: message.attachments ?? [] })
  }, address)
  const channel = await here.join(address, { attachments: { sealed: true } })
  t.teardown(() => channel.close())
  return channel
}

test('sealed buffers return in each container of a value', async (t) => {
  const channel = (await echo(t)).with(here.structured())
  const frame = here.SealedBuffer.from(new Uint8Array([1, 2]))
  const values: [name: string, value: unknown, find: (value: never) => unknown][] = [
    ['Map', new Map([['frame', frame]]), (map: Map<string, unknown>) => map.get('frame')],
    ['Set', new Set([frame]), ([first]: Set<unknown>) => first],
    ['Error', new Error('with a frame', { cause: frame }), ({ cause }: Error) => cause],
    ['array', [frame], ([first]: unknown[]) => first],
  ]
  for (const [name, value, find] of values) {
    await channel.send(value)
    const found = find((await channel.receive()) as never)
    t.true(found instanceof here.SealedBuffer, name)
    t.deepEqual([...(found as ringfence.SealedBuffer).bytes()], [1, 2])
  }
})

test('a module is refused in each container', async (t) => {
  const channel = (await echo(t)).with(here.structured())
  const empty = inRealm('new WebAssembly.Module(new Uint8Array([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0]))')
  for (const value of [new Map([[1, empty]]), new Set([empty]), new Error('with it', { cause: empty })])
    await t.throwsAsync(channel.send(value), { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' }, value.constructor.name)
})

test('long messages are written in place', async (t) => {
  const channel = await echo(t)
  const reservation = channel.reserve(10_000)!
  reservation.bytes.fill(7)
  reservation.commit()
  t.true((await channel.receive())!.equals(Buffer.alloc(10_000, 7)))
  t.true(channel.fill(10_000, (bytes, offset, length) => bytes.fill(8, offset, offset + length).length))
  t.true((await channel.receive())!.equals(Buffer.alloc(10_000, 8)))
})

test('signals of this realm and of libraries abort', async (t) => {
  const channel = await echo(t)
  class LibrarySignal extends EventTarget {
    aborted = false
    reason: unknown
  }
  const controller = new AbortController()
  const library = new LibrarySignal()
  const calls = [
    channel.receive({ signal: controller.signal }),
    here.join(abstractAddress(), { signal: library as never }),
  ]
  controller.abort('over')
  Object.assign(library, { aborted: true, reason: 'over' }).dispatchEvent(new Event('abort'))
  for (const call of calls) await t.throwsAsync(call as Promise<unknown>, { name: 'AbortError', message: /aborted/ })
})

test('an aborted web stream has ended with the error of the realm', async (t) => {
  for (const error of [new TypeError('over'), inRealm("new TypeError('over')")]) {
    const channel = await echo(t)
    await channel.writable.abort(error)
    const closed = await channel.closed
    t.is(closed.reason, 'failed')
    t.is(closed.error!.cause, error)
  }
})
