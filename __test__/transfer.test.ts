// `ringfence send` and `receive` in this process: what each side learns, and when. cli.test.ts tests the files.

import { spawnSync } from 'node:child_process'
import {
  closeSync,
  constants,
  mkdtempSync,
  openSync,
  readdirSync,
  readlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'

import test, { type ExecutionContext } from 'ava'
import type { Options } from 'ringfence'

import { abstractAddress, temporaryDirectory } from './support/address.js'
import { urlOf } from './support/internals.js'
import { captureOutput } from './support/output.js'
import { Partner } from './support/partner.js'
import { isPending, within, turns, until } from './support/until.js'

interface Transfer {
  address: string
  file?: string
  evidence?: boolean
  options?: Options
}

const module = urlOf('cli/transfer.js')
const { send, receive } = (await import(module)) as Record<'send' | 'receive', (transfer: Transfer) => Promise<void>>

/** A partner, and a transfer that has met it. */
async function met(
  t: ExecutionContext,
  run: typeof send,
  { options = {}, ...more }: Partial<Transfer> = {},
  there: Options = { allowHalfOpen: true },
) {
  const partner = await Partner.start(t)
  const address = abstractAddress()
  const over = run({ address, options, ...more })
  over.catch(() => {})
  await Promise.race([partner.join(address, there), over])
  return { partner, address, over }
}

function fileOf(t: ExecutionContext, content: string | Uint8Array): string {
  const file = join(temporaryDirectory(t), 'file')
  writeFileSync(file, content)
  return file
}

/** The open files of this process. A descriptor may be closed during the listing. */
function openFiles(): string[] {
  return readdirSync('/proc/self/fd').map((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`)
    } catch {
      return ''
    }
  })
}

/** A FIFO with a writer that has written nothing. */
function fifoOf(t: ExecutionContext) {
  const fifo = join(temporaryDirectory(t), 'fifo')
  t.is(spawnSync('mkfifo', [fifo]).status, 0)
  const held = openSync(fifo, constants.O_RDWR)
  let open = true
  const close = () => {
    if (open) closeSync(held)
    open = false
  }
  t.teardown(close)
  return { fifo, write: (text: string) => writeSync(held, text), close }
}

test.serial('a sender is notified once everything is written, and not before', async (t) => {
  const output = captureOutput(t, 'stdout')
  output.stop()
  const { partner, over } = await met(t, receive)
  const outcome = partner.run(async (kit) => {
    await kit.channel.send('of a ')
    await kit.channel.send('few bytes')
    await kit.channel.end()
    return kit.channel.receive()
  })
  await until(() => output.stream.writableLength === 14, 'all has come')
  // A notification would arrive before the answers to later calls.
  for (let number = 0; number < 10; number += 1) await partner.run(() => {})
  t.true(await isPending(outcome))
  output.resume()
  t.is(await outcome, undefined)
  await over
  t.is(output.text, 'of a few bytes')
})

test.serial('data that arrived before the sender was killed is written, however slow its reader is', async (t) => {
  const output = captureOutput(t, 'stdout')
  output.stop()
  const { partner, over } = await met(t, receive)
  await partner.run(async (kit) => {
    for (let number = 0; number < 100; number += 1) await kit.channel.send(`line ${number}\n`)
  })
  await partner.kill()
  await until(() => output.stream.writableLength > 0, 'some of it has come')
  t.true(await isPending(over))
  output.resume()
  await t.throwsAsync(over, { code: 'ERR_RINGFENCE_PEER_LOST' })
  t.is(output.text, Array.from({ length: 100 }, (_, number) => `line ${number}\n`).join(''))
})

test.serial('a slow reader delays the receiver, which takes only as much as fits', async (t) => {
  const output = captureOutput(t, 'stdout')
  output.stop()
  const { partner, over } = await met(t, receive)
  const sent = partner.run(async (kit) => {
    for (let number = 0; number < 10; number += 1) await kit.channel.send('x'.repeat(20_000))
    await kit.channel.end()
    await kit.channel.receive()
  })
  await until(() => output.stream.writableNeedDrain, 'it is full')
  await turns(20)
  // One message of the channel, which may be several of the sender's.
  t.is(output.writes.length, 1)
  output.resume()
  await Promise.all([sent, over])
  t.is(output.text, 'x'.repeat(200_000))
})

test.serial('a file is sent to its end, and the sender waits for the receiver’s acknowledgement', async (t) => {
  const file = fileOf(t, 'x'.repeat(600_000))
  const { partner, over } = await met(t, send, { file })
  const length = await partner.run(async (kit) => {
    let bytes = 0
    for (let message; (message = await kit.channel.receive()) !== undefined;) bytes += message.length
    return bytes
  })
  t.is(length, 600_000)
  t.true(await isPending(over))
  await partner.run((kit) => kit.channel.end())
  await over
  t.false(openFiles().includes(file))
})

test.serial('a receiver that is destroyed or killed is PEER_LOST, during the transfer or at its end', async (t) => {
  for (const how of ['destroy', 'kill'] as const) {
    const { partner, over } = await met(t, send, { file: fileOf(t, 'all of it') })
    await partner.run(async (kit) => {
      while ((await kit.channel.receive()) !== undefined);
    })
    await (how === 'kill' ? partner.kill() : partner.run((kit) => kit.channel.destroy()))
    await t.throwsAsync(within(over, 'its end'), {
      code: 'ERR_RINGFENCE_PEER_LOST',
      message: /left before it had confirmed that it has everything/,
    })
  }
  for (const how of ['close', 'kill'] as const) {
    const { fifo, write } = fifoOf(t)
    const { partner, over } = await met(t, send, { file: fifo })
    write('the beginning')
    await partner.run((kit) => kit.channel.receive())
    await (how === 'kill' ? partner.kill() : partner.run((kit) => kit.channel.close()))
    await t.throwsAsync(within(over, 'its end'), { code: 'ERR_RINGFENCE_PEER_LOST', message: /the receiver has left/ })
  }
})

test.serial('two senders that meet are both notified, whether or not more is to be sent', async (t) => {
  const { fifo, write } = fifoOf(t)
  for (const file of [fileOf(t, 'a word'), fifo]) {
    const { partner, address, over } = await met(t, send, { file })
    if (file === fifo) write('a word')
    await partner.run((kit) => kit.channel.send('a word'))
    await t.throwsAsync(within(over, 'its end'), {
      code: 'ERR_RINGFENCE_PROTOCOL',
      message: new RegExp(`^the process at ${address} sends as well`),
    })
  }
})

test.serial('a file that was truncated is an error, and its end is not sent', async (t) => {
  const file = fileOf(t, Buffer.alloc(2 << 20))
  const { partner, over } = await met(
    t,
    send,
    { file, options: { capacity: 65_536 } },
    { allowHalfOpen: true, capacity: 65_536 },
  )
  await partner.run((kit) => kit.channel.waitReadable())
  truncateSync(file, 1 << 20)
  const reading = partner.run(async (kit) => {
    while ((await kit.channel.receive()) !== undefined);
  })
  await t.throwsAsync(over, { message: /^\/.* has become shorter while it was sent: \d+ bytes of 2097152$/ })
  t.true(await isPending(reading))
})

test.serial('a timeout and an invalid address are reported', async (t) => {
  for (const run of [send, receive]) {
    const address = abstractAddress()
    const options = { signal: AbortSignal.timeout(1) }
    await t.throwsAsync(run({ address, file: '/dev/null', options }), {
      code: 'ERR_RINGFENCE_TIMEOUT',
      message: `no process connected to ${address} in time`,
    })
    const directory = temporaryDirectory(t)
    const file = join(mkdtempSync(join(directory, 'x')), 'file')
    if (run === send) writeFileSync(file, '')
    await t.throwsAsync(run({ address: '/nowhere/at/all', file, options: {} }), {
      code: 'ERR_RINGFENCE_ADDRESS_INVALID',
    })
  }
})

test.serial('sending to a service works, and any other peer is reported', async (t) => {
  const partner = await Partner.start(t)
  const address = abstractAddress()
  await partner.run(async (kit, where: string) => {
    const listener = await kit.ringfence.listen(where, { allowHalfOpen: true })
    kit.keep['listener'] = listener
    listener.on('connection', (channel) => {
      void (async () => {
        let text = ''
        for await (const message of channel) text += String(message)
        kit.keep['text'] = text
        await channel.end()
      })()
    })
    await kit.ringfence.publish(`${where}-published`)
  }, address)
  const errors = captureOutput(t, 'stderr')
  await send({ address, file: fileOf(t, 'for the service'), evidence: true, options: {} })
  t.is(await partner.run((kit) => kit.keep['text']), 'for the service')
  t.true(errors.text.startsWith(`guest, peer is process ${partner.pid}\n    step`))
  await t.throwsAsync(send({ address: `${address}-published`, file: '/dev/null', options: {} }), {
    code: 'ERR_RINGFENCE_PROTOCOL',
  })
})

test.serial('on a terminal the progress is shown, and its last line stays', async (t) => {
  const errors = captureOutput(t, 'stderr', { isTTY: true })
  const { partner, over } = await met(t, send, { file: fileOf(t, 'x'.repeat(1000)) })
  await partner.run(async (kit) => {
    while ((await kit.channel.receive()) !== undefined);
    await kit.channel.end()
  })
  await over
  t.regex(errors.text.split('\u001b[K').join('|'), /█{30} 100 %  1\.00 kB  [\d.]+ \w+\/s\|\n$/)
  captureOutput(t, 'stdout')
  const { partner: sender, over: received } = await met(t, receive)
  await sender.run(async (kit) => {
    await kit.channel.send('x'.repeat(2000))
    await kit.channel.end()
  })
  await received
  t.regex(errors.text.split('\u001b[K').join('|'), /\r2\.00 kB  [\d.]+ \w+\/s\|\n$/)
  const { partner: doomed, over: cut } = await met(t, receive)
  await doomed.run((kit) => kit.channel.send('x'.repeat(3000)))
  await until(() => errors.text.includes('3.00 kB'), 'it is drawn')
  await doomed.kill()
  await t.throwsAsync(cut)
  t.regex(errors.text.split('\u001b[K').join('|'), /\r3\.00 kB  [\d.]+ \w+\/s\|\n$/)
})
