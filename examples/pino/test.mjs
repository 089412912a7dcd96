import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import pino from 'pino'

import { ringDestination } from './destination.mjs'
import { lines } from './lines.mjs'

const here = (name) => fileURLToPath(new URL(name, import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'ringfence-pino-'))
const children = new Set()
after(() => {
  for (const child of children) child.kill('SIGKILL')
  rmSync(folder, { recursive: true })
})

function start(script, words, stdio) {
  const child = spawn(process.execPath, [here(script), ...words], { stdio })
  children.add(child)
  child.once('exit', () => children.delete(child))
  return child
}

async function collector(address, file) {
  const child = start('collector.mjs', [address, file], ['ignore', 'pipe', 'inherit'])
  await once(child.stdout, 'data')
  return child
}

async function stop(child) {
  child.kill('SIGTERM')
  const [code] = await once(child, 'exit')
  assert.equal(code, 0)
}

const place = () => {
  const name = randomBytes(8).toString('hex')
  return { address: `@ringfence-pino-${name}`, file: join(folder, name), counter: join(folder, `${name}.counter`) }
}

/** The number of calls of a writer that have returned, from the file in which the writer counts them. */
const returned = (counter) => Number(readFileSync(counter, 'utf8'))

test('several writers log whole lines to one file, each in order', async () => {
  const { address, file } = place()
  const merging = await collector(address, file)
  const names = ['a', 'b', 'c']
  const ends = await Promise.all(
    names.map((name) => once(start('writer.mjs', ['ring', address, name, '5000', '0'], 'ignore'), 'exit')),
  )
  assert.deepEqual(ends, [
    [0, null],
    [0, null],
    [0, null],
  ])
  await stop(merging)
  const found = lines(file)
  assert.deepEqual([...found.keys()].sort(), names)
  for (const numbers of found.values())
    assert.deepEqual(
      numbers,
      Array.from({ length: 5000 }, (_, line) => line),
    )
})

test('the lines of a killed writer are kept if their log call has returned', async () => {
  const { address, file, counter } = place()
  writeFileSync(counter, '0'.padStart(12))
  const merging = await collector(address, file)
  const writer = start('writer.mjs', ['ring', address, 'a', '100000000', '0', counter], 'ignore')
  while (returned(counter) < 3000) await setTimeout(5)
  writer.kill('SIGKILL')
  await once(writer, 'exit')
  const promised = returned(counter)
  await stop(merging)
  const numbers = lines(file).get('a')
  // The file may have one more line, whose call had not returned.
  assert.ok(numbers.length === promised || numbers.length === promised + 1, `${numbers.length} of ${promised}`)
  assert.deepEqual(numbers, Array.from(numbers.keys()))
})

test('a restarted collector loses no line, and lines in between go to the fallback', async () => {
  const { address, file } = place()
  const between = []
  const first = await collector(address, file)
  const ring = await ringDestination({ address, fallback: { write: (line) => between.push(JSON.parse(line).line) } })
  const log = pino({ base: { writer: 'a' } }, ring)
  let line = 0
  const write = () => log.info({ line: line++ })
  for (let turn = 0; turn < 100; turn += 1) write()
  const stopped = stop(first)
  while (between.length === 0) {
    write()
    await setTimeout(1)
  }
  await stopped
  const second = await collector(address, file)
  const before = between.length
  // Until the destination has reconnected.
  for (let more = -1; between.length !== more; await setTimeout(300)) {
    more = between.length
    write()
  }
  for (let turn = 0; turn < 100; turn += 1) write()
  ring.end()
  await once(ring, 'close')
  await stop(second)
  const written = lines(file).get('a')
  assert.ok(before > 0 && written.length >= 200)
  assert.deepEqual(
    [...written, ...between].sort((a, b) => a - b),
    Array.from({ length: line }, (_, number) => number),
  )
})

test('a collector that does not read delays a log call for `patience`, and then the fallback gets the line', async () => {
  const { address, file } = place()
  const merging = await collector(address, file)
  const elsewhere = []
  const ring = await ringDestination({
    address,
    capacity: 1 << 16,
    patience: 50,
    fallback: { write: (line) => elsewhere.push(line) },
  })
  merging.kill('SIGSTOP')
  const line = `${'x'.repeat(1000)}\n`
  while (elsewhere.length < 3) ring.write(line)
  // A line that is too long for this ring goes to the fallback as well.
  ring.write(`${'y'.repeat(40_000)}\n`)
  assert.equal(elsewhere.length, 4)
  merging.kill('SIGCONT')
  ring.end()
  await once(ring, 'close')
  await stop(merging)
  const text = readFileSync(file, 'utf8')
  assert.match(text, /^(x{1000}\n){30,}$/)
})

test('behind a stage that formats lines as text, all lines arrive', async () => {
  const { address, file } = place()
  const merging = await collector(address, file)
  const stage = join(folder, 'stage.mjs')
  // Pieces of a line may arrive separately, and are joined.
  writeFileSync(
    stage,
    `import { Transform } from 'node:stream'
    export default () => {
      let text = ''
      return new Transform({
        transform(chunk, encoding, done) {
          text += chunk
          const lines = text.split('\\n')
          text = lines.pop()
          for (const line of lines) this.push(\`[\${JSON.parse(line).msg}]\\nnull\\n7\\n{"a":1}\\n\\n\`)
          done()
        },
      })
    }`,
  )
  const target = here('transport.mjs')
  const transport = pino.transport({ pipeline: [{ target: stage }, { target, options: { address } }] })
  const log = pino(transport)
  for (const word of ['one', 'two', 'three']) log.info(word)
  const closed = once(transport, 'close')
  transport.end()
  await closed
  await stop(merging)
  const wanted = ['one', 'two', 'three'].map((word) => `[${word}]\nnull\n7\n{"a":1}\n\n`)
  assert.equal(readFileSync(file, 'utf8'), wanted.join(''))
})

test("in pino's own thread, all lines arrive whole if the process exits normally", async () => {
  const { address, file } = place()
  const merging = await collector(address, file)
  const writer = start('writer.mjs', ['ring by transport', address, 'a', '5000', '0'], 'ignore')
  assert.deepEqual(await once(writer, 'exit'), [0, null])
  await stop(merging)
  assert.deepEqual(
    lines(file).get('a'),
    Array.from({ length: 5000 }, (_, line) => line),
  )
})
