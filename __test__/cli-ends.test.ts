// The reports of the command line about ends that need a hostile peer or a limited system. Over a fake binding.

import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'
import { join } from 'node:path'

import test, { type ExecutionContext } from 'ava'

import { temporaryDirectory } from './support/address.js'
import { captureHandshakes, FakeSubscriber, FakePublisher, type StartedHandshake } from './support/binding.js'
import { Binding, FAILED, REASONS } from './support/channel.js'
import { internals } from './support/internals.js'
import { captureOutput } from './support/output.js'
import { useFakeFiles } from './support/fake-proc.js'
import { codeOf } from './support/ring.js'
import { incomingChannel, FakeEndpoint } from './support/fake-endpoint.js'
import { isPending, within, turns, until } from './support/until.js'

type Run = (how: object) => Promise<void>

const commands = async (file: string) => (await internals(`cli/${file}.js`)) as Record<string, Run>
const { publish, subscribe } = (await commands('broadcast')) as { publish: Run; subscribe: Run }
const { collect } = (await commands('collect')) as { collect: Run }
const { send, receive } = (await commands('transfer')) as { send: Run; receive: Run }
const { UsageError } = (await commands('exit')) as unknown as { UsageError: new () => Error }

/** A command whose handshake has started. Only the test waits for the command. */
async function startCommand(
  t: ExecutionContext,
  run: Run,
  how: object,
): Promise<{ over: Promise<void>; call: StartedHandshake }> {
  const all = captureHandshakes(t)
  const over = run({ address: '@somewhere', evidence: false, options: {}, ...how })
  over.catch(() => {})
  await until(() => all.length === 1, 'it begins')
  return { over, call: all[0]! }
}

/** A FIFO to read from. The test decides what is written to it. */
function openFifo(t: ExecutionContext) {
  const fifo = join(temporaryDirectory(t), 'fifo')
  t.is(spawnSync('mkfifo', [fifo]).status, 0)
  const held = fs.openSync(fifo, 'r+')
  t.teardown(() => fs.closeSync(held))
  return { fifo, write: (words: string) => void fs.writeSync(held, words) }
}

async function publishing(t: ExecutionContext, how: object) {
  const { over, call } = await startCommand(t, publish, { audience: 0, ...how })
  const fake = new FakePublisher()
  call.done(null, fake)
  await turns(5)
  return { over, fake }
}

const exposed = {
  ...codeOf('OBJECT_EXPOSED'),
  message: 'another process tried to open the shared memory, which was wiped',
}
const exposedPublisher = {
  ...codeOf('OBJECT_EXPOSED'),
  message: "another process tried to open the publisher's shared memory: it was wiped, and the publisher is closed",
}

/** The publisher ends on its own. */
function endBy(fake: FakePublisher, reason: 'exposed' | 'closed'): void {
  fake.failing = { code: 'CLOSED', message: 'as the binding says' }
  fake.ended = REASONS.indexOf(reason)
  fake.emit(FAILED)
}

test.serial('publish reports that its memory was opened: at the start, before a line, or at the end', async (t) => {
  const { fifo, write } = openFifo(t)
  const waiting = await publishing(t, { file: fifo, audience: 2 })
  waiting.fake.emit(new FakeSubscriber(1))
  t.true(await isPending(waiting.over))
  endBy(waiting.fake, 'exposed')
  await t.throwsAsync(within(waiting.over, 'its end'), exposedPublisher)

  const reading = await publishing(t, { file: fifo })
  write('one\n')
  await until(() => reading.fake.sent === 1, 'a line is published')
  t.true(await isPending(reading.over))
  endBy(reading.fake, 'exposed')
  await t.throwsAsync(within(reading.over, 'its end'), exposedPublisher)

  const ending = await publishing(t, { file: '/dev/null', audience: 1 })
  ending.fake.emit(new FakeSubscriber(1))
  await until(() => ending.fake.calls.includes('end'), 'it ends')
  t.true(await isPending(ending.over))
  endBy(ending.fake, 'exposed')
  await t.throwsAsync(within(ending.over, 'its end'), exposedPublisher)
})

test.serial('publish that has ended on its own waits for no audience, and fails at the next line', async (t) => {
  const { fifo, write } = openFifo(t)
  for (const audience of [0, 2]) {
    const { over, fake } = await publishing(t, { file: fifo, audience })
    endBy(fake, 'closed')
    t.true(await isPending(over))
    write('one\n')
    await t.throwsAsync(within(over, 'its end'), codeOf('CLOSED'))
  }
})

