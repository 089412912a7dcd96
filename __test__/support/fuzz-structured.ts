// Decodes bytes with `structured` that no honest peer sends, and prints how many were accepted. A crash of the engine
// ends this process, and the test notices.

import { structured } from 'ringfence'

import { random } from './bytes.js'

const [count = 0, seed = 0] = process.argv.slice(2).map(Number)
const codec = structured()
const next = random(seed)
const randomBelow = (most: number) => Math.floor(next() * most)

const cycle: Record<string, unknown> = {}
cycle['self'] = cycle
const honest: unknown[] = [
  {
    map: new Map<unknown, unknown>([[1, { x: 2 }]]),
    set: new Set(['a', 1.5]),
    date: new Date(0),
    pattern: /x+/gi,
    bytes: new Uint8Array([1, 2, 3]),
    floats: new Float64Array(3),
    view: new DataView(new ArrayBuffer(5)),
    memory: new ArrayBuffer(9),
    buffer: Buffer.from('hello'),
    bigint: -(10n ** 30n),
    error: new RangeError('far', { cause: 1 }),
    texts: ['é日本', 'plain', ''],
    boxed: [Object(true), Object(4), Object('five'), Object(6n)],
  },
  Object.assign([], { 2: 1, 3: undefined, 4: null, extra: true }),
  Array.from({ length: 40 }, (_, index) => index / 3),
  'text',
  cycle,
]
const encoded = honest.map((value) => codec.encode(value) as Uint8Array)

/** A message with changed bytes, cut, or repeated; or random bytes behind a valid first byte. */
function hostile(): Buffer {
  if (randomBelow(4) === 0) {
    const made = Buffer.from(Array.from({ length: 2 + randomBelow(80) }, () => randomBelow(256)))
    made[0] = 0xff
    made[1] = 10 + randomBelow(8)
    return made
  }
  let bytes = Buffer.from(encoded[randomBelow(encoded.length)]!)
  for (let changes = 1 + randomBelow(6); changes > 0; changes -= 1) bytes[randomBelow(bytes.length)] = randomBelow(256)
  if (randomBelow(4) === 0) bytes = bytes.subarray(0, randomBelow(bytes.length + 1))
  if (randomBelow(8) === 0) bytes = Buffer.concat([bytes, bytes])
  return bytes
}

let accepted = 0
let refused = 0
for (let number = 0; number < count; number += 1) {
  const bytes = hostile()
  const before = Buffer.from(bytes)
  try {
    codec.decode(bytes)
    accepted += 1
  } catch {
    refused += 1
  }
  if (!bytes.equals(before)) throw new Error(`the decoder has written into message ${number}`)
}
process.stdout.write(JSON.stringify({ accepted, refused }))
