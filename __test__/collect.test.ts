// `ringfence collect`: the lines of many senders arrive whole and in order, and each sender learns that all of its
// lines arrived.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'

import test, { type ExecutionContext } from 'ava'

import { namedAddress, untilBound } from './support/address.js'
import { urlOf } from './support/internals.js'
import { Partner } from './support/partner.js'
import { within, until } from './support/until.js'

const cli = fileURLToPath(urlOf('cli.js'))

function run(t: ExecutionContext, ...words: string[]) {
  const child = spawn(process.execPath, [cli, ...words], { stdio: ['pipe', 'pipe', 'pipe'] })
  t.teardown(() => child.kill('SIGKILL'))
  let output = ''
  let complaints = ''
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => (output += chunk))
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => (complaints += chunk))
  // A sender that has ended no longer reads its input.
  child.stdin.on('error', () => {})
  const exited = once(child, 'close') as Promise<[code: number | null, signal: string | null]>
  return {
    child,
    exited,
    lines: () => output.split('\n').slice(0, -1),
    output: () => output,
    complaints: () => complaints,
  }
}

/** A collector that is listening. */
async function collector(t: ExecutionContext, ...words: string[]) {
  const address = namedAddress(t)
  const collecting = run(t, 'collect', address, ...words)
  await untilBound(address)
  return { address, ...collecting }
}

async function sent(t: ExecutionContext, address: string, what: string) {
  const sender = run(t, 'send', address)
  sender.child.stdin.end(what)
  return within(sender.exited, 'the end of a sender')
}

test('three senders: whole lines, each in order; a last line gets its newline; SIGINT ends it', async (t) => {
  const { address, child, exited, lines, output } = await collector(t)
  const count = 20_000
  const senders = ['a', 'b', 'c'].map((name) => {
    // Lines of many lengths, which cross the borders of messages.
    const all = Array.from({ length: count }, (_, number) => `${name} ${number} ${'x'.repeat((number * 37) % 90)}`)
    return { name, all, exited: sent(t, address, all.join('\n')) }
  })
  for (const sender of senders) t.deepEqual(await sender.exited, [0, null])
  // A sender ends successfully only after its lines were written.
  child.kill('SIGINT')
  t.deepEqual(await within(exited, 'the end of the collector'), [0, null])
  t.true(output().endsWith('\n'))
  const found = lines()
  t.is(found.length, 3 * count)
  for (const { name, all } of senders)
    t.deepEqual(
      found.filter((line) => line.startsWith(`${name} `)),
      all,
    )
  t.false(existsSync(address))
})

test('partial lines of different senders do not mix, and empty lines are kept', async (t) => {
  const { address, child, exited, output } = await collector(t)
  const slow = run(t, 'send', address)
  slow.child.stdin.write('begun,')
  await until(() => slow.child.stdin.writableLength === 0, 'it is written')
  t.deepEqual(await sent(t, address, 'one\n\ntwo\n'), [0, null])
  t.deepEqual(await sent(t, address, ''), [0, null])
  slow.child.stdin.end(' and ended')
  t.deepEqual(await slow.exited, [0, null])
  child.kill('SIGTERM')
  t.deepEqual(await within(exited, 'the end of the collector'), [0, null])
  t.is(output(), 'one\n\ntwo\nbegun, and ended\n')
})

test('SIGINT writes what has arrived; senders that have not ended learn that it was not everything', async (t) => {
  const { address, child, exited, output } = await collector(t)
  const sender = run(t, 'send', address)
  sender.child.stdin.write('a whole line\nand the beginn')
  await until(() => output() !== '', 'the line is written')
  child.kill('SIGINT')
  t.deepEqual(await within(exited, 'the end of the collector'), [0, null])
  t.is(output(), 'a whole line\nand the beginn\n')
  t.deepEqual(await within(sender.exited, 'the end of the sender'), [5, null])
})

test('a killed sender does not affect the others, and is reported', async (t) => {
  const { address, child, exited, output, complaints } = await collector(t)
  const doomed = run(t, 'send', address)
  doomed.child.stdin.write('whole\nhalf')
  await until(() => output() === 'whole\n', 'its line is written')
  doomed.child.kill('SIGKILL')
  await until(() => output() === 'whole\nhalf\n', 'its last line is ended')
  t.deepEqual(await sent(t, address, 'of another\n'), [0, null])
  child.kill('SIGINT')
  await within(exited, 'the end of the collector')
  t.is(output(), 'whole\nhalf\nof another\n')
  t.regex(complaints(), new RegExp(`process ${doomed.child.pid} has ended before it had ended its sending`))
})

