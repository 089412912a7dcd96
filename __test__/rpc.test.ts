// comlink, birpc and capnweb over a channel between processes, with the files of examples/rpc. The packages are loaded
// with `require`, so that this file needs no types of them.

import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'

import test, { type ExecutionContext } from 'ava'
import type { Channel } from 'ringfence'

import { pair, type Partner } from './support/partner.js'
import { isPending, within } from './support/until.js'

const require = createRequire(import.meta.url)
const adapter = (name: string) => fileURLToPath(new URL(`../../examples/rpc/${name}.mjs`, import.meta.url))

/** The functions of both sides. */
interface Functions {
  add(a: number, b: number): Promise<number>
  fail(text: string): Promise<never>
  hang(): Promise<never>
  length(bytes: Uint8Array): Promise<number>
  back(value: number): Promise<number>
  each?(count: number, callback: unknown): Promise<number>
}

interface Line {
  remote: Functions
  close(): void
}

interface Way {
  name: 'comlink' | 'birpc' | 'capnweb'
  callbacks: boolean
  /** Wraps a function so that it can be an argument. */
  asArgument(callback: (value: number) => unknown): unknown
}

const ways: Way[] = [
  { name: 'comlink', callbacks: true, asArgument: (callback) => require('comlink').proxy(callback) as unknown },
  { name: 'birpc', callbacks: false, asArgument: (callback) => callback },
  { name: 'capnweb', callbacks: true, asArgument: (callback) => callback },
]

/** Runs in both processes. `load` resolves a package. */
function open(load: NodeJS.Require, file: string, name: Way['name'], channel: Channel, timeout: number): Line {
  let line: Line
  const functions = {
    add: (a: number, b: number) => a + b,
    fail(text: string) {
      throw new RangeError(text)
    },
    hang: () => new Promise<never>(() => {}),
    length: (bytes: Uint8Array) => bytes.length,
    // Calls back while the caller waits.
    back: async (value: number) => (await line.remote.add(value, 1)) + 1,
    async each(count: number, callback: (value: number) => Promise<number>) {
      let sum = 0
      for (let value = 0; value < count; value += 1) sum += await callback(value)
      return sum
    },
  }
  const made = load(file) as Record<string, (channel: Channel, own: unknown, options: object) => Line>
  if (name === 'comlink') line = made['overComlink']!(channel, functions, { timeout })
  else if (name === 'birpc') line = made['birpc']!(channel, functions, { timeout })
  else {
    const { RpcTarget } = load(file) as { RpcTarget: new () => object }
    const Target = class extends RpcTarget {}
    // capnweb calls methods of a class, and not those of an object.
    Object.assign(Target.prototype, functions)
    line = made['capnweb']!(channel, new Target(), {})
  }
  return line
}

async function meet(
  t: ExecutionContext,
  { name }: Way,
  timeout = 60_000,
): Promise<{ line: Line; partner: Partner; channel: Channel }> {
  const { channel, partner } = await pair(t, { options: { maxMessageSize: 256 * 1024 * 1024 } })
  await partner.run(
    (kit, code: string, file: string, library: string, limit: number) => {
      // oxlint-disable-next-line no-new-func
      kit.keep['line'] = new Function(`return (${code})`)()(kit.require, file, library, kit.channel, limit)
    },
    open.toString(),
    adapter(name),
    name,
    timeout,
  )
  return { line: open(require, adapter(name), name, channel, timeout), partner, channel }
}

for (const way of ways) {
  test.serial(`${way.name}: calls both ways, errors, and 10,000 at a time`, async (t) => {
    const { line, partner } = await meet(t, way)
    const { remote } = line
    t.is(await remote.add(2, 3), 5)
    const error = await t.throwsAsync(Promise.resolve(remote.fail('not today')))
    t.is(error.message, 'not today')
    t.is(await remote.back(1), 3)
    t.is(await partner.run(async (kit) => await (kit.keep['line'] as Line).remote.add(20, 30)), 50)
    const sums = await Promise.all(Array.from({ length: 10_000 }, (_, index) => remote.add(index, 1)))
    t.deepEqual(
      sums,
      Array.from({ length: 10_000 }, (_, index) => index + 1),
    )
  })

  if (way.callbacks) {
    test.serial(`${way.name}: a function is passed as an argument, and called from the other side`, async (t) => {
      const { line } = await meet(t, way)
      const seen: number[] = []
      const callback = way.asArgument((value) => {
        seen.push(value)
        return 2 * value
      })
      t.is(await line.remote.each!(5, callback), 20)
      t.deepEqual(seen, [0, 1, 2, 3, 4])
    })
  }

  test.serial(`${way.name}: arguments of 8 MiB arrive whole`, async (t) => {
    const { line } = await meet(t, way)
    const bytes = new Uint8Array(8 * 1024 * 1024)
    for (let count = 0; count < 3; count += 1) t.is(await line.remote.length(bytes), bytes.length)
  })

  test.serial(`${way.name}: killing a peer rejects every pending and every later call`, async (t) => {
    const { line, partner } = await meet(t, way)
    const pending = Array.from({ length: 100 }, () => Promise.resolve(line.remote.hang()))
    for (const call of pending) call.catch(() => {})
    await line.remote.add(0, 0)
    t.true(await isPending(pending[0]!))
    await partner.kill()
    for (const outcome of await within(Promise.allSettled(pending), 'all to reject')) t.is(outcome.status, 'rejected')
    await t.throwsAsync(async () => within(Promise.resolve(line.remote.add(1, 1)), 'a later call to reject'))
  })

  test.serial(`${way.name}: a close rejects pending calls on both sides`, async (t) => {
    const { line, partner } = await meet(t, way)
    const here = Promise.resolve(line.remote.hang())
    here.catch(() => {})
    await line.remote.add(0, 0)
    await partner.run((kit) => {
      const there = Promise.resolve((kit.keep['line'] as Line).remote.hang())
      kit.keep['there'] = there.then(
        () => 'resolved',
        () => 'rejected',
      )
    })
    await line.remote.add(0, 0)
    line.close()
    await t.throwsAsync(within(here, 'this side to reject'))
    t.is(
      await within(
        partner.run((kit) => kit.keep['there']),
        'the other side to reject',
      ),
      'rejected',
    )
  })

  if (way.name !== 'capnweb') {
    test.serial(`${way.name}: a call that exceeds its timeout rejects, and the next one works`, async (t) => {
      const { line } = await meet(t, way, 1000)
      const error = await t.throwsAsync(within(Promise.resolve(line.remote.hang()), 'the deadline'))
      t.regex(error.message, /timeout|too long/)
      t.is(await line.remote.add(1, 1), 2)
    })
  }
}
