// Lines, numbers and tables of the command line, and its exit codes.

import test from 'ava'
import type { Evidence, RingfenceError } from 'ringfence'

import { clock } from './support/clock.js'
import { internals } from './support/internals.js'
import { captureOutput } from './support/output.js'

const moduleAt = (name: string) => internals(`cli/${name}.js`)
const { Lines } = (await moduleAt('lines')) as {
  Lines: new () => { size: number; add(bytes: Buffer): Buffer[]; rest(): Buffer }
}
const { lines } = (await moduleAt('broadcast')) as {
  lines(input: AsyncIterable<Buffer>, longest: number): AsyncGenerator<Buffer>
}
const { parseSize, formatBytes, printMessage, table, evidenceTable } = (await moduleAt('text')) as {
  parseSize(text: string): number
  formatBytes(bytes: number): string
  printMessage(line: string): void
  table(headings: string[], rows: string[][], width?: number): string
  evidenceTable(evidence: readonly Evidence[], width?: number): string
}
const { Progress } = (await moduleAt('progress')) as {
  Progress: new (
    total?: number,
    shown?: boolean,
  ) => { bytes: number; add(bytes: number): void; line(): string; done(): void }
}
const { exitCode, UsageError } = (await moduleAt('exit')) as {
  exitCode(error: unknown): number
  UsageError: new (message: string) => Error
}
const errors = await internals<{
  RingfenceError: new (name: string, message: string) => RingfenceError
}>('errors.js')

/** Each way to split a text into three pieces. */
function* cuts(whole: string): Generator<Buffer[]> {
  for (let one = 0; one <= whole.length; one += 1)
    for (let two = one; two <= whole.length; two += 1)
      yield [whole.slice(0, one), whole.slice(one, two), whole.slice(two)].map((part) => Buffer.from(part))
}

test('lines of a sender are written whole, however they are split; a last one gets its newline', (t) => {
  for (const whole of ['', '\n', 'a\n\nbc\n', 'a\nbc\nd', '\n\nd']) {
    for (const pieces of cuts(whole)) {
      const all = new Lines()
      let came = ''
      let output = ''
      for (const piece of pieces) {
        came += String(piece)
        const taken = Buffer.concat(all.add(piece)).toString()
        output += taken
        // Complete lines are written at once.
        t.is(output, came.slice(0, came.lastIndexOf('\n') + 1))
        t.is(all.size, came.length - output.length)
      }
      output += String(all.rest())
      t.is(output, whole === '' || whole.endsWith('\n') ? whole : `${whole}\n`)
      t.is(all.size, 0)
      t.is(String(all.rest()), '')
      t.is(Buffer.concat(all.add(Buffer.from('new\n'))).toString(), 'new\n')
    }
  }
})

async function* inPieces(pieces: Buffer[]) {
  yield* pieces
}

async function linesOf(pieces: Buffer[], longest: number): Promise<string[]> {
  const found: string[] = []
  for await (const line of lines(inPieces(pieces), longest)) found.push(String(line))
  return found
}

test('lines are published without their newline, however they are split', async (t) => {
  for (const whole of ['', '\n', 'a\n\nbc\n', 'a\nbc\nd', '\n\nd'])
    for (const pieces of cuts(whole)) {
      const wanted = whole.split('\n')
      if (wanted.at(-1) === '') wanted.pop()
      t.deepEqual(await linesOf(pieces, 2), wanted)
    }
})

test('a line that is too long to be published is reported as soon as that is known', async (t) => {
  for (const pieces of cuts('abc\nde\n')) {
    t.deepEqual(await linesOf(pieces, 3), ['abc', 'de'])
    const error = await t.throwsAsync(linesOf(pieces, 2), { code: 'ERR_RINGFENCE_MESSAGE_TOO_LARGE' })
    t.regex(
      error.message,
      /^a line has more than 2 bytes, which is what a message may have here: take a larger --capacity .*--raw$/,
    )
  }
  const found: string[] = []
  // Its end has not arrived yet.
  async function* endless() {
    yield Buffer.from('ab\nab')
    yield Buffer.from('c')
    t.fail('it is read on')
  }
  await t.throwsAsync(async () => {
    for await (const line of lines(endless(), 2)) found.push(String(line))
  })
  t.deepEqual(found, ['ab'])
})

test('sizes are bytes, KiB, MiB or GiB', (t) => {
  const sizes = { '1': 1, '4096': 4096, '64K': 65_536, '64k': 65_536, '4M': 4_194_304, '1g': 1_073_741_824, '010': 10 }
  for (const [text, bytes] of Object.entries(sizes)) t.is(parseSize(text), bytes, text)
  for (const text of [
    '',
    '0',
    'K',
    '-1',
    '+1',
    '1.5M',
    '1T',
    '1iB',
    '1KiBs',
    ' 1',
    '1 ',
    '1\n',
    '9007199254740992',
    '8388608G',
    'much',
  ]) {
    const error = t.throws(() => parseSize(text))
    t.true(error instanceof UsageError)
    t.is(error.message, `a size is a number of bytes, or of KiB, MiB or GiB (64KiB), not ${text}`)
  }
})

test('bytes are shown in the unit that fits', (t) => {
  const cases: [number, string][] = [
    [0, '0 B'],
    [999, '999 B'],
    [12.345, '12 B'],
    [1000, '1.00 kB'],
    [99_994, '99.99 kB'],
    [100_000, '100 kB'],
    [1_000_000, '1.00 MB'],
    [250_000_000, '250 MB'],
    [1_000_000_000, '1.00 GB'],
    [123_456_000_000, '123 GB'],
  ]
  for (const [bytes, text] of cases) t.is(formatBytes(bytes), text)
})