async function collecting(t: ExecutionContext) {
  const [output, errors] = [captureOutput(t, 'stdout'), captureOutput(t, 'stderr')]
  const stop = new AbortController()
  const { over, call } = await startCommand(t, collect, { stop: stop.signal })
  const endpoint = new FakeEndpoint()
  call.done(null, endpoint)
  await turns(2)
  const sender = async (...messages: string[]) => {
    const one = incomingChannel(12)
    one.answers['listen'] = 0
    endpoint.emit(one.raw)
    one.from.push(...messages.map((message) => Buffer.from(message)))
    await until(() => one.from.left === 0, 'it is read')
    await turns(2)
    return one
  }
  return { output, errors, stop, over, endpoint, sender }
}

test.serial('collect reports how a sender that had not sent everything ended, and writes its last line', async (t) => {
  for (const [reason, said] of [
    ['closed', ''],
    ['lost', 'ringfence: process 12 has ended before it had ended its sending\n'],
    ['corrupt', 'ringfence: process 12 is gone (corrupt) before it had ended its sending\n'],
    ['exposed', 'ringfence: process 12 is gone (exposed) before it had ended its sending\n'],
  ] as const) {
    const { output, errors, stop, over, sender } = await collecting(t)
    const one = await sender('a line\nand its rest')
    t.is(output.text, 'a line\n')
    one.from.ended = true
    one.end(reason)
    await until(() => output.text === 'a line\nand its rest\n', 'its last line is written')
    t.is(errors.text, said, reason)
    stop.abort()
    await within(over, 'its end')
  }
})

test.serial('collect ends its side for a sender that has sent everything, else closes the channel', async (t) => {
  const { output, stop, over, sender } = await collecting(t)
  const [all, some] = [await sender('all'), await sender('some')]
  all.from.ended = true
  all.onWakeup()
  await until(() => output.text === 'all\n', 'it is written')
  await turns(3)
  t.deepEqual(all.newCalls('end', 'close'), ['end'])
  stop.abort()
  await within(over, 'its end')
  t.is(output.text, 'all\nsome\n')
  t.is(some.newCalls('end', 'close')[0], 'close')
})

test.serial('a stopped collect writes everything of a sender that has ended, though the output is full', async (t) => {
  const { output, stop, over, sender } = await collecting(t)
  const one = await sender('a line\n')
  output.stop()
  const lines = ['1', '2', '3'].map((digit) => `${digit.repeat(100_000)}\n`)
  one.from.push(...lines.map((line) => Buffer.from(line)))
  one.from.ended = true
  stop.abort()
  await until(() => output.stream.writableLength > 0, 'it writes')
  one.end('closed')
  await turns(5)
  output.resume()
  await within(over, 'its end')
  t.is(output.text, ['a line\n', ...lines].join(''))
})

test.serial('collect that cannot accept clients fails once the connected ones have ended', async (t) => {
  const { output, errors, over, endpoint, sender } = await collecting(t)
  const one = await sender('a line\n')
  endpoint.failing = { code: 'NO_SPACE', message: 'as this test has it' }
  endpoint.fail()
  await until(() => errors.text !== '', 'it is told')
  t.is(errors.text, 'ringfence: no further sender can connect: as this test has it\n')
  one.from.push(Buffer.from('another\n'))
  one.onWakeup()
  await until(() => output.text === 'a line\nanother\n', 'it is written')
  t.true(await isPending(over))
  output.stop()
  one.from.push(Buffer.from('the last'))
  one.from.ended = true
  one.onWakeup()
  await until(() => output.stream.writableLength > 0, 'its last line has come')
  t.true(await isPending(over))
  output.resume()
  await t.throwsAsync(within(over, 'its end'), codeOf('NO_SPACE'))
  t.is(output.text, 'a line\nanother\nthe last\n')
})

test.serial(
  'a closed standard stream is reported before anything starts, if the command reads or writes it',
  async (t) => {
    const { fstatSync, statSync } = fs
    // Node opens this in place of a closed standard stream.
    t.teardown(
      useFakeFiles(
        Object.fromEntries([0, 1].map((fd) => [`/proc/self/fdinfo/${fd}`, 'pos:\t0\nflags:\t0100002\nmnt_id:\t5\n'])),
      ),
    )
    Object.assign(fs, { fstatSync: (fd: number) => (fd < 2 ? statSync('/dev/null') : fstatSync(fd)) })
    syncBuiltinESMExports()
    t.teardown(() => {
      Object.assign(fs, { fstatSync })
      syncBuiltinESMExports()
    })
    const file = join(temporaryDirectory(t), 'file')
    fs.writeFileSync(file, '')
    for (const [run, name] of [
      [send, 'input'],
      [publish, 'input'],
      [receive, 'output'],
      [subscribe, 'output'],
      [collect, 'output'],
    ] as const) {
      const all = captureHandshakes(t)
      const error = await t.throwsAsync(run({ address: '@x', audience: 0, options: {}, stop: AbortSignal.abort() }))
      t.true(error instanceof UsageError)
      t.regex(error!.message, new RegExp(`^standard ${name} is closed: `))
      t.deepEqual(all, [])
    }
    // These have a file argument.
    for (const run of [send, publish, receive]) {
      const { over, call } = await startCommand(t, run, { file, audience: 0 })
      call.done({ code: 'NO_SPACE', message: 'as this test has it' }, null)
      await t.throwsAsync(over, codeOf('NO_SPACE'))
    }
  },
)

