// Immutable memory: how it is created, what a program sees of it, and when it is released.

import { constants } from 'node:buffer'
import { execFile } from 'node:child_process'
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { promisify } from 'node:util'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { Worker } from 'node:worker_threads'
import { gzipSync, gunzipSync } from 'node:zlib'

import test from 'ava'
import { SealedBuffer, type RingfenceError } from 'ringfence'

import { pattern } from './support/bytes.js'
import { Partner } from './support/partner.js'
import { until } from './support/until.js'

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc') as () => void

const isSealed = (name: string) => name.includes('ringfence-sealed')

/** Open sealed buffers of this process. */
function descriptors(): number {
  return readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return isSealed(readlinkSync(`/proc/self/fd/${fd}`))
    } catch {
      return false
    }
  }).length
}

function mappings(): string[] {
  return readFileSync('/proc/self/maps', 'utf8').split('\n').filter(isSealed)
}

/** Waits until no buffer is left, with a garbage collection each time. */
async function waitUntilUnmapped(): Promise<void> {
  await until(() => {
    collect()
    return descriptors() === 0 && mappings().length === 0
  }, 'every sealed buffer is released')
}

test.serial.afterEach.always(waitUntilUnmapped)

test.serial('a buffer has the bytes that were written, and nothing else changes them', async (t) => {
  let kept: Uint8Array | undefined
  const buffer = await SealedBuffer.create(10_000, (bytes) => {
    t.is(bytes.length, 10_000)
    t.true(bytes.every((byte) => byte === 0))
    bytes.set(pattern(1, 10_000))
    kept = bytes
  })
  t.is(kept!.length, 0, 'the array is detached')
  t.is(buffer.byteLength, 10_000)
  const bytes = buffer.bytes()
  t.is(bytes, buffer.bytes())
  t.true(pattern(1, 10_000).equals(bytes))
  t.false(Buffer.isBuffer(bytes))
  bytes.fill(9)
  t.true(pattern(1, 10_000).equals(SealedBuffer.from(pattern(1, 10_000)).bytes()))
  buffer.close()
  t.throws(() => buffer.bytes(), { code: 'ERR_RINGFENCE_CLOSED' })
  t.true(
    bytes.every((byte) => byte === 9),
    'the view outlives the buffer',
  )
  buffer.close()
})

test.serial('an async function fills a buffer, and other code reads its bytes', async (t) => {
  const file = await open(process.execPath)
  t.teardown(() => file.close())
  const size = 3_000_001
  using buffer = await SealedBuffer.create(size, async (bytes) => {
    await file.read(bytes, 0, size, 0)
  })
  const start = readFileSync(process.execPath).subarray(0, size)
  t.true(start.equals(buffer.bytes()))
  t.true(start.equals(gunzipSync(gzipSync(buffer.bytes(), { level: 1 }))))
})

