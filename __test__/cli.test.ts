// The command line: the file that `receive` writes.

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  closeSync,
  constants,
  copyFileSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'

import test, { type ExecutionContext } from 'ava'

import { abstractAddress, temporaryDirectory, untilBound } from './support/address.js'
import { urlOf } from './support/internals.js'
import { reachable } from './support/other-user.js'
import { Partner } from './support/partner.js'
import { within, until } from './support/until.js'

const cli = fileURLToPath(urlOf('cli.js'))

function run(t: ExecutionContext, ...words: string[]) {
  return runBy(t, process.execPath, ...words)
}

function runBy(t: ExecutionContext, node: string, ...words: string[]) {
  const child = spawn(node, [cli, ...words], { stdio: ['ignore', 'pipe', 'pipe'] })
  t.teardown(() => child.kill('SIGKILL'))
  const done = Promise.all([once(child, 'exit'), text(child.stdout), text(child.stderr)]).then(
    ([[code, signal], output, complaints]) => ({
      code: code as number | null,
      signal: signal as string | null,
      output,
      complaints,
    }),
  )
  return { child, done }
}

/** A directory with a file in it, and an address. */
function scene(t: ExecutionContext) {
  const directory = temporaryDirectory(t)
  const file = join(directory, 'target')
  writeFileSync(file, 'as it was')
  chmodSync(file, 0o640)
  return { directory, file, address: join(temporaryDirectory(t), 'meet.sock') }
}

/** Returns once the partner is sending, has not ended, and the receiver has written that much. */
async function begin(partner: Partner, address: string, directory: string): Promise<void> {
  await partner.join(address)
  await partner.run((kit) => kit.channel.send('x'.repeat(300_000)))
  const part = () => readdirSync(directory).find((name) => name.endsWith('.part'))
  await until(
    () => part() !== undefined && statSync(join(directory, part()!)).size === 300_000,
    'the beginning is written',
  )
}

test('a file is replaced once everything has come, and keeps its mode', async (t) => {
  const { directory, file, address } = scene(t)
  const receiver = run(t, 'receive', address, file)
  const sender = await Partner.start(t)
  await begin(sender, address, directory)
  t.is(readFileSync(file, 'utf8'), 'as it was')
  await sender.run(async (kit) => {
    await kit.channel.send('the rest')
    await kit.channel.end()
    await kit.channel.receive()
  })
  t.is((await receiver.done).code, 0)
  t.is(readFileSync(file, 'utf8'), `${'x'.repeat(300_000)}the rest`)
  t.is(statSync(file).mode & 0o777, 0o640)
  t.deepEqual(readdirSync(directory), ['target'])
})

test('a name that a peer has chosen is shown, and moves no cursor', async (t) => {
  const { file, address } = scene(t)
  // A hard link, so that it is the same executable. If that is impossible, a copy, which is refused.
  const named = join(temporaryDirectory(t), '\u001b[2J\nringfence: all is well\u202e')
  let refused = false
  try {
    linkSync(realpathSync(process.execPath), named)
  } catch {
    copyFileSync(process.execPath, named)
    refused = true
  }
  const receiver = run(t, 'receive', address, file, '--evidence')
  await untilBound(address)
  const sender = runBy(t, named, 'send', address, file)
  if (refused) await sender.done.then(() => receiver.child.kill('SIGTERM'))
  else t.is((await sender.done).code, 0)
  const { complaints } = await receiver.done
  if (!refused) t.true(complaints.includes('/\\u{1b}'), complaints)
  for (const moving of ['\u001b', '\u202e', '\nringfence: all is well']) t.false(complaints.includes(moving))
})

test('if the sender is killed, the file stays as it was, and no other file is left', async (t) => {
  const { directory, file, address } = scene(t)
  const receiver = run(t, 'receive', address, file)
  const sender = await Partner.start(t)
  await begin(sender, address, directory)
  await sender.kill()
  t.is((await receiver.done).code, 5)
  t.is(readFileSync(file, 'utf8'), 'as it was')
  t.deepEqual(readdirSync(directory), ['target'])
})

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  for (const when of ['waits', 'receives'] as const) {
    test(`${signal} to a receiver that ${when} leaves the file as it was, and no other file`, async (t) => {
      const { directory, file, address } = scene(t)
      const receiver = run(t, 'receive', address, file)
      await untilBound(address)
      if (when === 'receives') {
        const sender = await Partner.start(t)
        await begin(sender, address, directory)
      }
      receiver.child.kill(signal)
      t.is((await receiver.done).signal, signal)
      t.is(readFileSync(file, 'utf8'), 'as it was')
      t.deepEqual(readdirSync(directory), ['target'])
      t.deepEqual(readdirSync(join(address, '..')), [])
    })
  }
}