test.serial('messages for people are one line, and move no cursor', (t) => {
  const output = captureOutput(t, 'stderr')
  printMessage('one\u001b[2J\ntwo')
  t.deepEqual(output.writes, ['ringfence: one\\u{1b}[2J\\u{a}two\n'])
})

test.serial('a table has columns of the necessary width, and is cut to the width of the terminal', (t) => {
  const rows = [
    ['a', 'bbbb', 'the last'],
    ['aaa', 'b', ''],
  ]
  t.is(
    table(['x', 'yy', 'zz'], rows),
    ['x    yy    zz', '───  ────  ────────', 'a    bbbb  the last', 'aaa  b'].join('\n'),
  )
  t.is(
    table(['x', 'yy', 'zz'], rows, 18),
    ['x    yy    zz', '───  ────  ──────…', 'a    bbbb  the la…', 'aaa  b'].join('\n'),
  )
  t.is(table(['x', 'yy', 'zz'], rows, 19).split('\n')[2], 'a    bbbb  the last')
  captureOutput(t, 'stderr', { columns: 10 })
  t.is(table(['x', 'yy', 'zz'], rows).split('\n')[2], 'a    bbbb…')
})

test('evidence shows what has passed and what was only noted, each in one line', (t) => {
  const evidence: Evidence[] = [
    { step: 'one', check: 'uid', wanted: 'same', found: 'f'.repeat(50), outcome: 'passed' },
    { step: 'two', check: 'executable', wanted: 'w'.repeat(61), found: `${'f'.repeat(51)}`, outcome: 'noted' },
    { step: 'two', check: 'name', wanted: 'w'.repeat(60), found: 'a\nb', outcome: 'noted' },
  ] as Evidence[]
  const [headings, , ...found] = evidenceTable(evidence, 200).split('\n')
  t.deepEqual(headings!.trim().split(/ {2,}/), ['step', 'check', 'found', 'wanted'])
  t.deepEqual(
    found.map((line) => line.split(/ {2,}/)),
    [
      ['ok', 'one', 'uid', 'f'.repeat(50), 'same'],
      ['-', 'two', 'executable', `${'f'.repeat(49)}…`, `${'w'.repeat(59)}…`],
      ['-', 'two', 'name', 'a\\u{a}b', 'w'.repeat(60)],
    ],
  )
})

test.serial(
  'progress is drawn at most ten times a second, only on a terminal, with a bar if the size is known',
  (t) => {
    const output = captureOutput(t, 'stderr')
    const of = (total?: number, shown = true) => {
      clock.now += 1000
      return new Progress(total, shown)
    }
    const known = of(2000)
    clock.now += 1000
    known.add(500)
    const half = `${'█'.repeat(8)}${'░'.repeat(22)}  25 %  500 B  500 B/s`
    t.is(known.line(), half)
    t.is(output.text, `\r${half}\u001b[K`)
    clock.now += 99
    known.add(1)
    t.is(output.writes.length, 1)
    clock.now += 1
    known.add(1)
    t.is(output.writes.length, 2)
    t.is(known.bytes, 502)
    // More bytes arrived than the size at the start.
    known.bytes = 4000
    clock.now += 900
    t.is(known.line(), `${'█'.repeat(30)} 100 %  4.00 kB  2.00 kB/s`)
    known.done()
    t.is(output.writes.at(-1), `\r${known.line()}\u001b[K\n`)

    const unknown = of()
    unknown.bytes = 7
    clock.now += 1000
    t.is(unknown.line(), '7 B  7 B/s')
    const empty = of(0)
    // No time has passed, so there is no division by it.
    t.is(empty.line(), '0 B  0 B/s')
    empty.bytes = 1
    t.is(empty.line(), '1 B  1.00 MB/s')

    const drawn = output.writes.length
    const silent = of(2000, false)
    silent.add(500)
    silent.done()
    t.is(silent.bytes, 500)
    captureOutput(t, 'stderr', { isTTY: false })
    const elsewhere = new Progress(2000)
    elsewhere.add(1)
    elsewhere.done()
    t.is(output.writes.length, drawn)
  },
)

test('the exit code tells a script what has failed', (t) => {
  const codes = {
    INVALID_ARGUMENT: 2,
    ADDRESS_INVALID: 3,
    ADDRESS_OCCUPIED: 3,
    PEER_REFUSED: 4,
    PEER_LOST: 5,
    CLOSED: 5,
    EVICTED: 5,
    HANDSHAKE_TIMEOUT: 6,
    TIMEOUT: 6,
    CHILD_EXITED: 5,
    PROTOCOL: 7,
    OBJECT_EXPOSED: 7,
    OBJECT_UNSOUND: 7,
    RING_CORRUPT: 7,
    MALFORMED: 7,
    MESSAGE_TOO_LARGE: 8,
    NO_SPACE: 8,
    UNSUPPORTED: 9,
  }
  for (const [name, code] of Object.entries(codes)) t.is(exitCode(new errors.RingfenceError(name, '')), code, name)
  t.is(exitCode(new UsageError('')), 2)
  t.is(exitCode(new errors.RingfenceError('ANOTHER', '')), 1)
  t.is(exitCode(Object.assign(new Error(''), { code: 'ENOSPC' })), 8)
  for (const other of [
    new Error('ENOSPC'),
    Object.assign(new Error(''), { code: 'ERR_RINGFENCE_PEER_LOST' }),
    'text',
    undefined,
  ])
    t.is(exitCode(other), 1)
})