test.serial('a buffer can be made from any bytes', (t) => {
  for (const bytes of [
    pattern(1, 5),
    new Uint16Array([1, 2, 3]),
    new ArrayBuffer(7),
    new DataView(new ArrayBuffer(9), 2, 4),
  ]) {
    using buffer = SealedBuffer.from(bytes)
    t.is(buffer.byteLength, bytes.byteLength)
  }
  using empty = SealedBuffer.from(new Uint8Array(0))
  t.is(empty.bytes().length, 0)
  for (const wrong of ['text', 5, null, undefined, [1]])
    t.throws(() => SealedBuffer.from(wrong as unknown as Uint8Array), { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' })
})

test.serial('an empty buffer is created', async (t) => {
  using buffer = await SealedBuffer.create(0, (bytes) => void t.is(bytes.length, 0))
  t.is(buffer.byteLength, 0)
  t.is(buffer.bytes().length, 0)
})

test.serial('wrong arguments are refused before anything is made', async (t) => {
  const invalid = { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' }
  for (const size of [-1, 1.5, NaN, '5', undefined, constants.MAX_LENGTH + 1, Infinity])
    await t.throwsAsync(
      SealedBuffer.create(size as number, () => t.fail()),
      invalid,
    )
  await t.throwsAsync(SealedBuffer.create(5, undefined as unknown as () => void), invalid)
  t.throws(() => new (SealedBuffer as unknown as new () => void)(), invalid)
})

test.serial('more memory than the process may have cannot be sealed', async (t) => {
  const partner = await Partner.start(t, { through: ['sh', '-c', 'ulimit -f 100; exec "$@"', '-'] })
  const found = await partner.run(async (kit) => {
    const { SealedBuffer: Sealed } = kit.require('ringfence') as typeof import('ringfence')
    let called = false
    const refused = await Sealed.create(1_000_000, () => {
      called = true
    }).catch((error: RingfenceError) => error.code)
    return { called, refused }
  })
  t.deepEqual(found, { called: false, refused: 'ERR_RINGFENCE_NO_SPACE' })
})

for (const how of ['throws', 'rejects'] as const)
  test.serial(`a function that ${how} keeps only its own memory`, async (t) => {
    let kept: Uint8Array | undefined
    const write = (bytes: Uint8Array) => {
      kept = bytes
      bytes.fill(1)
      const error = new RangeError('enough')
      if (how === 'throws') throw error
      return Promise.reject(error)
    }
    await t.throwsAsync(SealedBuffer.create(1_000_000, write), { instanceOf: RangeError, message: 'enough' })
    t.is(descriptors(), 0)
    collect()
    // Code that the function has started may still use it.
    t.is(kept!.length, 1_000_000)
    t.true(kept!.every((byte) => byte === 1))
    kept!.fill(2)
    t.is(mappings().length, 1)
  })

test.serial('transferred memory is not sealed, and stays valid where it is', async (t) => {
  if (!('transfer' in ArrayBuffer.prototype)) {
    t.pass('this Node has no transfer')
    return
  }
  let moved: Uint8Array | undefined
  const write = (bytes: Uint8Array) => {
    moved = new Uint8Array((bytes.buffer as ArrayBuffer & { transfer(): ArrayBuffer }).transfer())
  }
  await t.throwsAsync(SealedBuffer.create(100_000, write), { code: 'ERR_RINGFENCE_INVALID_ARGUMENT' })
  moved!.fill(3)
  t.true(moved!.every((byte) => byte === 3))
})

test.serial('garbage collection releases buffers and their mappings', async (t) => {
  await (async () => {
    for (let count = 0; count < 20; count += 1) {
      const buffer = await SealedBuffer.create(5000, (bytes) => void bytes.fill(count))
      if (count % 2 === 0) buffer.bytes()
    }
    t.true(descriptors() > 0)
  })()
  await waitUntilUnmapped()
  t.pass()
})

test.serial('a view keeps only the mapping', async (t) => {
  let view: Uint8Array | null = SealedBuffer.from(pattern(5, 100_000)).bytes()
  await until(() => {
    collect()
    return descriptors() === 0
  }, 'the descriptor is closed')
  t.is(mappings().length, 1)
  t.true(pattern(5, 100_000).equals(view))
  view = null
})

test.serial('a worker thread can use buffers, and leaks none when it is terminated', async (t) => {
  const worker = new Worker(
    `const { SealedBuffer } = require('ringfence')
     const { parentPort } = require('node:worker_threads')
     globalThis.kept = SealedBuffer.from(Buffer.alloc(5000, 1))
     kept.bytes()
     // Keeps the thread alive.
     parentPort.on('message', () => {})
     void SealedBuffer.create(6000, () => (globalThis.never = new Promise(() => parentPort.postMessage('made'))))`,
    { eval: true },
  )
  t.teardown(() => worker.terminate())
  t.is(await new Promise((resolve, reject) => worker.on('message', resolve).on('error', reject)), 'made')
  t.is(descriptors(), 2)
  await worker.terminate()
  await waitUntilUnmapped()
})

test.serial('if the engine forbids external memory, buffers are copies', async (t) => {
  process.env['RINGFENCE_NO_EXTERNAL_BUFFERS'] = '1'
  t.teardown(() => delete process.env['RINGFENCE_NO_EXTERNAL_BUFFERS'])
  const partner = await Partner.start(t)
  const found = await partner.run(async (kit) => {
    const { SealedBuffer: Sealed } = kit.require('ringfence') as typeof import('ringfence')
    const { readFileSync: read } = kit.require('node:fs') as typeof import('node:fs')
    let kept: Uint8Array | undefined
    const buffer = await Sealed.create(10_000, (bytes) => {
      kept = bytes
      bytes.set(kit.bytes.pattern(2, 10_000))
    })
    const view = buffer.bytes()
    buffer.close()
    const mapped = read('/proc/self/maps', 'utf8').includes('ringfence-sealed')
    return { detached: kept!.length === 0, isSame: kit.bytes.pattern(2, 10_000).equals(view), mapped }
  })
  t.deepEqual(found, { detached: true, isSame: true, mapped: false })
})

test.serial('a process that can start no thread gets an error', async (t) => {
  // No thread of the binding can start with a stack of this size.
  const script = `require('ringfence').SealedBuffer.create(5, () => {}).catch((error) => console.log(error.code))`
  const env = { ...process.env, RUST_MIN_STACK: String(2 ** 50) }
  const { stdout } = await promisify(execFile)(process.execPath, ['-e', script], { env })
  t.is(stdout.trim(), 'ERR_RINGFENCE_NO_SPACE')
})

test.serial('a process without descriptors gets an error', async (t) => {
  const partner = await Partner.start(t, { through: ['sh', '-c', 'ulimit -n 100; exec "$@"', '-'] })
  const codes = await partner.run(async (kit) => {
    const { SealedBuffer: Sealed } = kit.require('ringfence') as typeof import('ringfence')
    const kept: SealedBuffer[] = []
    const made: string[] = []
    for (const make of [() => Sealed.create(5, () => {}), () => Promise.resolve(Sealed.from(Buffer.alloc(5)))]) {
      try {
        for (;;) kept.push(await make())
      } catch (error) {
        made.push((error as RingfenceError).code)
      }
    }
    for (const buffer of kept) buffer.close()
    return made
  })
  t.deepEqual(codes, ['ERR_RINGFENCE_NO_SPACE', 'ERR_RINGFENCE_NO_SPACE'])
})
