// The examples run as their READMEs say.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'

import test from 'ava'

import { framesProducer, tickerPublisher } from './support/rust.js'

const example = (name: string) => fileURLToPath(new URL(`../../examples/${name}`, import.meta.url))

async function run(
  script: string,
  words: string[] = [],
): Promise<{ code: number | null; output: string; errors: string }> {
  const child = spawn(process.execPath, [example(script), ...words])
  const [output, errors, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'exit')])
  return { code, output, errors }
}

test.serial('frames: a Node process reads every frame that a Rust process draws', async (t) => {
  const words = ['--frames', '12', '--size', '1920x1080', '--producer', framesProducer]
  const { code, output, errors } = await run('frames/main.mjs', words)
  t.is(errors, '')
  t.is(code, 0)
  t.regex(output, /^12 frames of 1920x1080 RGBA, every pixel summed up and checked: \d+ frames\/s, \d+\.\d\d GB\/s\n$/)
})

test.serial('frames: three Node processes read every frame, which is drawn once', async (t) => {
  const words = ['--frames', '12', '--size', '640x480', '--readers', '3', '--producer', framesProducer]
  const { code, output, errors } = await run('frames/main.mjs', words)
  t.is(errors, '')
  t.is(code, 0)
  t.regex(
    output,
    /^12 frames of 640x480 RGBA, each drawn once and read by 3, every pixel summed up and checked: \d+ frames/,
  )
})

test.serial('transfer: a file arrives whole, in both backings, and published messages reach each reader', async (t) => {
  const { code, output, errors } = await run('transfer/main.mjs', [fileURLToPath(import.meta.url)])
  t.is(errors, '')
  t.is(code, 0)
  for (const backing of ['memfd', 'shm']) t.regex(output, new RegExp(`━━ ${backing}: `))
  t.is(output.match(/^They agree\.$/gm)?.length, 2)
  // The example compares what was read with what was published.
  const [, published] = /^Process \d+ published ([\d,]+) messages of 1\.02 kB, each once: [\d,]+ a second\.$/m.exec(
    output,
  )!
  t.regex(output, new RegExp(`^process \\d+, reading +${published} +[\\d,]+ +0 +no +closed$`, 'm'))
  t.regex(output, /^process \d+, stopped +[\d,]+ +[\d,]+ +0 +yes +evicted +\d+ ms after SIGSTOP$/m)
  t.regex(output, /^process \d+, killed +≥ [\d,]+ +[\d,]+ +0 +no +lost +\d+ ms after SIGKILL$/m)
})

test.serial(
  'ticker: a Rust process publishes to eight Node processes; one is killed, and one is stopped',
  async (t) => {
    const { code, output, errors } = await run('ticker/main.mjs', ['--seconds', '1', '--publisher', tickerPublisher])
    t.is(errors, '')
    t.is(code, 0)
    const [first, , ...rows] = output.trimEnd().split('\n')
    const [, ticks] = /^(\d+) ticks of 40 B in \d+\.\d\d s, each published once: \d+ a second$/.exec(first!)!
    const found = rows.map((row) => row.split(/  +/))
    t.deepEqual(
      found.map(([, delivery, , , , , ended, meanwhile = '']) => [delivery, ended, meanwhile].join(' ').trimEnd()),
      [
        ...['reliable lost killed', 'reliable closed', 'reliable closed'],
        ...['best-effort closed stopped, went on', 'best-effort closed', 'best-effort closed'],
        ...['latest closed', 'latest closed'],
      ],
    )
    for (const [, , read, , , lost] of found.slice(1)) t.is(Number(read) + Number(lost), Number(ticks))
    for (const [, , , , , lost] of found.slice(1, 3)) t.is(lost, '0')
    t.true(Number(found[3]![5]) > 0)
  },
)

test.serial('pair: a parent asks its child, and prints the evidence', async (t) => {
  const { code, output, errors } = await run('pair/pair.mjs')
  t.is(errors, '')
  t.is(code, 0)
  t.regex(output, /^parent \d+: my child is process \d+/)
  t.regex(output, /rendezvous +line +made by this process/)
  t.regex(output, /6 \* 7 is 42\n.*2 \*\* 10 is 1024\n.*1 \/ 3 is 0\.333/s)
  t.regex(output, /the channel is closed, and the child has exited with 0\n$/)
})

test.serial('counter: after a hundred restarts the client has lost no answered request', async (t) => {
  const { code, output, errors } = await run('counter/counter.mjs')
  t.is(errors, '')
  t.is(code, 0)
  const lines = output.split('\n')
  t.is(lines[0], '100 restarts, every other one by SIGKILL; the client was the guest, then the host')
  const [, answered, count] = /^(\d+) additions were answered \(\d+ were sent\), and the counter is at (\d+)$/.exec(
    lines[1]!,
  )!
  t.is(answered, count)
  t.true(Number(answered) >= 5000)
})

test.serial(
  'objects: values go to a child and back, by three codecs, and a value that is no JSON fails one call',
  async (t) => {
    const { code, output, errors } = await run('objects/objects.mjs')
    t.is(errors, '')
    t.is(code, 0)
    t.is(
      output,
      [
        "json: { id: 1, what: 'apples', count: 3, done: true }",
        "structured: Map(1) { 'seen' => Set(2) { 1n, 2n } }",
        'a custom codec: 22.5 -2.2',
        'ERR_RINGFENCE_MALFORMED: {"id": 2,',
        'json: { id: 3, done: true }',
        'the channel is closed, and the child has exited with 0',
        '',
      ].join('\n'),
    )
  },
)

const DIED =
  'the peer, process PID, has ended, or executes another program now: its last messages may be missing; open a new channel to continue'

test.serial('rpc: a hundred pending calls reject when the child is killed, in each implementation', async (t) => {
  const { code, output, errors } = await run('rpc/rpc.mjs')
  t.is(errors, '')
  t.is(code, 0)
  const lines = ['call', 'comlink', 'birpc', 'capnweb'].flatMap((name) => [
    `${name}: 2 + 3 is 5`,
    `${name}: the other side threw "not today"`,
    // The call of ringfence reports its own error; capnweb passes on that of its transport.
    `${name}: 100 pending calls have rejected with "${name === 'call' || name === 'capnweb' ? DIED : 'the peer has gone'}"`,
  ])
  t.is(output.replaceAll(/process \d+/g, 'process PID'), `${lines.join('\n')}\n`)
})