for (const command of ['receive', 'send'] as const) {
  test(`SIGTERM ends a ${command} that waits for the other side of a FIFO`, async (t) => {
    const { directory } = scene(t)
    const fifo = join(directory, 'fifo')
    t.is(spawnSync('mkfifo', [fifo]).status, 0)
    const { child, done } = run(t, command, abstractAddress(), fifo)
    // From then on it handles the signal; it opens the FIFO in the same turn of the event loop.
    const takes = () => {
      const caught = /^SigCgt:\s*(\w+)$/m.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8'))![1]
      return (BigInt(`0x${caught}`) & (1n << 14n)) !== 0n
    }
    await until(takes, 'it has begun')
    child.kill('SIGTERM')
    t.is((await within(done, 'its end')).signal, 'SIGTERM')
  })

  test(`--timeout ends a ${command} that waits for the other side of a FIFO`, async (t) => {
    const { directory } = scene(t)
    const fifo = join(directory, 'fifo')
    t.is(spawnSync('mkfifo', [fifo]).status, 0)
    const { code, complaints } = await within(
      run(t, command, abstractAddress(), fifo, '--timeout', '0.2').done,
      'its end',
    )
    t.is(code, 6)
    t.regex(complaints, command === 'receive' ? /no process opened .* for reading/ : /no process connected/)
  })
}

test('a sender whose FIFO stays silent ends with its receiver', async (t) => {
  const { directory } = scene(t)
  const fifo = join(directory, 'fifo')
  t.is(spawnSync('mkfifo', [fifo]).status, 0)
  // A writer that writes nothing.
  const held = openSync(fifo, constants.O_RDWR)
  t.teardown(() => closeSync(held))
  const address = abstractAddress()
  const sender = run(t, 'send', address, fifo)
  const receiver = await Partner.start(t)
  await receiver.join(address)
  writeSync(held, 'a word')
  t.is(String(await receiver.run((kit) => kit.channel.receive())), 'a word')
  await receiver.kill()
  t.is((await within(sender.done, 'the end of the sender')).code, 5)
})

test('input from a FIFO and from a pipe is sent to its end', async (t) => {
  const { directory } = scene(t)
  const fifo = join(directory, 'fifo')
  t.is(spawnSync('mkfifo', [fifo]).status, 0)
  const shell = (script: string) =>
    spawn('bash', ['-c', script, 'bash', process.execPath, cli, abstractAddress(), fifo])
  const wanted = 'x'.repeat(1 << 20)
  for (const script of [
    '(sleep 0; head -c 1048576 /dev/zero | tr "\\0" x >"$4") & "$1" "$2" send "$3" "$4" & "$1" "$2" receive "$3"; wait',
    '"$1" "$2" send "$3" <(head -c 1048576 /dev/zero | tr "\\0" x) & "$1" "$2" receive "$3"; wait',
    '"$1" "$2" send "$3" /dev/null & "$1" "$2" receive "$3"; wait; head -c 1048576 /dev/zero | tr "\\0" x',
  ]) {
    const child = shell(script)
    t.teardown(() => child.kill('SIGKILL'))
    t.is(await within(text(child.stdout), 'the end of what is received'), wanted)
  }
})

test('a closed standard input or output is reported, and nothing is lost', async (t) => {
  const closed = async (command: string, redirected: string) => {
    const child = spawn('bash', ['-c', `"$@" ${redirected}`, 'bash', process.execPath, cli, command, abstractAddress()])
    t.teardown(() => child.kill('SIGKILL'))
    const [[code], complaints] = await within(Promise.all([once(child, 'exit'), text(child.stderr)]), 'its end')
    t.is(code, 2, complaints)
    t.regex(complaints, /is closed: name a FILE/)
  }
  await closed('receive', '>&-')
  await closed('send', '<&-')
  // A descriptor that the shell has opened is used.
  const address = abstractAddress()
  const script = '"$1" "$2" send "$3" </dev/null & "$1" "$2" receive "$3" >/dev/null; code=$?; wait; exit $code'
  const child = spawn('bash', ['-c', script, 'bash', process.execPath, cli, address])
  t.teardown(() => child.kill('SIGKILL'))
  t.deepEqual(await within(once(child, 'exit'), 'its end'), [0, null])
})