/**
 * A `send` from a FIFO to a receiver, or to a service if `isService`. The other side has nothing to send and has ended
 * at once.
 */
async function sendingTo(t: ExecutionContext, isService: boolean) {
  const { fifo, write } = openFifo(t)
  const all = captureHandshakes(t)
  const over = send({ address: '@somewhere', file: fifo, evidence: false, options: {} })
  over.catch(() => {})
  await until(() => all.length === 1, 'it begins')
  if (isService) {
    all.shift()!.done({ code: 'PROTOCOL', message: 'a service is there' }, null)
    await until(() => all.length === 1, 'it comes anew')
  }
  t.is(all[0]!.name, isService ? 'connect' : 'join')
  const fake = new Binding()
  fake.from.ended = true
  fake.answers['listen'] = 0
  all[0]!.done(null, fake.raw)
  await turns(5)
  fake.onWakeup()
  t.true(await isPending(over))
  const sent = () => Buffer.concat(fake.ring.received).toString()
  write('a word')
  await until(() => sent() === 'a word', 'it is sent')
  t.deepEqual(fake.newCalls('end'), [])
  return { over, fake, write, sent }
}

test.serial('a receiver that has ended its side at once is sent everything, and its end is reported', async (t) => {
  for (const isService of [true, false])
    for (const [reason, wanted] of [
      ['exposed', exposed],
      ['corrupt', codeOf('RING_CORRUPT')],
      ['lost', { ...codeOf('PEER_LOST'), message: 'the receiver has left' }],
      ['closed', { ...codeOf('PEER_LOST'), message: 'the receiver has left' }],
    ] as const) {
      const { over, fake } = await sendingTo(t, isService)
      fake.end(reason)
      await t.throwsAsync(within(over, 'its end'), wanted, reason)
    }
})

test.serial('if the receiver ends after everything was sent, only a close counts as success', async (t) => {
  for (const [reason, wanted] of [
    ['closed', null],
    ['lost', { ...codeOf('PEER_LOST'), message: /before it had confirmed that it has everything/ }],
    ['exposed', exposed],
    ['corrupt', codeOf('RING_CORRUPT')],
  ] as const) {
    const all = captureHandshakes(t)
    const file = join(temporaryDirectory(t), 'file')
    fs.writeFileSync(file, 'all of it')
    const over = send({ address: '@somewhere', file, evidence: false, options: {} })
    over.catch(() => {})
    await until(() => all.length === 1, 'it begins')
    const fake = new Binding()
    fake.from.ended = true
    fake.answers['listen'] = 0
    all[0]!.done(null, fake.raw)
    await until(() => fake.newCalls('end').length === 1, 'all is sent')
    t.true(await isPending(over))
    fake.end(reason)
    if (wanted === null) await within(over, 'its end')
    else await t.throwsAsync(within(over, 'its end'), wanted, reason)
  }
})

test.serial('a received file is complete before the sender learns of it', async (t) => {
  const file = join(temporaryDirectory(t), 'file')
  fs.writeFileSync(file, 'as it was')
  const output = captureOutput(t, 'stdout')
  const { over, call } = await startCommand(t, receive, { file })
  const fake = new Binding()
  fake.answers['listen'] = 0
  call.done(null, fake.raw)
  fake.from.push(Buffer.from('all '))
  await until(() => fake.from.left === 0, 'it is read')
  await turns(5)
  t.is(fs.readFileSync(file, 'utf8'), 'as it was')
  t.deepEqual(fake.newCalls('end'), [])
  let before = ''
  fake.answers['end'] = () => {
    before = fs.readFileSync(file, 'utf8')
    return 0
  }
  fake.from.push(Buffer.from('of it'))
  fake.from.ended = true
  fake.onWakeup()
  await within(over, 'its end')
  t.is(before, 'all of it')
  t.is(output.text, '')
})

test.serial('the identity of the peer is printed only on request', async (t) => {
  for (const evidence of [true, false]) {
    const errors = captureOutput(t, 'stderr')
    captureOutput(t, 'stdout')
    const { over, call } = await startCommand(t, receive, { evidence })
    const fake = new Binding()
    fake.from.ended = true
    call.done(null, fake.raw)
    await until(() => fake.newCalls('end').includes('end'), 'it has ended')
    fake.end('closed')
    await within(over, 'its end')
    t.is(errors.text.startsWith('host, peer is process 1\n'), evidence)
    if (!evidence) t.is(errors.text, '')
  }
})