test('a line that waits for a slow reader stays whole if another sender is killed', async (t) => {
  const { address, child, exited, output, lines, complaints } = await collector(t)
  const doomed = run(t, 'send', address)
  doomed.child.stdin.write('whole\nhalf')
  await until(() => output() === 'whole\n', 'its line is written')
  const long = 'x'.repeat(5_000_000)
  child.stdout.once('data', () => child.stdout.pause())
  const sender = sent(t, address, `${long}\n`)
  await until(() => output() !== 'whole\n', 'the long line has begun')
  doomed.child.kill('SIGKILL')
  await until(() => complaints() !== '', 'its end is known')
  child.stdout.resume()
  t.deepEqual(await sender, [0, null])
  child.kill('SIGINT')
  await within(exited, 'the end of the collector')
  t.true(
    lines().includes(long),
    lines()
      .map((line) => line.length)
      .join(),
  )
  t.deepEqual(lines().sort().slice(0, 2), ['half', 'whole'])
})

test('without a standard output nothing is collected', async (t) => {
  const words = ['-c', '"$@" >&-', 'bash', process.execPath, cli, 'collect', namedAddress(t)]
  const child = spawn('bash', words, { stdio: ['ignore', 'ignore', 'pipe'] })
  t.teardown(() => child.kill('SIGKILL'))
  const complaints = text(child.stderr)
  t.deepEqual(await within(once(child, 'exit'), 'its end'), [2, null])
  t.regex(await complaints, /standard output is closed: open it/)
})

test('a collector whose output is closed fails, and so do its senders', async (t) => {
  const { address, child, exited, complaints } = await collector(t)
  child.stdout.destroy()
  const [code] = await sent(t, address, 'x\n'.repeat(100_000))
  t.is(code, 5)
  t.deepEqual(await within(exited, 'the end of the collector'), [null, 'SIGPIPE'])
  t.notRegex(complaints(), /EPIPE/)
})

test('a client program is collected as well, message by message', async (t) => {
  const { address, child, exited, output } = await collector(t)
  const partner = await Partner.start(t)
  await partner.connect(address)
  await partner.run(async (kit) => {
    for (const part of ['one\ntw', 'o\n', 'three']) await kit.channel.send(part)
    await kit.channel.end()
    await kit.channel.receive()
  })
  child.kill('SIGINT')
  await within(exited, 'the end of the collector')
  t.is(output(), 'one\ntwo\nthree\n')
})

test('collect at an address that is taken, with a file or a timeout, is an error that says so', async (t) => {
  const { address } = await collector(t)
  const second = run(t, 'collect', address)
  t.deepEqual(await second.exited, [3, null])
  for (const words of [['collect'], ['collect', address, 'file'], ['collect', address, '--timeout', '1']]) {
    const wrong = run(t, ...words)
    t.deepEqual(await wrong.exited, [2, null])
    t.regex(wrong.complaints(), /collect/)
  }
})

test('a sender with an endless line is disconnected, and learns why', async (t) => {
  const { address, child, complaints, output } = await collector(t)
  const endless = run(t, 'send', address)
  const chunk = Buffer.alloc(1 << 20, 'x')
  for (let count = 0; count < 70 && !endless.child.stdin.destroyed; count += 1)
    if (!endless.child.stdin.write(chunk))
      await Promise.race([once(endless.child.stdin, 'drain').catch(() => {}), endless.exited])
  t.deepEqual(await within(endless.exited, 'its end'), [5, null])
  t.regex(complaints(), new RegExp(`process ${endless.child.pid} sent a line of more than 64 MiB`))
  t.is(output(), '')
  child.kill('SIGINT')
})

test('a receiver that is destroyed before its end is a failure for the sender', async (t) => {
  const address = namedAddress(t)
  const partner = await Partner.start(t)
  const joining = partner.join(address, { allowHalfOpen: true })
  await untilBound(address)
  const sending = sent(t, address, 'all of it')
  await joining
  await partner.run(async (kit) => {
    // The end of the sender was read.
    while ((await kit.channel.receive()) !== undefined);
    kit.channel.destroy()
  })
  t.deepEqual(await sending, [5, null])
})

test('one sender and one receiver remain a pair', async (t) => {
  const address = namedAddress(t)
  const receiver = run(t, 'receive', address)
  await untilBound(address)
  t.deepEqual(await sent(t, address, 'no newline'), [0, null])
  t.deepEqual(await receiver.exited, [0, null])
  t.is(receiver.output(), 'no newline')
})