test('data goes on if the reader of the messages on standard error leaves', async (t) => {
  const { file } = scene(t)
  const address = abstractAddress()
  const receiver = spawn(process.execPath, [cli, 'receive', address, '--evidence'], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  t.teardown(() => receiver.kill('SIGKILL'))
  receiver.stderr.destroy()
  const received = text(receiver.stdout)
  t.is((await run(t, 'send', address, file).done).code, 0)
  t.is(await received, 'as it was')
  t.is(receiver.exitCode ?? (await once(receiver, 'exit'))[0], 0)
})

/** The size limit of the file below. A ring is smaller. */
const ROOM = (8 << 20) + 512

/** Runs with standard output as a file with that limit, like on a disk that gets full. */
function runInto(t: ExecutionContext, file: string, ...words: string[]) {
  // In blocks of 512 bytes (POSIX).
  const limited = `ulimit -f ${ROOM / 512}; exec "$@" > "$0"`
  const child = spawn('sh', ['-c', limited, file, process.execPath, cli, ...words], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  t.teardown(() => child.kill('SIGKILL'))
  return Promise.all([once(child, 'exit'), text(child.stderr)]).then(([[code], complaints]) => ({
    code: code as number | null,
    complaints,
  }))
}

test('a standard output with too little room is a failure on both sides', async (t) => {
  const { directory, address } = scene(t)
  const input = join(directory, 'input')
  // Half of the last part fits, and nothing follows it.
  writeFileSync(input, `${'x'.repeat(1023)}\n`.repeat(8 << 10) + `${'x'.repeat(999)}\n`)
  const output = join(directory, 'output')
  for (const command of ['receive', 'collect']) {
    const reading = runInto(t, output, command, address)
    await untilBound(address)
    t.is((await run(t, 'send', address, input).done).code, 5, command)
    const { code, complaints } = await reading
    t.deepEqual([code, /EFBIG/.test(complaints)], [8, true], `${command}: ${complaints}`)
    t.is(statSync(output).size, ROOM)
  }
  const subscriber = runInto(t, output, 'subscribe', address, '--no-newline')
  await run(t, 'publish', address, '--raw', '65536', '--audience', '1', input).done
  const { code, complaints } = await subscriber
  t.deepEqual([code, /EFBIG/.test(complaints)], [8, true], complaints)
})

test('if no peer connects, the file stays as it was', async (t) => {
  const { directory, file } = scene(t)
  const { code } = await run(t, 'receive', abstractAddress(), file, '--timeout', '0.1').done
  t.is(code, 6)
  t.is(readFileSync(file, 'utf8'), 'as it was')
  t.deepEqual(readdirSync(directory), ['target'])
})

;(process.geteuid!() === 0 ? test : test.skip)(
  'a file that its user may not write is not replaced, though the directory would allow it',
  async (t) => {
    const { directory, file } = scene(t)
    const stranger = 54_327
    chmodSync(file, 0o444)
    chmodSync(directory, 0o777)
    const { node, script, cwd } = reachable(cli)
    const words = [
      `--reuid=${stranger}`,
      `--regid=${stranger}`,
      '--clear-groups',
      node,
      script,
      'receive',
      abstractAddress(),
      file,
    ]
    const { status, stderr } = spawnSync('setpriv', words, { cwd, encoding: 'utf8', timeout: 60_000 })
    t.is(status, 1)
    t.regex(stderr, /EACCES/)
    t.is(readFileSync(file, 'utf8'), 'as it was')
    t.deepEqual(readdirSync(directory), ['target'])
  },
)

test('links are followed, also to a missing file; FIFOs and devices are written in place', async (t) => {
  const { directory, file } = scene(t)
  const source = join(directory, 'source')
  writeFileSync(source, 'what is sent')
  symlinkSync('target', join(directory, 'link'))
  symlinkSync('new', join(directory, 'dangling'))
  t.is(spawnSync('mkfifo', [join(directory, 'fifo')]).status, 0)
  const reader = spawn('cat', [join(directory, 'fifo')], { stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => reader.kill())
  const read = text(reader.stdout)
  const names = ['link', 'dangling', 'fifo']
  for (const path of [...names.map((name) => join(directory, name)), '/dev/null']) {
    const address = abstractAddress()
    const both = await Promise.all([run(t, 'receive', address, path).done, run(t, 'send', address, source).done])
    t.deepEqual(
      both.map(({ code }) => code),
      [0, 0],
      `${path}: ${both.map(({ complaints }) => complaints).join('')}`,
    )
  }
  t.is(await read, 'what is sent')
  t.is(readFileSync(file, 'utf8'), 'what is sent')
  t.is(readFileSync(join(directory, 'new'), 'utf8'), 'what is sent')
  t.true(lstatSync(join(directory, 'link')).isSymbolicLink())
  t.true(lstatSync(join(directory, 'fifo')).isFIFO())
  t.true(statSync('/dev/null').isCharacterDevice())
  t.deepEqual(readdirSync(directory).sort(), ['dangling', 'fifo', 'link', 'new', 'source', 'target'])
})

test('a file that cannot be renamed into place at the end is a failure on both sides', async (t) => {
  const { directory, file, address } = scene(t)
  const place = join(directory, 'place')
  mkdirSync(place)
  const receiver = run(t, 'receive', address, join(place, 'target'))
  await untilBound(address)
  rmSync(place, { recursive: true })
  const sender = run(t, 'send', address, file)
  t.is((await within(receiver.done, 'the end of the receiver')).code, 1)
  t.is((await within(sender.done, 'the end of the sender')).code, 5)
})

test('descriptors that are open already are written in place: /dev/stdout, and the >(…) of a shell', async (t) => {
  const { file } = scene(t)
  const shell = async (redirected: string) => {
    const address = abstractAddress()
    const sender = run(t, 'send', address, file)
    const child = spawn('bash', ['-c', redirected, 'bash', process.execPath, cli, 'receive', address], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    t.teardown(() => {
      sender.child.kill('SIGKILL')
      child.kill('SIGKILL')
    })
    return within(text(child.stdout), 'the end of what is received')
  }
  t.is(await shell('"$@" /dev/stdout | cat; exit "${PIPESTATUS[0]}"'), 'as it was')
  t.is(await shell('"$@" >(cat)'), 'as it was')
})

test('sending a directory is an error before any peer connects', async (t) => {
  const { code, complaints } = await within(
    run(t, 'send', abstractAddress(), temporaryDirectory(t)).done,
    'its failure',
  )
  t.is(code, 1)
  t.regex(complaints, /is a directory/)
})

test('a file that is truncated while it is sent is not mistaken for the whole', async (t) => {
  const { file, address } = scene(t)
  writeFileSync(file, Buffer.alloc(8 << 20))
  const sender = run(t, 'send', address, file, '--capacity', '4K')
  await untilBound(address)
  const receiver = await Partner.start(t)
  await receiver.join(address)
  // The ring is full, and the sender has read no more than two chunks.
  await receiver.run((kit) => kit.channel.waitReadable())
  truncateSync(file, 1 << 20)
  const { code: end, reason } = await receiver.run(async (kit) => {
    let code: unknown
    try {
      for await (const _ of kit.channel);
    } catch (error) {
      code = (error as { code: string }).code
    }
    return { code, reason: (await kit.channel.closed).reason }
  })
  t.is(end, 'ERR_RINGFENCE_PEER_LOST')
  t.is(reason, 'lost')
  const { code, complaints } = await sender.done
  t.is(code, 1)
  t.regex(complaints, /has become shorter while it was sent/)
})

test('a command whose output has no reader ends by SIGPIPE, silently', async (t) => {
  const address = abstractAddress()
  const fifo = join(temporaryDirectory(t), 'fifo')
  t.is(spawnSync('mkfifo', [fifo]).status, 0)
  const reader = openSync(fifo, constants.O_RDONLY | constants.O_NONBLOCK)
  const output = openSync(fifo, 'w')
  closeSync(reader)
  t.teardown(() => closeSync(output))
  const endOf = async (...words: string[]) => {
    const child = spawn(process.execPath, [cli, ...words], { stdio: ['ignore', output, 'pipe'] })
    t.teardown(() => child.kill('SIGKILL'))
    const complaints = text(child.stderr!)
    const [code, signal] = (await within(once(child, 'exit'), `the end of ${words[0]}`)) as [
      number | null,
      string | null,
    ]
    return { code, signal, complaints: await complaints }
  }
  const { file } = scene(t)
  for (const words of [['--help'], ['--version'], ['doctor'], ['doctor', '--json'], ['ps'], ['top'], ['top', '--once']])
    t.deepEqual(await endOf(...words), { code: null, signal: 'SIGPIPE', complaints: '' }, words.join(' '))
  for (const [reads, writes] of [
    ['receive', ['send', address, file]],
    ['subscribe', ['publish', address, file, '--audience', '1']],
  ] as const) {
    const writer = run(t, ...writes)
    t.deepEqual(await endOf(reads, address), { code: null, signal: 'SIGPIPE', complaints: '' }, reads)
    // The sender learns what was not written. A publisher waits for no acknowledgement.
    t.is((await within(writer.done, 'its end')).code, reads === 'receive' ? 5 : 0)
  }
})
